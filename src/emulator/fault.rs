//! Reads the little language in which a test orders a fault, and says what one
//! order means. It knows neither requests nor answers: who is struck is decided
//! in `desk`, what the client then sees in `script`.

use std::time::Duration;

use percent_encoding::percent_decode_str;
use thiserror::Error;

use super::usage::Nonsense;

/// Longest order that is read; more is refused, so that a prompt cannot be one.
const MAX_ORDER_BYTES: usize = 4096;
/// No emulated wait is longer: a forgotten emulator must not hold sockets for ever.
const MAX_WAIT: Duration = Duration::from_secs(3600);
/// Longest answer on command, in tokens (some 10 MiB of stream).
pub(super) const MAX_TOKENS: usize = 32_768;
/// Longest single event on command.
const MAX_EVENT_BYTES: usize = 16 << 20;

/// Why an order of faults was not understood. The text goes to the client as it is.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum FaultError {
    #[error("the order of faults is longer than {MAX_ORDER_BYTES} bytes")]
    TooLong,
    #[error("unknown fault `{0}`")]
    Unknown(String),
    #[error("fault `{0}` needs {1}")]
    Value(String, &'static str),
}

/// Where a stream carries its usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UsagePlace {
    /// In the chunk that carries the finish reason.
    Attached,
    /// In a chunk of its own with no choices, after the finish chunk.
    Trailing,
    /// Nowhere.
    Nowhere,
}

/// What ends an answer before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Silence on an open connection.
    Stall,
    /// The connection breaks without the final chunk.
    Cut,
    /// The same, by a reset instead of a close.
    Reset,
    /// A clean end without `data: [DONE]`.
    End,
    /// An error event, then a clean end.
    Error,
}

/// What comes in place of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instead {
    /// An error page in HTML.
    Page,
    /// A head without a body.
    Nothing,
    /// Bytes that are no HTTP.
    Noise,
    /// Lines of a head without end; the time between two, or as fast as they are read.
    EndlessHead(Duration),
}

/// How the text of an answer is other than it would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wording {
    /// Neither text nor reasoning.
    None,
    /// One token more, of so many bytes.
    Long(usize),
}

/// One order of faults; every field that is absent leaves the emulator as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Faults {
    pub status: Option<u16>,
    pub times: Option<u32>,
    /// Silence before the response head.
    pub stall: bool,
    /// The connection breaks before the response head.
    pub reset: bool,
    /// Silence before everything else.
    pub head: Option<Duration>,
    pub instead: Option<Instead>,
    /// The body is compressed though nobody asked for it.
    pub gzip: bool,
    /// How many bytes more than are sent, or fewer, the head announces.
    pub length: Option<i64>,
    pub wording: Option<Wording>,
    /// Size of an event after the last one.
    pub after_done: Option<usize>,
    /// The ending and the number of events that precede it.
    pub ending: Option<(Ending, usize)>,
    /// After how many events one with broken JSON comes.
    pub garbage: Option<usize>,
    pub first_token: Option<Duration>,
    pub token_delay: Option<Duration>,
    pub tokens: Option<usize>,
    pub queue: Option<Duration>,
    pub finish: Option<String>,
    pub usage: Option<UsagePlace>,
    pub bad_usage: Option<Nonsense>,
    pub retry_after: Option<u64>,
    pub body: Option<String>,
    pub burst: Option<usize>,
    /// Also for models, balance and files, when ordered for an account or for all.
    pub everywhere: bool,
}

