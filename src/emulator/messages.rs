//! The Anthropic format: reads `/anthropic/v1/messages` and renders answers
//! whole or as events. What DeepSeek ignores there is ignored here.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Fragments, Said};
use super::chat_request::MAX_OUTPUT_TOKENS;
use super::models;
use super::prompt::{Ask, Choice, Tool};
use super::refusal::Refusal;
use super::reply::Reply;
use super::transcript::{Pace, Transcript};
use super::usage::Usage;

#[derive(Deserialize)]
struct MessagesRequest {
    model: String,
    messages: Vec<Message>,
    system: Option<Content>,
    max_tokens: Option<i64>,
    thinking: Option<Value>,
    output_config: Option<Value>,
    metadata: Option<Metadata>,
    stream: Option<bool>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
}

#[derive(Deserialize)]
struct Metadata {
    user_id: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    role: Role,
    content: Content,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
    System,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Blocks(Vec<Value>),
}

/// Reads a request.
pub(super) fn read(body: &[u8], self_hosted: bool) -> Result<Ask, Refusal> {
    let request: MessagesRequest =
        serde_json::from_slice(body).map_err(|e| Refusal::unreadable(&e))?;
    let model = models::served_as_claude(&request.model, self_hosted)?;
    if request.messages.is_empty() {
        return Err(Refusal::bad("Empty input messages"));
    }
    let user_id = request.metadata.and_then(|metadata| metadata.user_id);
    let mut ask = Ask::new(model, user_id)?;
    ask.limit("max_tokens", request.max_tokens, MAX_OUTPUT_TOKENS)?;
    ask.stream = request.stream.unwrap_or(false);
    ask.thinking = word(request.thinking.as_ref(), "type") != Some("disabled")
        && word(request.output_config.as_ref(), "effort") != Some("none");
    ask.choice = choice(request.tool_choice.as_ref());
    ask.offer(request.tools.iter().flatten().filter_map(tool).collect())?;
    if let Some(system) = &request.system {
        absorb(&mut ask, Role::System, system);
    }
    for message in &request.messages {
        absorb(&mut ask, message.role, &message.content);
    }
    ask.check(self_hosted)?;
    Ok(ask)
}

fn word<'a>(value: Option<&'a Value>, name: &str) -> Option<&'a str> {
    value?.get(name)?.as_str()
}

/// Anthropic's own server tools have no schema and are passed over.
fn tool(value: &Value) -> Option<Tool> {
    let name = value.get("name")?.as_str()?.to_owned();
    let parameters = value.get("input_schema")?.clone();
    Some(Tool { name, parameters })
}

fn choice(value: Option<&Value>) -> Choice {
    match word(value, "type") {
        Some("none") => Choice::Never,
        Some("any") => Choice::Required,
        Some("tool") => Choice::Named(word(value, "name").unwrap_or_default().to_owned()),
        _ => Choice::Auto,
    }
}

fn absorb(ask: &mut Ask, role: Role, content: &Content) {
    let mut others = Vec::new();
    let texts: Vec<&str> = match content {
        Content::Text(text) => vec![text],
        Content::Blocks(blocks) => {
            for block in blocks {
                match word(Some(block), "type") {
                    Some("tool_use" | "tool_result") => others.push(block.to_string()),
                    Some("image") => ask.chain.image(&block.to_string()),
                    _ => {}
                }
            }
            blocks
                .iter()
                .filter_map(|block| word(Some(block), "text"))
                .collect()
        }
    };
    let mut all = texts.clone();
    all.extend(others.iter().map(String::as_str));
    match role {
        // A message of results alone is a tool's, whatever its role says.
        Role::User if texts.is_empty() && !others.is_empty() => ask.follow("result", &all),
        Role::User => ask.hear(&all),
        Role::Assistant => ask.follow("assistant", &all),
        Role::System => ask.follow("system", &all),
    }
}

fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.miss(),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.hit,
        "output_tokens": usage.completion,
    })
}

fn stop_reason(finish: &str) -> &str {
    match finish {
        "stop" => "end_turn",
        "length" => "max_tokens",
        "tool_calls" => "tool_use",
        "content_filter" => "refusal",
        other => other,
    }
}

