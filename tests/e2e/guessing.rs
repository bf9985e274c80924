//! Who fails too often is heard no more for a while; who is known from there, and everybody
//! elsewhere, is.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::json;
use tidegate::identity::api_key;

use crate::support::signing::{SIGNING_SECRET, Signing, signer};
use crate::support::tokens::Issuer;
use crate::support::*;

const FAILURES: &str = "tidegate_authentication_failures_total";
const LIMIT: usize = 5;
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

fn stage() -> (Emulator, Gateway) {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator)
        .set("/identity/failed_attempts_per_minute", json!(LIMIT))
        .set("/tenants/0/credentials/-", signer("signer"))
        .file("signer.secret", SIGNING_SECRET);
    (emulator, Gateway::start(config))
}

fn post(from: IpAddr, request: &Request, to: SocketAddr) -> Answer {
    let mut wire = Wire::connect_from(from, to);
    wire.send(&request.to_bytes());
    wire.answer()
}

fn ask(gateway: &Gateway, from: IpAddr, key: &str) -> Answer {
    let request = Request::post("/v1/chat/completions", &chat("hello")).bearer(key);
    post(from, &request, gateway.address())
}

fn wrong(number: usize) -> String {
    let number = u8::try_from(number).unwrap();
    api_key::make("acme", &[100 + number; 32])
        .key
        .expose()
        .to_owned()
}

/// Uses up what attempts there are.
fn use_up(gateway: &Gateway, from: IpAddr) {
    for number in 0..LIMIT {
        let answer = ask(gateway, from, &wrong(number));
        assert_eq!(answer.status, 401, "attempt {number}: {}", answer.text());
    }
}

fn assert_throttled(answer: &Answer) {
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (429, "too_many_failed_attempts"),
        "{}",
        answer.text()
    );
    let wait: u32 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=120).contains(&wait), "{wait}");
}

fn throttled(gateway: &Gateway) -> f64 {
    gateway.metric(FAILURES, &["reason=\"throttled\""])
}

#[test]
fn an_address_that_failed_too_often_is_refused_and_its_known_callers_are_served() {
    let (emulator, gateway) = stage();
    assert_eq!(ask(&gateway, HERE, &key("acme")).status, 200);
    assert_eq!(ask(&gateway, THERE, &key("limited")).status, 200);
    use_up(&gateway, HERE);
    assert_eq!(gateway.metric(FAILURES, &["reason=\"wrong_secret\""]), 5.0);
    assert_eq!(throttled(&gateway), 0.0);
    emulator.forget_calls();
    // Neither another guess nor a good key that was never seen from here is looked at.
    for (number, unheard) in [wrong(50), key("limited"), "nonsense".to_owned()]
        .iter()
        .enumerate()
    {
        assert_throttled(&ask(&gateway, HERE, unheard));
        assert_eq!(throttled(&gateway), (number + 1) as f64);
    }
    let anthropic = Request::post("/anthropic/v1/messages", &message("hello")).bearer(&wrong(51));
    let answer = post(HERE, &anthropic, gateway.address());
    assert_throttled(&answer);
    assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
    assert!(emulator.calls().is_empty());
    assert_eq!(gateway.metric(FAILURES, &["reason=\"wrong_secret\""]), 5.0);
    // The caller that was served from here before goes on, in the other header too it would be new.
    for _ in 0..3 {
        assert_eq!(ask(&gateway, HERE, &key("acme")).status, 200);
    }
    // Another address has lost nothing.
    assert_eq!(ask(&gateway, THERE, &key("limited")).status, 200);
    assert_eq!(ask(&gateway, THERE, &key("acme")).status, 200);
    assert_eq!(ask(&gateway, THERE, &wrong(52)).status, 401);
    assert_eq!(emulator.calls().len(), 5);
}

