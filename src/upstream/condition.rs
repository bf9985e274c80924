//! How one account or endpoint is: its gate, what its attempts have shown, and whether the operator
//! wants it used. Shared by all requests and kept over reloads; tells each change.
//!
//! One short lock for each attempt and outcome; whoever only looks at one that is plainly well takes
//! none.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::Level;
use parking_lot::{Mutex, MutexGuard};

use super::balance::Standing;
use super::gate::{Change, FULL_SHARE, Gate, Pass, Phase, Reason, Terms};
use super::outlier::Look;
use super::pace::Pace;
use super::transitions::{Kind, Teller, Told};
use super::window::{Tally, Window};
use crate::config::settings::Outlier;

/// What is left to one that is strained, in thousandths.
const STRAINED_SHARE: u32 = 500;
/// One that is strained stays so for a while, or it would change with every outcome.
const STRAIN_LASTS: Duration = Duration::from_secs(5);
/// Outcomes. Fewer say nothing of how often it fails.
const ENOUGH: u32 = 5;

/// What the end of an attempt says of somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Good,
    Bad,
    Nothing,
    /// Out at once.
    Leave(Reason),
}

/// What an outcome leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Nothing to do.
    Nothing,
    /// The attempt began before the last time out: it is known already why it failed.
    Late,
    /// It has failed: is it out of line?
    Suspect,
    /// It has left.
    Left,
}

/// How it stands, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    pub state: &'static str,
    pub since: Instant,
    /// Why it is not simply in.
    pub reason: Option<Reason>,
    /// When it may be tried again.
    pub until: Option<Instant>,
}

/// One account's or endpoint's.
#[derive(Debug)]
pub struct Condition {
    /// In, wanted and not strained.
    plain: AtomicBool,
    /// Of the window, in thousandths: as it was when somebody last looked, or an attempt failed.
    errors: AtomicU32,
    inner: Mutex<Inner>,
    teller: Teller,
    /// Of what it is configured with; 0 for not yet.
    fingerprint: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    gate: Gate,
    window: Window,
    pace: Pace,
    /// Since when.
    drained: Option<Instant>,
    strained: Option<(Instant, Reason)>,
}

impl Condition {
    pub fn new(teller: Teller, now: Instant) -> Self {
        Self {
            plain: AtomicBool::new(true),
            errors: AtomicU32::new(0),
            inner: Mutex::new(Inner {
                gate: Gate::new(now),
                window: Window::new(now),
                pace: Pace::new(now),
                drained: None,
                strained: None,
            }),
            teller,
            fingerprint: AtomicU64::new(0),
        }
    }

    /// It is configured with what has this fingerprint. If that is another than before, and it is
    /// out for what that may have mended, it is tried again at once.
    pub fn configure(&self, fingerprint: u64, mends: &[Reason], now: Instant) {
        let fingerprint = fingerprint.max(1);
        let before = self.fingerprint.swap(fingerprint, Ordering::AcqRel);
        if before != 0 && before != fingerprint {
            self.try_now(mends, Reason::Operator, now);
        }
    }

    /// What it may be sent now.
    pub fn standing(&self, now: Instant, terms: Terms) -> Standing {
        if self.plain.load(Ordering::Acquire) {
            return Standing::Open {
                permille: FULL_SHARE,
            };
        }
        let inner = self.inner.lock();
        if inner.drained.is_some() {
            return Standing::Closed;
        }
        match inner.gate.standing(now, terms) {
            Standing::Open { permille } if inner.strained.is_some() => Standing::Open {
                permille: permille.min(STRAINED_SHARE),
            },
            standing => standing,
        }
    }

    /// How many of its latest attempts have failed, in thousandths; 0 if few are known of.
    pub fn errors(&self) -> u32 {
        self.errors.load(Ordering::Relaxed)
    }

    /// How long until it may be tried; `None` if that is not a matter of time.
    pub fn opens_in(&self, now: Instant, terms: Terms) -> Option<Duration> {
        let inner = self.inner.lock();
        let wanted = inner.drained.is_none();
        wanted.then(|| inner.gate.opens_in(now, terms)).flatten()
    }

