//! Every way a token can be wrong, for each algorithm, with keys and signatures made by OpenSSL.

use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sign::Signer;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

pub const ALL: [Algorithm; 4] = [
    Algorithm::Hs256,
    Algorithm::Rs256,
    Algorithm::Es256,
    Algorithm::EdDsa,
];
pub const PUBLIC: [Algorithm; 3] = [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa];
const NOW: i64 = 1_700_000_000;

/// Somebody who signs.
pub struct Issuer {
    pub algorithm: Algorithm,
    pub key: PKey<Private>,
    pub keys: KeySet,
}

impl Issuer {
    fn new(algorithm: Algorithm, secret: &[u8]) -> Self {
        let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = match algorithm {
            Algorithm::Hs256 => PKey::hmac(secret).unwrap(),
            Algorithm::Rs256 => PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap(),
            Algorithm::Es256 => PKey::from_ec_key(EcKey::generate(&curve).unwrap()).unwrap(),
            Algorithm::EdDsa => PKey::generate_ed25519().unwrap(),
        };
        let keys = match algorithm {
            Algorithm::Hs256 => KeySet::from_secret(secret).unwrap(),
            _ => KeySet::from_pem(&key.public_key_to_pem().unwrap(), algorithm).unwrap(),
        };
        Issuer {
            algorithm,
            key,
            keys,
        }
    }

    /// The signature over any text, in the form of RFC 7518 §3.
    pub fn signature(&self, message: &str) -> Vec<u8> {
        let mut signer = match self.algorithm {
            Algorithm::EdDsa => Signer::new_without_digest(&self.key).unwrap(),
            _ => Signer::new(MessageDigest::sha256(), &self.key).unwrap(),
        };
        let signature = signer.sign_oneshot_to_vec(message.as_bytes()).unwrap();
        if self.algorithm != Algorithm::Es256 {
            return signature;
        }
        let pair = EcdsaSig::from_der(&signature).unwrap();
        let mut flat = pair.r().to_vec_padded(32).unwrap();
        flat.extend(pair.s().to_vec_padded(32).unwrap());
        flat
    }

    pub fn sign_text(&self, header: &str, payload: &str) -> String {
        let message = format!("{}.{}", encode(header), encode(payload));
        let signature = encode(self.signature(&message));
        format!("{message}.{signature}")
    }

    pub fn sign(&self, header: &Value, payload: &Value) -> String {
        self.sign_text(&header.to_string(), &payload.to_string())
    }

    pub fn header(&self) -> Value {
        json!({"alg": self.algorithm.as_str(), "typ": "JWT"})
    }

    /// The public key as a JWK; not for HS256.
    pub fn jwk(&self, id: Option<&str>) -> Value {
        let mut jwk = match self.algorithm {
            Algorithm::Hs256 => panic!("a secret has no public key"),
            Algorithm::Rs256 => {
                let key = self.key.rsa().unwrap();
                json!({"kty": "RSA", "n": encode(key.n().to_vec()), "e": encode(key.e().to_vec())})
            }
            Algorithm::Es256 => {
                let key = self.key.ec_key().unwrap();
                let (mut x, mut y) = (BigNum::new().unwrap(), BigNum::new().unwrap());
                let mut context = BigNumContext::new().unwrap();
                key.public_key()
                    .affine_coordinates(key.group(), &mut x, &mut y, &mut context)
                    .unwrap();
                let (x, y) = (x.to_vec_padded(32).unwrap(), y.to_vec_padded(32).unwrap());
                json!({"kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y)})
            }
            Algorithm::EdDsa => {
                let x = encode(self.key.raw_public_key().unwrap());
                json!({"kty": "OKP", "crv": "Ed25519", "x": x})
            }
        };
        if let Some(id) = id {
            jwk["kid"] = json!(id);
        }
        jwk
    }
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Two issuers of each algorithm, in the order of [`ALL`], made once.
fn issuers() -> &'static [[Issuer; 2]; 4] {
    static ISSUERS: OnceLock<[[Issuer; 2]; 4]> = OnceLock::new();
    ISSUERS.get_or_init(|| {
        ALL.map(|algorithm| [[1u8; 32], [2u8; 32]].map(|secret| Issuer::new(algorithm, &secret)))
    })
}

pub fn issuer(algorithm: Algorithm) -> &'static Issuer {
    &issuers()[algorithm as usize][0]
}

pub fn stranger(algorithm: Algorithm) -> &'static Issuer {
    &issuers()[algorithm as usize][1]
}

