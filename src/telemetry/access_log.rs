//! One line per finished request: what happened, to whom, at what cost in time and tokens.
//!
//! This is the only place that decides what of a request is written down. Never a credential, a
//! prompt, an answer, a header's value or a query string.

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use crate::relay::usage::Usage;

/// Lines with this target are finished JSON.
pub const TARGET: &str = "access";

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The whole answer went out.
    Complete,
    /// The gateway answered with an error of its own.
    Refused,
    /// The client left first.
    ClientGone,
    /// The answer broke off after content was sent; the client was told.
    Interrupted,
}

/// The line's fields, in the order in which they are written. Absent ones are left out.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// RFC 3339, UTC, when the request ended.
    pub ts: String,
    pub level: &'static str,
    pub target: &'static str,
    pub request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<&'a str>,
    /// The kind of credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication: Option<&'static str>,
    /// The credential's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<&'a str>,
    pub method: &'a str,
    pub surface: &'static str,
    /// The public model name, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<&'a str>,
    /// 0 if nothing was sent.
    pub status: u16,
    pub ending: Ending,
    /// Error code of a refused request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// What is behind the error, for operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<&'a str>,
    pub attempts: u32,
    /// Every attempt in its turn, if there was more than one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tries: Vec<Tried<'a>>,
    /// How often the stream broke and went on elsewhere.
    #[serde(skip_serializing_if = "is_none")]
    pub resumed: u32,
    /// The configured answer went out in place of a model's.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub degraded: bool,
    pub stream: bool,
    pub duration_ms: f64,
    /// Of it, time in line for a place at an account; absent if it did not wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_first_token_ms: Option<f64>,
    pub request_bytes: usize,
    pub response_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_tokens: Option<u64>,
    /// The tokens were made up from what passed; nobody has told them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub usage_estimated: bool,
    /// In the accounting currency, six decimals; absent without a price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<&'static str>,
    /// The upstream's own id of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_trace: Option<&'a str>,
    pub protocol: &'static str,
}

/// One attempt of several.
#[derive(Debug, Serialize)]
pub struct Tried<'a> {
    pub upstream: &'a str,
    pub account: &'a str,
    pub endpoint: &'a str,
    /// As the upstream calls it.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub model: &'a str,
    /// As in `tidegate_attempts_total`.
    pub outcome: &'static str,
    pub ms: f64,
}

impl Line<'_> {
    #[must_use]
    pub fn with_usage(mut self, usage: Option<Usage>) -> Self {
        self.prompt_tokens = usage.map(|usage| usage.prompt);
        self.cached_tokens = usage.map(|usage| usage.cached);
        self.completion_tokens = usage.map(|usage| usage.completion);
        self.reasoning_tokens = usage.map(|usage| usage.reasoning);
        self
    }

    /// Writes the line, if access lines are on.
    pub fn write(&self) {
        if let Ok(line) = serde_json::to_string(self) {
            log::info!(target: TARGET, "{line}");
        }
    }
}

fn is_none(count: &u32) -> bool {
    *count == 0
}

/// Milliseconds with three decimals.
pub fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
