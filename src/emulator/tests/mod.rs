//! The emulator as its clients see it, over real sockets.
mod accounting;
mod accounts;
mod envelopes;
mod faults;
mod limits;
mod spoilt;
mod surfaces;
mod watching;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::{DEFAULT_KEY, EmulatedAccount, EmulatorConfig, bind};

/// A running emulator; it ends with this value.
struct Stand {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

/// What came back. `whole` is false when the connection broke within the body.
struct Answered {
    status: u16,
    headers: HeaderMap,
    text: String,
    whole: bool,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }

    /// The `data:` payloads.
    fn data(&self) -> Vec<&str> {
        self.text
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .collect()
    }

    /// The payloads that are JSON.
    fn events(&self) -> Vec<Value> {
        self.data()
            .iter()
            .filter_map(|data| serde_json::from_str(data).ok())
            .collect()
    }
}

fn quick() -> EmulatorConfig {
    EmulatorConfig {
        token_delay: Duration::ZERO,
        first_token_delay: Duration::ZERO,
        keep_alive: Duration::from_millis(10),
        ..EmulatorConfig::default()
    }
}

async fn start(config: EmulatorConfig) -> Stand {
    let emulator = bind(config).await.unwrap();
    let address = emulator.address();
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(emulator.serve(async {
        let _ = stopped.await;
    }));
    Stand {
        address,
        _stop: stop,
    }
}

impl Stand {
    /// A connection by prior knowledge.
    async fn over_http2(&self) -> http2::SendRequest<Full<Bytes>> {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(tcp));
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Option<Answered> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let response = sender.send_request(request).await.ok()?;
        let (head, mut body) = response.into_parts();
        let mut bytes = Vec::new();
        let mut whole = true;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => bytes.extend_from_slice(frame.data_ref().unwrap()),
                Err(_) => whole = false,
            }
        }
        let text = String::from_utf8(bytes).unwrap();
        Some(Answered {
            status: head.status.as_u16(),
            headers: head.headers,
            text,
            whole,
        })
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answered {
        self.send(request(method, path, headers, body))
            .await
            .unwrap()
    }

    /// A JSON request with the default key.
    async fn post(&self, path: &str, body: &Value) -> Answered {
        self.post_with(path, body, &[]).await
    }

    async fn post_with(&self, path: &str, body: &Value, more: &[(&str, &str)]) -> Answered {
        let mut headers = vec![KEY, JSON];
        headers.extend_from_slice(more);
        self.call(Method::POST, path, &headers, &body.to_string())
            .await
    }

    async fn get(&self, path: &str) -> Answered {
        self.call(Method::GET, path, &[KEY], "").await
    }

    async fn order(&self, order: &Value) -> Answered {
        self.post("/_emulator/faults", order).await
    }

    /// The journal's last entry once `ready`.
    async fn entry(&self, ready: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..200 {
            let journal = self.get("/_emulator/journal?full=1").await.json();
            if let Some(entry) = journal
                .as_array()
                .unwrap()
                .last()
                .filter(|entry| ready(entry))
            {
                return entry.clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the journal never said so");
    }

    /// A connection on which a request was written by hand.
    async fn raw(&self, path: &str, headers: &str, body: &Value) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {DEFAULT_KEY}\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }
}

const KEY: (&str, &str) = ("authorization", "Bearer sk-emulator");
const JSON: (&str, &str) = ("content-type", "application/json");

fn request(
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "x");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap()
}

fn ask(text: &str) -> Value {
    json!({"model": "deepseek-flash", "messages": [{"role": "user", "content": text}]})
}

fn stream(text: &str) -> Value {
    with(ask(text), "stream", json!(true))
}

fn with(mut body: Value, name: &str, value: Value) -> Value {
    body[name] = value;
    body
}

/// Reads until `wanted` is there; panics when the connection ends before.
async fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(wanted) {
        let read = stream.read(&mut buffer).await.unwrap();
        assert!(read > 0, "ended before {wanted:?}: {text}");
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    text
}
