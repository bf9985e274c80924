//! Every "no" the gateway says, and how it is worded for the API family the caller speaks.
//!
//! Stages decide *that* a request is refused and name the reason as a [`Refusal`]; only this file
//! knows the two error dialects, the types they use and which status goes with which code. The
//! public message helps the caller; the private detail goes to the log and nowhere else.
//!
//! Shapes: OpenAI error object (`{"error": {message, type, param, code}}`), Anthropic error object
//! (`{"type": "error", "error": {type, message}, "request_id"}`), both with our `code` and
//! `request_id` added where SDKs ignore unknown fields.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use http::StatusCode;
use serde::Serialize;
use serde_json::Value;

use super::rate::RateLimits;

/// The error dialect a caller understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Family {
    #[default]
    OpenAi,
    Anthropic,
}

/// Who has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The caller: another try of the same bytes cannot help.
    Client,
    /// This gateway or its configuration.
    Ours,
    /// Whatever stands behind us.
    Upstream,
}

/// A refused request: what the caller is told, and what the log is told besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: Code,
    /// A sentence that tells the caller what to do. Never holds a secret or an upstream's name.
    pub message: Cow<'static, str>,
    /// The body field the message is about, if one is.
    pub param: Option<&'static str>,
    /// Sent as `retry-after`, in whole seconds, at least 1.
    pub retry_after: Option<Duration>,
    /// Close the connection after the answer: its framing is in doubt.
    pub close: bool,
    /// The limit that refuses, for programs to read.
    pub limit: Option<Box<LimitNote>>,
    /// For the log only.
    pub detail: Option<String>,
}

/// A limit that a request did not fit in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LimitNote {
    /// As in reports: `chat/*/requests_per_minute`.
    pub name: String,
    /// `tenant` or `group`: whose limit it is.
    pub of: &'static str,
    /// Of the unit of the name; money in nano-units.
    pub limit: u64,
    pub used: u64,
    /// By requests under way.
    pub reserved: u64,
    /// What this request would have taken.
    pub requested: u64,
    /// Seconds until the limit stands where it began; rounded up.
    pub reset_seconds: u64,
    /// The same for the answer's head.
    #[serde(skip)]
    pub rate: RateLimits,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:expr, $fault:ident, $retry:literal;)*) => {
        /// The stable `code` of an error. One list: status, fault and whether the same request may
        /// succeed later hang on the code and on nothing else.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code there is, for documentation and tests.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The text in the error object, in logs and in metric labels.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            pub fn status(self) -> StatusCode {
                match self { $(Code::$name => $status,)* }
            }

            pub fn fault(self) -> Fault {
                match self { $(Code::$name => Fault::$fault,)* }
            }

            /// May an SDK send the same request again? Answered in `x-should-retry`.
            pub fn may_retry(self) -> bool {
                match self { $(Code::$name => $retry,)* }
            }
        }
    };
}

