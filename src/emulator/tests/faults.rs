//! Every fault that can be ordered, as a client meets it.

use super::*;

async fn struck(stand: &Stand, body: &Value, order: &str) -> Answered {
    stand
        .post_with("/chat/completions", body, &[("x-emulator-fault", order)])
        .await
}

#[tokio::test]
async fn a_status_is_ordered_by_header_prompt_account_or_for_all() {
    let mut config = quick();
    config
        .accounts
        .push(EmulatedAccount::new("sk-other", "other"));
    let stand = start(config).await;
    let by_header = struck(&stand, &ask("hi"), "status=503,times=1,retry_after=7").await;
    assert_eq!(
        (by_header.status, &by_header.headers["retry-after"]),
        (503, &"7".parse().unwrap())
    );
    assert_eq!(
        struck(&stand, &ask("hi"), "status=503,times=1,retry_after=7")
            .await
            .status,
        200
    );

    let prompt = ask("hello [[fault:status=500,times=1,body=oops%2C no]]");
    let by_prompt = stand.post("/chat/completions", &prompt).await;
    assert_eq!(
        (by_prompt.status, by_prompt.text.as_str()),
        (500, "oops, no")
    );
    assert_eq!(stand.post("/chat/completions", &prompt).await.status, 200);

    assert_eq!(
        stand
            .order(&json!({"account": "sk-other", "faults": "status=402"}))
            .await
            .status,
        200
    );
    assert_eq!(
        stand.post("/chat/completions", &ask("hi")).await.status,
        200
    );
    let other = [("authorization", "Bearer sk-other"), JSON];
    let theirs = stand
        .call(
            Method::POST,
            "/chat/completions",
            &other,
            &ask("hi").to_string(),
        )
        .await;
    assert_eq!(
        (theirs.status, theirs.message().as_str()),
        (402, "Insufficient Balance")
    );

    stand.order(&json!({"faults": "status=503,times=2"})).await;
    for expected in [503, 503, 200] {
        assert_eq!(
            stand.post("/chat/completions", &ask("hi")).await.status,
            expected
        );
    }
    stand
        .call(Method::DELETE, "/_emulator/faults", &[], "")
        .await;
    let none = stand.get("/_emulator/faults").await.json();
    assert_eq!(none, json!({"all": null, "accounts": {}}));
}

