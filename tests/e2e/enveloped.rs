//! A company's own gateway in front of the provider wraps what it answers: tenants notice nothing
//! of it, errors keep their meaning, and all that holds for other upstreams holds for it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate::emulator::EmulatorConfig;

use crate::support::*;

fn emulator(accounts: usize) -> Emulator {
    Emulator::start(EmulatorConfig {
        enveloped: true,
        ..Emulator::with_accounts(accounts)
    })
}

fn enveloped(config: Config) -> Config {
    config.set("/upstreams/0/dialect", json!("enveloped"))
}

fn pair(accounts: usize) -> (Emulator, Gateway) {
    let emulator = emulator(accounts);
    let gateway = Gateway::start(enveloped(Config::for_emulator(&emulator)));
    (emulator, gateway)
}

fn whole(body: &str, kind: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// An upstream by hand: `answer` gets the number of the connection and of the request on it, and
/// closes the connection with `None`. Counts connections.
fn upstream(
    answer: impl Fn(usize, usize) -> Option<String> + Send + Sync + 'static,
) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { return };
            let number = count.fetch_add(1, Ordering::AcqRel);
            let answer = answer.clone();
            std::thread::spawn(move || {
                let mut request = 0;
                while read_request(&mut socket) {
                    let Some(text) = answer(number, request) else {
                        return;
                    };
                    if socket.write_all(text.as_bytes()).is_err() {
                        return;
                    }
                    request += 1;
                }
            });
        }
    });
    (url, connections)
}

/// Reads one small request with a length.
fn read_request(socket: &mut TcpStream) -> bool {
    let mut text = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        let received = String::from_utf8_lossy(&text).to_ascii_lowercase();
        if let Some((head, body)) = received.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return true;
            }
        }
        match socket.read(&mut buffer) {
            Ok(0) | Err(_) => return false,
            Ok(count) => text.extend_from_slice(&buffer[..count]),
        }
    }
}

fn by_hand(url: &str) -> Config {
    let account = [("main".to_owned(), "sk-x".to_owned())];
    enveloped(Config::for_urls(&[url.to_owned()], &account))
        .set("/upstreams/0/health", json!(false))
}