pub fn rules(algorithm: Algorithm) -> Rules {
    Rules {
        issuer: "https://issuer".into(),
        audiences: vec!["gateway".into(), "api".into()],
        algorithm,
        leeway_seconds: 60,
        max_lifetime_seconds: Some(3600),
        required: vec![
            ("tenant".into(), None),
            ("role".into(), Some(json!("user"))),
        ],
    }
}

fn payload() -> Value {
    json!({
        "iss": "https://issuer", "aud": ["other", "gateway"], "exp": NOW + 600, "iat": NOW - 5,
        "nbf": NOW - 5, "tenant": "t1", "role": ["user", "admin"],
    })
}

fn outcome(issuer: &Issuer, token: &str) -> &'static str {
    match verify(token, &rules(issuer.algorithm), &issuer.keys, NOW) {
        Ok(claims) => {
            assert_eq!(claims.expires, NOW + 660);
            "good"
        }
        Err(error) => error.as_str(),
    }
}

/// The payload with one claim replaced, or removed by null.
fn altered(name: &str, value: Value) -> Value {
    let mut payload = payload();
    if value.is_null() {
        payload.as_object_mut().unwrap().remove(name);
    } else {
        payload[name] = value;
    }
    payload
}

#[test]
fn a_good_token_of_each_algorithm_is_taken_and_its_claims_are_read() {
    for algorithm in ALL {
        let issuer = issuer(algorithm);
        let token = issuer.sign(&issuer.header(), &payload());
        assert!(looks_like_token(&token));
        assert_eq!(issuer_of(&token).unwrap(), "https://issuer");
        let claims = verify(&token, &rules(algorithm), &issuer.keys, NOW).unwrap();
        assert_eq!(claims.text("tenant"), Some("t1"));
        assert_eq!(claims.texts("role"), ["user", "admin"]);
        for header in [
            json!({}),
            json!({"typ": "at+jwt", "kid": "any", "x5t": "thumb"}),
        ] {
            let mut header = header;
            header["alg"] = json!(algorithm.as_str());
            assert_eq!(outcome(issuer, &issuer.sign(&header, &payload())), "good");
        }
    }
}

#[test]
fn each_wrong_claim_is_refused_for_its_own_reason() {
    let cases = [
        ("exp", json!(NOW - 60), "expired"),
        ("exp", json!(NOW - 59), "good_elsewhere"),
        ("exp", json!(0), "expired"),
        ("exp", json!(null), "missing_claim"),
        ("exp", json!("1700000600"), "malformed_claim"),
        ("exp", json!(NOW * 1000), "malformed_claim"),
        ("exp", json!(NOW + 3596), "lifetime_too_long"),
        ("iat", json!(NOW + 61), "not_yet_valid"),
        ("iat", json!(NOW as f64 + 60.5), "not_yet_valid"),
        ("iat", json!(NOW + 60), "good"),
        ("iat", json!(NOW - 3001), "lifetime_too_long"),
        ("iat", json!([NOW]), "malformed_claim"),
        ("iat", json!(null), "good"),
        ("nbf", json!(NOW + 61), "not_yet_valid"),
        ("nbf", json!(NOW + 60), "good"),
        ("nbf", json!(false), "malformed_claim"),
        ("nbf", json!(null), "good"),
        ("iss", json!("https://issuer/"), "wrong_issuer"),
        ("iss", json!("HTTPS://issuer"), "wrong_issuer"),
        ("iss", json!(["https://issuer"]), "malformed_claim"),
        ("iss", json!(null), "missing_claim"),
        ("aud", json!("api"), "good"),
        ("aud", json!("other"), "wrong_audience"),
        ("aud", json!("Gateway"), "wrong_audience"),
        ("aud", json!([]), "wrong_audience"),
        ("aud", json!(["gateway", 1]), "malformed_claim"),
        ("aud", json!({"gateway": 1}), "malformed_claim"),
        ("aud", json!(null), "missing_claim"),
        ("tenant", json!(null), "missing_claim"),
        ("role", json!("admin"), "wrong_claim"),
        ("role", json!("user"), "good"),
        ("role", json!(null), "missing_claim"),
    ];
    for algorithm in ALL {
        let issuer = issuer(algorithm);
        for (name, value, expected) in &cases {
            let token = issuer.sign(&issuer.header(), &altered(name, value.clone()));
            let checked = verify(&token, &rules(algorithm), &issuer.keys, NOW);
            let found = match &checked {
                Ok(claims) if claims.expires == NOW + 660 => "good",
                Ok(_) => "good_elsewhere",
                Err(error) => error.as_str(),
            };
            assert_eq!(found, *expected, "{algorithm:?} {name} {value}");
            assert!(checked.is_ok() || checked.is_err_and(|error| error.proven()));

            // The same claims signed by somebody else say nothing about themselves.
            let stranger = stranger(algorithm);
            let token = stranger.sign(&stranger.header(), &altered(name, value.clone()));
            assert_eq!(outcome(issuer, &token), "bad_signature");
        }
    }
}

