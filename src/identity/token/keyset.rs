//! The keys of one issuer for one algorithm: made whole from a file's or a secret's bytes, and
//! asked by the token's `kid`. It must not know tokens beyond that name, nor who fetched the bytes.

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use super::key::{self, Key, KeyFault};
use super::{Algorithm, TokenError, jwks, pem};

/// Most keys in one set, unusable ones counted. Issuers publish two or three.
pub const MAX_KEYS: usize = 100;
/// Largest JWKS or PEM file, in bytes. [`MAX_KEYS`] keys of 8192 bits fit; a hostile one costs some
/// hundred times its size for as long as it is read.
pub const MAX_SET_BYTES: usize = 256 * 1024;
/// RFC 7518 §3.2: at least as long as the hash.
const MIN_SECRET_BYTES: usize = 32;
/// Keys tried for a token that does not name one. It bounds what a worthless token can cost.
const MAX_TRIED: usize = 8;

/// Why bytes are no key set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// More than [`MAX_SET_BYTES`].
    #[error("the key set has more than {MAX_SET_BYTES} bytes")]
    TooLarge,
    /// More than [`MAX_KEYS`].
    #[error("the key set has more than {MAX_KEYS} keys")]
    TooManyKeys,
    /// Not what a key set is written as.
    #[error("the key set is malformed: {0}")]
    Malformed(&'static str),
    /// Two usable keys of the same name.
    #[error("two keys of the set have the same \"kid\"")]
    DuplicateKeyId,
    /// Every key was passed over.
    #[error("the set has no usable key: {skipped} were passed over, the first because {first}")]
    NoUsableKey {
        /// How many.
        skipped: usize,
        /// What was wrong with the first.
        first: KeyFault,
    },
    /// There is no key at all.
    #[error("the set has no key")]
    Empty,
    /// A key of a PEM file, counted from 1, cannot be used.
    #[error("PEM block {block}: the key cannot be used: {fault}")]
    Unusable {
        /// Its place in the file.
        block: usize,
        /// What is wrong with it.
        fault: KeyFault,
    },
    /// A PEM block, counted from 1, is neither `PUBLIC KEY` nor `CERTIFICATE`.
    #[error("PEM block {block} is neither a PUBLIC KEY nor a CERTIFICATE")]
    OtherBlock {
        /// Its place in the file.
        block: usize,
    },
    /// A PEM block, counted from 1, is a private key, which has no business here.
    #[error("PEM block {block} is a private key; give the public key, and keep this one away")]
    PrivateKey {
        /// Its place in the file.
        block: usize,
    },
    /// HS256 was asked of public keys.
    #[error("HS256 needs a shared secret; a public key is known to everybody")]
    NeedsSecret,
    /// The secret is shorter than the hash.
    #[error("the secret has less than {MIN_SECRET_BYTES} bytes")]
    ShortSecret,
    /// What is given as a secret is a key file.
    #[error("the secret is a PEM file; with HS256 whoever has that file can sign")]
    PemAsSecret,
}

/// One issuer's keys. Every key in it is bound to the set's algorithm.
pub struct KeySet {
    algorithm: Algorithm,
    keys: Vec<Named>,
    /// Whether keys may be asked by name.
    named: bool,
    skipped: usize,
    fingerprint: [u8; 32],
}

/// A key and its `kid`.
pub struct Named {
    pub id: Option<String>,
    pub key: Key,
}

impl KeySet {
    /// Reads a JWK Set (RFC 7517 §5). Keys of another type, curve, use or algorithm and keys that
    /// are incomplete, too weak or out of range are passed over, as that section asks; private
    /// members are ignored, and secrets (`oct`) are never taken from a set.
    ///
    /// # Errors
    /// [`KeySetError`]: also if no usable key is left, or two of the usable share a `kid`.
    pub fn from_jwks(bytes: &[u8], algorithm: Algorithm) -> Result<Self, KeySetError> {
        admit(bytes, algorithm)?;
        let read = jwks::read(bytes, algorithm)?;
        let mut ids = HashSet::new();
        for id in read.keys.iter().filter_map(|named| named.id.as_deref()) {
            if !ids.insert(id) {
                return Err(KeySetError::DuplicateKeyId);
            }
        }
        Self::make(algorithm, read.keys, true, read.skipped)
    }

