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
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
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
    /// Microseconds after `epoch`; [`NEVER`] for none.
    deadline: AtomicU64,
    late: AtomicBool,
    /// Microseconds for which nothing was read since the client took what it was written slowly.
    paused: AtomicU64,
    doubt: Mutex<Option<Doubted>>,
    /// It was doubt and no deadline.
    doubted: AtomicBool,
    /// Bytes of answers that came here to be passed on.
    taken: AtomicUsize,
    /// What comes next is the last, and must not end as if it were whole.
    broken: AtomicBool,
    /// The gateway has seen the end of the answer, or does not look at it.
    finished: AtomicBool,
    /// The client's session, when nothing stands in its place any more.
    back: Mutex<Option<ServerSession>>,
}

const NEVER: u64 = u64::MAX;

/// Asked now and then while an upstream shows no content: is it to be given up before its deadline?
pub type Doubt = Box<dyn Fn(std::time::Instant) -> bool + Send + Sync>;

struct Doubted {
    since: Instant,
    next: Instant,
    gives_up: Doubt,
}

/// The first look at a doubt comes after this.
const FIRST_LOOK: Duration = Duration::from_millis(1_100);
/// From one look to the next at least; of a longer wait, it is a quarter.
const NEXT_LOOK: Duration = Duration::from_millis(250);

