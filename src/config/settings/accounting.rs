//! Prices, the ledger and the store of counts, as they are meant.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;

use super::UpstreamId;
use crate::config::secret::Secret;

/// How use becomes money, and how long it is remembered.
#[derive(Debug, PartialEq)]
pub struct Accounting {
    /// Of the calendar's days and months in limits and reports.
    pub time_zone: TimeZone,
    /// ISO 4217 code in which costs, limits and the ledger are kept.
    pub currency: Arc<str>,
    /// By upstream, model and `from`, which together are unique.
    pub prices: Vec<Price>,
    /// How long the ledger keeps its rows.
    pub keep: Duration,
    /// A lease held for longer is reported with its request's id.
    pub lease_warning: Duration,
}

/// What an upstream's model costs from a day on; the latest that has begun counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Price {
    pub upstream: UpstreamId,
    /// The upstream's name.
    pub model: String,
    /// [`Timestamp::MIN`] for always.
    pub from: Timestamp,
    pub base: Rates,
    /// At the hours of the calendar.
    pub peak: Option<(Arc<PeakHours>, Rates)>,
}

/// Price of one token, in pico-units (10⁻¹²) of [`Accounting::currency`]; 10¹² at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    pub cache_hit: u64,
    pub cache_miss: u64,
    pub output: u64,
}

/// When a provider charges more.
#[derive(Debug, Clone, PartialEq)]
pub struct PeakHours {
    pub name: String,
    pub time_zone: TimeZone,
    /// In the order of the week, at least one.
    pub days: Vec<Weekday>,
    /// In their order, not overlapping: from, up to but not at. The second is later, or midnight for
    /// the end of the day.
    pub hours: Vec<(Time, Time)>,
    /// Days without peak, in their order.
    pub holidays: Vec<Date>,
}

/// Where counts are kept, beside the process's own memory.
#[derive(Debug, Clone, PartialEq)]
pub enum Store {
    /// The embedded database in `state_dir`.
    Local,
    /// Several hosts share their counts. The ledger stays local.
    Redis(RedisStore),
}

#[derive(Debug, Clone, PartialEq)]
pub struct RedisStore {
    pub nodes: RedisNodes,
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub tls: bool,
    /// PEM bundle that replaces the system's roots.
    pub ca: Option<std::path::PathBuf>,
    /// Number of the database; 0 for a cluster.
    pub database: u32,
    /// Put before every key.
    pub prefix: String,
    /// One reservation.
    pub timeout: Duration,
    pub fail: FailMode,
}

/// `host:port` each.
#[derive(Debug, Clone, PartialEq)]
pub enum RedisNodes {
    One(String),
    Sentinel { nodes: Vec<String>, master: String },
    Cluster(Vec<String>),
}

/// What happens while Redis is away or slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailMode {
    /// Every request is admitted; what it used is told to Redis later.
    Open,
    /// Requests that a limit covers are refused.
    Closed,
    /// This host keeps to one of so many equal parts of each limit, at least 1.
    LocalShare { hosts: u32 },
}
