//! From the model a tenant names to what serves it.

pub mod route;
