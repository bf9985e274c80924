//! Request bodies of every size and framing arrive whole, at the second account too; what is too
//! large, encoded or not JSON is refused.

use bytes::Bytes;
use serde_json::json;

use crate::support::*;

const MIB: usize = 1 << 20;

/// A chat body of exactly `size` bytes that the gateway has nothing to edit in. Its numbers make a
/// piece in the wrong place change the hash.
fn body_of(size: usize) -> Vec<u8> {
    let head =
        br#"{"model":"deepseek-flash","messages":[{"role":"user","content":"hello"}],"x_filler":""#;
    let tail = br#""}"#;
    let mut body = head.to_vec();
    let mut number = 0;
    while body.len() < size - tail.len() - 10 {
        body.extend_from_slice(format!("{number:09} ").as_bytes());
        number += 1;
    }
    body.resize(size - tail.len(), b'.');
    body.extend_from_slice(tail);
    body
}

/// The last call carried exactly `body`.
fn arrived(emulator: &Emulator, what: &str, body: &[u8]) {
    let call = emulator.calls().pop().unwrap();
    assert_eq!(call["body_bytes"], body.len(), "{what}");
    assert_eq!(call["body_fnv"], fnv(body), "{what}");
    let length = header_of(&call, "content-length").map(str::to_owned);
    assert_eq!(length, Some(body.len().to_string()), "{what}");
}

/// Two accounts; the first says 503 to each request.
fn with_a_broken_account() -> (Emulator, Gateway) {
    let emulator = Emulator::start(Emulator::with_accounts(2));
    emulator.order(Some("account-1"), "status=503");
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    (emulator, gateway)
}

/// Sends until the broken account was met first, and checks both tries.
fn survives(emulator: &Emulator, what: &str, body: &[u8], mut send: impl FnMut() -> u16) {
    for _ in 0..6 {
        emulator.forget_calls();
        assert_eq!(send(), 200, "{what}");
        arrived(emulator, what, body);
        let calls = emulator.calls();
        if calls.len() == 2 {
            assert_eq!(calls[0]["account"], "account-1", "{what}");
            assert_eq!(calls[0]["body_fnv"], fnv(body), "{what}");
            return;
        }
    }
    panic!("{what}: the broken account was never met");
}

fn over_http_1(size: usize) {
    let (emulator, gateway) = with_a_broken_account();
    let body = body_of(size);
    let request = Request::new("POST", "/v1/chat/completions")
        .key("acme")
        .header("content-type", "application/json")
        .body(body.clone());
    for (what, request) in [
        ("with a length", request.clone()),
        ("chunked", request.clone().chunked(50_000)),
        ("in large chunks", request.chunked(3_000_000)),
    ] {
        survives(&emulator, what, &body, || {
            request.send(gateway.address()).status
        });
    }
}

fn over_http_2(size: usize, tls: bool) {
    let (emulator, gateway) = if tls {
        let emulator = Emulator::start(Emulator::with_accounts(2));
        emulator.order(Some("account-1"), "status=503");
        let (certificate, private_key) = tls::certificate();
        let listener = json!([{"tls": {"certificate": "cert.pem", "private_key": "key.pem"}}]);
        let config = Config::for_emulator(&emulator)
            .set("/server/listeners", listener)
            .file("cert.pem", certificate)
            .file("key.pem", private_key);
        let gateway = Gateway::start(config);
        (emulator, gateway)
    } else {
        with_a_broken_account()
    };
    let body = Bytes::from(body_of(size));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut sender = runtime.block_on(async {
        if tls {
            h2::connect_tls(gateway.address()).await
        } else {
            h2::connect(gateway.address()).await
        }
    });
    for (what, sized) in [("with a length", true), ("without a length", false)] {
        survives(&emulator, what, &body, || {
            let body = if sized {
                h2::sized(body.clone())
            } else {
                h2::unsized_(body.clone(), 40_000)
            };
            runtime.block_on(async {
                let request = h2::post("/v1/chat/completions", body);
                let answer = sender.send_request(request).await.unwrap();
                let status = answer.status().as_u16();
                let body = h2::whole(answer).await;
                assert!(status != 200 || body.ends_with(b"}"), "{what}");
                status
            })
        });
    }
}

