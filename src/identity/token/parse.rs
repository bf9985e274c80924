//! Takes a compact token apart and refuses headers that would steer how it is checked. What it
//! gives is unproven and keeps its claims to itself: the way to them is [`Unverified::verify`].
//!
//! Of a header it reads `alg`, `kid` and `typ`. It refuses
//! - `crit` (RFC 7515 §4.1.11: no extension is understood here) and `b64` (RFC 7797);
//! - `jwk`, `jku`, `x5u` and `x5c`, which bring a key along or say where to get one. To pass over
//!   them would be safe too, as no key is ever taken from a token; but an issuer that sends them
//!   counts on what will not happen, and a caller that does is trying something.
//!
//! Thumbprints (`x5t`) and unknown members are passed over (RFC 7515 §4).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::claims::{self, Claims, Rules};
use super::{KeySet, TokenError, object};

/// Longest token read unless the configuration says otherwise, in bytes. Tokens of real issuers
/// with many roles have 2 to 4 KiB; request heads are bounded elsewhere.
pub const DEFAULT_MAX_BYTES: usize = 8 * 1024;

const REFUSED: [&str; 6] = ["crit", "b64", "jwk", "jku", "x5u", "x5c"];

/// A token of the right shape, about which nothing is proven.
pub struct Unverified<'a> {
    signed: &'a str,
    algorithm: String,
    key_id: Option<String>,
    payload: Map<String, Value>,
    signature: Vec<u8>,
}

impl<'a> Unverified<'a> {
    /// Takes `token` apart if it has at most `max_bytes`.
    ///
    /// # Errors
    /// [`TokenError::TooLarge`], [`Malformed`](TokenError::Malformed),
    /// [`UnsupportedHeader`](TokenError::UnsupportedHeader) or [`WrongType`](TokenError::WrongType).
    pub fn parse(token: &'a str, max_bytes: usize) -> Result<Self, TokenError> {
        if token.len() > max_bytes {
            return Err(TokenError::TooLarge);
        }
        let shape = TokenError::Malformed("it does not have three parts");
        let (signed, signature) = token.rsplit_once('.').ok_or(shape.clone())?;
        // A fourth part would leave a dot in the payload, which base64url does not have.
        let (header, payload) = signed.split_once('.').ok_or(shape)?;

        let header = decode(header)
            .and_then(|bytes| object::read(&bytes))
            .ok_or(TokenError::Malformed(
                "its header is no JSON object in base64url",
            ))?;
        check_header(&header)?;
        let algorithm = match header.get("alg") {
            Some(Value::String(name)) => name.clone(),
            _ => return Err(TokenError::Malformed("its header lacks \"alg\"")),
        };
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err(TokenError::Malformed("its \"kid\" is no string")),
        };
        let payload = decode(payload)
            .and_then(|bytes| object::read(&bytes))
            .ok_or(TokenError::Malformed(
                "its payload is no JSON object in base64url",
            ))?;
        let signature =
            decode(signature).ok_or(TokenError::Malformed("its signature is not in base64url"))?;
        Ok(Unverified {
            signed,
            algorithm,
            key_id,
            payload,
            signature,
        })
    }

    /// The `iss` that the token claims to be from, to find whose rules and keys it must pass.
    /// Nothing else may be decided by it.
    ///
    /// # Errors
    /// [`TokenError::Malformed`] if there is none or it is no string.
    pub fn issuer(&self) -> Result<&str, TokenError> {
        let issuer = self.payload.get("iss").and_then(Value::as_str);
        issuer.ok_or(TokenError::Malformed("its payload lacks \"iss\""))
    }

    /// Checks algorithm, signature and claims, in this order, at `now` (Unix seconds).
    ///
    /// # Errors
    /// The first [`TokenError`].
    pub fn verify(self, rules: &Rules, keys: &KeySet, now: i64) -> Result<Claims, TokenError> {
        if self.algorithm != rules.algorithm.as_str() || keys.algorithm() != rules.algorithm {
            return Err(TokenError::WrongAlgorithm);
        }
        keys.check(
            self.key_id.as_deref(),
            self.signed.as_bytes(),
            &self.signature,
        )?;
        claims::check(self.payload, rules, now)
    }
}

