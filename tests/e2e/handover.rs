//! One process leaves and another takes its place: the counts go over whole, and what the old one
//! still holds is held in the new one until it ends.

use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::books::{ledger, noon, sum};
use crate::support::*;

const CHAT: &str = "/v1/chat/completions";
const TOKENS: &str = "all/*/tokens_per_day";
const REQUESTS: &str = "all/*/requests_per_day";
const CONCURRENT: &str = "all/*/max_concurrent";
/// A refusal to start comes after ten seconds of waiting.
const REFUSAL: Duration = Duration::from_secs(30);
/// Longer than any stream here.
const DRAINED: Duration = Duration::from_secs(30);

fn stage(change: impl FnOnce(Config) -> Config) -> (Emulator, Gateway) {
    let emulator = Emulator::quick();
    let plan = json!({
        "max_concurrent": 3, "tokens_per_day": 100_000, "requests_per_day": 1_000,
        "requests_per_minute": 500, "cost_per_day": "10 USD",
    });
    let price = json!({"upstream": "deepseek", "model": "deepseek-flash",
        "cache_hit": 1, "cache_miss": 10, "output": 100});
    let config = Config::for_emulator(&emulator)
        .set("/accounting/time_zone", noon())
        .set("/accounting/prices", json!([price]))
        .set("/plans/tested", plan)
        .set("/tenants/0/plan", json!("tested"))
        .set("/server/shutdown_grace", json!("1m"));
    let gateway = Gateway::start(change(config));
    (emulator, gateway)
}

/// Over after so many tenths of a second.
fn long_stream(tenths: u32) -> Value {
    let text = format!("[[fault:token_delay=100ms,tokens={tenths}]] Tell me a story.");
    with(chat_stream(&text), "max_tokens", json!(2_000))
}

fn begin(gateway: &Gateway, tenths: u32) -> Stream {
    let mut stream = gateway.stream(CHAT, &long_stream(tenths));
    assert_eq!(stream.status, 200);
    stream.read_until("data: ");
    stream
}

/// Asks it to leave, and waits until nobody can connect any more.
fn leave(gateway: &Gateway) {
    gateway.signal("TERM");
    eventually("it takes no connections", SOON, || {
        TcpStream::connect(gateway.address()).is_err().then_some(())
    });
}

/// The ledger is what the emulator has told, and so are the counts of `acme`'s limits.
fn assert_exact(emulator: &Emulator, gateway: &Gateway) {
    let calls = emulator.journal();
    assert!(calls.iter().all(|call| call.usage_sent), "{calls:#?}");
    let told = calls.iter().filter_map(|call| call.usage);
    let told = told.fold((0, 0, 0), |sum, usage| {
        let (prompt, cached, completion) = sum;
        (
            prompt + usage.prompt,
            cached + usage.cached,
            completion + usage.completion,
        )
    });
    let expected = (calls.len() as u64, told.0 + told.2);
    eventually("the counts are those of all calls", SOON, || {
        let used = |limit| gateway.standing("acme", limit);
        (used(REQUESTS) == (expected.0, 0) && used(TOKENS) == (expected.1, 0)).then_some(())
    });
    gateway.wait_until_written();
    let counts = sum(ledger(&gateway.state_dir()).values());
    assert_eq!((counts.requests, counts.estimated), (expected.0, 0));
    assert_eq!((counts.prompt, counts.cached, counts.completion), told);
    let cost = gateway.standing("acme", "all/*/cost_per_day");
    assert_eq!(cost, (counts.cost.nanos(), 0));
    gateway.wait_until_idle(SOON);
}

#[test]
fn a_graceful_restart_loses_not_a_token() {
    let (emulator, gateway) = stage(|config| config);
    for number in 0..30 {
        let text = format!("Question number {number}");
        let body = match number % 3 {
            0 => chat(&text),
            1 => chat_stream(&text),
            _ => with(chat(&text), "max_tokens", json!(5)),
        };
        assert_eq!(gateway.post(CHAT, &body).status, 200);
    }
    let stream = begin(&gateway, 10);
    gateway.signal("TERM");
    assert_eq!(stream.rest().ending, Ending::Whole);
    assert!(gateway.exit(SOON).success());
    let before = sum(ledger(&gateway.state_dir()).values());
    assert_eq!(before.requests, 31);
    let next = gateway.again();
    assert_exact(&emulator, &next);
    // Minutes go on as well as days: of this bucket nearly nothing can have faded.
    let (minute, _) = next.standing("acme", "all/*/requests_per_minute");
    assert!(minute > 0);
    assert_eq!(next.post(CHAT, &chat("once more")).status, 200);
    assert_exact(&emulator, &next);
}

