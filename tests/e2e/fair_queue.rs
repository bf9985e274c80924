//! When accounts are full, requests wait in fair order, and whoever leaves or cannot be served in
//! time holds up nobody.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::*;

const PATH: &str = "/v1/chat/completions";

/// Streams until its client leaves, for all that matters here.
const LONG: &str = "[[fault:token_delay=50ms,tokens=4000]]";

/// One account with so many places.
fn places(emulator: &Emulator, count: u32) -> Config {
    let config = Config::for_emulator(emulator).limit("max_connections_per_ip", 2000);
    accounts(config, &[count])
}

/// Sets the places of each account.
fn accounts(config: Config, counts: &[u32]) -> Config {
    let counts = counts.iter().enumerate();
    counts.fold(config, |config, (index, count)| {
        let pointer = format!("/upstreams/0/accounts/{index}/max_concurrent");
        config.set(&pointer, json!({"deepseek-flash": count}))
    })
}

fn with_tenant(config: Config, id: &str, plan: &str) -> Config {
    let mut tenant = tenant(id);
    tenant["plan"] = json!(plan);
    config
        .set(&format!("/plans/{plan}/priority"), json!("normal"))
        .set("/tenants/-", tenant)
}

/// Takes places, and holds them until they are dropped.
fn block(gateway: &Gateway, count: usize) -> Vec<Stream> {
    let streams = (0..count).map(|_| {
        let mut stream = gateway.stream(PATH, &chat_stream(LONG));
        stream.read_until("data: ");
        stream
    });
    streams.collect()
}

/// Sends a request and does not wait for the answer.
fn ask(gateway: &Gateway, tenant: &str, body: &Value) -> Wire {
    let mut wire = gateway.connect();
    wire.send(&Request::post(PATH, body).key(tenant).to_bytes());
    wire
}

fn in_flight_are(gateway: &Gateway, count: usize) {
    eventually(&format!("{count} requests"), SOON, || {
        let in_flight = gateway.metric("tidegate_requests_in_flight", &["surface=\"chat\""]);
        (in_flight == count as f64).then_some(())
    });
}

/// Whose requests reached the upstream, in this order; each says it in its prompt.
fn order(emulator: &Emulator) -> Vec<String> {
    let calls = emulator.calls();
    let bodies = calls.iter().filter_map(|call| call["body"].as_str());
    let whose = bodies.filter_map(|body| body.split("from <").nth(1)?.split('>').next());
    whose.map(str::to_owned).collect()
}

fn from(tenant: &str) -> Value {
    chat(&format!("[[fault:first_token=10ms]] from <{tenant}>"))
}

