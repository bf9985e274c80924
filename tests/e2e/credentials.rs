//! Every kind of credential and every way it can be wrong: the answer is a stable code in the
//! caller's format, the reason is counted, and nothing goes upstream or stays behind. API keys are
//! here; the other kinds and their mixtures have files of their own.
//!
//! Client certificates are shown in the tests of TLS.

mod mixtures;
mod signatures;
mod signed_uploads;
mod token_rules;
mod tokens;

use std::fmt::Write;

use serde_json::{Value, json};
use tidegate::config::secret::Secret;
use tidegate::identity::api_key::{self, Pepper};

use crate::support::*;

const FAILURES: &str = "tidegate_authentication_failures_total";
const PEPPER: &str = "the-pepper-of-the-tests-0123456789ab";
const OTHER_PEPPER: &str = "another-pepper-of-the-tests-01234567";

/// The listeners of [`listeners`].
const EVERYTHING: usize = 0;
const KEYS_ONLY: usize = 1;
const TOKENS_ONLY: usize = 2;
const NO_KEYS: usize = 3;

fn listeners() -> Value {
    json!([
        {},
        {"accept": ["api_key"]},
        {"accept": ["token"]},
        {"accept": ["token", "signed_request"]},
    ])
}

/// Builds a request for a path and a body.
type Make = Box<dyn Fn(&str, &Value) -> Request>;

/// One way to be wrong, and what becomes of it.
struct Row {
    what: &'static str,

    request: Make,
    listener: usize,
    status: u16,
    code: &'static str,
    /// As counted; none where the credential itself was good.
    reason: Option<&'static str>,
}

/// A row for the listener that takes everything.
fn row(
    what: &'static str,
    (status, code): (u16, &'static str),
    reason: &'static str,
    request: impl Fn(&str, &Value) -> Request + 'static,
) -> Row {
    Row {
        what,
        request: Box::new(request),
        listener: EVERYTHING,
        status,
        code,
        reason: Some(reason),
    }
}

impl Row {
    fn on(mut self, listener: usize) -> Self {
        self.listener = listener;
        self
    }
}

const INVALID: (u16, &str) = (401, "invalid_credential");
const EXPIRED: (u16, &str) = (401, "expired_credential");
const NOT_ALLOWED: (u16, &str) = (403, "not_allowed");
const WRONG_ADDRESS: (u16, &str) = (403, "address_not_allowed");

/// Tries each row in both formats.
fn refused(emulator: &Emulator, gateway: &Gateway, rows: &[Row]) {
    emulator.forget_calls();
    let tokens = gateway.metric("tidegate_tokens_total", &[]);
    for row in rows {
        for (path, body) in [
            ("/v1/chat/completions", chat("hello")),
            ("/anthropic/v1/messages", message("hello")),
        ] {
            try_row(gateway, row, path, &body);
        }
    }
    assert_eq!(emulator.calls(), Vec::<Value>::new());
    gateway.wait_until_idle(SOON);
    assert_eq!(gateway.metric("tidegate_tokens_total", &[]), tokens);
}

fn try_row(gateway: &Gateway, row: &Row, path: &str, body: &Value) {
    let what = format!("{} on {path}", row.what);
    let counted = |reason: Option<&str>| {
        let label = reason.map(|reason| format!("reason=\"{reason}\""));
        let labels: Vec<&str> = label.as_deref().into_iter().collect();
        gateway.metric(FAILURES, &labels)
    };
    let expected = f64::from(u8::from(row.reason.is_some()));
    let (before, all_before) = (counted(row.reason), counted(None));
    let request = (row.request)(path, body);
    let answer = request.send(gateway.listener(row.listener));
    let text = answer.text();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (row.status, row.code),
        "{what}: {text}"
    );
    assert_eq!(counted(row.reason) - before, expected, "{what}");
    assert_eq!(counted(None) - all_before, expected, "{what}");
    let is_anthropic = answer.json()["type"] == "error";
    assert_eq!(is_anthropic, path.starts_with("/anthropic"), "{what}");
    assert_eq!(answer.header("x-should-retry"), Some("false"), "{what}");
    let challenge = answer.header("www-authenticate");
    assert_eq!(challenge.is_some(), row.status == 401, "{what}");

    let line = gateway.access_line(answer.header("x-request-id").unwrap());
    assert_eq!(line["code"], row.code, "{what}");
    if let Some(reason) = row.reason {
        assert!(
            line["detail"].as_str().unwrap().starts_with(reason),
            "{line}"
        );
        assert!(line.get("tenant").is_none(), "{line}");
    }
    let log = gateway.log().join("\n");
    for hidden in request.credentials().flat_map(telling_parts) {
        assert!(!text.contains(&hidden), "{what}: {hidden} in {text}");
        assert!(!format!("{:?}", answer.headers).contains(&hidden), "{what}");
        assert!(!log.contains(&hidden), "{what}: {hidden} is in the log");
    }
}

