use proptest::prelude::*;

use super::*;

type Tenant = u8;

fn take<T>(_: &T) -> Look {
    Look::Take
}

fn pop<T>(queue: &mut FairQueue<Tenant, T>) -> Option<T> {
    queue.pop_first(take)
}

fn normal(queue: &mut FairQueue<Tenant, Tenant>, tenant: Tenant, weight: u32) {
    queue.push(tenant, weight, Priority::Normal, tenant);
}

#[test]
fn a_crowd_does_not_delay_those_who_come_alone() {
    let mut queue = FairQueue::default();
    for _ in 0..200 {
        normal(&mut queue, 0, 1);
    }
    for tenant in 1..=9 {
        normal(&mut queue, tenant, 1);
    }
    let first: Vec<_> = (0..10).filter_map(|_| pop(&mut queue)).collect();
    for tenant in 0..=9 {
        assert_eq!(
            first.iter().filter(|x| **x == tenant).count(),
            1,
            "{first:?}"
        );
    }
    assert_eq!(queue.len(), 199);
}

#[test]
fn absence_earns_nothing_and_leaving_saves_nothing() {
    let mut queue = FairQueue::default();
    for _ in 0..100 {
        normal(&mut queue, 1, 1);
    }
    for _ in 0..50 {
        pop(&mut queue);
    }
    for _ in 0..50 {
        normal(&mut queue, 2, 1);
    }
    let next: Vec<_> = (0..20).filter_map(|_| pop(&mut queue)).collect();
    assert_eq!(next.iter().filter(|x| **x == 2).count(), 10, "{next:?}");
    // One that comes and goes with a single request has no more than one that stays.
    let mut served = 0;
    let mut queue = FairQueue::default();
    for _ in 0..100 {
        normal(&mut queue, 1, 1);
    }
    for _ in 0..40 {
        if queue.ahead(&2, Priority::Normal) == 0 || queue.len() < 101 {
            normal(&mut queue, 2, 1);
        }
        served += usize::from(pop(&mut queue) == Some(2));
    }
    assert!((19..=21).contains(&served), "{served}");
}

#[test]
fn a_lower_class_waits_for_its_turn_but_not_for_ever() {
    let mut queue = FairQueue::default();
    for number in 0..300 {
        queue.push(1, 1, Priority::High, (Priority::High, number));
        queue.push(2, 1, Priority::Normal, (Priority::Normal, number));
        queue.push(3, 1, Priority::Low, (Priority::Low, number));
    }
    let order: Vec<_> = (0..270).filter_map(|_| pop(&mut queue)).collect();
    for window in order.windows(9) {
        for class in [Priority::High, Priority::Normal, Priority::Low] {
            assert!(
                window.iter().any(|(served, _)| *served == class),
                "{window:?}"
            );
        }
    }
    let high = order.iter().filter(|(class, _)| *class == Priority::High);
    assert!(high.count() >= 270 * 6 / 8);
}

#[test]
fn who_cannot_be_served_is_passed_over_and_keeps_the_place() {
    let mut queue = FairQueue::default();
    for tenant in 1..=3 {
        normal(&mut queue, tenant, 1);
    }
    let look = |tenant: &Tenant| if *tenant == 1 { Look::Next } else { Look::Take };
    assert_eq!(queue.pop_first(look), Some(2));
    assert_eq!(queue.pop_first(|_| Look::Stop), None);
    assert_eq!(pop(&mut queue), Some(1));
    assert_eq!(pop(&mut queue), Some(3));
}

#[test]
fn nothing_is_remembered_of_those_who_are_even() {
    let mut queue = FairQueue::default();
    for tenant in 0..200 {
        normal(&mut queue, tenant, 1);
        normal(&mut queue, tenant, 5);
    }
    while pop(&mut queue).is_some() {}
    for class in &queue.classes {
        assert_eq!(
            (class.flows.len(), class.order.len(), class.ahead.len()),
            (0, 0, 0)
        );
    }
}

/// The same rules, told slowly: nothing is kept but who waits and what each has been served.
#[derive(Default)]
struct Reference {
    waiting: Vec<Guest>,
    tags: BTreeMap<(Priority, Tenant), u64>,
    clock: BTreeMap<Priority, u64>,
    passed: BTreeMap<Priority, u32>,
}

#[derive(Debug, Clone, Copy)]
struct Guest {
    id: u64,
    tenant: Tenant,
    weight: u32,
    priority: Priority,
}

impl Reference {
    fn push(&mut self, guest: Guest) {
        let present = *self.clock.entry(guest.priority).or_default();
        let key = (guest.priority, guest.tenant);
        let alone = !self
            .waiting
            .iter()
            .any(|other| (other.priority, other.tenant) == key);
        let tag = self.tags.entry(key).or_default();
        if alone {
            *tag = (*tag).max(present);
        }
        self.waiting.push(guest);
    }

    fn waits(&self, priority: Priority) -> bool {
        self.waiting.iter().any(|guest| guest.priority == priority)
    }

    fn remove(&mut self, id: u64) -> bool {
        let Some(at) = self.waiting.iter().position(|guest| guest.id == id) else {
            return false;
        };
        let guest = self.waiting.remove(at);
        self.settle(guest.priority);
        true
    }

