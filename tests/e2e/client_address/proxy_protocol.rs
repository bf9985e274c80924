//! PROXY protocol, versions 1 and 2, from the addresses that must speak it, and from others.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{ALLOWED, OTHER, client_of};
use crate::support::*;

const FROM: &str = "127.0.0.0/8";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 1 of a client at `source`.
fn line(source: &str) -> Vec<u8> {
    format!("PROXY TCP4 {source} 127.0.0.1 4711 8080\r\n").into_bytes()
}

/// Version 2 of a client at `source`, with additions behind the addresses.
fn block(source: &str, additions: &[u8]) -> Vec<u8> {
    let source: Ipv4Addr = source.parse().unwrap();
    let length = u16::try_from(12 + additions.len()).unwrap();
    [
        SIGNATURE,
        b"\x21\x11",
        &length.to_be_bytes(),
        &source.octets(),
        &[127, 0, 0, 1, 0x12, 0x67, 0x1f, 0x90],
        additions,
    ]
    .concat()
}

/// Version 2 of a proxy's own connection: a health check.
fn local() -> Vec<u8> {
    [SIGNATURE, b"\x20\x00\x00\x00"].concat()
}

/// Listeners: plain, plain with HTTP/2, TLS, and plain without a proxy in front.
fn stage(limits: &[(&str, Value)]) -> (Emulator, Gateway) {
    let emulator = Emulator::quick();
    let (certificate, private_key) = tls::certificate();
    let files = json!({"certificate": "cert.pem", "private_key": "key.pem"});
    let listeners = json!([
        {"proxy_protocol_from": [FROM]},
        {"proxy_protocol_from": [FROM], "h2c": true},
        {"proxy_protocol_from": [FROM], "tls": files},
        {"proxy_protocol_from": ["192.0.2.0/24"]},
    ]);
    let config = Config::for_emulator(&emulator)
        .set("/server/listeners", listeners)
        .set(
            "/tenants/0/allow_from",
            json!(["192.0.2.0/24", "2001:db8::/32"]),
        )
        .file("cert.pem", certificate)
        .file("key.pem", private_key);
    let config = limits.iter().fold(config, |config, (name, value)| {
        config.limit(name, value.clone())
    });
    (emulator, Gateway::start(config))
}

fn ask() -> Vec<u8> {
    Request::get("/v1/models").key("acme").to_bytes()
}

fn refused_headers(gateway: &Gateway) -> f64 {
    gateway.metric(
        "tidegate_connections_refused_total",
        &["reason=\"proxy_header\""],
    )
}

#[test]
fn a_proxy_names_the_client_on_plain_and_tls_listeners() {
    let (_emulator, gateway) = stage(&[]);
    let v6 = b"PROXY TCP6 2001:db8::1 ::1 4711 8080\r\n".to_vec();
    let addition = b"\x05\x00\x03abc";
    for (header, status, client) in [
        (line(ALLOWED), 200, ALLOWED),
        (line(OTHER), 403, OTHER),
        (v6, 200, "2001:db8::1"),
        (block(ALLOWED, b""), 200, ALLOWED),
        (block(ALLOWED, addition), 200, ALLOWED),
        (block(OTHER, b""), 403, OTHER),
        // The proxy's own connection is the proxy's.
        (local(), 403, "127.0.0.1"),
        (b"PROXY UNKNOWN\r\n".to_vec(), 403, "127.0.0.1"),
    ] {
        let what = String::from_utf8_lossy(&header).into_owned();
        for listener in [0, 1] {
            let mut wire = Wire::connect(gateway.listener(listener));
            // In one piece with what follows, as a proxy may send it.
            wire.send(&[header.clone(), ask()].concat());
            let answer = wire.answer();
            assert_eq!(
                (answer.status, &*client_of(&gateway, &answer)),
                (status, client),
                "{what}"
            );
            // It stays so for all requests of the connection.
            wire.send(&ask());
            let answer = wire.answer();
            assert_eq!(
                (answer.status, &*client_of(&gateway, &answer)),
                (status, client),
                "{what}"
            );
        }
        let mut wire = Wire::connect_tls_after(&header, gateway.listener(2)).unwrap();
        wire.send(&ask());
        let answer = wire.answer();
        assert_eq!(
            (answer.status, &*client_of(&gateway, &answer)),
            (status, client),
            "TLS, {what}"
        );
    }
    assert_eq!(refused_headers(&gateway), 0.0);
}

