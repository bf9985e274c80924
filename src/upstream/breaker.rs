//! Whether an endpoint is asked for one model at all: open while too many attempts fail, whoever
//! pays for them, and closed again after a few have succeeded. Pure; [`shared`] is what requests see.
//!
//! Where nearly all the failures are one tenant's, it opens for that tenant alone: what somebody
//! asks for can fail everywhere, and is no reason to refuse the others.

mod shared;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use super::balance::Standing;
use super::gate::{FULL_SHARE, PROBE_COUNTS, Pass, Reason, jittered};
use super::window::Window;
use crate::config::settings::{Breaker as Rules, TenantId};
pub use shared::{SharedBreaker, Shown};

/// See [`super::gate`]: what is said while nobody can tell when the next may go.
const PROBE_TIME: Duration = Duration::from_secs(1);
/// Whoever is doubted may be asked again after this, if nobody else has shown how it is.
const DOUBT: Duration = Duration::from_secs(5);
/// Failures of one tenant, less all others, are at least one in so many: three quarters are its.
const MOSTLY: u32 = 2;

/// Whose request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller(u64);

impl Caller {
    pub fn of(tenant: &TenantId) -> Self {
        let mut hasher = DefaultHasher::new();
        tenant.hash(&mut hasher);
        Self(hasher.finish())
    }
}

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

/// How a request has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// `None` if nobody knows.
    pub caller: Option<Caller>,
    pub good: bool,
}

/// A change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    pub to: State,
    pub reason: Reason,
}

/// Whoever most failures are of, if there is one: found by a majority vote.
#[derive(Debug, Clone, Copy, Default)]
struct Suspect {
    who: Option<Caller>,
    /// Failures of theirs, less those of others.
    votes: u32,
}

impl Suspect {
    fn failed(&mut self, caller: Option<Caller>) {
        if self.votes == 0 {
            self.who = caller;
        }
        self.votes = match self.who == caller {
            true => self.votes.saturating_add(1),
            false => self.votes.saturating_sub(1),
        };
    }

    /// Who has nearly all of so many failures.
    fn to_blame(self, failures: u32) -> Option<Caller> {
        let mostly = self.votes.saturating_mul(MOSTLY) >= failures;
        self.who.filter(|_| mostly)
    }
}

/// One endpoint's, for one model.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    since: Instant,
    window: Window,
    /// It is open, or half open, for this one alone.
    only: Option<Caller>,
    /// Half open, whose request was the only kind that failed: perhaps it fails everywhere.
    doubted: Option<(Caller, Instant)>,
    suspect: Suspect,
    /// Counts the times it opened: whoever was let through before says nothing of after.
    serial: u32,
    probing: u32,
    /// When the latest of those that try it was let through.
    probed: Instant,
}

