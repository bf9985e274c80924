//! From the model a tenant names to what serves it, and from a body to its conversation.

pub mod affinity;
pub mod route;
