//! Finds the one credential a request carries, whatever header it came in.
//!
//! Knows header names and nothing about tenants or keys.

use http::header::{self, HeaderMap, HeaderValue};

use crate::request::refusal::{Code, Refusal};

/// What the caller showed. Further kinds (signed token, signed request, client certificate) become
/// further variants.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Presented<'a> {
    /// From `Authorization: Bearer` or `x-api-key`.
    Bearer(&'a str),
}

impl std::fmt::Debug for Presented<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Presented(***)")
    }
}

/// Extracts exactly one credential.
///
/// OpenAI's SDKs send `Authorization: Bearer`; Anthropic's older ones `x-api-key`, newer ones
/// `Authorization`, and some send both with the same key, which is taken.
///
/// # Errors
/// 401 if there is none, or more than one, or two that differ.
pub fn extract(headers: &HeaderMap) -> Result<Presented<'_>, Refusal> {
    let bearer = single(headers, &header::AUTHORIZATION)?
        .map(bearer_token)
        .transpose()?;
    let key = single(headers, "x-api-key")?.map(text).transpose()?;
    match (bearer, key) {
        (Some(bearer), Some(key)) if bearer != key => Err(ambiguous()),
        (Some(found), _) | (None, Some(found)) if !found.is_empty() => Ok(Presented::Bearer(found)),
        _ => Err(Refusal::new(
            Code::MissingCredential,
            "No credential was sent. Put your gateway key in \"Authorization: Bearer <key>\" or \"x-api-key\".",
        )),
    }
}

fn single<K>(headers: &HeaderMap, name: K) -> Result<Option<&HeaderValue>, Refusal>
where
    K: http::header::AsHeaderName,
{
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(ambiguous());
    }
    Ok(first)
}

/// RFC 6750 §2.1: the scheme's name in any case, one space, the token.
fn bearer_token(value: &HeaderValue) -> Result<&str, Refusal> {
    let text = text(value)?;
    let token = text
        .split_at_checked(7)
        .and_then(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer ").then_some(token));
    token.map(str::trim).ok_or_else(|| {
        Refusal::new(
            Code::InvalidCredential,
            "The Authorization header must read \"Bearer <key>\".",
        )
    })
}

fn text(value: &HeaderValue) -> Result<&str, Refusal> {
    value.to_str().map_err(|_| {
        Refusal::new(
            Code::InvalidCredential,
            "The credential holds characters no key has.",
        )
    })
}

fn ambiguous() -> Refusal {
    Refusal::new(
        Code::InvalidCredential,
        "More than one credential was sent; send exactly one.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[(&'static str, &'static str)]) -> Result<String, Code> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        extract(&headers)
            .map(|Presented::Bearer(text)| text.to_owned())
            .map_err(|refusal| refusal.code)
    }

    #[test]
    fn either_header_will_do_and_both_if_they_agree() {
        assert_eq!(of(&[("authorization", "Bearer k")]).unwrap(), "k");
        assert_eq!(of(&[("authorization", "bearer k")]).unwrap(), "k");
        assert_eq!(of(&[("x-api-key", "k")]).unwrap(), "k");
        assert_eq!(
            of(&[("authorization", "Bearer k"), ("x-api-key", "k")]).unwrap(),
            "k"
        );
    }

    #[test]
    fn doubtful_credentials_are_refused() {
        assert_eq!(of(&[]), Err(Code::MissingCredential));
        assert_eq!(
            of(&[("authorization", "Bearer ")]),
            Err(Code::MissingCredential)
        );
        assert_eq!(
            of(&[("authorization", "Basic abc")]),
            Err(Code::InvalidCredential)
        );
        assert_eq!(
            of(&[("authorization", "Bearer a"), ("authorization", "Bearer b")]),
            Err(Code::InvalidCredential)
        );
        assert_eq!(
            of(&[("authorization", "Bearer a"), ("authorization", "Bearer a")]),
            Err(Code::InvalidCredential)
        );
        assert_eq!(
            of(&[("authorization", "Bearer a"), ("x-api-key", "b")]),
            Err(Code::InvalidCredential)
        );
    }

    #[test]
    fn a_presented_credential_never_prints_itself() {
        assert!(!format!("{:?}", Presented::Bearer("tg_secret")).contains("secret"));
    }
}
