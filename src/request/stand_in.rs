//! Stands in the place of a client's session inside Pingora, for four things that have no switch
//! there. A body that Pingora did not keep is sent all the same. An answer is read on when its
//! client has left. An answer's head is held back while there is no content, so that a failure can
//! still have a status of its own. And an upstream that says nothing is given up at a deadline.
//! Everything else goes to and comes from the client unchanged.
//!
//! Pingora calls `request_body_filter` on an attempt only if the session has something to replay;
//! this one always has a marker, see [`super::body`]. And Pingora ends a request with the first
//! error of its client. Here, while an upstream is at work, the error is kept back: what comes
//! afterwards is thrown away, until the answer's end or the drain's. Pingora takes the pieces at
//! the pace of the upstream, so nothing gathers. Pingora listens for the client all through an
//! attempt, whatever the upstream does, and that is where the deadline is looked at; its timer is
//! set anew when the deadline comes nearer, and when it has gone off too early, not for each piece.
//!
//! The seat is Pingora's for protocols of one's own. It costs an allocation for each read and
//! write; the client's own session is put back before Pingora decides whether to keep the
//! connection.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Version};
use log::debug;
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as Seat;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;
use tokio::time::{Instant, Sleep};

/// What stands for the body inside Pingora.
const MARKER: &[u8] = b"{";

/// How long a connection that does not drain may hold up its own end.
const FAREWELL: Duration = Duration::from_millis(100);

/// What the request knows of the client behind the session that stands in for it.
pub struct Behind(Arc<Shared>);

struct Shared {
    at_work: AtomicBool,
    left: AtomicBool,
    /// There is something for the client: its head need not be held back.
    open: AtomicBool,
    /// Times are counted from here.
    epoch: Instant,
    /// Milliseconds after `epoch`; [`NEVER`] for none.
    deadline: AtomicU64,
    late: AtomicBool,
    /// The client's session, when nothing stands in its place any more.
    back: Mutex<Option<ServerSession>>,
}

const NEVER: u64 = u64::MAX;

/// What is done for a client beside passing on.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// For how long answers are read on once the client has left; `None` ends the request at once.
    pub drain: Option<Duration>,
    /// For how long, from now, an answer's head is held back while there is no content.
    pub hold: Duration,
}

/// Puts a stand-in in the place of the session, the body of which has been read to its end.
pub fn put(session: &mut Session, terms: Terms) -> Behind {
    let now = Instant::now();
    let shared = Arc::new(Shared {
        at_work: AtomicBool::new(false),
        left: AtomicBool::new(false),
        open: AtomicBool::new(false),
        epoch: now,
        deadline: AtomicU64::new(NEVER),
        late: AtomicBool::new(false),
        back: Mutex::default(),
    });
    let client = vacate(session);
    *session.downstream_session = ServerSession::new_custom(Box::new(StandIn {
        client,
        drain: terms.drain,
        hold_until: now.checked_add(terms.hold).unwrap_or(now),
        held: None,
        departure: None,
        unsent: None,
        alarm: None,
        shared: shared.clone(),
    }));
    Behind(shared)
}

/// Nobody's seat, to be taken in the next line.
fn vacate(session: &mut Session) -> ServerSession {
    std::mem::replace(
        &mut *session.downstream_session,
        ServerSession::new_custom(Box::new(())),
    )
}

impl Behind {
    /// Whether an upstream is at work on the request: only then is there something to read on.
    pub fn at_work(&self, is: bool) {
        self.0.at_work.store(is, Ordering::Release);
    }

    /// The client left, and what came afterwards did not reach it.
    pub fn has_left(&self) -> bool {
        self.0.left.load(Ordering::Acquire)
    }

    /// Whether there is something for the client: what comes now is not held back any more.
    pub fn open(&self, is: bool) {
        self.0.open.store(is, Ordering::Release);
    }