impl std::fmt::Debug for Unverified<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unverified(***)")
    }
}

/// Whether `text` is shaped like a token rather than like an API key: three parts of base64url,
/// none empty, the first beginning with what `{"` becomes. Reads each byte twice at most.
pub fn looks_like_token(text: &str) -> bool {
    let mut parts = text.splitn(3, '.');
    text.starts_with("ey") && [(); 3].map(|()| parts.next()).into_iter().all(is_base64url)
}

/// [`Unverified::issuer`] of a token of at most [`DEFAULT_MAX_BYTES`].
///
/// # Errors
/// As [`Unverified::parse`] and [`Unverified::issuer`].
pub fn issuer_of(token: &str) -> Result<String, TokenError> {
    let token = Unverified::parse(token, DEFAULT_MAX_BYTES)?;
    token.issuer().map(str::to_owned)
}

/// Looks at all bytes even if the first is wrong: without a way out, the compiler takes many at once.
fn is_base64url(part: Option<&str>) -> bool {
    part.is_some_and(|part| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() | (byte == b'-') | (byte == b'_');
        !part.is_empty() & part.bytes().fold(true, |all, byte| all & fits(byte))
    })
}

/// RFC 7515 §2: no padding, no white space, and the bits beyond the last byte are zero, so that
/// no two texts mean the same bytes.
fn decode(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}

fn check_header(header: &Map<String, Value>) -> Result<(), TokenError> {
    if let Some(name) = REFUSED.into_iter().find(|name| header.contains_key(*name)) {
        return Err(TokenError::UnsupportedHeader(name));
    }
    match header.get("typ") {
        None => Ok(()),
        Some(Value::String(media)) if is_token_type(media) => Ok(()),
        Some(_) => Err(TokenError::WrongType),
    }
}