#[test]
fn each_surface_is_answered_whole_and_streamed_without_its_envelope() {
    let (emulator, gateway) = pair(1);
    for (path, body, upstream_path, content) in [
        (
            "/v1/chat/completions",
            chat("hello"),
            "/chat/completions",
            "/choices/0/message/content",
        ),
        (
            "/v1/responses",
            response("hello"),
            "/responses",
            "/output/0/type",
        ),
    ] {
        emulator.forget_calls();
        let answer = gateway.post(path, &body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert!(
            answer.json().pointer(content).is_some(),
            "{}",
            answer.text()
        );
        assert!(!answer.text().contains("\"msg\""));
        assert_eq!(emulator.call()["path"], upstream_path);

        let answer = gateway.post(path, &with(body, "stream", json!(true)));
        assert_eq!((answer.status, answer.ending), (200, Ending::Whole));
        let kind = answer.header("content-type").unwrap();
        assert!(kind.starts_with("text/event-stream"), "{path}: {kind}");
        assert!(answer.events().len() > 3, "{path}: {}", answer.text());
        assert!(!answer.text().contains("\"msg\""), "{}", answer.text());
        assert!(answer.events().iter().all(|event| event["code"].is_null()));
    }
    let (emulator, gateway) = {
        let url = format!("{}/anthropic/v1", emulator.url());
        let config = Config::for_urls(&[url], emulator.accounts());
        (emulator, Gateway::start(enveloped(config)))
    };
    emulator.forget_calls();
    let answer = gateway.post("/v1/messages", &message_stream("hello"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(emulator.call()["path"], "/anthropic/v1/messages");
    let events = answer.events();
    assert_eq!(events.first().unwrap()["type"], "message_start");
    assert_eq!(events.last().unwrap()["type"], "message_stop");
}

#[test]
fn a_stream_in_envelopes_is_the_stream_without() {
    let (emulator, gateway) = pair(1);
    let plain = Emulator::quick();
    let beside = Gateway::start(Config::for_emulator(&plain));
    let tools = with(
        chat_stream("call a tool"),
        "tools",
        json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]),
    );
    let told = with(
        chat_stream("count \"me\" \\ 字"),
        "stream_options",
        json!({"include_usage": true}),
    );
    let shape = |answer: &Answer| -> Vec<Value> {
        let events = answer.events().into_iter().map(|mut event| {
            for own in ["id", "created"] {
                event[own] = Value::Null;
            }
            if let Some(calls) = event
                .pointer_mut("/choices/0/delta/tool_calls")
                .and_then(Value::as_array_mut)
            {
                calls.iter_mut().for_each(|call| call["id"] = Value::Null);
            }
            event
        });
        events.collect()
    };
    for body in [chat_stream("hello"), tools, told] {
        let answer = gateway.post("/v1/chat/completions", &body);
        let expected = beside.post("/v1/chat/completions", &body);
        assert_eq!(shape(&answer), shape(&expected));
        assert_eq!(answer.data().last().unwrap(), "[DONE]");
        let line = gateway.access_line(answer.header("x-request-id").unwrap());
        assert!(line["completion_tokens"].as_u64() > Some(0), "{line}");
    }
    assert_eq!(emulator.calls().len(), 3);
}

#[test]
fn an_account_in_trouble_is_passed_over_by_the_status_in_its_code() {
    for status in [401, 402, 403, 429, 500, 503] {
        let (emulator, gateway) = pair(2);
        emulator.order(Some("account-1"), &format!("status={status}"));
        for body in [chat("hello"), chat_stream("hello"), chat("again")] {
            let answer = gateway.post("/v1/chat/completions", &body);
            assert_eq!(answer.status, 200, "{status}: {}", answer.text());
        }
        let refused = |call: &&Value| call["account"] == "account-1";
        let asked = emulator.calls().iter().filter(refused).count();
        assert!(asked >= 1, "{status}: account-1 was never asked");
        if status < 500 {
            assert_eq!(asked, 1, "{status}: it rests after the first refusal");
        }
    }
}

#[test]
fn an_error_in_an_envelope_is_told_by_its_status_and_message() {
    let emulator = emulator(1);
    // With a queue, an account at its limit would be waited for.
    let config = enveloped(Config::for_emulator(&emulator)).set("/queue/max_length", json!(0));
    let gateway = Gateway::start(config.unguarded());
    for (status, told, code) in [
        (400, 400, "invalid_request"),
        (404, 404, "not_found"),
        (422, 422, "unprocessable"),
        (429, 429, "upstream_rate_limited"),
        (500, 502, "upstream_error"),
        (503, 503, "upstream_unavailable"),
        // After this one the account is out.
        (401, 503, "upstream_unavailable"),
    ] {
        for stream in [false, true] {
            let body = chat(&format!("[[fault:status={status},retry_after=7]]"));
            let body = with(body, "stream", json!(stream));
            let answer = gateway.post("/v1/chat/completions", &body);
            assert_eq!(answer.status, told, "{status}: {}", answer.text());
            assert!(
                answer.code().contains(code),
                "{status}: {} is not {code}",
                answer.code()
            );
            let kind = answer.header("content-type").unwrap();
            assert!(kind.starts_with("application/json"), "{kind}");
            if status == 400 {
                let message = answer.json()["error"]["message"].to_string();
                assert!(message.contains("Invalid request (emulated)"), "{message}");
            }
            if status == 429 {
                assert_eq!(answer.header("retry-after"), Some("7"));
            }
        }
    }
    // Nobody waits for as long as it asks to; and an account that was refused is left alone.
    assert_eq!(emulator.calls().len(), 13);
}

#[test]
fn codes_mean_what_the_configuration_says() {
    let texts = [
        (r#"{"code":1,"data":{"choices":[]},"msg":""}"#, 200),
        (r#"{"code":"OK","data":{"choices":[]},"msg":""}"#, 200),
        (r#"{"code":10012,"data":null,"msg":"wait"}"#, 429),
        (r#"{"msg":"bad","data":null,"code":"-7"}"#, 400),
        (r#"{"code":0,"data":{"choices":[]},"msg":""}"#, 502),
        (r#"{"code":1,"data":null,"msg":"ok"}"#, 502),
        // An error under status 200 is one all the same.
        (r#"{"error":{"message":"plain"}}"#, 502),
        (r#"{"choices":[]}"#, 200),
    ];
    for (text, status) in texts {
        let (url, _) = upstream(move |_, _| Some(whole(text, "text/plain")));
        let config = by_hand(&url).set(
            "/upstreams/0/envelope",
            json!({"success": [1, "OK"], "statuses": {"10012": 429, "-7": 400}}),
        );
        let gateway = Gateway::start(config);
        let answer = gateway.post("/v1/chat/completions", &chat("hi"));
        assert_eq!(answer.status, status, "{text}: {}", answer.text());
        if status == 400 {
            assert_eq!(answer.json()["error"]["message"], "bad");
        }
    }
}

#[test]
fn errors_keep_the_status_they_come_with() {
    for (status, body, told) in [
        ("403 Forbidden", r#"{"code":7,"data":null,"msg":"no"}"#, 503),
        ("400 Bad Request", r#"{"code":"x","msg":"bad field"}"#, 400),
        (
            "400 Bad Request",
            r#"{"error":{"message":"bad field"}}"#,
            400,
        ),
        ("502 Bad Gateway", "<html>bad field</html>", 502),
    ] {
        let text = whole(body, "application/json").replace("200 OK", status);
        let (url, _) = upstream(move |_, _| Some(text.clone()));
        let gateway = Gateway::start(by_hand(&url));
        let answer = gateway.post("/v1/chat/completions", &chat("hi"));
        assert_eq!(answer.status, told, "{}", answer.text());
        if told == 400 {
            assert_eq!(answer.json()["error"]["message"], "bad field");
        }
    }
}

#[test]
fn an_error_in_the_middle_of_a_stream_is_told_and_nothing_comes_after_it() {
    let (_emulator, gateway) = pair(2);
    let body = chat_stream("[[fault:error_after=4]] hello");
    let answer = gateway.post("/v1/chat/completions", &body);
    assert_eq!(answer.status, 200);
    let last = answer.events().pop().unwrap();
    assert!(last["error"]["message"].is_string(), "{}", answer.text());
    assert!(!answer.text().contains("[DONE]"), "{}", answer.text());
    assert_eq!(answer.text().matches("\"error\"").count(), 1);
    let line = gateway.access_line(answer.header("x-request-id").unwrap());
    assert_ne!(line["ending"], "complete", "{line}");

    // Broken off without a word, it is our word that is told.
    for fault in ["cut_after=4", "end_after=4"] {
        let body = chat_stream(&format!("[[fault:{fault}]] hello"));
        let answer = gateway.post("/v1/chat/completions", &body);
        let last = answer.events().pop().unwrap();
        assert_eq!(last["error"]["code"], "stream_interrupted", "{fault}");
        assert!(!answer.text().contains("[DONE]"), "{fault}");
    }
    let cut = chat("[[fault:cut_after=1]] hello");
    let answer = gateway.post("/v1/chat/completions", &cut);
    assert!(answer.ending == Ending::Broken || answer.status == 502);
}

#[test]
fn an_error_that_comes_after_the_data_is_never_a_whole_answer() {
    let text = format!(
        r#"{{"data":{{"choices":[],"x":"{}"}},"code":50001,"msg":"late"}}"#,
        "x".repeat(400_000)
    );
    let text = whole(&text, "application/json");
    let (url, _) = upstream(move |_, _| Some(text.clone()));
    let gateway = Gateway::start(by_hand(&url));
    let answer = gateway.post("/v1/chat/completions", &chat("hi"));
    assert_eq!(answer.ending, Ending::Broken, "{}", answer.status);
}

#[test]
fn plain_chunks_pass_and_events_are_not_held_back() {
    // The emulator's own stream, of which nothing is wrapped.
    let emulator = Emulator::quick();
    let gateway = Gateway::start(enveloped(Config::for_emulator(&emulator)));
    let answer = gateway.post("/v1/chat/completions", &chat_stream("hello"));
    assert_eq!(answer.data().last().unwrap(), "[DONE]");
    assert!(answer.events().len() > 3);
    let answer = gateway.post("/v1/chat/completions", &chat("hello"));
    assert!(answer.json()["choices"].is_array());

    let (_emulator, gateway) = pair(1);
    let began = Instant::now();
    let body = chat_stream("[[fault:token_delay=150ms,tokens=12]] hello");
    let mut stream = gateway.stream("/v1/chat/completions", &body);
    stream.read_until("\"content\":\"");
    assert!(began.elapsed() < Duration::from_secs(1));
    let answer = stream.rest();
    assert!(began.elapsed() > Duration::from_millis(1_500));
    assert_eq!(answer.data().last().unwrap(), "[DONE]");
}

#[test]
fn a_queued_request_shows_signs_of_life_and_outlives_the_read_timeout() {
    let emulator = emulator(1);
    let config = enveloped(Config::for_emulator(&emulator))
        .set("/upstreams/0/timeouts", json!({"read": "800ms"}))
        .set("/retry/hold_head", json!("0s"));
    let gateway = Gateway::start(config);
    let order = "[[fault:queue=2s]] hello";
    let began = Instant::now();
    let mut stream = gateway.stream("/v1/chat/completions", &chat_stream(order));
    stream.read_until(": keep-alive\n\n");
    assert!(began.elapsed() < Duration::from_millis(1_500));
    let answer = stream.rest();
    assert_eq!(answer.data().last().unwrap(), "[DONE]");
    let answer = gateway.post("/v1/chat/completions", &chat(order));
    assert_eq!(answer.status, 200);
    assert!(answer.json()["choices"].is_array(), "{}", answer.text());
}

#[test]
fn a_client_that_leaves_is_seen_by_the_upstream_within_a_second() {
    for protocol in ["http1", "http2"] {
        let emulator = emulator(1);
        let config = enveloped(Config::for_emulator(&emulator))
            .set("/upstreams/0/protocol", json!(protocol));
        let gateway = Gateway::start(config);
        for (order, stream) in [
            ("token_delay=100ms,tokens=200", true),
            ("token_delay=100ms,tokens=200", false),
            ("stall", true),
            ("queue=30s", true),
        ] {
            emulator.forget_calls();
            let body = with(
                chat(&format!("[[fault:{order}]] hi")),
                "stream",
                json!(stream),
            );
            let request = Request::post("/v1/chat/completions", &body).key("acme");
            let mut wire = gateway.connect();
            wire.send(&request.to_bytes());
            emulator.call_once("the call", |_| true);
            drop(wire);
            let left = Instant::now();
            emulator.call_ended("client_gone");
            let took = left.elapsed();
            assert!(
                took < Duration::from_secs(1),
                "{protocol} {order}: {took:?}"
            );
            eventually("no request is in flight", SOON, || {
                let in_flight = gateway.metric("tidegate_requests_in_flight", &[]);
                (in_flight == 0.0 && emulator.in_flight() == 0).then_some(())
            });
        }
        assert!(gateway.is_serving());
    }
}

#[test]
fn an_answer_of_a_mebibyte_arrives_whole_in_any_order_and_framing() {
    let content = "0123456789abcdef\\n\\\"字".repeat(48 << 10);
    let data = format!(r#"{{"choices":[{{"message":{{"content":"{content}"}}}}]}}"#);
    let expected: Value = serde_json::from_str(&data).unwrap();
    for text in [
        format!(r#"{{"code":0,"data":{data},"msg":"ok"}}"#),
        format!(r#"{{"data":{data},"msg":"ok","code":0}}"#),
    ] {
        let sized = whole(&text, "application/json");
        // In the middle of the text a chunk ends where a character does.
        let (first, second) = text.split_at(text.floor_char_boundary(text.len() / 2));
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let chunked = [first, second].map(chunk).concat();
        let chunked = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}0\r\n\r\n"
        );
        for answer in [sized, chunked] {
            let (url, _) = upstream(move |_, _| Some(answer.clone()));
            let gateway = Gateway::start(by_hand(&url));
            let answer = gateway.post("/v1/chat/completions", &chat("hi"));
            assert_eq!((answer.status, answer.ending), (200, Ending::Whole));
            assert!(answer.body.len() > 1 << 20);
            assert!(answer.json() == expected);
        }
    }
}

#[test]
fn files_go_up_and_down() {
    for protocol in ["http1", "http2"] {
        let emulator = emulator(1);
        let config = enveloped(Config::for_emulator(&emulator))
            .set("/upstreams/0/protocol", json!(protocol))
            .set("/upstreams/0/surfaces", json!(["chat", "files"]))
            .set("/files", json!({"upstream": "deepseek"}));
        let gateway = Gateway::start(config);
        let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let form = [
            b"--cut\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n"
                .as_slice(),
            b"--cut\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.bin\"\r\n\r\n",
            &content,
            b"\r\n--cut--\r\n",
        ]
        .concat();
        let upload = Request::new("POST", "/v1/files")
            .key("acme")
            .header("content-type", "multipart/form-data; boundary=cut")
            .body(form.clone());
        for upload in [upload.clone(), upload.chunked(40_000)] {
            let answer = upload.send(gateway.address());
            assert_eq!(answer.status, 200, "{protocol}: {}", answer.text());
            assert_eq!(answer.json()["bytes"], content.len());
            let call = emulator.calls().pop().unwrap();
            assert_eq!(call["body_fnv"], fnv(&form));
            let id = answer.json()["id"].as_str().unwrap().to_owned();
            let back = gateway.get(&format!("/v1/files/{id}/content"));
            assert_eq!(back.status, 200);
            assert!(back.body == content, "the content has changed on its way");
        }
    }
}

#[test]
fn connections_behind_the_envelope_are_used_again() {
    let stream = concat!(
        "data: {\"code\":0,\"data\":{\"choices\":[{\"delta\":{\"content\":\"a\"}}]},\"msg\":\"\"}\n\n",
        "data: [DONE]\n\n",
    );
    let answers = [
        whole(
            r#"{"code":0,"data":{"choices":[]},"msg":""}"#,
            "application/json",
        ),
        whole(
            r#"{"code":400,"data":null,"msg":"bad"}"#,
            "application/json",
        ),
        whole(stream, "text/event-stream"),
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n24\r\n{}\r\n0\r\n\r\n",
            r#"{"code":400,"data":null,"msg":"bad"}"#
        ),
        whole(r#"{"choices":[]}"#, "application/json"),
    ];
    let (url, connections) = upstream(move |_, request| Some(answers[request % 5].clone()));
    let gateway = Gateway::start(by_hand(&url));
    let statuses = [200, 400, 200, 400, 200, 200, 400, 200, 400, 200];
    for (request, status) in statuses.into_iter().enumerate() {
        let question = with(chat("hi"), "stream", json!(request % 5 == 2));
        let answer = gateway.post("/v1/chat/completions", &question);
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    assert_eq!(connections.load(Ordering::Acquire), 1);
}

#[test]
fn a_dead_connection_behind_the_envelope_costs_nobody_anything() {
    let good = whole(
        r#"{"code":0,"data":{"choices":[]},"msg":""}"#,
        "application/json",
    );
    // Each connection answers once and breaks off at the second request.
    let (url, connections) = upstream(move |_, request| (request == 0).then(|| good.clone()));
    let gateway = Gateway::start(by_hand(&url));
    for _ in 0..4 {
        let answer = gateway.post("/v1/chat/completions", &chat("hi"));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(connections.load(Ordering::Acquire), 4);
    let stale = gateway.metric("tidegate_attempts_total", &["outcome=\"stale_connection\""]);
    assert_eq!(stale, 3.0);
}

#[test]
fn what_breaks_behind_the_envelope_is_what_it_would_be_without() {
    let accounts = [("main".to_owned(), "sk-x".to_owned())];
    let refusing = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    for (what, answer, status, outcome) in [
        ("no connection", None, 503, "connect"),
        ("a break", Some(String::new()), 502, "reset"),
        (
            "no HTTP",
            Some("nonsense\r\n\r\n".to_owned()),
            502,
            "garbage",
        ),
        (
            "an informational answer",
            Some("HTTP/1.1 100 Continue\r\n\r\n".to_owned()),
            502,
            "garbage",
        ),
        (
            "a compressed answer",
            Some(
                whole("{}", "application/json")
                    .replace("\r\n\r\n", "\r\nContent-Encoding: gzip\r\n\r\n"),
            ),
            502,
            "garbage",
        ),
        (
            "an empty answer",
            Some(whole("", "application/json")),
            502,
            "garbage",
        ),
    ] {
        let url = match answer {
            None => refusing.clone(),
            Some(text) => {
                upstream(move |_, _| Some(text.clone()).filter(|text| !text.is_empty())).0
            }
        };
        let config =
            enveloped(Config::for_urls(&[url], &accounts)).set("/upstreams/0/health", json!(false));
        let gateway = Gateway::start(config);
        let answer = gateway.post("/v1/chat/completions", &chat("hi"));
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        let label = format!("outcome=\"{outcome}\"");
        let counted = gateway.metric("tidegate_attempts_total", &[&label]);
        assert!(counted >= 1.0, "{what}: {}", gateway.metrics());
    }
    let emulator = emulator(1);
    let config = enveloped(Config::for_emulator(&emulator))
        .set("/upstreams/0/timeouts", json!({"read": "300ms"}));
    let gateway = Gateway::start(config);
    let answer = gateway.post("/v1/chat/completions", &chat("[[fault:stall]]"));
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (504, "upstream_timeout")
    );
}

#[test]
fn tls_is_spoken_behind_the_envelope_and_its_rules_hold() {
    let (certificate, private_key) = tls::certificate();
    let emulator = Emulator::start(EmulatorConfig {
        enveloped: true,
        tls: Some(tls::handshake(&certificate, &private_key)),
        ..Emulator::with_accounts(1)
    });
    let url = format!("https://{}", emulator.address());
    let config = |more: Value| {
        let mut rules = json!({"ca": "ca.pem", "server_name": "localhost"});
        for (key, value) in more.as_object().unwrap() {
            rules[key] = value.clone();
        }
        let config = Config::for_urls(std::slice::from_ref(&url), emulator.accounts());
        enveloped(config)
            .file("ca.pem", certificate.clone())
            .set("/upstreams/0/health", json!(false))
            .set("/upstreams/0/tls", rules)
    };
    for protocol in ["http1", "http2"] {
        let config = config(json!({})).set("/upstreams/0/protocol", json!(protocol));
        let gateway = Gateway::start(config);
        for body in [chat("hello"), chat_stream("hello")] {
            let answer = gateway.post("/v1/chat/completions", &body);
            assert_eq!(answer.status, 200, "{protocol}: {}", answer.text());
            assert!(answer.text().contains("choices"));
        }
    }
    // The emulator stops at TLS 1.2, and the name must be the certificate's.
    for rule in [
        json!({"min_version": "1.3"}),
        json!({"server_name": "elsewhere"}),
    ] {
        let gateway = Gateway::start(config(rule.clone()));
        let answer = gateway.post("/v1/chat/completions", &chat("hello"));
        assert_eq!(answer.status, 503, "{rule}: {}", answer.text());
        let failed = gateway.metric("tidegate_attempts_total", &["outcome=\"tls\""]);
        assert!(failed >= 1.0, "{rule}");
    }
}

#[test]
fn an_enveloped_endpoint_is_asked_for_its_health_itself() {
    let emulator = emulator(1);
    let config = enveloped(Config::for_emulator(&emulator))
        .set("/upstreams/0/health", json!({"interval": "100ms"}));
    let gateway = Gateway::start(config);
    let label = format!("endpoint=\"{}", emulator.url());
    let healthy = || gateway.metric("tidegate_upstream_endpoint_healthy", &[&label]);
    eventually("it is healthy", SOON, || (healthy() == 1.0).then_some(()));
    emulator.stop();
    eventually("it is out", SOON, || (healthy() == 0.0).then_some(()));
}

#[test]
fn a_reload_changes_what_codes_mean() {
    let (url, _) = upstream(|_, _| {
        Some(whole(
            r#"{"code":10012,"data":null,"msg":"wait"}"#,
            "application/json",
        ))
    });
    let gateway = Gateway::start(by_hand(&url));
    assert_eq!(
        gateway.post("/v1/chat/completions", &chat("hi")).status,
        502
    );
    let result = gateway
        .reload(|config| config.set("/upstreams/0/envelope", json!({"statuses": {"10012": 400}})));
    assert_eq!(result, "ok");
    let answer = gateway.post("/v1/chat/completions", &chat("hi"));
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["message"], "wait");
}
