//! Whom and what a limit covers.

use serde_json::json;

use super::*;

#[test]
fn limits_of_surfaces_and_models_count_apart() {
    let (_emulator, gateway) = stage(json!({
        "chat": {"requests_per_day": 1},
        "models": {"deepseek-v4-pro": {"requests_per_day": 2}},
    }));
    assert_eq!(gateway.post(CHAT, &chat("one")).status, 200);
    let refused = gateway.post(CHAT, &chat("two"));
    assert_refused(&refused, "insufficient_quota", "chat/*/requests_per_day");
    assert_eq!(gateway.post(MESSAGES, &message("three")).status, 200);
    let pro = with(message("four"), "model", json!("deepseek-v4-pro"));
    assert_eq!(gateway.post(MESSAGES, &pro).status, 200);
    assert_eq!(gateway.post(MESSAGES, &pro).status, 200);
    let refused = gateway.post(MESSAGES, &pro);
    let name = "all/deepseek-v4-pro/requests_per_day";
    assert_refused(&refused, "insufficient_quota", name);
    assert_eq!(gateway.post(MESSAGES, &message("five")).status, 200);
}

#[test]
fn text_is_every_surface_that_generates_and_a_model_may_have_limits_of_one() {
    let (_emulator, gateway) = stage(json!({
        "text": {"requests_per_day": 3},
        "models": {"deepseek-flash": {"messages": {"requests_per_day": 1}}},
    }));
    assert_eq!(gateway.post(MESSAGES, &message("one")).status, 200);
    let refused = gateway.post(MESSAGES, &message("two"));
    let name = "messages/deepseek-flash/requests_per_day";
    assert_refused(&refused, "insufficient_quota", name);
    assert_eq!(gateway.post(CHAT, &chat("three")).status, 200);
    assert_eq!(gateway.post("/v1/responses", &response("four")).status, 200);
    let refused = gateway.post(CHAT, &chat("five"));
    assert_refused(&refused, "insufficient_quota", "text/*/requests_per_day");
    // Lists are answered here and count nowhere.
    assert_eq!(gateway.get("/v1/models").status, 200);
}

#[test]
fn a_groups_limit_holds_for_the_sum_of_its_tenants() {
    let emulator = Emulator::quick();
    let config = config(&emulator, json!({"requests_per_day": 10}))
        .set("/plans/sum", json!({"requests_per_day": 2}))
        .set("/groups", json!([{"id": "org", "plan": "sum"}]))
        .set("/tenants/0/group", json!("org"))
        .set("/tenants/1/group", json!("org"))
        .set("/tenants/-", tenant("stranger"));
    let gateway = Gateway::start(config);
    let ask = |key: &str| {
        let request = Request::post(CHAT, &chat("hello")).key(key);
        request.send(gateway.address())
    };
    assert_eq!(ask("acme").status, 200);
    assert_eq!(ask("limited").status, 200);
    for key in ["acme", "limited"] {
        let refused = ask(key);
        assert_refused(&refused, "insufficient_quota", "all/*/requests_per_day");
        let limit = refused.json()["error"]["limit"].clone();
        assert_eq!(
            (&limit["of"], &limit["limit"]),
            (&json!("group"), &json!(2))
        );
        assert!(refused.text().contains("your group"));
    }
    assert_eq!(ask("stranger").status, 200);
    // A refusal of the group takes nothing of the tenant's own limit either.
    let report = report(&gateway, "acme");
    assert_eq!(report["group"], "org");
    let uses = report["limits"].as_array().unwrap().iter();
    let uses: Vec<_> = uses
        .map(|limit| (&limit["subject"], &limit["used"]))
        .collect();
    assert_eq!(
        uses,
        [
            (&json!("tenant/acme"), &json!(1)),
            (&json!("group/org"), &json!(2))
        ]
    );
}

#[test]
fn a_tenant_that_names_no_plan_has_the_fields_usual_limits() {
    let emulator = Emulator::quick();
    let mut config = Config::for_emulator(&emulator);
    config.value["plans"]
        .as_object_mut()
        .unwrap()
        .remove("default");
    config.value["tenants"][0]
        .as_object_mut()
        .unwrap()
        .remove("plan");
    let gateway = Gateway::start(config);
    let answer = gateway.post(CHAT, &chat("hello"));
    assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("60"));
    assert_eq!(answer.header("x-ratelimit-remaining-requests"), Some("59"));
    let allowed = |name: &str| standing(&gateway, "acme", name)["allowed"].clone();
    assert_eq!(report(&gateway, "acme")["plan"], "default");
    assert_eq!(allowed("text/*/requests_per_minute"), 60);
    assert_eq!(allowed("text/*/requests_per_day"), 1000);
    assert_eq!(allowed("embeddings/*/requests_per_minute"), 30);
    assert_eq!(allowed("embeddings/*/requests_per_day"), 500);
}
