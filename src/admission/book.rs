//! All counts of the process, by whose they are. Outlives reloads; what of it outlives the process
//! is read and written through here, by whoever keeps it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::clock::Now;
use super::counter::Kept;
use super::estimate::Experience;
use super::subject::{Live, Subject, SubjectName, Told};
use crate::config::settings::{Limit, LimitKey};

#[derive(Debug, Default)]
pub struct Book {
    subjects: Mutex<HashMap<SubjectName, Arc<Subject>>>,
    handed_over: AtomicBool,
}

/// What a process holds of one counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    pub subject: SubjectName,
    pub key: LimitKey,
    pub held: u64,
}

/// Counters that are to be written down.
#[derive(Debug)]
pub struct Changed {
    pub subject: Arc<Subject>,
    pub changes: Vec<(LimitKey, Kept)>,
}

/// What another process needs to go on with the counting.
#[derive(Debug, Default)]
pub struct HandedOver {
    pub counters: Vec<Changed>,
    pub held: Vec<Holding>,
}

/// What is under way, for the reconciliation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leases {
    /// Requests that hold room of a tenant's limits.
    pub open: usize,
    /// Held in all counters together.
    pub held: u64,
    /// Those that have been held for too long: request and since when.
    pub overdue: Vec<Live>,
}

impl Book {
    /// The subject of this name, made if it is new.
    pub fn subject(&self, name: SubjectName) -> Arc<Subject> {
        let mut subjects = self.subjects.lock();
        let make = || {
            let subject = Subject::new(name.clone());
            if self.is_handed_over() {
                subject.hand_over(0);
            }
            Arc::new(subject)
        };
        subjects.entry(name.clone()).or_insert_with(make).clone()
    }

    /// What was learned of all tenants' models, by the name of both, to be written down.
    pub fn experiences(&self) -> Vec<(String, Experience)> {
        let subjects = self.all().into_iter();
        let experiences = subjects.flat_map(|subject| {
            let name = |(model, experience)| (format!("{}|{model}", subject.name), experience);
            let models = subject.experiences().into_iter();
            models.map(name).collect::<Vec<_>>()
        });
        experiences.collect()
    }

    /// Takes over what was written down under the name of both.
    pub fn restore_experience(&self, name: &str, experience: Experience) {
        if let Some((subject, model)) = name.split_once('|') {
            let subject = self.subject(SubjectName(subject.into()));
            subject.restore_experience(model, experience);
        }
    }

    fn all(&self) -> Vec<Arc<Subject>> {
        self.subjects.lock().values().cloned().collect()
    }

    /// Takes over what was written down by an earlier process, `passed` nanoseconds ago.
    pub fn restore(&self, name: SubjectName, key: &LimitKey, kept: Kept, passed: u64, now: u64) {
        self.subject(name).look().restore(key, kept, passed, now);
    }

    /// What changed since the last time. `now` is [`Now::steady`].
    pub fn changes(&self, now: u64) -> Vec<Changed> {
        let subjects = self.all().into_iter();
        let changed = subjects.filter_map(|subject| {
            let changes = subject.changes(now)?;
            Some(Changed { subject, changes })
        });
        changed.collect()
    }

    /// Everything is to be written down again: what kept it is gone.
    pub fn write_all_again(&self) {
        self.all().iter().for_each(|subject| subject.write_again());
    }

    /// Does another process count now?
    pub fn is_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Acquire)
    }

    /// Leaves the counting to another process. No reservation may be made from here on; those that
    /// are held are told, and what becomes of them is to be asked for by [`Book::told`]. `now` is
    /// [`Now::steady`].
    pub fn hand_over(&self, now: u64) -> HandedOver {
        self.handed_over.store(true, Ordering::Release);
        let mut all = HandedOver::default();
        for subject in self.all() {
            let parting = subject.hand_over(now);
            let holding = |(key, held)| Holding {
                subject: subject.name.clone(),
                key,
                held,
            };
            all.held.extend(parting.held.into_iter().map(holding));
            let changes = parting.counters;
            all.counters.push(Changed { subject, changes });
        }
        all
    }

    /// What changed after the counting was handed over.
    pub fn told(&self) -> Vec<(SubjectName, Told)> {
        let subjects = self.all().into_iter();
        let told = subjects.flat_map(|subject| {
            let name = subject.name.clone();
            let told = subject.told().into_iter();
            told.map(move |told| (name.clone(), told))
                .collect::<Vec<_>>()
        });
        told.collect()
    }

    /// Counts what another process still holds.
    pub fn hold_for(&self, process: &Arc<str>, holding: &Holding) {
        let subject = self.subject(holding.subject.clone());
        subject.look().hold_for(process, &holding.key, holding.held);
    }

    /// Another process settled some of what it holds. Its limit may be gone from the configuration;
    /// then only what was held is let go.
    pub fn hear(
        &self,
        process: &str,
        name: SubjectName,
        told: &Told,
        limit: Option<&Limit>,
        now: &Now,
    ) {
        let subject = self.subject(name);
        subject.change().hear(process, limit, told, now);
    }

    /// The processes that hold something beside this one, each once.
    pub fn holders(&self) -> Vec<Arc<str>> {
        let mut holders = BTreeSet::new();
        for subject in self.all() {
            holders.extend(subject.look().holders().cloned());
        }
        holders.into_iter().collect()
    }

    /// What was taken by [`Book::told`] could not be told; `most` of it is kept for the next time.
    pub fn tell_again(&self, told: Vec<(SubjectName, Told)>, most: usize) {
        for (subject, told) in told.into_iter().take(most) {
            self.subject(subject).tell_again(told);
        }
    }

    /// What another process still holds, to be written down again after it settled some of it.
    pub fn held_by(&self, process: &str) -> Vec<Holding> {
        let subjects = self.all().into_iter();
        let holdings = subjects.flat_map(|subject| {
            let holding = |(key, held)| Holding {
                subject: subject.name.clone(),
                key,
                held,
            };
            let held = subject.look().held_by(process);
            held.into_iter().map(holding).collect::<Vec<_>>()
        });
        holdings.collect()
    }

    /// A process is gone; how much it still held.
    pub fn release_all_of(&self, process: &str) -> u64 {
        let subjects = self.all();
        let released = subjects
            .iter()
            .map(|subject| subject.look().release_all_of(process));
        released.fold(0, u64::saturating_add)
    }

    /// What is under way, and what of it since before `overdue` (of [`Now::steady`]). A tenant's
    /// request also holds room of its group; it is one lease.
    pub fn leases(&self, overdue: u64) -> Leases {
        let mut leases = Leases::default();
        for subject in self.all() {
            let counts = subject.look();
            leases.held = leases.held.saturating_add(counts.held());
            if subject.name.0.starts_with("group/") {
                continue;
            }
            leases.open += counts.live().count();
            let late = counts.live().filter(|live| live.since < overdue);
            leases.overdue.extend(late.copied());
        }
        leases
    }
}