#[test]
fn nine_with_one_each_do_not_wait_for_one_with_two_hundred() {
    let emulator = Emulator::quick();
    let names: Vec<_> = (0..=9).map(|number| format!("t{number}")).collect();
    let config = names.iter().fold(places(&emulator, 10), |config, name| {
        with_tenant(config, name, "equal")
    });
    let gateway = Gateway::start(config);
    let blockers = block(&gateway, 10);
    let mut waiting: Vec<_> = (0..200).map(|_| ask(&gateway, "t0", &from("t0"))).collect();
    in_flight_are(&gateway, 210);
    waiting.extend(
        names[1..]
            .iter()
            .map(|name| ask(&gateway, name, &from(name))),
    );
    in_flight_are(&gateway, 219);
    drop(blockers);
    for mut wire in waiting {
        let answer = wire.answer();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let order = order(&emulator);
    assert_eq!(order.len(), 209);
    for name in &names[1..] {
        let place = order.iter().position(|whose| whose == name).unwrap();
        // Among the first ten; ten are on their way to the upstream at one time.
        assert!(place < 20, "{name} was number {place}: {order:?}");
    }
    assert_eq!(emulator.in_flight(), 0);
}

#[test]
fn places_are_shared_by_weight_among_those_who_wait() {
    let emulator = Emulator::quick();
    let config = with_tenant(places(&emulator, 4), "heavy", "heavy");
    let config = with_tenant(config, "light", "light").set("/plans/heavy/weight", json!(3));
    let gateway = Gateway::start(config.set("/plans/light/weight", json!(1)));
    let blockers = block(&gateway, 4);
    let mut waiting = Vec::new();
    for _ in 0..225 {
        waiting.push(ask(&gateway, "light", &from("light")));
        waiting.push(ask(&gateway, "heavy", &from("heavy")));
    }
    in_flight_are(&gateway, 454);
    drop(blockers);
    waiting
        .iter_mut()
        .for_each(|wire| assert_eq!(wire.answer().status, 200));
    let order = order(&emulator);
    // As long as both wait.
    let heavy = order[..280]
        .iter()
        .filter(|whose| *whose == "heavy")
        .count();
    assert!((189..=231).contains(&heavy), "{heavy} of 280");
}

#[test]
fn a_client_that_leaves_the_queue_is_gone_at_once_and_nobody_waits_for_it() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(places(&emulator, 1));
    let blocker = block(&gateway, 1);
    let leaver = ask(&gateway, "acme", &chat("from <leaver>"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (sender, leaver_h2) = runtime.block_on(async {
        let mut sender = h2::connect(gateway.address()).await;
        let body = h2::sized(Bytes::from(chat("from <leaver>").to_string()));
        let answer = tokio::spawn(sender.send_request(h2::post(PATH, body)));
        (sender, answer)
    });
    // Without a length, and longer than what Pingora keeps: its session is exchanged.
    let long = format!("{} from <leaver>", "x".repeat(100_000));
    let mut leaver_exchanged = gateway.connect();
    let request = Request::post(PATH, &chat(&long))
        .key("acme")
        .chunked(30_000);
    leaver_exchanged.send(&request.to_bytes());
    let mut stayer = ask(&gateway, "acme", &chat("from <stayer>"));
    in_flight_are(&gateway, 5);
    drop(leaver);
    in_flight_are(&gateway, 4);
    leaver_h2.abort();
    in_flight_are(&gateway, 3);
    drop(leaver_exchanged);
    in_flight_are(&gateway, 2);
    drop(blocker);
    assert_eq!(stayer.answer().status, 200);
    assert_eq!(order(&emulator), ["stayer"]);
    assert!(gateway.is_serving());
    drop(sender);
}

#[test]
fn who_would_wait_too_long_is_told_at_once_and_who_has_waited_long_enough_in_time() {
    let emulator = Emulator::quick();
    let config = places(&emulator, 1).set("/queue/max_wait", json!("700ms"));
    let gateway = Gateway::start(config);
    let blocker = block(&gateway, 1);
    // Nothing has ended yet: how long it takes is not known.
    let began = Instant::now();
    let answer = gateway.post(PATH, &chat("hi"));
    assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
    assert!(began.elapsed() >= Duration::from_millis(700));
    assert_ne!(answer.header("x-should-retry"), Some("false"));
    drop(blocker);
    in_flight_are(&gateway, 0);
    let slow = chat("[[fault:first_token=1500ms]] hi");
    for _ in 0..2 {
        assert_eq!(gateway.post(PATH, &slow).status, 200);
    }
    let blocker = block(&gateway, 1);
    // Who is next waits in any case, whoever comes then does not.
    let mut next = ask(&gateway, "acme", &chat("hi"));
    in_flight_are(&gateway, 2);
    let began = Instant::now();
    let answer = gateway.post(PATH, &chat("hi"));
    assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
    assert!(began.elapsed() < Duration::from_millis(600));
    assert_eq!(next.answer().status, 503);
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=5).contains(&wait), "{wait}");
    drop(blocker);
}

#[test]
fn a_queue_has_an_end_and_may_be_none() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(places(&emulator, 1).set("/queue/max_length", json!(1)));
    let blocker = block(&gateway, 1);
    let mut waiting = ask(&gateway, "acme", &chat("hi"));
    in_flight_are(&gateway, 2);
    let answer = gateway.post(PATH, &chat("hi"));
    assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
    drop(blocker);
    assert_eq!(waiting.answer().status, 200);
}

#[test]
fn one_who_fills_the_queue_makes_room_for_the_others() {
    let emulator = Emulator::quick();
    let config = with_tenant(places(&emulator, 1), "crowd", "equal");
    // Room for six: a fifth of the line is kept for those who are more urgent.
    let config = with_tenant(config, "other", "equal").set("/queue/max_length", json!(7));
    let gateway = Gateway::start(config);
    let blocker = block(&gateway, 1);
    let mut crowd: Vec<_> = (0..6)
        .map(|number| {
            let wire = ask(&gateway, "crowd", &from("crowd"));
            in_flight_are(&gateway, 2 + number);
            wire
        })
        .collect();
    let refused = |wire: &mut Wire| {
        let answer = wire.answer();
        assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
        assert!(answer.header("retry-after").is_some());
    };
    refused(&mut ask(&gateway, "crowd", &from("crowd")));
    let mut others: Vec<_> = (0..3)
        .map(|_| ask(&gateway, "other", &from("other")))
        .collect();
    // Half of the queue; the crowd's newest make room, and one more of either gets no more of it.
    crowd.split_off(3).iter_mut().for_each(refused);
    refused(&mut ask(&gateway, "other", &from("other")));
    refused(&mut ask(&gateway, "crowd", &from("crowd")));
    in_flight_are(&gateway, 7);
    drop(blocker);
    for wire in crowd.iter_mut().chain(&mut others) {
        assert_eq!(wire.answer().status, 200);
    }
    let order = order(&emulator);
    assert_eq!(order.iter().filter(|whose| *whose == "other").count(), 3);
}