#[test]
fn a_small_body_arrives_whole_over_http_1_though_the_first_account_fails() {
    over_http_1(1000);
}

#[test]
fn a_body_of_64_kib_and_one_byte_arrives_whole_over_http_1_though_the_first_account_fails() {
    over_http_1(64 * 1024);
    over_http_1(64 * 1024 + 1);
}

#[test]
fn a_body_of_1_mib_arrives_whole_over_http_1_though_the_first_account_fails() {
    over_http_1(MIB);
}

#[test]
fn a_body_of_20_mib_arrives_whole_over_http_1_though_the_first_account_fails() {
    over_http_1(20 * MIB);
}

#[test]
fn a_body_of_1_mib_arrives_whole_over_http_2_though_the_first_account_fails() {
    over_http_2(MIB, false);
}

#[test]
fn a_body_of_20_mib_arrives_whole_over_http_2_though_the_first_account_fails() {
    over_http_2(20 * MIB, false);
}

#[test]
fn a_body_of_1_mib_arrives_whole_over_http_2_in_tls_though_the_first_account_fails() {
    over_http_2(MIB, true);
}

#[test]
fn a_body_of_20_mib_arrives_whole_over_http_2_in_tls_though_the_first_account_fails() {
    over_http_2(20 * MIB, true);
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it_before_it_sends_the_body() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let body = body_of(200_000);
    let request = Request::new("POST", "/v1/chat/completions")
        .header("expect", "100-continue")
        .header("content-type", "application/json")
        .body(body.clone());
    for request in [request.clone(), request.clone().chunked(30_000)] {
        let request = request.key("acme");
        let mut wire = gateway.connect();
        wire.send(&request.head());
        wire.send_after_continue(&request.framed_body());
        assert_eq!(wire.answer().status, 200);
        arrived(&emulator, "after 100", &body);
    }
    // A request that is refused by its head is not asked for its body.
    let mut wire = gateway.connect();
    wire.send(&request.head());
    let answer = wire.answer();
    assert_eq!((answer.status, answer.interim.len()), (401, 0));
}

#[test]
fn a_body_over_the_limit_is_refused_by_its_length_at_once_and_by_counting() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).limit("max_request_body", "100KiB");
    let gateway = Gateway::start(config);
    let request = Request::new("POST", "/v1/chat/completions")
        .key("acme")
        .body(body_of(100 * 1024 + 1));
    // By the length alone: nothing of the body was sent.
    let mut wire = gateway.connect();
    wire.send(&request.head());
    assert_eq!(wire.answer().status, 413);
    for request in [request.clone(), request.chunked(7_000)] {
        let answer = request.send(gateway.address());
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (413, "body_too_large")
        );
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut sender = h2::connect(gateway.address()).await;
        let body = Bytes::from(body_of(200 * 1024));
        for body in [h2::sized(body.clone()), h2::unsized_(body, 7_000)] {
            let request = h2::post("/v1/chat/completions", body);
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.status(), 413);
        }
    });
    assert!(emulator.calls().is_empty());
    let fits = Request::new("POST", "/v1/chat/completions")
        .key("acme")
        .body(body_of(100 * 1024));
    assert_eq!(fits.send(gateway.address()).status, 200);
}

#[test]
fn bodies_beyond_what_the_process_may_hold_are_refused_until_there_is_room() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator)
        .limit("max_request_body", "1MiB")
        .limit("max_buffered_bodies", "1MiB");
    let gateway = Gateway::start(config);
    let request = Request::new("POST", "/v1/chat/completions")
        .key("acme")
        .header("content-type", "application/json")
        .body(body_of(700 * 1024));
    // What was announced costs nothing, what has come does.
    let body = request.framed_body();
    let (most, rest) = body.split_at(600 * 1024);
    let mut silent = gateway.connect();
    silent.send(&request.head());
    let mut first = gateway.connect();
    first.send(&request.head());
    first.send(most);
    eventually("the first body is counted", SOON, || {
        let held = gateway.metric("tidegate_request_body_buffer_bytes", &[]);
        (held >= 600.0 * 1024.0).then_some(())
    });
    let answer = request.send(gateway.address());
    assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
    assert!(answer.header("retry-after").is_some());
    first.send(rest);
    assert_eq!(first.answer().status, 200);
    eventually("the room is given back", SOON, || {
        let held = gateway.metric("tidegate_request_body_buffer_bytes", &[]);
        (held == 0.0).then_some(())
    });
    assert_eq!(request.send(gateway.address()).status, 200);
}

