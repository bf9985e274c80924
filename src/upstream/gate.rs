//! The life of one account or endpoint: in, out for a while, tried again by a few requests, back by
//! a ramp. Pure: when somebody must leave is decided elsewhere, mostly in [`super::outlier`].

use std::time::{Duration, Instant};

use super::balance::Standing;
use crate::config::settings::Outlier;

/// All of it.
pub const FULL_SHARE: u32 = 1_000;
/// A ramp begins with so many thousandths.
const FIRST_SHARE: u32 = 100;
/// A time out is up to so many thousandths shorter or longer, so that not all come back at once.
const JITTER: u64 = 200;
/// A probe that has shown nothing for so long no longer keeps the next from being sent: it may be an
/// unstreamed request at somebody silent, which is waited for for minutes.
pub(super) const PROBE_COUNTS: Duration = Duration::from_secs(5);
/// Probes that were given back without a word make room for so many more: clients that leave early
/// should not be all who are let through.
const MOST_MORE: u32 = 3;
/// Until a probe's end is known, nobody can tell when the next may go; this is what is said.
const PROBE_TIME: Duration = Duration::from_secs(1);
/// Without rules for outliers: the time out after the provider's verdict.
const VERDICT_HOLDS: Duration = Duration::from_secs(30);

/// Why something changed; one word for each in log, metrics and status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Failures in a row.
    Failures,
    /// The share of failures.
    Errors,
    /// First content takes far longer than elsewhere.
    Slow,
    /// 401 or 403.
    Refused,
    /// 402, or the provider's own account of what is left.
    Unpaid,
    /// Checks, or connections, failed or succeeded.
    Checks,
    /// The public key is none of the pinned.
    Pin,
    /// A request that was let through failed or succeeded.
    Probe,
    /// The time for it had come.
    Time,
    /// The operator says so.
    Operator,
    /// Money is there again.
    Paid,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::Errors => "errors",
            Self::Slow => "slow",
            Self::Refused => "refused",
            Self::Unpaid => "unpaid",
            Self::Checks => "checks",
            Self::Pin => "pin",
            Self::Probe => "probe",
            Self::Time => "time",
            Self::Operator => "operator",
            Self::Paid => "paid",
        }
    }
}

/// How long somebody is out, and how it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The first time.
    pub first: Duration,
    /// It doubles up to this.
    pub longest: Duration,
    /// Requests at one time while it is tried again; at least 1.
    pub probes: u32,
    /// From the first success to the full share; zero for at once.
    pub ramp: Duration,
}

impl Terms {
    /// Of these rules; without any, what holds for the provider's verdicts.
    pub fn of(rules: Option<&Outlier>) -> Self {
        match rules {
            Some(rules) => Self {
                first: rules.ejection,
                longest: rules.max_ejection.max(rules.ejection),
                probes: rules.probes.max(1),
                ramp: rules.ramp,
            },
            None => Self {
                first: VERDICT_HOLDS,
                longest: VERDICT_HOLDS,
                probes: 1,
                ramp: Duration::ZERO,
            },
        }
    }
}

/// What a request was let through as. It comes back exactly once: with how the request fared, or
/// by [`Gate::give_back`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    serial: u32,
    probe: bool,
}

impl Pass {
    pub(super) fn new(serial: u32, probe: bool) -> Self {
        Self { serial, probe }
    }

    pub fn is_probe(self) -> bool {
        self.probe
    }

    /// It has shown what it was to find out, and is a request like others from here on.
    pub(super) fn settled(self) -> Self {
        Self {
            probe: false,
            ..self
        }
    }

    pub(super) fn serial(self) -> u32 {
        self.serial
    }
}

/// Where in its life it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    In,
    /// `None`: until it is let back in.
    Out {
        until: Option<Instant>,
    },
    HalfOpen,
    Ramp {
        until: Instant,
    },
}

/// A change of phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    pub to: Phase,
    pub reason: Reason,
}

