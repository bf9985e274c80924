//! A plan may have answers read on when their caller leaves: what they really cost is then known,
//! and whoever leaves early does not pay by guess.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::*;

const CHAT: &str = "/v1/chat/completions";
/// Half a second of an answer.
const SLOW: &str = "token_delay=25ms,tokens=20";
/// The same, with time to leave before the first token.
const LATE: &str = "first_token=400ms,token_delay=5ms,tokens=20";

/// The tenant `acme` has a plan that drains for at most `timeout`, and `limited` one that does not.
fn stage(timeout: &str) -> (Emulator, Gateway) {
    stage_with(Emulator::quick(), timeout, json!({}))
}

fn stage_with(emulator: Emulator, timeout: &str, more: Value) -> (Emulator, Gateway) {
    let mut plan = more;
    plan["on_disconnect"] = json!("drain");
    plan["drain_timeout"] = json!(timeout);
    let config = Config::for_emulator(&emulator)
        .set("/plans/drains", plan)
        .set("/tenants/0/plan", json!("drains"));
    let gateway = Gateway::start(config);
    (emulator, gateway)
}

fn streamed(order: &str) -> Value {
    chat_stream(&format!("[[fault:{order}]] tell me"))
}

fn in_one_piece(order: &str) -> Value {
    chat(&format!("[[fault:{order}]] tell me"))
}

fn with_filler(body: Value) -> Value {
    with(body, "x_filler", json!("x".repeat(300_000)))
}

/// The access line of a call of the emulator's.
fn line_of(gateway: &Gateway, call: &Value) -> Value {
    gateway.access_line(header_of(call, "x-request-id").unwrap())
}

/// The upstream answered to the end, and the caller who had left is charged what it billed.
fn is_charged_exactly(what: &str, emulator: &Emulator, gateway: &Gateway) -> Value {
    let call = emulator.call_ended("complete");
    let line = line_of(gateway, &call);
    assert_eq!(line["ending"], "client_gone", "{what}: {line}");
    assert_eq!(line.get("usage_estimated"), None, "{what}: {line}");
    for (ours, theirs) in [
        ("prompt_tokens", "prompt"),
        ("cached_tokens", "cached"),
        ("completion_tokens", "completion"),
        ("reasoning_tokens", "reasoning"),
    ] {
        if ours == "reasoning_tokens" && line["surface"] == "messages" {
            // This format tells it with the rest.
            continue;
        }
        assert_eq!(line[ours], call["usage"][theirs], "{what}: {line} {call}");
    }
    assert!(call["usage"]["completion"].as_u64().unwrap() >= 20);
    line
}

fn nothing_is_held(gateway: &Gateway) {
    eventually("nothing is held", SOON, || {
        let in_flight = gateway.metric("tidegate_requests_in_flight", &[]);
        let bytes = gateway.metric("tidegate_request_body_buffer_bytes", &[]);
        (in_flight == 0.0 && bytes == 0.0).then_some(())
    });
    assert!(gateway.is_serving());
}

#[test]
fn an_answer_whose_client_left_over_http_1_is_read_to_its_end() {
    let (emulator, gateway) = stage("30s");
    over_http_1(&emulator, &gateway);
}

#[test]
fn an_answer_over_http_2_whose_client_left_is_read_to_its_end() {
    let (emulator, gateway) = stage("30s");
    let over_http_2 = |config: Config| config.set("/upstreams/0/protocol", json!("http2"));
    assert_eq!(gateway.reload(over_http_2), "ok");
    over_http_1(&emulator, &gateway);
}

