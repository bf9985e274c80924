//! `accounting`: how use becomes money, as written. All of it reloads.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Required;
use crate::config::calendar::{DateText, HoursText};
use crate::config::money::DecimalText;
use crate::config::text::{DurationText, TimestampText};

/// Servers keep UTC, and so do the providers' bills.
pub const TIME_ZONE: &str = "UTC";
/// What DeepSeek's international prices are in.
pub const CURRENCY: &str = "USD";
/// A year and a month, so that a month can be held against the same one of last year.
pub const KEEP_DAYS: u32 = 400;
/// Twice the longest attempt at the default `timeouts.total`.
pub const LEASE_WARNING: DurationText = DurationText(Duration::from_secs(3600));

/// Calendar, currency, prices, and how long the ledger is kept.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Accounting {
    /// IANA name of the time zone in which days and months begin, for limits and reports.
    pub time_zone: String,
    /// ISO 4217 code of what costs, limits of money and the ledger are kept in.
    #[schemars(regex(pattern = "^[A-Z]{3}$"))]
    pub currency: String,
    /// What one unit of another currency is worth in `currency`. Prices and limits are converted
    /// when the configuration is read.
    #[schemars(extend("propertyNames" = { "pattern": "^[A-Z]{3}$" }))]
    pub exchange: BTreeMap<String, DecimalText>,
    /// Days for which the ledger keeps its rows.
    #[schemars(range(min = 1, max = 3660))]
    pub keep_days: u32,
    /// A request that holds its place for longer is reported with its id; 1s to 24h.
    pub lease_warning: DurationText,
    /// When providers charge more.
    pub peak_hours: Vec<PeakHours>,
    /// What upstream models cost. What has no price costs nothing.
    pub prices: Vec<Price>,
}

impl Default for Accounting {
    fn default() -> Self {
        Self {
            time_zone: TIME_ZONE.to_owned(),
            currency: CURRENCY.to_owned(),
            exchange: BTreeMap::new(),
            keep_days: KEEP_DAYS,
            lease_warning: LEASE_WARNING,
            peak_hours: Vec::new(),
            prices: Vec::new(),
        }
    }
}

/// A provider's calendar of peak hours.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("id, time_zone, hours"))]
pub struct PeakHours {
    /// Stable name, for `prices[].peak.hours`.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9_-]{0,63}$"))]
    pub id: String,
    /// IANA name of the time zone of days and hours, such as Asia/Shanghai.
    pub time_zone: String,
    /// Days of the week with peak hours. Without it, all.
    #[schemars(length(min = 1))]
    pub days: Option<Vec<Day>>,
    /// Hours of such a day, from, up to but not at.
    #[schemars(length(min = 1))]
    pub hours: Vec<HoursText>,
    /// Dates without peak hours.
    pub holidays: Vec<DateText>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// What a million tokens cost; at most six digits after the point.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("upstream, model, cache_hit, cache_miss, output"))]
pub struct Price {
    /// Id of an upstream.
    pub upstream: String,
    /// The name that upstream knows the model by.
    pub model: String,
    /// ISO 4217 code. Without it, `accounting.currency`; any other needs its `accounting.exchange`.
    #[schemars(regex(pattern = "^[A-Z]{3}$"))]
    pub currency: Option<String>,
    /// From when on; the latest price that has begun counts. Without it, always.
    pub from: Option<TimestampText>,
    /// Tokens of the prompt that the provider's cache had.
    pub cache_hit: DecimalText,
    /// All other tokens of the prompt.
    pub cache_miss: DecimalText,
    /// Tokens of the answer, reasoning among them.
    pub output: DecimalText,
    /// Without it, the price is the same at all hours.
    pub peak: Option<Peak>,
}

/// What a million tokens cost at peak hours: `factor` times the price, or prices of their own.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("hours"))]
pub struct Peak {
    /// Id of one of `accounting.peak_hours`.
    pub hours: String,
    pub factor: Option<DecimalText>,
    pub cache_hit: Option<DecimalText>,
    pub cache_miss: Option<DecimalText>,
    pub output: Option<DecimalText>,
}