#[test]
fn what_the_old_process_still_streams_counts_in_the_new_one() {
    let (emulator, old) = stage(|config| config);
    let streams = [begin(&old, 60), begin(&old, 60)];
    leave(&old);
    let new = old.successor();
    new.wait_until_ready();
    old.logged(&["The counting was handed over"]);
    assert!(old.is_running());
    let (_, reserved) = new.standing("acme", TOKENS);
    assert!((4_000..5_000).contains(&reserved), "{reserved}");
    assert_eq!(new.standing("acme", CONCURRENT).1, 2);
    assert_eq!(new.standing("acme", REQUESTS), (2, 0));
    // The third of three at one time, over both processes, and no fourth.
    let third = begin(&new, 10);
    let refused = new.post(CHAT, &chat("hi"));
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (429, "rate_limit_exceeded")
    );
    assert_eq!(third.rest().ending, Ending::Whole);
    // Beside what both hold no 97,000 tokens fit.
    let greedy = with(chat("hi"), "max_tokens", json!(97_000));
    assert_eq!(new.post(CHAT, &greedy).status, 429);
    for stream in streams {
        let answer = stream.rest();
        assert_eq!(answer.ending, Ending::Whole);
        assert_eq!(answer.data().last().unwrap(), "[DONE]");
    }
    assert!(old.exit(DRAINED).success());
    assert_exact(&emulator, &new);
    assert_eq!(new.post(CHAT, &greedy).status, 200);
}

#[test]
fn a_process_that_handed_over_refuses_new_requests_and_says_to_connect_again() {
    let (emulator, old) = stage(|config| config.set("/server/shutdown_pause", json!("1m")));
    let request = Request::post(CHAT, &chat("hi")).key("acme");
    let mut kept = old.connect();
    assert_eq!(kept.ask(&request).status, 200);
    let mut other = old.connect();
    other.send(
        &Request::post("/anthropic/v1/messages", &message("hi"))
            .key("acme")
            .to_bytes(),
    );
    assert_eq!(other.answer().status, 200);
    old.signal("TERM");
    let new = old.beside();
    new.wait_until_ready();
    let refused = kept.ask(&request);
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (503, "handed_over")
    );
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(kept.is_closed_within(SOON));
    other.send(
        &Request::post("/anthropic/v1/messages", &message("hi"))
            .key("acme")
            .to_bytes(),
    );
    let refused = other.answer();
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (503, Some("1"))
    );
    // What asks nothing of the limits is answered.
    assert_eq!(old.get("/v1/models").status, 200);
    assert_eq!(emulator.calls().len(), 2);
    assert_eq!(new.post(CHAT, &chat("hi")).status, 200);
    assert_exact(&emulator, &new);
    old.signal("TERM");
    old.exit(SOON);
}

#[test]
fn what_a_process_held_that_was_killed_while_it_drained_is_free() {
    let (_emulator, old) = stage(|config| config);
    let streams = [begin(&old, 600), begin(&old, 600)];
    leave(&old);
    let new = old.successor();
    new.wait_until_ready();
    assert_eq!(new.standing("acme", CONCURRENT).1, 2);
    old.kill();
    eventually("what it held is free", SOON, || {
        let held = [CONCURRENT, TOKENS].map(|limit| new.standing("acme", limit).1);
        (held == [0, 0]).then_some(())
    });
    new.logged(&["is gone; what it held is free"]);
    drop(streams);
    // They were sent, and so they count as requests; what they took nobody can tell.
    assert_eq!(new.standing("acme", REQUESTS), (2, 0));
    let again: Vec<_> = (0..3).map(|_| begin(&new, 5)).collect();
    for stream in again {
        assert_eq!(stream.rest().ending, Ending::Whole);
    }
    new.wait_until_idle(SOON);
}

#[test]
fn what_was_told_to_a_process_that_was_killed_is_heard_by_the_next() {
    let (emulator, old) = stage(|config| config);
    let stream = begin(&old, 30);
    leave(&old);
    let killed = old.successor();
    killed.wait_until_ready();
    assert_eq!(killed.standing("acme", CONCURRENT).1, 1);
    killed.kill();
    assert_eq!(stream.rest().ending, Ending::Whole);
    assert!(old.exit(DRAINED).success());
    let next = killed.again();
    assert_exact(&emulator, &next);
}

#[test]
fn a_second_gateway_on_the_same_state_dir_does_not_start_while_the_first_stays() {
    let (emulator, first) = stage(|config| config);
    let second = first.beside();
    let status = second.exit(REFUSAL);
    assert_eq!(status.code(), Some(1));
    let log = second.log().join("\n");
    let state_dir = first.state_dir();
    for word in [
        state_dir.to_str().unwrap(),
        "another tidegate counts on this state_dir and is not stopping",
        "server.state_dir",
    ] {
        assert!(log.contains(word), "no {word}: {log}");
    }
    assert!(first.is_serving());
    assert_exact(&emulator, &first);
    assert_eq!(first.metric("tidegate_store_errors_total", &[]), 0.0);
}
