//! Was this nonce used before? The replay guard of one process.
//!
//! A nonce is remembered as long as its timestamp could still be accepted. Memory is in buckets by
//! timestamp, and a bucket is forgotten as a whole, once all of it is too old. Should the clock step
//! back behind that, timestamps up to the last forgotten one are refused: whatever the clock does,
//! no request is taken twice. Only the end of the process forgets more.
//!
//! A nonce costs 20 to 40 bytes. Knows key ids as texts and nothing of tenants or signatures; the
//! time is an argument.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{SignatureError, Window};

/// Seconds of timestamps in one bucket: how much longer than needed a nonce may be remembered.
/// With the default window at most seven buckets are alive.
const BUCKET: i64 = 60;
/// Keys are spread over so many locks.
const SHARDS: usize = 64;

/// What became of a nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Claim {
    /// Never seen before: the request may go on. The nonce is used from now on.
    Fresh,
    /// Seen before, or so old that it cannot be known.
    Replayed,
    /// Not seen before, and no room to remember it: of this key, or of all together.
    Full,
}

/// The nonces in use, within fixed bounds. Shared by all requests; keep it across reloads.
///
/// All requests of one key id share a lock, those of different ids hardly ever do.
pub struct Nonces {
    capacity: usize,
    per_key: usize,
    held: AtomicUsize,
    /// When all shards were last looked through for room.
    swept: AtomicI64,
    /// Two, for 128 bits. Their keys are random, so nobody can prepare nonces that collide.
    hashers: [RandomState; 2],
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    /// By timestamp divided by [`BUCKET`].
    buckets: BTreeMap<i64, Bucket>,
    /// The last timestamp whose bucket was forgotten.
    forgotten: Option<i64>,
}

#[derive(Default)]
struct Bucket {
    seen: HashSet<u128>,
    /// How many of them each key has.
    per_key: HashMap<u64, usize>,
}

impl Nonces {
    /// Remembers at most `capacity_total` nonces, of any one key id at most `per_key`.
    ///
    /// A key that signs `r` requests a second needs about `r * (window.past + 60)`.
    pub fn new(capacity_total: usize, per_key: usize) -> Self {
        Self {
            capacity: capacity_total,
            per_key,
            held: AtomicUsize::new(0),
            swept: AtomicI64::new(i64::MIN),
            hashers: [RandomState::new(), RandomState::new()],
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Uses a nonce up. Of any number of claims of the same nonce, from any number of threads,
    /// exactly one is [`Claim::Fresh`].
    ///
    /// Call it only after the signature was found good, and before anything is done for the
    /// request: otherwise strangers fill the memory and use up other people's nonces. `timestamp`
    /// is the signed one, both times are in seconds since 1970. What lies outside of `window` is
    /// never fresh. A wider window than before reopens no time that was forgotten; use one window
    /// for all keys, since the narrowest decides what is forgotten.
    pub fn claim(
        &self,
        key_id: &str,
        nonce: &str,
        timestamp: i64,
        window: Window,
        now_unix: i64,
    ) -> Claim {
        if window.within(timestamp, now_unix).is_err() {
            return Claim::Replayed;
        }
        if self.held() >= self.capacity {
            self.sweep(window, now_unix);
        }
        let [first, second] = &self.hashers;
        let key = first.hash_one(key_id);
        let print = u128::from(first.hash_one((key_id, nonce))) << 64
            | u128::from(second.hash_one((key_id, nonce)));
        let Some(shard) = self.shards.get(key as usize % SHARDS) else {
            return Claim::Full;
        };
        let mut shard = shard.lock();
        let expired = shard.expire(window, now_unix);
        self.release(&expired);
        let claim = match shard.look_up(print, key, timestamp) {
            Known::Yes => Claim::Replayed,
            Known::No { of_this_key } if of_this_key >= self.per_key => Claim::Full,
            Known::No { .. } if !self.reserve() => Claim::Full,
            Known::No { .. } => {
                shard.insert(print, key, timestamp);
                Claim::Fresh
            }
        };
        // Large buckets take a while to be given back: not under the lock.
        drop(shard);
        drop(expired);
        claim
    }

    /// How many nonces are remembered now, for metrics.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Takes one of the places; false if there is none.
    fn reserve(&self) -> bool {
        self.held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                (held < self.capacity).then_some(held + 1)
            })
            .is_ok()
    }

    fn release(&self, expired: &[Bucket]) {
        let freed: usize = expired.iter().map(|bucket| bucket.seen.len()).sum();
        if freed > 0 {
            self.held.fetch_sub(freed, Ordering::Relaxed);
        }
    }

    /// Shards forget when they are asked something. This is for those of keys that fell silent, at
    /// most once a second.
    fn sweep(&self, window: Window, now_unix: i64) {
        if self.swept.swap(now_unix, Ordering::Relaxed) == now_unix {
            return;
        }
        for shard in &self.shards {
            let expired = shard.lock().expire(window, now_unix);
            self.release(&expired);
        }
    }
}

enum Known {
    Yes,
    No { of_this_key: usize },
}

impl Shard {
    /// Takes out the buckets in which every timestamp has become too old.
    fn expire(&mut self, window: Window, now_unix: i64) -> Vec<Bucket> {
        let mut expired = Vec::new();
        while let Some(oldest) = self.buckets.first_entry() {
            let last = oldest
                .key()
                .saturating_mul(BUCKET)
                .saturating_add(BUCKET - 1);
            if window.within(last, now_unix) != Err(SignatureError::Stale) {
                break;
            }
            self.forgotten = self.forgotten.max(Some(last));
            expired.push(oldest.remove());
        }
        expired
    }

    fn look_up(&self, print: u128, key: u64, timestamp: i64) -> Known {
        let forgotten = self.forgotten.is_some_and(|last| timestamp <= last);
        if forgotten
            || self
                .buckets
                .values()
                .any(|bucket| bucket.seen.contains(&print))
        {
            return Known::Yes;
        }
        let counts = self
            .buckets
            .values()
            .filter_map(|bucket| bucket.per_key.get(&key));
        Known::No {
            of_this_key: counts.sum(),
        }
    }

    fn insert(&mut self, print: u128, key: u64, timestamp: i64) {
        let bucket = self
            .buckets
            .entry(timestamp.div_euclid(BUCKET))
            .or_default();
        bucket.seen.insert(print);
        *bucket.per_key.entry(key).or_default() += 1;
    }
}

#[cfg(test)]
mod tests;
