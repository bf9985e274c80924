//! Signed requests: altered, replayed, stale, and more of them than can be remembered.

use serde_json::{Value, json};

use super::*;
use crate::support::signing::{SIGNING_SECRET, Signing, signer};
use crate::support::tokens::now;

pub const MISMATCH: (u16, &str) = (401, "digest_mismatch");

/// `acme` signs as `signer`; `off`, `early` and `late` are its too.
pub fn with_signers(emulator: &Emulator) -> Config {
    let mut config = basis(emulator);
    let mut tenants = config.value["tenants"].as_array().unwrap().clone();
    let timed = |id: &str, name: &str, value: Value| {
        let mut credential = signer(id);
        credential["signed_request"][name] = value;
        credential
    };
    for tenant in &mut tenants {
        let own = match tenant["id"].as_str().unwrap() {
            "acme" => vec![
                signer("signer"),
                timed("off", "enabled", json!(false)),
                timed("early", "not_before", json!("2100-01-01T00:00:00Z")),
                timed("late", "not_after", json!("2020-01-01T00:00:00Z")),
            ],
            id => vec![signer(&format!("{id}-signer"))],
        };
        tenant["credentials"].as_array_mut().unwrap().extend(own);
    }
    for id in [
        "signer",
        "off",
        "early",
        "late",
        "limited-signer",
        "closed-signer",
        "certified-signer",
        "far-signer",
    ] {
        config = config.file(&format!("{id}.secret"), secret_of(id));
    }
    config.set("/tenants", json!(tenants))
}

/// No two key ids may have the same.
pub fn secret_of(id: &str) -> String {
    if id == "signer" {
        SIGNING_SECRET.to_owned()
    } else {
        format!("{SIGNING_SECRET}-{id}")
    }
}

/// Signs what is sent after `change` has had its way with it.
fn signed(change: impl Fn(&mut Signing) + 'static) -> impl Fn(&str, &Value) -> Request + 'static {
    move |path, body| {
        let mut signing = Signing::post(path, body);
        change(&mut signing);
        Request::post(path, body).header("authorization", &signing.header())
    }
}

fn by(id: &'static str) -> impl Fn(&str, &Value) -> Request + 'static {
    signed(move |signing| {
        signing.id = id.to_owned();
        signing.secret = secret_of(id);
    })
}

/// Signs rightly, and spoils the header.
fn spoilt(
    change: impl Fn(String) -> String + 'static,
) -> impl Fn(&str, &Value) -> Request + 'static {
    move |path, body| {
        let header = change(Signing::post(path, body).header());
        Request::post(path, body).header("authorization", &header)
    }
}

#[test]
fn a_wrong_signature_is_refused_by_its_reason() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(with_signers(&emulator));
    let used = Signing::new("GET", "/v1/models", "");
    let (nonce, used) = (used.nonce.clone(), used.header());
    let first = Request::get("/v1/models").header("authorization", &used);
    assert_eq!(first.send(gateway.address()).status, 200);

    let rows = [
        row(
            "a wrong secret",
            INVALID,
            "wrong_signature",
            signed(|s| s.secret = "x".repeat(40)),
        ),
        row(
            "an unknown id",
            INVALID,
            "unknown_id",
            signed(|s| s.id = "nobody".into()),
        ),
        row(
            "another's id",
            INVALID,
            "wrong_signature",
            signed(|s| s.id = "limited-signer".into()),
        ),
        row(
            "for another path",
            INVALID,
            "wrong_signature",
            signed(|s| s.target = "/v1/completions".into()),
        ),
        row(
            "for a decoded path",
            INVALID,
            "wrong_signature",
            signed(|s| s.target.push('/')),
        ),
        row(
            "for a query it does not have",
            INVALID,
            "wrong_signature",
            signed(|s| s.target += "?a=1"),
        ),
        row(
            "for another query",
            INVALID,
            "wrong_signature",
            |path, body| {
                let header = Signing::post(&format!("{path}?a=1&b=2"), body).header();
                let request = Request::post(&format!("{path}?b=2&a=1"), body);
                request.header("authorization", &header)
            },
        ),
        row(
            "for another method",
            INVALID,
            "wrong_signature",
            signed(|s| s.method = "GET".into()),
        ),
        row(
            "a digest that was not signed",
            INVALID,
            "wrong_signature",
            |path, body| {
                let header = Signing::post(path, body).header();
                let other = hex(&tidegate::identity::signed_request::body::digest(b"other"));
                let (before, rest) = header.split_once("digest=").unwrap();
                let header = format!("{before}digest={other}{}", &rest[64..]);
                Request::post(path, body).header("authorization", &header)
            },
        ),
        row(
            "stale",
            EXPIRED,
            "stale",
            signed(|s| s.timestamp = now() - 330),
        ),
        row(
            "from the future",
            EXPIRED,
            "future",
            signed(|s| s.timestamp = now() + 120),
        ),
        row(
            "a nonce that was used",
            (401, "replayed_request"),
            "replayed",
            signed(move |s| s.nonce.clone_from(&nonce)),
        ),
        row("not yet valid", EXPIRED, "not_yet_valid", by("early")),
        row("expired", EXPIRED, "expired", by("late")),
        row("a disabled key", INVALID, "credential_disabled", by("off")),
        row(
            "a disabled tenant",
            INVALID,
            "tenant_disabled",
            by("closed-signer"),
        ),
        row(
            "a kind the tenant does not take",
            NOT_ALLOWED,
            "kind_not_allowed",
            by("certified-signer"),
        ),
        row(
            "from an address that may not",
            WRONG_ADDRESS,
            "address_not_allowed",
            by("far-signer"),
        ),
        row(
            "a kind the listener does not take",
            INVALID,
            "kind_not_taken",
            signed(|_| {}),
        )
        .on(KEYS_ONLY),
        row(
            "the scheme alone",
            INVALID,
            "malformed",
            spoilt(|_| "TG-HMAC-SHA256".into()),
        ),
        row(
            "without its signature",
            INVALID,
            "malformed",
            spoilt(|h| h.split_once(", signature").unwrap().0.into()),
        ),
        row(
            "a part twice",
            INVALID,
            "malformed",
            spoilt(|h| format!("{h}, id=signer")),
        ),
        row(
            "a part of nobody's",
            INVALID,
            "malformed",
            spoilt(|h| format!("{h}, more=1")),
        ),
        row(
            "in capitals",
            INVALID,
            "malformed",
            spoilt(|h| {
                let (rest, signature) = h.split_once("signature=").unwrap();
                format!(
                    "{rest}signature={}",
                    signature.replace(char::is_numeric, "a").to_uppercase()
                )
            }),
        ),
        row(
            "too long",
            INVALID,
            "malformed",
            spoilt(|h| h.replace(", ", &format!(",{}", " ".repeat(120)))),
        ),
        row(
            "a short nonce",
            INVALID,
            "malformed",
            spoilt(|h| h.replace("nonce-of-the-tests-", "n")),
        ),
        Row {
            reason: None,
            ..row(
                "another body",
                MISMATCH,
                "",
                signed(|s| s.body = b"{}".to_vec()),
            )
        },
    ];
    refused(&emulator, &gateway, &rows);

    for (path, body) in [
        ("/v1/chat/completions", chat("hello")),
        ("/v1/chat/completions?a=1", chat("hello")),
        ("/anthropic/v1/messages", message("hello")),
    ] {
        for change in [0, -290, 25] {
            let request = signed(move |s| s.timestamp += change)(path, &body);
            let answer = request.send(gateway.address());
            assert_eq!(answer.status, 200, "{change} {}", answer.text());
            let line = gateway.access_line(answer.header("x-request-id").unwrap());
            assert_eq!(line["authentication"], "signed_request");
            assert_eq!(line["credential"], "signer");
        }
    }
}

