//! The command `flagstone`.
//!
//! Exit codes: 0 fine, 1 a root or proof did not hold, 2 bad usage or bad input, 3 store error.

mod cli;

/// The executor and sled allocate a great deal, on several threads at once. glibc's allocator gives memory back and takes
/// it again all the time, for up to half of the CPU, and keeps what one thread freed from the others; this one does not.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    cli::run()
}
