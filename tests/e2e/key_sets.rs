//! Key sets that a token issuer publishes: fetched in the background, kept while the source is
//! away, and never a reason for anything else to wait.

mod source;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::tokens::{Issuer, key_set};
use crate::support::*;
use source::{Answer as Says, Source};

const FETCHES: &str = "tidegate_key_set_fetches_total";
/// What the gateway keeps between a fetch and one that an unknown key asks for.
const GAP: Duration = Duration::from_secs(10);

fn config(emulator: &Emulator, issuers: &[(&Issuer, &Source, &str)]) -> Config {
    let settings = issuers.iter().map(|(issuer, source, refresh)| {
        issuer.settings(json!({"url": source.url(), "refresh": refresh}))
    });
    let settings: Vec<Value> = settings.collect();
    Config::for_emulator(emulator)
        .set("/identity/tokens", json!(settings))
        .set("/identity/failed_attempts_per_minute", json!(0))
}

fn published(issuer: &Issuer, kid: &str) -> Says {
    Says::Document(key_set(&[issuer.jwk(kid)]))
}

/// Status, and code of a refusal.
fn ask(gateway: &Gateway, token: &str) -> (u16, String) {
    let request = Request::post("/v1/chat/completions", &chat("hello")).bearer(token);
    let answer = request.send(gateway.address());
    let code = if answer.status == 200 {
        String::new()
    } else {
        answer.code()
    };
    (answer.status, code)
}

fn served() -> (u16, String) {
    (200, String::new())
}

fn invalid() -> (u16, String) {
    (401, "invalid_credential".to_owned())
}

fn becomes_served(gateway: &Gateway, token: &str, within: Duration) {
    eventually("the token is taken", within, || {
        (ask(gateway, token) == served()).then_some(())
    });
}

fn fetches(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric(FETCHES, &[&format!("result=\"{result}\"")])
}

fn failures(gateway: &Gateway, reason: &str) -> f64 {
    let label = format!("reason=\"{reason}\"");
    gateway.metric("tidegate_authentication_failures_total", &[&label])
}

#[test]
fn a_set_is_fetched_at_the_start_and_asked_for_again_only_if_it_is_newer() {
    let emulator = Emulator::quick();
    for algorithm in ["RS256", "ES256", "EdDSA"] {
        let issuer = Issuer::new("one", algorithm);
        let source = Source::start(published(&issuer, "k1"));
        let gateway = Gateway::start(config(&emulator, &[(&issuer, &source, "1s")]));
        let token = issuer.token_by("k1", "acme");
        becomes_served(&gateway, &token, SOON);
        gateway.logged(&["Took over a key set.", "issuer=one keys=1 skipped=0"]);
        assert!(gateway.metric("tidegate_key_set_timestamp_seconds", &["issuer=\"one\""]) > 1e9);
        eventually("it is asked again", SOON, || {
            (source.asked_conditionally() >= 2).then_some(())
        });
        assert!(fetches(&gateway, "ok") >= 2.0);
        assert_eq!(fetches(&gateway, "failed"), 0.0);
        assert_eq!(ask(&gateway, &token), served());
        let unknown = issuer.token_by("k2", "acme");
        assert_eq!(ask(&gateway, &unknown), invalid());
        assert_eq!(failures(&gateway, "unknown_key"), 1.0);
    }
}

