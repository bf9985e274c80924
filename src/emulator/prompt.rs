//! What a request asks for once its format is read: the same plain data for
//! every surface. It knows no wire format.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;

use serde_json::Value;

use super::refusal::Refusal;

/// Longest part of the last user message that is kept for the answer.
const MAX_LAST_BYTES: usize = 4096;
/// Context of every model, in tokens (DeepSeek pricing page: 1M).
const MAX_CONTEXT_TOKENS: usize = 1_048_576;
/// Most functions of a request (DeepSeek create-chat-completion page).
const MAX_TOOLS: usize = 128;
/// Most files of a request that are looked at.
const MAX_FILES: usize = 128;
/// Most orders of faults of a prompt.
const MAX_ORDERS: usize = 8;
/// What a message costs beside its text.
const TOKENS_PER_MESSAGE: usize = 4;
/// An image counts flat; the real price depends on its size.
const TOKENS_PER_IMAGE: usize = 256;

/// A point of a prompt up to which a cache can know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Boundary {
    pub hash: u64,
    /// Prompt tokens up to here.
    pub tokens: usize,
}

/// The prompt as a cache sees it: hashes of its prefixes, message by message.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    hasher: DefaultHasher,
    tokens: usize,
    boundaries: Vec<Boundary>,
    /// The last message goes on with the answer.
    open: bool,
}

impl Chain {
    /// An empty prompt in the cache of `user` at `model`.
    pub(super) fn new(model: &str, user: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        absorb(&mut hasher, model);
        absorb(&mut hasher, user);
        Self {
            hasher,
            tokens: 0,
            boundaries: Vec::new(),
            open: false,
        }
    }

    /// Adds the beginning of the answer. What is known after it is known by the
    /// whole answer, as the next prompt will have it.
    pub(super) fn begin(&mut self, text: &str, reasoning: &str) {
        absorb(&mut self.hasher, "assistant");
        self.hasher.write(text.as_bytes());
        self.tokens += estimate(text) + estimate(reasoning) + TOKENS_PER_MESSAGE;
        self.open = true;
    }

    /// Adds a message.
    pub(super) fn push(&mut self, role: &str, texts: &[&str]) {
        absorb(&mut self.hasher, role);
        for text in texts {
            self.hasher.write(text.as_bytes());
            self.tokens += estimate(text);
        }
        self.tokens += TOKENS_PER_MESSAGE;
        self.hasher.write_u8(0xff);
        let boundary = Boundary {
            hash: self.hasher.finish(),
            tokens: self.tokens,
        };
        self.boundaries.push(boundary);
    }

    /// Counts an image, and tells it from others by its address.
    pub(super) fn image(&mut self, address: &str) {
        absorb(&mut self.hasher, address);
        self.tokens += TOKENS_PER_IMAGE;
    }

    /// The boundary after this prompt and its answer.
    pub(super) fn after(&self, answer: &str) -> u64 {
        let mut hasher = self.hasher.clone();
        if !self.open {
            absorb(&mut hasher, "assistant");
        }
        hasher.write(answer.as_bytes());
        hasher.write_u8(0xff);
        hasher.finish()
    }

    pub(super) fn boundaries(&self) -> &[Boundary] {
        &self.boundaries
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }
}

fn absorb(hasher: &mut DefaultHasher, text: &str) {
    hasher.write(text.as_bytes());
    hasher.write_u8(0xff);
}

/// Tokens by DeepSeek's rule of thumb (token_usage page): 0.3 an ASCII character, 0.6 another.
pub(super) fn estimate(text: &str) -> usize {
    let ascii = text.bytes().filter(u8::is_ascii).count();
    let wide = text.bytes().filter(|byte| *byte >= 0xc0).count();
    (ascii * 3 + wide * 6).div_ceil(10)
}

/// A function that the model may call.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Tool {
    pub name: String,
    /// Its parameters as JSON Schema, `null` when there are none.
    pub parameters: Value,
}

/// Whether tools are to be called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Choice {
    #[default]
    Auto,
    Never,
    Required,
    Named(String),
}

