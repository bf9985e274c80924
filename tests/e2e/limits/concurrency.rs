//! Requests at one time: a place is free again, however its request ended.

use serde_json::json;

use super::*;

const LIMIT: &str = "all/*/max_concurrent";

fn one_at_a_time() -> (Emulator, Gateway) {
    stage(json!({"max_concurrent": 1}))
}

/// A stream that has begun and goes on until it is read or dropped.
fn hold(gateway: &Gateway, fault: &str) -> Stream {
    let body = chat_stream(&format!("[[fault:{fault}]] hello"));
    let mut stream = gateway.stream(CHAT, &body);
    assert_eq!(stream.status, 200);
    stream.read_until("data: ");
    stream
}

fn assert_full(gateway: &Gateway) {
    let refused = gateway.post(CHAT, &chat("one more"));
    assert_refused(&refused, "rate_limit_exceeded", LIMIT);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.json()["error"]["limit"]["reserved"], 1);
}

fn assert_free(gateway: &Gateway) {
    assert_eq!(settled(gateway, "acme", LIMIT)["reserved"], 0);
    assert_eq!(gateway.post(CHAT, &chat("another")).status, 200);
}

#[test]
fn a_stream_holds_its_place_until_it_ends() {
    let (_emulator, gateway) = one_at_a_time();
    let stream = hold(&gateway, "token_delay=40ms,tokens=20");
    assert_full(&gateway);
    assert!(stream.rest().text().contains("[DONE]"));
    assert_free(&gateway);
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let (_emulator, gateway) = one_at_a_time();
    let stream = hold(&gateway, "stall_after=2");
    assert_full(&gateway);
    drop(stream);
    assert_free(&gateway);
}

#[test]
fn a_client_that_leaves_before_the_answer_frees_its_place() {
    let (emulator, gateway) = one_at_a_time();
    let mut wire = gateway.connect();
    let body = chat("[[fault:stall]]");
    wire.send(&Request::post(CHAT, &body).key("acme").to_bytes());
    emulator.call_once("the call that stalls", |_| true);
    assert_full(&gateway);
    drop(wire);
    assert_free(&gateway);
}

#[test]
fn an_upstream_that_fails_frees_the_place() {
    let (_emulator, gateway) = one_at_a_time();
    for fault in [
        "status=500",
        "status=422",
        "reset",
        "cut_after=0",
        "garbage=0",
    ] {
        let answer = gateway.post(CHAT, &chat(&format!("[[fault:{fault}]]")));
        assert_ne!(answer.status, 429, "{fault}: {}", answer.text());
        settled(&gateway, "acme", LIMIT);
    }
    for fault in ["cut_after=2", "error_after=2", "end_after=2"] {
        let body = chat_stream(&format!("[[fault:{fault}]] hello"));
        let answer = gateway.stream(CHAT, &body).rest();
        assert!(!answer.text().contains("[DONE]"), "{fault}");
        settled(&gateway, "acme", LIMIT);
    }
    assert_free(&gateway);
}