/// One account's or endpoint's.
#[derive(Debug)]
pub struct Gate {
    phase: Phase,
    since: Instant,
    /// Why it left; kept until it is in again.
    reason: Option<Reason>,
    /// Counts the times it left: whoever was let through before says nothing of after.
    serial: u32,
    /// Requests under way that try it.
    probing: u32,
    /// Those that ended without showing anything, since it is tried.
    fruitless: u32,
    /// When the latest of them was let through.
    probed: Instant,
    /// Times out since it was last in.
    times: u32,
}

impl Gate {
    pub fn new(now: Instant) -> Self {
        Self {
            phase: Phase::In,
            since: now,
            reason: None,
            serial: 0,
            probing: 0,
            fruitless: 0,
            probed: now,
            times: 0,
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Since when it has been in this phase.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Why it left, until it is in again.
    pub fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// Neither fully in nor on its way back.
    pub fn is_out(&self) -> bool {
        matches!(self.phase, Phase::Out { .. } | Phase::HalfOpen)
    }

    /// What it may be sent now.
    pub fn standing(&self, now: Instant, terms: Terms) -> Standing {
        match self.phase {
            Phase::In => Standing::Open {
                permille: FULL_SHARE,
            },
            Phase::Out { until: Some(until) } if until <= now => Standing::Probe,
            Phase::Out { .. } => Standing::Closed,
            Phase::HalfOpen if self.is_taken(now, terms) => Standing::Closed,
            Phase::HalfOpen => Standing::Probe,
            Phase::Ramp { until } => Standing::Open {
                permille: share(until.saturating_duration_since(now), terms.ramp),
            },
        }
    }

    /// How long until it may be tried; `None` if that is not a matter of time.
    pub fn opens_in(&self, now: Instant, terms: Terms) -> Option<Duration> {
        match self.phase {
            Phase::Out { until } => Some(until?.saturating_duration_since(now)),
            Phase::HalfOpen if self.is_taken(now, terms) => Some(PROBE_TIME),
            Phase::In | Phase::HalfOpen | Phase::Ramp { .. } => Some(Duration::ZERO),
        }
    }

    /// Goes on to where time alone takes it.
    pub fn advance(&mut self, now: Instant) -> Option<Change> {
        match self.phase {
            Phase::Out { until: Some(until) } if until <= now => {
                Some(self.become_phase(Phase::HalfOpen, Reason::Time, now))
            }
            Phase::Ramp { until } if until <= now => {
                self.times = 0;
                let change = self.become_phase(Phase::In, Reason::Time, now);
                self.reason = None;
                Some(change)
            }
            _ => None,
        }
    }

    /// Lets a request through; `None` if it may not. To be called after [`Gate::advance`].
    pub fn admit(&mut self, now: Instant, terms: Terms) -> Option<Pass> {
        let probe = match self.phase {
            Phase::In | Phase::Ramp { .. } => false,
            Phase::Out { .. } => return None,
            Phase::HalfOpen if self.is_taken(now, terms) => return None,
            Phase::HalfOpen => true,
        };
        if probe {
            self.probing = self.probing.saturating_add(1);
            self.probed = now;
        }
        Some(Pass::new(self.serial, probe))
    }

    /// Was it let through since the last time out? What an earlier one shows is known already.
    pub fn is_current(&self, pass: Pass) -> bool {
        pass.serial == self.serial
    }

    /// The request ended without showing anything.
    pub fn give_back(&mut self, pass: Pass) {
        if pass.probe && self.is_current(pass) {
            self.probing = self.probing.saturating_sub(1);
            self.fruitless = self.fruitless.saturating_add(1);
        }
    }

    fn end_probe(&mut self, pass: Pass) {
        self.give_back(pass);
        self.fruitless = 0;
    }

    /// The request has shown that it is well.
    pub fn succeeded(&mut self, pass: Pass, now: Instant, terms: Terms) -> Option<Change> {
        self.end_probe(pass);
        let tried = pass.probe && self.is_current(pass) && self.phase == Phase::HalfOpen;
        tried.then(|| self.rise(Reason::Probe, now, terms))
    }

    /// The request has shown that it is ill: a probe takes it out again, for twice as long.
    pub fn failed(&mut self, pass: Pass, now: Instant, terms: Terms, seed: u64) -> Option<Change> {
        self.end_probe(pass);
        let tried = pass.probe && self.is_current(pass) && self.phase == Phase::HalfOpen;
        let kept = self.reason;
        let change = tried.then(|| self.leave(Reason::Probe, now, terms, seed));
        self.reason = kept.or(self.reason);
        change
    }

    /// Leaves, for twice as long as the last time if it was not in meanwhile.
    pub fn leave(&mut self, reason: Reason, now: Instant, terms: Terms, seed: u64) -> Change {
        let doublings = self.times.min(31);
        let pause = terms.first.saturating_mul(1 << doublings);
        let pause = jittered(pause.min(terms.longest), seed).min(terms.longest);
        self.go(reason, Some(now + pause), now)
    }

    /// Leaves until then, or until it is let back in.
    pub fn leave_until(&mut self, reason: Reason, until: Option<Instant>, now: Instant) -> Change {
        self.go(reason, until, now)
    }

    /// What it is out for holds until then as well, and says nothing new.
    pub fn stay_out(&mut self, reason: Reason, until: Option<Instant>) -> bool {
        let stays = self.reason == Some(reason) && matches!(self.phase, Phase::Out { .. });
        if stays {
            self.phase = Phase::Out { until };
        }
        stays
    }

    /// It is tried again without waiting longer.
    pub fn try_now(&mut self, reason: Reason, now: Instant) -> Option<Change> {
        let out = matches!(self.phase, Phase::Out { .. });
        out.then(|| self.become_phase(Phase::HalfOpen, reason, now))
    }

    /// It is known to be well: back by the ramp.
    pub fn welcome(&mut self, reason: Reason, now: Instant, terms: Terms) -> Option<Change> {
        self.is_out().then(|| self.rise(reason, now, terms))
    }

    /// Do as many try it as may?
    fn is_taken(&self, now: Instant, terms: Terms) -> bool {
        let fresh = now.saturating_duration_since(self.probed) < PROBE_COUNTS;
        let most = terms.probes.saturating_add(self.fruitless.min(MOST_MORE));
        self.probing >= most && fresh
    }

    fn go(&mut self, reason: Reason, until: Option<Instant>, now: Instant) -> Change {
        self.serial = self.serial.wrapping_add(1);
        self.probing = 0;
        self.fruitless = 0;
        self.times = self.times.saturating_add(1);
        self.reason = Some(reason);
        self.become_phase(Phase::Out { until }, reason, now)
    }

    fn rise(&mut self, reason: Reason, now: Instant, terms: Terms) -> Change {
        if terms.ramp.is_zero() {
            self.times = 0;
            let change = self.become_phase(Phase::In, reason, now);
            self.reason = None;
            return change;
        }
        let until = now + terms.ramp;
        self.become_phase(Phase::Ramp { until }, reason, now)
    }

    fn become_phase(&mut self, to: Phase, reason: Reason, now: Instant) -> Change {
        self.phase = to;
        self.since = now;
        Change { to, reason }
    }
}

/// Of a ramp that ends after `left`: from a tenth, linearly, to all.
fn share(left: Duration, ramp: Duration) -> u32 {
    let [left, ramp] = [left, ramp].map(|time| time.as_micros());
    let missing = u128::from(FULL_SHARE - FIRST_SHARE) * left.min(ramp) / ramp.max(1);
    FULL_SHARE - u32::try_from(missing).unwrap_or(0)
}

/// `pause`, a fifth more or less.
pub(super) fn jittered(pause: Duration, seed: u64) -> Duration {
    let permille = 1_000 - JITTER + seed % (2 * JITTER + 1);
    pause.saturating_mul(u32::try_from(permille).unwrap_or(1_000)) / 1_000
}

#[cfg(test)]
mod tests;
