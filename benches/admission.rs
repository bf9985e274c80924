//! What it costs to admit and to settle a request by five limits of a tenant and its group, among
//! 10 and among 10,000 tenants: it may not grow with their number, and no lock is shared by all.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench may stop loudly; it is no interface"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use jiff::tz::TimeZone;
use tidegate::admission::allowance::{Allowance, Part, bit};
use tidegate::admission::amounts::Amounts;
use tidegate::admission::book::Book;
use tidegate::admission::clock::Calendar;
use tidegate::admission::counting::Counting;
use tidegate::admission::estimate;
use tidegate::admission::reservation::{Ask, Reservation, reserve};
use tidegate::config::settings::{
    Accepted, AllowedModels, CutCharge, Group, GroupId, Limit, LimitKey, OnDisconnect, Plan,
    PlanId, Priority, Quantity, Surfaces, Tenant, TenantId, Window,
};

const SIZES: [usize; 2] = [10, 10_000];
/// More than a run can use up.
const HUGE: u64 = 1 << 58;

fn limit(quantity: Quantity, window: Window) -> Limit {
    Limit {
        key: LimitKey {
            surfaces: Surfaces::All,
            model: None,
            quantity,
            window,
        },
        amount: HUGE,
        burst: HUGE,
        shadow: false,
    }
}

fn plan(limits: Vec<Limit>) -> Arc<Plan> {
    Arc::new(Plan {
        id: PlanId::new("bench"),
        limits,
        weight: 1,
        priority: Priority::Normal,
        cut: CutCharge::Estimate,
        on_disconnect: OnDisconnect::Cancel,
    })
}

/// Four limits of the tenant's own, one of a group of a hundred.
fn allowances(count: usize, book: &Book) -> Vec<Allowance> {
    let own = plan(vec![
        limit(Quantity::Requests, Window::Minute),
        limit(Quantity::Requests, Window::Day),
        limit(Quantity::Tokens, Window::Minute),
        limit(Quantity::Concurrent, Window::None),
    ]);
    let sum = plan(vec![limit(Quantity::Cost, Window::Month)]);
    let tenants = (0..count).map(|number| Tenant {
        id: TenantId::new(&format!("tenant-{number}")),
        enabled: true,
        models: AllowedModels::All,
        balance: false,
        files: false,
        credentials: Vec::new(),
        accept: Accepted::ALL,
        allow_from: None,
        plan: own.clone(),
        deadlines: Default::default(),
        group: Some(Arc::new(Group {
            id: GroupId::new(&format!("group-{}", number / 100)),
            plan: sum.clone(),
        })),
    });
    tenants
        .map(|tenant| Allowance::new(&tenant, book, Part::Whole))
        .collect()
}

const AMOUNTS: Amounts = Amounts {
    requests: 1,
    prompt: 800,
    uncached: 800,
    completion: 2_000,
    cost: 1_320_000,
};

fn ask() -> Ask<'static> {
    Ask {
        surface: bit("chat"),
        model: "deepseek-flash",
        amounts: AMOUNTS,
        least: AMOUNTS,
        request: 7,
    }
}

fn admission(c: &mut Criterion) {
    let mut group = c.benchmark_group("admission");
    for count in SIZES {
        let counting = Counting::new(Arc::new(Book::default()), None);
        let calendar = Calendar::new(TimeZone::get("Asia/Shanghai").unwrap());
        let allowances = allowances(count, &counting.book);
        let admit = |number: usize| -> Reservation {
            let allowance = &allowances[number % allowances.len()];
            let now = counting.now(&calendar);
            reserve(allowance, black_box(&ask()), &now).0.unwrap()
        };
        let mut number = 0;
        group.bench_function(BenchmarkId::new("decide, five limits", count), |b| {
            b.iter_custom(|rounds| {
                let mut held = Vec::with_capacity(1_000);
                let mut spent = std::time::Duration::ZERO;
                for _ in 0..rounds.div_ceil(1_000) {
                    let began = Instant::now();
                    for _ in 0..1_000 {
                        number += 1;
                        held.push(admit(number));
                    }
                    spent += began.elapsed();
                    held.clear();
                }
                spent.mul_f64(rounds as f64 / (rounds.div_ceil(1_000) * 1_000) as f64)
            });
        });
        group.bench_function(BenchmarkId::new("decide, send, settle", count), |b| {
            b.iter(|| {
                number += 1;
                let mut reservation = admit(number);
                reservation.sent(&counting.now(&calendar));
                reservation.settle(&AMOUNTS, &counting.now(&calendar));
            });
        });
        group.bench_function(BenchmarkId::new("the same on two threads", count), |b| {
            let next = AtomicUsize::new(0);
            let work = |rounds: u64| {
                for _ in 0..rounds {
                    let mut reservation = admit(next.fetch_add(1, Ordering::Relaxed));
                    reservation.sent(&counting.now(&calendar));
                    reservation.settle(&AMOUNTS, &counting.now(&calendar));
                }
            };
            b.iter_custom(|rounds| {
                let began = Instant::now();
                std::thread::scope(|scope| {
                    scope.spawn(|| work(rounds / 2));
                    work(rounds - rounds / 2);
                });
                began.elapsed()
            });
        });
    }
    group.finish();
}

fn estimates(c: &mut Criterion) {
    let mut group = c.benchmark_group("estimate");
    for (name, size) in [("1 KiB", 1 << 10), ("64 KiB", 1 << 16), ("1 MiB", 1 << 20)] {
        let text = "The quick brown fox jumps over the lazy dog. ".repeat(size / 45 + 1);
        group.bench_function(BenchmarkId::new("prompt", name), |b| {
            b.iter(|| estimate::prompt(std::iter::once(black_box(&text.as_bytes()[..size]))));
        });
    }
    group.finish();
}

criterion_group!(benches, admission, estimates);
criterion_main!(benches);
