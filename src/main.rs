//! The command `flagstone`.
//!
//! Exit codes: 0 fine, 1 a root or proof did not hold, 2 bad usage or bad input, 3 store error.

mod cli;

/// The executor allocates a great deal, on several threads at once.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::run()
}
