//! In which order waiting requests are served. Pure: who waits goes in, who is next comes out.
//!
//! Within a class of priority: start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) with a
//! cost of one per request. Each tenant's next request has a tag in virtual time; the lowest is
//! served, and the tenant's next tag is one cost later, the cost being less for a greater weight. A
//! tenant that was away begins at the present and has no credit for its absence. Requests of one
//! tenant are served in the order in which they came.
//!
//! Between classes: the highest first, but none is passed over more than [`PATIENCE`] times while a
//! request of its waits; then it is its turn. With two classes that makes at least every eighth
//! grant the lower one's, with three at least every ninth.
//!
//! The line's length is for its owner to bound. Where it is full, [`FairQueue::gives_way`] says who
//! leaves for a newcomer, so that nobody can fill it alone: of the requests that wait, each tenant
//! has a share by its weight, and at least one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use crate::config::settings::Priority;

/// Grants to other classes before it is a waiting class's turn.
pub const PATIENCE: u32 = 7;
/// Virtual time of one request with weight 1; a multiple of most weights, and large enough that
/// rounding does not matter at 1000.
const COST: u64 = 1 << 24;
/// Waiting requests that one search looks at before it gives up.
const LONGEST_LOOK: usize = 64;

/// A bounded queue, fair between tenants `K`.
#[derive(Debug)]
pub struct FairQueue<K, T> {
    /// High, normal, low.
    classes: [Class<K, T>; 3],
    arrivals: u64,
}

/// By which a waiting request is taken out again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket<K> {
    tenant: K,
    priority: Priority,
    arrival: u64,
}

impl<K> Ticket<K> {
    pub fn tenant(&self) -> &K {
        &self.tenant
    }

    pub fn priority(&self) -> Priority {
        self.priority
    }
}

/// What is to become of a request that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// It is served.
    Take,
    /// It cannot be served now; perhaps a later one can.
    Next,
    /// Nobody can be served now.
    Stop,
}

#[derive(Debug)]
struct Class<K, T> {
    flows: HashMap<K, Flow<T>>,
    /// Tag and arrival of the first request of each tenant that waits.
    order: BTreeSet<(u64, u64, K)>,
    /// Tenants that wait for nothing and have had more than their share, by when they are even.
    ahead: BTreeSet<(u64, K)>,
    /// The tag of the request that was served last.
    clock: u64,
    waiting: usize,
    /// Grants to other classes since one of this waits or was served.
    passed: u32,
}

/// One tenant's requests.
#[derive(Debug)]
struct Flow<T> {
    /// By arrival.
    waiting: BTreeMap<u64, Waiting<T>>,
    /// The tag of its next request.
    tag: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    weight: u32,
    item: T,
}

impl<K, T> Default for FairQueue<K, T> {
    fn default() -> Self {
        let class = || Class {
            flows: HashMap::new(),
            order: BTreeSet::new(),
            ahead: BTreeSet::new(),
            clock: 0,
            waiting: 0,
            passed: 0,
        };
        Self {
            classes: [class(), class(), class()],
            arrivals: 0,
        }
    }
}

