//! Who is not known, or may not, is told so in the error format it understands, and nothing of
//! what it sent reaches an upstream.

use serde_json::json;

use crate::support::*;

fn stage() -> (Emulator, Gateway) {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    (emulator, gateway)
}

/// `key` with its last character exchanged.
fn with_typo(key: &str) -> String {
    let last = if key.ends_with('x') { "y" } else { "x" };
    format!("{}{last}", &key[..key.len() - 1])
}

#[test]
fn a_credential_that_is_missing_wrong_or_doubtful_is_a_401() {
    let (emulator, gateway) = stage();
    let good = key("acme");
    let wrong_secret = tidegate::identity::api_key::make("acme", &[8; 32]);
    let bearer = |key: &str| ("authorization", format!("Bearer {key}"));
    let api_key = |key: &str| ("x-api-key", key.to_owned());
    let cases: Vec<(&str, Vec<(&str, String)>)> = vec![
        ("none", vec![]),
        ("empty", vec![bearer("")]),
        ("empty x-api-key", vec![api_key("")]),
        ("a foreign key", vec![bearer("sk-upstream-1")]),
        ("an upstream's own key", vec![api_key("sk-upstream-1")]),
        ("a typo", vec![bearer(&with_typo(&good))]),
        ("a wrong secret", vec![bearer(wrong_secret.key.expose())]),
        ("an unknown id", vec![bearer(&key("nobody"))]),
        ("a disabled tenant", vec![bearer(&key("closed"))]),
        (
            "another scheme",
            vec![("authorization", format!("Basic {good}"))],
        ),
        ("no scheme", vec![("authorization", good.clone())]),
        ("the same header twice", vec![bearer(&good), bearer(&good)]),
        ("a good and a bad one", vec![bearer(&good), bearer("x")]),
        ("x-api-key twice", vec![api_key(&good), api_key(&good)]),
        (
            "two that contradict",
            vec![bearer(&good), api_key(&key("limited"))],
        ),
        (
            "two keys in one field",
            vec![bearer(&format!("{good}, {good}"))],
        ),
        ("more than the key", vec![bearer(&format!("{good}x"))]),
    ];
    for (what, fields) in &cases {
        for (path, body) in [
            ("/v1/chat/completions", chat("hello")),
            ("/anthropic/v1/messages", message("hello")),
        ] {
            let mut request = Request::post(path, &body);
            for (name, value) in fields {
                request = request.header(name, value);
            }
            let answer = request.send(gateway.address());
            assert_eq!(answer.status, 401, "{what}: {}", answer.text());
            assert_eq!(answer.header("x-should-retry"), Some("false"), "{what}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{what}");
            let error = answer.json();
            assert_eq!(error["error"]["type"], "authentication_error", "{what}");
            assert_eq!(
                error["type"] == "error",
                path.starts_with("/anthropic"),
                "{what}"
            );
            assert!(!answer.text().contains(&good), "{what}");
        }
    }
    assert!(emulator.calls().is_empty());
    let failures = gateway.metric("tidegate_authentication_failures_total", &[]);
    assert_eq!(failures, (cases.len() * 2) as f64);
    assert!(gateway.is_serving());
}

#[test]
fn a_key_is_taken_from_either_header_or_from_both_if_they_agree() {
    let (_emulator, gateway) = stage();
    let good = key("acme");
    let request = Request::post("/v1/chat/completions", &chat("hello"));
    let bearer = format!("Bearer {good}");
    for request in [
        request.clone().header("authorization", &bearer),
        request
            .clone()
            .header("Authorization", &bearer.replace("Bearer", "bEARER")),
        request.clone().header("x-api-key", &good),
        request
            .header("x-api-key", &good)
            .header("authorization", &bearer),
    ] {
        assert_eq!(request.send(gateway.address()).status, 200);
    }
}

#[test]
fn a_model_that_is_not_allowed_is_a_403_and_one_that_is_not_there_a_404() {
    let (emulator, gateway) = stage();
    for (model, status, code, kind, anthropic_kind) in [
        (
            "deepseek-v4-pro",
            403,
            "model_not_allowed",
            "permission_error",
            "permission_error",
        ),
        (
            "gpt-5",
            404,
            "model_not_found",
            "invalid_request_error",
            "not_found_error",
        ),
        (
            "",
            404,
            "model_not_found",
            "invalid_request_error",
            "not_found_error",
        ),
    ] {
        let body = with(chat("hello"), "model", json!(model));
        let request = Request::post("/v1/chat/completions", &body).key("limited");
        let answer = request.send(gateway.address());
        assert_eq!((answer.status, answer.code().as_str()), (status, code));
        let error = &answer.json()["error"];
        assert_eq!(
            (error["type"].as_str(), error["param"].as_str()),
            (Some(kind), Some("model"))
        );
        assert_eq!(error["request_id"].as_str(), answer.header("x-request-id"));

        let body = with(message("hello"), "model", json!(model));
        let request = Request::post("/anthropic/v1/messages", &body).key("limited");
        let answer = request.send(gateway.address());
        assert_eq!((answer.status, answer.code().as_str()), (status, code));
        let error = answer.json();
        assert_eq!(error["type"], "error");
        assert_eq!(error["error"]["type"], anthropic_kind);
        assert_eq!(error["request_id"].as_str(), answer.header("request-id"));
    }
    assert!(emulator.calls().is_empty());
}

#[test]
fn an_unknown_path_and_a_wrong_method_are_told_before_anyone_is_identified() {
    let (emulator, gateway) = stage();
    for (method, path, status) in [
        ("GET", "/", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "//v1/chat/completions", 404),
        ("POST", "/v1/../v1/chat/completions", 404),
        ("POST", "/v1/chat%2Fcompletions", 404),
        ("GET", "/_emulator/journal", 404),
        ("GET", "/metrics", 404),
        ("GET", "/v1/files/../user/balance", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/models", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
    ] {
        let answer = Request::new(method, path).send(gateway.address());
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        assert_eq!(answer.header("x-should-retry"), Some("false"));
    }
    assert!(emulator.calls().is_empty());
}
