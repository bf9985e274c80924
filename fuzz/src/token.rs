//! Signed tokens, from their text to their claims.
//!
//! Input: a byte that chooses, then either a token as it comes, or header and payload, one a line,
//! which are signed here so that what lies behind a good signature is reached.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::Sha256;
use tidegate::identity::token::{
    self, Algorithm, DEFAULT_MAX_BYTES, KeySet, Rules, TokenError, Unverified,
};

use super::keys;

const NOW: i64 = 1_767_225_600;
const LEEWAY: u64 = 60;

static KEYS: LazyLock<[(Rules, KeySet); 4]> = LazyLock::new(|| {
    [
        (Algorithm::Hs256, KeySet::from_secret(keys::SECRET)),
        (
            Algorithm::Rs256,
            KeySet::from_pem(keys::RSA, Algorithm::Rs256),
        ),
        (
            Algorithm::Es256,
            KeySet::from_pem(keys::P256, Algorithm::Es256),
        ),
        (
            Algorithm::EdDsa,
            KeySet::from_pem(keys::ED25519, Algorithm::EdDsa),
        ),
    ]
    .map(|(algorithm, keys)| (rules(algorithm), keys.expect("a good key")))
});

fn rules(algorithm: Algorithm) -> Rules {
    Rules {
        issuer: "https://issuer".into(),
        audiences: vec!["gateway".into()],
        algorithm,
        leeway_seconds: LEEWAY,
        max_lifetime_seconds: Some(86_400),
        required: vec![
            ("tenant".into(), None),
            ("realm.roles".into(), Some("user".into())),
        ],
    }
}

pub fn check(data: &[u8]) {
    let (mode, rest) = super::choice(data);
    let Ok(text) = std::str::from_utf8(rest) else {
        return;
    };
    match (mode & 1, text.split_once('\n')) {
        (1, Some((header, payload))) => signed_here(header, payload),
        _ => as_it_comes(text),
    }
}

fn as_it_comes(text: &str) {
    let _ = token::looks_like_token(text);
    assert!(text.is_empty() || Unverified::parse(text, text.len() - 1).is_err());
    let outcomes = KEYS
        .each_ref()
        .map(|(rules, keys)| token::verify(text, rules, keys, NOW));
    let good: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| outcome.as_ref().ok())
        .collect();
    assert!(good.len() <= 1, "a token has one algorithm");
    for claims in good {
        assert!(token::looks_like_token(text));
        let issuer = token::issuer_of(text).expect("a good token has an issuer");
        assert_eq!(claims.text("iss"), Some(issuer.as_str()));
        assert!(claims.text("tenant").is_some());
        assert!(claims.expires > NOW);
        altered(text);
    }
    for outcome in outcomes {
        if let Err(error) = outcome {
            assert!(TokenError::REASONS.contains(&error.as_str()));
            let _ = error.to_string();
        }
    }
}

/// A good token is none if a character of what is signed is another one.
fn altered(text: &str) {
    let end = text.rfind('.').expect("a token has dots");
    for at in [0, end / 3, end / 2, end - 1] {
        let mut bytes = text.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let Ok(other) = std::str::from_utf8(&bytes) else {
            continue;
        };
        for (rules, keys) in KEYS.iter() {
            assert!(token::verify(other, rules, keys, NOW).is_err(), "{other}");
        }
    }
}

fn signed_here(header: &str, payload: &str) {
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(payload)
    );
    let mut mac = Hmac::<Sha256>::new_from_slice(keys::SECRET).expect("any length will do");
    mac.update(signed.as_bytes());
    let token = format!(
        "{signed}.{}",
        URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
    );
    let [(rules, own), others @ ..] = &*KEYS;
    for (rules, keys) in others {
        assert!(token::verify(&token, rules, keys, NOW).is_err());
    }
    match token::verify(&token, rules, own, NOW) {
        Ok(claims) => {
            held(header, payload, claims.expires);
            altered(&token);
        }
        Err(TokenError::TooLarge) => assert!(token.len() > DEFAULT_MAX_BYTES),
        Err(error) => assert!(
            !matches!(error, TokenError::BadSignature | TokenError::UnknownKey),
            "{token}"
        ),
    }
}

/// Reads the parts of a token that was found good with another reader, and holds them to the rules.
fn held(header: &str, payload: &str, expires: i64) {
    let header: Value = serde_json::from_str(header).expect("a good header is JSON");
    let payload: Value = serde_json::from_str(payload).expect("a good payload is JSON");
    assert_eq!(header["alg"], "HS256");
    assert!(header.get("crit").is_none() && header.get("jwk").is_none());
    assert_eq!(payload["iss"], "https://issuer");
    let audience = &payload["aud"];
    let named = audience.as_array().map_or_else(
        || audience == "gateway",
        |names| names.iter().any(|name| name == "gateway"),
    );
    assert!(named);
    let seconds = |name: &str| payload[name].as_f64();
    let ends = seconds("exp").expect("a good token ends");
    assert!(ends > (NOW - LEEWAY as i64) as f64);
    assert!((expires as f64) <= ends + LEEWAY as f64);
    let latest = (NOW + LEEWAY as i64) as f64;
    assert!(seconds("nbf").is_none_or(|begins| begins <= latest));
    assert!(seconds("iat").is_none_or(|issued| issued <= latest));
    let begins = seconds("iat")
        .or(seconds("nbf"))
        .expect("a bounded life has a beginning");
    assert!(ends - begins <= 86_400.0);
    assert!(!payload["tenant"].is_null());
}
