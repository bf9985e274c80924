//! The words for what can be seen in an answer: the shape it has, why it ended,
//! what it failed with. For the scanners, the watchdogs and the ledger. It must
//! not know how bytes are found or what anyone does about them.

use crate::json;
use crate::relay::usage::Usage;

/// The dialect of an answer, which follows from the surface of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// OpenAI chat completions.
    Chat,
    /// OpenAI text completions (and embeddings, which never stream).
    Completions,
    /// Anthropic messages.
    Messages,
    /// OpenAI responses.
    Responses,
}

/// Why a generation ended, in DeepSeek's words (create-chat-completion page).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// It was done, or a stop sequence came.
    Stop,
    /// The token limit was reached.
    Length,
    /// The content was refused.
    ContentFilter,
    /// It waits for the results of tools.
    ToolCalls,
    /// The upstream ran out of capacity: a failure under HTTP 200.
    InsufficientSystemResource,
    /// The upstream gave up: a failure under HTTP 200.
    Aborted,
    /// A reason this version does not know.
    Other,
}

impl FinishReason {
    /// The word in logs, OpenAI's where it has one.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ContentFilter => "content_filter",
            Self::ToolCalls => "tool_calls",
            Self::InsufficientSystemResource => "insufficient_system_resource",
            Self::Aborted => "aborted",
            Self::Other => "other",
        }
    }

    /// Whether the answer is incomplete through the upstream's fault.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::InsufficientSystemResource | Self::Aborted)
    }

    /// Reads `finish_reason`, `stop_reason`, or the `status` of the Responses API
    /// and the `reason` that goes with it; the vocabularies do not collide.
    /// `None` for what says that nothing has ended yet.
    pub fn read(value: &[u8]) -> Option<Self> {
        let word = json::text(value)?;
        Some(match word.as_ref() {
            "" | "in_progress" | "queued" => return None,
            "stop" | "end_turn" | "stop_sequence" | "completed" => Self::Stop,
            "length" | "max_tokens" | "max_output_tokens" => Self::Length,
            "content_filter" | "refusal" => Self::ContentFilter,
            "tool_calls" | "function_call" | "tool_use" => Self::ToolCalls,
            "insufficient_system_resource" => Self::InsufficientSystemResource,
            "aborted" | "abort" | "cancelled" | "failed" => Self::Aborted,
            _ => Self::Other,
        })
    }

    /// The reason to report for an answer with several choices: a failure stays,
    /// otherwise the latest.
    pub fn after(self, earlier: Option<Self>) -> Self {
        match earlier {
            Some(failure) if failure.is_failure() => failure,
            _ => self,
        }
    }
}

/// Most bytes kept of an error's type or code.
const MAX_WORD: usize = 64;
/// Most bytes kept of an error's message.
const MAX_MESSAGE: usize = 256;

/// An error reported inside an answer. For classification and logs; upstreams
/// have been seen to put parts of credentials into messages, so it is not for
/// tenants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamError {
    /// The member `type`, at most 64 bytes.
    pub kind: Option<Box<str>>,
    /// The member `code`, at most 64 bytes; numbers as written.
    pub code: Option<Box<str>>,
    /// The member `message`, at most 256 bytes.
    pub message: Option<Box<str>>,
}

impl StreamError {
    /// Reads an error value: an object, or a message alone.
    pub fn read(value: &[u8]) -> Self {
        match json::pick(value, ["type", "code", "message"]) {
            Some([kind, code, message]) => StreamError {
                kind: kind.and_then(word),
                code: code.and_then(word),
                message: message.and_then(self::message),
            },
            None => StreamError {
                message: message(value),
                ..StreamError::default()
            },
        }
    }
}

/// A type or code of an error, as much of it as is kept.
pub(super) fn word(value: &[u8]) -> Option<Box<str>> {
    short(value, MAX_WORD)
}

/// The message of an error, as much of it as is kept.
pub(super) fn message(value: &[u8]) -> Option<Box<str>> {
    short(value, MAX_MESSAGE)
}

fn short(value: &[u8], most: usize) -> Option<Box<str>> {
    if value == b"null" {
        return None;
    }
    let text = match json::text(value) {
        Some(text) => text,
        None => String::from_utf8_lossy(value.get(..most).unwrap_or(value)),
    };
    let end = text.floor_char_boundary(most);
    text.get(..end).map(Box::from)
}

/// What a scanner has seen of a stream so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether the last fragment moved the answer on: content, a finish, an
    /// error or the end. Not so comments, blank lines, pings, empty deltas.
    pub progress: bool,
    /// Events that carried content (reasoning is content).
    pub content_events: u64,
    /// Whether any content came.
    pub first_content: bool,
    /// The latest usage. In the Anthropic format it is preliminary until
    /// `finish_reason` is there.
    pub usage: Option<Usage>,
    /// Why the generation ended.
    pub finish_reason: Option<FinishReason>,
    /// The first error reported inside the stream.
    pub error: Option<StreamError>,
    /// Whether that error is the stream's own last event (`response.failed`).
    pub failed_at_end: bool,
    /// Whether the stream's own last event came: `[DONE]`, `message_stop`,
    /// `response.completed`, `.incomplete` or `.failed`.
    pub ended: bool,
    /// Comments and pings.
    pub keep_alives: u64,
    /// Whether any byte came that is no comment and no blank line: from then on
    /// another upstream can no longer take over unnoticed.
    pub begun: bool,
    /// Whether the first line that is no comment and not blank is no field of an
    /// event either: HTML, JSON or anything else that is no event stream.
    pub foreign: bool,
    /// Bytes of lines (comments excepted) after the last event.
    pub bytes_after_end: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_among_several_choices_is_not_forgotten() {
        let aborted = FinishReason::Aborted;
        assert_eq!(FinishReason::Stop.after(Some(aborted)), aborted);
        assert_eq!(aborted.after(Some(FinishReason::Stop)), aborted);
        assert_eq!(FinishReason::Length.after(None), FinishReason::Length);
    }

    #[test]
    fn errors_are_kept_short_and_whole_characters() {
        let long = format!(
            r#"{{"message":"{}","code":402,"type":null}}"#,
            "字".repeat(500)
        );
        let error = StreamError::read(long.as_bytes());
        assert_eq!(error.message.map(|m| m.len()), Some(255));
        assert_eq!(error.code.as_deref(), Some("402"));
        assert_eq!(error.kind, None);
        let text = StreamError::read(br#""busy \"now\"""#);
        assert_eq!(text.message.as_deref(), Some("busy \"now\""));
    }
}
