//! What identity remembers between requests and over reloads: nonces that were used, key sets that
//! were fetched, and when each credential was last seen.
//!
//! Keyed by stable names; a [`super::directory::Directory`] points into it and is rebuilt on every
//! reload.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::signed_request::nonces::Nonces;
use super::token::KeySet;
use crate::config::settings::{
    CredentialKind, SignedRequests, TokenAlgorithm, TokenIssuer, TokenKeys,
};

/// See the module.
pub struct Standing {
    pub nonces: Nonces,
    sources: Mutex<HashMap<SourceName, Arc<KeySource>>>,
    uses: Mutex<HashMap<(CredentialKind, String), Arc<LastUse>>>,
    /// Counts every change of any key set, so that what was verified before is verified anew.
    generation: Arc<AtomicU64>,
}

impl Standing {
    pub fn new(limits: &SignedRequests) -> Self {
        Self {
            nonces: Nonces::new(limits.max_nonces, limits.max_nonces_per_key),
            sources: Mutex::default(),
            uses: Mutex::default(),
            generation: Arc::default(),
        }
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The key set that an issuer's URL leads to; the same for every configuration in which the
    /// issuer trusts the same source for the same purpose.
    pub fn source(&self, issuer: &TokenIssuer) -> Arc<KeySource> {
        let (url, ca) = match &issuer.keys {
            TokenKeys::Url { url, ca, .. } => (url.clone(), ca.clone()),
            TokenKeys::File(_) | TokenKeys::Secret(_) => Default::default(),
        };
        let name = SourceName {
            issuer: issuer.id.clone(),
            algorithm: issuer.algorithm,
            url,
            ca,
        };
        self.sources
            .lock()
            .entry(name)
            .or_insert_with(|| {
                Arc::new(KeySource {
                    keys: ArcSwapOption::empty(),
                    wanted: AtomicBool::new(false),
                    generation: self.generation.clone(),
                })
            })
            .clone()
    }

    /// Forgets key sets of issuers that a configuration no longer has: an issuer that comes back
    /// must not be judged by keys it had before.
    pub fn forget_others(&self, issuers: &[Arc<TokenIssuer>]) {
        self.sources
            .lock()
            .retain(|name, _| issuers.iter().any(|issuer| issuer.id == name.issuer));
    }

    pub fn last_use(&self, kind: CredentialKind, id: &str) -> Arc<LastUse> {
        self.uses
            .lock()
            .entry((kind, id.to_owned()))
            .or_default()
            .clone()
    }
}

/// What tells one key set from another.
#[derive(PartialEq, Eq, Hash)]
struct SourceName {
    issuer: String,
    algorithm: TokenAlgorithm,
    url: String,
    ca: Option<PathBuf>,
}

/// Keys that someone else fetches.
pub struct KeySource {
    keys: ArcSwapOption<KeySet>,
    wanted: AtomicBool,
    generation: Arc<AtomicU64>,
}

impl KeySource {
    /// The last good key set, however old; `None` before the first.
    pub fn keys(&self) -> Option<Arc<KeySet>> {
        self.keys.load_full()
    }

    pub fn replace(&self, keys: KeySet) {
        self.keys.store(Some(Arc::new(keys)));
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// A token named a key that is not in the set.
    pub fn want(&self) {
        self.wanted.store(true, Ordering::Release);
    }

    /// Was a key wanted since the last time this was asked?
    pub fn take_wanted(&self) -> bool {
        self.wanted.swap(false, Ordering::AcqRel)
    }
}

/// When a credential was last found good.
#[derive(Debug, Default)]
pub struct LastUse(AtomicI64);

impl LastUse {
    /// `now` in Unix seconds. Written once a second at most, so that cores do not fight for it.
    pub fn mark(&self, now: i64) {
        if self.0.load(Ordering::Relaxed) != now {
            self.0.store(now, Ordering::Relaxed);
        }
    }

    /// Unix seconds; `None` if never since the process began.
    pub fn get(&self) -> Option<i64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|seconds| *seconds != 0)
    }
}
