//! The Responses format: reads `/responses`, stateless as at DeepSeek, and
//! renders answers whole or as numbered events without an end mark.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Fragments, Said};
use super::chat_request::{MAX_OUTPUT_TOKENS, choice};
use super::models;
use super::prompt::{Ask, Tool};
use super::refusal::Refusal;
use super::reply::Reply;
use super::transcript::{Pace, Transcript};
use super::usage::Usage;

#[derive(Deserialize)]
struct ResponsesRequest {
    model: String,
    input: Input,
    instructions: Option<String>,
    max_output_tokens: Option<i64>,
    reasoning: Option<Value>,
    text: Option<Value>,
    stream: Option<bool>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    user_id: Option<String>,
    previous_response_id: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Items(Vec<Value>),
}

/// Reads a request.
pub(super) fn read(body: &[u8], self_hosted: bool) -> Result<Ask, Refusal> {
    let request: ResponsesRequest =
        serde_json::from_slice(body).map_err(|e| Refusal::unreadable(&e))?;
    let model = models::served(&request.model, self_hosted)?;
    if request.previous_response_id.is_some_and(|id| !id.is_null()) {
        return Err(Refusal::bad("previous_response_id is not supported"));
    }
    let mut ask = Ask::new(model, request.user_id)?;
    ask.limit(
        "max_output_tokens",
        request.max_output_tokens,
        MAX_OUTPUT_TOKENS,
    )?;
    ask.stream = request.stream.unwrap_or(false);
    ask.thinking = word(request.reasoning.as_ref(), "effort") != Some("none");
    ask.choice = choice(request.tool_choice.as_ref());
    let format = request.text.as_ref().and_then(|text| text.get("format"));
    ask.json = word(format, "type") == Some("json_object");
    ask.offer(request.tools.iter().flatten().filter_map(tool).collect())?;
    if let Some(instructions) = &request.instructions {
        ask.follow("system", &[instructions]);
    }
    match &request.input {
        Input::Text(text) => ask.hear(&[text]),
        Input::Items(items) => items.iter().for_each(|item| absorb(&mut ask, item)),
    }
    ask.check(self_hosted)?;
    Ok(ask)
}

fn word<'a>(value: Option<&'a Value>, name: &str) -> Option<&'a str> {
    value?.get(name)?.as_str()
}

fn tool(value: &Value) -> Option<Tool> {
    let name = value.get("name")?.as_str()?.to_owned();
    let parameters = value.get("parameters").cloned().unwrap_or_default();
    Some(Tool { name, parameters })
}

fn absorb(ask: &mut Ask, item: &Value) {
    let texts: Vec<&str> = match item.get("content") {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(parts)) => {
            for part in parts {
                if let Some(address) = word(Some(part), "image_url") {
                    ask.chain.image(address);
                }
                if let Some(id) = word(Some(part), "file_id") {
                    ask.attach(id);
                }
            }
            parts
                .iter()
                .filter_map(|part| word(Some(part), "text"))
                .collect()
        }
        _ => Vec::new(),
    };
    match (word(Some(item), "type"), word(Some(item), "role")) {
        (None | Some("message"), Some("user")) => ask.hear(&texts),
        (None | Some("message"), Some("assistant")) => ask.follow("assistant", &texts),
        (None | Some("message"), _) => ask.follow("system", &texts),
        // Reasoning that is sent back is no part of the prompt's meaning.
        (Some("reasoning"), _) => {}
        (Some(kind), _) => ask.follow(kind, &[&item.to_string()]),
    }
}

fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": { "cached_tokens": usage.hit },
        "output_tokens": usage.completion,
        "output_tokens_details": { "reasoning_tokens": usage.reasoning.unwrap_or(0) },
        "total_tokens": usage.total(),
    })
}

/// The parts of an answer: reasoning, then a message or a call.
fn reasoning_item(reply: &Reply, text: &str, status: &str) -> Value {
    let content = json!([{ "type": "reasoning_text", "text": text }]);
    json!({
        "id": format!("rs_{}", reply.id),
        "type": "reasoning",
        "summary": [],
        "content": if text.is_empty() { json!([]) } else { content },
        "status": status,
    })
}

fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [] })
}

fn said_item(reply: &Reply, begun: bool) -> Value {
    let status = if begun { "in_progress" } else { "completed" };
    match &reply.answer.said {
        Said::Text(text) => json!({
            "id": format!("msg_{}", reply.id),
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": if begun { json!([]) } else { json!([text_part(text.text())]) },
        }),
        Said::Call { name, arguments } => json!({
            "id": format!("fc_{}", reply.id),
            "type": "function_call",
            "call_id": reply.call_id(),
            "name": name,
            "arguments": if begun { "" } else { arguments.text() },
            "status": status,
        }),
    }
}

/// How the finish reason is told here: status, why incomplete, error.
fn status(finish: &str) -> (&'static str, Value, Value) {
    let reason = |reason: &str| json!({ "reason": reason });
    match finish {
        "stop" | "tool_calls" => ("completed", Value::Null, Value::Null),
        "length" => ("incomplete", reason("max_output_tokens"), Value::Null),
        "content_filter" => ("incomplete", reason("content_filter"), Value::Null),
        other => (
            "failed",
            Value::Null,
            json!({ "code": "server_error", "message": other }),
        ),
    }
}

