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

#[test]
fn a_crowd_gives_way_to_those_who_come_alone_until_each_has_its_share() {
    let mut queue = FairQueue::default();
    for _ in 0..12 {
        normal(&mut queue, 0, 1);
    }
    // Two newcomers of weights 1 and 2 beside the crowd of weight 1: 3, 6 and 3 of twelve.
    for (tenant, weight) in [(1, 1), (2, 2)].into_iter().cycle().take(40) {
        if let Some(ticket) = queue.gives_way(&tenant, weight, Priority::Normal) {
            queue.remove(&ticket);
            normal(&mut queue, tenant, weight);
        }
    }
    let all: Vec<_> = std::iter::from_fn(|| pop(&mut queue)).collect();
    let count = |tenant| all.iter().filter(|other| **other == tenant).count();
    assert_eq!([0, 1, 2].map(count), [3, 3, 6]);
}

#[test]
fn whoever_has_none_waiting_gets_one_in_beside_the_heaviest() {
    let mut queue = FairQueue::default();
    for _ in 0..10 {
        normal(&mut queue, 0, 1000);
    }
    let ticket = queue.gives_way(&1, 1, Priority::Low).unwrap();
    assert_eq!((*ticket.tenant(), ticket.priority()), (0, Priority::Normal));
    queue.remove(&ticket);
    queue.push(1, 1, Priority::Low, 1);
    assert_eq!(queue.gives_way(&1, 1, Priority::Low), None);
    assert_eq!(queue.gives_way(&0, 1000, Priority::Normal), None);
}

#[test]
fn of_those_with_too_many_the_lowest_class_gives_way_first_and_who_has_one_keeps_it() {
    let mut queue = FairQueue::default();
    for _ in 0..9 {
        queue.push(1, 1, Priority::High, 1);
    }
    for _ in 0..5 {
        queue.push(2, 1, Priority::Normal, 2);
    }
    queue.push(3, 1, Priority::Low, 3);
    let ticket = queue.gives_way(&4, 1, Priority::High).unwrap();
    assert_eq!(*ticket.tenant(), 2);
    // The newest of it.
    assert_eq!(ticket.arrival, 14);
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

    /// Who leaves for a newcomer.
    fn gives_way(&self, newcomer: Guest) -> Option<u64> {
        let mut flows: BTreeMap<(Priority, Tenant), Vec<Guest>> = BTreeMap::new();
        for guest in &self.waiting {
            let key = (guest.priority, guest.tenant);
            flows.entry(key).or_default().push(*guest);
        }
        let weight = |flow: &[Guest]| flow.last().map_or(0, |guest| u64::from(guest.weight));
        let key = (newcomer.priority, newcomer.tenant);
        let own = flows.get(&key).map_or(0, Vec::len);
        let mut weights: u64 = flows.values().map(|flow| weight(flow)).sum();
        if own == 0 {
            weights += u64::from(newcomer.weight);
        }
        let share = |weight: u64| self.waiting.len() as u64 * weight / weights;
        let most = |weight| share(weight).max(1);
        if own as u64 + 1 > most(u64::from(newcomer.weight)) {
            return None;
        }
        let rank = |priority| match priority {
            Priority::Low => 2,
            Priority::Normal => 1,
            Priority::High => 0,
        };
        let above = flows
            .iter()
            .filter(|(_, flow)| flow.len() as u64 > most(weight(flow)));
        let longest = above.max_by_key(|((class, _), flow)| {
            let length = flow.len() as u64 * (COST / weight(flow));
            (rank(*class), length, flow.last().map(|guest| guest.id))
        });
        longest.and_then(|(_, flow)| Some(flow.last()?.id))
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
    fn who_gives_way_is_who_gives_way_in_the_slow_reference(steps in steps(), room in 1..40usize) {
        let mut queue = FairQueue::default();
        let mut reference = Reference::default();
        let mut tickets: Vec<Ticket<Tenant>> = Vec::new();
        for step in steps {
            let Step::Push(tenant, weight, priority) = step else {
                prop_assert_eq!(pop(&mut queue), reference.pop());
                continue;
            };
            let id = tickets.len() as u64;
            let guest = Guest { id, tenant, weight, priority };
            if queue.len() >= room {
                let way = queue.gives_way(&tenant, weight, priority);
                let given = way.as_ref().and_then(|ticket| queue.remove(ticket));
                prop_assert_eq!(given, reference.gives_way(guest));
                let Some(given) = given else { continue };
                reference.remove(given);
            }
            tickets.push(queue.push(tenant, weight, priority, id));
            reference.push(guest);
            prop_assert!(queue.len() <= room);
        }
    }

    #[test]
    fn whoever_comes_to_a_full_queue_gets_its_share_of_it(
        crowd in proptest::collection::vec(0..5u8, 20..80),
        weights in proptest::collection::vec(1..=10u32, 6),
    ) {
        let mut queue = FairQueue::default();
        let weight = |tenant: Tenant| weights[usize::from(tenant)];
        for tenant in crowd.iter().copied() {
            normal(&mut queue, tenant, weight(tenant));
        }
        let mut in_line = 0;
        while let Some(ticket) = queue.gives_way(&5, weight(5), Priority::Normal) {
            let left = queue.remove(&ticket).unwrap();
            normal(&mut queue, 5, weight(5));
            in_line += 1;
            // It cannot come back in the place of somebody else: nobody goes round.
            let back = queue.gives_way(&left, weight(left), Priority::Normal);
            prop_assert_eq!(back, None);
        }
        let mut present: Vec<_> = crowd.clone();
        present.sort_unstable();
        present.dedup();
        let sum: u32 = present.iter().copied().map(weight).sum::<u32>() + weight(5);
        let share = crowd.len() * weight(5) as usize / sum as usize;
        prop_assert_eq!(in_line, share.max(1).min(crowd.len()));
        prop_assert_eq!(queue.len(), crowd.len());
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