impl Choice {
    pub(super) fn forces(&self) -> bool {
        matches!(self, Self::Required | Self::Named(_))
    }
}

/// The last message, as far as the answer depends on it.
#[derive(Debug, Clone, Default)]
pub(super) struct Last {
    /// Text of the last user message, without its orders of faults, cut short.
    pub text: String,
    /// False when something came after the user's message, like a tool's result.
    pub from_user: bool,
    /// The faults ordered in the last user message, the first the most special.
    pub orders: Vec<String>,
}

/// The beginning of an answer, which the request asks to be gone on with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Begun {
    pub text: String,
    /// Reasoning that is not to be done again.
    pub reasoning: Option<String>,
}

impl Last {
    /// A user message with this text came.
    pub(super) fn heard(&mut self, texts: &[&str]) {
        self.from_user = true;
        let orders = texts.iter().flat_map(|text| orders_in(text));
        self.orders = orders.take(MAX_ORDERS).map(str::to_owned).collect();
        self.text.clear();
        for text in texts {
            let room = MAX_LAST_BYTES.saturating_sub(self.text.len());
            push_without_orders(&mut self.text, text, room);
        }
    }

    /// Another message came after it.
    pub(super) fn followed(&mut self) {
        self.from_user = false;
    }
}

/// What stands in every `[[fault:…]]`.
fn orders_in(text: &str) -> impl Iterator<Item = &str> {
    let after = text.split("[[fault:").skip(1);
    after.filter_map(|rest| rest.split_once("]]").map(|(order, _)| order))
}

fn push_without_orders(into: &mut String, text: &str, room: usize) {
    let mut rest = text
        .get(..text.floor_char_boundary(room * 2))
        .unwrap_or(text);
    let end = into.len() + room;
    while let Some((before, after)) = rest.split_once("[[fault:") {
        into.push_str(before);
        rest = after.split_once("]]").map_or("", |(_, after)| after);
    }
    into.push_str(rest);
    into.truncate(into.floor_char_boundary(end));
}

/// Everything about a request that an answer depends on.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub model: String,
    /// Empty when the request has none.
    pub user_id: String,
    pub stream: bool,
    pub include_usage: bool,
    pub thinking: bool,
    /// Ceiling of reasoning and answer together, in tokens.
    pub max_tokens: Option<usize>,
    pub json: bool,
    /// The answer goes on where the prompt's last message ends.
    pub continues: bool,
    /// The beginning of the answer, when the request has it.
    pub begun: Option<Begun>,
    pub tools: Vec<Tool>,
    pub choice: Choice,
    pub last: Last,
    pub chain: Chain,
    pub files: Vec<String>,
}

impl Ask {
    /// A request for an answer of `model`, with every default of the real API.
    pub(super) fn new(model: String, user_id: Option<String>) -> Result<Self, Refusal> {
        let user_id = user_id.unwrap_or_default();
        check_user_id(&user_id)?;
        Ok(Self {
            chain: Chain::new(&model, &user_id),
            model,
            user_id,
            stream: false,
            include_usage: false,
            thinking: true,
            max_tokens: None,
            json: false,
            continues: false,
            begun: None,
            tools: Vec::new(),
            choice: Choice::Auto,
            last: Last::default(),
            files: Vec::new(),
        })
    }

    /// Adds a user's message to the prompt.
    pub(super) fn hear(&mut self, texts: &[&str]) {
        self.chain.push("user", texts);
        self.last.heard(texts);
    }

    /// Adds any other message to the prompt.
    pub(super) fn follow(&mut self, role: &str, texts: &[&str]) {
        self.chain.push(role, texts);
        self.last.followed();
    }

    /// Takes the last message for the beginning of the answer.
    pub(super) fn begin(&mut self, begun: Begun) {
        let reasoning = begun.reasoning.as_deref().unwrap_or_default();
        self.chain.begin(&begun.text, reasoning);
        self.begun = Some(begun);
    }

