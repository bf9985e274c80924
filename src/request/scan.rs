//! Decides whether a request body is one well-formed JSON object that every
//! parser reads alike, and finds in it the few fields the gateway acts on. It is
//! for admission, routing and the edits before an attempt. It must not know
//! tenants, upstreams or what a field's value ought to be.
//!
//! One pass, no tree. All but a handful of bytes of a long body are text inside
//! strings and cost about what it takes to read them from memory.

use crate::json::{self, Braces, Fault, Member, Walk};
use std::borrow::Cow;
use std::ops::Range;

/// Most members a body may have at its top level. No API knows more than a few
/// dozen; the cap bounds the memory of the list.
pub const MAX_FIELDS: usize = 4096;

/// Why a body is refused. Each text is one sentence for the API's caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// Not UTF-8 from byte `offset` on (RFC 8259 §8.1).
    #[error("The request body is not valid UTF-8 at byte {offset}.")]
    NotUtf8 {
        /// Byte offset into the body.
        offset: usize,
    },
    /// Not JSON.
    #[error("The request body is not valid JSON: expected {expected} at byte {offset}.")]
    Malformed {
        /// Byte offset into the body.
        offset: usize,
        /// What the grammar asks for there.
        expected: &'static str,
    },
    /// A field that decides something is there twice, so that two parsers could
    /// read two different requests.
    #[error("The request body has the field `{key}` more than once.")]
    Duplicate {
        /// The field.
        key: &'static str,
    },
    /// A field that the gateway must read has a value of another type.
    #[error("The field `{key}` of the request body must be {expected}.")]
    WrongType {
        /// The field.
        key: &'static str,
        /// The type it must have.
        expected: &'static str,
    },
    /// Nested deeper than [`json::MAX_DEPTH`].
    #[error(
        "The request body is nested more than {} levels deep.",
        json::MAX_DEPTH
    )]
    TooDeep,
    /// More members than [`MAX_FIELDS`].
    #[error("The request body has more than {MAX_FIELDS} fields.")]
    TooManyFields,
    /// Anything else than an object, or nothing at all.
    #[error("The request body must be a JSON object.")]
    NotAnObject,
}

impl From<Fault> for ScanError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Malformed { offset, expected } => ScanError::Malformed { offset, expected },
            Fault::TooDeep => ScanError::TooDeep,
        }
    }
}

/// A string value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text<'a> {
    /// What it says, escapes resolved.
    pub value: Cow<'a, str>,
    /// Where it stands, quotation marks included.
    pub span: Range<usize>,
}

/// An object, or a `null` in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nested {
    /// Where the value stands.
    pub span: Range<usize>,
    /// Where the object ends; `None` for `null`.
    pub braces: Option<Braces>,
}

/// The field `stream_options`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamOptions {
    /// The object itself.
    pub value: Nested,
    /// What the caller says about usage; `None` if nothing or `null`.
    pub include_usage: Option<bool>,
    /// Where it says so.
    pub include_usage_span: Option<Range<usize>>,
}

/// The field `metadata`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata<'a> {
    /// The object itself.
    pub value: Nested,
    /// The member `user_id` if it is a string.
    pub user_id: Option<Text<'a>>,
    /// Where the member `user_id` stands, `null` included.
    pub user_id_span: Option<Range<usize>>,
}

/// What a body says at its top level. Spans are byte offsets of values into the
/// scanned body.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    body: &'a [u8],
    members: Vec<Member>,
    /// The model asked for.
    pub model: Option<Text<'a>>,
    /// Whether a stream is asked for; `None` if nothing or `null`.
    pub stream: Option<bool>,
    /// Where it is asked for, `null` included.
    pub stream_span: Option<Range<usize>>,
    /// `stream_options`, `null` included.
    pub stream_options: Option<StreamOptions>,
    /// `max_tokens`; `None` also for anything but an unsigned integer.
    pub max_tokens: Option<u64>,
    /// `max_completion_tokens`, likewise.
    pub max_completion_tokens: Option<u64>,
    /// `max_output_tokens`, likewise.
    pub max_output_tokens: Option<u64>,
    /// `user_id`, of any type.
    pub user_id: Option<Range<usize>>,
    /// `user`, of any type.
    pub user: Option<Range<usize>>,
    /// `metadata`, `null` included.
    pub metadata: Option<Metadata<'a>>,
    /// `messages`, of any type; so are the five below.
    pub messages: Option<Range<usize>>,
    /// `input`.
    pub input: Option<Range<usize>>,
    /// `prompt`.
    pub prompt: Option<Range<usize>>,
    /// `system`.
    pub system: Option<Range<usize>>,
    /// `instructions`.
    pub instructions: Option<Range<usize>>,
    /// `tools`.
    pub tools: Option<Range<usize>>,
    /// Offset of the brace that closes the body.
    pub end: usize,
    /// Whether the body is `{}`.
    pub empty: bool,
}

