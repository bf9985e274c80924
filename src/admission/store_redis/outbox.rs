//! Decides what Redis is still to be told: releases, use, and reservations that were given up. What
//! waits is merged by counter, so its size is bounded by the number of counters, however long Redis is
//! away. One batch of a root is under way at a time, with a number by which Redis knows a repetition.
//! Pure: no connection, and `now` as an argument.

mod root;

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
/// The generation of what Redis has never heard of.
const UNKNOWN: u64 = 0;
/// Redis is expected to have kept what it said longer ago.
const RECENT: Duration = Duration::from_secs(60);

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
    /// What the open ones hold, by the generation in which Redis knows of it, and by counter.
    holding: BTreeMap<(u64, Arc<str>), u64>,
    /// The generation that Redis last told.
    generation: u64,
    /// Tickets up to this number were claimed anew, for this generation.
    claimed: (u64, u64),
    tickets: u64,
}

/// One granted reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    number: u64,
    generation: u64,
}

/// What each answer says about its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct News {
    /// When its counts began.
    pub epoch: u64,
    /// Of what this host holds; 0 if Redis knows of nothing.
    pub generation: u64,
}

/// Which counter; windows in their order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MoveKey {
    pub counter: Arc<str>,
    /// See [`super::ask::Rule::window`].
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
    /// What this host holds begins anew with this generation and these claims.
    pub renew: bool,
    /// What this host holds although Redis has forgotten it, for this generation.
    pub claims: Vec<(Arc<str>, u64)>,
    pub generation: u64,
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
    pub(super) fn granted(
        &mut self,
        name: &Arc<str>,
        generation: u64,
        parts: &[Part],
        now: Instant,
    ) -> Ticket {
        self.root(name).contact = Some(now);
        self.opened(name, generation, parts)
    }

    /// Admitted without asking. Redis knows nothing of it yet.
    pub(super) fn assumed(&mut self, name: &Arc<str>, parts: &[Part]) -> Ticket {
        self.opened(name, UNKNOWN, parts)
    }

    fn opened(&mut self, name: &Arc<str>, generation: u64, parts: &[Part]) -> Ticket {
        let root = self.root(name);
        root.open = root.open.saturating_add(1);
        for part in parts {
            let key = (generation, part.counter.name.clone());
            let held = root.holding.entry(key).or_default();
            *held = held.saturating_add(part.demand());
        }
        root.tickets += 1;
        let ticket = Ticket {
            number: root.tickets,
            generation,
        };
        // As long as Redis has told no generation, there is none to claim for: any word makes it tell.
        if root.has_to_claim() || root.generation == UNKNOWN {
            self.wake(name);
        }
        ticket
    }

    /// Some parts of a granted reservation are settled before it ends. `used` is of each.
    pub(super) fn settled_in_part(
        &mut self,
        root: &Arc<str>,
        ticket: Ticket,
        parts: &[Part],
        used: u64,
        moment: Moment,
    ) {
        let generation = self.root(root).let_go(ticket, parts);
        let used = parts.iter().zip(std::iter::repeat(used));
        self.push_all(root, generation, used, moment);
    }

    /// A granted reservation ends. `used` is by the order of `parts`; what is missing is nothing.
    pub(super) fn settled(
        &mut self,
        root: &Arc<str>,
        ticket: Ticket,
        parts: &[Part],
        used: &[u64],
        moment: Moment,
    ) {
        let own = self.root(root);
        own.open = own.open.saturating_sub(1);
        let generation = own.let_go(ticket, parts);
        let used = used.iter().copied().chain(std::iter::repeat(0));
        self.push_all(root, generation, parts.iter().zip(used), moment);
    }

    fn push_all<'a>(
        &mut self,
        root: &Arc<str>,
        generation: u64,
        used: impl Iterator<Item = (&'a Part, u64)>,
        moment: Moment,
    ) {
        for (part, used) in used {
            let release = if generation == UNKNOWN {
                0
            } else {
                part.demand()
            };
            self.push(root, &part.counter, generation, (release, used), moment);
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

    /// Redis answered about a root. Says whether it was emptied since the last answer. If Redis has
    /// forgotten what this host holds, it is claimed anew.
    pub(super) fn answered(&mut self, root: &Arc<str>, news: News, now: Instant) -> bool {
        let own = self.root(root);
        own.contact = Some(now);
        let emptied = own.epoch != 0 && news.epoch > own.epoch;
        own.epoch = own.epoch.max(news.epoch);
        own.generation = own.generation.max(news.generation);
        if own.has_to_claim() {
            self.wake(root);
        }
        emptied
    }

    /// A new connection: what Redis had said last may be lost, by a crash or in a failover. So what
    /// this host holds is stated anew; else what was let go in those moments stayed reserved for as
    /// long as this host lives.
    pub(super) fn reconnected(&mut self, now: Instant) {
        let recent = |root: &Root| {
            let recently = |at| now.saturating_duration_since(at) < RECENT;
            root.open > 0 || root.contact.is_some_and(recently)
        };
        let roots = self.roots.iter_mut().filter(|(_, root)| recent(root));
        let renewed = roots.map(|(name, root)| {
            root.renew = true;
            name.clone()
        });
        for name in renewed.collect::<Vec<_>>() {
            self.wake(&name);
        }
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
        if own.has_something() {
            self.wake(&batch.root);
        }
    }

    /// Redis does not take it, and would not take it again: what was used is lost. What this host holds
    /// is stated anew, with its next word about this root or sign of life.
    pub(super) fn rejected(&mut self, batch: &Batch) {
        if batch.sequence == 0 {
            return;
        }
        self.waiting = self.waiting.saturating_sub(batch.moves.len());
        let lost = batch.moves.iter().filter(|(_, one)| one.used > 0).count();
        self.lost += u64::try_from(lost).unwrap_or(u64::MAX);
        let own = self.root(&batch.root);
        own.sent = None;
        own.renew = true;
        let room = MAX_ABANDONED.saturating_sub(own.abandoned.len());
        for abandoned in batch.abandoned.iter().take(room).rev() {
            own.abandoned.push_front(abandoned.clone());
        }
    }

    /// Redis could not judge a request for this root: a batch, be it an empty one, finds out why.
    pub(super) fn suspect(&mut self, root: &Arc<str>) {
        self.wake(root);
    }

    /// The counts of a root were removed, and that was told.
    pub(super) fn removed(&mut self, root: &Arc<str>) {
        self.root(root).epoch = 0;
    }

    /// Nobody knows whether Redis has it: it is told again, as it was.
    pub(super) fn failed(&mut self, batch: &Batch) {
        if batch.sequence > 0 {
            self.requeue(&batch.root);
        }
    }

    /// A sign of life for each root of which something is held and that was silent for `interval`.
    /// What was put off comes up again, and roots that nobody uses are forgotten.
    pub(super) fn signs(&mut self, interval: Duration, now: Instant) -> Vec<Batch> {
        let silent = |root: &Root, span| {
            root.contact
                .is_none_or(|at| now.saturating_duration_since(at) >= span)
        };
        if self.roots.len() > REMEMBERED {
            self.roots
                .retain(|_, root| !root.is_idle() || !silent(root, FORGET_AFTER));
        }
        let put_off = |root: &Root| root.sent.is_none() && !root.is_ready && root.has_something();
        let again = self.roots.iter().filter(|(_, root)| put_off(root));
        for name in again.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.requeue(&name);
        }
        self.roots
            .iter()
            .filter(|(_, root)| root.open > 0 && root.sent.is_none() && silent(root, interval))
            .map(|(name, _)| Batch::sign_of_life(name))
            .collect()
    }

    /// Counters, claims and given-up reservations that wait or are under way.
    pub fn len(&self) -> usize {
        let others = |root: &Root| {
            let sent = root.sent.as_ref();
            root.abandoned.len()
                + usize::from(root.has_to_claim())
                + sent.map_or(0, |batch| batch.abandoned.len() + batch.claims.len())
        };
        self.waiting + self.roots.values().map(others).sum::<usize>()
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
            claims: Vec::new(),
            generation: 0,
            moves: Vec::new(),
            abandoned: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
