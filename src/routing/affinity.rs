//! Which conversation a request belongs to: a key that is the same at each of its turns, on every
//! host and after every restart, and another for any other tenant, user, model or beginning. What
//! is made of it is for `upstream`; accounts are not known here.
//!
//! A prompt cache finds prefixes again, and what stays of a conversation is its head: tools, system
//! prompt and all up to the first message of the user. Of these the texts count and nothing else:
//! clients move `cache_control` from turn to turn, and write a text now as a string, now as a list
//! with one part. The beginnings of the texts are enough, so a long body costs little more than a
//! short one.

use crate::request::scan::Fields;
use crate::upstream::affinity::mix;

/// Most bytes of text that count of `tools`, and of the system prompt beside the messages.
const BESIDE: usize = 8 * 1024;
/// Most of the messages; each takes half of what those before it left.
const MESSAGES: usize = 32 * 1024;
/// Most of a prompt that is not cut into messages, as it is written.
const PROMPT: usize = 1024;
/// Most bytes between texts that are looked at in one part.
const BETWEEN: usize = 16 * 1024;
/// Keys and roles up to this length are read even when no more text counts.
const SHORT: usize = 64;
/// An odd number whose bits are no pattern (of the golden ratio).
const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

/// The key of the conversation that this body is a turn of; `None` if it says nothing to know it by.
/// `model` is the public name.
pub fn key(tenant: &str, model: &str, fields: &Fields<'_>) -> Option<u64> {
    let mut hash = Hash(FACTOR);
    hash.bytes(tenant.as_bytes());
    hash.bytes(model.as_bytes());
    hash.bytes(fields.end_user().unwrap_or_default());
    let mut told = false;
    let beside = [&fields.tools, &fields.system, &fields.instructions];
    for (number, part) in (1..).zip(beside) {
        if let Some(value) = part.as_ref().and_then(|span| fields.bytes(span)) {
            hash.word(number);
            told |= Head::of(value, BESIDE, &mut hash).take_whole();
        }
    }
    for part in [&fields.messages, &fields.input] {
        if let Some(value) = part.as_ref().and_then(|span| fields.bytes(span)) {
            told |= Head::of(value, MESSAGES, &mut hash).take_to_first_user_message();
        }
    }
    let prompt = fields.prompt.as_ref().and_then(|span| fields.bytes(span));
    if let Some(prompt) = prompt.filter(|prompt| !matches!(*prompt, b"null" | b"\"\"" | b"[]")) {
        hash.bytes(prompt.get(..PROMPT).unwrap_or(prompt));
        told = true;
    }
    told.then(|| hash.finish())
}

/// What stands next in a value.
enum Token<'a> {
    Open,
    Close,
    Key(&'a [u8]),
    Text(&'a [u8]),
    /// The beginning of a text that is longer than was asked for.
    Beginning(&'a [u8]),
}

/// Reads the tokens of well-formed JSON; of anything else it reads something, and ends.
struct Tokens<'a> {
    json: &'a [u8],
    at: usize,
    /// Within a string of which the beginning was told.
    inside: bool,
    /// Bytes between texts that may still be looked at.
    between: usize,
}

impl<'a> Tokens<'a> {
    /// The next token, of a text no more than `most` bytes. `None` at the end.
    fn next(&mut self, most: usize) -> Option<Token<'a>> {
        if self.inside {
            self.at = self.end_of_string(self.at, self.json.len()).ok()? + 1;
            self.inside = false;
        }
        loop {
            let byte = *self.json.get(self.at)?;
            self.between = self.between.checked_sub(1)?;
            self.at += 1;
            match byte {
                b'{' | b'[' => return Some(Token::Open),
                b'}' | b']' => return Some(Token::Close),
                b'"' => return Some(self.string(most)),
                _ => {}
            }
        }
    }

    /// A string from behind its opening quotation mark on.
    fn string(&mut self, most: usize) -> Token<'a> {
        let start = self.at;
        let limit = start.saturating_add(most).min(self.json.len());
        let told = |end| self.json.get(start..end).unwrap_or_default();
        match self.end_of_string(start, limit) {
            Ok(end) => {
                let string = told(end);
                self.at = end + 1;
                let rest = self.json.get(self.at..).unwrap_or_default();
                if rest.trim_ascii_start().starts_with(b":") {
                    Token::Key(string)
                } else {
                    Token::Text(string)
                }
            }
            Err(reached) => {
                let beginning = told(limit);
                self.at = reached;
                self.inside = true;
                Token::Beginning(beginning)
            }
        }
    }

    /// Where the closing quotation mark stands, or how far the search came without it.
    fn end_of_string(&self, mut at: usize, limit: usize) -> Result<usize, usize> {
        loop {
            let rest = self.json.get(at..limit).ok_or(at)?;
            match memchr::memchr2(b'"', b'\\', rest).map(|found| at + found) {
                None => return Err(limit),
                Some(found) if self.json.get(found) == Some(&b'"') => return Ok(found),
                // What an escape begins with is never a quotation mark that closes.
                Some(escape) => at = escape + 2,
            }
        }
    }
}

