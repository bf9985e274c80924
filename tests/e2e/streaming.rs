//! A stream is passed on event by event, ends upstream when its client leaves, and never looks
//! whole when it is not.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::hostile::Hostile;
use crate::support::*;

/// A chat whose answer takes its time.
fn slow(order: &str) -> Value {
    chat_stream(&format!("[[fault:{order}]] tell me"))
}

/// With a filler that is too long for one read and for Pingora's replay buffer.
fn with_filler(body: Value) -> Value {
    with(body, "x_filler", json!("x".repeat(300_000)))
}

/// Checks that pieces came over time and not in one go: ten tokens at 50 ms take half a second.
fn came_one_by_one(times: &[Instant]) {
    let (first, last) = (times[0], times[times.len() - 1]);
    let took = last.duration_since(first);
    assert!(times.len() >= 8, "{} pieces", times.len());
    assert!(
        took >= Duration::from_millis(350),
        "all pieces within {took:?}"
    );
    let mut gaps: Vec<_> = times
        .windows(2)
        .map(|pair| pair[1].duration_since(pair[0]))
        .collect();
    gaps.sort_unstable();
    let typical = gaps[gaps.len() / 2];
    assert!(typical >= Duration::from_millis(20), "held back: {gaps:?}");
}

#[test]
fn events_arrive_one_by_one_over_http_1() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let order = "token_delay=50ms,tokens=10";
    for (path, body, chunked) in [
        ("/v1/chat/completions", slow(order), false),
        ("/v1/chat/completions", with_filler(slow(order)), true),
        (
            "/anthropic/v1/messages",
            message_stream(&format!("[[fault:{order}]] hi")),
            false,
        ),
    ] {
        let request = Request::post(path, &body).key("acme");
        let request = if chunked {
            request.chunked(100_000)
        } else {
            request
        };
        let mut stream = request.stream(gateway.address());
        let mut times = Vec::new();
        while let Some(piece) = stream.next_piece() {
            times.push(piece.at);
        }
        assert_eq!(stream.ending, Some(Ending::Whole));
        came_one_by_one(&times);
    }
}

#[test]
fn events_arrive_one_by_one_over_http_2() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut sender = h2::connect(gateway.address()).await;
        let small = Bytes::from(slow("token_delay=50ms,tokens=10").to_string());
        let large = Bytes::from(with_filler(slow("token_delay=50ms,tokens=10")).to_string());
        for body in [h2::sized(small), h2::unsized_(large, 50_000)] {
            let request = h2::post("/v1/chat/completions", body);
            let mut answer = sender.send_request(request).await.unwrap();
            let mut times = Vec::new();
            while let Some(piece) = h2::next_piece(&mut answer).await {
                times.push(piece.unwrap().at);
            }
            came_one_by_one(&times);
        }
    });
}

#[test]
fn keep_alives_of_a_queued_request_pass_through_at_once_if_no_head_is_held_back() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).set("/retry/hold_head", json!("0s"));
    let gateway = Gateway::start(config);
    let mut stream = gateway.stream("/v1/chat/completions", &slow("queue=1s,tokens=5"));
    let began = Instant::now();
    assert_eq!(stream.read_until(": keep-alive\n\n"), ": keep-alive\n\n");
    assert!(began.elapsed() < Duration::from_millis(500));
    let answer = stream.rest();
    assert!(answer.text().matches(": keep-alive").count() >= 5);
    assert_eq!(answer.data().last().unwrap(), "[DONE]");
}