#[test]
fn a_header_that_comes_byte_by_byte_is_read_and_nothing_behind_it() {
    let (_emulator, gateway) = stage(&[]);
    for header in [line(ALLOWED), block(ALLOWED, b"\x05\x00\x03abc")] {
        let mut wire = Wire::connect(gateway.listener(0));
        for byte in [header.clone(), ask()].concat() {
            wire.send(&[byte]);
        }
        assert_eq!(wire.answer().status, 200);
        // HTTP/2 by prior knowledge begins right behind it.
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let mut sender = h2::connect_after(&header, gateway.listener(1)).await;
            let request = h2::post(
                "/v1/chat/completions",
                h2::sized(chat("hello").to_string().into()),
            );
            assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
        });
    }
}

#[test]
fn a_proxy_without_a_proper_header_is_cut_off() {
    let (emulator, gateway) = stage(&[]);
    let mut spoilt = block(ALLOWED, b"\x03\x00\x04\0\0\0\0");
    *spoilt.last_mut().unwrap() = 1;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("none", ask()),
        (
            "a TLS hello",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        ),
        (
            "an HTTP/2 preface",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        ),
        (
            "an unknown family",
            b"PROXY UDP4 192.0.2.7 127.0.0.1 1 2\r\n".to_vec(),
        ),
        ("no address", b"PROXY TCP4 x 127.0.0.1 1 2\r\n".to_vec()),
        (
            "a port too large",
            b"PROXY TCP4 192.0.2.7 127.0.0.1 65536 2\r\n".to_vec(),
        ),
        (
            "an endless line",
            [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat(),
        ),
        ("version 3", [SIGNATURE, b"\x31\x11\x00\x0c"].concat()),
        (
            "a length that is too long",
            [SIGNATURE, b"\x21\x11\xff\xff"].concat(),
        ),
        (
            "a length that is too short",
            [SIGNATURE, b"\x21\x11\x00\x04\x7f\0\0\x01"].concat(),
        ),
        ("a wrong checksum", spoilt),
    ];
    let mut seen = 0.0;
    for (what, bytes) in &cases {
        for listener in [0, 2] {
            let mut wire = Wire::connect(gateway.listener(listener));
            let _ = wire.try_send(bytes);
            assert!(wire.is_closed_within(SOON), "{what}");
            seen += 1.0;
            eventually("it is counted", SOON, || {
                (refused_headers(&gateway) == seen).then_some(())
            });
        }
    }
    assert_eq!(gateway.metric("tidegate_requests_total", &[]), 0.0);
    assert!(emulator.calls().is_empty());
    let mut good = Wire::connect(gateway.listener(0));
    good.send(&[line(ALLOWED), ask()].concat());
    assert_eq!(good.answer().status, 200);
}

#[test]
fn a_header_from_elsewhere_is_no_http() {
    let (_emulator, gateway) = stage(&[]);
    for header in [line(ALLOWED), block(ALLOWED, b""), local()] {
        let mut wire = Wire::connect(gateway.listener(3));
        wire.send(&[header, ask()].concat());
        let answer = wire.answer();
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "bad_request")
        );
        assert!(wire.is_closed_within(SOON));
    }
    let mut plain = Wire::connect(gateway.listener(3));
    plain.send(&ask());
    let answer = plain.answer();
    assert_eq!(
        (answer.status, &*client_of(&gateway, &answer)),
        (403, "127.0.0.1")
    );
    assert_eq!(refused_headers(&gateway), 0.0);
}

