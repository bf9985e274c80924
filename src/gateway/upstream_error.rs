//! What an upstream says against a request, or of a failure of its own, in our words: what of its
//! text may be said, and under which code.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::context::Attempt;
use crate::request::refusal::{Code, Refusal};

/// Characters of an upstream's message that are told.
const MOST_TOLD: usize = 2_000;
/// Stands where a key stood.
const HIDDEN: &str = "[key]";
/// Members of a response that are told of one that failed (Responses API reference): what the client
/// asked for and what it got. Its error is none of them.
const TOLD_OF_RESPONSE: [&str; 19] = [
    "created_at",
    "id",
    "incomplete_details",
    "instructions",
    "max_output_tokens",
    "metadata",
    "model",
    "object",
    "output",
    "parallel_tool_calls",
    "previous_response_id",
    "reasoning",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
    "truncation",
    "usage",
];
/// What a failed response's code is where the upstream's is no plain word.
const FAILED: &str = "server_error";

/// An upstream's "your request is bad", in our error object: its message helps the tenant, the
/// rest of what it wrote does not concern them.
pub(super) fn upstream_error<'k>(
    status: u16,
    body: &[u8],
    keys: impl Iterator<Item = &'k str>,
) -> Refusal {
    let told: Option<String> = serde_json::from_slice::<Value>(body)
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

/// The event by which the Responses API ends a stream that failed, in our words: the response as far
/// as it came, and of its error the code alone. `event` is the upstream's; if only its end is there,
/// the client has the beginning.
pub(super) fn failed_response(event: &[u8], request_id: &str) -> Bytes {
    let told = data_of(event);
    let cut = told.is_none();
    let mut told = told.unwrap_or_default();
    let code = told.pointer("/response/error/code").and_then(Value::as_str);
    let plain = |code: &&str| code.bytes().all(|c| c.is_ascii_lowercase() || c == b'_');
    let code = code.filter(|code| (1..=64).contains(&code.len()));
    let code = code.filter(plain).unwrap_or(FAILED).to_owned();
    let response = told.get_mut("response").and_then(Value::as_object_mut);
    let mut response = response.map(std::mem::take).unwrap_or_default();
    response.retain(|name, _| TOLD_OF_RESPONSE.contains(&name.as_str()));
    response.insert("status".to_owned(), json!("failed"));
    let message = "The upstream failed while it answered; what came before this is incomplete.";
    let error = json!({"code": code, "message": message, "request_id": request_id});
    response.insert("error".to_owned(), error);
    let mut data = Map::new();
    data.insert("type".to_owned(), json!("response.failed"));
    if let Some(number) = told.get("sequence_number").filter(|it| it.is_u64()) {
        data.insert("sequence_number".to_owned(), number.clone());
    }
    data.insert("response".to_owned(), Value::Object(response));
    // An event that was cut in the middle must not swallow ours.
    let before = if cut { "\n\n" } else { "" };
    let data = Value::Object(data);
    Bytes::from(format!("{before}event: response.failed\ndata: {data}\n\n"))
}

/// The data of the first event of a stream.
fn data_of(event: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(event).ok()?;
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines = text
        .trim_start_matches('\n')
        .lines()
        .take_while(|line| !line.is_empty());
    let data: Vec<_> = lines
        .filter_map(|line| line.strip_prefix("data:"))
        .collect();
    serde_json::from_str(&data.join("\n")).ok()
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
    fn a_failed_response_keeps_what_the_client_has_and_no_word_of_the_upstreams() {
        let event = br#"event: response.failed
data: {"type":"response.failed","sequence_number":9,"hint":"sk-a","response":
data: {"id":"resp_1","model":"m","output":[{"type":"message"}],"usage":{"input_tokens":3},"last":"sk-b","error":{"code":"rate_limit_exceeded","message":"sk-c"}}}

data: [DONE]

"#;
        let text = failed_response(event, "r1");
        let text = std::str::from_utf8(&text).unwrap();
        assert!(!text.contains("sk-"), "{text}");
        let data = text.strip_prefix("event: response.failed\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data.strip_suffix("\n\n").unwrap()).unwrap();
        assert_eq!(data["sequence_number"], 9);
        assert_eq!(data["response"]["error"]["code"], "rate_limit_exceeded");
        assert_eq!(data["response"]["error"]["request_id"], "r1");
        assert_eq!(data["response"]["status"], "failed");
        assert_eq!(data["response"]["usage"]["input_tokens"], 3);
        assert_eq!(data["response"]["output"][0]["type"], "message");
    }

    #[test]
    fn of_a_failed_response_that_cannot_be_read_nothing_is_kept() {
        for event in [
            &b"or\":{\"message\":\"sk-c\"}}}\n\n"[..],
            b"data: {\"type\":\"response.failed\",,\"sk-c\"\n\n",
            b"data: \xff\n\n",
        ] {
            let text = failed_response(event, "r1");
            let text = std::str::from_utf8(&text).unwrap();
            assert!(text.starts_with("\n\nevent: response.failed\n"), "{text}");
            assert!(text.contains(FAILED) && !text.contains("sk-"), "{text}");
        }
        for code in ["", "sk-c", "A", "9"] {
            let event = json!({"response": {"error": {"code": code}}});
            let text = failed_response(format!("data:{event}\n\n").as_bytes(), "r1");
            assert!(String::from_utf8_lossy(&text).contains(FAILED));
        }
    }

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