    /// Lets a request through, whose first content is `awaited` or does not matter. `None` if it
    /// may not.
    pub fn admit(&self, awaited: bool, now: Instant, terms: Terms) -> Option<Pass> {
        let mut inner = self.inner.lock();
        if inner.drained.is_some() {
            return None;
        }
        if let Some(change) = inner.gate.advance(now) {
            self.changed(&mut inner, change, now, "");
        }
        let pass = inner.gate.admit(now, terms)?;
        if awaited {
            inner.pace.began(now);
        }
        Some(pass)
    }

    /// The request that was let through shows first content; `awaited` since then, if it was. Is it
    /// `slow` beside the peers, a probe has failed.
    pub fn first_content(
        &self,
        pass: Pass,
        awaited: Option<Instant>,
        slow: bool,
        now: Instant,
        terms: Terms,
    ) {
        if awaited.is_none() && !pass.is_probe() {
            return;
        }
        let mut inner = self.inner.lock();
        // What began before the last time out says nothing of now.
        if !inner.gate.is_current(pass) {
            return;
        }
        if let Some(began) = awaited {
            inner.pace.first_content(began, now);
        }
        let change = match slow {
            true => inner.gate.failed(pass, now, terms, self.roll()),
            false => inner.gate.succeeded(pass, now, terms),
        };
        if let Some(change) = change {
            self.changed(&mut inner, change, now, "");
        }
    }

    /// The request that was let through has ended; `awaited` since then, if its first content still
    /// was.
    /// Nothing counts without rules, but a probe and whoever must leave.
    pub fn ended(
        &self,
        pass: Pass,
        verdict: Verdict,
        awaited: Option<Instant>,
        now: Instant,
        rules: Option<&Outlier>,
    ) -> After {
        let terms = Terms::of(rules);
        let mut inner = self.inner.lock();
        if !inner.gate.is_current(pass) {
            return After::Late;
        }
        if let Some(began) = awaited {
            inner.pace.ended_without(began);
        }
        let change = match verdict {
            Verdict::Good => inner.gate.succeeded(pass, now, terms),
            Verdict::Bad => inner.gate.failed(pass, now, terms, self.roll()),
            Verdict::Nothing => {
                inner.gate.give_back(pass);
                None
            }
            Verdict::Leave(reason) => Some(inner.gate.leave(reason, now, terms, self.roll())),
        };
        if let Some(change) = change {
            self.changed(&mut inner, change, now, "");
            return match change.to {
                Phase::Out { .. } => After::Left,
                _ => After::Nothing,
            };
        }
        let Some(rules) = rules else {
            return After::Nothing;
        };
        match verdict {
            Verdict::Good => inner.window.record(true, now, rules.window),
            Verdict::Bad => {
                inner.window.record(false, now, rules.window);
                self.show_errors(inner.window.tally(now));
                return After::Suspect;
            }
            Verdict::Nothing | Verdict::Leave(_) => {}
        }
        After::Nothing
    }

    /// Is it out as slow, and was not when the attempt began?
    pub fn has_become_slow(&self, pass: Pass) -> bool {
        let inner = self.inner.lock();
        let slow = inner.gate.reason() == Some(Reason::Slow);
        slow && inner.gate.is_out() && !inner.gate.is_current(pass)
    }

    /// Did the attempt begin before the last time out?
    pub fn is_late(&self, pass: Pass) -> bool {
        !self.inner.lock().gate.is_current(pass)
    }

    /// The request that was let through ended without showing anything.
    pub fn give_back(&self, pass: Pass, awaited: Option<Instant>) {
        if awaited.is_none() && !pass.is_probe() {
            return;
        }
        let mut inner = self.inner.lock();
        if let Some(began) = awaited.filter(|_| inner.gate.is_current(pass)) {
            inner.pace.ended_without(began);
        }
        inner.gate.give_back(pass);
    }

    /// What it has shown, beside its peers.
    pub fn look(&self, now: Instant) -> Look {
        let inner = self.inner.lock();
        let tally = inner.window.tally(now);
        self.show_errors(tally);
        Look {
            streak: inner.window.streak(),
            tally,
            pace: inner.pace.estimate(now),
            out: inner.gate.is_out() || inner.drained.is_some(),
            ejected: inner.gate.is_out()
                && matches!(
                    inner.gate.reason(),
                    Some(Reason::Failures | Reason::Errors | Reason::Slow)
                ),
            ramping: matches!(inner.gate.phase(), Phase::Ramp { .. }),
        }
    }

