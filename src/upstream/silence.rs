//! How long somebody has shown no first content to those who wait for it. One who waits may have sent
//! a long prompt, or be queued; of several, each must have waited so long.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// As many must wait for a silence to say something.
const SEVERAL: usize = 3;

/// Those who wait for first content.
#[derive(Debug)]
pub struct Silence {
    /// When each began, oldest first.
    waiting: VecDeque<Instant>,
    /// The last first content, or the first request since nobody waited.
    heard: Instant,
}

impl Silence {
    pub fn new(now: Instant) -> Self {
        Self {
            waiting: VecDeque::new(),
            heard: now,
        }
    }

    /// One more waits from `now` on.
    pub fn began(&mut self, now: Instant) {
        if self.waiting.is_empty() {
            self.heard = now;
        }
        // Nearly always the last place.
        let place = self.waiting.partition_point(|began| *began <= now);
        self.waiting.insert(place, now);
    }

    /// Somebody who had waited since `began` has first content.
    pub fn broken(&mut self, began: Instant, now: Instant) {
        self.left(began);
        self.heard = now;
    }

    /// Somebody who had waited since `began` does so no longer, and has heard nothing.
    pub fn left(&mut self, began: Instant) {
        let place = self.waiting.partition_point(|earlier| *earlier < began);
        let last = self.waiting.len().saturating_sub(1);
        self.waiting.remove(place.min(last));
    }

    /// Those who wait are none of those that count.
    pub fn forget_waiting(&mut self) {
        self.waiting.clear();
    }

    /// What was heard before is over.
    pub fn begin_anew(&mut self, now: Instant) {
        self.heard = now;
    }

    pub fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Since the last first content, whoever waits.
    pub fn since_heard(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }

    /// How long it has lasted; `None` if too few wait for it to say something.
    pub fn lasts(&self, now: Instant) -> Option<Duration> {
        let several = self.waiting.get(SEVERAL - 1)?;
        Some(now.saturating_duration_since(self.heard.max(*several)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_counts_from_when_several_wait() {
        let start = Instant::now();
        let at = |seconds: u32| start + SECOND * seconds;
        let mut silence = Silence::new(start);
        silence.began(at(0));
        silence.began(at(2));
        assert_eq!(silence.lasts(at(9)), None);
        silence.began(at(5));
        assert_eq!(silence.lasts(at(9)), Some(SECOND * 4));
        silence.began(at(8));
        assert_eq!(silence.lasts(at(9)), Some(SECOND * 4));
        silence.broken(at(0), at(10));
        assert_eq!(silence.lasts(at(12)), Some(SECOND * 2));
        silence.left(at(5));
        assert_eq!(silence.lasts(at(12)), None);
    }

    #[test]
    fn clients_that_give_up_early_one_after_the_other_are_none() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        let at = |count: u32| start + SECOND / 10 * count;
        for count in 0..200 {
            silence.began(at(count));
            if count >= 3 {
                // Always four who wait, none of them for longer than three tenths.
                silence.left(at(count - 3));
            }
            let lasts = silence.lasts(at(count)).unwrap_or_default();
            assert!(lasts <= SECOND / 10 * 3, "{lasts:?}");
        }
    }

    #[test]
    fn clients_that_give_up_early_hide_nobody_who_waits_on() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        let at = |count: u32| start + SECOND / 10 * count;
        (0..3).for_each(|_| silence.began(start));
        for count in 0..100 {
            silence.began(at(count));
            silence.left(at(count));
        }
        assert_eq!(silence.lasts(at(100)), Some(SECOND * 10));
    }

    #[test]
    fn whoever_never_began_takes_one_away_and_no_more() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        silence.left(start);
        assert!(!silence.is_waited_for());
        silence.began(start);
        silence.left(start + SECOND);
        assert!(!silence.is_waited_for());
        silence.began(start + SECOND);
        silence.forget_waiting();
        silence.left(start);
        assert_eq!(silence.lasts(start), None);
    }
}
