//! Decides what is sent when: turns a rendered answer, a tempo and an order of
//! faults into steps. Pure; the steps are played in `playback`.

use std::time::Duration;

use bytes::Bytes;

use super::fault::{Ending, Faults};
use super::meter::Progress;
use super::transcript::{Mark, Pace, Transcript};
use super::usage::Telling;

const COMMENT: &[u8] = b": keep-alive\n\n";
const BLANK_LINE: &[u8] = b"\n";
const BROKEN_EVENT: &[u8] = b"data: {\"choices\":[{\"delta\":{\"con\n\n";
/// Lets hyper flush what was written before the connection breaks.
const FLUSH: Duration = Duration::from_millis(5);

/// One thing the server does with an answer's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Wait(Duration),
    /// The queue is over and the work begins.
    Begin,
    /// A part of the answer, and how far the answer is then.
    Send(Bytes, Progress),
    /// Break the connection.
    Cut,
    /// Break the connection by a reset.
    Reset,
    /// Say nothing more and keep the connection.
    Hang,
}

/// When the response head goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// After the work of so long, which begins at once.
    After(Duration),
    /// At once, before a queue; the work begins with a step.
    Queued,
    Never,
}

/// A whole answer as a course of steps.
#[derive(Debug)]
pub(super) struct Script {
    pub opening: Opening,
    pub steps: Vec<Step>,
}

/// How fast the emulated inference is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tempo {
    pub first_token: Duration,
    pub token_delay: Duration,
    pub keep_alive: Duration,
    pub queue_limit: Duration,
}

impl Tempo {
    /// No inference at all, for what is only looked up.
    pub(super) fn at_once() -> Self {
        Self {
            first_token: Duration::ZERO,
            token_delay: Duration::ZERO,
            keep_alive: Duration::from_millis(100),
            queue_limit: Duration::from_secs(600),
        }
    }

    /// This tempo as changed by faults.
    pub(super) fn under(self, faults: &Faults) -> Self {
        Self {
            first_token: faults.first_token.unwrap_or(self.first_token),
            token_delay: faults.token_delay.unwrap_or(self.token_delay),
            ..self
        }
    }
}

/// A body that is not generated: sent at once.
pub(super) fn plain(body: Bytes) -> Vec<Step> {
    if body.is_empty() {
        return Vec::new();
    }
    vec![Step::Send(body, Progress::default())]
}

/// The course of a streamed answer. `error` is the event of a mid-stream error
/// after so many others.
pub(super) fn streamed(
    transcript: Transcript,
    tempo: Tempo,
    faults: &Faults,
    error: impl FnOnce(usize) -> Bytes,
) -> Script {
    let opening = opening(faults, Duration::ZERO);
    let mut steps = Vec::new();
    if queue(&mut steps, tempo, faults, COMMENT) {
        return Script { opening, steps };
    }
    let (buffer, mut marks) = transcript.into_parts();
    let ending = faults.ending.filter(|(_, after)| *after <= marks.len());
    if let Some((_, after)) = ending {
        marks.truncate(after);
    }
    let mut group = Group::new(buffer, tempo.first_token, Telling::under(faults));
    for (index, mark) in marks.iter().enumerate() {
        if faults.garbage == Some(index) {
            group.flush(&mut steps);
            group.insert(&mut steps, Bytes::from_static(BROKEN_EVENT));
        }
        let wait = match mark.pace {
            Pace::Token => tempo.token_delay,
            Pace::AtOnce => Duration::ZERO,
        };
        let joins = match faults.burst {
            Some(burst) => group.events < burst,
            None => wait.is_zero(),
        };
        if !joins && group.events > 0 {
            group.flush(&mut steps);
        }
        group.add(mark, wait);
    }
    group.flush(&mut steps);
    match (ending, faults.after_done) {
        (Some((ending, after)), _) => end(&mut steps, ending, group.progress, || error(after)),
        (None, Some(bytes)) => {
            if !tempo.token_delay.is_zero() {
                steps.push(Step::Wait(tempo.token_delay));
            }
            group.insert(&mut steps, event_of(bytes));
        }
        (None, None) => {}
    }
    Script { opening, steps }
}

