//! `flagstone replay`: the main job. State updates in, roots out, each compared with the stated one.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;

use flagstone::core::layout::CacheCounters;
use flagstone::core::types::{BlockNumber, StateCommitment};
use flagstone::core::witness::Witness;
use flagstone::engine::BlockRoot;
use flagstone::input::{LocatedUpdate, UpdateReader};
use flagstone::{Cadence, Engine, EngineConfig, Error, StateUpdate, registry};
use serde_json::json;

use super::output::{BAD, DIM, GOOD, Output, styled};
use super::place::Place;
use super::{Failure, Replay, witness};

/// A closed block whose line is not printed yet, because its root is not known yet.
struct Waiting {
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
    let place = Place::new(args.data.as_deref(), args.store.as_deref())?;
    let defaults = EngineConfig::default();
    let history_blocks = args.history.unwrap_or(defaults.history_blocks);
    let record_cache_bytes = args.record_cache.map(|mebibytes| mebibytes.saturating_mul(1 << 20));
    let config = EngineConfig {
        cadence: args.commit,
        threads: args.threads,
        history_blocks,
        record_cache_bytes,
        ..defaults
    };
    let layout = args.layout.as_deref().map(registry::layout).transpose()?;
    let engine = place.open(layout, args.store.as_deref(), config)?;
    let layout = engine.identity().layout;
    let mut replayer = Replayer {
        args,
        output,
        engine,
        layout,
        waiting: VecDeque::new(),
        blocks: 0,
        writes: 0,
        verified: 0,
    };
    for file in &args.files {
        replayer.file(file)?;
    }
    replayer.finish(None)?;
    replayer.summary(started, &place);
    Ok(())
}

impl Replayer<'_> {
    fn file(&mut self, path: &Path) -> Result<(), Failure> {
        let mut updates = match UpdateReader::open(path) {
            Ok(updates) => updates,
            Err(error) => return self.finish(Some(error.into())),
        };
        self.output.start_progress(updates.total_bytes());
        while let Some(update) = updates.next() {
            match update {
                Ok(update) => self.block(update)?,
                Err(error) => return self.finish(Some(error.into())),
            }
            let blocks = self.blocks;
            self.output.progress(updates.bytes_read(), || format!("{blocks} blocks"));
        }
        self.output.end_progress();
        Ok(())
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
        let block = Waiting {
            number: update.block_number.or(next).unwrap_or_default(),
            location: format!("{}:{}", located.source, located.line),
            writes: update.diff.writes(),
            stated: update.new_root,
        };
        match self.close(&update) {
            Ok(witness) => {
                if let (Some(witness), Some(dir)) = (witness, &self.args.witness) {
                    witness::write(&witness, block.number, dir, self.args.witness_json)?;
                }
                self.blocks += 1;
                self.writes += block.writes as u64;
                self.waiting.push_back(block);
                self.print_committed()
            }
            Err(error) => {
                let failure = self.refused(&error, Some(block))?;
                self.finish(Some(failure))
            }
        }
    }

    /// Closes a block, and returns its witness if witnesses are written.
    fn close(&self, update: &StateUpdate) -> Result<Option<Witness>, Error> {
        if self.args.witness.is_none() {
            return self.engine.close_block(update).map(|_| None);
        }
        self.engine.close_block_with_witness(update, &[]).map(|(_, witness)| Some(witness))
    }

    /// Commits what is closed, prints it, and passes on the failure that ended the replay, if one did. A failure of
    /// the commitment is about an earlier block and comes first.
    fn finish(&mut self, ended_by: Option<Failure>) -> Result<(), Failure> {
        self.output.end_progress();
        match (self.engine.commit(), ended_by) {
            (Ok(_), None) => self.print_committed(),
            (Ok(_), Some(failure)) => {
                self.print_committed()?;
                Err(failure)
            }
            (Err(Error::Stopped { .. }), Some(failure)) => Err(failure),
            (Err(error), _) => Err(self.refused(&error, None)?),
        }
    }

    /// Prints what was committed before a block was refused, and the refused block if its root is why. The failure
    /// names the block's file and line.
    fn refused(&mut self, error: &Error, current: Option<Waiting>) -> Result<Failure, Failure> {
        self.print_committed()?;
        let fallback = current.as_ref().map(|block| block.location.clone());
        let about = |block: &Waiting| Some(block.number) == error.block();
        let subject = self.waiting.drain(..).chain(current).find(about);
        // The engine dropped the refused block and those after it; none of them will get a root.
        let location = subject.as_ref().map(|block| block.location.clone()).or(fallback);
        if let (Some(block), Error::RootMismatch { stated, computed, .. }) = (&subject, error) {
            self.print_block(block, *computed, Some(*stated));
        }
        Ok(match location {
            Some(location) => Failure::at(&location, error),
            None => Failure { message: error.to_string(), code: super::exit_code(error) },
        })
    }

    /// Prints the blocks whose roots have become known.
    fn print_committed(&mut self) -> Result<(), Failure> {
        let committed = self.engine.head().committed;
        while let Some(block) = self.waiting.front().filter(|block| Some(block.number) <= committed) {
            let BlockRoot { commitment, .. } = self.engine.block_root(block.number)?.unwrap_or_default();
            let Some(block) = self.waiting.pop_front() else { break };
            self.verified += u64::from(block.stated.is_some());
            self.print_block(&block, commitment, block.stated);
        }
        Ok(())
    }

    fn print_block(&mut self, block: &Waiting, root: StateCommitment, stated: Option<StateCommitment>) {
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
            .line(&format!("block {number:<8} {}  {writes:>6} writes  root {root}  {verdict}", self.layout));
    }

    fn summary(&mut self, started: Instant, place: &Place) {
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
        ));
    }
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
