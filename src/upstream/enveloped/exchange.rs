//! One request at the far end of a line: read as Pingora writes it, asked of the
//! real upstream, answered without the envelope.
//!
//! The answer's head waits until the body shows what it is, or [`Terms::patience`]
//! is over; nothing else waits. What is no JSON and no stream of events, or has a
//! length that could be read in two ways, passes untouched: it is judged where
//! all answers are.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{StatusCode, Version, header};
use log::debug;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::{BError, Error, ErrorType};
use tokio::io::DuplexStream;

use super::Cut;
use super::far::Far;
use crate::relay::envelope::{Failure, MAX_HELD, Rules, Unwrapper, Verdict};
use crate::relay::event::Shape;

/// How long the end of an error is waited for, so that its connection can be used again.
const LAST_PIECES: Duration = Duration::from_millis(50);

/// Fields that speak of one connection alone (RFC 9110 §7.6.1).
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// How answers are read.
pub(super) struct Terms {
    pub rules: Arc<Rules>,
    /// How long a head may wait.
    pub patience: Duration,
}

/// Why an exchange ended early.
enum Stop {
    /// Pingora has gone; nobody is there to be told.
    Near,
    Far(Cut),
}

/// What came first.
enum Turn {
    Piece(Option<Bytes>),
    OutOfPatience,
}

struct Exchange {
    near: ServerSession,
    far: Far,
    terms: Terms,
    /// The whole request was sent, or no more of it can be.
    sent: bool,
    /// Why no more of it can be.
    send_error: Option<BError>,
}

/// Serves the one request that comes over `end`.
pub(super) async fn run(end: DuplexStream, far: Far, terms: Terms) -> Result<(), Cut> {
    let mut near = ServerSession::new_http1(Box::new(end));
    // All clocks are Pingora's, at the other end.
    near.set_read_timeout(None);
    let exchange = Exchange {
        near,
        far,
        terms,
        sent: false,
        send_error: None,
    };
    match exchange.run().await {
        Ok(()) | Err(Stop::Near) => Ok(()),
        Err(Stop::Far(cut)) => Err(cut),
    }
}

impl Exchange {
    async fn run(mut self) -> Result<(), Stop> {
        if !self.near.read_request().await.map_err(gone)? {
            return Err(Stop::Near);
        }
        // Connections inside the process are cheap, and Pingora tells pooled ones
        // apart by a descriptor that they do not have.
        self.near.set_keepalive(None);
        let shape = shape(self.near.req_header());
        let asked = self.far.send_head(self.near.req_header()).await;
        asked.map_err(|error| self.broken(&error))?;
        if self.near.is_body_done() {
            self.send(None).await;
        }
        let head = self.head().await?;
        match reading(&head) {
            Some(streamed) => self.unwrap(head, shape, streamed).await,
            None => self.carry(head).await,
        }
    }

    /// Sends the request's body until the answer's head is there.
    async fn head(&mut self) -> Result<ResponseHeader, Stop> {
        loop {
            tokio::select! {
                // The request first: what of it is here is little, and it should go out whole.
                biased;
                piece = self.near.read_request_body(), if !self.sent => {
                    let piece = piece.map_err(gone)?;
                    self.send(piece).await;
                }
                head = self.far.read_head() => {
                    head.map_err(|error| self.broken(&error))?;
                    break;
                }
            }
        }
        let head = self.far.head().map_err(|error| self.broken(&error))?;
        if head.status.is_informational() {
            // Nothing we send asks for one.
            let error = Error::explain(ErrorType::InvalidHTTPHeader, "an unasked 1xx");
            return Err(self.broken(&error));
        }
        Ok(head)
    }

    /// Sends a piece of the request's body, or its end. A server that takes no more may have
    /// answered already, so a failure only counts if no answer comes.
    async fn send(&mut self, piece: Option<Bytes>) {
        let mut sending = match piece {
            Some(piece) => self.far.send(piece).await,
            None => Ok(()),
        };
        if sending.is_ok() && self.near.is_body_done() {
            sending = self.far.finish().await;
            self.sent = true;
        }
        if let Err(error) = sending {
            self.send_error = Some(error);
            self.sent = true;
            self.far.spoiled = true;
        }
    }

