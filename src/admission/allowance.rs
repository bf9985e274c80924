//! The limits that hold for one tenant, of its own plan and of its group's, with the places of
//! their counters: a plan made ready for requests. Rebuilt on every reload; the counts are not.

use std::collections::HashMap;
use std::sync::Arc;

use super::book::Book;
use super::estimate::Learned;
use super::store_redis::Counter;
use super::subject::{Subject, SubjectName};
use crate::config::settings::{Limit, Plan, Surfaces, Tenant};

/// What one tenant may use.
#[derive(Debug)]
pub struct Allowance {
    /// The tenant itself, then its group. Locks are taken in this order.
    pub sides: Vec<Side>,
}

/// The limits of one subject.
#[derive(Debug)]
pub struct Side {
    pub subject: Arc<Subject>,
    /// For every model.
    general: Vec<Rule>,
    by_model: HashMap<Arc<str>, Vec<Rule>>,
}

/// One limit with its counter.
#[derive(Debug)]
pub struct Rule {
    pub limit: Arc<Limit>,
    /// In the subject's [`super::subject::Counts`].
    pub place: usize,
    /// The same in Redis, where counts are shared.
    pub shared: Option<Counter>,
    surfaces: u8,
}

/// Surfaces that are counted, each a bit of [`Rule::surfaces`].
const SURFACES: [&str; 7] = [
    "chat",
    "completions",
    "embeddings",
    "messages",
    "responses",
    "files",
    "balance",
];

/// The bit of a surface by its name; 0 for one that is not counted.
pub fn bit(surface: &str) -> u8 {
    let place = SURFACES.iter().position(|name| *name == surface);
    place.map_or(0, |place| 1 << place)
}

fn mask(surfaces: Surfaces) -> u8 {
    let counted = SURFACES.iter().filter(|name| surfaces.contain(name));
    counted.fold(0, |mask, name| mask | bit(name))
}

/// Whose limits these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of each limit, counted here alone.
    Whole,
    /// All of each limit, counted in Redis.
    Shared,
    /// One of so many equal parts, for a host that is on its own for a while; at least 1 of each.
    OneOf(u32),
}

impl Allowance {
    pub fn new(tenant: &Tenant, book: &Book, part: Part) -> Self {
        let own = SubjectName::tenant(tenant.id.as_str());
        let mut sides = vec![Side::new(book.subject(own), &tenant.plan, part)];
        if let Some(group) = &tenant.group {
            let name = SubjectName::group(group.id.as_str());
            sides.push(Side::new(book.subject(name), &group.plan, part));
        }
        Self { sides }
    }

    /// The subject below which everything of this tenant is counted in Redis: its group's, or its
    /// own.
    pub fn root(&self) -> Option<&Arc<str>> {
        self.sides.last().map(|side| &side.subject.name.0)
    }

    /// What the answers of a public model have shown to the tenant.
    pub fn learned(&self, model: &str) -> Arc<Learned> {
        let own = self.sides.first();
        own.map_or_else(Arc::default, |side| side.subject.learned(model))
    }
}

impl Side {
    fn new(subject: Arc<Subject>, plan: &Plan, part: Part) -> Self {
        let mut general = Vec::new();
        let mut by_model: HashMap<Arc<str>, Vec<Rule>> = HashMap::new();
        let mut counts = subject.look();
        for limit in &plan.limits {
            let mut limit = limit.clone();
            if let Part::OneOf(hosts) = part {
                let share = |whole: u64| (whole / u64::from(hosts.max(1))).max(1);
                limit.amount = share(limit.amount);
                limit.burst = share(limit.burst);
            }
            let shared = (part == Part::Shared).then(|| Counter::of(&subject.name.0, &limit, 0));
            let limit = Arc::new(limit);
            let rule = Rule {
                place: counts.place(&limit.key),
                surfaces: mask(limit.key.surfaces),
                limit: limit.clone(),
                shared,
            };
            match &limit.key.model {
                None => general.push(rule),
                Some(model) => by_model.entry(model.clone()).or_default().push(rule),
            }
        }
        drop(counts);
        Self {
            subject,
            general,
            by_model,
        }
    }

    /// The limits that a request of this surface and public model counts against.
    pub fn rules<'s>(&'s self, surface: u8, model: &str) -> impl Iterator<Item = &'s Rule> {
        let of_model = if self.by_model.is_empty() {
            None
        } else {
            self.by_model.get(model)
        };
        let rules = self.general.iter().chain(of_model.into_iter().flatten());
        rules.filter(move |rule| rule.surfaces & surface != 0)
    }

    /// All limits.
    pub fn all(&self) -> impl Iterator<Item = &Rule> {
        self.general.iter().chain(self.by_model.values().flatten())
    }
}
