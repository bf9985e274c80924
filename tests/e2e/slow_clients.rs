//! Clients that take their time take nothing else: every wait has a deadline, connections have
//! caps, and an unfinished request holds no upstream.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::*;

/// Deadlines are a second; they may be kept as late as this on a busy machine.
const LATE: Duration = Duration::from_secs(5);

fn stage(limits: &[(&str, &str)]) -> (Emulator, Gateway) {
    let emulator = Emulator::quick();
    let mut config = Config::for_emulator(&emulator);
    for (name, value) in limits {
        config = config.limit(name, *value);
    }
    let gateway = Gateway::start(config);
    (emulator, gateway)
}

/// Sends one byte after the other, slowly, until the other side has had enough.
fn drip(wire: &mut Wire, bytes: &[u8]) -> Duration {
    let began = Instant::now();
    for byte in bytes {
        let gone = wire.try_send(&[*byte]).is_err();
        if gone || wire.has_something() || began.elapsed() > LATE {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    began.elapsed()
}

fn was_cut_after_a_second(took: Duration) {
    assert!(took >= Duration::from_millis(800), "already after {took:?}");
    assert!(took < LATE, "only after {took:?}");
}

#[test]
fn a_head_that_drips_is_ended_at_its_deadline_with_a_408() {
    let (emulator, gateway) = stage(&[("head_timeout", "1s")]);
    let request = Request::post("/v1/chat/completions", &chat("hello"))
        .key("acme")
        .header("x-a", &"a".repeat(500));
    for lines in [request.head(), b"\r\n".repeat(300)] {
        let mut wire = gateway.connect();
        was_cut_after_a_second(drip(&mut wire, &lines));
        if let Some(answer) = wire.try_answer() {
            assert_eq!(answer.status, 408);
        }
        assert!(wire.is_closed_within(LATE));
    }
    assert!(emulator.calls().is_empty());
    assert!(gateway.is_serving());
}

#[test]
fn silence_before_the_first_byte_is_ended_at_the_deadline_of_a_head() {
    let (_emulator, gateway) = stage(&[("head_timeout", "1s")]);
    let began = Instant::now();
    let mut wire = gateway.connect();
    if let Some(answer) = wire.try_answer() {
        assert_eq!(answer.status, 408);
    }
    assert!(wire.is_closed_within(LATE));
    was_cut_after_a_second(began.elapsed());
}

#[test]
fn the_head_of_a_second_request_has_its_deadline_too() {
    let (emulator, gateway) = stage(&[("head_timeout", "1s")]);
    let request = Request::post("/v1/chat/completions", &chat("hello"))
        .key("acme")
        .header("x-a", &"a".repeat(500));
    let mut wire = gateway.connect();
    wire.send(&request.to_bytes());
    assert_eq!(wire.answer().status, 200);
    was_cut_after_a_second(drip(&mut wire, &request.head()));
    if let Some(answer) = wire.try_answer() {
        assert_eq!(answer.status, 408);
    }
    assert!(wire.is_closed_within(LATE));
    assert_eq!(emulator.calls().len(), 1);
}

#[test]
fn a_body_that_drips_is_a_408_at_its_deadline() {
    let (emulator, gateway) = stage(&[("body_timeout", "1s")]);
    let request = Request::post("/v1/chat/completions", &chat(&"hello ".repeat(50))).key("acme");
    for request in [request.clone(), request.chunked(5)] {
        let mut wire = gateway.connect();
        wire.send(&request.head());
        was_cut_after_a_second(drip(&mut wire, &request.framed_body()));
        let answer = wire.answer();
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (408, "request_timeout")
        );
        assert!(wire.is_closed_within(LATE));
    }
    assert!(emulator.calls().is_empty());
    assert!(gateway.is_serving());
}

#[test]
fn a_body_that_stalls_is_a_408_over_http_2() {
    let (emulator, gateway) = stage(&[("body_timeout", "1s")]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut sender = h2::connect(gateway.address()).await;
        let began = Instant::now();
        let request = h2::post("/v1/chat/completions", h2::stalled(b"{\"model\""));
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 408);
        was_cut_after_a_second(began.elapsed());
        // Only that stream is over.
        let body = h2::sized(chat("hello").to_string().into());
        let request = h2::post("/v1/chat/completions", body);
        assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    });
    assert_eq!(emulator.calls().len(), 1);
}

