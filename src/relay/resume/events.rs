//! Decides how much of a stream is whole events (WHATWG HTML §9.2), and what data
//! one of them has. It must not know what the data means.

use bytes::Bytes;
use std::borrow::Cow;

/// Holds back the event that is not yet whole.
#[derive(Debug, Default)]
pub(super) struct WholeEvents {
    held: Vec<u8>,
    lines: Lines,
}

impl WholeEvents {
    /// Takes in a fragment and returns the events that are whole by now. Copies
    /// only what is cut.
    pub fn push(&mut self, fragment: Bytes) -> Bytes {
        let mut whole = 0;
        while let Some(length) = self.lines.event(fragment.get(whole..).unwrap_or_default()) {
            whole += length;
        }
        let tail = fragment.get(whole..).unwrap_or_default();
        if whole == 0 {
            self.held.extend_from_slice(tail);
            return Bytes::new();
        }
        let mut out = fragment.slice(..whole);
        if !self.held.is_empty() {
            self.held.extend_from_slice(&out);
            out = Bytes::from(std::mem::take(&mut self.held));
        }
        self.held.extend_from_slice(tail);
        out
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Takes out what is held; the next fragment begins an event.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self).held
    }
}

/// Where a reader of lines stands.
#[derive(Debug, Default)]
struct Lines {
    /// Whether the current line has any bytes.
    in_line: bool,
    /// Whether the last byte was a carriage return, and that of a blank line.
    after_cr: Option<bool>,
}

impl Lines {
    /// Reads to the end of the first event, its blank line included.
    fn event(&mut self, text: &[u8]) -> Option<usize> {
        let mut at = 0;
        loop {
            let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
            if let Some(blank) = self.after_cr.take()
                && rest.first() == Some(&b'\n')
            {
                at += 1;
                if blank {
                    return Some(at);
                }
                continue;
            }
            let Some(length) = memchr::memchr2(b'\n', b'\r', rest) else {
                self.in_line = true;
                return None;
            };
            let blank = length == 0 && !std::mem::take(&mut self.in_line);
            self.in_line = false;
            at += length + 1;
            if rest.get(length) == Some(&b'\r') {
                if text.get(at) == Some(&b'\n') {
                    at += 1;
                } else {
                    self.after_cr = Some(blank);
                }
            }
            if blank {
                return Some(at);
            }
        }
    }
}

/// The events that `whole` consists of.
pub(super) fn split(whole: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = whole;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let length = Lines::default().event(rest).unwrap_or(rest.len());
        let (event, tail) = rest.split_at(length);
        rest = tail;
        Some(event)
    })
}

/// What an event has.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Data<'a> {
    /// Comments and blank lines only.
    Nothing,
    /// Its data, lines joined.
    Is(Cow<'a, [u8]>),
    /// Fields that a chat stream has no use for.
    Foreign,
}

/// The data of one whole event.
pub(super) fn data(event: &[u8]) -> Data<'_> {
    let mut data: Option<Cow<'_, [u8]>> = None;
    for line in event.split(|byte| matches!(byte, b'\n' | b'\r')) {
        if line.is_empty() || line.starts_with(b":") {
            continue;
        }
        let Some(value) = line.strip_prefix(b"data:") else {
            return Data::Foreign;
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        data = Some(match data {
            None => Cow::Borrowed(value),
            Some(earlier) => Cow::Owned([&earlier[..], b"\n", value].concat()),
        });
    }
    data.map_or(Data::Nothing, Data::Is)
}
