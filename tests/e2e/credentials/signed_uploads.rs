//! Signed uploads stream, and one that was altered never arrives whole.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};

use super::signatures::{MISMATCH, with_signers};
use crate::support::signing::Signing;
use crate::support::*;

/// A form whose file is not UTF-8 and longer than every buffer on the way.
fn form() -> Vec<u8> {
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    [
        b"--cut\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n"
            .as_slice(),
        b"--cut\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.bin\"\r\n\r\n",
        &content,
        b"\r\n--cut--\r\n",
    ]
    .concat()
}

fn upload(signed: &[u8], sent: Vec<u8>) -> Request {
    let header = Signing::new("POST", "/v1/files", signed).header();
    Request::new("POST", "/v1/files")
        .header("authorization", &header)
        .header("content-type", "multipart/form-data; boundary=cut")
        .body(sent)
}

#[test]
fn a_signed_upload_streams_and_arrives_byte_for_byte() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(with_signers(&emulator));
    let form = form();
    for size in [None, Some(40_000), Some(1_000_000), Some(4_000_000)] {
        let request = upload(&form, form.clone());
        let request = size.map_or(request.clone(), |size| request.chunked(size));
        let answer = request.send(gateway.address());
        assert_eq!(answer.status, 200, "{size:?}: {}", answer.text());
        let call = emulator.calls().pop().unwrap();
        assert_eq!(call["body_bytes"], form.len(), "{size:?}");
        assert_eq!(call["body_fnv"], fnv(&form), "{size:?}");
    }
    assert!(gateway.is_serving());
}

#[test]
fn a_signed_upload_is_on_its_way_before_all_of_it_is_here() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(with_signers(&emulator));
    let form = form();
    let bytes = upload(&form, form.clone()).to_bytes();
    let (beginning, rest) = bytes.split_at(1_000_000);
    let mut wire = gateway.connect();
    wire.send(beginning);
    emulator.call_once("the upload has begun", |call| call["outcome"].is_null());
    wire.send(rest);
    assert_eq!(wire.answer().status, 200);
    assert_eq!(emulator.call()["body_fnv"], fnv(&form));
}

#[test]
fn an_altered_upload_never_arrives_whole() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(with_signers(&emulator));
    let form = form();
    let change = |at: usize| {
        let mut altered = form.clone();
        altered[at] ^= 1;
        altered
    };
    let altered = [
        ("its first byte", change(0)),
        ("its last byte", change(form.len() - 1)),
        ("in the middle", change(form.len() / 2)),
        ("longer", [&form[..], b"\r\n"].concat()),
        ("shorter", form[..form.len() - 1].to_vec()),
        ("all of it in one piece", b"--cut--\r\n".to_vec()),
    ];
    for (what, sent) in &altered {
        for chunked in [false, true] {
            let request = upload(&form, sent.clone());
            let request = if chunked {
                request.chunked(100_000)
            } else {
                request
            };
            let mut wire = gateway.connect();
            wire.send(&request.to_bytes());
            let answer = wire.answer();
            let told = (answer.status, answer.code());
            assert_eq!(
                told,
                (MISMATCH.0, MISMATCH.1.to_owned()),
                "{what} {chunked}"
            );
            assert!(wire.is_closed_within(SOON), "{what} {chunked}");
        }
    }
    // An upload that broke off upstream has no body in the journal, a whole one has.
    eventually("all uploads have ended", SOON, || {
        let ended = |call: &Value| call["outcome"].is_string();
        emulator.calls().iter().all(ended).then_some(())
    });
    for call in emulator.calls() {
        assert_eq!(
            (&call["body_bytes"], &call["status"]),
            (&json!(0), &Value::Null),
            "{call}"
        );
    }
    assert_eq!(gateway.get("/v1/files").json()["data"], json!([]));
    gateway.wait_until_idle(SOON);
    let refusals = gateway.metric("tidegate_refusals_total", &["code=\"digest_mismatch\""]);
    assert_eq!(refusals, (altered.len() * 2) as f64);
}

/// An upstream for one connection: what it was sent until it fell silent. Its answer is a 400.
fn listens_to_one(listener: TcpListener) -> Vec<u8> {
    let (mut socket, _) = listener.accept().unwrap();
    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = socket.read(&mut buffer).unwrap_or(0);
        heard.extend_from_slice(&buffer[..count]);
        if count == 0 {
            break;
        }
        let patience = Duration::from_millis(300);
        socket.set_read_timeout(Some(patience)).unwrap();
    }
    let answer = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
    socket.write_all(answer).unwrap();
    heard
}

/// A second last chunk would be read as the beginning of somebody else's request.
#[test]
fn an_empty_signed_upload_has_one_last_chunk() {
    let emulator = Emulator::quick();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let config = with_signers(&emulator)
        .set("/upstreams/0/endpoints", json!([{"url": url}]))
        .set("/upstreams/0/health", json!(false));
    let gateway = Gateway::start(config);
    let upstream = std::thread::spawn(move || listens_to_one(listener));
    let answer = upload(b"", Vec::new()).chunked(10).send(gateway.address());
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_ne!(answer.code(), MISMATCH.1);
    let heard = String::from_utf8(upstream.join().unwrap()).unwrap();
    assert_eq!(
        heard.split_once("\r\n\r\n").unwrap().1,
        "0\r\n\r\n",
        "{heard}"
    );
}
