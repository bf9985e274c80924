//! Every fault of an upstream at every moment of a request: what the tenant sees, what is charged,
//! what the attempts are called. Over HTTP/1.1 and HTTP/2, streamed and not, with the answer's head
//! held back and sent at once. The table of ARCHITECTURE.md, cell by cell.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::*;

/// What a tenant sees.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sees {
    /// The other account's whole answer, and nothing of the fault.
    Nothing,
    /// The answer as it is: the fault changes nothing, or says itself what it is.
    Itself,
    /// A stream that breaks off and says so; an answer in one piece that is not there.
    Break,
}

/// A fault at a moment. `whole` and `stream` are what a tenant sees who asked for either.
struct Cell {
    moment: &'static str,
    order: &'static str,
    stream: Sees,
    whole: Sees,
    /// What the attempt is called, streamed and not.
    outcome: [&'static str; 2],
}

const fn unseen(moment: &'static str, order: &'static str, outcome: &'static str) -> Cell {
    Cell {
        moment,
        order,
        stream: Sees::Nothing,
        whole: Sees::Nothing,
        outcome: [outcome, outcome],
    }
}

/// An answer in one piece has no content before its end.
const fn broken(order: &'static str, outcomes: [&'static str; 2]) -> Cell {
    Cell {
        moment: "after content",
        order,
        stream: Sees::Break,
        whole: Sees::Nothing,
        outcome: outcomes,
    }
}

const HEADER: &str = "before header";
const QUEUED: &str = "while queued";
const CONTENT: &str = "before content";
const END: &str = "at the end";

const CELLS: &[Cell] = &[
    unseen(HEADER, "reset", "reset"),
    unseen(HEADER, "stall", "deadline"),
    unseen(HEADER, "status=429,retry_after=0", "rate_limited"),
    unseen(HEADER, "status=500", "server_error"),
    unseen(HEADER, "status=502", "bad_gateway"),
    unseen(HEADER, "status=503", "unavailable"),
    unseen(HEADER, "status=504", "gateway_timeout"),
    unseen(HEADER, "status=302", "garbage"),
    unseen(HEADER, "noise", "garbage"),
    unseen(HEADER, "endless_head", "garbage"),
    unseen(HEADER, "gzip", "garbage"),
    unseen(QUEUED, "queue=200ms,cut_after=0", "cut"),
    unseen(QUEUED, "queue=200ms,end_after=0", "cut"),
    unseen(QUEUED, "queue=200ms,error_after=0", "error_in_answer"),
    unseen(QUEUED, "queue=60s", "deadline"),
    unseen(CONTENT, "cut_after=0", "cut"),
    // A declared length of nothing is no answer that was cut.
    unseen(CONTENT, "end_after=0", "garbage"),
    unseen(CONTENT, "error_after=0", "error_in_answer"),
    unseen(CONTENT, "stall_after=0", "deadline"),
    unseen(CONTENT, "html", "garbage"),
    unseen(CONTENT, "empty", "garbage"),
    unseen(
        CONTENT,
        "finish=insufficient_system_resource,tokens=0",
        "no_resources",
    ),
    broken("cut_after=6", ["cut", "cut"]),
    broken("end_after=6", ["cut", "cut"]),
    broken("stall_after=6", ["deadline", "deadline"]),
    broken("error_after=6", ["error_in_answer", "error_in_answer"]),
    Cell {
        moment: END,
        order: "finish=insufficient_system_resource",
        stream: Sees::Itself,
        whole: Sees::Nothing,
        outcome: ["no_resources", "no_resources"],
    },
    Cell {
        moment: END,
        order: "after_done=500",
        stream: Sees::Itself,
        whole: Sees::Itself,
        outcome: ["ok", "ok"],
    },
    Cell {
        moment: END,
        order: "event_bytes=5000000",
        stream: Sees::Itself,
        whole: Sees::Itself,
        outcome: ["ok", "ok"],
    },
    Cell {
        moment: END,
        order: "length=+100",
        stream: Sees::Itself,
        whole: Sees::Nothing,
        outcome: ["ok", "cut"],
    },
    Cell {
        moment: END,
        order: "length=-20",
        stream: Sees::Break,
        whole: Sees::Nothing,
        outcome: ["cut", "cut"],
    },
];

/// The client's way.
#[derive(Debug, Clone, Copy)]
enum Version {
    Http1,
    Http2,
}

struct Got {
    status: u16,
    request_id: String,
    text: String,
    /// Without a proper end of the body.
    broken: bool,
}

