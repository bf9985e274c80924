//! Puts an answer into `{"code", "data", "msg"}`, as company-internal gateways in
//! front of a provider do: whole answers, each event of a stream, and errors,
//! which then come under status 200. It must not know what was asked.

use bytes::Bytes;
use http::StatusCode;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::exchange::Act;
use super::script::{Step, plain};

/// The code of an error within an answer.
const BROKEN: u16 = 50_001;

/// The same answer as such a gateway would give it. What is no JSON stays as it is.
pub(super) fn wrap(mut act: Act) -> Act {
    if act.status.is_client_error() || act.status.is_server_error() {
        let body = body_of(&act.script.steps);
        let reason = act.status.canonical_reason().unwrap_or_default();
        let code = act.status.as_u16().saturating_mul(100).saturating_add(1);
        act.script.steps = plain(error(code, &message(&body, reason)));
        act.content_type = "application/json";
        act.status = StatusCode::OK;
        return act;
    }
    if act.content_type.starts_with("text/event-stream") {
        for step in &mut act.script.steps {
            if let Step::Send(bytes, _) = step {
                *bytes = events(bytes);
            }
        }
    } else if act.content_type.starts_with("application/json") {
        whole(&mut act.script.steps);
    }
    act
}

fn body_of(steps: &[Step]) -> Vec<u8> {
    let sent = steps.iter().filter_map(|step| match step {
        Step::Send(bytes, _) => Some(bytes.as_ref()),
        _ => None,
    });
    sent.collect::<Vec<_>>().concat()
}

/// Blank lines come before the envelope; what breaks off is not closed.
fn whole(steps: &mut [Step]) {
    let solid = steps.iter_mut().filter_map(|step| match step {
        Step::Send(bytes, _) if !bytes.trim_ascii().is_empty() => Some(bytes),
        _ => None,
    });
    for (index, bytes) in solid.enumerate() {
        if index == 0 && is_error(bytes) {
            *bytes = error(BROKEN, &message(bytes, "error"));
            return;
        }
        let before: &[u8] = if index == 0 {
            b"{\"code\":0,\"data\":"
        } else {
            b""
        };
        let complete = serde_json::from_slice::<IgnoredAny>(bytes).is_ok();
        let after: &[u8] = if complete { b",\"msg\":\"ok\"}" } else { b"" };
        *bytes = Bytes::from([before, bytes, after].concat());
    }
}

fn events(bytes: &[u8]) -> Bytes {
    let mut wrapped = Vec::with_capacity(bytes.len() * 2);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        match line.strip_prefix(b"data: {").and_then(|_| line.get(6..)) {
            Some(data) if is_error(data) => {
                wrapped.extend_from_slice(b"data: ");
                wrapped.extend_from_slice(&error(BROKEN, &message(data, "error")));
                wrapped.push(b'\n');
            }
            Some(data) => {
                wrapped.extend_from_slice(b"data: {\"code\":0,\"data\":");
                wrapped.extend_from_slice(data.trim_ascii_end());
                wrapped.extend_from_slice(b",\"msg\":\"\"}\n");
            }
            None => wrapped.extend_from_slice(line),
        }
    }
    Bytes::from(wrapped)
}

fn is_error(body: &[u8]) -> bool {
    body.starts_with(b"{\"error\"") || body.starts_with(b"{\"type\":\"error\"")
}

fn error(code: u16, message: &str) -> Bytes {
    Bytes::from(json!({ "code": code, "data": null, "msg": message }).to_string())
}

/// The provider's own words, or else its text, or else `otherwise`.
fn message(body: &[u8], otherwise: &str) -> String {
    let value: Option<Value> = serde_json::from_slice(body).ok();
    let told = value
        .as_ref()
        .and_then(|value| value.pointer("/error/message")?.as_str());
    match (told, body.is_empty()) {
        (Some(told), _) => told.to_owned(),
        (None, true) => otherwise.to_owned(),
        (None, false) => String::from_utf8_lossy(body).into_owned(),
    }
}
