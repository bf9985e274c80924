//! Takes the `{"code", "data", "msg"}` of company-internal gateways off an
//! answer, whole or streamed, and says what status an error in it stands for. For
//! the connection to such an upstream. It must not know sockets, heads or what
//! becomes of an error.
//!
//! Nothing is parsed into a tree and what passes is not copied. What is no
//! envelope passes unchanged: `code` with `data` or with `msg`/`message` makes
//! one, in any order.

mod events;
mod members;
mod one;

use crate::json;
use crate::relay::event::Shape;
use bytes::Bytes;
use events::{Events, Told};
use one::{End, Envelope, Sink};
use std::collections::HashMap;
use std::sync::Arc;

pub use one::MAX_HELD;

/// Most characters of a gateway's message that are passed on.
const MAX_MESSAGE: usize = 2_000;
/// What is said for a gateway that gives no reason.
const NO_REASON: &str = "The upstream refused the request and gave no reason.";
/// What is said for a success with `"data": null`.
const NO_DATA: &str = "The upstream's answer was empty.";
/// For codes that mean nothing to us, and answers without data.
const BAD_GATEWAY: u16 = 502;

/// How codes are understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Codes of success, as text whether they are written as numbers or strings.
    pub success: Vec<String>,
    /// Statuses, 400 to 599, by code. They come before what the code itself says.
    pub statuses: HashMap<String, u16>,
}

impl Rules {
    /// Whether this code is one of success.
    pub fn is_success(&self, code: &str) -> bool {
        self.success.iter().any(|known| known == code)
    }

    /// The status an error stands for, 400 to 599. `http` is the status it came with.
    ///
    /// A status by itself, or at the head of a code of five or six digits, is
    /// taken at its word: 429, 42901, 400003. Of other codes only `http` tells.
    pub fn status(&self, code: &str, http: u16) -> u16 {
        if let Some(status) = self.statuses.get(code) {
            return *status;
        }
        let digits = code.bytes().all(|byte| byte.is_ascii_digit());
        let head = match code.len() {
            3 | 5 | 6 if digits => code.get(..3).and_then(|head| head.parse().ok()),
            _ => None,
        };
        let is_error = |status: &u16| (400..600).contains(status);
        head.filter(is_error)
            .or(Some(http).filter(is_error))
            .unwrap_or(BAD_GATEWAY)
    }
}

/// An error as an envelope told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// At most 64 bytes; empty if there was none. For statuses and logs.
    pub code: Box<str>,
    /// At most 2,000 characters. For the tenant.
    pub message: Box<str>,
}

impl Failure {
    fn new(code: String, message: Option<String>) -> Self {
        let message = message.unwrap_or_else(|| NO_REASON.to_owned());
        let message: String = message.chars().take(MAX_MESSAGE).collect();
        Self {
            code: code.into(),
            message: message.into(),
        }
    }

    /// The error object of OpenAI's API that says it: the message, and nothing
    /// else of the envelope.
    pub fn body(&self) -> String {
        format!(
            r#"{{"error":{{"message":{},"type":"upstream_error","param":null,"code":null}}}}"#,
            json::quoted(&self.message)
        )
    }

    /// The event that says it within a stream, in the form of the surface.
    fn event(&self, shape: Shape) -> String {
        match shape {
            Shape::Messages => format!("event: error\ndata: {}\n\n", self.anthropic()),
            _ => format!("data: {}\n\n", self.body()),
        }
    }

    fn anthropic(&self) -> String {
        format!(
            r#"{{"type":"error","error":{{"type":"api_error","message":{}}}}}"#,
            json::quoted(&self.message)
        )
    }
}

/// What is known of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Nothing yet.
    Open,
    /// It is an answer; errors are told inside it from here on.
    Good,
    /// It is an error and nothing else.
    Failed(&'a Failure),
}

#[derive(Debug)]
enum Body {
    Whole(Envelope),
    Events(Box<Events>),
}

/// An incremental reader of one answer.
#[derive(Debug)]
pub struct Unwrapper {
    rules: Arc<Rules>,
    shape: Shape,
    body: Body,
    /// Whether anything but white space came.
    begun: bool,
    committed: bool,
    failure: Option<Failure>,
    /// Whether there is nothing more to read, whatever comes.
    over: bool,
    broken: bool,
}

