//! How long first content takes somebody: the median of the latest, or a silence if that is longer.
//! A median, since one long prompt says nothing of whoever answers it.

use std::time::{Duration, Instant};

use super::silence::Silence;

/// First contents that are remembered.
const REMEMBERED: usize = 9;
/// As many make a median.
const ENOUGH: usize = 5;
/// What was seen longer ago says nothing of now.
const FRESH: Duration = Duration::from_secs(60);

/// The latest first contents, and those that are waited for.
#[derive(Debug)]
pub struct Pace {
    latest: [Duration; REMEMBERED],
    /// Of `latest`; the oldest is overwritten.
    filled: usize,
    next: usize,
    silence: Silence,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self {
            latest: [Duration::ZERO; REMEMBERED],
            filled: 0,
            next: 0,
            silence: Silence::new(now),
        }
    }

    /// First content is waited for from now on.
    pub fn began(&mut self, now: Instant) {
        self.expire(now);
        self.silence.began(now);
    }

    /// It came, to whoever had waited for it since `began`.
    pub fn first_content(&mut self, began: Instant, now: Instant) {
        self.expire(now);
        self.silence.broken(began, now);
        if let Some(slot) = self.latest.get_mut(self.next) {
            *slot = now.saturating_duration_since(began);
        }
        self.next = (self.next + 1) % REMEMBERED;
        self.filled = (self.filled + 1).min(REMEMBERED);
    }

    /// Whoever had waited for it since `began` does so no longer.
    pub fn ended_without(&mut self, began: Instant) {
        self.silence.left(began);
    }

    /// What first content takes; `None` if too little was seen lately.
    pub fn estimate(&self, now: Instant) -> Option<Duration> {
        let enough = self.filled >= ENOUGH && !self.is_stale(now);
        let median = enough.then(|| {
            let mut latest = self.latest;
            let seen = latest.get_mut(..self.filled).unwrap_or_default();
            seen.sort_unstable();
            seen.get(seen.len() / 2).copied().unwrap_or_default()
        });
        median.max(self.silence.lasts(now))
    }

    /// What was seen before is over: it began anew.
    pub fn forget(&mut self, now: Instant) {
        self.filled = 0;
        self.next = 0;
        self.silence.begin_anew(now);
    }

    /// Those who wait are none of those that count; nothing more is told of them.
    pub fn forget_waiting(&mut self) {
        self.silence.forget_waiting();
    }

    fn is_stale(&self, now: Instant) -> bool {
        !self.silence.is_waited_for() && self.silence.since_heard(now) >= FRESH
    }

    fn expire(&mut self, now: Instant) {
        if self.is_stale(now) {
            self.forget(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seen(times: &[u64], now: Instant) -> Pace {
        let mut pace = Pace::new(now);
        for millis in times {
            let began = now - Duration::from_millis(*millis);
            pace.began(began);
            pace.first_content(began, now);
        }
        pace
    }

    #[test]
    fn few_first_contents_say_nothing_and_one_slow_one_among_many_neither() {
        let now = Instant::now();
        assert_eq!(seen(&[100, 100, 9_000, 9_000], now).estimate(now), None);
        let pace = seen(&[100, 120, 90_000, 110, 130], now);
        assert_eq!(pace.estimate(now), Some(Duration::from_millis(120)));
    }

    #[test]
    fn the_latest_push_out_the_oldest() {
        let now = Instant::now();
        let times: Vec<_> = [100; 9].into_iter().chain([5_000; 5]).collect();
        assert_eq!(seen(&times, now).estimate(now), Some(5 * SECOND));
    }

    #[test]
    fn a_silence_counts_while_several_wait() {
        let now = Instant::now();
        let mut pace = seen(&[100; 9], now);
        let later = now + 8 * SECOND;
        pace.began(now);
        pace.began(now);
        assert_eq!(pace.estimate(later), Some(Duration::from_millis(100)));
        pace.began(now);
        assert_eq!(pace.estimate(later), Some(8 * SECOND));
        pace.ended_without(now);
        assert_eq!(pace.estimate(later), Some(Duration::from_millis(100)));
    }

    #[test]
    fn what_was_seen_long_ago_is_forgotten() {
        let now = Instant::now();
        let mut pace = seen(&[9_000; 9], now);
        let later = now + FRESH;
        assert_eq!(pace.estimate(later), None);
        pace.began(later);
        pace.first_content(later, later + SECOND);
        assert_eq!(pace.estimate(later), None);
    }
}
