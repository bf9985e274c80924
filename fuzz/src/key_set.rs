//! Key sets (JWKS) and PEM files of token issuers.
//!
//! Input: a byte that chooses the algorithm, then the file.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tidegate::identity::token::{self, Algorithm, KeySet, KeySetError, MAX_KEYS, Rules};

pub fn check(data: &[u8]) {
    let (mode, file) = super::choice(data);
    let algorithm = match mode % 3 {
        0 => Algorithm::Rs256,
        1 => Algorithm::Es256,
        _ => Algorithm::EdDsa,
    };
    read(algorithm, || KeySet::from_jwks(file, algorithm));
    read(algorithm, || KeySet::from_pem(file, algorithm));
    read(Algorithm::Hs256, || KeySet::from_secret(file));
    assert!(KeySet::from_jwks(file, Algorithm::Hs256).is_err());
    assert!(KeySet::from_pem(file, Algorithm::Hs256).is_err());
}

fn read(algorithm: Algorithm, read: impl Fn() -> Result<KeySet, KeySetError>) {
    match read() {
        Ok(keys) => {
            assert_eq!(keys.algorithm(), algorithm);
            assert!((1..=MAX_KEYS).contains(&keys.usable()));
            assert!(keys.usable() + keys.skipped() <= MAX_KEYS);
            let again = read().expect("what was read once is read again");
            assert!(keys.same_keys(&again));
            signs_nothing(&keys);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// No signature that is the same for every key is any key's.
fn signs_nothing(keys: &KeySet) {
    let rules = Rules {
        issuer: "i".into(),
        audiences: vec!["a".into()],
        algorithm: keys.algorithm(),
        leeway_seconds: 0,
        max_lifetime_seconds: None,
        required: Vec::new(),
    };
    let header = format!(r#"{{"alg":"{}"}}"#, keys.algorithm().as_str());
    let header = URL_SAFE_NO_PAD.encode(header);
    let payload = URL_SAFE_NO_PAD.encode(r#"{"iss":"i","aud":"a","exp":9}"#);
    for (byte, length) in [(0, 0), (0, 32), (0, 64), (1, 64), (0, 256), (0xff, 256)] {
        let signature = URL_SAFE_NO_PAD.encode(vec![byte; length]);
        let token = format!("{header}.{payload}.{signature}");
        assert!(token::verify(&token, &rules, keys, 0).is_err(), "{token}");
    }
}
