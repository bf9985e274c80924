use super::*;
use crate::relay::event::Shape;
use crate::relay::sse::Scanner;
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

fn chunk(id: &str, delta: &Value, finish: Option<&str>) -> String {
    let chunk = json!({
        "id": id, "object": "chat.completion.chunk", "created": 7, "model": "m",
        "system_fingerprint": "fp",
        "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}],
        "usage": null,
    });
    format!("data: {chunk}\n\n")
}

fn text(id: &str, text: &str) -> String {
    chunk(
        id,
        &json!({"content": text, "reasoning_content": null}),
        None,
    )
}

fn thought(id: &str, text: &str) -> String {
    chunk(
        id,
        &json!({"content": null, "reasoning_content": text}),
        None,
    )
}

fn role(id: &str) -> String {
    chunk(
        id,
        &json!({"role": "assistant", "content": null, "reasoning_content": ""}),
        None,
    )
}

/// The finish, the usage and the end.
fn ending(id: &str, prompt: u64, completion: u64) -> String {
    let usage = json!({
        "id": id, "object": "chat.completion.chunk", "created": 9, "model": "m", "choices": [],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion,
            "total_tokens": prompt + completion, "prompt_cache_hit_tokens": prompt,
            "prompt_cache_miss_tokens": 0, "prompt_tokens_details": {"cached_tokens": prompt}},
    });
    let finish = chunk(id, &json!({"content": ""}), Some("stop"));
    format!("{finish}data: {usage}\n\ndata: [DONE]\n\n")
}

fn pass(transcript: &mut Transcript, stream: &str) -> String {
    let out = transcript.pass(Bytes::copy_from_slice(stream.as_bytes()));
    String::from_utf8(out.to_vec()).unwrap()
}

fn after(stream: &str) -> Transcript {
    let mut transcript = Transcript::new();
    pass(&mut transcript, stream);
    transcript
}

/// What a client makes of a stream: ids, text, reasoning, usage, ends.
#[derive(Debug, Default, PartialEq)]
struct Client {
    ids: Vec<String>,
    roles: usize,
    text: String,
    reasoning: String,
    finish: Vec<String>,
    usage: Value,
    done: usize,
}

fn client(stream: &[u8]) -> Client {
    let mut client = Client::default();
    let stream = std::str::from_utf8(stream).unwrap().replace("\r\n", "\n");
    for event in stream.split_inclusive("\n\n") {
        assert!(event.ends_with("\n\n"), "half an event: {event:?}");
        let Some(data) = event.trim_end().strip_prefix("data: ") else {
            assert!(
                event.starts_with(':') || event.trim().is_empty(),
                "{event:?}"
            );
            continue;
        };
        if data == "[DONE]" {
            client.done += 1;
            continue;
        }
        let chunk: Value = serde_json::from_str(data).unwrap();
        let id = format!("{} {}", chunk["id"], chunk["created"]);
        if !client.ids.contains(&id) {
            client.ids.push(id);
        }
        let choice = &chunk["choices"][0];
        client.roles += usize::from(choice["delta"].get("role").is_some());
        client.text += choice["delta"]["content"].as_str().unwrap_or_default();
        client.reasoning += choice["delta"]["reasoning_content"]
            .as_str()
            .unwrap_or_default();
        client
            .finish
            .extend(choice["finish_reason"].as_str().map(str::to_owned));
        if chunk["usage"].is_object() {
            client.usage = chunk["usage"].clone();
        }
    }
    client
}

#[test]
fn only_whole_events_go_out_while_a_stream_could_be_resumed() {
    let mut transcript = Transcript::new();
    let whole = text("a", "x");
    let (head, tail) = whole.split_at(20);
    assert_eq!(pass(&mut transcript, &(role("a") + head)), role("a"));
    assert_eq!(pass(&mut transcript, tail), whole);
    assert_eq!(
        pass(&mut transcript, ": keep-alive\n\n: k"),
        ": keep-alive\n\n"
    );
    assert_eq!(pass(&mut transcript, "a\r\n\r\n"), ": ka\r\n\r\n");
    assert_eq!(pass(&mut transcript, head), "");
    transcript.cut();
    assert_eq!(transcript.finish(), None);
    let partial = transcript.partial().unwrap();
    assert_eq!(
        (partial.content, partial.reasoning, partial.tokens),
        ("x", None, 1)
    );
}

