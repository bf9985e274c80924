//! Signed requests and tokens: what counts once, what is remembered, and for how long.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer as OpenSslSigner;
use serde_json::json;

use super::*;
use crate::identity::signed_request::body;
use crate::identity::token::{Algorithm, KeySet, TokenError};

/// The header of a request signed by `id` with `nonce`.
fn signature(id: &str, secret: &str, timestamp: i64, nonce: &str) -> String {
    let target = Target {
        method: "POST",
        path: "/v1/chat/completions",
        query: "",
    };
    let digest = body::digest(b"hello");
    signed_request::sign(id, secret.as_bytes(), target, timestamp, nonce, &digest).unwrap()
}

#[test]
fn a_signature_counts_once_in_its_time_for_what_it_signs() {
    let stage = Stage::new();
    let ask = |header: &str| stage.ask(&[("authorization", header)], |_| {});
    let own = |id: &str| format!("{SECRET}-{id}");
    let nonce = |number: u32| format!("nonce-0123456789-{number}");
    let good = signature("s1", &own("s1"), NOW, &nonce(1));
    let elsewhere = stage.ask(&[("authorization", &good)], |caller| caller.query = "a=1");
    let wrong = |error| Err(Reason::Signature(error));
    assert_eq!(elsewhere, wrong(SignatureError::WrongSignature));
    // What was refused has used up no nonce.
    assert_eq!(stage.directory.nonces_held(), 0);
    assert_eq!(ask(&good), Ok("one/s1".to_owned()));
    assert_eq!(ask(&good), wrong(SignatureError::Replayed));
    let forged = signature("s1", &own("s2"), NOW, &nonce(2));
    assert_eq!(ask(&forged), wrong(SignatureError::WrongSignature));
    let unknown = signature("s9", &own("s9"), NOW, &nonce(3));
    assert_eq!(ask(&unknown), Err(Reason::UnknownId));
    let stale = signature("s1", &own("s1"), NOW - 301, &nonce(4));
    assert_eq!(ask(&stale), wrong(SignatureError::Stale));
    let future = signature("s1", &own("s1"), NOW + 31, &nonce(5));
    assert_eq!(ask(&future), wrong(SignatureError::Future));
    let off = signature("s_off", &own("s_off"), NOW, &nonce(6));
    assert_eq!(ask(&off), Err(Reason::CredentialDisabled));
    let late = signature("s_late", &own("s_late"), NOW, &nonce(7));
    assert_eq!(ask(&late), Err(Reason::Expired));
    assert_eq!(
        ask("TG-HMAC-SHA256 id=s1"),
        wrong(SignatureError::Malformed)
    );
    assert_eq!(stage.directory.nonces_held(), 1);
    // The next configuration knows the nonce too.
    let directory = Directory::new(&settings(&tenants()), stage.standing.clone()).unwrap();
    let next = Stage {
        issuer: stage.issuer.clone(),
        directory,
        standing: stage.standing.clone(),
    };
    let again = next.ask(&[("authorization", &good)], |_| {});
    assert_eq!(again, wrong(SignatureError::Replayed));
}

#[test]
fn a_signature_of_nothing_is_not_taken_for_an_unknown_id() {
    // An unknown id is checked against a fixed secret; whoever signs with it is still unknown.
    let stage = Stage::new();
    let target = Target {
        method: "POST",
        path: "/v1/chat/completions",
        query: "",
    };
    let digest = body::digest(b"");
    let header = signed_request::sign("s9", &[0; 32], target, NOW, "nonce-0123456789-0", &digest);
    let found = stage.ask(&[("authorization", &header.unwrap())], |_| {});
    assert_eq!(found, Err(Reason::UnknownId));
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn token(key: &PKey<Private>, team: &str, expires: i64) -> String {
    let claims = json!({
        "iss": ISSUER, "aud": "tidegate", "sub": "robot 7", "team": team, "iat": NOW,
        "exp": expires, "models": ["flash"],
    });
    let message = format!(
        "{}.{}",
        encode(r#"{"alg":"EdDSA","kid":"k1"}"#),
        encode(claims.to_string())
    );
    let mut signer = OpenSslSigner::new_without_digest(key).unwrap();
    let signature = signer.sign_oneshot_to_vec(message.as_bytes()).unwrap();
    format!("{message}.{}", encode(signature))
}

fn key_set(key: &PKey<Private>, kid: &str) -> KeySet {
    let x = encode(key.raw_public_key().unwrap());
    let keys = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x}]});
    KeySet::from_jwks(keys.to_string().as_bytes(), Algorithm::EdDsa).unwrap()
}

#[test]
fn a_verified_token_is_remembered_until_it_expires_or_any_key_set_changes() {
    let stage = Stage::new();
    let source = stage.standing.source(&stage.issuer);
    let (old, new) = (
        PKey::generate_ed25519().unwrap(),
        PKey::generate_ed25519().unwrap(),
    );
    let good = token(&old, "first", NOW + 600);
    let at = |now: i64| stage.ask(&[("x-api-key", &good)], |caller| caller.now = now);
    let found = Ok("one/corp/robot7".to_owned());
    assert_eq!(at(NOW), Err(Reason::NoKeys));
    assert!(source.take_wanted());
    source.replace(key_set(&old, "k1"));
    assert_eq!(at(NOW), found);
    assert_eq!(at(NOW + 629), found);
    assert_eq!(at(NOW + 630), Err(Reason::Token(TokenError::Expired)));
    assert_eq!(at(NOW), found);
    // The issuer takes its key back.
    source.replace(key_set(&new, "k1"));
    assert_eq!(at(NOW), Err(Reason::Token(TokenError::BadSignature)));
    assert!(!source.take_wanted());
    source.replace(key_set(&new, "k2"));
    assert_eq!(at(NOW), Err(Reason::Token(TokenError::UnknownKey)));
    assert!(source.take_wanted());
    source.replace(key_set(&old, "k1"));
    assert_eq!(at(NOW), found);
}

#[test]
fn a_token_leads_to_the_tenant_that_its_claim_is_mapped_to() {
    let stage = Stage::new();
    let key = PKey::generate_ed25519().unwrap();
    stage
        .standing
        .source(&stage.issuer)
        .replace(key_set(&key, "k1"));
    let ask = |team: &str| stage.ask(&[("x-api-key", &token(&key, team, NOW + 600))], |_| {});
    assert_eq!(ask("p"), Ok("picky/corp/robot7".to_owned()));
    assert_eq!(ask("one"), Err(Reason::NoTenant));
    // What its tenant may be asked anew each time, for it is no part of the token.
    let mut tenants = tenants();
    tenants[2]["accept"] = json!(["api_key"]);
    tenants[2]["credentials"] = json!([stored("p", json!({}))]);
    let directory = Directory::new(&settings(&tenants), stage.standing.clone()).unwrap();
    let next = Stage {
        issuer: stage.issuer.clone(),
        directory,
        standing: stage.standing.clone(),
    };
    let refused = next.ask(&[("x-api-key", &token(&key, "p", NOW + 600))], |_| {});
    assert_eq!(refused, Err(Reason::KindNotAllowed));
    let bearer = format!("Bearer {}", token(&key, "first", NOW + 600));
    let value = HeaderValue::from_str(&bearer).unwrap();
    let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]);
    let caller = Around::default().caller(&headers);
    let identity = stage.directory.identify(&caller).unwrap();
    assert!(identity.allows("flash"));
    assert!(!identity.allows("another"));
}
