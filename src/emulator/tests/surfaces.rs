//! Every surface in the shape that is documented for it.

use super::*;

fn weather() -> Value {
    json!([{"type": "function", "function": {"name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}])
}

#[tokio::test]
async fn a_chat_is_answered_with_reasoning_usage_and_the_headers_of_the_real_one() {
    let stand = start(quick()).await;
    for path in [
        "/chat/completions",
        "/v1/chat/completions",
        "/beta/chat/completions",
    ] {
        let answered = stand.post(path, &ask("hello there")).await;
        assert_eq!(answered.status, 200);
        let json = answered.json();
        let message = &json["choices"][0]["message"];
        assert!(
            message["content"]
                .as_str()
                .unwrap()
                .starts_with("You said: hello there.")
        );
        assert!(!message["reasoning_content"].as_str().unwrap().is_empty());
        let usage = &json["usage"];
        assert_eq!(usage["completion_tokens"], 32);
        assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 8);
        let number = |name: &str| usage[name].as_u64().unwrap();
        assert_eq!(
            number("prompt_cache_hit_tokens") + number("prompt_cache_miss_tokens"),
            number("prompt_tokens")
        );
        assert_eq!(json["id"].as_str().unwrap().len(), 36);
        assert!(
            json["system_fingerprint"]
                .as_str()
                .unwrap()
                .starts_with("fp_")
        );
        assert_eq!(answered.headers["server"], "openresty");
        assert_eq!(answered.headers["x-ds-trace-id"].len(), 32);
        assert!(answered.headers.contains_key("set-cookie"));
        assert!(!answered.headers.contains_key("x-request-id"));
    }
}

#[tokio::test]
async fn a_chat_stream_has_role_then_reasoning_then_content_then_the_end() {
    let stand = start(quick()).await;
    let answered = stand.post("/chat/completions", &stream("hi")).await;
    assert!(
        answered.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/event-stream")
    );
    assert_eq!(answered.data().last(), Some(&"[DONE]"));
    let events = answered.events();
    let delta = |index: usize| &events[index]["choices"][0]["delta"];
    assert_eq!(
        delta(0),
        &json!({"role": "assistant", "content": null, "reasoning_content": ""})
    );
    assert!(delta(1)["reasoning_content"].is_string() && delta(1)["content"].is_null());
    assert_eq!(
        delta(9),
        &json!({"content": "You", "reasoning_content": null})
    );
    let last = events.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert!(events.iter().all(|event| event.get("usage").is_none()));
    let plain = with(stream("hi"), "thinking", json!({"type": "disabled"}));
    let answered = stand.post("/chat/completions", &plain).await;
    assert!(!answered.text.contains("reasoning"));
    assert_eq!(
        answered.events()[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
}

#[tokio::test]
async fn usage_trails_by_default_and_is_attached_or_left_out_on_command() {
    let stand = start(quick()).await;
    let body = with(
        stream("hi"),
        "stream_options",
        json!({"include_usage": true}),
    );
    let events = stand.post("/chat/completions", &body).await.events();
    let (last, others) = events.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 32);
    assert!(
        others
            .iter()
            .all(|event| event["usage"].is_null() && event.get("usage").is_some())
    );

    let attached = [("x-emulator-fault", "usage=attached")];
    let events = stand
        .post_with("/chat/completions", &body, &attached)
        .await
        .events();
    let last = events.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["usage"]["completion_tokens"], 32);

    let none = [("x-emulator-fault", "usage=none")];
    let events = stand
        .post_with("/chat/completions", &body, &none)
        .await
        .events();
    assert!(events.iter().all(|event| event["usage"].is_null()));
}

#[tokio::test]
async fn tool_calls_come_in_fragments_with_id_and_name_on_the_first_only() {
    let stand = start(quick()).await;
    let body = with(stream("please use a tool"), "tools", weather());
    let events = stand.post("/chat/completions", &body).await.events();
    let calls: Vec<&Value> = events
        .iter()
        .map(|event| &event["choices"][0]["delta"]["tool_calls"][0])
        .filter(|call| !call.is_null())
        .collect();
    assert!(calls.len() > 2);
    assert!(calls[0]["id"].as_str().unwrap().starts_with("call_00_"));
    assert_eq!(calls[0]["function"]["name"], "weather");
    assert!(
        calls[1..]
            .iter()
            .all(|call| call.get("id").is_none() && call["function"].get("name").is_none())
    );
    let arguments: String = calls
        .iter()
        .map(|call| call["function"]["arguments"].as_str().unwrap())
        .collect();
    assert_eq!(
        serde_json::from_str::<Value>(&arguments).unwrap()["city"],
        "please use a tool"
    );
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        "tool_calls"
    );

    let whole = stand
        .post("/chat/completions", &with(body, "stream", json!(false)))
        .await
        .json();
    let call = &whole["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(call["function"]["arguments"].as_str().unwrap(), arguments);
}

#[tokio::test]
async fn max_tokens_end_an_answer_for_its_length() {
    let stand = start(quick()).await;
    let json = stand
        .post(
            "/chat/completions",
            &with(ask("hi"), "max_tokens", json!(10)),
        )
        .await
        .json();
    assert_eq!(json["choices"][0]["finish_reason"], "length");
    assert_eq!(json["usage"]["completion_tokens"], 10);
}

#[tokio::test]
async fn json_mode_answers_json_and_wants_the_word() {
    let stand = start(quick()).await;
    let body = |text| with(ask(text), "response_format", json!({"type": "json_object"}));
    let json = stand
        .post("/chat/completions", &body("give me JSON"))
        .await
        .json();
    let content = json["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(content).unwrap().is_object());
    assert_eq!(
        stand.post("/chat/completions", &body("hello")).await.status,
        400
    );
}

#[tokio::test]
async fn a_conversation_that_goes_on_hits_the_cache_of_its_user_only() {
    let stand = start(quick()).await;
    let first = stand
        .post("/chat/completions", &ask("a question of some length"))
        .await
        .json();
    assert_eq!(first["usage"]["prompt_cache_hit_tokens"], 0);
    let said = &first["choices"][0]["message"]["content"];
    let next = json!({"model": "deepseek-flash", "messages": [
        {"role": "user", "content": "a question of some length"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "more"},
    ]});
    let hit = |json: &Value| json["usage"]["prompt_cache_hit_tokens"].as_u64().unwrap();
    assert!(hit(&stand.post("/chat/completions", &next).await.json()) > 10);
    let other = with(next, "user_id", json!("other"));
    assert_eq!(
        hit(&stand.post("/chat/completions", &other).await.json()),
        0
    );
}

#[tokio::test]
async fn completions_exist_under_beta_only() {
    let stand = start(quick()).await;
    let body = json!({"model": "deepseek-flash", "prompt": "fn main() {", "suffix": "}"});
    for path in ["/completions", "/v1/completions"] {
        assert_eq!(stand.post(path, &body).await.status, 400);
    }
    let json = stand.post("/beta/completions", &body).await.json();
    assert!(
        json["choices"][0]["text"]
            .as_str()
            .unwrap()
            .contains("main")
    );
    let answered = stand
        .post("/beta/completions", &with(body, "stream", json!(true)))
        .await;
    assert_eq!(answered.data().last(), Some(&"[DONE]"));
    assert_eq!(answered.events()[0]["object"], "text_completion");
}

#[tokio::test]
async fn prefix_completion_goes_on_where_the_prefix_ends_under_beta_only() {
    let stand = start(quick()).await;
    let body = json!({"model": "deepseek-flash", "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "So", "prefix": true},
    ]});
    assert_eq!(stand.post("/chat/completions", &body).await.status, 400);
    let json = stand.post("/beta/chat/completions", &body).await.json();
    assert!(
        json["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .starts_with(" hi")
    );
}

#[tokio::test]
async fn messages_stream_the_events_of_anthropic() {
    let stand = start(quick()).await;
    let body = json!({"model": "claude-opus-4-6", "max_tokens": 1000, "stream": true,
        "metadata": {"user_id": "u1"},
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]});
    let headers = [("x-api-key", DEFAULT_KEY), JSON];
    let answered = stand
        .call(
            Method::POST,
            "/anthropic/v1/messages",
            &headers,
            &body.to_string(),
        )
        .await;
    let mut names: Vec<&str> = answered
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("event: "))
        .collect();
    names.dedup();
    assert_eq!(
        names,
        [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    let events = answered.events();
    assert_eq!(events[0]["message"]["model"], "deepseek-v4-pro");
    assert_eq!(events[2]["content_block"]["type"], "thinking");
    let end = &events[events.len() - 2];
    assert_eq!(end["delta"]["stop_reason"], "end_turn");
    assert_eq!(end["usage"]["output_tokens"], 32);
}

#[tokio::test]
async fn messages_in_one_piece_have_blocks_and_errors_of_anthropic() {
    let stand = start(quick()).await;
    let body = json!({"model": "claude-sonnet-5", "max_tokens": 1000,
        "messages": [{"role": "user", "content": "use a tool"}],
        "tools": [{"name": "weather", "input_schema": {"properties": {"city": {"type": "string"}}}}]});
    let json = stand.post("/anthropic/v1/messages", &body).await.json();
    assert_eq!(json["model"], "deepseek-flash");
    assert_eq!(json["content"][0]["type"], "thinking");
    assert_eq!(json["content"][1]["input"]["city"], "use a tool");
    assert_eq!(json["stop_reason"], "tool_use");
    let refused = stand
        .post(
            "/anthropic/v1/messages",
            &with(body, "model", json!("gpt-5")),
        )
        .await;
    assert_eq!(
        (refused.status, &refused.json()["type"]),
        (400, &json!("error"))
    );
}

#[tokio::test]
async fn responses_stream_numbered_events_and_no_end_mark() {
    let stand = start(quick()).await;
    let body = json!({"model": "deepseek-flash", "input": "hi", "stream": true});
    for path in ["/responses", "/v1/responses"] {
        let answered = stand.post(path, &body).await;
        assert!(!answered.text.contains("[DONE]"));
        let events = answered.events();
        for (index, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], index);
        }
        assert_eq!(events[0]["type"], "response.created");
        let last = events.last().unwrap();
        assert_eq!(last["type"], "response.completed");
        assert_eq!(last["response"]["usage"]["output_tokens"], 32);
        let text: String = events
            .iter()
            .filter(|event| event["type"] == "response.output_text.delta")
            .map(|event| event["delta"].as_str().unwrap())
            .collect();
        assert!(text.starts_with("You said: hi."));
    }
    let short = with(body, "max_output_tokens", json!(5));
    let events = stand.post("/responses", &short).await.events();
    assert_eq!(events.last().unwrap()["type"], "response.incomplete");
}

#[tokio::test]
async fn responses_are_stateless_and_call_functions() {
    let stand = start(quick()).await;
    let body = json!({"model": "deepseek-flash", "input": [{"role": "user", "content": "a tool!"}],
        "tools": [{"type": "function", "name": "weather", "parameters": {}}]});
    let json = stand.post("/responses", &body).await.json();
    assert_eq!(json["status"], "completed");
    assert_eq!(json["output"][1]["type"], "function_call");
    let chained = with(body, "previous_response_id", json!("x"));
    assert_eq!(stand.post("/responses", &chained).await.status, 400);
}

#[tokio::test]
async fn models_balance_and_health_are_told() {
    let stand = start(quick()).await;
    let models = stand.get("/v1/models").await.json();
    let ids: Vec<&Value> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["id"])
        .collect();
    assert_eq!(ids, ["deepseek-flash", "deepseek-v4-pro"]);
    let balance = stand.get("/user/balance").await.json();
    assert_eq!(balance["balance_infos"][0]["total_balance"], "110.00");
    assert_eq!(
        stand.call(Method::GET, "/health", &[], "").await.status,
        200
    );
}

#[tokio::test]
async fn files_belong_to_their_account() {
    let mut config = quick();
    config
        .accounts
        .push(EmulatedAccount::new("sk-other", "other"));
    let stand = start(config).await;
    let form = "--xx\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n--xx\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\ncontent\r\n--xx--\r\n";
    let kind = ("content-type", "multipart/form-data; boundary=xx");
    let shown = stand
        .call(Method::POST, "/v1/files", &[KEY, kind], form)
        .await
        .json();
    let id = shown["id"].as_str().unwrap();
    let path = format!("/files/{id}");
    assert_eq!(stand.get(&path).await.json(), shown);
    assert_eq!(stand.get(&format!("{path}/content")).await.text, "content");
    assert_eq!(stand.get("/files").await.json()["data"][0], shown);
    let other = ("authorization", "Bearer sk-other");
    assert_eq!(
        stand.call(Method::GET, &path, &[other], "").await.status,
        404
    );
    let body = json!({"model": "deepseek-flash", "messages": [
        {"role": "user", "content": [{"type": "file", "file": {"file_id": id}}]}]});
    assert_eq!(stand.post("/chat/completions", &body).await.status, 200);
    let theirs = stand
        .call(
            Method::POST,
            "/chat/completions",
            &[other, JSON],
            &body.to_string(),
        )
        .await;
    assert_eq!(theirs.status, 400);
    assert_eq!(
        stand.call(Method::DELETE, &path, &[KEY], "").await.json()["deleted"],
        true
    );
    assert_eq!(stand.get(&path).await.status, 404);
}

#[tokio::test]
async fn a_self_hosted_one_takes_any_model_no_key_and_embeds_on_request() {
    let body = json!({"model": "my-model", "input": ["a", "b"]});
    let stand = start(quick()).await;
    assert_eq!(stand.post("/v1/embeddings", &body).await.status, 404);
    let stand = start(EmulatorConfig {
        embeddings: true,
        self_hosted: true,
        ..quick()
    })
    .await;
    let json = stand
        .call(Method::POST, "/v1/embeddings", &[JSON], &body.to_string())
        .await
        .json();
    assert_eq!(json["data"].as_array().unwrap().len(), 2);
    let body = with(ask("hi"), "model", json!("my-model")).to_string();
    let json = stand
        .call(Method::POST, "/v1/chat/completions", &[JSON], &body)
        .await
        .json();
    assert_eq!(json["model"], "my-model");
    assert_eq!(
        stand.call(Method::GET, "/v1/models", &[], "").await.status,
        200
    );
}