/// The answer in one piece.
pub(super) fn whole(reply: &Reply) -> Bytes {
    let mut content = Vec::new();
    if let Some(reasoning) = &reply.answer.reasoning {
        content.push(json!({
            "type": "thinking",
            "thinking": reasoning.text(),
            "signature": reply.id,
        }));
    }
    content.push(match &reply.answer.said {
        Said::Text(text) => json!({ "type": "text", "text": text.text() }),
        Said::Call { name, arguments } => {
            let input: Value = serde_json::from_str(arguments.text()).unwrap_or_else(|_| json!({}));
            json!({ "type": "tool_use", "id": reply.call_id(), "name": name, "input": input })
        }
    });
    let mut body = json!({
        "id": reply.id,
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": content,
        "stop_reason": stop_reason(&reply.answer.finish),
        "stop_sequence": null,
    });
    reply.telling.tell_in(&mut body, &reply.usage, usage);
    Bytes::from(body.to_string())
}

/// The answer as events.
pub(super) fn streamed(reply: &Reply) -> Transcript {
    let tokens = reply.answer.tokens();
    let mut events = Transcript::with_capacity(tokens + 16, (tokens + 16) * 140);
    start(&mut events, reply);
    let mut index = 0;
    if let Some(reasoning) = &reply.answer.reasoning {
        think(&mut events, index, reasoning, &reply.id);
        index += 1;
    }
    match &reply.answer.said {
        Said::Text(text) => {
            open(&mut events, index, &json!({ "type": "text", "text": "" }));
            deltas(&mut events, index, "text_delta\",\"text", text);
        }
        Said::Call { name, arguments } => {
            let id = reply.call_id();
            let block = json!({ "type": "tool_use", "id": id, "name": name, "input": {} });
            open(&mut events, index, &block);
            deltas(
                &mut events,
                index,
                "input_json_delta\",\"partial_json",
                arguments,
            );
        }
    }
    close(&mut events, index);
    let reason = stop_reason(&reply.answer.finish);
    let mut end = json!({
        "type": "message_delta",
        "delta": { "stop_reason": reason, "stop_sequence": null },
    });
    reply.telling.tell_in(&mut end, &reply.usage, usage);
    events.tells_usage();
    event(&mut events, "message_delta", &end);
    event(
        &mut events,
        "message_stop",
        &json!({ "type": "message_stop" }),
    );
    events
}

fn start(events: &mut Transcript, reply: &Reply) {
    let nothing_yet = Usage {
        completion: 0,
        ..reply.usage
    };
    let mut message = json!({
        "id": reply.id,
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
    });
    reply.telling.tell_in(&mut message, &nothing_yet, usage);
    let start = json!({ "type": "message_start", "message": message });
    event(events, "message_start", &start);
    event(events, "ping", &json!({ "type": "ping" }));
}

fn think(events: &mut Transcript, index: usize, reasoning: &Fragments, signature: &str) {
    let block = json!({ "type": "thinking", "thinking": "", "signature": "" });
    open(events, index, &block);
    deltas(events, index, "thinking_delta\",\"thinking", reasoning);
    let signed = json!({
        "type": "content_block_delta",
        "index": index,
        "delta": { "type": "signature_delta", "signature": signature },
    });
    event(events, "content_block_delta", &signed);
    close(events, index);
}

fn event(events: &mut Transcript, name: &str, data: &Value) {
    let text = format!("event: {name}\ndata: {data}\n\n");
    events.event(Pace::AtOnce, &[text.as_bytes()]);
}

fn open(events: &mut Transcript, index: usize, block: &Value) {
    event(
        events,
        "content_block_start",
        &json!({
            "type": "content_block_start",
            "index": index,
            "content_block": block,
        }),
    );
}

fn close(events: &mut Transcript, index: usize) {
    event(
        events,
        "content_block_stop",
        &json!({ "type": "content_block_stop", "index": index }),
    );
}

/// `kind` is the delta's type and the name of its text, as they stand in JSON.
fn deltas(events: &mut Transcript, index: usize, kind: &str, pieces: &Fragments) {
    let before = format!(
        "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":{index},\"delta\":{{\"type\":\"{kind}\":"
    );
    for piece in pieces.iter() {
        events.quoted(Pace::Token, &[before.as_bytes()], piece, &[b"}}\n\n"]);
    }
}

/// An error after the head.
pub(super) fn error_event(_sent: usize) -> Bytes {
    Bytes::from_static(b"event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"Server error (emulated)\"}}\n\n")
}

/// The same error as a body of its own.
pub(super) fn error_body() -> Bytes {
    Bytes::from_static(b"{\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"Server error (emulated)\"}}")
}
