//! Holds a rendered stream: one buffer and the ends of its events. Surfaces
//! write it, `script` decides when its parts are sent. It must not know what an
//! event says.

use bytes::Bytes;

use super::meter::Progress;

/// Whether time passes before an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// It belongs to what came before.
    AtOnce,
    /// It carries a token, which took its time to make.
    Token,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub end: usize,
    pub pace: Pace,
    /// How far the answer is once this event is out.
    pub progress: Progress,
}

/// A stream as it would be sent without any wait or fault.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    buffer: Vec<u8>,
    marks: Vec<Mark>,
    tokens: usize,
    usage: bool,
}

impl Transcript {
    pub(super) fn with_capacity(events: usize, bytes: usize) -> Self {
        Self {
            buffer: Vec::with_capacity(bytes),
            marks: Vec::with_capacity(events),
            tokens: 0,
            usage: false,
        }
    }

    /// Adds one event made of parts.
    pub(super) fn event(&mut self, pace: Pace, parts: &[&[u8]]) {
        for part in parts {
            self.buffer.extend_from_slice(part);
        }
        self.close(pace);
    }

    /// The event that comes next tells the usage of the whole answer.
    pub(super) fn tells_usage(&mut self) {
        self.usage = true;
    }

    /// Adds one event around a JSON string.
    pub(super) fn quoted(&mut self, pace: Pace, before: &[&[u8]], text: &str, after: &[&[u8]]) {
        for part in before {
            self.buffer.extend_from_slice(part);
        }
        quote(&mut self.buffer, text);
        for part in after {
            self.buffer.extend_from_slice(part);
        }
        self.close(pace);
    }

    /// The first token is not waited for here: `first_token` has paid for it.
    fn close(&mut self, pace: Pace) {
        let end = self.buffer.len();
        let first = pace == Pace::Token && self.tokens == 0;
        self.tokens += usize::from(pace == Pace::Token);
        let pace = if first { Pace::AtOnce } else { pace };
        let progress = Progress {
            tokens: self.tokens,
            usage: self.usage,
            whole: false,
        };
        self.marks.push(Mark {
            end,
            pace,
            progress,
        });
    }

    pub(super) fn into_parts(mut self) -> (Bytes, Vec<Mark>) {
        if let Some(last) = self.marks.last_mut() {
            last.progress.whole = true;
        }
        (Bytes::from(self.buffer), self.marks)
    }
}

/// Appends `text` as a JSON string.
pub(super) fn quote(into: &mut Vec<u8>, text: &str) {
    let from = into.len();
    // Writing a string to memory does not fail; were it to, an empty one is still JSON.
    if serde_json::to_writer(&mut *into, text).is_err() {
        into.truncate(from);
        into.extend_from_slice(b"\"\"");
    }
}

/// `text` as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len() + 2);
    quote(&mut bytes, text);
    String::from_utf8(bytes).unwrap_or_default()
}
