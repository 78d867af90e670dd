//! `flagstone replay`: the main job. State updates in, roots out, each compared with the stated one.
//!
//! Files are read on a thread of their own. So blocks that are at hand are closed one after another and committed in
//! groups, and yet a live feed that has nothing more to give holds back no line: while none comes, the roots that are on their
//! way are waited for.

use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use flagstone::core::layout::CacheCounters;
use flagstone::core::types::{BlockNumber, StateCommitment};
use flagstone::core::witness::Witness;
use flagstone::engine::{BlockHandle, BlockRoot};
use flagstone::input::{InputError, LocatedUpdate, UpdateReader};
use flagstone::{Cadence, Engine, EngineConfig, Error, StateUpdate};
use serde_json::json;

use super::args::Replay;
use super::failure::Failure;
use super::output::{BAD, DIM, GOOD, Output, styled};
use super::place::{Place, outside_databases};
use super::witness;

/// Updates that are read and wait to be closed. They bound, with the two in hands, what is held in memory.
const READ_AHEAD: usize = 2;

/// How long a next update may take before the roots on their way are waited for. One that is at hand takes less to read;
/// nobody who watches a feed sees the difference.
const NEXT_AT_HAND: Duration = Duration::from_millis(5);

/// What the thread that reads tells.
enum Read {
    /// A file was opened, of so many bytes if that is known.
    Begun(Option<u64>),
    /// An update, and how many bytes of its file are read.
    Update(Box<LocatedUpdate>, u64),
    /// A file has ended.
    Ended,
    /// The last that is told.
    Failed(InputError),
}

/// A closed block whose line is not printed yet, because its root is not known yet.
struct Waiting {
    /// Once it is closed.
    handle: Option<BlockHandle>,
    number: BlockNumber,
    location: String,
    writes: usize,
    stated: Option<StateCommitment>,
}

struct Replayer<'a> {
    args: &'a Replay,
    output: &'a mut Output,
    engine: Engine,
    layout: String,
    waiting: VecDeque<Waiting>,
    /// Blocks up to this one are committed without anything more being asked for.
    due: Option<BlockNumber>,
    blocks: u64,
    writes: u64,
    verified: u64,
}

pub fn run(args: &Replay, output: &mut Output) -> Result<(), Failure> {
    let started = Instant::now();
    if args.witness.is_some() && ![Cadence::EVERY_BLOCK, Cadence::AtClose].contains(&args.commit) {
        return Err(Failure::usage(
            "--witness is of blocks as they are committed, one by one; use --commit every",
        ));
    }
    let place = Place::new(args.data.as_deref(), args.kept.store.as_deref())?;
    if let Some(dir) = &args.witness {
        outside_databases("--witness", dir, args.data.as_deref())?;
    }
    let defaults = EngineConfig::default();
    let history_blocks = args.history.unwrap_or(defaults.history_blocks);
    let record_cache_bytes = args.record_cache.map(|mebibytes| mebibytes.saturating_mul(1 << 20));
    let config = defaults
        .with_cadence(args.commit)
        .with_threads(args.threads)
        .with_history_blocks(history_blocks)
        .with_record_cache_bytes(record_cache_bytes);
    let engine = place.open(&args.kept.options(config))?;
    // What a run before this one left closed. A failure of it is not about anything that is read now.
    engine.commit()?;
    let layout = engine.identity().layout;
    let mut replayer = Replayer {
        args,
        output,
        engine,
        layout,
        waiting: VecDeque::new(),
        due: None,
        blocks: 0,
        writes: 0,
        verified: 0,
    };
    let (reads, reader) = start_reading(args.files.clone())?;
    replayer.run(&reads)?;
    // An end that is no end of the input must not look like one.
    reader.join().unwrap_or_else(|panic| resume_unwind(panic));
    replayer.finish(None)?;
    replayer.summary(started, &place)
}

/// Starts the thread that reads. It ends at the first error or the end of the last file, or when nobody listens any more;
/// if it still waits for input by then, with the process.
fn start_reading(files: Vec<PathBuf>) -> Result<(Receiver<Read>, JoinHandle<()>), Failure> {
    let (tell, reads) = sync_channel(READ_AHEAD);
    let read = move || {
        // If nobody listens any more, nobody misses the rest.
        let _ = files.iter().try_for_each(|file| read_file(file, &tell));
    };
    let started = thread::Builder::new().name("flagstone-input".to_owned()).spawn(read);
    let reader =
        started.map_err(|error| Failure::store(format!("cannot start the thread that reads: {error}")))?;
    Ok((reads, reader))
}

