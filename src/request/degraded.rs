//! Decides what the answer looks like that is configured for when nothing else is
//! left, in the dialect and the manner the caller asked for. It must not know when
//! that is. Its finish is `degraded` in every dialect, so that no program takes it
//! for a model's words.

use super::surface::Surface;
use crate::config::settings::Degraded;
use bytes::Bytes;
use serde_json::{Value, json};

/// The header that marks the answer.
pub const HEADER: &str = "x-tidegate-degraded";
/// Its value for an answer from the configuration.
pub const STATIC: &str = "static";

/// The finish of a degraded answer.
const FINISH: &str = "degraded";

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The API entry.
    pub surface: &'a Surface,
    /// The model, in the caller's words.
    pub model: &'a str,
    /// Goes into the ids of the answer.
    pub request_id: &'a str,
    /// Whether as a stream.
    pub stream: bool,
    /// Whether a stream of OpenAI's completions has to tell its usage.
    pub include_usage: bool,
    /// Seconds since 1970.
    pub now: u64,
}

/// A whole answer, for status 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub content_type: &'static str,
    pub body: Bytes,
}

/// The configured answer; `None` on surfaces that generate no text.
pub fn answer(degraded: &Degraded, asked: &Asked<'_>) -> Option<Answer> {
    let words = Words {
        text: filled(&degraded.text, asked),
        asked,
    };
    let body = match (asked.surface, asked.stream) {
        (Surface::Chat { .. }, false) => words.chat().to_string(),
        (Surface::Chat { .. }, true) => words.chat_stream(),
        (Surface::Completions { .. }, false) => words.completion().to_string(),
        (Surface::Completions { .. }, true) => words.completion_stream(),
        (Surface::Messages, false) => words.message().to_string(),
        (Surface::Messages, true) => words.message_stream(),
        (Surface::Responses, false) => words.response().to_string(),
        (Surface::Responses, true) => words.response_stream(),
        _ => return None,
    };
    Some(Answer {
        content_type: if asked.stream {
            "text/event-stream"
        } else {
            "application/json"
        },
        body: Bytes::from(body),
    })
}