#[test]
fn a_new_key_is_fetched_early_and_a_flood_of_unknown_ones_does_not_hurry_it() {
    let emulator = Emulator::quick();
    let (old, new) = (Issuer::new("one", "ES256"), Issuer::new("one", "ES256"));
    let source = Source::start(published(&old, "k1"));
    let gateway = Gateway::start(config(&emulator, &[(&old, &source, "1h")]));
    let (before, after) = (old.token_by("k1", "acme"), new.token_by("k2", "acme"));
    becomes_served(&gateway, &before, SOON);
    assert_eq!(source.asked().len(), 1);
    // The issuer rotates; until the gap is over its new tokens are refused, however often they come.
    source.answer(published(&new, "k2"));
    let mut tried = 0;
    eventually("the new key is known", GAP + SOON, || {
        for kid in ["k2", "k3", "made-up", ""] {
            let stranger = new.token_by(kid, "acme");
            tried += u32::from(ask(&gateway, &stranger) == invalid());
        }
        (ask(&gateway, &after) == served()).then_some(())
    });
    assert!(tried > 100, "{tried}");
    let asked = source.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[1] - asked[0] >= GAP - Duration::from_millis(300));
    // What the old key signed is not remembered beyond its key.
    assert_eq!(ask(&gateway, &before), invalid());
    // Another flood right after the fetch waits for another gap.
    for _ in 0..50 {
        ask(&gateway, &new.token_by("made-up", "acme"));
    }
    assert_eq!(source.asked().len(), 2);
}

#[test]
fn the_last_good_set_is_kept_while_the_source_is_down_or_out_of_its_mind() {
    let emulator = Emulator::quick();
    let (issuer, next) = (Issuer::new("one", "RS256"), Issuer::new("one", "RS256"));
    let elsewhere = Source::start(published(&next, "k2"));
    let source = Source::start(published(&issuer, "k1"));
    let gateway = Gateway::start(config(&emulator, &[(&issuer, &source, "1s")]));
    let token = issuer.token_by("k1", "acme");
    becomes_served(&gateway, &token, SOON);
    let not_ours = key_set(&[json!({"kty": "oct", "k": "c2VjcmV0", "kid": "k1"})]);
    for (what, says) in [
        ("an error", Says::Status("500 Internal Server Error")),
        ("nothing there", Says::Status("404 Not Found")),
        ("garbage", Says::Garbage),
        ("no JSON", Says::Document(b"<html>".to_vec())),
        ("no keys", Says::Document(key_set(&[]))),
        ("a secret for a key", Says::Document(not_ours)),
        ("half a set", Says::Half(key_set(&[next.jwk("k2")]))),
        ("a redirect", Says::RedirectTo(elsewhere.url())),
        ("said to be huge", Says::Huge { announced: true }),
        ("endless", Says::Huge { announced: false }),
        ("closed at once", Says::Close),
    ] {
        let before = fetches(&gateway, "failed");
        source.answer(says);
        eventually(what, SOON, || {
            (fetches(&gateway, "failed") > before).then_some(())
        });
        assert_eq!(ask(&gateway, &token), served(), "{what}");
        source.answer(published(&issuer, "k1"));
        let before = fetches(&gateway, "ok");
        eventually(what, SOON, || {
            (fetches(&gateway, "ok") > before).then_some(())
        });
    }
    gateway.logged(&[
        "warn",
        "Cannot get a key set; the last good one stays.",
        "issuer=one",
    ]);
    gateway.logged(&["The key set is back.", "issuer=one"]);
    // Gone altogether, and back with another key at the same place.
    let address = source.address();
    drop(source);
    let before = fetches(&gateway, "failed");
    eventually("nobody there", SOON, || {
        (fetches(&gateway, "failed") > before).then_some(())
    });
    assert_eq!(ask(&gateway, &token), served());
    let _source = Source::start_at(address, published(&next, "k2"));
    becomes_served(&gateway, &next.token_by("k2", "acme"), SOON);
    assert_eq!(ask(&gateway, &token), invalid());
    assert!(elsewhere.asked().is_empty(), "a redirect was followed");
}

