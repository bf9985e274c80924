//! The words and fields of a refusal, and of an answer that still fits.

use jiff::Timestamp;
use serde_json::json;

use super::*;

#[test]
fn a_request_over_its_minute_is_told_which_limit_and_when_to_come_again() {
    let (emulator, gateway) = stage(json!({"requests_per_minute": 2}));
    assert_eq!(gateway.post(CHAT, &chat("one")).status, 200);
    assert_eq!(gateway.post(CHAT, &chat("two")).status, 200);
    let refused = gateway.post(CHAT, &chat("three"));
    assert_refused(&refused, "rate_limit_exceeded", "all/*/requests_per_minute");
    let limit = refused.json()["error"]["limit"].clone();
    assert_eq!(limit["of"], "tenant");
    assert_eq!(
        (
            &limit["limit"],
            &limit["used"],
            &limit["reserved"],
            &limit["requested"]
        ),
        (&json!(2), &json!(2), &json!(0), &json!(1))
    );
    // A bucket of two in a minute has room for one again after half of it.
    let wait = seconds(&refused, "retry-after");
    assert!((20..=30).contains(&wait), "{wait}");
    let reset = limit["reset_seconds"].as_u64().unwrap();
    assert!((wait + 29..=60).contains(&reset), "{reset}");
    assert_eq!(refused.header("x-should-retry"), None);
    assert_eq!(refused.header("x-ratelimit-limit-requests"), Some("2"));
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), Some("0"));
    let told = refused.header("x-ratelimit-reset-requests").unwrap();
    assert!(told == "1m0s" || told.ends_with('s'), "{told}");
    assert!(
        refused.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("2 used")
    );
    // Nothing went out for it, and it took nothing.
    assert_eq!(emulator.calls().len(), 2);
    assert_eq!(used(&gateway, "all/*/requests_per_minute"), 2);
    let line = gateway.access_line(refused.header("x-request-id").unwrap());
    assert_eq!(line["code"], "rate_limit_exceeded");
    let labels = ["subject=\"tenant/acme\"", "mode=\"enforced\""];
    assert_eq!(
        gateway.metric("tidegate_limit_refusals_total", &labels),
        1.0
    );
}

#[test]
fn an_anthropic_client_reads_its_own_fields() {
    let (_emulator, gateway) = stage(json!({"requests_per_hour": 1, "tokens_per_hour": 100_000}));
    let good = gateway.post(MESSAGES, &message("one"));
    assert_eq!(good.status, 200);
    assert_eq!(good.header("anthropic-ratelimit-requests-limit"), Some("1"));
    assert_eq!(
        good.header("anthropic-ratelimit-tokens-limit"),
        Some("100000")
    );
    let refused = gateway.post(MESSAGES, &message("two"));
    assert_refused(&refused, "rate_limit_exceeded", "all/*/requests_per_hour");
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert_eq!(
        refused.header("anthropic-ratelimit-requests-remaining"),
        Some("0")
    );
    let reset = refused
        .header("anthropic-ratelimit-requests-reset")
        .unwrap();
    let reset: Timestamp = reset.parse().unwrap();
    let wait = reset.as_second() - Timestamp::now().as_second();
    assert!((3_500..=3_601).contains(&wait), "{wait}");
    assert_eq!(refused.header("x-ratelimit-limit-requests"), None);
    // Nobody is told to sleep for an hour; SDKs would.
    assert_eq!(refused.header("retry-after"), Some("120"));
}

#[test]
fn a_days_quota_that_is_used_up_is_not_tried_again() {
    let (emulator, gateway) = stage(json!({"requests_per_day": 1}));
    assert_eq!(gateway.post(CHAT, &chat("one")).status, 200);
    let refused = gateway.post(CHAT, &chat("two"));
    assert_refused(&refused, "insufficient_quota", "all/*/requests_per_day");
    assert_eq!(refused.json()["error"]["type"], "insufficient_quota");
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    // Until midnight; it is about noon.
    let wait = seconds(&refused, "retry-after");
    assert!((10 * 3_600..=12 * 3_600 + 3_600).contains(&wait), "{wait}");
    let reset = refused.json()["error"]["limit"]["reset_seconds"].as_u64();
    assert!(reset.unwrap().abs_diff(wait) <= 1);
    assert_eq!(emulator.calls().len(), 1);
}

