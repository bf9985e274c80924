//! API keys: how one is made, taken apart, stored and recognised.
//!
//! A key reads `tg_<id>_<secret>`: an id that may be shown, and a secret of 256 random bits in
//! base 62 followed by a CRC-32 of everything before it, so that a typo is told from a wrong key
//! without looking anything up. Only the SHA-256 of the whole key is stored; against a secret of
//! that size a plain hash is enough, there is nothing to guess. Who wants the store to be useless
//! without a second secret takes an HMAC with a [`Pepper`].

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::config::secret::Secret;

/// Every key starts with this.
pub const PREFIX: &str = "tg_";
/// 256 bits in base 62.
const SECRET_LENGTH: usize = 43;
/// 32 bits in base 62.
const CHECKSUM_LENGTH: usize = 6;
/// Ids have 64 characters at most.
const MOST_KEY: usize = PREFIX.len() + 64 + 1 + SECRET_LENGTH + CHECKSUM_LENGTH;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Why a text is no key of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("a gateway key begins with \"tg_\"")]
    Foreign,
    #[error("the key is incomplete or has a typo")]
    Damaged,
}

/// A key that was just made. It exists nowhere else; what is kept is its hash.
pub struct NewKey {
    pub id: String,
    pub key: Secret,
    pub hash: [u8; 32],
}

/// The readable id inside a key.
///
/// # Errors
/// If the text is not shaped like a key or its checksum does not fit.
pub fn id(key: &str) -> Result<&str, KeyError> {
    let rest = key.strip_prefix(PREFIX).ok_or(KeyError::Foreign)?;
    if key.len() > MOST_KEY {
        return Err(KeyError::Damaged);
    }
    let (id, secret) = rest.rsplit_once('_').ok_or(KeyError::Damaged)?;
    if id.is_empty() || secret.len() != SECRET_LENGTH + CHECKSUM_LENGTH {
        return Err(KeyError::Damaged);
    }
    let (signed, checksum) = key
        .split_at_checked(key.len() - CHECKSUM_LENGTH)
        .ok_or(KeyError::Damaged)?;
    let expected = base62(
        u128::from(crc32fast::hash(signed.as_bytes())),
        CHECKSUM_LENGTH,
    );
    if checksum == expected {
        Ok(id)
    } else {
        Err(KeyError::Damaged)
    }
}

/// A secret of the gateway's that is mixed into the hashes of keys: who steals the configuration
/// alone cannot even try keys against it.
#[derive(Clone)]
pub struct Pepper(Hmac<Sha256>);

impl Pepper {
    /// HMAC takes keys of any length; the configuration asks for 32 bytes.
    pub fn new(secret: &Secret) -> Option<Self> {
        Hmac::new_from_slice(secret.expose().as_bytes())
            .ok()
            .map(Self)
    }

    /// What is stored of a key under this pepper.
    pub fn hash(&self, key: &str) -> [u8; 32] {
        let mac = self.0.clone().chain_update(key.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

/// What is stored of a key.
pub fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Makes a key from 32 random bytes under the readable `id`.
pub fn make(id: &str, random: &[u8; 32]) -> NewKey {
    let secret = base62_bytes(random, SECRET_LENGTH);
    let signed = format!("{PREFIX}{id}_{secret}");
    let checksum = base62(
        u128::from(crc32fast::hash(signed.as_bytes())),
        CHECKSUM_LENGTH,
    );
    let key = signed + &checksum;
    NewKey {
        id: id.to_owned(),
        hash: hash(&key),
        key: Secret::new(key),
    }
}

fn base62(mut number: u128, width: usize) -> String {
    let mut digits = vec![b'0'; width];
    for digit in digits.iter_mut().rev() {
        let index = usize::try_from(number % 62).unwrap_or(0);
        *digit = ALPHABET.get(index).copied().unwrap_or(b'0');
        number /= 62;
    }
    String::from_utf8_lossy(&digits).into_owned()
}

/// The bytes as one big number in base 62: long division, a digit a round.
fn base62_bytes(bytes: &[u8], width: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = vec![b'0'; width];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0u32;
        for byte in &mut number {
            let current = (remainder << 8) | u32::from(*byte);
            *byte = u8::try_from(current / 62).unwrap_or(0);
            remainder = current % 62;
        }
        let index = usize::try_from(remainder).unwrap_or(0);
        *digit = ALPHABET.get(index).copied().unwrap_or(b'0');
    }
    String::from_utf8_lossy(&digits).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_made_key_is_recognised_by_its_id(id_text in "[a-z0-9][a-z0-9_-]{0,30}", random in any::<[u8; 32]>()) {
            let made = make(&id_text, &random);
            prop_assert_eq!(id(made.key.expose()), Ok(id_text.as_str()));
            prop_assert_eq!(hash(made.key.expose()), made.hash);
        }

        #[test]
        fn one_wrong_character_is_a_typo_not_a_wrong_key(random in any::<[u8; 32]>(), at in 3usize..54) {
            let made = make("k1", &random);
            let mut text = made.key.expose().as_bytes().to_vec();
            text[at] = if text[at] == b'x' { b'y' } else { b'x' };
            prop_assert!(id(std::str::from_utf8(&text).unwrap()).is_err());
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = id(&text);
        }
    }

    #[test]
    fn different_bits_make_different_secrets() {
        let low = make("k", &[0; 32]);
        let mut one = [0; 32];
        one[31] = 1;
        assert_ne!(low.key.expose(), make("k", &one).key.expose());
        assert_eq!(make("k", &[255; 32]).key.expose().len(), 3 + 1 + 1 + 43 + 6);
    }
}
