use super::*;

#[test]
fn a_plain_delta_is_told_from_an_event_worth_reading() {
    for plain in [
        r#"{"choices":[{"delta":{"content":"x"},"finish_reason":null}],"usage":null}"#,
        r#"{"choices":[{"delta":{"content":"\"usage\":{} \"error\":1 \"finish_reason\":\"stop\""},"finish_reason" : null}]}"#,
        r#"{"choices":[{"delta":{"content":"usage"},"finish_reason":""}],"error":null}"#,
        r#"{"choices":[{"delta":{"content":"a"},"x":"usage","y":"finish_reason"}]}"#,
    ] {
        assert!(is_plain_delta(plain.as_bytes()), "{plain}");
    }
    for other in [
        r#"{"choices":[{"finish_reason":null},{"finish_reason": "stop"}]}"#,
        r#"{"usage" : {"prompt_tokens":1}}"#,
        r#"{"error":{"message":"x"}}"#,
        r#"{"object":"error","message":"x"}"#,
    ] {
        assert!(!is_plain_delta(other.as_bytes()), "{other}");
    }
}

#[test]
fn a_chunk_is_content_only_if_its_delta_says_something() {
    for (delta, content) in [
        (
            r#"{"role":"assistant","content":null,"reasoning_content":""}"#,
            false,
        ),
        (r#"{"role":"assistant","content":""}"#, false),
        (r#"{}"#, false),
        (r#"{"content":" "}"#, true),
        (r#"{"reasoning_content":"hm"}"#, true),
        (r#"{"reasoning":"hm"}"#, true),
        (r#"{"refusal":"no"}"#, true),
        (r#"{"tool_calls":[{"index":0}]}"#, true),
        (r#"{"tool_calls":[]}"#, false),
    ] {
        let data = format!(r#"{{"choices":[{{"index":0,"delta":{delta}}}]}}"#);
        assert_eq!(chunk(data.as_bytes()).content, content, "{data}");
    }
    assert!(chunk(br#"{"choices":[{"text":"x"}]}"#).content);
    assert!(!chunk(br#"{"choices":[{"text":""}]}"#).content);
    assert!(chunk(b"not json").content);
}

#[test]
fn a_named_event_is_the_first_content_only_if_it_says_something() {
    for (data, content) in [
        (
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
            false,
        ),
        (
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#,
            false,
        ),
        (
            r#"{"type":"content_block_start","content_block":{"type":"redacted_thinking","data":"x"}}"#,
            true,
        ),
        (
            r#"{"type":"content_block_start","content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}"#,
            true,
        ),
        (
            r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":""}}"#,
            false,
        ),
        (
            r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":" "}}"#,
            true,
        ),
        (
            r#"{"type":"content_block_delta","delta":{"type":"thinking_delta","thinking":"hm"}}"#,
            true,
        ),
        (
            r#"{"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"{"}}"#,
            true,
        ),
        (
            r#"{"index":0,"delta":{"text":"x"},"type":"content_block_delta"}"#,
            true,
        ),
        (
            r#"{"type":"message_start","message":{"content":[]}}"#,
            false,
        ),
        (r#"{"type":"ping"}"#, false),
        (r#"{"type":"response.created","response":{}}"#, false),
        (r#"{"type":"response.in_progress","response":{}}"#, false),
        (
            r#"{"type":"response.output_item.added","item":{"type":"reasoning"}}"#,
            false,
        ),
        (
            r#"{"type":"response.content_part.added","part":{"text":""}}"#,
            false,
        ),
        (r#"{"type":"response.output_text.delta","delta":""}"#, false),
        (r#"{"type":"response.output_text.delta","delta":"x"}"#, true),
        (
            r#"{"type":"response.reasoning_text.delta","delta":"x"}"#,
            true,
        ),
        (
            r#"{"type":"response.reasoning_summary_text.delta","delta":"x"}"#,
            true,
        ),
        (
            r#"{"type":"response.function_call_arguments.delta","delta":"{"}"#,
            true,
        ),
        (r#"{"type":"content_block_delta","delta":{"text":"#, true),
    ] {
        assert_eq!(
            named(data.as_bytes(), None, false).content,
            content,
            "{data}"
        );
    }
    let empty = br#"{"type":"response.output_text.delta","delta":""}"#;
    assert!(named(empty, None, true).content);
}

#[test]
fn a_response_that_failed_is_a_failure_whatever_it_says() {
    for data in [
        r#"{"type":"response.failed","response":{"status":"failed","error":null}}"#,
        r#"{"type":"response.failed","response":null,"error":{"message":"m"}}"#,
        r#"{"type":"response.failed","response":{"status":"completed","why":"m"}}"#,
        "crashed",
    ] {
        let reading = named(data.as_bytes(), Some(Kind::Failed), true);
        assert!(reading.ended && reading.error.is_some(), "{data}");
        assert!(reading.finish.is_some_and(FinishReason::is_failure));
    }
    for data in [
        r#"{"type":"response.completed","response":{"status":"completed","error":{"code":null}}}"#,
        r#"{"type":"response.incomplete","response":{"status":"incomplete","error":{"code":"c"}}}"#,
    ] {
        let reading = named(data.as_bytes(), None, true);
        assert!(reading.ended && reading.error.is_none(), "{data}");
        assert!(!reading.finish.is_some_and(FinishReason::is_failure));
    }
}

#[test]
fn every_known_form_of_an_error_is_read() {
    for data in [
        r#"{"error":{"message":"m","type":"t","code":"c"}}"#,
        r#"{"object":"error","message":"m","type":"t","code":"c"}"#,
        r#"{"code":"c","message":"m","type":"t","data":null}"#,
    ] {
        // Events without a type are no others in the formats whose events have names.
        for error in [
            chunk(data.as_bytes()).error,
            named(data.as_bytes(), None, true).error,
        ] {
            let error = error.unwrap();
            assert_eq!(error.message.as_deref(), Some("m"));
            assert_eq!(error.code.as_deref(), Some("c"));
        }
    }
    for data in [r#"{"type":"error","message":"m"}"#, r#"{"detail":"m"}"#] {
        assert!(chunk(data.as_bytes()).error.is_some(), "{data}");
    }
    for data in [
        r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#,
        r#"{"type":"error","code":"c","message":"m"}"#,
        r#"{"error":{"message":"m"}}"#,
        r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"c","message":"m"}}}"#,
    ] {
        let error = named(data.as_bytes(), None, false).error.unwrap();
        assert_eq!(error.message.as_deref(), Some("m"), "{data}");
    }
}

#[test]
fn a_chunk_without_choices_is_dropped_only_if_it_has_usage() {
    assert!(chunk(br#"{"choices":[ ],"usage":{"prompt_tokens":1}}"#).usage_only);
    assert!(!chunk(br#"{"choices":[],"usage":null}"#).usage_only);
    assert!(!chunk(br#"{"usage":{"prompt_tokens":1}}"#).usage_only);
    assert!(!chunk(br#"{"choices":[{}],"usage":{"prompt_tokens":1}}"#).usage_only);
}
