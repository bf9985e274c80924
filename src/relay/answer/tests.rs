use super::*;
use proptest::prelude::*;

fn read(shape: Shape, pieces: &[&[u8]]) -> Answer {
    let mut scanner = AnswerScanner::new(shape);
    for piece in pieces {
        scanner.feed(piece);
    }
    scanner.seen().clone()
}

const CHAT: &str = "\n\n \n{\"id\":\"x\",\"choices\":[{\"index\":0,\"message\":{\"finish_reason\":\"no\",\"content\":\"\\\"usage\\\":{\\\\\"},\"logprobs\":null,\"finish_reason\" : \"length\"}], \"usage\": {\"prompt_tokens\":9,\"completion_tokens\":4,\"prompt_tokens_details\":{\"cached_tokens\":8}} ,\"error\":null}\n";

#[test]
fn a_chat_answer_is_understood_at_every_cut() {
    let whole = read(Shape::Chat, &[CHAT.as_bytes()]);
    assert!(whole.begun && whole.complete && whole.error.is_none());
    assert_eq!(whole.finish_reason, Some(FinishReason::Length));
    let usage = whole.usage.unwrap();
    assert_eq!((usage.prompt, usage.cached, usage.completion), (9, 8, 4));
    for cut in 0..CHAT.len() {
        let (head, tail) = CHAT.as_bytes().split_at(cut);
        assert_eq!(read(Shape::Chat, &[head, tail]), whole);
    }
    let bytes: Vec<&[u8]> = CHAT.as_bytes().chunks(1).collect();
    assert_eq!(read(Shape::Chat, &bytes), whole);
}

#[test]
fn blank_lines_are_no_beginning_and_a_cut_answer_is_not_complete() {
    assert!(!read(Shape::Chat, &[b"\n", b"\r\n \n"]).begun);
    let cut = &CHAT.as_bytes()[..CHAT.len() - 2];
    assert!(!read(Shape::Chat, &[cut]).complete);
}

#[test]
fn messages_and_responses_answers_are_understood() {
    let messages = br#"{"type":"message","content":[{"type":"text","text":"x"}],"stop_reason":"end_turn","usage":{"input_tokens":3,"cache_read_input_tokens":2,"output_tokens":1}}"#;
    let seen = read(Shape::Messages, &[messages]);
    assert_eq!(seen.finish_reason, Some(FinishReason::Stop));
    assert_eq!(seen.usage.map(|usage| usage.prompt), Some(5));
    assert_eq!(seen.error, None);
    for responses in [
        r#"{"status":"incomplete","incomplete_details":{"reason":"content_filter"},"usage":{"input_tokens":3,"output_tokens":1}}"#,
        r#"{"incomplete_details":{"reason":"content_filter"},"error":null,"usage":{"input_tokens":3,"output_tokens":1},"status":"incomplete"}"#,
    ] {
        let seen = read(Shape::Responses, &[responses.as_bytes()]);
        assert_eq!(seen.finish_reason, Some(FinishReason::ContentFilter));
        assert_eq!(seen.usage.map(|usage| usage.prompt), Some(3));
    }
}

#[test]
fn errors_are_read_in_every_known_form() {
    for error in [
        r#"{"error":{"message":"Insufficient Balance","type":"unknown_error","param":null,"code":20012}}"#,
        r#"{"code":20012,"message":"Insufficient Balance","data":null}"#,
        r#"{"object":"error","message":"Insufficient Balance","type":"x","code":20012}"#,
    ] {
        let found = read(Shape::Chat, &[error.as_bytes()]).error.unwrap();
        assert_eq!(found.code.as_deref(), Some("20012"));
        assert_eq!(found.message.as_deref(), Some("Insufficient Balance"));
    }
    let vllm = br#"{"object":"error","message":"busy","type":"ServiceUnavailable","code":null}"#;
    assert!(read(Shape::Chat, &[vllm]).error.is_some());
    for text in ["Authentication Fails (governor)", "\n<html></html>"] {
        let seen = read(Shape::Chat, &[text.as_bytes()]);
        assert!(seen.begun && seen.foreign && !seen.complete && seen.error.is_none());
    }
    let good = br#"{"code":0,"message":"ok","error":{},"choices":[{"finish_reason":"stop"}]}"#;
    let seen = read(Shape::Chat, &[good]);
    assert!(seen.error.is_none() && !seen.foreign);
}

