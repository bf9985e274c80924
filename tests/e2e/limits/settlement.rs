//! What is reserved before the call, and what is left of it after.

use serde_json::json;

use super::*;

const TOKENS: &str = "all/*/tokens_per_month";

fn tokens(answer: &Answer) -> u64 {
    let usage = &answer.json()["usage"];
    usage["total_tokens"].as_u64().unwrap()
}

#[test]
fn tokens_are_settled_by_what_was_used_and_not_by_what_was_reserved() {
    let (_emulator, gateway) = stage(json!({
        "tokens_per_month": 1_000_000, "prompt_tokens_per_day": 1_000_000,
        "completion_tokens_per_hour": 1_000_000, "uncached_prompt_tokens_per_day": 1_000_000,
    }));
    let body = with(chat("hello, how are you?"), "max_tokens", json!(50_000));
    let answer = gateway.post(CHAT, &body);
    assert_eq!(answer.status, 200);
    let left = seconds(&answer, "x-ratelimit-remaining-tokens");
    assert!(left <= 950_000, "{left}");
    let usage = answer.json()["usage"].clone();
    let of = |field: &str| usage[field].as_u64().unwrap();
    assert_eq!(used(&gateway, TOKENS), of("total_tokens"));
    assert_eq!(
        used(&gateway, "all/*/prompt_tokens_per_day"),
        of("prompt_tokens")
    );
    assert_eq!(
        used(&gateway, "all/*/uncached_prompt_tokens_per_day"),
        of("prompt_cache_miss_tokens")
    );
    // An hour's bucket fades; no more than the answer took is in it.
    let completion = used(&gateway, "all/*/completion_tokens_per_hour");
    assert!(completion <= of("completion_tokens"), "{completion}");
    // It all happens again in a stream, whose usage the client did not ask for.
    let before = used(&gateway, TOKENS);
    let streamed = gateway.stream(
        CHAT,
        &with(chat_stream("again"), "max_tokens", json!(9_000)),
    );
    assert!(streamed.rest().text().contains("[DONE]"));
    let took = used(&gateway, TOKENS) - before;
    assert!((2..5_000).contains(&took), "{took}");
}

#[test]
fn what_is_reserved_takes_room_while_the_request_is_under_way() {
    let (_emulator, gateway) = stage(json!({"tokens_per_month": 10_000}));
    let body = with(
        chat_stream("[[fault:stall_after=2]] hello"),
        "max_tokens",
        json!(8_000),
    );
    let mut held = gateway.stream(CHAT, &body);
    held.read_until("data: ");
    let limit = standing(&gateway, "acme", TOKENS);
    let reserved = limit["reserved"].as_u64().unwrap();
    assert!((8_000..9_000).contains(&reserved), "{limit}");
    assert_eq!(report(&gateway, "acme")["requests_under_way"], 1);
    let refused = gateway.post(CHAT, &with(chat("second"), "max_tokens", json!(8_000)));
    assert_refused(&refused, "rate_limit_exceeded", TOKENS);
    assert_eq!(refused.json()["error"]["limit"]["reserved"], reserved);
    // What is held comes back when it is settled, not at the end of the month.
    assert_eq!(refused.header("retry-after"), Some("1"));
    drop(held);
    settled(&gateway, "acme", TOKENS);
    let again = gateway.post(CHAT, &with(chat("third"), "max_tokens", json!(8_000)));
    assert_eq!(again.status, 200);
}

#[test]
fn an_upstreams_no_costs_a_request_and_no_tokens() {
    let (_emulator, gateway) =
        stage(json!({"tokens_per_month": 1_000_000, "requests_per_day": 100}));
    for status in [400, 404, 422] {
        let answer = gateway.post(CHAT, &chat(&format!("[[fault:status={status}]]")));
        assert_eq!(answer.status, status);
    }
    assert_eq!(used(&gateway, TOKENS), 0);
    assert_eq!(used(&gateway, "all/*/requests_per_day"), 3);
}

