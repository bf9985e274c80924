use super::*;
use proptest::prelude::*;

/// Feeds `stream` in the given pieces; returns the output, what was seen, and
/// whether any fragment was progress.
fn run(shape: Shape, strip: bool, pieces: &[&[u8]]) -> (Vec<u8>, Seen, bool) {
    let mut scanner = Scanner::new(shape, strip);
    let mut out = Vec::new();
    let mut progress = false;
    for piece in pieces {
        out.extend_from_slice(&scanner.feed(Bytes::copy_from_slice(piece)));
        progress |= scanner.seen().progress;
    }
    out.extend_from_slice(&scanner.finish().unwrap_or_default());
    let mut seen = scanner.seen().clone();
    progress |= seen.progress;
    seen.progress = false;
    (out, seen, progress)
}

fn whole(shape: Shape, stream: &str) -> Seen {
    let (out, seen, _) = run(shape, false, &[stream.as_bytes()]);
    assert_eq!(out, stream.as_bytes());
    seen
}

const CHAT: &str = concat!(
    ": keep-alive\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null,\"reasoning_content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"reasoning_content\":\"思\"},\"finish_reason\":null}],\"usage\":null}\n\n",
    ": keep-alive\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\\\"finish_reason\\\":\\\"length\\\"\"},\"finish_reason\":null}],\"usage\":null}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\"prompt_cache_hit_tokens\":4}}\n\n",
    "data: [DONE]\n\n",
);
const USAGE_CHUNK: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\"prompt_cache_hit_tokens\":4}}\n\n";

const MESSAGES: &str = concat!(
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":5,\"cache_read_input_tokens\":2,\"output_tokens\":1}}}\n\n",
    "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
    "event: ping\ndata: {\"type\": \"ping\"}\n\n",
    "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"hi\"}}\n\n",
    "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
    "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"tool_use\"},\"usage\":{\"output_tokens\":9}}\n\n",
    "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
);

const RESPONSES: &str = concat!(
    "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"status\":\"in_progress\",\"usage\":null}}\n\n",
    "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n",
    "event: response.incomplete\ndata: {\"type\":\"response.incomplete\",\"response\":{\"status\":\"incomplete\",\"incomplete_details\":{\"reason\":\"max_output_tokens\"},\"usage\":{\"input_tokens\":10,\"input_tokens_details\":{\"cached_tokens\":4},\"output_tokens\":6}}}\n\n",
);

#[test]
fn a_chat_stream_is_understood() {
    let seen = whole(Shape::Chat, CHAT);
    assert_eq!(seen.keep_alives, 2);
    assert_eq!(seen.content_events, 2);
    assert_eq!(seen.finish_reason, Some(FinishReason::Stop));
    let usage = seen.usage.unwrap();
    assert_eq!((usage.prompt, usage.cached, usage.completion), (7, 4, 3));
    assert!(seen.ended && seen.begun && seen.error.is_none());
    assert_eq!(seen.bytes_after_end, 0);
}

#[test]
fn a_messages_stream_is_understood() {
    let seen = whole(Shape::Messages, MESSAGES);
    assert_eq!((seen.keep_alives, seen.content_events), (1, 1));
    assert_eq!(seen.finish_reason, Some(FinishReason::ToolCalls));
    let usage = seen.usage.unwrap();
    assert_eq!((usage.prompt, usage.cached, usage.completion), (7, 2, 9));
    assert!(seen.ended);
}

#[test]
fn a_responses_stream_is_understood() {
    let seen = whole(Shape::Responses, RESPONSES);
    assert_eq!(seen.content_events, 1);
    assert_eq!(seen.finish_reason, Some(FinishReason::Length));
    let usage = seen.usage.unwrap();
    assert_eq!((usage.prompt, usage.cached, usage.completion), (10, 4, 6));
    assert!(seen.ended);
}

#[test]
fn keep_alives_are_neither_progress_nor_a_beginning() {
    let mut scanner = Scanner::new(Shape::Chat, false);
    for fragment in ["\u{feff}", ": keep", "-alive\n", "\n", "\r\n", ":\n\n"] {
        scanner.feed(Bytes::from(fragment));
        assert!(
            !scanner.seen().progress && !scanner.seen().begun,
            "{fragment:?}"
        );
    }
    assert_eq!(scanner.seen().keep_alives, 2);
    scanner.feed(Bytes::from("d"));
    assert!(scanner.seen().begun && !scanner.seen().progress);
    scanner.feed(Bytes::from(
        "ata: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n",
    ));
    assert!(scanner.seen().progress && scanner.seen().first_content);
    scanner.feed(Bytes::from(": keep-alive\n\n"));
    assert!(!scanner.seen().progress);
}

