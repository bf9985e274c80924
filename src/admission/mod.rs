//! How much callers may use.

pub mod store_redis;
