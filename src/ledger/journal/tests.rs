use std::collections::BTreeMap;
use std::sync::Barrier;

use super::*;

const NOON: i64 = 1_793_534_400;

struct Names {
    tenants: Vec<TenantId>,
    upstream: UpstreamId,
    account: AccountId,
}

impl Names {
    fn new(tenants: usize) -> Self {
        let tenants = (0..tenants).map(|number| TenantId::new(&format!("t{number}")));
        Self {
            tenants: tenants.collect(),
            upstream: UpstreamId::new("deepseek"),
            account: AccountId::new("main"),
        }
    }

    fn entry(&self, tenant: usize, second: i64) -> Entry<'_> {
        Entry {
            at: Timestamp::from_second(second).unwrap(),
            tenant: &self.tenants[tenant],
            model: "flash",
            upstream: &self.upstream,
            account: &self.account,
            usage: Usage {
                prompt: 10,
                cached: 4,
                completion: 5,
                reasoning: 2,
            },
            cut: false,
            estimated: false,
            cost: Some(Money::from_nanos(7)),
            saved: Money::from_nanos(3),
        }
    }
}

fn total(rows: &[Row]) -> Counts {
    let mut total = Counts::default();
    rows.iter().for_each(|row| total.add(&row.counts));
    total
}

#[test]
fn answers_of_one_hour_make_one_row() {
    let (names, journal) = (Names::new(1), Journal::default());
    journal.add(&names.entry(0, NOON));
    let cut = Entry {
        cut: true,
        estimated: true,
        cost: None,
        ..names.entry(0, NOON + 3_599)
    };
    journal.add(&cut);
    journal.add(&names.entry(0, NOON + 3_600));
    let mut rows = journal.take();
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].key.hour.start(), NOON);
    assert_eq!(&*rows[0].key.model, "flash");
    let expected = Counts {
        requests: 2,
        cut: 1,
        estimated: 1,
        unpriced: 1,
        prompt: 20,
        cached: 8,
        completion: 10,
        reasoning: 4,
        cost: Money::from_nanos(7),
        saved: Money::from_nanos(6),
    };
    assert_eq!(rows[0].counts, expected);
    assert_eq!(rows[1].key.hour.start(), NOON + 3_600);
}

#[test]
fn what_was_taken_is_not_there_again_and_idle_rows_go() {
    let (names, journal) = (Names::new(1), Journal::default());
    journal.add(&names.entry(0, NOON));
    assert_eq!(journal.take().len(), 1);
    assert_eq!(journal.rows(), 1);
    assert!(journal.take().is_empty());
    assert_eq!(journal.rows(), 0);
    journal.add(&names.entry(0, NOON));
    assert_eq!(total(&journal.take()).requests, 1);
}

#[test]
fn rows_that_could_not_be_written_add_to_what_came_since() {
    let (names, journal) = (Names::new(2), Journal::default());
    journal.add(&names.entry(0, NOON));
    let taken = journal.take();
    journal.add(&names.entry(0, NOON));
    journal.add(&names.entry(1, NOON));
    journal.put_back(taken);
    let rows = journal.take();
    assert_eq!(rows.len(), 2);
    assert_eq!(total(&rows).requests, 3);
}

#[test]
fn beyond_the_room_rows_keep_tenant_and_day_and_every_token() {
    let (names, journal) = (Names::new(3), Journal::with_room_for(3));
    for hour in 0..48 {
        for tenant in 0..3 {
            journal.add(&names.entry(tenant, NOON + hour * 3_600));
        }
    }
    // Three rows of their own, and at most three days of three tenants.
    assert!(journal.rows() <= 3 + 9);
    assert_eq!(journal.merged(), 48 * 3 - 3);
    let rows = journal.take();
    assert_eq!(total(&rows).requests, 48 * 3);
    assert_eq!(total(&rows).prompt, 48 * 3 * 10);
    journal.put_back(rows);
    let mut tenants = BTreeMap::new();
    for row in journal.take() {
        *tenants.entry(row.key.tenant).or_insert(0) += row.counts.requests;
    }
    assert!(tenants.values().all(|requests| *requests == 48));
}

#[test]
fn hours_begin_where_those_of_the_zone_begin() {
    let (names, journal) = (Names::new(1), Journal::default());
    let now = Timestamp::from_second(NOON).unwrap();
    for zone in [
        "UTC",
        "Asia/Shanghai",
        "Asia/Kolkata",
        "Asia/Kathmandu",
        "America/St_Johns",
    ] {
        let zone = TimeZone::get(zone).unwrap();
        journal.follow(&zone, now);
        journal.add(&names.entry(0, NOON + 60));
        let start = journal.take()[0].key.hour.start();
        let wall = Timestamp::from_second(start)
            .unwrap()
            .to_zoned(zone.clone());
        assert_eq!((wall.minute(), wall.second()), (0, 0), "{zone:?}");
        assert!(start <= NOON + 60 && start > NOON + 60 - 3_600);
    }
}

#[test]
fn a_clock_before_1970_is_no_reason_to_stop() {
    let (names, journal) = (Names::new(1), Journal::default());
    journal.add(&names.entry(0, -1));
    assert_eq!(journal.take()[0].key.hour.start(), -3_600);
}

#[test]
fn whatever_threads_add_while_another_takes_and_puts_back_comes_out_once() {
    const THREADS: usize = 8;
    const EACH: usize = 20_000;
    let names = Names::new(50);
    let journal = Journal::with_room_for(40);
    let (barrier, running) = (Barrier::new(THREADS + 1), AtomicUsize::new(THREADS));
    let mut written = Vec::new();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (names, journal, barrier, running) = (&names, &journal, &barrier, &running);
            scope.spawn(move || {
                barrier.wait();
                for number in 0..EACH {
                    let hour = (number / 1_000) as i64 * 3_600;
                    journal.add(&names.entry((number * 7 + thread) % 50, NOON + hour));
                }
                running.fetch_sub(1, Ordering::Release);
            });
        }
        barrier.wait();
        let mut round = 0;
        while running.load(Ordering::Acquire) > 0 {
            let rows = journal.take();
            round += 1;
            if round % 3 == 0 {
                journal.put_back(rows);
            } else {
                written.extend(rows);
            }
        }
    });
    written.extend(journal.take());
    let all = (THREADS * EACH) as u64;
    let total = total(&written);
    assert_eq!(total.requests, all);
    assert_eq!(total.completion, all * 5);
    assert_eq!(total.cost, Money::from_nanos(all * 7));
    assert!(journal.take().is_empty());
    assert_eq!(journal.rows(), 0);
}
