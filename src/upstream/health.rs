//! When is an endpoint healthy? Pure counting; the questions are asked by [`super::probe`], the
//! failures of live traffic reported by the gateway.

use std::time::{Duration, Instant};

/// Thresholds of consecutive results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    pub healthy_after: u32,
    pub unhealthy_after: u32,
}

/// What a result changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    BecameHealthy,
    BecameUnhealthy,
}

/// One endpoint's record. New endpoints are taken for healthy until shown otherwise.
#[derive(Debug)]
pub struct Record {
    healthy: bool,
    /// Results in a row that contradict `healthy`.
    against: u32,
    changed: Instant,
}

/// Without active checks nobody would bring an endpoint back: it is tried again after this.
const UNWATCHED_PAUSE: Duration = Duration::from_secs(10);

impl Record {
    pub fn new(now: Instant) -> Self {
        Self {
            healthy: true,
            against: 0,
            changed: now,
        }
    }

    /// Is the endpoint to be used? `watched` says whether active checks are on.
    pub fn is_healthy(&self, now: Instant, watched: bool) -> bool {
        self.healthy || (!watched && now.saturating_duration_since(self.changed) >= UNWATCHED_PAUSE)
    }

    /// Counts one result, of a check or of live traffic.
    pub fn record(
        &mut self,
        now: Instant,
        good: bool,
        thresholds: Thresholds,
    ) -> Option<Transition> {
        if good == self.healthy {
            self.against = 0;
            if !good {
                // Tried again after the pause, and still ill: the pause begins anew.
                self.changed = now;
            }
            return None;
        }
        self.against = self.against.saturating_add(1);
        let needed = if good {
            thresholds.healthy_after
        } else {
            thresholds.unhealthy_after
        };
        if self.against < needed {
            return None;
        }
        self.healthy = good;
        self.against = 0;
        self.changed = now;
        Some(if good {
            Transition::BecameHealthy
        } else {
            Transition::BecameUnhealthy
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds {
        healthy_after: 2,
        unhealthy_after: 3,
    };

    #[test]
    fn it_takes_a_row_of_results_to_change_and_one_good_one_breaks_the_row() {
        let now = Instant::now();
        let mut record = Record::new(now);
        for good in [false, false, true, false, false] {
            assert_eq!(record.record(now, good, THRESHOLDS), None);
        }
        assert_eq!(
            record.record(now, false, THRESHOLDS),
            Some(Transition::BecameUnhealthy)
        );
        assert_eq!(record.record(now, true, THRESHOLDS), None);
        assert_eq!(record.record(now, false, THRESHOLDS), None);
        assert_eq!(record.record(now, true, THRESHOLDS), None);
        assert_eq!(
            record.record(now, true, THRESHOLDS),
            Some(Transition::BecameHealthy)
        );
    }

    #[test]
    fn an_unwatched_endpoint_is_tried_again_after_a_pause() {
        let now = Instant::now();
        let mut record = Record::new(now);
        for _ in 0..3 {
            let _ = record.record(now, false, THRESHOLDS);
        }
        assert!(!record.is_healthy(now, false));
        assert!(record.is_healthy(now + UNWATCHED_PAUSE, false));
        assert!(!record.is_healthy(now + UNWATCHED_PAUSE, true));
        let _ = record.record(now + UNWATCHED_PAUSE, false, THRESHOLDS);
        assert!(!record.is_healthy(now + UNWATCHED_PAUSE, false));
        assert!(record.is_healthy(now + UNWATCHED_PAUSE * 2, false));
    }
}