impl<K: Clone + Eq + Hash + Ord, T> FairQueue<K, T> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.classes.iter().map(|class| class.waiting).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a request in. `weight` is 1 to 1000.
    pub fn push(&mut self, tenant: K, weight: u32, priority: Priority, item: T) -> Ticket<K> {
        self.arrivals += 1;
        let ticket = Ticket {
            tenant,
            priority,
            arrival: self.arrivals,
        };
        self.class(priority).push(&ticket, weight, item);
        ticket
    }

    /// Takes a request out that was not served. `None` if it was.
    pub fn remove(&mut self, ticket: &Ticket<K>) -> Option<T> {
        let class = self.class(ticket.priority);
        let taken = class.take(&ticket.tenant, ticket.arrival, false);
        taken.map(|waiting| waiting.item)
    }

    /// The next request that `look` takes, in the order of fairness.
    pub fn pop_first(&mut self, mut look: impl FnMut(&T) -> Look) -> Option<T> {
        let mut left = LONGEST_LOOK;
        let mut found = None;
        'search: for index in self.turns() {
            let class = self.classes.get(index)?;
            for (_, _, tenant) in &class.order {
                let Some(flow) = class.flows.get(tenant) else {
                    continue;
                };
                for (arrival, waiting) in &flow.waiting {
                    if left == 0 {
                        return None;
                    }
                    left -= 1;
                    match look(&waiting.item) {
                        Look::Take => {
                            found = Some((index, tenant.clone(), *arrival));
                            break 'search;
                        }
                        Look::Next => {}
                        Look::Stop => return None,
                    }
                }
            }
        }
        let (served, tenant, arrival) = found?;
        for (index, class) in self.classes.iter_mut().enumerate() {
            if index == served || class.waiting == 0 {
                class.passed = 0;
            } else {
                class.passed += 1;
            }
        }
        let class = self.classes.get_mut(served)?;
        let taken = class.take(&tenant, arrival, true);
        taken.map(|waiting| waiting.item)
    }

    /// How many of those that wait would be served before a newcomer. Exact within a class, an
    /// estimate between classes; who comes later is not foreseen. Looks at every tenant that waits.
    pub fn ahead(&self, tenant: &K, priority: Priority) -> usize {
        let own = self
            .classes
            .get(index(priority))
            .map_or(0, |class| class.ahead_of(tenant));
        let waiting = |from: usize, to: usize| -> usize {
            let classes = self.classes.get(from..to).unwrap_or_default();
            classes.iter().map(|class| class.waiting).sum()
        };
        let higher = waiting(0, index(priority));
        let lower = waiting(index(priority) + 1, self.classes.len());
        let patience = usize::try_from(PATIENCE).unwrap_or(usize::MAX);
        // Of many in higher classes, some let this class go first; of this, some the lower ones.
        let higher = higher.min(own.saturating_add(1).saturating_mul(patience));
        own + higher + lower.min((own + higher) / patience)
    }

    /// Who leaves for a newcomer where there is no room for one more: the newest request of a tenant
    /// that has more than its share waiting; of several the one in the lowest class, then the one
    /// with the most relative to its weight. `None` if the newcomer's tenant has its share already,
    /// or nobody has more. Whoever left would not be let in again in the same way. `weight` is 1 to
    /// 1000. Looks at every tenant that waits.
    pub fn gives_way(&self, tenant: &K, weight: u32, priority: Priority) -> Option<Ticket<K>> {
        let own = self.classes.get(index(priority));
        let own = own.and_then(|class| class.flows.get(tenant));
        let has = own.map_or(0, |flow| flow.waiting.len());
        // While it waits already, it is counted among the others.
        let joining = if has == 0 { u64::from(weight) } else { 0 };
        let crowd = Crowd {
            waiting: number(self.len()),
            weights: self.classes.iter().map(Class::weights).sum::<u64>() + joining,
        };
        if crowd.is_above_share(has + 1, weight) {
            return None;
        }
        let classes = [Priority::Low, Priority::Normal, Priority::High];
        classes.into_iter().find_map(|priority| {
            let class = self.classes.get(index(priority))?;
            let (tenant, arrival) = class.longest(crowd)?;
            Some(Ticket {
                tenant: tenant.clone(),
                priority,
                arrival,
            })
        })
    }

    fn class(&mut self, priority: Priority) -> &mut Class<K, T> {
        let [high, normal, low] = &mut self.classes;
        match priority {
            Priority::High => high,
            Priority::Normal => normal,
            Priority::Low => low,
        }
    }

    /// The classes that wait, in the order in which it is their turn.
    fn turns(&self) -> Vec<usize> {
        let mut turns: Vec<_> = (0..self.classes.len())
            .filter_map(|index| {
                let class = self.classes.get(index).filter(|class| class.waiting > 0)?;
                let overdue = Some(class.passed).filter(|passed| *passed >= PATIENCE);
                Some((std::cmp::Reverse(overdue.unwrap_or(0)), index))
            })
            .collect();
        turns.sort_unstable();
        turns.into_iter().map(|(_, index)| index).collect()
    }
}

impl<K: Clone + Eq + Hash + Ord, T> Class<K, T> {
    fn push(&mut self, ticket: &Ticket<K>, weight: u32, item: T) {
        let clock = self.clock;
        let flow = self
            .flows
            .entry(ticket.tenant.clone())
            .or_insert_with(|| Flow {
                waiting: BTreeMap::new(),
                tag: clock,
            });
        if flow.waiting.is_empty() {
            self.ahead.remove(&(flow.tag, ticket.tenant.clone()));
            flow.tag = flow.tag.max(clock);
            let place = (flow.tag, ticket.arrival, ticket.tenant.clone());
            self.order.insert(place);
        }
        flow.waiting
            .insert(ticket.arrival, Waiting { weight, item });
        self.waiting += 1;
    }

