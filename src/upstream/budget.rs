//! How many retries an upstream is sent: a share of its first attempts, and a few at any traffic,
//! over the last ten seconds. When everything fails, retries are what drowns an upstream; within
//! this bound they cannot. Knows no request and no failure.

use std::time::Instant;

use parking_lot::Mutex;

use crate::config::settings::Retry;

/// Slices of a second. Ten seconds touch at most eleven of them, so that whichever ten seconds are
/// looked at, all of their retries were counted together.
const SLICES: usize = 11;

/// The retry budget of one upstream; outlives a reload.
#[derive(Debug)]
pub struct RetryBudget {
    began: Instant,
    window: Mutex<Window>,
}

/// How the budget stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// First attempts in the window.
    pub first: u64,
    /// Retries in the window.
    pub spent: u64,
    /// Retries that would be let through now.
    pub available: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slice {
    first: u32,
    retries: u32,
}

#[derive(Debug, Default)]
struct Window {
    /// By second, modulo their number.
    slices: [Slice; SLICES],
    /// The newest second, since the beginning.
    second: u64,
}

impl RetryBudget {
    pub fn new(now: Instant) -> Self {
        Self {
            began: now,
            window: Mutex::default(),
        }
    }

    /// A first attempt goes to the upstream.
    pub fn first(&self, now: Instant) {
        let mut window = self.at(now);
        if let Some(slice) = window.newest() {
            slice.first = slice.first.saturating_add(1);
        }
    }

    /// Takes a retry, if there is one left.
    #[must_use]
    pub fn try_retry(&self, now: Instant, rules: &Retry) -> bool {
        let mut window = self.at(now);
        if window.standing(rules).available == 0 {
            return false;
        }
        if let Some(slice) = window.newest() {
            slice.retries = slice.retries.saturating_add(1);
        }
        true
    }

    /// What was used and what is left, for status and metrics.
    pub fn standing(&self, now: Instant, rules: &Retry) -> Standing {
        self.at(now).standing(rules)
    }

    fn at(&self, now: Instant) -> parking_lot::MutexGuard<'_, Window> {
        let second = now.saturating_duration_since(self.began).as_secs();
        let mut window = self.window.lock();
        window.roll(second);
        window
    }
}

impl Window {
    /// Forgets what is older than the window. A clock reading that comes late counts as the newest.
    fn roll(&mut self, second: u64) {
        let new = second.saturating_sub(self.second).min(SLICES as u64);
        for _ in 0..new {
            self.second += 1;
            if let Some(slice) = self.newest() {
                *slice = Slice::default();
            }
        }
        self.second = self.second.max(second);
    }

    fn newest(&mut self) -> Option<&mut Slice> {
        let index = usize::try_from(self.second % SLICES as u64).unwrap_or(0);
        self.slices.get_mut(index)
    }

    fn standing(&self, rules: &Retry) -> Standing {
        let first = self.slices.iter().map(|slice| u64::from(slice.first)).sum();
        let spent = self.slices.iter().map(|slice| u64::from(slice.retries));
        let spent = spent.sum();
        Standing {
            first,
            spent,
            available: allowed(first, rules).saturating_sub(spent),
        }
    }
}

fn allowed(first: u64, rules: &Retry) -> u64 {
    u64::from(rules.budget_reserve) + first * u64::from(rules.budget_percent) / 100
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rules(budget_percent: u32, budget_reserve: u32) -> Retry {
        Retry {
            budget_percent,
            budget_reserve,
            ..Retry::default()
        }
    }

    fn taken(budget: &RetryBudget, now: Instant, rules: &Retry) -> usize {
        (0..1_000).filter(|_| budget.try_retry(now, rules)).count()
    }

    #[test]
    fn retries_are_a_share_of_first_attempts_and_a_reserve() {
        let now = Instant::now();
        let budget = RetryBudget::new(now);
        let rules = rules(15, 10);
        assert_eq!(taken(&budget, now, &rules), 10);
        (0..100).for_each(|_| budget.first(now));
        assert_eq!(
            budget.standing(now, &rules),
            Standing {
                first: 100,
                spent: 10,
                available: 15
            }
        );
        assert_eq!(taken(&budget, now + 9 * SECOND, &rules), 15);
        assert_eq!(taken(&budget, now + 10 * SECOND, &rules), 0);
    }

    #[test]
    fn what_was_not_used_in_time_is_gone() {
        let now = Instant::now();
        let budget = RetryBudget::new(now);
        let rules = rules(100, 0);
        (0..50).for_each(|_| budget.first(now));
        for later in [11, 22, 10_000] {
            assert_eq!(taken(&budget, now + later * SECOND, &rules), 0);
        }
    }

    #[test]
    fn what_was_spent_comes_back() {
        let now = Instant::now();
        let budget = RetryBudget::new(now);
        let rules = rules(0, 3);
        assert_eq!(taken(&budget, now, &rules), 3);
        assert_eq!(taken(&budget, now + 5 * SECOND, &rules), 0);
        assert_eq!(taken(&budget, now + 11 * SECOND, &rules), 3);
    }

    #[test]
    fn nothing_configured_lets_nothing_through() {
        let now = Instant::now();
        let budget = RetryBudget::new(now);
        (0..50).for_each(|_| budget.first(now));
        assert_eq!(taken(&budget, now, &rules(0, 0)), 0);
    }

    #[test]
    fn a_late_reading_of_the_clock_revives_nothing() {
        let now = Instant::now();
        let budget = RetryBudget::new(now);
        let rules = rules(0, 1);
        assert!(budget.try_retry(now + 20 * SECOND, &rules));
        assert!(!budget.try_retry(now, &rules));
        assert!(!budget.try_retry(now + 21 * SECOND, &rules));
    }

    proptest! {
        /// In any ten seconds, retries are no more than the reserve and the share of first attempts
        /// in these and the second before.
        #[test]
        fn no_ten_seconds_see_more_retries_than_they_may(
            steps in prop::collection::vec((0u64..1_500, any::<bool>()), 1..400),
            percent in 0u32..=100,
            reserve in 0u32..20,
        ) {
            let start = Instant::now();
            let budget = RetryBudget::new(start);
            let rules = rules(percent, reserve);
            let (mut first, mut retries) = (Vec::new(), Vec::new());
            let mut at = 0;
            for (step, is_first) in steps {
                // Mostly bursts, sometimes a pause.
                at += if step < 1_000 { step / 50 } else { step };
                let now = start + Duration::from_millis(at);
                if is_first {
                    budget.first(now);
                    first.push(at);
                } else if budget.try_retry(now, &rules) {
                    retries.push(at);
                }
            }
            for end in &retries {
                let within = |times: &[u64], span: u64| {
                    let since = |at: &&u64| **at <= *end && *end - **at < span;
                    times.iter().filter(since).count() as u64
                };
                prop_assert!(within(&retries, 10_000) <= allowed(within(&first, 11_000), &rules));
            }
        }
    }
}