    /// Out for as long as the terms say, unless it is out already.
    pub fn leave(&self, reason: Reason, detail: &str, now: Instant, terms: Terms) {
        let mut inner = self.inner.lock();
        if matches!(inner.gate.phase(), Phase::Out { .. }) {
            return;
        }
        let change = inner.gate.leave(reason, now, terms, self.roll());
        self.changed(&mut inner, change, now, detail);
    }

    /// Out until then, or until it is told otherwise; said again, it lasts longer.
    pub fn leave_until(&self, reason: Reason, detail: &str, until: Option<Instant>, now: Instant) {
        let mut inner = self.inner.lock();
        if !inner.gate.stay_out(reason, until) {
            let change = inner.gate.leave_until(reason, until, now);
            self.changed(&mut inner, change, now, detail);
        }
    }

    /// If it is out, and for one of these reasons: it is tried again at once.
    pub fn try_now(&self, only: &[Reason], reason: Reason, now: Instant) {
        let mut inner = self.inner.lock();
        if inner.gate.reason().is_some_and(|it| only.contains(&it))
            && let Some(change) = inner.gate.try_now(reason, now)
        {
            self.changed(&mut inner, change, now, "");
        }
    }

    /// It is known to be well again.
    pub fn welcome(&self, reason: Reason, detail: &str, now: Instant, terms: Terms) {
        let mut inner = self.inner.lock();
        if let Some(change) = inner.gate.welcome(reason, now, terms) {
            self.changed(&mut inner, change, now, detail);
        }
    }

    /// The same, if it is out without an end.
    pub fn welcome_unending(&self, reason: Reason, now: Instant, terms: Terms) {
        let mut inner = self.inner.lock();
        if inner.gate.phase() == (Phase::Out { until: None })
            && let Some(change) = inner.gate.welcome(reason, now, terms)
        {
            self.changed(&mut inner, change, now, "");
        }
    }

    /// In, wanted and not strained?
    pub fn is_plain(&self) -> bool {
        self.plain.load(Ordering::Acquire)
    }

    /// Its failures were somebody else's.
    pub fn forgive(&self) {
        let mut inner = self.inner.lock();
        inner.window.forgive();
        self.show_errors(Tally::default());
    }

    /// Goes on to where time alone takes it. `unending` ends as well what has no end.
    pub fn advance(&self, unending: bool, now: Instant) {
        if self.plain.load(Ordering::Acquire) {
            return;
        }
        let mut inner = self.inner.lock();
        let change = match inner.gate.phase() {
            Phase::Out { until: None } if unending => inner.gate.try_now(Reason::Time, now),
            _ => inner.gate.advance(now),
        };
        if let Some(change) = change {
            self.changed(&mut inner, change, now, "");
        }
    }

    /// It is near to being out of line, for a reason, or no longer.
    pub fn strain(&self, strained: Option<Reason>, now: Instant) {
        if strained.is_none() && self.plain.load(Ordering::Acquire) {
            return;
        }
        let mut inner = self.inner.lock();
        let (level, what, reason) = match (inner.strained, strained) {
            (None, Some(reason)) => (Level::Warn, "does worse than it should", reason),
            (Some((since, reason)), None) if now >= since + STRAIN_LASTS => {
                (Level::Info, "is well again", reason)
            }
            _ => return,
        };
        inner.strained = strained.map(|reason| (now, reason));
        self.refresh(&inner);
        if inner.gate.phase() == Phase::In && inner.drained.is_none() {
            self.tell(level, what, self.word(&inner), reason, "");
        }
    }

    /// Takes no new requests, or takes them again. Those under way go on.
    pub fn drain(&self, drained: bool, now: Instant) {
        let mut inner = self.inner.lock();
        if inner.drained.is_some() == drained {
            return;
        }
        inner.drained = drained.then_some(now);
        self.refresh(&inner);
        let what = match drained {
            true => "is drained",
            false => "is no longer drained",
        };
        self.tell(Level::Info, what, self.word(&inner), Reason::Operator, "");
    }

    pub fn is_drained(&self) -> bool {
        self.inner.lock().drained.is_some()
    }

