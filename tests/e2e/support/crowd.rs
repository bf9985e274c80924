//! Many clients at once, over hyper and not an SDK: a request costs a fraction of a millisecond, so
//! that what is measured is the gateway. Each answer is read as an SDK reads it, and told from one
//! that is visibly broken and from one that pretends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request as Head, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpStream;

type Body = Full<Bytes>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    Chat,
    Messages,
    Responses,
}

/// What is asked. The emulator's answer depends on the surface and the text alone.
#[derive(Debug, Clone)]
pub struct Question {
    pub surface: Surface,
    pub text: String,
    pub streamed: bool,
}

impl Question {
    pub fn path(&self) -> &'static str {
        match self.surface {
            Surface::Chat => "/v1/chat/completions",
            Surface::Messages => "/anthropic/v1/messages",
            Surface::Responses => "/v1/responses",
        }
    }

    pub fn body(&self) -> Value {
        let body = match self.surface {
            Surface::Chat => super::chat(&self.text),
            Surface::Messages => super::message(&self.text),
            Surface::Responses => super::response(&self.text),
        };
        super::with(body, "stream", json!(self.streamed))
    }
}

/// What became of a request, as its client can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// An answer with its proper end. Reasoning and text.
    Whole(String),
    /// Says that it failed: by its status, by an event, or by its finish reason.
    Told(String),
    /// Broke off without a word.
    Broken(String),
    /// The client left.
    Left,
    /// Neither: what looks whole and is not an answer.
    Pretends(String),
}

#[derive(Debug, Clone)]
pub struct Heard {
    /// When it was asked, in milliseconds since 1970.
    pub at_ms: u64,
    /// To the first content.
    pub first: Option<Duration>,
    pub took: Duration,
    pub status: Option<u16>,
    pub retry_after: Option<u64>,
    pub request_id: String,
    pub fate: Fate,
}

impl Heard {
    pub fn is_whole(&self) -> bool {
        matches!(self.fate, Fate::Whole(_))
    }
}

/// When a client loses patience.
#[derive(Debug, Clone, Copy)]
pub enum Leaves {
    Never,
    After(Duration),
    AfterPieces(usize),
}

/// One client's connection, made anew when it must be.
pub struct Client {
    to: SocketAddr,
    key: String,
    way: Way,
}

enum Way {
    Http1(Option<http1::SendRequest<Body>>),
    Http2(Option<http2::SendRequest<Body>>),
}

/// Longest wait for an answer's next piece: what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

impl Client {
    /// Shows `key` as a bearer token.
    pub fn new(to: SocketAddr, key: &str, http2: bool) -> Self {
        let way = match http2 {
            true => Way::Http2(None),
            false => Way::Http1(None),
        };
        let key = key.to_owned();
        Self { to, key, way }
    }

    pub async fn ask(&mut self, question: &Question, leaves: Leaves) -> Heard {
        let began = Instant::now();
        let mut heard = Heard {
            at_ms: now_ms(),
            first: None,
            took: Duration::ZERO,
            status: None,
            retry_after: None,
            request_id: String::new(),
            fate: Fate::Left,
        };
        let asking = self.read(question, leaves, began, &mut heard);
        let fate = match leaves {
            Leaves::After(time) => tokio::time::timeout(time, asking)
                .await
                .unwrap_or(Fate::Left),
            Leaves::Never | Leaves::AfterPieces(_) => asking.await,
        };
        if fate == Fate::Left && matches!(self.way, Way::Http1(_)) {
            self.way = Way::Http1(None);
        }
        heard.took = began.elapsed();
        heard.fate = fate;
        heard
    }

