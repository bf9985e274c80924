//! Each clock of a request, by what the tenant sees when it runs out: before content another
//! attempt that nobody notices, after it a stream that says that it broke. Keep-alives stop none.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate::emulator::EmulatorConfig;

use crate::support::hostile::Deaf;
use crate::support::*;

const PATH: &str = "/v1/chat/completions";
/// Longer than any clock here, shorter than what is ordered to hang.
const SOON: Duration = Duration::from_secs(5);

/// Two accounts behind a gateway with these deadlines; the others are far away.
fn with_timeouts(timeouts: &Value) -> (Emulator, Gateway) {
    let emulator = Emulator::start(Emulator::with_accounts(2));
    let mut all = json!({
        "read": "20s",
        "first_byte": "20s",
        "queued": "20s",
        "first_content": "20s",
        "gap": "20s",
        "total": "20s",
    });
    if let Some(total) = timeouts.get("total") {
        // No part is longer than the whole.
        for name in ["first_byte", "queued", "first_content", "gap"] {
            all[name] = total.clone();
        }
    }
    for (name, value) in timeouts.as_object().unwrap() {
        all[name] = value.clone();
    }
    let config = Config::for_emulator(&emulator).set("/upstreams/0/timeouts", all);
    let gateway = Gateway::start(config);
    (emulator, gateway)
}

fn streamed(order: &str) -> Value {
    chat_stream(&format!("[[fault:{order}]] tell me"))
}

fn in_one_piece(order: &str) -> Value {
    chat(&format!("[[fault:{order}]] tell me"))
}

/// The answer, which must come while clocks of seconds have not run out.
fn soon(gateway: &Gateway, body: &Value) -> Answer {
    let began = Instant::now();
    let answer = gateway.stream(PATH, body).rest();
    let took = began.elapsed();
    assert!(took < SOON, "took {took:?}: {body}");
    answer
}

/// Served whole at the second attempt, and nothing tells of the first.
fn is_served_by_another(emulator: &Emulator, answer: &Answer, stream: bool) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.ending, Ending::Whole);
    assert!(!answer.text().contains("error"), "{}", answer.text());
    if stream {
        assert_eq!(answer.data().last().unwrap(), "[DONE]");
        let roles = answer.events();
        let roles = roles
            .iter()
            .filter(|event| !event["choices"][0]["delta"]["role"].is_null());
        assert_eq!(roles.count(), 1, "{}", answer.text());
    } else {
        assert!(answer.json()["choices"][0]["message"]["content"].is_string());
    }
    let calls = emulator.calls();
    assert_eq!(calls.len(), 2);
    assert_ne!(calls[0]["account"], calls[1]["account"]);
}

/// Broken off after content, told so, and never ended as if whole.
fn is_visibly_broken(emulator: &Emulator, answer: &Answer) {
    let text = answer.text();
    assert_eq!(answer.status, 200, "{text}");
    let events = answer.events();
    let last = events.last().unwrap();
    assert_eq!(last["error"]["code"], "stream_interrupted", "{text}");
    assert!(!text.contains("[DONE]"), "{text}");
    assert_eq!(answer.ending, Ending::Broken);
    assert_eq!(emulator.calls().len(), 1);
}

/// Refused as late, without another attempt.
fn has_run_out_of_time(emulator: &Emulator, answer: &Answer) {
    let text = answer.text();
    assert_eq!(answer.status, 504, "{text}");
    assert_eq!(answer.code(), "upstream_timeout", "{text}");
    assert_eq!(emulator.calls().len(), 1);
}

#[test]
fn a_stream_without_a_head_in_time_begins_at_another_account() {
    let (emulator, gateway) = with_timeouts(&json!({"first_byte": "500ms"}));
    let answer = soon(&gateway, &streamed("stall,times=1"));
    is_served_by_another(&emulator, &answer, true);
}

#[test]
fn an_answer_in_one_piece_without_a_head_in_time_to_read_comes_from_another_account() {
    let (emulator, gateway) = with_timeouts(&json!({"read": "500ms"}));
    let answer = soon(&gateway, &in_one_piece("stall,times=1"));
    is_served_by_another(&emulator, &answer, false);
}

