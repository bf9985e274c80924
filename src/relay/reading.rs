//! Decides what one event of a stream means, given its data whole. For the SSE
//! scanner, which brings the data; it must not know lines or fragments.
//!
//! Two ways lead there. The cheap one asks whether an event can be anything but
//! one more delta. The exact one walks the JSON, and runs only when it can.

use crate::json::{self, Fault, Walk};
use crate::relay::event::{FinishReason, StreamError};
use memchr::memmem::Finder;
use std::sync::LazyLock;

/// The meaning of one event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reading<'a> {
    pub content: bool,
    /// The usage object as written.
    pub usage: Option<&'a [u8]>,
    pub finish: Option<FinishReason>,
    pub error: Option<StreamError>,
    pub ended: bool,
    pub keep_alive: bool,
    /// An OpenAI chunk that has usage and no choices.
    pub usage_only: bool,
}

impl Reading<'_> {
    pub fn of_content() -> Self {
        Reading {
            content: true,
            ..Reading::default()
        }
    }
}

struct Finders {
    choices: Finder<'static>,
    finish: Finder<'static>,
    usage: Finder<'static>,
    error: Finder<'static>,
}

static FINDERS: LazyLock<Finders> = LazyLock::new(|| Finders {
    choices: Finder::new(b"\"choices\""),
    finish: Finder::new(b"\"finish_reason\""),
    usage: Finder::new(b"\"usage\""),
    error: Finder::new(b"\"error\""),
});

/// Whether an OpenAI chunk can only be a delta: it has choices, and no finish
/// reason, no usage and no error. What stands inside a string cannot look like a key, since
/// its quotation marks are escaped. A key spelt with escapes would be overlooked;
/// no serialiser writes one.
pub(super) fn is_plain_delta(data: &[u8]) -> bool {
    let finders = &*FINDERS;
    finders.choices.find(data).is_some()
        && !has_value(&finders.finish, data)
        && !has_value(&finders.usage, data)
        && !mentions(&finders.error, data)
}

/// Whether the key is there with a value that says something.
fn has_value(key: &Finder<'_>, data: &[u8]) -> bool {
    key.find_iter(data)
        .any(|at| match after_colon(data, at + key.needle().len()) {
            Some(value) => !value.starts_with(b"null") && !value.starts_with(b"\"\""),
            None => false,
        })
}

/// Whether the word is there, other than as a key for `null`: some servers
/// write `"object":"error"`.
fn mentions(word: &Finder<'_>, data: &[u8]) -> bool {
    word.find_iter(data).any(|at| {
        !after_colon(data, at + word.needle().len()).is_some_and(|value| value.starts_with(b"null"))
    })
}

fn after_colon(data: &[u8], at: usize) -> Option<&[u8]> {
    let rest = data.get(at..)?.trim_ascii_start().strip_prefix(b":")?;
    Some(rest.trim_ascii_start())
}

/// Reads what an OpenAI stream calls an error, whatever stands in it.
pub(super) fn error(data: &[u8]) -> Reading<'_> {
    let told = chunk(data).error;
    Reading {
        error: Some(told.unwrap_or_else(|| StreamError::read(data))),
        ..Reading::default()
    }
}

/// Reads an OpenAI chunk, of chat or of text completions. Data that is no JSON
/// object is passed on to a client that may make something of it: content.
pub(super) fn chunk(data: &[u8]) -> Reading<'_> {
    let names = [
        "choices", "usage", "error", "object", "code", "message", "type", "detail",
    ];
    let Some([choices, usage, error, object, code, message, kind, detail]) =
        json::pick(data, names)
    else {
        return Reading::of_content();
    };
    let mut reading = Reading {
        usage: usage.filter(|usage| usage.starts_with(b"{")),
        error: error
            .filter(|error| says_something(error))
            .map(StreamError::read),
        ..Reading::default()
    };
    // vLLM's older form, and SiliconFlow's.
    let coded = code.is_some_and(|code| says_something(code) && !matches!(code, b"0" | b"\"0\""));
    let bare = coded && message.is_some_and(says_something) && reading.usage.is_none();
    let bare = bare || [object, kind].contains(&Some(b"\"error\""));
    // FastAPI's, in which many an engine is served.
    let alone = usage.is_none() && object.is_none() && kind.is_none();
    let bare = bare || (alone && detail.is_some_and(says_something));
    if reading.error.is_none() && choices.is_none() && bare {
        reading.error = Some(StreamError::read(data));
    }
    let mut any = false;
    for choice in choices.into_iter().flat_map(json::items) {
        any = true;
        let names = ["delta", "text", "finish_reason"];
        let Some([delta, text, finish]) = json::pick(choice, names) else {
            continue;
        };
        reading.content |= text.is_some_and(says_something) || delta.is_some_and(has_content);
        if let Some(finish) = finish.and_then(FinishReason::read) {
            reading.finish = Some(finish.after(reading.finish));
        }
    }
    let no_choices = choices.is_some_and(|choices| choices.starts_with(b"[")) && !any;
    reading.usage_only = no_choices && reading.usage.is_some();
    reading
}

