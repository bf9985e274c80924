//! Reads a request body whole, within its caps. What sends it, once per attempt, is the session that
//! stands in for the client's ([`super::stand_in`]): Pingora itself replays 64 KiB at most.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Version, header};
use pingora::{Error, ErrorType};
use pingora_proxy::Session;
use prometheus::IntGauge;

use super::head::Framing;
use super::refusal::{Code, Refusal};

/// Room left for edits, so that they rarely make the body grow in memory.
const EDIT_ROOM: usize = 512;
/// What is reserved on the word of a length; what exceeds it grows with the bytes that come.
const RESERVED: usize = 1 << 20;
/// When the process holds as many body bytes as it may.
const BUDGET_WAIT: Duration = Duration::from_secs(2);

/// How many bytes of request bodies the process may hold at one time.
pub struct BodyBudget {
    used: AtomicUsize,
    limit: usize,
    gauge: IntGauge,
}

impl BodyBudget {
    pub fn new(limit: usize, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            limit,
            gauge,
        })
    }

    /// An empty share, to be grown.
    fn share(self: &Arc<Self>) -> Share {
        Share {
            of: self.clone(),
            bytes: 0,
        }
    }
}

/// Held bytes of the budget, given back on drop.
#[must_use]
pub struct Share {
    of: Arc<BodyBudget>,
    bytes: usize,
}

impl Share {
    fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let taken = self
            .of
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                used.checked_add(bytes)
                    .filter(|total| *total <= self.of.limit)
            });
        if taken.is_err() {
            return Err(Refusal::closing(
                Code::Overloaded,
                "The gateway holds as many request bodies as it may; try again in a moment.",
            )
            .retry_after(BUDGET_WAIT));
        }
        self.bytes += bytes;
        self.of.gauge.add(i64::try_from(bytes).unwrap_or(0));
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.used.fetch_sub(self.bytes, Ordering::AcqRel);
        self.of.gauge.sub(i64::try_from(self.bytes).unwrap_or(0));
    }
}

/// A body in memory, with its share of the budget.
pub struct Body {
    pub bytes: Vec<u8>,
    pub share: Share,
}

/// Caps on one body.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    pub max: usize,
    /// For all of it.
    pub timeout: Duration,
}

/// Why a body is not there.
#[derive(Debug)]
pub enum BodyError {
    Refused(Refusal),
    /// The client left or broke its framing; there is nobody to answer.
    Gone(Box<Error>),
}

/// Reads the whole body.
///
/// # Errors
/// 408, 413 or 503 as a refusal, or the client's going away.
pub async fn read(
    session: &mut Session,
    framing: Framing,
    limits: BodyLimits,
    budget: &Arc<BodyBudget>,
) -> Result<Body, BodyError> {
    let mut body = Body {
        bytes: Vec::new(),
        share: budget.share(),
    };
    if framing == Framing::None {
        return Ok(body);
    }
    if let Framing::Length(length) = framing {
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= limits.max)
            .ok_or_else(|| too_large(limits))?;
        body.bytes.reserve_exact(length.min(RESERVED) + EDIT_ROOM);
    }
    // HTTP/1.0 knows no 100 (RFC 9110 §10.1.1).
    let head = session.req_header();
    if head.version != Version::HTTP_10 && head.headers.contains_key(header::EXPECT) {
        session
            .write_continue_response()
            .await
            .map_err(BodyError::Gone)?;
    }
    match tokio::time::timeout(limits.timeout, fill(session, &mut body, limits)).await {
        Ok(result) => result?,
        Err(_) => return Err(BodyError::Refused(late(limits))),
    }
    Ok(body)
}

async fn fill(session: &mut Session, body: &mut Body, limits: BodyLimits) -> Result<(), BodyError> {
    loop {
        let Some(piece) = session
            .read_request_body()
            .await
            .map_err(|error| unreadable(error, limits))?
        else {
            return Ok(());
        };
        if body.bytes.len() + piece.len() > limits.max {
            return Err(too_large(limits));
        }
        body.share.grow(piece.len()).map_err(BodyError::Refused)?;
        body.bytes.extend_from_slice(&piece);
        if session.is_body_done() {
            return Ok(());
        }
    }
}

/// A body whose framing is broken is told so; a client that is gone is told nothing.
fn unreadable(error: Box<Error>, limits: BodyLimits) -> BodyError {
    match error.etype() {
        ErrorType::Custom(_) | ErrorType::InvalidHTTPHeader => BodyError::Refused(
            Refusal::closing(Code::BadRequest, "The request body's chunks are malformed.")
                .detail(error.etype().as_str()),
        ),
        ErrorType::ReadTimedout => BodyError::Refused(late(limits)),
        _ => BodyError::Gone(error),
    }
}

fn too_large(limits: BodyLimits) -> BodyError {
    BodyError::Refused(Refusal::closing(
        Code::BodyTooLarge,
        format!("The request body is larger than {} bytes.", limits.max),
    ))
}

fn late(limits: BodyLimits) -> Refusal {
    Refusal::closing(
        Code::RequestTimeout,
        format!(
            "The request body did not arrive within {} seconds.",
            limits.timeout.as_secs()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_never_passed_and_dropped_shares_come_back() {
        let gauge = IntGauge::new("g", "g").unwrap();
        let budget = BodyBudget::new(100, gauge.clone());
        let mut first = budget.share();
        first.grow(60).unwrap();
        let mut second = budget.share();
        assert_eq!(second.grow(41).unwrap_err().code, Code::Overloaded);
        second.grow(40).unwrap();
        assert_eq!(gauge.get(), 100);
        drop(first);
        drop(second);
        assert_eq!((gauge.get(), budget.used.load(Ordering::Acquire)), (0, 0));
    }
}
