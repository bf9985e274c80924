//! An account and an endpoint that an attempt holds, and what its outcome says of them. Which
//! failure is whose is decided here; what follows from it, elsewhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::account::{AccountLease, rest_after_429};
use super::breaker::{Caller, Ended, SharedBreaker};
use super::condition::{After, Condition, Verdict};
use super::endpoint::{EndpointLease, Heard};
use super::gate::{Pass, Reason};
use super::lane::{Lane, Tried, Wish};
use super::latency::Latency;
use super::pool::EndpointSlot;
use super::queue::Release;
use crate::config::settings::{Breaker, FailureClass, Retry};

/// How an attempt goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Something of the answer itself has come. More outcomes may follow.
    FirstContent,
    /// The answer is whole.
    Complete,
    /// An address could not be reached, and others of the endpoint can: nobody is to blame.
    NotReached,
    /// Also after content: a cut stream is a failure.
    Failed {
        class: FailureClass,
        /// If there was one.
        status: Option<u16>,
        /// As the provider asks.
        retry_after: Option<Duration>,
    },
}

/// What the end of an attempt says of everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Says {
    account: Verdict,
    endpoint: Verdict,
    /// `None` for nothing.
    breaker: Option<bool>,
}

impl Says {
    const WELL: Self = Self {
        account: Verdict::Good,
        endpoint: Verdict::Good,
        breaker: Some(true),
    };
    const NOTHING: Self = Self {
        account: Verdict::Nothing,
        endpoint: Verdict::Nothing,
        breaker: None,
    };

    fn of(class: FailureClass, status: Option<u16>) -> Self {
        match class {
            // No account was shown to anybody.
            FailureClass::Connect | FailureClass::Tls => Self {
                account: Verdict::Nothing,
                endpoint: Verdict::Bad,
                breaker: None,
            },
            FailureClass::RateLimited => Self {
                endpoint: Verdict::Good,
                ..Self::NOTHING
            },
            FailureClass::AccountRefused => Self {
                account: Verdict::Leave(match status {
                    Some(402) => Reason::Unpaid,
                    _ => Reason::Refused,
                }),
                endpoint: Verdict::Good,
                breaker: None,
            },
            FailureClass::Garbage
            | FailureClass::Reset
            | FailureClass::ServerError
            | FailureClass::BadGateway
            | FailureClass::Unavailable
            | FailureClass::GatewayTimeout
            | FailureClass::ErrorInAnswer
            | FailureClass::NoResources
            | FailureClass::Cut
            | FailureClass::Deadline => Self {
                account: Verdict::Bad,
                endpoint: Verdict::Bad,
                breaker: Some(false),
            },
        }
    }

    fn is_failure(self) -> bool {
        matches!(self.endpoint, Verdict::Bad)
    }
}

/// A chosen account and endpoint, both held until this is dropped; whoever waits gets them next.
#[must_use]
#[derive(Debug)]
pub struct Chosen {
    pub account: usize,
    pub endpoint: usize,
    passes: Passes,
    _account_lease: AccountLease,
    _endpoint_lease: EndpointLease,
    /// Dropped last: it looks for somebody to take the places.
    _release: Release,
}

impl Chosen {
    pub(super) fn new(
        passes: Passes,
        account_lease: AccountLease,
        endpoint_lease: EndpointLease,
        release: Release,
    ) -> Self {
        Self {
            account: passes.account,
            endpoint: passes.endpoint,
            passes,
            _account_lease: account_lease,
            _endpoint_lease: endpoint_lease,
            _release: release,
        }
    }

    /// Is it to find out whether somebody is well again?
    pub fn is_probe(&self) -> bool {
        self.passes.all().any(Pass::is_probe)
    }

    /// To be asked later on; `None` if nobody waits for first content.
    pub fn stuck(&self) -> Option<Stuck> {
        let passes = &self.passes;
        let pass = passes.of_account.filter(|_| passes.awaited)?;
        Some(Stuck {
            lane: passes.lane.clone(),
            account: passes.account,
            pass,
        })
    }

    /// Tells how the attempt goes. What comes after a whole answer or a failure is not heard;
    /// without either, when this is dropped, the attempt has shown nothing.
    pub fn report(&mut self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::FirstContent => self.passes.first_content(now),
            Outcome::Complete => self.passes.ended(Says::WELL, None, now),
            Outcome::NotReached => self.passes.ended(Says::NOTHING, None, now),
            Outcome::Failed {
                class,
                status,
                retry_after,
            } => {
                if class == FailureClass::RateLimited {
                    self.passes.rate_limited(retry_after, now);
                }
                let says = Says::of(class, status);
                self.passes.ended(says, Some(class), now);
            }
        }
    }
}

