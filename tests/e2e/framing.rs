//! Odd bytes on the wire: each gets a clear no, closes the connection where the next request's
//! beginning is in doubt, reaches no upstream, and harms nobody else.

use std::time::Duration;

use crate::support::*;

const CHAT: &str =
    r#"{"model":"deepseek-flash","messages":[{"role":"user","content":"smuggled"}]}"#;

struct Stand {
    emulator: Emulator,
    gateway: Gateway,
}

impl Stand {
    fn new() -> Self {
        let emulator = Emulator::quick();
        let gateway = Gateway::start(Config::for_emulator(&emulator));
        Self { emulator, gateway }
    }

    /// A POST of a chat with these lines in the head and these bytes behind it.
    fn post(&self, lines: &str, body: &str) -> Vec<u8> {
        let key = key("acme");
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n\
             Content-Type: application/json\r\n{lines}\r\n{body}"
        )
        .into_bytes()
    }

    /// What comes back; `None` if the connection just ends.
    fn ask(&self, bytes: &[u8]) -> (Option<Answer>, Wire) {
        let mut wire = self.gateway.connect();
        // The other side may close before everything is written.
        let _ = wire.try_send(bytes);
        let answer = wire.try_answer();
        (answer, wire)
    }

    /// Expects one of `statuses`, an error object, a closed connection and no second answer.
    fn closes(&self, what: &str, bytes: &[u8], statuses: &[u16]) {
        let (answer, mut wire) = self.ask(bytes);
        let answer = answer.unwrap_or_else(|| panic!("{what}: no answer"));
        assert!(
            statuses.contains(&answer.status),
            "{what}: {} {}",
            answer.status,
            answer.text()
        );
        assert!(
            answer.json()["error"]["code"].is_string(),
            "{what}: {}",
            answer.text()
        );
        assert!(answer.header("x-request-id").is_some(), "{what}");
        assert!(
            wire.is_closed_within(Duration::from_secs(5)),
            "{what}: the connection stays open"
        );
    }

    /// Expects a 4xx and a closed connection, or only the latter.
    fn closes_somehow(&self, what: &str, bytes: &[u8]) {
        let (answer, mut wire) = self.ask(bytes);
        if let Some(answer) = answer {
            let fine = (400..500).contains(&answer.status) || answer.status == 501;
            assert!(fine, "{what}: {} {}", answer.status, answer.text());
        }
        assert!(
            wire.is_closed_within(Duration::from_secs(5)),
            "{what}: the connection stays open"
        );
    }

    /// Nothing went upstream, and the gateway still serves.
    fn is_unharmed(&self) {
        let calls = self.emulator.calls();
        assert!(calls.is_empty(), "{calls:#?}");
        assert!(self.gateway.is_serving());
    }
}