#[test]
fn each_wrong_header_is_refused_though_the_signature_is_good() {
    for algorithm in ALL {
        let issuer = issuer(algorithm);
        let name = algorithm.as_str();
        let cases = [
            (json!({"alg": "none"}), "wrong_algorithm"),
            (json!({"alg": "None"}), "wrong_algorithm"),
            (json!({"alg": ""}), "wrong_algorithm"),
            (json!({"alg": name.to_lowercase()}), "wrong_algorithm"),
            (json!({"alg": format!("{name} ")}), "wrong_algorithm"),
            (json!({"alg": "HS512"}), "wrong_algorithm"),
            (json!({"alg": "PS256"}), "wrong_algorithm"),
            (json!({"alg": [name]}), "malformed"),
            (json!({"typ": "JWT"}), "malformed"),
            (json!({"alg": name, "typ": "dpop+jwt"}), "wrong_type"),
            (json!({"alg": name, "typ": 1}), "wrong_type"),
            (json!({"alg": name, "kid": 1}), "malformed"),
            (
                json!({"alg": name, "crit": ["exp"], "exp": 1}),
                "unsupported_header",
            ),
            (json!({"alg": name, "crit": []}), "unsupported_header"),
            (json!({"alg": name, "b64": true}), "unsupported_header"),
            (
                json!({"alg": name, "jku": "https://evil"}),
                "unsupported_header",
            ),
            (
                json!({"alg": name, "jwk": {"kty": "oct"}}),
                "unsupported_header",
            ),
            (
                json!({"alg": name, "x5u": "https://evil"}),
                "unsupported_header",
            ),
            (json!({"alg": name, "x5c": ["AAAA"]}), "unsupported_header"),
        ];
        for (header, expected) in cases {
            let token = issuer.sign(&header, &payload());
            assert_eq!(outcome(issuer, &token), expected, "{header}");
        }
        for other in ALL.into_iter().filter(|other| *other != algorithm) {
            let token = issuer.sign(&json!({"alg": other.as_str()}), &payload());
            assert_eq!(outcome(issuer, &token), "wrong_algorithm");
        }
        let twice = format!("{{\"alg\":\"{name}\",\"alg\":\"{name}\"}}");
        let token = issuer.sign_text(&twice, &payload().to_string());
        assert_eq!(outcome(issuer, &token), "malformed");
    }
}

#[test]
fn each_wrong_shape_is_refused() {
    for algorithm in ALL {
        let issuer = issuer(algorithm);
        let good = issuer.sign(&issuer.header(), &payload());
        let parts: Vec<&str> = good.split('.').collect();
        let (header, body, signature) = (parts[0], parts[1], parts[2]);
        let longer = encode([&issuer.signature("x")[..], &[0]].concat());
        let zeros = encode(vec![0; issuer.signature("x").len()]);
        let padded = altered("pad", json!("x".repeat(DEFAULT_MAX_BYTES)));
        let twice = payload()
            .to_string()
            .replacen('{', "{\"exp\":9999999999,", 1);
        let cases = [
            (format!("{header}.{body}."), "bad_signature"),
            (format!("{header}.{body}.{longer}"), "bad_signature"),
            (format!("{header}.{body}.{zeros}"), "bad_signature"),
            (
                format!("{header}.{body}.{}", encode([0xff; 64])),
                "bad_signature",
            ),
            (
                format!("{header}.{body}.{}", encode([0xff; 256])),
                "bad_signature",
            ),
            (format!("{header}.{body}"), "malformed"),
            (format!("{header}.{body}.{signature}."), "malformed"),
            (
                format!("{header}.{body}.{signature}.{signature}"),
                "malformed",
            ),
            (format!("{header}.{body}.{signature}="), "malformed"),
            (format!("{header}..{signature}"), "malformed"),
            (format!(".{body}.{signature}"), "malformed"),
            (format!("{good}\0"), "malformed"),
            (String::new(), "malformed"),
            (issuer.sign(&issuer.header(), &padded), "too_large"),
            (
                issuer.sign_text(&issuer.header().to_string(), &twice),
                "malformed",
            ),
            (
                issuer.sign_text(&issuer.header().to_string(), "[]"),
                "malformed",
            ),
            (
                issuer.sign_text(&issuer.header().to_string(), ""),
                "malformed",
            ),
        ];
        for (token, expected) in cases {
            assert_eq!(outcome(issuer, &token), expected, "{algorithm:?} {token}");
        }
    }
}

