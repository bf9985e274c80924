//! What an upstream's head says by itself: is it to be trusted, what kind of answer is it, when may
//! one come again.

use std::time::Duration;

use http::{StatusCode, header};
use pingora::http::ResponseHeader;

use crate::context::Context;
use crate::request::forward;
use crate::request::surface::Surface;

/// A declared length of nothing.
pub(super) fn is_empty(head: &ResponseHeader) -> bool {
    head.headers
        .get(header::CONTENT_LENGTH)
        .is_some_and(|length| length.as_bytes() == b"0")
}

/// Why an answer's head is not to be trusted, if it is not.
pub(super) fn nonsense(head: &ResponseHeader, in_json: bool) -> Option<&'static str> {
    if forward::is_unasked(head.status) {
        return Some("an informational answer nobody asked for");
    }
    if !forward::is_framed_clearly(head) {
        return Some("an answer whose length is not clear");
    }
    if is_encoded(head) {
        return Some("an encoded answer nobody asked for");
    }
    if in_json && head.status.is_success() && head.status != StatusCode::OK {
        return Some("a success without the answer that belongs to it");
    }
    None
}

pub(super) fn is_stream(head: &ResponseHeader) -> bool {
    let kind = head.headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with("text/event-stream"))
}

/// We ask for plain answers: what is compressed could not be watched.
pub(super) fn is_encoded(head: &ResponseHeader) -> bool {
    head.headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

pub(super) fn answers_in_json(ctx: &Context) -> bool {
    ctx.surface().is_some_and(Surface::routes_by_model)
}

/// Whole seconds only; the date form of RFC 9110 §10.2.3 was never seen from these upstreams.
pub(super) fn retry_after(head: &ResponseHeader) -> Option<Duration> {
    let text = head.headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}
