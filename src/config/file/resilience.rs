//! How failures of upstreams are met, as written: `retry`, the blocks of `upstreams[]` that leave
//! out, spread and watch, and a model's last answer. All of it reloads.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Required;
use crate::config::money::DecimalText;
use crate::config::settings::FailureClass;
use crate::config::text::DurationText;

/// Attempts per request, the first included. Three: an account and its stand-in may fail unseen.
/// What a provider in trouble is sent beyond its traffic is the budget's affair.
pub const RETRY_ATTEMPTS: u32 = 3;
/// After a minute of failures a caller is better served by an answer than by another attempt.
pub const RETRY_DEADLINE: DurationText = seconds(60);
/// Long enough that those who failed together do not come back together, too short to be felt.
pub const RETRY_BASE_BACKOFF: DurationText = millis(50);
/// A caller waits for a first sign for some seconds, and two such waits may have to fit in.
pub const RETRY_MAX_BACKOFF: DurationText = seconds(2);
/// Percent. With every answer an error, an upstream sees at most 1.15 times its traffic.
pub const RETRY_BUDGET: u32 = 15;
/// Retries in ten seconds: of little traffic a share would be none.
pub const RETRY_RESERVE: u32 = 10;
/// DeepSeek sends its 200 before it computes. Who is not queued there has content within this, and
/// SDKs wait for a head for minutes.
pub const RETRY_HOLD_HEAD: DurationText = seconds(10);

/// In a row. At an error rate of one in ten it happens once in a hundred thousand requests.
pub const OUTLIER_FAILURES: u32 = 5;
/// Percent. Whoever fails more often than not does more harm than good.
pub const OUTLIER_ERRORS: u32 = 50;
/// Outcomes. With fewer a share of a half is often chance.
pub const OUTLIER_MIN_REQUESTS: u32 = 20;
/// Long enough for a sample, short enough to act while the trouble lasts.
pub const OUTLIER_WINDOW: DurationText = seconds(10);
/// Times the first content of its peers. Long prompts alone take two or three times as long.
pub const OUTLIER_SLOW_FACTOR: u32 = 5;
/// A restart, or a load balancer that moves, is often over by then; a probe too early costs one
/// attempt.
pub const OUTLIER_EJECTION: DurationText = seconds(3);
/// Whoever has healed is found out within this and, with the ramp, has its share again within ten
/// seconds. One attempt each five seconds is next to nothing.
pub const OUTLIER_MAX_EJECTION: DurationText = seconds(5);
/// Percent. The other half could not carry more; if all are ill, it is not them.
pub const OUTLIER_MAX_EJECTED: u32 = 50;
/// At one time: one request risks least, and tells as much.
pub const OUTLIER_PROBES: u32 = 1;
/// Connections are warm again after some seconds of traffic; see the longest ejection.
pub const OUTLIER_RAMP: DurationText = seconds(4);

/// Percent, of one model at one endpoint; as for outliers.
pub const BREAKER_ERRORS: u32 = 50;
/// Outcomes; as for outliers.
pub const BREAKER_MIN_REQUESTS: u32 = 20;
/// As for outliers.
pub const BREAKER_WINDOW: DurationText = seconds(10);
/// A restart at the provider, or a load balancer that moves, is over by then.
pub const BREAKER_OPEN: DurationText = seconds(5);
/// Three in a row are hardly luck.
pub const BREAKER_PROBES: u32 = 3;

/// Percent of an even share. The bound of "Consistent Hashing with Bounded Loads" with ε = ¼: few
/// conversations move, and no account has more than a quarter too much.
pub const AFFINITY_BOUND: u32 = 125;

/// Money goes by the minute at most, and the question costs nothing.
pub const CREDIT_INTERVAL: DurationText = seconds(60);

const fn seconds(count: u64) -> DurationText {
    DurationText(Duration::from_secs(count))
}

const fn millis(count: u64) -> DurationText {
    DurationText(Duration::from_millis(count))
}

/// A class of failures, by its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClassText(pub FailureClass);

impl<'de> Deserialize<'de> for ClassText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let mut all = FailureClass::ALL.into_iter();
        all.find(|class| class.as_str() == text)
            .map(Self)
            .ok_or_else(|| de::Error::custom(format!("no class of failures: {text}")))
    }
}

impl Serialize for ClassText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

impl JsonSchema for ClassText {
    fn schema_name() -> Cow<'static, str> {
        "FailureClass".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "enum": FailureClass::ALL.map(FailureClass::as_str),
            "description": "What can go wrong with an attempt before content was sent.",
        })
    }
}

/// When a request is tried again: only before any content was sent to the client.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Attempts in all, the first included.
    #[schemars(range(min = 1, max = 5))]
    pub attempts: u32,
    /// No attempt begins later than this after the request came in.
    pub deadline: DurationText,
    /// The wait before the second attempt is random, between nothing and this; it doubles with each
    /// further one. 0s to 1m, at most `max_backoff`. 0s: no wait.
    pub base_backoff: DurationText,
    /// The longest such wait, and the longest `retry-after` of an upstream that is waited for; 0s to
    /// 5m.
    pub max_backoff: DurationText,
    /// Retries that an upstream is sent, in percent of first attempts.
    #[schemars(range(min = 0, max = 100))]
    pub budget_percent: u32,
    /// Retries in ten seconds that an upstream may be sent whatever its traffic.
    #[schemars(range(min = 0, max = 10_000))]
    pub budget_reserve: u32,
    /// What is tried again. Never what the request itself is to blame for: 400, 404, 413, 422.
    #[schemars(length(min = 1))]
    pub on: Vec<ClassText>,
    /// How long an answer's head is held back while there is no content, so that a failure can still
    /// have its own status; 0s to 10m. 0s: it is sent at once.
    pub hold_head: DurationText,
}

