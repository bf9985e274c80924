//! Whether an endpoint is asked for one model at all: open while too many attempts fail, whoever
//! pays for them, and closed again after a few have succeeded. Pure; [`shared`] is what requests see.

mod shared;

use std::time::{Duration, Instant};

use super::balance::Standing;
use super::gate::{FULL_SHARE, Pass, Reason, jittered};
use super::window::Window;
use crate::config::settings::Breaker as Rules;
pub use shared::SharedBreaker;

/// See [`super::gate`]: what is said while nobody can tell when the next may go.
const PROBE_TIME: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Closed,
    Open {
        until: Instant,
    },
    /// So many have succeeded.
    HalfOpen {
        succeeded: u32,
    },
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half_open",
        }
    }
}

/// A change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    pub to: State,
    pub reason: Reason,
}

/// One endpoint's, for one model.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    since: Instant,
    window: Window,
    /// Counts the times it opened: whoever was let through before says nothing of after.
    serial: u32,
    probing: u32,
}

impl Breaker {
    pub fn new(now: Instant) -> Self {
        Self {
            state: State::Closed,
            since: now,
            window: Window::new(now),
            serial: 0,
            probing: 0,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Since when it has been in this state.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// What may be sent through now.
    pub fn standing(&self, now: Instant, rules: &Rules) -> Standing {
        match self.state {
            State::Closed => Standing::Open {
                permille: FULL_SHARE,
            },
            State::Open { until } if until > now => Standing::Closed,
            State::HalfOpen { .. } if self.probing >= rules.probes.max(1) => Standing::Closed,
            State::Open { .. } | State::HalfOpen { .. } => Standing::Probe,
        }
    }

    /// How long until something may be sent through.
    pub fn opens_in(&self, now: Instant, rules: &Rules) -> Duration {
        match self.state {
            State::Open { until } => until.saturating_duration_since(now),
            State::HalfOpen { .. } if self.probing >= rules.probes.max(1) => PROBE_TIME,
            State::Closed | State::HalfOpen { .. } => Duration::ZERO,
        }
    }

    /// Goes on to where time alone takes it.
    pub fn advance(&mut self, now: Instant) -> Option<Change> {
        match self.state {
            State::Open { until } if until <= now => {
                Some(self.become_state(State::HalfOpen { succeeded: 0 }, Reason::Time, now))
            }
            _ => None,
        }
    }

    /// Lets a request through; `None` if it may not. To be called after [`Breaker::advance`].
    pub fn admit(&mut self, rules: &Rules) -> Option<Pass> {
        let probe = match self.state {
            State::Closed => false,
            State::Open { .. } => return None,
            State::HalfOpen { .. } if self.probing >= rules.probes.max(1) => return None,
            State::HalfOpen { .. } => true,
        };
        self.probing += u32::from(probe);
        Some(Pass::new(self.serial, probe))
    }

    /// Was it let through since it last opened? What an earlier one shows is known already.
    pub fn is_current(&self, pass: Pass) -> bool {
        pass.serial() == self.serial
    }

    /// The request ended without showing anything.
    pub fn give_back(&mut self, pass: Pass) {
        if pass.is_probe() && self.is_current(pass) {
            self.probing = self.probing.saturating_sub(1);
        }
    }

    /// A request has ended well, or not.
    pub fn record(
        &mut self,
        pass: Pass,
        good: bool,
        now: Instant,
        rules: &Rules,
        seed: u64,
    ) -> Option<Change> {
        if !self.is_current(pass) {
            return None;
        }
        self.give_back(pass);
        match self.state {
            State::Closed => {
                self.window.record(good, now, rules.window);
                if good {
                    return None;
                }
                let tally = self.window.tally(now);
                let much = tally.total() >= rules.min_requests.max(1);
                (much && tally.is_above(rules.error_percent))
                    .then(|| self.open(Reason::Errors, now, rules, seed))
            }
            State::HalfOpen { .. } if !good => Some(self.open(Reason::Probe, now, rules, seed)),
            // It has counted already, by its first content.
            State::HalfOpen { .. } if !pass.is_probe() => None,
            State::HalfOpen { succeeded } => {
                let succeeded = succeeded + 1;
                if succeeded < rules.probes.max(1) {
                    self.state = State::HalfOpen { succeeded };
                    return None;
                }
                self.window.forget();
                Some(self.become_state(State::Closed, Reason::Probe, now))
            }
            State::Open { .. } => None,
        }
    }

    /// The failures were somebody else's.
    pub fn forgive(&mut self) {
        self.window.forgive();
    }

    fn open(&mut self, reason: Reason, now: Instant, rules: &Rules, seed: u64) -> Change {
        self.serial = self.serial.wrapping_add(1);
        self.probing = 0;
        let until = now + jittered(rules.open, seed);
        self.become_state(State::Open { until }, reason, now)
    }

    fn become_state(&mut self, to: State, reason: Reason, now: Instant) -> Change {
        self.state = to;
        self.since = now;
        Change { to, reason }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    /// Neither shorter nor longer.
    const EVEN: u64 = 200;

    fn rules() -> Rules {
        Rules::default()
    }

    /// Sends one through.
    fn send(breaker: &mut Breaker, good: bool, now: Instant) -> Option<Change> {
        breaker.advance(now);
        let pass = breaker.admit(&rules()).unwrap();
        breaker.record(pass, good, now, &rules(), EVEN)
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(now);
        for _ in 0..20 {
            send(&mut breaker, false, now);
            if breaker.state() != State::Closed {
                break;
            }
        }
        assert!(matches!(breaker.state(), State::Open { .. }));
        breaker
    }

    #[test]
    fn it_opens_above_the_share_once_enough_was_seen() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        for index in 0..21 {
            assert_eq!(send(&mut breaker, index % 2 == 0, now), None);
        }
        assert_eq!(send(&mut breaker, false, now), None);
        let change = send(&mut breaker, false, now).unwrap();
        assert_eq!(change.reason, Reason::Errors);
        assert!(breaker.admit(&rules()).is_none());
        assert_eq!(breaker.opens_in(now, &rules()), 5 * SECOND);
    }

    #[test]
    fn it_closes_after_as_many_successes_as_it_lets_through() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + 5 * SECOND;
        assert_eq!(
            breaker.advance(later).map(|it| it.to.as_str()),
            Some("half_open")
        );
        let passes = [(); 3].map(|()| breaker.admit(&rules()).unwrap());
        assert!(breaker.admit(&rules()).is_none());
        let [first, second, third] = passes;
        assert_eq!(breaker.record(first, true, later, &rules(), EVEN), None);
        assert_eq!(breaker.record(second, true, later, &rules(), EVEN), None);
        let closed = breaker.record(third, true, later, &rules(), EVEN);
        assert_eq!(closed.map(|it| it.to), Some(State::Closed));
        // What it opened for is forgotten.
        assert_eq!(send(&mut breaker, false, later), None);
    }

    #[test]
    fn one_failure_opens_it_again_and_the_others_that_were_let_through_no_longer_count() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + 5 * SECOND;
        breaker.advance(later);
        let [first, second, third] = [(); 3].map(|()| breaker.admit(&rules()).unwrap());
        breaker.give_back(first);
        let again = breaker
            .record(second, false, later, &rules(), EVEN)
            .unwrap();
        assert_eq!(again.reason, Reason::Probe);
        assert_eq!(breaker.record(third, true, later, &rules(), EVEN), None);
        assert!(matches!(breaker.state(), State::Open { .. }));
    }

