//! Signed requests: reads the header, decides whether a signature is good, and makes signatures.
//!
//! For callers that sign with HMAC-SHA256 instead of sending a secret. The wire form is a contract,
//! told in `docs/signed-requests.md`. Knows nothing of tenants, of where secrets are kept or of
//! HTTP types; the time is an argument.
//!
//! The order of the checks, which is the caller's to keep: [`parse`], find the secret of the key id,
//! [`Signed::verify`], [`Window::within`], [`nonces::Nonces::claim`], and [`body::BodyDigest`] while
//! the body comes in. Whoever cannot sign learns nothing of clocks and fills no memory.

use std::fmt;

pub mod body;
pub mod canonical;
pub mod nonces;

use canonical::{Statement, Target};

/// The authentication scheme's name (RFC 9110 §11.1: in any case), and the canonical form's first
/// line.
pub const SCHEME: &str = "TG-HMAC-SHA256";
/// A header with the longest id and nonce has 327 bytes; the rest is for spaces.
pub const MAX_HEADER: usize = 512;
/// Key ids: 1 to this many of `A-Z a-z 0-9 . _ -`.
pub const MAX_KEY_ID: usize = 64;
/// Nonces: this many of `A-Z a-z 0-9 _ -`. 16 characters hold 96 random bits.
pub const NONCE_LENGTH: std::ops::RangeInclusive<usize> = 16..=64;
/// Seconds since 1970 have ten digits until the year 2286.
const MAX_TIMESTAMP_DIGITS: usize = 12;

/// Why a signed request is refused. The caller is told less than this: see the errors in
/// `docs/signed-requests.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SignatureError {
    /// The header does not have the form, or a part to be signed cannot be.
    #[error("the signature header does not have the documented form")]
    Malformed,
    /// No such key id. For whoever looks up the secret: nothing here says it.
    #[error("the key id is not known")]
    UnknownId,
    /// The signature is not that of this request under this secret.
    #[error("the signature does not fit the request")]
    WrongSignature,
    /// Signed longer ago than the window allows.
    #[error("the signature is too old")]
    Stale,
    /// Signed later than the window allows: one of the two clocks is wrong.
    #[error("the signature is from the future")]
    Future,
    /// The nonce was used before.
    #[error("the nonce was used before")]
    Replayed,
    /// The body is not the one that was signed.
    #[error("the body is not the one that was signed")]
    WrongDigest,
    /// No more nonces can be remembered, of this key or at all.
    #[error("no room to remember another nonce")]
    NoncesFull,
}

impl SignatureError {
    /// Was the signature itself good, so that the caller may be told the rest?
    pub fn proven(self) -> bool {
        match self {
            Self::Malformed | Self::UnknownId | Self::WrongSignature => false,
            Self::Stale | Self::Future | Self::Replayed | Self::WrongDigest | Self::NoncesFull => {
                true
            }
        }
    }

    /// Every reason, for metrics and documentation.
    pub const ALL: &'static [Self] = &[
        Self::Malformed,
        Self::UnknownId,
        Self::WrongSignature,
        Self::Stale,
        Self::Future,
        Self::Replayed,
        Self::WrongDigest,
        Self::NoncesFull,
    ];

    /// The word in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownId => "unknown_id",
            Self::WrongSignature => "wrong_signature",
            Self::Stale => "stale",
            Self::Future => "future",
            Self::Replayed => "replayed",
            Self::WrongDigest => "wrong_digest",
            Self::NoncesFull => "nonces_full",
        }
    }
}

/// A header's content, well formed and not yet believed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signed<'a> {
    /// Names the secret. It is not signed: no two ids may have the same secret.
    pub key_id: &'a str,
    /// Seconds since 1970, by the caller's clock. Never negative.
    pub timestamp: i64,
    /// The caller's one-time text.
    pub nonce: &'a str,
    /// SHA-256 of the body, as the caller announces it.
    pub digest: [u8; 32],
    signature: [u8; 32],
}

impl fmt::Debug for Signed<'_> {
    // Until it was claimed, whoever reads nonce and signature in a log could send the request.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed")
            .field("key_id", &self.key_id)
            .field("timestamp", &self.timestamp)
            .finish_non_exhaustive()
    }
}

impl Signed<'_> {
    /// Is this the signature of a request for `target` under `secret`?
    ///
    /// Compares in constant time. For an unknown key id ask with some fixed secret and ignore the
    /// answer, so that knowing ids cannot be told by the time it takes. False if the target cannot
    /// be signed (see [`Target`]) or the secret is empty.
    pub fn verify(&self, secret: &[u8], target: Target<'_>) -> bool {
        let statement = Statement {
            target,
            timestamp: self.timestamp,
            nonce: self.nonce,
            digest: &self.digest,
        };
        statement.is_signed_by(secret, &self.signature)
    }
}