#[test]
fn a_head_is_held_back_with_its_keep_alives_and_no_longer_than_it_may() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).set("/retry/hold_head", json!("500ms"));
    let gateway = Gateway::start(config);
    let began = Instant::now();
    let mut stream = gateway.stream("/v1/chat/completions", &slow("queue=1500ms,tokens=5"));
    stream.read_until(": keep-alive\n\n");
    let took = began.elapsed();
    let held = Duration::from_millis(450)..Duration::from_millis(1_200);
    assert!(held.contains(&took), "{took:?}");
    let answer = stream.rest();
    assert!(answer.text().matches(": keep-alive").count() >= 5);
    assert_eq!(answer.data().last().unwrap(), "[DONE]");
    // Content ends the hold before its time.
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let began = Instant::now();
    let mut stream = gateway.stream("/v1/chat/completions", &slow("queue=300ms,stall_after=6"));
    stream.read_until("data: ");
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_client_that_leaves_over_http_1_is_seen_by_the_upstream_within_a_second() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let order = "token_delay=100ms,tokens=200";
    for (what, request) in [
        (
            "a small body",
            Request::post("/v1/chat/completions", &slow(order)),
        ),
        (
            "a large body",
            Request::post("/v1/chat/completions", &with_filler(slow(order))),
        ),
        (
            "a large chunked body",
            Request::post("/v1/chat/completions", &with_filler(slow(order))).chunked(90_000),
        ),
        (
            "an answer in one piece",
            Request::post("/v1/chat/completions", &chat(&format!("[[fault:{order}]]"))),
        ),
        (
            "a silent upstream",
            Request::post("/v1/chat/completions", &slow("stall")),
        ),
    ] {
        emulator.forget_calls();
        let mut wire = gateway.connect();
        wire.send(&request.key("acme").to_bytes());
        if what.contains("body") {
            let mut stream = wire.stream();
            stream.read_until("data: ");
            drop(stream);
        } else {
            emulator.call_once("the call", |_| true);
            drop(wire);
        }
        let left = Instant::now();
        emulator.call_ended("client_gone");
        assert!(
            left.elapsed() < Duration::from_secs(1),
            "{what}: {:?}",
            left.elapsed()
        );
        eventually("no request is in flight", SOON, || {
            let in_flight = gateway.metric("tidegate_requests_in_flight", &[]);
            (in_flight == 0.0 && emulator.in_flight() == 0).then_some(())
        });
    }
    let gone = gateway.metric("tidegate_client_disconnects_total", &["surface=\"chat\""]);
    assert_eq!(gone, 5.0);
    gateway.logged(&["\"ending\":\"client_gone\""]);
    assert!(gateway.is_serving());
}

#[test]
fn a_client_that_leaves_over_http_2_is_seen_by_the_upstream_within_a_second() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let small = Bytes::from(slow("token_delay=100ms,tokens=200").to_string());
    let large = Bytes::from(with_filler(slow("token_delay=100ms,tokens=200")).to_string());
    let mut sender = runtime.block_on(h2::connect(gateway.address()));
    for body in [
        h2::sized(small.clone()),
        h2::sized(large.clone()),
        h2::unsized_(large, 50_000),
    ] {
        emulator.forget_calls();
        runtime.block_on(async {
            let request = h2::post("/v1/chat/completions", body);
            let mut answer = sender.send_request(request).await.unwrap();
            h2::next_piece(&mut answer).await.unwrap().unwrap();
            drop(answer);
            // The reset is written by the connection's own task.
            tokio::time::sleep(Duration::from_millis(20)).await;
        });
        let left = Instant::now();
        emulator.call_ended("client_gone");
        assert!(
            left.elapsed() < Duration::from_secs(1),
            "{:?}",
            left.elapsed()
        );
    }
    // The connection goes on.
    let status = runtime.block_on(async {
        let body = h2::sized(Bytes::from(chat("hello").to_string()));
        let request = h2::post("/v1/chat/completions", body);
        sender.send_request(request).await.unwrap().status()
    });
    assert_eq!(status, 200);
}

/// What a client may see of a stream that broke off: no proper end, and one error event.
fn is_told(what: &str, text: &str, anthropic: bool) {
    assert!(!text.contains("[DONE]"), "{what}: {text}");
    assert!(!text.contains("message_stop"), "{what}: {text}");
    assert!(!text.contains("response.completed"), "{what}: {text}");
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = data
        .filter_map(|data| serde_json::from_str(data).ok())
        .collect();
    let errors: Vec<_> = events
        .iter()
        .filter(|event| event["error"].is_object())
        .collect();
    assert_eq!(errors.len(), 1, "{what}: {text}");
    assert_eq!(
        events.last(),
        errors.first().copied(),
        "{what}: something after the error"
    );
    if anthropic {
        assert!(text.contains("event: error\n"), "{what}: {text}");
        assert_eq!(errors[0]["type"], "error");
    }
}

