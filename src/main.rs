//! The executable: parses the command line and does what it says.

use std::process::ExitCode;

/// A third of the cost of a request is allocation, most of it Pingora's small buffers that live as
/// long as the request: `benches/README.md` has the difference.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tidegate::cli::main()
}
