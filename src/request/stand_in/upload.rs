//! The body's way to an upstream that speaks HTTP/2.
//!
//! Over HTTP/2 an upstream may answer before it has the whole request, and close its ear with a
//! reset (RFC 9113 §8.1). A body that Pingora replays must get through or the attempt fails, answer
//! or not; of a body that it reads, it leaves the rest and goes on with the answer. So the body is
//! read, each time anew, and in pieces: while Pingora writes one, it looks at nothing else.
//!
//! But once a piece could not be sent, Pingora listens for the client no more, and nobody looks at
//! the clock. A reset stream soon comes to its end by itself. One that is open, since the upstream
//! only stopped taking, is ended here: as a write that took too long if there is no answer, and else
//! by the clock.
//!
//! What tells that a write is over is a message that was sent before it: Pingora reads it afterwards.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::{Error, ErrorType, Result};
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::behind::Shared;
use super::clock::Clock;

/// For what the upstream has said before it stopped taking.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// Timers may go off a little before their time.
const ROUNDING: Duration = Duration::from_millis(20);

/// A body that is on its way, and the line by which Pingora is reached meanwhile.
pub(super) struct Upload {
    line: Sender<Bytes>,
    began: Instant,
    /// One write may take so long.
    patience: Duration,
    /// Since when a write is over that may have failed.
    failed_since: Option<Instant>,
    answered: bool,
}

impl Upload {
    pub(super) fn new(line: Sender<Bytes>, patience: Duration) -> Self {
        Self {
            line,
            began: Instant::now(),
            patience,
            failed_since: None,
            answered: false,
        }
    }

    /// A piece of the body is handed over now.
    pub(super) fn begin(&mut self) {
        self.began = Instant::now();
        self.failed_since = None;
        // Nobody is there to be reached if the line is full or closed.
        let _ = self.line.try_send(Bytes::new());
    }

    /// Part of the answer goes by.
    pub(super) fn answers(&mut self) {
        self.answered = true;
    }

    /// A write is over, and the body may not have got through.
    fn look(&mut self, clock: &Clock) -> Result<()> {
        if self.began.elapsed() + ROUNDING < self.patience {
            return Ok(());
        }
        let since = *self.failed_since.get_or_insert_with(Instant::now);
        if self.answered && clock.is_over_now() {
            // As where the client is listened for: if it were told of as the upstream's, Pingora
            // would give up the whole connection. The clock knows better.
            let why = "the upstream's deadline is over";
            return Error::e_explain(ErrorType::ReadTimedout, why).map_err(Error::into_down);
        }
        if !self.answered && since.elapsed() >= GRACE {
            let why = "the upstream takes no more of the body";
            return Error::e_explain(ErrorType::WriteTimedout, why).map_err(Error::into_up);
        }
        // Does not keep the line open for a request that has ended.
        let line = self.line.downgrade();
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            if let Some(line) = line.upgrade() {
                let _ = line.send(Bytes::new()).await;
            }
        });
        Ok(())
    }
}

/// Where Pingora brings the messages.
pub(super) struct Ear(pub(super) Arc<Shared>);

#[async_trait]
impl CustomMessageWrite for Ear {
    fn set_write_timeout(&mut self, _timeout: Option<Duration>) {}

    async fn write_custom_message(&mut self, _message: Bytes) -> Result<()> {
        let mut upload = self.0.upload.lock();
        let look = |upload: &mut Upload| upload.look(&self.0.clock);
        upload.as_mut().map_or(Ok(()), look)
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }
}