#[test]
fn a_request_larger_than_a_limit_is_told_to_ask_for_less() {
    let (emulator, gateway) = stage(json!({"tokens_per_minute": 1_000}));
    let body = with(chat("hello"), "max_tokens", json!(5_000));
    let refused = gateway.post(CHAT, &body);
    assert_refused(&refused, "request_exceeds_limit", "all/*/tokens_per_minute");
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    assert_eq!(refused.header("retry-after"), None);
    assert!(refused.text().contains("max_tokens"));
    assert!(emulator.calls().is_empty());
    let body = with(chat("hello"), "max_tokens", json!(500));
    assert_eq!(gateway.post(CHAT, &body).status, 200);
}

#[test]
fn a_good_answer_shows_the_tightest_limits() {
    let (_emulator, gateway) = stage(json!({
        "requests_per_minute": 10, "requests_per_day": 5, "tokens_per_minute": 1_000_000,
        "chat": {"tokens_per_hour": 50_000},
    }));
    let body = with(chat("hello"), "max_tokens", json!(1_000));
    let answer = gateway.post(CHAT, &body);
    assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("5"));
    assert_eq!(answer.header("x-ratelimit-remaining-requests"), Some("4"));
    let reset = answer.header("x-ratelimit-reset-requests").unwrap();
    assert!(reset.contains('h') && reset.ends_with('s'), "{reset}");
    assert_eq!(answer.header("x-ratelimit-limit-tokens"), Some("50000"));
    let left = seconds(&answer, "x-ratelimit-remaining-tokens");
    assert!((48_000..49_000).contains(&left), "{left}");
    let streamed = gateway.stream(CHAT, &chat_stream("hello"));
    assert_eq!(streamed.header("x-ratelimit-remaining-requests"), Some("3"));
}

#[test]
fn without_limits_there_is_nothing_to_show() {
    let (_emulator, gateway) = stage(json!({}));
    let answer = gateway.post(CHAT, &chat("hello"));
    let shown = answer
        .headers
        .iter()
        .filter(|(name, _)| name.contains("ratelimit"));
    assert_eq!(shown.count(), 0);
    assert_eq!(report(&gateway, "acme")["limits"], json!([]));
}

#[test]
fn a_limit_in_shadow_mode_refuses_nobody_and_counts() {
    let (emulator, gateway) = stage(json!({
        "requests_per_day": {"limit": 1, "shadow": true}, "tokens_per_day": 1_000_000,
    }));
    for text in ["one", "two", "three"] {
        let answer = gateway.post(CHAT, &chat(text));
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-ratelimit-limit-requests"), None);
    }
    assert_eq!(emulator.calls().len(), 3);
    let counted = |mode: &str| {
        let labels = ["limit=\"all/*/requests_per_day\"", mode];
        gateway.metric("tidegate_limit_refusals_total", &labels)
    };
    assert_eq!(
        (counted("mode=\"shadow\""), counted("mode=\"enforced\"")),
        (2.0, 0.0)
    );
    let standing = settled(&gateway, "acme", "all/*/requests_per_day");
    assert_eq!(
        (&standing["used"], &standing["shadow"]),
        (&json!(3), &json!(true))
    );
}

#[test]
fn a_whole_plan_can_look_on() {
    let (_emulator, gateway) = stage(json!({"shadow": true, "requests_per_day": 1}));
    for text in ["one", "two"] {
        assert_eq!(gateway.post(CHAT, &chat(text)).status, 200);
    }
    let labels = ["mode=\"shadow\""];
    assert_eq!(
        gateway.metric("tidegate_limit_refusals_total", &labels),
        1.0
    );
}