fn chunk(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

#[test]
fn a_length_beside_a_transfer_coding_is_refused() {
    let stand = Stand::new();
    let length = CHAT.len();
    for (what, lines, body) in [
        (
            "CL.TE",
            format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"),
            chunk(CHAT),
        ),
        (
            "TE.CL",
            format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"),
            chunk(CHAT),
        ),
        (
            "CL.TE, odd case",
            format!("cOnTeNt-LeNgTh:{length}\r\ntransfer-encoding:CHUNKED\r\n"),
            chunk(CHAT),
        ),
        (
            "CL 0 and TE",
            "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n".to_owned(),
            chunk(CHAT),
        ),
    ] {
        stand.closes(what, &stand.post(&lines, &body), &[400]);
    }
    stand.is_unharmed();
}

#[test]
fn a_length_that_two_parsers_could_read_differently_is_refused() {
    let stand = Stand::new();
    let n = CHAT.len();
    for lines in [
        format!("Content-Length: {n}\r\nContent-Length: {n}\r\n"),
        format!("Content-Length: {n}\r\nContent-Length: 0\r\n"),
        format!("Content-Length: {n}, {n}\r\n"),
        format!("Content-Length: +{n}\r\n"),
        format!("Content-Length: -{n}\r\n"),
        format!("Content-Length: 0x{n:x}\r\n"),
        format!("Content-Length: {n}.0\r\n"),
        format!("Content-Length: {n}_0\r\n"),
        "Content-Length: \r\n".to_owned(),
        "Content-Length: 9223372036854775808\r\n".to_owned(),
        "Content-Length: 99999999999999999999999999\r\n".to_owned(),
    ] {
        stand.closes(&lines, &stand.post(&lines, CHAT), &[400]);
    }
    stand.is_unharmed();
}

#[test]
fn any_transfer_coding_but_one_chunked_is_refused() {
    let stand = Stand::new();
    for lines in [
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding: \r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
    ] {
        stand.closes(lines, &stand.post(lines, &chunk(CHAT)), &[400, 501]);
    }
    let old = stand.post("Transfer-Encoding: chunked\r\n", &chunk(CHAT));
    let old = String::from_utf8(old)
        .unwrap()
        .replace("HTTP/1.1", "HTTP/1.0");
    stand.closes("a coding in HTTP/1.0", old.as_bytes(), &[400]);
    stand.is_unharmed();
}

#[test]
fn a_head_that_is_not_clean_is_refused() {
    let stand = Stand::new();
    let n = CHAT.len();
    let clean = String::from_utf8(stand.post(&format!("Content-Length: {n}\r\n"), CHAT)).unwrap();
    let line = |line: &str| clean.replace("Content-Type", &format!("{line}\r\nContent-Type"));
    for (what, bytes) in [
        (
            "folded field",
            clean.replace("application/json\r\n", "application/json\r\n ;x=y\r\n"),
        ),
        (
            "folded first field",
            clean.replace("Host: gateway", " Host: gateway"),
        ),
        (
            "bare LF after a field",
            clean.replace("gateway\r\n", "gateway\n"),
        ),
        (
            "bare LF in the request line",
            clean.replacen("\r\n", "\n", 1),
        ),
        ("bare LF at the end", clean.replace("\r\n\r\n", "\r\n\n")),
        ("only bare LF", clean.replace("\r\n", "\n")),
        ("NUL in a value", line("X-A: a\0b")),
        ("NUL in a name", line("X\0A: a")),
        ("CR in a value", line("X-A: a\rb")),
        ("control character in a value", line("X-A: a\x01b")),
        ("DEL in a value", line("X-A: a\x7fb")),
        ("space in a name", line("X A: a")),
        ("space before the colon", line("X-A : a")),
        ("no colon", line("X-A")),
        ("no name", line(": a")),
        ("version 1.2", clean.replace("HTTP/1.1", "HTTP/1.2")),
        ("version 3.0", clean.replace("HTTP/1.1", "HTTP/3.0")),
        ("no version", clean.replace(" HTTP/1.1", "")),
        ("no Host", clean.replace("Host: gateway\r\n", "")),
        ("two Hosts", line("Host: other")),
        ("the same Host twice", line("Host: gateway")),
        (
            "garbage",
            "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned(),
        ),
        (
            "CONNECT",
            "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n".to_owned(),
        ),
        ("an unknown expectation", line("Expect: 200-ok")),
    ] {
        stand.closes_somehow(what, bytes.as_bytes());
    }
    stand.is_unharmed();
}

#[test]
fn odd_targets_and_methods_do_not_exist() {
    let stand = Stand::new();
    let n = CHAT.len();
    let clean = String::from_utf8(stand.post(&format!("Content-Length: {n}\r\n"), CHAT)).unwrap();
    for (what, bytes, status) in [
        (
            "absolute form",
            clean.replace(" /v1", " http://gateway/v1"),
            404,
        ),
        (
            "absolute form to another host",
            clean.replace(" /v1", " http://127.0.0.1:1/v1"),
            400,
        ),
        (
            "NUL in the target",
            clean.replace("completions ", "completions\0 "),
            404,
        ),
        (
            "space in the target",
            clean.replace("completions ", "completions x "),
            404,
        ),
        ("asterisk", clean.replace("/v1/chat/completions", "*"), 404),
        ("lower case", clean.replace("POST", "post"), 405),
        ("made up", clean.replace("POST", "SMUGGLE"), 405),
        ("TRACE", clean.replace("POST", "TRACE"), 405),
        ("PATCH", clean.replace("POST", "PATCH"), 405),
    ] {
        let (answer, _) = stand.ask(bytes.as_bytes());
        assert_eq!(answer.unwrap().status, status, "{what}");
    }
    stand.is_unharmed();
}

#[test]
fn heads_and_targets_have_their_limits_each_with_its_status() {
    let stand = Stand::new();
    let n = CHAT.len();
    let length = format!("Content-Length: {n}\r\n");
    let many: String = (0..101).map(|n| format!("X-{n}: a\r\n")).collect();
    let hundreds: String = (0..300).map(|n| format!("X-{n}: a\r\n")).collect();
    let large = format!("X-A: {}\r\n", "a".repeat(70_000));
    let huge = format!("X-A: {}\r\n", "a".repeat(2_000_000));
    stand.closes("101 fields", &stand.post(&(many + &length), CHAT), &[431]);
    stand.closes("70 kB", &stand.post(&(large + &length), CHAT), &[431]);
    stand.closes_somehow("300 fields", &stand.post(&(hundreds + &length), CHAT));
    stand.closes_somehow("2 MB", &stand.post(&(huge + &length), CHAT));
    let post = String::from_utf8(stand.post(&length, CHAT)).unwrap();
    let long = post.replace("completions", &format!("completions?{}", "a".repeat(8200)));
    stand.closes("a long target", long.as_bytes(), &[414]);
    stand.is_unharmed();
    let fits = format!("X-A: {}\r\n", "a".repeat(60_000));
    let (answer, _) = stand.ask(&stand.post(&(fits + &length), CHAT));
    assert_eq!(answer.unwrap().status, 200);
}

#[test]
fn an_http_1_0_client_is_served_and_the_connection_closed() {
    let stand = Stand::new();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.0\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{CHAT}",
        key("acme"),
        CHAT.len()
    );
    let (answer, mut wire) = stand.ask(request.as_bytes());
    assert_eq!(answer.unwrap().status, 200);
    assert!(wire.is_closed_within(Duration::from_secs(5)));
}