#[test]
fn text_and_reasoning_are_kept_as_the_client_has_them() {
    let stream = [
        role("a"),
        thought("a", "思"),
        thought("a", "\n"),
        text("a", "\"😀"),
        text("a", "\\"),
    ];
    let stream = stream.concat().replace('😀', "\\ud83d\\ude00");
    let transcript = after(&stream);
    let partial = transcript.partial().unwrap();
    assert_eq!(partial.content, "\"😀\\");
    assert_eq!(partial.reasoning, Some("思\n"));
    assert_eq!(partial.tokens, 4);
}

#[test]
fn what_cannot_be_resumed_says_why_and_passes_freely() {
    let other = |delta: Value| text("a", "x") + &chunk("a", &delta, None);
    let two = r#"data: {"choices":[{"index":0,"delta":{"content":"x"}},{"index":1,"delta":{}}]}"#;
    let second = r#"data: {"choices":[{"index":1,"delta":{"content":"x"}}]}"#;
    let logprobs = r#"data: {"choices":[{"delta":{"content":"x"},"logprobs":{"content":[]}}]}"#;
    let half = "data: {\"choices\":[{\"delta\":{\"content\":\"\\ud83d\"}}]}";
    for (stream, why) in [
        (role("a"), Obstacle::NoContent),
        (thought("a", "hm"), Obstacle::InReasoning),
        (text("a", "x") + &ending("a", 1, 1), Obstacle::Finished),
        (text("a", "x") + "data: [DONE]\n\n", Obstacle::Finished),
        (
            other(json!({"tool_calls": [{"index": 0}]})),
            Obstacle::ToolCalls,
        ),
        (other(json!({"refusal": "no"})), Obstacle::Unknown),
        (
            other(json!({"content": [{"type": "text"}]})),
            Obstacle::Unknown,
        ),
        (
            other(json!({"reasoning_content": "again"})),
            Obstacle::Unknown,
        ),
        (format!("{two}\n\n"), Obstacle::Choices),
        (format!("{second}\n\n"), Obstacle::Choices),
        (format!("{logprobs}\n\n"), Obstacle::Logprobs),
        (format!("{half}\n\n"), Obstacle::Unknown),
        ("data: nonsense\n\n".to_owned(), Obstacle::Unknown),
        ("event: x\ndata: {}\n\n".to_owned(), Obstacle::Unknown),
        (
            text("a", &"x".repeat(MAX_TEXT)) + &text("a", "y"),
            Obstacle::TooLong,
        ),
    ] {
        let mut transcript = Transcript::new();
        assert_eq!(pass(&mut transcript, &stream), stream);
        assert_eq!(transcript.partial(), Err(why), "{stream:.200}");
        if !matches!(why, Obstacle::NoContent | Obstacle::InReasoning) {
            assert_eq!(pass(&mut transcript, "data: hal"), "data: hal");
        }
    }
}

#[test]
fn a_long_event_is_not_held_for_ever() {
    let mut transcript = Transcript::new();
    let long = format!("data: {}", "x".repeat(MAX_TEXT));
    assert_eq!(pass(&mut transcript, &text("a", "x")), text("a", "x"));
    assert_eq!(pass(&mut transcript, &long), long);
    assert_eq!(transcript.partial(), Err(Obstacle::TooLong));
}

#[test]
fn a_failure_in_the_upstreams_words_waits_for_whether_another_goes_on() {
    let error = "data: {\"error\":{\"message\":\"m\"}}\n\n".to_owned();
    let gave_up = chunk(
        "a",
        &json!({"content": "lost"}),
        Some("insufficient_system_resource"),
    );
    for failure in [error, gave_up] {
        let mut transcript = Transcript::new();
        let stream = format!("{}{failure}data: [DO", text("a", "x"));
        assert_eq!(pass(&mut transcript, &stream), text("a", "x"));
        assert_eq!(pass(&mut transcript, "NE]\n\n"), "");
        assert!(transcript.failed());
        assert_eq!(transcript.partial().map(|partial| partial.content), Ok("x"));
        let mut other = after(&stream);
        assert_eq!(other.finish().unwrap(), format!("{failure}data: [DO"));
        transcript.cut();
        assert!(!transcript.failed() && transcript.finish().is_none());
    }
}

/// A stream that breaks after `first`, goes on with `second`, and ends.
fn resumed(first: &str, second: &str, cut: usize) -> Result<Vec<u8>, Unfit> {
    let mut transcript = Transcript::new();
    let mut out = transcript
        .pass(Bytes::copy_from_slice(first.as_bytes()))
        .to_vec();
    transcript.cut();
    let mut rewriter = Rewriter::new(&transcript);
    for piece in second.as_bytes().chunks(cut.max(1)) {
        let rewritten = rewriter.pass(Bytes::copy_from_slice(piece))?;
        out.extend_from_slice(&transcript.pass(rewritten));
    }
    let rest = rewriter.finish()?.unwrap_or_default();
    out.extend_from_slice(&transcript.pass(rest));
    out.extend_from_slice(&transcript.finish().unwrap_or_default());
    Ok(out)
}

