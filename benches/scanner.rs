//! What the byte-level core costs: the scan and the edit of requests, and the
//! scanners that watch answers. Throughput where bytes dominate, time per event
//! where they do not.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a bench may stop loudly; it is no interface"
)]

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tidegate::relay::answer::AnswerScanner;
use tidegate::relay::event::Shape;
use tidegate::relay::sse::Scanner;
use tidegate::request::edit::Edits;
use tidegate::request::scan::scan;
use tidegate::routing::affinity;

const MEBIBYTE: usize = 1 << 20;

/// A chat request of about `size` bytes, whose text repeats `text` (as JSON) in
/// messages of about 4 KiB.
fn request(size: usize, text: &str) -> Vec<u8> {
    let message = text.repeat((4096.min(size / 2) / text.len()).max(1));
    let mut messages = Vec::new();
    let mut length = 0;
    while length + message.len() < size {
        messages.push(format!(r#"{{"role":"user","content":"{message}"}}"#));
        length += message.len() + 32;
    }
    let messages = messages.join(",");
    format!(
        r#"{{"model":"deepseek-chat","messages":[{messages}],"stream":true,"max_tokens":1000,"temperature":0.7}}"#
    )
    .into_bytes()
}

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("request scan");
    for (name, body) in [
        ("1 KiB", request(1024, "The quick brown fox jumps. ")),
        (
            "1 MiB English",
            request(MEBIBYTE, "The quick brown fox jumps. "),
        ),
        (
            "1 MiB Chinese",
            request(MEBIBYTE, "敏捷的棕色狐狸跳过懒狗。"),
        ),
        (
            "1 MiB code, a line end per 40 bytes",
            request(MEBIBYTE, "    let value = scan(body)?; // read it\\n"),
        ),
        ("1 MiB of escapes only", request(MEBIBYTE, "\\u654f\\u6377")),
    ] {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| b.iter(|| scan(black_box(&body)).unwrap().end));
    }
    group.finish();

    let mut group = c.benchmark_group("conversation key");
    for (name, size) in [("1 KiB", 1024), ("1 MiB", MEBIBYTE)] {
        let body = request(size, "The quick brown fox jumps. ");
        let fields = scan(&body).unwrap();
        group.bench_function(name, |b| {
            b.iter(|| affinity::key("acme", "deepseek-flash", black_box(&fields)));
        });
        group.bench_function(format!("{name}, files"), |b| {
            b.iter(|| black_box(&fields).names_files());
        });
    }
    group.finish();

    let mut group = c.benchmark_group("request edit");
    for (name, size) in [("1 KiB", 1024), ("1 MiB", MEBIBYTE)] {
        let mut body = request(size, "The quick brown fox jumps. ");
        body.reserve(256);
        let fields = scan(&body).unwrap();
        let mut edits = Edits::new();
        edits.replace_model(&fields, "deepseek-v4-flash");
        edits.ask_for_usage(&fields);
        let shared = Bytes::from(body.clone());
        group.bench_function(format!("{name} in place"), |b| {
            b.iter_batched(
                || {
                    (edits.clone(), {
                        let mut copy = Vec::with_capacity(body.len() + 256);
                        copy.extend_from_slice(&body);
                        copy
                    })
                },
                |(edits, mut body)| {
                    edits.apply(&mut body);
                    body
                },
                BatchSize::LargeInput,
            );
        });
        group.bench_function(format!("{name} in pieces"), |b| {
            b.iter_batched(
                || edits.clone(),
                |edits| edits.pieces(&shared),
                BatchSize::SmallInput,
            );
        });
        group.bench_function(format!("{name} made"), |b| {
            b.iter(|| {
                let mut edits = Edits::new();
                edits.replace_model(black_box(&fields), "deepseek-v4-flash");
                edits.ask_for_usage(&fields);
                edits
            });
        });
    }
    group.finish();
}

const DELTA: &str = "data: {\"id\":\"6a1c2c7e-2b0f-4b9e-9d6c-5f1f2f3a4b5c\",\"object\":\"chat.completion.chunk\",\"created\":1795000000,\"model\":\"deepseek-flash\",\"system_fingerprint\":\"fp_8802369eaa_prod0820_fp8_kvcache\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n";
const MESSAGE_DELTA: &str = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\" word\"}}\n\n";
const COUNTED: &str = "data: {\"id\":\"6a1c2c7e-2b0f-4b9e-9d6c-5f1f2f3a4b5c\",\"object\":\"chat.completion.chunk\",\"created\":1795000000,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"finish_reason\":null}],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":3,\"total_tokens\":13}}\n\n";

fn streams(c: &mut Criterion) {
    let mut group = c.benchmark_group("sse event");
    for (name, shape, strip, event) in [
        ("chat delta", Shape::Chat, false, DELTA),
        ("chat delta, usage stripped", Shape::Chat, true, DELTA),
        ("chat delta with usage", Shape::Chat, false, COUNTED),
        ("messages delta", Shape::Messages, false, MESSAGE_DELTA),
    ] {
        let fragment = Bytes::from_static(event.as_bytes());
        let mut scanner = Scanner::new(shape, strip);
        scanner.feed(fragment.clone());
        group.bench_function(name, |b| {
            b.iter(|| scanner.feed(black_box(fragment.clone())))
        });
    }
    let ten = Bytes::from(DELTA.repeat(10));
    let mut scanner = Scanner::new(Shape::Chat, true);
    scanner.feed(ten.clone());
    group.throughput(Throughput::Elements(10));
    group.bench_function("chat delta, ten to a fragment", |b| {
        b.iter(|| scanner.feed(black_box(ten.clone())));
    });
    group.throughput(Throughput::Elements(1));
    for strip in [false, true] {
        let (head, tail) = DELTA.split_at(150);
        let (head, tail) = (
            Bytes::from_static(head.as_bytes()),
            Bytes::from_static(tail.as_bytes()),
        );
        let mut scanner = Scanner::new(Shape::Chat, strip);
        scanner.feed(Bytes::from_static(DELTA.as_bytes()));
        group.bench_function(format!("chat delta in two fragments, strip {strip}"), |b| {
            b.iter(|| {
                (
                    scanner.feed(black_box(head.clone())),
                    scanner.feed(black_box(tail.clone())),
                )
            });
        });
    }
    group.bench_function("first chat delta, read exactly", |b| {
        let fragment = Bytes::from_static(DELTA.as_bytes());
        b.iter(|| Scanner::new(Shape::Chat, true).feed(black_box(fragment.clone())));
    });
    group.finish();
}

fn answers(c: &mut Criterion) {
    let text = "A line of prose that goes on for a while, as answers do.\\n".repeat(16 * 1024);
    let chat = format!(
        r#"{{"id":"x","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":10,"completion_tokens":3}}}}"#
    );
    let numbers = vec!["-0.012345678"; 80_000].join(",");
    let embedding = format!(
        r#"{{"object":"list","data":[{{"index":0,"embedding":[{numbers}]}}],"usage":{{"prompt_tokens":10}}}}"#
    );
    let mut group = c.benchmark_group("answer scan");
    for (name, answer) in [("1 MiB chat", chat), ("1 MiB embedding", embedding)] {
        group.throughput(Throughput::Bytes(answer.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut scanner = AnswerScanner::new(Shape::Chat);
                for piece in answer.as_bytes().chunks(16 * 1024) {
                    scanner.feed(black_box(piece));
                }
                scanner.seen().complete
            });
        });
    }
    group.finish();
}

criterion_group!(benches, requests, streams, answers);
criterion_main!(benches);
