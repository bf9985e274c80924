//! Signed tokens: each algorithm, each place that keys may come from, each way to be wrong.

use serde_json::{Value, json};

use super::*;
use crate::support::tokens::{Issuer, encode, key_set, now};

const SECRET: &str = "the-token-secret-of-the-tests-0123456789";

/// The issuers of [`config`], one for each algorithm and source of keys.
pub struct Issuers {
    pub rs: Issuer,
    es: Issuer,
    ed: Issuer,
    /// Its keys are a key set, under the name `k1`.
    set: Issuer,
    hs: Issuer,
    /// Has rules of its own: scope, tenant map, models.
    pub strict: Issuer,
}

impl Issuers {
    pub fn new() -> Self {
        Self {
            rs: Issuer::new("rs", "RS256"),
            es: Issuer::new("es", "ES256"),
            ed: Issuer::new("ed", "EdDSA"),
            set: Issuer::new("set", "RS256"),
            hs: Issuer::with_secret("hs", SECRET.as_bytes()),
            strict: Issuer::new("strict", "ES256"),
        }
    }

    fn all(&self) -> [&Issuer; 5] {
        [&self.rs, &self.es, &self.ed, &self.set, &self.hs]
    }

    /// A good token of any of [`all`](Self::all).
    fn good(issuer: &Issuer, claims: &Value) -> String {
        issuer.sign(&Self::header(issuer), claims)
    }

    fn header(issuer: &Issuer) -> Value {
        match issuer.id {
            "set" => with(issuer.header(), "kid", json!("k1")),
            _ => issuer.header(),
        }
    }
}

pub fn config(emulator: &Emulator, issuers: &Issuers) -> Config {
    let in_file = |issuer: &Issuer| issuer.settings(json!({"file": format!("{}.keys", issuer.id)}));
    let mut strict = in_file(&issuers.strict);
    strict["required_claims"] = json!({"email": null, "scope": "llm"});
    strict["tenant"] = json!({"claim": "org.team", "map": {"search": "acme"}});
    strict["models_claim"] = json!("models");
    strict["leeway"] = json!("0s");
    let hs = issuers.hs.settings(json!({"secret": "${file:hs.secret}"}));
    let mut config = basis(emulator)
        .set("/identity/tokens", json!([strict, hs]))
        .file("hs.secret", SECRET)
        .file("set.keys", key_set(&[issuers.set.jwk("k1")]))
        .set("/identity/tokens/-", in_file(&issuers.set));
    for issuer in [&issuers.rs, &issuers.es, &issuers.ed, &issuers.strict] {
        config = config.file(&format!("{}.keys", issuer.id), issuer.public_pem());
        if issuer.id != "strict" {
            config = config.set("/identity/tokens/-", in_file(issuer));
        }
    }
    config
}

pub fn shown(token: String) -> impl Fn(&str, &Value) -> Request + 'static {
    move |path, body| Request::post(path, body).bearer(&token)
}

/// Claims with one of them exchanged; null takes it away.
fn claims(issuer: &Issuer, name: &str, value: Value) -> Value {
    let mut claims = with(issuer.claims("acme"), name, value.clone());
    if value.is_null() {
        claims.as_object_mut().unwrap().remove(name);
    }
    claims
}

