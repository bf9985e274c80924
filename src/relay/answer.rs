//! Decides what an unstreamed JSON answer says about its own end, usage and
//! errors, while it passes through in fragments. For the relay and the ledger. It
//! must not judge whether the JSON is well-formed: that is for the client.
//!
//! Of an answer of any length only the few values of interest are kept.

use crate::json;
use crate::relay::event::{self, FinishReason, Shape, StreamError};
use crate::relay::reading::says_something;
use crate::relay::usage::{AnthropicUsage, Usage};

/// Longest `usage`, `error` or `incomplete_details` that is read.
const MAX_OBJECT: usize = 64 << 10;
/// Longest single word or message that is read.
const MAX_SCALAR: usize = 4 << 10;
/// Longer keys are none of ours.
const MAX_KEY: usize = 24;
/// Deepest level at which a key is of interest: `choices[i].finish_reason`.
const KEY_LEVELS: u32 = 3;

/// What has been seen of an answer so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Whether anything but white space came: DeepSeek sends blank lines while a
    /// request waits (rate_limit page).
    pub begun: bool,
    /// Whether it begins with something else than a JSON object does: a page of
    /// HTML, or plain text. Nothing more is read then.
    pub foreign: bool,
    /// Whether the JSON object is closed.
    pub complete: bool,
    /// Whether it has the member that answers have: `choices`, `data`, `content` or `output`.
    pub answers: bool,
    /// Its usage.
    pub usage: Option<Usage>,
    /// `choices[].finish_reason` (of several, a failure first, else the last),
    /// `stop_reason` or `status`, as the shape has it.
    pub finish_reason: Option<FinishReason>,
    /// `error`, or a `code` or `type` with a `message` at the top of what has
    /// neither usage nor a finish reason: some gateways add them to good answers.
    pub error: Option<StreamError>,
    /// Bytes other than white space after the object.
    pub bytes_after_end: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Usage,
    Error,
    Finish,
    Status,
    Details,
    Kind,
    Object,
    Code,
    Message,
}

impl Target {
    fn cap(self) -> usize {
        match self {
            Target::Usage | Target::Error | Target::Details => MAX_OBJECT,
            _ => MAX_SCALAR,
        }
    }
}

#[derive(Debug)]
struct Capture {
    target: Target,
    depth: u32,
    long: bool,
}

/// An incremental reader of one JSON answer.
#[derive(Debug)]
pub struct AnswerScanner {
    shape: Shape,
    answer: Answer,
    depth: u32,
    /// Whether the containers at depth 1 to `KEY_LEVELS` are objects.
    objects: [bool; KEY_LEVELS as usize],
    in_string: bool,
    escape: bool,
    key_next: bool,
    in_key: bool,
    key: Vec<u8>,
    /// Whether the current top-level member is `choices`.
    in_choices: bool,
    pending: Option<Target>,
    capture: Option<Capture>,
    captured: Vec<u8>,
    /// `type`, `code` and `message` at the top: an error without `error`.
    bare: StreamError,
}

impl AnswerScanner {
    /// A reader of an answer of the given shape; embeddings are `Completions`.
    pub fn new(shape: Shape) -> Self {
        AnswerScanner {
            shape,
            answer: Answer::default(),
            depth: 0,
            objects: [false; KEY_LEVELS as usize],
            in_string: false,
            escape: false,
            key_next: false,
            in_key: false,
            key: Vec::new(),
            in_choices: false,
            pending: None,
            capture: None,
            captured: Vec::new(),
            bare: StreamError::default(),
        }
    }

    /// What has been seen so far.
    pub fn seen(&self) -> &Answer {
        &self.answer
    }

    /// Reads the next fragment.
    pub fn feed(&mut self, fragment: &[u8]) {
        let mut rest = fragment;
        while !rest.is_empty() && !self.answer.foreign {
            rest = if self.in_string {
                self.string(rest)
            } else if self.depth > KEY_LEVELS && self.capture.is_none() {
                self.structure(past_scalars(rest))
            } else {
                self.structure(rest)
            };
        }
    }

