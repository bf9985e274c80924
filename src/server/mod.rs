//! The wiring: settings become services, sockets become requests, signals become an orderly end.

pub mod accept;
pub mod assemble;
pub mod connection;
pub mod drain;
pub mod lifecycle;
pub mod reload;
pub mod resets;
pub mod tls;
pub mod upkeep;