#[test]
fn the_only_account_is_asked_again_when_it_has_rested() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(places(&emulator, 5).set("/queue/max_wait", json!("4s")));
    let limited = |words: &str| chat(&format!("[[fault:status=429,{words}]] hi"));
    let began = Instant::now();
    let answer = gateway.post(PATH, &limited("times=1"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(began.elapsed() >= Duration::from_millis(990));
    let line = gateway.access_line(answer.header("x-request-id").unwrap());
    assert_eq!(line["attempts"], json!(2));
    assert!(line["queued_ms"].as_f64().unwrap() >= 900.0, "{line}");
    // No more often than anything is tried.
    emulator.forget_calls();
    let answer = gateway.post(PATH, &limited("times=9"));
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (429, "upstream_rate_limited")
    );
    assert_eq!(emulator.calls().len(), 3);
    // A rest for which there is no time is not waited for, by the next one neither.
    let began = Instant::now();
    let answer = gateway.post(PATH, &limited("retry_after=30"));
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (429, "upstream_rate_limited")
    );
    assert_eq!(answer.header("retry-after"), Some("30"));
    let answer = gateway.post(PATH, &chat("hi"));
    assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((28..=30).contains(&wait), "{wait}");
    assert!(began.elapsed() < Duration::from_millis(2500));
}

#[test]
fn who_is_turned_away_by_one_variants_queue_waits_in_the_next_ones() {
    let emulator = Emulator::quick();
    let variants = json!([
        {"upstream": "deepseek", "model": "deepseek-v4-pro"},
        {"upstream": "deepseek", "model": "deepseek-flash"},
    ]);
    let both = json!({"deepseek-flash": 1, "deepseek-v4-pro": 1});
    let config = places(&emulator, 1)
        .set("/upstreams/0/accounts/0/max_concurrent", both)
        .set("/queue/max_length", json!(1))
        .set("/models/both", json!({"variants": variants}));
    let gateway = Gateway::start(config);
    let both = |body: Value| with(body, "model", json!("both"));
    let mut blockers: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = gateway.stream(PATH, &both(chat_stream(LONG)));
            stream.read_until("data: ");
            stream
        })
        .collect();
    let mut first = ask(&gateway, "acme", &both(from("first")));
    in_flight_are(&gateway, 3);
    let mut second = ask(&gateway, "acme", &both(from("second")));
    in_flight_are(&gateway, 4);
    let answer = gateway.post(PATH, &both(chat("hi")));
    assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
    // The second variant's place, and so its queue.
    blockers.pop();
    assert_eq!(second.answer().status, 200);
    drop(blockers);
    assert_eq!(first.answer().status, 200);
    assert_eq!(order(&emulator), ["second", "first"]);
}

#[test]
fn who_waits_goes_on_waiting_over_a_reload_and_profits_by_it() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(places(&emulator, 1));
    let blocker = block(&gateway, 1);
    let mut first = ask(&gateway, "acme", &chat("hi"));
    in_flight_are(&gateway, 2);
    let change = |config: Config| config.set("/queue/max_length", json!(500));
    assert_eq!(gateway.reload(change), "ok");
    let mut second = ask(&gateway, "acme", &chat("hi"));
    in_flight_are(&gateway, 3);
    assert_eq!(gateway.reload(|config| accounts(config, &[2])), "ok");
    assert_eq!(first.answer().status, 200);
    assert_eq!(second.answer().status, 200);
    drop(blocker);
}

#[test]
fn an_endpoint_takes_no_more_than_its_limit() {
    let emulator = Emulator::quick();
    let config = places(&emulator, 10).set("/upstreams/0/endpoints/0/max_concurrent", json!(2));
    let gateway = Gateway::start(config);
    let mut blockers = block(&gateway, 2);
    let pro = with(chat("hi"), "model", json!("deepseek-v4-pro"));
    let mut waiting = [
        ask(&gateway, "acme", &pro),
        ask(&gateway, "acme", &chat("hi")),
    ];
    in_flight_are(&gateway, 4);
    assert_eq!(emulator.in_flight(), 2);
    blockers.pop();
    waiting
        .iter_mut()
        .for_each(|wire| assert_eq!(wire.answer().status, 200));
}

