//! What is refused, and how much is allowed at once.

use super::*;

#[tokio::test]
async fn keys_are_refused_as_the_real_one_refuses_them() {
    let stand = start(quick()).await;
    let none = stand
        .call(Method::POST, "/chat/completions", &[JSON], "{}")
        .await;
    assert_eq!(
        (none.status, none.text.as_str()),
        (401, "Authentication Fails (governor)")
    );
    let wrong = ("authorization", "Bearer sk-secret-zz99");
    let wrong = stand.call(Method::GET, "/models", &[wrong], "").await;
    assert_eq!(wrong.status, 401);
    assert!(
        wrong
            .message()
            .starts_with("Authentication Fails, Your api key: ****zz99 is invalid (request_id: ")
    );
    assert_eq!(wrong.json()["error"]["type"], "authentication_error");
    let other_header = [("x-api-key", DEFAULT_KEY)];
    assert_eq!(
        stand
            .call(Method::GET, "/models", &other_header, "")
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn an_account_without_balance_is_402_and_says_so() {
    let poor = EmulatedAccount {
        balance: "0.00".into(),
        ..EmulatedAccount::new(DEFAULT_KEY, "poor")
    };
    let stand = start(EmulatorConfig {
        accounts: vec![poor],
        ..quick()
    })
    .await;
    let refused = stand.post("/chat/completions", &ask("hi")).await;
    assert_eq!(
        (refused.status, refused.message().as_str()),
        (402, "Insufficient Balance")
    );
    assert_eq!(
        stand.get("/user/balance").await.json()["is_available"],
        false
    );
}

#[tokio::test]
async fn what_the_api_does_not_know_has_its_own_status() {
    let stand = start(quick()).await;
    let unknown = stand.post("/v1/moderations", &ask("hi")).await;
    assert_eq!((unknown.status, unknown.text.as_str()), (404, ""));
    assert_eq!(stand.get("/chat/completions").await.status, 405);
    let text = [KEY, ("content-type", "text/plain")];
    assert_eq!(
        stand
            .call(Method::POST, "/chat/completions", &text, "{}")
            .await
            .status,
        415
    );
    let model = with(ask("hi"), "model", json!("deepseek-chat"));
    let refused = stand.post("/chat/completions", &model).await;
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.message(),
        "The supported API model names are deepseek-flash, deepseek-v4-pro, but you passed deepseek-chat."
    );
    let broken = stand
        .call(Method::POST, "/chat/completions", &[KEY, JSON], "{")
        .await;
    assert_eq!(broken.status, 400);
}

#[tokio::test]
async fn invalid_parameters_are_422_and_senseless_requests_400() {
    let stand = start(quick()).await;
    let path = "/chat/completions";
    let shape = stand.post(path, &json!({"model": "deepseek-flash"})).await;
    assert_eq!(shape.status, 422);
    assert!(shape.message().starts_with(
        "Failed to deserialize the JSON body into the target type: missing field `messages`"
    ));
    for (name, value) in [
        ("max_tokens", json!(0)),
        ("max_tokens", json!(400_000)),
        ("temperature", json!(3)),
        ("top_logprobs", json!(21)),
        ("user_id", json!("a b")),
        ("stop", json!(vec!["x"; 17])),
        ("messages", json!([{"role": "developer", "content": "x"}])),
        (
            "tools",
            json!([{"type": "function", "function": {"name": "a b"}}]),
        ),
    ] {
        assert_eq!(
            stand
                .post(path, &with(ask("hi"), name, value.clone()))
                .await
                .status,
            422,
            "{name} {value}"
        );
    }
    let call =
        json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    for (name, value) in [
        ("n", json!(2)),
        ("messages", json!([])),
        ("response_format", json!({"type": "json_schema"})),
        ("tool_choice", json!("required")),
        (
            "messages",
            json!([{"role": "tool", "tool_call_id": "x", "content": "x"}]),
        ),
        (
            "messages",
            json!([{"role": "assistant", "reasoning_content": "r", "tool_calls": [call]}]),
        ),
        (
            "messages",
            json!([{"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "x"}]),
        ),
    ] {
        assert_eq!(
            stand
                .post(path, &with(ask("hi"), name, value.clone()))
                .await
                .status,
            400,
            "{name} {value}"
        );
    }
    let whole = json!([{"role": "user", "content": "hi"},
        {"role": "assistant", "reasoning_content": "r", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "x"}]);
    assert_eq!(
        stand
            .post(path, &with(ask("hi"), "messages", whole))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn a_body_above_64_mib_is_413() {
    let stand = start(quick()).await;
    let body = " ".repeat((64 << 20) + 1);
    // The refusal may come while the body is still being sent.
    let answered = stand
        .send(request(
            Method::POST,
            "/chat/completions",
            &[KEY, JSON],
            &body,
        ))
        .await;
    assert!(answered.is_none_or(|answered| answered.status == 413));
    assert_eq!(
        stand.entry(|entry| !entry["status"].is_null()).await["status"],
        413
    );
}

fn narrow(ceiling: usize) -> EmulatorConfig {
    let mut account = EmulatedAccount::new(DEFAULT_KEY, "narrow");
    account.concurrency.insert("deepseek-flash".into(), ceiling);
    EmulatorConfig {
        accounts: vec![account],
        ..quick()
    }
}

#[tokio::test]
async fn beyond_its_concurrency_an_account_gets_429_until_a_client_is_gone() {
    let stand = start(narrow(1)).await;
    let mut held = stand
        .raw("/chat/completions", "", &stream("[[fault:stall_after=3]]"))
        .await;
    read_until(&mut held, "reasoning_content").await;
    let in_flight = stand.get("/_emulator/inflight").await.json();
    assert_eq!(in_flight["narrow"]["deepseek-flash"], 1);
    let refused = stand.post("/chat/completions", &ask("hi")).await;
    assert_eq!(refused.status, 429);
    assert!(!refused.headers.contains_key("retry-after"));
    let pro = with(ask("hi"), "model", json!("deepseek-v4-pro"));
    assert_eq!(stand.post("/chat/completions", &pro).await.status, 200);
    drop(held);
    for _ in 0..200 {
        if stand.post("/chat/completions", &ask("hi")).await.status == 200 {
            assert_eq!(
                stand.get("/_emulator/inflight").await.json()["narrow"]["deepseek-flash"],
                0
            );
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the slot never came back");
}

#[tokio::test]
async fn tokens_are_paced() {
    let stand = start(EmulatorConfig {
        token_delay: Duration::from_millis(5),
        first_token_delay: Duration::from_millis(50),
        ..quick()
    })
    .await;
    for body in [ask("hi"), stream("hi")] {
        let begun = std::time::Instant::now();
        assert_eq!(stand.post("/chat/completions", &body).await.status, 200);
        assert!(begun.elapsed() >= Duration::from_millis(50 + 31 * 5));
    }
}
