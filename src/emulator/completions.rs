//! The completion format (fill in the middle), which DeepSeek has under `/beta` only.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::chat;
use super::chat_request::{self, Stop, StreamOptions};
use super::models;
use super::prompt::Ask;
use super::refusal::Refusal;
use super::reply::{FINGERPRINT, Reply};
use super::transcript::{Pace, Transcript, quoted};

/// DeepSeek fim_completion page: at most 4K tokens.
const MAX_OUTPUT_TOKENS: i64 = 4096;

#[derive(Deserialize)]
struct CompletionRequest {
    model: String,
    prompt: String,
    suffix: Option<String>,
    max_tokens: Option<i64>,
    stop: Option<Stop>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    user_id: Option<String>,
}

/// Reads a request; outside `/beta` every one is refused unless self-hosted.
pub(super) fn read(body: &[u8], beta: bool, self_hosted: bool) -> Result<Ask, Refusal> {
    if !beta && !self_hosted {
        return Err(Refusal::bad(
            "completions api is only available when using beta api (set base_url=\"https://api.deepseek.com/beta\")",
        ));
    }
    let request: CompletionRequest =
        serde_json::from_slice(body).map_err(|e| Refusal::unreadable(&e))?;
    let model = models::served(&request.model, self_hosted)?;
    if matches!(&request.stop, Some(Stop::Many(stops)) if stops.len() > 16) {
        return Err(Refusal::invalid(
            "Invalid stop value, at most 16 sequences are supported",
        ));
    }
    let most = if self_hosted {
        chat_request::MAX_OUTPUT_TOKENS
    } else {
        MAX_OUTPUT_TOKENS
    };
    let mut ask = Ask::new(model, request.user_id)?;
    ask.limit("max_tokens", request.max_tokens, most)?;
    ask.stream = request.stream.unwrap_or(false);
    ask.include_usage = request
        .stream_options
        .is_some_and(|options| options.include_usage);
    ask.thinking = false;
    ask.continues = true;
    ask.hear(&[
        &request.prompt,
        request.suffix.as_deref().unwrap_or_default(),
    ]);
    ask.check(self_hosted)?;
    Ok(ask)
}

/// The answer in one piece.
pub(super) fn whole(reply: &Reply) -> Bytes {
    let mut body = json!({
        "id": reply.id,
        "object": "text_completion",
        "created": reply.created,
        "model": reply.model,
        "choices": [{
            "index": 0,
            "text": reply.answer.text(),
            "logprobs": null,
            "finish_reason": reply.answer.finish,
        }],
        "system_fingerprint": FINGERPRINT,
    });
    reply.telling.tell_in(&mut body, &reply.usage, chat::usage);
    Bytes::from(body.to_string())
}

/// The answer as chunks.
pub(super) fn streamed(reply: &Reply) -> Transcript {
    let head = format!(
        "data: {{\"id\":\"{}\",\"object\":\"text_completion\",\"created\":{},\"model\":{},\"system_fingerprint\":\"{FINGERPRINT}\",\"choices\":[",
        reply.id,
        reply.created,
        quoted(&reply.model),
    );
    let choice = format!("{head}{{\"index\":0,\"text\":");
    let (head, choice) = (head.as_bytes(), choice.as_bytes());
    let tail: &[u8] = if reply.null_usage {
        b",\"usage\":null}\n\n"
    } else {
        b"}\n\n"
    };
    let mut chunks = Transcript::default();
    if let super::answer::Said::Text(text) = &reply.answer.said {
        for piece in text.iter() {
            let ends = [&b",\"logprobs\":null,\"finish_reason\":null}]"[..], tail];
            chunks.quoted(Pace::Token, &[choice], piece, &ends);
        }
    }
    chat::finish(
        &mut chunks,
        reply,
        head,
        &[choice, b"\"\",\"logprobs\":null"],
    );
    chunks
}
