//! How many requests at one time an account takes of one model, learned from what it answers.
//!
//! The configured ceiling is where learning begins and what it never passes. A 429, or first
//! content that has become slow while the account is loaded, takes a share off what was in flight;
//! time under load without either gives places back one by one. What was configured, and what is in
//! flight, come in as arguments; nothing here knows requests or holds places.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::settings::Governor as Rules;

/// Nothing is learned: the configured ceiling holds, if there is one.
const UNLEARNED: u32 = u32::MAX;
/// First contents that must have been seen before any is called slow.
const MIN_SAMPLES: u32 = 64;
/// First contents of requests sent since the last decrease before there may be another for
/// slowness.
const MIN_FRESH: u32 = 16;
/// One sample's share in what is slow to change, and in what follows. In logarithms of time, so
/// that one long prompt among short ones does not look like an account in trouble.
const SLOW_SHARE: f64 = 1.0 / 256.0;
const FAST_SHARE: f64 = 1.0 / 16.0;
/// In flight from here on, an account without a ceiling counts as loaded.
const LOADED: u32 = 8;
/// Time under load that one look may count; more has passed only if nobody looked.
const LONGEST_LOOK: Duration = Duration::from_secs(1);
/// Without a configured ceiling, the learned one is given up at this many times of what was in
/// flight when it was learned.
const OUTGROWN: u32 = 2;

/// What an account's model was given, and how much of it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// `None` for no ceiling.
    pub configured: Option<u32>,
    /// The request that is spoken of included.
    pub in_flight: u32,
}

/// Why a ceiling came down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A 429.
    RateLimited,
    /// Slow first content.
    Slow,
}

impl Cause {
    /// As a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limited",
            Self::Slow => "slow",
        }
    }
}

/// The learned ceiling of one account's model.
#[derive(Debug)]
pub struct Governor {
    /// At least 1, or [`UNLEARNED`].
    learned: AtomicU32,
    /// Somebody found the account full since the last look.
    pressed: AtomicBool,
    rate_limited: AtomicU64,
    slow: AtomicU64,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// Requests sent until then have had their say.
    decreased: Option<Instant>,
    /// In flight at the last decrease.
    full_at: u32,
    /// When it was last looked at, and the time under load since the last place was given back.
    looked: Option<Instant>,
    earned: Duration,
    pace: Pace,
}

/// Times to first content, as natural logarithms of milliseconds.
#[derive(Debug, Default)]
struct Pace {
    usual: f64,
    recent: f64,
    samples: u32,
    /// Samples since the last decrease.
    fresh: u32,
}

impl Default for Governor {
    fn default() -> Self {
        Self {
            learned: AtomicU32::new(UNLEARNED),
            pressed: AtomicBool::new(false),
            rate_limited: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            memory: Mutex::default(),
        }
    }
}

impl Governor {
    /// The learned ceiling, at least 1; `None` while nothing is learned. One atomic load.
    pub fn learned(&self) -> Option<u32> {
        let learned = self.learned.load(Ordering::Acquire);
        (learned != UNLEARNED).then_some(learned)
    }

    /// How often the ceiling came down for this cause.
    pub fn decreases(&self, cause: Cause) -> u64 {
        self.count(cause).load(Ordering::Relaxed)
    }

    /// Somebody wanted a place and found none.
    pub fn press(&self) {
        self.pressed.store(true, Ordering::Relaxed);
    }

    /// Nothing is learned any more: the operator has switched learning off.
    pub fn forget(&self) {
        if self.learned().is_some() {
            *self.memory.lock() = Memory::default();
            self.learned.store(UNLEARNED, Ordering::Release);
        }
    }

    /// A request that was sent at `sent` was answered 429. True if the ceiling came down.
    pub fn refused(&self, rules: &Rules, load: Load, sent: Instant, now: Instant) -> bool {
        let mut memory = self.memory.lock();
        if memory.has_spoken(sent) {
            return false;
        }
        self.decrease(&mut memory, rules, load, now, Cause::RateLimited)
    }

