//! Remembers what was used since the last write, as rows by hour, tenant, model, upstream and
//! account. It must not know where rows are written, nor how usage was found.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use parking_lot::Mutex;

use super::cost::Money;
use crate::config::settings::{AccountId, TenantId, UpstreamId};
use crate::relay::usage::Usage;

/// Rows that are held while nothing can be written, some 20 MiB. A gateway with 1,000 busy tenants,
/// two models and two accounts makes 4,000 an hour.
pub const MOST_ROWS: usize = 100_000;

/// Enough that two threads seldom meet, few enough to walk through four times a second.
const SHARDS: usize = 16;
const SECONDS_IN_HOUR: i64 = 3_600;
const SECONDS_IN_DAY: i64 = 86_400;

/// An hour of the ledger by its start, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hour(i64);

impl Hour {
    /// The hour that begins at this second.
    pub const fn starting_at(second: i64) -> Self {
        Self(second)
    }

    /// Its first second, since 1970.
    pub const fn start(self) -> i64 {
        self.0
    }

    /// The hour that holds `at`, where hours begin `shift` seconds after those of UTC.
    fn of(at: Timestamp, shift: i64) -> Self {
        let since = at.as_second().saturating_sub(shift);
        let into = since.rem_euclid(SECONDS_IN_HOUR);
        Self(at.as_second().saturating_sub(into))
    }
}

/// What a row is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub hour: Hour,
    pub tenant: Arc<str>,
    /// The public name; empty in a row that others were merged into.
    pub model: Arc<str>,
    /// Empty in a row that others were merged into.
    pub upstream: Arc<str>,
    /// Empty in a row that others were merged into.
    pub account: Arc<str>,
}

/// Sums of a row; all saturate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Answers that an upstream began and that are charged for.
    pub requests: u64,
    /// Those of them that broke off, whoever's fault it was.
    pub cut: u64,
    /// Those whose usage is an estimate, since the upstream did not tell.
    pub estimated: u64,
    /// Those that cost nothing only because no price was known.
    pub unpriced: u64,
    /// Tokens of prompts, cached ones included.
    pub prompt: u64,
    pub cached: u64,
    /// Tokens of answers, reasoning included.
    pub completion: u64,
    pub reasoning: u64,
    pub cost: Money,
    /// What it would have cost more without the provider's cache.
    pub saved: Money,
}

/// A row and what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub key: Key,
    pub counts: Counts,
}

/// One answer that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// When it ended.
    pub at: Timestamp,
    pub tenant: &'a TenantId,
    /// The public name.
    pub model: &'a str,
    pub upstream: &'a UpstreamId,
    pub account: &'a AccountId,
    pub usage: Usage,
    /// It broke off.
    pub cut: bool,
    /// `usage` is an estimate.
    pub estimated: bool,
    /// Nothing if its model had no price.
    pub cost: Option<Money>,
    pub saved: Money,
}

/// What was used and is not written yet. Shared by all threads.
#[derive(Debug)]
pub struct Journal {
    shards: [Mutex<HashMap<Key, Counts>>; SHARDS],
    /// Keys in all shards.
    rows: AtomicUsize,
    most_rows: usize,
    merged: AtomicU64,
    /// Seconds by which hours begin later than those of UTC, where they do.
    shift: AtomicI64,
}

impl Default for Journal {
    fn default() -> Self {
        Self::with_room_for(MOST_ROWS)
    }
}