#[test]
fn two_streams_make_one() {
    let first = [
        role("a"),
        thought("a", "hm"),
        text("a", "He"),
        text("a", "llo "),
    ]
    .concat();
    let first = first + &text("a", "lost")[..30];
    let second = [
        ": keep-alive\n\n".to_owned(),
        role("b"),
        text("b", "wor"),
        text("b", "ld"),
        ending("b", 23, 2),
    ];
    let second = second.concat();
    let stream = resumed(&first, &second, 7).unwrap();
    let expected = Client {
        ids: vec!["\"a\" 7".to_owned()],
        roles: 1,
        text: "Hello world".to_owned(),
        reasoning: "hm".to_owned(),
        finish: vec!["stop".to_owned()],
        usage: json!({"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25,
            "prompt_cache_hit_tokens": 20, "prompt_cache_miss_tokens": 0,
            "prompt_tokens_details": {"cached_tokens": 20},
            "completion_tokens_details": {"reasoning_tokens": 1}}),
        done: 1,
    };
    assert_eq!(client(&stream), expected);
    assert!(stream.ends_with(b"data: [DONE]\n\n"));
    let mut scanner = Scanner::new(Shape::Chat, false);
    scanner.feed(Bytes::from(stream));
    assert!(scanner.seen().ended && scanner.seen().error.is_none());
}

#[test]
fn a_stream_goes_on_twice() {
    let mut transcript = after(&[role("a"), text("a", "1")].concat());
    let mut all = String::new();
    for (id, said) in [("b", "2"), ("c", "3")] {
        transcript.cut();
        let mut rewriter = Rewriter::new(&transcript);
        let end = if id == "c" {
            ending(id, 12, 1)
        } else {
            "data: {\"ha".to_owned()
        };
        let stream = [role(id), text(id, said), end].concat();
        let rewritten = rewriter.pass(Bytes::from(stream)).unwrap();
        all += std::str::from_utf8(&transcript.pass(rewritten)).unwrap();
    }
    let client = client(all.as_bytes());
    assert_eq!(
        (client.text.as_str(), client.ids.len(), client.roles),
        ("23", 1, 0)
    );
    assert_eq!(client.usage["prompt_tokens"], 10);
    assert_eq!(client.usage["completion_tokens"], 3);
}

#[test]
fn an_upstream_that_counts_along_is_believed_about_its_prompt() {
    let first = text("a", "x").replace(
        "\"usage\":null",
        "\"usage\":{\"prompt_tokens\":40,\"completion_tokens\":9}",
    );
    let transcript = after(&first);
    assert_eq!(transcript.partial().map(|partial| partial.tokens), Ok(9));
    let mut rewriter = Rewriter::new(&transcript);
    let out = rewriter.pass(Bytes::from(ending("b", 60, 5))).unwrap();
    let usage = client(&out).usage;
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"]),
        (&json!(40), &json!(14))
    );
    assert_eq!(usage["prompt_cache_hit_tokens"], 40);
}

#[test]
fn what_does_not_fit_never_passes() {
    let first = text("a", "x");
    for (second, why) in [
        (thought("b", "again"), Unfit::Reasoning),
        ("data: nonsense\n\n".to_owned(), Unfit::NotAChunk),
        ("data: {\"id\":1}\n\n".to_owned(), Unfit::NotAChunk),
        ("event: ping\ndata: {}\n\n".to_owned(), Unfit::NotAChunk),
        ("<html>\n\n".to_owned(), Unfit::NotAChunk),
        ("data: {\"choices\":[{},{}]}\n\n".to_owned(), Unfit::Choices),
        (
            "data: {\"choices\":[{\"index\":1}]}\n\n".to_owned(),
            Unfit::Choices,
        ),
        (
            "data: {\"choices\":[{\"logprobs\":{}}]}\n\n".replace("{}", "{\"a\":1}"),
            Unfit::Logprobs,
        ),
    ] {
        assert_eq!(resumed(&first, &second, 9), Err(why), "{second}");
    }
}

