//! What was and is being tried for a request, and how it went.

use std::sync::Arc;
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
    pub names: Names,
    pub usage: Usage,
    /// Content came, whether it could be counted or not.
    pub spoke: bool,
}

/// Where an attempt went, by name.
#[derive(Debug, Clone)]
pub struct Names {
    pub upstream: UpstreamId,
    pub account: AccountId,
    pub endpoint: String,
    /// As the upstream calls it; empty for calls without one.
    pub model: String,
}

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
    pub names: Names,
    /// The label of `tidegate_attempts_total`.
    pub outcome: &'static str,
    pub took: Duration,
}

/// The try that is under way.
pub struct Attempt {
    pub chosen: Chosen,
    pub lane: Arc<Lane>,
    pub began: Instant,
    pub clocks: Clocks,
    pub progress: Progress,
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
    /// Where the last one went that has ended.
    pub fn last_names(&self) -> Option<&Names> {
        self.last.as_ref().map(|last| &last.names)
    }

    /// Writes down how an attempt went.
    pub fn ended(&mut self, names: Names, outcome: &'static str, took: Duration) {
        let ended = Try {
            names,
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

    pub fn names(&self) -> Names {
        let endpoint = self.lane.pool.endpoints.get(self.chosen.endpoint);
        Names {
            upstream: self.lane.pool.settings.id.clone(),
            account: self
                .account_slot()
                .map_or_else(|| AccountId::new(""), |account| account.id.clone()),
            endpoint: endpoint
                .map(|slot| slot.settings.url.clone())
                .unwrap_or_default(),
            model: self.lane.model.clone(),
        }
    }
}
