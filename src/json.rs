//! Decides what is well-formed JSON (RFC 8259) and where its parts lie, for the
//! request scan and for single events and values of answers. It works on spans
//! of bytes, builds no tree and must not know what any key means.
//!
//! The walk is strict about structure, literals, numbers and escapes. It does
//! not check UTF-8: callers that care have done so before.

use std::borrow::Cow;
use std::ops::Range;

/// Deepest nesting accepted, the outermost value counted. serde_json, which
/// upstream servers are known to use, stops at the same depth.
pub const MAX_DEPTH: u32 = 128;

/// Why a walk stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Something other than `expected` stands at byte `offset`.
    Malformed {
        /// Byte offset into the walked text.
        offset: usize,
        /// What the grammar asks for there.
        expected: &'static str,
    },
    /// Nested deeper than [`MAX_DEPTH`].
    TooDeep,
}

/// One `"key": value` of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The key with its quotation marks.
    pub key: Range<usize>,
    /// Whether the key is written with escapes.
    pub escaped: bool,
    /// The value, without surrounding white space.
    pub value: Range<usize>,
}

/// Where an object ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Braces {
    /// Offset of the closing brace.
    pub close: usize,
    /// Whether it has no members.
    pub empty: bool,
}

/// A position in a JSON text.
#[derive(Debug)]
pub struct Walk<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    /// Starts at `at`; beyond the end of `text` every step is a [`Fault`].
    pub fn new(text: &'a [u8], at: usize) -> Self {
        Walk { text, at }
    }

    /// The offset of the next byte to be read.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The next byte, if there is one.
    #[inline]
    pub fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Passes over white space.
    #[inline]
    pub fn blank(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Walks the object that begins here and shows each member to `each`.
    /// `above` is the number of containers around it.
    ///
    /// # Errors
    /// The first [`Fault`], or the first refusal of `each`.
    pub fn members<E: From<Fault>>(
        &mut self,
        above: u32,
        mut each: impl FnMut(Member) -> Result<(), E>,
    ) -> Result<Braces, E> {
        self.take(b'{', "an object")?;
        self.blank();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Braces {
                close: self.at - 1,
                empty: true,
            });
        }
        loop {
            let (key, escaped) = self.key()?;
            let value = self.value(above.saturating_add(1))?;
            each(Member {
                key,
                escaped,
                value,
            })?;
            self.blank();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(self.fault("`,` or `}`").into()),
            }
        }
        self.at += 1;
        Ok(Braces {
            close: self.at - 1,
            empty: false,
        })
    }

    /// Walks over one value, leading white space included, and says where it
    /// lies. Costs no stack and no heap at any depth.
    ///
    /// # Errors
    /// The first [`Fault`].
    pub fn value(&mut self, above: u32) -> Result<Range<usize>, Fault> {
        self.blank();
        let start = self.at;
        let mut nest = Nest::below(above);
        loop {
            let ended = self.open(&mut nest)?;
            if ended && self.close(&mut nest)? {
                return Ok(start..self.at);
            }
        }
    }

    /// Reads a scalar, an empty container or the opening of a container.
    /// True when a value has ended, false when one has to follow.
    fn open(&mut self, nest: &mut Nest) -> Result<bool, Fault> {
        match self.peek() {
            Some(b'"') => self.string().map(|_| true),
            Some(b'{') => {
                nest.push(true)?;
                self.at += 1;
                self.blank();
                if self.peek() == Some(b'}') {
                    return Ok(true);
                }
                self.key()?;
                Ok(false)
            }
            Some(b'[') => {
                nest.push(false)?;
                self.at += 1;
                self.blank();
                Ok(self.peek() == Some(b']'))
            }
            Some(b'-' | b'0'..=b'9') => self.number().map(|()| true),
            Some(b't') => self.literal(b"true", "`true`"),
            Some(b'f') => self.literal(b"false", "`false`"),
            Some(b'n') => self.literal(b"null", "`null`"),
            _ => Err(self.fault("a value")),
        }
    }

    /// Reads what may follow a value. True when the outermost one is complete,
    /// false when the next value has to follow.
    fn close(&mut self, nest: &mut Nest) -> Result<bool, Fault> {
        while let Some(object) = nest.top() {
            self.blank();
            match (self.peek(), object) {
                (Some(b','), true) => {
                    self.at += 1;
                    self.key()?;
                    return Ok(false);
                }
                (Some(b','), false) => {
                    self.at += 1;
                    self.blank();
                    return Ok(false);
                }
                (Some(b'}'), true) | (Some(b']'), false) => {
                    self.at += 1;
                    nest.pop();
                }
                (_, true) => return Err(self.fault("`,` or `}`")),
                (_, false) => return Err(self.fault("`,` or `]`")),
            }
        }
        Ok(true)
    }

    /// Reads a key and its colon, and stops at the value.
    fn key(&mut self) -> Result<(Range<usize>, bool), Fault> {
        self.blank();
        if self.peek() != Some(b'"') {
            return Err(self.fault("a key in quotation marks"));
        }
        let start = self.at;
        let escaped = self.string()?;
        let span = start..self.at;
        self.blank();
        self.take(b':', "`:`")?;
        self.blank();
        Ok((span, escaped))
    }

    /// Reads a string from its opening quotation mark; true if it has escapes.
    fn string(&mut self) -> Result<bool, Fault> {
        self.at += 1;
        let mut escaped = false;
        loop {
            self.at += plain_run(self.text.get(self.at..).unwrap_or_default());
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    // Where one is, more are: whole texts come as `\u` escapes.
                    while self.peek() == Some(b'\\') {
                        self.escape()?;
                    }
                }
                Some(_) => return Err(self.fault("control characters in strings to be escaped")),
                None => return Err(self.fault("a closing quotation mark")),
            }
        }
    }

    #[inline]
    fn escape(&mut self) -> Result<(), Fault> {
        match self.text.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 2;
                Ok(())
            }
            Some(b'u') => match self.text.get(self.at + 2..self.at + 6) {
                Some(digits) if all_hexadecimal(digits) => {
                    self.at += 6;
                    Ok(())
                }
                _ => Err(self.fault("four hexadecimal digits after `\\u`")),
            },
            _ => Err(self.fault("an escape that JSON knows")),
        }
    }

    fn number(&mut self) -> Result<(), Fault> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.fault("a digit"));
        }
        Ok(())
    }

    fn literal(&mut self, word: &[u8], expected: &'static str) -> Result<bool, Fault> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        if !rest.starts_with(word) {
            return Err(self.fault(expected));
        }
        self.at += word.len();
        Ok(true)
    }

    fn take(&mut self, byte: u8, expected: &'static str) -> Result<(), Fault> {
        if self.peek() != Some(byte) {
            return Err(self.fault(expected));
        }
        self.at += 1;
        Ok(())
    }

    /// The fault of finding something else than `expected` here.
    pub fn fault(&self, expected: &'static str) -> Fault {
        Fault::Malformed {
            offset: self.at.min(self.text.len()),
            expected,
        }
    }
}

