//! `kill -9` under load: what was counted in the last second may be lost, and nothing else; limits
//! go on from where they were.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::support::books::{ledger, noon, sum};
use crate::support::*;

const CHAT: &str = "/v1/chat/completions";
const TOKENS: &str = "all/*/tokens_per_day";
const REQUESTS: &str = "all/*/requests_per_day";
/// Callers at one time, and what each asks in a second: 300 in all, where the machine allows.
const CALLERS: u64 = 10;
const RATE: u64 = 30;
const LOAD: Duration = Duration::from_secs(4);
/// What the kill may cost.
const MOST_LOST: u64 = 1_000;

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// Asks at a steady pace on a connection of its own until the gateway is gone.
fn call(gateway: &Gateway, over: &AtomicBool) {
    let mut wire = gateway.connect();
    let request = Request::post(CHAT, &chat("What is the use?")).key("acme");
    let bytes = request.to_bytes();
    let began = Instant::now();
    for number in 0.. {
        let due = Duration::from_millis(number * 1_000 / RATE);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        if over.load(Ordering::Acquire) || wire.try_send(&bytes).is_err() {
            return;
        }
        match wire.try_answer() {
            Some(answer) if answer.ending == Ending::Whole => assert_eq!(answer.status, 200),
            _ => return,
        }
    }
}

#[test]
fn a_kill_under_load_loses_at_most_the_last_second() {
    let emulator = Emulator::quick();
    let plan = json!({
        "requests_per_day": 1_000_000, "tokens_per_day": 1_000_000_000, "max_concurrent": 100,
    });
    let config = Config::for_emulator(&emulator)
        .set("/accounting/time_zone", noon())
        .set("/plans/tested", plan)
        .set("/tenants/0/plan", json!("tested"))
        .limit("requests_per_connection", 1_000_000);
    let gateway = Gateway::start(config);
    let over = AtomicBool::new(false);
    let killed = std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| call(&gateway, &over));
        }
        std::thread::sleep(LOAD);
        let killed = now_ms();
        gateway.kill();
        over.store(true, Ordering::Release);
        killed
    });

    let next = gateway.again();
    next.wait_until_idle(SOON);
    let calls = emulator.journal();
    let calls: Vec<_> = calls.iter().filter(|call| call.usage_sent).collect();
    assert!(calls.len() > 100, "that was no load: {}", calls.len());
    let kept = sum(ledger(&next.state_dir()).values());
    let all = calls.len() as u64;
    assert!(kept.requests <= all);
    let tokens = |sum: u64, call: &&books::Call| {
        let usage = call.usage.unwrap();
        sum + usage.prompt + usage.completion
    };
    // Which ones are lost nobody says; as many as were written, in the order of their ends, are not.
    let mut ends: Vec<_> = calls.iter().map(|call| call.ended_ms.unwrap()).collect();
    ends.sort_unstable();
    let lost = all - kept.requests;
    let first_lost = usize::try_from(kept.requests).unwrap();
    let since = ends
        .get(first_lost)
        .map_or(0, |end| killed.saturating_sub(*end));
    eprintln!(
        "kill -9 under {} requests/s: the last {since} ms were lost, {lost} of {all} requests",
        all * 1_000 / u64::try_from(LOAD.as_millis()).unwrap()
    );
    assert!(since <= MOST_LOST, "{since} ms");

    // Both are written together. Between reading the one and the other a request of each caller can
    // have ended.
    let (requests, reserved) = next.standing("acme", REQUESTS);
    assert_eq!(reserved, 0);
    assert!(requests >= kept.requests && requests <= kept.requests + 2 * CALLERS);
    let (used, reserved) = next.standing("acme", TOKENS);
    assert_eq!(reserved, 0);
    let most = calls.iter().fold(0, tokens) / all + 1;
    let apart = used.abs_diff(kept.prompt + kept.completion);
    assert!(apart <= CALLERS * most, "{used} and {kept:?}");

    // Five more, and no sixth.
    let allowed = requests + 5;
    let result = next.reload(|config| config.set("/plans/tested/requests_per_day", json!(allowed)));
    assert_eq!(result, "ok");
    let statuses: Vec<_> = (0..7)
        .map(|_| next.post(CHAT, &chat("hi")).status)
        .collect();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429]);
}

#[test]
fn what_running_requests_held_is_free_after_a_kill() {
    let emulator = Emulator::quick();
    let plan = json!({"max_concurrent": 2, "tokens_per_day": 10_000});
    let config = Config::for_emulator(&emulator)
        .set("/accounting/time_zone", noon())
        .set("/plans/tested", plan)
        .set("/tenants/0/plan", json!("tested"));
    let gateway = Gateway::start(config);
    let endless = chat_stream("[[fault:token_delay=50ms,tokens=10000]]");
    let endless = with(endless, "max_tokens", json!(4_000));
    let begin = |gateway: &Gateway| {
        let mut stream = gateway.stream(CHAT, &endless);
        assert_eq!(stream.status, 200);
        stream.read_until("data: ");
        stream
    };
    let streams = [begin(&gateway), begin(&gateway)];
    assert_eq!(gateway.post(CHAT, &endless).status, 429);
    gateway.wait_until_written();
    gateway.kill();
    drop(streams);
    let next = gateway.again();
    assert_eq!(next.standing("acme", TOKENS), (0, 0));
    let streams = [begin(&next), begin(&next)];
    assert_eq!(next.post(CHAT, &endless).status, 429);
    drop(streams);
    next.wait_until_idle(SOON);
}
