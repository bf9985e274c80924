//! One key that checks signatures: from which numbers it may be made, and whether a signature is
//! its own. It must not know where keys come from nor how they are named.
//!
//! Every source of keys passes its numbers through the same three doors ([`rsa`], [`p256`],
//! [`ed25519`]), so a weak key is refused however it arrives.

use openssl::bn::{BigNum, BigNumRef};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::memcmp;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Private, Public};
use openssl::rsa::Rsa;
use openssl::sign::{Signer, Verifier};
use sha2::{Digest, Sha256};

/// RFC 7518 §3.3 asks for 2048 bits; beyond 8192 one check costs more than a request should.
const RSA_BITS: std::ops::RangeInclusive<i32> = 2048..=8192;
/// Real exponents are 65537 or 3; a check costs in proportion to this size.
const RSA_MAX_EXPONENT_BITS: i32 = 64;
/// Half of a P-256 signature (RFC 7518 §3.4), and a coordinate (§6.2.1.2).
pub const P256_BYTES: usize = 32;
/// RFC 8032 §5.1.5.
pub const ED25519_BYTES: usize = 32;

/// Why a key cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// Its type or curve belongs to another algorithm.
    #[error("it is of another type or curve than the configured algorithm uses")]
    OtherType,
    /// `alg` names another algorithm.
    #[error("its \"alg\" is another algorithm than the configured one")]
    OtherAlgorithm,
    /// `use` or `key_ops` say it is not for checking signatures.
    #[error("its \"use\" or \"key_ops\" is not for checking signatures")]
    OtherUse,
    /// A member is missing or not of its type, or the key cannot be decoded.
    #[error("it is incomplete or cannot be decoded")]
    Unreadable,
    /// The modulus has less than 2048 or more than 8192 bits, or is even.
    #[error("its RSA modulus is not an odd number of 2048 to 8192 bits")]
    Modulus,
    /// The exponent is even, 1, or has more than 64 bits.
    #[error("its RSA exponent is not an odd number from 3 to 64 bits")]
    Exponent,
    /// The coordinates are no point of P-256.
    #[error("its point is not on the curve P-256")]
    OffCurve,
    /// Anybody can sign for such a point.
    #[error("its Ed25519 point is of small order, which anybody can sign for")]
    SmallOrder,
}

/// A key bound to its algorithm: one that was made for another cannot be asked.
pub enum Key {
    /// OpenSSL holds the only copy of the secret and overwrites it when it is freed.
    Hs256(PKey<Private>),
    Rs256(PKey<Public>),
    Es256(PKey<Public>),
    EdDsa(PKey<Public>),
}

impl Key {
    /// Whether `signature` is this key's over `message`. What OpenSSL cannot make sense of is not.
    pub fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Key::Hs256(secret) => hmac(secret, message)
                .is_ok_and(|own| own.len() == signature.len() && memcmp::eq(&own, signature)),
            Key::Rs256(key) => Verifier::new(MessageDigest::sha256(), key)
                .and_then(|mut verifier| verifier.verify_oneshot(signature, message))
                .unwrap_or(false),
            Key::Es256(key) => es256(key, message, signature).unwrap_or(false),
            Key::EdDsa(key) => Verifier::new_without_digest(key)
                .and_then(|mut verifier| verifier.verify_oneshot(signature, message))
                .unwrap_or(false),
        }
    }

    /// Tells keys apart without giving a secret away.
    pub fn fingerprint(&self) -> Option<[u8; 32]> {
        let bytes = match self {
            Key::Hs256(secret) => hmac(secret, b"fingerprint of this key").ok()?,
            Key::Rs256(key) | Key::Es256(key) | Key::EdDsa(key) => key.public_key_to_der().ok()?,
        };
        Some(Sha256::digest(bytes).into())
    }
}

