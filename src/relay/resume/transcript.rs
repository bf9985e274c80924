//! Decides what the client has of a chat stream, and whether another upstream
//! could go on from exactly there. For the relay: what [`Transcript::pass`]
//! returns goes out, all of it. It must not know requests or upstreams.

use super::events::{self, Data, WholeEvents};
use crate::json::{self, Fault, Walk};
use crate::relay::event::FinishReason;
use crate::relay::reading::{self, says_something};
use crate::relay::usage::Usage;
use bytes::Bytes;

/// Most bytes of text and reasoning that are kept, and of one event.
pub const MAX_TEXT: usize = 1 << 20;

/// Why a stream cannot be resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// No content was sent.
    #[error("no content was sent")]
    NoContent,
    /// It broke in mid-reasoning, which no API takes up again.
    #[error("it broke in the reasoning")]
    InReasoning,
    /// It had said why it ended.
    #[error("it had finished")]
    Finished,
    /// It called a tool.
    #[error("it called a tool")]
    ToolCalls,
    /// It has several choices.
    #[error("it has several choices")]
    Choices,
    /// It has probabilities of tokens.
    #[error("it has logprobs")]
    Logprobs,
    /// It has content of another kind, or what cannot be read.
    #[error("it has content of an unknown kind")]
    Unknown,
    /// More than [`MAX_TEXT`].
    #[error("it is too long")]
    TooLong,
}

impl Obstacle {
    /// The word in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoContent => "no_content",
            Self::InReasoning => "in_reasoning",
            Self::Finished => "finished",
            Self::ToolCalls => "tool_calls",
            Self::Choices => "choices",
            Self::Logprobs => "logprobs",
            Self::Unknown => "unknown",
            Self::TooLong => "too_long",
        }
    }
}

impl From<Fault> for Obstacle {
    fn from(_: Fault) -> Self {
        Self::Unknown
    }
}

/// What the client has of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial<'a> {
    /// Its text; never empty.
    pub content: &'a str,
    /// The reasoning before it, whole.
    pub reasoning: Option<&'a str>,
    /// Tokens of both: as the upstream counted them, or one for each event, which
    /// may be too few.
    pub tokens: u64,
}

/// What the events of one stream have in common, as written.
#[derive(Debug, Clone, Default)]
pub(super) struct Identity {
    pub id: Option<Box<[u8]>>,
    pub created: Option<Box<[u8]>>,
    pub model: Option<Box<[u8]>>,
}

/// Tokens that the client has.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counted {
    pub content: u64,
    pub reasoning: u64,
    /// As the upstream counted along, if it did.
    pub usage: Option<Usage>,
}

impl Counted {
    pub fn completion(&self) -> u64 {
        let events = self.content.saturating_add(self.reasoning);
        events.max(self.usage.map_or(0, |usage| usage.completion))
    }

    pub fn reasoning(&self) -> u64 {
        self.reasoning
            .max(self.usage.map_or(0, |usage| usage.reasoning))
    }
}

/// A record of a chat stream as the client got it. Lets whole events pass only,
/// as long as the stream could be resumed; from then on everything.
#[derive(Debug, Default)]
pub struct Transcript {
    events: WholeEvents,
    /// The event that says the upstream failed, and what came after it.
    withheld: Vec<u8>,
    failed: bool,
    obstacle: Option<Obstacle>,
    identity: Option<Identity>,
    counted: Counted,
    content: String,
    reasoning: String,
}

impl Transcript {
    /// Of a stream that begins.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a fragment, which may be cut anywhere, and returns what goes out
    /// now.
    pub fn pass(&mut self, fragment: Bytes) -> Bytes {
        if self.obstacle.is_some() {
            return fragment;
        }
        if self.failed {
            return self.withhold(&fragment);
        }
        let whole = self.events.push(fragment);
        if self.events.len() > MAX_TEXT {
            self.obstacle = Some(Obstacle::TooLong);
        }
        let mut passed = 0;
        for event in events::split(&whole) {
            if self.obstacle.is_none() && !self.take(event) {
                self.failed = true;
                let held = self.events.take();
                let rest = [whole.get(passed..).unwrap_or_default(), &held].concat();
                self.withhold(&rest);
                return whole.slice(..passed);
            }
            passed += event.len();
        }
        if self.obstacle.is_none() {
            return whole;
        }
        let held = self.events.take();
        if held.is_empty() {
            return whole;
        }
        Bytes::from([&whole, held.as_slice()].concat())
    }

    /// Whether the stream may still be gone on with, and only whole events go out.
    pub fn is_open(&self) -> bool {
        self.obstacle.is_none()
    }

    /// Whether an event that says the upstream failed is held back: an error, or
    /// a finish reason that is its fault. The stream may be resumed in its place.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// What is held back, at the end of a stream that is not resumed: the rest of
    /// it, or the failure in the upstream's own words.
    pub fn finish(&mut self) -> Option<Bytes> {
        let mut held = std::mem::take(&mut self.withheld);
        held.append(&mut self.events.take());
        (!held.is_empty()).then(|| Bytes::from(held))
    }