codes! {
    /// The head or its framing is not clean HTTP.
    BadRequest = "bad_request", StatusCode::BAD_REQUEST, Client, false;
    /// The body is not the JSON this API takes.
    InvalidBody = "invalid_body", StatusCode::BAD_REQUEST, Client, false;
    /// The upstream found fault with the request itself.
    InvalidRequest = "invalid_request", StatusCode::BAD_REQUEST, Client, false;
    /// The upstream understood the request and cannot take its parameters.
    Unprocessable = "unprocessable", StatusCode::UNPROCESSABLE_ENTITY, Client, false;
    MissingCredential = "missing_credential", StatusCode::UNAUTHORIZED, Client, false;
    InvalidCredential = "invalid_credential", StatusCode::UNAUTHORIZED, Client, false;
    /// Genuine, but not at this time.
    ExpiredCredential = "expired_credential", StatusCode::UNAUTHORIZED, Client, false;
    /// A signed request came a second time.
    ReplayedRequest = "replayed_request", StatusCode::UNAUTHORIZED, Client, false;
    /// The body is not the one that was signed.
    DigestMismatch = "digest_mismatch", StatusCode::UNAUTHORIZED, Client, false;
    /// The tenant does not call from this address.
    AddressNotAllowed = "address_not_allowed", StatusCode::FORBIDDEN, Client, false;
    TooManyFailedAttempts = "too_many_failed_attempts", StatusCode::TOO_MANY_REQUESTS, Client, true;
    /// A short limit of the tenant's plan, or of its group's, has no room now.
    RateLimitExceeded = "rate_limit_exceeded", StatusCode::TOO_MANY_REQUESTS, Client, true;
    /// A day's or a month's limit is used up.
    InsufficientQuota = "insufficient_quota", StatusCode::TOO_MANY_REQUESTS, Client, false;
    /// A limit that can never hold this request, however empty it is.
    RequestExceedsLimit = "request_exceeds_limit", StatusCode::TOO_MANY_REQUESTS, Client, false;
    /// One client address begins too many requests.
    TooManyRequestsFromAddress = "too_many_requests_from_address", StatusCode::TOO_MANY_REQUESTS, Client, true;
    TooManySignedRequests = "too_many_signed_requests", StatusCode::TOO_MANY_REQUESTS, Client, true;
    /// The tenant is known but may not do this.
    NotAllowed = "not_allowed", StatusCode::FORBIDDEN, Client, false;
    ModelNotAllowed = "model_not_allowed", StatusCode::FORBIDDEN, Client, false;
    /// An operator has switched the tenant off: 403, since no other try and no other model helps.
    TenantSwitchedOff = "tenant_switched_off", StatusCode::FORBIDDEN, Client, false;
    ModelNotFound = "model_not_found", StatusCode::NOT_FOUND, Client, false;
    UnknownPath = "unknown_path", StatusCode::NOT_FOUND, Client, false;
    NotFound = "not_found", StatusCode::NOT_FOUND, Client, false;
    MethodNotAllowed = "method_not_allowed", StatusCode::METHOD_NOT_ALLOWED, Client, false;
    RequestTimeout = "request_timeout", StatusCode::REQUEST_TIMEOUT, Client, true;
    BodyTooLarge = "body_too_large", StatusCode::PAYLOAD_TOO_LARGE, Client, false;
    TargetTooLong = "target_too_long", StatusCode::URI_TOO_LONG, Client, false;
    UnsupportedEncoding = "unsupported_encoding", StatusCode::UNSUPPORTED_MEDIA_TYPE, Client, false;
    ExpectationFailed = "expectation_failed", StatusCode::EXPECTATION_FAILED, Client, false;
    HeadTooLarge = "head_too_large", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Client, false;
    /// A transfer coding we do not speak.
    UnsupportedFraming = "unsupported_framing", StatusCode::NOT_IMPLEMENTED, Client, false;
    /// The upstream's own limit, not the tenant's.
    UpstreamRateLimited = "upstream_rate_limited", StatusCode::TOO_MANY_REQUESTS, Upstream, true;
    Internal = "internal_error", StatusCode::INTERNAL_SERVER_ERROR, Ours, true;
    UpstreamError = "upstream_error", StatusCode::BAD_GATEWAY, Upstream, true;
    UpstreamUnavailable = "upstream_unavailable", StatusCode::SERVICE_UNAVAILABLE, Upstream, true;
    UpstreamTimeout = "upstream_timeout", StatusCode::GATEWAY_TIMEOUT, Upstream, true;
    /// All accounts are at their ceiling, or too many bodies are in memory.
    Overloaded = "overloaded", StatusCode::SERVICE_UNAVAILABLE, Ours, true;
    /// Nobody can say how much of the tenant's limits is left, and the operator wants no request to
    /// pass unseen.
    LimitsUnavailable = "limits_unavailable", StatusCode::SERVICE_UNAVAILABLE, Ours, true;
    /// This process is leaving and another one counts.
    HandedOver = "handed_over", StatusCode::SERVICE_UNAVAILABLE, Ours, true;
    /// An operator has switched the model off: 503, on which callers go on to another model.
    ModelSwitchedOff = "model_switched_off", StatusCode::SERVICE_UNAVAILABLE, Ours, false;
    /// The answer broke off after content was sent; only ever seen inside a stream.
    StreamInterrupted = "stream_interrupted", StatusCode::BAD_GATEWAY, Upstream, true;
}

