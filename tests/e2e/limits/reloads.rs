//! Plans change while requests hold room of them.

use serde_json::json;

use super::*;

const TOKENS: &str = "all/*/tokens_per_month";
const AT_ONCE: &str = "all/*/max_concurrent";

/// A stream that goes on, with 8,000 tokens reserved.
fn hold(gateway: &Gateway) -> Stream {
    let body = with(
        chat_stream("[[fault:stall_after=2]] hello"),
        "max_tokens",
        json!(8_000),
    );
    let mut stream = gateway.stream(CHAT, &body);
    stream.read_until("data: ");
    stream
}

#[test]
fn a_limit_that_shrinks_holds_at_once_and_counts_what_is_held() {
    let (_emulator, gateway) = stage(json!({"max_concurrent": 5, "tokens_per_month": 1_000_000}));
    let held = [hold(&gateway), hold(&gateway)];
    let smaller = json!({"max_concurrent": 2, "tokens_per_month": 20_000});
    assert_eq!(
        gateway.reload(|config| config.set("/plans/tested", smaller)),
        "ok"
    );
    let refused = gateway.post(CHAT, &with(chat("more"), "max_tokens", json!(10)));
    assert_refused(&refused, "rate_limit_exceeded", AT_ONCE);
    let limit = standing(&gateway, "acme", TOKENS);
    assert_eq!(limit["allowed"], 20_000);
    assert!(limit["reserved"].as_u64().unwrap() >= 16_000, "{limit}");
    drop(held);
    let limit = settled(&gateway, "acme", TOKENS);
    assert!(limit["used"].as_u64().unwrap() < 1_000, "{limit}");
    assert!(gateway.is_serving());
}

#[test]
fn what_a_removed_plan_held_comes_back() {
    let (_emulator, gateway) = stage(json!({"max_concurrent": 1, "tokens_per_month": 10_000}));
    let held = hold(&gateway);
    let moved = |mut config: Config| {
        config.value["plans"]
            .as_object_mut()
            .unwrap()
            .remove("tested");
        config.set("/tenants/0/plan", json!("unlimited"))
    };
    assert_eq!(gateway.reload(moved), "ok");
    assert!(gateway.is_serving());
    assert_eq!(report(&gateway, "acme")["limits"], json!([]));
    drop(held);
    eventually("nothing is under way", SOON, || {
        (report(&gateway, "acme")["requests_under_way"] == 0).then_some(())
    });
    // The plan comes back, and finds its limits free and what was used still counted.
    let back = json!({"max_concurrent": 1, "tokens_per_month": 10_000});
    let restored = |config: Config| {
        config
            .set("/plans/tested", back)
            .set("/tenants/0/plan", json!("tested"))
    };
    assert_eq!(gateway.reload(restored), "ok");
    assert_eq!(standing(&gateway, "acme", AT_ONCE)["reserved"], 0);
    let limit = standing(&gateway, "acme", TOKENS);
    assert_eq!(limit["reserved"], 0);
    let used = limit["used"].as_u64().unwrap();
    assert!((1..1_000).contains(&used), "{limit}");
    assert!(gateway.is_serving());
}

#[test]
fn a_tenant_that_leaves_its_group_lets_go_of_what_it_held_there() {
    let emulator = Emulator::quick();
    let config = config(&emulator, json!({"max_concurrent": 10}))
        .set("/plans/sum", json!({"max_concurrent": 1}))
        .set("/groups", json!([{"id": "org", "plan": "sum"}]))
        .set("/tenants/0/group", json!("org"))
        .set("/tenants/1/group", json!("org"));
    let gateway = Gateway::start(config);
    let held = hold(&gateway);
    let ask = || {
        let request = Request::post(CHAT, &chat("hello")).key("limited");
        request.send(gateway.address())
    };
    assert_eq!(ask().status, 429);
    assert_eq!(
        gateway.reload(|config| config.set("/tenants/0/group", json!(null))),
        "ok"
    );
    assert_eq!(ask().status, 429, "what is held is still held");
    drop(held);
    eventually("the group is free", SOON, || {
        (ask().status == 200).then_some(())
    });
}

#[test]
fn a_day_that_is_used_up_stays_so_over_a_reload() {
    let (_emulator, gateway) = stage(json!({"requests_per_day": 1}));
    assert!(gateway.is_serving());
    assert_eq!(
        gateway.reload(|config| config.set("/plans/tested/weight", json!(2))),
        "ok"
    );
    assert!(!gateway.is_serving());
    let more = json!({"requests_per_day": 2});
    assert_eq!(
        gateway.reload(|config| config.set("/plans/tested", more)),
        "ok"
    );
    assert!(gateway.is_serving());
    assert!(!gateway.is_serving());
}