/// The parts of a credential that nobody may repeat: secrets, signatures, nonces, claims.
fn telling_parts(shown: &str) -> Vec<String> {
    let parts = shown.split([' ', ',', '=', '.', ':']);
    let parts = parts.map(|part| match part.strip_prefix("tg_") {
        Some(key) => key.rsplit_once('_').map_or(key, |(_, secret)| secret),
        None => part,
    });
    parts
        .filter(|part| part.len() >= 16)
        .map(str::to_owned)
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// A credential under which [`key`]`(id)` is known, with `more` in it.
fn stored(id: &str, more: &Value) -> Value {
    let hash = format!("sha256:{}", hex(&api_key::hash(&key(id))));
    merged(json!({"id": id, "hash": hash}), more)
}

/// The same, hashed with a pepper that is called `name` and reads `pepper`.
fn peppered(id: &str, name: &str, pepper: &str) -> Value {
    let pepper = Pepper::new(&Secret::new(pepper.to_owned())).unwrap();
    let hash = format!("hmac-sha256:{name}:{}", hex(&pepper.hash(&key(id))));
    merged(json!({"id": id, "hash": hash}), &json!({}))
}

fn merged(mut key: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        key[name] = value.clone();
    }
    json!({"api_key": key})
}

/// Tenants whose credentials are right and do not help: one takes certificates alone, the other
/// calls from elsewhere.
fn closed_doors() -> [Value; 2] {
    let mut certified = tenant("certified");
    certified["accept"] = json!(["client_certificate"]);
    let mut far = tenant("far");
    far["allow_from"] = json!(["192.0.2.0/24", "2001:db8::/32"]);
    [certified, far]
}

/// What all tests of this table have in common: no throttling, and the log at its fullest that
/// still can be searched quickly.
fn basis(emulator: &Emulator) -> Config {
    let [certified, far] = closed_doors();
    Config::for_emulator(emulator)
        .set("/server/listeners", listeners())
        .set("/identity/failed_attempts_per_minute", json!(0))
        .set("/logging", json!({"level": "debug"}))
        .set("/tenants/-", certified)
        .set("/tenants/-", far)
}

fn with_keys(emulator: &Emulator) -> Config {
    let mut keys = tenant("acme")["credentials"].clone();
    keys.as_array_mut().unwrap().extend([
        stored("off", &json!({"enabled": false})),
        stored("early", &json!({"not_before": "2100-01-01T00:00:00Z"})),
        stored("late", &json!({"not_after": "2020-01-01T00:00:00Z"})),
        stored(
            "in-time",
            &json!({"not_before": "2020-01-01T00:00:00Z", "not_after": "2100-01-01T00:00:00Z"}),
        ),
        peppered("hot", "cellar", PEPPER),
        peppered("stolen", "cellar", OTHER_PEPPER),
    ]);
    basis(emulator)
        .set("/identity/peppers", json!({"cellar": "${file:pepper}"}))
        .file("pepper", PEPPER)
        .set("/tenants/0/credentials", keys)
}