/// Takes the texts of one part of a body into the hash.
struct Head<'a, 'h> {
    tokens: Tokens<'a>,
    hash: &'h mut Hash,
    /// Bytes of text that still count.
    left: usize,
    /// Of these, for the message that is being read.
    of_message: usize,
    depth: u32,
    /// What was the last key, if it is on the level of messages.
    role_next: bool,
    /// The depth of a key whose value does not count.
    muted: Option<u32>,
    told: bool,
}

impl<'a, 'h> Head<'a, 'h> {
    fn of(json: &'a [u8], most: usize, hash: &'h mut Hash) -> Self {
        let tokens = Tokens {
            json,
            at: 0,
            inside: false,
            between: BETWEEN,
        };
        Self {
            tokens,
            hash,
            left: most,
            of_message: most / 2,
            depth: 0,
            role_next: false,
            muted: None,
            told: false,
        }
    }

    /// Takes all of it, up to the cap. Says whether there was a text.
    fn take_whole(mut self) -> bool {
        self.of_message = self.left;
        while self.of_message > 0
            && let Some(token) = self.tokens.next(self.of_message.max(SHORT))
        {
            self.take(token);
        }
        self.told
    }

    /// Takes the messages to the end of the first one of the user, or all. Says whether there was a
    /// text.
    fn take_to_first_user_message(mut self) -> bool {
        let mut of_user = false;
        while let Some(token) = self.tokens.next(self.of_message.max(SHORT)) {
            if self.depth == 0
                && let Token::Text(_) | Token::Beginning(_) = token
            {
                // `"input": "…"` is that of `[{"role": "user", "content": "…"}]`.
                self.hash.bytes(b"user");
            }
            of_user |= self.role_next && matches!(token, Token::Text(b"user"));
            let ended = matches!(token, Token::Close) && self.depth == 2;
            self.take(token);
            if of_user && (ended || self.of_message == 0) {
                break;
            }
            if ended {
                self.of_message = self.left / 2;
            }
        }
        self.told
    }

    fn take(&mut self, token: Token<'a>) {
        let role = std::mem::replace(&mut self.role_next, false);
        match token {
            Token::Open => self.depth += 1,
            Token::Close => {
                self.depth = self.depth.saturating_sub(1);
                self.muted = self.muted.filter(|muted| *muted <= self.depth);
            }
            Token::Key(key) => {
                if self.muted.is_none_or(|muted| self.depth <= muted) {
                    let counts = !matches!(key, b"cache_control" | b"type");
                    self.muted = (!counts).then_some(self.depth);
                    self.role_next = self.depth == 2 && key == b"role";
                }
            }
            Token::Text(text) | Token::Beginning(text) => {
                if self.muted.is_none() {
                    let text = text.get(..self.of_message).unwrap_or(text);
                    self.hash.bytes(text);
                    self.left -= text.len().min(self.left);
                    self.of_message -= text.len();
                    self.told |= !role && !text.is_empty();
                }
            }
        }
    }
}

/// Not for secrets: who knows the factor can make two texts collide, and gains a cache miss.
struct Hash(u64);

impl Hash {
    #[inline]
    fn word(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(FACTOR);
        // Both halves, so that every bit of the word reaches every bit of the hash.
        self.0 = (product as u64) ^ ((product >> 64) as u64).rotate_left(23);
    }

    /// Takes bytes and their number in, so that `ab` + `c` is not `a` + `bc`.
    fn bytes(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((word, tail)) = rest.split_first_chunk::<8>() {
            self.word(u64::from_le_bytes(*word));
            rest = tail;
        }
        let last = rest.iter().rev();
        self.word(last.fold(0, |word, byte| (word << 8) | u64::from(*byte)));
        self.word(bytes.len() as u64 | 1 << 63);
    }

    fn finish(self) -> u64 {
        mix(self.0)
    }
}

#[cfg(test)]
mod tests;