/// Fills the placeholders in. What is filled in is not looked at again.
fn filled(template: &str, asked: &Asked<'_>) -> String {
    let mut out = String::with_capacity(template.len() + 64);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        let known = [("model}", asked.model), ("request_id}", asked.request_id)];
        let found = known
            .iter()
            .find_map(|(name, value)| Some((after.strip_prefix(name)?, value)));
        match found {
            Some((tail, value)) => {
                out.push_str(value);
                rest = tail;
            }
            None => {
                out.push('{');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

struct Words<'a> {
    text: String,
    asked: &'a Asked<'a>,
}

impl Words<'_> {
    fn chat(&self) -> Value {
        let choice = json!({
            "index": 0,
            "message": { "role": "assistant", "content": self.text },
            "logprobs": null,
            "finish_reason": FINISH,
        });
        self.openai(
            "chatcmpl",
            "chat.completion",
            json!([choice]),
            openai_usage(),
        )
    }

    fn chat_stream(&self) -> String {
        let chunk = |delta: Value, finish: Option<&str>| json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]);
        let choices = [
            chunk(json!({ "role": "assistant", "content": "" }), None),
            chunk(json!({ "content": self.text }), None),
            chunk(json!({}), Some(FINISH)),
        ];
        self.chunks("chatcmpl", "chat.completion.chunk", choices)
    }

    fn completion(&self) -> Value {
        let choices = completion_choice(&self.text, Some(FINISH));
        self.openai("cmpl", "text_completion", choices, openai_usage())
    }

    fn completion_stream(&self) -> String {
        let choices = [
            completion_choice(&self.text, None),
            completion_choice("", Some(FINISH)),
        ];
        self.chunks("cmpl", "text_completion", choices)
    }

    fn openai(&self, prefix: &str, object: &str, choices: Value, usage: Value) -> Value {
        json!({
            "id": format!("{prefix}-{}", self.asked.request_id),
            "object": object,
            "created": self.asked.now,
            "model": self.asked.model,
            "choices": choices,
            "usage": usage,
        })
    }

    fn chunks<const N: usize>(&self, prefix: &str, object: &str, choices: [Value; N]) -> String {
        let chunk = |choices, usage| self.openai(prefix, object, choices, usage);
        let mut chunks: Vec<Value> = choices.map(|one| chunk(one, Value::Null)).into();
        if self.asked.include_usage {
            chunks.push(chunk(json!([]), openai_usage()));
        }
        let mut out: String = chunks
            .iter()
            .map(|chunk| format!("data: {chunk}\n\n"))
            .collect();
        out.push_str("data: [DONE]\n\n");
        out
    }

    fn message(&self) -> Value {
        let content = json!([{ "type": "text", "text": self.text }]);
        self.anthropic(content, Some(FINISH))
    }

    fn anthropic(&self, content: Value, stop: Option<&str>) -> Value {
        json!({
            "id": format!("msg_{}", self.asked.request_id),
            "type": "message",
            "role": "assistant",
            "model": self.asked.model,
            "content": content,
            "stop_reason": stop,
            "stop_sequence": null,
            "usage": {
                "input_tokens": 0,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 0,
            },
        })
    }

    fn message_stream(&self) -> String {
        named([
            json!({ "type": "message_start", "message": self.anthropic(json!([]), None) }),
            json!({
                "type": "content_block_start",
                "index": 0,
                "content_block": { "type": "text", "text": "" },
            }),
            json!({
                "type": "content_block_delta",
                "index": 0,
                "delta": { "type": "text_delta", "text": self.text },
            }),
            json!({ "type": "content_block_stop", "index": 0 }),
            json!({
                "type": "message_delta",
                "delta": { "stop_reason": FINISH, "stop_sequence": null },
                "usage": { "output_tokens": 0 },
            }),
            json!({ "type": "message_stop" }),
        ])
    }

    fn response(&self) -> Value {
        self.response_that("incomplete", json!([self.item(true)]))
    }

    fn response_that(&self, status: &str, output: Value) -> Value {
        let ended = status == "incomplete";
        let usage = json!({
            "input_tokens": 0,
            "input_tokens_details": { "cached_tokens": 0 },
            "output_tokens": 0,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": 0,
        });
        json!({
            "id": format!("resp_{}", self.asked.request_id),
            "object": "response",
            "created_at": self.asked.now,
            "status": status,
            "error": null,
            "incomplete_details": ended.then(|| json!({ "reason": FINISH })),
            "instructions": null,
            "metadata": {},
            "model": self.asked.model,
            "output": output,
            "parallel_tool_calls": true,
            "temperature": null,
            "tool_choice": "auto",
            "tools": [],
            "top_p": null,
            "usage": ended.then_some(usage),
        })
    }

    fn item_id(&self) -> String {
        format!("msg_{}", self.asked.request_id)
    }

    fn item(&self, ended: bool) -> Value {
        json!({
            "id": self.item_id(),
            "type": "message",
            "role": "assistant",
            "status": if ended { "incomplete" } else { "in_progress" },
            "content": if ended { json!([part(&self.text)]) } else { json!([]) },
        })
    }

    fn response_stream(&self) -> String {
        let begun = self.response_that("in_progress", json!([]));
        let (item, text) = (self.item_id(), &self.text);
        let mut events = [
            json!({ "type": "response.created", "response": begun }),
            json!({ "type": "response.in_progress", "response": begun }),
            json!({
                "type": "response.output_item.added",
                "output_index": 0,
                "item": self.item(false),
            }),
            json!({
                "type": "response.content_part.added",
                "item_id": item, "output_index": 0, "content_index": 0,
                "part": part(""),
            }),
            json!({
                "type": "response.output_text.delta",
                "item_id": item, "output_index": 0, "content_index": 0,
                "delta": text, "logprobs": [],
            }),
            json!({
                "type": "response.output_text.done",
                "item_id": item, "output_index": 0, "content_index": 0,
                "text": text, "logprobs": [],
            }),
            json!({
                "type": "response.content_part.done",
                "item_id": item, "output_index": 0, "content_index": 0,
                "part": part(text),
            }),
            json!({
                "type": "response.output_item.done",
                "output_index": 0,
                "item": self.item(true),
            }),
            json!({ "type": "response.incomplete", "response": self.response() }),
        ];
        for (number, event) in events.iter_mut().enumerate() {
            if let Value::Object(event) = event {
                event.insert("sequence_number".to_owned(), json!(number));
            }
        }
        named(events)
    }
}

