//! What the decisions of a request cost by themselves: the key check, the snapshot, the choice of
//! account and endpoint, the wording of a refusal. None of them may grow with the number of tenants.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a bench may stop loudly; it is no interface"
)]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;

use arc_swap::ArcSwap;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use tidegate::config::settings::{AllowedModels, ApiKey, Credential, Tenant, TenantId};
use tidegate::identity::credential::{self, Presented};
use tidegate::identity::tenant::Directory;
use tidegate::identity::{api_key, tenant};
use tidegate::request::refusal::{Code, Family, Refusal};
use tidegate::upstream::balance::{self, AccountView, EndpointView};

/// A directory of so many tenants, with a key that is good there.
fn directory(tenants: u32) -> (Directory, String) {
    let mut good = String::new();
    let tenants: Vec<_> = (0..tenants)
        .map(|number| {
            let mut random = [0; 32];
            random
                .iter_mut()
                .zip(number.to_le_bytes().iter().cycle())
                .for_each(|(to, from)| *to = *from);
            let key = api_key::make(&format!("key{number}"), &random);
            if number == tenants / 2 {
                good = key.key.expose().to_owned();
            }
            Arc::new(Tenant {
                id: TenantId::new(&format!("tenant{number}")),
                enabled: true,
                models: AllowedModels::All,
                balance: false,
                files: true,
                credentials: vec![Credential::ApiKey(ApiKey {
                    id: key.id,
                    hash: key.hash,
                })],
            })
        })
        .collect();
    (Directory::new(&tenants), good)
}

fn identify(c: &mut Criterion) {
    let mut group = c.benchmark_group("identify");
    for tenants in [10, 100_000] {
        let (directory, good) = directory(tenants);
        let wrong = api_key::make("key1", &[0xee; 32]);
        let check = |key: &str| {
            directory
                .identify(Presented::Bearer(black_box(key)))
                .is_ok()
        };
        assert!(check(&good) && !check(wrong.key.expose()));
        group.bench_function(BenchmarkId::new("good key", tenants), |b| {
            b.iter(|| check(&good));
        });
        group.bench_function(BenchmarkId::new("wrong secret", tenants), |b| {
            b.iter(|| check(wrong.key.expose()));
        });
        group.bench_function(BenchmarkId::new("not a key", tenants), |b| {
            b.iter(|| check("sk-0123456789abcdef0123456789abcdef"));
        });
    }
    let (_, good) = directory(1);
    let mut headers = HeaderMap::new();
    let value = HeaderValue::from_str(&format!("Bearer {good}")).unwrap();
    headers.insert(AUTHORIZATION, value);
    group.bench_function("extract", |b| {
        b.iter(|| credential::extract(black_box(&headers)).is_ok());
    });
    group.finish();
}

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

fn choice(c: &mut Criterion) {
    let mut group = c.benchmark_group("choice");
    for count in [1, 4, 32_u32] {
        let accounts: Vec<_> = (0..count)
            .map(|number| AccountView {
                in_flight: (number * 37) % 100,
                ceiling: Some(500),
                resting: number % 5 == 4,
                tried: false,
            })
            .collect();
        group.bench_function(BenchmarkId::new("account", count), |b| {
            let mut turn = 0;
            b.iter(|| {
                turn += 1;
                balance::account(black_box(&accounts), turn).is_ok()
            });
        });
        let endpoints: Vec<_> = (0..count)
            .map(|number| EndpointView {
                in_flight: (number * 37) % 100,
                priority: number % 2,
                weight: 1 + number % 3,
                healthy: number % 7 != 6,
                tried: false,
            })
            .collect();
        group.bench_function(BenchmarkId::new("endpoint", count), |b| {
            let mut turn = 0;
            b.iter(|| {
                turn += 1;
                balance::endpoint(black_box(&endpoints), turn).is_some()
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
            b.iter(|| {
                tenant::refuse()
                    .detail("wrong_secret")
                    .body(family, black_box(id))
            });
        });
    }
    let cut = Refusal::new(Code::StreamInterrupted, "The answer broke off.");
    group.bench_function("event", |b| {
        b.iter(|| cut.event(Family::OpenAi, black_box(id)))
    });
    group.finish();
}

criterion_group!(benches, identify, snapshot, choice, refusal);
criterion_main!(benches);