fn has_content(delta: &[u8]) -> bool {
    let names = [
        "content",
        "reasoning_content",
        "reasoning",
        "tool_calls",
        "refusal",
        "function_call",
    ];
    json::pick(delta, names).is_some_and(|found| found.into_iter().flatten().any(says_something))
}

pub(super) fn says_something(value: &[u8]) -> bool {
    !matches!(value, b"null" | b"\"\"" | b"[]" | b"{}" | b"false")
}

/// The first piece of text in an OpenAI chunk: the inside of its quotation marks.
pub(super) fn text_of_chunk(data: &[u8]) -> Option<&[u8]> {
    let [choices] = json::pick(data, ["choices"])?;
    let choice = json::items(choices?).next()?;
    let [delta, text] = json::pick(choice, ["delta", "text"])?;
    let in_delta =
        delta.and_then(|delta| json::pick(delta, ["content", "reasoning_content", "reasoning"]));
    let mut candidates = in_delta.into_iter().flatten().chain([text]).flatten();
    candidates.find_map(|value| value.strip_prefix(b"\"")?.strip_suffix(b"\""))
}

/// The kinds of named events, in the Anthropic and the Responses format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// More of the answer.
    Delta,
    /// `content_block_start`, which is content for some blocks.
    BlockStart,
    /// `message_start`: the usage of the input.
    Start,
    /// `message_delta`: why it ends, and the final usage.
    Closing,
    /// `message_stop`.
    Stop,
    /// `response.completed` or `.incomplete`.
    Response,
    /// `response.failed`: an error, and the end.
    Failed,
    Ping,
    Error,
    /// Known to carry nothing that counts.
    Quiet,
}

impl Kind {
    pub fn named(name: &[u8]) -> Kind {
        match name {
            b"content_block_delta" => Kind::Delta,
            b"content_block_start" => Kind::BlockStart,
            b"message_start" => Kind::Start,
            b"message_delta" => Kind::Closing,
            b"message_stop" => Kind::Stop,
            b"response.completed" | b"response.incomplete" => Kind::Response,
            b"response.failed" => Kind::Failed,
            b"ping" | b"keepalive" => Kind::Ping,
            b"error" => Kind::Error,
            name if name.ends_with(b".delta") => Kind::Delta,
            _ => Kind::Quiet,
        }
    }

    /// The kind that `data` gives itself, if its type comes first, as it does in
    /// all known servers.
    pub fn leading(data: &[u8]) -> Option<Kind> {
        let rest = data.strip_prefix(b"{")?.trim_ascii_start();
        let rest = rest.strip_prefix(b"\"type\"")?.trim_ascii_start();
        let rest = rest.strip_prefix(b":")?.trim_ascii_start();
        let rest = rest.strip_prefix(b"\"")?;
        let end = rest.iter().take(64).position(|&byte| byte == b'"')?;
        rest.get(..end).map(Kind::named)
    }
}

/// Reads a named event. The type in the data comes before `name` (the `event:`
/// field), as the SDKs have it. Once there was content (`going`) every delta is
/// taken for more of it; the first one has to say something.
pub(super) fn named(data: &[u8], name: Option<Kind>, going: bool) -> Reading<'_> {
    match Kind::leading(data).or(name) {
        Some(Kind::Delta) if going => Reading::of_content(),
        Some(Kind::Quiet) => Reading::default(),
        Some(kind) => exact(data, kind),
        None => unnamed(data),
    }
}

