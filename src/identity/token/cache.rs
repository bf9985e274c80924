//! Remembers what verified tokens gave, so that a client's second request costs a hash instead of
//! a signature check. It must not know what the values are.
//!
//! A token is known by the SHA-256 of its whole text, signature included. A value is given back
//! until it expires and only under the generation it was put under. Tokens that failed are not
//! kept: anybody can make those.

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

/// Tokens remembered unless the configuration says otherwise. With values behind a pointer 1 MiB.
pub const DEFAULT_CAPACITY: usize = 16 * 1024;
/// Places among which a digest's entry may lie.
const WAYS: usize = 8;
/// So many locks at least, as each guards one row.
const MIN_ROWS: usize = 16;

/// The name under which a token's value is kept.
pub fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Values of verified tokens. Rows of eight places, each row under its own lock of one byte, so
/// that requests meet only if their digests fall into one row. A full row loses what is expired or
/// of another generation, then what was asked for longest ago.
pub struct Verified<V> {
    rows: Box<[Mutex<Vec<Entry<V>>>]>,
}

struct Entry<V> {
    digest: [u8; 32],
    generation: u64,
    /// Unix seconds, the first at which it is void.
    expires: i64,
    value: V,
}

impl<V: Clone> Verified<V> {
    /// Room for `capacity` tokens, rounded down to a multiple of 8 and up to 128. Memory is taken
    /// as tokens come, and never for more.
    pub fn new(capacity: usize) -> Self {
        let rows = (capacity / WAYS).max(MIN_ROWS);
        Verified {
            rows: (0..rows).map(|_| Mutex::new(Vec::new())).collect(),
        }
    }

    /// Most tokens it will ever hold.
    pub fn capacity(&self) -> usize {
        self.rows.len() * WAYS
    }

    /// The value of the token with this digest, if it was put under the same `generation` and has
    /// not expired at `now` (Unix seconds).
    pub fn get(&self, digest: &[u8; 32], generation: u64, now: i64) -> Option<V> {
        let mut row = self.row(digest)?.lock();
        let place = row.iter().position(|entry| entry.digest == *digest)?;
        let entry = row.get(place)?;
        if entry.generation != generation || entry.expires <= now {
            return None;
        }
        let value = entry.value.clone();
        // The last place is the one asked for last.
        row.get_mut(place..)?.rotate_left(1);
        Some(value)
    }

    /// Keeps `value` until `expires` (Unix seconds; see [`Claims::expires`](super::Claims)).
    ///
    /// `generation` is the number of all that the check depended on, keys and rules; take it
    /// before checking, so that a check that began under old keys is not kept under new ones.
    pub fn put(&self, digest: [u8; 32], generation: u64, now: i64, expires: i64, value: V) {
        if expires <= now {
            return;
        }
        let Some(row) = self.row(&digest) else {
            return;
        };
        let mut row = row.lock();
        let same = row.iter().position(|entry| entry.digest == digest);
        let place = same.or_else(|| {
            let void = |entry: &Entry<V>| entry.expires <= now || entry.generation != generation;
            let full = row.len() >= WAYS;
            full.then(|| row.iter().position(void).unwrap_or(0))
        });
        if let Some(place) = place {
            row.remove(place);
        }
        row.push(Entry {
            digest,
            generation,
            expires,
            value,
        });
    }

    /// A digest is uniform already, so its first bytes choose the row.
    fn row(&self, digest: &[u8; 32]) -> Option<&Mutex<Vec<Entry<V>>>> {
        let (first, _) = digest.split_first_chunk::<8>()?;
        let rows = u64::try_from(self.rows.len()).ok()?;
        let row = u64::from_le_bytes(*first).checked_rem(rows)?;
        self.rows.get(usize::try_from(row).ok()?)
    }
}

impl<V> std::fmt::Debug for Verified<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verified")
            .field("rows", &self.rows.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn held<V>(cache: &Verified<V>) -> usize {
        cache.rows.iter().map(|row| row.lock().len()).sum()
    }

    /// A digest in the first row of a small cache.
    fn in_first_row(number: u8) -> [u8; 32] {
        let mut digest = [0; 32];
        digest[31] = number;
        digest
    }

    #[test]
    fn a_value_is_given_back_until_it_expires_and_in_its_generation_only() {
        let cache = Verified::new(DEFAULT_CAPACITY);
        let token = digest("a");
        cache.put(token, 1, 0, 10, "value");
        assert_eq!(cache.get(&token, 1, 9), Some("value"));
        assert_eq!(cache.get(&token, 1, 10), None);
        assert_eq!(cache.get(&token, 2, 9), None);
        assert_eq!(cache.get(&digest("b"), 1, 9), None);
        cache.put(digest("c"), 1, 10, 10, "void");
        assert_eq!(held(&cache), 1);
    }

    #[test]
    fn a_full_row_loses_the_void_first_and_then_what_was_asked_for_longest_ago() {
        let cache = Verified::new(0);
        for number in 0..8 {
            cache.put(
                in_first_row(number),
                1,
                0,
                if number == 5 { 10 } else { 100 },
                number,
            );
        }
        cache.put(in_first_row(8), 1, 20, 100, 8);
        assert_eq!(held(&cache), 8);
        assert_eq!(cache.get(&in_first_row(5), 1, 9), None);
        assert_eq!(cache.get(&in_first_row(0), 1, 20), Some(0));
        cache.put(in_first_row(9), 1, 20, 100, 9);
        assert_eq!(cache.get(&in_first_row(0), 1, 20), Some(0));
        assert_eq!(cache.get(&in_first_row(1), 1, 20), None);
        cache.put(in_first_row(10), 2, 20, 100, 10);
        assert_eq!(held(&cache), 8);
        assert_eq!(cache.get(&in_first_row(10), 2, 20), Some(10));
    }

    #[test]
    fn threads_share_it_without_mixing_values_up() {
        let cache = Verified::new(256);
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let cache = &cache;
                scope.spawn(move || {
                    for round in 0..5_000u32 {
                        let number = (round * 7 + thread) % 400;
                        let token = digest(&number.to_string());
                        match cache.get(&token, 1, 0) {
                            Some(value) => assert_eq!(value, number),
                            None => cache.put(token, 1, 0, 10, number),
                        }
                    }
                });
            }
        });
        assert!(held(&cache) <= cache.capacity());
    }

    proptest! {
        #[test]
        fn it_never_gives_what_is_void_or_foreign_nor_holds_too_much(
            capacity in 0usize..200,
            steps in proptest::collection::vec((0u8..40, 0u64..3, 0i64..50, 0i64..50, any::<bool>()), 0..400),
        ) {
            let cache = Verified::new(capacity);
            prop_assert!(cache.capacity() <= capacity.max(128));
            let mut last = std::collections::HashMap::new();
            for (name, generation, now, expires, put) in steps {
                // Few names in one row, so that they push each other out.
                let digest = in_first_row(name);
                if put {
                    cache.put(digest, generation, now, expires, (name, generation, expires));
                    if now < expires {
                        last.insert(name, (name, generation, expires));
                        prop_assert_eq!(cache.get(&digest, generation, now), Some((name, generation, expires)));
                    }
                } else if let Some(value) = cache.get(&digest, generation, now) {
                    prop_assert_eq!(Some(&value), last.get(&name));
                    prop_assert_eq!(value.1, generation);
                    prop_assert!(now < value.2);
                }
                prop_assert!(held(&cache) <= cache.capacity());
            }
        }
    }
}
