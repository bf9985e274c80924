//! What a call is billed, and how a test learns of it.

use super::*;

const SURFACES: [(&str, &str); 4] = [
    ("/chat/completions", "max_tokens"),
    ("/beta/completions", "max_tokens"),
    ("/anthropic/v1/messages", "max_tokens"),
    ("/responses", "max_output_tokens"),
];

/// A request for any of the surfaces.
fn any(path: &str, text: &str, stream: bool) -> Value {
    let mut body = json!({"model": "deepseek-flash", "stream": stream});
    match path {
        "/beta/completions" => body["prompt"] = json!(text),
        "/responses" => body["input"] = json!(text),
        _ => body["messages"] = json!([{"role": "user", "content": text}]),
    }
    if stream && path.ends_with("completions") {
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

/// The last usage that an answer tells, whatever its format.
fn told(answered: &Answered) -> Option<Value> {
    let mut events = answered.events();
    events.extend(serde_json::from_str(&answered.text));
    let usages = events.iter().rev().map(|event| {
        let places = ["/usage", "/response/usage", "/message/usage"];
        places.iter().find_map(|place| event.pointer(place))
    });
    usages.flatten().find(|usage| !usage.is_null()).cloned()
}

/// Told usage in the journal's words, out of either vocabulary.
fn in_journal_words(usage: &Value) -> Value {
    let number = |place: &str| usage.pointer(place).and_then(Value::as_u64);
    let cached = [
        "/prompt_cache_hit_tokens",
        "/cache_read_input_tokens",
        "/input_tokens_details/cached_tokens",
    ];
    let cached = cached.iter().find_map(|place| number(place)).unwrap();
    let input = number("/prompt_tokens")
        .or(number("/input_tokens"))
        .unwrap();
    let completion = number("/completion_tokens").or(number("/output_tokens"));
    let anthropic = usage.get("cache_read_input_tokens").is_some();
    json!({
        "prompt": if anthropic { input + cached } else { input },
        "cached": cached,
        "completion": completion.unwrap(),
    })
}

impl Stand {
    async fn ended(&self) -> Value {
        self.entry(|entry| !entry["outcome"].is_null()).await
    }

    /// The first line of the sums once all is at rest.
    async fn sums(&self) -> Value {
        self.get("/_emulator/totals").await.json()["calls"][0].clone()
    }
}

#[tokio::test]
async fn a_whole_answer_is_billed_exactly_what_it_reports() {
    let stand = start(quick()).await;
    for (path, _) in SURFACES {
        for streamed in [false, true] {
            // The second time the prompt is cached.
            for _ in 0..2 {
                let answered = stand.post(path, &any(path, "how much", streamed)).await;
                let mut entry = stand.ended().await;
                assert_eq!(
                    (&entry["whole"], &entry["usage_sent"]),
                    (&json!(true), &json!(true)),
                    "{path}"
                );
                let usage = entry["usage"].as_object_mut().unwrap();
                assert!(usage.remove("reasoning").unwrap().is_u64());
                let reported = in_journal_words(&told(&answered).unwrap());
                assert_eq!(entry["usage"], reported, "{path} {streamed}");
            }
        }
    }
    let sums = stand.sums().await;
    assert_eq!(
        (&sums["whole"], &sums["unsent"]["calls"]),
        (&json!(16), &json!(0))
    );
}

#[tokio::test]
async fn usage_that_nobody_asked_for_is_billed_and_not_sent() {
    let stand = start(quick()).await;
    stand.post("/chat/completions", &stream("hi")).await;
    let entry = stand.ended().await;
    assert_eq!(entry["usage"]["completion"], 32);
    assert_eq!(entry["usage"]["reasoning"], 8);
    assert_eq!(
        (&entry["whole"], &entry["usage_sent"]),
        (&json!(true), &json!(false))
    );
    let unsent = stand.sums().await["unsent"].clone();
    assert_eq!(
        (&unsent["calls"], &unsent["usage"]),
        (&json!(1), &entry["usage"])
    );
}

#[tokio::test]
async fn a_cut_stream_is_billed_for_the_tokens_that_went_out() {
    let stand = start(quick()).await;
    for ending in ["cut_after", "end_after", "error_after"] {
        // The first event has the role, each of the others a token.
        let text = format!("[[fault:{ending}=11]]");
        let body = any("/chat/completions", &text, true);
        stand.post("/chat/completions", &body).await;
        let entry = stand.ended().await;
        assert_eq!(entry["usage"]["completion"], 10, "{ending}");
        assert_eq!(entry["usage"]["reasoning"], 8);
        assert!(entry["usage"]["prompt"].as_u64().unwrap() > 0);
        assert_eq!(
            (&entry["whole"], &entry["usage_sent"]),
            (&json!(false), &json!(false))
        );
    }
    let sums = stand.sums().await;
    assert_eq!((&sums["cut"], &sums["whole"]), (&json!(3), &json!(0)));
    assert_eq!(sums["usage"]["completion"], 30);
}

#[tokio::test]
async fn an_answer_in_one_piece_that_is_cut_was_generated_whole() {
    let stand = start(quick()).await;
    for order in ["cut_after=1", "cut_after=0", "error_after=0", "garbage"] {
        let text = format!("[[fault:{order}]]");
        stand.post("/chat/completions", &ask(&text)).await;
        let entry = stand.ended().await;
        assert_eq!(entry["usage"]["completion"], 32, "{order}");
        assert_eq!(
            (&entry["whole"], &entry["usage_sent"]),
            (&json!(false), &json!(false)),
            "{order}"
        );
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_billed_until_then() {
    let stand = start(quick()).await;
    let prompt = "[[fault:stall_after=6]]";
    let mut line = stand.raw("/chat/completions", "", &stream(prompt)).await;
    read_until(&mut line, "reasoning_content").await;
    drop(line);
    let entry = stand.ended().await;
    assert_eq!(
        (&entry["outcome"], &entry["usage"]["completion"]),
        (&json!("client_gone"), &json!(5))
    );

    // Before the first token only the prompt was worked on.
    let slow = ask("[[fault:first_token=10s]]");
    let line = stand.raw("/chat/completions", "", &slow).await;
    let running = |entry: &Value| entry["model"].is_string() && entry["outcome"].is_null();
    assert_eq!(stand.entry(running).await["usage"], Value::Null);
    drop(line);
    let entry = stand.ended().await;
    assert_eq!(entry["usage"]["completion"], 0);
    assert!(entry["usage"]["prompt"].as_u64().unwrap() > 0);
    assert_eq!(stand.sums().await["client_gone"], 2);
}

#[tokio::test]
async fn what_was_never_begun_is_billed_nothing() {
    let stand = start(quick()).await;
    let mut line = stand
        .raw("/chat/completions", "", &stream("[[fault:queue=20s]]"))
        .await;
    read_until(&mut line, ": keep-alive").await;
    drop(line);
    let entry = stand.ended().await;
    assert_eq!(
        (&entry["outcome"], &entry["usage"]),
        (&json!("client_gone"), &Value::Null)
    );
    for status in [429, 503] {
        let refused = ask(&format!("[[fault:status={status}]]"));
        stand.post("/chat/completions", &refused).await;
        assert_eq!(stand.ended().await["usage"], Value::Null);
    }
    stand
        .raw("/chat/completions", "", &ask("[[fault:reset]]"))
        .await
        .read(&mut [0; 9])
        .await
        .unwrap_err();
    stand.get("/models").await;
    let sums = stand.sums().await;
    assert_eq!(
        (&sums["refused"], &sums["status_429"]),
        (&json!(3), &json!(1))
    );
    assert_eq!(
        (&sums["client_gone"], &sums["usage"]["prompt"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(
        stand.get("/_emulator/totals").await.json()["calls"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn a_queue_that_ends_is_billed_as_any_other() {
    let stand = start(quick()).await;
    for body in [ask("[[fault:queue=10ms]]"), stream("[[fault:queue=10ms]]")] {
        stand.post("/chat/completions", &body).await;
        let entry = stand.ended().await;
        assert_eq!(
            (&entry["whole"], &entry["usage"]["completion"]),
            (&json!(true), &json!(32))
        );
    }
}

#[tokio::test]
async fn missing_and_senseless_usage_is_told_on_every_surface_and_billed_truly() {
    let stand = start(quick()).await;
    for (path, _) in SURFACES {
        let thinking = if path.starts_with("/beta") { 0 } else { 8 };
        for streamed in [false, true] {
            for order in [
                "usage=none",
                "bad_usage=negative",
                "bad_usage=huge",
                "bad_usage=text",
                "bad_usage=inverted",
            ] {
                let body = any(path, &format!("[[fault:{order}]] x"), streamed);
                let answered = stand.post(path, &body).await;
                assert_eq!((answered.status, answered.whole), (200, true));
                let said = told(&answered).map(|usage| usage.to_string());
                let wanted = match order {
                    "usage=none" => None,
                    "bad_usage=negative" => Some("tokens\":-"),
                    "bad_usage=huge" => Some("tokens\":18446744073709551615"),
                    "bad_usage=text" => Some("tokens\":\"many\""),
                    _ => Some("tokens\":10"),
                };
                assert_eq!(said.is_some(), wanted.is_some(), "{path} {order} {said:?}");
                assert!(
                    said.as_deref()
                        .unwrap_or_default()
                        .contains(wanted.unwrap_or_default()),
                    "{path} {order} {said:?}"
                );
                let entry = stand.ended().await;
                assert_eq!(entry["usage"]["completion"], 24 + thinking);
                assert_eq!(
                    (&entry["whole"], &entry["usage_sent"]),
                    (&json!(true), &json!(false))
                );
                assert_eq!(entry["outcome"], "complete");
            }
        }
    }
}

#[tokio::test]
async fn max_tokens_are_kept_exactly_on_every_surface() {
    let stand = start(quick()).await;
    for (path, name) in SURFACES {
        for (streamed, most) in [(false, 1), (true, 1), (false, 9), (true, 9)] {
            let body = with(
                any(path, "[[fault:tokens=500]] hello", streamed),
                name,
                json!(most),
            );
            let answered = stand.post(path, &body).await;
            let usage = in_journal_words(&told(&answered).unwrap());
            assert_eq!(usage["completion"], most, "{path} {streamed}");
            assert_eq!(stand.ended().await["usage"]["completion"], most);
        }
    }
}

#[tokio::test]
async fn openais_newer_name_of_max_tokens_binds_a_self_hosted_one_only() {
    for (self_hosted, tokens) in [(true, 5), (false, 32)] {
        let config = EmulatorConfig {
            self_hosted,
            ..quick()
        };
        let stand = start(config).await;
        let body = with(ask("hello"), "max_completion_tokens", json!(5));
        stand.post("/chat/completions", &body).await;
        assert_eq!(stand.ended().await["usage"]["completion"], tokens);
    }
}

#[tokio::test]
async fn embeddings_are_billed_for_their_prompt() {
    let stand = start(EmulatorConfig {
        embeddings: true,
        ..quick()
    })
    .await;
    let body = json!({"model": "deepseek-flash", "input": "ten tokens or so, at a guess"});
    let answered = stand.post("/embeddings", &body).await.json();
    let entry = stand.ended().await;
    assert_eq!(entry["usage"]["prompt"], answered["usage"]["prompt_tokens"]);
    assert_eq!(
        (&entry["usage"]["completion"], &entry["usage_sent"]),
        (&json!(0), &json!(true))
    );
}

#[tokio::test]
async fn callers_are_summed_apart_and_the_peak_is_remembered() {
    let stand = start(quick()).await;
    for user in ["one", "two", "two"] {
        let body = with(ask("hi"), "user_id", json!(user));
        stand.post("/chat/completions", &body).await;
    }
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut line = stand
            .raw("/chat/completions", "", &stream("[[fault:stall_after=3]]"))
            .await;
        read_until(&mut line, "reasoning_content").await;
        held.push(line);
    }
    let totals = stand.get("/_emulator/totals").await.json();
    let counts = |user: &str| {
        let lines = totals["calls"].as_array().unwrap();
        let line = lines.iter().find(|line| line["user_id"] == user).unwrap();
        line["whole"].as_u64().unwrap()
    };
    assert_eq!((counts("one"), counts("two")), (1, 2));
    assert_eq!(
        totals["concurrency"][0],
        json!({"account": "emulator", "model": "deepseek-flash", "ceiling": 2500, "in_flight": 3, "peak_in_flight": 3})
    );
    stand
        .call(Method::DELETE, "/_emulator/journal", &[], "")
        .await;
    let totals = stand.get("/_emulator/totals").await.json();
    assert_eq!(totals["calls"], json!([]));
    assert_eq!(totals["concurrency"][0]["peak_in_flight"], 3);
}

#[tokio::test]
async fn the_brief_journal_has_what_a_comparison_needs() {
    let stand = start(quick()).await;
    let id = [("x-request-id", "req-7")];
    stand.post_with("/chat/completions", &ask("hi"), &id).await;
    let full = stand.ended().await;
    let brief = stand.get("/_emulator/journal?brief=1").await.json()[0].clone();
    assert_eq!(brief["request_id"], "req-7");
    for name in [
        "id",
        "path",
        "account",
        "model",
        "user_id",
        "stream",
        "status",
        "fault",
        "outcome",
        "usage",
        "whole",
        "usage_sent",
        "started_ms",
        "ended_ms",
    ] {
        assert_eq!(brief[name], full[name], "{name}");
    }
    assert_eq!(brief.as_object().unwrap().len(), 15);
}