impl Faults {
    /// Reads `status=503,times=2`. Blank words are skipped, so `""` orders nothing.
    pub(super) fn parse(order: &str) -> Result<Self, FaultError> {
        if order.len() > MAX_ORDER_BYTES {
            return Err(FaultError::TooLong);
        }
        let mut faults = Self::default();
        for word in order.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value.trim())),
                None => (word, None),
            };
            faults.read(name, value)?;
        }
        Ok(faults)
    }

    fn read(&mut self, name: &str, value: Option<&str>) -> Result<(), FaultError> {
        let word = Word { name, value };
        match name {
            "status" => self.status = Some(word.status()?),
            "times" => self.times = Some(word.number()?),
            "stall" => self.stall = true,
            "reset" => self.reset = true,
            "head" => self.head = Some(word.duration()?),
            "html" => self.instead = Some(Instead::Page),
            "empty" => self.instead = Some(Instead::Nothing),
            "noise" => self.instead = Some(Instead::Noise),
            "endless_head" => {
                let every = value.map_or(Ok(Duration::ZERO), |_| word.duration())?;
                self.instead = Some(Instead::EndlessHead(every));
            }
            "gzip" => self.gzip = true,
            "length" => self.length = Some(word.difference()?),
            "no_content" => self.wording = Some(Wording::None),
            "event_bytes" => self.wording = Some(Wording::Long(word.bytes()?)),
            "after_done" => self.after_done = Some(word.bytes()?),
            "reset_after" => self.ending = Some((Ending::Reset, word.number()?)),
            "error_first" => self.ending = Some((Ending::Error, 0)),
            "everywhere" => self.everywhere = true,
            // A mark that makes two orders count their `times` apart.
            "id" => {}
            "stall_after" => self.ending = Some((Ending::Stall, word.number()?)),
            "cut_after" => self.ending = Some((Ending::Cut, word.number()?)),
            "end_after" => self.ending = Some((Ending::End, word.number()?)),
            "error_after" => self.ending = Some((Ending::Error, word.number()?)),
            "garbage" if value.is_none() => self.garbage = Some(1),
            "garbage" => self.garbage = Some(word.number()?),
            "first_token" => self.first_token = Some(word.duration()?),
            "token_delay" => self.token_delay = Some(word.duration()?),
            "tokens" => self.tokens = Some(word.number::<usize>()?.min(MAX_TOKENS)),
            "queue" => self.queue = Some(word.duration()?),
            "finish" => self.finish = Some(word.finish()?),
            "usage" => self.usage = Some(word.usage()?),
            "bad_usage" => self.bad_usage = Some(word.nonsense()?),
            "retry_after" => self.retry_after = Some(word.number()?),
            "body" => self.body = Some(word.text()?),
            "burst" => self.burst = Some(word.number::<usize>()?.max(1)),
            _ => return Err(FaultError::Unknown(name.to_owned())),
        }
        Ok(())
    }

    /// These faults, completed by a more general order where they say nothing.
    pub(super) fn or(self, general: &Self) -> Self {
        Self {
            status: self.status.or(general.status),
            times: self.times,
            stall: self.stall || general.stall,
            reset: self.reset || general.reset,
            head: self.head.or(general.head),
            instead: self.instead.or(general.instead),
            gzip: self.gzip || general.gzip,
            length: self.length.or(general.length),
            wording: self.wording.or(general.wording),
            after_done: self.after_done.or(general.after_done),
            ending: self.ending.or(general.ending),
            garbage: self.garbage.or(general.garbage),
            first_token: self.first_token.or(general.first_token),
            token_delay: self.token_delay.or(general.token_delay),
            tokens: self.tokens.or(general.tokens),
            queue: self.queue.or(general.queue),
            finish: self.finish.or_else(|| general.finish.clone()),
            usage: self.usage.or(general.usage),
            bad_usage: self.bad_usage.or(general.bad_usage),
            retry_after: self.retry_after.or(general.retry_after),
            body: self.body.or_else(|| general.body.clone()),
            burst: self.burst.or(general.burst),
            everywhere: self.everywhere || general.everywhere,
        }
    }

    /// Whether what comes has no status at all.
    pub(super) fn wild(&self) -> bool {
        matches!(self.instead, Some(Instead::Noise | Instead::EndlessHead(_)))
    }

    /// Whether the client gets something else than a whole answer.
    pub(super) fn spoil(&self) -> bool {
        let bad_finish = matches!(
            self.finish.as_deref(),
            Some("insufficient_system_resource" | "aborted")
        );
        self.status.is_some()
            || self.stall
            || self.reset
            || self.instead.is_some()
            || self.gzip
            || self.length.is_some()
            || self.wording == Some(Wording::None)
            || self.ending.is_some()
            || self.garbage.is_some()
            || bad_finish
    }
}

struct Word<'a> {
    name: &'a str,
    value: Option<&'a str>,
}

impl Word<'_> {
    fn wrong(&self, wanted: &'static str) -> FaultError {
        FaultError::Value(self.name.to_owned(), wanted)
    }

    fn number<N: std::str::FromStr>(&self) -> Result<N, FaultError> {
        let digits = self.value.filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
        digits
            .and_then(|v| v.parse().ok())
            .ok_or_else(|| self.wrong("a whole number"))
    }

    fn status(&self) -> Result<u16, FaultError> {
        self.number()
            .ok()
            .filter(|status| (100..=599).contains(status))
            .ok_or_else(|| self.wrong("a status from 100 to 599"))
    }

    fn bytes(&self) -> Result<usize, FaultError> {
        self.number::<usize>().map(|size| size.min(MAX_EVENT_BYTES))
    }

    /// `+5`, `5` or `-5`.
    fn difference(&self) -> Result<i64, FaultError> {
        self.value
            .and_then(|v| v.parse::<i32>().ok())
            .filter(|bytes| *bytes != 0)
            .map(i64::from)
            .ok_or_else(|| self.wrong("a number of bytes more or fewer, like +5 or -5"))
    }

    fn duration(&self) -> Result<Duration, FaultError> {
        self.value
            .and_then(duration)
            .ok_or_else(|| self.wrong("a duration up to 1h, like 250ms, 2s or 1m"))
    }

    fn finish(&self) -> Result<String, FaultError> {
        self.value
            .filter(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
            .map(str::to_owned)
            .ok_or_else(|| self.wrong("a finish reason"))
    }

    fn usage(&self) -> Result<UsagePlace, FaultError> {
        match self.value {
            Some("attached") => Ok(UsagePlace::Attached),
            Some("trailing") => Ok(UsagePlace::Trailing),
            Some("none") => Ok(UsagePlace::Nowhere),
            _ => Err(self.wrong("attached, trailing or none")),
        }
    }

    fn nonsense(&self) -> Result<Nonsense, FaultError> {
        match self.value {
            Some("negative") => Ok(Nonsense::Negative),
            Some("huge") => Ok(Nonsense::Huge),
            Some("text") => Ok(Nonsense::Text),
            Some("inverted") => Ok(Nonsense::Inverted),
            _ => Err(self.wrong("negative, huge, text or inverted")),
        }
    }

    fn text(&self) -> Result<String, FaultError> {
        let value = self.value.ok_or_else(|| self.wrong("a text"))?;
        Ok(percent_decode_str(value).decode_utf8_lossy().into_owned())
    }
}

