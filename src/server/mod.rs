//! The wiring: settings become services, sockets become requests, signals become an orderly end.

pub mod accept;
pub mod assemble;
mod bookkeeping;
mod credit;
mod key_sets;
pub mod lifecycle;
pub mod reload;
mod renewal;
pub mod sources;
pub mod tls;
pub mod triggers;
pub mod upkeep;
pub mod watch;
