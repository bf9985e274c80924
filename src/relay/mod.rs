//! What an upstream's answer says while it passes through.

pub mod answer;
pub mod envelope;
pub mod event;
mod pattern;
mod reading;
pub mod sse;
mod strip;
pub mod usage;
pub mod withheld;