/// A secret for HS256. Its length is the caller's to judge.
pub fn secret(bytes: &[u8]) -> Result<Key, KeyFault> {
    let key = PKey::hmac(bytes).map_err(|_| KeyFault::Unreadable)?;
    Ok(Key::Hs256(key))
}

/// An RSA key for RS256 from modulus and exponent.
pub fn rsa(modulus: BigNum, exponent: BigNum) -> Result<Key, KeyFault> {
    if !RSA_BITS.contains(&modulus.num_bits()) || !modulus.is_bit_set(0) {
        return Err(KeyFault::Modulus);
    }
    if !(2..=RSA_MAX_EXPONENT_BITS).contains(&exponent.num_bits()) || !exponent.is_bit_set(0) {
        return Err(KeyFault::Exponent);
    }
    let key = Rsa::from_public_components(modulus, exponent).and_then(PKey::from_rsa);
    key.map(Key::Rs256).map_err(|_| KeyFault::Unreadable)
}

/// A key for ES256 from the coordinates of its point.
pub fn p256(x: &BigNumRef, y: &BigNumRef) -> Result<Key, KeyFault> {
    // OpenSSL refuses coordinates off the curve or not below the prime; its cofactor is 1,
    // so every point on it will do.
    let key = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)
        .and_then(|group| EcKey::from_public_key_affine_coordinates(&group, x, y))
        .and_then(PKey::from_ec_key);
    key.map(Key::Es256).map_err(|_| KeyFault::OffCurve)
}

/// A key for EdDSA from its 32 bytes.
pub fn ed25519(point: &[u8]) -> Result<Key, KeyFault> {
    let point: [u8; ED25519_BYTES] = point.try_into().map_err(|_| KeyFault::Unreadable)?;
    if is_small_order(point) {
        return Err(KeyFault::SmallOrder);
    }
    let key = PKey::public_key_from_raw_bytes(&point, Id::ED25519);
    key.map(Key::EdDsa).map_err(|_| KeyFault::Unreadable)
}

fn hmac(secret: &PKey<Private>, message: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    Signer::new(MessageDigest::sha256(), secret)?.sign_oneshot_to_vec(message)
}

/// RFC 7518 §3.4: the two numbers side by side; OpenSSL wants them in DER. With (r, s) the pair
/// (r, n-s) fits too, as JOSE leaves it: a signature is no name for a token.
fn es256(key: &PKey<Public>, message: &[u8], signature: &[u8]) -> Result<bool, ErrorStack> {
    let Some((r, s)) = signature.split_at_checked(P256_BYTES) else {
        return Ok(false);
    };
    if s.len() != P256_BYTES {
        return Ok(false);
    }
    let (r, s) = (BigNum::from_slice(r)?, BigNum::from_slice(s)?);
    let der = EcdsaSig::from_private_components(r, s)?.to_der()?;
    Verifier::new(MessageDigest::sha256(), key)?.verify_oneshot(&der, message)
}