    /// Reads one or several PEM blocks: public keys (`PUBLIC KEY`, RFC 7468 §13) and certificates,
    /// of which only the key counts, not the dates. Text between blocks is passed over. The keys
    /// have no names: a token's `kid` is ignored.
    ///
    /// # Errors
    /// [`KeySetError`]: here each key was put by hand, so one that cannot be used is an error.
    pub fn from_pem(bytes: &[u8], algorithm: Algorithm) -> Result<Self, KeySetError> {
        admit(bytes, algorithm)?;
        let keys = pem::read(bytes, algorithm)?;
        let keys = keys.into_iter().map(|key| Named { id: None, key });
        Self::make(algorithm, keys.collect(), false, 0)
    }

    /// Takes a secret for HS256, as it is: not decoded, not trimmed. The copy inside is overwritten
    /// when the set is dropped; `bytes` are the caller's to overwrite.
    ///
    /// # Errors
    /// If it has less than 32 bytes (RFC 7518 §3.2), or is a PEM file put in the wrong place.
    pub fn from_secret(bytes: &[u8]) -> Result<Self, KeySetError> {
        if bytes.trim_ascii_start().starts_with(b"-----BEGIN ") {
            return Err(KeySetError::PemAsSecret);
        }
        if bytes.len() < MIN_SECRET_BYTES {
            return Err(KeySetError::ShortSecret);
        }
        let key = key::secret(bytes).map_err(|_| KeySetError::Malformed("the secret"))?;
        let keys = vec![Named { id: None, key }];
        Self::make(Algorithm::Hs256, keys, false, 0)
    }

    fn make(
        algorithm: Algorithm,
        keys: Vec<Named>,
        named: bool,
        skipped: usize,
    ) -> Result<Self, KeySetError> {
        let fingerprint = fingerprint(algorithm, &keys)
            .ok_or(KeySetError::Malformed("a key cannot be written again"))?;
        Ok(KeySet {
            algorithm,
            keys,
            named,
            skipped,
            fingerprint,
        })
    }

    /// What all its keys are for.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// How many keys can be used; at least 1.
    pub fn usable(&self) -> usize {
        self.keys.len()
    }

    /// How many keys of a JWKS were passed over.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Whether both hold the same keys under the same names, in any order. A set that was fetched
    /// again unchanged need not empty the cache of verified tokens.
    pub fn same_keys(&self, other: &KeySet) -> bool {
        self.fingerprint == other.fingerprint
    }

    /// Finds the key and checks the signature.
    ///
    /// A named key is asked alone. Keys without a name are asked for any `kid` that no key has; a
    /// token without `kid` may be any key's.
    ///
    /// # Errors
    /// [`TokenError::UnknownKey`] if a JWKS lacks the token's `kid` and no nameless key fits;
    /// else [`TokenError::BadSignature`].
    pub(super) fn check(
        &self,
        key_id: Option<&str>,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), TokenError> {
        let Some(wanted) = key_id.filter(|_| self.named) else {
            let any = self.keys.iter().take(MAX_TRIED);
            return tried(any, message, signature).ok_or(TokenError::BadSignature);
        };
        let mut own = self.keys.iter();
        if let Some(named) = own.find(|named| named.id.as_deref() == Some(wanted)) {
            return tried([named], message, signature).ok_or(TokenError::BadSignature);
        }
        let nameless = self.keys.iter().filter(|named| named.id.is_none());
        tried(nameless.take(MAX_TRIED), message, signature).ok_or(TokenError::UnknownKey)
    }
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySet")
            .field("algorithm", &self.algorithm)
            .field("usable", &self.keys.len())
            .finish_non_exhaustive()
    }
}

fn admit(bytes: &[u8], algorithm: Algorithm) -> Result<(), KeySetError> {
    if algorithm == Algorithm::Hs256 {
        return Err(KeySetError::NeedsSecret);
    }
    if bytes.len() > MAX_SET_BYTES {
        return Err(KeySetError::TooLarge);
    }
    Ok(())
}

fn tried<'a>(
    keys: impl IntoIterator<Item = &'a Named>,
    message: &[u8],
    signature: &[u8],
) -> Option<()> {
    let mut keys = keys.into_iter();
    keys.any(|named| named.key.signed(message, signature))
        .then_some(())
}

fn fingerprint(algorithm: Algorithm, keys: &[Named]) -> Option<[u8; 32]> {
    let mut parts = Vec::with_capacity(keys.len());
    for named in keys {
        let mut hash = Sha256::new();
        hash.update(named.key.fingerprint()?);
        if let Some(id) = &named.id {
            hash.update(b"kid");
            hash.update(id);
        }
        parts.push(<[u8; 32]>::from(hash.finalize()));
    }
    parts.sort_unstable();
    let mut hash = Sha256::new_with_prefix(algorithm.as_str());
    for part in parts {
        hash.update(part);
    }
    Some(hash.finalize().into())
}

#[cfg(test)]
mod tests;