#[test]
fn a_file_upload_that_stalls_is_ended_and_gives_its_upstream_back() {
    let (emulator, gateway) = stage(&[("body_timeout", "1s")]);
    let upload = Request::new("POST", "/v1/files")
        .key("acme")
        .header("content-type", "multipart/form-data; boundary=cut")
        .body(vec![b'x'; 100_000]);
    let mut wire = gateway.connect();
    wire.send(&upload.head());
    wire.send(&[b'x'; 1000]);
    let began = Instant::now();
    if let Some(answer) = wire.try_answer() {
        assert!((400..500).contains(&answer.status), "{}", answer.text());
    }
    was_cut_after_a_second(began.elapsed());
    gateway.wait_until_idle(SOON);
    assert!(emulator.calls().iter().all(|call| call["status"].is_null()));
}

#[test]
fn a_connection_between_two_requests_is_closed_when_it_idles() {
    let (_emulator, gateway) = stage(&[("idle_timeout", "1s")]);
    let mut wire = gateway.connect();
    wire.send(
        &Request::post("/v1/chat/completions", &chat("hello"))
            .key("acme")
            .to_bytes(),
    );
    assert_eq!(wire.answer().status, 200);
    let began = Instant::now();
    assert!(wire.is_closed_within(LATE));
    was_cut_after_a_second(began.elapsed());
}

#[test]
fn an_http_2_connection_without_streams_is_closed_when_it_idles() {
    let (_emulator, gateway) = stage(&[("idle_timeout", "1s")]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut sender = h2::connect(gateway.address()).await;
        let body = h2::sized(chat("hello").to_string().into());
        let answer = sender
            .send_request(h2::post("/v1/chat/completions", body))
            .await
            .unwrap();
        h2::whole(answer).await;
        let began = Instant::now();
        while !sender.is_closed() {
            assert!(began.elapsed() < LATE);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        was_cut_after_a_second(began.elapsed());
    });
}

#[test]
fn a_connection_is_closed_after_its_requests() {
    let emulator = Emulator::quick();
    let gateway =
        Gateway::start(Config::for_emulator(&emulator).limit("requests_per_connection", 3));
    let mut wire = gateway.connect();
    for _ in 0..3 {
        wire.send(
            &Request::post("/v1/chat/completions", &chat("hello"))
                .key("acme")
                .to_bytes(),
        );
        assert_eq!(wire.answer().status, 200);
    }
    assert!(wire.is_closed_within(LATE));
}

#[test]
fn a_tls_client_that_says_nothing_is_closed_at_the_deadline_of_a_handshake() {
    let emulator = Emulator::quick();
    let (certificate, private_key) = tls::certificate();
    let listener = json!([{"tls": {"certificate": "cert.pem", "private_key": "key.pem"}}]);
    let config = Config::for_emulator(&emulator)
        .set("/server/listeners", listener)
        .file("cert.pem", certificate)
        .file("key.pem", private_key)
        .limit("tls_handshake_timeout", "1s");
    let gateway = Gateway::start(config);
    for first_bytes in [&b""[..], b"\x16\x03\x01"] {
        let began = Instant::now();
        let mut wire = gateway.connect();
        wire.send(first_bytes);
        assert!(wire.is_closed_within(LATE));
        was_cut_after_a_second(began.elapsed());
    }
    // Nor does it get longer by shaking hands for HTTP/2 and then keeping its preface to itself.
    let began = Instant::now();
    let mut silent = tls::connect(gateway.address(), b"\x02h2").unwrap();
    assert!(!matches!(silent.read(&mut [0; 64]), Ok(1..)));
    was_cut_after_a_second(began.elapsed());
    let mut wire = Wire::connect_tls(gateway.address());
    wire.send(
        &Request::post("/v1/chat/completions", &chat("hello"))
            .key("acme")
            .to_bytes(),
    );
    assert_eq!(wire.answer().status, 200);
}