/// A stream that waits for its first content, at somebody who may have become slow since.
pub struct Stuck {
    lane: Arc<Lane>,
    account: usize,
    pass: Pass,
}

impl Stuck {
    /// Is its account out as slow, with another one there to take over? If so, this takes a retry
    /// from the upstream's budget, and is true only if there is one.
    pub fn gives_up(&self, tried: &Tried, now: Instant, rules: &Retry) -> bool {
        let pool = &self.lane.pool;
        let own = pool.accounts.get(self.account);
        own.is_some_and(|own| own.state.condition.has_become_slow(self.pass))
            && self.lane.has_another(self.account, tried, now)
            && pool.budget.try_retry(now, rules)
    }
}

/// What the attempt was let through by; given back when dropped, if nothing was told.
#[derive(Debug)]
pub(super) struct Passes {
    lane: Arc<Lane>,
    account: usize,
    endpoint: usize,
    began: Instant,
    /// First content is watched for, and has not come.
    awaited: bool,
    /// So far as choosing goes by it.
    timed: bool,
    caller: Option<Caller>,
    of_account: Option<Pass>,
    of_endpoint: Option<Pass>,
    of_breaker: Option<Pass>,
}

impl Passes {
    /// Asks everybody to let an attempt through; `None` if somebody no longer does.
    pub(super) fn take(
        lane: &Arc<Lane>,
        account: usize,
        endpoint: usize,
        wish: &Wish,
        now: Instant,
    ) -> Option<Self> {
        let (streamed, caller) = (wish.streamed, wish.caller);
        let mut passes = Self {
            lane: lane.clone(),
            account,
            endpoint,
            began: now,
            awaited: streamed,
            timed: false,
            caller,
            of_account: None,
            of_endpoint: None,
            of_breaker: None,
        };
        let pool = &lane.pool;
        let slot = passes.slot()?;
        passes.of_endpoint = Some(
            slot.state
                .condition
                .admit(streamed, now, pool.watch().terms)?,
        );
        if let Some((breaker, rules)) = passes.breaker() {
            passes.of_breaker = Some(breaker.admit(caller, now, rules)?);
        }
        let account = pool.accounts.get(account)?;
        let admitted = account.state.condition.admit(streamed, now, pool.terms)?;
        passes.of_account = Some(admitted);
        passes.timed = streamed;
        if streamed {
            passes.latencies().for_each(|latency| latency.began(now));
        }
        Some(passes)
    }

    /// Of the account's model and of the endpoint.
    fn latencies(&self) -> impl Iterator<Item = &Latency> {
        let place = self.lane.places.get(self.account);
        let slot = self.lane.pool.endpoints.get(self.endpoint);
        let of_place = place.map(|place| &place.latency);
        of_place
            .into_iter()
            .chain(slot.map(|slot| &slot.state.latency))
    }

    fn all(&self) -> impl Iterator<Item = Pass> {
        let all = [self.of_account, self.of_endpoint, self.of_breaker];
        all.into_iter().flatten()
    }

    fn account(&self) -> Option<&Condition> {
        let slot = self.lane.pool.accounts.get(self.account)?;
        Some(&slot.state.condition)
    }

    fn slot(&self) -> Option<&EndpointSlot> {
        self.lane.pool.endpoints.get(self.endpoint)
    }

    fn breaker(&self) -> Option<(&SharedBreaker, &Breaker)> {
        let breaker = self.lane.breakers.get(self.endpoint)?;
        Some((breaker, self.lane.pool.settings.breaker.as_ref()?))
    }

    fn first_content(&mut self, now: Instant) {
        let pool = &self.lane.pool;
        let took = now.saturating_duration_since(self.began);
        self.lane.first_content(self.account, took, self.began, now);
        let timed = std::mem::take(&mut self.timed);
        let awaited = self.awaited.then_some(self.began);
        // Only of a probe: of others, one says nothing.
        let watched = |pass: Pass| (awaited.is_some() && pass.is_probe()).then_some(took);
        if let (Some(pass), Some(account)) = (self.of_account, self.account()) {
            let slow = watched(pass).is_some_and(|it| pool.is_slow_account(self.account, it, now));
            if pass.is_probe()
                && !slow
                && let Some(place) = self.lane.places.get(self.account)
            {
                place.latency.forget();
            }
            account.first_content(pass, awaited, slow, now, pool.terms);
        }
        if let (Some(pass), Some(slot)) = (self.of_endpoint, self.slot()) {
            let slow = watched(pass);
            let slow = slow.is_some_and(|it| pool.is_slow_endpoint(self.endpoint, it, now));
            if pass.is_probe() && !slow {
                slot.state.latency.forget();
            }
            let (condition, terms) = (&slot.state.condition, pool.watch().terms);
            condition.first_content(pass, awaited, slow, now, terms);
        }
        if timed {
            let latencies = self.latencies();
            latencies.for_each(|latency| latency.first_content(self.began, now));
        }
        if let (Some(pass), Some((breaker, rules))) = (self.of_breaker, self.breaker())
            && pass.is_probe()
        {
            let caller = self.caller;
            breaker.record(pass, Ended { caller, good: true }, now, rules);
        }
        self.awaited = false;
        for pass in [
            &mut self.of_account,
            &mut self.of_endpoint,
            &mut self.of_breaker,
        ] {
            *pass = pass.map(Pass::settled);
        }
    }