fn envelope(reply: &Reply, finish: Option<&str>) -> Value {
    let (status, incomplete, error) =
        finish.map_or(("in_progress", Value::Null, Value::Null), status);
    let mut output = Vec::new();
    if finish.is_some() {
        let reasoning = reply.answer.reasoning.as_ref();
        output.extend(reasoning.map(|text| reasoning_item(reply, text.text(), "completed")));
        output.push(said_item(reply, false));
    }
    let mut envelope = json!({
        "id": reply.id,
        "object": "response",
        "created_at": reply.created,
        "status": status,
        "model": reply.model,
        "output": output,
        "error": error,
        "incomplete_details": incomplete,
        "store": false,
    });
    if finish.is_some() {
        reply.telling.tell_in(&mut envelope, &reply.usage, usage);
    } else if let Some(object) = envelope.as_object_mut() {
        object.insert("usage".to_owned(), Value::Null);
    }
    envelope
}

/// The answer in one piece.
pub(super) fn whole(reply: &Reply) -> Bytes {
    Bytes::from(envelope(reply, Some(&reply.answer.finish)).to_string())
}

/// The answer as events.
pub(super) fn streamed(reply: &Reply) -> Transcript {
    let tokens = reply.answer.tokens();
    let transcript = Transcript::with_capacity(tokens + 16, (tokens + 16) * 220);
    let mut events = Events {
        transcript,
        number: 0,
    };
    let begun = envelope(reply, None);
    events.push("response.created", json!({ "response": begun }));
    events.push("response.in_progress", json!({ "response": begun }));
    let mut index = 0;
    if let Some(reasoning) = &reply.answer.reasoning {
        events.think(reply, index, reasoning);
        index += 1;
    }
    events.say(reply, index);
    let (status, ..) = status(&reply.answer.finish);
    let response = envelope(reply, Some(&reply.answer.finish));
    events.transcript.tells_usage();
    events.push(
        &format!("response.{status}"),
        json!({ "response": response }),
    );
    events.transcript
}

fn with(place: &Value, name: &str, value: Value) -> Value {
    let mut place = place.clone();
    if let Some(object) = place.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
    place
}

/// Events that count themselves.
struct Events {
    transcript: Transcript,
    number: u64,
}

impl Events {
    fn item(&mut self, done: &str, index: usize, item: &Value) {
        let kind = format!("response.output_item.{done}");
        self.push(&kind, json!({ "output_index": index, "item": item }));
    }

    fn think(&mut self, reply: &Reply, index: usize, reasoning: &Fragments) {
        let item = reasoning_item(reply, "", "in_progress");
        self.item("added", index, &item);
        let place = json!({ "item_id": item.get("id"), "output_index": index, "content_index": 0 });
        self.deltas("response.reasoning_text.delta", &place, reasoning);
        let done = with(&place, "text", json!(reasoning.text()));
        self.push("response.reasoning_text.done", done);
        self.item(
            "done",
            index,
            &reasoning_item(reply, reasoning.text(), "completed"),
        );
    }

    fn say(&mut self, reply: &Reply, index: usize) {
        let item = said_item(reply, true);
        self.item("added", index, &item);
        let place = json!({ "item_id": item.get("id"), "output_index": index });
        match &reply.answer.said {
            Said::Text(text) => {
                let place = with(&place, "content_index", json!(0));
                self.push(
                    "response.content_part.added",
                    with(&place, "part", text_part("")),
                );
                self.deltas("response.output_text.delta", &place, text);
                self.push(
                    "response.output_text.done",
                    with(&place, "text", json!(text.text())),
                );
                let part = text_part(text.text());
                self.push("response.content_part.done", with(&place, "part", part));
            }
            Said::Call { arguments, .. } => {
                self.deltas("response.function_call_arguments.delta", &place, arguments);
                let done = with(&place, "arguments", json!(arguments.text()));
                self.push("response.function_call_arguments.done", done);
            }
        }
        self.item("done", index, &said_item(reply, false));
    }

    fn push(&mut self, kind: &str, mut data: Value) {
        if let Some(object) = data.as_object_mut() {
            object.insert("type".to_owned(), json!(kind));
            object.insert("sequence_number".to_owned(), json!(self.number));
        }
        self.number += 1;
        let text = format!("event: {kind}\ndata: {data}\n\n");
        self.transcript.event(Pace::AtOnce, &[text.as_bytes()]);
    }

    fn deltas(&mut self, kind: &str, place: &Value, pieces: &Fragments) {
        let place = place.to_string();
        let place = place.strip_suffix('}').unwrap_or_default();
        for piece in pieces.iter() {
            let before = format!(
                "event: {kind}\ndata: {place},\"type\":\"{kind}\",\"sequence_number\":{},\"delta\":",
                self.number
            );
            self.number += 1;
            self.transcript
                .quoted(Pace::Token, &[before.as_bytes()], piece, &[b"}\n\n"]);
        }
    }
}

/// An error after the head and `sent` events: these streams end with a failed response.
pub(super) fn error_event(sent: usize) -> Bytes {
    let data = json!({
        "type": "response.failed",
        "sequence_number": sent,
        "response": {
            "object": "response",
            "status": "failed",
            "output": [],
            "usage": null,
            "error": { "code": "server_error", "message": "Server error (emulated)" },
        },
    });
    Bytes::from(format!("event: response.failed\ndata: {data}\n\n"))
}
