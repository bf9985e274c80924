//! The upstream is not trusted: what it sends that it should not ends at the gateway, in an honest
//! error, and takes neither a key nor a connection with it.

use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::json;

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
