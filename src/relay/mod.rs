//! What an upstream's answer says while it passes through.

pub mod answer;
pub mod envelope;
pub mod event;
mod pattern;
pub mod prelude;
mod reading;
pub mod resume;
pub mod sse;
mod strip;
pub mod usage;
pub mod withheld;