    /// How it stands.
    pub fn shown(&self) -> Shown {
        let inner = self.inner.lock();
        let until = match inner.gate.phase() {
            Phase::Out { until } => until,
            Phase::Ramp { until } => Some(until),
            Phase::In | Phase::HalfOpen => None,
        };
        let own = (inner.gate.since(), inner.gate.reason(), until);
        let (since, reason, until) = match (inner.drained, inner.strained) {
            (Some(since), _) => (since, Some(Reason::Operator), None),
            (None, Some((since, reason))) if inner.gate.phase() == Phase::In => {
                (since, Some(reason), None)
            }
            _ => own,
        };
        Shown {
            state: self.word(&inner),
            since,
            reason,
            until,
        }
    }

    fn changed(
        &self,
        inner: &mut MutexGuard<'_, Inner>,
        change: Change,
        now: Instant,
        detail: &str,
    ) {
        // What was before says nothing of what comes.
        if change.to != Phase::In {
            inner.window.forget();
            self.show_errors(Tally::default());
            inner.pace.forget(now);
            if matches!(change.to, Phase::Out { .. }) {
                // Whoever still waits was let through before.
                inner.pace.forget_waiting();
            }
            inner.strained = None;
        }
        self.refresh(inner);
        let (level, what) = match change.to {
            Phase::Out { .. } => (Level::Warn, "is out"),
            Phase::HalfOpen => (Level::Info, "is tried again"),
            Phase::Ramp { .. } => (Level::Info, "is back, with little at first"),
            Phase::In if change.reason == Reason::Time => {
                (Level::Info, "takes its full share again")
            }
            Phase::In => (Level::Info, "is back"),
        };
        let to = phase_word(self.teller.kind, change.to, inner.gate.reason());
        self.tell(level, what, to, change.reason, detail);
    }

    /// To be called under the lock.
    fn show_errors(&self, tally: Tally) {
        let share = u64::from(tally.bad) * 1_000 / u64::from(tally.total().max(1));
        let errors = match tally.total() >= ENOUGH {
            true => u32::try_from(share).unwrap_or(1_000),
            false => 0,
        };
        self.errors.store(errors, Ordering::Relaxed);
    }

    fn refresh(&self, inner: &Inner) {
        let plain =
            inner.gate.phase() == Phase::In && inner.drained.is_none() && inner.strained.is_none();
        self.plain.store(plain, Ordering::Release);
    }

    fn word(&self, inner: &Inner) -> &'static str {
        match inner.gate.phase() {
            _ if inner.drained.is_some() => "drained",
            Phase::In if inner.strained.is_some() => "degraded",
            phase => phase_word(self.teller.kind, phase, inner.gate.reason()),
        }
    }

    fn tell(&self, level: Level, now: &str, to: &'static str, reason: Reason, detail: &str) {
        self.teller.tell(Told {
            level,
            now,
            to,
            reason,
            detail,
        });
    }

    fn roll(&self) -> u64 {
        self.teller.transitions.roll()
    }
}

/// The operator's word for a phase.
fn phase_word(kind: Kind, phase: Phase, reason: Option<Reason>) -> &'static str {
    match (kind, phase, reason) {
        (_, Phase::HalfOpen, _) => "probing",
        (Kind::Account, Phase::In, _) => "good",
        (Kind::Account, Phase::Ramp { .. }, _) => "ramping",
        (Kind::Account, Phase::Out { .. }, Some(Reason::Unpaid)) => "unpaid",
        (Kind::Account, Phase::Out { .. }, Some(Reason::Refused)) => "dead",
        (Kind::Account, Phase::Out { .. }, _) => "failing",
        (_, Phase::In, _) => "healthy",
        (_, Phase::Ramp { .. }, _) => "degraded",
        (_, Phase::Out { .. }, _) => "ejected",
    }
}

/// Every word by which an account's state is shown; it is cooling while a model of it rests.
pub const ACCOUNT_STATES: [&str; 8] = [
    "good", "cooling", "unpaid", "dead", "failing", "probing", "ramping", "drained",
];

/// Every word by which an endpoint's state is shown.
pub const ENDPOINT_STATES: [&str; 5] = ["healthy", "probing", "degraded", "ejected", "drained"];

#[cfg(test)]
mod tests;