#[test]
fn an_upstream_that_begins_anew_is_found_out() {
    let first = text("a", "Once upon a") + &text("a", " time");
    let anew = role("b") + &text("b", "Once") + ": k\n\n" + &text("b", " upon a time, there");
    for cut in [1, 50, 10_000] {
        assert_eq!(resumed(&first, &anew, cut), Err(Unfit::Repeats));
    }
    for rest in ["Once upon", "Once upon a tim!", "On", ""] {
        let second = text("b", rest) + &ending("b", 30, 2);
        let stream = resumed(&first, &second, 11).unwrap();
        assert_eq!(client(&stream).text, format!("Once upon a time{rest}"));
    }
    let short = resumed(
        &text("a", "ha"),
        &(text("b", "ha") + &ending("b", 9, 1)),
        11,
    );
    assert_eq!(client(&short.unwrap()).text, "haha");
}

#[test]
fn an_error_of_the_second_upstream_is_held_back_like_the_firsts() {
    let mut transcript = after(&text("a", "x"));
    let mut rewriter = Rewriter::new(&transcript);
    let error = "data: {\"error\":{\"message\":\"m\"}}\n\n";
    let out = rewriter.pass(Bytes::from(text("b", "y") + error)).unwrap();
    assert_eq!(client(&transcript.pass(out)).text, "y");
    assert!(transcript.failed());
    assert_eq!(transcript.finish().unwrap(), error);
}

#[test]
fn the_end_comes_once() {
    let second = "data: [DONE]\r\n\r\ndata: [DONE]\n\ndata: {\"choices\":[]}\n\n";
    let stream = resumed(&text("a", "x"), second, 100).unwrap();
    assert_eq!(client(&stream).done, 1);
    let unended = resumed(&text("a", "x"), "data: [DONE]", 3).unwrap();
    assert_eq!(client(&unended).done, 1);
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a\"\\\\\n\r:{} 字😀]{1,6}",
        Just("data: ".to_owned()),
        ".{1,4}"
    ]
}

proptest! {
    #[test]
    fn wherever_a_stream_breaks_the_client_has_the_whole_text_once(
        words in prop::collection::vec(word(), 1..12),
        escaped in any::<bool>(),
        broken in any::<prop::sample::Index>(),
        cut in 1usize..40,
        crlf in any::<bool>(),
    ) {
        let mut first = role("a") + &words.iter().map(|word| text("a", word)).collect::<String>();
        if escaped {
            first = first.chars().map(|c| match c {
                c if c.is_ascii() => c.to_string(),
                c => c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
            }).collect();
        }
        if crlf {
            first = first.replace('\n', "\r\n");
        }
        let all = words.concat();
        let mut transcript = Transcript::new();
        let mut out = Vec::new();
        let sent = &first.as_bytes()[..broken.index(first.len() + 1)];
        for piece in sent.chunks(cut) {
            out.extend_from_slice(&transcript.pass(Bytes::copy_from_slice(piece)));
        }
        transcript.cut();
        // A line feed may be missing behind the last carriage return.
        if out.ends_with(b"\r") { out.push(b'\n'); }
        let has = client(&out).text;
        let partial = match transcript.partial() {
            Ok(partial) => partial.content.to_owned(),
            Err(why) => { prop_assert_eq!(why, Obstacle::NoContent); String::new() }
        };
        prop_assert_eq!(&partial, &has);
        let rest = all.strip_prefix(has.as_str()).unwrap();
        let mut rewriter = Rewriter::new(&transcript);
        let second = role("b") + &text("b", rest) + &ending("b", 50, 1);
        for piece in second.as_bytes().chunks(cut) {
            let Ok(piece) = rewriter.pass(Bytes::copy_from_slice(piece)) else {
                prop_assert!(has.len() >= 8 && rest.starts_with(&has));
                return Ok(());
            };
            out.extend_from_slice(&transcript.pass(piece));
        }
        let client = client(&out);
        prop_assert_eq!(client.text, all);
        prop_assert_eq!(client.done, 1);
    }

    #[test]
    fn any_bytes_are_read_without_panic_and_without_loss(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        lines in "(data: |\\{\"choices\":\\[|\n|\r|:|\\{\"delta\":\\{\"content\":\"x\"\\}\\}\\]\\}){0,30}",
        cut in 1usize..50,
    ) {
        for stream in [bytes.as_slice(), lines.as_bytes()] {
            let mut transcript = Transcript::new();
            let mut out = Vec::new();
            for piece in stream.chunks(cut) {
                out.extend_from_slice(&transcript.pass(Bytes::copy_from_slice(piece)));
            }
            out.extend_from_slice(&transcript.finish().unwrap_or_default());
            prop_assert_eq!(out, stream);
            let mut rewriter = Rewriter::new(&transcript);
            let _ = rewriter.pass(Bytes::copy_from_slice(stream));
            let _ = rewriter.finish();
        }
    }
}