    /// Adds the tools, which stand before the messages in the prompt.
    pub(super) fn offer(&mut self, tools: Vec<Tool>) -> Result<(), Refusal> {
        if tools.len() > MAX_TOOLS {
            return Err(Refusal::invalid(
                "Invalid tools value, at most 128 functions are supported",
            ));
        }
        for tool in &tools {
            check_tool_name(&tool.name)?;
            let parameters = tool.parameters.to_string();
            self.chain.push("tool", &[&tool.name, &parameters]);
        }
        self.tools = tools;
        Ok(())
    }

    /// Notes a file that the prompt refers to.
    pub(super) fn attach(&mut self, id: &str) {
        self.chain.image(id);
        if self.files.len() < MAX_FILES {
            self.files.push(id.to_owned());
        }
    }

    /// Sets the ceiling of the answer; 1 to 393,216 tokens.
    pub(super) fn limit(
        &mut self,
        name: &str,
        tokens: Option<i64>,
        most: i64,
    ) -> Result<(), Refusal> {
        let Some(tokens) = tokens else {
            return Ok(());
        };
        if !(1..=most).contains(&tokens) {
            return Err(Refusal::invalid(format!(
                "Invalid {name} value, the valid range of {name} is [1, {most}]"
            )));
        }
        self.max_tokens = usize::try_from(tokens).ok();
        Ok(())
    }

    /// The rules that hold for every format once the prompt is complete.
    pub(super) fn check(&self, self_hosted: bool) -> Result<(), Refusal> {
        let tokens = self.chain.tokens();
        if tokens > MAX_CONTEXT_TOKENS {
            return Err(Refusal::bad(format!(
                "This model's maximum context length is {MAX_CONTEXT_TOKENS} tokens. However, you requested {tokens} tokens in the messages. Please reduce the length of the messages."
            )));
        }
        if !self_hosted && self.thinking && self.choice.forces() {
            return Err(Refusal::bad(
                "The thinking mode does not support this tool_choice",
            ));
        }
        Ok(())
    }
}

fn check_user_id(id: &str) -> Result<(), Refusal> {
    let well_formed = id
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if well_formed && id.len() <= 512 {
        return Ok(());
    }
    Err(Refusal::invalid(
        "Invalid user_id value, it must match [a-zA-Z0-9_-]+ and have at most 512 bytes",
    ))
}

fn check_tool_name(name: &str) -> Result<(), Refusal> {
    let well_formed = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if well_formed && (1..=128).contains(&name.len()) {
        return Ok(());
    }
    Err(Refusal::invalid(
        "Invalid tools function name, it must match [a-zA-Z0-9_-]+ and have at most 128 bytes",
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_order_in_the_prompt_is_found_and_not_repeated() {
        let mut last = Last::default();
        last.heard(&["hello [[fault:status=503,times=1]] world"]);
        assert_eq!(last.orders, ["status=503,times=1"]);
        assert_eq!(last.text, "hello  world");
        last.heard(&["[[fault:open"]);
        assert!(last.orders.is_empty());
        last.heard(&["a[[fault:tokens=9]]b", "[[fault:x]]c"]);
        assert_eq!((last.orders.len(), last.text.as_str()), (2, "abc"));
    }

    #[test]
    fn estimates_follow_the_rule_of_thumb() {
        assert_eq!(estimate("0123456789"), 3);
        assert_eq!(estimate("中文字"), 2);
        assert_eq!(estimate(""), 0);
    }

    #[test]
    fn user_ids_and_ceilings_have_rules() {
        assert!(Ask::new("m".into(), Some("a b".into())).is_err());
        let mut ask = Ask::new("m".into(), Some("tenant-1".into())).unwrap();
        assert!(ask.limit("max_tokens", Some(0), 393_216).is_err());
        assert!(ask.limit("max_tokens", Some(393_216), 393_216).is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_heard_within_bounds(text in "(\\[\\[fault:|\\]\\]|[a-z中 ]){0,4000}") {
            let mut last = Last::default();
            last.heard(&[&text, &text]);
            prop_assert!(last.text.len() <= MAX_LAST_BYTES);
        }
    }
}