/// RFC 7515 §4.1.9: a media type, in any case, whose `application/` may be left out.
fn is_token_type(media: &str) -> bool {
    const PREFIX: &str = "application/";
    let name = match media.split_at_checked(PREFIX.len()) {
        Some((prefix, name)) if prefix.eq_ignore_ascii_case(PREFIX) => name,
        _ => media,
    };
    name.eq_ignore_ascii_case("JWT") || name.eq_ignore_ascii_case("at+jwt")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(header: &str, payload: &str) -> String {
        format!(
            "{}.{}.AAAA",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(payload)
        )
    }

    fn parsed(header: &str) -> Result<(), TokenError> {
        Unverified::parse(&token(header, "{}"), DEFAULT_MAX_BYTES).map(drop)
    }

    #[test]
    fn a_token_is_told_from_a_key_by_its_shape() {
        assert!(looks_like_token(&token(r#"{"alg":"HS256"}"#, "{}")));
        for other in [
            "",
            "ey",
            "ey.a",
            "ey.a.",
            "ey..a",
            ".ey.a",
            "ey.a.b.c",
            "ey.a.b.",
            "ey.a b.c",
            "ey.a.b=",
            "ey.a.é",
            "tg_key_0123456789",
            "sk-abc",
            "Ey.a.b",
            "ey.a+.b",
            "ey.a.b\n",
        ] {
            assert!(!looks_like_token(other), "{other:?}");
        }
        assert!(looks_like_token("ey.a-.b_"));
    }

    #[test]
    fn headers_that_steer_the_check_are_refused() {
        for name in REFUSED {
            for value in ["null", "[]", "{}", "\"x\"", "false"] {
                assert_eq!(
                    parsed(&format!("{{\"alg\":\"RS256\",\"{name}\":{value}}}")),
                    Err(TokenError::UnsupportedHeader(name))
                );
            }
        }
        assert_eq!(parsed(r#"{"alg":"RS256","x5t":"a","zip":1}"#), Ok(()));
    }

    #[test]
    fn a_type_is_that_of_a_token_or_absent() {
        for good in [
            "JWT",
            "jwt",
            "at+jwt",
            "AT+JWT",
            "application/jwt",
            "Application/at+JWT",
        ] {
            assert_eq!(
                parsed(&format!("{{\"alg\":\"a\",\"typ\":\"{good}\"}}")),
                Ok(()),
                "{good}"
            );
        }
        for bad in [
            "\"\"",
            "\"JOSE\"",
            "\"dpop+jwt\"",
            "\"application/\"",
            "\"text/jwt\"",
            "1",
            "null",
            "\"logout+jwt\"",
            "\"JWT \"",
            "\"applicatio\u{00f6}/jwt\"",
        ] {
            let header = format!("{{\"alg\":\"a\",\"typ\":{bad}}}");
            assert_eq!(parsed(&header), Err(TokenError::WrongType), "{bad}");
        }
    }

    #[test]
    fn a_token_is_three_parts_of_strict_base64url() {
        let good = token(r#"{"alg":"HS256"}"#, "{}");
        assert!(Unverified::parse(&good, good.len()).is_ok());
        assert_eq!(
            Unverified::parse(&good, good.len() - 1).map(drop),
            Err(TokenError::TooLarge)
        );
        let bad = [
            String::new(),
            ".".into(),
            "..".into(),
            good.replacen('.', "", 1),
            format!("{good}.AAAA"),
            format!("{good}="),
            format!("{good} "),
            format!(" {good}"),
            format!("{good}\n"),
            good.replace("AAAA", "AA/A"),
            good.replace("AAAA", "AA+A"),
            // "AB" leaves bits over that are not zero.
            good.replace("AAAA", "AB"),
            good.replace("AAAA", "A"),
            token(r#"{"alg":1}"#, "{}"),
            token(r#"{"kid":"a"}"#, "{}"),
            token(r#"{"alg":"HS256","kid":1}"#, "{}"),
            token(r#"{"alg":"HS256","alg":"none"}"#, "{}"),
            token(r#"["alg"]"#, "{}"),
            token(r#"{"alg":"HS256"}"#, "[]"),
            token(r#"{"alg":"HS256"}"#, "{\"iss\":1,\"iss\":1}"),
            token(r#"{"alg":"HS256"}"#, &"{\"a\":".repeat(500)),
        ];
        for bad in bad {
            let refused = Unverified::parse(&bad, DEFAULT_MAX_BYTES).map(drop);
            assert!(matches!(refused, Err(TokenError::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn the_issuer_is_read_before_anything_is_proven() {
        let header = r#"{"alg":"HS256"}"#;
        assert_eq!(
            issuer_of(&token(header, r#"{"iss":"a\u0062"}"#)).unwrap(),
            "ab"
        );
        for lacking in ["{}", r#"{"iss":1}"#, r#"{"iss":null}"#] {
            let refused = issuer_of(&token(header, lacking)).unwrap_err();
            assert!(!refused.proven());
        }
    }

    #[test]
    fn nothing_of_a_token_is_printed() {
        let text = token(r#"{"alg":"HS256","kid":"secret"}"#, r#"{"iss":"secret"}"#);
        let parsed = Unverified::parse(&text, DEFAULT_MAX_BYTES).unwrap();
        assert_eq!(format!("{parsed:?}"), "Unverified(***)");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}", parts in "[a-zA-Z0-9_.=+-]{0,200}") {
            for text in [text, parts] {
                let parsed = Unverified::parse(&text, DEFAULT_MAX_BYTES);
                prop_assert!(parsed.is_err() || looks_like_token(&text) || text.ends_with('.') || !text.starts_with("ey"));
                let _ = issuer_of(&text);
            }
        }

        #[test]
        fn the_shape_of_a_token_is_that_of_its_parts(text in "(ey)?[a-zA-Z0-9_.=+-]{0,12}(\\.[a-z]{0,40}){0,3}[é\n]?") {
            let parts: Vec<_> = text.split('.').collect();
            let fits = |part: &&str| {
                let known = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
                !part.is_empty() && part.chars().all(known)
            };
            let shaped = text.starts_with("ey") && parts.len() == 3 && parts.iter().all(fits);
            prop_assert_eq!(looks_like_token(&text), shaped);
        }

        #[test]
        fn no_content_panics(header in ".{0,60}", payload in ".{0,60}") {
            let text = token(&header, &payload);
            let _ = Unverified::parse(&text, DEFAULT_MAX_BYTES);
            let named = token(&format!("{{\"alg\":\"HS256\",\"typ\":{header:?}}}"), &payload);
            let _ = Unverified::parse(&named, DEFAULT_MAX_BYTES);
        }
    }
}
