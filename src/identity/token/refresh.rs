//! Decides when an issuer's published keys are fetched again. It must not know how: the fetcher
//! asks, and says how it went.
//!
//! Three things move the next fetch: the interval after a success, a growing pause after a
//! failure, and a token with an unknown key, which may mean that the issuer has a new one. The
//! last is in anybody's power, so it is bounded by a gap and cannot shorten a pause.

use std::time::{Duration, Instant};

/// Least time from the end of a fetch to one that an unknown key asks for.
pub const DEFAULT_MIN_GAP: Duration = Duration::from_secs(10);
/// Pause after the first failure, and shortest interval.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest interval. Keys that nobody looks at for longer are not refreshed but forgotten.
const MAX_INTERVAL: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// When to fetch one key set.
#[derive(Debug, Clone)]
pub struct Schedule {
    interval: Duration,
    min_gap: Duration,
    next: Instant,
    last: Option<Instant>,
    succeeded: Option<Instant>,
    failures: u32,
}

impl Schedule {
    /// The first fetch is due at once. `interval` is taken as 1 s at least and 7 days at most.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Schedule {
            interval: interval.clamp(FIRST_PAUSE, MAX_INTERVAL),
            min_gap: DEFAULT_MIN_GAP,
            next: now,
            last: None,
            succeeded: None,
            failures: 0,
        }
    }

    /// With another gap than [`DEFAULT_MIN_GAP`], 7 days at most.
    #[must_use]
    pub fn with_min_gap(mut self, min_gap: Duration) -> Self {
        self.min_gap = min_gap.min(MAX_INTERVAL);
        self
    }

    /// Whether to fetch now. It stays so until the end of a fetch is reported.
    pub fn due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// When the next fetch is due, to sleep until then.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// A token named a key that the set lacks. True if this brought the next fetch forward, so
    /// that whoever sleeps until it is to be woken. While fetches fail nothing is brought forward.
    pub fn unknown_key_seen(&mut self, now: Instant) -> bool {
        if self.failures > 0 {
            return false;
        }
        let earliest = self.last.map_or(now, |last| after(last, self.min_gap));
        let wanted = earliest.max(now);
        if wanted >= self.next {
            return false;
        }
        self.next = wanted;
        true
    }

    /// A fetch ended with a usable set.
    pub fn succeeded(&mut self, now: Instant) {
        self.failures = 0;
        self.last = Some(now);
        self.succeeded = Some(now);
        self.next = after(now, self.interval);
    }

    /// A fetch ended without one. The pause doubles from 1 s to the interval, and `jitter`, random
    /// in 0..1, takes up to half of it away so that many gateways do not come at once.
    pub fn failed(&mut self, now: Instant, jitter: f64) {
        let doubled = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let pause = FIRST_PAUSE.saturating_mul(doubled).min(self.interval);
        let jitter = if jitter.is_nan() {
            0.0
        } else {
            jitter.clamp(0.0, 1.0)
        };
        self.failures = self.failures.saturating_add(1);
        self.last = Some(now);
        self.next = after(now, pause.mul_f64(1.0 - jitter / 2.0));
    }

    /// How long ago the keys in use were fetched; `None` if they never were.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let succeeded = self.succeeded?;
        Some(now.saturating_duration_since(succeeded))
    }
}

/// No wait is longer than the longest interval, which every clock can add.
fn after(start: Instant, wait: Duration) -> Instant {
    start.checked_add(wait).unwrap_or(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_set_is_fetched_at_once_and_then_by_the_interval() {
        let start = Instant::now();
        let mut schedule = Schedule::new(HOUR, start);
        assert!(schedule.due(start));
        assert_eq!(schedule.age(start), None);
        schedule.succeeded(start);
        assert!(!schedule.due(start + HOUR - seconds(1)));
        assert!(schedule.due(start + HOUR));
        assert_eq!(schedule.age(start + HOUR), Some(HOUR));
        assert_eq!(schedule.next(), start + HOUR);
    }

    #[test]
    fn an_unknown_key_brings_the_fetch_forward_but_not_within_the_gap() {
        let start = Instant::now();
        let mut schedule = Schedule::new(HOUR, start);
        assert!(!schedule.unknown_key_seen(start));
        schedule.succeeded(start);
        assert!(schedule.unknown_key_seen(start + seconds(3)));
        assert!(!schedule.unknown_key_seen(start + seconds(4)));
        assert!(!schedule.due(start + seconds(9)));
        assert!(schedule.due(start + seconds(10)));
        schedule.succeeded(start + seconds(10));
        assert!(schedule.unknown_key_seen(start + seconds(500)));
        assert!(schedule.due(start + seconds(500)));
    }

    #[test]
    fn failures_pause_ever_longer_up_to_the_interval_and_keep_the_age() {
        let start = Instant::now();
        let mut schedule = Schedule::new(seconds(20), start);
        schedule.succeeded(start);
        for pause in [1, 2, 4, 8, 16, 20, 20] {
            schedule.failed(start, 0.0);
            assert_eq!(schedule.next(), start + seconds(pause));
            assert!(!schedule.unknown_key_seen(start));
        }
        assert_eq!(schedule.age(start + HOUR), Some(HOUR));
        schedule.succeeded(start);
        schedule.failed(start, 1.0);
        assert_eq!(schedule.next(), start + Duration::from_millis(500));
    }

    #[test]
    fn absurd_durations_and_jitter_are_bounded() {
        let start = Instant::now();
        for jitter in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 2.0] {
            for interval in [Duration::ZERO, Duration::MAX] {
                let mut schedule = Schedule::new(interval, start).with_min_gap(interval);
                for _ in 0..100 {
                    schedule.failed(start, jitter);
                    assert!(schedule.next() >= start + Duration::from_millis(500));
                    assert!(schedule.next() <= start + MAX_INTERVAL);
                }
                schedule.succeeded(start);
                schedule.unknown_key_seen(start);
                assert!(schedule.next() > start || interval.is_zero());
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_a_client_sends_makes_fetches_more_frequent(
            steps in proptest::collection::vec((0u64..5, 0u32..4, any::<bool>()), 1..300),
            interval in 1u64..100,
        ) {
            let mut now = Instant::now();
            let mut schedule = Schedule::new(seconds(interval), now);
            let mut last: Option<(Instant, bool)> = None;
            for (pause, unknown, works) in steps {
                now += seconds(pause);
                for _ in 0..unknown {
                    schedule.unknown_key_seen(now);
                }
                if !schedule.due(now) {
                    continue;
                }
                if let Some((last, true)) = last {
                    prop_assert!(now - last >= DEFAULT_MIN_GAP.min(seconds(interval)));
                }
                if works { schedule.succeeded(now) } else { schedule.failed(now, 0.0) }
                last = Some((now, works));
            }
        }
    }
}
