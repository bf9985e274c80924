//! Decides how many tokens an answer says it took, for the ledger and the
//! limits. It reads the three shapes of a usage object into one and must not
//! know prices, tenants or how the object was found.

use crate::json;

/// Tokens of one answer as its upstream counted them. Sums saturate; `cached`
/// never exceeds `prompt`, nor `reasoning` `completion`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// All tokens of the prompt, cache hits included.
    pub prompt: u64,
    /// Those of them that were read from the cache.
    pub cached: u64,
    /// All tokens of the answer, reasoning included.
    pub completion: u64,
    /// Those of them that were reasoning.
    pub reasoning: u64,
}

impl Usage {
    fn checked(prompt: u64, cached: u64, completion: u64, reasoning: u64) -> Self {
        Usage {
            prompt,
            cached: cached.min(prompt),
            completion,
            reasoning: reasoning.min(completion),
        }
    }

    /// Reads the usage object of chat and text completions and of embeddings.
    /// `None` for anything that counts neither prompt nor completion.
    pub fn from_openai(object: &[u8]) -> Option<Self> {
        let [
            prompt,
            hit,
            miss,
            completion,
            prompt_details,
            completion_details,
        ] = json::pick(
            object,
            [
                "prompt_tokens",
                "prompt_cache_hit_tokens",
                "prompt_cache_miss_tokens",
                "completion_tokens",
                "prompt_tokens_details",
                "completion_tokens_details",
            ],
        )?;
        let (hit, miss) = (counted(hit), counted(miss));
        let both = hit.zip(miss).map(|(hit, miss)| hit.saturating_add(miss));
        let prompt = counted(prompt).or(both);
        let completion = counted(completion);
        if prompt.is_none() && completion.is_none() {
            return None;
        }
        let cached = hit.or_else(|| inside(prompt_details, "cached_tokens"));
        let reasoning = inside(completion_details, "reasoning_tokens");
        Some(Self::checked(
            prompt.unwrap_or(0),
            cached.unwrap_or(0),
            completion.unwrap_or(0),
            reasoning.unwrap_or(0),
        ))
    }

    /// Reads the usage object of the Responses API, whose `input_tokens` include
    /// the cached ones. `None` for anything that counts neither side.
    pub fn from_responses(object: &[u8]) -> Option<Self> {
        let [input, output, input_details, output_details] = json::pick(
            object,
            [
                "input_tokens",
                "output_tokens",
                "input_tokens_details",
                "output_tokens_details",
            ],
        )?;
        let (input, output) = (counted(input), counted(output));
        if input.is_none() && output.is_none() {
            return None;
        }
        Some(Self::checked(
            input.unwrap_or(0),
            inside(input_details, "cached_tokens").unwrap_or(0),
            output.unwrap_or(0),
            inside(output_details, "reasoning_tokens").unwrap_or(0),
        ))
    }
}

/// Usage in the Anthropic format, where `input_tokens` are the misses and a
/// stream reports twice: the input in `message_start`, the final output (and
/// perhaps the input again) in `message_delta`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AnthropicUsage {
    input: Option<u64>,
    read: Option<u64>,
    creation: Option<u64>,
    output: Option<u64>,
}

impl AnthropicUsage {
    /// Takes in a further report. Counts are cumulative: the larger output
    /// stays. Input counts of a report that has any replace the earlier ones one
    /// by one; a report whose input is all zeros says nothing.
    pub fn merge(&mut self, object: &[u8]) {
        let Some([input, read, creation, output]) = json::pick(
            object,
            [
                "input_tokens",
                "cache_read_input_tokens",
                "cache_creation_input_tokens",
                "output_tokens",
            ],
        ) else {
            return;
        };
        let (input, read, creation) = (counted(input), counted(read), counted(creation));
        let says = [input, read, creation].into_iter().flatten().any(|n| n > 0);
        if says || self.input.is_none() {
            self.input = input.or(self.input);
            self.read = read.or(self.read);
            self.creation = creation.or(self.creation);
        }
        self.output = self.output.max(counted(output));
    }

    /// What is known so far; `None` before any count.
    pub fn usage(&self) -> Option<Usage> {
        if self.input.is_none() && self.output.is_none() {
            return None;
        }
        let read = self.read.unwrap_or(0);
        let prompt = self
            .input
            .unwrap_or(0)
            .saturating_add(read)
            .saturating_add(self.creation.unwrap_or(0));
        Some(Usage::checked(prompt, read, self.output.unwrap_or(0), 0))
    }
}

fn counted(value: Option<&[u8]>) -> Option<u64> {
    json::count(value?)
}

