//! How the latest attempts ended: counts over a sliding window, and failures in a row. Counts only;
//! what they mean is for [`super::outlier`] and [`super::breaker`].

use std::time::{Duration, Instant};

/// The window slides in steps of a tenth.
const SLICES: u64 = 10;
const SLOTS: usize = SLICES as usize;

/// Outcomes of attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub good: u32,
    pub bad: u32,
}

impl Tally {
    pub fn total(self) -> u32 {
        self.good.saturating_add(self.bad)
    }

    /// Is the share of failures above so many percent?
    pub fn is_above(self, percent: u32) -> bool {
        u64::from(self.bad) * 100 > u64::from(self.total()) * u64::from(percent)
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            good: self.good.saturating_add(other.good),
            bad: self.bad.saturating_add(other.bad),
        }
    }
}

/// The outcomes of the last seconds.
#[derive(Debug)]
pub struct Window {
    began: Instant,
    span: Duration,
    /// By the slice's number; what is older than the window is passed over.
    slices: [(u64, Tally); SLOTS],
    streak: u32,
}

impl Window {
    pub fn new(now: Instant) -> Self {
        Self {
            began: now,
            span: Duration::ZERO,
            slices: [(0, Tally::default()); SLOTS],
            streak: 0,
        }
    }

    /// Counts one outcome. Another `span` than before begins a new window.
    pub fn record(&mut self, good: bool, now: Instant, span: Duration) {
        if span != self.span {
            self.span = span;
            self.slices = [(0, Tally::default()); SLOTS];
        }
        let number = self.number(now);
        let slot = usize::try_from(number % SLICES).unwrap_or(0);
        if let Some((of, tally)) = self.slices.get_mut(slot) {
            if *of != number {
                (*of, *tally) = (number, Tally::default());
            }
            let count = if good {
                &mut tally.good
            } else {
                &mut tally.bad
            };
            *count = count.saturating_add(1);
        }
        self.streak = if good {
            0
        } else {
            self.streak.saturating_add(1)
        };
    }

    /// What the window holds.
    pub fn tally(&self, now: Instant) -> Tally {
        let newest = self.number(now);
        let within = |of: u64| of != 0 && of <= newest && newest - of < SLICES;
        let slices = self.slices.iter().filter(|(of, _)| within(*of));
        slices.fold(Tally::default(), |sum, (_, tally)| sum.plus(*tally))
    }

    /// Failures since the last success, however long ago.
    pub fn streak(&self) -> u32 {
        self.streak
    }

    /// Nothing is held against anybody any more.
    pub fn forget(&mut self) {
        self.slices = [(0, Tally::default()); SLOTS];
        self.streak = 0;
    }

    /// Failures are forgotten, successes are not: those were somebody else's.
    pub fn forgive(&mut self) {
        for (_, tally) in &mut self.slices {
            tally.bad = 0;
        }
        self.streak = 0;
    }

    /// Of the slice that `now` is in; at least 1, since 0 stands for none.
    fn number(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.began);
        let [span, since] = [self.span, since].map(|it| u64::try_from(it.as_nanos()));
        let slice = (span.unwrap_or(u64::MAX) / SLICES).max(1);
        (since.unwrap_or(u64::MAX) / slice).saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPAN: Duration = Duration::from_secs(10);

    #[test]
    fn what_is_older_than_the_window_no_longer_counts() {
        let start = Instant::now();
        let mut window = Window::new(start);
        for _ in 0..3 {
            window.record(false, start, SPAN);
        }
        let later = start + Duration::from_secs(5);
        window.record(true, later, SPAN);
        assert_eq!(window.tally(later), Tally { good: 1, bad: 3 });
        let last = start + Duration::from_secs(11);
        assert_eq!(window.tally(last), Tally { good: 1, bad: 0 });
        assert_eq!(
            window.tally(start + Duration::from_secs(60)),
            Tally::default()
        );
    }

    #[test]
    fn a_success_ends_a_streak_and_time_does_not() {
        let start = Instant::now();
        let mut window = Window::new(start);
        window.record(false, start, SPAN);
        window.record(false, start + Duration::from_secs(100), SPAN);
        assert_eq!(window.streak(), 2);
        window.record(true, start + Duration::from_secs(100), SPAN);
        assert_eq!(window.streak(), 0);
    }

    #[test]
    fn who_is_forgiven_keeps_the_successes() {
        let now = Instant::now();
        let mut window = Window::new(now);
        for good in [true, false, false] {
            window.record(good, now, SPAN);
        }
        window.forgive();
        assert_eq!(window.tally(now), Tally { good: 1, bad: 0 });
        assert_eq!(window.streak(), 0);
        window.forget();
        assert_eq!(window.tally(now), Tally::default());
    }

    #[test]
    fn the_share_must_be_passed_and_not_only_met() {
        let tally = Tally { good: 5, bad: 5 };
        assert!(!tally.is_above(50));
        assert!(tally.is_above(49));
        assert!(!Tally::default().is_above(0));
    }

    proptest! {
        /// Against a list of all outcomes: at most a slice is missing, never one too many.
        #[test]
        fn it_counts_the_last_span_to_within_a_slice(
            steps in prop::collection::vec((0u64..3_000, any::<bool>()), 1..200),
        ) {
            let start = Instant::now();
            let mut window = Window::new(start);
            let mut all = Vec::new();
            let mut now = start;
            for (step, good) in steps {
                now += Duration::from_millis(step);
                window.record(good, now, SPAN);
                all.push((now, good));
                let since = |span: Duration| {
                    let inside = all.iter().filter(|(at, _)| now - *at < span);
                    u32::try_from(inside.count()).unwrap()
                };
                let total = window.tally(now).total();
                prop_assert!(total <= since(SPAN));
                prop_assert!(total >= since(SPAN - SPAN / 10));
            }
        }
    }
}
