//! Command line: arguments, exit codes, and what is printed where.
//!
//! Results go to standard output, errors and the progress bar to standard error. A reader of our output that goes
//! away does not stop the work; a result that cannot be written for any other reason fails the command.

mod check;
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
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use flagstone::core::commitment::StarknetVersion;
use flagstone::core::types::{
    BlockHash, BlockNumber, ClassHash, ContractAddress, ParseError, StateCommitment, StorageKey,
};
use flagstone::database::{Options, STORES, StoreEntry, StoreSettings};
use flagstone::engine::THREADS_MAX;
use flagstone::input::InputError;
use flagstone::registry::LAYOUTS;
use flagstone::{Cadence, EngineConfig, Error, ErrorKind};

use output::Output;

const EXIT_CODES: &str = "Exit codes:
  0  fine
  1  a root, proof or witness did not hold; nothing of that block was kept
  2  bad usage or bad input; what came before stays committed
  3  the store failed, is damaged, or is not what it was opened as; or the output cannot be written";

const CHECK_EXIT_CODES: &str = "Exit codes:
  0  nothing is wrong
  1  something is
  2  bad usage
  3  the store failed, cannot be opened, or is not what it was opened as; or the output cannot be written";

const DIFF_EXIT_CODES: &str = "Exit codes:
  0  the states are the same
  1  they differ
  2  bad usage, or a state that is not held
  3  a store failed, is damaged, or is not what it was opened as; or the output cannot be written";

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
    /// Execute blocks of generated transactions on a state, with StarkWare's executor (feature `blockifier`)
    #[command(after_help = EXIT_CODES)]
    Sequence(Sequence),
    /// Read one value
    #[command(after_help = EXIT_CODES)]
    Get(Get),
    /// Print the state commitment of the last closed block, committing first what a process that was killed left closed
    #[command(after_help = EXIT_CODES)]
    Root(Inspect),
    /// Say what a database is and how far it has come, committing first what a process that was killed left closed
    #[command(after_help = EXIT_CODES)]
    Info(Inspect),
    /// Go back to an earlier block: take back all blocks after it, and print its root
    #[command(after_help = EXIT_CODES)]
    Revert(Revert),
    /// Build a damaged database anew from what can be believed of it, check it, and put the old parts aside
    #[command(after_help = EXIT_CODES)]
    Recover(Recover),
    /// Make a storage proof of the committed state, with its block and the request, as JSON
    #[command(after_help = EXIT_CODES)]
    Prove(Prove),
    /// Verify a storage proof; needs no database
    #[command(after_help = EXIT_CODES)]
    VerifyProof(VerifyProof),
    /// Apply a block's state update to its witness, and check the roots; needs no database
    #[command(after_help = EXIT_CODES)]
    VerifyWitness(VerifyWitness),
    /// List the layouts there are
    #[command(after_help = EXIT_CODES)]
    Layouts {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Settings of the store, whichever it is.
#[derive(Args, Default)]
struct Settings {
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_setting, help = settings_help())]
    store_set: Vec<(String, String)>,
}

impl Settings {
    fn given(&self) -> StoreSettings {
        self.store_set.iter().cloned().collect()
    }
}

/// What a database is opened or made with.
fn options(
    layout: Option<&String>,
    store: Option<&String>,
    settings: &Settings,
    engine: EngineConfig,
) -> Options {
    let mut options = Options::default().with_store_settings(settings.given()).with_engine(engine);
    options.layout = layout.cloned();
    options.store = store.cloned();
    options
}

/// A database that is there.
#[derive(Args)]
struct Existing {
    /// Directory of the database
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

impl Existing {
    /// The one in a directory.
    fn at(data: &Path) -> Self {
        Self { data: data.to_owned(), settings: Settings::default() }
    }

