//! Decides what one JSON text is: an envelope around an answer, an envelope
//! around an error, or no envelope; and with that which of its bytes go out. For
//! whole answers and for single events alike. It must not know which of both it
//! looks at, but for what stands before the data (`lead`).
//!
//! Bytes wait while this is open, [`MAX_HELD`] at most. Then, and from then on,
//! the data passes as it comes and the rest is dropped.

use super::members::{Mark, Members, Name};
use super::{Failure, Rules};
use bytes::Bytes;
use std::ops::Range;

/// Most bytes of a text that wait for its code. An envelope with its data first
/// and more of it than this is taken for a success.
pub const MAX_HELD: usize = 64 * 1024;

/// Takes what goes out. Neighbouring parts of a fragment go out as one.
#[derive(Debug)]
pub(super) struct Sink<'a> {
    fragment: &'a Bytes,
    run: Range<usize>,
    out: &'a mut Vec<Bytes>,
}

impl<'a> Sink<'a> {
    pub fn new(fragment: &'a Bytes, out: &'a mut Vec<Bytes>) -> Self {
        Self {
            fragment,
            run: 0..0,
            out,
        }
    }

    /// A part of the fragment goes out as it is.
    pub fn pass(&mut self, range: Range<usize>) {
        if self.run.end == range.start && !self.run.is_empty() {
            self.run.end = range.end;
            return;
        }
        self.flush();
        self.run = range;
    }

    /// Something that is not in the fragment goes out.
    pub fn put(&mut self, bytes: Bytes) {
        self.flush();
        if !bytes.is_empty() {
            self.out.push(bytes);
        }
    }

    /// Lets out what was passed; the last word of every use.
    pub fn flush(&mut self) {
        let end = self.run.end.min(self.fragment.len());
        let start = self.run.start.min(end);
        if start < end {
            self.out.push(self.fragment.slice(start..end));
        }
        self.run = 0..0;
    }

    fn bytes(&self, part: &Part) -> &[u8] {
        match part {
            Part::Here(range) => self.fragment.get(range.clone()).unwrap_or_default(),
            Part::Word(word) => word,
        }
    }

    pub fn let_out(&mut self, part: Part) {
        match part {
            Part::Here(range) => self.pass(range),
            Part::Word(word) => self.put(Bytes::from_static(word)),
        }
    }
}

/// Bytes of the fragment, or known ones that came with an earlier fragment.
#[derive(Debug, Clone)]
pub(super) enum Part {
    Here(Range<usize>),
    Word(&'static [u8]),
}

/// What became of bytes that are no part of the JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Passed,
    Held,
    Dropped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Undecided,
    /// No envelope: everything passes.
    Plain,
    /// The data passes, the rest is dropped.
    Data,
    /// A success without data.
    Empty,
    Failed,
}

/// Where the data lies, as offsets into what is held, and its first byte.
#[derive(Debug, Clone, Copy)]
enum Data {
    Absent,
    Open { start: usize, first: u8 },
    Ended { start: usize, end: usize, first: u8 },
}

/// What a text turned out to be.
#[derive(Debug)]
pub(super) enum End {
    /// All of it went out, or its data did.
    Passed,
    /// A success that says nothing.
    Empty,
    Failed(Failure),
    /// An error that was only told when the data had gone out.
    Late(Failure),
}

/// One JSON text under way.
#[derive(Debug)]
pub(super) struct Envelope {
    members: Members,
    mode: Mode,
    held: Vec<u8>,
    data: Data,
    /// Put before the data.
    lead: &'static [u8],
    message_seen: bool,
    /// Taken for a success without having seen the code.
    assumed: bool,
    closed: bool,
}

impl Envelope {
    pub fn new(lead: &'static [u8]) -> Self {
        Self {
            members: Members::default(),
            mode: Mode::Undecided,
            held: Vec::new(),
            data: Data::Absent,
            lead,
            message_seen: false,
            assumed: false,
            closed: false,
        }
    }

    /// Whether it is settled that something of this text goes out.
    pub fn is_good(&self) -> bool {
        matches!(self.mode, Mode::Plain | Mode::Data)
    }

    /// Whether the object is closed, so that nothing more can change what it is.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Reads a part of the JSON text.
    pub fn read(&mut self, rules: &Rules, sink: &mut Sink<'_>, range: Range<usize>) {
        let Range { start: mut at, end } = range;
        while at < end {
            if self.mode == Mode::Plain {
                return sink.pass(at..end);
            }
            let rest = sink.fragment.get(at..end).unwrap_or_default();
            let (used, mark) = self.members.next(rest);
            self.dispose(rules, sink, at..at + used);
            at += used;
            match mark {
                Some(mark) => self.meet(rules, sink, mark),
                None => return,
            }
        }
    }

    /// Bytes between the parts of the text: a line's end, the next line's name.
    pub fn between(&mut self, rules: &Rules, sink: &mut Sink<'_>, part: Part) -> Fate {
        self.make_room(rules, sink, &part);
        match (self.mode, self.data) {
            (Mode::Undecided, _) => self.hold(sink, &part),
            (Mode::Plain, _) | (Mode::Data, Data::Open { .. }) => {
                sink.let_out(part);
                Fate::Passed
            }
            _ => Fate::Dropped,
        }
    }

    /// Bytes beside the text, which go with it: another line of the event.
    pub fn aside(&mut self, rules: &Rules, sink: &mut Sink<'_>, part: Part) -> Fate {
        self.make_room(rules, sink, &part);
        match self.mode {
            Mode::Undecided => self.hold(sink, &part),
            Mode::Plain | Mode::Data => {
                sink.let_out(part);
                Fate::Passed
            }
            Mode::Empty | Mode::Failed => Fate::Dropped,
        }
    }

