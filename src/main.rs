//! The executable: parses the command line and does what it says.

use std::process::ExitCode;

/// A request makes some hundred small allocations, most of them Pingora's: this one takes a fifth
/// off its cost. Without huge pages, which would make the unused part of every read buffer
/// resident; `benches/README.md` has both figures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tidegate::cli::main()
}
