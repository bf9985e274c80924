//! The count behind one limit: what was used, what is held, and whether more fits. Pure.
//!
//! *Held* is what requests under way have reserved. It takes room and does not fade. When a request
//! is settled, what it held is let go and what it really took counts as used; so a reservation is
//! never refunded out of a bucket that has refilled meanwhile, and nothing passes twice.
//!
//! Windows up to an hour are token buckets in the form of the generic cell rate algorithm (ITU-T
//! I.371): one number, the time at which the bucket would be empty of use. Days and months count
//! from their first second. Concurrency is what is held.

use std::time::Duration;

use crate::admission::clock::{Now, Stretch};
use crate::config::settings::{Limit, LimitKey, Window};

/// The state of one [`LimitKey`] at one subject.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counter {
    bucket: Bucket,
    /// The window in use and one more: a clock that steps over a window's edge and back finds the
    /// use again that it left.
    spans: [Span; 2],
    held: u64,
}

/// What of a counter outlives the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    pub bucket: Level,
    pub spans: [Span; 2],
}

/// A token bucket in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bucket {
    /// When the last use has faded, in nanoseconds of [`Now::steady`].
    empty_at: u64,
    /// The limit by which that was computed; a changed one measures the same use anew.
    amount: u64,
}

/// A token bucket as it was at some moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Level {
    /// Nanoseconds until it is empty.
    pub nanos: u64,
    /// The limit by which that was computed.
    pub amount: u64,
}

/// One window of the calendar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// Unix seconds.
    pub start: i64,
    pub used: u64,
    /// Granted by an operator on top of the limit, for this window alone.
    pub extra: u64,
}

/// How a limit stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// What may be used in all, grants included.
    pub limit: u64,
    /// What may be used at once: less than `limit` for a bucket with a smaller burst.
    pub room: u64,
    pub used: u64,
    pub held: u64,
    /// Until nothing of the use counts any more.
    pub reset: Duration,
}

impl Standing {
    pub fn remaining(&self) -> u64 {
        self.room
            .saturating_sub(self.used)
            .saturating_sub(self.held)
    }
}

/// Why more does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// It may after this time, if nobody else comes first.
    For(Duration),
    /// It is more than the limit ever has room for.
    Always,
}

/// What is held gives no sign of when it will be let go.
const HELD_WAIT: Duration = Duration::from_secs(1);

impl Counter {
    /// Adds what another process, or another life of this one, wrote down `passed` nanoseconds ago.
    /// Levels are kept, not times: clocks of two processes have nothing to do with each other. `now`
    /// is [`Now::steady`].
    pub fn add(&mut self, kept: Kept, key: &LimitKey, passed: u64, now: u64) {
        for span in kept.spans.into_iter().rev() {
            if span != Span::default() {
                let own = self.span(span.start);
                own.used = own.used.saturating_add(span.used);
                own.extra = own.extra.saturating_add(span.extra);
            }
        }
        let Some(period) = key.window.period().filter(|_| kept.bucket.amount > 0) else {
            return;
        };
        if self.bucket.amount == 0 {
            self.bucket.amount = kept.bucket.amount;
        }
        let level = u128::from(kept.bucket.nanos.saturating_sub(passed));
        let level = level * u128::from(kept.bucket.amount) / u128::from(self.bucket.amount);
        let level = u64::try_from(level).unwrap_or(u64::MAX);
        let own = self.bucket.empty_at.saturating_sub(now);
        let both = own.saturating_add(level).min(highest(period));
        self.bucket.empty_at = now.saturating_add(both);
    }

    /// `now` is [`Now::steady`].
    pub fn keep(&self, now: u64) -> Kept {
        Kept {
            bucket: Level {
                nanos: self.bucket.empty_at.saturating_sub(now),
                amount: self.bucket.amount,
            },
            spans: self.spans,
        }
    }

    pub fn held(&self) -> u64 {
        self.held
    }

    /// Does `demand` fit beside what is used and held?
    ///
    /// # Errors
    /// How long it does not.
    pub fn fits(&mut self, limit: &Limit, demand: u64, now: &Now) -> Result<(), Full> {
        let wanted = self.held.saturating_add(demand);
        if let Some(period) = limit.key.window.period() {
            let rate = Rate::new(limit, period);
            if demand > limit.burst {
                return Err(Full::Always);
            }
            let level = self.level(&rate, now.steady);
            let beyond = u128::from(level) + rate.cost(wanted);
            return match beyond.saturating_sub(rate.cost(limit.burst)) {
                0 => Ok(()),
                over if over > u128::from(level) => Err(Full::For(duration(over).max(HELD_WAIT))),
                over => Err(Full::For(duration(over))),
            };
        }
        let Some(stretch) = stretch(limit.key.window, now) else {
            let fits = wanted <= limit.amount;
            return if fits {
                Ok(())
            } else {
                Err(Full::For(HELD_WAIT))
            };
        };
        let span = self.span(stretch.start);
        let allowed = limit.amount.saturating_add(span.extra);
        if demand > allowed {
            return Err(Full::Always);
        }
        if span.used.saturating_add(wanted) <= allowed {
            return Ok(());
        }
        let only_held = span.used.saturating_add(demand) <= allowed;
        let until_next = until(stretch, now);
        Err(Full::For(if only_held {
            HELD_WAIT.min(until_next)
        } else {
            until_next
        }))
    }