    /// Forgets what is held back: the stream broke, and the client shall have
    /// whole events only. The record stays, for the stream that goes on.
    pub fn cut(&mut self) {
        self.events.take();
        self.withheld = Vec::new();
        self.failed = false;
    }

    /// What there is to go on from.
    ///
    /// # Errors
    /// What stands against it.
    pub fn partial(&self) -> Result<Partial<'_>, Obstacle> {
        if let Some(obstacle) = self.obstacle {
            return Err(obstacle);
        }
        match (self.content.is_empty(), self.reasoning.is_empty()) {
            (true, true) => return Err(Obstacle::NoContent),
            (true, false) => return Err(Obstacle::InReasoning),
            (false, _) => {}
        }
        Ok(Partial {
            content: &self.content,
            reasoning: (!self.reasoning.is_empty()).then_some(&*self.reasoning),
            tokens: self.counted.completion(),
        })
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity.clone().unwrap_or_default()
    }

    pub(super) fn content(&self) -> &str {
        &self.content
    }

    pub(super) fn counted(&self) -> Counted {
        self.counted
    }

    fn withhold(&mut self, bytes: &[u8]) -> Bytes {
        self.withheld.extend_from_slice(bytes);
        if self.withheld.len() <= MAX_TEXT {
            return Bytes::new();
        }
        self.obstacle = Some(Obstacle::TooLong);
        Bytes::from(std::mem::take(&mut self.withheld))
    }

    /// Takes in a whole event. False if it says that the upstream failed.
    fn take(&mut self, event: &[u8]) -> bool {
        let data = match events::data(event) {
            Data::Nothing => return true,
            Data::Is(data) => data,
            Data::Foreign => {
                self.obstacle = Some(Obstacle::Unknown);
                return true;
            }
        };
        if data.trim_ascii() == b"[DONE]" {
            self.obstacle = Some(Obstacle::Finished);
            return true;
        }
        let reading = reading::chunk(&data);
        if reading.error.is_some() || reading.finish.is_some_and(FinishReason::is_failure) {
            return false;
        }
        let finished = reading.finish.map(|_| Obstacle::Finished);
        self.obstacle = self.chunk(&data).err().or(finished);
        true
    }

    fn chunk(&mut self, data: &[u8]) -> Result<(), Obstacle> {
        let names = ["id", "created", "model", "choices", "usage"];
        let [id, created, model, choices, usage] =
            json::pick(data, names).ok_or(Obstacle::Unknown)?;
        let kept = |value: Option<&[u8]>| value.map(Box::from);
        self.identity.get_or_insert_with(|| Identity {
            id: kept(id),
            created: kept(created),
            model: kept(model),
        });
        self.counted.usage = usage.and_then(Usage::from_openai).or(self.counted.usage);
        let mut choices = json::items(choices.ok_or(Obstacle::Unknown)?);
        let Some(choice) = choices.next() else {
            return Ok(());
        };
        let names = ["index", "delta", "logprobs"];
        let [index, delta, logprobs] = json::pick(choice, names).ok_or(Obstacle::Unknown)?;
        if choices.next().is_some() || index.is_some_and(|index| index != b"0") {
            return Err(Obstacle::Choices);
        }
        if logprobs.is_some_and(says_something) {
            return Err(Obstacle::Logprobs);
        }
        match delta.filter(|delta| says_something(delta)) {
            Some(delta) => self.delta(delta),
            None => Ok(()),
        }
    }

    fn delta(&mut self, delta: &[u8]) -> Result<(), Obstacle> {
        let (mut content, mut reasoning) = (None, None);
        Walk::new(delta, 0).members(0, |member| {
            let value = delta.get(member.value.clone()).unwrap_or_default();
            let is = |name| json::key_is(delta, &member, name);
            if is("role") || !says_something(value) {
                return Ok(());
            }
            let kind = if is("content") {
                &mut content
            } else if is("reasoning_content") {
                &mut reasoning
            } else if is("tool_calls") || is("function_call") {
                return Err(Obstacle::ToolCalls);
            } else {
                return Err(Obstacle::Unknown);
            };
            *kind = Some(json::text(value).ok_or(Obstacle::Unknown)?);
            Ok(())
        })?;
        if let Some(text) = reasoning {
            // Only what comes before the text can be given back in its place.
            if !self.content.is_empty() {
                return Err(Obstacle::Unknown);
            }
            self.room(&text)?;
            self.reasoning.push_str(&text);
            self.counted.reasoning += 1;
        }
        if let Some(text) = content {
            self.room(&text)?;
            self.content.push_str(&text);
            self.counted.content += 1;
        }
        Ok(())
    }

    fn room(&self, text: &str) -> Result<(), Obstacle> {
        let length = self.content.len() + self.reasoning.len() + text.len();
        (length <= MAX_TEXT).then_some(()).ok_or(Obstacle::TooLong)
    }
}
