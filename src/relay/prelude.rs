//! Decides which bytes of a stream may go to the client before there is content:
//! comments, and nothing else, so that another upstream can still take over
//! unnoticed. For the relay, behind the scanner. It must not know what an event
//! means, only where it begins and ends.

use bytes::Bytes;

/// Most bytes that wait for content. What comes before it is a few hundred bytes
/// in every known dialect.
pub const MAX_HELD: usize = 64 << 10;

const BOM: &[u8] = "\u{feff}".as_bytes();

/// What became of the last finished line.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Last {
    #[default]
    Held,
    /// A comment went out; a blank line after it goes too.
    Comment,
    /// That blank line went out.
    Blank,
}

/// What is held of one attempt's stream until its first content.
#[derive(Debug, Default)]
pub struct Prelude {
    held: Vec<u8>,
    /// Where in `held` the unfinished line begins.
    line: usize,
    /// Whether a field of an event has come and its blank line has not.
    in_event: bool,
    last: Last,
    /// Whether the last line ended in a carriage return.
    after_cr: bool,
    /// Whether a byte order mark is held: then nothing may go ahead of it.
    marked: bool,
    open: bool,
}

impl Prelude {
    /// Whether everything passes from here on.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Takes in what the scanner returned for a fragment, which may be cut
    /// anywhere, and returns what goes out now. `content` is whether the scanner
    /// has seen any content by then.
    pub fn pass(&mut self, fragment: Bytes, content: bool) -> Bytes {
        if self.open {
            return fragment;
        }
        if content {
            self.open = true;
            return self.all_and(fragment);
        }
        let mut out = Vec::new();
        let mut rest: &[u8] = &fragment;
        while let Some(&first) = rest.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                rest = rest.get(1..).unwrap_or_default();
                self.line_feed(&mut out);
                continue;
            }
            let Some(length) = memchr::memchr2(b'\n', b'\r', rest) else {
                self.held.extend_from_slice(rest);
                break;
            };
            let (line, tail) = rest.split_at(length + 1);
            self.after_cr = line.last() == Some(&b'\r');
            self.held.extend_from_slice(line);
            self.end_line(&mut out);
            rest = tail;
        }
        if self.held.len() > MAX_HELD {
            self.open = true;
            out.append(&mut self.held);
        }
        Bytes::from(out)
    }

    /// Ends the stream as one that is whole: what is still held goes out. An
    /// answer may have no content.
    pub fn finish(&mut self) -> Option<Bytes> {
        self.open = true;
        let held = std::mem::take(&mut self.held);
        (!held.is_empty()).then(|| Bytes::from(held))
    }

    fn all_and(&mut self, fragment: Bytes) -> Bytes {
        if self.held.is_empty() {
            return fragment;
        }
        self.held.extend_from_slice(&fragment);
        Bytes::from(std::mem::take(&mut self.held))
    }

    /// Decides about the line at the end of `held`, which is finished.
    fn end_line(&mut self, out: &mut Vec<u8>) {
        let line = self.held.get(self.line..).unwrap_or_default();
        let blank = matches!(line.first(), Some(b'\n' | b'\r'));
        let comment = line.first() == Some(&b':');
        self.marked |= line.starts_with(BOM);
        let passes = comment || (blank && self.last == Last::Comment);
        if passes && !self.in_event && !self.marked {
            out.extend(self.held.drain(self.line..));
            self.last = if comment { Last::Comment } else { Last::Blank };
        } else {
            self.in_event = !blank && (self.in_event || !comment);
            self.last = Last::Held;
        }
        self.line = self.held.len();
    }

    /// Puts the line feed of a CRLF where the carriage return went.
    fn line_feed(&mut self, out: &mut Vec<u8>) {
        match self.last {
            Last::Held => self.held.push(b'\n'),
            Last::Comment | Last::Blank => out.push(b'\n'),
        }
        self.line = self.held.len();
    }
}

#[cfg(test)]
mod tests;
