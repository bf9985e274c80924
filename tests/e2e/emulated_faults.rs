//! The instruments of the other tests, tried on each other: the emulator's faults on a raw
//! connection, the relay, the upstream without rules, and the load.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::hostile::{Deaf, Hostile};
use crate::support::load::{self, Load};
use crate::support::relay::Relay;
use crate::support::*;

const UPSTREAM_KEY: &str = "sk-upstream-1";

fn request(text: &str) -> Request {
    Request::post("/chat/completions", &chat_stream(text)).bearer(UPSTREAM_KEY)
}

#[test]
fn every_break_before_content_is_one_of_its_own() {
    let emulator = Emulator::quick();
    for (order, ending, last) in [
        ("queue=60ms,reset_after=0", Ending::Broken, ": keep-alive"),
        ("queue=60ms,cut_after=0", Ending::Broken, ": keep-alive"),
        ("queue=60ms,end_after=0", Ending::Whole, ": keep-alive"),
        ("queue=60ms,error_first", Ending::Whole, "data: {\"error\""),
        (
            "queue=60ms,no_content,finish=insufficient_system_resource",
            Ending::Whole,
            "data: [DONE]",
        ),
        ("empty", Ending::Whole, ""),
        ("length=+9,cut_after=1", Ending::Broken, "data: {"),
    ] {
        let answer = request(&format!("[[fault:{order}]]")).send(emulator.address());
        assert_eq!((answer.status, answer.ending), (200, ending), "{order}");
        let text = answer.text();
        let end = text.trim_end().lines().last().unwrap_or_default();
        assert!(end.starts_with(last), "{order}: {text}");
    }
}

#[test]
fn probes_hear_noise_too() {
    let emulator = Emulator::quick();
    emulator.order(Some("account-1"), "noise,everywhere");
    let mut socket = TcpStream::connect(emulator.address()).unwrap();
    let probe = Request::get("/models").bearer(UPSTREAM_KEY);
    socket.write_all(&probe.to_bytes()).unwrap();
    let mut heard = [0; 256];
    let count = socket.read(&mut heard).unwrap();
    assert!(count > 0 && !heard.starts_with(b"HTTP"));
}

#[test]
fn the_journal_is_read_from_where_one_has_read_to() {
    let emulator = Emulator::quick();
    for _ in 0..3 {
        request("hello").send(emulator.address());
    }
    let since = |query: &str| emulator.calls_since(query);
    let all = since("after=0");
    assert_eq!(all.len(), 3);
    assert_eq!(all[0].path, "/chat/completions");
    assert_eq!(
        (all[0].status, all[0].outcome.as_deref()),
        (Some(200), Some("complete"))
    );
    assert_eq!(since(&format!("after={}", all[1].id)).len(), 1);
    assert_eq!(since(&format!("since_ms={}", all[0].started_ms)).len(), 3);
    let counts = emulator.attempts_between(all[0].started_ms, u64::MAX);
    assert_eq!(counts.get("account-1"), Some(&3));
}

#[test]
fn an_account_loses_its_money_and_its_key() {
    let emulator = Emulator::quick();
    emulator.set_balance("account-1", "0.00");
    assert_eq!(request("hello").send(emulator.address()).status, 402);
    emulator.set_balance("account-1", "7.50");
    assert_eq!(request("hello").send(emulator.address()).status, 200);
    emulator.set_key("account-1", "sk-another");
    assert_eq!(request("hello").send(emulator.address()).status, 401);
}

#[test]
fn a_relay_passes_blocks_delays_cuts_resets_and_refuses() {
    let emulator = Emulator::quick();
    let relay = Relay::to(emulator.address());
    let whole = request("hello").send(relay.address());
    assert_eq!((whole.status, whole.ending), (200, Ending::Whole));

    relay.block();
    let mut wire = Wire::connect(relay.address());
    wire.send(&request("hello").to_bytes());
    std::thread::sleep(Duration::from_millis(100));
    assert!(!wire.has_something());
    relay.pass();
    assert_eq!(wire.answer().status, 200);

    relay.delay(Duration::from_millis(50));
    let began = Instant::now();
    request("hello").send(relay.address());
    assert!(began.elapsed() >= Duration::from_millis(100));
    relay.pass();

    relay.cut_after(200);
    let mut wire = Wire::connect(relay.address());
    wire.send(&request("hello").to_bytes());
    assert!(
        wire.try_answer()
            .is_none_or(|answer| answer.ending == Ending::Broken)
    );
    relay.pass();

    let mut stream = request("[[fault:stall_after=3]]").stream(relay.address());
    stream.read_until("data:");
    assert!(relay.open() > 0);
    relay.refuse();
    assert!(Wire::try_connect(relay.address()).is_err());
    relay.reset_all();
    while stream.next_piece().is_some() {}
    assert_eq!(stream.ending, Some(Ending::Broken));
    eventually("no connection is open", SOON, || {
        (relay.open() == 0).then_some(())
    });
    relay.listen();
    assert_eq!(request("hello").send(relay.address()).status, 200);
    emulator.call_ended("complete");
}