#[test]
fn what_is_no_guess_uses_up_nothing() {
    let (_emulator, gateway) = stage();
    let missing = Request::post("/v1/chat/completions", &chat("hello"));
    let used = Signing::new("GET", "/v1/models", "").header();
    let replayed = Request::get("/v1/models").header("authorization", &used);
    assert_eq!(post(HERE, &replayed, gateway.address()).status, 200);
    for _ in 0..2 * LIMIT {
        assert_eq!(
            post(HERE, &missing, gateway.address()).code(),
            "missing_credential"
        );
        assert_eq!(
            post(HERE, &replayed, gateway.address()).code(),
            "replayed_request"
        );
        assert_eq!(
            ask(&gateway, HERE, &key("closed")).code(),
            "invalid_credential"
        );
    }
    assert_eq!(throttled(&gateway), 0.0);
    assert_eq!(ask(&gateway, HERE, &key("limited")).status, 200);
}

#[test]
fn guesses_of_every_kind_count_together() {
    let (_emulator, gateway) = stage();
    let stranger = Issuer::new("stranger", "EdDSA");
    let mut forged = Signing::new("GET", "/v1/models", "");
    forged.secret = "x".repeat(40);
    let get = || Request::get("/v1/models");
    let guesses = [
        get().bearer(&wrong(0)),
        get().bearer("sk-whatever"),
        get().bearer(&stranger.token("acme")),
        get().header("authorization", &forged.header()),
        get().header("authorization", "TG-HMAC-SHA256 nonsense"),
    ];
    assert_eq!(guesses.len(), LIMIT);
    for guess in &guesses {
        assert_eq!(post(HERE, guess, gateway.address()).status, 401);
    }
    assert_throttled(&ask(&gateway, HERE, &key("acme")));
}

#[test]
fn a_signer_is_known_by_its_key_id_whatever_it_signs() {
    let (_emulator, gateway) = stage();
    let signed = |secret: &str| {
        let mut signing = Signing::new("GET", "/v1/models", "");
        signing.secret = secret.to_owned();
        let request = Request::get("/v1/models").header("authorization", &signing.header());
        post(HERE, &request, gateway.address())
    };
    assert_eq!(signed(SIGNING_SECRET).status, 200);
    use_up(&gateway, HERE);
    assert_eq!(signed(SIGNING_SECRET).status, 200);
    assert_throttled(&ask(&gateway, HERE, &key("acme")));
}

#[test]
fn a_named_client_is_counted_and_not_the_proxy_in_front() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator)
        .set("/identity/failed_attempts_per_minute", json!(LIMIT))
        .set("/server/listeners/0/trusted_proxies", json!(["127.0.0.1"]));
    let gateway = Gateway::start(config);
    let from = |client: &str, key: &str| {
        let request = Request::get("/v1/models").bearer(key);
        let request = request.header("x-forwarded-for", client);
        request.send(gateway.address())
    };
    for number in 0..LIMIT {
        assert_eq!(from("192.0.2.1", &wrong(number)).status, 401);
    }
    assert_throttled(&from("192.0.2.1", &key("acme")));
    assert_eq!(from("192.0.2.2", &key("acme")).status, 200);
    // Of IPv6, a network of 64 bits is one client.
    for number in 0..LIMIT {
        assert_eq!(
            from(&format!("2001:db8::{number}"), &wrong(number)).status,
            401
        );
    }
    assert_throttled(&from("2001:db8::ffff", &key("acme")));
    assert_eq!(from("2001:db8:0:1::1", &key("acme")).status, 200);
}

#[test]
fn no_limit_means_none() {
    let emulator = Emulator::quick();
    let config =
        Config::for_emulator(&emulator).set("/identity/failed_attempts_per_minute", json!(0));
    let gateway = Gateway::start(config);
    for number in 0..100 {
        assert_eq!(ask(&gateway, HERE, &wrong(number)).status, 401);
    }
    assert_eq!(ask(&gateway, HERE, &key("acme")).status, 200);
}