/// The open containers, one bit each: set for an object. `MAX_DEPTH` bits.
struct Nest {
    bits: u128,
    above: u32,
    depth: u32,
}

impl Nest {
    fn below(above: u32) -> Self {
        Nest {
            bits: 0,
            above,
            depth: 0,
        }
    }

    fn push(&mut self, object: bool) -> Result<(), Fault> {
        if self.above.saturating_add(self.depth) >= MAX_DEPTH {
            return Err(Fault::TooDeep);
        }
        self.depth += 1;
        self.bits = (self.bits << 1) | u128::from(object);
        Ok(())
    }

    fn pop(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.bits >>= 1;
    }

    fn top(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.bits & 1 == 1)
    }
}

/// Without a branch per digit, as whole texts come as `\u` escapes.
#[inline]
fn all_hexadecimal(digits: &[u8]) -> bool {
    digits
        .iter()
        .fold(true, |all, digit| all & digit.is_ascii_hexdigit())
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);
const HIGH: u64 = ONES << 7;

/// Marks the bytes of `word` that end a plain run. Only the lowest mark is
/// exact (the subtractions borrow upwards), and only that one is used.
#[inline]
fn marks(word: u64) -> u64 {
    let quote = word ^ (ONES * b'"' as u64);
    let slash = word ^ (ONES * b'\\' as u64);
    let low = word.wrapping_sub(ONES * 0x20) & !word;
    let quote = quote.wrapping_sub(ONES) & !quote;
    let slash = slash.wrapping_sub(ONES) & !slash;
    (low | quote | slash) & HIGH
}

/// How many bytes come before the first quotation mark, backslash or control
/// character. Words first, as most strings are short; then vector instructions
/// (memchr's and the compiler's), as most bytes are in long strings.
#[inline]
fn plain_run(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    for _ in 0..8 {
        let Some((word, tail)) = rest.split_first_chunk::<8>() else {
            break;
        };
        let found = marks(u64::from_le_bytes(*word));
        if found != 0 {
            return bytes.len() - rest.len() + (found.trailing_zeros() / 8) as usize;
        }
        rest = tail;
    }
    bytes.len() - rest.len() + long_run(rest)
}

fn long_run(bytes: &[u8]) -> usize {
    let run = memchr::memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
    let mut rest = bytes.get(..run).unwrap_or(bytes);
    while let Some((block, tail)) = rest.split_first_chunk::<32>() {
        if block.iter().fold(false, |any, &byte| any | (byte < 0x20)) {
            break;
        }
        rest = tail;
    }
    let control = rest.iter().position(|&byte| byte < 0x20);
    control.map_or(run, |control| run - rest.len() + control)
}

/// Decodes a string value, quotation marks included. `None` for any other kind
/// of value, for invalid UTF-8 and for half a surrogate pair.
pub fn text(value: &[u8]) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if memchr::memchr(b'\\', inner).is_none() {
        return std::str::from_utf8(inner).ok().map(Cow::Borrowed);
    }
    serde_json::from_slice::<String>(value).ok().map(Cow::Owned)
}