fn inside(object: Option<&[u8]>, key: &str) -> Option<u64> {
    let [value] = json::pick(object?, [key])?;
    counted(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn usage(prompt: u64, cached: u64, completion: u64, reasoning: u64) -> Option<Usage> {
        Some(Usage {
            prompt,
            cached,
            completion,
            reasoning,
        })
    }

    #[test]
    fn deepseek_counts_hits_and_misses_beside_the_whole() {
        let whole = br#"{"prompt_tokens":100,"completion_tokens":50,"total_tokens":150,
            "prompt_cache_hit_tokens":64,"prompt_cache_miss_tokens":36,
            "prompt_tokens_details":{"cached_tokens":64},"completion_tokens_details":{"reasoning_tokens":20}}"#;
        assert_eq!(Usage::from_openai(whole), usage(100, 64, 50, 20));
        let parts = br#"{"prompt_cache_hit_tokens":64,"prompt_cache_miss_tokens":36,"completion_tokens":5}"#;
        assert_eq!(Usage::from_openai(parts), usage(100, 64, 5, 0));
        let plain = br#"{"prompt_tokens":7,"prompt_tokens_details":null,"total_tokens":7}"#;
        assert_eq!(Usage::from_openai(plain), usage(7, 0, 0, 0));
        let details = br#"{"prompt_tokens":7,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":5}}"#;
        assert_eq!(Usage::from_openai(details), usage(7, 5, 1, 0));
    }

    #[test]
    fn responses_count_the_cached_tokens_in_the_input() {
        let object = br#"{"input_tokens":10,"input_tokens_details":{"cached_tokens":4},
            "output_tokens":6,"output_tokens_details":{"reasoning_tokens":2},"total_tokens":16}"#;
        assert_eq!(Usage::from_responses(object), usage(10, 4, 6, 2));
    }

    #[test]
    fn the_two_reports_of_an_anthropic_stream_make_one_usage() {
        let start = br#"{"input_tokens":20,"cache_read_input_tokens":80,"cache_creation_input_tokens":3,"output_tokens":1}"#;
        for (delta, expected) in [
            (&br#"{"output_tokens":9}"#[..], usage(103, 80, 9, 0)),
            (
                br#"{"input_tokens":0,"cache_read_input_tokens":0,"output_tokens":9}"#,
                usage(103, 80, 9, 0),
            ),
            (
                br#"{"input_tokens":25,"cache_read_input_tokens":80,"output_tokens":9}"#,
                usage(108, 80, 9, 0),
            ),
            (br#"{"output_tokens":0}"#, usage(103, 80, 1, 0)),
            (br#"nonsense"#, usage(103, 80, 1, 0)),
        ] {
            let mut both = AnthropicUsage::default();
            both.merge(start);
            both.merge(delta);
            assert_eq!(both.usage(), expected);
        }
        let mut late = AnthropicUsage::default();
        late.merge(br#"{"input_tokens":0,"output_tokens":0}"#);
        late.merge(br#"{"input_tokens":5,"output_tokens":2}"#);
        assert_eq!(late.usage(), usage(5, 0, 2, 0));
    }

    #[test]
    fn absurd_counts_saturate_and_stay_consistent() {
        let huge = br#"{"prompt_cache_hit_tokens":18446744073709551615,"prompt_cache_miss_tokens":1e300,"completion_tokens":-4,
            "completion_tokens_details":{"reasoning_tokens":5}}"#;
        assert_eq!(Usage::from_openai(huge), usage(u64::MAX, u64::MAX, 0, 0));
        for nothing in [
            &b"null"[..],
            b"{}",
            b"[]",
            b"{\"prompt_tokens\":\"7\"}",
            b"",
        ] {
            assert_eq!(Usage::from_openai(nothing), None);
            assert_eq!(Usage::from_responses(nothing), None);
        }
    }

    proptest! {
        #[test]
        fn any_counts_are_read_without_panic(a in "-?[0-9]{1,30}(\\.[0-9]+)?", b in "-?[0-9]{1,30}") {
            let object = format!(r#"{{"prompt_tokens":{a},"prompt_cache_hit_tokens":{b},"input_tokens":{b},
                "cache_read_input_tokens":{b},"cache_creation_input_tokens":{b},"output_tokens":{b}}}"#);
            if let Some(usage) = Usage::from_openai(object.as_bytes()) {
                prop_assert!(usage.cached <= usage.prompt);
            }
            let mut both = AnthropicUsage::default();
            both.merge(object.as_bytes());
            both.merge(object.as_bytes());
            let _ = both.usage();
            let _ = Usage::from_responses(object.as_bytes());
        }
    }
}