/// Clients leave in the middle of an answer, and before it.
fn over_http_1(emulator: &Emulator, gateway: &Gateway) {
    let post = |body: &Value| Request::post(CHAT, body);
    for (what, request) in [
        ("a stream", post(&streamed(SLOW))),
        ("a large body", post(&with_filler(streamed(SLOW)))),
        (
            "a large chunked body",
            post(&with_filler(streamed(SLOW))).chunked(90_000),
        ),
        (
            "a message",
            Request::post(
                "/anthropic/v1/messages",
                &message_stream(&format!("[[fault:{SLOW}]] hi")),
            ),
        ),
    ] {
        emulator.forget_calls();
        let mut stream = request.key("acme").stream(gateway.address());
        stream.read_until("data: ");
        drop(stream);
        let line = is_charged_exactly(what, emulator, gateway);
        assert_eq!(line["status"], 200, "{what}");
    }
    for (what, request) in [
        ("a stream", post(&streamed(LATE))),
        (
            "a stream in the queue",
            post(&streamed("queue=400ms,tokens=20")),
        ),
        ("an answer in one piece", post(&in_one_piece(LATE))),
        ("a chunked question", post(&in_one_piece(LATE)).chunked(50)),
    ] {
        emulator.forget_calls();
        let mut wire = gateway.connect();
        wire.send(&request.key("acme").to_bytes());
        emulator.call_once("the call", |_| true);
        drop(wire);
        is_charged_exactly(
            &format!("before the first token: {what}"),
            emulator,
            gateway,
        );
    }
    nothing_is_held(gateway);
    let cut = gateway.metric("tidegate_attempts_total", &["outcome=\"client_gone\""]);
    assert_eq!(cut, 0.0);
}

#[test]
fn an_answer_whose_client_left_over_http_2_is_read_to_its_end() {
    let (emulator, gateway) = stage("30s");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut sender = runtime.block_on(h2::connect(gateway.address()));
    let small = Bytes::from(streamed(SLOW).to_string());
    let large = Bytes::from(with_filler(streamed(SLOW)).to_string());
    for (what, body) in [
        ("a stream", h2::sized(small)),
        ("a large body", h2::sized(large.clone())),
        ("a large body without a length", h2::unsized_(large, 50_000)),
    ] {
        emulator.forget_calls();
        runtime.block_on(async {
            let mut answer = sender.send_request(h2::post(CHAT, body)).await.unwrap();
            h2::next_piece(&mut answer).await.unwrap().unwrap();
            drop(answer);
            // The reset is written by the connection's own task.
            tokio::time::sleep(Duration::from_millis(20)).await;
        });
        is_charged_exactly(what, &emulator, &gateway);
    }
    emulator.forget_calls();
    runtime.block_on(async {
        let body = h2::sized(Bytes::from(in_one_piece(LATE).to_string()));
        let answer = sender.send_request(h2::post(CHAT, body));
        let early = tokio::time::timeout(Duration::from_millis(200), answer).await;
        assert!(early.is_err());
        tokio::time::sleep(Duration::from_millis(20)).await;
    });
    let line = is_charged_exactly("before the answer", &emulator, &gateway);
    assert_eq!(line["status"], 0, "{line}");
    // The connection goes on, and then goes with a request on it.
    emulator.forget_calls();
    runtime.block_on(async {
        let body = h2::sized(Bytes::from(streamed(SLOW).to_string()));
        let mut answer = sender.send_request(h2::post(CHAT, body)).await.unwrap();
        h2::next_piece(&mut answer).await.unwrap().unwrap();
    });
    runtime.shutdown_background();
    is_charged_exactly("a lost connection", &emulator, &gateway);
    nothing_is_held(&gateway);
}

#[test]
fn a_client_that_stops_reading_has_its_answer_read_on() {
    let emulator = Emulator::quick();
    let plan = json!({"on_disconnect": "drain", "drain_timeout": "30s"});
    let config = Config::for_emulator(&emulator)
        .set("/plans/drains", plan)
        .set("/tenants/0/plan", json!("drains"))
        .limit("write_timeout", "300ms");
    let gateway = Gateway::start(config);
    let mut wire = gateway.connect();
    // More than all buffers on the way take.
    let body = streamed("tokens=32768,burst=256");
    wire.send(&Request::post(CHAT, &body).key("acme").to_bytes());
    let call = eventually("the answer's end", 6 * SOON, || {
        let call = emulator.calls().pop()?;
        (call["outcome"] == "complete").then_some(call)
    });
    let line = line_of(&gateway, &call);
    assert_eq!(line["ending"], "client_gone", "{line}");
    assert_eq!(line["completion_tokens"], call["usage"]["completion"]);
    assert_eq!(line.get("usage_estimated"), None, "{line}");
    // What it got does not look whole.
    let stream = wire.stream();
    assert_eq!(stream.rest().ending, Ending::Broken);
    nothing_is_held(&gateway);
}