#[test]
fn an_uncut_fragment_is_returned_without_a_copy() {
    for strip in [false, true] {
        let mut scanner = Scanner::new(Shape::Chat, strip);
        let fragment = Bytes::from(CHAT.replace(USAGE_CHUNK, ""));
        assert_eq!(scanner.feed(fragment.clone()).as_ptr(), fragment.as_ptr());
    }
}

#[test]
fn the_usage_chunk_is_taken_out_at_every_cut_and_line_end() {
    for line_end in ["\n", "\r\n", "\r"] {
        let stream = CHAT.replace('\n', line_end);
        let chunk = USAGE_CHUNK.replace('\n', line_end);
        let expected = stream.replace(&chunk, "");
        let (_, full, _) = run(Shape::Chat, true, &[stream.as_bytes()]);
        for cut in 0..=stream.len() {
            let (head, tail) = stream.as_bytes().split_at(cut);
            let (out, seen, _) = run(Shape::Chat, true, &[head, tail]);
            assert_eq!(String::from_utf8_lossy(&out), expected, "cut at {cut}");
            assert_eq!(seen, full);
        }
        let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(run(Shape::Chat, true, &bytes).0, expected.as_bytes());
        assert_eq!(run(Shape::Chat, true, &bytes).1, full);
        assert!(full.usage.is_some());
    }
}

#[test]
fn half_an_event_waits_for_its_other_half() {
    for strip in [false, true] {
        let mut scanner = Scanner::new(Shape::Chat, strip);
        let mut feed = |text: &str| {
            String::from_utf8(scanner.feed(Bytes::from(text.to_owned())).to_vec()).unwrap()
        };
        assert_eq!(feed("data: {\"id\":1,\"choi"), "");
        assert_eq!(feed("ces\": [ {\"delta\":{}}]}\n"), "");
        let whole = "data: {\"id\":1,\"choices\": [ {\"delta\":{}}]}\n\n";
        assert_eq!(feed("\n: keep"), format!("{whole}: keep"));
        assert_eq!(feed("-alive\n\nevent"), "-alive\n\n");
        assert_eq!(feed(": x\n\nda"), "event: x\n\n");
        assert_eq!(feed("ta: 1\n\nda"), "data: 1\n\n");
        // But not one that is too long.
        assert_eq!(feed(&"x".repeat(1_000_000)), "");
        assert_eq!(feed(&"x".repeat(60_000)).len(), 1_060_002);
        assert_eq!(feed("y"), "y");
        assert_eq!(feed("\n\ndata: 2\n\nda"), "\n\ndata: 2\n\n");
    }
}

#[test]
fn a_stream_that_ends_early_gives_back_what_was_held() {
    let cut = "data: {\"id\":\"x\",\"ch";
    let (out, seen, _) = run(Shape::Chat, true, &[cut.as_bytes()]);
    assert_eq!(out, cut.as_bytes());
    assert!(!seen.ended && seen.usage.is_none());
    assert!(whole(Shape::Chat, "data: [DONE]").ended);
}

#[test]
fn an_endless_line_passes_unkept_and_counts_as_content() {
    let mut scanner = Scanner::new(Shape::Chat, true);
    scanner.feed(Bytes::from(
        "data: {\"choices\":[{\"delta\":{\"content\":\"",
    ));
    let block = Bytes::from(vec![b'x'; 600_000]);
    assert_eq!(scanner.feed(block.clone()), "");
    assert_eq!(scanner.feed(block.clone()).len(), 2 * block.len() + 39);
    for _ in 0..10 {
        assert_eq!(scanner.feed(block.clone()), block);
        assert!(scanner.line.bytes.len() <= MAX_LINE);
    }
    assert!(scanner.seen().progress);
    scanner.feed(Bytes::from("\"}}]}\n\n"));
    assert_eq!(scanner.seen().content_events, 1);
    assert_eq!(scanner.line.bytes.capacity(), 0);
}

#[test]
fn data_over_several_lines_is_one_event() {
    let seen = whole(
        Shape::Chat,
        "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\ndata: \"choices\":[],\ndata:\"usage\":{\"prompt_tokens\":1}\ndata: }\n\n",
    );
    assert_eq!(seen.usage.map(|usage| usage.prompt), Some(1));
    assert_eq!(seen.content_events, 1);
}

