//! What stands behind the gateway: accounts that pay, endpoints that answer.
//!
//! [`balance`] decides, from plain numbers; [`account`] and [`endpoint`] hold what is counted and
//! outlives a reload; [`pool`] joins both with one configuration; [`discovery`] and [`probe`] are
//! the edges that find addresses and ask after health; [`enveloped`] reaches upstreams that wrap their
//! answers. Nothing here knows tenants or bodies.

pub mod account;
pub mod balance;
pub mod discovery;
pub mod endpoint;
pub mod enveloped;
pub mod fair_queue;
pub mod governor;
pub mod health;
pub mod peer;
pub mod pool;
pub mod probe;
pub mod retry;
pub mod signing;
