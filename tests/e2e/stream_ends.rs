//! How a stream ends for the client when its upstream leaves off in the middle, tells of a failure or
//! goes on after its end: with whole events, in our words, and the same however the bytes are cut.

use std::sync::Mutex;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::hostile::Hostile;
use crate::support::*;

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";
const KEY: &str = "sk-upstream-of-the-stream-ends-tests";
const SAID: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"sea\"}}]}\n\n";
const DELTA: &str = concat!(
    "event: response.output_text.delta\n",
    "data: {\"type\":\"response.output_text.delta\",\"sequence_number\":1,\"delta\":\"sea\"}\n\n"
);

#[derive(Clone)]
enum Step {
    Say(String),
    /// Waits until the test says that it goes on.
    Wait,
    /// The proper end of the body.
    End,
    Reset,
}

/// ASCII, in pieces of so many bytes.
fn in_pieces(text: &str, size: usize) -> impl Iterator<Item = Step> {
    let pieces = text.as_bytes().chunks(size);
    pieces.map(|piece| Step::Say(String::from_utf8(piece.to_vec()).unwrap()))
}

struct Played {
    gateway: Gateway,
    goes_on: Sender<()>,
    _upstream: Hostile,
}

/// A gateway whose upstream streams by these steps.
fn played(steps: Vec<Step>) -> Played {
    let (goes_on, signal) = mpsc::channel();
    let signal = Mutex::new(signal);
    let upstream = Hostile::start(move |guest, _| {
        guest.request();
        guest.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n");
        guest.send(b"transfer-encoding: chunked\r\n\r\n");
        for step in &steps {
            match step {
                Step::Say(text) => {
                    guest.send(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes());
                    // What is sent by itself is mostly read by itself; it need not be.
                    std::thread::sleep(Duration::from_micros(200));
                }
                Step::Wait => drop(signal.lock().unwrap().recv_timeout(SOON)),
                Step::End => drop(guest.send(b"0\r\n\r\n")),
                Step::Reset => guest.reset(),
            }
        }
    });
    let account = [("main".to_owned(), KEY.to_owned())];
    let config = Config::for_urls(&[upstream.url()], &account);
    Played {
        gateway: Gateway::start(config.set("/upstreams/0/health", json!(false))),
        goes_on,
        _upstream: upstream,
    }
}

impl Played {
    /// Asks, reads until `shown` has come, lets the upstream go on, and reads the rest.
    fn ask(&self, path: &str, shown: Option<&str>) -> (Answer, String) {
        let body = match path {
            RESPONSES => with(response("hello"), "stream", json!(true)),
            _ => chat_stream("hello"),
        };
        let mut stream = self.gateway.stream(path, &body);
        let before = shown.map(|shown| stream.read_until(shown));
        let _ = self.goes_on.send(());
        let told = stream.rest();
        let text = before.unwrap_or_default() + &told.text();
        assert!(!text.contains(KEY), "{text}");
        (told, text)
    }

    /// How many attempts came out so.
    fn attempts(&self, outcome: &str) -> f64 {
        self.gateway.wait_until_idle(SOON);
        let outcome = format!("outcome=\"{outcome}\"");
        self.gateway.metric("tidegate_attempts_total", &[&outcome])
    }
}

#[test]
fn of_an_event_that_breaks_off_nothing_is_shown() {
    for half in [
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"br",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"broken\"}}]}\n",
        "data: {\"id\":\"1\",\"error\":{\"message\":\"broken",
        "data: [DONE",
        "da",
    ] {
        for end in [Step::End, Step::Reset] {
            // A reset takes away what was not read.
            let begun = Step::Say([SAID, half].concat());
            let played = played(vec![begun, Step::Wait, end]);
            let (told, text) = played.ask(CHAT, Some(SAID));
            assert_eq!((told.status, told.ending), (200, Ending::Broken), "{text}");
            let events = text.split("\n\n").filter(|it| !it.trim().is_empty());
            let [first, last] = *events.collect::<Vec<_>>() else {
                panic!("{half}: {text}");
            };
            assert_eq!(first, SAID.trim_end());
            let error: Value = serde_json::from_str(&last["data: ".len()..]).unwrap();
            assert_eq!(error["error"]["code"], "stream_interrupted");
        }
    }
}