/// The course of an answer in one piece that took `tokens` to make.
pub(super) fn whole(
    body: Bytes,
    tokens: usize,
    tempo: Tempo,
    faults: &Faults,
    error: impl FnOnce() -> Bytes,
) -> Script {
    let generated = tokens;
    let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
    let work = tempo
        .first_token
        .saturating_add(tempo.token_delay.saturating_mul(tokens));
    let mut steps = Vec::new();
    let mut opening_wait = work;
    if faults.queue.is_some() {
        // Queued: the head is out before the work is done.
        if queue(&mut steps, tempo, faults, BLANK_LINE) {
            return Script {
                opening: opening(faults, Duration::ZERO),
                steps,
            };
        }
        steps.push(Step::Wait(work));
        opening_wait = Duration::ZERO;
    }
    let half = body.slice(..body.len() / 2);
    let broken = Progress {
        tokens: generated,
        ..Progress::default()
    };
    match faults.ending {
        None if faults.garbage.is_some() => steps.push(Step::Send(half, broken)),
        None => {
            let whole = Progress {
                usage: Telling::under(faults).is_true(),
                whole: true,
                ..broken
            };
            steps.push(Step::Send(body, whole));
        }
        Some((ending, after)) => {
            if after > 0 && ending != Ending::Error {
                steps.push(Step::Send(half, broken));
            }
            end(&mut steps, ending, broken, error);
        }
    }
    Script {
        opening: opening(faults, opening_wait),
        steps,
    }
}

fn opening(faults: &Faults, wait: Duration) -> Opening {
    if faults.stall {
        Opening::Never
    } else if faults.queue.is_some() {
        Opening::Queued
    } else {
        Opening::After(wait)
    }
}

/// Adds the keep-alives of a queue; true when the server gives up meanwhile, as
/// DeepSeek does after 10 minutes (rate_limit page).
fn queue(steps: &mut Vec<Step>, tempo: Tempo, faults: &Faults, sign: &'static [u8]) -> bool {
    let Some(queued) = faults.queue else {
        return false;
    };
    let every = tempo.keep_alive.max(Duration::from_millis(1));
    let mut left = queued.min(tempo.queue_limit);
    while !left.is_zero() {
        steps.push(Step::Send(Bytes::from_static(sign), Progress::default()));
        let wait = left.min(every);
        steps.push(Step::Wait(wait));
        left = left.saturating_sub(wait);
    }
    let gave_up = queued > tempo.queue_limit;
    steps.push(if gave_up { Step::Cut } else { Step::Begin });
    gave_up
}

/// An event of `bytes` in all, or of the fewest that one can have.
fn event_of(bytes: usize) -> Bytes {
    let (before, after) = (
        b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"",
        b"\"}}]}\n\n",
    );
    let filling = bytes.saturating_sub(before.len() + after.len());
    let mut event = Vec::with_capacity(before.len() + filling + after.len());
    event.extend_from_slice(before);
    event.resize(before.len() + filling, b'x');
    event.extend_from_slice(after);
    Bytes::from(event)
}

/// Ends an answer that has come as far as `progress`.
fn end(steps: &mut Vec<Step>, ending: Ending, progress: Progress, error: impl FnOnce() -> Bytes) {
    match ending {
        Ending::Stall => steps.push(Step::Hang),
        Ending::Cut => steps.extend([Step::Wait(FLUSH), Step::Cut]),
        Ending::Reset => steps.extend([Step::Wait(FLUSH), Step::Reset]),
        Ending::End => {}
        Ending::Error => steps.push(Step::Send(error(), progress)),
    }
}

/// Events that go out in one write.
struct Group {
    buffer: Bytes,
    end: usize,
    start: usize,
    events: usize,
    wait: Duration,
    telling: Telling,
    /// Of the whole answer, with this group.
    progress: Progress,
}

impl Group {
    fn new(buffer: Bytes, wait: Duration, telling: Telling) -> Self {
        Self {
            buffer,
            end: 0,
            start: 0,
            events: 0,
            wait,
            telling,
            progress: Progress::default(),
        }
    }

    fn add(&mut self, mark: &Mark, wait: Duration) {
        self.end = mark.end;
        self.progress = Progress {
            usage: mark.progress.usage && self.telling.is_true(),
            ..mark.progress
        };
        self.events += 1;
        self.wait = self.wait.saturating_add(wait);
    }

    fn flush(&mut self, steps: &mut Vec<Step>) {
        if !self.wait.is_zero() {
            steps.push(Step::Wait(self.wait));
            self.wait = Duration::ZERO;
        }
        if self.events > 0 {
            let part = self.buffer.slice(self.start..self.end);
            self.insert(steps, part);
            self.start = self.end;
            self.events = 0;
        }
    }

