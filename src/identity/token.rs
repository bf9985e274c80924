//! Decides whether a signed token (JWT, RFC 7519, in the compact form of RFC 7515) was signed by
//! the issuer it is checked against and is in force now, for the stage that finds the caller.
//!
//! Signatures are checked through OpenSSL, which is compiled in for TLS anyway: a second crypto
//! stack would be one more to keep patched, and the `rsa` crate has an open advisory
//! (RUSTSEC-2023-0071). It must not know sockets, configuration files, tenants, Pingora or tokio:
//! whoever fetches keys hands their bytes in, and `now` is an argument.
//!
//! The token never chooses how it is checked (RFC 8725 §3.1): the algorithm comes from [`Rules`],
//! the keys from a [`KeySet`] made for that algorithm alone.

mod claims;
mod jwks;
mod key;
mod keyset;
mod object;
mod parse;
mod pem;

pub mod cache;
pub mod refresh;

pub use claims::{Claims, Rules};
pub use key::KeyFault;
pub use keyset::{KeySet, KeySetError, MAX_KEYS, MAX_SET_BYTES};
pub use parse::{DEFAULT_MAX_BYTES, Unverified, issuer_of, looks_like_token};

/// How a token is signed (RFC 7518 §3.1, RFC 8037 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// HMAC with SHA-256 and a secret that issuer and gateway share.
    Hs256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519. Ed448, the other curve of that name, is not taken.
    EdDsa,
}

impl Algorithm {
    /// The name in a token's `alg`, compared byte for byte.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Hs256 => "HS256",
            Algorithm::Rs256 => "RS256",
            Algorithm::Es256 => "ES256",
            Algorithm::EdDsa => "EdDSA",
        }
    }
}

/// Why a token is refused. No variant holds a value out of the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than the bytes allowed.
    #[error("the token is too long")]
    TooLarge,
    /// Not three parts of unpadded base64url, or a part is not what it has to be.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// `alg` is not the one configured for this issuer, or the keys are for another.
    #[error("the token is signed with another algorithm than this issuer uses")]
    WrongAlgorithm,
    /// `typ` says it is something else than a JWT or an access token (RFC 8725 §3.11).
    #[error("the token's \"typ\" is neither \"JWT\" nor \"at+jwt\"")]
    WrongType,
    /// The header has a member that would change how the token is checked.
    #[error("the token's header has \"{0}\", which is not accepted")]
    UnsupportedHeader(&'static str),
    /// The set has no key of the token's `kid`. A newer set may have it.
    #[error("the token is signed with a key that is not known")]
    UnknownKey,
    /// The signature does not fit.
    #[error("the token's signature is wrong")]
    BadSignature,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` or `iat` lies in the future.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// It would be valid for longer than this issuer's tokens may.
    #[error("the token is valid for longer than is accepted")]
    LifetimeTooLong,
    /// `iss` is another one.
    #[error("the token is from another issuer")]
    WrongIssuer,
    /// `aud` does not name us.
    #[error("the token is meant for another audience")]
    WrongAudience,
    /// A required claim is absent or null.
    #[error("the token lacks the claim \"{0}\"")]
    MissingClaim(String),
    /// A required claim has another value than the required one.
    #[error("the token's claim \"{0}\" does not have the required value")]
    WrongClaim(String),
    /// A claim of RFC 7519 is not of its type or out of range.
    #[error("the token's claim \"{0}\" cannot be read")]
    MalformedClaim(&'static str),
}

impl TokenError {
    /// All that [`as_str`](Self::as_str) can say.
    pub const REASONS: [&'static str; 15] = [
        "too_large",
        "malformed",
        "wrong_algorithm",
        "wrong_type",
        "unsupported_header",
        "unknown_key",
        "bad_signature",
        "expired",
        "not_yet_valid",
        "lifetime_too_long",
        "wrong_issuer",
        "wrong_audience",
        "missing_claim",
        "wrong_claim",
        "malformed_claim",
    ];

    /// The reason as a metric's label: one of [`REASONS`](Self::REASONS).
    pub fn as_str(&self) -> &'static str {
        match self {
            TokenError::TooLarge => "too_large",
            TokenError::Malformed(_) => "malformed",
            TokenError::WrongAlgorithm => "wrong_algorithm",
            TokenError::WrongType => "wrong_type",
            TokenError::UnsupportedHeader(_) => "unsupported_header",
            TokenError::UnknownKey => "unknown_key",
            TokenError::BadSignature => "bad_signature",
            TokenError::Expired => "expired",
            TokenError::NotYetValid => "not_yet_valid",
            TokenError::LifetimeTooLong => "lifetime_too_long",
            TokenError::WrongIssuer => "wrong_issuer",
            TokenError::WrongAudience => "wrong_audience",
            TokenError::MissingClaim(_) => "missing_claim",
            TokenError::WrongClaim(_) => "wrong_claim",
            TokenError::MalformedClaim(_) => "malformed_claim",
        }
    }

    /// Whether the signature was good. Only then may the caller be told the reason: it is the
    /// issuer's client, not somebody who tries tokens out.
    pub fn proven(&self) -> bool {
        match self {
            TokenError::TooLarge
            | TokenError::Malformed(_)
            | TokenError::WrongAlgorithm
            | TokenError::WrongType
            | TokenError::UnsupportedHeader(_)
            | TokenError::UnknownKey
            | TokenError::BadSignature => false,
            TokenError::Expired
            | TokenError::NotYetValid
            | TokenError::LifetimeTooLong
            | TokenError::WrongIssuer
            | TokenError::WrongAudience
            | TokenError::MissingClaim(_)
            | TokenError::WrongClaim(_)
            | TokenError::MalformedClaim(_) => true,
        }
    }
}

/// Checks `token`, of at most [`DEFAULT_MAX_BYTES`], against one issuer's rules and keys at `now`
/// (Unix seconds): the signature first, then the claims. Who has parsed the token already, to find
/// its issuer or with another limit, calls [`Unverified::verify`].
///
/// # Errors
/// The first [`TokenError`].
pub fn verify(token: &str, rules: &Rules, keys: &KeySet, now: i64) -> Result<Claims, TokenError> {
    Unverified::parse(token, DEFAULT_MAX_BYTES)?.verify(rules, keys, now)
}

#[cfg(test)]
mod tests;