#[test]
fn what_comes_after_the_end_of_a_stream_goes_nowhere() {
    let stop = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    let whole = [SAID, stop, "data: [DONE]\n\n"].concat();
    for after in [
        SAID,
        "data: {\"error\":{\"message\":\"x\"}}\n\n",
        "data: {\"err",
    ] {
        let text = [whole.as_str(), after].concat();
        for size in [text.len(), 30, 1] {
            let steps = in_pieces(&text, size).chain([Step::End]);
            let played = played(steps.collect());
            let (told, text) = played.ask(CHAT, None);
            assert_eq!((told.status, told.ending), (200, Ending::Whole), "{text}");
            assert_eq!(text, whole);
            assert_eq!(played.attempts("ok"), 1.0);
        }
    }
}

#[test]
fn a_response_that_fails_says_so_last_and_in_our_words() {
    let words = format!("Your key {KEY} is broken");
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
    let event = |data: &str| format!("event: response.failed\ndata: {data}\n\n");
    let named = event(&data(""));
    let long = event(&data(&"a".repeat(90_000)));
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
        (format!("id: 2\n{}", event(&outside.to_string())), 20),
        (format!("id: 2\n{}", event(&elsewhere.to_string())), 20),
        (format!("id: 2\n{}", event(&endless.to_string())), 70_000),
        (event(&words), 20),
    ];
    for (end, size) in ends {
        let beginning = Step::Say(DELTA.to_owned());
        let steps = [beginning].into_iter().chain(in_pieces(&end, size));
        let played = played(steps.chain([Step::End]).collect());
        let (told, text) = played.ask(RESPONSES, None);
        assert_eq!((told.status, told.ending), (200, Ending::Whole), "{text}");
        let last = text.trim_end().lines().last().unwrap();
        let last: Value = serde_json::from_str(&last["data: ".len()..]).unwrap();
        assert_eq!(last["type"], "response.failed", "{text}");
        let known = end.contains("resp_1");
        assert_eq!(last["response"]["id"].is_string(), known, "{text}");
        assert_eq!(last["response"]["error"]["code"], "server_error");
        assert_eq!(text.matches("event: response.failed").count(), 1, "{text}");
        assert!(!text.contains("broken"), "{text}");
        let request_id = told.header("x-request-id").unwrap();
        assert_eq!(played.gateway.access_line(request_id)["ending"], "complete");
        assert_eq!(played.attempts("error_in_answer"), 1.0);
    }
}

#[test]
fn an_error_before_the_end_of_a_response_is_no_end_of_its_own() {
    let error = format!("event: error\ndata: {{\"type\":\"error\",\"message\":\"{KEY}\"}}\n\n");
    let failed = r#"data: {"type":"response.failed","response":{"id":"resp_1"}}"#;
    for end in [failed, "data: [DONE]"] {
        let end = format!("{error}{end}\n\n");
        for size in [end.len(), error.len(), 40] {
            let beginning = Step::Say(DELTA.to_owned());
            let steps = [beginning].into_iter().chain(in_pieces(&end, size));
            let played = played(steps.chain([Step::End]).collect());
            let (told, text) = played.ask(RESPONSES, None);
            assert_eq!((told.status, told.ending), (200, Ending::Broken), "{text}");
            assert!(text.contains("stream_interrupted"), "{text}");
            assert!(!text.contains("resp_1"), "{text}");
            assert_eq!(played.attempts("error_in_answer"), 1.0);
        }
    }
}

/// What comes before content is passed on once there is much of it; then it fails once and for all.
#[test]
fn a_response_with_much_before_its_content_fails_once() {
    let long = "a".repeat(70_000);
    let created = json!({"type": "response.created", "response": {"instructions": long}});
    let failed = json!({"type": "response.failed", "response": {"id": "resp_1"}});
    let played = played(vec![
        Step::Say(format!("event: response.created\ndata: {created}\n\n")),
        Step::Wait,
        Step::Say(format!("data: {failed}\n\n")),
        Step::End,
    ]);
    let (told, text) = played.ask(RESPONSES, Some("event: response.created\n"));
    assert_eq!((told.status, told.ending), (200, Ending::Whole), "{text}");
    assert_eq!(text.matches("event: ").count(), 2, "{text}");
    assert!(text.contains("event: response.failed\n"), "{text}");
    assert_eq!(played.attempts("error_in_answer"), 1.0);
}
