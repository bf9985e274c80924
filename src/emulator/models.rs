//! Which model names the emulated provider serves, and as what.

use super::refusal::Refusal;

pub(super) const FLASH: &str = "deepseek-flash";
pub(super) const PRO: &str = "deepseek-v4-pro";

/// Documented concurrency of an account (DeepSeek rate_limit page).
const FLASH_CEILING: usize = 2500;
const PRO_CEILING: usize = 500;
/// Longest name a self-hosted emulator accepts.
const MAX_NAME_BYTES: usize = 256;

/// An account's concurrency at `model` when its configuration names none.
pub(super) fn ceiling(model: &str) -> usize {
    if model == PRO {
        PRO_CEILING
    } else {
        FLASH_CEILING
    }
}

/// The model that serves `name` in the OpenAI formats.
pub(super) fn served(name: &str, self_hosted: bool) -> Result<String, Refusal> {
    if self_hosted && !name.is_empty() && name.len() <= MAX_NAME_BYTES {
        return Ok(name.to_owned());
    }
    match name {
        FLASH | "deepseek-v4-flash" | "deepseek-v4-flash-vision-exp" => Ok(FLASH.to_owned()),
        PRO => Ok(PRO.to_owned()),
        other => Err(Refusal::unknown_model(other)),
    }
}

/// The model that serves `name` in the Anthropic format, which knows Claude's names too.
pub(super) fn served_as_claude(name: &str, self_hosted: bool) -> Result<String, Refusal> {
    if self_hosted {
        return served(name, true);
    }
    if name.starts_with("claude-opus") {
        return Ok(PRO.to_owned());
    }
    if name.starts_with("claude") {
        return Ok(FLASH.to_owned());
    }
    served(name, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_flash_names_are_served_as_flash_and_retired_ones_are_refused() {
        assert_eq!(served("deepseek-v4-flash", false).unwrap(), FLASH);
        assert!(served("deepseek-chat", false).is_err());
        assert_eq!(served("anything", true).unwrap(), "anything");
    }

    #[test]
    fn claude_names_are_mapped_in_their_own_format_only() {
        assert_eq!(served_as_claude("claude-opus-4-6", false).unwrap(), PRO);
        assert_eq!(served_as_claude("claude-haiku-5", false).unwrap(), FLASH);
        assert!(served_as_claude("gpt-5", false).is_err());
        assert!(served("claude-opus-4-6", false).is_err());
    }
}
