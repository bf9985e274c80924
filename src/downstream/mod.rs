//! The client's side of a request: its connection, the clocks and the abuse that belong to it, and
//! the count of what is in flight. Knows nothing of tenants, upstreams or answers.

pub mod connection;
pub mod in_flight;
pub mod proof;
pub mod proxy_protocol;
mod resets;
mod transport;
