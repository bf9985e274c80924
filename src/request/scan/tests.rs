use super::*;
use proptest::prelude::*;

fn refusal(body: &str) -> ScanError {
    match scan(body.as_bytes()) {
        Err(error) => error,
        Ok(_) => panic!("accepted: {body}"),
    }
}

#[test]
fn the_fields_of_a_chat_request_are_found() {
    let body = r#" {"model":"deepseek-flash","messages":[{"role":"user","content":"say \"model\":1"}],
        "stream": true , "stream_options":{"include_usage" : false},"max_tokens":100,"user_id":"u",
        "metadata":{"user_id":"m\u0031"},"tools":[],"thinking":{"type":"disabled"}} "#;
    let fields = scan(body.as_bytes()).unwrap();
    let model = fields.model.clone().unwrap();
    assert_eq!(model.value, "deepseek-flash");
    assert_eq!(&body[model.span], r#""deepseek-flash""#);
    assert_eq!(fields.stream, Some(true));
    assert_eq!(&body[fields.stream_span.clone().unwrap()], "true");
    let options = fields.stream_options.clone().unwrap();
    assert_eq!(options.include_usage, Some(false));
    assert_eq!(&body[options.include_usage_span.unwrap()], "false");
    assert_eq!(&body[options.value.span], r#"{"include_usage" : false}"#);
    assert_eq!(fields.max_tokens, Some(100));
    let metadata = fields.metadata.clone().unwrap();
    assert_eq!(metadata.user_id.unwrap().value, "m1");
    assert_eq!(&body[fields.user_id.clone().unwrap()], "\"u\"");
    assert_eq!(&body[fields.tools.clone().unwrap()], "[]");
    let thinking: Vec<_> = fields.spans("thinking").collect();
    assert_eq!(&body[thinking[0].clone()], r#"{"type":"disabled"}"#);
    assert_eq!(body.as_bytes()[fields.end], b'}');
    assert!(!fields.empty);
}

#[test]
fn an_empty_object_is_a_request_without_fields() {
    let fields = scan(b"{ }\n").unwrap();
    assert!(fields.empty && fields.model.is_none());
    assert_eq!(fields.end, 2);
}

#[test]
fn a_deciding_field_may_not_be_there_twice_in_any_spelling() {
    for key in KNOWN {
        let value = match key {
            "model" => "\"a\"",
            "stream_options" | "metadata" => "{}",
            _ => "null",
        };
        let first = key.chars().next().unwrap() as u32;
        let escaped = format!("\\u{first:04x}{}", &key[1..]);
        for second in [key.to_string(), escaped] {
            let body = format!(r#"{{"{key}":{value},"x":1,"{second}":{value}}}"#);
            assert_eq!(refusal(&body), ScanError::Duplicate { key });
        }
    }
    assert!(scan(br#"{"other":1,"other":2}"#).is_ok());
    assert!(matches!(
        refusal(r#"{"stream_options":{"include_usage":true,"include\u005fusage":false}}"#),
        ScanError::Duplicate { .. }
    ));
    assert!(matches!(
        refusal(r#"{"metadata":{"user_id":"a","user_id":"b"}}"#),
        ScanError::Duplicate { .. }
    ));
}

#[test]
fn keys_inside_other_values_are_not_taken_for_fields() {
    let body = br#"{"messages":[{"model":"x","stream":1}],"a":"\"model\":\"y\"","model":"real"}"#;
    let fields = scan(body).unwrap();
    assert_eq!(fields.model.unwrap().value, "real");
    assert_eq!(fields.stream, None);
}

#[test]
fn wrong_types_are_refused_where_they_matter() {
    for (body, key) in [
        (r#"{"model":1}"#, "model"),
        (r#"{"model":null}"#, "model"),
        (r#"{"model":"\ud800"}"#, "model"),
        (r#"{"stream":"true"}"#, "stream"),
        (r#"{"stream":1}"#, "stream"),
        (r#"{"stream_options":[]}"#, "stream_options"),
        (
            r#"{"stream_options":{"include_usage":1}}"#,
            "stream_options.include_usage",
        ),
        (r#"{"metadata":"x"}"#, "metadata"),
        (r#"{"metadata":{"user_id":7}}"#, "metadata.user_id"),
    ] {
        match refusal(body) {
            ScanError::WrongType { key: found, .. } => assert_eq!(found, key),
            other => panic!("{body}: {other:?}"),
        }
    }
    let fields = scan(br#"{"stream":null,"stream_options":null,"metadata":null}"#).unwrap();
    assert_eq!(fields.stream, None);
    assert_eq!(fields.stream_options.unwrap().value.braces, None);
    for odd in ["-1", "1.5", "1e3", "\"5\"", "null", "99999999999999999999"] {
        let body = format!(r#"{{"max_tokens":{odd}}}"#);
        assert_eq!(scan(body.as_bytes()).unwrap().max_tokens, None);
    }
}

#[test]
fn what_is_not_one_json_object_is_refused_with_a_sentence() {
    for body in ["", " ", "[]", "1", "\"a\"", "null"] {
        assert_eq!(refusal(body), ScanError::NotAnObject);
    }
    for body in [
        "\u{feff}{}",
        "{} {}",
        "{}x",
        "{\"a\":1,}",
        "{,}",
        "{\"a\"}",
        "{\"a\":}",
        "{'a':1}",
        "{\"a\":01}",
        "{\"a\":tru}",
        "{\"a\":\"\n\"}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\\u12g4\"}",
        "{\"a\":\"",
        "{\"a\":[1 2]}",
        "{\"a\":[1}",
        "{\"a\":1",
        "{",
        "{\"\\ud800\":1}",
        "{\"a\":1}\0",
        "{\"a\":\u{a0}1}",
    ] {
        let error = refusal(body);
        assert!(
            matches!(error, ScanError::Malformed { .. }),
            "{body}: {error:?}"
        );
        let sentence = error.to_string();
        assert!(
            sentence.starts_with("The request body") && sentence.ends_with('.'),
            "{sentence}"
        );
    }
    assert_eq!(
        scan(b"{\"a\":\"\xff\"}").unwrap_err(),
        ScanError::NotUtf8 { offset: 6 }
    );
    assert_eq!(
        scan(b"{\"a\":\"\xed\xa0\x80\"}").unwrap_err(),
        ScanError::NotUtf8 { offset: 6 }
    );
}

#[test]
fn depth_and_number_of_fields_are_bounded() {
    let deep = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
    assert!(scan(deep(127).as_bytes()).is_ok());
    assert_eq!(refusal(&deep(128)), ScanError::TooDeep);
    assert_eq!(refusal(&deep(1_000_000)), ScanError::TooDeep);
    let wide = |count: usize| {
        let members: Vec<_> = (0..count).map(|index| format!("\"k{index}\":0")).collect();
        format!("{{{}}}", members.join(","))
    };
    assert!(scan(wide(MAX_FIELDS).as_bytes()).is_ok());
    assert_eq!(refusal(&wide(MAX_FIELDS + 1)), ScanError::TooManyFields);
}

#[test]
fn the_end_user_is_what_the_body_names_first_of_all() {
    for (body, user) in [
        (
            r#"{"user":"a","user_id":"b","metadata":{"user_id":"c"}}"#,
            Some("\"b\""),
        ),
        (
            r#"{"user":"a","user_id":null,"metadata":{"user_id":"c"}}"#,
            Some("\"a\""),
        ),
        (r#"{"metadata":{"user_id":"c"}}"#, Some("\"c\"")),
        (r#"{"metadata":{"user_id":null}}"#, None),
        (r#"{"user":7}"#, Some("7")),
        ("{}", None),
    ] {
        let fields = scan(body.as_bytes()).unwrap();
        assert_eq!(fields.end_user(), user.map(str::as_bytes), "{body}");
    }
}

#[test]
fn a_file_is_named_by_a_key_in_a_message_and_by_nothing_else() {
    for named in [
        r#"{"messages":[{"content":[{"type":"file","file":{"file_id":"f"}}]}]}"#,
        r#"{"messages":[{"content":[{"source":{"type":"file","file_id" : "f"}}]}]}"#,
        r#"{"input":[{"content":[{"type":"input_file","file_id":"f"}]}]}"#,
        r#"{"input":[{"text":"\"file_id\"","file_id":"f"}]}"#,
    ] {
        assert!(scan(named.as_bytes()).unwrap().names_files(), "{named}");
    }
    for not in [
        r#"{"messages":[{"content":"\"file_id\":1"}]}"#,
        r#"{"messages":[{"content":"file_id \"file_id"}]}"#,
        r#"{"messages":["file_id"]}"#,
        r#"{"tools":[{"properties":{"file_id":{}}}],"file_id":"f"}"#,
        "{}",
    ] {
        assert!(!scan(not.as_bytes()).unwrap().names_files(), "{not}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_scanned_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = scan(&bytes);
    }

    #[test]
    fn a_damaged_request_is_accepted_only_if_serde_json_accepts_it(at in 0usize..110, with in any::<u8>()) {
        let mut body = br#"{"model":"m","stream":true,"n":-1.5e3,"a":[null,{"b":"\u00e9\n"}],"stream_options":{"include_usage":true}}"#.to_vec();
        let at = at % body.len();
        body[at] = with;
        if scan(&body).is_ok() {
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&body).is_ok());
        }
    }
}
