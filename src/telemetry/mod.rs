//! What the outside can see: metrics, the log, one line per request.

pub mod access_log;
pub mod logger;
pub mod metrics;
pub mod readiness;
