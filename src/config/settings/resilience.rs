//! How failures of upstreams are met, as checked settings: what is tried again, who is left out
//! for how long, how requests are spread, which clocks run. What `Default` gives is what a file means
//! that says nothing; it stands in [`crate::config::file`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What can go wrong with an attempt before content was sent. One word for each in the
/// configuration, the metrics and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailureClass {
    /// No connection.
    Connect,
    /// No TLS, or not the right one.
    Tls,
    /// The connection ended before an answer's head.
    Reset,
    /// 429.
    RateLimited,
    /// 401, 402 or 403: the account, not the request.
    AccountRefused,
    /// 500, and any other status from 500 on that has no class of its own.
    ServerError,
    /// 502.
    BadGateway,
    /// 503 or 529.
    Unavailable,
    /// 504, 408 or 425.
    GatewayTimeout,
    /// What came was not HTTP, or not the answer that was asked for.
    Garbage,
    /// An error under status 200.
    ErrorInAnswer,
    /// `finish_reason: insufficient_system_resource`, or `aborted`.
    NoResources,
    /// The answer ended, or broke, before any content.
    Cut,
    /// No head, only keep-alives, or no content in time.
    Deadline,
}

/// What is tried again, how soon and how often.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// Attempts in all, the first included; 1 to 5.
    pub attempts: u32,
    /// No attempt begins later than this after the request came in.
    pub deadline: Duration,
    /// The wait before the second attempt is random between nothing and this; it doubles with each.
    pub base_backoff: Duration,
    /// The longest such wait; also the longest `retry-after` that is waited for.
    pub max_backoff: Duration,
    /// Retries that an upstream is sent, in percent of first attempts; 0 to 100.
    pub budget_percent: u32,
    /// Retries in ten seconds that are allowed whatever the traffic.
    pub budget_reserve: u32,
    /// What is tried again; never what the request itself is to blame for.
    pub on: BTreeSet<FailureClass>,
    /// How long an answer's head is held back while there is no content, so that a failure can
    /// still have its own status; zero sends it at once.
    pub hold_head: Duration,
}

/// When an account or an endpoint is left out because of what its traffic shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Outlier {
    /// Failures in a row that take it out; at least 1.
    pub consecutive_failures: u32,
    /// Share of failures in `window` above which it is out; 1 to 100 percent.
    pub error_percent: u32,
    /// Outcomes in `window` before the share says anything.
    pub min_requests: u32,
    pub window: Duration,
    /// First content that takes this many times that of its peers counts as ill; at least 2.
    pub slow_factor: u32,
    /// How long it is out the first time; doubles while it fails again.
    pub ejection: Duration,
    /// The longest it is out before it is tried again.
    pub max_ejection: Duration,
    /// Of all peers, at most so many percent are taken out; 0 to 100.
    pub max_ejected_percent: u32,
    /// Requests at one time while it is tried again.
    pub probes: u32,
    /// From the first success to its full share.
    pub ramp: Duration,
}

/// When nothing is sent to an endpoint for one model any more.
#[derive(Debug, Clone, PartialEq)]
pub struct Breaker {
    /// Share of failures in `window` above which it opens; 1 to 100 percent.
    pub error_percent: u32,
    /// Outcomes in `window` before the share says anything.
    pub min_requests: u32,
    pub window: Duration,
    /// How long it stays open before a few requests are let through.
    pub open: Duration,
    /// Successes that close it again, and requests at one time until then.
    pub probes: u32,
}

/// Conversations go back to the account that holds their prefix.
#[derive(Debug, Clone, PartialEq)]
pub struct Affinity {
    /// An account takes so many percent of its even share before its conversations go elsewhere;
    /// 100 to 1000.
    pub bound_percent: u32,
}

/// The provider's account of what is left is read.
#[derive(Debug, Clone, PartialEq)]
pub struct Credit {
    /// From one look to the next.
    pub interval: Duration,
    /// Below this a warning is given, in 10⁻⁹ of the currency, by the currency of the provider's
    /// answer.
    pub low_water: BTreeMap<String, u128>,
}

/// Clocks of a request that a model, a tenant or the client sets; `None` leaves what the upstream
/// says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deadlines {
    /// Sent to the head of a stream.
    pub first_byte: Option<Duration>,
    /// Sent to anything but keep-alives.
    pub queued: Option<Duration>,
    /// Sent to the first content.
    pub first_content: Option<Duration>,
    /// From content to content.
    pub gap: Option<Duration>,
    /// The request as a whole, over all attempts and waits.
    pub total: Option<Duration>,
}

/// What is answered when nothing else is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Degraded {
    /// Text with the placeholders `{model}` and `{request_id}`.
    pub text: String,
}

impl FailureClass {
    pub const ALL: [Self; 14] = [
        Self::Connect,
        Self::Tls,
        Self::Reset,
        Self::RateLimited,
        Self::AccountRefused,
        Self::ServerError,
        Self::BadGateway,
        Self::Unavailable,
        Self::GatewayTimeout,
        Self::Garbage,
        Self::ErrorInAnswer,
        Self::NoResources,
        Self::Cut,
        Self::Deadline,
    ];

    /// The word in configuration, metrics and log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Reset => "reset",
            Self::RateLimited => "rate_limited",
            Self::AccountRefused => "account_refused",
            Self::ServerError => "server_error",
            Self::BadGateway => "bad_gateway",
            Self::Unavailable => "unavailable",
            Self::GatewayTimeout => "gateway_timeout",
            Self::Garbage => "garbage",
            Self::ErrorInAnswer => "error_in_answer",
            Self::NoResources => "no_resources",
            Self::Cut => "cut",
            Self::Deadline => "deadline",
        }
    }
}
