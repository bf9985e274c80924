//! What an issuer's configuration asks of its tokens beyond a signature, and for how long one that
//! was good stays so.

use serde_json::{Value, json};

use super::tokens::{Issuers, config, shown};
use super::*;
use crate::support::tokens::{AUDIENCE, now};

#[test]
fn an_issuers_own_rules_hold() {
    let (emulator, issuers) = (Emulator::quick(), Issuers::new());
    let gateway = Gateway::start(config(&emulator, &issuers));
    let strict = &issuers.strict;
    let claims = json!({
        "iss": strict.name(), "aud": ["another", AUDIENCE], "sub": "robot-7",
        "iat": now(), "exp": now() + 600, "scope": "openid llm", "email": "robot@example.com",
        "org": {"team": "search"}, "models": ["deepseek-flash", "no-such-model"],
    });
    let token = |name: &str, value: Value| {
        let mut claims = with(claims.clone(), name, value.clone());
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        }
        strict.sign(&strict.header(), &claims)
    };
    let rows = [
        row(
            "a required claim is missing",
            INVALID,
            "missing_claim",
            shown(token("email", Value::Null)),
        ),
        row(
            "another scope",
            INVALID,
            "wrong_claim",
            shown(token("scope", json!("openid llms"))),
        ),
        row(
            "no scope",
            INVALID,
            "missing_claim",
            shown(token("scope", Value::Null)),
        ),
        row(
            "a team that is not mapped",
            NOT_ALLOWED,
            "no_tenant",
            shown(token("org", json!({"team": "acme"}))),
        ),
        row(
            "no team",
            NOT_ALLOWED,
            "no_tenant",
            shown(token("org", json!("search"))),
        ),
        row(
            "no leeway",
            EXPIRED,
            "expired",
            shown(token("exp", json!(now() - 1))),
        ),
    ];
    refused(&emulator, &gateway, &rows);

    let ask = |token: &str, model: &str| {
        let body = with(chat("hello"), "model", json!(model));
        let request = Request::post("/v1/chat/completions", &body).bearer(token);
        let answer = request.send(gateway.address());
        let code = if answer.status == 200 {
            String::new()
        } else {
            answer.code()
        };
        (answer.status, code)
    };
    let listed = |token: &str| {
        let answer = Request::get("/v1/models")
            .bearer(token)
            .send(gateway.address());
        let list = answer.json()["data"].as_array().unwrap().clone();
        let names = list
            .iter()
            .map(|model| model["id"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    let not_allowed = (403, "model_not_allowed".to_owned());
    let narrowed = token("sub", json!("robot-7"));
    assert_eq!(ask(&narrowed, "deepseek-flash"), (200, String::new()));
    assert_eq!(ask(&narrowed, "deepseek-v4-pro"), not_allowed);
    assert_eq!(listed(&narrowed), ["deepseek-flash"]);
    let by_words = token("models", json!("deepseek-v4-pro deepseek-chat"));
    assert_eq!(ask(&by_words, "deepseek-v4-pro").0, 200);
    assert_eq!(ask(&by_words, "deepseek-flash"), not_allowed);
    assert_eq!(listed(&by_words).len(), 2);
    // A token that names none narrows to nothing, one with a star not at all.
    let none = token("models", Value::Null);
    assert_eq!(ask(&none, "deepseek-flash"), not_allowed);
    assert!(listed(&none).is_empty());
    let all = token("models", json!("*"));
    assert_eq!(ask(&all, "deepseek-v4-pro").0, 200);
    assert_eq!(listed(&all).len(), 4);
    assert_eq!(emulator.calls().len(), 3);
}

#[test]
fn a_token_that_was_good_is_refused_from_its_end_on() {
    let (emulator, issuers) = (Emulator::quick(), Issuers::new());
    let gateway = Gateway::start(config(&emulator, &issuers));
    let strict = &issuers.strict;
    let claims = json!({
        "iss": strict.name(), "aud": AUDIENCE, "iat": now(), "exp": now() + 3, "scope": "llm",
        "email": "robot@example.com", "org": {"team": "search"}, "models": "*",
    });
    let token = strict.sign(&strict.header(), &claims);
    let ask = || {
        Request::get("/v1/models")
            .bearer(&token)
            .send(gateway.address())
    };
    assert_eq!(ask().status, 200);
    let refused = eventually("the token has expired", SOON, || {
        Some(ask()).filter(|answer| answer.status != 200)
    });
    assert_eq!(refused.code(), "expired_credential");
    assert!(now() >= claims["exp"].as_i64().unwrap());
}

#[test]
fn a_token_is_forgotten_with_its_issuer_and_with_its_tenants_rights() {
    let (emulator, issuers) = (Emulator::quick(), Issuers::new());
    let gateway = Gateway::start(config(&emulator, &issuers));
    let token = issuers.rs.token("acme");
    let ask = || {
        let request = Request::post("/v1/chat/completions", &chat("hello")).bearer(&token);
        let answer = request.send(gateway.address());
        let code = if answer.status == 200 {
            String::new()
        } else {
            answer.code()
        };
        (answer.status, code)
    };
    assert_eq!(ask().0, 200);
    let result = gateway.reload(|config| config.set("/tenants/0/accept", json!(["api_key"])));
    assert_eq!(result, "ok");
    assert_eq!(ask(), (403, "not_allowed".to_owned()));
    let result = gateway.reload(|config| {
        let config = config.set("/tenants/0/accept", json!(["token"]));
        config.set("/identity/tokens", json!([]))
    });
    assert_eq!(result, "ok");
    assert_eq!(ask(), (401, "invalid_credential".to_owned()));
    assert_eq!(emulator.calls().len(), 1);
}
