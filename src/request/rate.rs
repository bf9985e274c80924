//! What an answer's head says of the caller's limits, in the fields that SDKs and dashboards read.
//!
//! OpenAI's: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, the reset as a duration such
//! as `6m0s` or `12ms` (<https://platform.openai.com/docs/guides/rate-limits>). Anthropic's:
//! `anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}`, the reset as RFC 3339
//! (<https://docs.anthropic.com/en/api/rate-limits>).

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use jiff::Timestamp;
use pingora::Result;
use pingora::http::ResponseHeader;

use super::refusal::Family;

/// The tightest limit on requests, and the tightest on tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    pub requests: Option<Gauge>,
    pub tokens: Option<Gauge>,
}

/// How one limit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gauge {
    pub limit: u64,
    pub remaining: u64,
    /// Until all of it is there again.
    pub reset: Duration,
}

/// Limit, remaining, reset.
type Names = [HeaderName; 3];

const REQUESTS: Names = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: Names = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];
const ANTHROPIC_REQUESTS: Names = [
    HeaderName::from_static("anthropic-ratelimit-requests-limit"),
    HeaderName::from_static("anthropic-ratelimit-requests-remaining"),
    HeaderName::from_static("anthropic-ratelimit-requests-reset"),
];
const ANTHROPIC_TOKENS: Names = [
    HeaderName::from_static("anthropic-ratelimit-tokens-limit"),
    HeaderName::from_static("anthropic-ratelimit-tokens-remaining"),
    HeaderName::from_static("anthropic-ratelimit-tokens-reset"),
];

impl RateLimits {
    /// Adds the fields to a head. `now` is the wall clock's.
    ///
    /// # Errors
    /// Never: all names and values are well-formed.
    pub fn put(&self, head: &mut ResponseHeader, family: Family, now: Timestamp) -> Result<()> {
        let (requests, tokens) = match family {
            Family::OpenAi => (&REQUESTS, &TOKENS),
            Family::Anthropic => (&ANTHROPIC_REQUESTS, &ANTHROPIC_TOKENS),
        };
        for (gauge, names) in [(self.requests, requests), (self.tokens, tokens)] {
            let Some(gauge) = gauge else { continue };
            let [limit, remaining, reset] = names;
            head.insert_header(limit, HeaderValue::from(gauge.limit))?;
            head.insert_header(remaining, HeaderValue::from(gauge.remaining))?;
            let text = match family {
                Family::OpenAi => short(gauge.reset),
                Family::Anthropic => after(now, gauge.reset),
            };
            head.insert_header(reset, text)?;
        }
        Ok(())
    }
}

/// As OpenAI writes durations: `12ms`, `1s`, `6m0s`, `26h40m0s`. Rounded up: who waits so long does
/// not come too early.
pub fn short(duration: Duration) -> String {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    if millis < 1_000 {
        return format!("{millis}ms");
    }
    let seconds = millis.div_ceil(1_000);
    match (seconds / 3_600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// A point in time, to the second, RFC 3339.
pub fn after(now: Timestamp, wait: Duration) -> String {
    let seconds = wait.as_nanos().div_ceil(1_000_000_000);
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let at = Timestamp::from_second(now.as_second().saturating_add(seconds));
    at.unwrap_or(Timestamp::MAX).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_writes_them() {
        for (millis, text) in [
            (0, "0ms"),
            (12, "12ms"),
            (1_000, "1s"),
            (1_001, "2s"),
            (360_000, "6m0s"),
            (96_000_000, "26h40m0s"),
        ] {
            assert_eq!(short(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn each_family_reads_its_own_fields() {
        let gauge = Gauge {
            limit: 60,
            remaining: 59,
            reset: Duration::from_millis(1_500),
        };
        let limits = RateLimits {
            requests: Some(gauge),
            tokens: None,
        };
        let now = "2026-11-25T12:00:00.4Z".parse().unwrap();
        let mut head = ResponseHeader::build_no_case(200, None).unwrap();
        limits.put(&mut head, Family::OpenAi, now).unwrap();
        assert_eq!(head.headers["x-ratelimit-reset-requests"], "2s");
        assert_eq!(head.headers.len(), 3);
        let mut head = ResponseHeader::build_no_case(200, None).unwrap();
        limits.put(&mut head, Family::Anthropic, now).unwrap();
        let reset = &head.headers["anthropic-ratelimit-requests-reset"];
        assert_eq!(reset, "2026-11-25T12:00:02Z");
    }
}
