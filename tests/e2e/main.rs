//! What tidegate promises, shown end to end: the real binary, real sockets, and the built-in
//! emulator in the place of DeepSeek. One module per promise; the names of the tests are the
//! promises in detail.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests may stop loudly, wait, and read the environment of the process they run in"
)]

mod affinity;
mod bad_account;
mod bodies;
mod capacity;
mod certificates;
mod charges;
mod client_address;
mod client_certificates;
mod clock_steps;
mod command_line;
mod crash;
mod credentials;
mod credit;
mod deadlines;
mod docs;
mod draining;
mod early_answers;
mod emulated_faults;
mod enveloped;
mod failover;
mod fair_queue;
mod fallback;
mod fault_matrix;
mod framing;
mod guessing;
mod handover;
mod identity;
mod key_command;
mod key_sets;
mod lifecycle;
mod limits;
mod names;
mod passthrough;
mod poisoned;
mod resume;
mod retry_storm;
mod rotation;
mod scan;
mod sdk;
mod secrets;
mod shared_counts;
mod signing_clients;
mod slow_clients;
mod soak;
mod sources;
mod store_faults;
mod storm;
mod stream_ends;
mod streaming;
mod support;
mod switches;
mod telemetry;
mod trailers;
mod upstream_auth;
mod upstream_tls;
mod usage_command;
