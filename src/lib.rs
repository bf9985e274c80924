//! tidegate: an edge proxy between a company's services and the DeepSeek API.
//!
//! The map, in the order of a request's life. `ARCHITECTURE.md` walks along it.
//!
//! - [`server`] takes connections in and starts, reloads and ends the process;
//! - [`downstream`] is the client's connection and what it may do to us;
//! - [`gateway`] is the corridor that every request walks, hook by hook; [`context`] is its story;
//! - [`request`] knows heads, bodies, surfaces and how a "no" is worded;
//! - [`identity`] turns a credential into a tenant;
//! - [`admission`] keeps counts of what callers use;
//! - [`routing`] turns a model name into what serves it;
//! - [`upstream`] knows accounts and endpoints, their load and their health;
//! - [`relay`] watches the answer pass;
//! - [`ledger`] knows what it cost and adds it up; [`database`] keeps that, and counts, on disk;
//! - [`telemetry`] and [`admin`] show what goes on;
//! - [`config`] is what the operator said, [`snapshot`] the same made ready for requests; [`fetch`]
//!   brings what is kept elsewhere;
//! - [`emulator`] stands in for the DeepSeek API; [`cli`] is the command line.

#![cfg_attr(
    test,
    allow(
        clippy::string_slice,
        clippy::unreachable,
        reason = "tests may stop loudly; clippy.toml exempts them from the other lints of this kind"
    )
)]

pub mod admin;
pub mod admission;
pub mod cli;
pub mod config;
pub mod context;
pub mod database;
pub mod downstream;
pub mod emulator;
pub mod fetch;
pub mod gateway;
pub mod identity;
pub mod json;
pub mod ledger;
pub mod relay;
pub mod request;
pub mod routing;
pub mod server;
pub mod snapshot;
pub mod telemetry;
pub mod upstream;

#[cfg(test)]
mod rings;
