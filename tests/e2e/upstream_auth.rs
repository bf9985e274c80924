//! How the gateway shows an upstream who is asking: a key in any field, or a signature over the
//! request in the form that the upstream wants.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tidegate::emulator::EmulatorConfig;

use crate::support::*;

const SECRET: &str = "a-secret-between-two-gateways-that-is-long-enough";

/// An upstream that asks for no key, so that any way of showing one can be looked at.
fn stage(auth: Value) -> (Emulator, Gateway) {
    let emulator = Emulator::start(EmulatorConfig {
        self_hosted: true,
        ..Emulator::with_accounts(1)
    });
    let config = Config::for_emulator(&emulator)
        .set("/upstreams/0/dialect", json!("openai"))
        .set(
            "/upstreams/0/endpoints/0/url",
            json!(format!("{}/v1", emulator.url())),
        )
        .set("/upstreams/0/auth", auth)
        .set("/tenants", json!([only_models("acme")]))
        .file("account-1.key", SECRET);
    let gateway = Gateway::start(config);
    (emulator, gateway)
}

/// A tenant without files and balance.
fn only_models(id: &str) -> Value {
    let tenant = with(tenant(id), "files", json!(false));
    with(tenant, "balance", json!(false))
}

fn hmac(message: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_key_goes_into_the_field_and_under_the_scheme_that_the_upstream_wants() {
    for (auth, field, value) in [
        (
            json!({"header": "X-Corp-Key", "scheme": "Token"}),
            "x-corp-key",
            format!("Token {SECRET}"),
        ),
        (
            json!({"header": "api-key", "scheme": ""}),
            "api-key",
            SECRET.to_owned(),
        ),
        (json!({}), "authorization", format!("Bearer {SECRET}")),
    ] {
        let (emulator, gateway) = stage(auth);
        assert!(gateway.is_serving());
        let call = emulator.call();
        assert_eq!(header_of(&call, field), Some(&*value));
        let shown = call["request_headers"].to_string();
        assert_eq!(shown.matches(SECRET).count(), 1, "{shown}");
        assert!(!gateway.log().iter().any(|line| line.contains(SECRET)));
    }
}

#[test]
fn a_request_is_signed_as_the_configuration_composes_it() {
    let (emulator, gateway) = stage(json!({"signing": {
        "message": "{key_id}|{method}|{host}|{path}|{query}|{timestamp}|{nonce}|{body_sha256}",
        "headers": {
            "X-App": "{key_id}",
            "X-Stamp": "t={timestamp};n={nonce}",
            "X-Digest": "{body_sha256}",
            "X-Sign": "v1 {signature}",
        },
        "encoding": "base64",
        "timestamp": "milliseconds",
    }}));
    assert!(gateway.is_serving());
    let stream = gateway
        .stream("/v1/chat/completions", &chat_stream("hi"))
        .rest();
    assert_eq!(stream.data().last().unwrap(), "[DONE]");
    let calls = emulator.calls();
    let mut nonces = Vec::new();
    for call in &calls {
        let field = |name: &str| header_of(call, name).unwrap().to_owned();
        let body = call["body"].as_str().unwrap();
        let digest = STANDARD.encode(Sha256::digest(body));
        assert_eq!(field("x-digest"), digest);
        // Without a `key_id` it is the account's name.
        assert_eq!(field("x-app"), "account-1");
        let stamp = field("x-stamp");
        let (time, nonce) = stamp.strip_prefix("t=").unwrap().split_once(";n=").unwrap();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_millis();
        let age = now - time.parse::<u128>().unwrap();
        assert!(age < 60_000, "{age}");
        let (host, path) = (emulator.address(), "/v1/chat/completions");
        let message = format!("account-1|POST|{host}|{path}||{time}|{nonce}|{digest}");
        let signature = STANDARD.encode(hmac(&message));
        assert_eq!(field("x-sign"), format!("v1 {signature}"));
        assert_eq!(header_of(call, "authorization"), None);
        assert!(!call["request_headers"].to_string().contains(SECRET));
        nonces.push(nonce.to_owned());
    }
    assert_eq!(nonces.len(), 2);
    assert_ne!(nonces[0], nonces[1]);
}

#[test]
fn the_default_form_is_that_of_our_own_signed_requests() {
    let (emulator, gateway) = stage(json!({"signing": {}}));
    assert!(gateway.is_serving());
    let call = emulator.call();
    let field = header_of(&call, "authorization").unwrap();
    let parameters = field.strip_prefix("TG-HMAC-SHA256 ").unwrap();
    let part = |name: &str| {
        let mut parts = parameters
            .split(", ")
            .filter_map(|part| part.split_once('='));
        parts.find(|(known, _)| *known == name).unwrap().1
    };
    let digest = hex(&Sha256::digest(call["body"].as_str().unwrap()));
    let (path, time, nonce) = ("/v1/chat/completions", part("timestamp"), part("nonce"));
    let message = format!("TG-HMAC-SHA256\nPOST\n{path}\n\n{time}\n{nonce}\n{digest}");
    assert_eq!(part("signature"), hex(&hmac(&message)));
    assert_eq!((part("id"), part("digest")), ("account-1", &*digest));
}

/// A gateway whose upstream is another gateway that knows it by this secret.
fn behind(inner: &Gateway, emulator: &Emulator, secret: &str) -> Gateway {
    let account = json!([{"id": "inner", "key_id": "outer-1", "api_key": "${file:account-1.key}"}]);
    let config = Config::for_emulator(emulator)
        .set("/upstreams/0/endpoints/0/url", json!(inner.url()))
        .set("/upstreams/0/auth", json!({"signing": {}}))
        .set(
            "/upstreams/0/surfaces",
            json!(["chat", "messages", "responses"]),
        )
        .set("/upstreams/0/accounts", account)
        .set("/tenants", json!([only_models("acme")]))
        .file("account-1.key", secret);
    Gateway::start(config)
}

#[test]
fn one_gateway_stands_behind_another() {
    let emulator = Emulator::quick();
    let signer = json!({"signed_request": {"id": "outer-1", "secret": "${file:outer.secret}"}});
    let outer_tenant = with(tenant("outer"), "credentials", json!([signer]));
    let config = Config::for_emulator(&emulator)
        .set("/tenants/-", outer_tenant)
        .file("outer.secret", SECRET);
    let inner = Gateway::start(config);
    let outer = behind(&inner, &emulator, SECRET);
    for (path, body) in [
        ("/v1/chat/completions", chat("hello")),
        ("/anthropic/v1/messages", message("hello")),
        ("/v1/responses", response("hello")),
    ] {
        let answer = outer.post(path, &body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    let stream = outer
        .stream("/v1/chat/completions", &chat_stream("hello"))
        .rest();
    assert_eq!(stream.ending, Ending::Whole);
    assert_eq!(stream.data().last().unwrap(), "[DONE]");
    assert_eq!(emulator.calls().len(), 4);
    let line = inner.logged(&["\"access\"", "\"tenant\":\"outer\"", "\"surface\":\"chat\""]);
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&line["authentication"], &line["credential"]),
        (&json!("signed_request"), &json!("outer-1"))
    );
    // Health checks are signed as well.
    inner.logged(&[
        "\"access\"",
        "\"tenant\":\"outer\"",
        "\"surface\":\"models\"",
    ]);
    assert_eq!(
        inner.metric("tidegate_authentication_failures_total", &[]),
        0.0
    );

    let stranger = behind(
        &inner,
        &emulator,
        "another-secret-that-is-as-long-as-the-right-one",
    );
    let answer = stranger.post("/v1/chat/completions", &chat("hello"));
    // The inner's 401 is the outer's failure, not its tenant's.
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(emulator.calls().len(), 4);
    let wrong = ["reason=\"wrong_signature\""];
    assert!(inner.metric("tidegate_authentication_failures_total", &wrong) >= 1.0);
}