#[test]
fn a_header_that_does_not_come_is_waited_for_as_long_as_a_handshake() {
    let (_emulator, gateway) = stage(&[("tls_handshake_timeout", json!("1s"))]);
    for (what, beginning) in [
        ("nothing", &b""[..]),
        ("half a line", b"PROXY TCP4 192.0"),
        ("half a block", &block(ALLOWED, b"")[..20]),
    ] {
        for listener in [0, 2] {
            let began = Instant::now();
            let mut wire = Wire::connect(gateway.listener(listener));
            wire.send(beginning);
            assert!(wire.is_closed_within(SOON), "{what}");
            assert!(began.elapsed() >= Duration::from_millis(900), "{what}");
        }
    }
    eventually("they are counted", SOON, || {
        (refused_headers(&gateway) == 6.0).then_some(())
    });
    // A byte now and then does not make it longer, and the handshake's time is part of it.
    for listener in [0, 2] {
        let began = Instant::now();
        let mut wire = Wire::connect(gateway.listener(listener));
        let header = block(ALLOWED, b"");
        let mut bytes = header.iter().cycle();
        let closed = eventually("it is cut", SOON, || {
            let _ = wire.try_send(&[*bytes.next().unwrap()]);
            (began.elapsed() > Duration::from_secs(3) || wire.has_something())
                .then(|| began.elapsed())
        });
        assert!(closed < Duration::from_secs(3), "{closed:?}");
    }
    eventually("their places are free", SOON, || {
        (gateway.metric("tidegate_connections_open", &[]) == 0.0).then_some(())
    });
}

#[test]
fn the_cap_per_address_counts_the_named_client_and_not_the_proxy() {
    let (_emulator, gateway) = stage(&[("max_connections_per_ip", json!(2))]);
    let connect = |client: &str| {
        let mut wire = Wire::connect(gateway.listener(0));
        wire.send(&[line(client), ask()].concat());
        wire
    };
    let mut kept = Vec::new();
    for client in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        for _ in 0..2 {
            let mut wire = connect(client);
            assert_eq!(wire.answer().status, 200, "{client}");
            kept.push(wire);
        }
        assert!(connect(client).is_closed_within(SOON), "{client}");
    }
    let refused = gateway.metric(
        "tidegate_connections_refused_total",
        &["reason=\"per_address\""],
    );
    assert_eq!(refused, 3.0);
    // A closed connection gives its place back to its client.
    drop(kept.pop());
    eventually("there is room again", SOON, || {
        let answer = connect("192.0.2.3").try_answer()?;
        (answer.status == 200).then_some(())
    });
    assert!(connect("192.0.2.1").is_closed_within(SOON));
}

#[test]
fn a_proxy_in_front_of_a_proxy_names_through_both() {
    let emulator = Emulator::quick();
    let listener = json!({"proxy_protocol_from": [FROM], "trusted_proxies": ["10.0.0.0/8"]});
    let config = Config::for_emulator(&emulator)
        .set("/server/listeners/0", listener)
        .set("/tenants/0/allow_from", json!(["192.0.2.0/24"]));
    let gateway = Gateway::start(config);
    let ask = |peer: &str, named: &str| {
        let request = Request::get("/v1/models").key("acme");
        let request = request.header("x-forwarded-for", named);
        let mut wire = gateway.connect();
        wire.send(&[line(peer), request.to_bytes()].concat());
        wire.answer().status
    };
    assert_eq!(ask("10.0.0.1", ALLOWED), 200);
    assert_eq!(ask("10.0.0.1", OTHER), 403);
    // The proxy's word on its peer is believed, the peer's own word is not.
    assert_eq!(ask(OTHER, ALLOWED), 403);
    assert_eq!(ask(ALLOWED, OTHER), 200);
}
