//! Decides whether Redis is to be asked at all. A dead one would cost each request its whole deadline;
//! an open circuit costs it nothing, and one probe per interval finds out. Pure: no connection, and
//! `now` as an argument.

use std::time::{Duration, Instant};

/// Between two probes of a Redis that is away.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// Answers in a row that came too late: one may be a hiccup of the network.
pub const SLOW_IN_A_ROW: u32 = 5;

/// How a question failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection, or an answer that is an error.
    Away,
    /// No answer within the deadline.
    Slow,
}

/// Down at first, with a probe due at once.
#[derive(Debug)]
pub struct Circuit {
    since: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    Up { slow: u32 },
    Down { probe: Instant },
}

impl Circuit {
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            state: State::Down { probe: now },
        }
    }

    /// May requests ask?
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// The last change.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// When to probe; `None` while it is up.
    pub fn probe_at(&self) -> Option<Instant> {
        match self.state {
            State::Up { .. } => None,
            State::Down { probe } => Some(probe),
        }
    }

    /// A request was answered in time.
    pub fn answered(&mut self) {
        if let State::Up { slow } = &mut self.state {
            *slow = 0;
        }
    }

    /// A request failed. Says whether the circuit opened by it; the first probe is due at once.
    pub fn failed(&mut self, failure: Failure, now: Instant) -> bool {
        let State::Up { slow } = &mut self.state else {
            return false;
        };
        if failure == Failure::Slow {
            *slow = slow.saturating_add(1);
            if *slow < SLOW_IN_A_ROW {
                return false;
            }
        }
        self.since = now;
        self.state = State::Down { probe: now };
        true
    }

    /// A probe came back. Says whether the circuit closed by it.
    pub fn probed(&mut self, good: bool, now: Instant) -> bool {
        let State::Down { probe } = &mut self.state else {
            return false;
        };
        if good {
            self.since = now;
            self.state = State::Up { slow: 0 };
        } else {
            *probe = now + PROBE_INTERVAL;
        }
        good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(now: Instant) -> Circuit {
        let mut circuit = Circuit::new(now);
        assert!(circuit.probed(true, now));
        circuit
    }

    #[test]
    fn it_begins_down_with_a_probe_due_at_once() {
        let now = Instant::now();
        let circuit = Circuit::new(now);
        assert!(!circuit.is_up());
        assert_eq!(circuit.probe_at(), Some(now));
    }

    #[test]
    fn a_lost_connection_opens_it_at_once() {
        let now = Instant::now();
        let mut circuit = up(now);
        assert!(circuit.failed(Failure::Away, now));
        assert!(!circuit.is_up());
        assert!(!circuit.failed(Failure::Away, now), "it is open already");
    }

    #[test]
    fn only_a_row_of_late_answers_opens_it() {
        let now = Instant::now();
        let mut circuit = up(now);
        for _ in 0..3 {
            for _ in 1..SLOW_IN_A_ROW {
                assert!(!circuit.failed(Failure::Slow, now));
            }
            circuit.answered();
        }
        for _ in 1..SLOW_IN_A_ROW {
            assert!(!circuit.failed(Failure::Slow, now));
        }
        assert!(circuit.failed(Failure::Slow, now));
    }

    #[test]
    fn a_dead_redis_is_probed_once_per_interval() {
        let now = Instant::now();
        let mut circuit = up(now);
        circuit.failed(Failure::Away, now);
        assert_eq!(circuit.probe_at(), Some(now));
        assert!(!circuit.probed(false, now));
        assert_eq!(circuit.probe_at(), Some(now + PROBE_INTERVAL));
        assert!(circuit.probed(true, now + PROBE_INTERVAL));
        assert_eq!(circuit.since(), now + PROBE_INTERVAL);
        assert_eq!(circuit.probe_at(), None);
    }
}
