//! Measures what a call is billed for: all that was generated until it ended,
//! whether or not its caller learnt of it. Pure; the time is told.

use std::time::Duration;

use tokio::time::Instant;

use super::usage::Usage;

/// How far an answer has come once some part of it is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Tokens of the answer that are out.
    pub tokens: usize,
    /// Whether the true usage is out.
    pub usage: bool,
    /// Whether this was the last part.
    pub whole: bool,
}

/// How time makes the tokens of an answer that is sent in one piece.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub first_token: Duration,
    pub token_delay: Duration,
}

impl Pace {
    fn generated(&self, elapsed: Duration) -> usize {
        let Some(since_first) = elapsed.checked_sub(self.first_token) else {
            return 0;
        };
        if self.token_delay.is_zero() {
            return usize::MAX;
        }
        let more = since_first.as_nanos() / self.token_delay.as_nanos().max(1);
        usize::try_from(more)
            .unwrap_or(usize::MAX)
            .saturating_add(1)
    }
}

/// What one call came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bill {
    pub usage: Usage,
    /// Whether the answer went out to its end.
    pub whole: bool,
    /// Whether its true usage went out.
    pub usage_sent: bool,
}

/// Follows the work on one answer.
#[derive(Debug)]
pub(super) struct Meter {
    /// Of the whole answer.
    usage: Usage,
    pace: Option<Pace>,
    begun: Option<Instant>,
    progress: Progress,
}

impl Meter {
    /// Of a stream: a token is generated when it is sent.
    pub(super) fn streamed(usage: Usage) -> Self {
        Self {
            usage,
            pace: None,
            begun: None,
            progress: Progress::default(),
        }
    }

    /// Of an answer in one piece, which is generated before any of it is sent.
    pub(super) fn in_one_piece(usage: Usage, pace: Pace) -> Self {
        Self {
            pace: Some(pace),
            ..Self::streamed(usage)
        }
    }

    /// The queue is over: from here on the prompt is billed.
    pub(super) fn begin(&mut self, now: Instant) {
        self.begun.get_or_insert(now);
    }

    pub(super) fn sent(&mut self, progress: Progress) {
        self.progress = progress;
    }

    /// The bill of a call that ends now; `None` when no work was begun.
    pub(super) fn bill(&self, now: Instant) -> Option<Bill> {
        let begun = self.begun?;
        let by_time = self.pace.map_or(0, |pace| {
            pace.generated(now.saturating_duration_since(begun))
        });
        Some(Bill {
            usage: self.usage.after(by_time.max(self.progress.tokens)),
            whole: self.progress.whole,
            usage_sent: self.progress.usage,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const USAGE: Usage = Usage {
        prompt: 10,
        hit: 4,
        completion: 7,
        reasoning: Some(3),
    };

    fn completion(meter: &Meter, now: Instant) -> Option<usize> {
        meter.bill(now).map(|bill| bill.usage.completion)
    }

    #[test]
    fn what_was_never_begun_has_no_bill() {
        let meter = Meter::streamed(USAGE);
        assert_eq!(meter.bill(Instant::now()), None);
    }

    #[test]
    fn a_stream_is_billed_for_what_was_sent() {
        let now = Instant::now();
        let mut meter = Meter::streamed(USAGE);
        meter.begin(now);
        assert_eq!(completion(&meter, now + 1000 * MS), Some(0));
        meter.sent(Progress {
            tokens: 5,
            ..Progress::default()
        });
        let bill = meter.bill(now).unwrap();
        assert_eq!(bill.usage, USAGE.after(5));
        assert!(!bill.whole && !bill.usage_sent);
    }

    #[test]
    fn an_answer_in_one_piece_is_generated_with_time() {
        let begun = Instant::now();
        let pace = Pace {
            first_token: 10 * MS,
            token_delay: 2 * MS,
        };
        let mut meter = Meter::in_one_piece(USAGE, pace);
        meter.begin(begun);
        for (elapsed, tokens) in [(9, 0), (10, 1), (13, 2), (24, 7), (900, 7)] {
            assert_eq!(completion(&meter, begun + elapsed * MS), Some(tokens));
        }
        let at_once = Pace {
            first_token: 10 * MS,
            token_delay: Duration::ZERO,
        };
        let mut meter = Meter::in_one_piece(USAGE, at_once);
        meter.begin(begun);
        assert_eq!(completion(&meter, begun + 9 * MS), Some(0));
        assert_eq!(completion(&meter, begun + 10 * MS), Some(7));
    }
}
