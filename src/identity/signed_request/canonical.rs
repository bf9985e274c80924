//! What exactly is signed: the canonical form of a request, and the HMAC over it.
//!
//! Seven lines joined by `\n`: scheme, method, path, query, timestamp, nonce, digest. As none of
//! them can hold a line feed, no two requests have the same text. Knows neither header nor clock.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::SCHEME;

/// What a request is for, exactly as it stands in the request line (RFC 9112 §3) or in HTTP/2's
/// pseudo-fields; nothing is decoded or normalised.
///
/// A clean request cannot hold a control character in any of the three. One that does cannot be
/// signed: a line feed would let one part pass for two. Neither can a method that is not in upper
/// case, for methods that differ in case alone are different methods (RFC 9110 §9.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// In upper case.
    pub method: &'a str,
    /// Without the query.
    pub path: &'a str,
    /// Without the question mark; empty if there is none.
    pub query: &'a str,
}

/// Everything a signature says.
pub(super) struct Statement<'a> {
    pub target: Target<'a>,
    pub timestamp: i64,
    /// Must have a nonce's form, and so no line feed.
    pub nonce: &'a str,
    pub digest: &'a [u8; 32],
}

impl Statement<'_> {
    /// The text that is signed; none if the target cannot be.
    fn text(&self) -> Option<String> {
        let Target {
            method,
            path,
            query,
        } = self.target;
        let upper = !method.is_empty() && !method.bytes().any(|byte| byte.is_ascii_lowercase());
        let clean = ![method, path, query]
            .iter()
            .any(|part| part.bytes().any(|byte| byte.is_ascii_control()));
        (upper && clean).then(|| {
            format!(
                "{SCHEME}\n{method}\n{path}\n{query}\n{}\n{}\n{}",
                self.timestamp,
                self.nonce,
                hex::encode(self.digest)
            )
        })
    }

    pub(super) fn signature(&self, secret: &[u8]) -> Option<[u8; 32]> {
        Some(self.mac(secret)?.finalize().into_bytes().into())
    }

    pub(super) fn is_signed_by(&self, secret: &[u8], signature: &[u8; 32]) -> bool {
        // `verify` compares in constant time.
        self.mac(secret)
            .is_some_and(|mac| mac.verify(signature.into()).is_ok())
    }

    fn mac(&self, secret: &[u8]) -> Option<Hmac<Sha256>> {
        // HMAC takes an empty key, and then everybody can sign.
        if secret.is_empty() {
            return None;
        }
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
        mac.update(self.text()?.as_bytes());
        Some(mac)
    }
}