/// With comments every second while a stream waits.
fn kept_alive(emulator: &Emulator, counts: &[u32]) -> Gateway {
    let config = accounts(Config::for_emulator(emulator), counts);
    Gateway::start(config.set("/queue/keep_alive", json!("1s")))
}

#[test]
fn a_stream_that_waits_is_told_of_its_limits_as_any_answer_is() {
    let emulator = Emulator::quick();
    let config = accounts(Config::for_emulator(&emulator), &[1])
        .set("/queue/keep_alive", json!("1s"))
        .set("/plans/limited", json!({"requests_per_minute": 60}))
        .set("/tenants/0/plan", json!("limited"));
    let gateway = Gateway::start(config);
    let blocker = block(&gateway, 1);
    let mut streams = [
        (PATH, chat_stream("hello"), "x-ratelimit-limit-requests"),
        (
            "/anthropic/v1/messages",
            message_stream("hello"),
            "anthropic-ratelimit-requests-limit",
        ),
    ]
    .map(|(path, body, name)| {
        let mut wire = gateway.connect();
        wire.send(&Request::post(path, &body).key("acme").to_bytes());
        let mut stream = wire.stream();
        assert_eq!(stream.header(name), Some("60"));
        stream.read_until(": waiting\n\n");
        stream
    });
    let remaining = streams[0].header("x-ratelimit-remaining-requests");
    let remaining: u64 = remaining.unwrap().parse().unwrap();
    assert!((57..=59).contains(&remaining), "{remaining}");
    assert!(streams[0].header("x-ratelimit-reset-requests").is_some());
    drop(blocker);
    streams.iter_mut().for_each(|stream| {
        stream.read_until("data: ");
    });
}

fn comments(text: &str) -> usize {
    text.matches(": waiting\n\n").count()
}

#[test]
fn a_stream_that_waits_hears_that_it_does_and_then_gets_the_whole_answer() {
    let emulator = Emulator::quick();
    let gateway = kept_alive(&emulator, &[1]);
    let blocker = block(&gateway, 1);
    let plain = Request::post(PATH, &chat_stream("hello")).key("acme");
    let long = chat_stream(&"x".repeat(100_000));
    let exchanged = Request::post(PATH, &long).key("acme").chunked(30_000);
    let mut streams = [plain, exchanged].map(|request| {
        let mut wire = gateway.connect();
        wire.send(&request.to_bytes());
        wire.stream()
    });
    for stream in &mut streams {
        assert_eq!(stream.status, 200);
        assert_eq!(stream.header("content-type"), Some("text/event-stream"));
        assert_eq!(stream.header("cache-control"), Some("no-store"));
        assert!(stream.header("x-request-id").is_some());
        stream.read_until(": waiting\n\n");
    }
    streams[0].read_until(": waiting\n\n");
    drop(blocker);
    for stream in streams {
        let id = stream.header("x-request-id").unwrap().to_owned();
        let answer = stream.rest();
        assert_eq!(answer.ending, Ending::Whole);
        assert_eq!(answer.data().last().map(String::as_str), Some("[DONE]"));
        assert!(!answer.text().contains("HTTP/1.1"), "{}", answer.text());
        let line = gateway.access_line(&id);
        assert_eq!(
            (&line["status"], &line["ending"]),
            (&json!(200), &json!("complete"))
        );
    }
    assert!(!gateway.log().join("\n").contains("already sent"));
}