#[test]
fn whoever_waits_behind_keep_alives_for_too_long_is_served_elsewhere() {
    for stream in [true, false] {
        let (emulator, gateway) = with_timeouts(&json!({"queued": "500ms"}));
        let order = "queue=30s,times=1";
        let body = if stream {
            streamed(order)
        } else {
            in_one_piece(order)
        };
        let answer = soon(&gateway, &body);
        is_served_by_another(&emulator, &answer, stream);
    }
}

#[test]
fn a_role_is_no_content() {
    let (emulator, gateway) = with_timeouts(&json!({"first_content": "700ms"}));
    let order = "queue=300ms,stall_after=1,times=1";
    let answer = soon(&gateway, &streamed(order));
    is_served_by_another(&emulator, &answer, true);
}

#[test]
fn a_stream_that_falls_silent_after_content_ends_as_broken() {
    let (emulator, gateway) = with_timeouts(&json!({"gap": "500ms"}));
    let answer = soon(&gateway, &streamed("stall_after=6,tokens=40,times=1"));
    is_visibly_broken(&emulator, &answer);
}

#[test]
fn content_that_comes_slower_than_in_all_but_within_the_gap_is_waited_for() {
    let (emulator, gateway) = with_timeouts(&json!({
        "first_byte": "600ms", "queued": "600ms", "first_content": "600ms", "gap": "600ms",
    }));
    let answer = soon(&gateway, &streamed("token_delay=100ms,tokens=20"));
    assert_eq!(answer.data().last().unwrap(), "[DONE]");
    assert_eq!(emulator.calls().len(), 1);
}

#[test]
fn an_answer_in_one_piece_may_take_its_time() {
    let (emulator, gateway) = with_timeouts(&json!({
        "first_byte": "500ms", "queued": "500ms", "first_content": "500ms", "gap": "500ms",
    }));
    let order = "queue=200ms,token_delay=100ms,tokens=20";
    let answer = soon(&gateway, &in_one_piece(order));
    assert_eq!((answer.status, answer.ending), (200, Ending::Whole));
    assert_eq!(emulator.calls().len(), 1);
}

#[test]
fn the_time_of_a_request_is_up_for_all_attempts_at_once() {
    for body in [streamed("queue=30s"), in_one_piece("queue=30s")] {
        let (emulator, gateway) = with_timeouts(&json!({"total": "1s"}));
        let answer = soon(&gateway, &body);
        has_run_out_of_time(&emulator, &answer);
    }
}

#[test]
fn a_stream_whose_time_is_up_after_content_ends_as_broken() {
    let (emulator, gateway) = with_timeouts(&json!({"total": "1s"}));
    let answer = soon(&gateway, &streamed("token_delay=50ms,tokens=400"));
    is_visibly_broken(&emulator, &answer);
}

#[test]
fn a_client_can_shorten_the_time_of_its_request() {
    for (body, time) in [
        (streamed("queue=30s"), "500ms"),
        (in_one_piece("queue=30s"), "0.5"),
        (streamed("stall"), "1s"),
        (in_one_piece("stall"), "1"),
    ] {
        let (emulator, gateway) = with_timeouts(&json!({}));
        let began = Instant::now();
        let request = Request::post(PATH, &body).key("acme");
        let request = request.header("x-tidegate-timeout", time);
        let answer = request.send(gateway.address());
        assert!(began.elapsed() < SOON, "{body}");
        has_run_out_of_time(&emulator, &answer);
        // Nor is its deadline anybody else's business.
        let call = &emulator.calls()[0];
        assert_eq!(header_of(call, "x-tidegate-timeout"), None);
    }
}

#[test]
fn a_client_cannot_lengthen_the_time_of_its_request() {
    let (emulator, gateway) = with_timeouts(&json!({"total": "1s"}));
    let body = streamed("token_delay=50ms,tokens=400");
    let began = Instant::now();
    let request = Request::post(PATH, &body).key("acme");
    let request = request.header("x-tidegate-timeout", "1000m");
    let answer = request.stream(gateway.address()).rest();
    assert!(began.elapsed() < SOON);
    is_visibly_broken(&emulator, &answer);
}