fn ask(gateway: &Gateway, version: Version, body: &Value) -> Got {
    let path = "/v1/chat/completions";
    match version {
        Version::Http1 => {
            let answer = gateway.post(path, body);
            Got {
                status: answer.status,
                request_id: answer.header("x-request-id").unwrap_or_default().to_owned(),
                text: answer.text(),
                broken: answer.ending == Ending::Broken,
            }
        }
        Version::Http2 => run(async {
            let mut sender = h2::connect(gateway.address()).await;
            let body = h2::sized(Bytes::from(body.to_string()));
            let mut answer = sender.send_request(h2::post(path, body)).await.unwrap();
            let (mut text, mut broken) = (Vec::new(), false);
            while let Some(piece) = h2::next_piece(&mut answer).await {
                match piece {
                    Ok(piece) => text.extend(piece.bytes),
                    Err(_) => {
                        broken = true;
                        break;
                    }
                }
            }
            let id = answer.headers().get("x-request-id");
            Got {
                status: answer.status().as_u16(),
                request_id: id.map_or("", |id| id.to_str().unwrap()).to_owned(),
                text: String::from_utf8_lossy(&text).into_owned(),
                broken,
            }
        }),
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

/// The first account is always asked first; the second one takes over.
fn gateway(emulator: &Emulator, hold: &str) -> Gateway {
    let config = Config::for_emulator(emulator)
        .set("/retry", json!({"hold_head": hold}))
        .unguarded()
        .asked_in_turn(emulator)
        .set(
            "/upstreams/0/timeouts",
            json!({"first_byte": "400ms", "queued": "500ms", "first_content": "600ms",
                   "gap": "500ms", "read": "700ms"}),
        );
    Gateway::start(config)
}

/// Both accounts would say the same; the length tells them apart, and whether it is whole.
const TOKENS: usize = 12;

fn question(order: &str, streamed: bool, number: usize) -> Value {
    let text = format!("Question {order}{number}.");
    let body = with(chat(&text), "thinking", json!({"type": "disabled"}));
    let body = with(body, "max_tokens", json!(TOKENS));
    match streamed {
        true => with(body, "stream", json!(true)),
        false => body,
    }
}

fn check(gateway: &Gateway, cell: &Cell, version: Version, streamed: bool, number: usize) {
    let case = format!(
        "{} {:?} {version:?} streamed={streamed}",
        cell.moment, cell.order
    );
    let got = ask(gateway, version, &question("", streamed, number));
    let sees = if streamed { cell.stream } else { cell.whole };
    let outcome = cell.outcome[usize::from(!streamed)];
    let is_whole = match streamed {
        true => got.text.contains("data: [DONE]") && !got.text.contains("\"error\""),
        false => serde_json::from_str::<Value>(&got.text)
            .is_ok_and(|answer| !answer["choices"].is_null()),
    };
    let line = gateway.access_line(&got.request_id);
    let shown = format!("{case}: {} {} {line}", got.status, got.text);
    match sees {
        Sees::Nothing => {
            assert!(got.status == 200 && is_whole && !got.broken, "{shown}");
            assert_eq!(line["ending"], "complete", "{shown}");
            assert_eq!(line["account"], "account-2", "{shown}");
            assert_eq!(line["attempts"], 2, "{shown}");
            let tries = line["tries"].as_array().unwrap();
            // A reset of a connection that served before looks like one that was dead.
            let mut counted = tries
                .iter()
                .filter(|it| it["outcome"] != "stale_connection");
            let first = counted.next().unwrap();
            assert_eq!(first["outcome"], outcome, "{shown}");
            assert_eq!(first["account"], "account-1", "{shown}");
            assert_eq!(line["usage_estimated"], Value::Null, "{shown}");
            assert_eq!(line["completion_tokens"], TOKENS, "{shown}");
        }
        Sees::Itself => {
            assert!(got.status == 200 && is_whole && !got.broken, "{shown}");
            assert_eq!(line["account"], "account-1", "{shown}");
            assert_eq!(line["attempts"], 1, "{shown}");
        }
        Sees::Break => {
            assert!(got.status == 200 && got.broken, "{shown}");
            assert!(!got.text.contains("[DONE]"), "{shown}");
            assert!(got.text.contains("\"content\":\""), "{shown}");
            assert!(got.text.contains("stream_interrupted"), "{shown}");
            assert_eq!(line["ending"], "interrupted", "{shown}");
            assert_eq!(line["attempts"], 1, "{shown}");
            assert_eq!(line["usage_estimated"], true, "{shown}");
        }
    }
    let label = format!("outcome=\"{outcome}\"");
    let counted = gateway.metric(
        "tidegate_attempts_total",
        &["account=\"account-1\"", &label],
    );
    assert!(counted >= 1.0, "{shown}");
}

fn all_cells(hold: &str) {
    let emulator = Emulator::start(Emulator::with_accounts(2));
    let gateway = gateway(&emulator, hold);
    for (at, cell) in CELLS.iter().enumerate() {
        emulator.order(Some("account-1"), cell.order);
        for (way, version) in [Version::Http1, Version::Http2].into_iter().enumerate() {
            for streamed in [true, false] {
                let number = at * 4 + way * 2 + usize::from(streamed);
                check(&gateway, cell, version, streamed, number);
            }
        }
    }
    eventually("nothing is left", Duration::from_secs(10), || {
        let idle = gateway.metric("tidegate_requests_in_flight", &[]) == 0.0;
        (idle && emulator.in_flight() == 0).then_some(())
    });
}

#[test]
fn faults_are_unseen_before_content_and_told_after_it_with_the_head_held_back() {
    all_cells("10s");
}

#[test]
fn faults_are_unseen_before_content_and_told_after_it_with_the_head_sent_at_once() {
    all_cells("0s");
}
