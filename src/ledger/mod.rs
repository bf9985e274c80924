//! Decides what use costs, remembers it until it is written down, and adds it up for reports. It
//! must not know how a request went, which limits hold, or where rows are stored.
//!
//! [`price`] finds what a token costs now ([`peak`] knows the hours), [`cost`] multiplies,
//! [`journal`] gathers rows between two writes, [`report`] groups them and [`format`] shows them for
//! a [`period`].

pub mod cost;
pub mod format;
pub mod journal;
mod peak;
pub mod period;
pub mod price;
pub mod report;

pub use cost::{Money, cost, saved};
pub use journal::{Counts, Entry, Hour, Journal, Key, Row};
pub use period::Period;
pub use price::{ModelPrices, PriceTable};
