//! What a request takes of its limits, before it is known (an estimate) and after (the use).

use crate::config::settings::Quantity;

/// Twice a context of 2²⁰ tokens (DeepSeek pricing page): more is a slip of the pen, or of the
/// upstream.
pub const MOST_TOKENS: u64 = 1 << 21;

/// By quantity; money in nano-units of the accounting currency.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    pub requests: u64,
    pub prompt: u64,
    /// Of the prompt, what the provider's cache did not have.
    pub uncached: u64,
    pub completion: u64,
    pub cost: u64,
}

impl Amounts {
    /// What a limit on `quantity` counts of this.
    pub fn of(&self, quantity: Quantity) -> u64 {
        match quantity {
            Quantity::Requests => self.requests,
            Quantity::Tokens => self.prompt.saturating_add(self.completion),
            Quantity::PromptTokens => self.prompt,
            Quantity::CompletionTokens => self.completion,
            Quantity::UncachedPromptTokens => self.uncached,
            Quantity::Cost => self.cost,
            Quantity::Concurrent => 1,
        }
    }
}
