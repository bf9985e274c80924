//! A stream that breaks after content goes on at another account where that is wanted: the same
//! text, under one id, ended once. Where it cannot be done honestly, the break is told.

use serde_json::{Value, json};

use crate::support::*;

const PATH: &str = "/v1/chat/completions";

fn resuming(accounts: usize, times: u32) -> (Emulator, Gateway) {
    let emulator = Emulator::start(Emulator::with_accounts(accounts));
    let config = Config::for_emulator(&emulator)
        .asked_in_turn(&emulator)
        .set("/models/deepseek-flash/resume", json!(times))
        .set("/retry", json!({"base_backoff": "1ms"}));
    (emulator, Gateway::start(config))
}

fn question(text: &str, thinking: &str) -> Value {
    let body = with(chat_stream(text), "thinking", json!({"type": thinking}));
    with(body, "stream_options", json!({"include_usage": true}))
}

/// What a stream says: its text, its reasoning, its ids.
fn said(answer: &Answer) -> (String, String, Vec<String>) {
    let (mut content, mut reasoning, mut ids) = (String::new(), String::new(), Vec::new());
    for event in answer.events() {
        let delta = &event["choices"][0]["delta"];
        content.push_str(delta["content"].as_str().unwrap_or_default());
        reasoning.push_str(delta["reasoning_content"].as_str().unwrap_or_default());
        ids.extend(event["id"].as_str().map(str::to_owned));
    }
    ids.dedup();
    (content, reasoning, ids)
}

fn ends(answer: &Answer) -> usize {
    answer
        .data()
        .iter()
        .filter(|data| *data == "[DONE]")
        .count()
}

#[test]
fn a_broken_stream_goes_on_with_the_very_next_words() {
    let (emulator, gateway) = resuming(2, 1);
    for (thinking, after) in [("disabled", 6), ("enabled", 26)] {
        let body = question("Tell me of the sea.", thinking);
        emulator.order(Some("account-1"), "");
        let whole = gateway.stream(PATH, &body).rest();
        for fault in ["cut_after", "end_after", "error_after"] {
            emulator.order(Some("account-1"), &format!("{fault}={after}"));
            let answer = gateway.stream(PATH, &body).rest();
            let case = format!("{thinking} {fault}: {}", answer.text());
            assert_eq!(answer.ending, Ending::Whole, "{case}");
            let ((content, reasoning, ids), (expected, thought, _)) = (said(&answer), said(&whole));
            assert_eq!((content, reasoning), (expected, thought), "{case}");
            assert_eq!((ids.len(), ends(&answer)), (1, 1), "{case}");
            assert!(!answer.text().contains("\"error\""), "{case}");
            let line = gateway.access_line(answer.header("x-request-id").unwrap());
            assert_eq!(line["resumed"], 1, "{case} {line}");
            assert_eq!(line["account"], "account-2", "{case} {line}");
            assert_eq!(line["ending"], "complete", "{case} {line}");
            assert_eq!(line["usage_estimated"], true, "{case} {line}");
        }
    }
    let calls = emulator.calls();
    let resumed = calls
        .iter()
        .filter(|call| call["path"] == "/beta/chat/completions");
    assert_eq!(resumed.count(), 6);
}

#[test]
fn what_was_being_thought_is_not_gone_on_with() {
    let (emulator, gateway) = resuming(2, 1);
    emulator.order(Some("account-1"), "cut_after=4");
    let answer = gateway
        .stream(PATH, &question("Tell me of the sea.", "enabled"))
        .rest();
    assert!(
        answer.text().contains("stream_interrupted"),
        "{}",
        answer.text()
    );
    assert_eq!((answer.ending, ends(&answer)), (Ending::Broken, 0));
    assert_eq!(emulator.calls().len(), 1);
}

#[test]
fn a_stream_is_gone_on_with_as_often_as_is_wanted_and_no_more() {
    let (emulator, gateway) = resuming(3, 2);
    let body = question("Tell me of the sea.", "disabled");
    let whole = gateway.stream(PATH, &body).rest();
    for account in ["account-1", "account-2"] {
        emulator.order(Some(account), "cut_after=6");
    }
    let answer = gateway.stream(PATH, &body).rest();
    assert_eq!(said(&answer).0, said(&whole).0, "{}", answer.text());
    emulator.order(Some("account-3"), "cut_after=6");
    let answer = gateway.stream(PATH, &body).rest();
    assert!(
        answer.text().contains("stream_interrupted"),
        "{}",
        answer.text()
    );
    assert_eq!((answer.ending, ends(&answer)), (Ending::Broken, 0));
    assert!(said(&whole).0.starts_with(&said(&answer).0));
}

#[test]
fn each_account_is_billed_for_its_part() {
    let (emulator, gateway) = resuming(2, 1);
    emulator.order(Some("account-1"), "cut_after=6");
    let body = question("Tell me of the sea.", "disabled");
    let answer = gateway.stream(PATH, &body).rest();
    assert_eq!(answer.ending, Ending::Whole, "{}", answer.text());
    gateway.wait_until_idle(std::time::Duration::from_secs(10));
    gateway.wait_until_written();
    let ledger = books::ledger(&gateway.state_dir());
    let accounts: Vec<_> = ledger.keys().map(|who| who.2.clone()).collect();
    assert_eq!(accounts.len(), 2, "{accounts:?}");
}