impl Default for Retry {
    /// On everything: whoever else there is did not fail yet.
    fn default() -> Self {
        Self {
            attempts: RETRY_ATTEMPTS,
            deadline: RETRY_DEADLINE,
            base_backoff: RETRY_BASE_BACKOFF,
            max_backoff: RETRY_MAX_BACKOFF,
            budget_percent: RETRY_BUDGET,
            budget_reserve: RETRY_RESERVE,
            on: FailureClass::ALL.map(ClassText).to_vec(),
            hold_head: RETRY_HOLD_HEAD,
        }
    }
}

/// When an account or an endpoint is left out, or whether it ever is.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Outlier {
    Switch(bool),
    Rules(OutlierRules),
}

/// What the traffic itself must show of an account or an endpoint for it to be left out, for how
/// long, and how it comes back.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OutlierRules {
    /// Failures in a row that take it out.
    #[schemars(range(min = 1, max = 1000))]
    pub consecutive_failures: u32,
    /// Share of failures in `window` above which it is out.
    #[schemars(range(min = 1, max = 100))]
    pub error_percent: u32,
    /// Outcomes in `window` before the share says anything.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: u32,
    /// What of the past is looked at; 1s to 10m.
    pub window: DurationText,
    /// First content that takes this many times that of its peers counts as ill.
    #[schemars(range(min = 2, max = 1000))]
    pub slow_factor: u32,
    /// How long it is out the first time; it doubles while it fails again. 100ms to 1h, at most
    /// `max_ejection`.
    pub ejection: DurationText,
    /// The longest it is out before it is tried again; at most 1h.
    pub max_ejection: DurationText,
    /// Of all peers, at most so many percent are taken out. 0: only counted and told.
    #[schemars(range(min = 0, max = 100))]
    pub max_ejected_percent: u32,
    /// Requests at one time while it is tried again.
    #[schemars(range(min = 1, max = 100))]
    pub probes: u32,
    /// From the first success to its full share; 0s to 10m. 0s: all of it at once.
    pub ramp: DurationText,
}

impl Default for OutlierRules {
    fn default() -> Self {
        Self {
            consecutive_failures: OUTLIER_FAILURES,
            error_percent: OUTLIER_ERRORS,
            min_requests: OUTLIER_MIN_REQUESTS,
            window: OUTLIER_WINDOW,
            slow_factor: OUTLIER_SLOW_FACTOR,
            ejection: OUTLIER_EJECTION,
            max_ejection: OUTLIER_MAX_EJECTION,
            max_ejected_percent: OUTLIER_MAX_EJECTED,
            probes: OUTLIER_PROBES,
            ramp: OUTLIER_RAMP,
        }
    }
}

/// When an endpoint is sent nothing for one model any more, or whether that ever is so.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Breaker {
    Switch(bool),
    Rules(BreakerRules),
}

/// The circuit breaker of each endpoint and model.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerRules {
    /// Share of failures in `window` above which it opens.
    #[schemars(range(min = 1, max = 100))]
    pub error_percent: u32,
    /// Outcomes in `window` before the share says anything.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: u32,
    /// What of the past is looked at; 1s to 10m.
    pub window: DurationText,
    /// How long it stays open before a few requests are let through; 100ms to 1h.
    pub open: DurationText,
    /// Successes that close it again, and requests at one time until then.
    #[schemars(range(min = 1, max = 100))]
    pub probes: u32,
}

impl Default for BreakerRules {
    fn default() -> Self {
        Self {
            error_percent: BREAKER_ERRORS,
            min_requests: BREAKER_MIN_REQUESTS,
            window: BREAKER_WINDOW,
            open: BREAKER_OPEN,
            probes: BREAKER_PROBES,
        }
    }
}

/// How conversations keep to an account, or whether they do.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Affinity {
    Switch(bool),
    Rules(AffinityRules),
}

/// Conversations go back to the account whose prompt cache holds their beginning.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AffinityRules {
    /// An account takes so many percent of its even share before its conversations go elsewhere.
    #[schemars(range(min = 100, max = 1000))]
    pub bound_percent: u32,
}

impl Default for AffinityRules {
    fn default() -> Self {
        Self {
            bound_percent: AFFINITY_BOUND,
        }
    }
}

/// How the provider is asked what is left of its accounts, or whether it is.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Credit {
    Switch(bool),
    Rules(CreditRules),
}

/// What is left of each account is read from DeepSeek's balance API.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CreditRules {
    /// From one look to the next; 1s to 24h.
    pub interval: DurationText,
    /// What is left below which a warning is given, by the currency that the provider tells it in,
    /// such as USD or CNY: more than 0, at most a thousand million, 9 digits after the point.
    #[schemars(extend("propertyNames" = { "pattern": "^[A-Z]{3}$" }))]
    pub low_water: BTreeMap<String, DecimalText>,
}

impl Default for CreditRules {
    /// Without a mark: what is much and what is little differs too far.
    fn default() -> Self {
        Self {
            interval: CREDIT_INTERVAL,
            low_water: BTreeMap::new(),
        }
    }
}

/// What is answered, as an answer of the model, when nothing that serves it is left.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("text"))]
pub struct Degraded {
    /// 1 byte to 16KiB. {model} stands for the public name that was asked for, {request_id} for the
    /// id of the request.
    pub text: String,
}
