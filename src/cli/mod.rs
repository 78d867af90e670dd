//! Command line: arguments, exit codes, and what is printed where.
//!
//! Results go to standard output, errors and the progress bar to standard error. A reader of our output that goes
//! away does not stop the work; a result that cannot be written for any other reason fails the command.

mod args;
mod check;
mod failure;
mod inspect;
mod output;
mod place;
mod prove;
mod recover;
mod replay;
mod sequence;
mod snapshot;
mod witness;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::Failure;
use output::Output;

/// Parses the arguments, runs the command, and turns the outcome into an exit code.
pub fn run() -> ExitCode {
    let mut output = Output::new();
    let outcome = match Cli::try_parse() {
        Ok(cli) => command(cli.command, &mut output),
        Err(told) if told.use_stderr() => {
            // If standard error is gone there is nobody left to tell.
            let _ = told.print();
            return ExitCode::from(u8::try_from(told.exit_code()).unwrap_or(2));
        }
        // What was asked for was help, or the version.
        Err(told) => output::answered(told.print().and_then(|()| io::stdout().flush())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                output.error(&failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}

fn command(command: Command, output: &mut Output) -> Result<(), Failure> {
    match command {
        Command::Replay(args) => replay::run(&args, output),
        Command::Export(args) => snapshot::export(&args, output),
        Command::Import(args) => snapshot::import(&args, output),
        Command::Convert(args) => snapshot::convert(&args, output),
        Command::Check(args) => check::check(&args, output),
        Command::Diff(args) => check::diff(&args, output),
        Command::Sequence(args) => sequence::run(&args, output),
        Command::Get(args) => inspect::get(&args, output),
        Command::Root(args) => inspect::root(&args, output),
        Command::Info(args) => inspect::info(&args, output),
        Command::Prune(args) => inspect::prune(&args, output),
        Command::Revert(args) => inspect::revert(&args, output),
        Command::Recover(args) => recover::recover(&args, output),
        Command::Prove(args) => prove::prove(&args, output),
        Command::VerifyProof(args) => prove::verify(&args, output),
        Command::VerifyWitness(args) => witness::verify(&args, output),
        Command::Layouts { json } => inspect::layouts(json, output),
    }
}