fn unnamed(data: &[u8]) -> Reading<'_> {
    match json::pick(data, ["type"]) {
        Some([Some(kind)]) => {
            match json::text(kind).map_or(Kind::Quiet, |name| Kind::named(name.as_bytes())) {
                Kind::Quiet => stray(data),
                kind => exact(data, kind),
            }
        }
        Some([None]) => stray(data),
        None => Reading::of_content(),
    }
}

/// No event of these formats, but an error it may be.
fn stray(data: &[u8]) -> Reading<'_> {
    Reading {
        error: chunk(data).error,
        ..Reading::default()
    }
}

fn exact(data: &[u8], kind: Kind) -> Reading<'_> {
    match kind {
        Kind::Delta => Reading {
            content: json::pick(data, ["delta"])
                .is_none_or(|[delta]| delta.is_none_or(says_more_than_its_type)),
            ..Reading::default()
        },
        Kind::Quiet => Reading::default(),
        Kind::Ping => Reading {
            keep_alive: true,
            ..Reading::default()
        },
        Kind::Stop => Reading {
            ended: true,
            ..Reading::default()
        },
        Kind::BlockStart => Reading {
            content: starts_with_content(data),
            ..Reading::default()
        },
        Kind::Start => Reading {
            usage: inside(data, "message", "usage"),
            ..Reading::default()
        },
        Kind::Closing => Reading {
            usage: json::pick(data, ["usage"]).and_then(|[usage]| usage),
            finish: inside(data, "delta", "stop_reason").and_then(FinishReason::read),
            ..Reading::default()
        },
        Kind::Error => Reading {
            error: Some(error_of(data)),
            ..Reading::default()
        },
        Kind::Response => response(data),
        Kind::Failed => failed(data),
    }
}

fn error_of(data: &[u8]) -> StreamError {
    match json::pick(data, ["error"]) {
        Some([Some(error)]) => StreamError::read(error),
        _ => StreamError::read(data),
    }
}

fn inside<'a>(data: &'a [u8], object: &str, key: &str) -> Option<&'a [u8]> {
    let [object] = json::pick(data, [object])?;
    let [value] = json::pick(object?, [key])?;
    value
}

fn starts_with_content(data: &[u8]) -> bool {
    json::pick(data, ["content_block"])
        .is_some_and(|[block]| block.is_some_and(says_more_than_its_type))
}

/// Whether a piece of content has any: a text that is not empty, or an object
/// with anything in it beside its type, as a call has its name from the start.
fn says_more_than_its_type(piece: &[u8]) -> bool {
    if !piece.starts_with(b"{") {
        return says_something(piece);
    }
    let mut says = false;
    let walked = Walk::new(piece, 0).members(0, |member| {
        let value = piece.get(member.value.clone()).unwrap_or_default();
        says |= says_something(value) && !json::key_is(piece, &member, "type");
        Ok::<(), Fault>(())
    });
    says || walked.is_err()
}

fn response(data: &[u8]) -> Reading<'_> {
    let ended = Reading {
        ended: true,
        ..Reading::default()
    };
    let Some([Some(response)]) = json::pick(data, ["response"]) else {
        return ended;
    };
    let names = ["usage", "status", "error", "incomplete_details"];
    let Some([usage, status, error, details]) = json::pick(response, names) else {
        return ended;
    };
    let reason = details.and_then(|details| json::pick(details, ["reason"]));
    let reason = reason.and_then(|[reason]| reason).or(status);
    let finish = reason.and_then(FinishReason::read);
    // A member that is there says nothing of a response that says it is complete.
    let error = error.filter(|error| says_something(error));
    let error = error.filter(|_| finish.is_some_and(FinishReason::is_failure));
    Reading {
        usage,
        finish,
        error: error.map(StreamError::read),
        ..ended
    }
}

/// It failed whatever it says, and whether or not it can be read.
fn failed(data: &[u8]) -> Reading<'_> {
    let told = response(data);
    let failure = told.finish.filter(|finish| finish.is_failure());
    Reading {
        finish: failure.or(Some(FinishReason::Aborted)),
        error: told.error.or_else(|| Some(error_of(data))),
        ..told
    }
}

#[cfg(test)]
mod tests;
