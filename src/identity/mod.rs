//! Who is calling. Takes a request head and what the connection showed, gives a tenant; knows
//! nothing of models or upstreams.
//!
//! [`credential`] finds what was shown, [`directory`] knows whose it is, with one file for each kind
//! of proof ([`api_key`], [`token`], [`signed_request`], [`certificate`]). [`reason`] says why not,
//! [`standing`] is what outlives a configuration.

pub mod api_key;
pub mod certificate;
pub mod client_address;
pub mod credential;
pub mod directory;
pub mod expiry;
pub mod issuer;
pub mod reason;
pub mod signed_request;
pub mod standing;
pub mod token;
