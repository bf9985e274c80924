//! `plans`, `groups` and `queue`: how much callers may use, as written. All of it reloads.
//!
//! The keys of limits stand here once, in `limited!`, and are the same at the four places where
//! limits may be set: a plan, a surface of it, a model of it, a surface of that model.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Required;
use crate::config::money::MoneyText;
use crate::config::settings::{Quantity, Window};
use crate::config::text::DurationText;

/// The field's usual limits of a new account, for a tenant whose plan nobody has thought about:
/// text generation a request a second, and a working day's worth of them.
pub const TEXT_PER_MINUTE: u64 = 60;
pub const TEXT_PER_DAY: u64 = 1_000;
/// Likewise for embeddings, which come in batches.
pub const EMBEDDINGS_PER_MINUTE: u64 = 30;
pub const EMBEDDINGS_PER_DAY: u64 = 500;
/// All plans alike.
pub const PLAN_WEIGHT: u32 = 1;
/// A third of what a long answer takes; most answers are over by then.
pub const DRAIN_TIMEOUT: DurationText = seconds(30);

/// At some KiB a waiting request a few MiB, and at a hundred answers a second ten seconds.
pub const QUEUE_LENGTH: usize = 1_000;
/// Longer than a short jam, shorter than people wait for a first sign.
pub const QUEUE_WAIT: DurationText = seconds(30);

const fn seconds(count: u64) -> DurationText {
    DurationText(Duration::from_secs(count))
}

/// One limit as it was written, under the key of its name.
pub struct Written<'a> {
    pub key: &'static str,
    pub quantity: Quantity,
    pub window: Window,
    pub amount: Amount<'a>,
    pub burst: Option<u64>,
    pub shadow: bool,
}

/// How much.
#[derive(Debug, Clone, Copy)]
pub enum Amount<'a> {
    Count(u64),
    Money(&'a MoneyText),
}