    fn settle(&mut self, priority: Priority) {
        if !self.waits(priority) {
            let last = self
                .tags
                .iter()
                .filter(|((class, _), _)| *class == priority);
            let last = last.map(|(_, tag)| *tag).max().unwrap_or(0);
            let clock = self.clock.entry(priority).or_default();
            *clock = (*clock).max(last);
            self.passed.insert(priority, 0);
        }
    }

    fn pop(&mut self) -> Option<u64> {
        let classes = [Priority::High, Priority::Normal, Priority::Low];
        let waiting: Vec<_> = classes
            .into_iter()
            .filter(|class| self.waits(*class))
            .collect();
        let counts = self.passed.clone();
        let passed = |class: &Priority| counts.get(class).copied().unwrap_or(0);
        let longest = waiting.iter().map(passed).max()?;
        let class = if longest >= PATIENCE {
            *waiting.iter().find(|class| passed(class) == longest)?
        } else {
            *waiting.first()?
        };
        for other in classes {
            let skipped = other != class && waiting.contains(&other);
            let count = if skipped { passed(&other) + 1 } else { 0 };
            self.passed.insert(other, count);
        }
        let firsts = self.waiting.iter().filter(|guest| guest.priority == class);
        let mut seen = Vec::new();
        let firsts = firsts.filter(|guest| {
            let first = !seen.contains(&guest.tenant);
            seen.push(guest.tenant);
            first
        });
        let next = *firsts.min_by_key(|guest| (self.tags[&(class, guest.tenant)], guest.id))?;
        self.waiting.retain(|guest| guest.id != next.id);
        let tag = self.tags.get_mut(&(class, next.tenant))?;
        let clock = self.clock.entry(class).or_default();
        *clock = (*clock).max(*tag);
        *tag += COST / u64::from(next.weight);
        self.settle(class);
        Some(next.id)
    }
}

#[derive(Debug, Clone)]
enum Step {
    Push(Tenant, u32, Priority),
    Pop,
    /// One of those ever pushed.
    Remove(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let priority = prop_oneof![
        4 => Just(Priority::Normal),
        1 => Just(Priority::High),
        1 => Just(Priority::Low)
    ];
    let step = prop_oneof![
        5 => (0..6u8, 1..=1000u32, priority).prop_map(|(t, w, p)| Step::Push(t, w, p)),
        4 => Just(Step::Pop),
        1 => any::<prop::sample::Index>().prop_map(Step::Remove),
    ];
    proptest::collection::vec(step, 1..300)
}

proptest! {
    #[test]
    fn the_order_is_that_of_a_slow_reference(steps in steps()) {
        let mut queue = FairQueue::default();
        let mut reference = Reference::default();
        let mut tickets = Vec::new();
        for step in steps {
            match step {
                Step::Push(tenant, weight, priority) => {
                    let id = tickets.len() as u64;
                    tickets.push(queue.push(tenant, weight, priority, id));
                    reference.push(Guest { id, tenant, weight, priority });
                }
                Step::Pop => prop_assert_eq!(pop(&mut queue), reference.pop()),
                Step::Remove(which) if !tickets.is_empty() => {
                    let id = which.index(tickets.len());
                    let removed = queue.remove(&tickets[id]);
                    prop_assert_eq!(removed.is_some(), reference.remove(id as u64));
                }
                Step::Remove(_) => {}
            }
            prop_assert_eq!(queue.len(), reference.waiting.len());
        }
        loop {
            let next = pop(&mut queue);
            prop_assert_eq!(next, reference.pop());
            if next.is_none() { break; }
        }
    }

    #[test]
    fn shares_of_those_who_always_wait_are_their_weights(
        weights in proptest::collection::vec(1..=1000u32, 2..8),
    ) {
        let mut queue = FairQueue::default();
        let mut served = vec![0u64; weights.len()];
        let tenants = || (0u8..).zip(&weights);
        for (tenant, weight) in tenants() {
            normal(&mut queue, tenant, *weight);
            normal(&mut queue, tenant, *weight);
        }
        let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let grants = (sum * 4).min(8_000);
        for _ in 0..grants {
            let tenant = pop(&mut queue).unwrap();
            served[usize::from(tenant)] += 1;
            normal(&mut queue, tenant, weights[usize::from(tenant)]);
        }
        for (tenant, weight) in tenants() {
            let fair = grants as f64 * f64::from(*weight) / sum as f64;
            let got = served[usize::from(tenant)] as f64;
            prop_assert!((got - fair).abs() <= fair * 0.1 + 1.0, "{tenant}: {got} of {fair}");
        }
    }

    #[test]
    fn a_newcomer_is_told_how_many_go_first(
        crowd in proptest::collection::vec((0..5u8, 1..20u32), 0..60),
        served in 0..20usize,
        tenant in 0..6u8,
        weight in 1..20u32,
    ) {
        let mut queue = FairQueue::default();
        for (tenant, weight) in crowd {
            queue.push(tenant, weight, Priority::Normal, false);
        }
        for _ in 0..served { pop(&mut queue); }
        let told = queue.ahead(&tenant, Priority::Normal);
        queue.push(tenant, weight, Priority::Normal, true);
        let mut before = 0;
        while pop(&mut queue) == Some(false) { before += 1; }
        prop_assert_eq!(told, before);
    }
}