    /// Until when the upstream's next sign is waited for; `None` for ever.
    pub fn wait_until(&self, deadline: Option<std::time::Instant>) {
        let millis = deadline.map_or(NEVER, |at| self.0.millis(Instant::from_std(at)));
        self.0.deadline.store(millis, Ordering::Release);
    }

    /// Was the deadline over? True once for each time.
    pub fn was_late(&self) -> bool {
        self.0.late.swap(false, Ordering::AcqRel)
    }

    /// Puts the client's own session back, unless there is no client any more. May be asked twice.
    pub fn step_aside(&self, session: &mut Session) {
        if self.has_left() || !session.downstream_session.is_custom() {
            return;
        }
        drop(vacate(session));
        if let Some(client) = self.0.back.lock().take() {
            *session.downstream_session = client;
        }
    }
}

impl Shared {
    fn millis(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.epoch).as_millis();
        u64::try_from(since).unwrap_or(NEVER)
    }

    fn deadline(&self) -> Option<Instant> {
        let millis = self.deadline.load(Ordering::Acquire);
        (millis != NEVER).then(|| self.epoch.checked_add(Duration::from_millis(millis)))?
    }
}

struct StandIn {
    client: ServerSession,
    drain: Option<Duration>,
    hold_until: Instant,
    /// A head that waits for content.
    held: Option<Box<ResponseHeader>>,
    departure: Option<Departure>,
    /// Goes off at the deadline, or before it if that was put off since.
    alarm: Option<Pin<Box<Sleep>>>,
    /// The answer's head, if the client did not see it.
    unsent: Option<Box<ResponseHeader>>,
    shared: Arc<Shared>,
}

/// How the client left.
struct Departure {
    cause: Option<Box<Error>>,
    /// Until when the answer is read on; `None` for ever.
    until: Option<Instant>,
}

impl StandIn {
    /// Keeps an error of the client's back, if there is an answer to be read on.
    async fn leave(&mut self, cause: Box<Error>) -> Result<()> {
        let Some(drain) = self
            .drain
            .filter(|_| self.shared.at_work.load(Ordering::Acquire))
        else {
            return Err(cause);
        };
        debug!("A client left; its answer is read on. cause=\"{cause}\"");
        self.shared.left.store(true, Ordering::Release);
        self.departure = Some(Departure {
            cause: Some(cause),
            until: Instant::now().checked_add(drain),
        });
        // Whoever only stopped reading, or said what it should not, is told.
        let _ = tokio::time::timeout(FAREWELL, self.client.shutdown()).await;
        Ok(())
    }

    /// Throws away what can reach nobody; true if it was the end.
    fn swallow(&mut self, tasks: Vec<HttpTask>) -> bool {
        let mut end = false;
        for task in tasks {
            end |= task.is_end();
            if let HttpTask::Header(head, _) = task {
                self.unsent = Some(head);
            }
        }
        end
    }

    /// Leaves out what must not reach the client yet: a head without content, and what only shows
    /// that the upstream is alive.
    fn hold_back(&mut self, tasks: Vec<HttpTask>) -> Vec<HttpTask> {
        if self.is_out() {
            return tasks;
        }
        let open = self.shared.open.load(Ordering::Acquire);
        let says =
            |task: &HttpTask| matches!(task, HttpTask::Body(Some(piece), _) if !piece.is_empty());
        let told = open || tasks.iter().any(HttpTask::is_end);
        let early = !told && Instant::now() >= self.hold_until && tasks.iter().any(says);
        if tasks
            .iter()
            .any(|task| matches!(task, HttpTask::Header(..)))
        {
            // An earlier attempt's, which failed before its content.
            self.held = None;
        }
        if !told && !early {
            for task in tasks {
                if let HttpTask::Header(head, _) = task {
                    self.held = Some(head);
                }
            }
            return Vec::new();
        }
        let mut out = Vec::with_capacity(tasks.len() + 1);
        out.extend(self.held.take().map(|head| HttpTask::Header(head, false)));
        out.extend(tasks);
        if early {
            for task in &mut out {
                if let HttpTask::Header(head, _) = task {
                    self.unbound(head);
                }
            }
        }
        out
    }