impl Breaker {
    pub fn new(now: Instant) -> Self {
        Self {
            state: State::Closed,
            since: now,
            window: Window::new(now),
            only: None,
            doubted: None,
            suspect: Suspect::default(),
            serial: 0,
            probing: 0,
            probed: now,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Since when it has been in this state.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Is it open, or half open, for one tenant alone?
    pub fn is_for_one(&self) -> bool {
        self.only.is_some()
    }

    /// Does its state concern this caller?
    pub fn concerns(&self, caller: Option<Caller>) -> bool {
        self.only.is_none() || self.only == caller
    }

    /// What may be sent through now.
    pub fn standing(&self, caller: Option<Caller>, now: Instant, rules: &Rules) -> Standing {
        let full = Standing::Open {
            permille: FULL_SHARE,
        };
        match self.state {
            _ if !self.concerns(caller) => full,
            State::Closed => full,
            State::Open { until } if until > now => Standing::Closed,
            State::HalfOpen { .. } if self.is_doubted(caller) => Standing::Closed,
            State::HalfOpen { .. } if self.is_taken(now, rules) => Standing::Closed,
            State::Open { .. } | State::HalfOpen { .. } => Standing::Probe,
        }
    }

    /// How long until something may be sent through.
    pub fn opens_in(&self, caller: Option<Caller>, now: Instant, rules: &Rules) -> Duration {
        match self.state {
            _ if !self.concerns(caller) => Duration::ZERO,
            State::Open { until } => until.saturating_duration_since(now),
            State::HalfOpen { .. } if self.is_doubted(caller) => PROBE_TIME,
            State::HalfOpen { .. } if self.is_taken(now, rules) => PROBE_TIME,
            State::Closed | State::HalfOpen { .. } => Duration::ZERO,
        }
    }

    /// Goes on to where time alone takes it.
    pub fn advance(&mut self, now: Instant) -> Option<Change> {
        match self.state {
            State::Open { until } if until <= now => {
                Some(self.become_state(State::HalfOpen { succeeded: 0 }, Reason::Time, now))
            }
            _ => {
                let over =
                    |(_, since): &(Caller, Instant)| now.saturating_duration_since(*since) >= DOUBT;
                self.doubted = self.doubted.filter(|doubted| !over(doubted));
                None
            }
        }
    }

    fn is_doubted(&self, caller: Option<Caller>) -> bool {
        self.doubted
            .is_some_and(|(doubted, _)| Some(doubted) == caller)
    }

    /// Lets a request through; `None` if it may not. To be called after [`Breaker::advance`].
    pub fn admit(&mut self, caller: Option<Caller>, now: Instant, rules: &Rules) -> Option<Pass> {
        let probe = match self.state {
            _ if !self.concerns(caller) => false,
            State::Closed => false,
            State::Open { .. } => return None,
            State::HalfOpen { .. } if self.is_doubted(caller) => return None,
            State::HalfOpen { .. } if self.is_taken(now, rules) => return None,
            State::HalfOpen { .. } => true,
        };
        if probe {
            self.probing = self.probing.saturating_add(1);
            self.probed = now;
        }
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
        ended: Ended,
        now: Instant,
        rules: &Rules,
        seed: u64,
    ) -> Option<Change> {
        let Ended { caller, good } = ended;
        if !self.concerns(caller) {
            return self.count(ended, now, rules, seed);
        }
        if !self.is_current(pass) {
            return None;
        }
        self.give_back(pass);
        match self.state {
            State::Closed => self.count(ended, now, rules, seed),
            State::HalfOpen { .. } if !good => self.probe_failed(caller, now, rules, seed),
            // It has counted already, by its first content.
            State::HalfOpen { .. } if !pass.is_probe() => None,
            State::HalfOpen { succeeded } => {
                let succeeded = succeeded + 1;
                if succeeded < rules.probes.max(1) {
                    self.state = State::HalfOpen { succeeded };
                    return None;
                }
                // Whoever else failed meanwhile fails alone.
                self.only = self.doubted.take().map(|(doubted, _)| doubted);
                match self.only {
                    Some(_) => Some(self.open(Reason::Probe, now, rules, seed)),
                    None => Some(self.become_state(State::Closed, Reason::Probe, now)),
                }
            }
            State::Open { .. } => None,
        }
    }

    /// One failure may be the request's own; a second one, of somebody else, is not.
    fn probe_failed(
        &mut self,
        caller: Option<Caller>,
        now: Instant,
        rules: &Rules,
        seed: u64,
    ) -> Option<Change> {
        match (caller, self.doubted) {
            (Some(caller), None) if self.only.is_none() => {
                self.doubted = Some((caller, now));
                None
            }
            (Some(caller), Some((doubted, _))) if caller == doubted => None,
            _ => Some(self.open(Reason::Probe, now, rules, seed)),
        }
    }

    /// An outcome of somebody for whom it is closed.
    fn count(&mut self, ended: Ended, now: Instant, rules: &Rules, seed: u64) -> Option<Change> {
        self.window.record(ended.good, now, rules.window);
        if ended.good {
            return None;
        }
        let tally = self.window.tally(now);
        if tally.bad <= 1 {
            self.suspect = Suspect::default();
        }
        self.suspect.failed(ended.caller);
        let much = tally.total() >= rules.min_requests.max(1);
        if !much || !tally.is_above(rules.error_percent) {
            return None;
        }
        // If it is open for one already, it is not that one's doing.
        self.only = match self.state {
            State::Closed => self.suspect.to_blame(tally.bad),
            State::Open { .. } | State::HalfOpen { .. } => None,
        };
        Some(self.open(Reason::Errors, now, rules, seed))
    }

    /// The failures were somebody else's.
    pub fn forgive(&mut self) {
        self.window.forgive();
        self.suspect = Suspect::default();
    }

    /// Do as many try it as may? See [`super::gate`] for those that show nothing.
    fn is_taken(&self, now: Instant, rules: &Rules) -> bool {
        let fresh = now.saturating_duration_since(self.probed) < PROBE_COUNTS;
        self.probing >= rules.probes.max(1) && fresh
    }

    fn open(&mut self, reason: Reason, now: Instant, rules: &Rules, seed: u64) -> Change {
        self.serial = self.serial.wrapping_add(1);
        self.probing = 0;
        self.doubted = None;
        self.window.forget();
        self.suspect = Suspect::default();
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
mod tests;
