//! One model of an upstream: the places that its accounts and endpoints have for it, and who holds
//! them. What to do about a lane without a free place is for [`super::queue`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::account::Places;
use super::affinity::{self, Affinity, Candidate};
use super::balance::{self, AccountView, EndpointView, Home, NoneLeft, Patience, Standing};
use super::breaker::{Caller, SharedBreaker, Shown};
use super::chosen::{Chosen, Passes};
use super::governor::Cause;
use super::pool::{AccountSlot, EndpointSlot, Pool};
use super::queue::{Line, Release};
use crate::config::settings::{AccountId, Governor as Rules};

/// An upstream's model with the places its accounts offer for it.
pub struct Lane {
    pub pool: Arc<Pool>,
    /// The upstream's name for the model; empty for calls without one.
    pub model: String,
    /// Of each account; of the first alone for what belongs to an account.
    pub(super) places: Vec<Arc<Places>>,
    /// Of each endpoint; none at all if there is no rule for them.
    pub(super) breakers: Vec<Arc<SharedBreaker>>,
    /// Where its conversations are.
    pub(super) affinity: Arc<Affinity>,
    pub(super) line: Arc<Line>,
    /// Requests that may wait; 0 for none.
    pub(super) max_length: usize,
}

/// Which accounts and endpoints one request has used up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tried {
    pub accounts: Vec<usize>,
    pub endpoints: Vec<usize>,
    /// Endpoints at which it failed where it may have been the account: asked again only if no
    /// other one may be.
    pub doubted: Vec<usize>,
}

/// What a request asks of a lane.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    pub tried: Tried,
    /// Of what it has in common with earlier ones, for the account that holds their prefix.
    pub key: Option<u64>,
    /// Only this account will do: it has the files.
    pub pinned: Option<usize>,
    /// First content comes long before the end: its time is watched.
    pub streamed: bool,
    /// Its own time may be over before anything is shown: it finds out about nobody.
    pub hurried: bool,
    /// Whose request it is; `None` if that does not matter.
    pub caller: Option<Caller>,
}

impl Wish {
    /// For nothing but what is left.
    pub fn beside(tried: Tried) -> Self {
        Self {
            tried,
            ..Self::default()
        }
    }

    fn sees(&self, standing: Standing) -> Standing {
        match standing {
            Standing::Probe if self.hurried => Standing::Closed,
            standing => standing,
        }
    }

    /// Could it be served by this account, however it is?
    fn allows(&self, account: usize) -> bool {
        self.pinned.is_none_or(|pinned| pinned == account)
            && !self.tried.accounts.contains(&account)
    }
}

/// What is said when only somebody's word can open what is closed.
const NOBODY_KNOWS: Duration = Duration::from_secs(30);
/// Whoever is tried out may be so many times slower than the others, within these bounds.
const PATIENCE: u64 = 8;
const SHORTEST_PROBE: Duration = Duration::from_secs(2);
const LONGEST_PROBE: Duration = Duration::from_secs(20);
const ALONE: Duration = Duration::from_secs(3_600);
/// So many accounts or endpoints are looked at without memory of their own.
const FEW: usize = 16;

