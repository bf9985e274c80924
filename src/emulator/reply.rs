//! An answer with everything its envelope needs, whatever the format.

use uuid::Uuid;

use super::answer::Answer;
use super::fault::{Faults, UsagePlace};
use super::journal::now_ms;
use super::prompt::Ask;
use super::usage::{Telling, Usage};

/// Like the real ones, `fp_…_prod0820_fp8_kvcache`.
pub(super) const FINGERPRINT: &str = "fp_7e3a9c51d0_prod0820_fp8_kvcache";

/// What a surface renders.
#[derive(Debug)]
pub(super) struct Reply {
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    pub answer: Answer,
    pub usage: Usage,
    pub telling: Telling,
    /// Where a stream of chunks tells it.
    pub usage_place: UsagePlace,
    /// Whether every other chunk says `usage: null`.
    pub null_usage: bool,
}

impl Reply {
    pub(super) fn new(ask: &Ask, answer: Answer, hit: usize, faults: &Faults) -> Self {
        let by_default = if ask.include_usage {
            UsagePlace::Trailing
        } else {
            UsagePlace::Nowhere
        };
        Self {
            id: Uuid::new_v4().to_string(),
            created: now_ms() / 1000,
            model: ask.model.clone(),
            usage: answer.usage(ask.chain.tokens(), hit),
            answer,
            telling: Telling::under(faults),
            usage_place: faults.usage.unwrap_or(by_default),
            null_usage: ask.include_usage,
        }
    }

    /// The id of its tool call, like `call_00_…`.
    pub(super) fn call_id(&self) -> String {
        let letters: String = self.id.chars().filter(|c| *c != '-').take(24).collect();
        format!("call_00_{letters}")
    }
}
