//! Decides how the stream that goes on is changed so that, to the client, it is
//! the rest of the first: one id, one role, one sum of usage, one end. It must
//! not know what the client has beyond what a [`Transcript`] says.

use super::events::{self, Data, WholeEvents};
use super::transcript::{Counted, Identity, Transcript};
use crate::relay::reading::{self, says_something};
use bytes::Bytes;
use serde_json::{Map, Value};

const DONE: &[u8] = b"data: [DONE]\n\n";

/// Why an event cannot pass as part of the first stream. The client has to be
/// told that the stream broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is no chunk of a chat stream.
    #[error("an event of the resumed stream is no chunk")]
    NotAChunk,
    /// It reasons again, after the text has begun.
    #[error("the resumed stream began to reason again")]
    Reasoning,
    /// It has another choice than the first.
    #[error("the resumed stream has several choices")]
    Choices,
    /// It says what the client has already: its upstream began anew.
    #[error("the resumed stream repeats the beginning of the first")]
    Repeats,
    /// Its text has probabilities, which the first did not.
    #[error("the resumed stream has logprobs")]
    Logprobs,
}

/// So many bytes of the answer's beginning, said once more, are no coincidence.
const LONGEST_ECHO: usize = 48;
/// An answer shorter than this may well go on with its own words.
const SHORTEST_ECHO: usize = 8;

/// Whether the upstream takes the prefix for nothing and begins anew.
#[derive(Debug)]
struct Echo {
    /// The beginning of the answer, as far as the new words have not followed it.
    ahead: Vec<u8>,
    /// Events that wait for whether they repeat.
    waiting: Vec<u8>,
}

impl Echo {
    fn of(text: &str) -> Self {
        let start = text.as_bytes();
        let start = start.get(..LONGEST_ECHO).unwrap_or(start);
        let told = start.len() >= SHORTEST_ECHO;
        Self {
            ahead: if told { start.to_vec() } else { Vec::new() },
            waiting: Vec::new(),
        }
    }

    /// Whether the words follow the beginning of the answer still.
    fn follows(&mut self, words: &str) -> Result<bool, Unfit> {
        let words = words.as_bytes();
        let common = words.len().min(self.ahead.len());
        if common == 0 || words.get(..common) != self.ahead.get(..common) {
            self.ahead.clear();
            return Ok(false);
        }
        self.ahead.drain(..common);
        if self.ahead.is_empty() {
            return Err(Unfit::Repeats);
        }
        Ok(true)
    }
}

/// Rewrites the events of one resumed stream.
#[derive(Debug)]
pub struct Rewriter {
    events: WholeEvents,
    identity: Identity,
    before: Counted,
    echo: Echo,
    done: bool,
}

impl Rewriter {
    /// For the stream that goes on where the transcript stands now.
    pub fn new(transcript: &Transcript) -> Self {
        Self {
            events: WholeEvents::default(),
            identity: transcript.identity(),
            before: transcript.counted(),
            echo: Echo::of(transcript.content()),
            done: false,
        }
    }

    /// Takes in a fragment, which may be cut anywhere, and returns the whole
    /// events that may follow what the client has. An error that the upstream
    /// tells passes as it is.
    ///
    /// # Errors
    /// At the first event that does not fit. Nothing of the fragment goes out.
    pub fn pass(&mut self, fragment: Bytes) -> Result<Bytes, Unfit> {
        let whole = self.events.push(fragment);
        self.rewrite(&whole)
    }

    /// Ends the stream: an event that lacks only its blank line is still one.
    ///
    /// # Errors
    /// As for [`Self::pass`].
    pub fn finish(&mut self) -> Result<Option<Bytes>, Unfit> {
        let rest = self.events.take();
        let last = self.rewrite(&rest)?;
        let mut out = std::mem::take(&mut self.echo.waiting);
        out.extend_from_slice(&last);
        Ok((!out.is_empty()).then(|| Bytes::from(out)))
    }

    fn rewrite(&mut self, whole: &[u8]) -> Result<Bytes, Unfit> {
        let mut out = Vec::with_capacity(whole.len());
        for event in events::split(whole) {
            let data = match events::data(event) {
                Data::Nothing => {
                    out.extend_from_slice(event);
                    continue;
                }
                Data::Is(data) => data,
                Data::Foreign => return Err(Unfit::NotAChunk),
            };
            if self.done {
                continue;
            }
            if data.trim_ascii() == b"[DONE]" {
                self.done = true;
                out.append(&mut self.echo.waiting);
                out.extend_from_slice(DONE);
            } else if reading::chunk(&data).error.is_some() {
                out.append(&mut self.echo.waiting);
                out.extend_from_slice(event);
            } else if let Some(chunk) = self.chunk(&data)? {
                let written = format!("data: {chunk}\n\n");
                if self.echo.follows(words(&chunk))? {
                    self.echo.waiting.extend_from_slice(written.as_bytes());
                } else {
                    out.append(&mut self.echo.waiting);
                    out.extend_from_slice(written.as_bytes());
                }
            }
        }
        Ok(Bytes::from(out))
    }