fn completion_choice(text: &str, finish: Option<&str>) -> Value {
    json!([{ "index": 0, "text": text, "logprobs": null, "finish_reason": finish }])
}

fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn openai_usage() -> Value {
    json!({ "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0 })
}

fn named<const N: usize>(events: [Value; N]) -> String {
    let named = |event: &Value| {
        let name = event.get("type").and_then(Value::as_str);
        format!("event: {}\ndata: {event}\n\n", name.unwrap_or_default())
    };
    events.iter().map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SURFACES: [Surface; 4] = [
        Surface::Chat { beta: false },
        Surface::Completions { beta: true },
        Surface::Messages,
        Surface::Responses,
    ];

    fn asked(surface: &Surface, stream: bool) -> Asked<'_> {
        Asked {
            surface,
            model: "sm\"all",
            request_id: "r1",
            stream,
            include_usage: false,
            now: 1_700_000_000,
        }
    }

    fn said(asked: &Asked<'_>) -> Answer {
        let degraded = Degraded {
            text: "{model} is {away}, ask for {request_id}\n字".to_owned(),
        };
        answer(&degraded, asked).unwrap()
    }

    const TEXT: &str = "sm\"all is {away}, ask for r1\n字";

    #[test]
    fn placeholders_are_filled_once() {
        let asked = Asked {
            model: "{request_id}",
            ..asked(&SURFACES[0], false)
        };
        assert_eq!(filled("{model}{}{model", &asked), "{request_id}{}{model");
    }

    #[test]
    fn each_dialect_says_the_text_and_a_finish_of_its_own() {
        let answers = SURFACES.map(|surface| {
            let answer = said(&asked(&surface, false));
            assert_eq!(answer.content_type, "application/json");
            serde_json::from_slice::<Value>(&answer.body).unwrap()
        });
        let [chat, completion, message, response] = answers;
        assert_eq!(chat["choices"][0]["message"]["content"], TEXT);
        assert_eq!(chat["choices"][0]["finish_reason"], "degraded");
        assert_eq!(completion["choices"][0]["text"], TEXT);
        assert_eq!(completion["choices"][0]["finish_reason"], "degraded");
        assert_eq!(message["content"][0]["text"], TEXT);
        assert_eq!(message["stop_reason"], "degraded");
        assert_eq!(response["output"][0]["content"][0]["text"], TEXT);
        assert_eq!(response["status"], "incomplete");
        assert_eq!(response["incomplete_details"]["reason"], "degraded");
        assert_eq!(response["usage"]["total_tokens"], 0);
    }

    #[test]
    fn streams_carry_the_text_and_end_properly() {
        for surface in SURFACES {
            let answer = said(&asked(&surface, true));
            assert_eq!(answer.content_type, "text/event-stream");
            let stream = String::from_utf8(answer.body.to_vec()).unwrap();
            let end = match surface {
                Surface::Messages => "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
                Surface::Responses => "\"sequence_number\":8}\n\n",
                _ => "data: [DONE]\n\n",
            };
            assert!(stream.ends_with(end), "{stream}");
            assert_eq!(stream.matches("\"degraded\"").count(), 1, "{stream}");
            let text = json!(TEXT).to_string();
            assert!(stream.contains(&text), "{stream}");
        }
    }

    #[test]
    fn usage_is_told_in_a_stream_that_was_asked_for_it() {
        let asked = Asked {
            include_usage: true,
            ..asked(&SURFACES[0], true)
        };
        let stream = String::from_utf8(said(&asked).body.to_vec()).unwrap();
        assert!(stream.contains("\"choices\":[],\"usage\":{\"prompt_tokens\":0"));
    }

    #[test]
    fn what_generates_no_text_is_not_answered() {
        let degraded = Degraded {
            text: String::new(),
        };
        for surface in [Surface::Embeddings, Surface::Balance] {
            assert_eq!(answer(&degraded, &asked(&surface, false)), None);
        }
    }
}