    fn rate_limited(&self, retry_after: Option<Duration>, now: Instant) {
        if self.of_account.is_some() {
            self.lane.rate_limited(self.account, self.began, now);
            self.lane
                .rest(self.account, now, rest_after_429(retry_after));
        }
    }

    /// The end, and what it says.
    fn ended(&mut self, says: Says, class: Option<FailureClass>, now: Instant) {
        let (Some(of_account), Some(of_endpoint)) = (self.of_account, self.of_endpoint) else {
            return;
        };
        // Why those fail that began before somebody left or a breaker opened is known already.
        let says = match says.is_failure() && self.is_late() {
            true => Says::NOTHING,
            false => says,
        };
        let lane = self.lane.clone();
        let rules = lane.pool.settings.outlier.as_ref();
        let awaited = std::mem::take(&mut self.awaited).then_some(self.began);
        let of_breaker = self.of_breaker.take();
        self.of_account = None;
        self.of_endpoint = None;
        let account = self
            .account()
            .map(|account| account.ended(of_account, says.account, awaited, now, rules));
        let endpoint = self.slot().map(|slot| {
            let condition = &slot.state.condition;
            condition.ended(of_endpoint, says.endpoint, awaited, now, rules)
        });
        // The account first: what it is to blame for is no reason to close an endpoint.
        if account == Some(After::Suspect) {
            lane.pool.judge_account(self.account, now);
        }
        let left = match endpoint {
            Some(After::Left) => true,
            Some(After::Suspect) => lane.pool.judge_endpoint(self.endpoint, now),
            _ => false,
        };
        let opened = self.tell_breaker(of_breaker, says.breaker, now);
        if left || opened {
            lane.pool.forgive_accounts();
        }
        if says != Says::NOTHING {
            self.tell_connection(class, now);
        }
    }

    fn is_late(&self) -> bool {
        let late = |condition: Option<&Condition>, pass: Option<Pass>| {
            condition
                .zip(pass)
                .is_some_and(|(it, pass)| it.is_late(pass))
        };
        let endpoint = self.slot().map(|slot| &slot.state.condition);
        late(self.account(), self.of_account)
            || late(endpoint, self.of_endpoint)
            || (self.breaker().zip(self.of_breaker))
                .is_some_and(|((breaker, _), pass)| breaker.is_late(pass, self.caller))
    }

    /// True if it opened.
    fn tell_breaker(&self, pass: Option<Pass>, good: Option<bool>, now: Instant) -> bool {
        let (Some(pass), Some((breaker, rules))) = (pass, self.breaker()) else {
            return false;
        };
        match good {
            Some(good) => {
                let caller = self.caller;
                breaker.record(pass, Ended { caller, good }, now, rules)
            }
            None => {
                breaker.give_back(pass);
                false
            }
        }
    }

    /// A connection that fails counts with the checks; where there are none, whatever else came
    /// shows that the endpoint is there.
    fn tell_connection(&self, class: Option<FailureClass>, now: Instant) {
        let watch = self.lane.pool.watch();
        let good = !matches!(class, Some(FailureClass::Connect | FailureClass::Tls));
        if let Some(slot) = self.slot().filter(|_| !good || !watch.checked) {
            let heard = Heard {
                good,
                reason: Reason::Checks,
                text: class.map_or("answered", FailureClass::as_str),
            };
            slot.state.record(heard, watch, now);
        }
    }
}

impl Drop for Passes {
    fn drop(&mut self) {
        if self.timed {
            let began = self.began;
            self.latencies().for_each(|it| it.ended_without(began));
        }
        let awaited = self.awaited.then_some(self.began);
        if let (Some(pass), Some(account)) = (self.of_account, self.account()) {
            account.give_back(pass, awaited);
        }
        if let (Some(pass), Some(slot)) = (self.of_endpoint, self.slot()) {
            slot.state.condition.give_back(pass, awaited);
        }
        if let (Some(pass), Some((breaker, _))) = (self.of_breaker, self.breaker()) {
            breaker.give_back(pass);
        }
    }
}

#[cfg(test)]
mod tests;
