//! One model of an upstream: the places that its accounts and endpoints have for it, and who holds
//! them. What to do about a lane without a free place is for [`super::queue`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::account::{AccountLease, Places};
use super::balance::{self, AccountView, EndpointView, NoneLeft, Patience};
use super::endpoint::EndpointLease;
use super::governor::Cause;
use super::pool::Pool;
use super::queue::{Line, Release};
use crate::config::settings::{AccountId, Governor as Rules};

/// An upstream's model with the places its accounts offer for it.
pub struct Lane {
    pub pool: Arc<Pool>,
    /// The upstream's name for the model; empty for calls without one.
    pub model: String,
    /// Of each account; of the first alone for what belongs to an account.
    pub(super) places: Vec<Arc<Places>>,
    pub(super) line: Arc<Line>,
    /// Requests that may wait; 0 for none.
    pub(super) max_length: usize,
}

/// Which accounts and endpoints one request has used up.
#[derive(Debug, Clone, Default)]
pub struct Tried {
    pub accounts: Vec<usize>,
    pub endpoints: Vec<usize>,
}

/// A chosen account and endpoint, both held until this is dropped; whoever waits gets them next.
#[must_use]
#[derive(Debug)]
pub struct Chosen {
    pub account: usize,
    pub endpoint: usize,
    _account_lease: AccountLease,
    _endpoint_lease: EndpointLease,
    /// Dropped last: it looks for somebody to take the places.
    _release: Release,
}

/// Why nothing was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoChoice {
    /// Every account or every endpoint is at its ceiling, or others were here before.
    Full,
    /// Every account or endpoint was tried.
    Exhausted,
}

impl From<NoneLeft> for NoChoice {
    fn from(none: NoneLeft) -> Self {
        match none {
            NoneLeft::Full => Self::Full,
            NoneLeft::Tried => Self::Exhausted,
        }
    }
}

/// What is known of an account's ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Governed {
    pub configured: Option<u32>,
    pub learned: Option<u32>,
    /// How often the ceiling came down after a 429.
    pub rate_limited: u64,
    /// How often because first content had become slow.
    pub slow: u64,
}

impl Lane {
    /// Chooses and holds an account and an endpoint for one attempt, unless somebody waits.
    ///
    /// # Errors
    /// If nothing is left to try, or there is no free place.
    pub fn choose(&self, tried: &Tried, now: Instant) -> Result<Chosen, NoChoice> {
        if self.line.is_waited_in() {
            return Err(NoChoice::Full);
        }
        self.take(tried, now)
    }

    /// The same without regard to those who wait.
    pub(super) fn take(&self, tried: &Tried, now: Instant) -> Result<Chosen, NoChoice> {
        let turn = self.pool.turn.fetch_add(1, Ordering::Relaxed);
        let patience = match self.is_queued_for() {
            false => Patience::None,
            true => Patience::Some,
        };
        // Between looking and taking, another request may have taken the last place: look again.
        for _ in 0..=self.places.len() + self.pool.endpoints.len() {
            let endpoint = balance::endpoint(&self.endpoint_views(tried, now), turn)?;
            let account = match balance::account(&self.account_views(tried, now), patience, turn) {
                Ok(account) => account,
                Err(none) => {
                    self.places.iter().for_each(|place| place.governor.press());
                    return Err(none.into());
                }
            };
            let place = self.places.get(account).ok_or(NoChoice::Exhausted)?;
            let slot = self.pool.endpoints.get(endpoint);
            let slot = slot.ok_or(NoChoice::Exhausted)?;
            let Some(endpoint_lease) = slot.state.acquire() else {
                continue;
            };
            let Some(account_lease) = place.acquire() else {
                continue;
            };
            let limited = slot.state.limit().is_some();
            return Ok(Chosen {
                account,
                endpoint,
                _account_lease: account_lease,
                _endpoint_lease: endpoint_lease,
                _release: Release::new(self.line.clone(), now, limited),
            });
        }
        Err(NoChoice::Full)
    }

    /// Is there an endpoint that is in, and an account that is awake?
    pub fn is_ready(&self, now: Instant) -> bool {
        self.pool.is_reachable(now) && self.awake(now).next().is_some()
    }

    /// May a request wait for a place?
    pub fn is_queued_for(&self) -> bool {
        self.max_length > 0
    }

    /// How long it is until an account that is left to try has rested, if there is one that is
    /// waited for.
    pub(super) fn rested_in(&self, tried: &Tried, now: Instant) -> Duration {
        let accounts = self.pool.accounts.iter().zip(&self.places).enumerate();
        let left = || {
            let left = accounts.clone();
            left.filter(|(index, _)| !tried.accounts.contains(index))
        };
        if !left().any(|(_, (_, place))| place.rest.is_resting(now)) {
            return Duration::ZERO;
        }
        let rests = left().map(|(_, (account, place))| {
            let whole = account.rest.left(now);
            whole.max(place.rest.left(now))
        });
        rests.min().unwrap_or_default()
    }