    /// The chunk as the client shall see it; `None` if it tells nothing new.
    fn chunk(&self, data: &[u8]) -> Result<Option<Value>, Unfit> {
        let Ok(Value::Object(mut chunk)) = serde_json::from_slice(data) else {
            return Err(Unfit::NotAChunk);
        };
        let Some(Value::Array(choices)) = chunk.get_mut("choices") else {
            return Err(Unfit::NotAChunk);
        };
        let mut tells = false;
        match choices.as_mut_slice() {
            [] => {}
            [choice] => tells = fit(choice)?,
            _ => return Err(Unfit::Choices),
        }
        if let Some(Value::Object(usage)) = chunk.get_mut("usage") {
            self.add_up(usage);
            tells = true;
        }
        let identity = &self.identity;
        for (key, value) in [
            ("id", &identity.id),
            ("created", &identity.created),
            ("model", &identity.model),
        ] {
            let value = value
                .as_ref()
                .and_then(|value| serde_json::from_slice::<Value>(value).ok());
            match value {
                Some(value) => chunk.insert(key.to_owned(), value),
                None => chunk.shift_remove(key),
            };
        }
        Ok(tells.then_some(Value::Object(chunk)))
    }

    /// Makes the usage of this attempt that of the answer. What the client has
    /// was part of this attempt's prompt and is part of the answer's completion.
    /// The first prompt is known only if its upstream counted along; else it is
    /// this one less what the client has.
    fn add_up(&self, usage: &mut Map<String, Value>) {
        let sent = self.before.completion();
        let own_prompt = count(usage, "prompt_tokens");
        let first = self.before.usage.map(|usage| usage.prompt);
        let prompt = first.unwrap_or(own_prompt.saturating_sub(sent));
        let completion = count(usage, "completion_tokens").saturating_add(sent);
        set(usage, "prompt_tokens", prompt);
        set(usage, "completion_tokens", completion);
        set(usage, "total_tokens", prompt.saturating_add(completion));
        let hit = "prompt_cache_hit_tokens";
        if usage.contains_key(hit) {
            let cached = count(usage, hit).min(prompt);
            set(usage, hit, cached);
            set(usage, "prompt_cache_miss_tokens", prompt - cached);
        }
        if let Some(Value::Object(details)) = usage.get_mut("prompt_tokens_details") {
            let cached = count(details, "cached_tokens").min(prompt);
            set(details, "cached_tokens", cached);
        }
        let reasoned = self.before.reasoning();
        if reasoned > 0 {
            let details = usage
                .entry("completion_tokens_details")
                .and_modify(|value| {
                    if !value.is_object() {
                        *value = Value::Object(Map::new());
                    }
                })
                .or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(details) = details {
                let all = count(details, "reasoning_tokens").saturating_add(reasoned);
                set(details, "reasoning_tokens", all);
            }
        }
    }
}

/// The text of a chunk.
fn words(chunk: &Value) -> &str {
    let text = chunk.pointer("/choices/0/delta/content");
    text.and_then(Value::as_str).unwrap_or_default()
}

/// Fits a choice to what came before it. True if it tells anything new.
fn fit(choice: &mut Value) -> Result<bool, Unfit> {
    let Value::Object(choice) = choice else {
        return Err(Unfit::NotAChunk);
    };
    if choice.get("index").is_some_and(|index| *index != 0) {
        return Err(Unfit::Choices);
    }
    if choice.get("logprobs").is_some_and(tells) {
        return Err(Unfit::Logprobs);
    }
    let finished = choice.get("finish_reason").is_some_and(tells);
    match choice.get_mut("delta") {
        None | Some(Value::Null) => Ok(finished),
        Some(Value::Object(delta)) => {
            delta.shift_remove("role");
            let reasons = ["reasoning_content", "reasoning"];
            if reasons.iter().any(|key| delta.get(*key).is_some_and(tells)) {
                return Err(Unfit::Reasoning);
            }
            Ok(finished || delta.values().any(tells))
        }
        Some(_) => Err(Unfit::NotAChunk),
    }
}

fn tells(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        other => says_something(other.to_string().as_bytes()),
    }
}

fn count(object: &Map<String, Value>, key: &str) -> u64 {
    object.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn set(object: &mut Map<String, Value>, key: &str, value: u64) {
    object.insert(key.to_owned(), Value::from(value));
}
