//! Reads the keys for one algorithm out of a JWK Set (RFC 7517, parameters by RFC 7518 §6 and
//! RFC 8037 §2). It decides which keys concern us; what makes a key weak is decided in `key`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::bn::BigNum;
use serde_json::{Map, Value};

use super::key::{self, KeyFault};
use super::keyset::{KeySetError, MAX_KEYS, Named};
use super::{Algorithm, object};

/// What a set held.
pub struct Read {
    pub keys: Vec<Named>,
    pub skipped: usize,
}

/// Reads a whole set.
///
/// # Errors
/// If it is no JWK Set, has too many keys, or none that can be used.
pub fn read(bytes: &[u8], algorithm: Algorithm) -> Result<Read, KeySetError> {
    let set =
        object::read(bytes).ok_or(KeySetError::Malformed("no JSON object with distinct names"))?;
    let Some(Value::Array(entries)) = set.get("keys") else {
        return Err(KeySetError::Malformed("it has no array \"keys\""));
    };
    if entries.len() > MAX_KEYS {
        return Err(KeySetError::TooManyKeys);
    }
    let mut keys = Vec::new();
    let mut faults = Vec::new();
    for entry in entries {
        match usable(entry, algorithm) {
            Ok(named) => keys.push(named),
            Err(fault) => faults.push(fault),
        }
    }
    let skipped = faults.len();
    match faults.first() {
        _ if !keys.is_empty() => Ok(Read { keys, skipped }),
        Some(first) => Err(KeySetError::NoUsableKey {
            skipped,
            first: *first,
        }),
        None => Err(KeySetError::Empty),
    }
}

fn usable(entry: &Value, algorithm: Algorithm) -> Result<Named, KeyFault> {
    let jwk = entry.as_object().ok_or(KeyFault::Unreadable)?;
    let id = match jwk.get("kid") {
        None => None,
        Some(Value::String(id)) => Some(id.clone()),
        Some(_) => return Err(KeyFault::Unreadable),
    };
    is_meant_for(jwk, algorithm)?;
    let key = match algorithm {
        Algorithm::Rs256 => key::rsa(number(jwk, "n")?, number(jwk, "e")?)?,
        Algorithm::Es256 => {
            let (x, y) = (coordinate(jwk, "x")?, coordinate(jwk, "y")?);
            key::p256(&x, &y)?
        }
        Algorithm::EdDsa => key::ed25519(&bytes(jwk, "x")?)?,
        Algorithm::Hs256 => return Err(KeyFault::OtherType),
    };
    Ok(Named { id, key })
}

/// Whether `kty`, `crv`, `use`, `key_ops` and `alg` fit; all but the first two may be left out.
fn is_meant_for(jwk: &Map<String, Value>, algorithm: Algorithm) -> Result<(), KeyFault> {
    let is = |name, wanted: &str| jwk.get(name).and_then(Value::as_str) == Some(wanted);
    let fits = match algorithm {
        Algorithm::Hs256 => false,
        Algorithm::Rs256 => is("kty", "RSA"),
        Algorithm::Es256 => is("kty", "EC") && is("crv", "P-256"),
        Algorithm::EdDsa => is("kty", "OKP") && is("crv", "Ed25519"),
    };
    if !fits {
        return Err(KeyFault::OtherType);
    }
    // RFC 9864 names the algorithm after its curve; the key is the same.
    let by_curve = algorithm == Algorithm::EdDsa && is("alg", "Ed25519");
    if jwk.contains_key("alg") && !is("alg", algorithm.as_str()) && !by_curve {
        return Err(KeyFault::OtherAlgorithm);
    }
    if jwk.contains_key("use") && !is("use", "sig") {
        return Err(KeyFault::OtherUse);
    }
    match jwk.get("key_ops") {
        None => Ok(()),
        Some(Value::Array(uses)) if uses.iter().any(|name| name == "verify") => Ok(()),
        Some(_) => Err(KeyFault::OtherUse),
    }
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Result<Vec<u8>, KeyFault> {
    let text = jwk.get(name).and_then(Value::as_str);
    text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok())
        .ok_or(KeyFault::Unreadable)
}

fn number(jwk: &Map<String, Value>, name: &str) -> Result<BigNum, KeyFault> {
    BigNum::from_slice(&bytes(jwk, name)?).map_err(|_| KeyFault::Unreadable)
}

/// RFC 7518 §6.2.1.2: of full length, leading zeros kept.
fn coordinate(jwk: &Map<String, Value>, name: &str) -> Result<BigNum, KeyFault> {
    let bytes = bytes(jwk, name)?;
    if bytes.len() != key::P256_BYTES {
        return Err(KeyFault::Unreadable);
    }
    BigNum::from_slice(&bytes).map_err(|_| KeyFault::Unreadable)
}
