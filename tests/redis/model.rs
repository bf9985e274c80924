//! Random operations, once through Redis and once through a slow, obvious reference.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tidegate::admission::store_redis::{Ask, Part, Reservation, Rule, Verdict};

use crate::support::*;

/// The reference: one counter in exact integers. A bucket does not leak here; Redis' may have leaked
/// by no more than the time that passed.
#[derive(Debug, Clone, Default)]
struct Counter {
    held: u128,
    used: u128,
    window: u64,
    extra: u128,
}

#[derive(Debug, Clone)]
enum Step {
    Reserve {
        host: usize,
        demands: Vec<(usize, u64)>,
        window: u64,
    },
    Settle {
        which: usize,
        used: Vec<u64>,
    },
    Report {
        host: usize,
        counter: usize,
        used: u64,
        window: u64,
    },
    Grant {
        counter: usize,
        amount: u64,
        window: u64,
    },
    Reset {
        counter: usize,
        window: u64,
    },
}

const COUNTERS: usize = 6;

fn rule(counter: usize, window: u64) -> Rule {
    let hour = Duration::from_secs(3600);
    match counter {
        0 => Rule::Concurrency { amount: 3 },
        1 => Rule::Calendar {
            window,
            amount: 1000,
        },
        2 => Rule::Calendar {
            window,
            amount: 1_000_000_000_000,
        },
        3 => Rule::Bucket {
            period: hour,
            amount: 7,
            burst: 5,
        },
        4 => Rule::Bucket {
            period: hour,
            amount: 999_999_999_989,
            burst: 1_000_000_000_000,
        },
        _ => Rule::Bucket {
            period: Duration::from_secs(60),
            amount: 1,
            burst: 60,
        },
    }
}

fn demand(counter: usize) -> BoxedStrategy<u64> {
    match counter {
        0 => Just(1).boxed(),
        2 | 4 => prop_oneof![
            0..=1_000_000_000_000_u64,
            Just(1_000_000_000_000),
            0..10_u64
        ]
        .boxed(),
        1 => (0..400_u64).boxed(),
        _ => (0..4_u64).boxed(),
    }
}

fn step() -> impl Strategy<Value = Step> {
    let window = prop_oneof![8 => Just(1000_u64), 1 => Just(900), 1 => 1000..1004_u64];
    let one = (0..COUNTERS).prop_flat_map(|counter| (Just(counter), demand(counter)));
    let demands = prop::collection::vec(one.clone(), 1..COUNTERS);
    prop_oneof![
        6 => (0..2_usize, demands, window.clone()).prop_map(|(host, demands, window)| Step::Reserve { host, demands, window }),
        4 => (any::<usize>(), prop::collection::vec(0..5_u64, 0..COUNTERS)).prop_map(|(which, used)| Step::Settle { which, used }),
        1 => (0..2_usize, one.clone(), window.clone()).prop_map(|(host, (counter, used), window)| Step::Report { host, counter, used, window }),
        1 => (1..3_usize, 0..500_u64, window.clone()).prop_map(|(counter, amount, window)| Step::Grant { counter, amount, window }),
        1 => (0..COUNTERS, window).prop_map(|(counter, window)| Step::Reset { counter, window }),
    ]
}

fn parts(demands: &[(usize, u64)], window: u64) -> Vec<Part> {
    let unique: BTreeMap<_, _> = demands.iter().copied().collect();
    unique
        .into_iter()
        .map(|(counter, demand)| part(&counter.to_string(), rule(counter, window), demand))
        .collect()
}

fn cost(rule: Rule, n: u128) -> u128 {
    match rule {
        Rule::Bucket { period, amount, .. } => (n * period.as_nanos()).div_ceil(u128::from(amount)),
        _ => n,
    }
}

impl Counter {
    fn turn(&mut self, rule: Rule) {
        if let Rule::Calendar { window, .. } = rule
            && window > self.window
        {
            *self = Self {
                held: self.held,
                window,
                ..Self::default()
            };
        }
    }

    /// If `leaked` nanoseconds have gone.
    fn fits(&self, rule: Rule, demand: u64, leaked: u128) -> bool {
        let wanted = self.held + u128::from(demand);
        match rule {
            Rule::Concurrency { amount } => wanted <= u128::from(amount),
            Rule::Calendar { amount, .. } => self.used + wanted <= u128::from(amount) + self.extra,
            Rule::Bucket { burst, .. } => {
                self.used.saturating_sub(leaked) + cost(rule, wanted) <= cost(rule, burst.into())
            }
        }
    }

    fn add(&mut self, rule: Rule, used: u64) {
        self.turn(rule);
        if !matches!(rule, Rule::Concurrency { .. }) {
            self.used += cost(rule, used.into());
        }
    }
}

struct Run {
    hosts: [Host; 2],
    model: BTreeMap<String, Counter>,
    open: Vec<(usize, Vec<Part>, Reservation)>,
    began: Instant,
}