#[test]
fn without_such_a_plan_the_upstream_sees_the_client_go_at_once() {
    let (emulator, gateway) = stage("30s");
    let body = streamed("token_delay=100ms,tokens=200");
    let request = Request::post(CHAT, &body).key("limited");
    let mut stream = request.stream(gateway.address());
    stream.read_until("data: ");
    drop(stream);
    let left = Instant::now();
    let call = emulator.call_ended("client_gone");
    assert!(left.elapsed() < Duration::from_secs(2));
    let line = line_of(&gateway, &call);
    assert_eq!(
        (&line["ending"], &line["usage_estimated"]),
        (&json!("client_gone"), &json!(true))
    );
}

#[test]
fn an_upstream_that_never_ends_is_given_up_after_the_timeout() {
    let (emulator, gateway) = stage("700ms");
    for (order, starts) in [("tokens=20,stall_after=5", true), ("stall", false)] {
        emulator.forget_calls();
        let mut wire = gateway.connect();
        let request = Request::post(CHAT, &streamed(order)).key("acme");
        wire.send(&request.to_bytes());
        if starts {
            let mut stream = wire.stream();
            stream.read_until("data: ");
            drop(stream);
        } else {
            emulator.call_once("the call", |_| true);
            drop(wire);
        }
        let left = Instant::now();
        let call = emulator.call_ended("client_gone");
        let waited = left.elapsed();
        assert!(waited >= Duration::from_millis(600), "{order}: {waited:?}");
        assert!(waited < Duration::from_secs(4), "{order}: {waited:?}");
        let line = line_of(&gateway, &call);
        assert_eq!(line["ending"], "client_gone", "{line}");
        assert_eq!(line["usage_estimated"], true, "{line}");
    }
    nothing_is_held(&gateway);
}

#[test]
fn an_upstream_that_fails_while_it_is_drained_is_not_asked_again() {
    let (emulator, gateway) = stage_with(
        Emulator::start(Emulator::with_accounts(2)),
        "30s",
        json!({}),
    );
    // Nobody is told of the cut, and what was made until then is charged by estimate.
    let body = streamed("token_delay=25ms,tokens=20,cut_after=12");
    let mut stream = Request::post(CHAT, &body)
        .key("acme")
        .stream(gateway.address());
    stream.read_until("data: ");
    drop(stream);
    let call = emulator.call_once("a cut", |call| call["outcome"] == "fault");
    let line = line_of(&gateway, &call);
    assert_eq!(line["ending"], "client_gone", "{line}");
    assert_eq!(line["usage_estimated"], true, "{line}");
    assert_eq!(emulator.calls().len(), 1);
    // An upstream that breaks off before its answer has done nothing.
    emulator.forget_calls();
    let mut wire = gateway.connect();
    let body = in_one_piece("first_token=400ms,cut_after=0");
    wire.send(&Request::post(CHAT, &body).key("acme").to_bytes());
    emulator.call_once("the call", |_| true);
    drop(wire);
    let call = emulator.call_once("a cut", |call| call["outcome"] == "fault");
    let line = line_of(&gateway, &call);
    assert_eq!(line["ending"], "client_gone", "{line}");
    assert_eq!(line.get("completion_tokens"), None, "{line}");
    assert_eq!(emulator.calls().len(), 1);
}

