//! What became of those who waited, one by one and counted. Decides nothing.

use std::time::Duration;

/// Why a request that would have waited was not served. `wait` is how long another one would have
/// to, as far as can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotServed {
    /// As many wait as may; also of one that waited, and gave way to a tenant that had less.
    QueueFull { wait: Duration },
    /// What is left of the line is kept for higher classes of priority.
    Shed { wait: Duration },
    /// It would take longer than there is time.
    TooLong { wait: Duration },
    /// The time has passed.
    Late { wait: Duration },
    /// No account or endpoint is left that it could be tried at.
    Exhausted,
    /// All that are left are out, or behind an open breaker; `wait` is how long until the first may
    /// be asked.
    Closed { wait: Duration },
}

impl NotServed {
    /// As a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull { .. } => "queue_full",
            Self::Shed { .. } => "shed",
            Self::TooLong { .. } => "too_long",
            Self::Late { .. } => "late",
            Self::Exhausted => "exhausted",
            Self::Closed { .. } => "closed",
        }
    }

    /// How long another one would have to wait; `None` if it is not a matter of time.
    pub fn wait(self) -> Option<Duration> {
        match self {
            Self::QueueFull { wait }
            | Self::Shed { wait }
            | Self::TooLong { wait }
            | Self::Late { wait }
            | Self::Closed { wait } => Some(wait),
            Self::Exhausted => None,
        }
    }
}

/// What can be seen of a line, for metrics. Counts are since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    pub waiting: usize,
    pub granted: u64,
    /// Clients that left while they waited.
    pub left: u64,
    pub queue_full: u64,
    pub shed: u64,
    pub too_long: u64,
    pub late: u64,
    pub exhausted: u64,
    pub closed: u64,
    /// How long a place is held, on the average.
    pub hold: Duration,
}