/// Writes `text` as a JSON string, quotation marks included.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Whether the key `member` of `text` says `name`, escapes or not.
pub fn key_is(text: &[u8], member: &Member, name: &str) -> bool {
    let Some(raw) = text.get(member.key.clone()) else {
        return false;
    };
    if member.escaped {
        return self::text(raw).is_some_and(|key| key == name);
    }
    raw.strip_prefix(b"\"")
        .and_then(|raw| raw.strip_suffix(b"\""))
        == Some(name.as_bytes())
}

/// The values of the named members of the one object that `text` is; of equal
/// keys the last. `None` if `text` is anything but one well-formed object.
pub fn pick<'a, const N: usize>(text: &'a [u8], names: [&str; N]) -> Option<[Option<&'a [u8]>; N]> {
    let mut found = [None; N];
    let mut walk = Walk::new(text, 0);
    walk.blank();
    walk.members(0, |member| {
        for (slot, name) in found.iter_mut().zip(names) {
            if key_is(text, &member, name) {
                *slot = text.get(member.value.clone());
            }
        }
        Ok::<(), Fault>(())
    })
    .ok()?;
    walk.blank();
    walk.peek().is_none().then_some(found)
}

/// The items of the array that `text` is, as far as they are well-formed; none
/// if it is no array.
pub fn items(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut walk = Walk::new(text, 0);
    let mut more = walk.take(b'[', "an array").is_ok();
    walk.blank();
    more = more && walk.peek() != Some(b']');
    std::iter::from_fn(move || {
        if !more {
            return None;
        }
        let span = walk.value(1).ok()?;
        walk.blank();
        more = walk.take(b',', "`,`").is_ok();
        text.get(span)
    })
}

/// Reads a count. Negative numbers are 0, fractions are cut off, and what is
/// too large is the largest; `None` for anything but a number.
pub fn count(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    if let Ok(count) = text.parse() {
        return Some(count);
    }
    if !text.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
        return None;
    }
    // A cast from f64 saturates and takes what is negative for 0.
    text.parse::<f64>().ok().map(|number| number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accepts(text: &[u8]) -> bool {
        let mut walk = Walk::new(text, 0);
        let walked = walk.value(0).is_ok();
        walk.blank();
        walked && walk.peek().is_none()
    }

    #[test]
    fn numbers_follow_the_grammar() {
        for good in ["0", "-0", "10", "1.5", "1e9", "1E-9", "-1.0e+2", "1e999999"] {
            assert!(accepts(good.as_bytes()), "{good}");
        }
        for bad in [
            "01", "+1", "1.", ".5", "1e", "-", "--1", "0x1", "NaN", "1_0", "Infinity",
        ] {
            assert!(!accepts(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn nesting_is_accepted_to_the_cap_and_not_beyond() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let nested = |depth: usize| {
                let inner = if open == "[" { "" } else { "1" };
                format!("{}{inner}{}", open.repeat(depth), close.repeat(depth))
            };
            assert!(accepts(nested(128).as_bytes()));
            assert!(!accepts(nested(129).as_bytes()));
            assert_eq!(
                Walk::new(nested(100_000).as_bytes(), 0).value(0),
                Err(Fault::TooDeep)
            );
        }
        assert!(!accepts(b"[{]}"));
    }

    #[test]
    fn a_special_byte_is_found_at_every_place_of_a_run() {
        for special in [b'"', b'\\', 0, 0x1f, b'\n'] {
            for length in 0..200 {
                let mut bytes = vec![b'a'; 260];
                for (index, byte) in bytes.iter_mut().enumerate() {
                    *byte = [b'a', 0x7f, 0x80, 0xff, b' ', b'!', b'#', b'['][index % 8];
                }
                *bytes.get_mut(length).unwrap() = special;
                bytes.extend_from_slice(b"\"");
                assert_eq!(plain_run(&bytes), length);
            }
        }
    }

    #[test]
    fn counts_never_panic_and_never_go_below_zero() {
        assert_eq!(count(b"-5"), Some(0));
        assert_eq!(count(b"12.9"), Some(12));
        assert_eq!(count(b"1e400"), Some(u64::MAX));
        assert_eq!(count(b"99999999999999999999999"), Some(u64::MAX));
        assert_eq!(count(b"\"5\""), None);
        assert_eq!(count(b"null"), None);
        assert_eq!(count(b"inf"), None);
    }

    proptest! {
        #[test]
        fn the_walk_accepts_what_serde_json_accepts(text in "[\\[\\]{}:,\" a1\\\\untrefl.0e\\-]{0,12}") {
            // serde_json refuses lone surrogates and numbers beyond f64; none can be written here.
            let theirs = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(accepts(text.as_bytes()), theirs);
        }

        #[test]
        fn any_bytes_are_walked_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = accepts(&bytes);
            let _ = pick(&bytes, ["a"]);
            let _ = items(&bytes).count();
            let _ = text(&bytes);
            let _ = count(&bytes);
        }
    }
}
