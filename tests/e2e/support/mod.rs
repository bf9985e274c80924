//! The stage on which the tests play: an [`Emulator`] for the provider, a [`Config`] that leads to
//! it, a [`Gateway`] (the real binary as a child process), and clients that can misbehave
//! ([`Wire`], [`h2`]). Between gateway and provider can stand a [`relay`], in the place of the
//! provider somebody [`hostile`], and in front of it all many clients at once ([`load`]).
//!
//! ```ignore
//! let emulator = Emulator::quick();
//! let gateway = Gateway::start(Config::for_emulator(&emulator));
//! let answer = gateway.post("/v1/chat/completions", &chat("hello"));
//! assert_eq!(answer.status, 200);
//! assert_eq!(emulator.calls().len(), 1);
//! ```
//!
//! Everything stops when it is dropped. Nothing sleeps for luck: [`eventually`] waits for what must
//! come true and fails loudly when it does not.

pub mod authority;
pub mod books;
mod config;
pub mod crowd;
mod emulator;
pub mod front;
mod gateway;
pub mod h2;
pub mod hostile;
pub mod load;
#[path = "../../redis/server.rs"]
mod redis;
pub mod relay;
mod request;
pub mod resolver;
pub mod signing;
mod source;
pub mod tls;
pub mod tokens;
mod wire;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub use config::{ADMIN_TOKEN, Config, key, tenant};
pub use emulator::{Emulator, header_of};
pub use gateway::{Gateway, free_address, process_exists, tidegate};
pub use redis::Server as Redis;
pub use request::Request;
pub use source::{ConfigSource, Says};
pub use wire::{Answer, Ending, Piece, Stream, Wire};

/// Longest wait for something that should come at once, on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);

/// Asks `look` until it has an answer; panics with `what` after `deadline`.
pub fn eventually<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            began.elapsed() < deadline,
            "not within {deadline:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A chat request for `deepseek-flash`, not streamed. `text` may order a fault, see
/// [`tidegate::emulator`].
pub fn chat(text: &str) -> Value {
    json!({"model": "deepseek-flash", "messages": [{"role": "user", "content": text}]})
}

/// The same, streamed.
pub fn chat_stream(text: &str) -> Value {
    with(chat(text), "stream", json!(true))
}

/// An Anthropic request for `deepseek-flash`, not streamed.
pub fn message(text: &str) -> Value {
    json!({"model": "deepseek-flash", "max_tokens": 1000, "messages": [{"role": "user", "content": text}]})
}

/// The same, streamed.
pub fn message_stream(text: &str) -> Value {
    with(message(text), "stream", json!(true))
}

/// A Responses request for `deepseek-flash`, not streamed.
pub fn response(text: &str) -> Value {
    json!({"model": "deepseek-flash", "input": text})
}

/// `body` with the top-level field `name` set.
pub fn with(mut body: Value, name: &str, value: Value) -> Value {
    body[name] = value;
    body
}

/// The hash by which the emulator's journal tells bodies apart: FNV-1a, 64 bits.
pub fn fnv(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}