impl Run {
    fn of(&mut self, part: &Part) -> &mut Counter {
        let counter = self.model.entry(part.counter.name.to_string()).or_default();
        counter.turn(part.counter.rule);
        counter
    }

    async fn reserve(&mut self, host: usize, parts: Vec<Part>, asked: Ask) {
        // A question that is refused writes nothing, so the window turns only if it is granted.
        let verdict = self.hosts[host].counts.reserve(asked).await.unwrap();
        let leaked = self.began.elapsed().as_nanos();
        let fits = |leaked| {
            parts.iter().all(|part| {
                let mut counter = self
                    .model
                    .get(&*part.counter.name)
                    .cloned()
                    .unwrap_or_default();
                counter.turn(part.counter.rule);
                counter.fits(part.counter.rule, part.demand, leaked)
            })
        };
        let (least, most) = (fits(0), fits(leaked));
        match verdict {
            Verdict::Granted { reservation, .. } => {
                assert!(most, "granted beyond the limit: {parts:?} {:?}", self.model);
                for part in &parts {
                    self.of(part).held += u128::from(part.demand);
                }
                self.open.push((host, parts, reservation));
            }
            Verdict::Refused { by, .. } => {
                assert!(
                    !least,
                    "refused within the limit, by {by}: {parts:?} {:?}",
                    self.model
                );
            }
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Reserve {
                host,
                demands,
                window,
            } => {
                let parts = parts(&demands, window);
                self.reserve(host, parts.clone(), ask(parts)).await;
            }
            Step::Settle { which, used } => {
                if self.open.is_empty() {
                    return;
                }
                let (host, parts, reservation) = self.open.swap_remove(which % self.open.len());
                reservation.settle(&used);
                self.hosts[host].told().await;
                for (at, part) in parts.iter().enumerate() {
                    let used = used.get(at).copied().unwrap_or(0);
                    let demand = u128::from(part.demand);
                    if used == 0 && demand == 0 {
                        continue;
                    }
                    let counter = self.of(part);
                    counter.held -= demand;
                    counter.add(part.counter.rule, used);
                }
            }
            Step::Report {
                host,
                counter,
                used,
                window,
            } => {
                let part = &parts(&[(counter, used)], window)[0];
                self.hosts[host].use_up("tenant/acme", &part.counter, used);
                self.hosts[host].told().await;
                if used > 0 {
                    self.of(part).add(part.counter.rule, used);
                }
            }
            Step::Grant {
                counter,
                amount,
                window,
            } => {
                let part = &parts(&[(counter, 0)], window)[0];
                self.hosts[0]
                    .counts
                    .grant("tenant/acme", &part.counter, amount)
                    .await
                    .unwrap();
                self.of(part).extra += u128::from(amount);
            }
            Step::Reset { counter, window } => {
                let part = &parts(&[(counter, 0)], window)[0];
                self.hosts[0]
                    .counts
                    .reset("tenant/acme", &part.counter)
                    .await
                    .unwrap();
                self.of(part).used = 0;
            }
        }
    }

    /// All counters are as the reference says; buckets may have leaked.
    async fn compare(&self, trace: &[Step]) {
        for (name, counter) in &self.model {
            let rule = rule(name.parse().unwrap(), 0);
            let shown = self.hosts[1]
                .standing(&ask(vec![part(name, rule, 0)]))
                .await[0];
            let told = || format!("{name}: {counter:?} {shown:?} after {trace:?}");
            assert_eq!(u128::from(shown.held), counter.held, "{}", told());
            match rule {
                Rule::Bucket { .. } => {
                    let leaked = self.began.elapsed().as_nanos();
                    let level = shown.drains.as_nanos();
                    let most = counter.used.min(1 << 52);
                    assert!(level <= most && level + leaked >= most, "{}", told());
                }
                Rule::Calendar { .. } => {
                    assert_eq!(
                        (
                            u128::from(shown.used),
                            u128::from(shown.extra),
                            shown.window
                        ),
                        (counter.used, counter.extra, counter.window),
                        "{}",
                        told()
                    );
                }
                Rule::Concurrency { .. } => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_counts_as_the_reference_does() {
    let server = Server::start(&[]);
    let mut runner = TestRunner::deterministic();
    let sequence = prop::collection::vec(step(), 60);
    for _ in 0..25 {
        server.cli(&["flushall"]);
        let steps = sequence.new_tree(&mut runner).unwrap().current();
        let hosts = [Host::at(&server, "a").await, Host::at(&server, "b").await];
        let mut run = Run {
            hosts,
            model: BTreeMap::new(),
            open: Vec::new(),
            began: Instant::now(),
        };
        for (at, step) in steps.iter().enumerate() {
            run.step(step.clone()).await;
            run.compare(&steps[..=at]).await;
        }
        for (host, parts, reservation) in std::mem::take(&mut run.open) {
            drop(reservation);
            run.hosts[host].told().await;
            for part in &parts {
                run.of(part).held -= u128::from(part.demand);
            }
        }
        for counter in run.model.values() {
            assert_eq!(counter.held, 0);
        }
        run.compare(&steps).await;
    }
}
