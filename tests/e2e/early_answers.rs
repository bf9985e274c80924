//! An upstream may answer before it has taken the whole request, and then ask that no more of it be
//! sent (RFC 9113 §8.1). Its answer counts all the same, be it a refusal or a whole answer.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Empty};
use serde_json::{Value, json};

use crate::support::*;

const PATH: &str = "/v1/chat/completions";
const REFUSAL: &str = r#"{"error":{"message":"Not now.","type":"x","code":"x"}}"#;
const WHOLE: &str = r#"{"id":"1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"sea"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}"#;
const STREAM: &str = concat!(
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"sea\"}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: [DONE]\n\n"
);

#[derive(Clone, Copy)]
enum Does {
    /// Answers at once, and reads nothing of the request.
    Answer(u16, &'static str, &'static str),
    /// Takes what fits into its window, and says nothing.
    Stall,
    /// Takes 16 KiB at most in each such time, and says nothing.
    Sip(Duration),
    /// Takes all of it, and answers with a head that is all there is.
    Head(u16),
}

/// An upstream over HTTP/2 that does not read the requests it gets.
fn upstream(does: Does) -> String {
    h2::serve(move |mut request| async move {
        let (status, kind, text) = match does {
            Does::Answer(status, kind, text) => (status, kind, text),
            Does::Stall => std::future::pending().await,
            Does::Sip(every) => {
                while request.body_mut().frame().await.is_some() {
                    tokio::time::sleep(every).await;
                }
                std::future::pending().await
            }
            Does::Head(status) => {
                while request.body_mut().frame().await.is_some() {}
                (status, "application/json", "")
            }
        };
        let head = Response::builder().status(status);
        let head = head.header("content-type", kind);
        // Without a length, so that an empty one ends with the head.
        let body = match text {
            "" => BodyExt::boxed(Empty::new()),
            text => h2::sized(Bytes::from_static(text.as_bytes())),
        };
        head.header("retry-after", "60").body(body).unwrap()
    })
}

/// A gateway before the upstream, and an emulator behind it for whoever is turned away.
fn gateway(does: Does, rescue: &Emulator) -> Gateway {
    let (name, _) = &rescue.accounts()[0];
    let second = json!({
        "id": "second", "endpoints": [{"url": rescue.url()}], "credit": false,
        "accounts": [{"id": name, "api_key": format!("${{file:{name}.key}}")}],
    });
    let variant = json!({"upstream": "second", "model": "deepseek-flash"});
    let config = Config::for_urls(&[upstream(does)], rescue.accounts())
        .unguarded()
        .set("/upstreams/0/protocol", json!("http2"))
        .set("/upstreams/0/health", json!(false))
        .set("/upstreams/0/timeouts", json!({"write": "500ms"}))
        .set("/upstreams/-", second)
        .set("/models/deepseek-flash/variants/-", variant);
    Gateway::start(config)
}

/// Larger than what may be sent before the upstream has read anything.
fn large(mut body: Value) -> Value {
    body["messages"][0]["content"] = json!("a".repeat(1 << 20));
    body
}

fn logged(gateway: &Gateway, answer: &Answer) -> Value {
    gateway.access_line(answer.header("x-request-id").unwrap())
}

fn tries(line: &Value) -> Vec<&str> {
    let tries = line["tries"].as_array().into_iter().flatten();
    tries.map(|it| it["outcome"].as_str().unwrap()).collect()
}

#[test]
fn a_refusal_that_comes_before_the_body_was_taken_is_the_clients() {
    let rescue = Emulator::start(Emulator::with_accounts(1));
    for status in [400, 413, 422] {
        let gateway = gateway(Does::Answer(status, "application/json", REFUSAL), &rescue);
        for body in [
            chat("hi"),
            chat_stream("hi"),
            large(chat("")),
            large(chat_stream("")),
        ] {
            let answer = gateway.post(PATH, &body);
            assert_eq!(answer.status, status, "{}", answer.text());
            assert_eq!(logged(&gateway, &answer)["attempts"], 1);
        }
        // A connection that ends after it is said to end.
        let mut wire = gateway.connect();
        let request = Request::post(PATH, &large(chat(""))).key("acme");
        wire.send(&request.to_bytes());
        let answer = wire.answer();
        assert_eq!(
            answer.header("connection"),
            Some("close"),
            "{}",
            answer.text()
        );
    }
    assert!(rescue.calls().is_empty());
}

