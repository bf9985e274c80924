//! An upstream's "your request is bad", in our words: what of its own may be said, and under which
//! code.

use crate::context::Attempt;
use crate::request::refusal::{Code, Refusal};

/// Characters of an upstream's message that are told.
const MOST_TOLD: usize = 2_000;
/// Stands where a key stood.
const HIDDEN: &str = "[key]";

/// An upstream's "your request is bad", in our error object: its message helps the tenant, the
/// rest of what it wrote does not concern them.
pub(super) fn upstream_error<'k>(
    status: u16,
    body: &[u8],
    keys: impl Iterator<Item = &'k str>,
) -> Refusal {
    let told: Option<String> = serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|value| {
            let message = value
                .pointer("/error/message")
                .or_else(|| value.get("message"))?;
            let text = without_keys(message.as_str()?, keys);
            Some(text.chars().take(MOST_TOLD).collect())
        });
    let code = client_fault(status);
    let message =
        told.unwrap_or_else(|| format!("The upstream refused the request with status {status}."));
    Refusal::new(code, message).detail(format!("upstream status {status}"))
}

/// The keys that the upstream of an attempt knows.
pub(super) fn keys(attempt: Option<&Attempt>) -> impl Iterator<Item = &str> {
    let accounts = attempt.map(|attempt| &attempt.lane.pool.settings.accounts);
    let keys = accounts.into_iter().flatten();
    keys.filter_map(|account| Some(account.api_key.as_ref()?.expose()))
}

/// A text of an upstream's without our keys, and without anything that looks like one: some echo
/// the key they refuse, whole or its end.
fn without_keys<'k>(text: &str, keys: impl Iterator<Item = &'k str>) -> String {
    let known = keys.filter(|key| !key.is_empty());
    let text = known.fold(text.to_owned(), |text, key| text.replace(key, HIDDEN));
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*');
    let is_key =
        |word: &str| (word.starts_with("sk-") && word.len() > 8) || word.starts_with("***");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        out.push_str(if is_key(word) { HIDDEN } else { word });
        let between = after.find(is_part).unwrap_or(after.len());
        let (between, next) = after.split_at(between);
        out.push_str(between);
        rest = next;
    }
    out
}

/// The code, and with it the status, for an upstream's "your request is bad".
pub(super) fn client_fault(status: u16) -> Code {
    match status {
        404 => Code::NotFound,
        405 => Code::MethodNotAllowed,
        413 => Code::BodyTooLarge,
        415 => Code::UnsupportedEncoding,
        422 => Code::Unprocessable,
        _ => Code::InvalidRequest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstreams_message_is_kept_and_its_other_fields_are_not() {
        let refusal = upstream_error(
            400,
            br#"{"error":{"message":"max_tokens is too large","type":"x","trace":"secret"}}"#,
            std::iter::once("zz-own-key"),
        );
        assert_eq!(refusal.message, "max_tokens is too large");
        assert_eq!(refusal.code, Code::InvalidRequest);
        let refusal = upstream_error(
            400,
            br#"{"error":{"message":"Your key \"sk-0123456789ab\" (****89ab) is bad"}}"#,
            std::iter::once("zz-own-key"),
        );
        assert_eq!(refusal.message, "Your key \"[key]\" ([key]) is bad");
        let refusal = upstream_error(
            400,
            br#"{"error":{"message":"key=sk-0123456789ab, Bearer:zz-own-key\nsk-0123456789ab"}}"#,
            std::iter::once("zz-own-key"),
        );
        assert_eq!(refusal.message, "key=[key], Bearer:[key]\n[key]");
        let long = format!("{} zz-own-key", "x".repeat(MOST_TOLD - 5));
        let body = format!(r#"{{"message":"{long}"}}"#);
        let refusal = upstream_error(400, body.as_bytes(), std::iter::once("zz-own-key"));
        assert!(!refusal.message.contains("zz"), "cut before it was hidden");
        let refusal = upstream_error(422, b"<html>", std::iter::once("zz-own-key"));
        assert!(refusal.message.contains("422"));
        let refusal = upstream_error(
            400,
            br#"{"code":20012,"message":"Model does not exist","data":null}"#,
            std::iter::once("zz-own-key"),
        );
        assert_eq!(refusal.message, "Model does not exist");
    }
}
