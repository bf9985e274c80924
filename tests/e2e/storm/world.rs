//! The stage of the storm: tenants, plans, groups, accounts.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate::emulator::EmulatorConfig;

use crate::support::books::noon;
use crate::support::*;

pub const TENANTS: usize = 20;
/// A tenant beside the storm.
pub const WITNESS: &str = "witness";
pub const ACCOUNTS: usize = 4;
/// Places at one account, by upstream model.
pub const PLACES: [(&str, usize); 2] = [("deepseek-flash", 7), ("deepseek-v4-pro", 4)];
const PLANS: [&str; 4] = ["bursts", "tokens", "narrow", "daily"];
const GROUPS: [&str; 2] = ["research", "shop"];

/// Requests in a minute, and at once.
#[derive(Clone, Copy)]
pub struct Bucket {
    pub limit: u64,
    pub burst: u64,
}

/// What is never to be exceeded, with the highest of the values that a limit had.
pub struct Bounds {
    pub bucket: Option<Bucket>,
    pub concurrent: usize,
    pub completion_per_day: Option<u64>,
    pub requests_per_day: Option<u64>,
}

pub fn tenant_id(number: usize) -> String {
    format!("tenant-{number}")
}

pub fn plan_of(number: usize) -> &'static str {
    PLANS[number % PLANS.len()]
}

/// The tenant's group; every third has none.
pub fn group_of(number: usize) -> Option<&'static str> {
    GROUPS.get(number % 3).copied()
}

pub fn groups() -> impl Iterator<Item = (&'static str, Vec<usize>)> {
    let members = |group| (0..TENANTS).filter(move |number| group_of(*number) == Some(group));
    GROUPS
        .into_iter()
        .map(move |group| (group, members(group).collect()))
}

pub fn bounds_of_plan(plan: &str) -> Bounds {
    let bounds = Bounds {
        bucket: None,
        concurrent: 5,
        completion_per_day: None,
        requests_per_day: None,
    };
    match plan {
        "bursts" => Bounds {
            bucket: Some(Bucket {
                limit: 1_500,
                burst: 60,
            }),
            ..bounds
        },
        "tokens" => Bounds {
            completion_per_day: Some(10_000),
            ..bounds
        },
        "narrow" => Bounds {
            concurrent: 3,
            ..bounds
        },
        _ => Bounds {
            requests_per_day: Some(300),
            ..bounds
        },
    }
}

pub fn bounds_of_group(group: &str) -> Bounds {
    match group {
        "research" => Bounds {
            bucket: Some(Bucket {
                limit: 6_000,
                burst: 200,
            }),
            concurrent: 1_000,
            completion_per_day: None,
            requests_per_day: None,
        },
        _ => Bounds {
            bucket: None,
            concurrent: 15,
            completion_per_day: None,
            requests_per_day: None,
        },
    }
}

/// Every plan counts tokens, requests and money of a day, so that all of them can be compared.
fn plan(bounds: &Bounds, surfaces: bool) -> Value {
    let mut plan = json!({
        "requests_per_day": bounds.requests_per_day.unwrap_or(1_000_000),
        "tokens_per_day": 1_000_000_000,
        "prompt_tokens_per_month": 1_000_000_000,
        "cost_per_day": "1000000 USD",
        "max_concurrent": bounds.concurrent,
    });
    if let Some(bucket) = bounds.bucket {
        plan["requests_per_minute"] = json!({"limit": bucket.limit, "burst": bucket.burst});
    }
    if let Some(most) = bounds.completion_per_day {
        plan["completion_tokens_per_day"] = json!(most);
    }
    if surfaces {
        plan["chat"] = json!({"tokens_per_day": 1_000_000_000});
        plan["models"] = json!({"deepseek-v4-pro": {"requests_per_hour": 100_000}});
    }
    plan
}

/// Tokens take a little while, so that requests meet.
pub fn emulator() -> Emulator {
    Emulator::start(EmulatorConfig {
        first_token_delay: Duration::from_millis(3),
        token_delay: Duration::from_micros(500),
        ..Emulator::with_accounts(ACCOUNTS)
    })
}

pub fn config(emulator: &Emulator) -> Config {
    let price = |model: &str, factor: u32| {
        json!({"upstream": "deepseek", "model": model,
            "cache_hit": factor, "cache_miss": 10 * factor, "output": 50 * factor})
    };
    let tenants = (0..TENANTS).map(|number| {
        let mut value = tenant(&tenant_id(number));
        value["plan"] = json!(plan_of(number));
        value["group"] = json!(group_of(number));
        value
    });
    let mut witness = tenant(WITNESS);
    witness["plan"] = json!("witness");
    let groups = GROUPS.map(|group| json!({"id": group, "plan": format!("group-{group}")}));
    let mut config = Config::for_emulator(emulator)
        .set("/accounting/time_zone", noon())
        .set(
            "/accounting/prices",
            json!([price("deepseek-flash", 1), price("deepseek-v4-pro", 3)]),
        )
        .set("/tenants", tenants.chain([witness]).collect())
        .set("/plans/witness", json!({"max_concurrent": 1}))
        .set("/groups", json!(groups))
        .set("/retry", json!({"attempts": 3}))
        .set("/server/shutdown_grace", json!("2m"));
    for name in PLANS {
        config = config.set(&format!("/plans/{name}"), plan(&bounds_of_plan(name), true));
    }
    for group in GROUPS {
        let value = plan(&bounds_of_group(group), false);
        config = config.set(&format!("/plans/group-{group}"), value);
    }
    for account in 0..ACCOUNTS {
        let places: serde_json::Map<_, _> = PLACES
            .iter()
            .map(|(model, places)| ((*model).to_owned(), json!(places)))
            .collect();
        let pointer = format!("/upstreams/0/accounts/{account}/max_concurrent");
        config = config.set(&pointer, json!(places));
    }
    as_before(config)
}

/// A stream of some eight seconds.
pub fn witness(gateway: &Gateway) -> Stream {
    let body = chat_stream("[[fault:token_delay=100ms,tokens=80]] I was there.");
    let stream = Request::post("/v1/chat/completions", &body).key(WITNESS);
    let stream = stream.stream(gateway.address());
    assert_eq!(stream.status, 200);
    stream
}

/// The plans that change have the highest values that [`bounds_of_plan`] tells.
pub fn roomier(config: Config) -> Config {
    config
        .set("/plans/narrow/max_concurrent", json!(3))
        .set("/plans/group-shop/max_concurrent", json!(15))
        .set(
            "/plans/bursts/requests_per_minute",
            json!({"limit": 1_500, "burst": 60}),
        )
}

/// And these are the lowest.
pub fn as_before(config: Config) -> Config {
    config
        .set("/plans/narrow/max_concurrent", json!(2))
        .set("/plans/group-shop/max_concurrent", json!(12))
        .set(
            "/plans/bursts/requests_per_minute",
            json!({"limit": 1_200, "burst": 40}),
        )
}