#[test]
fn a_signature_has_no_other_encoding() {
    let issuer = issuer(Algorithm::Es256);
    let good = issuer.sign(&issuer.header(), &payload());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let flat = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let (r, s) = flat.split_at(32);
    let mut der = Signer::new(MessageDigest::sha256(), &issuer.key).unwrap();
    let der = der.sign_oneshot_to_vec(message.as_bytes()).unwrap();
    for other in [[r, &[0], s].concat(), [&[0], r, &[0], s].concat(), der] {
        let token = format!("{message}.{}", encode(other));
        assert_eq!(outcome(issuer, &token), "bad_signature");
    }
}

#[test]
fn a_public_key_is_never_taken_for_a_shared_secret() {
    for algorithm in PUBLIC {
        let issuer = issuer(algorithm);
        let pem = issuer.key.public_key_to_pem().unwrap();
        let der = issuer.key.public_key_to_der().unwrap();
        for secret in [pem.as_slice(), der.as_slice()] {
            let key = PKey::hmac(secret).unwrap();
            for name in ["HS256", algorithm.as_str()] {
                let message = format!(
                    "{}.{}",
                    encode(json!({"alg": name}).to_string()),
                    encode(payload().to_string())
                );
                let mut signer = Signer::new(MessageDigest::sha256(), &key).unwrap();
                let forged = signer.sign_oneshot_to_vec(message.as_bytes()).unwrap();
                let forged = format!("{message}.{}", encode(forged));
                assert_ne!(outcome(issuer, &forged), "good");
                // Not even under rules that ask for HS256.
                let refused = verify(&forged, &rules(Algorithm::Hs256), &issuer.keys, NOW);
                assert_eq!(refused.err(), Some(TokenError::WrongAlgorithm));
            }
        }
        assert_eq!(
            KeySet::from_secret(&pem).err(),
            Some(KeySetError::PemAsSecret)
        );
    }
}

#[test]
fn without_audiences_of_our_own_a_token_for_somebody_is_refused() {
    let issuer = issuer(Algorithm::Hs256);
    let mut rules = rules(Algorithm::Hs256);
    rules.audiences.clear();
    for (aud, reason) in [
        (json!("x"), Some("wrong_audience")),
        (json!([]), Some("wrong_audience")),
        (json!(null), None),
    ] {
        let token = issuer.sign(&issuer.header(), &altered("aud", aud));
        let found = verify(&token, &rules, &issuer.keys, NOW);
        assert_eq!(found.err().map(|error| error.as_str()), reason);
    }
}

#[test]
fn with_a_longest_lifetime_its_beginning_must_be_known() {
    let issuer = issuer(Algorithm::Hs256);
    let mut payload = payload();
    payload.as_object_mut().unwrap().remove("iat");
    payload.as_object_mut().unwrap().remove("nbf");
    let token = issuer.sign(&issuer.header(), &payload);
    assert_eq!(outcome(issuer, &token), "missing_claim");
    let mut rules = rules(Algorithm::Hs256);
    rules.max_lifetime_seconds = None;
    assert!(verify(&token, &rules, &issuer.keys, NOW).is_ok());
}