impl Refusal {
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            param: None,
            retry_after: None,
            close: false,
            limit: None,
            detail: None,
        }
    }

    /// What a tenant that is switched off is told; why it is, is the operators' business.
    pub fn tenant_switched_off() -> Self {
        Self::new(
            Code::TenantSwitchedOff,
            "The operators of this gateway have switched your access off for now. Ask them; trying \
             again does not help.",
        )
    }

    /// What callers of a model that is switched off are told.
    pub fn model_switched_off() -> Self {
        Self::new(
            Code::ModelSwitchedOff,
            "The operators of this gateway have switched this model off for now. Use another one, or \
             ask them; trying again does not help.",
        )
        .about("model")
    }

    /// Refuses and ends the connection: where the next request starts is no longer certain.
    pub fn closing(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            close: true,
            ..Self::new(code, message)
        }
    }

    #[must_use]
    pub fn about(mut self, param: &'static str) -> Self {
        self.param = Some(param);
        self
    }

    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub fn status(&self) -> StatusCode {
        self.code.status()
    }

    /// The value of `retry-after`, if there is one.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after
            .map(|wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
            .map(|s| s.max(1))
    }

    /// The error object in the caller's dialect.
    pub fn body(&self, family: Family, request_id: &str) -> String {
        let mut value = match family {
            Family::OpenAi => serde_json::json!({
                "error": {
                    "message": self.message,
                    "type": openai_type(self.code),
                    "param": self.param,
                    "code": self.code.as_str(),
                    "request_id": request_id,
                }
            }),
            Family::Anthropic => serde_json::json!({
                "type": "error",
                "error": {
                    "type": anthropic_type(self.code),
                    "message": self.message,
                    "code": self.code.as_str(),
                },
                "request_id": request_id,
            }),
        };
        if let Some(limit) = &self.limit
            && let Some(error) = value.get_mut("error").and_then(Value::as_object_mut)
        {
            error.insert("limit".to_owned(), serde_json::json!(limit));
        }
        value.to_string()
    }

    /// The same as an event inside a stream that has begun. OpenAI's SDKs raise on a `data` object
    /// with `error`, Anthropic's on `event: error`; neither is followed by a proper end.
    pub fn event(&self, family: Family, request_id: &str) -> String {
        let body = self.body(family, request_id);
        match family {
            Family::OpenAi => format!("data: {body}\n\n"),
            Family::Anthropic => format!("event: error\ndata: {body}\n\n"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

/// `type` in OpenAI's error object, by status: <https://platform.openai.com/docs/guides/error-codes>.
fn openai_type(code: Code) -> &'static str {
    if code == Code::InsufficientQuota {
        return "insufficient_quota";
    }
    match code.status().as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

/// `type` in Anthropic's error object, by status: <https://docs.anthropic.com/en/api/errors>.
fn anthropic_type(code: Code) -> &'static str {
    match code.status().as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_dialects_carry_code_and_request_id() {
        let refusal = Refusal::new(Code::ModelNotFound, "no such model").about("model");
        let openai: serde_json::Value =
            serde_json::from_str(&refusal.body(Family::OpenAi, "r1")).unwrap();
        assert_eq!(openai["error"]["code"], "model_not_found");
        assert_eq!(openai["error"]["param"], "model");
        assert_eq!(openai["error"]["type"], "invalid_request_error");
        assert_eq!(openai["error"]["request_id"], "r1");
        let anthropic: serde_json::Value =
            serde_json::from_str(&refusal.body(Family::Anthropic, "r1")).unwrap();
        assert_eq!(anthropic["type"], "error");
        assert_eq!(anthropic["error"]["type"], "not_found_error");
        assert_eq!(anthropic["request_id"], "r1");
    }

    #[test]
    fn codes_are_unique_and_a_clients_fault_is_never_a_5xx_but_for_501() {
        let mut seen = std::collections::HashSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()), "{} twice", code.as_str());
            let status = code.status().as_u16();
            match code.fault() {
                Fault::Client => assert!(status < 500 || status == 501, "{}", code.as_str()),
                Fault::Ours => assert!(status >= 500),
                Fault::Upstream => assert!(status >= 500 || status == 429),
            }
        }
    }

    #[test]
    fn the_private_detail_stays_out_of_the_body() {
        let refusal =
            Refusal::new(Code::UpstreamUnavailable, "try later").detail("401 from account main");
        assert!(!refusal.body(Family::OpenAi, "r").contains("main"));
        assert!(!refusal.event(Family::Anthropic, "r").contains("main"));
        assert!(refusal.to_string().contains("401 from account main"));
    }

    #[test]
    fn retry_after_is_rounded_up_to_whole_seconds() {
        let wait = |millis| {
            Refusal::new(Code::Overloaded, "")
                .retry_after(Duration::from_millis(millis))
                .retry_after_seconds()
        };
        assert_eq!(
            (wait(1), wait(1000), wait(1001)),
            (Some(1), Some(1), Some(2))
        );
    }
}
