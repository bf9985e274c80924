//! Whose use is counted together: a tenant, or a group of tenants. Holds their counters behind one
//! lock that no other subject shares, so that several limits are judged and taken as one.
//!
//! Outlives reloads: a counter is found by its [`LimitKey`], whatever plan asks for it. It has a
//! place of its own for good, so that what is held can be given back without a look-up, also after
//! the limit is gone from the configuration.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::clock::Now;
use super::counter::{Counter, Kept};
use super::estimate::{Experience, Learned};
use crate::config::settings::{Limit, LimitKey};

/// `tenant/search` or `group/research`; the name in the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubjectName(pub Arc<str>);

impl SubjectName {
    pub fn tenant(id: &str) -> Self {
        Self(format!("tenant/{id}").into())
    }

    pub fn group(id: &str) -> Self {
        Self(format!("group/{id}").into())
    }
}

impl std::fmt::Display for SubjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug)]
pub struct Subject {
    pub name: SubjectName,
    counts: Mutex<Counts>,
    /// What its models' answers have shown, by public model.
    learned: Mutex<HashMap<Arc<str>, Arc<Learned>>>,
    /// Something changed since it was last written down.
    dirty: AtomicBool,
}

/// The counters of a subject, by their places.
#[derive(Debug, Default)]
pub struct Counts {
    counters: Vec<(LimitKey, Counter)>,
    places: HashMap<LimitKey, usize>,
    /// Requests under way.
    live: Vec<Option<Live>>,
    free: Vec<usize>,
    /// What other processes hold here, by counter; part of what the counters hold.
    elsewhere: Vec<Elsewhere>,
    /// Another process counts now: what changes here is told to it.
    told: Option<Vec<Told>>,
}

/// A lease as it is looked for when it seems lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    /// The request's id, as a number.
    pub request: u128,
    /// [`Now::steady`].
    pub since: u64,
}

/// A part of a counter that a process holds which no longer admits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    pub process: Arc<str>,
    pub place: usize,
    pub held: u64,
}

/// A change of a counter, for the process that counts now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub key: LimitKey,
    pub released: u64,
    pub taken: u64,
}

/// What a subject leaves to the process that counts from here on.
#[derive(Debug)]
pub struct Parting {
    /// What this process holds of each counter.
    pub held: Vec<(LimitKey, u64)>,
    pub counters: Vec<(LimitKey, Kept)>,
}

impl Subject {
    pub fn new(name: SubjectName) -> Self {
        Self {
            name,
            counts: Mutex::default(),
            learned: Mutex::default(),
            dirty: AtomicBool::new(false),
        }
    }

    /// What the answers of a public model have shown to this subject.
    pub fn learned(&self, model: &str) -> Arc<Learned> {
        let mut learned = self.learned.lock();
        if let Some(known) = learned.get(model) {
            return known.clone();
        }
        let new = Arc::new(Learned::default());
        learned.insert(model.into(), new.clone());
        new
    }

    /// All of that, to be written down.
    pub fn experiences(&self) -> Vec<(Arc<str>, Experience)> {
        let learned = self.learned.lock();
        let models = learned.iter();
        models
            .map(|(model, learned)| (model.clone(), learned.experience()))
            .collect()
    }

    /// Takes over what was written down. For the start.
    pub fn restore_experience(&self, model: &str, experience: Experience) {
        let learned = Arc::new(Learned::from(experience));
        self.learned.lock().insert(model.into(), learned);
    }

    /// The counters, to look at.
    pub fn look(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock()
    }

    /// The counters, to change; they will be written down again.
    pub fn change(&self) -> MutexGuard<'_, Counts> {
        let counts = self.counts.lock();
        // Under the lock: who clears the mark has seen everything that came before it.
        if !self.dirty.load(Ordering::Relaxed) {
            self.dirty.store(true, Ordering::Relaxed);
        }
        counts
    }

    /// What is to be written down, if anything changed since the last time.
    pub fn changes(&self, now: u64) -> Option<Vec<(LimitKey, Kept)>> {
        if !self.dirty.load(Ordering::Relaxed) {
            return None;
        }
        let counts = self.counts.lock();
        self.dirty.store(false, Ordering::Relaxed);
        let kept = |(key, counter): &(LimitKey, Counter)| (key.clone(), counter.keep(now));
        Some(counts.counters.iter().map(kept).collect())
    }

    /// What was taken by [`Subject::changes`] could not be written.
    pub fn write_again(&self) {
        let _counts = self.change();
    }

    /// Lets another process count from here on: what is held here, and what all counters stand at.
    /// In one step: what comes after it is in [`Subject::told`] alone. `now` is [`Now::steady`].
    pub fn hand_over(&self, now: u64) -> Parting {
        let mut counts = self.counts.lock();
        self.dirty.store(false, Ordering::Relaxed);
        counts.told.get_or_insert_default();
        let own = counts.counters.iter().enumerate().map(|(place, counter)| {
            let (key, counter) = counter;
            let others = counts.elsewhere.iter().filter(|part| part.place == place);
            let others: u64 = others.map(|part| part.held).sum();
            (key.clone(), counter.held().saturating_sub(others))
        });
        let held = own.filter(|(_, held)| *held > 0).collect();
        let kept = |(key, counter): &(LimitKey, Counter)| (key.clone(), counter.keep(now));
        Parting {
            held,
            counters: counts.counters.iter().map(kept).collect(),
        }
    }

    /// What was taken by [`Subject::told`] could not be told.
    pub fn tell_again(&self, told: Told) {
        if let Some(waiting) = &mut self.counts.lock().told {
            waiting.push(told);
        }
    }

    /// What changed since the last time, for the process that counts now.
    pub fn told(&self) -> Vec<Told> {
        let mut counts = self.counts.lock();
        counts.told.as_mut().map(std::mem::take).unwrap_or_default()
    }
}

