//! What operators see, and what nobody may see.

use std::collections::HashMap;

use serde_json::json;

use crate::support::*;

const PROMPT: &str = "the-secret-of-the-prompt";

/// A gateway that has seen a little of everything, prompts and wrong keys included.
fn with_traffic(level: &str) -> (Emulator, Gateway) {
    let emulator = Emulator::start(Emulator::with_accounts(2));
    let config = Config::for_emulator(&emulator).set(
        "/upstreams/0/accounts/0/max_concurrent",
        json!({"deepseek-flash": 10}),
    );
    let config = config.set("/logging/level", json!(level)).unguarded().set(
        "/upstreams/0/outlier",
        json!({"ejection": "100ms", "max_ejection": "100ms", "ramp": "0s"}),
    );
    let gateway = Gateway::start(config);
    let order = |faults: &str| format!("[[fault:{faults}]] {PROMPT}");
    for faults in [
        "tokens=5",
        "status=503,times=1",
        "status=400",
        "cut_after=2",
        "reset",
        "garbage=1",
        // After this one both accounts are out for a moment.
        "status=401",
    ] {
        for (path, body) in [
            ("/v1/chat/completions", chat(&order(faults))),
            ("/v1/chat/completions", chat_stream(&order(faults))),
            ("/anthropic/v1/messages", message_stream(&order(faults))),
        ] {
            let mut wire = gateway.connect();
            wire.send(&Request::post(path, &body).key("acme").to_bytes());
            wire.try_answer();
        }
    }
    let odd = with(chat(PROMPT), "model", json!("no-such-model-of-the-client"));
    gateway.post("/v1/chat/completions", &odd);
    let body = with(chat(PROMPT), "stream", json!(PROMPT));
    gateway.post("/v1/chat/completions", &body);
    let path = format!("/v1/{PROMPT}?key={}", key("acme"));
    Request::get(&path)
        .header("cookie", PROMPT)
        .send(gateway.address());
    Request::new(&"METHOD".repeat(3), "/v1/models")
        .key("acme")
        .send(gateway.address());
    let wrong = format!("Bearer {}x", key("acme"));
    Request::post("/v1/chat/completions", &chat(PROMPT))
        .header("authorization", &wrong)
        .send(gateway.address());
    gateway.reload(|config| config.set("/retry", json!({"attempts": 3})));
    eventually("the accounts are back", SOON, || {
        gateway.is_serving().then_some(())
    });
    (emulator, gateway)
}

#[test]
fn the_metrics_parse_and_have_their_documented_names() {
    let (_emulator, gateway) = with_traffic("info");
    gateway.wait_until_idle(SOON);
    let text = gateway.metrics();
    let mut kinds: HashMap<&str, &str> = HashMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(kinds.insert(name, kind).is_none(), "{name} twice");
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let name = series.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| {
                    name.strip_suffix(end)
                        .filter(|name| kinds.get(name) == Some(&"histogram"))
                })
                .unwrap_or(name);
            assert!(kinds.contains_key(family), "{line} has no type");
        }
    }
    for (name, kind) in [
        ("requests_total", "counter"),
        ("refusals_total", "counter"),
        ("authentication_failures_total", "counter"),
        ("attempts_total", "counter"),
        ("requests_in_flight", "gauge"),
        ("request_duration_seconds", "histogram"),
        ("time_to_first_token_seconds", "histogram"),
        ("time_between_chunks_seconds", "histogram"),
        ("tokens_total", "counter"),
        ("overhead_seconds", "histogram"),
        ("streams_interrupted_total", "counter"),
        ("connections_open", "gauge"),
        ("request_body_buffer_bytes", "gauge"),
        ("upstream_endpoint_healthy", "gauge"),
        ("upstream_endpoint_addresses", "gauge"),
        ("upstream_endpoint_addresses_passed_over", "gauge"),
        ("account_in_flight", "gauge"),
        ("account_ceiling", "gauge"),
        ("config_reloads_total", "counter"),
        ("config_last_reload_timestamp_seconds", "gauge"),
        ("log_lines_dropped_total", "counter"),
        ("ready", "gauge"),
        ("build_info", "gauge"),
    ] {
        let name = format!("tidegate_{name}");
        assert_eq!(kinds.get(name.as_str()), Some(&kind), "{name}");
    }
    assert!(
        !text.contains("no-such-model"),
        "a client's word became a label"
    );
}