#[test]
fn errors_inside_a_stream_are_seen_after_content_too() {
    let content = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let error =
        "data: {\"error\":{\"message\":\"busy\",\"type\":\"server_error\",\"code\":null}}\n\n";
    for stream in [error.to_owned(), format!("{content}{error}")] {
        let seen = whole(Shape::Chat, &stream);
        assert_eq!(seen.error.unwrap().kind.as_deref(), Some("server_error"));
    }
    let seen = whole(
        Shape::Messages,
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"m\"}}\n\n",
    );
    assert_eq!(
        seen.error.unwrap().kind.as_deref(),
        Some("overloaded_error")
    );
}

#[test]
fn half_of_the_last_event_is_no_end_whatever_its_name() {
    let stop = "event: message_stop\ndata: {\"type\":\"message_stop\"}";
    for (shape, end, ended) in [
        (Shape::Messages, stop, true),
        (Shape::Messages, &stop[..stop.len() - 1], false),
        (Shape::Messages, "event: message_stop\ndata", false),
        (
            Shape::Responses,
            "event: response.completed\ndata: {\"type\":\"response.completed\",\"resp",
            false,
        ),
        (Shape::Chat, "data: [DONE]", true),
        (Shape::Chat, "data: [DON", false),
    ] {
        assert_eq!(whole(shape, end).ended, ended, "{end}");
        // What has ended properly is not taken back.
        let more = format!("{stop}\n\n{}", &stop[..30]);
        assert!(run(Shape::Messages, false, &[more.as_bytes()]).1.ended);
    }
}

#[test]
fn what_comes_after_the_end_is_counted_and_goes_nowhere() {
    for newline in ["\n", "\r\n", "\r"] {
        let text = |text: &str| text.replace('\n', newline);
        let end = text("data: [DONE]\n\n");
        let stream = text("data: [DONE]\n\n: bye\n\ndata: x\n\nevent: error\ndata: y");
        for cut in 0..=stream.len() {
            let (head, tail) = stream.as_bytes().split_at(cut);
            let (out, seen, _) = run(Shape::Chat, false, &[head, tail]);
            assert_eq!(String::from_utf8_lossy(&out), end, "{cut}");
            assert_eq!(seen.bytes_after_end, 26);
            assert!(seen.error.is_none());
        }
    }
}

fn line() -> impl Strategy<Value = String> {
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}";
    prop_oneof![
        4 => Just(String::new()),
        2 => Just(usage.to_owned()),
        2 => Just("data: {\"choices\":[{\"delta\":{\"content\":\"é\\\"\"},\"finish_reason\":null}]}".to_owned()),
        1 => Just("data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}],\"usage\":null}".to_owned()),
        1 => Just(": keep-alive".to_owned()),
        1 => Just("data: {\"m\":{\"choices\" : [1]},\"choices\":[ ],\"usage\":{\"prompt_tokens\":2}}".to_owned()),
        1 => Just("data: {\"choices\"".to_owned()),
        1 => Just("data: :[],\"usage\":{\"prompt_tokens\":3}}".to_owned()),
        1 => Just("data".to_owned()),
        1 => Just("data:".to_owned()),
        1 => Just("data: [DONE]".to_owned()),
        1 => Just("data: {\"error\":{\"code\":1}}".to_owned()),
        1 => Just("event: message_stop".to_owned()),
        1 => Just("event: content_block_delta".to_owned()),
        1 => Just("data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":9}}".to_owned()),
        1 => Just("id: 7".to_owned()),
        1 => Just("\u{feff}".to_owned()),
        1 => (0usize..20_000).prop_map(|n| format!("data: {{\"x\":\"{}\",\"choices\":[],\"usage\":{{\"prompt_tokens\":4}}}}", "y".repeat(n))),
        1 => "[a-z:\"\\\\{}\\[\\] é]{0,20}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn the_cuts_of_a_stream_change_nothing(
        bom in prop_oneof![5 => Just(&b""[..]), 1 => Just(&b"\xef\xbb\xbf"[..]), 1 => Just(&b"\xef\xbb"[..])],
        lines in proptest::collection::vec((line(), 0usize..3, any::<bool>()), 0..14),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        open_end: bool,
    ) {
        let mut stream = bom.to_vec();
        for (line, end, closed) in &lines {
            let end = ["\n", "\r\n", "\r"][*end];
            stream.extend_from_slice(line.as_bytes());
            stream.extend_from_slice(end.as_bytes());
            if *closed { stream.extend_from_slice(end.as_bytes()); }
        }
        if open_end { stream.pop(); }
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        places.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for place in places { pieces.push(&stream[from..place]); from = place; }
        pieces.push(&stream[from..]);
        let single: Vec<&[u8]> = stream.chunks(1).collect();
        for shape in [Shape::Chat, Shape::Completions, Shape::Messages, Shape::Responses] {
            for strip in [false, true] {
                let unsplit = run(shape, strip, &[&stream]);
                prop_assert_eq!(&run(shape, strip, &pieces), &unsplit);
                if stream.len() < 2000 { prop_assert_eq!(&run(shape, strip, &single), &unsplit); }
                if !strip {
                    prop_assert!(stream.starts_with(&unsplit.0));
                    prop_assert!(unsplit.1.ended || unsplit.0 == stream);
                }
            }
            prop_assert_eq!(&run(shape, true, &pieces).1, &run(shape, false, &pieces).1);
        }
    }

    #[test]
    fn any_bytes_pass_unchanged(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'\r'), Just(b':')], 0..300)) {
        for shape in [Shape::Chat, Shape::Messages, Shape::Responses] {
            prop_assert_eq!(&run(shape, false, &[&bytes]).0, &bytes);
            prop_assert_eq!(&run(shape, true, &[&bytes]).0, &bytes);
        }
    }
}

