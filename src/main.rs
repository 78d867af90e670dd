//! The command `flagstone`.
//!
//! Exit codes: 0 fine, 1 a root or proof did not hold, 2 bad usage or bad input, 3 store error.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
