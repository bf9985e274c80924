//! Who is billed for what when upstreams fail on the way: for what they have said, by those who
//! said it, and for nothing else.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tidegate::ledger::Counts;

use crate::support::*;

const PATH: &str = "/v1/chat/completions";

/// Accounts that are asked in their turn, with streams gone on with so often.
fn stage(accounts: usize, resume: u32) -> (Emulator, Config) {
    let emulator = Emulator::start(Emulator::with_accounts(accounts));
    let config = Config::for_emulator(&emulator)
        .asked_in_turn(&emulator)
        .set("/models/deepseek-flash/resume", json!(resume))
        .set("/retry", json!({"base_backoff": "1ms"}));
    (emulator, config)
}

/// What is in the books, by account.
fn bills(gateway: &Gateway) -> BTreeMap<String, Counts> {
    gateway.wait_until_idle(Duration::from_secs(10));
    gateway.wait_until_written();
    let ledger = books::ledger(&gateway.state_dir());
    ledger.into_iter().map(|(who, it)| (who.2, it)).collect()
}

fn question(order: &str) -> serde_json::Value {
    let body = chat_stream(&format!("{order} Tell me of the sea."));
    with(body, "thinking", json!({"type": "disabled"}))
}

#[test]
fn words_of_ours_in_place_of_an_answer_cost_nothing() {
    let (emulator, config) = stage(1, 0);
    let config = config.set(
        "/models/deepseek-flash/degraded",
        json!({"text": "Not now."}),
    );
    let gateway = Gateway::start(config.set("/retry/hold_head", json!("0s")));
    for (order, body) in [
        ("cut_after=0", chat("hi")),
        ("cut_after=0", chat_stream("hi")),
        // Under a head that was sent before.
        ("queue=1500ms,cut_after=0", chat_stream("hi")),
    ] {
        emulator.order(Some("account-1"), order);
        let answer = gateway.post(PATH, &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.text().contains("Not now."), "{}", answer.text());
        let line = gateway.access_line(answer.header("x-request-id").unwrap());
        assert_eq!(line["degraded"], true, "{line}");
        assert_eq!(line.get("prompt_tokens"), None, "{line}");
    }
    assert!(bills(&gateway).is_empty());
}

#[test]
fn an_attempt_to_go_on_that_never_spoke_is_not_billed() {
    let (emulator, config) = stage(3, 2);
    let gateway = Gateway::start(config);
    emulator.order(Some("account-1"), "cut_after=6");
    emulator.order(Some("account-2"), "cut_after=0");
    let answer = gateway.stream(PATH, &question("")).rest();
    assert_eq!(answer.ending, Ending::Whole, "{}", answer.text());
    let calls = emulator.calls();
    assert_eq!(calls.len(), 3, "{calls:?}");
    let bills = bills(&gateway);
    let billed: Vec<_> = bills.keys().map(String::as_str).collect();
    assert_eq!(billed, ["account-1", "account-3"]);
    // What the last one reported is reported, whatever the others did not.
    let reported = gateway.metric("tidegate_tokens_total", &["kind=\"completion\""]);
    let last = &bills["account-3"];
    assert_eq!((last.estimated, last.completion as f64), (0, reported));
    assert!(reported > 0.0);
}

#[test]
fn who_goes_on_and_breaks_is_not_billed_for_what_came_before() {
    let (emulator, config) = stage(2, 1);
    let gateway = Gateway::start(config);
    emulator.order(Some("account-1"), "tokens=400,cut_after=300");
    emulator.order(Some("account-2"), "tokens=400,cut_after=6");
    let answer = gateway.stream(PATH, &question("")).rest();
    assert_eq!(answer.ending, Ending::Broken, "{}", answer.text());
    let bills = bills(&gateway);
    let completion = |account: &str| bills[account].completion;
    assert!((280..=320).contains(&completion("account-1")), "{bills:?}");
    assert!((1..=20).contains(&completion("account-2")), "{bills:?}");
}