    /// Takes room for `amount`, whether it fits or not.
    pub fn hold(&mut self, amount: u64) {
        self.held = self.held.saturating_add(amount);
    }

    /// Gives room back.
    pub fn release(&mut self, amount: u64) {
        self.held = self.held.saturating_sub(amount);
    }

    /// Counts `amount` as used.
    pub fn take(&mut self, limit: &Limit, amount: u64, now: &Now) {
        if let Some(period) = limit.key.window.period() {
            let rate = Rate::new(limit, period);
            let level = u128::from(self.level(&rate, now.steady)) + rate.cost(amount);
            let level = u64::try_from(level)
                .unwrap_or(u64::MAX)
                .min(highest(period));
            self.bucket.empty_at = now.steady.saturating_add(level);
        } else if let Some(stretch) = stretch(limit.key.window, now) {
            let span = self.span(stretch.start);
            span.used = span.used.saturating_add(amount);
        }
    }

    pub fn standing(&mut self, limit: &Limit, now: &Now) -> Standing {
        let held = self.held;
        if let Some(period) = limit.key.window.period() {
            let rate = Rate::new(limit, period);
            let level = self.level(&rate, now.steady);
            return Standing {
                limit: limit.amount,
                room: limit.burst,
                used: rate.amount(level),
                held,
                reset: Duration::from_nanos(level),
            };
        }
        let Some(stretch) = stretch(limit.key.window, now) else {
            return Standing {
                limit: limit.amount,
                room: limit.amount,
                used: 0,
                held,
                reset: Duration::ZERO,
            };
        };
        let span = self.span(stretch.start);
        let allowed = limit.amount.saturating_add(span.extra);
        Standing {
            limit: allowed,
            room: allowed,
            used: span.used,
            held,
            reset: until(stretch, now),
        }
    }

    /// Forgets what was used; what is held stays.
    pub fn reset(&mut self, window: Window, now: &Now) {
        self.bucket.empty_at = 0;
        if let Some(stretch) = stretch(window, now) {
            self.span(stretch.start).used = 0;
        }
    }

    /// Adds to what the current window of the calendar allows; false for limits without one.
    pub fn grant(&mut self, window: Window, extra: u64, now: &Now) -> bool {
        let Some(stretch) = stretch(window, now) else {
            return false;
        };
        let span = self.span(stretch.start);
        span.extra = span.extra.saturating_add(extra);
        true
    }

    /// Nanoseconds until the bucket is empty, by the limit that holds now.
    fn level(&mut self, rate: &Rate, now: u64) -> u64 {
        let level = self.bucket.empty_at.saturating_sub(now);
        let before = self.bucket.amount;
        self.bucket.amount = rate.limit;
        if level == 0 || before == rate.limit || before == 0 {
            return level;
        }
        let scaled = (u128::from(level) * u128::from(before)).div_ceil(u128::from(rate.limit));
        let most = rate.period.saturating_mul(MOST_PERIODS);
        let scaled = u64::try_from(scaled).unwrap_or(u64::MAX).min(most);
        self.bucket.empty_at = now.saturating_add(scaled);
        scaled
    }

    fn span(&mut self, start: i64) -> &mut Span {
        let [current, other] = &mut self.spans;
        if current.start == start {
            return current;
        }
        if other.start != start {
            if start > current.start {
                *other = *current;
                *current = Span {
                    start,
                    ..Span::default()
                };
                return current;
            }
            *other = Span {
                start,
                ..Span::default()
            };
        }
        other
    }
}

/// What a bucket keeps in mind of use beyond its limit: an answer that was much longer than anybody
/// expected, or a limit that was lowered, stops a caller for so many periods at most.
const MOST_PERIODS: u64 = 2;

/// The highest level of a bucket, in nanoseconds.
fn highest(period: Duration) -> u64 {
    nanos(period).saturating_mul(MOST_PERIODS)
}

/// How fast use fades.
struct Rate {
    /// Nanoseconds.
    period: u64,
    /// Per period, at least 1.
    limit: u64,
}

impl Rate {
    fn new(limit: &Limit, period: Duration) -> Self {
        Self {
            period: nanos(period),
            limit: limit.amount.max(1),
        }
    }

    /// The nanoseconds in which `amount` fades, rounded up: never too short.
    fn cost(&self, amount: u64) -> u128 {
        (u128::from(amount) * u128::from(self.period)).div_ceil(u128::from(self.limit))
    }

    /// What is left of a use that fades in `level` nanoseconds.
    fn amount(&self, level: u64) -> u64 {
        let amount = (u128::from(level) * u128::from(self.limit)).div_ceil(u128::from(self.period));
        u64::try_from(amount).unwrap_or(u64::MAX)
    }
}

fn stretch(window: Window, now: &Now) -> Option<Stretch> {
    match window {
        Window::Day => Some(now.day),
        Window::Month => Some(now.month),
        Window::None | Window::Second | Window::Minute | Window::Hour => None,
    }
}

fn until(stretch: Stretch, now: &Now) -> Duration {
    let seconds = stretch.end.saturating_sub(now.wall);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn duration(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