#[test]
fn a_client_that_stays_gets_the_same_answer_and_keeps_its_connection() {
    let (emulator, gateway) = stage("30s");
    // But for what differs from answer to answer.
    let told = |answer: &Answer| {
        let mut fields = answer.headers.clone();
        fields.retain(|(name, _)| !["date", "x-request-id"].contains(&name.as_str()));
        let mut text = answer.text();
        for (from, to) in [
            ("\"id\":\"", "\""),
            ("\"request_id\":\"", "\""),
            ("\"created\":", ","),
        ] {
            while let Some((before, after)) = text.split_once(from) {
                let after = after.split_once(to).unwrap().1;
                text = format!("{before}{after}");
            }
        }
        (answer.status, fields, text)
    };
    for (what, body) in [
        ("a stream", chat_stream("hello")),
        ("an answer in one piece", chat("hello")),
        ("a large body", with_filler(chat("hello"))),
        (
            "a refused body",
            with(chat("hello"), "temperature", json!(-9)),
        ),
        ("a failing upstream", chat("[[fault:status=500]]")),
    ] {
        let mut drained = gateway.connect();
        let mut plain = gateway.connect();
        for _ in 0..2 {
            let request = Request::post(CHAT, &body);
            let with_drain = drained.ask(&request.key("acme"));
            let without = plain.ask(&Request::post(CHAT, &body).key("limited"));
            assert_eq!(told(&with_drain), told(&without), "{what}");
            if with_drain.status >= 500 {
                break;
            }
        }
    }
    let mut wire = gateway.connect();
    let request = Request::post(CHAT, &chat("hello")).header("expect", "100-continue");
    let request = request.key("acme");
    wire.send(&request.head());
    wire.send_after_continue(&request.framed_body());
    assert_eq!(wire.answer().status, 200);
    assert_eq!(emulator.in_flight(), 0);
    nothing_is_held(&gateway);
}

#[test]
fn another_attempt_sends_the_whole_body_again() {
    let (emulator, gateway) = stage_with(
        Emulator::start(Emulator::with_accounts(2)),
        "30s",
        json!({}),
    );
    let body = with_filler(chat("[[fault:status=503,times=1]] hi"));
    for chunked in [false, true] {
        emulator.forget_calls();
        let request = Request::post(CHAT, &with(body.clone(), "x_chunked", json!(chunked)));
        let request = if chunked {
            request.chunked(90_000)
        } else {
            request
        };
        let answer = request.key("acme").send(gateway.address());
        let calls = emulator.calls();
        assert_eq!(answer.status, 200, "{}", answer.text());
        if calls.len() == 2 {
            assert_eq!(calls[0]["body_fnv"], calls[1]["body_fnv"]);
        }
        assert!(
            calls
                .iter()
                .all(|call| call["body_bytes"].as_u64() > Some(300_000))
        );
        if !chunked {
            assert_eq!(calls.len(), 2, "{calls:#?}");
        }
    }
}

#[test]
fn a_stop_waits_for_what_is_drained() {
    let (emulator, gateway) = stage("30s");
    let request = Request::post(CHAT, &streamed("token_delay=50ms,tokens=30"));
    let mut stream = request.key("acme").stream(gateway.address());
    stream.read_until("data: ");
    drop(stream);
    gateway.signal("TERM");
    assert!(gateway.exit(SOON).success());
    let call = emulator.call();
    assert_eq!(call["outcome"], "complete", "{call}");
    let line = line_of(&gateway, &call);
    assert_eq!(line["completion_tokens"], call["usage"]["completion"]);
}

#[test]
fn a_place_in_the_plan_is_held_until_the_drain_ends() {
    let (emulator, gateway) = stage_with(Emulator::quick(), "30s", json!({"max_concurrent": 1}));
    let ask = || {
        let request = Request::post(CHAT, &chat("hi")).key("acme");
        request.send(gateway.address()).status
    };
    let request = Request::post(CHAT, &streamed("token_delay=50ms,tokens=30"));
    let mut stream = request.key("acme").stream(gateway.address());
    stream.read_until("data: ");
    drop(stream);
    // Long enough for the departure to be noticed, and a good second before the end.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(ask(), 429);
    emulator.call_ended("complete");
    eventually("the place is given back", SOON, || {
        (ask() == 200).then_some(())
    });
}