impl Journal {
    /// With room for other than [`MOST_ROWS`].
    pub fn with_room_for(most_rows: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            rows: AtomicUsize::new(0),
            most_rows,
            merged: AtomicU64::new(0),
            shift: AtomicI64::new(0),
        }
    }

    /// Begins hours where those of `zone` begin, so that days of a zone that is half an hour off can
    /// be told apart. To be called now and then; zones change.
    pub fn follow(&self, zone: &TimeZone, now: Timestamp) {
        let offset = i64::from(zone.to_offset(now).seconds());
        let shift = offset.wrapping_neg().rem_euclid(SECONDS_IN_HOUR);
        self.shift.store(shift, Ordering::Relaxed);
    }

    /// Adds an answer. Takes one short lock, and allocates only for a row that is not there.
    pub fn add(&self, entry: &Entry<'_>) {
        let name = Name {
            hour: Hour::of(entry.at, self.shift.load(Ordering::Relaxed)),
            tenant: &entry.tenant.0,
            model: entry.model,
            upstream: &entry.upstream.0,
            account: &entry.account.0,
        };
        self.put(&name, &entry.counts(), || Key {
            hour: name.hour,
            tenant: entry.tenant.0.clone(),
            model: entry.model.into(),
            upstream: entry.upstream.0.clone(),
            account: entry.account.0.clone(),
        });
    }

    /// What was added since the last call, for the writer; the journal is empty afterwards.
    ///
    /// Rows that go on stay in place at zero for the next answer, until nothing was added for a
    /// whole interval.
    pub fn take(&self) -> Vec<Row> {
        let mut taken = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let before = shard.len();
            shard.retain(|key, counts| {
                let used = *counts != Counts::default();
                if used {
                    taken.push(Row {
                        key: key.clone(),
                        counts: std::mem::take(counts),
                    });
                }
                used
            });
            let gone = before.saturating_sub(shard.len());
            self.rows.fetch_sub(gone, Ordering::Relaxed);
        }
        taken
    }

    /// Adds rows again that [`Journal::take`] gave out and that could not be written.
    pub fn put_back(&self, rows: Vec<Row>) {
        for Row { key, counts } in rows {
            let name = key.name();
            self.put(&name, &counts, || key.clone());
        }
    }

    /// Rows held, those at zero included.
    pub fn rows(&self) -> usize {
        self.rows.load(Ordering::Relaxed)
    }

    /// How often an answer or a row lost its hour, model and account, since there was no room for a
    /// row of its own. Its tenant, day, tokens and money are never lost.
    pub fn merged(&self) -> u64 {
        self.merged.load(Ordering::Relaxed)
    }

    fn put(&self, name: &Name<'_>, counts: &Counts, key: impl FnOnce() -> Key) {
        // For each tenant and day there is one row that others are merged into, at most, and
        // always room for it.
        let room = name.is_merged() || self.rows.load(Ordering::Relaxed) < self.most_rows;
        if self.try_put(name, counts, room.then_some(key)) {
            return;
        }
        self.merged.fetch_add(1, Ordering::Relaxed);
        let merged = name.merged();
        self.try_put(&merged, counts, Some(|| merged.to_key()));
    }

    /// Adds to the row of this name, or to a new one with this key. Without a key and a row: no.
    fn try_put(&self, name: &Name<'_>, counts: &Counts, key: Option<impl FnOnce() -> Key>) -> bool {
        let Some(shard) = self.shard(name) else {
            return false;
        };
        let mut shard = shard.lock();
        if let Some(there) = shard.get_mut(name as &dyn Named) {
            there.add(counts);
            return true;
        }
        let Some(key) = key else {
            return false;
        };
        shard.insert(key(), *counts);
        self.rows.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Always some shard.
    fn shard(&self, name: &Name<'_>) -> Option<&Mutex<HashMap<Key, Counts>>> {
        let mut hash = crc32fast::Hasher::new();
        for part in [name.tenant, name.model, name.account] {
            hash.update(part.as_bytes());
        }
        let number = usize::try_from(hash.finalize()).unwrap_or(0) % SHARDS;
        self.shards.get(number)
    }
}

impl Entry<'_> {
    fn counts(&self) -> Counts {
        Counts {
            requests: 1,
            cut: u64::from(self.cut),
            estimated: u64::from(self.estimated),
            unpriced: u64::from(self.cost.is_none()),
            prompt: self.usage.prompt,
            cached: self.usage.cached,
            completion: self.usage.completion,
            reasoning: self.usage.reasoning,
            cost: self.cost.unwrap_or_default(),
            saved: self.saved,
        }
    }
}

impl Counts {
    /// Adds another row's sums.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.requests, other.requests),
            (&mut self.cut, other.cut),
            (&mut self.estimated, other.estimated),
            (&mut self.unpriced, other.unpriced),
            (&mut self.prompt, other.prompt),
            (&mut self.cached, other.cached),
            (&mut self.completion, other.completion),
            (&mut self.reasoning, other.reasoning),
        ] {
            *sum = sum.saturating_add(more);
        }
        self.cost += other.cost;
        self.saved += other.saved;
    }
}

/// A [`Key`] that owns nothing, to look one up by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Name<'a> {
    hour: Hour,
    tenant: &'a str,
    model: &'a str,
    upstream: &'a str,
    account: &'a str,
}

impl<'a> Name<'a> {
    fn to_key(self) -> Key {
        Key {
            hour: self.hour,
            tenant: self.tenant.into(),
            model: self.model.into(),
            upstream: self.upstream.into(),
            account: self.account.into(),
        }
    }

    fn is_merged(&self) -> bool {
        self.model.is_empty() && self.upstream.is_empty() && self.account.is_empty()
    }

    fn merged(&self) -> Name<'a> {
        let into = self.hour.0.rem_euclid(SECONDS_IN_DAY);
        Name {
            hour: Hour(self.hour.0.saturating_sub(into)),
            tenant: self.tenant,
            model: "",
            upstream: "",
            account: "",
        }
    }
}

/// What keys and names have in common: the standard map compares through a borrowed form.
trait Named {
    fn name(&self) -> Name<'_>;
}

impl Named for Key {
    fn name(&self) -> Name<'_> {
        Name {
            hour: self.hour,
            tenant: &self.tenant,
            model: &self.model,
            upstream: &self.upstream,
            account: &self.account,
        }
    }
}

impl Named for Name<'_> {
    fn name(&self) -> Name<'_> {
        *self
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl Hash for dyn Named + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl PartialEq for dyn Named + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for dyn Named + '_ {}

impl<'a> Borrow<dyn Named + 'a> for Key {
    fn borrow(&self) -> &(dyn Named + 'a) {
        self
    }
}

#[cfg(test)]
mod tests;