    /// The text has ended.
    pub fn end(&mut self, rules: &Rules, sink: &mut Sink<'_>) -> End {
        if self.mode == Mode::Undecided {
            self.decide(rules, sink, true);
        }
        match self.mode {
            Mode::Failed => End::Failed(self.failure()),
            Mode::Empty => End::Empty,
            Mode::Data if self.assumed && self.told(rules) == Some(false) => {
                End::Late(self.failure())
            }
            _ => End::Passed,
        }
    }

    /// Lines without end must not fill the memory of what waits.
    fn make_room(&mut self, rules: &Rules, sink: &mut Sink<'_>, part: &Part) {
        let more = sink.bytes(part).len();
        if self.mode == Mode::Undecided && self.held.len() + more > MAX_HELD {
            self.stop_waiting(rules, sink);
        }
    }

    fn hold(&mut self, sink: &Sink<'_>, part: &Part) -> Fate {
        self.held.extend_from_slice(sink.bytes(part));
        Fate::Held
    }

    /// Bytes of the text go where they belong.
    fn dispose(&mut self, rules: &Rules, sink: &mut Sink<'_>, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        match (self.mode, self.data) {
            (Mode::Plain, _) | (Mode::Data, Data::Open { .. }) => sink.pass(range),
            (Mode::Undecided, _) if self.held.len() + range.len() <= MAX_HELD => {
                self.hold(sink, &Part::Here(range));
            }
            (Mode::Undecided, _) => {
                self.stop_waiting(rules, sink);
                self.dispose(rules, sink, range);
            }
            _ => {}
        }
    }

    fn meet(&mut self, rules: &Rules, sink: &mut Sink<'_>, mark: Mark) {
        let here = self.held.len();
        match mark {
            Mark::Begins(Name::Choices, _) | Mark::Foreign if self.mode == Mode::Undecided => {
                return self.pass_all(sink);
            }
            // Of equal members the last counts, as it does for parsers, while nothing is out.
            Mark::Begins(Name::Data, byte) if self.mode == Mode::Undecided => {
                self.data = Data::Open {
                    start: here,
                    first: byte,
                };
            }
            Mark::Ends(Name::Data) => {
                if let Data::Open { start, first } = self.data {
                    let end = here;
                    self.data = Data::Ended { start, end, first };
                }
            }
            Mark::Ends(Name::Message) => self.message_seen = true,
            Mark::Closed => self.closed = true,
            _ => {}
        }
        if self.mode == Mode::Undecided {
            self.decide(rules, sink, self.closed);
        }
    }

    /// Settles what this is as soon as that is certain; `last` if nothing more comes.
    fn decide(&mut self, rules: &Rules, sink: &mut Sink<'_>, last: bool) {
        let absent = matches!(self.data, Data::Absent);
        match (self.told(rules), self.data) {
            (Some(false), _) if self.message_seen || !absent => self.fail(),
            (Some(true), Data::Ended { .. }) => self.open(sink),
            // A word or a string may still turn out to be nothing.
            (Some(true), Data::Open { first, .. }) if is_container(first) => self.open(sink),
            _ if last => self.pass_all(sink),
            _ => {}
        }
    }

    /// Settles what this is when more came before the code than may wait.
    fn stop_waiting(&mut self, rules: &Rules, sink: &mut Sink<'_>) {
        match (self.told(rules), self.data) {
            (Some(false), _) => self.fail(),
            (Some(true), Data::Open { .. } | Data::Ended { .. }) => self.open(sink),
            // An array may be the `data` of an OpenAI list, which is no envelope.
            (None, Data::Open { first, .. } | Data::Ended { first, .. }) if first == b'{' => {
                self.assumed = true;
                self.open(sink);
            }
            _ => self.pass_all(sink),
        }
    }

    /// Whether the code says success, once all of it is there.
    fn told(&self, rules: &Rules) -> Option<bool> {
        let code = self.members.code()?;
        (!self.members.is_in(Name::Code)).then(|| rules.is_success(&code))
    }

    fn fail(&mut self) {
        self.mode = Mode::Failed;
        self.held = Vec::new();
    }

    fn pass_all(&mut self, sink: &mut Sink<'_>) {
        self.mode = Mode::Plain;
        sink.put(Bytes::from(std::mem::take(&mut self.held)));
    }

    /// Lets out what is there of the data.
    fn open(&mut self, sink: &mut Sink<'_>) {
        let held = Bytes::from(std::mem::take(&mut self.held));
        let range = match self.data {
            Data::Open { start, .. } => start.min(held.len())..held.len(),
            Data::Ended { start, end, .. } => start.min(end)..end.min(held.len()),
            Data::Absent => 0..0,
        };
        let data = held.slice(range);
        self.mode = Mode::Data;
        match data.as_ref() {
            b"null" => self.mode = Mode::Empty,
            // Some gateways wrap even the end of a stream.
            b"\"[DONE]\"" if !self.lead.is_empty() => {
                sink.put(Bytes::from_static(self.lead));
                sink.put(Bytes::from_static(b"[DONE]"));
            }
            _ => {
                sink.put(Bytes::from_static(self.lead));
                sink.put(data);
            }
        }
    }

    fn failure(&self) -> Failure {
        Failure::new(
            self.members.code().unwrap_or_default(),
            self.members.message(),
        )
    }
}

fn is_container(first: u8) -> bool {
    matches!(first, b'{' | b'[')
}