    async fn read(
        &mut self,
        question: &Question,
        leaves: Leaves,
        began: Instant,
        heard: &mut Heard,
    ) -> Fate {
        let answer = match self.send(question).await {
            Ok(answer) => answer,
            Err(why) => return Fate::Broken(why),
        };
        let field = |name| answer.headers().get(name)?.to_str().ok().map(str::to_owned);
        heard.status = Some(answer.status().as_u16());
        heard.request_id = field("x-request-id").unwrap_or_default();
        heard.retry_after = field("retry-after").and_then(|value| value.parse().ok());
        let events = field("content-type").is_some_and(|of| of.starts_with("text/event-stream"));
        let status = answer.status().as_u16();
        let mut body = answer.into_body();
        let (mut bytes, mut pieces) = (Vec::new(), 0);
        let whole = loop {
            let frame = match tokio::time::timeout(PATIENCE, body.frame()).await {
                Ok(frame) => frame,
                Err(_) => return Fate::Pretends("hangs".to_owned()),
            };
            match frame {
                None => break true,
                Some(Err(_)) => break false,
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        bytes.extend_from_slice(&data);
                        pieces += 1;
                    }
                }
            }
            if heard.first.is_none() && has_content(&bytes) {
                heard.first = Some(began.elapsed());
            }
            if matches!(leaves, Leaves::AfterPieces(most) if pieces >= most) {
                return Fate::Left;
            }
        };
        let text = String::from_utf8_lossy(&bytes);
        match (status, events) {
            (200, true) => of_stream(question.surface, &text, whole),
            (200, false) if question.streamed => Fate::Pretends(format!("no stream: {text}")),
            (200, false) => of_answer(question.surface, &text, whole),
            (status, _) => of_refusal(status, &text, whole),
        }
    }

    async fn send(&mut self, question: &Question) -> Result<Response<Incoming>, String> {
        let head = Head::post(format!("http://gateway{}", question.path()))
            .header("host", "gateway")
            .header("authorization", format!("Bearer {}", self.key))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(question.body().to_string())))
            .unwrap();
        let failed = |what: &str, why: &dyn std::fmt::Debug| format!("{what}: {why:?}");
        let connect = async || {
            let stream = TcpStream::connect(self.to).await;
            let stream = stream.map_err(|e| failed("connect", &e))?;
            stream.set_nodelay(true).unwrap();
            Ok::<_, String>(TokioIo::new(stream))
        };
        let sent = match &mut self.way {
            Way::Http1(kept) => {
                let ready = match kept {
                    Some(sender) => sender.ready().await.is_ok(),
                    None => false,
                };
                if !ready {
                    let made = http1::handshake(connect().await?).await;
                    let (sender, connection) = made.map_err(|e| failed("handshake", &e))?;
                    tokio::spawn(connection);
                    *kept = Some(sender);
                }
                let sender = kept.as_mut().unwrap();
                // In the form that goes with HTTP/1.1.
                let (mut parts, body) = head.into_parts();
                parts.uri = question.path().parse().unwrap();
                let head = Head::from_parts(parts, body);
                tokio::time::timeout(PATIENCE, sender.send_request(head)).await
            }
            Way::Http2(kept) => {
                if kept.as_ref().is_none_or(http2::SendRequest::is_closed) {
                    let io = connect().await?;
                    let made = http2::handshake(TokioExecutor::new(), io).await;
                    let (sender, connection) = made.map_err(|e| failed("handshake", &e))?;
                    tokio::spawn(connection);
                    *kept = Some(sender);
                }
                let sender = kept.as_mut().unwrap();
                tokio::time::timeout(PATIENCE, sender.send_request(head)).await
            }
        };
        match sent {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => Err(failed("no head", &why)),
            Err(_) => Err("no head in time".to_owned()),
        }
    }
}

/// Clients at work; they stop when this is dropped.
pub struct Crowd {
    stop: Arc<AtomicBool>,
    heard: Arc<Mutex<Vec<Heard>>>,
    thread: Option<JoinHandle<()>>,
}

/// What each of a crowd does.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    pub clients: usize,
    /// After a refusal.
    pub waits: Duration,
    /// Within this the first requests go out one after the other, so that they do not march in step.
    pub spread: Duration,
}

