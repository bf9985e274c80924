//! Takes the envelopes off the events of a stream (WHATWG HTML §9.2), one by
//! one. For [`super::Unwrapper`]. It finds lines and events; what an event's data
//! is, [`super::one`] decides.
//!
//! Lines other than `data` pass as they come. The data of an event may be spread
//! over lines, whatever is in it.

use super::one::{End, Envelope, Fate, Part, Sink};
use super::{Failure, Rules};
use bytes::Bytes;
use std::ops::Range;

const FIELD: &[u8] = b"data:";
/// Put before data that lost its envelope.
const LEAD: &[u8] = b"data: ";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// So many bytes of [`FIELD`] have come.
    Beginning(usize),
    Data,
    /// Any other, or a blank one.
    Other {
        blank: bool,
    },
}

/// What an event told that is not for passing on.
#[derive(Debug)]
pub(super) struct Told(pub Failure);

/// An incremental reader of a stream of events.
#[derive(Debug)]
pub(super) struct Events {
    line: Line,
    /// The data of the event under way.
    envelope: Option<Envelope>,
    /// The end of a line was dropped together with an envelope's rest.
    owed: bool,
    after_cr: bool,
    /// What became of the last line's end.
    fate: Fate,
    good: bool,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            line: Line::Beginning(0),
            envelope: None,
            owed: false,
            after_cr: false,
            fate: Fate::Passed,
            good: false,
        }
    }
}

impl Events {
    /// Whether anything of an event's data has gone out.
    pub fn is_good(&self) -> bool {
        self.good || self.envelope.as_ref().is_some_and(Envelope::is_good)
    }

    /// Reads a fragment from `at` on. The first error ends the reading.
    pub fn feed(
        &mut self,
        rules: &Rules,
        text: &Bytes,
        mut at: usize,
        sink: &mut Sink<'_>,
    ) -> Option<Told> {
        while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
            if std::mem::take(&mut self.after_cr) && rest.first() == Some(&b'\n') {
                self.line_feed(rules, sink, at..at + 1);
                at += 1;
                continue;
            }
            if let Line::Beginning(before) = self.line {
                at += self.begin(rules, sink, rest, (before, at));
                continue;
            }
            let found = memchr::memchr2(b'\n', b'\r', rest);
            let end = at + found.unwrap_or(rest.len());
            self.content(rules, sink, at..end);
            at = end;
            if found.is_some() {
                self.after_cr = text.get(at) == Some(&b'\r');
                if let Some(told) = self.end_line(rules, sink, at..at + 1) {
                    return Some(told);
                }
                at += 1;
            }
        }
        None
    }

    /// The stream has ended: an unfinished event is taken as it is.
    pub fn finish(&mut self, rules: &Rules, sink: &mut Sink<'_>) -> Option<Told> {
        if let Line::Beginning(before) = self.line {
            self.aside(
                rules,
                sink,
                Part::Word(FIELD.get(..before).unwrap_or_default()),
            );
        }
        self.line = Line::Beginning(0);
        match self.envelope.take()?.end(rules, sink) {
            End::Passed | End::Empty => {
                self.pay(sink);
                None
            }
            End::Failed(failure) => Some(Told(failure)),
            End::Late(failure) => {
                sink.put(Bytes::from_static(b"\n\n"));
                Some(Told(failure))
            }
        }
    }

    /// Tells what kind of line begins; how much of `rest` that took.
    fn begin(
        &mut self,
        rules: &Rules,
        sink: &mut Sink<'_>,
        rest: &[u8],
        (before, at): (usize, usize),
    ) -> usize {
        let wanted = FIELD.get(before..).unwrap_or_default();
        let same = rest.iter().zip(wanted).take_while(|(a, b)| a == b).count();
        if same < wanted.len() && same == rest.len() {
            self.line = Line::Beginning(before + same);
            return same;
        }
        let word = Part::Word(FIELD.get(..before).unwrap_or_default());
        if same < wanted.len() {
            let blank = before == 0 && matches!(rest.first(), Some(b'\n' | b'\r'));
            self.line = Line::Other { blank };
            if !blank {
                self.aside(rules, sink, word);
            }
            return 0;
        }
        self.line = Line::Data;
        let envelope = self.envelope.get_or_insert_with(|| Envelope::new(LEAD));
        envelope.between(rules, sink, word);
        envelope.between(rules, sink, Part::Here(at..at + same));
        same
    }

    fn content(&mut self, rules: &Rules, sink: &mut Sink<'_>, range: Range<usize>) {
        match (self.line, &mut self.envelope) {
            _ if range.is_empty() => {}
            (Line::Data, Some(envelope)) => envelope.read(rules, sink, range),
            _ => self.aside(rules, sink, Part::Here(range)),
        }
    }

    fn end_line(
        &mut self,
        rules: &Rules,
        sink: &mut Sink<'_>,
        range: Range<usize>,
    ) -> Option<Told> {
        let line = std::mem::replace(&mut self.line, Line::Beginning(0));
        match (line, &mut self.envelope) {
            (Line::Other { blank: true }, _) => return self.end_event(rules, sink, range),
            (Line::Data, Some(envelope)) => {
                self.fate = envelope.between(rules, sink, Part::Here(range));
                self.owed = self.fate == Fate::Dropped;
            }
            _ => self.aside(rules, sink, Part::Here(range)),
        }
        None
    }

    /// A blank line ends the event.
    fn end_event(
        &mut self,
        rules: &Rules,
        sink: &mut Sink<'_>,
        range: Range<usize>,
    ) -> Option<Told> {
        self.fate = Fate::Passed;
        let end = self.envelope.take().map(|mut envelope| {
            let end = envelope.end(rules, sink);
            self.good |= envelope.is_good();
            end
        });
        match end {
            None | Some(End::Passed) => {
                self.pay(sink);
                sink.pass(range);
            }
            Some(End::Empty) => {
                self.owed = false;
                // A sign of life is all that it was.
                sink.put(Bytes::from_static(b":\n"));
                sink.pass(range);
            }
            Some(End::Failed(failure)) => return Some(Told(failure)),
            Some(End::Late(failure)) => {
                self.pay(sink);
                sink.pass(range);
                return Some(Told(failure));
            }
        }
        None
    }

    /// The second half of a line's end.
    fn line_feed(&mut self, rules: &Rules, sink: &mut Sink<'_>, range: Range<usize>) {
        match (self.fate, &mut self.envelope) {
            (Fate::Passed, _) => sink.pass(range),
            (Fate::Held, Some(envelope)) => {
                envelope.aside(rules, sink, Part::Here(range));
            }
            (Fate::Held, None) | (Fate::Dropped, _) => {}
        }
    }

    /// Bytes beside the data: of other lines of the event, or between events.
    fn aside(&mut self, rules: &Rules, sink: &mut Sink<'_>, part: Part) {
        let Some(envelope) = &mut self.envelope else {
            self.fate = Fate::Passed;
            return sink.let_out(part);
        };
        if std::mem::take(&mut self.owed) && envelope.is_good() {
            sink.put(Bytes::from_static(b"\n"));
        }
        self.fate = envelope.aside(rules, sink, part);
    }

    /// Ends a line whose own end was dropped.
    fn pay(&mut self, sink: &mut Sink<'_>) {
        if std::mem::take(&mut self.owed) {
            sink.put(Bytes::from_static(b"\n"));
        }
    }
}