#[test]
fn over_http2_too() {
    let emulator = Emulator::quick();
    let gateway = kept_alive(&emulator, &[1]);
    let blocker = block(&gateway, 1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let text = runtime.block_on(async {
        let mut sender = h2::connect(gateway.address()).await;
        let body = h2::sized(Bytes::from(chat_stream("hello").to_string()));
        let mut answer = sender.send_request(h2::post(PATH, body)).await.unwrap();
        assert_eq!(answer.status(), 200);
        let mut text = String::new();
        while comments(&text) < 2 {
            let piece = h2::next_piece(&mut answer).await.unwrap().unwrap();
            text.push_str(&String::from_utf8_lossy(&piece.bytes));
        }
        drop(blocker);
        text + &String::from_utf8_lossy(&h2::whole(answer).await)
    });
    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    assert_eq!(emulator.calls().len(), 2);
}

#[test]
fn a_client_that_does_not_read_its_comments_keeps_no_place_from_the_others() {
    let emulator = Emulator::quick();
    let gateway = kept_alive(&emulator, &[1]);
    let blocker = block(&gateway, 1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (answer, sender) = runtime.block_on(async {
        let mut sender = h2::connect_narrow(gateway.address(), 4).await;
        let body = h2::sized(Bytes::from(chat_stream("hello").to_string()));
        // The head is there, and most of the first comment is not.
        let answer = sender.send_request(h2::post(PATH, body)).await.unwrap();
        (answer, sender)
    });
    let id = answer.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let mut other = ask(&gateway, "acme", &chat("hello"));
    in_flight_are(&gateway, 3);
    let began = Instant::now();
    drop(blocker);
    assert_eq!(other.answer().status, 200);
    assert!(began.elapsed() < Duration::from_secs(5));
    let line = gateway.access_line(&id);
    assert_eq!(line["ending"], json!("client_gone"), "{line}");
    drop((answer, sender));
}

#[test]
fn a_failure_under_a_head_that_was_sent_is_told_as_an_event_without_a_proper_end() {
    let emulator = Emulator::quick();
    let gateway = kept_alive(&emulator, &[1]);
    for (path, body, fault, code, begins) in [
        (
            PATH,
            chat_stream("hi"),
            "status=500",
            "upstream_error",
            "data: {",
        ),
        (
            PATH,
            chat_stream("hi"),
            "status=400",
            "invalid_request",
            "data: {",
        ),
        (
            "/anthropic/v1/messages",
            message_stream("hi"),
            "status=500",
            "upstream_error",
            "event: error\n",
        ),
    ] {
        emulator.order(None, "");
        let blocker = block(&gateway, 1);
        emulator.order(None, fault);
        let mut wire = gateway.connect();
        wire.send(&Request::post(path, &body).key("acme").to_bytes());
        let mut stream = wire.stream();
        stream.read_until(": waiting\n\n");
        drop(blocker);
        let answer = stream.rest();
        assert_eq!(answer.status, 200);
        let text = answer.text();
        let text = text.trim_start_matches(": waiting\n\n");
        assert!(text.starts_with(begins), "{text}");
        assert!(text.contains(code) && !text.contains("[DONE]"), "{text}");
        if fault == "status=500" {
            assert_eq!(answer.ending, Ending::Broken);
        }
    }
}

#[test]
fn attempts_go_on_elsewhere_under_a_head_that_was_sent() {
    let emulator = Emulator::start(Emulator::with_accounts(2));
    let gateway = kept_alive(&emulator, &[1, 1]);
    let blockers = block(&gateway, 2);
    let mut wire = gateway.connect();
    let body = chat_stream("[[fault:status=500,times=1]] hello");
    wire.send(&Request::post(PATH, &body).key("acme").to_bytes());
    let mut stream = wire.stream();
    stream.read_until(": waiting\n\n");
    drop(blockers);
    let answer = stream.rest();
    assert_eq!(answer.ending, Ending::Whole);
    assert_eq!(answer.data().last().map(String::as_str), Some("[DONE]"));
    assert_eq!(emulator.calls().len(), 4);
}

#[test]
fn a_hidden_limit_of_the_provider_is_learned() {
    let mut config = Emulator::with_accounts(1);
    let account = &mut config.accounts[0];
    account.concurrency.insert("deepseek-flash".to_owned(), 4);
    let emulator = Emulator::start(config);
    let config = places(&emulator, 40).set("/upstreams/0/governor", json!({"recovery": "1m"}));
    let gateway = Gateway::start(config);
    let body = chat("[[fault:first_token=50ms]] hi");
    let mut statuses = [0; 2];
    for _ in 0..6 {
        let mut wires: Vec<_> = (0..20).map(|_| ask(&gateway, "acme", &body)).collect();
        for wire in &mut wires {
            statuses[usize::from(wire.answer().status != 200)] += 1;
        }
    }
    let status = gateway.status();
    let lanes = status["upstreams"][0]["in_flight"].as_array().unwrap();
    let learned = lanes.iter().find(|lane| lane["model"] == "deepseek-flash");
    let ceiling = learned.unwrap()["ceiling"].as_u64().unwrap();
    assert!((1..=5).contains(&ceiling), "{ceiling} {statuses:?}");
    // The first twenty at once could not know; after them, next to nobody was refused.
    assert!(statuses[1] <= 30, "{statuses:?}");
}