impl<'a> Fields<'a> {
    /// The value spans of every top-level member called `key`, escapes resolved,
    /// in order. More than one only for keys that the scan does not know.
    pub fn spans<'f>(&'f self, key: &'f str) -> impl Iterator<Item = Range<usize>> + 'f {
        self.members
            .iter()
            .filter(move |member| json::key_is(self.body, member, key))
            .map(|member| member.value.clone())
    }

    /// The bytes at `span` of the scanned body; `None` if out of range.
    pub fn bytes(&self, span: &Range<usize>) -> Option<&'a [u8]> {
        self.body.get(span.clone())
    }

    /// The string at `span`; `None` if there is another kind of value.
    pub fn text(&self, span: &Range<usize>) -> Option<Cow<'a, str>> {
        json::text(self.bytes(span)?)
    }

    /// The end user that the body names, as written there: `user_id`, else `user`, else
    /// `metadata.user_id`.
    pub fn end_user(&self) -> Option<&'a [u8]> {
        let metadata = self.metadata.as_ref();
        let in_metadata = metadata.and_then(|metadata| metadata.user_id_span.as_ref());
        let named = [self.user_id.as_ref(), self.user.as_ref(), in_metadata];
        let mut values = named
            .into_iter()
            .flatten()
            .filter_map(|span| self.bytes(span));
        values.find(|value| *value != b"null")
    }

    /// Whether a message refers to a file by the key `file_id`. Looked for when asked. Tools are
    /// passed over, as they may take a `file_id` of their own.
    pub fn names_files(&self) -> bool {
        let parts = [&self.messages, &self.input].into_iter().flatten();
        parts.filter_map(|span| self.bytes(span)).any(has_file_id)
    }

    /// All top-level members in order.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    fn over(body: &'a [u8]) -> Self {
        Fields {
            body,
            members: Vec::with_capacity(16),
            model: None,
            stream: None,
            stream_span: None,
            stream_options: None,
            max_tokens: None,
            max_completion_tokens: None,
            max_output_tokens: None,
            user_id: None,
            user: None,
            metadata: None,
            messages: None,
            input: None,
            prompt: None,
            system: None,
            instructions: None,
            tools: None,
            end: 0,
            empty: true,
        }
    }

    /// Takes one top-level member in.
    fn take(&mut self, member: Member, known: &mut Known) -> Result<(), ScanError> {
        if self.members.len() >= MAX_FIELDS {
            return Err(ScanError::TooManyFields);
        }
        let key = self.key(&member)?;
        let span = member.value.clone();
        self.members.push(member);
        let Some(name) = known.first(&key)? else {
            return Ok(());
        };
        match name {
            "model" => self.model = Some(self.string(name, span)?),
            "stream" => {
                self.stream = self.boolean(name, &span)?;
                self.stream_span = Some(span);
            }
            "stream_options" => self.stream_options = Some(self.options(span)?),
            "metadata" => self.metadata = Some(self.meta(span)?),
            "max_tokens" => self.max_tokens = self.unsigned(&span),
            "max_completion_tokens" => self.max_completion_tokens = self.unsigned(&span),
            "max_output_tokens" => self.max_output_tokens = self.unsigned(&span),
            "user_id" => self.user_id = Some(span),
            "user" => self.user = Some(span),
            "messages" => self.messages = Some(span),
            "input" => self.input = Some(span),
            "prompt" => self.prompt = Some(span),
            "system" => self.system = Some(span),
            "instructions" => self.instructions = Some(span),
            "tools" => self.tools = Some(span),
            _ => {}
        }
        Ok(())
    }

    fn key(&self, member: &Member) -> Result<Cow<'a, str>, ScanError> {
        // Half a surrogate pair in a key means different things to different parsers.
        self.text(&member.key).ok_or(ScanError::Malformed {
            offset: member.key.start,
            expected: "a key made of whole characters",
        })
    }

    fn string(&self, key: &'static str, span: Range<usize>) -> Result<Text<'a>, ScanError> {
        let value = self.text(&span).ok_or(ScanError::WrongType {
            key,
            expected: "a string",
        })?;
        Ok(Text { value, span })
    }

    fn boolean(&self, key: &'static str, span: &Range<usize>) -> Result<Option<bool>, ScanError> {
        match self.bytes(span) {
            Some(b"true") => Ok(Some(true)),
            Some(b"false") => Ok(Some(false)),
            Some(b"null") => Ok(None),
            _ => Err(ScanError::WrongType {
                key,
                expected: "true or false",
            }),
        }
    }

    fn unsigned(&self, span: &Range<usize>) -> Option<u64> {
        std::str::from_utf8(self.bytes(span)?).ok()?.parse().ok()
    }

    fn options(&self, span: Range<usize>) -> Result<StreamOptions, ScanError> {
        let key = "stream_options.include_usage";
        let (value, inner) = self.nested("stream_options", span, "include_usage", key)?;
        let include_usage = match &inner {
            Some(inner) => self.boolean(key, inner)?,
            None => None,
        };
        Ok(StreamOptions {
            value,
            include_usage,
            include_usage_span: inner,
        })
    }

    fn meta(&self, span: Range<usize>) -> Result<Metadata<'a>, ScanError> {
        let key = "metadata.user_id";
        let (value, inner) = self.nested("metadata", span, "user_id", key)?;
        let user_id = match &inner {
            Some(inner) if self.bytes(inner) != Some(b"null") => {
                Some(self.string(key, inner.clone())?)
            }
            _ => None,
        };
        Ok(Metadata {
            value,
            user_id,
            user_id_span: inner,
        })
    }

    /// Walks a small object for one member; `path` names that member in errors.
    fn nested(
        &self,
        key: &'static str,
        span: Range<usize>,
        inner: &str,
        path: &'static str,
    ) -> Result<(Nested, Option<Range<usize>>), ScanError> {
        if self.bytes(&span) == Some(b"null") {
            return Ok((Nested { span, braces: None }, None));
        }
        if self.body.get(span.start) != Some(&b'{') {
            let expected = "an object";
            return Err(ScanError::WrongType { key, expected });
        }
        let mut found = None;
        let braces = Walk::new(self.body, span.start).members(1, |member| {
            self.key(&member)?;
            if !json::key_is(self.body, &member, inner) {
                return Ok(());
            }
            match found.replace(member.value) {
                Some(_) => Err(ScanError::Duplicate { key: path }),
                None => Ok(()),
            }
        })?;
        let braces = Some(braces);
        Ok((Nested { span, braces }, found))
    }
}