/// RFC 7515 appendices A.1 to A.3; the dates are of 2011, and there is no audience.
#[test]
fn the_tokens_printed_in_rfc_7515_are_taken() {
    const PAYLOAD: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let secret =
        "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    let rsa = json!({"keys": [{"kty": "RSA", "e": "AQAB", "n": concat!(
        "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-",
        "yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-",
        "KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_",
        "h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ")}]});
    let ec = json!({"keys": [{"kty": "EC", "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]});
    let cases = [
        (
            KeySet::from_secret(&URL_SAFE_NO_PAD.decode(secret).unwrap()),
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
            "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        ),
        (
            KeySet::from_jwks(rsa.to_string().as_bytes(), Algorithm::Rs256),
            "eyJhbGciOiJSUzI1NiJ9",
            concat!(
                "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9",
                "uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB",
                "_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rq",
                "Vt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
            ),
        ),
        (
            KeySet::from_jwks(ec.to_string().as_bytes(), Algorithm::Es256),
            "eyJhbGciOiJFUzI1NiJ9",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
    ];
    for (keys, header, signature) in cases {
        let keys = keys.unwrap();
        let mut rules = rules(keys.algorithm());
        rules.issuer = "joe".into();
        rules.audiences.clear();
        rules.max_lifetime_seconds = None;
        rules.required = vec![("http://example.com/is_root".into(), Some(json!(true)))];
        let token = format!("{header}.{PAYLOAD}.{signature}");
        let claims = verify(&token, &rules, &keys, 1_300_819_379).unwrap();
        assert_eq!(claims.expires, 1_300_819_440);
        let late = verify(&token, &rules, &keys, claims.expires);
        assert_eq!(late.err(), Some(TokenError::Expired));
    }
}

/// RFC 8037 appendix A.4, whose payload is no claims set.
#[test]
fn the_signature_printed_in_rfc_8037_is_taken() {
    let jwks = br#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let keys = KeySet::from_jwks(jwks, Algorithm::EdDsa).unwrap();
    let signature =
        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let message = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    assert_eq!(keys.check(None, message, &signature), Ok(()));
}

#[test]
fn every_reason_is_listed_once() {
    let mut reasons = TokenError::REASONS.to_vec();
    reasons.sort_unstable();
    reasons.dedup();
    assert_eq!(reasons.len(), TokenError::REASONS.len());
    for error in [
        TokenError::TooLarge,
        TokenError::Malformed(""),
        TokenError::WrongAlgorithm,
        TokenError::WrongType,
        TokenError::UnsupportedHeader(""),
        TokenError::UnknownKey,
        TokenError::BadSignature,
        TokenError::Expired,
        TokenError::NotYetValid,
        TokenError::LifetimeTooLong,
        TokenError::WrongIssuer,
        TokenError::WrongAudience,
        TokenError::MissingClaim(String::new()),
        TokenError::WrongClaim(String::new()),
        TokenError::MalformedClaim(""),
    ] {
        assert!(TokenError::REASONS.contains(&error.as_str()));
    }
}

fn any_algorithm() -> impl Strategy<Value = Algorithm> {
    proptest::sample::select(ALL.to_vec())
}

proptest! {
    #[test]
    fn a_token_with_one_byte_changed_is_refused(
        algorithm in any_algorithm(), at in any::<proptest::sample::Index>(), other in 0u8..128,
    ) {
        static GOOD: OnceLock<[String; 4]> = OnceLock::new();
        let good = &GOOD.get_or_init(|| ALL.map(|algorithm| {
            let issuer = issuer(algorithm);
            issuer.sign(&issuer.header(), &payload())
        }))[algorithm as usize];
        let mut bytes = good.clone().into_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != other);
        bytes[at] = other;
        let token = String::from_utf8(bytes).unwrap();
        let refused = verify(&token, &rules(algorithm), &issuer(algorithm).keys, NOW);
        prop_assert!(refused.is_err_and(|error| !error.proven()));
    }

    #[test]
    fn a_key_of_somebody_else_never_fits(algorithm in any_algorithm(), other in any_algorithm(), text in ".{0,40}") {
        let payload = altered("text", json!(text));
        let token = stranger(other).sign(&json!({"alg": algorithm.as_str()}), &payload);
        let refused = verify(&token, &rules(algorithm), &issuer(algorithm).keys, NOW);
        prop_assert!(refused.is_err_and(|error| !error.proven()));
        let own = issuer(algorithm).sign(&issuer(algorithm).header(), &payload);
        prop_assert!(verify(&own, &rules(algorithm), &issuer(algorithm).keys, NOW).is_ok());
    }

    #[test]
    fn no_signed_payload_panics(algorithm in any_algorithm(), value in ".{0,40}", number in any::<f64>(), now in any::<i64>()) {
        let issuer = issuer(algorithm);
        for name in ["exp", "nbf", "iat", "iss", "aud", "role"] {
            for value in [json!(value), json!(number), json!([value])] {
                let token = issuer.sign(&issuer.header(), &altered(name, value));
                let _ = verify(&token, &rules(algorithm), &issuer.keys, now);
            }
        }
    }

    #[test]
    fn no_bytes_after_a_good_header_panic(algorithm in any_algorithm(), rest in "[A-Za-z0-9_.-]{0,120}", bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let issuer = issuer(algorithm);
        let header = encode(issuer.header().to_string());
        let token = format!("{header}.{rest}");
        prop_assert!(verify(&token, &rules(algorithm), &issuer.keys, NOW).is_err());
        let body = encode(payload().to_string());
        let token = format!("{header}.{body}.{}", encode(&bytes));
        prop_assert_eq!(verify(&token, &rules(algorithm), &issuer.keys, NOW).err(), Some(TokenError::BadSignature));
        let text = String::from_utf8_lossy(&bytes);
        prop_assert!(verify(&text, &rules(algorithm), &issuer.keys, NOW).is_err());
    }
}
