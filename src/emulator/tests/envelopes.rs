//! A company's own gateway in front of the provider.
use serde_json::{Value, json};

use super::*;

async fn enveloped() -> Stand {
    start(EmulatorConfig {
        enveloped: true,
        ..quick()
    })
    .await
}

fn ask(text: &str, stream: bool) -> Value {
    json!({"model": "deepseek-flash", "stream": stream, "messages": [{"role": "user", "content": text}]})
}

#[tokio::test]
async fn an_answer_and_each_event_come_in_an_envelope() {
    let stand = enveloped().await;
    let whole = stand.post("/chat/completions", &ask("hello", false)).await;
    let whole = whole.json();
    assert_eq!((&whole["code"], &whole["msg"]), (&json!(0), &json!("ok")));
    assert!(whole["data"]["choices"].is_array());
    let streamed = stand.post("/chat/completions", &ask("hello", true)).await;
    let events = streamed.events();
    assert!(events.len() > 3);
    for event in &events {
        assert_eq!(event["code"], 0);
        assert!(event["data"]["choices"].is_array(), "{event}");
    }
    assert_eq!(streamed.data().last(), Some(&"[DONE]"));
    let models = stand.get("/models").await.json();
    assert!(models["data"]["data"].is_array());
}

#[tokio::test]
async fn an_error_comes_under_200_with_a_code_that_says_its_status() {
    let stand = enveloped().await;
    for (order, code) in [("status=429", 42_901), ("status=404", 40_401)] {
        let text = format!("[[fault:{order}]]");
        let told = stand.post("/chat/completions", &ask(&text, true)).await;
        assert_eq!(told.status, 200);
        let told = told.json();
        assert_eq!((&told["code"], &told["data"]), (&json!(code), &Value::Null));
        assert!(!told["msg"].as_str().unwrap().is_empty());
    }
    for stream in [false, true] {
        let body = ask("[[fault:error_after=2]]", stream);
        let told = stand.post("/chat/completions", &body).await;
        assert!(
            told.text.contains(r#"{"code":50001,"data":null,"msg":"#),
            "{}",
            told.text
        );
    }
    let cut = stand
        .post("/chat/completions", &ask("[[fault:end_after=1]]", false))
        .await;
    assert!(cut.text.starts_with(r#"{"code":0,"data":{"#) && !cut.text.contains("\"msg\":\"ok\""));
}
