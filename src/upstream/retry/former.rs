//! Failures as the verdict names them until it speaks of classes.

use super::Avoid;

/// What went wrong with an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection, or no TLS.
    Connect,
    /// The connection ended before an answer began.
    Reset,
    /// A pooled connection was dead when it was used; the upstream saw nothing.
    StaleConnection,
    /// Nothing came in time.
    Timeout,
    /// A whole answer with a status that is not a success.
    Status(u16),
    /// What came was not HTTP.
    Garbage,
}

impl Failure {
    /// The label in `tidegate_attempts_total`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect_failed",
            Self::Reset => "reset",
            Self::StaleConnection => "stale_connection",
            Self::Timeout => "timeout",
            Self::Garbage => "garbage",
            Self::Status(401..=403) => "account_refused",
            Self::Status(429) => "rate_limited",
            Self::Status(500..) => "server_error",
            Self::Status(_) => "client_error",
        }
    }

    /// Does it speak against the endpoint's health?
    pub fn blames_endpoint(self) -> bool {
        matches!(self, Self::Connect)
    }
}

/// May this failure be tried again, and avoiding what? `None` for never.
pub fn next(failure: Failure) -> Option<Avoid> {
    match failure {
        Failure::Connect => Some(Avoid::Endpoint),
        Failure::StaleConnection => Some(Avoid::Nothing),
        Failure::Status(401..=403) => Some(Avoid::Account),
        Failure::Status(429) => Some(Avoid::Limited),
        Failure::Reset | Failure::Status(500..=599) => Some(Avoid::Either),
        Failure::Timeout | Failure::Garbage | Failure::Status(_) => None,
    }
}
