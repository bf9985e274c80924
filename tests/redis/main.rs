//! What the counts in Redis promise, shown against a real `redis-server`: exact over several hosts,
//! one round trip, nothing held for ever, nothing counted twice, and a stated end of every fault.
//! `.ci/install test` installs the server; each test starts its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests may stop loudly, and poll for what must come true"
)]

mod arithmetic;
mod exactness;
mod faults;
mod hosts;
mod model;
mod operators;
mod proxy;
mod reach;
mod server;
mod support;
