//! What it takes for a chat stream that broke to go on at another upstream, in
//! the same answer: exact knowledge of what the client has, and a second stream
//! that looks like the rest of the first. Opt-in; other streams pay nothing.

mod events;
mod rewriter;
mod transcript;

pub use rewriter::{Rewriter, Unfit};
pub use transcript::{MAX_TEXT, Obstacle, Partial, Transcript};

#[cfg(test)]
mod tests;