/// A struct with all keys of limits, and with keys of its own and their defaults.
macro_rules! limited {
    ($(#[$about:meta])* $name:ident {
        $($(#[$doc:meta])* $own:ident: $type:ty = $default:expr,)*
    }) => {
        limited! {
            $(#[$about])* $name { $($(#[$doc])* $own: $type = $default,)* }
            /// Requests in a second.
            requests_per_second: RateLimit = Requests, Second;
            /// Requests in a minute.
            requests_per_minute: RateLimit = Requests, Minute;
            /// Requests in an hour.
            requests_per_hour: RateLimit = Requests, Hour;
            /// Requests on a day of the calendar in `accounting.time_zone`.
            requests_per_day: CountLimit = Requests, Day;
            /// Tokens, of prompts and answers together, in a minute.
            tokens_per_minute: RateLimit = Tokens, Minute;
            /// Tokens in an hour.
            tokens_per_hour: RateLimit = Tokens, Hour;
            /// Tokens on a day.
            tokens_per_day: CountLimit = Tokens, Day;
            /// Tokens in a month.
            tokens_per_month: CountLimit = Tokens, Month;
            /// Tokens of prompts in a minute, those that the provider's cache had among them.
            prompt_tokens_per_minute: RateLimit = PromptTokens, Minute;
            /// Tokens of prompts in an hour.
            prompt_tokens_per_hour: RateLimit = PromptTokens, Hour;
            /// Tokens of prompts on a day.
            prompt_tokens_per_day: CountLimit = PromptTokens, Day;
            /// Tokens of prompts in a month.
            prompt_tokens_per_month: CountLimit = PromptTokens, Month;
            /// Tokens of answers, reasoning among them, in a minute.
            completion_tokens_per_minute: RateLimit = CompletionTokens, Minute;
            /// Tokens of answers in an hour.
            completion_tokens_per_hour: RateLimit = CompletionTokens, Hour;
            /// Tokens of answers on a day.
            completion_tokens_per_day: CountLimit = CompletionTokens, Day;
            /// Tokens of answers in a month.
            completion_tokens_per_month: CountLimit = CompletionTokens, Month;
            /// Tokens of prompts that the provider's cache did not have, in a minute.
            uncached_prompt_tokens_per_minute: RateLimit = UncachedPromptTokens, Minute;
            /// Tokens of prompts that the provider's cache did not have, in an hour.
            uncached_prompt_tokens_per_hour: RateLimit = UncachedPromptTokens, Hour;
            /// Tokens of prompts that the provider's cache did not have, on a day.
            uncached_prompt_tokens_per_day: CountLimit = UncachedPromptTokens, Day;
            /// Tokens of prompts that the provider's cache did not have, in a month.
            uncached_prompt_tokens_per_month: CountLimit = UncachedPromptTokens, Month;
            /// Money on a day, by `accounting.prices`, such as 5 USD.
            cost_per_day: CostLimit = Cost, Day;
            /// Money in a month.
            cost_per_month: CostLimit = Cost, Month;
            /// Requests at one time.
            max_concurrent: CountLimit = Concurrent, None;
        }
    };
    ($(#[$about:meta])* $name:ident {
        $($(#[$doc:meta])* $own:ident: $type:ty = $default:expr,)*
    }
    $($(#[$what:meta])* $key:ident: $limit:ty = $quantity:ident, $window:ident;)*) => {
        $(#[$about])*
        #[derive(Debug, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$what])* #[schemars(extend("x-tidegate-quiet" = true))] pub $key: Option<$limit>,)*
            $($(#[$doc])* pub $own: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $($key: None,)*
                    $($own: $default,)*
                }
            }
        }

        impl $name {
            /// The limits that are set here, without those of its surfaces and models.
            pub fn limits(&self) -> impl Iterator<Item = Written<'_>> {
                let all = [$(self.$key.as_ref().map(|limit| {
                    let (amount, burst, shadow) = limit.parts();
                    Written {
                        key: stringify!($key),
                        quantity: Quantity::$quantity,
                        window: Window::$window,
                        amount,
                        burst,
                        shadow,
                    }
                }),)*];
                all.into_iter().flatten()
            }
        }
    };
}

limited! {
    /// What the tenants that have this plan may use, each for itself, and how they are treated.
    /// Several limits hold together; without any there is none. Limits at this level count all
    /// surfaces and models together.
    Plan {
        /// Chat, completions, messages and responses together.
        text: Option<SurfaceLimits> = None,
        chat: Option<SurfaceLimits> = None,
        completions: Option<SurfaceLimits> = None,
        embeddings: Option<SurfaceLimits> = None,
        messages: Option<SurfaceLimits> = None,
        responses: Option<SurfaceLimits> = None,
        /// Limits of single models, by public name: the name that is asked for. An alias counts for
        /// itself, not for the model that it stands for.
        models: BTreeMap<String, ModelLimits> = BTreeMap::new(),
        /// Every limit of the plan is evaluated and counted, and none enforced.
        shadow: bool = false,
        /// Share of scarce upstream places, among tenants that wait for them.
        #[schemars(range(min = 1, max = 1000))]
        weight: u32 = PLAN_WEIGHT,
        /// Who is served first when upstream places are scarce.
        priority: Priority = Priority::Normal,
        /// What an answer costs that was cut before its usage was told: an estimate from what was
        /// asked and passed on, or what the upstream reported, even if that is nothing.
        cut_charge: CutCharge = CutCharge::Estimate,
        /// What becomes of the upstream's answer when its caller leaves: it is cancelled, or read
        /// on to learn what it costs.
        on_disconnect: OnDisconnect = OnDisconnect::Cancel,
        /// How long it is read on, with `on_disconnect: drain`.
        drain_timeout: DurationText = DRAIN_TIMEOUT,
    }
}

limited! {
    /// Limits of one surface.
    SurfaceLimits {}
}

limited! {
    /// Limits of one public model, on all surfaces together or on some.
    ModelLimits {
        /// Chat, completions, messages and responses together.
        text: Option<SurfaceLimits> = None,
        chat: Option<SurfaceLimits> = None,
        completions: Option<SurfaceLimits> = None,
        embeddings: Option<SurfaceLimits> = None,
        messages: Option<SurfaceLimits> = None,
        responses: Option<SurfaceLimits> = None,
    }
}

impl Plan {
    /// The plan `default` where the file has none of that name.
    pub fn built_in() -> Self {
        let requests = |minute, day| {
            Some(SurfaceLimits {
                requests_per_minute: Some(RateLimit::Number(minute)),
                requests_per_day: Some(CountLimit::Number(day)),
                ..SurfaceLimits::default()
            })
        };
        Self {
            text: requests(TEXT_PER_MINUTE, TEXT_PER_DAY),
            embeddings: requests(EMBEDDINGS_PER_MINUTE, EMBEDDINGS_PER_DAY),
            ..Self::default()
        }
    }
}

/// A limit in a window of up to an hour, which refills evenly: a number, or a map.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RateLimit {
    Number(#[schemars(range(min = 1, max = 1_000_000_000_000_u64))] u64),
    Rule(RateRule),
}

/// A limit with its burst.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("limit"))]
pub struct RateRule {
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub limit: u64,
    /// What may be taken at once after a pause; at most `limit`. Without it, `limit`.
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub burst: Option<u64>,
    /// Evaluated and counted, not enforced.
    pub shadow: bool,
}

/// A limit at one time, or on a day or in a month of the calendar: a number, or a map.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum CountLimit {
    Number(#[schemars(range(min = 1, max = 1_000_000_000_000_u64))] u64),
    Rule(CountRule),
}

/// A limit; a burst is for windows of up to an hour.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("limit"))]
pub struct CountRule {
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub limit: u64,
    /// Evaluated and counted, not enforced.
    pub shadow: bool,
}

/// A limit of money: an amount, or a map.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum CostLimit {
    Amount(MoneyText),
    Rule(CostRule),
}

/// A limit; a burst is for windows of up to an hour.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("limit"))]
pub struct CostRule {
    /// Such as 5 USD; at most a thousand million.
    pub limit: MoneyText,
    /// Evaluated and counted, not enforced.
    pub shadow: bool,
}

impl RateLimit {
    fn parts(&self) -> (Amount<'_>, Option<u64>, bool) {
        match self {
            Self::Number(limit) => (Amount::Count(*limit), None, false),
            Self::Rule(rule) => (Amount::Count(rule.limit), rule.burst, rule.shadow),
        }
    }
}

impl CountLimit {
    fn parts(&self) -> (Amount<'_>, Option<u64>, bool) {
        match self {
            Self::Number(limit) => (Amount::Count(*limit), None, false),
            Self::Rule(rule) => (Amount::Count(rule.limit), None, rule.shadow),
        }
    }
}

impl CostLimit {
    fn parts(&self) -> (Amount<'_>, Option<u64>, bool) {
        match self {
            Self::Amount(limit) => (Amount::Money(limit), None, false),
            Self::Rule(rule) => (Amount::Money(&rule.limit), None, rule.shadow),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    High,
    Normal,
    Low,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CutCharge {
    Estimate,
    Reported,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDisconnect {
    Cancel,
    Drain,
}

/// Tenants that share limits: an organisation, a team.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("id, plan"))]
pub struct Group {
    /// Stable name, seen in refusals and reports.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9_-]{0,63}$"))]
    pub id: String,
    /// The plan whose limits hold for the sum of its tenants, besides their own. The rest of that
    /// plan is not used.
    pub plan: String,
}

/// The queue in front of accounts that are at their ceiling, one for each upstream and model.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// Requests that may wait in one. 0: refuse at once.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_length: usize,
    /// The longest wait of one request. Who would wait longer is refused at once.
    pub max_wait: DurationText,
    /// How often a streamed request that waits is sent an SSE comment; 1s to 10m. The answer's head
    /// is then sent with the first comment, as 200, before it is known who will answer. Without it,
    /// never.
    pub keep_alive: Option<DurationText>,
}

impl Default for Queue {
    /// No keep-alive: an error that comes after a head can no longer have its status.
    fn default() -> Self {
        Self {
            max_length: QUEUE_LENGTH,
            max_wait: QUEUE_WAIT,
            keep_alive: None,
        }
    }
}