    /// Takes a head's length away: another upstream may yet answer in this one's place.
    fn unbound(&self, head: &mut ResponseHeader) {
        if head.remove_header(&CONTENT_LENGTH).is_some()
            && self.client.req_header().version == Version::HTTP_11
        {
            // One static value for another: it cannot fail.
            let _ = head.insert_header(TRANSFER_ENCODING, "chunked");
        }
    }

    /// Has the client seen a final head?
    fn is_out(&self) -> bool {
        let written = self.client.response_written();
        written.is_some_and(|head| !head.status.is_informational())
    }

    /// Never ends unless the deadline is over.
    async fn deadline(alarm: &mut Option<Pin<Box<Sleep>>>, shared: &Shared) {
        let Some(mut deadline) = shared.deadline() else {
            return std::future::pending().await;
        };
        let alarm = alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if alarm.deadline() > deadline || alarm.is_elapsed() {
            alarm.as_mut().reset(deadline);
        }
        loop {
            alarm.as_mut().await;
            match shared.deadline() {
                None => return std::future::pending().await,
                Some(later) => deadline = later,
            }
            if Instant::now() >= deadline {
                return;
            }
            alarm.as_mut().reset(deadline);
        }
    }

    fn give_up_waiting(&self) -> Result<Option<Bytes>> {
        self.shared.late.store(true, Ordering::Release);
        Error::e_explain(ErrorType::ReadTimedout, "the upstream's deadline is over")
    }

    async fn pass_on(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let end = tasks.iter().any(HttpTask::is_end);
        match self.client.response_duplex_vec(tasks).await {
            Err(cause) => self.leave(cause).await.map(|()| end),
            passed => passed,
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let nobody = ServerSession::new_custom(Box::new(()));
        *self.shared.back.lock() = Some(std::mem::replace(&mut self.client, nobody));
    }
}

#[async_trait]
impl Seat for StandIn {
    fn req_header(&self) -> &RequestHeader {
        self.client.req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.client.req_header_mut()
    }

    /// The body has been read.
    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        Ok(())
    }

    fn is_body_done(&mut self) -> bool {
        true
    }

    fn is_body_empty(&mut self) -> bool {
        false
    }