#[test]
fn what_is_no_event_stream_is_known_by_its_first_line() {
    for (stream, foreign) in [
        ("<!DOCTYPE html>\n<html>data: x</html>\n", true),
        ("\n\n{\"error\":{\"message\":\"m\"}}", true),
        ("Authentication Fails (governor)", true),
        ("dat", true),
        ("database: x\n", true),
        (": keep-alive\n\n<html>", true),
        (": keep-alive\n\n", false),
        ("data: x\n\nfoo: y\n\n", false),
        ("data:x", false),
        ("data\n", false),
        ("\u{feff}event: ping\r\n", false),
        ("id: 1\nretry: 3\n\n", false),
        ("", false),
    ] {
        let (_, seen, _) = run(Shape::Chat, false, &[stream.as_bytes()]);
        assert_eq!(seen.foreign, foreign, "{stream:?}");
        let pieces: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(run(Shape::Chat, false, &pieces).1, seen, "{stream:?}");
    }
    let mut scanner = Scanner::new(Shape::Chat, false);
    scanner.feed(Bytes::from_static(b"<html"));
    assert!(
        scanner.seen().foreign,
        "a page without lines would never end one"
    );
}

#[test]
fn what_comes_before_an_error_can_be_told_from_it_however_it_is_cut() {
    let error = "data: {\"error\":{\"message\":\"an error\"}}\n\n";
    let said = "data: {\"choices\":[{\"delta\":{\"content\":\"no error yet\"}}]}\n\n";
    for (before, strip) in [
        (said.to_owned(), false),
        (said.to_owned(), true),
        (format!(": a\n\n{said}{USAGE_CHUNK}{said}"), true),
        (String::new(), false),
    ] {
        for newline in ["\n", "\r\n", "\r"] {
            let text = |text: &str| text.replace('\n', newline);
            let stream = text(&[&before, error, said].concat());
            let expected = text(&match strip {
                true => before.replace(USAGE_CHUNK, ""),
                false => before.clone(),
            });
            let own = text(error);
            for cut in 0..stream.len() {
                let mut scanner = Scanner::new(Shape::Chat, strip);
                let mut out = Vec::new();
                let mut told = None;
                let (first, second) = stream.as_bytes().split_at(cut);
                for piece in [first, second] {
                    let passed = scanner.feed(Bytes::copy_from_slice(piece));
                    if let Some(at) = scanner.error_at() {
                        assert_eq!(told.replace(out.len() + at), None);
                        assert!(at <= passed.len());
                        let rest = &passed[at..];
                        assert!(
                            at == 0 || rest.starts_with(own.trim_end().as_bytes()),
                            "{cut}"
                        );
                    }
                    out.extend_from_slice(&passed);
                }
                let before = String::from_utf8_lossy(&out[..told.unwrap()]);
                assert_eq!(before, expected, "{cut}");
            }
        }
    }
    let mut scanner = Scanner::new(Shape::Chat, false);
    scanner.feed(Bytes::copy_from_slice(error.trim_end().as_bytes()));
    assert_eq!(scanner.error_at(), None);
    scanner.finish();
    assert_eq!(scanner.error_at(), Some(0));
    scanner.feed(Bytes::from_static(b"\n\n"));
    assert_eq!(scanner.error_at(), None);
}

