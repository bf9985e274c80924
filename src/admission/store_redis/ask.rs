//! Decides how limits and demands are put to Redis, and what its numbers mean. Plain data: no
//! connection, no clock.
//!
//! Lua counts in doubles, which are exact to 2⁵³. So amounts of buckets and demands of one request
//! end at [`MAX_AMOUNT`], levels and all other sums at [`LIMIT`]; what is larger counts as that.

use std::sync::Arc;
use std::time::Duration;

use crate::config::settings::{Limit, Quantity, Window};

/// The largest amount of a token bucket, and the largest demand of one reservation.
pub const MAX_AMOUNT: u64 = 1_000_000_000_000;
/// The largest sum, 2⁵²: amounts of calendar windows, what they have used, levels in nanoseconds (52
/// days).
pub const LIMIT: u64 = 1 << 52;

/// One limit as it is counted for one subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// Unique below its root: the subject and the limit's key, see [`Counter::of`].
    pub name: Arc<str>,
    pub rule: Rule,
    /// Evaluated and counted; never refuses.
    pub shadow: bool,
}

/// How a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Refills evenly, `amount` per `period` (at most a day).
    Bucket {
        period: Duration,
        /// 1 to [`MAX_AMOUNT`].
        amount: u64,
        /// At least 1; its cost ends at [`LIMIT`] nanoseconds.
        burst: u64,
    },
    /// Begins anew with each window of the calendar.
    Calendar {
        /// When the caller's window began, unix seconds.
        window: u64,
        /// 0 to [`LIMIT`].
        amount: u64,
    },
    /// Counts what is held, each reservation once.
    Concurrency { amount: u64 },
}

/// What a reservation takes of one counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub counter: Counter,
    /// At most [`MAX_AMOUNT`]; of a [`Rule::Concurrency`] always 1.
    pub demand: u64,
}

/// One reservation: all parts or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// What lives together on one node: `group/x` for tenants of a group, else `tenant/acme`.
    pub root: Arc<str>,
    pub parts: Vec<Part>,
}

/// How a counter stands, after what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Did the demand fit? With [`Counter::shadow`] a `false` did not refuse.
    pub fits: bool,
    /// Used in the window; of a bucket what has not leaked, rounded up.
    pub used: u64,
    /// Reserved by all hosts.
    pub held: u64,
    /// Granted by an operator beyond the amount, for this window.
    pub extra: u64,
    /// Of a calendar's window in use, unix seconds; another one than the caller's if its clock or
    /// another host's is wrong. 0 for the others.
    pub window: u64,
    /// Of a bucket: until it is empty if nothing is added.
    pub drains: Duration,
    /// Until the demand would fit.
    pub wait: Wait,
}

/// When a demand would fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Now.
    None,
    /// After this, if nobody else takes it.
    Leak(Duration),
    /// With the next window of the calendar.
    Window,
    /// When something that is held is released.
    Release,
    /// It is larger than the whole limit.
    Never,
}

/// The three kinds in the scripts' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Bucket,
    Calendar,
    Concurrency,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Bucket => "b",
            Self::Calendar => "c",
            Self::Concurrency => "n",
        }
    }
}

/// A counter's numbers as Redis has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Raw {
    pub fits: bool,
    pub held: u64,
    /// Level in nanoseconds, or use.
    pub a: u64,
    /// Time of the level, or the window.
    pub b: u64,
    /// What was granted, or the bucket's amount.
    pub c: u64,
}

impl Counter {
    /// The counter of `limit` for `subject` (`tenant/acme`, `group/x`). `window` is the start of the
    /// calendar's window, unix seconds; limits without one do not look at it.
    pub fn of(subject: &str, limit: &Limit, window: u64) -> Self {
        let rule = match (limit.key.quantity, limit.key.window) {
            (Quantity::Concurrent, _) | (_, Window::None) => Rule::Concurrency {
                amount: limit.amount,
            },
            (_, Window::Day | Window::Month) => Rule::Calendar {
                window,
                amount: limit.amount,
            },
            (_, short) => Rule::Bucket {
                period: short.period().unwrap_or(Duration::from_secs(1)),
                amount: limit.amount,
                burst: limit.burst,
            },
        };
        Self {
            name: format!("{subject}|{}", limit.key).into(),
            rule,
            shadow: limit.shadow,
        }
    }
}

