//! Packs a body as gzip, in blocks that are stored as they are: what counts is
//! that a reader has to unpack it. Pure.

use bytes::Bytes;
use crc32fast::Hasher;

use super::script::Step;

/// No name, no time, unknown system (RFC 1952, section 2.3).
const HEAD: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// Longest stored block (RFC 1951, section 3.2.4).
const MAX_BLOCK_BYTES: usize = 65_535;

/// Packs all that is sent; what breaks off stays without its end.
pub(super) fn pack(steps: &mut [Step]) {
    let mut hasher = Hasher::new();
    let mut length = 0_u32;
    let mut begun = false;
    let last = steps.len().saturating_sub(1);
    for (index, step) in steps.iter_mut().enumerate() {
        let Step::Send(bytes, _) = step else {
            continue;
        };
        let mut packed = Vec::with_capacity(bytes.len() + 64);
        if !begun {
            packed.extend_from_slice(HEAD);
            begun = true;
        }
        hasher.update(bytes);
        length = length.wrapping_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        bytes
            .chunks(MAX_BLOCK_BYTES)
            .for_each(|block| store(&mut packed, block, false));
        if index == last {
            store(&mut packed, b"", true);
            packed.extend_from_slice(&hasher.clone().finalize().to_le_bytes());
            packed.extend_from_slice(&length.to_le_bytes());
        }
        *bytes = Bytes::from(packed);
    }
}

fn store(into: &mut Vec<u8>, block: &[u8], last: bool) {
    let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
    into.push(u8::from(last));
    into.extend_from_slice(&length.to_le_bytes());
    into.extend_from_slice(&(!length).to_le_bytes());
    into.extend_from_slice(block);
}

#[cfg(test)]
mod tests {
    use super::super::meter::Progress;
    use super::*;

    fn send(bytes: Vec<u8>) -> Step {
        Step::Send(Bytes::from(bytes), Progress::default())
    }

    fn packed(mut steps: Vec<Step>) -> Vec<u8> {
        pack(&mut steps);
        let sent = steps.iter().filter_map(|step| match step {
            Step::Send(bytes, _) => Some(bytes.to_vec()),
            _ => None,
        });
        sent.collect::<Vec<_>>().concat()
    }

    /// Reads stored blocks; false when the last one is missing.
    fn unpack(gzip: &[u8]) -> (Vec<u8>, bool) {
        let mut rest = gzip.strip_prefix(HEAD).unwrap();
        let mut body = Vec::new();
        while let [last, low, high, not_low, not_high, after @ ..] = rest {
            assert_eq!((!low, !high), (*not_low, *not_high));
            let length = usize::from(u16::from_le_bytes([*low, *high]));
            body.extend_from_slice(&after[..length]);
            rest = &after[length..];
            if *last == 1 {
                assert_eq!(rest[..4], crc32fast::hash(&body).to_le_bytes());
                assert_eq!(rest[4..], u32::try_from(body.len()).unwrap().to_le_bytes());
                return (body, true);
            }
        }
        (body, false)
    }

    #[test]
    fn what_was_sent_is_what_is_unpacked() {
        let long = vec![b'x'; 200_000];
        let steps = vec![send(b"one".to_vec()), Step::Begin, send(long.clone())];
        let (body, whole) = unpack(&packed(steps));
        assert!(whole && body == [b"one".to_vec(), long].concat());
    }

    #[test]
    fn what_breaks_off_has_no_end() {
        let (body, whole) = unpack(&packed(vec![send(b"one".to_vec()), Step::Cut]));
        assert!(!whole && body == b"one");
    }
}
