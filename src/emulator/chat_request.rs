//! Reads a request in the chat format, and refuses what DeepSeek refuses. It
//! knows neither accounts nor answers.

use serde::Deserialize;
use serde_json::Value;

use super::models;
use super::prompt::{Ask, Begun, Choice, Tool};
use super::refusal::Refusal;

/// Longest answer of a model, in tokens (DeepSeek pricing page: 384K).
pub(super) const MAX_OUTPUT_TOKENS: i64 = 393_216;

#[derive(Deserialize)]
struct ChatRequest {
    model: String,
    messages: Vec<Message>,
    thinking: Option<Thinking>,
    reasoning_effort: Option<String>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    response_format: Option<Kind>,
    stop: Option<Stop>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    tools: Option<Vec<ToolDefinition>>,
    tool_choice: Option<Value>,
    top_logprobs: Option<i64>,
    n: Option<i64>,
    user_id: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    role: Role,
    content: Option<Content>,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<Value>>,
    tool_call_id: Option<String>,
    #[serde(default)]
    prefix: bool,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    User,
    Assistant,
    Tool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
    image_url: Option<Value>,
    file: Option<Value>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Thinking {
    #[serde(rename = "type")]
    kind: Switch,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Switch {
    Enabled,
    Disabled,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Stop {
    One(#[expect(dead_code, reason = "read only to check that it is text")] String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub include_usage: bool,
}

#[derive(Deserialize)]
struct ToolDefinition {
    function: FunctionDefinition,
}

#[derive(Deserialize)]
struct FunctionDefinition {
    name: String,
    #[serde(default)]
    parameters: Value,
}

/// Reads a request. `beta` allows prefix completion; `self_hosted` any model and no DeepSeek rules.
pub(super) fn read(body: &[u8], beta: bool, self_hosted: bool) -> Result<Ask, Refusal> {
    let request: ChatRequest = serde_json::from_slice(body).map_err(|e| Refusal::unreadable(&e))?;
    let model = models::served(&request.model, self_hosted)?;
    check_ranges(&request)?;
    let mut ask = Ask::new(model, request.user_id)?;
    // Self-hosted servers know OpenAI's newer name too; DeepSeek ignores it.
    let newer = request.max_completion_tokens.filter(|_| self_hosted);
    let most = newer.or(request.max_tokens);
    ask.limit("max_tokens", most, MAX_OUTPUT_TOKENS)?;
    ask.stream = request.stream.unwrap_or(false);
    ask.include_usage = request
        .stream_options
        .is_some_and(|options| options.include_usage);
    ask.thinking = request
        .thinking
        .is_none_or(|thinking| thinking.kind != Switch::Disabled)
        && request.reasoning_effort.as_deref() != Some("none");
    ask.choice = choice(request.tool_choice.as_ref());
    let tools = request.tools.unwrap_or_default().into_iter();
    ask.offer(
        tools
            .map(|tool| Tool {
                name: tool.function.name,
                parameters: tool.function.parameters,
            })
            .collect(),
    )?;
    check_turns(
        &request.messages,
        beta || self_hosted,
        ask.thinking && !self_hosted,
    )?;
    let mut says_json = false;
    for message in &request.messages {
        says_json |= absorb(&mut ask, message);
    }
    ask.json = match request
        .response_format
        .as_ref()
        .map(|format| format.kind.as_str())
    {
        None | Some("text") => false,
        Some("json_object") => true,
        Some("json_schema") if self_hosted => true,
        Some(_) => return Err(Refusal::bad("This response_format type is unavailable now")),
    };
    if ask.json && !says_json && !self_hosted {
        return Err(Refusal::bad(
            "Prompt must contain the word 'json' in some form to use 'response_format' of type 'json_object'.",
        ));
    }
    ask.check(self_hosted)?;
    Ok(ask)
}

fn check_ranges(request: &ChatRequest) -> Result<(), Refusal> {
    let outside = |name: &str, range: &str| {
        Err(Refusal::invalid(format!(
            "Invalid {name} value, the valid range of {name} is {range}"
        )))
    };
    if request.messages.is_empty() {
        return Err(Refusal::bad("Empty input messages"));
    }
    if request.n.is_some_and(|n| n != 1) {
        return Err(Refusal::bad(
            "Invalid n value (currently only n = 1 is supported)",
        ));
    }
    if request
        .temperature
        .is_some_and(|value| !(0.0..=2.0).contains(&value))
    {
        return outside("temperature", "[0, 2.0]");
    }
    if request
        .top_p
        .is_some_and(|value| !(value > 0.0 && value <= 1.0))
    {
        return outside("top_p", "(0, 1.0]");
    }
    if request
        .top_logprobs
        .is_some_and(|value| !(0..=20).contains(&value))
    {
        return outside("top_logprobs", "[0, 20]");
    }
    if matches!(&request.stop, Some(Stop::Many(stops)) if stops.len() > 16) {
        return Err(Refusal::invalid(
            "Invalid stop value, at most 16 sequences are supported",
        ));
    }
    Ok(())
}

/// DeepSeek's rules about the order of messages (thinking_mode page and observed 400s).
fn check_turns(messages: &[Message], prefix_allowed: bool, strict: bool) -> Result<(), Refusal> {
    let mut open: Vec<&str> = Vec::new();
    let mut calling = false;
    let before_last = messages.len().saturating_sub(1);
    for (index, message) in messages.iter().enumerate() {
        if message.prefix && (message.role != Role::Assistant || index < before_last) {
            return Err(Refusal::bad(
                "The prefix parameter is only available for the last message, with role 'assistant'",
            ));
        }
        if message.prefix && !prefix_allowed {
            return Err(Refusal::bad(
                "The prefix parameter is only available with base_url=\"https://api.deepseek.com/beta\"",
            ));
        }
        if message.role == Role::Tool {
            if !calling {
                return Err(Refusal::bad(
                    "Messages with role 'tool' must be a response to a preceding message with 'tool_calls'",
                ));
            }
            open.retain(|id| Some(*id) != message.tool_call_id.as_deref());
            continue;
        }
        if !open.is_empty() {
            break;
        }
        let calls = message.tool_calls.as_deref().unwrap_or_default();
        calling = message.role == Role::Assistant && !calls.is_empty();
        if calling && strict && message.reasoning_content.is_none() {
            return Err(Refusal::bad(
                "The `reasoning_content` in the thinking mode must be passed back to the API.",
            ));
        }
        if calling {
            // A request never has more calls than bytes; the cap keeps `retain` cheap.
            open = calls
                .iter()
                .take(128)
                .filter_map(|call| call.get("id")?.as_str())
                .collect();
        }
    }
    if open.is_empty() {
        return Ok(());
    }
    Err(Refusal::bad(
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. (insufficient tool messages following tool_calls message)",
    ))
}

/// Adds a message to the prompt; true when it says "json".
fn absorb(ask: &mut Ask, message: &Message) -> bool {
    let texts: Vec<&str> = match &message.content {
        None => Vec::new(),
        Some(Content::Text(text)) => vec![text],
        Some(Content::Parts(parts)) => parts
            .iter()
            .filter_map(|part| part.text.as_deref())
            .collect(),
    };
    if let Some(Content::Parts(parts)) = &message.content {
        for part in parts {
            if let Some(image) = &part.image_url {
                let address = image.get("url").and_then(Value::as_str);
                ask.chain.image(address.unwrap_or_default());
            }
            if let Some(id) = part
                .file
                .as_ref()
                .and_then(|file| file.get("file_id")?.as_str())
            {
                ask.attach(id);
            }
        }
    }
    match message.role {
        Role::Assistant if message.prefix => ask.begin(Begun {
            text: texts.concat(),
            reasoning: message.reasoning_content.clone(),
        }),
        Role::User => ask.hear(&texts),
        Role::System => ask.follow("system", &texts),
        Role::Tool => ask.follow("result", &texts),
        Role::Assistant => {
            let calls = message
                .tool_calls
                .as_ref()
                .and_then(|calls| serde_json::to_string(calls).ok());
            let mut texts = texts.clone();
            texts.extend(calls.as_deref());
            ask.follow("assistant", &texts);
        }
    }
    texts.iter().any(|text| says_json(text))
}

fn says_json(text: &str) -> bool {
    text.as_bytes()
        .windows(4)
        .any(|word| word.eq_ignore_ascii_case(b"json"))
}

/// OpenAI's `tool_choice`: a word, or an object that names a function.
pub(super) fn choice(value: Option<&Value>) -> Choice {
    match value {
        Some(Value::String(word)) if word == "none" => Choice::Never,
        Some(Value::String(word)) if word == "required" => Choice::Required,
        Some(object @ Value::Object(_)) => {
            let function = object.get("function").unwrap_or(object);
            let name = function.get("name").and_then(Value::as_str);
            name.map_or(Choice::Auto, |name| Choice::Named(name.to_owned()))
        }
        _ => Choice::Auto,
    }
}