#[test]
fn a_chunked_body_whose_framing_is_broken_never_reaches_the_upstream() {
    let stand = Stand::new();
    let n = CHAT.len();
    for (what, body) in [
        ("no hexadecimal size", format!("zz\r\n{CHAT}\r\n0\r\n\r\n")),
        ("a negative size", format!("-{n:x}\r\n{CHAT}\r\n0\r\n\r\n")),
        (
            "a size with a sign",
            format!("+{n:x}\r\n{CHAT}\r\n0\r\n\r\n"),
        ),
        (
            "a size with a prefix",
            format!("0x{n:x}\r\n{CHAT}\r\n0\r\n\r\n"),
        ),
        (
            "a size too large for any machine",
            format!("fffffffffffffffff\r\n{CHAT}\r\n0\r\n\r\n"),
        ),
        (
            "a size that overflows",
            format!("ffffffffffffffff\r\n{CHAT}\r\n0\r\n\r\n"),
        ),
        (
            "a size too small",
            format!("{:x}\r\n{CHAT}\r\n0\r\n\r\n", n - 1),
        ),
        (
            "no line end after a chunk",
            format!("{n:x}\r\n{CHAT}0\r\n\r\n"),
        ),
        (
            "a bare LF after the size",
            format!("{n:x}\n{CHAT}\r\n0\r\n\r\n"),
        ),
    ] {
        let bytes = stand.post("Transfer-Encoding: chunked\r\n", &body);
        stand.closes_somehow(what, &bytes);
        let calls = stand.emulator.calls();
        assert!(calls.is_empty(), "{what}: {calls:#?}");
    }
    stand.is_unharmed();
}

#[test]
fn extensions_and_trailers_of_a_chunked_body_are_dropped() {
    let stand = Stand::new();
    let n = CHAT.len();
    let body = format!(
        "{n:x};name=value\r\n{CHAT}\r\n0\r\nX-Trailer: a\r\nAuthorization: Bearer x\r\n\r\n"
    );
    let (answer, _) = stand.ask(&stand.post("Transfer-Encoding: chunked\r\n", &body));
    assert_eq!(answer.unwrap().status, 200);
    let call = stand.emulator.call();
    assert_eq!(call["body"], CHAT);
    assert_eq!(header_of(&call, "content-length").unwrap(), n.to_string());
    assert_eq!(header_of(&call, "transfer-encoding"), None);
    assert_eq!(header_of(&call, "x-trailer"), None);
}

#[test]
fn no_byte_of_a_refused_body_is_run_as_a_request() {
    let stand = Stand::new();
    let inner = stand.post(&format!("Content-Length: {}\r\n", CHAT.len()), CHAT);
    let inner = String::from_utf8(inner).unwrap();
    let n = inner.len();
    for (what, bytes) in [
        (
            "refused for its credential",
            format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: {n}\r\n\r\n{inner}"
            ),
        ),
        (
            "refused for its path",
            format!("POST /nowhere HTTP/1.1\r\nHost: h\r\nContent-Length: {n}\r\n\r\n{inner}"),
        ),
        (
            "refused for its coding",
            format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Encoding: gzip\r\nContent-Length: {n}\r\n\r\n{inner}"
            ),
        ),
        (
            "a body where none is taken",
            format!("GET /v1/models HTTP/1.1\r\nHost: h\r\nContent-Length: {n}\r\n\r\n{inner}"),
        ),
        (
            "refused with a chunked body",
            format!(
                "POST /nowhere HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{}",
                chunk(&inner)
            ),
        ),
        (
            "both framings, and a request behind the chunks",
            format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"
            ),
        ),
    ] {
        let (answer, mut wire) = stand.ask(bytes.as_bytes());
        let status = answer.unwrap().status;
        assert!((400..502).contains(&status), "{what}: {status}");
        // The connection either closes or waits for a request that has not come yet.
        wire.patience(Duration::from_secs(5));
        if !wire.is_closed_within(Duration::from_millis(300)) {
            let good = Request::post("/v1/chat/completions", &chat("after")).key("acme");
            wire.send(&good.to_bytes());
            assert_eq!(wire.answer().status, 200, "{what}");
            assert!(
                stand.emulator.call()["body"]
                    .as_str()
                    .unwrap()
                    .contains("after"),
                "{what}"
            );
            stand.emulator.forget_calls();
        }
        assert!(stand.emulator.calls().is_empty(), "{what}");
    }
    stand.is_unharmed();
}

#[test]
fn a_connection_carries_many_requests_one_after_the_other() {
    let stand = Stand::new();
    let mut wire = stand.gateway.connect();
    for _ in 0..5 {
        wire.send(
            &Request::post("/v1/chat/completions", &chat("hello"))
                .key("acme")
                .to_bytes(),
        );
        assert_eq!(wire.answer().status, 200);
        wire.send(&Request::post("/v1/chat/completions", &chat("hello")).to_bytes());
        assert_eq!(wire.answer().status, 401);
    }
    assert_eq!(stand.emulator.calls().len(), 5);
}