/// Is this `Authorization` value meant to be a signed request? Looks at the scheme's name only.
pub fn scheme_matches(header: &str) -> bool {
    after_scheme(header).is_some()
}

/// Takes a header's value apart.
///
/// # Errors
/// [`SignatureError::Malformed`] for anything but the scheme and the five parameters, each exactly
/// once and of its form. More than [`MAX_HEADER`] bytes are not looked at.
pub fn parse(header: &str) -> Result<Signed<'_>, SignatureError> {
    if header.len() > MAX_HEADER {
        return Err(SignatureError::Malformed);
    }
    parameters(header).ok_or(SignatureError::Malformed)
}

/// Signs a request and gives the header's value.
///
/// `timestamp` is in seconds since 1970; `nonce` is used once, [`nonce`] makes one; `digest` is
/// [`body::digest`] of the body.
///
/// # Errors
/// [`SignatureError::Malformed`] if [`parse`] would refuse a part or the target cannot be signed.
pub fn sign(
    key_id: &str,
    secret: &[u8],
    target: Target<'_>,
    timestamp: i64,
    nonce: &str,
    digest: &[u8; 32],
) -> Result<String, SignatureError> {
    let statement = Statement {
        target,
        timestamp,
        nonce,
        digest,
    };
    if !is_key_id(key_id) || !is_nonce(nonce) || !is_timestamp(timestamp) {
        return Err(SignatureError::Malformed);
    }
    let signature = statement
        .signature(secret)
        .ok_or(SignatureError::Malformed)?;
    Ok(format!(
        "{SCHEME} id={key_id}, timestamp={timestamp}, nonce={nonce}, digest={}, signature={}",
        hex::encode(digest),
        hex::encode(signature)
    ))
}

/// A nonce from 16 random bytes: 32 hexadecimal digits.
pub fn nonce(random: &[u8; 16]) -> String {
    hex::encode(random)
}

/// How far a caller's clock may be from ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Seconds a signature stays good.
    pub past: u32,
    /// Seconds the caller's clock may be ahead.
    pub future: u32,
}

impl Default for Window {
    /// Five minutes for bad clocks and slow queues; half a minute for clocks that are ahead, which
    /// lengthens the life of every signature made by them.
    fn default() -> Self {
        Self {
            past: 300,
            future: 30,
        }
    }
}

impl Window {
    /// May a signature of `timestamp` be taken at `now_unix`? Both in seconds since 1970; both ends
    /// of the window are inside.
    ///
    /// # Errors
    /// [`SignatureError::Stale`] or [`SignatureError::Future`].
    pub fn within(&self, timestamp: i64, now_unix: i64) -> Result<(), SignatureError> {
        let age = i128::from(now_unix) - i128::from(timestamp);
        if age > i128::from(self.past) {
            return Err(SignatureError::Stale);
        }
        if -age > i128::from(self.future) {
            return Err(SignatureError::Future);
        }
        Ok(())
    }
}

/// What follows the scheme's name: nothing, or something that begins with a space.
fn after_scheme(header: &str) -> Option<&str> {
    let (scheme, rest) = header.split_at_checked(SCHEME.len())?;
    let ends = rest.is_empty() || rest.starts_with(' ');
    (ends && scheme.eq_ignore_ascii_case(SCHEME)).then_some(rest)
}

fn parameters(header: &str) -> Option<Signed<'_>> {
    let (mut key_id, mut timestamp, mut nonce) = (None, None, None);
    let (mut digest, mut signature) = (None, None);
    for parameter in after_scheme(header)?.split(',') {
        let (name, value) = parameter.trim_matches(' ').split_once('=')?;
        let place = match name {
            "id" => &mut key_id,
            "timestamp" => &mut timestamp,
            "nonce" => &mut nonce,
            "digest" => &mut digest,
            "signature" => &mut signature,
            _ => return None,
        };
        if place.replace(value).is_some() {
            return None;
        }
    }
    Some(Signed {
        key_id: key_id.filter(|id| is_key_id(id))?,
        timestamp: seconds(timestamp?)?,
        nonce: nonce.filter(|nonce| is_nonce(nonce))?,
        digest: canonical::from_hex(digest?)?,
        signature: canonical::from_hex(signature?)?,
    })
}

fn is_key_id(text: &str) -> bool {
    (1..=MAX_KEY_ID).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn is_nonce(text: &str) -> bool {
    NONCE_LENGTH.contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

fn is_timestamp(timestamp: i64) -> bool {
    timestamp >= 0 && timestamp.to_string().len() <= MAX_TIMESTAMP_DIGITS
}

/// Only the one way in which a number is usually written: it is signed as text.
fn seconds(text: &str) -> Option<i64> {
    let digits =
        text.len() <= MAX_TIMESTAMP_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
    let usual = text == "0" || !text.starts_with('0');
    (digits && usual).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests;