    proptest! {
        /// Closed, open, half open, and from there to either: never another way.
        #[test]
        fn no_state_is_skipped(
            script in prop::collection::vec((0u8..4, 0usize..6, 0u64..4_000), 1..300),
            seed: u64,
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(now);
            let mut under_way: Vec<Pass> = Vec::new();
            let rules = Rules { min_requests: 3, ..rules() };
            for (what, index, millis) in script {
                let before = breaker.state().as_str();
                match what {
                    0 => {
                        now += Duration::from_millis(millis);
                        breaker.advance(now);
                    }
                    1 => under_way.extend(breaker.admit(&rules)),
                    2 if index < under_way.len() => {
                        breaker.give_back(under_way.swap_remove(index));
                    }
                    _ if index < under_way.len() => {
                        let pass = under_way.swap_remove(index);
                        let change = breaker.record(pass, millis % 3 == 0, now, &rules, seed);
                        prop_assert_eq!(change.is_some(), before != breaker.state().as_str());
                    }
                    _ => {}
                }
                let after = breaker.state().as_str();
                prop_assert!(before == after || matches!(
                    (before, after),
                    ("closed", "open") | ("open", "half_open")
                        | ("half_open", "open") | ("half_open", "closed")
                ));
                let current = |pass: &&Pass| pass.is_probe() && pass.serial() == breaker.serial;
                prop_assert!(under_way.iter().filter(current).count() <= 3);
            }
        }
    }
}