/// Why nothing was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoChoice {
    /// Every account or every endpoint is at its ceiling, or others were here before.
    Full,
    /// Every account or endpoint was tried.
    Exhausted,
    /// Nobody may be asked before so long.
    Closed { retry_in: Duration },
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
    /// If nothing is left to try, nobody may be asked, or there is no free place.
    pub fn choose(self: &Arc<Self>, wish: &Wish, now: Instant) -> Result<Chosen, NoChoice> {
        if self.line.is_waited_in() {
            return Err(NoChoice::Full);
        }
        self.take(wish, now)
    }

    /// The same without regard to those who wait.
    pub(super) fn take(self: &Arc<Self>, wish: &Wish, now: Instant) -> Result<Chosen, NoChoice> {
        let turn = self.pool.turn.fetch_add(1, Ordering::Relaxed);
        let mut random = affinity::mix(turn as u64 ^ self.pool.seed);
        // Between looking and taking, another request may have taken the last place: look again.
        for _ in 0..=self.places.len() + self.pool.endpoints.len() {
            let (account, endpoint) = self.pick(wish, random, now)?;
            random = affinity::mix(random);
            let place = self.places.get(account).ok_or(NoChoice::Exhausted)?;
            let slot = self.pool.endpoints.get(endpoint);
            let slot = slot.ok_or(NoChoice::Exhausted)?;
            let Some(endpoint_lease) = slot.state.acquire() else {
                continue;
            };
            let Some(account_lease) = place.acquire() else {
                continue;
            };
            let Some(passes) = Passes::take(self, account, endpoint, wish, now) else {
                continue;
            };
            let limited = slot.state.limit().is_some();
            let release = Release::new(self.line.clone(), now, limited);
            return Ok(Chosen::new(passes, account_lease, endpoint_lease, release));
        }
        Err(NoChoice::Full)
    }

    /// An account and an endpoint, by what they look like now.
    fn pick(&self, wish: &Wish, random: u64, now: Instant) -> Result<(usize, usize), NoChoice> {
        let patience = match self.is_queued_for() {
            false => Patience::None,
            true => Patience::Some,
        };
        let endpoint = self.with_endpoints(wish, now, |views| balance::endpoint(views, random));
        let endpoint = endpoint.map_err(|none| self.refuse(none, wish, now))?;
        let account = self.with_accounts(wish, now, |views| {
            let home = self.home(wish, views);
            balance::account(views, home, patience, random)
        });
        let account = account.map_err(|none| {
            if none == NoneLeft::Full {
                self.places.iter().for_each(|place| place.governor.press());
            }
            self.refuse(none, wish, now)
        })?;
        Ok((account, endpoint))
    }

    /// The account that the wish's conversation belongs to, among those that could ever serve it.
    fn home(&self, wish: &Wish, views: &[AccountView]) -> Option<Home> {
        let rules = self.pool.settings.affinity.as_ref()?;
        let key = wish.key.filter(|_| views.len() > 1)?;
        let best = views.iter().map(|view| view.priority).min()?;
        let candidate = |view: &AccountView| Candidate {
            seed: view.seed,
            // Conversations live with the best tier.
            weight: if view.priority == best {
                view.weight
            } else {
                0
            },
        };
        let account = with_views(views.iter().map(candidate), |all| {
            self.affinity.home(key, all)
        })?;
        Some(Home {
            key,
            account,
            bound_percent: rules.bound_percent,
        })
    }

    fn refuse(&self, none: NoneLeft, wish: &Wish, now: Instant) -> NoChoice {
        match none {
            NoneLeft::Full => NoChoice::Full,
            NoneLeft::Tried => NoChoice::Exhausted,
            NoneLeft::Closed => {
                let retry_in = self.closed_for(wish, now).unwrap_or(NOBODY_KNOWS);
                NoChoice::Closed { retry_in }
            }
        }
    }

    /// How long until the first of those that are left and closed may be asked; `None` if nobody
    /// that is left is closed.
    fn closed_for(&self, wish: &Wish, now: Instant) -> Option<Duration> {
        let shortest = |times: &mut dyn Iterator<Item = Option<Duration>>| {
            times.map(|time| time.unwrap_or(NOBODY_KNOWS)).min()
        };
        let terms = self.pool.terms;
        let mut accounts = self
            .accounts()
            .enumerate()
            .filter_map(|(index, (slot, _))| {
                let condition = &slot.state.condition;
                let closed = condition.standing(now, terms) == Standing::Closed;
                (closed && wish.allows(index)).then(|| condition.opens_in(now, terms))
            });
        let watch = self.pool.watch();
        let mut endpoints = self
            .endpoints()
            .enumerate()
            .filter_map(|(index, (slot, breaker))| {
                let closed =
                    self.endpoint_standing(slot, breaker, wish.caller, now) == Standing::Closed;
                let left = closed && !wish.tried.endpoints.contains(&index);
                left.then(|| {
                    let own = slot.state.condition.opens_in(now, watch.terms)?;
                    let rules = self.pool.settings.breaker.as_ref();
                    let of_breaker = breaker
                        .zip(rules)
                        .map(|(it, rules)| it.opens_in(wish.caller, now, rules));
                    Some(own.max(of_breaker.unwrap_or_default()))
                })
            });
        // Both must be open for anything to be sent.
        shortest(&mut accounts).max(shortest(&mut endpoints))
    }

    /// Is there an account beside this one that could take a request over now?
    pub(super) fn has_another(&self, own: usize, tried: &Tried, now: Instant) -> bool {
        let mut accounts = self.accounts().enumerate();
        accounts.any(|(index, (slot, place))| {
            let standing = slot.state.condition.standing(now, self.pool.terms);
            index != own
                && !tried.accounts.contains(&index)
                && matches!(standing, Standing::Open { .. })
                && !place.rest.is_resting(now)
        })
    }

    /// May a request wait for a place?
    pub fn is_queued_for(&self) -> bool {
        self.max_length > 0
    }

    /// How long it is until an account that is left to try has rested, if there is one that is
    /// waited for.
    pub(super) fn rested_in(&self, wish: &Wish, now: Instant) -> Duration {
        let left = self.accounts().enumerate().filter(|(index, (slot, _))| {
            let standing = slot.state.condition.standing(now, self.pool.terms);
            wish.allows(*index) && standing != Standing::Closed
        });
        let rests = left.map(|(_, (_, place))| place.rest.left(now));
        rests.min().unwrap_or_default()
    }

    fn accounts(&self) -> impl Iterator<Item = (&AccountSlot, &Arc<Places>)> {
        self.pool.accounts.iter().zip(&self.places)
    }

    pub(super) fn endpoints(
        &self,
    ) -> impl Iterator<Item = (&EndpointSlot, Option<&SharedBreaker>)> {
        let endpoints = self.pool.endpoints.iter().enumerate();
        endpoints.map(|(index, slot)| (slot, self.breakers.get(index).map(|it| &**it)))
    }

    fn endpoint_standing(
        &self,
        slot: &EndpointSlot,
        breaker: Option<&SharedBreaker>,
        caller: Option<Caller>,
        now: Instant,
    ) -> Standing {
        let own = slot.state.condition.standing(now, self.pool.watch().terms);
        let rules = self.pool.settings.breaker.as_ref();
        match breaker.zip(rules) {
            Some((breaker, rules)) => own.and(breaker.standing(caller, now, rules)),
            None => own,
        }
    }

    /// The places of accounts that may be asked, and do not rest for this model.
    fn awake(&self, now: Instant) -> impl Iterator<Item = &Arc<Places>> {
        let awake = self.accounts().filter(move |(slot, place)| {
            let standing = slot.state.condition.standing(now, self.pool.terms);
            standing != Standing::Closed && !place.rest.is_resting(now)
        });
        awake.map(|(_, place)| place)
    }

    /// The breakers of its endpoints, by their URLs, for status.
    pub fn breakers(&self) -> impl Iterator<Item = (&str, Shown)> {
        let guarded = self
            .endpoints()
            .filter_map(|(slot, it)| Some((slot, it?.shown())));
        guarded.map(|(slot, shown)| (slot.settings.url.as_str(), shown))
    }

    /// How long somebody who is tried out may take until the first content: some times as long as
    /// the others take. A tenant waits for it. Where nobody else could take over, it is an hour: to
    /// give up would help nobody.
    pub fn probe_time(&self, account: usize, now: Instant) -> Duration {
        if !self.has_somebody_well(now) {
            return ALONE;
        }
        let others = self.places.iter().enumerate();
        let others = others.filter(|(index, _)| *index != account);
        let known = others.map(|(_, place)| place.latency.estimate(now));
        let usual = known.filter(|micros| *micros > 0).min();
        let time = usual.map(|micros| Duration::from_micros(micros.saturating_mul(PATIENCE)));
        time.unwrap_or(LONGEST_PROBE)
            .clamp(SHORTEST_PROBE, LONGEST_PROBE)
    }

    /// Are an account and an endpoint plainly open? Whoever is tried out is not.
    fn has_somebody_well(&self, now: Instant) -> bool {
        let is_open = |standing| matches!(standing, Standing::Open { .. });
        let account = self.accounts().any(|(slot, place)| {
            is_open(slot.state.condition.standing(now, self.pool.terms))
                && !place.rest.is_resting(now)
        });
        let mut endpoints = self.endpoints();
        account
            && endpoints.any(|(slot, breaker)| {
                is_open(self.endpoint_standing(slot, breaker, None, now))
                    && slot.state.addresses.count() > 0
            })
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
    /// ceilings, lets learned ones rise, and lets accounts, endpoints and breakers go on to where
    /// time takes them.
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
        self.pool.look_after(now);
        self.breakers
            .iter()
            .for_each(|breaker| breaker.advance(now));
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

    fn with_accounts<R>(
        &self,
        wish: &Wish,
        now: Instant,
        look: impl FnOnce(&[AccountView]) -> R,
    ) -> R {
        let view = |(index, (slot, place)): (usize, (&AccountSlot, &Arc<Places>))| AccountView {
            seed: slot.seed,
            in_flight: place.get(),
            ceiling: place.ceiling(),
            priority: slot.priority,
            weight: slot.weight,
            latency: place.latency.estimate(now),
            errors: slot.state.condition.errors(),
            standing: wish.sees(slot.state.condition.standing(now, self.pool.terms)),
            limited: place.rest.is_resting(now),
            tried: !wish.allows(index),
        };
        with_views(self.accounts().enumerate().map(view), look)
    }

    fn with_endpoints<R>(
        &self,
        wish: &Wish,
        now: Instant,
        look: impl FnOnce(&[EndpointView]) -> R,
    ) -> R {
        let view = |(index, (slot, breaker)): (usize, (&EndpointSlot, Option<&SharedBreaker>))| {
            let in_flight = slot.state.in_flight();
            EndpointView {
                in_flight,
                priority: slot.settings.priority,
                weight: slot.settings.weight,
                latency: slot.state.latency.estimate(now),
                errors: slot.state.condition.errors(),
                standing: wish.sees(self.endpoint_standing(slot, breaker, wish.caller, now)),
                full: slot.state.limit().is_some_and(|limit| in_flight >= limit),
                tried: wish.tried.endpoints.contains(&index),
                doubted: wish.tried.doubted.contains(&index),
            }
        };
        with_views(self.endpoints().enumerate().map(view), look)
    }
}

/// Lines the views up, without memory of their own if they are few.
fn with_views<T: Copy, R>(mut views: impl Iterator<Item = T>, look: impl FnOnce(&[T]) -> R) -> R {
    let Some(first) = views.next() else {
        return look(&[]);
    };
    let mut few = [first; FEW];
    let mut filled = 1;
    while let Some(view) = views.next() {
        let Some(slot) = few.get_mut(filled) else {
            let many = few.into_iter().chain([view]).chain(views);
            return look(&many.collect::<Vec<_>>());
        };
        *slot = view;
        filled += 1;
    }
    look(few.get(..filled).unwrap_or_default())
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
