//! From the model a tenant names to what serves it, from a body to its conversation, and what
//! operators have switched off.

pub mod affinity;
pub mod route;
pub mod switches;
