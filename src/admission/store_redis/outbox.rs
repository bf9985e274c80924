//! Decides what Redis is still to be told: releases, use, and reservations that were given up. What
//! waits is merged by counter, so its size is bounded by the number of counters, however long Redis is
//! away. One batch of a root is under way at a time, with a number by which Redis knows a repetition.
//! Pure: no connection, and `now` as an argument.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ask::{Counter, Kind, LIMIT, Part};

/// Counters that may wait, of all roots together. Beyond it, use of further ones is lost and counted.
pub const MAX_MOVES: usize = 200_000;
/// Given-up reservations of one root that may wait. Beyond it, all that this host holds is given up.
const MAX_ABANDONED: usize = 10_000;
/// Of each in one batch: a script must not hold Redis up for long.
const BATCH: usize = 200;
/// Roots that are remembered, and for how long, when nothing of them is held or waits.
const REMEMBERED: usize = 20_000;
const FORGET_AFTER: Duration = Duration::from_secs(3600);

/// What is to be told, by root.
#[derive(Debug, Default)]
pub struct Outbox {
    roots: HashMap<Arc<str>, Root>,
    /// Roots with something to tell, each once.
    ready: VecDeque<Arc<str>>,
    sequence: u64,
    waiting: usize,
    lost: u64,
}

#[derive(Debug, Default)]
struct Root {
    moves: BTreeMap<MoveKey, Move>,
    abandoned: VecDeque<Abandoned>,
    renew: bool,
    sent: Option<Arc<Batch>>,
    is_ready: bool,
    /// Reservations that were granted and not settled.
    open: u64,
    epoch: u64,
    contact: Option<Instant>,
}

/// Which counter; windows in their order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MoveKey {
    pub counter: Arc<str>,
    pub window: u64,
    /// To which a release belongs; Redis forgets what a dead or flushed generation held.
    pub generation: u64,
}

/// What becomes of one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    pub kind: Kind,
    pub release: u64,
    /// Nanoseconds of a bucket, else units.
    pub used: u64,
    at: Instant,
}

/// A reservation whose answer nobody waits for, or that was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Abandoned {
    pub id: Arc<str>,
    pub held: Vec<(Arc<str>, u64)>,
}

/// What is told at once, and again under the same number until it is acknowledged.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub root: Arc<str>,
    /// Rises through the process's life. 0 is a mere sign of life.
    pub sequence: u64,
    /// Give up all that this host holds.
    pub renew: bool,
    pub moves: Vec<(MoveKey, Move)>,
    pub abandoned: Vec<Abandoned>,
}

/// Now, and whether Redis is away: then buckets leak here, since it cannot let them leak.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub now: Instant,
    pub away: bool,
}

impl Outbox {
    pub fn granted(&mut self, root: &Arc<str>, now: Instant) {
        let root = self.root(root);
        root.open = root.open.saturating_add(1);
        root.contact = Some(now);
    }

    /// A granted reservation ends. `used` is by the order of `parts`; what is missing is nothing.
    pub(super) fn settled(
        &mut self,
        root: &Arc<str>,
        generation: u64,
        parts: &[Part],
        used: &[u64],
        moment: Moment,
    ) {
        let own = self.root(root);
        own.open = own.open.saturating_sub(1);
        for (at, part) in parts.iter().enumerate() {
            let used = used.get(at).copied().unwrap_or(0);
            self.push(
                root,
                &part.counter,
                generation,
                (part.demand(), used),
                moment,
            );
        }
        self.wake(root);
    }

    /// Use without a reservation: what was admitted while Redis was away.
    pub fn used(&mut self, root: &Arc<str>, used: &[(Counter, u64)], moment: Moment) {
        for (counter, amount) in used {
            self.push(root, counter, 0, (0, *amount), moment);
        }
        self.wake(root);
    }

    pub(super) fn abandoned(&mut self, root: &Arc<str>, abandoned: Abandoned) {
        let own = self.root(root);
        if own.abandoned.len() < MAX_ABANDONED {
            own.abandoned.push_back(abandoned);
        } else {
            own.renew = true;
        }
        self.wake(root);
    }

    /// Redis answered about a root. Says whether it was emptied since the last answer.
    pub fn answered(&mut self, root: &Arc<str>, epoch: u64, now: Instant) -> bool {
        let own = self.root(root);
        own.contact = Some(now);
        let emptied = own.epoch != 0 && epoch > own.epoch;
        own.epoch = own.epoch.max(epoch);
        emptied
    }

    /// Up to `most` batches of different roots. Each is under way until it is delivered or failed.
    pub(super) fn take(&mut self, most: usize, moment: Moment) -> Vec<Arc<Batch>> {
        let mut batches = Vec::new();
        while batches.len() < most {
            let Some(name) = self.ready.pop_front() else {
                break;
            };
            let Some(root) = self.roots.get_mut(&name) else {
                continue;
            };
            root.is_ready = false;
            if root.sent.is_none() {
                self.sequence += 1;
                root.sent = Some(Arc::new(root.pack(&name, self.sequence, moment)));
            }
            batches.extend(root.sent.clone());
        }
        batches
    }

