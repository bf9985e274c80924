use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn rules() -> Arc<Rules> {
    Arc::new(Rules {
        success: ["0", "200", "success"].map(str::to_owned).to_vec(),
        statuses: HashMap::from([("10012".to_owned(), 429)]),
    })
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Good,
    Failed(Failure),
    Broken,
}

/// What goes out for an answer cut at these places, and what it was.
fn run(text: &[u8], cuts: &[usize], shape: Shape, streamed: bool) -> (String, Outcome) {
    let mut unwrapper = Unwrapper::new(rules(), shape, streamed);
    let whole = Bytes::copy_from_slice(text);
    let mut out = Vec::new();
    let mut at = 0;
    for cut in cuts.iter().copied().chain([text.len()]) {
        let cut = cut.clamp(at, text.len());
        unwrapper.feed(&whole.slice(at..cut), &mut out);
        at = cut;
    }
    unwrapper.finish(&mut out);
    let outcome = match unwrapper.verdict() {
        Verdict::Failed(failure) => Outcome::Failed(failure.clone()),
        _ if unwrapper.is_broken() => Outcome::Broken,
        _ => Outcome::Good,
    };
    (String::from_utf8_lossy(&out.concat()).into_owned(), outcome)
}

/// The same at every cut, or the test fails.
fn always(text: &str, streamed: bool) -> (String, Outcome) {
    let shape = Shape::Chat;
    let expected = run(text.as_bytes(), &[], shape, streamed);
    for cut in 0..=text.len() {
        let at_cut = run(text.as_bytes(), &[cut], shape, streamed);
        assert_eq!(at_cut, expected, "cut at {cut}");
    }
    let bytes: Vec<usize> = (0..text.len()).collect();
    assert_eq!(run(text.as_bytes(), &bytes, shape, streamed), expected);
    expected
}

fn whole(text: &str) -> (String, Outcome) {
    always(text, false)
}

fn events(text: &str) -> (String, Outcome) {
    always(text, true)
}

fn good(text: &str) -> (String, Outcome) {
    (text.to_owned(), Outcome::Good)
}

fn failed(code: &str, message: &str) -> Outcome {
    Outcome::Failed(Failure {
        code: code.into(),
        message: message.into(),
    })
}