/// A write that takes less is none that anybody waits for.
const SLOW: Duration = Duration::from_millis(1);

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
        paused: AtomicU64::new(0),
        doubt: Mutex::default(),
        doubted: AtomicBool::new(false),
        taken: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
        finished: AtomicBool::new(true),
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
        let micros = deadline.map_or(NEVER, |at| self.0.micros(Instant::from_std(at)));
        self.0.deadline.store(micros, Ordering::Release);
    }

    /// For how long in all the client kept us writing, with nothing read from the upstream: silence
    /// of that time is not the upstream's. The deadline has been put off by it already.
    pub fn paused(&self) -> Duration {
        Duration::from_micros(self.0.paused.load(Ordering::Acquire))
    }

    /// Beside the deadline there is a doubt, or no longer.
    pub fn doubt(&self, doubt: Option<Doubt>) {
        let since = Instant::now();
        *self.0.doubt.lock() = doubt.map(|gives_up| Doubted {
            since,
            next: since + FIRST_LOOK,
            gives_up,
        });
    }

    /// Was it given up by a doubt? True once for each time.
    pub fn was_doubted(&self) -> bool {
        self.0.doubted.swap(false, Ordering::AcqRel)
    }

    /// Was the deadline over? True once for each time.
    pub fn was_late(&self) -> bool {
        self.0.late.swap(false, Ordering::AcqRel)
    }

    /// Breaks the answer off after what goes out next: its body gets no proper end.
    pub fn break_off(&self) {
        self.0.broken.store(true, Ordering::Release);
    }

    /// Whether the end of the answer was seen by whoever looks at it. An end that was not is none:
    /// Pingora's filters are shown bodies, and over HTTP/2 an answer may end with something else.
    pub fn finished(&self, is: bool) {
        self.0.finished.store(is, Ordering::Release);
    }

    /// How many bytes of the answer's body came here to be passed on. Pingora shows several pieces
    /// to its filters before it passes them on together, and none of them if one is an error.
    pub fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Acquire)
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
    /// Never before `at`: whoever is woken asks whether it is over.
    fn micros(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.epoch).as_nanos();
        u64::try_from(since.div_ceil(1_000)).unwrap_or(NEVER)
    }

    /// When somebody must look next.
    fn wakes(&self) -> Option<Instant> {
        let look = self.doubt.lock().as_ref().map(|doubt| doubt.next);
        self.deadline().into_iter().chain(look).min()
    }

    /// Is the upstream given up now?
    fn is_over(&self, now: Instant) -> bool {
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            return true;
        }
        let mut doubt = self.doubt.lock();
        let Some(due) = doubt.as_mut().filter(|doubt| now >= doubt.next) else {
            return false;
        };
        if (due.gives_up)(now.into_std()) {
            *doubt = None;
            self.doubted.store(true, Ordering::Release);
            return true;
        }
        due.next = now + (now.saturating_duration_since(due.since) / 4).max(NEXT_LOOK);
        false
    }

    /// Puts the deadline off by a time in which nothing was read.
    fn put_off(&self, by: Duration) {
        if by < SLOW {
            return;
        }
        let by = u64::try_from(by.as_micros()).unwrap_or(NEVER);
        self.paused.fetch_add(by, Ordering::AcqRel);
        let later = |at: u64| (at != NEVER).then(|| at.saturating_add(by));
        let order = Ordering::AcqRel;
        // There may be none.
        let _ = self.deadline.fetch_update(order, Ordering::Acquire, later);
    }

    fn deadline(&self) -> Option<Instant> {
        let micros = self.deadline.load(Ordering::Acquire);
        (micros != NEVER).then(|| self.epoch.checked_add(Duration::from_micros(micros)))?
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
            let dropped = tasks.iter().any(says);
            for task in tasks {
                if let HttpTask::Header(head, _) = task {
                    self.held = Some(head);
                }
            }
            if let Some(mut head) = self.held.take() {
                // What is left out was counted in its length.
                if dropped {
                    self.unbound(&mut head);
                }
                self.held = Some(head);
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

    /// Takes a head's length away: the body is not, or may yet not be, the one it is of.
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

    /// Never ends unless the deadline is over, or a doubt says that it is no use.
    async fn deadline(alarm: &mut Option<Pin<Box<Sleep>>>, shared: &Shared) {
        let Some(deadline) = shared.wakes() else {
            return std::future::pending().await;
        };
        let alarm = alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if alarm.deadline() > deadline || alarm.is_elapsed() {
            alarm.as_mut().reset(deadline);
        }
        loop {
            alarm.as_mut().await;
            if shared.is_over(Instant::now()) {
                return;
            }
            match shared.wakes() {
                None => return std::future::pending().await,
                Some(later) => alarm.as_mut().reset(later),
            }
        }
    }

    fn give_up_waiting(&self) -> Result<Option<Bytes>> {
        self.shared.late.store(true, Ordering::Release);
        Error::e_explain(ErrorType::ReadTimedout, "the upstream's deadline is over")
    }

    async fn pass_on(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let end = tasks.iter().any(HttpTask::is_end);
        let began = Instant::now();
        let passed = self.client.response_duplex_vec(tasks).await;
        self.shared.put_off(began.elapsed());
        match passed {
            Err(cause) => self.leave(cause).await.map(|()| end),
            passed => passed,
        }
    }
}

/// Takes an end off a task; false if it was nothing else.
fn leave_open(task: &mut HttpTask) -> bool {
    match task {
        HttpTask::Body(_, end) | HttpTask::Header(_, end) => {
            *end = false;
            true
        }
        HttpTask::Trailer(_) | HttpTask::Done => false,
        _ => true,
    }
}

/// HTTP/1.0 knows no chunks (RFC 9112 §7.1), and Pingora puts them into the head of an answer that
/// came over HTTP/2, after all filters.
fn unchunk(task: &mut HttpTask) {
    if let HttpTask::Header(head, _) = task {
        head.remove_header(&TRANSFER_ENCODING);
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
        let mut failure = failed.and_then(|at| tasks.drain(at..).next());
        let unseen = !self.shared.finished.load(Ordering::Acquire);
        let unseen = unseen && tasks.iter().any(HttpTask::is_end);
        if unseen || self.shared.broken.load(Ordering::Acquire) {
            tasks.retain_mut(leave_open);
            let why = "the answer ended as it should not";
            let error = Error::explain(ErrorType::ConnectionClosed, why).into_up();
            failure = failure.or(Some(HttpTask::Failed(error)));
        }
        if self.client.req_header().version == Version::HTTP_10 {
            tasks.iter_mut().for_each(unchunk);
        }
        let bytes = tasks.iter().map(|task| match task {
            HttpTask::Body(Some(piece), _) => piece.len(),
            _ => 0,
        });
        self.shared.taken.fetch_add(bytes.sum(), Ordering::AcqRel);
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
mod tests;