/// What can be wrong with any issuer's token.
fn rows_of(issuer: &Issuer) -> Vec<Row> {
    let by_claim = |name, value| shown(Issuers::good(issuer, &claims(issuer, name, value)));
    let by_header = |name: &str, value: Value| {
        let header = with(Issuers::header(issuer), name, value);
        shown(issuer.sign(&header, &issuer.claims("acme")))
    };
    let good = Issuers::good(issuer, &issuer.claims("acme"));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = signed.split_once('.').unwrap();
    let none = encode(r#"{"alg":"none","typ":"JWT"}"#);
    let for_another = encode(issuer.claims("limited").to_string());
    let other = if issuer.algorithm == "ES256" {
        "RS256"
    } else {
        "ES256"
    };
    let padded = claims(issuer, "padding", json!("x".repeat(9000)));
    let mut rows = vec![
        row(
            "expired",
            EXPIRED,
            "expired",
            by_claim("exp", json!(now() - 60)),
        ),
        row(
            "not yet valid",
            EXPIRED,
            "not_yet_valid",
            by_claim("nbf", json!(now() + 300)),
        ),
        row(
            "issued in the future",
            EXPIRED,
            "not_yet_valid",
            by_claim("iat", json!(now() + 300)),
        ),
        row(
            "for somebody else",
            INVALID,
            "wrong_audience",
            by_claim("aud", json!("another")),
        ),
        row(
            "for nobody",
            INVALID,
            "missing_claim",
            by_claim("aud", Value::Null),
        ),
        row(
            "without an end",
            INVALID,
            "missing_claim",
            by_claim("exp", Value::Null),
        ),
        row(
            "an end that is a text",
            INVALID,
            "malformed_claim",
            by_claim("exp", json!("tomorrow")),
        ),
        row(
            "of a year",
            INVALID,
            "lifetime_too_long",
            by_claim("exp", json!(now() + 365 * 86_400)),
        ),
        row(
            "by an unknown issuer",
            INVALID,
            "unknown_issuer",
            by_claim("iss", json!("https://evil.example")),
        ),
        row(
            "without an issuer",
            INVALID,
            "malformed",
            by_claim("iss", Value::Null),
        ),
        row(
            "for no tenant",
            NOT_ALLOWED,
            "no_tenant",
            by_claim("tenant", json!("nobody")),
        ),
        row(
            "without the tenant's claim",
            NOT_ALLOWED,
            "no_tenant",
            by_claim("tenant", Value::Null),
        ),
        row(
            "a tenant that is no text",
            NOT_ALLOWED,
            "no_tenant",
            by_claim("tenant", json!(["acme"])),
        ),
        row(
            "of a disabled tenant",
            INVALID,
            "tenant_disabled",
            by_claim("tenant", json!("closed")),
        ),
        row(
            "a kind the tenant does not take",
            NOT_ALLOWED,
            "kind_not_allowed",
            by_claim("tenant", json!("certified")),
        ),
        row(
            "from an address that may not",
            WRONG_ADDRESS,
            "address_not_allowed",
            by_claim("tenant", json!("far")),
        ),
        row(
            "a kind the listener does not take",
            INVALID,
            "kind_not_taken",
            shown(good.clone()),
        )
        .on(KEYS_ONLY),
        row(
            "alg none",
            INVALID,
            "wrong_algorithm",
            shown(format!("{none}.{payload}.{signature}")),
        ),
        row(
            "alg none, unsigned",
            INVALID,
            "not_a_key",
            shown(format!("{none}.{payload}.")),
        ),
        row(
            "alg of another kind",
            INVALID,
            "wrong_algorithm",
            by_header("alg", json!(other)),
        ),
        row(
            "alg in other letters",
            INVALID,
            "wrong_algorithm",
            by_header("alg", json!(issuer.algorithm.to_lowercase())),
        ),
        row(
            "a key it brings along",
            INVALID,
            "unsupported_header",
            by_header("jwk", json!({"kty": "oct"})),
        ),
        row(
            "where to get a key",
            INVALID,
            "unsupported_header",
            by_header("jku", json!("https://evil.example/keys")),
        ),
        row(
            "an extension",
            INVALID,
            "unsupported_header",
            by_header("crit", json!(["exp"])),
        ),
        row(
            "of another type",
            INVALID,
            "wrong_type",
            by_header("typ", json!("logout+jwt")),
        ),
        row(
            "claims of another",
            INVALID,
            "bad_signature",
            shown(format!("{header}.{for_another}.{signature}")),
        ),
        row(
            "half a signature",
            INVALID,
            "bad_signature",
            shown(format!("{signed}.{}", encode(&signature.as_bytes()[..32]))),
        ),
        row(
            "no JSON",
            INVALID,
            "malformed",
            shown(issuer.sign_text("{\"alg\"", "{}")),
        ),
        row(
            "a claim twice",
            INVALID,
            "malformed",
            shown(issuer.sign_text(
                &Issuers::header(issuer).to_string(),
                &format!("{{\"iss\":\"{0}\",\"iss\":\"{0}\"}}", issuer.name()),
            )),
        ),
        row(
            "too large",
            INVALID,
            "too_large",
            shown(Issuers::good(issuer, &padded)),
        ),
        row("twice", INVALID, "ambiguous", {
            let good = good.clone();
            move |path: &str, body: &Value| Request::post(path, body).bearer(&good).bearer(&good)
        }),
    ];
    rows.push(if issuer.id == "set" {
        row(
            "an unknown key",
            INVALID,
            "unknown_key",
            by_header("kid", json!("k2")),
        )
    } else {
        // Signed by a stranger who knows all there is to know.
        let stranger = match issuer.algorithm {
            "HS256" => Issuer::with_secret(issuer.id, b"another-secret-of-the-tests-012345678"),
            _ => Issuer::new(issuer.id, issuer.algorithm),
        };
        row(
            "by a stranger",
            INVALID,
            "bad_signature",
            shown(stranger.token("acme")),
        )
    });
    rows
}

#[test]
fn a_wrong_token_is_refused_by_its_reason_whatever_it_is_signed_with() {
    let (emulator, issuers) = (Emulator::quick(), Issuers::new());
    let gateway = Gateway::start(config(&emulator, &issuers));
    for issuer in issuers.all() {
        refused(&emulator, &gateway, &rows_of(issuer));
        let good = Issuers::good(issuer, &issuer.claims("acme"));
        for listener in [EVERYTHING, TOKENS_ONLY] {
            let request = Request::post("/v1/chat/completions", &chat("hello"));
            for request in [
                request.clone().bearer(&good),
                request.header("x-api-key", &good),
            ] {
                let answer = request.send(gateway.listener(listener));
                assert_eq!(answer.status, 200, "{}: {}", issuer.id, answer.text());
                let line = gateway.access_line(answer.header("x-request-id").unwrap());
                assert_eq!(line["tenant"], "acme");
                assert_eq!(line["authentication"], "token");
                assert_eq!(line["credential"], format!("{}/robot-7", issuer.id));
            }
        }
    }
}

#[test]
fn a_public_key_is_not_taken_for_a_shared_secret() {
    let (emulator, issuers) = (Emulator::quick(), Issuers::new());
    let gateway = Gateway::start(config(&emulator, &issuers));
    let mut rows = Vec::new();
    for (issuer, keys) in [
        (&issuers.rs, issuers.rs.public_pem()),
        (&issuers.es, issuers.es.public_pem()),
        (&issuers.ed, issuers.ed.public_pem()),
        (&issuers.set, key_set(&[issuers.set.jwk("k1")])),
    ] {
        // Everybody has the public key, and can sign with it as if it were a secret.
        let confused = Issuer::with_secret(issuer.id, &keys);
        let header = with(confused.header(), "kid", json!("k1"));
        for token in [
            confused.token("acme"),
            confused.sign(&header, &confused.claims("acme")),
        ] {
            rows.push(row(
                "HS256 with the public key",
                INVALID,
                "wrong_algorithm",
                shown(token),
            ));
        }
        // The other way round: another issuer's token under the name of the one with the secret.
        let token = issuer.sign(&issuer.header(), &issuers.hs.claims("acme"));
        rows.push(row(
            "a pair's key for a secret",
            INVALID,
            "wrong_algorithm",
            shown(token),
        ));
    }
    // Keys of one issuer say nothing for another one.
    let token = issuers
        .rs
        .sign(&issuers.rs.header(), &issuers.set.claims("acme"));
    rows.push(row(
        "another issuer's key",
        INVALID,
        "bad_signature",
        shown(token),
    ));
    refused(&emulator, &gateway, &rows);
}