#[tokio::test]
async fn unknown_faults_are_refused_by_name() {
    let stand = start(quick()).await;
    let refused = struck(&stand, &ask("hi"), "explode").await;
    assert_eq!(
        (refused.status, refused.message().as_str()),
        (400, "emulator: unknown fault `explode`")
    );
    assert_eq!(
        stand
            .post("/chat/completions", &ask("[[fault:nonsense=1]]"))
            .await
            .status,
        400
    );
    assert_eq!(
        stand.order(&json!({"faults": "nonsense"})).await.status,
        400
    );
    assert_eq!(
        stand
            .order(&json!({"account": "nobody", "faults": "stall"}))
            .await
            .status,
        400
    );
    assert_eq!(
        stand
            .order(&json!({"accounts": "typo", "faults": "stall"}))
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn a_cut_breaks_the_connection_after_its_events_and_an_end_does_not() {
    let stand = start(quick()).await;
    let cut = struck(&stand, &stream("hi"), "cut_after=5").await;
    assert_eq!((cut.events().len(), cut.whole), (5, false));
    let half = struck(&stand, &ask("hi"), "cut_after=1").await;
    assert!(!half.whole && !half.text.is_empty());
    let end = struck(&stand, &stream("hi"), "end_after=5").await;
    assert_eq!((end.events().len(), end.whole), (5, true));
    assert!(!end.text.contains("[DONE]"));
    assert_eq!(
        stand.entry(|entry| !entry["outcome"].is_null()).await["outcome"],
        "fault"
    );
}

#[tokio::test]
async fn errors_and_garbage_come_in_the_middle_of_a_stream() {
    let stand = start(quick()).await;
    let error = struck(&stand, &stream("hi"), "error_after=3").await;
    assert!(error.whole && error.events()[3]["error"]["message"].is_string());
    assert_eq!(error.events().len(), 4);
    let garbage = struck(&stand, &stream("hi"), "garbage=2").await;
    assert!(serde_json::from_str::<Value>(garbage.data()[2]).is_err());
    assert_eq!(garbage.data().last(), Some(&"[DONE]"));
    let garbage = struck(&stand, &ask("hi"), "garbage").await;
    assert!(serde_json::from_str::<Value>(&garbage.text).is_err());
    let anthropic = json!({"model": "claude-x", "stream": true, "messages": [{"role": "user", "content": "[[fault:error_after=2]]"}]});
    let error = stand.post("/anthropic/v1/messages", &anthropic).await;
    assert!(error.text.contains("event: error\n"));
    let body =
        json!({"model": "deepseek-flash", "stream": true, "input": "[[fault:error_after=2]]"});
    let error = stand.post("/responses", &body).await;
    let last = error.events().pop().unwrap();
    assert_eq!(
        (&last["type"], &last["sequence_number"]),
        (&json!("response.failed"), &json!(2))
    );
}

#[tokio::test]
async fn a_stall_sends_nothing_more_and_keeps_the_connection() {
    let stand = start(quick()).await;
    let mut buffer = [0; 64];
    let silence = Duration::from_millis(60);
    let mut line = stand
        .raw("/chat/completions", "", &stream("[[fault:stall]]"))
        .await;
    assert!(
        tokio::time::timeout(silence, line.read(&mut buffer))
            .await
            .is_err()
    );
    let mut line = stand
        .raw("/chat/completions", "", &stream("[[fault:stall_after=0]]"))
        .await;
    read_until(&mut line, "\r\n\r\n").await;
    assert!(
        tokio::time::timeout(silence, line.read(&mut buffer))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_reset_breaks_the_connection_before_the_head() {
    let stand = start(quick()).await;
    let mut line = stand
        .raw("/chat/completions", "", &ask("[[fault:reset]]"))
        .await;
    let error = line.read(&mut [0; 64]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let entry = stand.entry(|entry| !entry["outcome"].is_null()).await;
    assert_eq!(
        (&entry["outcome"], &entry["status"]),
        (&json!("fault"), &Value::Null)
    );
}

#[tokio::test]
async fn a_queue_commits_200_and_sends_signs_of_life() {
    let stand = start(quick()).await;
    let mut line = stand
        .raw("/chat/completions", "", &stream("[[fault:queue=100ms]]"))
        .await;
    let begun = read_until(&mut line, ": keep-alive\n\n").await;
    assert!(begun.starts_with("HTTP/1.1 200") && !begun.contains("data:"));
    let rest = read_until(&mut line, "[DONE]").await;
    assert!(rest.matches(": keep-alive\n\n").count() >= 8);
    let whole = struck(&stand, &ask("hi"), "queue=100ms").await;
    assert!(whole.text.starts_with("\n\n\n") && whole.json()["id"].is_string());
    let short = start(EmulatorConfig {
        queue_limit: Duration::from_millis(30),
        ..quick()
    })
    .await;
    let given_up = struck(&short, &stream("hi"), "queue=1m").await;
    assert!(!given_up.whole && given_up.events().is_empty());
}

#[tokio::test]
async fn tempo_length_and_finish_are_ordered() {
    let stand = start(quick()).await;
    let begun = std::time::Instant::now();
    let order = "first_token=60ms,token_delay=1ms,tokens=3";
    let answered = struck(&stand, &stream("hi"), order).await;
    assert!(begun.elapsed() >= Duration::from_millis(60 + 6));
    assert_eq!(answered.events().len(), 1 + 4 + 3 + 1);
    let failed = struck(&stand, &ask("hi"), "finish=insufficient_system_resource").await;
    assert_eq!(
        failed.json()["choices"][0]["finish_reason"],
        "insufficient_system_resource"
    );
}

#[tokio::test]
async fn a_burst_of_one_gives_each_event_a_chunk_and_none_gives_one_for_all() {
    let stand = start(quick()).await;
    let chunks = async |prompt: &str| {
        let mut line = stand.raw("/chat/completions", "", &stream(prompt)).await;
        let text = read_until(&mut line, "\r\n0\r\n\r\n").await;
        text.split("\r\n")
            .filter(|line| usize::from_str_radix(line, 16).is_ok_and(|n| n > 0))
            .count()
    };
    assert_eq!(chunks("hi").await, 1);
    assert_eq!(chunks("[[fault:burst=1]]").await, 1 + 8 + 24 + 2);
    assert_eq!(chunks("[[fault:burst=5]]").await, 7);
}

#[tokio::test]
async fn lists_are_spared_unless_everything_is_struck() {
    let stand = start(quick()).await;
    stand.order(&json!({"faults": "status=503"})).await;
    assert_eq!(stand.get("/models").await.status, 200);
    stand
        .order(&json!({"faults": "status=503,everywhere"}))
        .await;
    assert_eq!(stand.get("/models").await.status, 503);
    assert_eq!(stand.get("/user/balance").await.status, 503);
}
