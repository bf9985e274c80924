//! Decides where the events of a stream begin and end (WHATWG HTML §9.2) and
//! keeps account of what they mean, while the stream passes through. For the
//! relay, which forwards what [`Scanner::feed`] returns at once. It must not know
//! sockets, clocks or what is done about what it sees.
//!
//! Fragments may be cut anywhere. Nothing is copied but a line that is cut; the
//! forwarded bytes are the very same unless a usage chunk is taken out.

use crate::json;
use crate::relay::event::{FinishReason, Seen, Shape, StreamError};
use crate::relay::pattern::{Match, Pattern};
use crate::relay::reading::{self, Kind, Reading};
use crate::relay::strip::Strip;
use crate::relay::usage::{AnthropicUsage, Usage};
use bytes::Bytes;
use std::ops::Range;

/// Longest line that is read, and most data of one event. Longer ones pass
/// unread and count as content.
pub const MAX_LINE: usize = 1 << 20;

/// Most memory that an idle buffer keeps between events.
const MAX_IDLE_BUFFER: usize = 64 << 10;

/// An incremental reader of one event stream.
#[derive(Debug)]
pub struct Scanner {
    shape: Shape,
    seen: Seen,
    /// The beginning of a line that is cut.
    line: Kept,
    /// The data of the event so far, where it could not stay in the fragment.
    data: Kept,
    has_data: bool,
    /// Whether it is decided that this is, or is not, an event stream.
    judged: bool,
    name: Option<Kind>,
    after_cr: bool,
    /// How much of a byte order mark the stream has begun with; `None` once decided.
    bom: Option<usize>,
    anthropic: AnthropicUsage,
    /// What the deltas of this stream look like.
    pattern: Pattern,
    strip: Strip,
    /// How much of what went out belongs to an event that is not finished.
    unfinished: usize,
    error_at: Option<usize>,
    /// How much of what goes out ends with the stream's own last event, if that came just now; and
    /// whether nothing came with it.
    ended_at: Option<(usize, bool)>,
    /// Whether that event ended in a carriage return, whose line feed may come yet.
    owes_line_feed: bool,
}

impl Scanner {
    /// A reader of a stream of the given shape. With `strip_usage` the chunk that
    /// has usage and no choices is taken out (chat and text completions only).
    pub fn new(shape: Shape, strip_usage: bool) -> Self {
        let openai = matches!(shape, Shape::Chat | Shape::Completions);
        Scanner {
            shape,
            seen: Seen::default(),
            line: Kept::default(),
            data: Kept::default(),
            has_data: false,
            judged: false,
            name: None,
            after_cr: false,
            bom: Some(0),
            anthropic: AnthropicUsage::default(),
            pattern: Pattern::default(),
            strip: Strip::new(openai && strip_usage),
            unfinished: 0,
            error_at: None,
            ended_at: None,
            owes_line_feed: false,
        }
    }

    /// What has been seen so far.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// How much of what the last call returned comes before the event with the
    /// stream's first error; 0 if that event began in an earlier fragment, `None`
    /// if the last call did not come upon it.
    pub fn error_at(&self) -> Option<usize> {
        self.error_at
    }

