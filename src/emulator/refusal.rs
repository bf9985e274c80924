//! What an error of the emulated provider looks like: status, shape and words.
//! Sources are the shapes seen at the real one; who refuses what is decided elsewhere.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;
use uuid::Uuid;

use super::fault::{Faults, Instead};

/// What a server in front of the API says when it has no answer.
pub(super) const PAGE: &[u8] = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>openresty</center>\r\n</body>\r\n</html>\r\n";
pub(super) const HTML: &str = "text/html";

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub shape: Shape,
    pub retry_after: Option<u64>,
    /// How long it takes until it is told.
    pub delay: Duration,
    /// True when an order of faults asked for it.
    pub ordered: bool,
}

/// The body of a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    Empty,
    Text(String),
    Page,
    Error {
        message: String,
        kind: &'static str,
        code: &'static str,
    },
}

impl Refusal {
    fn new(status: StatusCode, shape: Shape) -> Self {
        Self {
            status,
            shape,
            retry_after: None,
            delay: Duration::ZERO,
            ordered: false,
        }
    }

    fn error(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = "invalid_request_error";
        Self::new(
            status,
            Shape::Error {
                message: message.into(),
                kind,
                code: kind,
            },
        )
    }

    /// Path, method: an empty body.
    pub(super) fn empty(status: StatusCode) -> Self {
        Self::new(status, Shape::Empty)
    }

    /// 400: a request that is well formed and makes no sense.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::error(StatusCode::BAD_REQUEST, message)
    }

    /// 422: a parameter outside its range.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::error(StatusCode::UNPROCESSABLE_ENTITY, message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::error(StatusCode::NOT_FOUND, message)
    }

    pub(super) fn media_type() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Shape::Text("Expected request with `Content-Type: application/json`".to_owned()),
        )
    }

    pub(super) fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Shape::Text("Failed to buffer the request body: length limit exceeded".to_owned()),
        )
    }

    /// A body that is no JSON (400) or not the JSON that is wanted (422).
    pub(super) fn unreadable(error: &serde_json::Error) -> Self {
        match error.classify() {
            serde_json::error::Category::Data => Self::invalid(format!(
                "Failed to deserialize the JSON body into the target type: {error}"
            )),
            _ => Self::bad(format!("Failed to parse the request body as JSON: {error}")),
        }
    }

    pub(super) fn unknown_model(name: &str) -> Self {
        Self::bad(format!(
            "The supported API model names are deepseek-flash, deepseek-v4-pro, but you passed {name}."
        ))
    }

    /// No key at all: 31 bytes that are no JSON.
    pub(super) fn no_key() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            Shape::Text("Authentication Fails (governor)".to_owned()),
        )
    }

    /// A wrong key: the message repeats its last four characters.
    pub(super) fn wrong_key(key: &str) -> Self {
        let length = key.chars().count();
        let tail: String = key.chars().skip(length.saturating_sub(4)).collect();
        let id = Uuid::new_v4();
        Self::new(
            StatusCode::UNAUTHORIZED,
            Shape::Error {
                message: format!(
                    "Authentication Fails, Your api key: ****{tail} is invalid (request_id: {id})"
                ),
                kind: "authentication_error",
                code: "invalid_request_error",
            },
        )
    }

    pub(super) fn no_balance() -> Self {
        Self::new(
            StatusCode::PAYMENT_REQUIRED,
            provider_error("Insufficient Balance"),
        )
    }

    pub(super) fn too_many(model: &str, ceiling: usize) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            provider_error(&format!(
                "Rate limit reached: {ceiling} concurrent requests of {model} are running"
            )),
        )
    }

    /// An order of faults that the emulator does not understand.
    pub(super) fn order(message: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            Shape::Error {
                message: format!("emulator: {message}"),
                kind: "emulator_error",
                code: "unknown_fault",
            },
        )
    }

    /// The refusal with this status that an order asks for.
    pub(super) fn ordered(status: u16, faults: &Faults) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let shape = match (&faults.body, status.as_u16()) {
            _ if faults.instead == Some(Instead::Page) => Shape::Page,
            _ if faults.instead == Some(Instead::Nothing) => Shape::Empty,
            (Some(body), _) => Shape::Text(body.clone()),
            (None, 400) => Self::bad("Invalid request (emulated)").shape,
            (None, 401) => Self::wrong_key("sk-emulated").shape,
            (None, 402) => provider_error("Insufficient Balance"),
            (None, 404 | 405) => Shape::Empty,
            (None, 422) => Self::invalid("Invalid parameters (emulated)").shape,
            (None, 429) => provider_error("Rate limit reached (emulated)"),
            (None, 503) => provider_error("Service is too busy (emulated)"),
            (None, _) => provider_error("Server error (emulated)"),
        };
        Self {
            status,
            shape,
            retry_after: faults.retry_after,
            delay: faults.head.unwrap_or_default(),
            ordered: true,
        }
    }

    /// The body and its content type. Anthropic's SDKs look for `type: error` on top.
    pub(super) fn render(&self, anthropic: bool) -> (Bytes, &'static str) {
        match &self.shape {
            Shape::Empty => (Bytes::new(), ""),
            Shape::Page => (Bytes::from_static(PAGE), HTML),
            Shape::Text(text) => {
                let json = text.starts_with(['{', '[']);
                let kind = if json {
                    "application/json"
                } else {
                    "text/plain; charset=utf-8"
                };
                (Bytes::from(text.clone()), kind)
            }
            Shape::Error {
                message,
                kind,
                code,
            } => {
                let error =
                    json!({ "message": message, "type": kind, "param": null, "code": code });
                let body = if anthropic {
                    json!({ "type": "error", "error": error })
                } else {
                    json!({ "error": error })
                };
                (Bytes::from(body.to_string()), "application/json")
            }
        }
    }
}

/// The shape seen with 402, taken for every refusal that is not the request's fault.
fn provider_error(message: &str) -> Shape {
    Shape::Error {
        message: message.to_owned(),
        kind: "unknown_error",
        code: "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_answered_in_31_bytes_of_text() {
        let (body, kind) = Refusal::no_key().render(false);
        assert_eq!(body.len(), 31);
        assert!(kind.starts_with("text/plain"));
    }

    #[test]
    fn a_wrong_key_is_echoed_by_its_last_four_characters_only() {
        let text = format!("{:?}", Refusal::wrong_key("sk-secretéz99"));
        assert!(text.contains("****éz99 ") && !text.contains("secret"));
        assert!(format!("{:?}", Refusal::wrong_key("ab")).contains("****ab "));
    }

    #[test]
    fn an_empty_balance_has_the_observed_shape() {
        let (body, _) = Refusal::no_balance().render(false);
        let expected = json!({"error": {"message": "Insufficient Balance", "type": "unknown_error",
            "param": null, "code": "invalid_request_error"}});
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&body).ok(),
            Some(expected)
        );
    }
}