    /// Redis has it. What has come up in the meantime is next.
    pub(super) fn delivered(&mut self, batch: &Batch) {
        if batch.sequence == 0 {
            return;
        }
        self.waiting = self.waiting.saturating_sub(batch.moves.len());
        let own = self.root(&batch.root);
        own.sent = None;
        if !own.moves.is_empty() || !own.abandoned.is_empty() || own.renew {
            self.wake(&batch.root);
        }
    }

    /// Nobody knows whether Redis has it: it is told again, as it was.
    pub(super) fn failed(&mut self, batch: &Batch) {
        if batch.sequence > 0 {
            self.requeue(&batch.root);
        }
    }

    /// A sign of life for each root of which something is held and that was silent for `interval`.
    /// Forgets roots that nobody uses.
    pub(super) fn signs(&mut self, interval: Duration, now: Instant) -> Vec<Batch> {
        let silent = |root: &Root, span| {
            root.contact
                .is_none_or(|at| now.saturating_duration_since(at) >= span)
        };
        if self.roots.len() > REMEMBERED {
            self.roots
                .retain(|_, root| !root.is_idle() || !silent(root, FORGET_AFTER));
        }
        self.roots
            .iter()
            .filter(|(_, root)| root.open > 0 && root.sent.is_none() && silent(root, interval))
            .map(|(name, _)| Batch::sign_of_life(name))
            .collect()
    }

    /// Counters and given-up reservations that wait or are under way.
    pub fn len(&self) -> usize {
        let abandoned = |root: &Root| {
            let sent = root.sent.as_ref().map_or(0, |batch| batch.abandoned.len());
            root.abandoned.len() + sent
        };
        self.waiting + self.roots.values().map(abandoned).sum::<usize>()
    }

    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.roots.values().all(|root| root.sent.is_none())
    }

    /// Counters whose use was lost because too many others waited.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Reservations that were granted and not settled.
    pub fn open(&self) -> u64 {
        self.roots.values().map(|root| root.open).sum()
    }

    fn root(&mut self, name: &Arc<str>) -> &mut Root {
        self.roots.entry(name.clone()).or_default()
    }

    /// Something waits: unless a batch is under way, which will see to it.
    fn wake(&mut self, name: &Arc<str>) {
        if self.root(name).sent.is_none() {
            self.requeue(name);
        }
    }

    fn requeue(&mut self, name: &Arc<str>) {
        let root = self.root(name);
        if !root.is_ready {
            root.is_ready = true;
            self.ready.push_back(name.clone());
        }
    }

    fn push(
        &mut self,
        root: &Arc<str>,
        counter: &Counter,
        generation: u64,
        (release, used): (u64, u64),
        moment: Moment,
    ) {
        if release == 0 && used == 0 {
            return;
        }
        let key = MoveKey {
            counter: counter.name.clone(),
            window: counter.rule.window(),
            generation,
        };
        let full = self.waiting >= MAX_MOVES;
        let own = self.root(root);
        if full && !own.moves.contains_key(&key) {
            // What is held must not stay for ever; what was used is lost.
            own.renew |= release > 0;
            self.lost += u64::from(used > 0);
            return;
        }
        let kind = counter.rule.kind();
        let before = own.moves.len();
        let entry = own.moves.entry(key).or_insert(Move {
            kind,
            release: 0,
            used: 0,
            at: moment.now,
        });
        entry.leak(moment);
        entry.release = entry.release.saturating_add(release).min(LIMIT);
        entry.used = entry
            .used
            .saturating_add(counter.rule.cost(used))
            .min(LIMIT);
        self.waiting += self.roots.get(root).map_or(0, |own| own.moves.len()) - before;
    }
}

impl Root {
    fn pack(&mut self, name: &Arc<str>, sequence: u64, moment: Moment) -> Batch {
        let mut moves = Vec::new();
        while moves.len() < BATCH {
            let Some((key, mut one)) = self.moves.pop_first() else {
                break;
            };
            one.leak(moment);
            moves.push((key, one));
        }
        let taken = self.abandoned.len().min(BATCH);
        Batch {
            root: name.clone(),
            sequence,
            renew: std::mem::take(&mut self.renew),
            moves,
            abandoned: self.abandoned.drain(..taken).collect(),
        }
    }

    fn is_idle(&self) -> bool {
        self.open == 0
            && self.sent.is_none()
            && self.moves.is_empty()
            && self.abandoned.is_empty()
            && !self.renew
    }
}

impl Move {
    fn leak(&mut self, moment: Moment) {
        if moment.away && self.kind == Kind::Bucket {
            let gone = moment.now.saturating_duration_since(self.at).as_nanos();
            self.used = self
                .used
                .saturating_sub(u64::try_from(gone).unwrap_or(u64::MAX));
        }
        self.at = moment.now;
    }
}

impl Batch {
    pub(super) fn sign_of_life(root: &Arc<str>) -> Self {
        Self {
            root: root.clone(),
            sequence: 0,
            renew: false,
            moves: Vec::new(),
            abandoned: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