    /// Takes one out; if it was `served`, its tenant pays for it.
    fn take(&mut self, tenant: &K, arrival: u64, served: bool) -> Option<Waiting<T>> {
        let flow = self.flows.get_mut(tenant)?;
        let first = *flow.waiting.keys().next()?;
        let taken = flow.waiting.remove(&arrival)?;
        self.waiting -= 1;
        self.order.remove(&(flow.tag, first, tenant.clone()));
        if served {
            self.clock = self.clock.max(flow.tag);
            flow.tag += cost(taken.weight);
        }
        match flow.waiting.keys().next() {
            Some(next) => {
                self.order.insert((flow.tag, *next, tenant.clone()));
            }
            None => {
                self.ahead.insert((flow.tag, tenant.clone()));
            }
        }
        if self.waiting == 0 {
            // Everybody has what they wanted: accounts are settled.
            self.passed = 0;
            self.clock = self.ahead.last().map_or(self.clock, |(tag, _)| *tag);
        }
        self.settle();
        Some(taken)
    }

    /// Forgets those who are even.
    fn settle(&mut self) {
        while self
            .ahead
            .first()
            .is_some_and(|(tag, _)| *tag <= self.clock)
        {
            if let Some((_, tenant)) = self.ahead.pop_first() {
                self.flows.remove(&tenant);
            }
        }
    }

    /// Of those that wait.
    fn weights(&self) -> u64 {
        let newest = self.flows.values().filter_map(Flow::newest);
        newest.map(|(_, weight)| u64::from(weight)).sum()
    }

    /// The tenant that is furthest above its share, and its newest request.
    fn longest(&self, crowd: Crowd) -> Option<(&K, u64)> {
        let above = self.flows.iter().filter_map(|(tenant, flow)| {
            let (arrival, weight) = flow.newest()?;
            let length = number(flow.waiting.len()).saturating_mul(cost(weight));
            let above = crowd.is_above_share(flow.waiting.len(), weight);
            above.then_some((length, arrival, tenant))
        });
        above
            .max_by_key(|(length, arrival, _)| (*length, *arrival))
            .map(|(_, arrival, tenant)| (tenant, arrival))
    }

    fn ahead_of(&self, tenant: &K) -> usize {
        let own = self.flows.get(tenant);
        let before = own.map_or(0, |flow| flow.waiting.len());
        let paid: u64 = own.map_or(0, |flow| {
            let costs = flow.waiting.values().map(|waiting| cost(waiting.weight));
            costs.sum()
        });
        let tag = own.map_or(self.clock, |flow| flow.tag.max(self.clock)) + paid;
        let others = self.flows.iter().filter(|(other, _)| *other != tenant);
        let first = others.map(|(_, flow)| {
            let mut at = flow.tag;
            let earlier = flow.waiting.values().take_while(|waiting| {
                let before = at <= tag;
                at += cost(waiting.weight);
                before
            });
            earlier.count()
        });
        before + first.sum::<usize>()
    }
}

impl<T> Flow<T> {
    /// Its last request, and the weight that it has by it.
    fn newest(&self) -> Option<(u64, u32)> {
        let (arrival, waiting) = self.waiting.last_key_value()?;
        Some((*arrival, waiting.weight))
    }
}

/// All that wait, by which shares are measured.
#[derive(Debug, Clone, Copy)]
struct Crowd {
    waiting: u64,
    /// The sum, each tenant once.
    weights: u64,
}

impl Crowd {
    /// Are so many more than a tenant's share? One is not.
    fn is_above_share(self, count: usize, weight: u32) -> bool {
        let needed = u128::from(number(count)) * u128::from(self.weights);
        count > 1 && needed > u128::from(self.waiting) * u128::from(weight)
    }
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn index(priority: Priority) -> usize {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

fn cost(weight: u32) -> u64 {
    COST / u64::from(weight.clamp(1, 1000))
}

#[cfg(test)]
mod tests;
