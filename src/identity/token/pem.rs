//! Reads public keys out of PEM text (RFC 7468) for one algorithm.
//!
//! Blocks are decoded here and given to OpenSSL as DER: its own PEM reader stops after one block,
//! and asks for a passphrase on the terminal when one is encrypted.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openssl::bn::{BigNum, BigNumContext};
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Public};
use openssl::x509::X509;

use super::Algorithm;
use super::key::{self, Key, KeyFault};
use super::keyset::{KeySetError, MAX_KEYS};

/// Reads every block, at least one.
///
/// # Errors
/// The first block that is no usable key.
pub fn read(bytes: &[u8], algorithm: Algorithm) -> Result<Vec<Key>, KeySetError> {
    let mut rest = std::str::from_utf8(bytes).map_err(|_| KeySetError::Malformed("not text"))?;
    let mut keys = Vec::new();
    while let Some((_, begun)) = rest.split_once("-----BEGIN ") {
        let block = keys.len() + 1;
        if block > MAX_KEYS {
            return Err(KeySetError::TooManyKeys);
        }
        let (label, body) = begun
            .split_once("-----")
            .ok_or(KeySetError::Malformed("a PEM block without a name"))?;
        let (body, after) = body
            .split_once(&format!("-----END {label}-----"))
            .ok_or(KeySetError::Malformed("a PEM block does not end"))?;
        let read = match label {
            "PUBLIC KEY" => PKey::public_key_from_der,
            "CERTIFICATE" => certified,
            _ if label.ends_with("PRIVATE KEY") => return Err(KeySetError::PrivateKey { block }),
            _ => return Err(KeySetError::OtherBlock { block }),
        };
        let key = decode(body)
            .and_then(|der| read(&der).map_err(|_| KeyFault::Unreadable))
            .and_then(|key| admitted(&key, algorithm))
            .map_err(|fault| KeySetError::Unusable { block, fault })?;
        keys.push(key);
        rest = after;
    }
    if keys.is_empty() {
        return Err(KeySetError::Empty);
    }
    Ok(keys)
}

fn decode(body: &str) -> Result<Vec<u8>, KeyFault> {
    let packed: Vec<u8> = body
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    STANDARD.decode(packed).map_err(|_| KeyFault::Unreadable)
}

fn certified(der: &[u8]) -> Result<PKey<Public>, ErrorStack> {
    X509::from_der(der)?.public_key()
}

/// Takes the key's numbers out and through the doors that every key passes.
fn admitted(key: &PKey<Public>, algorithm: Algorithm) -> Result<Key, KeyFault> {
    match (algorithm, key.id()) {
        (Algorithm::Rs256, Id::RSA) => {
            let (n, e) = rsa_numbers(key).map_err(|_| KeyFault::Unreadable)?;
            key::rsa(n, e)
        }
        (Algorithm::Es256, Id::EC) => {
            let point = p256_point(key).map_err(|_| KeyFault::Unreadable)?;
            let (x, y) = point.ok_or(KeyFault::OtherType)?;
            key::p256(&x, &y)
        }
        (Algorithm::EdDsa, Id::ED25519) => {
            let point = key.raw_public_key().map_err(|_| KeyFault::Unreadable)?;
            key::ed25519(&point)
        }
        _ => Err(KeyFault::OtherType),
    }
}

fn rsa_numbers(key: &PKey<Public>) -> Result<(BigNum, BigNum), ErrorStack> {
    let key = key.rsa()?;
    Ok((key.n().to_owned()?, key.e().to_owned()?))
}

/// `None` on another curve. The group's own parameters, if the file spells them out, are dropped:
/// who chooses the generator can sign for any point.
fn p256_point(key: &PKey<Public>) -> Result<Option<(BigNum, BigNum)>, ErrorStack> {
    let key = key.ec_key()?;
    if key.group().curve_name() != Some(Nid::X9_62_PRIME256V1) {
        return Ok(None);
    }
    let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
    let mut context = BigNumContext::new()?;
    let point = key.public_key();
    point.affine_coordinates(key.group(), &mut x, &mut y, &mut context)?;
    Ok(Some((x, y)))
}
