//! How much a caller may use, and whether this request still fits.
//!
//! A plan's limits become an [`allowance::Allowance`] with every reload; what was used and is held
//! is kept per [`subject::Subject`] in the [`book::Book`], which outlives reloads and, through the
//! database, processes. A request asks once for everything it may take ([`reservation::reserve`])
//! and settles once for what it took.

pub mod allowance;
pub mod amounts;
pub mod book;
pub mod clock;
pub mod counter;
pub mod counting;
pub mod estimate;
pub mod lease;
pub mod reservation;
pub mod store_redis;
pub mod subject;

#[cfg(test)]
mod tests;