#[test]
fn a_request_that_another_attempt_saved_counts_once() {
    let emulator = Emulator::start(Emulator::with_accounts(2));
    let plan = json!({"tokens_per_month": 1_000_000, "requests_per_day": 100});
    let gateway = Gateway::start(config(&emulator, plan));
    let answer = gateway.post(CHAT, &chat("[[fault:status=503,times=1]] hello"));
    assert_eq!((answer.status, emulator.calls().len()), (200, 2));
    assert_eq!(used(&gateway, "all/*/requests_per_day"), 1);
    assert_eq!(used(&gateway, TOKENS), tokens(&answer));
}

#[test]
fn money_is_counted_to_the_last_digit() {
    let emulator = Emulator::quick();
    let config = config(&emulator, json!({"cost_per_month": "1 USD"})).set(
        "/accounting/prices",
        json!([{"upstream": "deepseek", "model": "deepseek-flash",
                "cache_hit": 1, "cache_miss": 2, "output": 4}]),
    );
    let gateway = Gateway::start(config);
    let answer = gateway.post(CHAT, &with(chat("hello"), "max_tokens", json!(1_000)));
    let usage = answer.json()["usage"].clone();
    let of = |field: &str| usage[field].as_u64().unwrap();
    // A dollar for a million tokens is a thousand nano-dollars for one.
    let nanos = of("prompt_cache_hit_tokens") * 1_000
        + of("prompt_cache_miss_tokens") * 2_000
        + of("completion_tokens") * 4_000;
    assert_eq!(used(&gateway, "all/*/cost_per_month"), nanos);
    let labels = ["tenant=\"acme\"", "model=\"deepseek-flash\""];
    let counted = gateway.metric("tidegate_cost_total", &labels);
    assert!((counted - nanos as f64 / 1e9).abs() < 1e-12, "{counted}");
    let line = gateway.access_line(answer.header("x-request-id").unwrap());
    let cost: f64 = line["cost"].as_str().unwrap().parse().unwrap();
    assert!((cost - nanos as f64 / 1e9).abs() <= 1e-6, "{line}");
    // 260,000 tokens of an answer would cost 1.04 dollars.
    let refused = gateway.post(CHAT, &with(chat("much"), "max_tokens", json!(260_000)));
    assert_refused(&refused, "request_exceeds_limit", "all/*/cost_per_month");
    let text = refused.text();
    assert!(text.contains("allows you 1 USD: 0.000"), "{text}");
}

#[test]
fn a_maximum_that_cannot_be_is_not_believed() {
    let (emulator, gateway) = stage(json!({"tokens_per_month": 1_000_000}));
    // Nobody can hold so much; the limit says no, and nothing overflows on the way.
    for most in [json!(4_000_000_000_u64), json!(u64::MAX)] {
        let refused = gateway.post(CHAT, &with(chat("hello"), "max_tokens", most));
        assert_refused(&refused, "request_exceeds_limit", TOKENS);
    }
    // What is no number of tokens is the upstream's to judge, and is reserved as if it were absent.
    for most in [
        json!(-5),
        json!("many"),
        json!(1.5),
        json!(1e300),
        json!(null),
    ] {
        let answer = gateway.post(CHAT, &with(chat("hello"), "max_tokens", most.clone()));
        assert!(
            matches!(answer.status, 200 | 400 | 422),
            "{most}: {}",
            answer.text()
        );
    }
    let twice = r#"{"model": "deepseek-flash", "max_tokens": 1, "max_tokens": 9000,
        "messages": [{"role": "user", "content": "hello"}]}"#;
    let calls = emulator.calls().len();
    let request = Request::new("POST", CHAT).header("content-type", "application/json");
    let answer = request.key("acme").body(twice).send(gateway.address());
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (400, "invalid_body")
    );
    assert_eq!(emulator.calls().len(), calls);
    let used = used(&gateway, TOKENS);
    assert!(used < 1_000, "{used}");
}

#[test]
fn a_guess_gives_way_where_a_limit_has_no_room_for_it() {
    // Without a maximum, thousands of tokens are expected; the plan has room for less than that.
    let (_emulator, gateway) = stage(json!({"tokens_per_month": 1_500}));
    let answer = gateway.post(CHAT, &chat("hello"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(used(&gateway, TOKENS), tokens(&answer));
}