#[test]
fn no_secret_and_no_prompt_is_written_anywhere_at_any_level() {
    for level in ["info", "trace"] {
        let (_emulator, gateway) = with_traffic(level);
        let status = gateway.status().to_string();
        let metrics = gateway.metrics();
        // The last line may still be on its way.
        let last = gateway.post("/v1/chat/completions", &chat("last"));
        gateway.access_line(last.header("x-request-id").unwrap());
        let log = gateway.log().join("\n");
        let tenant_key = key("acme");
        let secret = &tenant_key["tg_acme_".len()..];
        for (place, text) in [
            ("/status", &status),
            ("/metrics", &metrics),
            ("the log", &log),
        ] {
            for hidden in [secret, "sk-upstream", PROMPT, ADMIN_TOKEN, "no-such-model"] {
                if let Some(at) = text.find(hidden) {
                    let from = text.floor_char_boundary(at.saturating_sub(300));
                    panic!(
                        "{level}: {hidden} in {place}: {}",
                        &text[from..at + hidden.len()]
                    );
                }
            }
        }
    }
}

#[test]
fn every_line_of_the_log_is_json() {
    let (_emulator, gateway) = with_traffic("info");
    for line in gateway.log() {
        let line: serde_json::Value =
            serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(
            line["ts"].is_string() && line["level"].is_string(),
            "{line}"
        );
    }
}

#[test]
fn each_request_has_one_access_line_that_says_what_became_of_it() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let answer = gateway.post("/v1/chat/completions", &chat("hello"));
    let id = answer.header("x-request-id").unwrap();
    let line = gateway.access_line(id);
    assert_eq!(line["client"], "127.0.0.1");
    assert_eq!(line["tenant"], "acme");
    assert_eq!(line["credential"], "acme");
    assert_eq!(line["method"], "POST");
    assert_eq!(line["model"], "deepseek-flash");
    assert_eq!(line["upstream"], "deepseek");
    assert_eq!(line["account"], "account-1");
    assert_eq!(line["status"], 200);
    assert_eq!(line["attempts"], 1);
    assert_eq!(line["protocol"], "http/1.1");
    assert_eq!(line["request_bytes"], chat("hello").to_string().len());
    assert_eq!(line["response_bytes"], answer.body.len());
    assert_eq!(line["upstream_trace"], emulator.call()["trace_id"]);
    let refused = Request::get("/v1/models").send(gateway.address());
    let other = gateway.access_line(refused.header("x-request-id").unwrap());
    assert_eq!(
        (other["status"].as_u64(), other["code"].as_str()),
        (Some(401), Some("missing_credential"))
    );
    assert_eq!(
        gateway
            .log()
            .iter()
            .filter(|line| line.contains(id))
            .count(),
        1
    );
}

#[test]
fn access_lines_can_be_switched_off_by_a_reload_and_text_is_for_people() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).set("/logging", json!({"format": "text"}));
    let gateway = Gateway::start(config);
    let lines = || {
        gateway
            .log()
            .iter()
            .filter(|line| line.contains("request_id"))
            .count()
    };
    let serve = || assert!(gateway.is_serving());
    serve();
    eventually("the line is written", SOON, || (lines() == 1).then_some(()));
    assert_eq!(
        gateway.reload(|config| config.set("/logging/access", json!(false))),
        "ok"
    );
    serve();
    assert_eq!(
        gateway.reload(|config| config.set("/logging/access", json!(true))),
        "ok"
    );
    serve();
    eventually("the line is written", SOON, || (lines() == 2).then_some(()));
}

#[test]
fn the_status_is_for_operators_with_the_token() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let bearer = format!("Bearer {ADMIN_TOKEN}");
    let ask = |fields: &[&str]| {
        let mut request = Request::get("/status");
        for value in fields {
            request = request.header("authorization", value);
        }
        request.send(gateway.admin())
    };
    let tenants_key = format!("Bearer {}", key("acme"));
    let longer = format!("{bearer}x");
    let shorter = &bearer[..bearer.len() - 1];
    for wrong in [
        &[][..],
        &["Bearer "],
        &["Bearer x"],
        &[&tenants_key],
        &[&longer],
        &[shorter],
        &[ADMIN_TOKEN],
        &[&bearer, &bearer],
    ] {
        let answer = ask(wrong);
        assert_eq!(answer.status, 401, "{wrong:?}");
        assert!(!answer.text().contains("deepseek"));
    }
    let status = ask(&[&bearer]);
    assert_eq!(status.status, 200);
    let status = status.json();
    assert_eq!(status["ready"], true);
    assert_eq!(status["upstreams"][0]["accounts"][0]["id"], "account-1");
    assert_eq!(status["tenants"][0]["id"], "acme");
    for open in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(
            Request::get(open).send(gateway.admin()).status,
            200,
            "{open}"
        );
    }
    let other = Request::get("/nothing").send(gateway.admin());
    assert_eq!(other.status, 401, "paths are not told to strangers");
    assert_eq!(
        Request::new("POST", "/metrics")
            .send(gateway.admin())
            .status,
        405
    );
}

#[test]
fn without_a_token_the_status_is_closed() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).set("/server/admin", json!({}));
    let gateway = Gateway::start(config);
    for value in ["Bearer ", "Bearer x"] {
        let request = Request::get("/status").header("authorization", value);
        assert_eq!(request.send(gateway.admin()).status, 401);
    }
}