    /// Reads the next fragment and returns what to forward now. What comes after the
    /// stream's own last event is no part of it.
    pub fn feed(&mut self, fragment: Bytes) -> Bytes {
        self.begin();
        let ended = self.seen.ended;
        let text: &[u8] = &fragment;
        let mut here = None;
        let mut comment = None;
        let mut at = self.byte_order_mark(text);
        while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
            if std::mem::take(&mut self.after_cr) && rest.first() == Some(&b'\n') {
                self.line_feed(at);
                at += 1;
                continue;
            }
            let Some(length) = memchr::memchr2(b'\n', b'\r', rest) else {
                comment = self.partial(rest).then_some(at);
                break;
            };
            self.after_cr = rest.get(length) == Some(&b'\r');
            self.line(text, at..at + length, &mut here);
            at += length + 1;
        }
        if let Some(span) = here {
            self.data.push(text.get(span).unwrap_or_default());
        }
        if ended {
            self.unfinished = 0;
            let line_feed = self.owes_line_feed && fragment.first() == Some(&b'\n');
            self.owes_line_feed &= fragment.is_empty();
            return fragment.slice(..usize::from(line_feed));
        }
        let before = self.strip.before_event();
        let mut out = self.strip.end(&fragment, comment);
        self.unfinished = out.len().saturating_sub(before);
        if let Some((end, is_last)) = self.ended_at.take() {
            let after_cr = out.get(..end).is_some_and(|out| out.ends_with(b"\r"));
            let line_feed = after_cr && out.get(end) == Some(&b'\n');
            self.owes_line_feed = after_cr && is_last;
            out.truncate(end + usize::from(line_feed));
            self.unfinished = 0;
        }
        out
    }

    /// How much of what the last [`Self::feed`] returned, at its end, belongs to an event that was
    /// not finished there: one that is too long to wait.
    pub fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Ends the stream: what is unfinished is read as if it were finished.
    /// Returns what was held back and has to go out, if the stream is well.
    pub fn finish(&mut self) -> Option<Bytes> {
        self.begin();
        let mut here = None;
        if !self.line.is_empty() {
            self.line(b"", 0..0, &mut here);
        }
        let ended = self.seen.ended;
        // Without its blank line an event is read only as far as it is there: half of the last one
        // is no end, whatever its name says.
        let half = self.has_data && self.is_half(&self.data.bytes);
        let usage_only = self.dispatch(b"", &mut here);
        self.seen.ended &= ended || !half;
        self.strip.finish(usage_only).filter(|_| !ended)
    }

    fn begin(&mut self) {
        self.seen.progress = false;
        self.error_at = None;
        self.strip.begin();
    }

    /// The line feed at `at` belongs to the carriage return before it.
    fn line_feed(&mut self, at: usize) {
        self.strip.line_feed(at + 1);
    }

    fn is_half(&self, data: &[u8]) -> bool {
        let done = data.trim_ascii() == b"[DONE]";
        self.data.long || (!done && json::pick(data, []).is_none())
    }

    /// Passes over a byte order mark at the start of the stream, which may be cut
    /// too. Returns how much of `text` belongs to it.
    fn byte_order_mark(&mut self, text: &[u8]) -> usize {
        let mut at = 0;
        while let (Some(matched), Some(byte)) = (self.bom, text.get(at)) {
            if BOM.get(matched) == Some(byte) {
                at += 1;
                self.bom = Some(matched + 1).filter(|&matched| matched < BOM.len());
            } else {
                self.line.push(BOM.get(..matched).unwrap_or_default());
                self.bom = None;
            }
        }
        if at > 0 {
            self.strip.lead(at);
        }
        at
    }

    /// Keeps the beginning of a cut line. True if it is a comment.
    fn partial(&mut self, rest: &[u8]) -> bool {
        self.line.push(rest);
        if self.line.long {
            self.seen.progress = true;
            self.seen.begun = true;
            return false;
        }
        let comment = self.line.bytes.first() == Some(&b':');
        if !comment && !self.judged {
            self.judge_first(None);
        }
        self.seen.begun |= !comment;
        comment
    }

    /// Decides by the first line of an event whether this is an event stream. A
    /// line that is cut (`None`) may still become a field.
    #[cold]
    fn judge_first(&mut self, whole: Option<&[u8]>) {
        let line = whole.unwrap_or(&self.line.bytes);
        let is_field = FIELDS.iter().any(|name| field(line, name).is_some());
        let may_be = whole.is_none() && FIELDS.iter().any(|name| name.starts_with(line));
        self.judged = !may_be;
        self.seen.foreign = !is_field && !may_be;
    }

    /// Takes in the line that ends with `span` of the fragment `text`. `here` is
    /// where the event's data lies in it, as long as it is a single line there.
    fn line(&mut self, text: &[u8], span: Range<usize>, here: &mut Option<Range<usize>>) {
        let (start, end) = (span.start, span.end);
        let tail = text.get(span).unwrap_or_default();
        if self.line.is_empty() && tail.len() <= MAX_LINE {
            return self.whole_line(text, tail, Some(start), end, here);
        }
        self.line.push(tail);
        let line = std::mem::take(&mut self.line);
        if line.long {
            self.judged = true;
            self.seen.begun = true;
            self.has_data = true;
            *here = None;
            self.data.overflow();
        } else {
            self.whole_line(text, &line.bytes, None, end, here);
        }
        self.line = line.emptied();
    }

    /// `start` is where the line begins in the fragment, if all of it is there.
    fn whole_line(
        &mut self,
        text: &[u8],
        line: &[u8],
        start: Option<usize>,
        end: usize,
        here: &mut Option<Range<usize>>,
    ) {
        if line.is_empty() {
            let ended = self.seen.ended;
            let usage_only = self.dispatch(text, here);
            self.strip.event(text, end + 1, usage_only);
            if self.seen.ended && !ended {
                self.ended_at = Some((self.strip.before_event(), end + 1 == text.len()));
            }
            return;
        }
        if line.first() == Some(&b':') {
            self.seen.keep_alives += 1;
            self.strip.comment(start.unwrap_or(0), end + 1);
            return;
        }
        if !self.judged {
            self.judge_first(Some(line));
        }
        self.seen.begun = true;
        if self.seen.ended {
            self.seen.bytes_after_end += line.len() as u64;
        }
        if let Some(value) = field(line, b"data") {
            let span = end - value.len().min(end)..end;
            self.keep_data(text, value, start.map(|_| span), here);
        } else if let Some(name) = field(line, b"event") {
            self.name = (!name.is_empty()).then(|| Kind::named(name));
            if matches!(self.name, Some(Kind::Error | Kind::Failed)) {
                self.strip.conceal();
            }
        }
    }

    fn keep_data(
        &mut self,
        text: &[u8],
        value: &[u8],
        span: Option<Range<usize>>,
        here: &mut Option<Range<usize>>,
    ) {
        let first = !std::mem::replace(&mut self.has_data, true);
        if first && span.is_some() {
            *here = span;
            return;
        }
        if let Some(earlier) = here.take() {
            self.data.push(text.get(earlier).unwrap_or_default());
        }
        if !first {
            self.data.push(b"\n");
        }
        self.data.push(value);
    }

    /// Reads the event that a blank line has completed. True for a usage chunk.
    fn dispatch(&mut self, text: &[u8], here: &mut Option<Range<usize>>) -> bool {
        let name = self.name.take();
        if !std::mem::take(&mut self.has_data) {
            return false;
        }
        if self.seen.ended {
            // What comes after it belongs to no answer.
            *here = None;
            self.data = std::mem::take(&mut self.data).emptied();
            return false;
        }
        if let Some(span) = here.take() {
            return self.event(text.get(span).unwrap_or_default(), name);
        }
        let data = std::mem::take(&mut self.data);
        let usage_only = if data.long {
            self.unread_event(name);
            false
        } else {
            self.event(&data.bytes, name)
        };
        self.data = data.emptied();
        usage_only
    }

    fn event(&mut self, data: &[u8], name: Option<Kind>) -> bool {
        match self.shape {
            _ if data.trim_ascii() == b"[DONE]" => {
                self.seen.ended = true;
                self.seen.progress = true;
                false
            }
            Shape::Chat | Shape::Completions if name == Some(Kind::Error) => {
                self.account(reading::error(data))
            }
            Shape::Chat | Shape::Completions => {
                if self.seen.first_content && self.is_plain_delta(data) {
                    self.content();
                    return false;
                }
                self.account(reading::chunk(data))
            }
            Shape::Messages | Shape::Responses => {
                self.account(reading::named(data, name, self.seen.first_content))
            }
        }
    }

    fn is_plain_delta(&mut self, data: &[u8]) -> bool {
        let compared = self.pattern.compare(data);
        if compared == Match::Same {
            return true;
        }
        let plain = reading::is_plain_delta(data);
        if plain && compared == Match::Different && self.pattern.wants(data) {
            self.pattern.learn(data, reading::text_of_chunk(data));
        }
        plain
    }

    /// An event too long to be read: its name is all there is to go by.
    fn unread_event(&mut self, name: Option<Kind>) {
        match name {
            Some(Kind::Error | Kind::Failed) => {
                let reading = Reading {
                    error: Some(StreamError::default()),
                    ended: name == Some(Kind::Failed),
                    ..Reading::default()
                };
                self.account(reading);
            }
            _ => self.content(),
        }
        self.seen.ended |= matches!(name, Some(Kind::Response | Kind::Stop));
    }

    fn content(&mut self) {
        self.seen.progress = true;
        self.seen.first_content = true;
        self.seen.content_events += 1;
    }

    fn account(&mut self, reading: Reading<'_>) -> bool {
        if reading.content {
            self.content();
        }
        self.seen.keep_alives += u64::from(reading.keep_alive);
        self.seen.progress |= reading.finish.is_some() || reading.error.is_some() || reading.ended;
        self.seen.ended |= reading.ended;
        let earlier = self.seen.finish_reason;
        let latest = reading
            .finish
            .map(|finish: FinishReason| finish.after(earlier));
        self.seen.finish_reason = latest.or(earlier);
        if self.seen.error.is_none() && reading.error.is_some() {
            self.seen.error = reading.error;
            self.seen.failed_at_end = reading.ended;
            self.error_at = Some(self.strip.before_event());
        }
        if let Some(object) = reading.usage {
            let usage = match self.shape {
                Shape::Chat | Shape::Completions => Usage::from_openai(object),
                Shape::Responses => Usage::from_responses(object),
                Shape::Messages => {
                    self.anthropic.merge(object);
                    self.anthropic.usage()
                }
            };
            self.seen.usage = usage.or(self.seen.usage);
        }
        reading.usage_only
    }
}

/// The fields of an event that the standard knows.
const FIELDS: [&[u8]; 4] = [b"data", b"event", b"id", b"retry"];

const BOM: &[u8] = "\u{feff}".as_bytes();

/// The value of the line if its field is `name`, without the one space that may
/// follow the colon. A line without a colon is a field without a value.
#[inline]
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let rest = line.strip_prefix(name)?;
    if rest.is_empty() {
        return Some(rest);
    }
    let value = rest.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

/// Bytes kept up to [`MAX_LINE`]; beyond it, only that there were too many.
#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    long: bool,
}

impl Kept {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty() && !self.long
    }

    fn push(&mut self, more: &[u8]) {
        if self.long || self.bytes.len() + more.len() > MAX_LINE {
            self.overflow();
            return;
        }
        self.bytes.extend_from_slice(more);
    }

    fn overflow(&mut self) {
        self.bytes = Vec::new();
        self.long = true;
    }

    /// Ready for use again, with its memory unless that is much.
    fn emptied(mut self) -> Self {
        self.bytes.clear();
        if self.bytes.capacity() > MAX_IDLE_BUFFER {
            self.bytes = Vec::new();
        }
        self.long = false;
        self
    }
}

#[cfg(test)]
mod tests;
