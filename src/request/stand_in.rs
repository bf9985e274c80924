//! Stands in the place of a client's session inside Pingora, for four things that have no switch
//! there. A body that was read is sent with each attempt. An answer is read on when its client has
//! left. An answer's head is held back while there is no content, so that a failure can
//! still have a status of its own. And an upstream that says nothing is given up at a deadline.
//! Everything else goes to and comes from the client unchanged.
//!
//! Pingora asks the session for the body, and is given markers, in the place of which
//! `request_body_filter` puts the body itself; why it is not replayed stands in [`upload`]. And
//! Pingora ends a request with the first error of its client. Here, while an upstream is at work, the
//! error is kept back: what comes afterwards is thrown away, until the answer's end or the drain's.
//! Pingora takes the pieces at the pace of the upstream, so nothing gathers. Pingora listens for the
//! client all through an attempt, but for the time in which it writes a piece of the body over HTTP/2,
//! and that is where the deadline is looked at.
//!
//! The seat is Pingora's for protocols of one's own. It costs an allocation for each read and
//! write; the client's own session is put back before Pingora decides whether to keep the
//! connection.

mod behind;
mod clock;
mod hold;
mod upload;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, Version};
use log::debug;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as Seat;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;
use tokio::time::Instant;

pub use behind::Behind;
use behind::Shared;
use clock::Alarm;
pub use clock::Doubt;
use hold::{leave_open, unchunk};
use upload::Ear;

/// What stands for the body inside Pingora.
const MARKER: &[u8] = b"{";

/// How long a connection that does not drain may hold up its own end.
const FAREWELL: Duration = Duration::from_millis(100);

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
    let shared = Arc::new(Shared::new(now));
    let client = vacate(session);
    *session.downstream_session = ServerSession::new_custom(Box::new(StandIn {
        client,
        drain: terms.drain,
        hold_until: now.checked_add(terms.hold).unwrap_or(now),
        held: None,
        owed: 0,
        over: false,
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

struct StandIn {
    client: ServerSession,
    drain: Option<Duration>,
    hold_until: Instant,
    /// A head that waits for content.
    held: Option<Box<ResponseHeader>>,
    /// Pieces of the body that the attempt has not got yet.
    owed: usize,
    /// The answer is over: there is nobody to send the rest of the body to.
    over: bool,
    departure: Option<Departure>,
    alarm: Alarm,
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

    /// What stands for the next piece of the body.
    fn give(&mut self) -> Bytes {
        self.owed = self.owed.saturating_sub(1);
        if let Some(upload) = self.shared.upload.lock().as_mut() {
            upload.begin();
        }
        Bytes::from_static(MARKER)
    }

    fn give_up_waiting() -> Result<Option<Bytes>> {
        Error::e_explain(ErrorType::ReadTimedout, "the upstream's deadline is over")
    }

    async fn pass_on(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let end = tasks.iter().any(HttpTask::is_end);
        let began = Instant::now();
        let left = self.shared.clock.left(began);
        // For each piece, and for the end.
        let pieces = u32::try_from(tasks.len())
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        let patience = self.client.get_write_timeout();
        let patience = patience.map(|each| each.saturating_mul(pieces));
        let hurries = left.filter(|left| patience.is_none_or(|patience| patience > *left));
        let passing = self.client.response_duplex_vec(tasks);
        let passed = match hurries {
            // Nobody looks at the request's own end while the client takes nothing.
            Some(left) => tokio::time::timeout(left, passing)
                .await
                .unwrap_or_else(|_| {
                    let why = "the client took too long for the time its request has";
                    Error::e_explain(ErrorType::WriteTimedout, why).map_err(Error::into_down)
                }),
            None => passing.await,
        };
        self.shared.clock.put_off(began.elapsed());
        match passed {
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

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        Ok((self.owed > 0).then(|| self.give()))
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        Ok(())
    }

    fn is_body_done(&mut self) -> bool {
        self.owed == 0
    }

    fn is_body_empty(&mut self) -> bool {
        false
    }

    /// Asked at the beginning of each attempt.
    fn enable_retry_buffering(&mut self) {
        self.owed = self.shared.pieces.load(Ordering::Acquire);
        self.over = false;
    }

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        None
    }

    /// Gives the body, and from then on only ever ends with an error: the client left, or sent what
    /// it should not, and the drain is over. Pingora asks anew whenever something else has happened.
    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if self.over && self.owed > 0 && !no_body_expected {
            self.owed = 0;
            return Ok(None);
        }
        let gives = self.owed > 0 && !no_body_expected;
        if !gives {
            // Asked again: it got through.
            self.shared.uploaded();
        }
        if self.departure.is_none() {
            let read = tokio::select! {
                biased;
                read = self.client.read_body_or_idle(true) => read,
                () = self.shared.clock.is_over(&mut self.alarm) => return Self::give_up_waiting(),
                () = std::future::ready(()), if gives => return Ok(Some(self.give())),
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
                () = self.shared.clock.is_over(&mut self.alarm) => return Self::give_up_waiting(),
                () = std::future::ready(()), if gives => return Ok(Some(self.give())),
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
        if self.shared.answers_early() {
            // Pingora ends a connection whose request was not sent whole: the head must say so.
            self.client.set_keepalive(None);
        }
        let over = failure.is_some() || tasks.iter().any(HttpTask::is_end);
        let mut end = false;
        if self.departure.is_some() {
            end = self.swallow(tasks);
        } else {
            let tasks = self.hold_back(tasks);
            if !tasks.is_empty() {
                end = self.pass_on(tasks).await?;
            }
        }
        if over || end {
            self.shared.uploaded();
            self.over = true;
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

    // No messages beside the request, but for those about a body; see `upload`.

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        Some(Box::new(futures_util::stream::empty()))
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        let over_http2 = self.shared.over_http2.load(Ordering::Acquire);
        over_http2.then(|| Box::new(Ear(self.shared.clone())) as Box<dyn CustomMessageWrite>)
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