    /// The next piece of the answer's body. The request's may still be under way.
    async fn turn(&mut self, waiting: Option<impl Future<Output = ()>>) -> Result<Turn, Stop> {
        let patience = async {
            match waiting {
                Some(waiting) => waiting.await,
                None => std::future::pending().await,
            }
        };
        let mut patience = pin!(patience);
        loop {
            tokio::select! {
                biased;
                piece = self.near.read_request_body(), if !self.sent => {
                    let piece = piece.map_err(gone)?;
                    self.send(piece).await;
                }
                piece = self.far.read() => {
                    let piece = piece.map_err(|error| self.broken(&error))?;
                    return Ok(Turn::Piece(piece));
                }
                () = &mut patience => return Ok(Turn::OutOfPatience),
            }
        }
    }

    /// Passes an answer on that has no envelope.
    async fn carry(mut self, head: ResponseHeader) -> Result<(), Stop> {
        let answer = head_of(&head, Framing::AsItWas);
        self.near
            .write_response_header(answer)
            .await
            .map_err(gone)?;
        loop {
            let no_clock: Option<std::future::Ready<()>> = None;
            let Turn::Piece(piece) = self.turn(no_clock).await? else {
                continue;
            };
            let end = piece.is_none() || self.far.is_done();
            self.put(piece.unwrap_or_default(), end).await?;
            if end {
                return Ok(());
            }
        }
    }

    /// Passes an answer on without its envelope.
    async fn unwrap(
        mut self,
        head: ResponseHeader,
        shape: Shape,
        streamed: bool,
    ) -> Result<(), Stop> {
        let mut unwrapper = Unwrapper::new(self.terms.rules.clone(), shape, streamed);
        let mut patience = pin!(tokio::time::sleep(self.terms.patience));
        let mut out = Vec::new();
        let mut begun = false;
        loop {
            let waiting = (!begun).then_some(patience.as_mut());
            let mut end = false;
            match self.turn(waiting).await? {
                Turn::Piece(Some(piece)) => unwrapper.feed(&piece, &mut out),
                Turn::Piece(None) => end = true,
                Turn::OutOfPatience => unwrapper.commit(),
            }
            if end || self.far.is_done() {
                end = true;
                unwrapper.finish(&mut out);
            }
            if !begun {
                if out.iter().map(Bytes::len).sum::<usize>() > MAX_HELD {
                    unwrapper.commit();
                }
                match unwrapper.verdict() {
                    Verdict::Open if !end => continue,
                    Verdict::Failed(failure) => {
                        let failure = failure.clone();
                        return self.refuse(&head, &failure).await;
                    }
                    Verdict::Open | Verdict::Good => {}
                }
                let json = streamed && !unwrapper.is_streamed();
                let answer = head_of(&head, Framing::Chunked { json });
                self.near
                    .write_response_header(answer)
                    .await
                    .map_err(gone)?;
                unwrapper.commit();
                begun = true;
            }
            if unwrapper.is_broken() {
                // What went out looked like an answer and was none.
                let error = Error::explain(ErrorType::ReadError, "an error after the data");
                return Err(self.broken(&error));
            }
            let end = end || unwrapper.is_over();
            self.put(join(&mut out), end).await?;
            if end {
                return Ok(());
            }
        }
    }

    /// Writes a piece of the answer. At the end the connection goes back first: with the last
    /// byte Pingora drops the line, and everything at this end of it.
    async fn put(&mut self, piece: Bytes, end: bool) -> Result<(), Stop> {
        if end && self.sent {
            self.far.release().await;
        }
        self.near
            .write_response_body(piece, end)
            .await
            .map_err(gone)
    }