    fn enable_retry_buffering(&mut self) {}

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        Some(Bytes::from_static(MARKER))
    }

    /// Only ever ends with an error: the client left, or sent what it should not, and the drain is
    /// over. Pingora asks anew whenever something else has happened.
    async fn read_body_or_idle(&mut self, _no_body_expected: bool) -> Result<Option<Bytes>> {
        if self.departure.is_none() {
            let read = tokio::select! {
                biased;
                read = self.client.read_body_or_idle(true) => read,
                () = Self::deadline(&mut self.alarm, &self.shared) => return self.give_up_waiting(),
            };
            match read {
                Err(cause) => self.leave(cause).await?,
                read => return read,
            }
        }
        if let Some(departure) = &mut self.departure {
            let over = async {
                match departure.until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = over => {}
                () = Self::deadline(&mut self.alarm, &self.shared) => return self.give_up_waiting(),
            }
            if let Some(cause) = departure.cause.take() {
                return Err(cause);
            }
        }
        Error::e_explain(ErrorType::ConnectionClosed, "the client left before")
    }

    async fn response_duplex_vec(&mut self, mut tasks: Vec<HttpTask>) -> Result<bool> {
        // The upstream's failure is no departure of the client's.
        let failed = tasks
            .iter()
            .position(|task| matches!(task, HttpTask::Failed(_)));
        let failure = failed.and_then(|at| tasks.drain(at..).next());
        let mut end = false;
        if self.departure.is_some() {
            end = self.swallow(tasks);
        } else {
            let tasks = self.hold_back(tasks);
            if !tasks.is_empty() {
                end = self.pass_on(tasks).await?;
            }
        }
        match failure {
            Some(HttpTask::Failed(error)) => Err(error),
            _ => Ok(end),
        }
    }

    async fn write_response_header(&mut self, head: Box<ResponseHeader>, _end: bool) -> Result<()> {
        if self.departure.is_some() {
            return Ok(());
        }
        self.held = None;
        match self.client.write_response_header(head).await {
            Err(cause) => self.leave(cause).await,
            written => written,
        }
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, end: bool) -> Result<()> {
        self.write_response_header(Box::new(head.clone()), end)
            .await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        if self.departure.is_some() {
            return Ok(());
        }
        match self.client.write_response_body(data, end).await {
            Err(cause) => self.leave(cause).await,
            written => written,
        }
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        if self.departure.is_some() {
            return Ok(());
        }
        self.client.write_response_trailers(trailers).await
    }

    async fn finish(&mut self) -> Result<()> {
        // What was cut for a client must not look whole to it.
        if self.departure.is_some() {
            return Ok(());
        }
        self.client.finish_body().await
    }

    async fn shutdown(&mut self, _code: u32, _ctx: &str) {
        self.client.shutdown().await;
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.client.response_written().or(self.unsent.as_deref())
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.client.set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.client.get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.client.set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.client.get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.client.set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.client.get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.client.request_summary()
    }

    fn body_bytes_sent(&self) -> usize {
        self.client.body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.client.body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.client.digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.client.digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.client.client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.client.server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.client.to_h1_raw()
    }

    fn is_upgrade_req(&self) -> bool {
        self.client.is_upgrade_req()
    }

    fn was_upgraded(&self) -> bool {
        self.client.was_upgraded()
    }

    // No messages beside the request: what follows is for protocols of one's own.

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(
        &mut self,
        _writer: Box<dyn CustomMessageWrite>,
    ) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    const DRAIN: Duration = Duration::from_millis(80);

    fn terms(drain: Option<Duration>) -> Terms {
        let hold = Duration::ZERO;
        Terms { drain, hold }
    }

    /// A request that was read, and the client's end of its connection.
    async fn request() -> (Session, DuplexStream) {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let head = b"POST / HTTP/1.1\r\nhost: g\r\ncontent-length: 2\r\n\r\n{}";
        client.write_all(head).await.unwrap();
        let mut session = Session::new_h1(Box::new(server));
        assert!(session.downstream_session.read_request().await.unwrap());
        while session.read_request_body().await.unwrap().is_some() {}
        (session, client)
    }

    fn head() -> HttpTask {
        let mut head = ResponseHeader::build(200, None).unwrap();
        head.insert_header("content-length", "4").unwrap();
        HttpTask::Header(Box::new(head), false)
    }

    fn piece(text: &'static str, end: bool) -> HttpTask {
        HttpTask::Body(Some(Bytes::from_static(text.as_bytes())), end)
    }

    fn failure() -> HttpTask {
        HttpTask::Failed(Error::new(ErrorType::ReadError).into_up())
    }

    async fn departure(session: &mut Session) -> Box<Error> {
        let waiting = session.downstream_session.read_body_or_idle(true);
        waiting.await.unwrap_err()
    }

    #[tokio::test]
    async fn a_client_that_stays_gets_all_and_its_session_comes_back() {
        let (mut session, mut client) = request().await;
        let behind = put(&mut session, terms(Some(DRAIN)));
        behind.at_work(true);
        assert!(session.get_retry_buffer().is_some() && session.is_body_done());
        assert!(!session.write_response_tasks(vec![head()]).await.unwrap());
        let rest = vec![piece("ab", false), piece("cd", true)];
        assert!(session.write_response_tasks(rest).await.unwrap());
        behind.step_aside(&mut session);
        behind.step_aside(&mut session);
        assert!(session.as_http1().is_some() && !behind.has_left());
        drop(session);
        let mut got = String::new();
        client.read_to_string(&mut got).await.unwrap();
        assert!(got.starts_with("HTTP/1.1 200") && got.ends_with("\r\n\r\nabcd"));
    }

    #[tokio::test]
    async fn a_departure_is_kept_back_until_the_drain_is_over() {
        let (mut session, client) = request().await;
        let behind = put(&mut session, terms(Some(DRAIN)));
        behind.at_work(true);
        drop(client);
        let left = Instant::now();
        // Pingora asks again and again; the time runs from the departure.
        for _ in 0..3 {
            let waiting = session.downstream_session.read_body_or_idle(true);
            let early = tokio::time::timeout(DRAIN / 8, waiting).await;
            assert!(early.is_err() && behind.has_left());
        }
        assert!(!session.write_response_tasks(vec![head()]).await.unwrap());
        assert!(session.response_written().is_some());
        let end = vec![piece("abcd", true)];
        assert!(session.write_response_tasks(end).await.unwrap());
        assert_eq!(session.body_bytes_sent(), 0);
        departure(&mut session).await;
        assert!(left.elapsed() >= DRAIN && left.elapsed() < DRAIN * 10);
        behind.step_aside(&mut session);
        assert!(session.downstream_session.is_custom());
    }

    #[tokio::test]
    async fn without_an_upstream_at_work_or_a_drain_a_departure_ends_the_request() {
        for (drain, at_work) in [(Some(Duration::MAX / 4), false), (None, true)] {
            let (mut session, client) = request().await;
            let behind = put(&mut session, terms(drain));
            behind.at_work(at_work);
            drop(client);
            departure(&mut session).await;
            assert!(!behind.has_left());
        }
    }

    #[tokio::test]
    async fn an_upstreams_failure_is_no_departure_and_is_told_in_any_case() {
        let (mut session, client) = request().await;
        let behind = put(&mut session, terms(Some(DRAIN)));
        behind.at_work(true);
        let tasks = vec![head(), piece("ab", false), failure()];
        let error = session.write_response_tasks(tasks).await.unwrap_err();
        assert!(*error.etype() == ErrorType::ReadError && !behind.has_left());
        assert_eq!(session.body_bytes_sent(), 2);
        drop(client);
        // The departure shows in the write, and the failure behind it is not lost.
        let tasks = vec![piece("cd", false), failure()];
        let error = session.write_response_tasks(tasks).await.unwrap_err();
        assert!(*error.etype() == ErrorType::ReadError && behind.has_left());
    }

    fn keep_alive() -> HttpTask {
        piece(": keep-alive\n\n", false)
    }

    fn holding(hold: Duration) -> Terms {
        Terms { drain: None, hold }
    }

    async fn got(mut client: DuplexStream, session: Session) -> String {
        drop(session);
        let mut got = String::new();
        client.read_to_string(&mut got).await.unwrap();
        got
    }

    #[tokio::test]
    async fn a_head_waits_for_content_and_gives_way_to_another() {
        let (mut session, client) = request().await;
        let behind = put(&mut session, holding(Duration::MAX / 4));
        for tasks in [vec![head()], vec![keep_alive()]] {
            assert!(!session.write_response_tasks(tasks).await.unwrap());
        }
        assert!(session.response_written().is_none());
        let mut other = ResponseHeader::build(201, None).unwrap();
        other.insert_header("content-length", "4").unwrap();
        let other = HttpTask::Header(Box::new(other), false);
        assert!(!session.write_response_tasks(vec![other]).await.unwrap());
        behind.open(true);
        let rest = vec![piece("abcd", true)];
        assert!(session.write_response_tasks(rest).await.unwrap());
        behind.step_aside(&mut session);
        let got = got(client, session).await;
        assert!(got.starts_with("HTTP/1.1 201") && got.ends_with("\r\n\r\nabcd"));
    }

    #[tokio::test]
    async fn a_head_that_waited_long_enough_goes_out_without_a_length() {
        let (mut session, client) = request().await;
        let behind = put(&mut session, holding(Duration::ZERO));
        for tasks in [vec![head()], vec![keep_alive()]] {
            assert!(!session.write_response_tasks(tasks).await.unwrap());
        }
        assert!(session.response_written().is_some());
        // The second head, of another attempt, is not written.
        let rest = vec![head(), piece("abcd", true)];
        assert!(session.write_response_tasks(rest).await.unwrap());
        behind.step_aside(&mut session);
        let got = got(client, session).await.to_lowercase();
        assert!(got.starts_with("http/1.1 200") && !got.contains("content-length"));
        assert!(got.contains("transfer-encoding: chunked") && got.matches("http/1.1").count() == 1);
        assert!(got.contains(": keep-alive") && got.contains("abcd"));
    }

    #[tokio::test]
    async fn what_we_say_ourselves_takes_the_place_of_a_head_that_waits() {
        let (mut session, client) = request().await;
        let behind = put(&mut session, holding(Duration::MAX / 4));
        let tasks = vec![head(), keep_alive()];
        assert!(!session.write_response_tasks(tasks).await.unwrap());
        let mut ours = ResponseHeader::build(503, None).unwrap();
        ours.insert_header("content-length", "0").unwrap();
        let written = session.write_response_header(Box::new(ours), true).await;
        written.unwrap();
        behind.step_aside(&mut session);
        assert!(got(client, session).await.starts_with("HTTP/1.1 503"));
    }

    #[tokio::test]
    async fn the_head_of_an_attempt_that_failed_gives_way_to_the_next_ones() {
        let (mut session, client) = request().await;
        let behind = put(&mut session, holding(Duration::MAX / 4));
        let mut failed = ResponseHeader::build(200, None).unwrap();
        failed.insert_header("content-length", "2").unwrap();
        let tasks = vec![HttpTask::Header(Box::new(failed), false)];
        assert!(!session.write_response_tasks(tasks).await.unwrap());
        // All of the next one in one go.
        let mut head = ResponseHeader::build(200, None).unwrap();
        head.insert_header("content-length", "4").unwrap();
        let tasks = vec![
            HttpTask::Header(Box::new(head), false),
            HttpTask::Body(Some(Bytes::from_static(b"abcd")), true),
        ];
        assert!(session.write_response_tasks(tasks).await.unwrap());
        behind.step_aside(&mut session);
        let got = got(client, session).await.to_ascii_lowercase();
        assert!(
            got.contains("content-length: 4") && got.ends_with("abcd"),
            "{got}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_upstream_is_given_up_at_the_deadline_and_not_before() {
        let (mut session, _client) = request().await;
        let behind = put(&mut session, terms(None));
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let set = |after: u32| behind.wait_until(Some((start + second * after).into_std()));
        set(10);
        let waiting = session.downstream_session.read_body_or_idle(true);
        assert!(tokio::time::timeout(second * 2, waiting).await.is_err());
        // Nearer, then put off while the alarm is set.
        set(4);
        let waiting = session.downstream_session.read_body_or_idle(true);
        assert!(tokio::time::timeout(second, waiting).await.is_err());
        set(6);
        assert_eq!(
            *departure(&mut session).await.etype(),
            ErrorType::ReadTimedout
        );
        let took = start.elapsed().as_secs_f64();
        assert!((5.9..6.1).contains(&took), "{took}");
        assert!(behind.was_late() && !behind.was_late());
        behind.wait_until(None);
        let waiting = session.downstream_session.read_body_or_idle(true);
        assert!(tokio::time::timeout(second * 99, waiting).await.is_err());
    }
}
