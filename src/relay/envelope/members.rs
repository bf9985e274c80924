//! Decides where the members of one JSON object begin and end, over fragments
//! cut anywhere. For [`super::one`], which knows what they mean together. It
//! keeps the two short ones, code and message, and must not keep anything else.
//!
//! Values are stepped over by their brackets and quotation marks alone: whether
//! they are well-formed is judged by who reads them.

use crate::json;

/// Longest key that can be one of ours, escapes included.
const MAX_KEY: usize = 48;
/// Most bytes kept of a code, as written.
const MAX_CODE: usize = 64;
/// Most bytes kept of a message, as written: 2,000 characters of CJK text.
const MAX_MESSAGE: usize = 6 << 10;
/// Most bytes that the last character or escape of a cut message can have: a
/// pair of `\u` escapes.
const MAX_TAIL: usize = 12;

/// The members that have a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// `code`.
    Code,
    /// `msg` or `message`.
    Message,
    /// `data`.
    Data,
    /// `choices`, which no envelope has and every OpenAI completion.
    Choices,
    Other,
}

/// What is met in the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// A value begins here, with this byte.
    Begins(Name, u8),
    /// The value ended before this place.
    Ends(Name),
    /// The closing brace came.
    Closed,
    /// This is no JSON object.
    Foreign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    FirstKey,
    NextKey,
    Key,
    Colon,
    Value,
    /// At the first byte of a value that was announced.
    Open,
    Text,
    /// Inside a container this deep.
    Nest(u32),
    /// The same, inside a string.
    NestText(u32),
    Word,
    AfterValue,
    Over,
}

/// A position in an object that arrives in fragments.
#[derive(Debug)]
pub(super) struct Members {
    at: At,
    escape: bool,
    name: Name,
    key: Vec<u8>,
    code: Vec<u8>,
    message: Vec<u8>,
    /// The value of a message that is under way.
    coming: Vec<u8>,
}

impl Default for Members {
    fn default() -> Self {
        Self {
            at: At::Start,
            escape: false,
            name: Name::Other,
            key: Vec::new(),
            code: Vec::new(),
            message: Vec::new(),
            coming: Vec::new(),
        }
    }
}

impl Members {
    /// Reads on to the next mark: how many bytes come before it, and what it is.
    /// Without a mark all of `text` was read.
    pub fn next(&mut self, text: &[u8]) -> (usize, Option<Mark>) {
        let mut used = 0;
        while let Some(rest) = text.get(used..).filter(|rest| !rest.is_empty()) {
            let (step, mark) = self.step(rest);
            used += step;
            if mark.is_some() {
                return (used, mark);
            }
        }
        (used, None)
    }

    /// The code as text, at most 64 bytes; `None` without one and for `null`.
    pub fn code(&self) -> Option<String> {
        match self.code.as_slice() {
            b"" | b"null" => None,
            text @ [b'"', ..] => Some(decoded(text)?),
            word => Some(String::from_utf8_lossy(word).into_owned()),
        }
    }

    /// The message as text; `None` without one and for anything but a string.
    pub fn message(&self) -> Option<String> {
        decoded(&self.message).filter(|text| !text.is_empty())
    }

    /// Whether the value of a member of this name is under way.
    pub fn is_in(&self, name: Name) -> bool {
        let value = matches!(
            self.at,
            At::Open | At::Text | At::Nest(_) | At::NestText(_) | At::Word
        );
        value && self.name == name
    }

    fn step(&mut self, rest: &[u8]) -> (usize, Option<Mark>) {
        let Some(&byte) = rest.first() else {
            return (0, None);
        };
        match self.at {
            At::Key => return (self.key(rest), None),
            At::Open => return (self.open(byte), None),
            At::Text => return self.text(rest),
            At::Nest(depth) => return self.nest(rest, depth),
            At::NestText(depth) => return (self.nested_text(rest, depth), None),
            At::Word => return self.word(rest),
            At::Over => return (rest.len(), None),
            _ if byte.is_ascii_whitespace() => return (blank_run(rest), None),
            _ => {}
        }
        match (self.at, byte) {
            (At::Start, b'{') => self.at = At::FirstKey,
            (At::FirstKey | At::NextKey, b'"') => {
                self.key.clear();
                self.at = At::Key;
            }
            (At::Colon, b':') => self.at = At::Value,
            (At::AfterValue, b',') => self.at = At::NextKey,
            (At::FirstKey | At::AfterValue, b'}') => {
                self.at = At::Over;
                return (1, Some(Mark::Closed));
            }
            (At::Value, b'"' | b'{' | b'[' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                self.begin_value();
                return (0, Some(Mark::Begins(self.name, byte)));
            }
            _ => {
                self.at = At::Over;
                return (0, Some(Mark::Foreign));
            }
        }
        (1, None)
    }