#[test]
fn a_deadline_that_is_not_understood_is_the_clients_mistake() {
    let (emulator, gateway) = with_timeouts(&json!({}));
    for time in ["soon", "0", "50ms", "-1", "1h", "30s, 30s"] {
        let request = Request::post(PATH, &chat("hi")).key("acme");
        let request = request.header("x-tidegate-timeout", time);
        let answer = request.send(gateway.address());
        let told = (answer.status, answer.code());
        assert_eq!(told, (400, "invalid_request".to_owned()), "{time}");
        assert!(answer.text().contains("x-tidegate-timeout"), "{time}");
    }
    let twice = Request::post(PATH, &chat("hi")).key("acme");
    let twice = twice.header("x-tidegate-timeout", "30s");
    let answer = twice
        .header("x-tidegate-timeout", "30s")
        .send(gateway.address());
    assert_eq!(answer.status, 400);
    assert_eq!(emulator.calls().len(), 0);
}

#[test]
fn tenants_in_a_hurry_put_nobody_out() {
    let emulator = Emulator::start(EmulatorConfig {
        first_token_delay: Duration::from_millis(400),
        ..Emulator::with_accounts(3)
    });
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let hurried = |streamed: bool, time: &str| {
        let body = with(chat("The same for all."), "stream", json!(streamed));
        let request = Request::post("/v1/chat/completions", &body);
        request.key("acme").header("x-tidegate-timeout", time)
    };
    let to = gateway.address();
    std::thread::scope(|scope| {
        // What is usual: enough at each account for it to be held against the others.
        for thread in 0..10 {
            scope.spawn(move || {
                for round in 0..5 {
                    let question = chat_stream(&format!("Question {thread} {round}."));
                    let request = Request::post("/v1/chat/completions", &question);
                    assert_eq!(request.key("acme").send(to).status, 200);
                }
            });
        }
    });
    std::thread::scope(|scope| {
        // Out of step, so that somebody waits at any moment.
        let times = ["180ms", "210ms", "240ms", "270ms", "300ms", "330ms"];
        for (index, time) in times.into_iter().enumerate() {
            let request = hurried(index != 0, time);
            scope.spawn(move || {
                // Long enough for a silence of seconds, if it were taken for one.
                for _ in 0..40 {
                    assert_eq!(request.send(to).status, 504);
                }
            });
        }
    });
    let moved = gateway.metric("tidegate_upstream_transitions_total", &[]);
    assert_eq!(moved, 0.0, "{}", gateway.metrics());
    assert_eq!(
        gateway.post("/v1/chat/completions", &chat("hi")).status,
        200
    );
}

#[test]
fn tenants_in_a_hurry_take_no_endpoint_out_by_not_waiting_for_a_connection() {
    let deaf = Deaf::new();
    let accounts = [("main".to_owned(), "sk-x".to_owned())];
    let config = Config::for_urls(&[deaf.url()], &accounts)
        .set("/upstreams/0/health", json!(false))
        .set(
            "/upstreams/0/timeouts",
            json!({"connect": "500ms", "connect_total": "500ms"}),
        );
    let gateway = Gateway::start(config);
    let ask = |hurry: bool| {
        let request = Request::post(PATH, &chat_stream("hi")).key("acme");
        let answer = match hurry {
            true => request.header("x-tidegate-timeout", "100ms"),
            false => request,
        }
        .send(gateway.address());
        (answer.status, answer.code())
    };
    for _ in 0..6 {
        assert_eq!(ask(true), (504, "upstream_timeout".to_owned()));
    }
    let healthy = || gateway.metric("tidegate_upstream_endpoint_healthy", &[]);
    assert_eq!(healthy(), 1.0, "{}", gateway.metrics());
    // Whoever waits as long as a connection may take finds out.
    eventually("it is out", Duration::from_secs(30), || {
        assert_eq!(ask(false), (503, "upstream_unavailable".to_owned()));
        (healthy() == 0.0).then_some(())
    });
}