#[test]
fn an_encoded_body_is_a_415() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    for encoding in ["gzip", "br", "zstd", "deflate, gzip", "identity, gzip"] {
        let request = Request::post("/v1/chat/completions", &chat("hello"))
            .key("acme")
            .header("content-encoding", encoding);
        let answer = request.send(gateway.address());
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (415, "unsupported_encoding")
        );
    }
    assert!(emulator.calls().is_empty());
}

#[test]
fn a_body_that_is_not_one_clear_json_object_is_a_400() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", b"".to_vec()),
        ("blanks", b"  \r\n".to_vec()),
        ("text", b"hello".to_vec()),
        ("a list", b"[]".to_vec()),
        ("a string", b"\"model\"".to_vec()),
        ("no model", br#"{"messages":[]}"#.to_vec()),
        ("a model that is no text", br#"{"model":1}"#.to_vec()),
        ("a model that is null", br#"{"model":null}"#.to_vec()),
        (
            "two models",
            br#"{"model":"deepseek-flash","model":"deepseek-v4-pro"}"#.to_vec(),
        ),
        (
            "two models, one escaped",
            br#"{"model":"deepseek-flash","\u006dodel":"deepseek-v4-pro"}"#.to_vec(),
        ),
        (
            "the same model twice",
            br#"{"model":"deepseek-flash","model":"deepseek-flash"}"#.to_vec(),
        ),
        (
            "a cut object",
            br#"{"model":"deepseek-flash","messages":["#.to_vec(),
        ),
        (
            "something behind",
            br#"{"model":"deepseek-flash","messages":[]} {}"#.to_vec(),
        ),
        (
            "a comma too much",
            br#"{"model":"deepseek-flash",}"#.to_vec(),
        ),
        ("single quotes", b"{'model':'deepseek-flash'}".to_vec()),
        (
            "no UTF-8",
            b"{\"model\":\"deepseek-flash\",\"x\":\"\xff\"}".to_vec(),
        ),
        (
            "overlong UTF-8",
            b"{\"model\":\"deepseek-flash\",\"x\":\"\xc0\xaf\"}".to_vec(),
        ),
        (
            "a byte order mark",
            b"\xef\xbb\xbf{\"model\":\"deepseek-flash\"}".to_vec(),
        ),
        (
            "UTF-16",
            "{\"model\":\"x\"}".bytes().flat_map(|b| [b, 0]).collect(),
        ),
        (
            "a stream that is no boolean",
            br#"{"model":"deepseek-flash","stream":"yes"}"#.to_vec(),
        ),
        (
            "deep nesting",
            [
                br#"{"model":"deepseek-flash","x":"#.to_vec(),
                vec![b'['; 100_000],
            ]
            .concat(),
        ),
    ];
    for (what, body) in cases {
        for chunked in [false, true] {
            for path in ["/v1/chat/completions", "/anthropic/v1/messages"] {
                let request = Request::new("POST", path).key("acme").body(body.clone());
                let request = if chunked {
                    request.chunked(11)
                } else {
                    request
                };
                let answer = request.send(gateway.address());
                assert_eq!(answer.status, 400, "{what}: {}", answer.text());
                assert_eq!(answer.code(), "invalid_body", "{what}");
                assert_eq!(answer.header("x-should-retry"), Some("false"), "{what}");
            }
        }
    }
    assert!(emulator.calls().is_empty());
    assert!(gateway.is_serving());
}