    /// The places of accounts that rest neither as a whole nor for this model.
    fn awake(&self, now: Instant) -> impl Iterator<Item = &Arc<Places>> {
        let accounts = self.pool.accounts.iter().zip(&self.places);
        let awake = accounts.filter(move |(account, place)| {
            !account.rest.is_resting(now) && !place.rest.is_resting(now)
        });
        awake.map(|(_, place)| place)
    }

    /// How many accounts it can choose from.
    pub fn width(&self) -> usize {
        self.places.len()
    }

    /// Requests in flight per account and how many may be, for status and metrics.
    pub fn loads(&self) -> impl Iterator<Item = (&AccountId, u32, Option<u32>)> {
        let accounts = self.pool.accounts.iter().zip(&self.places);
        accounts.map(|(account, place)| (&account.id, place.get(), place.ceiling()))
    }

    /// Whether each account rests for this model after a 429, for status.
    pub fn rests(&self, now: Instant) -> impl Iterator<Item = bool> {
        self.places
            .iter()
            .map(move |place| place.rest.is_resting(now))
    }

    /// What was learned of each account, for metrics.
    pub fn governed(&self) -> impl Iterator<Item = (&AccountId, Governed)> {
        let accounts = self.pool.accounts.iter().zip(&self.places);
        accounts.map(|(account, place)| {
            let governed = Governed {
                configured: place.load().configured,
                learned: place.governor.learned(),
                rate_limited: place.governor.decreases(Cause::RateLimited),
                slow: place.governor.decreases(Cause::Slow),
            };
            (&account.id, governed)
        })
    }

    /// The account rests for this model.
    pub fn rest(&self, account: usize, now: Instant, pause: Duration) {
        if let Some(place) = self.places.get(account) {
            place.rest.rest(now, pause);
        }
    }

    /// The account answered 429 to a request that was sent at `sent`. True if its ceiling came down.
    pub fn rate_limited(&self, account: usize, sent: Instant, now: Instant) -> bool {
        let Some((rules, place)) = self.learning(account) else {
            return false;
        };
        place.governor.refused(rules, place.load(), sent, now)
    }

    /// First content came `took` after the request was sent at `sent`. True if the account's
    /// ceiling came down.
    pub fn first_content(
        &self,
        account: usize,
        took: Duration,
        sent: Instant,
        now: Instant,
    ) -> bool {
        let Some((rules, place)) = self.learning(account) else {
            return false;
        };
        let governor = &place.governor;
        governor.first_content(rules, place.load(), took, sent, now)
    }

    fn learning(&self, account: usize) -> Option<(&Rules, &Arc<Places>)> {
        let rules = self.pool.settings.governor.as_ref()?;
        Some((rules, self.places.get(account)?))
    }

    /// Holds all places, also those that requests of earlier configurations hold, to this one's
    /// ceilings, and lets learned ones rise.
    pub(super) fn govern(&self, now: Instant) {
        for (account, place) in self.pool.settings.accounts.iter().zip(&self.places) {
            place.configure(account.max_concurrent.get(&self.model).copied());
            match &self.pool.settings.governor {
                Some(rules) => place.governor.recover(rules, place.load(), now),
                None => place.governor.forget(),
            }
        }
        for slot in &self.pool.endpoints {
            slot.state.configure(slot.settings.max_concurrent);
        }
    }

    /// How many requests can be served at one time; at least 1.
    pub(super) fn breadth(&self, now: Instant) -> u32 {
        let ceilings = self.awake(now).map(|place| place.ceiling());
        let limits = self.pool.endpoints.iter().map(|slot| slot.state.limit());
        // Nothing counted: as many as there are.
        let under_way = || self.places.iter().map(|place| place.get()).sum();
        let sums = [sum(ceilings), sum(limits)];
        let breadth = sums.into_iter().flatten().min();
        breadth.unwrap_or_else(under_way).max(1)
    }

    fn account_views(&self, tried: &Tried, now: Instant) -> Vec<AccountView> {
        let accounts = self.pool.accounts.iter().zip(&self.places).enumerate();
        accounts
            .map(|(index, (account, place))| AccountView {
                in_flight: place.get(),
                ceiling: place.ceiling(),
                resting: account.rest.is_resting(now),
                limited: place.rest.is_resting(now),
                tried: tried.accounts.contains(&index),
            })
            .collect()
    }

    fn endpoint_views(&self, tried: &Tried, now: Instant) -> Vec<EndpointView> {
        let watched = self.pool.is_watched();
        let endpoints = self.pool.endpoints.iter().enumerate();
        endpoints
            .map(|(index, slot)| {
                let in_flight = slot.state.in_flight();
                EndpointView {
                    in_flight,
                    priority: slot.settings.priority,
                    weight: slot.settings.weight,
                    healthy: slot.state.is_healthy(now, watched),
                    full: slot.state.limit().is_some_and(|limit| in_flight >= limit),
                    tried: tried.endpoints.contains(&index),
                }
            })
            .collect()
    }
}

/// `None` if one of them is, or there is none.
fn sum(mut ceilings: impl Iterator<Item = Option<u32>>) -> Option<u32> {
    let sum = ceilings.try_fold(0u32, |sum, ceiling| Some(sum.saturating_add(ceiling?)));
    sum.filter(|sum| *sum > 0)
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lane({}/{})", self.pool.settings.id, self.model)
    }
}
