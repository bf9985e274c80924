//! When does a peer that resets its streams have to go? Pure.
//!
//! Envoy's rule for rapid resets (CVE-2023-44487): once 500 streams are closed, or 250 of them were
//! reset early, a connection on which half the streams were reset within a second and without an
//! answer does nothing but cost.

use std::time::{Duration, Instant};

const CLOSED_BEFORE_JUDGING: u32 = 500;
const EARLY_BEFORE_JUDGING: u32 = 250;
/// Resets further apart than this are no flood; the count starts anew.
const QUIET: Duration = Duration::from_secs(30);

/// One connection's record.
#[derive(Debug, Default)]
pub struct Resets {
    closed: u32,
    early: u32,
    last: Option<Instant>,
}

impl Resets {
    /// Counts an ended stream; true when the connection should end.
    pub fn record(&mut self, now: Instant, reset_early: bool) -> bool {
        if self
            .last
            .is_some_and(|last| now.saturating_duration_since(last) > QUIET)
        {
            *self = Self::default();
        }
        self.last = Some(now);
        self.closed = self.closed.saturating_add(1);
        self.early = self.early.saturating_add(u32::from(reset_early));
        let enough = self.closed >= CLOSED_BEFORE_JUDGING || self.early >= EARLY_BEFORE_JUDGING;
        enough && self.early >= self.closed / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_resets_ends_the_connection_and_an_honest_client_stays() {
        let now = Instant::now();
        let mut flood = Resets::default();
        assert_eq!((1..=1000).find(|_| flood.record(now, true)), Some(250));
        let mut honest = Resets::default();
        assert!((0..10_000).all(|i| !honest.record(now, i % 4 == 0)));
    }

    #[test]
    fn resets_with_pauses_between_are_no_flood() {
        let mut now = Instant::now();
        let mut slow = Resets::default();
        for _ in 0..1000 {
            now += QUIET + Duration::from_secs(1);
            assert!(!slow.record(now, true));
        }
    }
}