/// 64 digits in lower case, and nothing else: one text for one signature.
pub(super) fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.bytes().any(|digit| digit.is_ascii_uppercase()) {
        return None;
    }
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::{body, parse, sign};
    use super::*;
    use proptest::prelude::*;

    // The worked example in docs/signed-requests.md. Others check their clients by it.
    const ID: &str = "s1";
    const SECRET: &[u8] = b"a-secret-for-examples-and-nothing-else";
    const TARGET: Target<'_> = Target {
        method: "POST",
        path: "/v1/chat/completions",
        query: "",
    };
    const TIMESTAMP: i64 = 1_767_225_600;
    const NONCE: &str = "fT3vQ9sLx0_eWm7K";
    const BODY: &str =
        r#"{"model":"deepseek-flash","messages":[{"role":"user","content":"Hello"}]}"#;
    const DIGEST: &str = "5ced327b298a984c7b650cbab54ec6f23b901e5f312dd2b2edefce69a4813aa7";
    const SIGNATURE: &str = "91c1a4100fb98c2aab1e7370d5a1e61525c6b9848bc0fafae704c536e185aaf7";

    fn page() -> String {
        std::fs::read_to_string(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/docs/signed-requests.md"
        ))
        .unwrap()
    }

    #[test]
    fn the_documented_example_is_what_the_code_does() {
        let digest = body::digest(BODY.as_bytes());
        assert_eq!(hex::encode(digest), DIGEST);
        let statement = Statement {
            target: TARGET,
            timestamp: TIMESTAMP,
            nonce: NONCE,
            digest: &digest,
        };
        let text = statement.text().unwrap();
        assert_eq!(hex::encode(statement.signature(SECRET).unwrap()), SIGNATURE);
        let header = sign(ID, SECRET, TARGET, TIMESTAMP, NONCE, &digest).unwrap();
        assert!(parse(&header).unwrap().verify(SECRET, TARGET));

        let secret = std::str::from_utf8(SECRET).unwrap();
        for part in [secret, BODY, &text, &format!("Authorization: {header}\n")] {
            assert!(page().contains(part), "the page lacks {part:?}");
        }
    }

    /// RFC 4231 §4.3, so that the example is not only true of ourselves.
    #[test]
    fn the_mac_is_hmac_sha256() {
        let mut mac = Hmac::<Sha256>::new_from_slice(b"Jefe").unwrap();
        mac.update(b"what do ya want for nothing?");
        assert_eq!(
            hex::encode(mac.finalize().into_bytes()),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn what_could_pass_for_two_lines_is_not_signed() {
        let statement = |target| Statement {
            target,
            timestamp: TIMESTAMP,
            nonce: NONCE,
            digest: &[0; 32],
        };
        let refused = |target| statement(target).signature(SECRET).is_none();
        assert!(!refused(TARGET));
        for bad in ["\n", "/a\n", "/a\nb", "/a\rb", "/a\0", "/\u{7f}"] {
            assert!(
                refused(Target {
                    path: bad,
                    ..TARGET
                }),
                "{bad:?}"
            );
            assert!(
                refused(Target {
                    query: bad,
                    ..TARGET
                }),
                "{bad:?}"
            );
            assert!(
                refused(Target {
                    method: bad,
                    ..TARGET
                }),
                "{bad:?}"
            );
        }
        for method in ["", "post", "Post"] {
            assert!(refused(Target { method, ..TARGET }), "{method:?}");
        }
        // A signature over the text that would have been made is none either.
        let signed = sign(ID, SECRET, TARGET, TIMESTAMP, NONCE, &[0; 32]).unwrap();
        let target = Target {
            path: "/v1/chat/completions\n",
            ..TARGET
        };
        assert!(!parse(&signed).unwrap().verify(SECRET, target));
    }

    #[test]
    fn nobody_can_sign_with_an_empty_secret() {
        assert!(sign(ID, b"", TARGET, TIMESTAMP, NONCE, &[0; 32]).is_err());
        let signed = sign(ID, SECRET, TARGET, TIMESTAMP, NONCE, &[0; 32]).unwrap();
        assert!(!parse(&signed).unwrap().verify(b"", TARGET));
    }

    // Few letters, so that different requests often come near the same text.
    fn parts() -> impl Strategy<Value = (String, String, String, i64, String, [u8; 32])> {
        let digest = (0u8..2).prop_map(|byte| [byte; 32]);
        (
            "[A1\n]{0,2}",
            "[A1/\n]{0,4}",
            "[A1/\n]{0,4}",
            0i64..3,
            "[A1]{16,17}",
            digest,
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn different_requests_have_different_texts(one in parts(), other in parts()) {
            let text = |(method, path, query, timestamp, nonce, digest): &(String, String, String, i64, String, [u8; 32])| {
                let target = Target { method, path, query };
                Statement { target, timestamp: *timestamp, nonce, digest }.text()
            };
            if let (Some(first), Some(second)) = (text(&one), text(&other)) {
                prop_assert_eq!(one == other, first == second);
            }
        }

        /// The same as a proof: the parts can be read back from the text.
        #[test]
        fn a_text_tells_its_parts(method in "[A-Z]{1,9}", path in "[^\\x00-\\x1f\\x7f]{0,40}", query in "[^\\x00-\\x1f\\x7f]{0,40}", timestamp in 0i64.., nonce in "[A-Za-z0-9_-]{16,64}", digest: [u8; 32]) {
            let target = Target { method: &method, path: &path, query: &query };
            let text = Statement { target, timestamp, nonce: &nonce, digest: &digest }.text().unwrap();
            let lines: Vec<&str> = text.split('\n').collect();
            prop_assert_eq!(lines, [SCHEME, &method, &path, &query, &timestamp.to_string(), &nonce, &hex::encode(digest)]);
        }

        #[test]
        fn hexadecimal_digits_are_read_as_they_are_written(bytes: [u8; 32], other in "[0-9a-fA-Fg]{62,66}") {
            prop_assert_eq!(from_hex(&hex::encode(bytes)), Some(bytes));
            if let Some(read) = from_hex(&other) {
                prop_assert_eq!(hex::encode(read), other);
            }
        }
    }
}
