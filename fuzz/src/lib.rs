//! What must hold for every input of the gateway's parsers: one module for each fuzz target, with
//! a `check` that panics where the parser is wrong.
//!
//! The gateway's own tests run every `check` over the seeds (`tests/seeds.rs`), so what is written
//! here is compiled and holds for known inputs wherever the tests run, without a fuzzer.

pub mod answer;
pub mod api_key;
pub mod balance;
pub mod client_address;
pub mod head;
pub mod json;
pub mod key_set;
pub mod keys;
pub mod proxy_protocol;
pub mod scan;
pub mod signature;
pub mod sse;
pub mod token;

/// The first byte, for a target to choose by, and the rest.
fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first()
        .map_or((0, data), |(first, rest)| (*first, rest))
}

/// Cuts `data` into pieces of 1 to 16 bytes, by a sequence that `seed` begins.
fn pieces(data: &[u8], seed: u8) -> Vec<&[u8]> {
    let mut state = u32::from(seed) + 1;
    let (mut pieces, mut rest) = (Vec::new(), data);
    while !rest.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = 1 + (state >> 28) as usize;
        let (piece, after) = rest.split_at(length.min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}