impl Unwrapper {
    /// A reader of an answer of the given shape: of events if `streamed`, else of
    /// one JSON text.
    pub fn new(rules: Arc<Rules>, shape: Shape, streamed: bool) -> Self {
        let body = if streamed {
            Body::Events(Box::default())
        } else {
            Body::Whole(Envelope::new(b""))
        };
        Self {
            rules,
            shape,
            body,
            begun: false,
            committed: false,
            failure: None,
            over: false,
            broken: false,
        }
    }

    /// Whether it is read as events. A gateway that announces them may send one
    /// JSON text for an error; the first byte tells.
    pub fn is_streamed(&self) -> bool {
        matches!(self.body, Body::Events(_))
    }

    /// What is known so far.
    pub fn verdict(&self) -> Verdict<'_> {
        let good = match &self.body {
            Body::Whole(envelope) => envelope.is_good(),
            Body::Events(events) => events.is_good(),
        };
        match &self.failure {
            Some(failure) if !self.committed => Verdict::Failed(failure),
            _ if self.committed || good => Verdict::Good,
            _ => Verdict::Open,
        }
    }

    /// From here on an error is told inside the answer: its head is out.
    pub fn commit(&mut self) {
        self.committed = true;
    }

    /// Whether everything that will go out has gone out: an error ends an answer.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Whether an error was told only after the data had gone out whole, so that
    /// the answer looks good and is not: it must not end properly.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Reads the next fragment and adds to `out` what goes out now.
    pub fn feed(&mut self, fragment: &Bytes, out: &mut Vec<Bytes>) {
        if self.over {
            return;
        }
        let mut sink = Sink::new(fragment, out);
        let blank = if self.begun { 0 } else { blank_run(fragment) };
        // Blank lines are a waiting server's sign of life (DeepSeek rate_limit page).
        sink.pass(0..blank);
        if let Some(first) = fragment.get(blank).filter(|_| !self.begun) {
            self.begun = true;
            if *first == b'{' && self.is_streamed() {
                self.body = Body::Whole(Envelope::new(b""));
            }
        }
        let told = match &mut self.body {
            Body::Whole(envelope) => {
                envelope.read(&self.rules, &mut sink, blank..fragment.len());
                let end = envelope
                    .is_closed()
                    .then(|| envelope.end(&self.rules, &mut sink));
                sink.flush();
                return self.settle(end, out);
            }
            Body::Events(events) => events.feed(&self.rules, fragment, blank, &mut sink),
        };
        sink.flush();
        self.tell(told, out);
    }

    /// The answer has ended; adds to `out` what was waiting.
    pub fn finish(&mut self, out: &mut Vec<Bytes>) {
        if self.over {
            return;
        }
        let nothing = Bytes::new();
        let mut sink = Sink::new(&nothing, out);
        match &mut self.body {
            Body::Whole(envelope) => {
                let end = envelope.end(&self.rules, &mut sink);
                sink.flush();
                self.settle(Some(end), out);
            }
            Body::Events(events) => {
                let told = events.finish(&self.rules, &mut sink);
                sink.flush();
                self.tell(told, out);
            }
        }
        self.over = true;
    }

    fn settle(&mut self, end: Option<End>, out: &mut Vec<Bytes>) {
        let failure = match end {
            None | Some(End::Passed) => return,
            Some(End::Late(failure)) => {
                self.broken = true;
                self.over = true;
                self.failure = Some(failure);
                return;
            }
            Some(End::Empty) => Failure::new(String::new(), Some(NO_DATA.to_owned())),
            Some(End::Failed(failure)) => failure,
        };
        self.over = true;
        if self.committed {
            let text = match self.shape {
                Shape::Messages => failure.anthropic(),
                _ => failure.body(),
            };
            out.push(Bytes::from(text));
        }
        self.failure = Some(failure);
    }

    fn tell(&mut self, told: Option<Told>, out: &mut Vec<Bytes>) {
        let Some(Told(failure)) = told else {
            return;
        };
        self.over = true;
        // Once an event is out, an error can only be one more.
        if self.verdict() == Verdict::Good {
            self.committed = true;
            out.push(Bytes::from(failure.event(self.shape)));
        }
        self.failure = Some(failure);
    }
}

fn blank_run(fragment: &[u8]) -> usize {
    let solid = |byte: &u8| !byte.is_ascii_whitespace();
    fragment.iter().position(solid).unwrap_or(fragment.len())
}

#[cfg(test)]
mod tests;