    /// Reads on inside a string; returns what is left.
    fn string<'r>(&mut self, rest: &'r [u8]) -> &'r [u8] {
        if std::mem::take(&mut self.escape) {
            let (escaped, tail) = rest.split_at(rest.len().min(1));
            self.keep(escaped);
            return tail;
        }
        let Some(found) = memchr::memchr2(b'"', b'\\', rest) else {
            self.keep(rest);
            return &[];
        };
        let (run, tail) = rest.split_at(found + 1);
        self.keep(run);
        if run.last() == Some(&b'\\') {
            self.escape = true;
            return tail;
        }
        self.in_string = false;
        if !std::mem::take(&mut self.in_key) {
            self.end_capture();
        }
        tail
    }

    /// Reads one byte outside strings; returns what is left.
    fn structure<'r>(&mut self, rest: &'r [u8]) -> &'r [u8] {
        let Some((byte, tail)) = rest.split_first() else {
            return rest;
        };
        if self.depth == 0 && !self.enter(*byte) {
            return tail;
        }
        let one = rest.get(..1).unwrap_or_default();
        match byte {
            b'"' => {
                self.in_string = true;
                self.in_key = self.key_next && self.capture.is_none() && self.object();
                if self.in_key {
                    self.key.clear();
                } else {
                    self.begin_value();
                }
                self.keep(one);
            }
            b'{' | b'[' => {
                self.begin_value();
                self.keep(one);
                self.open(*byte == b'{');
            }
            b'}' | b']' => self.close(one),
            b',' => {
                self.end_capture();
                self.keep(one);
                self.key_next = true;
            }
            b':' => {
                self.keep(one);
                self.key_next = false;
                if self.capture.is_none() {
                    self.pending = self.target();
                }
            }
            b' ' | b'\t' | b'\n' | b'\r' => self.keep(one),
            _ => {
                self.begin_value();
                self.keep(one);
            }
        }
        tail
    }

    /// Decides about a byte outside the object; true for the brace that opens it.
    fn enter(&mut self, byte: u8) -> bool {
        if byte.is_ascii_whitespace() {
            return false;
        }
        if self.answer.complete {
            self.answer.bytes_after_end += 1;
            return false;
        }
        self.answer.begun = true;
        self.answer.foreign = byte != b'{';
        !self.answer.foreign
    }

    fn open(&mut self, object: bool) {
        let level = self.depth as usize;
        if let Some(slot) = self.objects.get_mut(level) {
            *slot = object;
        }
        self.depth = self.depth.saturating_add(1);
        self.key_next = object;
    }

    fn close(&mut self, one: &[u8]) {
        self.end_capture();
        self.depth = self.depth.saturating_sub(1);
        self.keep(one);
        self.end_capture();
        self.key_next = false;
        if self.depth == 0 {
            self.complete();
        }
    }

    fn complete(&mut self) {
        self.answer.complete = true;
        let bare = std::mem::take(&mut self.bare);
        let answered = self.answer.usage.is_some() || self.answer.finish_reason.is_some();
        let names_it = bare.code.is_some() || bare.kind.is_some();
        if self.answer.error.is_none() && !answered && names_it && bare.message.is_some() {
            self.answer.error = Some(bare);
        }
    }

    /// Whether the innermost container is an object whose keys matter.
    fn object(&self) -> bool {
        let level = (self.depth as usize).checked_sub(1);
        level.and_then(|level| self.objects.get(level)) == Some(&true)
    }

    /// What the value of the current key is wanted for.
    fn target(&mut self) -> Option<Target> {
        let key = self.key.as_slice();
        if self.depth == KEY_LEVELS {
            let in_choice = self.in_choices && self.objects == [true, false, true];
            return (in_choice && key == b"\"finish_reason\"").then_some(Target::Finish);
        }
        if self.depth != 1 {
            return None;
        }
        self.in_choices = key == b"\"choices\"";
        self.answer.answers |= match self.shape {
            Shape::Chat => self.in_choices,
            Shape::Completions => self.in_choices || key == b"\"data\"",
            Shape::Messages => key == b"\"content\"",
            Shape::Responses => key == b"\"output\"",
        };
        match (key, self.shape) {
            (b"\"usage\"", _) => Some(Target::Usage),
            (b"\"error\"", _) => Some(Target::Error),
            (b"\"stop_reason\"", Shape::Messages) => Some(Target::Finish),
            (b"\"status\"", Shape::Responses) => Some(Target::Status),
            (b"\"incomplete_details\"", Shape::Responses) => Some(Target::Details),
            (b"\"type\"", _) => Some(Target::Kind),
            (b"\"object\"", _) => Some(Target::Object),
            (b"\"code\"", _) => Some(Target::Code),
            (b"\"message\"", _) => Some(Target::Message),
            _ => None,
        }
    }

    #[inline]
    fn begin_value(&mut self) {
        if let Some(target) = self.pending.take() {
            self.captured.clear();
            self.capture = Some(Capture {
                target,
                depth: self.depth,
                long: false,
            });
        }
    }

    #[inline]
    fn keep(&mut self, bytes: &[u8]) {
        if let Some(capture) = &mut self.capture {
            capture.long |= self.captured.len() + bytes.len() > capture.target.cap();
            if !capture.long {
                self.captured.extend_from_slice(bytes);
            }
        } else if self.in_key {
            let room = MAX_KEY.saturating_sub(self.key.len());
            self.key
                .extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        }
    }

    #[inline]
    fn end_capture(&mut self) {
        let depth = self.depth;
        if let Some(capture) = self.capture.take_if(|capture| capture.depth == depth) {
            let value = std::mem::take(&mut self.captured);
            match (capture.long, capture.target) {
                (false, target) => self.learn(target, value.trim_ascii()),
                // Too long to be read, it is one all the same.
                (true, Target::Error) => self.answer.error = Some(StreamError::default()),
                (true, Target::Message) => self.bare.message = Some(Box::default()),
                (true, _) => {}
            }
        }
    }

    fn learn(&mut self, target: Target, value: &[u8]) {
        let earlier = self.answer.finish_reason;
        match target {
            Target::Usage => self.answer.usage = self.usage(value).or(self.answer.usage),
            Target::Error if !says_something(value) => {}
            Target::Error => self.answer.error = Some(StreamError::read(value)),
            Target::Finish => {
                let latest = FinishReason::read(value).map(|latest| latest.after(earlier));
                self.answer.finish_reason = latest.or(earlier);
            }
            // The details are more precise, whichever comes first.
            Target::Status => self.answer.finish_reason = earlier.or(FinishReason::read(value)),
            Target::Details => {
                let reason = json::pick(value, ["reason"]).and_then(|[reason]| reason);
                self.answer.finish_reason = reason.and_then(FinishReason::read).or(earlier);
            }
            Target::Kind => self.bare.kind = event::word(value),
            // vLLM's older form.
            Target::Object if value == b"\"error\"" => self.bare.kind = event::word(value),
            Target::Object => {}
            Target::Code => self.bare.code = event::word(value),
            Target::Message => self.bare.message = event::message(value),
        }
    }

    fn usage(&self, object: &[u8]) -> Option<Usage> {
        match self.shape {
            Shape::Chat | Shape::Completions => Usage::from_openai(object),
            Shape::Responses => Usage::from_responses(object),
            Shape::Messages => {
                let mut usage = AnthropicUsage::default();
                usage.merge(object);
                usage.usage()
            }
        }
    }
}

/// Passes over what can neither open nor close anything, in blocks: an embedding
/// is a megabyte of numbers.
fn past_scalars(bytes: &[u8]) -> &[u8] {
    let matters = |byte: u8| byte == b'"' || byte | 0x20 == b'{' || byte | 0x20 == b'}';
    let mut rest = bytes;
    while let Some((block, tail)) = rest.split_first_chunk::<32>() {
        if block.iter().fold(false, |any, &byte| any | matters(byte)) {
            break;
        }
        rest = tail;
    }
    let skip = rest.iter().position(|&byte| matters(byte));
    rest.get(skip.unwrap_or(rest.len())..).unwrap_or_default()
}

#[cfg(test)]
mod tests;