#[test]
fn a_signed_request_counts_once_also_after_a_reload() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(with_signers(&emulator));
    let request = signed(|_| {})("/v1/chat/completions", &chat("hello"));
    assert_eq!(request.send(gateway.address()).status, 200);
    let again = |what: &str| {
        let answer = request.send(gateway.address());
        let told = (answer.status, answer.code());
        assert_eq!(told, (401, "replayed_request".to_owned()), "{what}");
    };
    again("at once");
    assert_eq!(
        gateway.reload(|config| config.set("/retry", json!({"attempts": 3}))),
        "ok"
    );
    again("after a reload");
    // Sent by many at once, one of them is the first.
    let race = signed(|_| {})("/v1/chat/completions", &chat("race"));
    let served = std::thread::scope(|scope| {
        let sent: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| race.send(gateway.address()).status))
            .collect();
        let statuses = sent.into_iter().map(|sent| sent.join().unwrap());
        statuses.filter(|status| *status == 200).count()
    });
    assert_eq!(served, 1);
    assert_eq!(emulator.calls().len(), 2);
    assert_eq!(gateway.metric("tidegate_signed_request_nonces", &[]), 2.0);
}

#[test]
fn a_key_that_fills_its_memory_is_slowed_down_and_others_are_not() {
    let emulator = Emulator::quick();
    let config = with_signers(&emulator)
        .set("/identity/signed_requests/max_nonces", json!(1000))
        .set("/identity/signed_requests/max_nonces_per_key", json!(100));
    let gateway = Gateway::start(config);
    let ask = |id: &'static str| {
        let mut signing = Signing::new("GET", "/v1/models", "");
        signing.id = id.to_owned();
        signing.secret = secret_of(id);
        let request = Request::get("/v1/models").header("authorization", &signing.header());
        request.send(gateway.address())
    };
    let full = (0..1000)
        .map(|_| ask("signer"))
        .find(|answer| answer.status != 200);
    let full = full.expect("the memory is bounded");
    assert_eq!(
        (full.status, full.code().as_str()),
        (429, "too_many_signed_requests")
    );
    assert!(full.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
    assert_eq!(gateway.metric(FAILURES, &["reason=\"nonces_full\""]), 1.0);
    assert_eq!(ask("limited-signer").status, 200);
}

#[test]
fn calls_without_a_body_are_signed_as_such() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(with_signers(&emulator));
    for path in [
        "/v1/models",
        "/v1/models/deepseek-flash",
        "/user/balance",
        "/v1/files?limit=2",
    ] {
        let ask = |body: &str| {
            let header = Signing::new("GET", path, body).header();
            Request::get(path)
                .header("authorization", &header)
                .send(gateway.address())
        };
        assert_eq!(ask("").status, 200, "{path}");
        let answer = ask("a body that is not sent");
        assert_eq!((answer.status, answer.code().as_str()), MISMATCH, "{path}");
    }
    assert_eq!(emulator.calls().len(), 2);
}