/// Whether eight times the point is the neutral element. The y-coordinates of those points,
/// lowest byte first, in all their spellings; the sign of x is the highest bit.
fn is_small_order(mut point: [u8; ED25519_BYTES]) -> bool {
    const fn near_the_prime(lowest: u8) -> [u8; 32] {
        let mut y = [0xff; 32];
        let [first, .., last] = &mut y;
        *first = lowest;
        *last = 0x7f;
        y
    }
    const fn small(y: u8) -> [u8; 32] {
        let mut bytes = [0; 32];
        let [first, ..] = &mut bytes;
        *first = y;
        bytes
    }
    const SMALL: [[u8; 32]; 7] = [
        small(0),
        small(1),
        // The order 8: both roots of d·y⁴ + 2y² = 1.
        [
            0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef,
            0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88,
            0x6d, 0x53, 0xfc, 0x05,
        ],
        [
            0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10,
            0x67, 0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77,
            0x92, 0xac, 0x03, 0x7a,
        ],
        near_the_prime(0xec),
        near_the_prime(0xed),
        near_the_prime(0xee),
    ];
    let [.., last] = &mut point;
    *last &= 0x7f;
    SMALL.contains(&point)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(decimal: &str) -> BigNum {
        BigNum::from_dec_str(decimal).unwrap()
    }

    fn modulus(bits: i32) -> BigNum {
        let mut modulus = BigNum::new().unwrap();
        modulus.set_bit(bits - 1).unwrap();
        modulus.set_bit(0).unwrap();
        modulus
    }

    #[test]
    fn rsa_keys_have_a_sound_size_and_exponent() {
        for bits in [2048, 3072, 8192] {
            assert!(rsa(modulus(bits), number("65537")).is_ok());
        }
        for bits in [1, 1024, 2047, 8193, 100_000] {
            let refused = rsa(modulus(bits), number("65537")).err();
            assert_eq!(refused, Some(KeyFault::Modulus), "{bits}");
        }
        let mut even = modulus(2048);
        even.clear_bit(0).unwrap();
        assert_eq!(rsa(even, number("3")).err(), Some(KeyFault::Modulus));
        assert!(rsa(modulus(2048), number("3")).is_ok());
        for exponent in ["0", "1", "2", "65536", "18446744073709551617"] {
            let refused = rsa(modulus(2048), number(exponent)).err();
            assert_eq!(refused, Some(KeyFault::Exponent), "{exponent}");
        }
    }

    #[test]
    fn a_point_off_the_curve_is_refused() {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = EcKey::generate(&group).unwrap();
        let (mut x, mut y) = (BigNum::new().unwrap(), BigNum::new().unwrap());
        let mut context = openssl::bn::BigNumContext::new().unwrap();
        key.public_key()
            .affine_coordinates(&group, &mut x, &mut y, &mut context)
            .unwrap();
        assert!(p256(&x, &y).is_ok());
        assert_eq!(p256(&y, &x).err(), Some(KeyFault::OffCurve));
        assert_eq!(
            p256(&number("0"), &number("0")).err(),
            Some(KeyFault::OffCurve)
        );
        // The same point with x not reduced.
        let (mut prime, mut a, mut b) = (number("0"), number("0"), number("0"));
        group
            .components_gfp(&mut prime, &mut a, &mut b, &mut context)
            .unwrap();
        let mut larger = BigNum::new().unwrap();
        larger.checked_add(&x, &prime).unwrap();
        assert_eq!(p256(&larger, &y).err(), Some(KeyFault::OffCurve));
    }

    #[test]
    fn a_point_that_anybody_can_sign_for_is_refused() {
        for (first, last) in [(0, 0), (1, 0), (0, 0x80), (1, 0x80)] {
            let mut point = [0; 32];
            point[0] = first;
            point[31] = last;
            assert_eq!(ed25519(&point).err(), Some(KeyFault::SmallOrder));
        }
        let mut minus_one = [0xff; 32];
        minus_one[0] = 0xec;
        assert_eq!(ed25519(&minus_one).err(), Some(KeyFault::SmallOrder));
        assert_eq!(ed25519(&[7; 31]).err(), Some(KeyFault::Unreadable));
        assert_eq!(ed25519(&[7; 33]).err(), Some(KeyFault::Unreadable));
        let own = PKey::generate_ed25519().unwrap().raw_public_key().unwrap();
        assert!(ed25519(&own).is_ok());
    }

    #[test]
    fn a_failed_check_leaves_no_error_behind_for_the_next_user_of_the_thread() {
        let own = PKey::generate_ed25519().unwrap().raw_public_key().unwrap();
        let keys = [
            secret(&[1; 32]).unwrap(),
            rsa(modulus(2048), number("65537")).unwrap(),
            ed25519(&own).unwrap(),
        ];
        for key in keys {
            for length in [0, 1, 32, 64, 256] {
                assert!(!key.signed(b"message", &vec![0xff; length]));
            }
        }
        assert!(ErrorStack::get().errors().is_empty());
    }
}