#[test]
fn an_error_event_is_told_in_our_words_wherever_it_stands() {
    const SAID: &str =
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"no error yet\"}}]}\n\n";
    const ERROR: &str = "data: {\"error\":{\"message\":\"account sk-1 at node 7\"}}";
    for (what, body) in [
        ("behind content", [SAID, ERROR, "\n\n"].concat()),
        ("before content", [SAID, ERROR, "\n\n", SAID].concat()),
        ("without its blank line", [SAID, ERROR, "\n"].concat()),
        ("without its line's end", [SAID, ERROR].concat()),
    ] {
        // Counted, and in chunks that cut the error, with an end that comes by itself.
        let counted = format!("content-length: {}\r\n\r\n{body}", body.len());
        let (first, second) = body.split_at(SAID.len() + 9);
        let chunks = [first, second, ""].map(|part| format!("{:x}\r\n{part}\r\n", part.len()));
        let chunked = format!("transfer-encoding: chunked\r\n\r\n{}", chunks.concat());
        let options = [json!(null), json!({"include_usage": true})];
        for (framed, options) in [&counted, &chunked]
            .into_iter()
            .flat_map(|framed| options.clone().map(|options| (framed, options)))
        {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
            let upstream = Hostile::always(format!("{head}{framed}"));
            let accounts = [("main".to_owned(), "sk-x".to_owned())];
            let config = Config::for_urls(&[upstream.url()], &accounts);
            let gateway = Gateway::start(config.set("/upstreams/0/health", json!(false)));
            let body = with(chat_stream("hi"), "stream_options", options);
            let answer = gateway.stream("/v1/chat/completions", &body).rest();
            let text = answer.text();
            assert_eq!(
                (answer.status, answer.ending),
                (200, Ending::Broken),
                "{what}"
            );
            assert!(text.starts_with(SAID), "{what}: {text}");
            assert_eq!(text.matches("no error yet").count(), 1, "{what}: {text}");
            assert!(!text.contains("node 7"), "{what}: {text}");
            is_told(what, &text, false);
        }
    }
}

/// A gateway before an upstream that answers everything with this.
fn before_one_that_says(kind: &str, framed: &str, resume: u32) -> (Hostile, Gateway) {
    let upstream = Hostile::always(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{framed}"
    ));
    let accounts = [("main".to_owned(), "sk-x".to_owned())];
    let config = Config::for_urls(&[upstream.url()], &accounts)
        .set("/upstreams/0/health", json!(false))
        .set("/models/deepseek-flash/resume", json!(resume))
        .set("/retry", json!({"attempts": 1}));
    (upstream, Gateway::start(config))
}

#[test]
fn an_upstreams_error_after_content_is_one_in_every_form() {
    const SAID: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"said\"}}]}\n\n";
    const TOOL: &str =
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0}]}}]}\n\n";
    const ERROR: &str = "data: {\"error\":{\"message\":\"node 7\"}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";
    const BARE: &str = "data: {\"code\":50505,\"message\":\"node 7\",\"data\":null}\n\n";
    const NAMED: &str = "event: error\ndata: {\"message\":\"node 7\",\"type\":\"x\"}\n\n";
    let in_chunks = |parts: &[&str], whole: bool| {
        let end = if whole { "0\r\n\r\n" } else { "" };
        let chunks = parts.iter();
        let chunks = chunks.map(|part| format!("{:x}\r\n{part}\r\n", part.len()));
        let chunks: String = chunks.collect();
        format!("transfer-encoding: chunked\r\n\r\n{chunks}{end}")
    };
    for (what, framed) in [
        ("bare", in_chunks(&[SAID, BARE, DONE], true)),
        ("named", in_chunks(&[SAID, NAMED, DONE], true)),
        ("after a tool call", in_chunks(&[SAID, TOOL, ERROR], true)),
        (
            "with a tool call",
            in_chunks(&[&[SAID, TOOL, ERROR].concat()], true),
        ),
        ("with all", in_chunks(&[&[SAID, BARE, DONE].concat()], true)),
        ("cut", in_chunks(&[SAID, &ERROR[..ERROR.len() - 6]], false)),
    ] {
        for resume in [0, 1] {
            let (_upstream, gateway) = before_one_that_says("text/event-stream", &framed, resume);
            let answer = gateway
                .stream("/v1/chat/completions", &chat_stream("hi"))
                .rest();
            let (what, text) = (format!("{what} {resume}"), answer.text());
            assert_eq!(
                (answer.status, answer.ending),
                (200, Ending::Broken),
                "{what}"
            );
            assert!(text.starts_with(SAID), "{what}: {text}");
            assert!(!text.contains("node 7"), "{what}: {text}");
            is_told(&what, &text, false);
        }
    }
}

