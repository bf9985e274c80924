//! What the decisions of a request cost by themselves: the snapshot, the choice of account and
//! endpoint, the wording of a refusal. Who is calling has a bench of its own.
#![allow(missing_docs, reason = "a bench may stop loudly; it is no interface")]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;

use arc_swap::ArcSwap;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tidegate::identity::reason::Reason;
use tidegate::request::refusal::{Code, Family, Refusal};
use tidegate::upstream::balance::{self, AccountView, EndpointView, Patience, Standing};

/// A stand-in of the snapshot's size: what is measured is the pointer, not what it points to.
fn snapshot(c: &mut Criterion) {
    let current = Arc::new(ArcSwap::from_pointee(HashMap::<String, Arc<str>>::new()));
    let mut group = c.benchmark_group("snapshot");
    group.bench_function("load_full and drop", |b| {
        b.iter(|| black_box(&current).load_full());
    });
    group.bench_function("load and drop", |b| {
        b.iter(|| black_box(&current).load().len());
    });
    group.finish();
}

fn standing(open: bool) -> Standing {
    match open {
        true => Standing::Open { permille: 1000 },
        false => Standing::Closed,
    }
}

fn choice(c: &mut Criterion) {
    let mut group = c.benchmark_group("choice");
    for count in [1, 4, 32_u32] {
        let accounts: Vec<_> = (0..count)
            .map(|number| AccountView {
                seed: u64::from(number),
                in_flight: (number * 37) % 100,
                ceiling: Some(500),
                priority: 0,
                weight: 1,
                latency: 300_000,
                errors: 0,
                standing: standing(number % 5 != 4),
                limited: false,
                tried: false,
            })
            .collect();
        group.bench_function(BenchmarkId::new("account", count), |b| {
            let mut turn = 0;
            b.iter(|| {
                turn += 1;
                balance::account(black_box(&accounts), None, Patience::Some, turn).is_ok()
            });
        });
        let endpoints: Vec<_> = (0..count)
            .map(|number| EndpointView {
                in_flight: (number * 37) % 100,
                priority: number % 2,
                weight: 1 + number % 3,
                latency: 300_000,
                errors: 0,
                standing: standing(number % 7 != 6),
                doubted: false,
                full: false,
                tried: false,
            })
            .collect();
        group.bench_function(BenchmarkId::new("endpoint", count), |b| {
            let mut turn = 0;
            b.iter(|| {
                turn += 1;
                balance::endpoint(black_box(&endpoints), turn).is_ok()
            });
        });
    }
    group.finish();
}

fn refusal(c: &mut Criterion) {
    let mut group = c.benchmark_group("refusal");
    let id = "01990000-0000-7000-8000-000000000000";
    for (name, family) in [("openai", Family::OpenAi), ("anthropic", Family::Anthropic)] {
        group.bench_function(BenchmarkId::new("make and word", name), |b| {
            b.iter(|| Reason::WrongSecret.refuse().body(family, black_box(id)));
        });
    }
    let cut = Refusal::new(Code::StreamInterrupted, "The answer broke off.");
    group.bench_function("event", |b| {
        b.iter(|| cut.event(Family::OpenAi, black_box(id)))
    });
    group.finish();
}

criterion_group!(benches, snapshot, choice, refusal);
criterion_main!(benches);