#[test]
fn a_wrong_api_key_is_refused_by_its_reason() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(with_keys(&emulator));
    let with =
        |text: String| move |path: &str, body: &Value| Request::post(path, body).bearer(&text);
    let both = |first: String, second: String| {
        move |path: &str, body: &Value| {
            let request = Request::post(path, body).bearer(&first);
            request.header("x-api-key", &second)
        }
    };
    let twice = |name: &'static str, first: String, second: String| {
        move |path: &str, body: &Value| {
            let request = Request::post(path, body).header(name, &first);
            request.header(name, &second)
        }
    };
    let good = key("acme");
    let typo = format!(
        "{}{}",
        &good[..good.len() - 1],
        if good.ends_with('x') { 'y' } else { 'x' }
    );
    let wrong = |id: &str| api_key::make(id, &[8; 32]).key.expose().to_owned();
    let bearer = format!("Bearer {good}");
    let rows = [
        row("a typo", INVALID, "not_a_key", with(typo)),
        row(
            "half a key",
            INVALID,
            "not_a_key",
            with(good[..30].to_owned()),
        ),
        row(
            "a key and more",
            INVALID,
            "not_a_key",
            with(format!("{good}0")),
        ),
        row(
            "a provider's key",
            INVALID,
            "not_a_key",
            with("sk-upstream-1-of-the-provider".into()),
        ),
        row("an unknown id", INVALID, "unknown_id", with(key("nobody"))),
        row(
            "a wrong secret",
            INVALID,
            "wrong_secret",
            with(wrong("acme")),
        ),
        row(
            "a disabled key",
            INVALID,
            "credential_disabled",
            with(key("off")),
        ),
        row(
            "a disabled tenant",
            INVALID,
            "tenant_disabled",
            with(key("closed")),
        ),
        row(
            "not yet valid",
            EXPIRED,
            "not_yet_valid",
            with(key("early")),
        ),
        row("expired", EXPIRED, "expired", with(key("late"))),
        row(
            "expired and wrong",
            INVALID,
            "wrong_secret",
            with(wrong("late")),
        ),
        row(
            "peppered, a wrong secret",
            INVALID,
            "wrong_secret",
            with(wrong("hot")),
        ),
        row(
            "hashed with another pepper",
            INVALID,
            "wrong_secret",
            with(key("stolen")),
        ),
        row(
            "the header twice",
            INVALID,
            "ambiguous",
            twice("authorization", bearer.clone(), bearer.clone()),
        ),
        row(
            "x-api-key twice",
            INVALID,
            "ambiguous",
            twice("x-api-key", good.clone(), good.clone()),
        ),
        row(
            "a good and a bad one",
            INVALID,
            "ambiguous",
            twice("authorization", bearer, "Bearer x".into()),
        ),
        row(
            "two that differ",
            INVALID,
            "ambiguous",
            both(good.clone(), key("limited")),
        ),
        row(
            "a kind the listener does not take",
            INVALID,
            "kind_not_taken",
            with(good.clone()),
        )
        .on(TOKENS_ONLY),
        row(
            "a kind the listener does not take, and wrong",
            INVALID,
            "kind_not_taken",
            with(wrong("acme")),
        )
        .on(NO_KEYS),
        row(
            "a kind the tenant does not take",
            NOT_ALLOWED,
            "kind_not_allowed",
            with(key("certified")),
        ),
        row(
            "from an address that may not",
            WRONG_ADDRESS,
            "address_not_allowed",
            with(key("far")),
        ),
        row(
            "none",
            (401, "missing_credential"),
            "missing_credential",
            Request::post,
        ),
        row(
            "another scheme",
            INVALID,
            "unknown_scheme",
            move |path, body| {
                Request::post(path, body).header("authorization", &format!("Basic {good}"))
            },
        ),
    ];
    refused(&emulator, &gateway, &rows);
    for id in ["acme", "in-time", "hot"] {
        for listener in [EVERYTHING, KEYS_ONLY] {
            let request = Request::post("/v1/chat/completions", &chat("hello")).key(id);
            let answer = request.send(gateway.listener(listener));
            assert_eq!(answer.status, 200, "{id}: {}", answer.text());
        }
    }
}

#[test]
fn who_proved_nothing_is_told_the_same_whatever_was_wrong() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(with_keys(&emulator));
    let told = |text: &str| {
        let request = Request::post("/v1/chat/completions", &chat("hello")).bearer(text);
        let answer = request.send(gateway.address());
        let mut error = answer.json()["error"].clone();
        error["request_id"] = Value::Null;
        let mut headers = answer.headers;
        headers.retain(|(name, _)| name != "x-request-id" && name != "date");
        (answer.status, error, headers)
    };
    let unknown = told(&key("nobody"));
    for other in [
        api_key::make("acme", &[8; 32]).key.expose(),
        api_key::make("hot", &[8; 32]).key.expose(),
        &key("off")[..],
        &key("closed")[..],
        "nonsense",
    ] {
        assert_eq!(told(other), unknown);
    }
}
