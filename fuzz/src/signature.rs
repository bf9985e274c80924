//! Signed requests: the header, and the canonical form behind the signature.
//!
//! Input: a byte that chooses, then either a header as it comes, or parts divided by 0xff, of which
//! a header is made: key id, nonce, method, path, query, timestamp.

use tidegate::identity::signed_request::canonical::Target;
use tidegate::identity::signed_request::{self, MAX_HEADER, Window, body};

use super::keys;

const TARGET: Target<'_> = Target {
    method: "POST",
    path: "/v1/chat/completions",
    query: "a=1",
};

pub fn check(data: &[u8]) {
    let (mode, rest) = super::choice(data);
    if mode & 1 == 0 {
        if let Ok(header) = std::str::from_utf8(rest) {
            as_it_comes(header);
        }
        return;
    }
    let mut parts = rest.split(|byte| *byte == 0xff).map(std::str::from_utf8);
    let parts: [Option<&str>; 6] = std::array::from_fn(|_| parts.next()?.ok());
    if let [
        Some(id),
        Some(nonce),
        Some(method),
        Some(path),
        Some(query),
        Some(time),
    ] = parts
    {
        let target = Target {
            method,
            path,
            query,
        };
        signed_here(id, nonce, target, time.parse().unwrap_or(1_767_225_600));
    }
}

fn as_it_comes(header: &str) {
    let Ok(signed) = signed_request::parse(header) else {
        return;
    };
    assert!(signed_request::scheme_matches(header));
    assert!(header.len() <= MAX_HEADER);
    assert!(signed.timestamp >= 0);
    assert!(!format!("{signed:?}").contains(signed.nonce) || signed.key_id.contains(signed.nonce));
    let _ = Window::default().within(signed.timestamp, i64::MIN);
    assert!(!signed.verify(b"another secret", TARGET));
    // What is signed says who signed what when: signing it again gives the same.
    let (id, nonce) = (signed.key_id, signed.nonce);
    let again = signed_request::sign(
        id,
        keys::SECRET,
        TARGET,
        signed.timestamp,
        nonce,
        &signed.digest,
    )
    .expect("what can be read can be signed");
    let again = signed_request::parse(&again).expect("what was signed can be read");
    assert_eq!(signed.verify(keys::SECRET, TARGET), again == signed);
}

fn signed_here(id: &str, nonce: &str, target: Target<'_>, timestamp: i64) {
    let digest = body::digest(id.as_bytes());
    let sign = |target| signed_request::sign(id, keys::SECRET, target, timestamp, nonce, &digest);
    let Ok(header) = sign(target) else {
        return;
    };
    assert!(header.len() <= MAX_HEADER);
    let signed = signed_request::parse(&header).expect("what was signed can be read");
    assert_eq!((signed.key_id, signed.nonce), (id, nonce));
    assert_eq!((signed.timestamp, signed.digest), (timestamp, digest));
    assert!(signed.verify(keys::SECRET, target));
    assert!(!signed.verify(b"another secret", target));
    for other in neighbours(target) {
        let other = Target {
            method: &other[0],
            path: &other[1],
            query: &other[2],
        };
        assert_eq!(
            signed.verify(keys::SECRET, other),
            other == target,
            "{other:?}"
        );
    }
}

/// Targets that have the same characters, or nearly so.
fn neighbours(target: Target<'_>) -> Vec<[String; 3]> {
    let [method, path, query] = [target.method, target.path, target.query].map(str::to_owned);
    let moved = |from: &str, to: &str| {
        let mut rest = from.to_owned();
        let last = rest.pop().map(String::from).unwrap_or_default();
        (rest, last + to)
    };
    let (shorter_path, longer_query) = moved(&path, &query);
    let (shorter_method, longer_path) = moved(&method, &path);
    vec![
        [method.clone(), shorter_path, longer_query],
        [shorter_method, longer_path, query.clone()],
        [method.clone(), query.clone(), path.clone()],
        [method.clone(), format!("{path}\n{query}"), String::new()],
        [method.clone(), format!("{path}?{query}"), String::new()],
        [method.to_lowercase(), path.clone(), query.clone()],
        [method.clone(), path.to_uppercase(), query.clone()],
        [method, path, format!("{query}&")],
    ]
}