/// Is there a key `file_id` in this value? In a text the quotation marks would be escaped.
fn has_file_id(value: &[u8]) -> bool {
    let key = b"\"file_id\"";
    memchr::memmem::find_iter(value, key).any(|at| {
        let (before, rest) = value.split_at_checked(at).unwrap_or_default();
        let behind = rest.get(key.len()..).unwrap_or_default();
        !before.ends_with(b"\\") && behind.trim_ascii_start().starts_with(b":")
    })
}

/// The keys that the gateway acts on. They may be there only once.
const KNOWN: [&str; 15] = [
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "user_id",
    "user",
    "metadata",
    "messages",
    "input",
    "prompt",
    "system",
    "instructions",
    "tools",
];

/// Which of [`KNOWN`] have been seen.
#[derive(Default)]
struct Known {
    seen: [bool; KNOWN.len()],
}

impl Known {
    /// The known key that `key` is, refused if it was seen before.
    fn first(&mut self, key: &str) -> Result<Option<&'static str>, ScanError> {
        let mut slots = KNOWN.iter().zip(&mut self.seen);
        let Some((&key, seen)) = slots.find(|(name, _)| **name == key) else {
            return Ok(None);
        };
        if std::mem::replace(seen, true) {
            return Err(ScanError::Duplicate { key });
        }
        Ok(Some(key))
    }
}

/// Reads a request body. White space around the object is allowed, anything else
/// (a byte order mark, a second value) is refused.
///
/// # Errors
/// See [`ScanError`]; every one of them is the caller's fault.
pub fn scan(body: &[u8]) -> Result<Fields<'_>, ScanError> {
    if simdutf8::basic::from_utf8(body).is_err() {
        // The fast check does not say where; the slow one runs only to complain.
        let offset = std::str::from_utf8(body).map_or_else(|e| e.valid_up_to(), str::len);
        return Err(ScanError::NotUtf8 { offset });
    }
    let mut walk = Walk::new(body, 0);
    if body.starts_with("\u{feff}".as_bytes()) {
        return Err(walk.fault("no byte order mark").into());
    }
    walk.blank();
    if walk.peek() != Some(b'{') {
        return Err(ScanError::NotAnObject);
    }
    let mut fields = Fields::over(body);
    let mut known = Known::default();
    let braces = walk.members(0, |member| fields.take(member, &mut known))?;
    walk.blank();
    if walk.peek().is_some() {
        return Err(walk.fault("nothing after the object").into());
    }
    fields.end = braces.close;
    fields.empty = braces.empty;
    Ok(fields)
}

#[cfg(test)]
mod tests;
