//! What has changed at an upstream: told to the log, and counted for whoever asks. Decides nothing.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use log::{Level, log};
use parking_lot::Mutex;

use super::gate::Reason;
use crate::config::settings::UpstreamId;

/// What has a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Account,
    Endpoint,
    Breaker,
}

impl Kind {
    /// As a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Endpoint => "endpoint",
            Self::Breaker => "breaker",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Account => "Account",
            Self::Endpoint => "Endpoint",
            Self::Breaker => "Breaker",
        }
    }
}

/// One kind of transition; all of it comes from the configuration or closed lists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Transition {
    pub kind: Kind,
    pub name: Arc<str>,
    /// The state it came to.
    pub to: &'static str,
    pub reason: Reason,
}

/// Those of one upstream, since the start.
#[derive(Debug)]
pub struct Transitions {
    upstream: UpstreamId,
    counts: Mutex<BTreeMap<Transition, u64>>,
    dice: AtomicU64,
    /// Held while it is decided who leaves, so that two do not leave where one may.
    pub(super) judging: Mutex<()>,
    /// How often the failures until then were found to be an account's.
    pardons: AtomicU64,
}

impl Transitions {
    pub fn new(upstream: UpstreamId) -> Self {
        Self {
            upstream,
            counts: Mutex::default(),
            dice: AtomicU64::new(RandomState::new().hash_one(0)),
            judging: Mutex::default(),
            pardons: AtomicU64::new(0),
        }
    }

    /// How often each has happened.
    pub fn counts(&self) -> Vec<(Transition, u64)> {
        let counts = self.counts.lock();
        counts
            .iter()
            .map(|(it, count)| (it.clone(), *count))
            .collect()
    }

    /// An account has left: what it did counts against no breaker of the upstream, whatever the model.
    pub(super) fn pardon_breakers(&self) {
        self.pardons.fetch_add(1, Ordering::AcqRel);
    }

    /// Breakers that have seen fewer forget failures before they count the next one.
    pub(super) fn pardons(&self) -> u64 {
        self.pardons.load(Ordering::Acquire)
    }

    /// Any number; another one each time.
    pub(super) fn roll(&self) -> u64 {
        // splitmix64
        let step = 0x9e37_79b9_7f4a_7c15;
        let mut roll = self.dice.fetch_add(step, Ordering::Relaxed);
        roll = (roll ^ (roll >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        roll = (roll ^ (roll >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        roll ^ (roll >> 31)
    }
}

/// Tells the changes of one account, endpoint or breaker.
#[derive(Debug)]
pub struct Teller {
    pub kind: Kind,
    pub name: Arc<str>,
    pub transitions: Arc<Transitions>,
}

/// What is told.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    pub level: Level,
    /// What it is now, as the end of a sentence.
    pub now: &'a str,
    pub to: &'static str,
    pub reason: Reason,
    /// What else there is to say; may be empty.
    pub detail: &'a str,
}

impl Teller {
    pub fn tell(&self, told: Told<'_>) {
        let Told {
            now, to, reason, ..
        } = told;
        let upstream = &self.transitions.upstream;
        let (title, kind, name) = (self.kind.title(), self.kind.as_str(), &self.name);
        let reason_word = reason.as_str();
        if told.detail.is_empty() {
            log!(
                told.level,
                "{title} {now}. upstream={upstream} {kind}={name} state={to} reason={reason_word}"
            );
        } else {
            log!(
                told.level,
                "{title} {now}. upstream={upstream} {kind}={name} state={to} reason={reason_word} heard={:?}",
                told.detail
            );
        }
        let transition = Transition {
            kind: self.kind,
            name: self.name.clone(),
            to,
            reason,
        };
        *self
            .transitions
            .counts
            .lock()
            .entry(transition)
            .or_insert(0) += 1;
    }
}
