//! API keys, and the search for the one credential in a head.
//!
//! Input: up to three header values, one a line; the first is also taken as a key and as a key's id.

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use tidegate::identity::api_key;
use tidegate::identity::credential::{self, Presented};
use tidegate::identity::token::looks_like_token;

pub fn check(data: &[u8]) {
    let mut values = data.splitn(3, |byte| *byte == b'\n');
    if let Some(Ok(text)) = values.next().map(std::str::from_utf8) {
        read(text);
        made(text);
    }
    extracted(data.splitn(3, |byte| *byte == b'\n'));
}

fn read(text: &str) {
    let _ = api_key::hash(text);
    if let Ok(id) = api_key::id(text) {
        assert!(!id.is_empty());
        assert_eq!(text.find(id), Some(3), "the id stands behind the prefix");
        assert_eq!(text.len(), 3 + id.len() + 1 + 49);
        damaged(text, text.len() / 2);
    }
}

/// A key that is made of any id of the configuration's length is read again, and with one wrong character it is not.
fn made(id: &str) {
    if !(1..=64).contains(&id.len()) {
        return;
    }
    let random: [u8; 32] = Sha256::digest(id).into();
    let new = api_key::make(id, &random);
    let key = new.key.expose();
    assert_eq!(api_key::id(key), Ok(id));
    assert_eq!(api_key::hash(key), new.hash);
    damaged(key, usize::from(random[0]) % key.len());
}

fn damaged(key: &str, at: usize) {
    let mut bytes = key.as_bytes().to_vec();
    bytes[at] ^= 1;
    if let Ok(wrong) = std::str::from_utf8(&bytes) {
        assert!(api_key::id(wrong).is_err(), "{wrong:?} for {key:?}");
    }
}

fn extracted<'a>(values: impl Iterator<Item = &'a [u8]>) {
    let names = [
        AUTHORIZATION,
        HeaderName::from_static("x-api-key"),
        AUTHORIZATION,
    ];
    let mut headers = HeaderMap::new();
    for (name, value) in names.into_iter().zip(values) {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
    let Ok(presented) = credential::extract(&headers) else {
        return;
    };
    assert!(headers.get_all(AUTHORIZATION).iter().count() < 2);
    let shown = |text: &str| {
        !text.is_empty()
            && headers
                .values()
                .any(|value| value.to_str().is_ok_and(|value| value.contains(text)))
    };
    match presented {
        Presented::Nothing => {}
        Presented::ApiKey(text) => assert!(shown(text) && !looks_like_token(text)),
        Presented::Token(text) => assert!(shown(text) && looks_like_token(text)),
        Presented::Signature(text) => assert!(shown(text) && headers.len() == 1),
    }
}