    /// Sends a part after which the answer is as far as it is.
    fn insert(&self, steps: &mut Vec<Step>, part: Bytes) {
        steps.push(Step::Send(part, self.progress));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn tempo(token_delay: Duration) -> Tempo {
        Tempo {
            first_token: 5 * MS,
            token_delay,
            keep_alive: 100 * MS,
            queue_limit: 1000 * MS,
        }
    }

    fn three_tokens() -> Transcript {
        let mut transcript = Transcript::default();
        transcript.event(Pace::AtOnce, &[b"L"]);
        for text in [b"a", b"b", b"c"] {
            transcript.event(Pace::Token, &[text]);
        }
        transcript.event(Pace::AtOnce, &[b"D"]);
        transcript
    }

    fn play(delay: Duration, order: &str) -> String {
        let faults = Faults::parse(order).unwrap();
        let script = streamed(three_tokens(), tempo(delay).under(&faults), &faults, |_| {
            "E".into()
        });
        shown(&script)
    }

    fn shown(script: &Script) -> String {
        let steps: Vec<String> = script
            .steps
            .iter()
            .map(|step| match step {
                Step::Wait(wait) => format!("{}", wait.as_millis()),
                Step::Begin => "BEGIN".into(),
                Step::Send(bytes, _) if bytes.as_ref() == COMMENT => ":".into(),
                Step::Send(bytes, _) if bytes.as_ref() == BROKEN_EVENT => "?".into(),
                Step::Send(bytes, _) => String::from_utf8_lossy(bytes).into_owned(),
                Step::Cut => "CUT".into(),
                Step::Reset => "RESET".into(),
                Step::Hang => "HANG".into(),
            })
            .collect();
        steps.join(" ")
    }

    #[test]
    fn tokens_are_paced_and_what_belongs_together_is_sent_together() {
        assert_eq!(play(2 * MS, ""), "5 La 2 b 2 cD");
    }

    #[test]
    fn without_a_token_delay_the_stream_is_one_write() {
        assert_eq!(play(Duration::ZERO, ""), "5 LabcD");
        assert_eq!(play(Duration::ZERO, "first_token=0"), "LabcD");
    }

    #[test]
    fn bursts_set_the_events_of_a_write_and_keep_the_tempo() {
        assert_eq!(play(Duration::ZERO, "burst=1"), "5 L a b c D");
        assert_eq!(play(2 * MS, "burst=3"), "7 Lab 2 cD");
    }

    #[test]
    fn endings_come_after_exactly_so_many_events() {
        assert_eq!(play(2 * MS, "cut_after=2"), "5 La 5 CUT");
        assert_eq!(play(2 * MS, "stall_after=0"), "5 HANG");
        assert_eq!(play(2 * MS, "end_after=3"), "5 La 2 b");
        assert_eq!(play(2 * MS, "error_after=1"), "5 L E");
        assert_eq!(play(2 * MS, "garbage"), "5 L ? a 2 b 2 cD");
        assert_eq!(play(2 * MS, "cut_after=6"), "5 La 2 b 2 cD");
        assert_eq!(play(2 * MS, "reset_after=1"), "5 L 5 RESET");
    }

    #[test]
    fn a_queue_can_end_in_every_break_before_any_content() {
        for (order, end) in [
            ("cut_after=0", "5 5 CUT"),
            ("reset_after=0", "5 5 RESET"),
            ("error_first", "5 E"),
            ("end_after=0", "5"),
            ("stall_after=0", "5 HANG"),
            ("cut_after=1", "5 L 5 CUT"),
        ] {
            let played = play(MS, &format!("queue=100ms,{order}"));
            assert_eq!(played, format!(": 100 BEGIN {end}"), "{order}");
        }
    }

    #[test]
    fn an_event_after_the_end_has_the_wanted_size() {
        let played = play(MS, "after_done=100");
        let (answer, event) = played.split_once(" 1 data").unwrap();
        assert_eq!(answer, "5 La 1 b 1 cD");
        assert_eq!(event.len() + "data".len(), 100);
    }

    #[test]
    fn a_queue_sends_keep_alives_and_gives_up_at_its_limit() {
        assert_eq!(
            play(MS, "queue=250ms"),
            ": 100 : 100 : 50 BEGIN 5 La 1 b 1 cD"
        );
        assert!(play(MS, "queue=2s").ends_with(": 100 CUT"));
    }

    #[test]
    fn an_answer_in_one_piece_holds_its_head_until_it_is_made() {
        let script = whole(
            "body".into(),
            10,
            tempo(2 * MS),
            &Faults::default(),
            Bytes::new,
        );
        assert_eq!(script.opening, Opening::After(25 * MS));
        assert_eq!(shown(&script), "body");
    }

    #[test]
    fn a_queued_answer_in_one_piece_sends_blank_lines_under_an_early_head() {
        let faults = Faults::parse("queue=100ms").unwrap();
        let script = whole("body".into(), 10, tempo(2 * MS), &faults, Bytes::new);
        assert_eq!(script.opening, Opening::Queued);
        assert_eq!(shown(&script), "\n 100 BEGIN 25 body");
    }

    #[test]
    fn a_stall_never_opens() {
        let faults = Faults::parse("stall").unwrap();
        assert_eq!(
            streamed(three_tokens(), tempo(MS), &faults, |_| Bytes::new()).opening,
            Opening::Never
        );
    }
}