#[test]
fn without_a_set_tokens_are_refused_and_all_else_goes_on() {
    let emulator = Emulator::quick();
    let issuer = Issuer::new("one", "EdDSA");
    let token = issuer.token_by("k1", "acme");
    let elsewhere = Source::start(published(&issuer, "k1"));
    for (what, says, cause) in [
        ("silent", Says::Silence, ""),
        ("slow", Says::Trickle, ""),
        (
            "huge",
            Says::Huge { announced: false },
            "larger than 262144 bytes",
        ),
        ("garbage", Says::Garbage, "cause="),
        (
            "no set",
            Says::Document(b"{}".to_vec()),
            "the key set is malformed",
        ),
        (
            "a redirect",
            Says::RedirectTo(elsewhere.url()),
            "not followed",
        ),
        (
            "an error",
            Says::Status("503 Service Unavailable"),
            "answered with 503",
        ),
    ] {
        emulator.forget_calls();
        let source = Source::start(says);
        let gateway = Gateway::start(config(&emulator, &[(&issuer, &source, "1s")]));
        eventually("it is asked", SOON, || {
            (!source.asked().is_empty()).then_some(())
        });
        let began = Instant::now();
        assert_eq!(ask(&gateway, &token), invalid(), "{what}");
        let anthropic = Request::post("/anthropic/v1/messages", &message("hello"));
        let answer = anthropic.bearer(&token).send(gateway.address());
        assert_eq!(
            answer.json()["error"]["code"],
            "invalid_credential",
            "{what}"
        );
        assert_eq!(answer.json()["type"], "error", "{what}");
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "a request waited for keys"
        );
        assert_eq!(failures(&gateway, "no_keys"), 2.0, "{what}");
        assert!(emulator.calls().is_empty(), "{what}");
        assert!(gateway.is_serving(), "{what}");
        if !cause.is_empty() {
            gateway.logged(&[
                "warn",
                "tokens of this issuer are refused until it comes",
                cause,
            ]);
        }
        source.answer(published(&issuer, "k1"));
        becomes_served(&gateway, &token, SOON);
    }
    assert!(elsewhere.asked().is_empty(), "a redirect was followed");
}

#[test]
fn a_source_that_says_nothing_holds_up_neither_another_one_nor_the_end() {
    let emulator = Emulator::quick();
    let (mute, one) = (Issuer::new("mute", "EdDSA"), Issuer::new("one", "EdDSA"));
    let silent = Source::start(Says::Silence);
    let source = Source::start(published(&one, "k1"));
    let issuers = [(&mute, &silent, "1s"), (&one, &source, "1s")];
    let gateway = Gateway::start(config(&emulator, &issuers));
    becomes_served(&gateway, &one.token_by("k1", "acme"), SOON);
    eventually("the other one is asked again and again", SOON, || {
        (source.asked().len() >= 4).then_some(())
    });
    assert_eq!(silent.asked().len(), 1);
    assert_eq!(ask(&gateway, &mute.token_by("k1", "acme")), invalid());
    let began = Instant::now();
    assert!(gateway.stop().success());
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[test]
fn another_source_or_algorithm_counts_from_the_reload_on() {
    let emulator = Emulator::quick();
    let (old, new) = (Issuer::new("one", "RS256"), Issuer::new("one", "ES256"));
    let keys = Says::Document(key_set(&[old.jwk("k1"), new.jwk("k2")]));
    let (source, moved) = (Source::start(keys.clone()), Source::start(keys));
    let gateway = Gateway::start(config(&emulator, &[(&old, &source, "1h")]));
    let (before, after) = (old.token_by("k1", "acme"), new.token_by("k2", "acme"));
    becomes_served(&gateway, &before, SOON);
    assert_eq!(ask(&gateway, &after), invalid());
    // The same place, another algorithm.
    let change = |config: Config| config.set("/identity/tokens/0/algorithm", json!("ES256"));
    assert_eq!(gateway.reload(change), "ok");
    becomes_served(&gateway, &after, SOON);
    assert_eq!(ask(&gateway, &before), invalid());
    // Another place.
    let change = |config: Config| config.set("/identity/tokens/0/keys/url", json!(moved.url()));
    assert_eq!(gateway.reload(change), "ok");
    becomes_served(&gateway, &after, SOON);
    assert_eq!(moved.asked().len(), 1);
    // An unrelated reload keeps what is known.
    assert_eq!(
        gateway.reload(|config| config.set("/retry", json!({"attempts": 3}))),
        "ok"
    );
    assert_eq!(ask(&gateway, &after), served());
    assert_eq!(moved.asked().len(), 1);
}
