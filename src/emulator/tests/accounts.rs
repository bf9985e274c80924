//! What can be changed about an account while the emulator runs, and that its
//! answers are every account's.

use super::*;

async fn change(stand: &Stand, account: &str, change: &Value) -> Answered {
    stand
        .post(&format!("/_emulator/accounts/{account}"), change)
        .await
}

#[tokio::test]
async fn an_account_runs_dry_and_is_filled_again() {
    let stand = start(quick()).await;
    for (amount, status, available) in [("0.00", 402, false), ("-3", 402, false), ("5", 200, true)]
    {
        let told = change(&stand, "emulator", &json!({"balance": amount})).await;
        assert_eq!(told.status, 200);
        assert_eq!(told.json()[0]["can_pay"], available);
        let call = stand.post("/chat/completions", &ask("hi")).await;
        assert_eq!(call.status, status, "{amount}");
        let balance = stand.get("/user/balance").await.json();
        assert_eq!(balance["is_available"], available);
        assert_eq!(balance["balance_infos"][0]["total_balance"], amount);
    }
    let accounts = stand.get("/_emulator/accounts").await.json();
    assert_eq!(
        accounts,
        json!([{"name": "emulator", "balance": "5", "can_pay": true}])
    );
}

#[tokio::test]
async fn a_key_is_replaced() {
    let stand = start(quick()).await;
    let told = change(&stand, DEFAULT_KEY, &json!({"key": "sk-new"})).await;
    assert_eq!(told.status, 200);
    assert_eq!(stand.get("/models").await.status, 401);
    let new = [("authorization", "Bearer sk-new")];
    let told = stand.call(Method::GET, "/models", &new, "").await;
    assert_eq!(told.status, 200);
}

#[tokio::test]
async fn changes_that_make_no_sense_are_refused() {
    let stand = start(quick()).await;
    let nobody = change(&stand, "nobody", &json!({"balance": "1"})).await;
    assert_eq!(nobody.status, 400);
    let typo = change(&stand, "emulator", &json!({"balanse": "1"})).await;
    assert_eq!(typo.status, 400);
}

#[tokio::test]
async fn an_answer_is_gone_on_with_at_another_account_as_if_it_were_one() {
    let mut config = quick();
    config
        .accounts
        .push(EmulatedAccount::new("sk-other", "other"));
    let stand = start(config).await;
    let order = "Tell me [[fault:tokens=40]] [[fault:cut_after=30,times=1]]";
    let whole = stand
        .post("/chat/completions", &ask("Tell me [[fault:tokens=40]]"))
        .await
        .json();
    let message = &whole["choices"][0]["message"];
    let cut = stand.post("/chat/completions", &stream(order)).await;
    assert!(!cut.whole);
    let part = |name: &str| -> String {
        let events = cut.events();
        let pieces = events.iter().map(|event| &event["choices"][0]["delta"]);
        pieces.filter_map(|delta| delta[name].as_str()).collect()
    };
    let (text, reasoning) = (part("content"), part("reasoning_content"));
    assert_eq!(message["reasoning_content"], reasoning);
    let mut body = ask(order);
    let begun = json!({"role": "assistant", "content": text, "prefix": true,
        "reasoning_content": reasoning});
    body["messages"].as_array_mut().unwrap().push(begun);
    let other = [("authorization", "Bearer sk-other"), JSON];
    let rest = stand
        .call(
            Method::POST,
            "/beta/chat/completions",
            &other,
            &body.to_string(),
        )
        .await
        .json();
    let went_on = &rest["choices"][0]["message"];
    assert!(went_on["reasoning_content"].is_null());
    let both = text.clone() + went_on["content"].as_str().unwrap();
    assert_eq!(message["content"], both);
    assert!(rest["usage"]["completion_tokens"].as_u64() < Some(40));
    let known = whole["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(rest["usage"]["prompt_tokens"].as_u64() > Some(known));
}

#[tokio::test]
async fn only_the_last_message_can_be_the_beginning_of_an_answer() {
    let stand = start(quick()).await;
    let begun = json!({"role": "assistant", "content": "x", "prefix": true});
    let user = json!({"role": "user", "content": "hi"});
    for messages in [
        json!([begun, user]),
        json!([{"role": "user", "content": "hi", "prefix": true}]),
    ] {
        let body = with(ask("hi"), "messages", messages);
        let told = stand.post("/beta/chat/completions", &body).await;
        assert_eq!(told.status, 400);
    }
}