#[test]
fn how_much_of_a_piece_is_an_unfinished_event_can_be_told() {
    let said = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n";
    let secret = "x".repeat(MAX_LINE - 60);
    let id = "1".repeat(100);
    let error = format!("id: {id}\ndata: {{\"error\":{{\"message\":\"{secret}\"}}}}\n");
    for strip in [false, true] {
        let mut scanner = Scanner::new(Shape::Chat, strip);
        let out = scanner.feed(Bytes::from([said, &error].concat()));
        let (passed, rest) = out.split_at(out.len() - scanner.unfinished());
        assert_eq!((passed, rest), (said.as_bytes(), error.as_bytes()));
        scanner.feed(Bytes::from_static(b"\n"));
        assert!(scanner.seen().error.is_some());
        let out = scanner.feed(Bytes::from([said, "id: 1"].concat()));
        assert_eq!((out.as_ref(), scanner.unfinished()), (said.as_bytes(), 0));
    }
}

#[test]
fn an_event_that_begins_as_an_error_waits_until_it_is_whole() {
    for (shape, error) in [
        (
            Shape::Chat,
            "data: {\"error\":{\"message\":\"secret\"}}\n\n",
        ),
        (
            Shape::Chat,
            "data:{\"error\":{\"message\":\"secret\"}}\r\n\r\n",
        ),
        (
            Shape::Messages,
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"message\":\"secret\"}}\n\n",
        ),
    ] {
        for cut in 1..error.len() {
            let mut scanner = Scanner::new(shape, false);
            let (first, second) = error.split_at(cut);
            let mut out = Vec::new();
            for piece in [first, second] {
                let passed = scanner.feed(Bytes::copy_from_slice(piece.as_bytes()));
                let before = scanner.error_at().unwrap_or(passed.len());
                out.extend_from_slice(&passed[..before]);
                if scanner.error_at().is_some() {
                    break;
                }
            }
            assert_eq!(out, b"", "{cut}");
            assert!(scanner.seen().error.is_some());
        }
        let mut scanner = Scanner::new(shape, false);
        let half = Bytes::copy_from_slice(&error.as_bytes()[..error.len() / 2]);
        assert_eq!(scanner.feed(half.clone()), "");
        assert_eq!(scanner.finish(), Some(half));
        // A failed response has all that was answered in it.
        let long = error.replace("secret", &"x".repeat(500_000));
        let mut scanner = Scanner::new(shape, false);
        for piece in long.as_bytes().chunks(100_000) {
            let out = scanner.feed(Bytes::copy_from_slice(piece));
            assert!(out.is_empty() || scanner.error_at() == Some(0));
        }
        assert!(scanner.seen().error.is_some());
    }
}

#[test]
fn an_error_after_content_is_one_in_every_form() {
    let said = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n";
    for error in [
        "data: {\"code\":50505,\"message\":\"busy\",\"data\":null}\n\n",
        "event: error\ndata: {\"message\":\"busy\",\"type\":\"x\"}\n\n",
        "event: error\ndata: busy\n\n",
        "data: {\"object\":\"error\",\"message\":\"busy\"}\n\n",
        "data: { \"error\": {\"message\":\"busy\"}}\n\n",
    ] {
        let stream = [said, said, said, error, "data: [DONE]\n\n"].concat();
        let (_, seen, _) = run(Shape::Chat, false, &[stream.as_bytes()]);
        let error = seen.error.expect(error);
        assert_eq!(
            (error.message.as_deref(), seen.content_events),
            (Some("busy"), 3)
        );
    }
}

#[test]
fn what_an_upstream_tells_beside_its_chunks_is_no_error() {
    let said = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n";
    for aside in [
        "data: {\"id\":\"1\",\"code\":0,\"message\":\"success\"}\n\n",
        "data: {\"id\":\"1\",\"code\":null,\"message\":null}\n\n",
        "data: {\"code\":\"x\",\"message\":\"m\",\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"prompt_filter_results\":[]}\n\n",
        "data: {\"object\":\"x\",\"detail\":\"d\"}\n\n",
        "data: {\"detail\":null}\n\n",
    ] {
        let stream = [said, aside, said, "data: [DONE]\n\n"].concat();
        let (out, seen, _) = run(Shape::Chat, false, &[stream.as_bytes()]);
        assert_eq!((seen.error, out), (None, stream.into_bytes()), "{aside}");
    }
}
