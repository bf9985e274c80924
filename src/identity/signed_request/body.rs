//! Is the body the one that was signed? Answered while it passes, without holding it.
//!
//! Knows nothing of signatures: it is given the digest that a good signature vouches for.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// SHA-256 of a whole body. An empty body has one too: that of no bytes.
pub fn digest(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}

/// Checks a body that comes in pieces.
///
/// What was let through before [`BodyDigest::matches`] said yes cannot be called back: keep at
/// least the last piece until then, so that an altered body never arrives whole.
#[derive(Clone)]
pub struct BodyDigest {
    expected: [u8; 32],
    seen: Sha256,
}

impl BodyDigest {
    /// `expected` is the digest in the signature. No bytes have been seen.
    pub fn new(expected: [u8; 32]) -> Self {
        Self {
            expected,
            seen: Sha256::new(),
        }
    }

    /// Takes the next piece, of any size.
    pub fn update(&mut self, piece: &[u8]) {
        self.seen.update(piece);
    }

    /// The body is complete: is it the one that was signed?
    ///
    /// The caller has sent both sides of the comparison, so it need not take constant time.
    #[must_use]
    pub fn matches(self) -> bool {
        <[u8; 32]>::from(self.seen.finalize()) == self.expected
    }
}

/// The same for a body that is there as a whole.
pub fn matches(expected: [u8; 32], body: &[u8]) -> bool {
    digest(body) == expected
}

/// The end of a signed upload, which waits until the digest of all of it is known: an altered one
/// never arrives whole.
pub struct HeldBack {
    digest: Option<BodyDigest>,
    last: Bytes,
}

impl HeldBack {
    pub fn new(expected: [u8; 32]) -> Self {
        Self {
            digest: Some(BodyDigest::new(expected)),
            last: Bytes::new(),
        }
    }

    /// What may go on now that `piece` has come.
    pub fn exchange(&mut self, piece: Bytes) -> Bytes {
        if let Some(digest) = &mut self.digest {
            digest.update(&piece);
        }
        if piece.is_empty() {
            return Bytes::new();
        }
        std::mem::replace(&mut self.last, piece)
    }

    /// The rest, if the body is the one that was signed. To be asked once.
    pub fn finish(&mut self) -> Option<Bytes> {
        let genuine = self.digest.take().is_some_and(BodyDigest::matches);
        genuine.then(|| std::mem::take(&mut self.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_body_has_the_digest_of_nothing() {
        let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex::encode(digest(b"")), nothing);
        assert!(BodyDigest::new(digest(b"")).matches());
        assert!(!BodyDigest::new(digest(b" ")).matches());
    }

    proptest! {
        #[test]
        fn pieces_make_the_digest_of_the_whole(body: Vec<u8>, size in 1usize..64) {
            let mut check = BodyDigest::new(digest(&body));
            body.chunks(size).for_each(|piece| check.update(piece));
            prop_assert!(check.matches());
            prop_assert!(matches(digest(&body), &body));
        }

        #[test]
        fn any_altered_byte_is_noticed(body in prop::collection::vec(any::<u8>(), 1..200), at: prop::sample::Index, by in 1u8..) {
            let mut altered = body.clone();
            altered[at.index(body.len())] ^= by;
            let mut check = BodyDigest::new(digest(&body));
            check.update(&altered);
            prop_assert!(!check.matches());
            prop_assert!(!matches(digest(&body), &altered));
        }

        #[test]
        fn a_missing_or_added_byte_is_noticed(body in prop::collection::vec(any::<u8>(), 1..200)) {
            prop_assert!(!matches(digest(&body), &body[1..]));
            prop_assert!(!matches(digest(&body[1..]), &body));
        }
    }
}