#[test]
fn a_relay_to_nobody_resets() {
    let relay = Relay::to(free_address());
    let mut wire = Wire::connect(relay.address());
    wire.send(&request("hello").to_bytes());
    assert!(wire.try_answer().is_none());
}

#[test]
fn a_hostile_upstream_does_what_it_is_told_on_each_connection() {
    let upstream = Hostile::start(|guest, number| {
        let request = guest.request().unwrap();
        assert!(request.starts_with("POST /chat/completions "));
        if number == 0 {
            guest.reset();
            return;
        }
        guest.trickle(b"HTTP/1.1 204 No Content\r\n", Duration::from_millis(1));
        guest.send(b"\r\n");
        guest.wait(SOON);
    });
    let address = upstream.address();
    let mut wire = Wire::connect(address);
    wire.send(&request("hello").to_bytes());
    assert!(wire.try_answer().is_none());
    let answer = request("hello").chunked(7).send(address);
    assert_eq!((answer.status, upstream.accepted()), (204, 2));
}

#[test]
fn no_connection_comes_about_with_the_deaf() {
    let deaf = Deaf::new();
    let patience = Duration::from_millis(300);
    let connected = TcpStream::connect_timeout(&deaf.address(), patience).map(drop);
    assert_eq!(connected.unwrap_err().kind(), ErrorKind::TimedOut);
}

#[test]
fn a_load_tells_what_came_of_each_request() {
    let emulator = Emulator::quick();
    let load = Load {
        clients: 10,
        rate: 60,
        during: Duration::from_secs(2),
        questions: 5,
        ..Load::default()
    };
    let running = load.start_with_key(&emulator.url(), UPSTREAM_KEY);
    eventually("the first answers", SOON, || {
        (running.so_far().len() > 20).then_some(())
    });
    emulator.order(None, "status=503");
    eventually("the first failure", SOON, || {
        running
            .so_far()
            .iter()
            .any(|one| one.error.is_some())
            .then_some(())
    });
    emulator.order(None, "");
    let asked = running.finish();
    let mut hashes: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for one in asked.iter().filter(|one| one.is_whole()) {
        hashes.entry(one.question).or_default().push(&one.hash);
    }
    assert_eq!(hashes.len(), 5);
    // Streamed or not, a question has one answer.
    for same in hashes.values() {
        assert!(same.iter().all(|hash| *hash == same[0]));
    }
    let failures = load::failures(&asked);
    let names: Vec<&String> = failures.keys().collect();
    assert_eq!(names, ["InternalServerError 503 invalid_request_error"]);
    assert!(load::first_content(&asked, 0.5) > 0.0);
    assert!(asked.iter().any(|one| one.stream && one.chunks > 3));
    assert_eq!(emulator.calls_since("after=0").len(), asked.len());
}

#[test]
fn a_load_names_what_went_wrong() {
    let noise = Hostile::always("no HTTP at all\r\n\r\n");
    let deaf = Deaf::new();
    for (url, class) in [
        (noise.url(), "APIConnectionError"),
        (deaf.url(), "APITimeoutError"),
    ] {
        let load = Load {
            clients: 2,
            rate: 4,
            during: Duration::from_secs(1),
            patience: Duration::from_millis(300),
            ..Load::default()
        };
        let mut asked = load.start_with_key(&url, UPSTREAM_KEY).finish();
        asked.sort_by_key(|one| one.number);
        assert!(asked.is_sorted_by_key(|one| one.at_ms) && !asked.is_empty());
        for one in &asked {
            assert_eq!((one.error.as_deref(), one.status), (Some(class), None));
            assert!(one.total_ms > 0.0 && one.message.is_some(), "{one:?}");
        }
    }
}

#[test]
fn a_load_goes_through_a_gateway_and_a_relay() {
    let emulator = Emulator::quick();
    let relay = Relay::to(emulator.address());
    let gateway = Gateway::start(Config::for_urls(&[relay.url()], emulator.accounts()));
    let load = Load {
        clients: 5,
        rate: 50,
        during: Duration::from_secs(1),
        ..Load::default()
    };
    let asked = load.start(&gateway.url(), "acme").finish();
    assert!(
        asked.iter().all(load::Asked::is_whole),
        "{:?}",
        load::failures(&asked)
    );
    assert!(asked.iter().all(|one| one.request_id.is_some()));
    assert!((1..=asked.len() + 1).contains(&relay.accepted()));
}