#[test]
fn what_is_no_answer_of_the_kind_that_was_asked_for_is_a_502() {
    let long = "x".repeat(70_000);
    let events =
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"said\"}}]}\n\ndata: [DONE]\n\n";
    let whole = "{\"object\":\"chat.completion\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"said\"},\"finish_reason\":\"stop\"}]}";
    for (what, streamed, kind, body) in [
        (
            "a long error",
            false,
            "application/json",
            format!("{{\"error\":{{\"message\":\"{long}\"}}}}"),
        ),
        (
            "a long message",
            false,
            "application/json",
            format!("{{\"code\":500,\"message\":\"{long}\"}}"),
        ),
        (
            "an older form",
            false,
            "application/json",
            "{\"object\":\"error\",\"message\":\"node 7\"}".to_owned(),
        ),
        ("nothing", false, "application/json", "{}".to_owned()),
        ("a stream", false, "text/event-stream", events.to_owned()),
        ("no stream", true, "application/json", whole.to_owned()),
    ] {
        let framed = format!("content-length: {}\r\n\r\n{body}", body.len());
        let (_upstream, gateway) = before_one_that_says(kind, &framed, 0);
        let question = with(chat("hi"), "stream", json!(streamed));
        let answer = gateway.post("/v1/chat/completions", &question);
        let text = answer.text();
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, "upstream_error"),
            "{what}: {text}"
        );
        assert!(
            !text.contains("node 7") && text.len() < 1_000,
            "{what}: {text}"
        );
        let line = gateway.access_line(answer.header("x-request-id").unwrap());
        assert_eq!(line["completion_tokens"], json!(null), "{what}: {line}");
    }
}

/// The same order in each format of streams.
fn in_each_format(order: &str) -> [(&'static str, Value); 4] {
    let text = format!("[[fault:{order}]]");
    [
        ("/v1/chat/completions", slow(order)),
        (
            "/beta/completions",
            json!({"model": "deepseek-flash", "prompt": text, "stream": true}),
        ),
        ("/anthropic/v1/messages", message_stream(&text)),
        (
            "/v1/responses",
            with(response(&text), "stream", json!(true)),
        ),
    ]
}

/// Those whose first event is no content; with text completions it is.
fn before_content(order: &str, whole: &str) -> impl Iterator<Item = (&'static str, Value)> {
    let all = in_each_format(whole).into_iter();
    let first = order.ends_with("=1");
    all.filter(move |(path, _)| !first || *path != "/beta/completions")
}

#[test]
fn a_stream_that_the_upstream_breaks_off_after_content_never_looks_whole() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator).unguarded());
    for order in [
        "cut_after=8",
        "end_after=8",
        "error_after=8",
        "cut_after=12",
        "end_after=12",
    ] {
        for (path, body) in in_each_format(order) {
            let what = format!("{path} {order}");
            let answer = gateway.stream(path, &body).rest();
            assert_eq!(answer.status, 200, "{what}");
            // The Responses format has events of its own for errors; that no end comes is what counts.
            if path == "/v1/responses" && order.starts_with("error") {
                assert!(!answer.text().contains("response.completed"), "{what}");
            } else {
                is_told(&what, &answer.text(), path.starts_with("/anthropic"));
            }
            if order.starts_with("cut") {
                assert_eq!(answer.ending, Ending::Broken, "{what}");
            }
            let line = gateway.access_line(answer.header("x-request-id").unwrap());
            assert_eq!(line["attempts"], 1, "{what}: {line}");
            if !order.starts_with("error") {
                assert_eq!(line["ending"], "interrupted", "{what}: {line}");
            }
        }
    }
    assert!(gateway.metric("tidegate_streams_interrupted_total", &[]) >= 16.0);
    assert!(gateway.is_serving());
}

#[test]
fn a_stream_that_the_upstream_breaks_off_before_content_has_a_status_of_its_own() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator).unguarded());
    for order in [
        "cut_after=1",
        "end_after=1",
        "error_after=1",
        "cut_after=0",
        "end_after=0",
        "error_after=0",
    ] {
        for (path, body) in before_content(order, order) {
            let what = format!("{path} {order}");
            emulator.forget_calls();
            let answer = gateway.stream(path, &body).rest();
            assert_eq!(answer.status, 502, "{what}: {}", answer.text());
            assert_eq!(answer.code(), "upstream_error", "{what}");
            assert_eq!(answer.ending, Ending::Whole, "{what}");
            // There is one account: it may have had a bad moment. An empty answer is none.
            let times = if order == "end_after=0" { 1 } else { 3 };
            assert_eq!(emulator.calls().len(), times, "{what}");
            let line = gateway.access_line(answer.header("x-request-id").unwrap());
            assert_eq!(line["ending"], "refused", "{what}: {line}");
        }
    }
    let interrupted = gateway.metric("tidegate_streams_interrupted_total", &[]);
    assert_eq!(interrupted, 0.0);
}