#[test]
fn values_beyond_their_caps_are_left_out() {
    let long = format!(
        r#"{{"usage":{{"x":"{}","prompt_tokens":1}},"choices":[{{"finish_reason":"stop"}}]}}"#,
        "y".repeat(70_000)
    );
    let mut scanner = AnswerScanner::new(Shape::Chat);
    for piece in long.as_bytes().chunks(1000) {
        scanner.feed(piece);
        assert!(scanner.captured.len() <= MAX_OBJECT);
    }
    let seen = scanner.seen();
    assert!(seen.complete && seen.usage.is_none());
    assert_eq!(seen.finish_reason, Some(FinishReason::Stop));
    let nested = format!("{{\"a\":{}", "[".repeat(1_000_000));
    assert!(!read(Shape::Chat, &[nested.as_bytes()]).complete);
}

#[test]
fn what_follows_the_object_is_counted() {
    assert_eq!(read(Shape::Chat, &[b"{}\n x{}"]).bytes_after_end, 3);
}

#[test]
fn an_embedding_answer_is_read_to_its_usage() {
    let numbers = vec!["-0.0123"; 2000].join(",");
    let answer = format!(
        r#"{{"data":[{{"embedding":[{numbers}]}},{{"embedding":[{numbers}]}}],"usage":{{"prompt_tokens":8,"total_tokens":8}}}}"#
    );
    let seen = read(Shape::Completions, &[answer.as_bytes()]);
    assert!(seen.complete);
    assert_eq!(seen.usage.map(|usage| usage.prompt), Some(8));
}

proptest! {
    #[test]
    fn the_cuts_of_an_answer_change_nothing(
        text in "[{}\\[\\],:\" \n\\\\a1]{0,40}",
        key in prop_oneof![Just("usage"), Just("choices"), Just("error"), Just("status")],
        cut in any::<prop::sample::Index>(),
    ) {
        let text = format!("{{\"{key}\":[{{\"finish_reason\":\"stop\",{text}");
        for shape in [Shape::Chat, Shape::Messages, Shape::Responses] {
            let whole = read(shape, &[text.as_bytes()]);
            let (head, tail) = text.as_bytes().split_at(cut.index(text.len()));
            prop_assert_eq!(&read(shape, &[head, tail]), &whole);
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            prop_assert_eq!(&read(shape, &bytes), &whole);
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(Shape::Chat, &[b"{", &bytes]);
    }
}

#[test]
fn an_error_too_long_to_be_read_is_one() {
    let long = "x".repeat(70_000);
    for (answer, known) in [
        (format!("{{\"error\":{{\"message\":\"{long}\"}}}}"), true),
        (format!("{{\"code\":500,\"message\":\"{long}\"}}"), true),
        ("{\"object\":\"error\",\"message\":\"m\"}".to_owned(), true),
        (
            "{\"object\":\"chat.completion\",\"choices\":[]}".to_owned(),
            false,
        ),
    ] {
        let mut scanner = AnswerScanner::new(Shape::Chat);
        scanner.feed(answer.as_bytes());
        assert_eq!(scanner.seen().error.is_some(), known);
        assert!(scanner.seen().complete);
    }
}

#[test]
fn what_has_no_answer_in_it_is_known() {
    for (shape, answer, answers) in [
        (Shape::Chat, "{}", false),
        (Shape::Chat, "{\"content\":[]}", false),
        (Shape::Chat, "{\"choices\":[{\"index\":0}]}", true),
        (Shape::Completions, "{\"data\":[]}", true),
        (
            Shape::Messages,
            "{\"type\":\"message\",\"content\":[]}",
            true,
        ),
        (
            Shape::Responses,
            "{\"output\":[],\"status\":\"completed\"}",
            true,
        ),
        (Shape::Responses, "{\"x\":{\"output\":[]}}", false),
    ] {
        let mut scanner = AnswerScanner::new(shape);
        scanner.feed(answer.as_bytes());
        assert_eq!(scanner.seen().answers, answers, "{answer}");
    }
}