#[test]
fn an_answer_is_taken_out_of_its_envelope_byte_by_byte() {
    let data = r#"{ "id":"a", "choices":[{"message":{"content":"\"}{ \\ 字\u5b57"}}] }"#;
    for text in [
        format!(r#"{{"code":0,"data":{data},"msg":"ok"}}"#),
        format!(r#" {{ "msg" : "ok" , "code" : "200" , "data" : {data} }} "#)
            .trim()
            .to_owned(),
        format!(r#"{{"data":{data},"msg":"","code":"success"}}"#),
        format!(r#"{{"trace":{{"a":[1,{{}}]}},"cod\u0065":0,"data":{data}}}"#),
        format!(r#"{{"code":0,"data":{data}"#),
    ] {
        assert_eq!(whole(&text), good(data), "{text}");
    }
}

#[test]
fn what_is_no_envelope_passes_unchanged() {
    for text in [
        r#"{"id":"a","choices":[],"code":40301,"msg":"m"}"#,
        r#"{"object":"list","data":[{"embedding":[0.5]}]}"#,
        r#"{"error":{"message":"m","code":"c","data":1}}"#,
        r#"{"code":0,"id":"flat"}"#,
        r#"{"code":7}"#,
        r#"{"code":null,"message":"m","data":{}}"#,
        r#"{"code":0,"#,
        r#"{"code":40301,"data""#,
        r#"{"code":4030"#,
        "[1]",
        "{}",
        "{\"code\" 0}",
        "plain text",
        "\n\n",
        "",
    ] {
        assert_eq!(whole(text), good(text), "{text}");
    }
}

#[test]
fn an_error_in_an_envelope_is_told_by_its_code_and_message() {
    let refused = failed("40301", "quota \"exceeded\"");
    for text in [
        r#"{"code":40301,"data":null,"msg":"quota \"exceeded\""}"#,
        r#"{"code":40301,"msg":"quota \"exceeded\""}"#,
        r#"{"msg":"quota \"exceeded\"","data":{"a":1},"code":"40301"}"#,
        r#"{"message":"quota \"exceeded\"","msg":"","code":40301,"data":{}}"#,
        r#"{"data":{"secret":1},"msg":null,"message":"quota \"exceeded\"","code":40301}"#,
    ] {
        let (out, outcome) = whole(text);
        assert_eq!((out.as_str(), outcome), ("", refused.clone()), "{text}");
    }
    assert_eq!(whole(r#"{"code":1,"data":{}}"#).1, failed("1", NO_REASON));
    assert_eq!(
        whole(r#"{"code":1,"data":{},"msg":{"a":1}}"#).1,
        failed("1", NO_REASON)
    );
    assert_eq!(
        whole(r#"{"code":0,"data":null,"msg":"ok"}"#).1,
        failed("", NO_DATA)
    );
}

#[test]
fn a_message_is_bounded_and_cut_between_characters() {
    for piece in ["字", "\\u5b57", "\\ud83d\\ude00", "\\n", "a", "é"] {
        let text = format!(r#"{{"code":1,"msg":"{}"}}"#, piece.repeat(4_000));
        let (_, Outcome::Failed(failure)) = run(text.as_bytes(), &[], Shape::Chat, false) else {
            panic!("no failure");
        };
        let length = failure.message.chars().count();
        assert!((500..=2_000).contains(&length), "{piece}: {length}");
        assert!(!failure.message.contains('\u{fffd}'));
    }
    let code = "9".repeat(10_000);
    let text = format!(r#"{{"code":{code},"msg":"m"}}"#);
    let (_, Outcome::Failed(failure)) = run(text.as_bytes(), &[], Shape::Chat, false) else {
        panic!("no failure");
    };
    assert_eq!(failure.code.len(), 64);
}

#[test]
fn data_that_comes_before_a_late_code_is_held_only_so_long() {
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(2 * MAX_HELD));
    let wrapped = |code: u32| format!(r#"{{"data":{long},"code":{code},"msg":"no"}}"#);
    for cuts in [vec![], (0..200).map(|n| n * 1_000).collect::<Vec<_>>()] {
        let good_one = run(wrapped(0).as_bytes(), &cuts, Shape::Chat, false);
        assert!(good_one == good(&long));
        let mut unwrapper = Unwrapper::new(rules(), Shape::Chat, false);
        let mut out = Vec::new();
        let text = Bytes::from(wrapped(50_000));
        unwrapper.feed(&text.slice(..100_000), &mut out);
        assert!(!out.is_empty());
        assert_eq!(unwrapper.verdict(), Verdict::Good);
        unwrapper.commit();
        unwrapper.feed(&text.slice(100_000..), &mut out);
        assert!(unwrapper.is_broken() && unwrapper.is_over());
    }
    // A list before its end may be OpenAI's own.
    let list = format!(
        r#"{{"object":"list","data":["{}"]}}"#,
        "x".repeat(2 * MAX_HELD)
    );
    assert!(run(list.as_bytes(), &[], Shape::Completions, false) == good(&list));
    let trace = format!(
        r#"{{"trace":"{}","code":7,"msg":"m"}}"#,
        "x".repeat(2 * MAX_HELD)
    );
    assert!(run(trace.as_bytes(), &[], Shape::Chat, false) == good(&trace));
}

#[test]
fn nothing_waits_once_the_envelope_is_open() {
    let mut unwrapper = Unwrapper::new(rules(), Shape::Chat, true);
    let mut out = Vec::new();
    for (fragment, expected) in [
        (r#": hello"#, ": hello"),
        ("\n\n", "\n\n"),
        (r#"data: {"code":0,"#, ""),
        (r#""data":{"cho"#, r#"data: {"cho"#),
        (r#"ices":[]}"#, r#"ices":[]}"#),
        (r#","msg":""}"#, ""),
        ("\n", ""),
        ("\n", "\n\n"),
        (r#"data: {"choices":["#, r#"data: {"choices":["#),
    ] {
        unwrapper.feed(&Bytes::from(fragment), &mut out);
        assert_eq!(String::from_utf8_lossy(&out.concat()), expected);
        out.clear();
    }
}

#[test]
fn what_passes_is_not_copied() {
    let text = Bytes::from(r#"{"code":0,"data":{"id":"a","choices":[]},"msg":"ok"}"#);
    let mut unwrapper = Unwrapper::new(rules(), Shape::Chat, false);
    let mut out = Vec::new();
    unwrapper.feed(&text, &mut out);
    assert_eq!(out.len(), 1);
    let inside = text.as_ptr_range().contains(&out[0].as_ptr());
    assert!(inside && out[0] == r#"{"id":"a","choices":[]}"#);
}

#[test]
fn each_event_loses_its_envelope_and_other_lines_stay() {
    let (out, outcome) = events(concat!(
        ": queued\n\n",
        "data: {\"code\":0,\"data\":{\"n\":1},\"msg\":\"\"}\n\n",
        "event: x\nid: 7\ndata:{\"msg\":\"\",\"data\":{\"n\":2},\"code\":0}\n\n",
        "data: {\"choices\":[{\"n\":3}]}\n\n",
        "data: {\"code\":0,\"data\":{\"n\":4},\"msg\":\"\"}\r\n: c\r\nretry: 3\r\n\r\n",
        "data: {\"code\":0,\ndata: \"data\":{\"n\":\ndata: 5},\"msg\":\ndata: \"\"}\n\n",
        "data: {\"code\":0,\"data\":null,\"msg\":\"busy\"}\n\n",
        "data: {\"code\":0,\"data\":\"[DONE]\",\"msg\":\"\"}\n\n",
        "da\n\ndata\n\n",
        "data: [DONE]\n\n",
    ));
    assert_eq!(outcome, Outcome::Good);
    assert_eq!(
        out,
        concat!(
            ": queued\n\n",
            "data: {\"n\":1}\n\n",
            "event: x\nid: 7\ndata: {\"n\":2}\n\n",
            "data: {\"choices\":[{\"n\":3}]}\n\n",
            "data: {\"n\":4}\n: c\r\nretry: 3\r\n\r\n",
            "data: {\"n\":\ndata: 5}\n\n",
            ":\n\n",
            "data: [DONE]\n\n",
            "da\n\ndata\n\n",
            "data: [DONE]\n\n",
        )
    );
}

#[test]
fn an_unfinished_event_goes_out_as_it_is() {
    for (text, expected) in [
        ("data: {\"code\":0,\"da", "data: {\"code\":0,\"da"),
        ("data: {\"code\":0,\"data\":{\"a\":", "data: {\"a\":"),
        (
            "data: {\"code\":0,\"data\":{\"a\":1},\"m",
            "data: {\"a\":1}",
        ),
        (
            "data: {\"code\":0,\"data\":{\"a\":1}}\n",
            "data: {\"a\":1}\n",
        ),
        ("dat", "dat"),
        (": c", ": c"),
    ] {
        assert_eq!(events(text), good(expected), "{text}");
    }
}

#[test]
fn a_stream_that_begins_with_an_error_is_an_error() {
    for text in [
        "data: {\"code\":42901,\"data\":null,\"msg\":\"slow\"}\n\ndata: [DONE]\n\n",
        ": wait\n\nevent: e\ndata: {\"code\":42901,\"msg\":\"slow\"}\n\n",
        // Announced as events, sent as one text.
        "\n{\"code\":42901,\"data\":null,\"msg\":\"slow\"}",
    ] {
        assert_eq!(events(text).1, failed("42901", "slow"), "{text}");
    }
    let plain = "\n{\"code\":0,\"data\":{\"a\":1},\"msg\":\"\"}";
    assert_eq!(events(plain), good("\n{\"a\":1}"));
}

#[test]
fn an_error_within_a_stream_is_its_last_event() {
    let text = concat!(
        "data: {\"code\":0,\"data\":{\"n\":1},\"msg\":\"\"}\n\n",
        "data: {\"code\":500,\"data\":null,\"msg\":\"out\"}\n\n",
        "data: [DONE]\n\n",
    );
    let (out, outcome) = events(text);
    assert_eq!(outcome, Outcome::Good);
    let error = r#"{"error":{"message":"out","type":"upstream_error","param":null,"code":null}}"#;
    assert_eq!(out, format!("data: {{\"n\":1}}\n\ndata: {error}\n\n"));
    let (out, _) = run(text.as_bytes(), &[], Shape::Messages, true);
    assert!(out.ends_with(
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"out\"}}\n\n"
    ));
    // The scanner that watches the stream sees it.
    for shape in [Shape::Chat, Shape::Messages, Shape::Responses] {
        let (out, _) = run(text.as_bytes(), &[], shape, true);
        let mut scanner = crate::relay::sse::Scanner::new(shape, false);
        scanner.feed(Bytes::from(out));
        let error = scanner.seen().error.as_ref();
        assert_eq!(
            error.and_then(|error| error.message.as_deref()),
            Some("out")
        );
        assert!(!scanner.seen().ended);
    }
}

#[test]
fn an_error_after_the_head_is_told_in_the_body() {
    let error = "{\"code\":500,\"data\":null,\"msg\":\"out\"}";
    for (text, streamed, expected) in [
        (format!("data: {error}\n\n"), true, "data: {\"error\""),
        (error.to_owned(), false, "{\"error\""),
    ] {
        let mut unwrapper = Unwrapper::new(rules(), Shape::Chat, streamed);
        let mut out = Vec::new();
        unwrapper.feed(&Bytes::from_static(b"\n"), &mut out);
        assert_eq!(unwrapper.verdict(), Verdict::Open);
        unwrapper.commit();
        unwrapper.feed(&Bytes::from(text), &mut out);
        assert_eq!(unwrapper.verdict(), Verdict::Good);
        assert!(unwrapper.is_over());
        let out = String::from_utf8(out.concat()).unwrap();
        assert!(out.starts_with(&format!("\n{expected}")), "{out}");
    }
}

#[test]
fn a_code_says_a_status_or_the_head_does() {
    let rules = rules();
    for (code, http, status) in [
        ("429", 200, 429),
        ("42901", 200, 429),
        ("400003", 200, 400),
        ("40301", 500, 403),
        ("10012", 200, 429),
        ("10013", 200, 502),
        ("10013", 422, 422),
        ("quota", 403, 403),
        ("4291", 200, 502),
        ("-429", 200, 502),
        ("60000", 200, 502),
        ("字字", 302, 502),
        ("", 200, 502),
    ] {
        assert_eq!(rules.status(code, http), status, "{code} {http}");
    }
}

/// A JSON value that is no trap: keys of its own, few and short.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        "[\\\\\"{}\\[\\],:]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::hash_map("[a-z\"\\\\]{1,4}", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// An envelope's text, its data, and what it is to serde_json.
fn envelope() -> impl Strategy<Value = (String, String)> {
    let code = prop_oneof![
        Just(json!(0)),
        Just(json!("success")),
        Just(json!(40_301)),
        Just(json!("quota"))
    ];
    let data = prop::collection::hash_map("[a-z]{1,4}", value(), 0..4)
        .prop_map(|map| Value::Object(map.into_iter().collect()));
    let other = ("x[a-z]{0,6}", value());
    let order = Just([0_usize, 1, 2, 3]).prop_shuffle();
    (code, data, value(), other, order).prop_map(|(code, data, message, (key, other), order)| {
        let members = [
            format!("\"code\":{code}"),
            format!("\"data\":{data}"),
            format!("\"msg\": {message}"),
            format!("{}:{other}", json!(key)),
        ];
        let text: Vec<_> = order.iter().map(|index| members[*index].clone()).collect();
        (format!("{{{}}}", text.join(",")), data.to_string())
    })
}

/// What serde_json makes of the same text.
fn reference(text: &str, data: &str) -> (String, Outcome) {
    let value: Value = serde_json::from_str(text).unwrap();
    let code = match &value["code"] {
        Value::String(code) => code.clone(),
        code => code.to_string(),
    };
    if rules().is_success(&code) {
        return good(data);
    }
    let said = value["msg"].as_str().filter(|message| !message.is_empty());
    (String::new(), failed(&code, said.unwrap_or(NO_REASON)))
}

proptest! {
    #[test]
    fn every_cut_gives_what_serde_json_finds((text, data) in envelope(), cuts in prop::collection::vec(0_usize..400, 0..6)) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        prop_assert_eq!(run(text.as_bytes(), &cuts, Shape::Chat, false), reference(&text, &data));
    }

    #[test]
    fn streams_of_envelopes_give_streams_of_their_data(
        list in prop::collection::vec(envelope(), 1..5),
        ends in prop::sample::select(vec!["\n", "\r\n", "\r"]),
        cuts in prop::collection::vec(0_usize..1_000, 0..8),
    ) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        let mut text = String::new();
        let mut expected = String::new();
        let mut failure = None;
        for (envelope, data) in &list {
            text.push_str(&format!("data: {envelope}{ends}{ends}"));
            match reference(envelope, data) {
                _ if failure.is_some() => {}
                (data, Outcome::Good) => expected.push_str(&format!("data: {data}\n{ends}")),
                (_, outcome) => failure = Some(outcome),
            }
        }
        let (out, outcome) = run(text.as_bytes(), &cuts, Shape::Chat, true);
        match failure {
            None => prop_assert_eq!((out, outcome), good(&expected)),
            Some(failure) if expected.is_empty() => prop_assert_eq!(outcome, failure),
            Some(Outcome::Failed(failure)) => {
                expected.push_str(&failure.event(Shape::Chat));
                prop_assert_eq!((out, outcome), good(&expected));
            }
            Some(_) => prop_assert!(false),
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic_and_alike_at_every_cut(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\":,\\\n\r 0dat:".to_vec())], 0..200),
        head in prop::sample::select(vec!["", "{\"code\":0,\"data\":", "data: {\"code\":7,", "data:{\"data\":{"]),
        cuts in prop::collection::vec(0_usize..220, 0..6),
    ) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        let text = [head.as_bytes(), &bytes].concat();
        for streamed in [false, true] {
            let expected = run(&text, &[], Shape::Chat, streamed);
            prop_assert_eq!(run(&text, &cuts, Shape::Chat, streamed), expected);
        }
    }
}