    /// A request that was sent at `sent` saw its first content after `took`. True if the ceiling
    /// came down. A sample that meets another one is left out.
    pub fn first_content(
        &self,
        rules: &Rules,
        load: Load,
        took: Duration,
        sent: Instant,
        now: Instant,
    ) -> bool {
        let Some(mut memory) = self.memory.try_lock() else {
            return false;
        };
        if memory.has_spoken(sent) {
            return false;
        }
        memory.pace.see(took);
        let ceiling = self.in_effect(load.configured);
        let loaded = match ceiling {
            UNLEARNED => load.in_flight >= LOADED,
            ceiling => load.in_flight >= ceiling.div_ceil(2),
        };
        loaded
            && memory.pace.is_slow(rules.slow_factor)
            && self.decrease(&mut memory, rules, load, now, Cause::Slow)
    }

    /// Gives places back for the time since the last look, if the ceiling was in use: one for each
    /// [`Rules::recovery`]. To be called several times a second.
    pub fn recover(&self, rules: &Rules, load: Load, now: Instant) {
        let Some(learned) = self.learned() else {
            return;
        };
        let mut memory = self.memory.lock();
        // Half is enough: whoever has others beside it is never filled up, for it is the dearer the
        // fewer places it has left.
        let loaded = load.in_flight >= learned.div_ceil(2);
        let used = self.pressed.swap(false, Ordering::Relaxed) || loaded;
        let looked = memory.looked.replace(now).unwrap_or(now);
        if !used {
            return;
        }
        memory.earned += now.saturating_duration_since(looked).min(LONGEST_LOOK);
        let step = rules.recovery.max(Duration::from_millis(1));
        let mut grown = learned;
        while memory.earned >= step {
            memory.earned -= step;
            grown = grown.saturating_add(1);
        }
        let top = load
            .configured
            .unwrap_or_else(|| memory.full_at.saturating_mul(OUTGROWN));
        let grown = if grown >= top { UNLEARNED } else { grown };
        self.learned.store(grown, Ordering::Release);
    }

    fn in_effect(&self, configured: Option<u32>) -> u32 {
        let learned = self.learned.load(Ordering::Acquire);
        learned.min(configured.unwrap_or(UNLEARNED))
    }

    fn count(&self, cause: Cause) -> &AtomicU64 {
        match cause {
            Cause::RateLimited => &self.rate_limited,
            Cause::Slow => &self.slow,
        }
    }

    /// From what was in flight or from the ceiling, whichever is less: a ceiling far above the load
    /// would need many 429 to come down to where it matters.
    fn decrease(
        &self,
        memory: &mut Memory,
        rules: &Rules,
        load: Load,
        now: Instant,
        cause: Cause,
    ) -> bool {
        memory.decreased = Some(now);
        memory.looked = Some(now);
        memory.earned = Duration::ZERO;
        memory.pace.begin_anew();
        let before = self.in_effect(load.configured);
        let from = before.min(load.in_flight.max(1));
        memory.full_at = from;
        let off = u64::from(from) * u64::from(rules.decrease_percent.min(90));
        let off = u32::try_from(off.div_ceil(100)).unwrap_or(u32::MAX);
        let after = from.saturating_sub(off).max(rules.floor).max(1);
        if after >= before {
            return false;
        }
        self.learned.store(after, Ordering::Release);
        self.count(cause).fetch_add(1, Ordering::Relaxed);
        true
    }
}

impl Memory {
    /// A request that was on its way at the last decrease met the old ceiling.
    fn has_spoken(&self, sent: Instant) -> bool {
        self.decreased.is_some_and(|decreased| sent <= decreased)
    }
}

impl Pace {
    fn see(&mut self, took: Duration) {
        let sample = (took.as_secs_f64() * 1_000.0).max(1.0).ln();
        self.samples = self.samples.saturating_add(1);
        self.fresh = self.fresh.saturating_add(1);
        // At first an average, so that the first sample does not weigh for ever.
        let share = |least: f64, count: u32| (1.0 / f64::from(count)).max(least);
        self.usual += (sample - self.usual) * share(SLOW_SHARE, self.samples);
        self.recent += (sample - self.recent) * share(FAST_SHARE, self.samples);
    }

    fn is_slow(&self, factor: u32) -> bool {
        self.samples >= MIN_SAMPLES
            && self.fresh >= MIN_FRESH
            && self.recent > self.usual + f64::from(factor).ln()
    }

    /// What was slow was slow under the old ceiling.
    fn begin_anew(&mut self) {
        self.recent = self.usual;
        self.fresh = 0;
    }
}

#[cfg(test)]
mod tests;