#[test]
fn a_stream_that_breaks_off_under_a_head_that_is_out_tells_it_as_an_event() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).unguarded();
    let gateway = Gateway::start(config.set("/retry/hold_head", json!("0s")));
    for order in [
        "cut_after=1",
        "end_after=1",
        "error_after=1",
        "error_after=0",
    ] {
        for (path, body) in before_content(order, &format!("queue=150ms,{order}")) {
            let what = format!("{path} {order}");
            let answer = gateway.stream(path, &body).rest();
            assert_eq!(answer.status, 200, "{what}");
            is_told(&what, &answer.text(), path.starts_with("/anthropic"));
            assert_eq!(answer.ending, Ending::Broken, "{what}");
            let line = gateway.access_line(answer.header("x-request-id").unwrap());
            assert_eq!(line["code"], "upstream_error", "{what}: {line}");
        }
    }
}

#[test]
fn a_stream_that_breaks_off_is_reset_over_http_2() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut sender = h2::connect(gateway.address()).await;
        for large in [false, true] {
            let body = slow("cut_after=3");
            let body = if large { with_filler(body) } else { body };
            let body = Bytes::from(body.to_string());
            let body = if large {
                h2::unsized_(body, 50_000)
            } else {
                h2::sized(body)
            };
            let request = h2::post("/v1/chat/completions", body);
            let mut answer = sender.send_request(request).await.unwrap();
            let mut text = String::new();
            let reset = loop {
                match h2::next_piece(&mut answer).await {
                    Some(Ok(piece)) => text.push_str(&String::from_utf8_lossy(&piece.bytes)),
                    Some(Err(_)) => break true,
                    None => break false,
                }
            };
            assert!(reset && !text.contains("[DONE]"), "large={large}: {text}");
        }
    });
}

#[test]
fn a_large_chunked_request_whose_answer_is_cut_is_told_so_too() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    for order in ["cut_after=3", "end_after=3"] {
        let body = with_filler(slow(order));
        let request = Request::post("/v1/chat/completions", &body)
            .key("acme")
            .chunked(60_000);
        let answer = request.stream(gateway.address()).rest();
        is_told(order, &answer.text(), false);
        if order.starts_with("cut") {
            assert_eq!(answer.ending, Ending::Broken);
        }
    }
}

#[test]
fn an_answer_in_one_piece_that_is_cut_never_looks_whole() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    for order in ["cut_after=1", "garbage"] {
        for (path, body) in [
            ("/v1/chat/completions", chat(&format!("[[fault:{order}]]"))),
            (
                "/anthropic/v1/messages",
                message(&format!("[[fault:{order}]]")),
            ),
            ("/v1/responses", response(&format!("[[fault:{order}]]"))),
        ] {
            let request = Request::post(path, &body).key("acme");
            let mut wire = gateway.connect();
            wire.send(&request.to_bytes());
            if let Some(answer) = wire.try_answer() {
                let whole = answer.status == 200 && answer.ending == Ending::Whole;
                assert!(!whole, "{path} {order}: {}", answer.text());
            }
        }
    }
    assert!(gateway.is_serving());
}

#[test]
fn garbage_in_a_stream_is_passed_on_and_harms_nothing() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let answer = gateway
        .stream("/v1/chat/completions", &slow("garbage=2,tokens=5"))
        .rest();
    assert_eq!(answer.data().last().unwrap(), "[DONE]");
    assert_eq!(answer.ending, Ending::Whole);
    assert!(gateway.is_serving());
}

