//! One exchange as the journal remembers it, and the forms in which it is shown.

use http::HeaderMap;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};

use super::meter::Bill;
use super::usage::Usage;

/// Longest copy of one request's headers.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// By which a caller finds its own request again.
const REQUEST_ID: &str = "x-request-id";

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The whole answer went out.
    Complete,
    /// The emulator refused the request by the API's own rules.
    Refused,
    /// An ordered fault spoiled the answer.
    Fault,
    /// The client left first.
    ClientGone,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Refused => "refused",
            Self::Fault => "fault",
            Self::ClientGone => "client_gone",
        }
    }
}

/// How an exchange is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// What is needed to compare usage; cheap for a whole journal.
    Brief,
    Usual,
    /// With what is kept of the body.
    Full,
}

/// What is learnt about a request while it is handled.
#[derive(Debug, Default)]
pub(super) struct Course {
    pub account: Option<String>,
    pub model: Option<String>,
    pub user_id: Option<String>,
    pub stream: bool,
    pub faulted: bool,
    pub status: Option<u16>,
    pub body_bytes: usize,
    pub body_hash: u64,
    pub body: Option<Box<[u8]>>,
    pub ended_ms: Option<u64>,
    pub outcome: Option<Outcome>,
    pub bill: Option<Bill>,
}

impl Course {
    fn told(&self) -> Told {
        Told {
            usage: self.bill.map(|bill| Tokens::from(&bill.usage)),
            whole: self.bill.is_some_and(|bill| bill.whole),
            usage_sent: self.bill.is_some_and(|bill| bill.usage_sent),
        }
    }
}

#[derive(Serialize)]
struct Tokens {
    prompt: usize,
    cached: usize,
    completion: usize,
    reasoning: usize,
}

impl From<&Usage> for Tokens {
    fn from(usage: &Usage) -> Self {
        Self {
            prompt: usage.prompt,
            cached: usage.hit,
            completion: usage.completion,
            reasoning: usage.reasoning.unwrap_or(0),
        }
    }
}

#[derive(Serialize)]
struct Told {
    usage: Option<Tokens>,
    whole: bool,
    usage_sent: bool,
}

#[derive(Serialize)]
struct Brief<'a> {
    id: u64,
    path: &'a str,
    request_id: Option<&'a str>,
    account: Option<&'a str>,
    model: Option<&'a str>,
    user_id: Option<&'a str>,
    stream: bool,
    status: Option<u16>,
    fault: bool,
    outcome: Option<&'static str>,
    #[serde(flatten)]
    told: Told,
    started_ms: u64,
    ended_ms: Option<u64>,
}

/// One exchange; its course is known bit by bit.
pub(super) struct Entry {
    pub id: u64,
    pub method: String,
    pub path: String,
    pub trace: String,
    /// `name: value` lines: one allocation, and no hold on hyper's read buffer.
    pub headers: String,
    pub started_ms: u64,
    pub course: Mutex<Course>,
}

impl Entry {
    /// What it holds for its whole life, in bytes.
    pub(super) fn weight(&self) -> usize {
        self.headers.len() + self.path.len()
    }

    fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let lines = self.headers.lines();
        lines.filter_map(|line| line.split_once(": "))
    }

    /// Appends this entry as JSON.
    pub(super) fn write(&self, into: &mut Vec<u8>, form: Form) {
        let from = into.len();
        let written = match form {
            Form::Brief => serde_json::to_writer(&mut *into, &self.brief(&self.course.lock())),
            Form::Usual => serde_json::to_writer(&mut *into, &self.to_json(false)),
            Form::Full => serde_json::to_writer(&mut *into, &self.to_json(true)),
        };
        // Writing to memory does not fail; were it to, the list is still JSON.
        if written.is_err() {
            into.truncate(from);
            into.extend_from_slice(b"null");
        }
    }

    fn brief<'a>(&'a self, course: &'a Course) -> Brief<'a> {
        let request_id = self.headers().find(|(name, _)| *name == REQUEST_ID);
        Brief {
            id: self.id,
            path: &self.path,
            request_id: request_id.map(|(_, value)| value),
            account: course.account.as_deref(),
            model: course.model.as_deref(),
            user_id: course.user_id.as_deref(),
            stream: course.stream,
            status: course.status,
            fault: course.faulted,
            outcome: course.outcome.map(Outcome::name),
            told: course.told(),
            started_ms: self.started_ms,
            ended_ms: course.ended_ms,
        }
    }

    fn to_json(&self, full: bool) -> Value {
        let course = self.course.lock();
        let headers: Vec<(&str, &str)> = self.headers().collect();
        let told = course.told();
        let mut json = json!({
            "id": self.id,
            "method": self.method,
            "path": self.path,
            "trace_id": self.trace,
            "account": course.account,
            "model": course.model,
            "stream": course.stream,
            "user_id": course.user_id,
            "request_headers": headers,
            "body_bytes": course.body_bytes,
            "body_fnv": format!("{:016x}", course.body_hash),
            "status": course.status,
            "fault": course.faulted,
            "usage": told.usage,
            "whole": told.whole,
            "usage_sent": told.usage_sent,
            "started_ms": self.started_ms,
            "ended_ms": course.ended_ms,
            "outcome": course.outcome.map(Outcome::name),
        });
        if let (true, Some(object)) = (full, json.as_object_mut()) {
            let body = course.body.as_deref().map(String::from_utf8_lossy);
            object.insert("body".to_owned(), json!(body));
        }
        json
    }
}

/// A copy of headers as lines, the last ones left out when they are too long.
pub(super) fn header_lines(headers: &HeaderMap) -> String {
    let mut lines = String::with_capacity(512);
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        if lines.len() + name.as_str().len() + value.len() + 3 > MAX_HEADER_BYTES {
            break;
        }
        lines.push_str(name.as_str());
        lines.push_str(": ");
        lines.push_str(&value);
        lines.push('\n');
    }
    lines.shrink_to_fit();
    lines
}
