//! A breaker as all requests share it: kept over reloads, tells each change.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::Level;
use parking_lot::Mutex;

use super::{Breaker, Caller, Change, Ended, State};
use crate::config::settings::Breaker as Rules;
use crate::upstream::balance::Standing;
use crate::upstream::gate::{FULL_SHARE, Pass};
use crate::upstream::transitions::{Teller, Told};

/// How a breaker stands, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    pub state: State,
    pub since: Instant,
    /// Only one tenant is refused.
    pub for_one: bool,
}

/// One endpoint's, for one model.
#[derive(Debug)]
pub struct SharedBreaker {
    closed: AtomicBool,
    /// Of the upstream, that it has seen; written under the lock.
    pardons: AtomicU64,
    inner: Mutex<Breaker>,
    teller: Teller,
}

impl SharedBreaker {
    pub fn new(teller: Teller, now: Instant) -> Self {
        Self {
            closed: AtomicBool::new(true),
            pardons: AtomicU64::new(teller.transitions.pardons()),
            inner: Mutex::new(Breaker::new(now)),
            teller,
        }
    }

    /// What may be sent through now.
    pub fn standing(&self, caller: Option<Caller>, now: Instant, rules: &Rules) -> Standing {
        if self.closed.load(Ordering::Acquire) {
            return Standing::Open {
                permille: FULL_SHARE,
            };
        }
        self.inner.lock().standing(caller, now, rules)
    }

    /// How long until something may be sent through.
    pub fn opens_in(&self, caller: Option<Caller>, now: Instant, rules: &Rules) -> Duration {
        self.inner.lock().opens_in(caller, now, rules)
    }

    /// Lets a request through; `None` if it may not.
    pub fn admit(&self, caller: Option<Caller>, now: Instant, rules: &Rules) -> Option<Pass> {
        let mut inner = self.inner.lock();
        let change = inner.advance(now);
        let pass = inner.admit(caller, now, rules);
        self.changed(&inner, change);
        pass
    }

    /// Did the attempt begin before it last opened?
    pub fn is_late(&self, pass: Pass, caller: Option<Caller>) -> bool {
        let inner = self.inner.lock();
        inner.concerns(caller) && !inner.is_current(pass)
    }

    /// The request ended without showing anything.
    pub fn give_back(&self, pass: Pass) {
        if pass.is_probe() {
            self.inner.lock().give_back(pass);
        }
    }

    /// A request has ended well, or not. True if the breaker opened.
    pub fn record(&self, pass: Pass, ended: Ended, now: Instant, rules: &Rules) -> bool {
        let seed = self.teller.transitions.roll();
        let mut inner = self.inner.lock();
        let pardons = self.teller.transitions.pardons();
        if self.pardons.swap(pardons, Ordering::Relaxed) != pardons {
            inner.forgive();
        }
        let change = inner.record(pass, ended, now, rules, seed);
        self.changed(&inner, change);
        change.is_some_and(|change| matches!(change.to, State::Open { .. }))
    }

    /// Goes on to where time alone takes it.
    pub fn advance(&self, now: Instant) {
        if !self.closed.load(Ordering::Acquire) {
            let mut inner = self.inner.lock();
            let change = inner.advance(now);
            self.changed(&inner, change);
        }
    }

    /// How it stands.
    pub fn shown(&self) -> Shown {
        let inner = self.inner.lock();
        Shown {
            state: inner.state(),
            since: inner.since(),
            for_one: inner.is_for_one(),
        }
    }

    fn changed(&self, inner: &Breaker, change: Option<Change>) {
        let Some(change) = change else {
            return;
        };
        let closed = inner.state() == State::Closed;
        self.closed.store(closed, Ordering::Release);
        let (level, now) = match change.to {
            State::Open { .. } if inner.is_for_one() => (Level::Warn, "is open for one tenant"),
            State::Open { .. } => (Level::Warn, "is open"),
            State::HalfOpen { .. } => (Level::Info, "lets a few through"),
            State::Closed => (Level::Info, "is closed"),
        };
        self.teller.tell(Told {
            level,
            now,
            to: change.to.as_str(),
            reason: change.reason,
            detail: "",
        });
    }
}
