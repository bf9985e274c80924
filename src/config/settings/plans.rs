//! How much callers may use, as it is meant: plans, groups, and the fair queue in front of
//! accounts.

use std::sync::Arc;
use std::time::Duration;

use super::text_id;

/// A plan's stable name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlanId(pub Arc<str>);

/// A group's stable name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub Arc<str>);

text_id!(PlanId, GroupId);

/// The plan of a tenant that names none: what the field gives to a new account.
pub const DEFAULT_PLAN: &str = "default";

/// A named set of limits, and how its tenants are treated.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub id: PlanId,
    /// Each holds by itself; none for a plan without limits. [`LimitKey`]s are unique. If the plan
    /// as a whole is in shadow, each of them is.
    pub limits: Vec<Limit>,
    /// Share of scarce places among tenants that wait, 1 to 1000.
    pub weight: u32,
    pub priority: Priority,
    pub cut: CutCharge,
    pub on_disconnect: OnDisconnect,
}

/// Several tenants together.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    pub id: GroupId,
    /// Its limits hold for the sum of its tenants; weight and the rest are not used.
    pub plan: Arc<Plan>,
}

/// One limit of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    pub key: LimitKey,
    /// At least 1, at most 10¹². Money in nano-units of [`super::Accounting::currency`], at most 10¹⁸.
    pub amount: u64,
    /// What may be taken at once, 1 to `amount`; for [`Window`]s up to an hour only, else `amount`.
    pub burst: u64,
    /// Evaluated and counted, not enforced.
    pub shadow: bool,
}

/// What a limit counts. Two limits with one key share their count, also over a reload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LimitKey {
    pub surfaces: Surfaces,
    /// The public model, by the name that is asked for: an alias counts for itself. `None` for all
    /// together.
    pub model: Option<Arc<str>>,
    pub quantity: Quantity,
    pub window: Window,
}

/// The surfaces a limit counts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Surfaces {
    All,
    /// Chat, completions, messages and responses.
    Text,
    Chat,
    Completions,
    Embeddings,
    Messages,
    Responses,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Quantity {
    Requests,
    /// Prompt and completion.
    Tokens,
    PromptTokens,
    CompletionTokens,
    /// Prompt tokens that the provider's cache did not have.
    UncachedPromptTokens,
    Cost,
    /// Requests at one time; its window is [`Window::None`].
    Concurrent,
}

/// Up to an hour: a token bucket that refills evenly. Day and month: of the calendar in
/// [`super::Accounting::time_zone`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Window {
    None,
    Second,
    Minute,
    Hour,
    Day,
    Month,
}

/// Who is served first when places are scarce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    High,
    Normal,
    Low,
}

/// What an answer costs that was cut, or whose caller left, before its usage was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutCharge {
    /// What can be told from the request and from what was passed on, flagged as an estimate.
    Estimate,
    /// What the upstream has reported, even if that is nothing.
    Reported,
}

/// What becomes of the upstream's answer when its caller leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisconnect {
    Cancel,
    /// It is read on for so long, to learn its usage.
    Drain(Duration),
}

/// The queue in front of accounts that are at their ceiling.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    /// Requests that may wait for one upstream's model; 0 refuses at once.
    pub max_length: usize,
    /// The longest wait of one request.
    pub max_wait: Duration,
    /// How often a streamed request that waits is told so by an SSE comment; `None` for never. The
    /// answer's head is then sent with the first comment, before it is known who will answer.
    pub keep_alive: Option<Duration>,
}

impl Surfaces {
    const EVERY: [Self; 7] = [
        Self::All,
        Self::Text,
        Self::Chat,
        Self::Completions,
        Self::Embeddings,
        Self::Messages,
        Self::Responses,
    ];

    /// As in configuration, reports and the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Text => "text",
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Messages => "messages",
            Self::Responses => "responses",
        }
    }

    /// Does the surface with this name count?
    pub fn contain(self, surface: &str) -> bool {
        match self {
            Self::All => true,
            Self::Text => matches!(surface, "chat" | "completions" | "messages" | "responses"),
            one => one.as_str() == surface,
        }
    }
}

impl Quantity {
    const EVERY: [Self; 7] = [
        Self::Requests,
        Self::Tokens,
        Self::PromptTokens,
        Self::CompletionTokens,
        Self::UncachedPromptTokens,
        Self::Cost,
        Self::Concurrent,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::PromptTokens => "prompt_tokens",
            Self::CompletionTokens => "completion_tokens",
            Self::UncachedPromptTokens => "uncached_prompt_tokens",
            Self::Cost => "cost",
            Self::Concurrent => "concurrent",
        }
    }
}

impl Window {
    const EVERY: [Self; 6] = [
        Self::None,
        Self::Second,
        Self::Minute,
        Self::Hour,
        Self::Day,
        Self::Month,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// The period of a token bucket; `None` for the calendar's windows and for none.
    pub fn period(self) -> Option<Duration> {
        match self {
            Self::Second => Some(Duration::from_secs(1)),
            Self::Minute => Some(Duration::from_secs(60)),
            Self::Hour => Some(Duration::from_secs(3600)),
            Self::None | Self::Day | Self::Month => None,
        }
    }
}

/// Of what [`LimitKey`] writes.
impl std::str::FromStr for LimitKey {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // A model's name may hold slashes itself.
        let (surfaces, rest) = text.split_once('/').ok_or(())?;
        let (model, name) = rest.rsplit_once('/').ok_or(())?;
        let (quantity, window) = match name.strip_prefix("max_") {
            Some(quantity) => (quantity, Window::None.as_str()),
            None => name.rsplit_once("_per_").ok_or(())?,
        };
        let find = |all: &[Surfaces]| all.iter().copied().find(|one| one.as_str() == surfaces);
        Ok(Self {
            surfaces: find(&Surfaces::EVERY).ok_or(())?,
            model: (model != "*").then(|| model.into()),
            quantity: Quantity::EVERY
                .into_iter()
                .find(|one| one.as_str() == quantity)
                .ok_or(())?,
            window: Window::EVERY
                .into_iter()
                .find(|one| one.as_str() == window)
                .ok_or(())?,
        })
    }
}

/// `chat/deepseek-flash/tokens_per_minute`; the model is `*` for all. Names the limit in the store,
/// in reports and in refusals.
impl std::fmt::Display for LimitKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let model = self.model.as_deref().unwrap_or("*");
        let (surfaces, quantity) = (self.surfaces.as_str(), self.quantity.as_str());
        match self.window {
            Window::None => write!(f, "{surfaces}/{model}/max_{quantity}"),
            window => write!(f, "{surfaces}/{model}/{quantity}_per_{}", window.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limits_name_is_read_back() {
        let models = [
            None,
            Some("deepseek-v4-pro".into()),
            Some("deepseek-ai/V4".into()),
        ];
        for surfaces in Surfaces::EVERY {
            for quantity in Quantity::EVERY {
                for window in Window::EVERY {
                    for model in models.clone() {
                        let window = match quantity {
                            Quantity::Concurrent => Window::None,
                            _ if window == Window::None => Window::Day,
                            _ => window,
                        };
                        let key = LimitKey {
                            surfaces,
                            model,
                            quantity,
                            window,
                        };
                        assert_eq!(key.to_string().parse(), Ok(key));
                    }
                }
            }
        }
        for odd in [
            "",
            "chat",
            "chat/*",
            "x/*/requests_per_day",
            "chat/*/requests",
            "a/b/max_x",
        ] {
            assert_eq!(odd.parse::<LimitKey>(), Err(()));
        }
    }
}