    /// Answers with the status that an error in an envelope stands for.
    async fn refuse(mut self, head: &ResponseHeader, failure: &Failure) -> Result<(), Stop> {
        let status = self.terms.rules.status(&failure.code, head.status.as_u16());
        debug!(
            "An error came in an envelope. code={:?} http={} status={status}",
            failure.code, head.status
        );
        if !self.far.is_done() {
            let rest = async { while matches!(self.far.read().await, Ok(Some(_))) {} };
            let _ = tokio::time::timeout(LAST_PIECES, rest).await;
        }
        let body = Bytes::from(failure.body());
        let mut answer = head_of(head, Framing::Length(body.len()));
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        answer.set_status(status).map_err(gone)?;
        self.near
            .write_response_header(answer)
            .await
            .map_err(gone)?;
        self.put(body, true).await
    }

    fn broken(&mut self, error: &Error) -> Stop {
        let sending = self.send_error.take();
        Stop::Far(self.far.cut(sending.as_deref().unwrap_or(error)))
    }
}

fn gone(_: BError) -> Stop {
    Stop::Near
}

/// The form in which an error within a stream is told follows from what was asked.
fn shape(request: &RequestHeader) -> Shape {
    if request.uri.path().ends_with("/messages") {
        Shape::Messages
    } else {
        Shape::Chat
    }
}

/// Whether an answer may have an envelope, and then whether it is a stream of events.
fn reading(head: &ResponseHeader) -> Option<bool> {
    let encoded = head.headers.contains_key(header::CONTENT_ENCODING);
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    let odd = |length: &http::HeaderValue| {
        length == "0" || !length.as_bytes().iter().all(u8::is_ascii_digit)
    };
    let unclear = lengths.next().is_some_and(odd) || lengths.next().is_some();
    if is_bodiless(head) || encoded || unclear {
        return None;
    }
    let Some(kind) = head.headers.get(header::CONTENT_TYPE) else {
        return Some(false);
    };
    let kind = kind.to_str().unwrap_or_default().to_ascii_lowercase();
    match kind.as_str() {
        kind if kind.starts_with("text/event-stream") => Some(true),
        kind if kind.contains("json") || kind.starts_with("text/") => Some(false),
        _ => None,
    }
}

/// RFC 9110 §6.4.1.
fn is_bodiless(head: &ResponseHeader) -> bool {
    matches!(
        head.status,
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    )
}

/// How the end of an answer's body is told.
enum Framing {
    AsItWas,
    Length(usize),
    /// `json` for what was announced as events and is one JSON text.
    Chunked {
        json: bool,
    },
}

/// The head of an answer on the line. It is built anew for the tenant later on, so all of the
/// upstream's fields may stay that do not contradict the body.
fn head_of(upstream: &ResponseHeader, framing: Framing) -> Box<ResponseHeader> {
    let mut head = Box::new(upstream.clone());
    head.set_version(Version::HTTP_11);
    for name in HOP_BY_HOP {
        head.remove_header(name);
    }
    let json = matches!(
        framing,
        Framing::Length(_) | Framing::Chunked { json: true }
    );
    if !matches!(framing, Framing::AsItWas) {
        head.remove_header(&header::CONTENT_LENGTH);
    }
    let chunked = !head.headers.contains_key(header::CONTENT_LENGTH)
        && !matches!(framing, Framing::Length(_))
        && !is_bodiless(upstream);
    // Values that are made here always fit into a head.
    let mut insert = |name, value: http::HeaderValue| {
        let _ = head.insert_header(name, value);
    };
    if let Framing::Length(length) = framing {
        insert(header::CONTENT_LENGTH, length.into());
    }
    if chunked {
        insert(
            header::TRANSFER_ENCODING,
            http::HeaderValue::from_static("chunked"),
        );
    }
    if json {
        insert(
            header::CONTENT_TYPE,
            http::HeaderValue::from_static("application/json"),
        );
    }
    head
}

/// One piece of what goes out: each piece would be a chunk, a task and a write of its own.
fn join(out: &mut Vec<Bytes>) -> Bytes {
    if out.len() < 2 {
        return out.pop().unwrap_or_default();
    }
    let mut whole = BytesMut::with_capacity(out.iter().map(Bytes::len).sum());
    for piece in out.drain(..) {
        whole.extend_from_slice(&piece);
    }
    whole.freeze()
}