#[test]
fn a_rate_limit_that_comes_before_the_body_was_taken_sends_the_account_to_cool() {
    let rescue = Emulator::start(Emulator::with_accounts(1));
    let does = Does::Answer(429, "application/json", REFUSAL);
    for body in [large(chat("")), large(chat_stream(""))] {
        let gateway = gateway(does, &rescue);
        let answer = gateway.post(PATH, &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let line = logged(&gateway, &answer);
        assert_eq!(line["upstream"], "second", "{line}");
        assert_eq!(tries(&line), ["rate_limited", "ok"], "{line}");
        // It is left alone for as long as it said.
        let answer = gateway.post(PATH, &body);
        assert_eq!(logged(&gateway, &answer)["attempts"], 1);
    }
}

#[test]
fn a_whole_answer_to_half_a_request_arrives_whole() {
    let rescue = Emulator::start(Emulator::with_accounts(1));
    let json = gateway(Does::Answer(200, "application/json", WHOLE), &rescue);
    let stream = gateway(Does::Answer(200, "text/event-stream", STREAM), &rescue);
    // Small ones are a race that must not matter who wins.
    for text in ["a".repeat(1 << 20)]
        .iter()
        .chain(&vec!["hi".to_owned(); 30])
    {
        let answer = json.post(PATH, &chat(text));
        assert_eq!((answer.status, answer.ending), (200, Ending::Whole));
        assert_eq!(answer.text(), WHOLE);
        let answer = stream.stream(PATH, &chat_stream(text)).rest();
        assert_eq!((answer.status, answer.ending), (200, Ending::Whole));
        assert_eq!(answer.text(), STREAM);
    }
    for gateway in [&json, &stream] {
        gateway.wait_until_idle(SOON);
        let ok = gateway.metric("tidegate_attempts_total", &["outcome=\"ok\""]);
        assert_eq!(ok, 31.0);
    }
}

#[test]
fn who_takes_no_more_of_a_request_is_given_up_after_one_write() {
    let rescue = Emulator::start(Emulator::with_accounts(1));
    let gateway = gateway(Does::Stall, &rescue);
    for body in [large(chat("")), large(chat_stream(""))] {
        let began = Instant::now();
        let answer = gateway.post(PATH, &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(
            began.elapsed() < Duration::from_secs(8),
            "{:?}",
            began.elapsed()
        );
        let line = logged(&gateway, &answer);
        assert_eq!(line["upstream"], "second", "{line}");
    }
}

#[test]
fn a_request_that_is_taken_slowly_ends_in_time_and_with_its_client() {
    let rescue = Emulator::start(Emulator::with_accounts(1));
    let gateway = gateway(Does::Sip(Duration::from_millis(200)), &rescue);
    for body in [large(chat("")), large(chat_stream(""))] {
        let began = Instant::now();
        let mut wire = gateway.connect();
        let request = Request::post(PATH, &body).key("acme");
        let hurried = request.clone().header("x-tidegate-timeout", "1500ms");
        wire.send(&hurried.to_bytes());
        assert_eq!(wire.answer().status, 504);
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
        let mut wire = gateway.connect();
        wire.send(&request.to_bytes());
        let arrived = || (gateway.metric("tidegate_requests_in_flight", &[]) == 1.0).then_some(());
        eventually("a request", SOON, arrived);
        drop(wire);
        gateway.wait_until_idle(Duration::from_secs(5));
    }
}

#[test]
fn a_refusal_that_is_all_head_has_our_words() {
    let rescue = Emulator::start(Emulator::with_accounts(1));
    for (status, code) in [(400, "invalid_request"), (404, "not_found")] {
        let gateway = gateway(Does::Head(status), &rescue);
        for body in [chat("hi"), chat_stream("hi")] {
            let answer = gateway.post(PATH, &body);
            assert_eq!((answer.status, answer.code().as_str()), (status, code));
            assert_eq!(logged(&gateway, &answer)["attempts"], 1);
        }
    }
    assert!(rescue.calls().is_empty());
}
