//! What was and is being tried for a request, and how it went.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crate::config::settings::{AccountId, FailureClass, UpstreamId};
use crate::relay::usage::Usage;
use crate::upstream::clocks::{Clocks, Progress};
use crate::upstream::pool::{AccountSlot, Chosen, EndpointSlot, Lane, Tried};

/// What was and is being tried.
#[derive(Default)]
pub struct Attempts {
    pub made: u32,
    /// With the variant that is asked.
    pub tried: Tried,
    /// Index into [`Routed::variants`].
    pub lane: usize,
    pub current: Option<Attempt>,
    /// Time spent waiting for places, over all attempts.
    pub queued: Duration,
    /// Attempts that ran into a dead pooled connection; not counted in `made`.
    pub stale: u32,
    /// The last failure may be followed by another attempt.
    pub again: bool,
    /// The variant that the last one went to.
    pub asked: Option<usize>,
    /// What the last one failed with.
    pub failed: Option<FailureClass>,
    /// The next one does not begin before this.
    pub pause_until: Option<Instant>,
    /// After which time an upstream that is closed now may be asked, if one is.
    pub reopens: Option<Duration>,
    /// Those before it.
    pub earlier: Vec<Try>,
    /// The last one that has ended, for the record.
    pub last: Option<Try>,
    /// Those that broke after content, and were gone on from.
    pub broken: Vec<Broken>,
    /// It ended because the client left, with the upstream at work.
    pub left_at_work: bool,
}

/// An attempt that broke after content, with what it took by our count.
pub struct Broken {
    pub place: Place,
    pub usage: Usage,
    /// Content came, whether it could be counted or not.
    pub spoke: bool,
}

/// Where an attempt went. Its names are looked up when they are written.
#[derive(Clone)]
pub struct Place {
    lane: Arc<Lane>,
    account: usize,
    endpoint: usize,
}

/// Where an attempt went, by name.
#[derive(Clone, Copy)]
pub struct Names<'a> {
    pub upstream: &'a UpstreamId,
    pub account: &'a AccountId,
    pub endpoint: &'a str,
    /// As the upstream calls it; empty for calls without one.
    pub model: &'a str,
    lane: &'a Arc<Lane>,
    /// Of the account and of the endpoint.
    indices: (usize, usize),
}

impl<'a> Names<'a> {
    fn of(lane: &'a Arc<Lane>, account: usize, endpoint: usize) -> Self {
        let pool = &lane.pool;
        let endpoints = pool.endpoints.get(endpoint);
        Self {
            upstream: &pool.settings.id,
            account: pool.accounts.get(account).map_or(&NOBODY, |it| &it.id),
            endpoint: endpoints.map_or("", |slot| &slot.settings.url),
            model: &lane.model,
            lane,
            indices: (account, endpoint),
        }
    }
}

impl Place {
    pub fn names(&self) -> Names<'_> {
        Names::of(&self.lane, self.account, self.endpoint)
    }
}

impl From<Names<'_>> for Place {
    fn from(names: Names<'_>) -> Self {
        let (account, endpoint) = names.indices;
        Self {
            lane: names.lane.clone(),
            account,
            endpoint,
        }
    }
}

/// Stands for an account that is not there.
static NOBODY: LazyLock<AccountId> = LazyLock::new(|| AccountId::new(""));

/// How far an attempt has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The request's head is on its way.
    Sent,
    /// The answer's head is there.
    Head,
    /// Something came that shows that the upstream is alive, and no more.
    KeepAlive,
    /// More than that, and no content yet.
    Begun,
    Content,
}

/// An attempt that has ended.
pub struct Try {
    pub place: Place,
    /// The label of `tidegate_attempts_total`.
    pub outcome: &'static str,
    pub took: Duration,
}

/// The try that is under way.
pub struct Attempt {
    pub chosen: Chosen,
    pub lane: Arc<Lane>,
    /// Of the endpoint.
    pub address: SocketAddr,
    pub began: Instant,
    pub clocks: Clocks,
    pub progress: Progress,
    /// How much of the body is put at one time, and how much of it was, in bytes.
    pub piece: usize,
    pub put: usize,
    /// The request head went out: from here on a failure may have cost money.
    pub sent: bool,
    /// An answer's head came in: the connection was alive.
    pub answered: bool,
}

impl Broken {
    /// Is there anything to be billed? Not if the upstream never began.
    pub fn took_something(&self) -> bool {
        self.spoke || self.usage.completion > 0 || self.usage.prompt > 0
    }
}

impl Attempts {
    /// Was this lane's upstream asked before, for this request?
    pub fn were_at(&self, lane: &Lane) -> bool {
        let id = &lane.pool.settings.id;
        let ended = self.earlier.iter().chain(&self.last);
        let current = self.current.iter().map(|it| &it.lane.pool.settings.id);
        ended
            .map(|it| it.place.names().upstream)
            .chain(current)
            .any(|it| it == id)
    }

    /// Where the last one went that has ended.
    pub fn last_names(&self) -> Option<Names<'_>> {
        self.last.as_ref().map(|last| last.place.names())
    }

    /// Writes down how an attempt went.
    pub fn ended(&mut self, names: Names<'_>, outcome: &'static str, took: Duration) {
        let ended = Try {
            place: names.into(),
            outcome,
            took,
        };
        self.earlier.extend(self.last.replace(ended));
    }

    /// Goes on to the next variant, with nothing tried there yet.
    pub fn next_lane(&mut self) {
        self.lane += 1;
        self.tried = Tried::default();
    }
}

impl Attempt {
    pub fn account_slot(&self) -> Option<&AccountSlot> {
        self.lane.pool.accounts.get(self.chosen.account)
    }

    pub fn endpoint_slot(&self) -> Option<&EndpointSlot> {
        self.lane.pool.endpoints.get(self.chosen.endpoint)
    }

    /// Does the account rest for this model, after a 429?
    pub fn rests_for_model(&self, now: Instant) -> bool {
        let mut rests = self.lane.rests(now);
        rests.nth(self.chosen.account).unwrap_or(false)
    }

    /// Its address has answered.
    pub fn was_reached(&self, now: Instant) {
        if let Some(slot) = self.endpoint_slot() {
            slot.state.addresses.reached(self.address, self.began, now);
        }
    }

    /// Notes that there was no connection. True if others of the endpoint's addresses are left.
    pub fn failed_at_address_alone(&self, class: FailureClass, now: Instant) -> bool {
        let no_connection = matches!(class, FailureClass::Connect | FailureClass::Tls);
        let slot = self.endpoint_slot().filter(|_| no_connection);
        slot.is_some_and(|slot| slot.state.addresses.failed(self.address, self.began, now))
    }

    pub fn names(&self) -> Names<'_> {
        Names::of(&self.lane, self.chosen.account, self.chosen.endpoint)
    }
}
