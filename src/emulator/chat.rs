//! The chat format's answers, whole or as chunks. It knows no accounts and no
//! time; what is asked was read in `chat_request`.

use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{Fragments, Said};
use super::fault::UsagePlace;
use super::reply::{FINGERPRINT, Reply};
use super::transcript::{Pace, Transcript, quoted};
use super::usage::Usage;

const NULL_CHOICE_END: &[u8] = b",\"logprobs\":null,\"finish_reason\":null}]";
const DONE: &[u8] = b"data: [DONE]\n\n";

/// Usage in the OpenAI shape with DeepSeek's cache fields.
pub(super) fn usage(usage: &Usage) -> Value {
    let mut json = json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total(),
        "prompt_tokens_details": { "cached_tokens": usage.hit },
        "prompt_cache_hit_tokens": usage.hit,
        "prompt_cache_miss_tokens": usage.miss(),
    });
    if let (Some(reasoning), Some(object)) = (usage.reasoning, json.as_object_mut()) {
        let details = json!({ "reasoning_tokens": reasoning });
        object.insert("completion_tokens_details".to_owned(), details);
    }
    json
}

/// The answer in one piece.
pub(super) fn whole(reply: &Reply) -> Bytes {
    let mut message = json!({ "role": "assistant", "content": reply.answer.text() });
    if let Some(object) = message.as_object_mut() {
        if let Some(reasoning) = &reply.answer.reasoning {
            object.insert("reasoning_content".to_owned(), json!(reasoning.text()));
        }
        if let Said::Call { name, arguments } = &reply.answer.said {
            let call = json!([{
                "index": 0,
                "id": reply.call_id(),
                "type": "function",
                "function": { "name": name, "arguments": arguments.text() },
            }]);
            object.insert("tool_calls".to_owned(), call);
        }
    }
    let mut body = json!({
        "id": reply.id,
        "object": "chat.completion",
        "created": reply.created,
        "model": reply.model,
        "choices": [{
            "index": 0,
            "message": message,
            "logprobs": null,
            "finish_reason": reply.answer.finish,
        }],
        "system_fingerprint": FINGERPRINT,
    });
    reply.telling.tell_in(&mut body, &reply.usage, usage);
    Bytes::from(body.to_string())
}

/// The answer as chunks.
pub(super) fn streamed(reply: &Reply) -> Transcript {
    let head = format!(
        "data: {{\"id\":\"{}\",\"object\":\"chat.completion.chunk\",\"created\":{},\"model\":{},\"system_fingerprint\":\"{FINGERPRINT}\",\"choices\":[",
        reply.id,
        reply.created,
        quoted(&reply.model),
    );
    let delta = format!("{head}{{\"index\":0,\"delta\":");
    let tokens = reply.answer.tokens();
    let mut chunks = Chunks {
        transcript: Transcript::with_capacity(tokens + 8, (tokens + 8) * (delta.len() + 110)),
        delta: delta.as_bytes(),
        tail: if reply.null_usage {
            b",\"usage\":null}\n\n"
        } else {
            b"}\n\n"
        },
    };
    let (role, text_end, last): (&[u8], &[u8], &[u8]) = match &reply.answer.reasoning {
        Some(_) => (
            b"{\"role\":\"assistant\",\"content\":null,\"reasoning_content\":\"\"}",
            b",\"reasoning_content\":null}",
            b"{\"content\":\"\",\"reasoning_content\":null}",
        ),
        None => (
            b"{\"role\":\"assistant\",\"content\":\"\"}",
            b"}",
            b"{\"content\":\"\"}",
        ),
    };
    chunks.one(role);
    if let Some(reasoning) = &reply.answer.reasoning {
        chunks.tokens(b"{\"content\":null,\"reasoning_content\":", reasoning, b"}");
    }
    match &reply.answer.said {
        Said::Text(text) => chunks.tokens(b"{\"content\":", text, text_end),
        Said::Call { name, arguments } => {
            let call = json!({ "tool_calls": [{
                "index": 0,
                "id": reply.call_id(),
                "type": "function",
                "function": { "name": name, "arguments": "" },
            }]});
            chunks.one(call.to_string().as_bytes());
            let before = b"{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":";
            chunks.tokens(before, arguments, b"}}]}");
        }
    }
    let mut transcript = chunks.transcript;
    let last = [delta.as_bytes(), last, b",\"logprobs\":null"];
    finish(&mut transcript, reply, head.as_bytes(), &last);
    transcript
}

/// Chunks that share everything around their deltas.
struct Chunks<'a> {
    transcript: Transcript,
    delta: &'a [u8],
    tail: &'static [u8],
}

impl Chunks<'_> {
    fn one(&mut self, delta: &[u8]) {
        let parts = [self.delta, delta, NULL_CHOICE_END, self.tail];
        self.transcript.event(Pace::AtOnce, &parts);
    }

    fn tokens(&mut self, before: &[u8], pieces: &Fragments, after: &[u8]) {
        for piece in pieces.iter() {
            let ends = [after, NULL_CHOICE_END, self.tail];
            self.transcript
                .quoted(Pace::Token, &[self.delta, before], piece, &ends);
        }
    }
}

/// The finish chunk, the usage where it belongs, and the end mark. `last` is
/// the finish chunk up to its reason.
pub(super) fn finish(chunks: &mut Transcript, reply: &Reply, head: &[u8], last: &[&[u8]]) {
    let usage = reply.telling.tell(&reply.usage, usage);
    let usage = usage.map(|usage| usage.to_string()).unwrap_or_default();
    let reason = format!(",\"finish_reason\":{}}}]", quoted(&reply.answer.finish));
    let mut parts = last.to_vec();
    parts.push(reason.as_bytes());
    match reply.usage_place {
        UsagePlace::Attached => {
            chunks.tells_usage();
            parts.extend([&b",\"usage\":"[..], usage.as_bytes(), b"}\n\n"]);
        }
        _ if reply.null_usage => parts.push(b",\"usage\":null}\n\n"),
        _ => parts.push(b"}\n\n"),
    }
    chunks.event(Pace::AtOnce, &parts);
    if reply.usage_place == UsagePlace::Trailing {
        chunks.tells_usage();
        chunks.event(
            Pace::AtOnce,
            &[head, b"],\"usage\":", usage.as_bytes(), b"}\n\n"],
        );
    }
    chunks.event(Pace::AtOnce, &[DONE]);
}

/// An error after the head, in the shape on which OpenAI's SDKs raise.
pub(super) fn error_event(_sent: usize) -> Bytes {
    Bytes::from_static(b"data: {\"error\":{\"message\":\"Server error (emulated)\",\"type\":\"server_error\",\"param\":null,\"code\":\"server_error\"}}\n\n")
}

/// The same error as a body of its own.
pub(super) fn error_body() -> Bytes {
    Bytes::from_static(b"{\"error\":{\"message\":\"Server error (emulated)\",\"type\":\"server_error\",\"param\":null,\"code\":\"server_error\"}}")
}