impl Rule {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Bucket { .. } => Kind::Bucket,
            Self::Calendar { .. } => Kind::Calendar,
            Self::Concurrency { .. } => Kind::Concurrency,
        }
    }

    /// Within the bounds.
    pub(super) fn amount(self) -> u64 {
        match self {
            Self::Bucket { amount, .. } => amount.clamp(1, MAX_AMOUNT),
            Self::Calendar { amount, .. } | Self::Concurrency { amount } => amount.min(LIMIT),
        }
    }

    /// What `n` costs: nanoseconds of a bucket, rounded up; else itself. At most [`LIMIT`].
    pub(super) fn cost(self, n: u64) -> u64 {
        let Self::Bucket { .. } = self else {
            return n.min(LIMIT);
        };
        let ns = (u128::from(n) * u128::from(self.period())).div_ceil(u128::from(self.amount()));
        u64::try_from(ns).unwrap_or(LIMIT).min(LIMIT)
    }

    /// Nanoseconds of a bucket's period, at most a day; else 0.
    pub(super) fn period(self) -> u64 {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        match self {
            Self::Bucket { period, .. } => {
                u64::try_from(period.clamp(Duration::from_nanos(1), DAY).as_nanos())
                    .unwrap_or(u64::MAX)
            }
            _ => 0,
        }
    }

    /// The calendar's window, or a bucket's largest level.
    pub(super) fn bound(self) -> u64 {
        match self {
            Self::Bucket { burst, .. } => self.cost(burst.max(1)),
            Self::Calendar { window, .. } => window.min(LIMIT),
            Self::Concurrency { .. } => 0,
        }
    }

    /// Which nanoseconds or units are of the same worth: those of one calendar's window, or of one
    /// amount of a bucket.
    pub(super) fn window(self) -> u64 {
        match self {
            Self::Calendar { window, .. } => window.min(LIMIT),
            Self::Bucket { .. } => self.amount(),
            Self::Concurrency { .. } => 0,
        }
    }
}

impl Part {
    /// What is asked for, within the bounds.
    pub(super) fn demand(&self) -> u64 {
        match self.counter.rule {
            Rule::Concurrency { .. } => 1,
            _ => self.demand.min(MAX_AMOUNT),
        }
    }

    /// What Redis' numbers mean for it. `held` and `fits` are told, the rest follows.
    pub(super) fn standing(&self, raw: Raw, granted: bool) -> Standing {
        let rule = self.counter.rule;
        let (used, drains) = match rule {
            Rule::Bucket { .. } => (leaky(rule, raw.a), Duration::from_nanos(raw.a)),
            Rule::Calendar { .. } => (raw.a, Duration::ZERO),
            Rule::Concurrency { .. } => (0, Duration::ZERO),
        };
        let calendar = rule.kind() == Kind::Calendar;
        let wait = if raw.fits || granted {
            Wait::None
        } else {
            self.wait(raw)
        };
        Standing {
            fits: raw.fits,
            used,
            held: raw.held,
            extra: if calendar { raw.c } else { 0 },
            window: if calendar { raw.b } else { 0 },
            drains,
            wait,
        }
    }

    /// Of a demand that does not fit.
    fn wait(&self, raw: Raw) -> Wait {
        let (rule, demand) = (self.counter.rule, self.demand());
        match rule {
            Rule::Bucket { .. } => {
                if rule.cost(demand) > rule.bound() {
                    return Wait::Never;
                }
                let all = raw
                    .a
                    .saturating_add(rule.cost(raw.held.saturating_add(demand)));
                match all.saturating_sub(rule.bound()) {
                    // What is held does not leak: only its release helps.
                    over if over > raw.a => Wait::Release,
                    over => Wait::Leak(Duration::from_nanos(over)),
                }
            }
            Rule::Calendar { amount, .. } => {
                let allowed = amount.saturating_add(raw.c);
                if demand > allowed {
                    Wait::Never
                } else if raw.a.saturating_add(demand) <= allowed {
                    Wait::Release
                } else {
                    Wait::Window
                }
            }
            Rule::Concurrency { amount: 0 } => Wait::Never,
            Rule::Concurrency { .. } => Wait::Release,
        }
    }
}

/// How much a level of `ns` stands for, rounded up.
fn leaky(rule: Rule, ns: u64) -> u64 {
    let units = (u128::from(ns) * u128::from(rule.amount())).div_ceil(u128::from(rule.period()));
    u64::try_from(units).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