impl Crowd {
    /// Streamed chat over HTTP/1.1, one request after the other in each client.
    pub fn start(to: SocketAddr, key: &str, habits: Habits) -> Self {
        let key: Arc<str> = key.into();
        let stop = Arc::new(AtomicBool::new(false));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (stopped, gathered) = (Arc::clone(&stop), Arc::clone(&heard));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut clients = tokio::task::JoinSet::new();
                for number in 0..habits.clients {
                    let (stop, heard) = (Arc::clone(&stopped), Arc::clone(&gathered));
                    let client = Client::new(to, &key, false);
                    clients.spawn(keep_asking(number, client, habits, stop, heard));
                }
                while let Some(ended) = clients.join_next().await {
                    ended.unwrap();
                }
            });
        });
        Self {
            stop,
            heard,
            thread: Some(thread),
        }
    }

    /// Lets everybody end what was begun, and tells what came of all.
    pub fn finish(mut self) -> Vec<Heard> {
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap();
        std::mem::take(&mut *self.heard.lock())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

async fn keep_asking(
    number: usize,
    mut client: Client,
    habits: Habits,
    stop: Arc<AtomicBool>,
    heard: Arc<Mutex<Vec<Heard>>>,
) {
    let share = u32::try_from(number).unwrap();
    let among = u32::try_from(habits.clients).unwrap();
    tokio::time::sleep(habits.spread * share / among).await;
    for round in 0.. {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let question = Question {
            surface: Surface::Chat,
            text: format!("{number}.{round} is the number of this question."),
            streamed: true,
        };
        let one = client.ask(&question, Leaves::Never).await;
        let refused = !one.is_whole();
        heard.lock().push(one);
        if refused {
            tokio::time::sleep(habits.waits).await;
        }
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// The time to the first content that `share` of them kept, from 0 to 1.
pub fn first_content<'a>(heard: impl Iterator<Item = &'a Heard>, share: f64) -> Duration {
    let mut times: Vec<_> = heard.filter_map(|one| one.first).collect();
    times.sort_unstable();
    let at = (times.len() as f64 * share) as usize;
    let at = at.min(times.len().saturating_sub(1));
    times.get(at).copied().unwrap_or(Duration::MAX)
}

/// Does anything stand in the answer yet that a reader would see?
fn has_content(bytes: &[u8]) -> bool {
    [
        &b"content\":\""[..],
        b"_delta\",\"text\":\"",
        b"thinking\":\"",
        b"\"delta\":\"",
    ]
    .iter()
    .any(|mark| {
        memchr::memmem::find_iter(bytes, mark)
            .any(|at| bytes.get(at + mark.len()).is_some_and(|next| *next != b'"'))
    })
}

/// Reasoning and text so far.
#[derive(Default)]
struct Said {
    reasoning: String,
    text: String,
}

impl Said {
    fn add(&mut self, reasoning: bool, value: &Value) {
        let into = match reasoning {
            true => &mut self.reasoning,
            false => &mut self.text,
        };
        into.push_str(value.as_str().unwrap_or_default());
    }

    fn whole(self) -> Fate {
        Fate::Whole(format!("{}\u{1f}{}", self.reasoning, self.text))
    }
}

fn of_stream(surface: Surface, text: &str, whole: bool) -> Fate {
    let (mut said, mut finish, mut ended) = (Said::default(), None, false);
    // An event is one by its blank line: what comes after the last one is thrown away.
    let events = text.rsplit_once("\n\n").map_or("", |(events, _)| events);
    for data in events
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
    {
        if ended {
            continue;
        }
        if data == "[DONE]" {
            ended = surface == Surface::Chat;
            continue;
        }
        let Ok(event) = serde_json::from_str::<Value>(data) else {
            // There SDKs raise.
            return Fate::Broken("no JSON in an event".to_owned());
        };
        let failed = matches!(event["type"].as_str(), Some("error" | "response.failed"));
        if failed || !event["error"].is_null() {
            return Fate::Told(format!("event {}", event["error"]["code"]));
        }
        match surface {
            Surface::Chat => {
                let choice = &event["choices"][0];
                said.add(true, &choice["delta"]["reasoning_content"]);
                said.add(false, &choice["delta"]["content"]);
                finish = choice["finish_reason"]
                    .as_str()
                    .map(str::to_owned)
                    .or(finish);
            }
            Surface::Messages => {
                said.add(true, &event["delta"]["thinking"]);
                said.add(false, &event["delta"]["text"]);
                let stop = event["delta"]["stop_reason"].as_str();
                finish = stop.map(str::to_owned).or(finish);
                ended = event["type"] == "message_stop";
            }
            Surface::Responses => {
                let kind = event["type"].as_str().unwrap_or_default();
                if kind.ends_with("_text.delta") {
                    said.add(kind.contains("reasoning"), &event["delta"]);
                }
                ended = matches!(kind, "response.completed" | "response.incomplete");
                if ended {
                    finish = event["response"]["status"].as_str().map(str::to_owned);
                }
            }
        }
    }
    match (ended, whole) {
        // After the proper end nothing can be taken back by the connection.
        (true, _) => finished(finish.as_deref(), said),
        (false, false) => Fate::Broken("without an end".to_owned()),
        (false, true) => Fate::Pretends(format!("ends without its end: {text}")),
    }
}

fn finished(finish: Option<&str>, said: Said) -> Fate {
    match finish {
        Some("stop" | "end_turn" | "completed") => said.whole(),
        finish => Fate::Told(format!("finish {finish:?}")),
    }
}

/// What an answer in one piece says.
pub fn of_answer(surface: Surface, text: &str, whole: bool) -> Fate {
    if !whole {
        return Fate::Broken("within an answer".to_owned());
    }
    let Ok(answer) = serde_json::from_str::<Value>(text) else {
        return Fate::Pretends(format!("no JSON: {text}"));
    };
    if !answer["error"].is_null() {
        return Fate::Told(format!("error {}", answer["error"]["code"]));
    }
    let mut said = Said::default();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let finish = match surface {
        Surface::Chat => {
            let choice = &answer["choices"][0];
            said.add(true, &choice["message"]["reasoning_content"]);
            said.add(false, &choice["message"]["content"]);
            choice["finish_reason"].as_str()
        }
        Surface::Messages => {
            for part in list(&answer["content"]) {
                said.add(true, &part["thinking"]);
                said.add(false, &part["text"]);
            }
            answer["stop_reason"].as_str()
        }
        Surface::Responses => {
            for part in list(&answer["output"]) {
                for content in list(&part["content"]) {
                    said.add(part["type"] == "reasoning", &content["text"]);
                }
            }
            answer["status"].as_str()
        }
    };
    finished(finish, said)
}

fn of_refusal(status: u16, text: &str, whole: bool) -> Fate {
    let answer = serde_json::from_str::<Value>(text);
    match answer {
        Ok(answer) if !answer["error"].is_null() => {
            Fate::Told(format!("{status} {}", answer["error"]["code"]))
        }
        _ if !whole => Fate::Broken(format!("{status}")),
        _ => Fate::Pretends(format!("{status}: {text}")),
    }
}
