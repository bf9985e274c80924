//! The upstream is not trusted: what it sends that it should not ends at the gateway, in an honest
//! error, and takes neither a key nor a connection with it.

use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::json;

use crate::support::hostile::Hostile;
use crate::support::*;

const UPSTREAM_KEY: &str = "sk-upstream-of-the-poisoned-tests";

/// An upstream that answers every request with the same bytes and closes.
fn upstream(answer: impl Into<Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = answer.into();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { return };
            // The request is small: one read has it.
            let _ = socket.read(&mut [0; 65_536]);
            let _ = socket.write_all(&answer);
        }
    });
    url
}

fn gateway(answer: impl Into<Vec<u8>>) -> Gateway {
    let account = [("main".to_owned(), UPSTREAM_KEY.to_owned())];
    let config = Config::for_urls(&[upstream(answer)], &account);
    Gateway::start(config.set("/upstreams/0/health", json!(false)))
}

/// A whole JSON answer with `more` in its head.
fn whole(status: &str, more: &str) -> String {
    let body = r#"{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#;
    let length = if more.contains("ength:") {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{length}{more}\r\n{body}")
}

#[test]
fn an_answer_that_is_not_what_was_asked_for_is_a_502() {
    let n = whole("200 OK", "").split_once("\r\n\r\n").unwrap().1.len();
    for (what, answer) in [
        (
            "a status line that is none",
            "HTTP/9.9 abc\r\n\r\n".to_owned(),
        ),
        ("a NUL in a field", whole("200 OK", "X-A: a\0b\r\n")),
        (
            "a list of lengths",
            whole("200 OK", &format!("Content-Length: {n}, {n}\r\n")),
        ),
        (
            "two lengths",
            whole(
                "200 OK",
                &format!("Content-Length: {n}\r\nContent-Length: 5\r\n"),
            ),
        ),
        (
            "a negative length",
            whole("200 OK", "Content-Length: -1\r\n"),
        ),
        (
            "a compressed answer",
            whole("200 OK", "Content-Encoding: gzip\r\n"),
        ),
        (
            "a success without content",
            "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        ),
        ("a part of a success", whole("206 Partial Content", "")),
        (
            "a redirect",
            whole("302 Found", "Location: http://127.0.0.1:1/\r\n"),
        ),
        (
            "a switch of protocols",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nraw"
                .to_owned(),
        ),
        (
            "an empty answer",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
        ),
    ] {
        let gateway = gateway(answer);
        let told = gateway.post("/v1/chat/completions", &chat("hello"));
        assert_eq!(
            (told.status, told.code().as_str()),
            (502, "upstream_error"),
            "{what}"
        );
        assert!(
            told.header("location").is_none() && !told.text().contains("raw"),
            "{what}"
        );
    }
}

#[test]
fn informational_answers_do_not_reach_the_tenant() {
    let flood = "HTTP/1.1 100 Continue\r\nSet-Cookie: leak=1\r\n\r\n".repeat(1_000);
    let gateway = gateway(flood + &whole("200 OK", ""));
    let mut wire = gateway.connect();
    wire.send(
        &Request::post("/v1/chat/completions", &chat("hello"))
            .key("acme")
            .to_bytes(),
    );
    let told = wire.answer();
    assert_eq!(told.status, 502);
    assert!(told.header("set-cookie").is_none());
}

#[test]
fn a_key_that_the_upstream_echoes_stays_with_us() {
    let body =
        json!({"error": {"message": format!("Your key {UPSTREAM_KEY} is broken")}}).to_string();
    let refusal = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let malformed = format!("HTTP/1.1 200 OK\r\nX-Echo: Bearer {UPSTREAM_KEY}\r\nBad\0: 1\r\n\r\n");
    for answer in [refusal, malformed] {
        let gateway = gateway(answer);
        let told = gateway.post("/v1/chat/completions", &chat("hello"));
        assert!(!told.text().contains(UPSTREAM_KEY), "{}", told.text());
        gateway.access_line(told.header("x-request-id").unwrap());
        assert!(!gateway.log().join("\n").contains(UPSTREAM_KEY));
    }
}

/// An upstream that begins a stream, and with a proper end or a reset leaves off in mid-event.
fn leaving_off(text: String, resets: bool) -> Hostile {
    Hostile::start(move |guest, _| {
        guest.request();
        guest.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n");
        guest.send(b"transfer-encoding: chunked\r\n\r\n");
        guest.send(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes());
        if resets {
            // What was written must have been read: a reset takes it away.
            guest.wait(std::time::Duration::from_millis(300));
            guest.reset();
        } else {
            guest.send(b"0\r\n\r\n");
        }
    })
}

#[test]
fn of_an_event_that_breaks_off_nothing_is_shown() {
    const SAID: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"sea\"}}]}\n\n";
    let account = [("main".to_owned(), UPSTREAM_KEY.to_owned())];
    for half in [
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"br",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"broken\"}}]}\n",
        "data: {\"id\":\"1\",\"error\":{\"message\":\"broken",
        "data: [DONE",
        "da",
    ] {
        for resets in [false, true] {
            let upstream = leaving_off([SAID, half].concat(), resets);
            let config = Config::for_urls(&[upstream.url()], &account);
            let gateway = Gateway::start(config.set("/upstreams/0/health", json!(false)));
            let told = gateway
                .stream("/v1/chat/completions", &chat_stream("hello"))
                .rest();
            let text = told.text();
            assert_eq!((told.status, told.ending), (200, Ending::Broken), "{text}");
            let events: Vec<_> = text
                .split("\n\n")
                .filter(|it| !it.trim().is_empty())
                .collect();
            let [first, last] = events.as_slice() else {
                panic!("{half} {resets}: {text}");
            };
            assert_eq!(*first, SAID.trim_end());
            let error: serde_json::Value = serde_json::from_str(&last["data: ".len()..]).unwrap();
            assert_eq!(error["error"]["code"], "stream_interrupted");
        }
    }
}

/// What an upstream tells of itself in the middle of a stream, and what follows it, end the stream
/// as broken; the same however it is cut.
#[test]
fn an_error_before_the_end_of_a_response_is_no_end_of_its_own() {
    let error =
        format!("event: error\ndata: {{\"type\":\"error\",\"message\":\"{UPSTREAM_KEY}\"}}\n\n");
    let failed = r#"data: {"type":"response.failed","response":{"id":"resp_1","status":"failed"}}"#;
    let account = [("main".to_owned(), UPSTREAM_KEY.to_owned())];
    for end in [
        format!("{error}{failed}\n\n"),
        format!("{error}data: [DONE]\n\n"),
    ] {
        for piece in [end.len(), error.len(), 40] {
            let upstream = failing_response(end.clone(), piece);
            let config = Config::for_urls(&[upstream.url()], &account);
            let gateway = Gateway::start(config.set("/upstreams/0/health", json!(false)));
            let body = with(response("hello"), "stream", json!(true));
            let told = gateway.stream("/v1/responses", &body).rest();
            let text = told.text();
            assert_eq!((told.status, told.ending), (200, Ending::Broken), "{text}");
            assert!(text.contains("stream_interrupted"), "{text}");
            assert!(
                !text.contains("resp_1") && !text.contains(UPSTREAM_KEY),
                "{text}"
            );
            gateway.wait_until_idle(SOON);
            let failed = ["outcome=\"error_in_answer\""];
            assert_eq!(gateway.metric("tidegate_attempts_total", &failed), 1.0);
        }
    }
}

/// What comes before content is passed on once there is much of it.
#[test]
fn a_response_with_much_before_its_content_fails_once() {
    let created =
        json!({"type": "response.created", "response": {"instructions": "a".repeat(70_000)}});
    let failed =
        json!({"type": "response.failed", "response": {"id": "resp_1", "status": "failed"}});
    let stream = format!("event: response.created\ndata: {created}\n\ndata: {failed}\n\n");
    let upstream = Hostile::always(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{stream}"
    ));
    let account = [("main".to_owned(), UPSTREAM_KEY.to_owned())];
    let config = Config::for_urls(&[upstream.url()], &account);
    let gateway = Gateway::start(config.set("/upstreams/0/health", json!(false)));
    let body = with(response("hello"), "stream", json!(true));
    let told = gateway.stream("/v1/responses", &body).rest();
    let text = told.text();
    if told.status == 200 {
        assert_eq!(told.ending, Ending::Whole, "{text}");
        assert_eq!(text.matches("event: ").count(), 2, "{text}");
        assert!(text.contains("event: response.failed\n"), "{text}");
    } else {
        // All of it came at once: it was tried again.
        assert_eq!(told.status, 502, "{text}");
    }
}

/// An upstream whose stream of a response comes to this end, which it writes in these pieces.
fn failing_response(end: String, piece: usize) -> Hostile {
    const BEGINNING: &str = concat!(
        "event: response.output_text.delta\n",
        "data: {\"type\":\"response.output_text.delta\",\"sequence_number\":1,\"delta\":\"sea\"}\n\n"
    );
    Hostile::start(move |guest, _| {
        guest.request();
        guest.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n");
        guest.send(b"transfer-encoding: chunked\r\n\r\n");
        for piece in [BEGINNING.as_bytes()]
            .into_iter()
            .chain(end.as_bytes().chunks(piece))
        {
            let size = format!("{:x}\r\n", piece.len());
            guest.send(&[size.as_bytes(), piece, b"\r\n"].concat());
            // A piece that comes by itself is read by itself.
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        guest.send(b"0\r\n\r\n");
    })
}

#[test]
fn a_response_that_fails_says_so_last_and_in_our_words() {
    let words = format!("Your key {UPSTREAM_KEY} is broken");
    let data = |output: &str| {
        json!({
            "type": "response.failed", "sequence_number": 2,
            "response": {
                "id": "resp_1", "status": "failed", "output": [output],
                "error": {"code": "server_error", "message": words},
            },
        })
        .to_string()
    };
    let named = format!("event: response.failed\ndata: {}\n\n", data(""));
    let long = format!(
        "event: response.failed\ndata: {}\n\n",
        data(&"a".repeat(90_000))
    );
    let oddly =
        |data: serde_json::Value| format!("id: 2\nevent: response.failed\ndata: {data}\n\n");
    let outside = json!({"type": "response.failed", "response": null, "error": {"message": words}});
    let elsewhere = json!({"response": {"id": "resp_1", "status": "failed", "why": words}});
    let endless = json!({"response": {"why": words, "output": "a".repeat(1_200_000)}});
    let ends = [
        (named.clone(), named.len()),
        (named.clone(), 1),
        (named.clone(), 7),
        (named.replace('\n', "\r\n"), 5),
        (named.replace('\n', "\r"), 50),
        (named.trim_end().to_owned(), 9),
        (format!("data: {}\n\n", data("")), 11),
        (format!("{named}data: [DONE]\n\n"), 4_096),
        (format!("{named}data: {{\"error\":\"{words}"), 4_096),
        (long.clone(), 10_000),
        (format!("id: 2\n{long}"), 10_000),
        (oddly(outside), 20),
        (oddly(elsewhere), 20),
        (oddly(endless), 70_000),
        (format!("event: response.failed\ndata: {words}\n\n"), 20),
    ];
    for (end, piece) in ends {
        let upstream = failing_response(end.clone(), piece);
        let account = [("main".to_owned(), UPSTREAM_KEY.to_owned())];
        let config = Config::for_urls(&[upstream.url()], &account);
        let gateway = Gateway::start(config.set("/upstreams/0/health", json!(false)));
        let body = with(response("hello"), "stream", json!(true));
        let told = gateway.stream("/v1/responses", &body).rest();
        let text = told.text();
        assert_eq!((told.status, told.ending), (200, Ending::Whole), "{text}");
        let last = text.trim_end().lines().last().unwrap();
        let last: serde_json::Value = serde_json::from_str(&last["data: ".len()..]).unwrap();
        assert_eq!(last["type"], "response.failed", "{text}");
        let known = end.contains("resp_1");
        assert_eq!(last["response"]["id"].is_string(), known, "{text}");
        assert_eq!(last["response"]["error"]["code"], "server_error");
        assert_eq!(text.matches("event: response.failed").count(), 1, "{text}");
        assert!(!text.contains("broken"), "{text}");
        let line = gateway.access_line(told.header("x-request-id").unwrap());
        assert_eq!(line["ending"], "complete", "{line}");
        gateway.wait_until_idle(SOON);
        let failed = ["outcome=\"error_in_answer\""];
        assert_eq!(gateway.metric("tidegate_attempts_total", &failed), 1.0);
    }
}

#[test]
fn bytes_after_an_answer_are_never_part_of_the_next() {
    let smuggled =
        whole("200 OK", "") + &whole("200 OK", "X-Smuggled: 1\r\n").replace("stop", "smuggled");
    let gateway = gateway(smuggled);
    for _ in 0..5 {
        let told = gateway.post("/v1/chat/completions", &chat("hello"));
        assert!(!told.text().contains("smuggled"));
    }
}
