//! Command line: arguments, exit codes, and what is printed where.
//!
//! Results go to standard output, errors and the progress bar to standard error. A reader of our output that goes
//! away does not stop the work.

mod check;
mod inspect;
mod output;
mod replay;
mod snapshot;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use flagstone::core::commitment::StarknetVersion;
use flagstone::core::types::{BlockNumber, ClassHash, ContractAddress, StorageKey};
use flagstone::input::InputError;
use flagstone::{Cadence, Error, ErrorKind};

use output::Output;

const EXIT_CODES: &str = "Exit codes:
  0  fine
  1  a root did not match; nothing of that block was kept
  2  bad usage or bad input; what came before stays committed
  3  the store failed, is damaged, or is not what it was opened as";

const CHECK_EXIT_CODES: &str = "Exit codes:
  0  nothing is wrong
  1  something is
  3  the store failed, cannot be opened, or is not what it was opened as";

const DIFF_EXIT_CODES: &str = "Exit codes:
  0  the states are the same
  1  they differ
  2  bad usage, or a state that is not held
  3  a store failed, is damaged, or is not what it was opened as";

/// State of a Starknet sequencer, in alternative commitment layouts
#[derive(Parser)]
#[command(name = "flagstone", version, about, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Apply the state updates of blocks, and check each root
    #[command(after_help = EXIT_CODES)]
    Replay(Replay),
    /// Write the state as a portable dump
    #[command(after_help = EXIT_CODES)]
    Export(Export),
    /// Make a database from a dump, in any layout and store, and check that its values give its root
    #[command(after_help = EXIT_CODES)]
    Import(Import),
    /// Make a database with the state of another one, in any layout and store
    #[command(after_help = EXIT_CODES)]
    Convert(Convert),
    /// Visit everything that a database has, and tell what is wrong
    #[command(after_help = CHECK_EXIT_CODES)]
    Check(Inspect),
    /// Tell in what the states of two databases differ, in any layouts and stores
    #[command(after_help = DIFF_EXIT_CODES)]
    Diff(Diff),
    /// Read one value
    Get(Get),
    /// Print the state commitment of the last committed block
    Root(Inspect),
    /// Say what a database is and how far it has come
    Info(Inspect),
    /// List the layouts there are
    Layouts {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct Replay {
    /// Layout of the state [default: what the database has, or flat]
    #[arg(long, value_name = "NAME")]
    layout: Option<String>,
    /// Where the rows are kept: memory or sled [default: what the database has, or sled]
    #[arg(long, value_name = "NAME")]
    store: Option<String>,
    /// Directory of the database, made if missing; without it a temporary one is used and removed
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// When roots are computed: every block, every N blocks, or at the end
    #[arg(long, value_name = "every|N|end", default_value = "every", value_parser = parse_cadence)]
    commit: Cadence,
    /// Starknet version of blocks whose update does not say it
    #[arg(long, value_name = "V")]
    starknet_version: Option<StarknetVersion>,
    /// Do not compare with the roots that the updates state
    #[arg(long)]
    no_verify: bool,
    /// Threads for commitment [default: one for each core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// State updates as JSON-RPC or feeder-gateway JSON: one object, an array, or one a line; plain, .gz or .zst;
    /// `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

#[derive(Args)]
struct Export {
    /// Directory of the database
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// State after this block [default: the last one]
    #[arg(long, value_name = "N", value_parser = parse_block)]
    block: Option<BlockNumber>,
    /// File to write; `-` is standard output
    #[arg(long, value_name = "FILE", default_value = "-", hide_default_value = true)]
    out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Import {
    /// Directory of the new database; if an import of the same dump was interrupted there, it goes on
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Layout of the new database [default: flat]
    #[arg(long, value_name = "NAME")]
    layout: Option<String>,
    /// Store of the new database [default: sled]
    #[arg(long, value_name = "NAME")]
    store: Option<String>,
    /// Threads for commitment [default: one for each core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The dump; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Args)]
struct Convert {
    /// Directory of the database that there is
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Directory of the new database; if the same was interrupted there, it goes on
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// State after this block [default: the last one]
    #[arg(long, value_name = "N", value_parser = parse_block)]
    block: Option<BlockNumber>,
    /// Layout of the new database [default: flat]
    #[arg(long, value_name = "NAME")]
    layout: Option<String>,
    /// Store of the new database [default: sled]
    #[arg(long, value_name = "NAME")]
    store: Option<String>,
    /// Threads for commitment [default: one for each core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Diff {
    /// Directory of the first database
    #[arg(value_name = "A")]
    a: PathBuf,
    /// Directory of the second database; may be the first one, for two blocks of it
    #[arg(value_name = "B")]
    b: PathBuf,
    /// First state: the one after this block [default: the last one]
    #[arg(long, value_name = "N", value_parser = parse_block)]
    block_a: Option<BlockNumber>,
    /// Second state: the one after this block [default: the last one]
    #[arg(long, value_name = "N", value_parser = parse_block)]
    block_b: Option<BlockNumber>,
    /// Tell all differences, not only the first
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Inspect {
    /// Directory of the database
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Get {
    /// Directory of the database
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    #[command(subcommand)]
    what: GetWhat,
}

#[derive(Subcommand)]
enum GetWhat {
    /// Value of a storage slot
    Storage {
        /// The contract
        address: ContractAddress,
        /// The slot
        key: StorageKey,
    },
    /// Nonce of a contract
    Nonce {
        /// The contract
        address: ContractAddress,
    },
    /// Class hash of a contract
    ClassHash {
        /// The contract
        address: ContractAddress,
    },
    /// Compiled class hash of a Sierra class
    CompiledClassHash {
        /// The class
        class_hash: ClassHash,
    },
}

fn parse_block(text: &str) -> Result<BlockNumber, String> {
    text.parse().map(BlockNumber).map_err(|_| "expected the number of a block".to_owned())
}

fn parse_cadence(text: &str) -> Result<Cadence, String> {
    match text {
        "every" => Ok(Cadence::EVERY_BLOCK),
        "end" => Ok(Cadence::OnRequest),
        number => match NonZeroU32::from_str(number) {
            Ok(count) => Ok(Cadence::Blocks(count)),
            Err(_) => Err("expected `every`, `end`, or a number of blocks from 1 on".to_owned()),
        },
    }
}

/// Why a command failed: the text for people, if it was not told already, and the exit code.
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 2 }
    }

    /// The answer was no, and was printed.
    fn told() -> Self {
        Self { message: String::new(), code: 1 }
    }

    fn store(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 3 }
    }

    /// An engine's error about the block whose update is at `location`.
    fn at(location: &str, error: &Error) -> Self {
        Self { message: format!("{location}: {error}"), code: exit_code(error) }
    }
}

fn exit_code(error: &Error) -> u8 {
    match error.kind() {
        ErrorKind::Root => 1,
        ErrorKind::Input => 2,
        ErrorKind::Expired | ErrorKind::Store => 3,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { message: error.to_string(), code: exit_code(&error) }
    }
}

impl From<InputError> for Failure {
    fn from(error: InputError) -> Self {
        Self::usage(error.to_string())
    }
}

/// Parses the arguments, runs the command, and turns the outcome into an exit code.
pub fn run() -> ExitCode {
    let mut output = Output::new();
    let outcome = match Cli::parse().command {
        Command::Replay(args) => replay::run(&args, &mut output),
        Command::Export(args) => snapshot::export(&args, &mut output),
        Command::Import(args) => snapshot::import(&args, &mut output),
        Command::Convert(args) => snapshot::convert(&args, &mut output),
        Command::Check(args) => check::check(&args, &mut output),
        Command::Diff(args) => check::diff(&args, &mut output),
        Command::Get(args) => inspect::get(&args, &mut output),
        Command::Root(args) => inspect::root(&args, &mut output),
        Command::Info(args) => inspect::info(&args, &mut output),
        Command::Layouts { json } => inspect::layouts(json, &mut output),
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