impl Counts {
    /// The place of a counter, made if it is new.
    pub fn place(&mut self, key: &LimitKey) -> usize {
        if let Some(place) = self.places.get(key) {
            return *place;
        }
        let place = self.counters.len();
        self.counters.push((key.clone(), Counter::default()));
        self.places.insert(key.clone(), place);
        place
    }

    pub fn counter(&mut self, place: usize) -> Option<&mut Counter> {
        self.counters.get_mut(place).map(|(_, counter)| counter)
    }

    /// Lets go of what is held, and counts what was taken.
    pub fn settle(&mut self, place: usize, limit: &Limit, released: u64, taken: u64, now: &Now) {
        let Some((key, counter)) = self.counters.get_mut(place) else {
            return;
        };
        counter.release(released);
        if taken > 0 {
            counter.take(limit, taken, now);
        }
        if let Some(told) = &mut self.told {
            told.push(Told {
                key: key.clone(),
                released,
                taken,
            });
        }
    }

    /// Adds what was written down `passed` nanoseconds ago to what was counted since.
    pub fn restore(&mut self, key: &LimitKey, kept: Kept, passed: u64, now: u64) {
        let place = self.place(key);
        if let Some(counter) = self.counter(place) {
            counter.add(kept, key, passed, now);
        }
    }

    /// Counts what another process holds as held.
    pub fn hold_for(&mut self, process: &Arc<str>, key: &LimitKey, held: u64) {
        let place = self.place(key);
        if let Some(counter) = self.counter(place) {
            counter.hold(held);
            self.elsewhere.push(Elsewhere {
                process: process.clone(),
                place,
                held,
            });
        }
    }

    /// Another process settled some of what it holds.
    pub fn hear(&mut self, process: &str, limit: Option<&Limit>, told: &Told, now: &Now) {
        let place = self.place(&told.key);
        let mut released = 0;
        if let Some(part) = self
            .elsewhere
            .iter_mut()
            .find(|part| part.place == place && &*part.process == process)
        {
            released = told.released.min(part.held);
            part.held -= released;
        }
        self.elsewhere.retain(|part| part.held > 0);
        match limit {
            Some(limit) => self.settle(place, limit, released, told.taken, now),
            // Gone from the configuration: how fast its bucket empties is not known any more.
            None => {
                if let Some(counter) = self.counter(place) {
                    counter.release(released);
                }
            }
        }
    }

    /// Another process is gone; what it still held is free. How much that was in all.
    pub fn release_all_of(&mut self, process: &str) -> u64 {
        let (gone, rest) = std::mem::take(&mut self.elsewhere)
            .into_iter()
            .partition::<Vec<_>, _>(|part| &*part.process == process);
        self.elsewhere = rest;
        for part in &gone {
            if let Some(counter) = self.counter(part.place) {
                counter.release(part.held);
            }
        }
        gone.iter().map(|part| part.held).sum()
    }

    /// Does another process count now?
    pub fn is_handed_over(&self) -> bool {
        self.told.is_some()
    }

    /// The processes that hold something here beside this one.
    pub fn holders(&self) -> impl Iterator<Item = &Arc<str>> {
        self.elsewhere.iter().map(|part| &part.process)
    }

    /// What another process holds here, by counter.
    pub fn held_by(&self, process: &str) -> Vec<(LimitKey, u64)> {
        let parts = self.elsewhere.iter();
        let parts = parts.filter(|part| &*part.process == process);
        let held = parts.filter_map(|part| {
            let (key, _) = self.counters.get(part.place)?;
            Some((key.clone(), part.held))
        });
        held.collect()
    }

    /// Notes a request as under way; its number is for [`Counts::leave`].
    pub fn enter(&mut self, live: Live) -> usize {
        let free = self.free.pop();
        match free.and_then(|number| Some((number, self.live.get_mut(number)?))) {
            Some((number, slot)) => {
                *slot = Some(live);
                number
            }
            None => {
                self.live.push(Some(live));
                self.live.len() - 1
            }
        }
    }

    pub fn leave(&mut self, number: usize) {
        if let Some(slot) = self.live.get_mut(number)
            && slot.take().is_some()
        {
            self.free.push(number);
        }
    }

    pub fn live(&self) -> impl Iterator<Item = &Live> {
        self.live.iter().flatten()
    }

    /// What is held in all counters together; zero when nothing is under way.
    pub fn held(&self) -> u64 {
        let held = self.counters.iter().map(|(_, counter)| counter.held());
        held.fold(0, u64::saturating_add)
    }
}