#[test]
fn connections_are_capped_in_total() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator).limit("max_connections", 3));
    caps_at_three(&gateway, "total");
}

#[test]
fn connections_are_capped_per_address() {
    let emulator = Emulator::quick();
    let gateway =
        Gateway::start(Config::for_emulator(&emulator).limit("max_connections_per_ip", 3));
    caps_at_three(&gateway, "per_address");
}

fn caps_at_three(gateway: &Gateway, reason: &str) {
    let reason = format!("reason=\"{reason}\"");
    let mut held: Vec<_> = (0..3).map(|_| gateway.connect()).collect();
    eventually("all are counted", SOON, || {
        (gateway.metric("tidegate_connections_open", &[]) == 3.0).then_some(())
    });
    let mut refused = gateway.connect();
    assert!(refused.is_closed_within(LATE));
    assert_eq!(
        gateway.metric("tidegate_connections_refused_total", &[&reason]),
        1.0
    );
    // Those that are in go on, and operators are not counted.
    held[0].send(&Request::get("/v1/models").key("acme").to_bytes());
    assert_eq!(held[0].answer().status, 200);
    assert!(gateway.is_ready());
    drop(held.pop());
    eventually("its place is free", SOON, || {
        (gateway.metric("tidegate_connections_open", &[]) == 2.0).then_some(())
    });
    assert!(gateway.is_serving());
}

/// Established connections to `port`, by the kernel's table.
fn connections_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!(":{port:04X}");
    let lines = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .filter(|fields| fields[2].ends_with(&remote) && fields[3] == "01")
        .count()
}

#[test]
fn fifty_half_sent_bodies_hold_no_upstream_connection() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).set("/upstreams/0/health", json!(false));
    let gateway = Gateway::start(config);
    let request = Request::post("/v1/chat/completions", &chat(&"hello ".repeat(1000))).key("acme");
    let body = request.framed_body();
    let (half, rest) = body.split_at(body.len() / 2);
    let mut wires: Vec<_> = (0..50)
        .map(|_| {
            let mut wire = gateway.connect();
            wire.send(&request.head());
            wire.send(half);
            wire
        })
        .collect();
    eventually("all heads are in", SOON, || {
        (gateway.metric("tidegate_requests_in_flight", &[]) == 50.0).then_some(())
    });
    assert_eq!(connections_to(emulator.address().port()), 0);
    assert_eq!(emulator.in_flight(), 0);
    assert!(emulator.calls().is_empty());
    for wire in &mut wires {
        wire.send(rest);
    }
    for wire in &mut wires {
        assert_eq!(wire.answer().status, 200);
    }
    assert_eq!(emulator.calls().len(), 50);
}

#[test]
fn a_client_that_breaks_off_in_its_body_leaves_nothing_behind() {
    let (emulator, gateway) = stage(&[]);
    let request = Request::post("/v1/chat/completions", &chat(&"hello ".repeat(1000))).key("acme");
    for request in [request.clone(), request.chunked(100)] {
        for cut in [0, 1, 100, 3000] {
            let mut wire = gateway.connect();
            wire.send(&request.head());
            wire.send(&request.framed_body()[..cut]);
        }
    }
    // Clients that vanish without a word.
    for _ in 0..20 {
        drop(TcpStream::connect(gateway.address()));
    }
    eventually("nothing is left", SOON, || {
        let in_flight = gateway.metric("tidegate_requests_in_flight", &[]);
        let held = gateway.metric("tidegate_request_body_buffer_bytes", &[]);
        let open = gateway.metric("tidegate_connections_open", &[]);
        (in_flight == 0.0 && held == 0.0 && open == 0.0).then_some(())
    });
    assert!(emulator.calls().is_empty());
    assert!(gateway.is_serving());
}