/// Reads a file. An error of it, too, is an `Err` once it is told.
fn read_file(path: &Path, tell: &SyncSender<Read>) -> Result<(), Option<SendError<Read>>> {
    let failed = |error| tell.send(Read::Failed(error)).err();
    let mut updates = UpdateReader::open(path).map_err(failed)?;
    tell.send(Read::Begun(updates.total_bytes())).map_err(Some)?;
    while let Some(update) = updates.next() {
        let update = Box::new(update.map_err(failed)?);
        tell.send(Read::Update(update, updates.bytes_read())).map_err(Some)?;
    }
    tell.send(Read::Ended).map_err(Some)
}

impl Replayer<'_> {
    /// Closes what is read, to the end of it.
    fn run(&mut self, reads: &Receiver<Read>) -> Result<(), Failure> {
        let mut at_hand = NEXT_AT_HAND;
        loop {
            let read = if self.is_root_due() {
                reads.recv_timeout(at_hand)
            } else {
                reads.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            at_hand = NEXT_AT_HAND;
            match read {
                Ok(Read::Begun(total_bytes)) => self.output.start_progress(total_bytes),
                Ok(Read::Update(update, bytes_read)) => {
                    self.block(*update)?;
                    let blocks = self.blocks;
                    self.output.progress(bytes_read, || format!("{blocks} blocks"));
                }
                Ok(Read::Ended) => self.output.end_progress(),
                Ok(Read::Failed(error)) => return self.finish(Some(error.into())),
                Err(RecvTimeoutError::Timeout) => {
                    self.wait_for_a_root()?;
                    at_hand = Duration::ZERO;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Whether the root of a block whose line is not printed is on its way, or found not to hold.
    fn is_root_due(&self) -> bool {
        self.waiting.front().is_some_and(|block| Some(block.number) <= self.due)
    }

    /// Waits for the first root that is on its way, and prints what is known then.
    fn wait_for_a_root(&mut self) -> Result<(), Failure> {
        let Some(block) = self.waiting.front().and_then(|block| block.handle.clone()) else { return Ok(()) };
        match block.committed().wait() {
            Ok(_) => self.print_committed(),
            Err(error) => {
                self.output.end_progress();
                Err(self.refused(&error, None))
            }
        }
    }

    fn block(&mut self, located: LocatedUpdate) -> Result<(), Failure> {
        let mut update = located.update;
        update.starknet_version = update.starknet_version.or(self.args.starknet_version);
        if self.args.no_verify {
            update.old_root = None;
            update.new_root = None;
        }
        // What the engine takes the block for: as stated, or the next one.
        let next = self.engine.head().closed.and_then(BlockNumber::next);
        let mut block = Waiting {
            handle: None,
            number: update.block_number.or(next).unwrap_or_default(),
            location: format!("{}:{}", located.source, located.line),
            writes: update.diff.writes(),
            stated: update.new_root,
        };
        match self.close(&update) {
            Ok((handle, witness)) => {
                block.handle = Some(handle);
                if let (Some(witness), Some(dir)) = (witness, &self.args.witness) {
                    witness::write(&witness, block.number, dir, self.args.witness_json)?;
                }
                self.blocks += 1;
                self.writes += block.writes as u64;
                let number = Some(block.number);
                self.waiting.push_back(block);
                // As many are not committed at most; if some of them are by now, the next ones come a little early.
                match self.args.commit {
                    Cadence::Blocks(count) if self.waiting.len() >= count.get() as usize => self.due = number,
                    _ => {}
                }
                self.print_committed()
            }
            Err(error) => {
                let failure = self.refused(&error, Some(block));
                self.finish(Some(failure))
            }
        }
    }

    /// Closes a block, and returns its handle, and its witness if witnesses are written.
    fn close(&self, update: &StateUpdate) -> Result<(BlockHandle, Option<Witness>), Error> {
        if self.args.witness.is_none() {
            return self.engine.close_block(update).map(|handle| (handle, None));
        }
        let closed = self.engine.close_block_with_witness(update, &[]);
        closed.map(|(handle, witness)| (handle, Some(witness)))
    }

    /// Commits what is closed, prints it, and passes on the failure that ended the replay, if one did. A failure of
    /// the commitment is about an earlier block and comes first.
    fn finish(&mut self, ended_by: Option<Failure>) -> Result<(), Failure> {
        self.output.end_progress();
        match (self.engine.commit(), ended_by) {
            (Ok(_), None) => self.print_committed(),
            (Ok(_), Some(failure)) => Err(failure.and(self.print_committed())),
            (Err(Error::Stopped { .. }), Some(failure)) => Err(failure),
            (Err(error), _) => Err(self.refused(&error, None)),
        }
    }

    /// Prints what was committed before a block was refused, and the refused block if its root is why. The failure
    /// names the block's file and line.
    fn refused(&mut self, error: &Error, current: Option<Waiting>) -> Failure {
        let mut answered = self.print_committed();
        let fallback = current.as_ref().map(|block| block.location.clone());
        let about = |block: &Waiting| Some(block.number) == error.block();
        let subject = self.waiting.drain(..).chain(current).find(about);
        // The engine dropped the refused block and those after it; none of them will get a root.
        let location = subject.as_ref().map(|block| block.location.clone()).or(fallback);
        if let (Some(block), Error::RootMismatch { stated, computed, .. }) = (&subject, error) {
            answered = answered.and(self.print_block(block, *computed, Some(*stated)));
        }
        let mut failure = Failure::from(error);
        if let Error::VersionNeeded { block } = error {
            failure.message = version_needed(*block, self.args.no_verify);
        }
        failure.at(location.as_deref()).and(answered)
    }

    /// Prints the blocks whose roots have become known.
    fn print_committed(&mut self) -> Result<(), Failure> {
        let committed = self.engine.head().committed;
        while let Some(block) = self.waiting.front().filter(|block| Some(block.number) <= committed) {
            let BlockRoot { commitment, .. } = self.engine.block_root(block.number)?.unwrap_or_default();
            let Some(block) = self.waiting.pop_front() else { break };
            self.verified += u64::from(block.stated.is_some());
            self.print_block(&block, commitment, block.stated)?;
        }
        Ok(())
    }

    fn print_block(
        &mut self,
        block: &Waiting,
        root: StateCommitment,
        stated: Option<StateCommitment>,
    ) -> Result<(), Failure> {
        if self.args.json {
            let line = json!({
                "block": block.number.0,
                "layout": self.layout,
                "writes": block.writes,
                "root": root.to_string(),
                "new_root": stated.map(|stated| stated.to_string()),
                "matches": stated.map(|stated| stated == root),
            });
            return self.output.line(&line.to_string());
        }
        let verdict = match stated {
            Some(stated) if stated == root => styled(GOOD, "ok"),
            Some(stated) => styled(BAD, format!("MISMATCH, stated {stated}")),
            None => styled(DIM, "not compared"),
        };
        let (number, writes) = (block.number.0, block.writes);
        self.output
            .line(&format!("block {number:<8} {}  {writes:>6} writes  root {root}  {verdict}", self.layout))
    }

    fn summary(&mut self, started: Instant, place: &Place) -> Result<(), Failure> {
        let seconds = started.elapsed().as_secs_f64();
        let root = self.engine.head().root.commitment;
        let store = self.engine.store_name();
        if self.args.json {
            let summary = json!({
                "blocks": self.blocks, "writes": self.writes, "verified": self.verified, "seconds": seconds,
                "layout": self.layout, "store": store, "root": root.to_string(),
                "read_cache": read_cache_json(&self.engine), "record_cache": record_cache_json(&self.engine),
            });
            return self.output.line(&json!({ "summary": summary }).to_string());
        }
        self.output.line(&format!(
            "{} blocks, {} writes, {} roots compared and equal, {seconds:.2} s; {} on {store}{}",
            self.blocks,
            self.writes,
            self.verified,
            self.layout,
            place.suffix()
        ))
    }
}

/// What the engine says of a block without a version, in terms of options and updates.
fn version_needed(block: BlockNumber, no_verify: bool) -> String {
    let way_out = if no_verify {
        "name it with --starknet-version; a root that the update states tells it only without --no-verify"
    } else {
        "name it with --starknet-version, or have the update state the block's new_root"
    };
    format!(
        "block {block}: its starknet version is needed for the state commitment while no class is declared; {way_out}"
    )
}

fn read_cache_json(engine: &Engine) -> serde_json::Value {
    let stats = engine.read_cache_stats();
    json!({
        "hits": stats.hits, "absent_hits": stats.absent_hits, "misses": stats.misses,
        "evictions": stats.evictions, "entries": stats.entries, "bytes": stats.bytes,
    })
}

/// Null for a layout without such a cache.
fn record_cache_json(engine: &Engine) -> serde_json::Value {
    let counters = engine.record_cache_stats();
    counters.map_or(serde_json::Value::Null, |CacheCounters { hits, misses, evictions, bytes_max }| {
        json!({ "hits": hits, "misses": misses, "evictions": evictions, "bytes_max": bytes_max })
    })
}
