//! From the model a tenant names to what serves it, and what operators have switched off.

pub mod route;
pub mod switches;