    fn options(&self, engine: EngineConfig) -> Options {
        options(None, None, &self.settings, engine)
    }
}

/// Names in the middle of a sentence.
fn one_of(names: &[&str]) -> String {
    match names {
        [others @ .., last] if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        names => names.concat(),
    }
}

fn layout_help(what: &str, otherwise: &str) -> String {
    let names: Vec<&str> = LAYOUTS.iter().map(|entry| entry.name).collect();
    format!("{what}: {} [default: {otherwise}{}]", one_of(&names), LAYOUTS[0].name)
}

fn place_help() -> String {
    let names: Vec<&str> = [place::MEMORY].into_iter().chain(STORES.iter().map(|entry| entry.name)).collect();
    format!(
        "Where the rows are kept: {} [default: what the database has, or {}]",
        one_of(&names),
        STORES[0].name
    )
}

fn store_help() -> String {
    let names: Vec<&str> = STORES.iter().map(|entry| entry.name).collect();
    format!("Store of the new database: {} [default: {}]", one_of(&names), STORES[0].name)
}

fn settings_help() -> String {
    let taken = |entry: &StoreEntry| {
        let settings = entry.settings().iter();
        let told =
            settings.map(|setting| format!("{}={} ({})", setting.name, setting.default, setting.about));
        told.collect::<Vec<_>>().join(", ")
    };
    let of_stores = STORES.iter().filter(|entry| !entry.settings().is_empty());
    let told: Vec<String> = of_stores.map(|entry| format!("{} takes {}", entry.name, taken(entry))).collect();
    format!(
        "A setting of the store, for this run; may be given more than once. Unless told otherwise, {}",
        told.join("; ")
    )
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE, such as cache_bytes=1048576")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Args)]
struct Replay {
    #[arg(long, value_name = "NAME", help = layout_help("Layout of the state", "what the database has, or "))]
    layout: Option<String>,
    #[arg(long, value_name = "NAME", help = place_help())]
    store: Option<String>,
    #[command(flatten)]
    settings: Settings,
    /// Directory of the database, made if missing; without it a temporary one is used and removed
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// When roots are computed: with every block before it counts as closed, behind every block, behind every N blocks,
    /// or at the end
    #[arg(long, value_name = "close|every|N|end", default_value = "every", value_parser = parse_cadence)]
    commit: Cadence,
    /// Starknet version of blocks whose update does not say it
    #[arg(long, value_name = "V")]
    starknet_version: Option<StarknetVersion>,
    /// Do not compare with the roots that the updates state
    #[arg(long)]
    no_verify: bool,
    /// How many of the last blocks can be taken back, read and proven [default: 64]
    #[arg(long, value_name = "N")]
    history: Option<usize>,
    /// Most MiB of trie records that are kept decoded, by a layout that does so [default: 256, on the store memory 64]
    #[arg(long, value_name = "MIB")]
    record_cache: Option<usize>,
    /// Write the witness of each block to DIR/BLOCK.witness, in no database's directory; needs `--commit every` or `close`
    #[arg(long, value_name = "DIR")]
    witness: Option<PathBuf>,
    /// Write witnesses as JSON
    #[arg(long, requires = "witness")]
    witness_json: bool,
    /// Threads for commitment, at most 1024 [default: one for each core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = threads())]
    threads: usize,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// State updates as JSON-RPC or feeder-gateway JSON: one object, an array, or one a line; plain, .gz or .zst;
    /// `-` is standard input, which may be a live feed: a block's line comes when its root is known
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

#[derive(Args)]
struct Export {
    #[command(flatten)]
    database: Existing,
    /// State after this block [default: the last one]
    #[arg(long, value_name = "N", value_parser = parse_block)]
    block: Option<BlockNumber>,
    /// File to write, in no database's directory, and as it was if the export fails; `-` is standard output
    #[arg(long, value_name = "FILE", default_value = "-", hide_default_value = true)]
    out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a database is to be that is made from a dump.
#[derive(Args)]
struct NewDatabase {
    #[arg(long, value_name = "NAME", help = layout_help("Layout of the new database", ""))]
    layout: Option<String>,
    #[arg(long, value_name = "NAME", help = store_help())]
    store: Option<String>,
    #[command(flatten)]
    settings: Settings,
    /// Threads for commitment, at most 1024 [default: one for each core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = threads())]
    threads: usize,
}

#[derive(Args)]
struct Import {
    /// Directory of the new database, in no other one's; if an import of the same dump was interrupted there, it goes on
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    #[command(flatten)]
    made: NewDatabase,
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
    /// Directory of the new database, in no other one's; if the same was interrupted there, it goes on
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// State after this block [default: the last one]
    #[arg(long, value_name = "N", value_parser = parse_block)]
    block: Option<BlockNumber>,
    #[command(flatten)]
    made: NewDatabase,
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
    /// Threads that execute, at most 1024; 0 executes one transaction after the other
    #[arg(long, value_name = "W", default_value_t = 2, value_parser = threads())]
    workers: usize,
    /// Another seed gives other transactions
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    #[arg(long, value_name = "NAME", help = layout_help("Layout of the state", "what the database has, or "))]
    layout: Option<String>,
    #[arg(long, value_name = "NAME", help = place_help())]
    store: Option<String>,
    #[command(flatten)]
    settings: Settings,
    /// Directory of the database, made if missing, continued if not; without it a temporary one is used and removed
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Do not compare roots with those of another layout in memory
    #[arg(long)]
    no_verify: bool,
    /// Do not read ahead what transactions will read; to see in the summary what that saves
    #[arg(long)]
    no_hints: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Inspect {
    #[command(flatten)]
    database: Existing,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Recover {
    #[command(flatten)]
    database: Existing,
    /// A dump of an earlier state of the same chain, to build on if the store is of no use
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
    /// Build and check in a temporary place, tell what would be lost, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Revert {
    #[command(flatten)]
    database: Existing,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The block to go back to
    block: u64,
}

#[derive(Args)]
struct Get {
    #[command(flatten)]
    database: Existing,
    /// Read the state after this block [default: the last one]
    #[arg(long, value_name = "N")]
    block: Option<u64>,
    #[command(subcommand)]
    what: GetWhat,
}

#[derive(Subcommand)]
enum GetWhat {
    /// Value of a storage slot
    Storage {
        /// The contract
        #[arg(value_parser = parse_felt::<ContractAddress>)]
        address: ContractAddress,
        /// The slot
        #[arg(value_parser = parse_felt::<StorageKey>)]
        key: StorageKey,
    },
    /// Nonce of a contract
    Nonce {
        /// The contract
        #[arg(value_parser = parse_felt::<ContractAddress>)]
        address: ContractAddress,
    },
    /// Class hash of a contract
    ClassHash {
        /// The contract
        #[arg(value_parser = parse_felt::<ContractAddress>)]
        address: ContractAddress,
    },
    /// Compiled class hash of a Sierra class
    CompiledClassHash {
        /// The class
        #[arg(value_parser = parse_felt::<ClassHash>)]
        class_hash: ClassHash,
    },
}

#[derive(Args)]
struct Prove {
    #[command(flatten)]
    database: Existing,
    /// The block whose state is proven [default: the last one]
    #[arg(long, value_name = "N")]
    block: Option<u64>,
    /// A class; may be given more than once
    #[arg(long, value_name = "CLASS", value_parser = parse_felt::<ClassHash>)]
    class: Vec<ClassHash>,
    /// A contract; may be given more than once
    #[arg(long, value_name = "ADDRESS", value_parser = parse_felt::<ContractAddress>)]
    contract: Vec<ContractAddress>,
    /// A storage slot, and its contract with it; may be given more than once
    #[arg(long, value_name = "ADDRESS:KEY", value_parser = parse_slot)]
    storage: Vec<(ContractAddress, StorageKey)>,
    /// The parameters of starknet_getStorageProof as JSON, by name or by position, or the whole request, in place of the
    /// above; contracts of its slots are added; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["class", "contract", "storage"])]
    request: Option<PathBuf>,
    /// Hash of the block, to be stated in the proof: the database does not have it
    #[arg(long, value_name = "HASH", value_parser = parse_felt::<BlockHash>)]
    block_hash: Option<BlockHash>,
}

#[derive(Args)]
struct VerifyProof {
    /// The block's state commitment (`new_root` in its header), which you trust
    #[arg(long, value_name = "STATE_COMMITMENT", value_parser = parse_felt::<StateCommitment>)]
    root: Option<StateCommitment>,
    /// Starknet version of the block, which decides how its state commitment is made
    #[arg(long, value_name = "V")]
    starknet_version: Option<StarknetVersion>,
    /// The block's hash, which you trust
    #[arg(long, value_name = "HASH", value_parser = parse_felt::<BlockHash>)]
    block_hash: Option<BlockHash>,
    /// The parameters that were asked with, by name or by position, or the whole request, if FILE does not have them; `-`
    /// is standard input
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// The proof: what `flagstone prove` prints, the result of starknet_getStorageProof, or the whole response; plain,
    /// .gz or .zst; `-` is standard input
    #[arg(value_name = "FILE")]
    proof: PathBuf,
}

#[derive(Args)]
struct VerifyWitness {
    /// The witness, in bytes or as JSON; `-` is standard input
    #[arg(long, value_name = "FILE")]
    witness: PathBuf,
    /// State updates with that of the witness's block among them; `-` is standard input
    #[arg(long, value_name = "FILE")]
    update: PathBuf,
    /// Starknet version of the block, if its update does not say it
    #[arg(long, value_name = "V")]
    starknet_version: Option<StarknetVersion>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The state after a block, in the middle of a sentence.
fn state_after(block: Option<BlockNumber>) -> String {
    block.map_or_else(|| "the empty state".to_owned(), |block| format!("block {block}"))
}

fn parse_slot(text: &str) -> Result<(ContractAddress, StorageKey), String> {
    let (address, key) = text.split_once(':').ok_or("expected ADDRESS:KEY, such as 0x1234:0x5")?;
    let address = parse_felt(address).map_err(|error| format!("address {address:?}: {error}"))?;
    Ok((address, parse_felt(key).map_err(|error| format!("key {key:?}: {error}"))?))
}

/// A felt, which must have `0x` in front: without it, `10` would be sixteen to us and may be ten to whoever typed it.
fn parse_felt<T: FromStr<Err = ParseError>>(text: &str) -> Result<T, String> {
    if text.starts_with("0x") || text.starts_with("0X") {
        return text.parse().map_err(|error: ParseError| error.to_string());
    }
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    Err(match text.parse::<u128>() {
        Ok(number) if digits => {
            format!("a felt has 0x in front: decimal {text} is {number:#x}, hexadecimal {text} is 0x{text}")
        }
        _ if digits => format!("a felt is hexadecimal, with 0x in front, such as 0x{text}"),
        _ => "expected a felt in hexadecimal, with 0x in front, such as 0x1f".to_owned(),
    })
}

/// How many threads an option may ask for.
fn threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(0..=THREADS_MAX as u64)
}

fn parse_block(text: &str) -> Result<BlockNumber, String> {
    text.parse().map(BlockNumber).map_err(|_| "expected the number of a block".to_owned())
}

fn parse_cadence(text: &str) -> Result<Cadence, String> {
    match text {
        "close" => Ok(Cadence::AtClose),
        "every" => Ok(Cadence::EVERY_BLOCK),
        "end" => Ok(Cadence::OnRequest),
        number => match NonZeroU32::from_str(number) {
            Ok(count) => Ok(Cadence::Blocks(count)),
            Err(_) => Err("expected `close`, `every`, `end`, or a number of blocks from 1 on".to_owned()),
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

    /// Something that was to be verified does not hold.
    fn refused(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }

    /// This failure, which is about something that was read at `location`.
    fn at(mut self, location: Option<&str>) -> Self {
        if let Some(location) = location {
            self.message = format!("{location}: {}", self.message);
        }
        self
    }

    /// This failure, and after it that its answer could not be written, if it could not.
    fn and(mut self, answered: Result<(), Self>) -> Self {
        if let Err(lost) = answered {
            self.message = format!("{}; and {}", self.message, lost.message);
        }
        self
    }
}

fn exit_code_of(error: &Error) -> u8 {
    match (error.kind(), error) {
        (ErrorKind::Root, _) => 1,
        (ErrorKind::Input | ErrorKind::Expired, _) | (_, Error::Config(_) | Error::UnknownName { .. }) => 2,
        _ => 3,
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self { message: error.to_string(), code: exit_code_of(error) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from(&error)
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
        Command::Revert(args) => inspect::revert(&args, output),
        Command::Recover(args) => recover::recover(&args, output),
        Command::Prove(args) => prove::prove(&args, output),
        Command::VerifyProof(args) => prove::verify(&args, output),
        Command::VerifyWitness(args) => witness::verify(&args, output),
        Command::Layouts { json } => inspect::layouts(json, output),
    }
}