#[test]
fn a_client_that_reads_nothing_holds_the_upstream_back() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator).limit("write_timeout", "2s"));
    // More than all socket buffers between the emulator and the client can take.
    let size = 56 << 20;
    let form = [
        b"--cut\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n"
            .as_slice(),
        b"--cut\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.bin\"\r\n\r\n",
        &vec![b'x'; size],
        b"\r\n--cut--\r\n",
    ]
    .concat();
    let upload = Request::new("POST", "/files")
        .header("authorization", "Bearer sk-upstream-1")
        .header("content-type", "multipart/form-data; boundary=cut")
        .body(form);
    let file = upload.send(emulator.address()).json();
    let path = format!("/v1/files/{}/content", file["id"].as_str().unwrap());
    let unread = Request::get(&path).key("acme").stream(gateway.address());
    let id = unread.header("x-request-id").unwrap();
    let line = gateway.access_line(id);
    let taken = line["response_bytes"].as_u64().unwrap();
    assert!(taken < 32 << 20, "{line}");
    assert_eq!(line["ending"], "client_gone");
    assert!(gateway.is_serving());
}

#[test]
fn usage_is_recorded_for_every_format_streamed_and_not() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let completion = json!({"model": "deepseek-flash", "prompt": "count this"});
    let mut totals = [0.0; 2];
    for (path, body, surface) in [
        ("/v1/chat/completions", chat("count this"), "chat"),
        ("/beta/completions", completion, "completions"),
        ("/anthropic/v1/messages", message("count this"), "messages"),
        ("/v1/responses", response("count this"), "responses"),
    ] {
        for stream in [false, true] {
            let what = format!("{path} stream={stream}");
            let answer = gateway.post(path, &with(body.clone(), "stream", json!(stream)));
            assert_eq!(answer.status, 200, "{what}: {}", answer.text());
            let line = gateway.access_line(answer.header("x-request-id").unwrap());
            let prompt = line["prompt_tokens"].as_u64().unwrap_or_default();
            let completion = line["completion_tokens"].as_u64().unwrap_or_default();
            assert!(prompt > 0 && completion > 0, "{what}: {line}");
            assert!(line["finish_reason"].is_string(), "{what}: {line}");
            assert_eq!(
                (
                    line["surface"].as_str(),
                    line["stream"].as_bool(),
                    line["ending"].as_str()
                ),
                (Some(surface), Some(stream), Some("complete")),
                "{what}"
            );
            assert_eq!(
                line["time_to_first_token_ms"].is_number(),
                stream,
                "{what}: {line}"
            );
            if !stream {
                let usage = &answer.json()["usage"];
                let told = ["completion_tokens", "output_tokens"]
                    .iter()
                    .find_map(|name| usage[name].as_u64());
                assert_eq!(told, Some(completion), "{what}");
            }
            totals[0] += prompt as f64;
            totals[1] += completion as f64;
        }
    }
    let labels = ["tenant=\"acme\"", "model=\"deepseek-flash\""];
    let counted = |kind: &str| {
        let kind = format!("kind=\"{kind}\"");
        gateway.metric("tidegate_tokens_total", &[labels[0], labels[1], &kind])
    };
    assert_eq!([counted("prompt"), counted("completion")], totals);
    assert!(counted("reasoning") > 0.0 && counted("reasoning") < totals[1]);
    assert!(counted("cached") > 0.0, "the repeated prompt was cached");
    assert_eq!(gateway.metric("tidegate_usage_missing_total", &[]), 0.0);
}

#[test]
fn an_answer_without_usage_is_counted_as_one() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let answer = gateway.post("/v1/chat/completions", &slow("usage=none"));
    assert_eq!(answer.data().last().unwrap(), "[DONE]");
    gateway.access_line(answer.header("x-request-id").unwrap());
    assert_eq!(gateway.metric("tidegate_usage_missing_total", &[]), 1.0);
}

#[test]
fn a_stream_that_breaks_off_never_looks_whole_over_http_2_either() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut sender = h2::connect(gateway.address()).await;
        for (order, large) in [
            ("cut_after=3", false),
            ("end_after=3", false),
            ("cut_after=3", true),
        ] {
            let body = if large {
                with_filler(slow(order))
            } else {
                slow(order)
            };
            let body = Bytes::from(body.to_string());
            let body = if large {
                h2::unsized_(body, 50_000)
            } else {
                h2::sized(body)
            };
            let request = h2::post("/v1/chat/completions", body);
            let mut answer = sender.send_request(request).await.unwrap();
            let mut text = String::new();
            while let Some(Ok(piece)) = h2::next_piece(&mut answer).await {
                text.push_str(&String::from_utf8_lossy(&piece.bytes));
            }
            is_told(order, &text, false);
        }
    });
}
