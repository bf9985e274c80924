//! Decides which bytes of a stream go out now, which wait and which never go: half
//! an event waits for its other half, a usage chunk that was asked for by the
//! gateway and not by the tenant never goes. The SSE scanner tells it where events
//! end; it must not know what they mean.
//!
//! Nobody can read half an event, so nothing is late for it. But an error that is
//! told in other words is never told by half in its own, and where a stream breaks
//! off, what the client has ends with a whole event.

use bytes::Bytes;
use memchr::memmem;

/// Longest event that waits for its end; a longer one is not read either, and goes out
/// as it comes.
const MAX_HELD: usize = 1 << 20;
/// Longest event that can be dropped. Usage chunks have well under 2 KiB.
const MAX_DROPPED: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct Strip {
    /// Whether the usage chunk is taken out.
    usage: bool,
    /// The beginning of the current event, from earlier fragments.
    held: Vec<u8>,
    /// Whether the current event goes out, whatever it turns out to be.
    released: bool,
    /// Whether the current event is an error, and so waits however long it is.
    concealed: bool,
    /// Whether the event before was dropped.
    dropped: bool,
    /// Start of the fragment's bytes that have no decision or are to go out.
    from: usize,
    /// Where the current event begins in the fragment.
    event: usize,
    /// What goes out before the fragment's bytes at `from`.
    out: Vec<u8>,
}

impl Strip {
    pub fn new(usage: bool) -> Self {
        Self {
            usage,
            ..Self::default()
        }
    }

    pub fn begin(&mut self) {
        self.from = 0;
        self.event = 0;
    }

    /// A line feed that belongs to the carriage return before it ends at `end`.
    pub fn line_feed(&mut self, end: usize) {
        if !self.held.is_empty() || self.released || self.event + 1 != end {
            return;
        }
        if self.dropped && self.from == self.event {
            self.from = end;
        }
        self.event = end;
    }

    /// A comment line ends at `end`. One that leads an event is no part of it.
    pub fn comment(&mut self, start: usize, end: usize) {
        if self.held.is_empty() && self.event == start && !self.released {
            self.event = end;
            self.dropped = false;
        }
    }

    /// The first `end` bytes of the fragment belong to no event and go out.
    pub fn lead(&mut self, end: usize) {
        self.event = end;
    }

    /// An event ends at `end`, its blank line included.
    pub fn event(&mut self, fragment: &[u8], end: usize, usage_only: bool) {
        let dropped = self.usage && usage_only && self.may_drop(fragment.get(self.event..end));
        if dropped {
            let before = fragment.get(self.from..self.event);
            self.out.extend_from_slice(before.unwrap_or_default());
            self.from = end;
        } else {
            self.out.extend_from_slice(&self.held);
        }
        self.held.clear();
        self.event = end;
        self.released = false;
        self.concealed = false;
        self.dropped = dropped;
    }

    /// The current event is an error by its name: it is told in other words, or not at all.
    pub fn conceal(&mut self) {
        self.concealed = true;
    }

    /// How much goes out of this fragment before the current event.
    pub fn before_event(&self) -> usize {
        self.out.len() + self.event.saturating_sub(self.from)
    }

    fn may_drop(&mut self, tail: Option<&[u8]>) -> bool {
        let tail = tail.unwrap_or_default();
        if self.released || self.held.len() + tail.len() > MAX_DROPPED {
            return false;
        }
        if self.held.is_empty() {
            return has_no_choices(tail);
        }
        has_no_choices(&[self.held.as_slice(), tail].concat())
    }

    /// What goes out at the end of a fragment. `comment` is where the line begins
    /// that the fragment ends in, if it is a comment.
    pub fn end(&mut self, fragment: &Bytes, comment: Option<usize>) -> Bytes {
        let tail = fragment.get(self.event..).unwrap_or_default();
        let leading = self.held.is_empty() && comment == Some(self.event);
        if tail.is_empty() || self.released || leading {
            return self.put(fragment, fragment.len());
        }
        if self.concealed {
            // Of one that is too long nobody needs more.
            let room = MAX_HELD.saturating_sub(self.held.len());
            let most = tail.get(..room).unwrap_or(tail);
            self.held.extend_from_slice(most);
            return self.put(fragment, self.event);
        }
        if self.held.is_empty() {
            if tail.len() <= MAX_HELD {
                self.held.extend_from_slice(tail);
                return self.put(fragment, self.event);
            }
            self.released = true;
            return self.put(fragment, fragment.len());
        }
        self.held.extend_from_slice(tail);
        if self.held.len() > MAX_HELD {
            self.released = true;
            self.out.append(&mut self.held);
        }
        self.put(fragment, self.event)
    }

    fn put(&mut self, fragment: &Bytes, to: usize) -> Bytes {
        if self.out.is_empty() {
            return fragment.slice(self.from.min(to)..to);
        }
        let rest = fragment.get(self.from..to).unwrap_or_default();
        self.out.extend_from_slice(rest);
        Bytes::from(std::mem::take(&mut self.out))
    }

    /// What is still held when the stream ends.
    pub fn finish(&mut self, usage_only: bool) -> Option<Bytes> {
        let dropped = self.usage && usage_only && self.may_drop(None);
        let held = std::mem::take(&mut self.held);
        (!dropped && !held.is_empty()).then(|| Bytes::from(held))
    }
}

/// Whether an event begins with data in which nothing looks like a choice: only then is it sure to
/// be nothing but usage, whatever the scanner made of it.
fn has_no_choices(event: &[u8]) -> bool {
    let key = b"\"choices\"";
    if !event.starts_with(b"data:") {
        return false;
    }
    memmem::find_iter(event, key).all(|at| {
        let value = event.get(at + key.len()..).unwrap_or_default();
        let Some((b':', value)) = value.trim_ascii_start().split_first() else {
            return true;
        };
        let Some((b'[', inner)) = value.trim_ascii_start().split_first() else {
            return true;
        };
        let inner = inner.trim_ascii_start();
        inner.first().is_none_or(|&byte| byte == b']')
    })
}
