//! The arguments of each command.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use flagstone::core::commitment::StarknetVersion;
use flagstone::core::types::{
    BlockHash, BlockNumber, ClassHash, ContractAddress, ParseError, StateCommitment, StorageKey,
};
use flagstone::database::{Options, STORES, StoreEntry, StoreSettings};
use flagstone::engine::THREADS_MAX;
use flagstone::registry::LAYOUTS;
use flagstone::{Cadence, EngineConfig};

use super::place;

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
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
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
    /// Forget old roots, and delete rows that no kept state needs
    #[command(after_help = EXIT_CODES)]
    Prune(Prune),
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
pub struct Settings {
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_setting, help = settings_help())]
    pub store_set: Vec<(String, String)>,
}

impl Settings {
    pub fn given(&self) -> StoreSettings {
        self.store_set.iter().cloned().collect()
    }
}

/// What a database is opened or made with.
pub fn options(
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

/// How the state of a command that goes on with one, or begins one, is kept.
#[derive(Args)]
pub struct Kept {
    #[arg(long, value_name = "NAME", help = layout_help("Layout of the state", "what the database has, or "))]
    pub layout: Option<String>,
    #[arg(long, value_name = "NAME", help = place_help())]
    pub store: Option<String>,
    #[command(flatten)]
    pub settings: Settings,
}

impl Kept {
    pub fn options(&self, engine: EngineConfig) -> Options {
        options(self.layout.as_ref(), self.store.as_ref(), &self.settings, engine)
    }
}

/// A database that is there.
#[derive(Args)]
pub struct Existing {
    /// Directory of the database
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    #[command(flatten)]
    pub settings: Settings,
}

impl Existing {
    /// The one in a directory.
    pub fn at(data: &Path) -> Self {
        Self { data: data.to_owned(), settings: Settings::default() }
    }

    pub fn options(&self, engine: EngineConfig) -> Options {
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
pub struct Replay {
    #[command(flatten)]
    pub kept: Kept,
    /// Directory of the database, made if missing; without it a temporary one is used and removed
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// When roots are computed: with every block before it counts as closed, behind every block, behind every N blocks,
    /// or at the end
    #[arg(long, value_name = "close|every|N|end", default_value = "every", value_parser = parse_cadence)]
    pub commit: Cadence,
    /// Starknet version of blocks whose update does not say it
    #[arg(long, value_name = "V")]
    pub starknet_version: Option<StarknetVersion>,
    /// Do not compare with the roots that the updates state
    #[arg(long)]
    pub no_verify: bool,
    /// How many of the last blocks can be taken back, read and proven [default: 64]
    #[arg(long, value_name = "N")]
    pub history: Option<usize>,
    /// Most MiB of trie records that are kept decoded, by a layout that does so [default: 256, on the store memory 64]
    #[arg(long, value_name = "MIB")]
    pub record_cache: Option<usize>,
    /// Write the witness of each block to DIR/BLOCK.witness, in no database's directory; needs `--commit every` or `close`
    #[arg(long, value_name = "DIR")]
    pub witness: Option<PathBuf>,
    /// Write witnesses as JSON
    #[arg(long, requires = "witness")]
    pub witness_json: bool,
    /// Threads for commitment, at most 1024 [default: one for each core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = threads())]
    pub threads: usize,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// State updates as JSON-RPC or feeder-gateway JSON: one object, an array, or one a line; plain, .gz or .zst;
    /// `-` is standard input, which may be a live feed: a block's line comes when its root is known
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

#[derive(Args)]
pub struct Export {
    #[command(flatten)]
    pub database: Existing,
    /// State after this block [default: the last one]
    #[arg(long, value_name = "N", value_parser = parse_block)]
    pub block: Option<BlockNumber>,
    /// File to write, in no database's directory, and as it was if the export fails; `-` is standard output
    #[arg(long, value_name = "FILE", default_value = "-", hide_default_value = true)]
    pub out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What a database is to be that is made from a dump.
#[derive(Args)]
pub struct NewDatabase {
    #[arg(long, value_name = "NAME", help = layout_help("Layout of the new database", ""))]
    pub layout: Option<String>,
    #[arg(long, value_name = "NAME", help = store_help())]
    pub store: Option<String>,
    #[command(flatten)]
    pub settings: Settings,
    /// Threads for commitment, at most 1024 [default: one for each core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = threads())]
    pub threads: usize,
}

#[derive(Args)]
pub struct Import {
    /// Directory of the new database, in no other one's; if an import of the same dump was interrupted there, it goes on
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    #[command(flatten)]
    pub made: NewDatabase,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The dump; `-` is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

#[derive(Args)]
pub struct Convert {
    /// Directory of the database that there is
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// Directory of the new database, in no other one's; if the same was interrupted there, it goes on
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// State after this block [default: the last one]
    #[arg(long, value_name = "N", value_parser = parse_block)]
    pub block: Option<BlockNumber>,
    #[command(flatten)]
    pub made: NewDatabase,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Diff {
    /// Directory of the first database
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// Directory of the second database; may be the first one, for two blocks of it
    #[arg(value_name = "B")]
    pub b: PathBuf,
    /// First state: the one after this block [default: the last one]
    #[arg(long, value_name = "N", value_parser = parse_block)]
    pub block_a: Option<BlockNumber>,
    /// Second state: the one after this block [default: the last one]
    #[arg(long, value_name = "N", value_parser = parse_block)]
    pub block_b: Option<BlockNumber>,
    /// Tell all differences, not only the first
    #[arg(long)]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Sequence {
    /// Blocks to produce, besides the genesis
    #[arg(long, value_name = "B", default_value_t = 5)]
    pub blocks: u64,
    /// Transactions of each block
    #[arg(long, value_name = "N", default_value_t = 400)]
    pub txs: usize,
    /// What the transactions do: transfers, multicall, contended or mixed
    #[arg(long, value_name = "NAME", default_value = "mixed")]
    pub workload: String,
    /// Threads that execute, at most 1024; 0 executes one transaction after the other
    #[arg(long, value_name = "W", default_value_t = 2, value_parser = threads())]
    pub workers: usize,
    /// Another seed gives other transactions
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub kept: Kept,
    /// Directory of the database, made if missing, continued if not; without it a temporary one is used and removed
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Do not compare roots with those of another layout in memory
    #[arg(long)]
    pub no_verify: bool,
    /// Do not read ahead what transactions will read; to see in the summary what that saves
    #[arg(long)]
    pub no_hints: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Inspect {
    #[command(flatten)]
    pub database: Existing,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Recover {
    #[command(flatten)]
    pub database: Existing,
    /// A dump of an earlier state of the same chain, to build on if the store is of no use
    #[arg(long, value_name = "FILE")]
    pub dump: Option<PathBuf>,
    /// Build and check in a temporary place, tell what would be lost, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Prune {
    #[command(flatten)]
    pub database: Existing,
    /// Keep the roots of the last N blocks, and of all that can be gone back to [default: all]
    #[arg(long, value_name = "N")]
    pub keep: Option<u64>,
    /// Tell what would be deleted, and delete nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Revert {
    #[command(flatten)]
    pub database: Existing,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The block to go back to
    pub block: u64,
}

#[derive(Args)]
pub struct Get {
    #[command(flatten)]
    pub database: Existing,
    /// Read the state after this block [default: the last one]
    #[arg(long, value_name = "N")]
    pub block: Option<u64>,
    #[command(subcommand)]
    pub what: GetWhat,
}

#[derive(Subcommand)]
pub enum GetWhat {
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
pub struct Prove {
    #[command(flatten)]
    pub database: Existing,
    /// The block whose state is proven [default: the last one]
    #[arg(long, value_name = "N")]
    pub block: Option<u64>,
    /// A class; may be given more than once
    #[arg(long, value_name = "CLASS", value_parser = parse_felt::<ClassHash>)]
    pub class: Vec<ClassHash>,
    /// A contract; may be given more than once
    #[arg(long, value_name = "ADDRESS", value_parser = parse_felt::<ContractAddress>)]
    pub contract: Vec<ContractAddress>,
    /// A storage slot, and its contract with it; may be given more than once
    #[arg(long, value_name = "ADDRESS:KEY", value_parser = parse_slot)]
    pub storage: Vec<(ContractAddress, StorageKey)>,
    /// The parameters of starknet_getStorageProof as JSON, by name or by position, or the whole request, in place of the
    /// above; contracts of its slots are added; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["class", "contract", "storage"])]
    pub request: Option<PathBuf>,
    /// Hash of the block, to be stated in the proof: the database does not have it
    #[arg(long, value_name = "HASH", value_parser = parse_felt::<BlockHash>)]
    pub block_hash: Option<BlockHash>,
}

#[derive(Args)]
pub struct VerifyProof {
    /// The block's state commitment (`new_root` in its header), which you trust
    #[arg(long, value_name = "STATE_COMMITMENT", value_parser = parse_felt::<StateCommitment>)]
    pub root: Option<StateCommitment>,
    /// Starknet version of the block, which decides how its state commitment is made
    #[arg(long, value_name = "V")]
    pub starknet_version: Option<StarknetVersion>,
    /// The block's hash, which you trust
    #[arg(long, value_name = "HASH", value_parser = parse_felt::<BlockHash>)]
    pub block_hash: Option<BlockHash>,
    /// The parameters that were asked with, by name or by position, or the whole request, if FILE does not have them; `-`
    /// is standard input
    #[arg(long, value_name = "FILE")]
    pub request: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// The proof: what `flagstone prove` prints, the result of starknet_getStorageProof, or the whole response; plain,
    /// .gz or .zst; `-` is standard input
    #[arg(value_name = "FILE")]
    pub proof: PathBuf,
}

#[derive(Args)]
pub struct VerifyWitness {
    /// The witness, in bytes or as JSON; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub witness: PathBuf,
    /// State updates with that of the witness's block among them; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub update: PathBuf,
    /// Starknet version of the block, if its update does not say it
    #[arg(long, value_name = "V")]
    pub starknet_version: Option<StarknetVersion>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
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
