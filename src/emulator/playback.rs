//! Plays a script as the body of a response, and settles the journal's ticket
//! when the last step is done or the client has left.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::entry::Outcome;
use super::line::Grip;
use super::script::Step;
use super::ticket::Ticket;

/// A response body that follows a script.
pub(super) struct Playback {
    steps: std::vec::IntoIter<Step>,
    /// The length to announce; without one the body is chunked.
    length: Option<u64>,
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    ticket: Ticket,
    outcome: Outcome,
    grip: Arc<Grip>,
}

impl Playback {
    /// `outcome` is what the journal says once every step was played; `grip` holds
    /// the connection on which it is played.
    pub(super) fn new(steps: Vec<Step>, ticket: Ticket, outcome: Outcome, grip: Arc<Grip>) -> Self {
        let length = match steps.as_slice() {
            [] => Some(0),
            [Step::Send(bytes, _)] => u64::try_from(bytes.len()).ok(),
            _ => None,
        };
        let mut body = Self {
            steps: steps.into_iter(),
            length,
            timer: None,
            waiting: false,
            ticket,
            outcome,
            grip,
        };
        body.settle_at_the_end();
        body
    }

    /// Hides the length, as a server does that streams its answer.
    pub(super) fn chunked(mut self) -> Self {
        self.length = None;
        self
    }

    fn settle_at_the_end(&mut self) {
        if self.steps.as_slice().is_empty() {
            self.ticket.settle(self.outcome);
        }
    }

    fn start(&mut self, wait: Duration) {
        self.waiting = true;
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(Instant::now() + wait),
            None => self.timer = Some(Box::pin(sleep(wait))),
        }
    }
}

impl Body for Playback {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        loop {
            if self.waiting {
                if let Some(timer) = &mut self.timer {
                    ready!(timer.as_mut().poll(cx));
                }
                self.waiting = false;
                self.settle_at_the_end();
            }
            match self.steps.next() {
                None => return Poll::Ready(None),
                Some(Step::Wait(wait)) => self.start(wait),
                Some(Step::Begin) => self.ticket.begin(),
                Some(Step::Send(bytes, progress)) => {
                    self.ticket.sent(progress);
                    self.settle_at_the_end();
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(end @ (Step::Cut | Step::Reset)) => {
                    if end == Step::Reset {
                        self.grip.break_off();
                    }
                    self.ticket.settle(Outcome::Fault);
                    return Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())));
                }
                Some(Step::Hang) => {
                    self.steps = vec![Step::Hang].into_iter();
                    // Nothing wakes this body again: it ends when its client leaves.
                    return Poll::Pending;
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        !self.waiting && self.steps.as_slice().is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.length
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
