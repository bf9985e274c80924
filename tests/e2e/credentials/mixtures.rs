//! More than one credential on a request, and none at all.

use serde_json::{Value, json};

use super::signatures::{secret_of, with_signers};
use super::*;
use crate::support::signing::Signing;
use crate::support::tokens::Issuer;

fn with_everything(emulator: &Emulator, issuer: &Issuer) -> Config {
    with_signers(emulator)
        .set(
            "/identity/tokens",
            json!([issuer.settings(json!({"file": "one.pem"}))]),
        )
        .file("one.pem", issuer.public_pem())
}

#[test]
fn two_credentials_on_one_request_are_refused() {
    let (emulator, issuer) = (Emulator::quick(), Issuer::new("one", "EdDSA"));
    let gateway = Gateway::start(with_everything(&emulator, &issuer));
    let (mine, other) = (issuer.token("acme"), issuer.token("limited"));
    let together = |authorization: String, key: String| {
        move |path: &str, body: &Value| {
            let request = Request::post(path, body).header("authorization", &authorization);
            request.header("x-api-key", &key)
        }
    };
    let bearer = |text: &str| format!("Bearer {text}");
    let signed_and = |name: &'static str, value: String| {
        move |path: &str, body: &Value| {
            let header = Signing::post(path, body).header();
            let request = Request::post(path, body).header("authorization", &header);
            request.header(name, &value)
        }
    };
    let rows = [
        row(
            "a key and another tenant's",
            INVALID,
            "ambiguous",
            together(bearer(&key("acme")), key("limited")),
        ),
        row(
            "a key and a token of the same",
            INVALID,
            "ambiguous",
            together(bearer(&key("acme")), mine.clone()),
        ),
        row(
            "a token and another tenant's key",
            INVALID,
            "ambiguous",
            together(bearer(&mine), key("limited")),
        ),
        row(
            "a key and another tenant's token",
            INVALID,
            "ambiguous",
            together(bearer(&key("acme")), other.clone()),
        ),
        row(
            "two tokens",
            INVALID,
            "ambiguous",
            together(bearer(&mine), other),
        ),
        row(
            "a signature and a key",
            INVALID,
            "ambiguous",
            signed_and("x-api-key", key("acme")),
        ),
        row(
            "a signature and a key in one field's lines",
            INVALID,
            "ambiguous",
            signed_and("authorization", bearer(&key("acme"))),
        ),
        row(
            "a signature and a token",
            INVALID,
            "ambiguous",
            signed_and("x-api-key", mine.clone()),
        ),
        row(
            "a signature in x-api-key",
            INVALID,
            "not_a_key",
            |path, body| {
                let header = Signing::post(path, body).header();
                Request::post(path, body).header("x-api-key", &header)
            },
        ),
        row(
            "two in one field",
            INVALID,
            "not_a_key",
            together(
                bearer(&format!("{}, {}", key("acme"), key("acme"))),
                format!("{}, {}", key("acme"), key("acme")),
            ),
        ),
    ];
    refused(&emulator, &gateway, &rows);
    // The same one twice, in two fields, is one.
    for good in [key("acme"), mine] {
        let request = together(bearer(&good), good)("/v1/chat/completions", &chat("hello"));
        assert_eq!(request.send(gateway.address()).status, 200);
    }
}

#[test]
fn a_tenant_takes_the_kinds_it_names() {
    let (emulator, issuer) = (Emulator::quick(), Issuer::new("one", "EdDSA"));
    let gateway = Gateway::start(with_everything(&emulator, &issuer));
    let ask = |kind: &str| {
        let (path, body) = ("/v1/chat/completions", chat("hello"));
        let request = Request::post(path, &body);
        let request = match kind {
            "api_key" => request.key("limited"),
            "token" => request.bearer(&issuer.token("limited")),
            _ => {
                let mut signing = Signing::post(path, &body);
                signing.id = "limited-signer".to_owned();
                signing.secret = secret_of("limited-signer");
                request.header("authorization", &signing.header())
            }
        };
        request.send(gateway.address()).status
    };
    let kinds = ["api_key", "token", "signed_request"];
    for taken in kinds {
        let result = gateway.reload(|config| config.set("/tenants/1/accept", json!([taken])));
        assert_eq!(result, "ok");
        for kind in kinds {
            let status = if kind == taken { 200 } else { 403 };
            assert_eq!(ask(kind), status, "{kind} where {taken} is taken");
        }
    }
}

#[test]
fn nobody_is_served_except_where_a_listener_says_so_in_so_many_words() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).set(
        "/server/listeners",
        json!([{}, {"anonymous_tenant": "limited"}]),
    );
    let gateway = Gateway::start(config);
    let request = Request::post("/v1/chat/completions", &chat("hello"));
    let refused = request.send(gateway.listener(0));
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (401, "missing_credential")
    );
    assert!(emulator.calls().is_empty());

    for request in [
        request.clone(),
        request.clone().header("authorization", "Bearer"),
    ] {
        let served = request.send(gateway.listener(1));
        assert_eq!(served.status, 200, "{}", served.text());
        let line = gateway.access_line(served.header("x-request-id").unwrap());
        assert_eq!(line["tenant"], "limited");
        assert_eq!(line["authentication"], "anonymous");
    }
    // As that tenant, with its limits and no more.
    let pro = with(chat("hello"), "model", json!("deepseek-v4-pro"));
    let refused = Request::post("/v1/chat/completions", &pro).send(gateway.listener(1));
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (403, "model_not_allowed")
    );
    assert_eq!(
        Request::get("/v1/files").send(gateway.listener(1)).status,
        403
    );
    // A credential counts for what it is, and a wrong one is not nobody.
    let known = request.clone().key("acme").send(gateway.listener(1));
    let line = gateway.access_line(known.header("x-request-id").unwrap());
    assert_eq!(line["tenant"], "acme");
    for wrong in [key("nobody"), "nonsense".to_owned(), key("closed")] {
        let refused = request.clone().bearer(&wrong).send(gateway.listener(1));
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (401, "invalid_credential")
        );
    }
    assert_eq!(emulator.calls().len(), 3);
}

#[test]
fn an_anonymous_tenant_has_its_switch_and_its_addresses() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).set(
        "/server/listeners",
        json!([{"anonymous_tenant": "limited"}]),
    );
    let gateway = Gateway::start(config);
    let ask = || {
        let answer = Request::get("/v1/models").send(gateway.address());
        let code = if answer.status == 200 {
            String::new()
        } else {
            answer.code()
        };
        (answer.status, code)
    };
    assert_eq!(ask(), (200, String::new()));
    let change = |pointer: &str, value: Value| {
        assert_eq!(gateway.reload(|config| config.set(pointer, value)), "ok");
        ask()
    };
    let elsewhere = change("/tenants/1/allow_from", json!(["192.0.2.0/24"]));
    assert_eq!(elsewhere, (403, "address_not_allowed".to_owned()));
    assert_eq!(change("/tenants/1/allow_from", json!(["127.0.0.1"])).0, 200);
    let off = change("/tenants/1/enabled", json!(false));
    assert_eq!(off, (401, "invalid_credential".to_owned()));
}