    fn begin_value(&mut self) {
        self.at = At::Open;
        match self.name {
            Name::Code => self.code.clear(),
            Name::Message => self.coming.clear(),
            _ => {}
        }
    }

    fn open(&mut self, byte: u8) -> usize {
        self.keep(&[byte]);
        self.at = match byte {
            b'"' => At::Text,
            b'{' | b'[' => At::Nest(1),
            _ => At::Word,
        };
        1
    }

    /// Reads on inside a string: how far, and whether it ended.
    fn run(&mut self, rest: &[u8]) -> (usize, bool) {
        if std::mem::take(&mut self.escape) {
            return (1, false);
        }
        let Some(found) = memchr::memchr2(b'"', b'\\', rest) else {
            return (rest.len(), false);
        };
        self.escape = rest.get(found) == Some(&b'\\');
        (found + 1, !self.escape)
    }

    fn key(&mut self, rest: &[u8]) -> usize {
        let (used, ended) = self.run(rest);
        // One byte more than fits shows that the key is none of ours.
        let room = (MAX_KEY + 1).saturating_sub(self.key.len()).min(used);
        let read = rest.get(..room).unwrap_or_default();
        self.key.extend_from_slice(read);
        if ended {
            self.name = name(&self.key);
            self.at = At::Colon;
        }
        used
    }

    fn text(&mut self, rest: &[u8]) -> (usize, Option<Mark>) {
        let (used, ended) = self.run(rest);
        self.keep(rest.get(..used).unwrap_or_default());
        (used, ended.then(|| self.end_value()))
    }

    fn nested_text(&mut self, rest: &[u8], depth: u32) -> usize {
        let (used, ended) = self.run(rest);
        if ended {
            self.at = At::Nest(depth);
        }
        used
    }

    fn nest(&mut self, rest: &[u8], depth: u32) -> (usize, Option<Mark>) {
        let mark = |byte: &u8| matches!(byte, b'"' | b'{' | b'}' | b'[' | b']');
        let Some(found) = rest.iter().position(mark) else {
            return (rest.len(), None);
        };
        let used = found + 1;
        match rest.get(found) {
            Some(b'"') => self.at = At::NestText(depth),
            Some(b'{' | b'[') => self.at = At::Nest(depth.saturating_add(1)),
            _ if depth > 1 => self.at = At::Nest(depth - 1),
            _ => return (used, Some(self.end_value())),
        }
        (used, None)
    }

    fn word(&mut self, rest: &[u8]) -> (usize, Option<Mark>) {
        let ends = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b',' | b'}' | b']');
        let found = rest.iter().position(ends);
        let used = found.unwrap_or(rest.len());
        self.keep(rest.get(..used).unwrap_or_default());
        (used, found.map(|_| self.end_value()))
    }

    fn end_value(&mut self) -> Mark {
        self.at = At::AfterValue;
        // An empty or null `message` does not take the place of a `msg` that says something.
        if self.name == Name::Message && self.coming.len() > 2 && self.coming.first() == Some(&b'"')
        {
            self.message = std::mem::take(&mut self.coming);
        }
        Mark::Ends(self.name)
    }

    fn keep(&mut self, bytes: &[u8]) {
        let (into, most) = match self.name {
            Name::Code => (&mut self.code, MAX_CODE),
            Name::Message => (&mut self.coming, MAX_MESSAGE),
            _ => return,
        };
        let room = most.saturating_sub(into.len()).min(bytes.len());
        into.extend_from_slice(bytes.get(..room).unwrap_or_default());
    }
}

fn blank_run(rest: &[u8]) -> usize {
    let solid = |byte: &u8| !byte.is_ascii_whitespace();
    rest.iter().position(solid).unwrap_or(rest.len())
}

/// `key` is as written, with the closing quotation mark.
fn name(key: &[u8]) -> Name {
    let quoted;
    let plain = match memchr::memchr(b'\\', key) {
        None => key.strip_suffix(b"\"").unwrap_or(key),
        Some(_) => {
            quoted = json::text(&[b"\"", key].concat()).map(|text| text.into_owned());
            quoted.as_deref().unwrap_or_default().as_bytes()
        }
    };
    match plain {
        b"code" => Name::Code,
        b"msg" | b"message" => Name::Message,
        b"data" => Name::Data,
        b"choices" => Name::Choices,
        _ => Name::Other,
    }
}

/// The text of a string that may have been cut where keeping stopped.
fn decoded(written: &[u8]) -> Option<String> {
    if let Some(text) = json::text(written).filter(|_| written.len() > 1) {
        return Some(text.into_owned());
    }
    (0..=MAX_TAIL).find_map(|tail| {
        let whole = written.get(..written.len().checked_sub(tail)?)?;
        let closed = [whole, b"\""].concat();
        let text = json::text(&closed).filter(|_| closed.len() > 1)?;
        Some(text.into_owned())
    })
}
