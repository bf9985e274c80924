//! Over HTTP/2 an answer may end with trailers, or with its head, in place of its last data. It is
//! the same end: what was kept back goes out, and what is not whole is not taken for whole.

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::json;

use crate::support::*;

const PATH: &str = "/v1/chat/completions";
const WHOLE: &str = r#"{"id":"1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"sea"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}"#;
const ROLE: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\"}}]}\n\n";
const SEA: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"sea\"}}]}\n\n";
const STOP: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// An upstream over HTTP/2 that answers with these pieces, and ends with trailers; with its head if
/// there are no pieces.
fn upstream(kind: &'static str, pieces: &'static [&'static str]) -> Gateway {
    let url = h2::serve(move |_| async move {
        let frames = pieces.iter().map(|text| Frame::data(Bytes::from(*text)));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-took", "1".parse().unwrap());
        let frames = frames.chain([Frame::trailers(trailers)]);
        let frames: Vec<_> = frames.map(Ok).collect();
        let body = match pieces {
            [] => h2::sized(Bytes::new()),
            _ => BodyExt::boxed(StreamBody::new(stream::iter(frames))),
        };
        let head = Response::builder().header("content-type", kind);
        head.body(body).unwrap()
    });
    let accounts = [("main".to_owned(), "sk-x".to_owned())];
    let config = Config::for_urls(&[url], &accounts)
        .set("/upstreams/0/protocol", json!("http2"))
        .set("/upstreams/0/health", json!(false))
        .set("/upstreams/0/outlier", json!(false))
        .set("/retry", json!({"base_backoff": "1ms"}));
    Gateway::start(config)
}

fn stream_of(pieces: &'static [&'static str]) -> Gateway {
    upstream("text/event-stream", pieces)
}

/// What a client over HTTP/2 gets, and whether it has a proper end.
fn over_http2(gateway: &Gateway, body: &serde_json::Value) -> (u16, String, bool) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut sender = h2::connect(gateway.address()).await;
        let body = h2::sized(body.to_string().into());
        let mut answer = sender.send_request(h2::post(PATH, body)).await.unwrap();
        let mut text = Vec::new();
        let mut whole = true;
        while let Some(piece) = h2::next_piece(&mut answer).await {
            match piece {
                Ok(piece) => text.extend(piece.bytes),
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        let text = String::from_utf8(text).unwrap();
        (answer.status().as_u16(), text, whole)
    })
}

#[test]
fn a_whole_answer_that_ends_with_trailers_arrives_whole() {
    let (first, second) = WHOLE.split_at(60);
    let pieces: &'static [&'static str] = vec![first, second].leak();
    let gateway = upstream("application/json", pieces);
    let answer = gateway.post(PATH, &chat("hi"));
    assert_eq!((answer.status, answer.ending), (200, Ending::Whole));
    assert_eq!(answer.text(), WHOLE);
    assert_eq!(
        over_http2(&gateway, &chat("hi")),
        (200, WHOLE.to_owned(), true)
    );
    let line = gateway.access_line(answer.header("x-request-id").unwrap());
    assert_eq!(
        (&line["prompt_tokens"], &line["ending"]),
        (&json!(9), &json!("complete"))
    );
    gateway.wait_until_idle(SOON);
    let ok = gateway.metric("tidegate_attempts_total", &["outcome=\"ok\""]);
    assert_eq!(ok, 2.0);
}

#[test]
fn a_whole_stream_that_ends_with_trailers_arrives_whole() {
    let gateway = stream_of(&[ROLE, SEA, STOP, DONE]);
    let answer = gateway.stream(PATH, &chat_stream("hi")).rest();
    assert_eq!((answer.status, answer.ending), (200, Ending::Whole));
    assert_eq!(answer.text(), [ROLE, SEA, STOP, DONE].concat());
    let (status, text, whole) = over_http2(&gateway, &chat_stream("hi"));
    assert_eq!((status, whole), (200, true));
    assert!(text.ends_with(DONE), "{text}");
    // Without any content the prelude is all there is.
    let gateway = stream_of(&[ROLE, STOP, DONE]);
    let answer = gateway.stream(PATH, &chat_stream("hi")).rest();
    assert_eq!((answer.status, answer.ending), (200, Ending::Whole));
    assert_eq!(answer.text(), [ROLE, STOP, DONE].concat());
}

#[test]
fn half_an_answer_is_not_made_whole_by_trailers() {
    let half: &'static [&'static str] = vec![&WHOLE[..90]].leak();
    let gateway = upstream("application/json", half);
    let answer = gateway.post(PATH, &chat("hi"));
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(over_http2(&gateway, &chat("hi")).0, 502);
}

#[test]
fn a_cut_stream_is_not_made_whole_by_trailers() {
    let gateway = stream_of(&[ROLE, SEA, SEA]);
    let answer = gateway.stream(PATH, &chat_stream("hi")).rest();
    assert_eq!((answer.status, answer.ending), (200, Ending::Broken));
    assert!(answer.text().contains("sea"), "{}", answer.text());
    assert!(
        answer.text().contains("stream_interrupted"),
        "{}",
        answer.text()
    );
    let (status, text, whole) = over_http2(&gateway, &chat_stream("hi"));
    assert_eq!((status, whole), (200, false));
    assert!(text.contains("stream_interrupted"), "{text}");
    // Before its content it is an error with a status.
    let gateway = stream_of(&[": keep-alive\n\n", ROLE]);
    let answer = gateway.stream(PATH, &chat_stream("hi")).rest();
    assert_eq!(answer.status, 502, "{}", answer.text());
}

#[test]
fn a_head_alone_is_no_answer() {
    for (kind, body) in [
        ("application/json", chat("hi")),
        ("text/event-stream", chat_stream("hi")),
    ] {
        let gateway = upstream(kind, &[]);
        let answer = gateway.post(PATH, &body);
        assert_eq!(answer.status, 502, "{kind}: {}", answer.text());
        assert_eq!(over_http2(&gateway, &body).0, 502, "{kind}");
    }
}
