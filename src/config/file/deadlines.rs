//! Clocks, as written: of an attempt (`upstreams[].timeouts`), and of the requests of a model or a
//! tenant. All of them reload.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::text::DurationText;

/// One lost SYN is sent again after 1 s, a second after 3 s; then another endpoint is the better bet.
pub const CONNECT: DurationText = seconds(3);
/// As `CONNECT`, and as much again for the TLS handshake.
pub const CONNECT_TOTAL: DurationText = seconds(6);
/// DeepSeek sends keep-alives while a request waits; five minutes without one is a dead line.
pub const READ: DurationText = seconds(300);
/// A provider that reads nothing of our body for this long is stuck.
pub const WRITE: DurationText = seconds(30);
/// DeepSeek sends its 200 before it computes, also to who waits there: a matter of seconds.
pub const FIRST_BYTE: DurationText = seconds(60);
/// As `FIRST_CONTENT`: who waits in DeepSeek's queue is sent keep-alives until it gives up.
pub const QUEUED: DurationText = seconds(600);
/// DeepSeek closes a connection whose inference has not begun after 10 minutes.
pub const FIRST_CONTENT: DurationText = seconds(600);
/// Tokens come by the dozen a second; two minutes without one is a stall.
pub const GAP: DurationText = seconds(120);
/// The longest answers, with reasoning, end well before.
pub const TOTAL: DurationText = seconds(1800);

const fn seconds(count: u64) -> DurationText {
    DurationText(Duration::from_secs(count))
}

/// Deadlines of one attempt; each more than 0 and at most 24h. Those that may not be above `total`
/// give way to it where they are not written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// TCP connect.
    pub connect: DurationText,
    /// TCP connect and TLS handshake together; at least `connect`.
    pub connect_total: DurationText,
    /// Silence on the connection, before the head as between bytes. Keep-alives count as life.
    pub read: DurationText,
    /// One write to an upstream that does not read.
    pub write: DurationText,
    /// Request sent to the head of a streamed answer. At most `total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = FIRST_BYTE))]
    pub first_byte: Option<DurationText>,
    /// Request sent to anything but keep-alives. At most `total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = QUEUED))]
    pub queued: Option<DurationText>,
    /// Request sent to first content; keep-alives do not count. At most `total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = FIRST_CONTENT))]
    pub first_content: Option<DurationText>,
    /// Content to content; keep-alives do not count. At most `total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = GAP))]
    pub gap: Option<DurationText>,
    /// The whole attempt.
    pub total: DurationText,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: CONNECT,
            connect_total: CONNECT_TOTAL,
            read: READ,
            write: WRITE,
            first_byte: None,
            queued: None,
            first_content: None,
            gap: None,
            total: TOTAL,
        }
    }
}

/// Clocks over those of the upstream, each more than 0 and at most 24h. What is not written is left
/// to who says it next: for a request its tenant, then its model, then `timeouts` of the upstream.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Deadlines {
    /// Request sent to the head of a streamed answer. At most `total`.
    pub first_byte: Option<DurationText>,
    /// Request sent to anything but keep-alives. At most `total`.
    pub queued: Option<DurationText>,
    /// Request sent to first content; keep-alives do not count. At most `total`.
    pub first_content: Option<DurationText>,
    /// Content to content; keep-alives do not count. At most `total`.
    pub gap: Option<DurationText>,
    /// The request as a whole, over all attempts and waits.
    pub total: Option<DurationText>,
}

impl Deadlines {
    /// These, and those of `other` where nothing is written here.
    pub fn or(self, other: Self) -> Self {
        Self {
            first_byte: self.first_byte.or(other.first_byte),
            queued: self.queued.or(other.queued),
            first_content: self.first_content.or(other.first_content),
            gap: self.gap.or(other.gap),
            total: self.total.or(other.total),
        }
    }
}