/// `2s`, `150ms`, `0.5s`, `80us`, `1m`, `1h` or `0`; nothing above [`MAX_WAIT`].
fn duration(text: &str) -> Option<Duration> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let number: f64 = number.parse().ok()?;
    let unit = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "" if number == 0.0 => 1.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * unit)
        .ok()
        .filter(|wait| *wait <= MAX_WAIT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_order_names_several_faults_at_once() {
        let faults =
            Faults::parse("status=503, times=2,retry_after=7,body=a%2Cb,id=x,everywhere").unwrap();
        assert_eq!(faults.status, Some(503));
        assert_eq!(faults.times, Some(2));
        assert_eq!(faults.retry_after, Some(7));
        assert_eq!(faults.body.as_deref(), Some("a,b"));
        assert!(faults.everywhere && faults.spoil());
    }

    #[test]
    fn durations_have_units_and_a_ceiling() {
        let of = |text: &str| Faults::parse(&format!("queue={text}")).map(|f| f.queue);
        assert_eq!(of("250ms").unwrap(), Some(Duration::from_millis(250)));
        assert_eq!(of("0.5s").unwrap(), Some(Duration::from_millis(500)));
        assert_eq!(of("0").unwrap(), Some(Duration::ZERO));
        assert!(
            of("2").is_err() && of("2h").is_err() && of("-1s").is_err() && of("1.2.3s").is_err()
        );
    }

    #[test]
    fn what_is_unknown_or_malformed_is_named() {
        assert_eq!(
            Faults::parse("explode").unwrap_err().to_string(),
            "unknown fault `explode`"
        );
        assert!(Faults::parse("status=99").is_err());
        assert!(Faults::parse("cut_after").is_err());
        assert!(Faults::parse("usage=maybe").is_err());
        assert!(Faults::parse("bad_usage").is_err());
        assert_eq!(Faults::parse(&"x".repeat(5000)), Err(FaultError::TooLong));
    }

    #[test]
    fn lengths_are_wrong_in_both_directions_and_endless_heads_have_a_pace() {
        let of = |order: &str| Faults::parse(order);
        assert_eq!(of("length=+5").unwrap().length, Some(5));
        assert_eq!(of("length=-5").unwrap().length, Some(-5));
        assert!(of("length=0").is_err() && of("length").is_err());
        let pace = |order: &str| of(order).unwrap().instead;
        let every = Duration::from_millis(10);
        assert_eq!(pace("endless_head=10ms"), Some(Instead::EndlessHead(every)));
        assert_eq!(
            pace("endless_head"),
            Some(Instead::EndlessHead(Duration::ZERO))
        );
        assert!(of("endless_head=slowly").is_err());
        let huge = of("event_bytes=999999999999").unwrap().wording;
        assert_eq!(huge, Some(Wording::Long(MAX_EVENT_BYTES)));
    }

    #[test]
    fn an_answer_with_something_behind_it_is_still_whole() {
        assert!(!Faults::parse("after_done=9,event_bytes=9").unwrap().spoil());
        for order in ["html", "empty", "noise", "gzip", "length=+1", "no_content"] {
            assert!(Faults::parse(order).unwrap().spoil(), "{order}");
        }
    }

    #[test]
    fn the_more_special_order_wins_field_by_field() {
        let special = Faults::parse("tokens=3").unwrap();
        let general = Faults::parse("tokens=9,status=500").unwrap();
        let both = special.or(&general);
        assert_eq!((both.tokens, both.status), (Some(3), Some(500)));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,200}") {
            let _ = Faults::parse(&text);
        }

        #[test]
        fn no_duration_passes_the_ceiling(number in "[0-9]{1,24}(\\.[0-9]{0,9})?", unit in "us|ms|s|m|h|") {
            if let Some(wait) = duration(&format!("{number}{unit}")) {
                prop_assert!(wait <= MAX_WAIT);
            }
        }
    }
}
