//! What goes back to the client, and what is seen of it on its way.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use crate::relay::answer::AnswerScanner;
use crate::relay::prelude::Prelude;
use crate::relay::resume::{Rewriter, Transcript};
use crate::relay::sse;
use crate::relay::withheld::Withheld;

/// What comes back.
#[derive(Default)]
pub struct Answer {
    /// Status sent to the client; 0 until an answer, an upstream's or ours, is decided.
    pub status: u16,
    /// The client has a head, and after it nothing but signs of life: whatever comes, comes under
    /// this head, and errors as events.
    pub opened: bool,
    /// More than that is on its way to the client: no other upstream can take over unnoticed.
    pub begun: bool,
    pub watch: Watch,
    /// What of a stream waits for its first content.
    pub prelude: Prelude,
    /// What of an answer in one piece waits for its end.
    pub withheld: Withheld,
    /// The body's last piece, if the upstream ended it with trailers.
    pub last: Option<Bytes>,
    /// There if the stream may be gone on with elsewhere.
    pub resumption: Option<Box<Resumption>>,
    pub first_content: Option<Instant>,
    pub last_piece: Option<Instant>,
    pub gaps: Option<prometheus::Histogram>,
    pub upstream_trace: Option<String>,
    /// The proper end was seen and passed on.
    pub complete: bool,
    pub interrupted: bool,
    /// The configured answer goes out in place of a model's.
    pub degraded: bool,
}

/// What it takes to go on with a stream elsewhere.
pub struct Resumption {
    /// As it was sent first.
    pub question: Bytes,
    /// What the client has.
    pub transcript: Transcript,
    /// Makes the rest look like one with what came before.
    pub rewriter: Option<Rewriter>,
    /// Written down for the client, and not sent since it came with the break.
    pub owed: Bytes,
    /// Given out and perhaps not passed on yet, the oldest first.
    pub unsure: VecDeque<Bytes>,
    /// Bytes given out in all, over all attempts.
    pub given: usize,
    /// Of these, what came from the attempts before the one under way, or the last.
    pub before: usize,
    /// How often the stream was gone on with.
    pub made: u32,
    /// Completion tokens of what the client has that are on a broken attempt's bill.
    pub billed: u64,
}

impl Resumption {
    /// `given` bytes were given out before, signs of life.
    pub fn new(question: Bytes, given: usize) -> Self {
        Self {
            question,
            transcript: Transcript::new(),
            rewriter: None,
            owed: Bytes::new(),
            unsure: VecDeque::new(),
            given,
            before: 0,
            made: 0,
            billed: 0,
        }
    }
}

/// Who looks at the answer's bytes.
#[derive(Default)]
pub enum Watch {
    /// Nobody: files, balance.
    #[default]
    Nothing,
    Stream(Box<sse::Scanner>),
    Whole(Box<AnswerScanner>),
    /// An upstream's error, gathered to be told in our words.
    Error {
        status: u16,
        gathered: Vec<u8>,
    },
}
