//! Finds the one credential that a request's head carries, whatever field it came in, and tells
//! its kind by its shape.
//!
//! Knows header names and nothing about tenants or keys. Client certificates belong to the
//! connection and are not seen here.

use http::header::{self, HeaderMap, HeaderValue};

use super::{signed_request, token};
use crate::config::settings::CredentialKind;

/// What the caller showed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Presented<'a> {
    Nothing,
    /// From `Authorization: Bearer` or `x-api-key`; also whatever is neither of the other two.
    ApiKey(&'a str),
    /// A JWT, from the same fields.
    Token(&'a str),
    /// The whole `Authorization: TG-HMAC-SHA256 …`.
    Signature(&'a str),
}

impl std::fmt::Debug for Presented<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Presented(***)")
    }
}

impl Presented<'_> {
    pub fn kind(self) -> Option<CredentialKind> {
        match self {
            Self::Nothing => None,
            Self::ApiKey(_) => Some(CredentialKind::ApiKey),
            Self::Token(_) => Some(CredentialKind::Token),
            Self::Signature(_) => Some(CredentialKind::SignedRequest),
        }
    }
}

/// Why no single credential was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// More than one was sent.
    Ambiguous,
    /// `Authorization` has another scheme than ours.
    Scheme,
    /// Bytes that no credential has.
    Unreadable,
}

/// Extracts at most one credential.
///
/// OpenAI's SDKs send `Authorization: Bearer`; Anthropic's older ones `x-api-key`, newer ones
/// `Authorization`, and some send both with the same key, which is taken.
///
/// # Errors
/// If there is more than one, or two that differ, or one that cannot be read.
pub fn extract(headers: &HeaderMap) -> Result<Presented<'_>, Doubt> {
    let authorization = single(headers, &header::AUTHORIZATION)?
        .map(text)
        .transpose()?;
    let key = single(headers, "x-api-key")?.map(text).transpose()?;
    if let Some(signature) = authorization.filter(|text| signed_request::scheme_matches(text)) {
        return match key {
            None => Ok(Presented::Signature(signature)),
            Some(_) => Err(Doubt::Ambiguous),
        };
    }
    let bearer = authorization.map(bearer_token).transpose()?;
    match (bearer, key) {
        (Some(bearer), Some(key)) if bearer != key => Err(Doubt::Ambiguous),
        (Some(found), _) | (None, Some(found)) if !found.is_empty() => {
            Ok(if token::looks_like_token(found) {
                Presented::Token(found)
            } else {
                Presented::ApiKey(found)
            })
        }
        _ => Ok(Presented::Nothing),
    }
}

fn single<K>(headers: &HeaderMap, name: K) -> Result<Option<&HeaderValue>, Doubt>
where
    K: http::header::AsHeaderName,
{
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(Doubt::Ambiguous);
    }
    Ok(first)
}

/// RFC 6750 §2.1: the scheme's name in any case, one space, the token. Of an empty one HTTP/1.1
/// leaves the name, since it drops spaces at the end (RFC 9110 §5.5).
fn bearer_token(text: &str) -> Result<&str, Doubt> {
    if text.eq_ignore_ascii_case("bearer") {
        return Ok("");
    }
    let token = text
        .split_at_checked(7)
        .and_then(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer ").then_some(token));
    token.map(str::trim).ok_or(Doubt::Scheme)
}

fn text(value: &HeaderValue) -> Result<&str, Doubt> {
    value.to_str().map_err(|_| Doubt::Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJ4In0.c2ln";

    fn of(fields: &[(&'static str, &'static str)]) -> Result<String, Doubt> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        extract(&headers).map(|presented| match presented {
            Presented::Nothing => "nothing".to_owned(),
            Presented::ApiKey(text) => format!("key {text}"),
            Presented::Token(text) => format!("token {text}"),
            Presented::Signature(_) => "signature".to_owned(),
        })
    }

    #[test]
    fn either_header_will_do_and_both_if_they_agree() {
        assert_eq!(of(&[("authorization", "Bearer k")]).unwrap(), "key k");
        assert_eq!(of(&[("authorization", "bearer k")]).unwrap(), "key k");
        assert_eq!(of(&[("x-api-key", "k")]).unwrap(), "key k");
        assert_eq!(
            of(&[("authorization", "Bearer k"), ("x-api-key", "k")]).unwrap(),
            "key k"
        );
    }

    #[test]
    fn the_kind_is_told_by_the_shape() {
        assert_eq!(of(&[]).unwrap(), "nothing");
        assert_eq!(of(&[("authorization", "Bearer ")]).unwrap(), "nothing");
        assert_eq!(of(&[("authorization", "bearer")]).unwrap(), "nothing");
        assert_eq!(
            of(&[("x-api-key", TOKEN)]).unwrap(),
            format!("token {TOKEN}")
        );
        assert_eq!(
            of(&[("authorization", "TG-HMAC-SHA256 id=a")]).unwrap(),
            "signature"
        );
    }

    #[test]
    fn doubtful_credentials_are_refused() {
        let basic = of(&[("authorization", "Basic abc")]);
        assert_eq!(basic, Err(Doubt::Scheme));
        for fields in [
            [("authorization", "Bearer a"), ("authorization", "Bearer b")],
            [("authorization", "Bearer a"), ("authorization", "Bearer a")],
            [("authorization", "Bearer a"), ("x-api-key", "b")],
            [("authorization", "TG-HMAC-SHA256 id=a"), ("x-api-key", "b")],
            [("x-api-key", "a"), ("x-api-key", "a")],
        ] {
            assert_eq!(of(&fields), Err(Doubt::Ambiguous), "{fields:?}");
        }
    }

    #[test]
    fn a_presented_credential_never_prints_itself() {
        assert!(!format!("{:?}", Presented::ApiKey("tg_secret")).contains("secret"));
    }
}
