//! Command line: arguments, exit codes, and what is printed where.
//!
//! Results go to standard output, errors and the progress bar to standard error. A reader of our output that goes
//! away does not stop the work.

mod inspect;
mod output;
mod place;
mod replay;
mod sequence;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use flagstone::core::commitment::StarknetVersion;
use flagstone::core::types::{ClassHash, ContractAddress, StorageKey};
use flagstone::input::InputError;
use flagstone::{Cadence, Error, ErrorKind};

use output::Output;

const EXIT_CODES: &str = "Exit codes:
  0  fine
  1  a root did not match; nothing of that block was kept
  2  bad usage or bad input; what came before stays committed
  3  the store failed, is damaged, or is not what it was opened as";

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
    /// Execute blocks of generated transactions on a state, with StarkWare's executor (feature `blockifier`)
    #[command(after_help = EXIT_CODES)]
    Sequence(Sequence),
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
struct Sequence {
    /// Blocks to produce, besides the genesis
    #[arg(long, value_name = "B", default_value_t = 5)]
    blocks: u64,
    /// Transactions of each block
    #[arg(long, value_name = "N", default_value_t = 400)]
    txs: usize,
    /// What the transactions do: transfers, multicall, contended or mixed
    #[arg(long, value_name = "NAME", default_value = "mixed")]
    workload: String,
    /// Threads that execute; 0 executes one transaction after the other
    #[arg(long, value_name = "W", default_value_t = 2)]
    workers: usize,
    /// Another seed gives other transactions
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Layout of the state [default: what the database has, or flat]
    #[arg(long, value_name = "NAME")]
    layout: Option<String>,
    /// Where the rows are kept: memory or sled [default: what the database has, or sled]
    #[arg(long, value_name = "NAME")]
    store: Option<String>,
    /// Directory of the database, made if missing, continued if not; without it a temporary one is used and removed
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Do not compare roots with those of another layout in memory
    #[arg(long)]
    no_verify: bool,
    /// Do not read ahead what transactions will read
    #[arg(long)]
    no_hints: bool,
    /// Print one JSON object a line
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

/// Why a command failed: the text for people and the exit code.
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 2 }
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
    exit_code_of(error.kind())
}

const fn exit_code_of(kind: ErrorKind) -> u8 {
    match kind {
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
        Command::Sequence(args) => sequence::run(&args, &mut output),
        Command::Get(args) => inspect::get(&args, &mut output),
        Command::Root(args) => inspect::root(&args, &mut output),
        Command::Info(args) => inspect::info(&args, &mut output),
        Command::Layouts { json } => inspect::layouts(json, &mut output),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.error(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}
