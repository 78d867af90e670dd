//! The loop: block after block of a workload, each executed while the root of the one before is computed.
//!
//! A thread of its own waits for roots; at most [`ROOTS_BEHIND_MAX`] blocks may be closed without one, then the loop waits.
//! What a sequencer would do with headers, peers and a mempool is left out, and [`workload`](super::workload) makes the
//! transactions; the rest can be copied.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use flagstone_core::store::MemoryStore;
use flagstone_core::types::{BlockNumber, StateCommitment};
use flagstone_core::update::StateUpdate;

use super::workload::{self, BlockOf, Workload};
use super::{Executed, Producer, ReadCounts, SequencerError};
use crate::engine::{Cadence, Engine, EngineConfig};
use crate::registry::LAYOUTS;

/// Most blocks that are closed and whose root nobody has taken yet.
pub const ROOTS_BEHIND_MAX: usize = 4;

/// What is to be run.
///
/// Callers build it by a literal, so it is not `#[non_exhaustive]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunConfig {
    /// The load.
    pub workload: Workload,
    /// Another seed gives other transactions.
    pub seed: u64,
    /// How many blocks to produce. The genesis, if there is none yet, is one more.
    pub blocks: u64,
    /// Transactions of each block.
    pub transactions: usize,
    /// Compare each root with that of another layout in memory, which takes the same diffs from the genesis on. Without a
    /// genesis there is nothing to begin from, and nothing is compared.
    pub verify: bool,
}

/// A block, once its root is known.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BlockReport {
    /// The block.
    pub number: BlockNumber,
    /// Transactions in it.
    pub transactions: usize,
    /// Those that were reverted or refused.
    pub failed: usize,
    /// Values that it wrote.
    pub writes: usize,
    /// Time of its execution.
    pub execution: Duration,
    /// Time of its closing.
    pub close: Duration,
    /// What its execution waited for between the closing before and its start: that few enough roots are behind, and the root
    /// of the block ten before.
    pub waited: Duration,
    /// From its closing to its root.
    pub root_latency: Duration,
    /// Blocks that were closed without a root when its root became known.
    pub lag: u64,
    /// What the executor read.
    pub reads: ReadCounts,
    /// Share of the values read that were in memory.
    pub hit_rate: f64,
    /// Its root.
    pub root: StateCommitment,
    /// Whether another layout gave the same root.
    pub verified: bool,
    /// As [`Executed::panicked`].
    pub panicked: Option<String>,
}

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Summary {
    /// Blocks, without the genesis.
    pub blocks: u64,
    /// Transactions in them.
    pub transactions: u64,
    /// Those that were reverted or refused.
    pub failed: u64,
    /// Time of all executions.
    pub execution: Duration,
    /// Time of all closings.
    pub close: Duration,
    /// All that executions waited for between closings and their starts.
    pub waited: Duration,
    /// What the executor read.
    pub reads: ReadCounts,
    /// That without the run's first block, which finds less in memory.
    pub reads_after_first: ReadCounts,
    /// Values read ahead that were not in memory: reads that hints took off the executor, or that nobody needed.
    pub read_ahead: u64,
    /// From the first execution to the last root.
    pub elapsed: Duration,
    /// Blocks whose root another layout gave, too; the genesis included.
    pub verified: u64,
}

/// A closed block that waits for its root.
struct Waiting {
    report: BlockReport,
    update: StateUpdate,
    closed_at: Instant,
}

/// Produces blocks until there are enough of them or `stop` is set, which is looked at between blocks. Reports come in
/// order, some blocks behind the execution; all of them are in when this returns.
///
/// # Errors
/// [`SequencerError::Foreign`] if the database holds something else; otherwise as [`Producer::execute`],
/// [`Producer::close`] and [`Producer::wait_for_root`]. What was reported before stays.
pub fn run(
    producer: &Producer,
    config: &RunConfig,
    stop: &AtomicBool,
    report: &mut dyn FnMut(&BlockReport),
) -> Result<Summary, SequencerError> {
    let (waiting, closed) = sync_channel::<Waiting>(ROOTS_BEHIND_MAX);
    let (rooted, reports) = channel::<BlockReport>();
    let fresh = producer.engine().head().closed.is_none();
    let shadow = if config.verify && fresh { Some(shadow(producer)?) } else { None };
    let ahead_before = producer.engine().hint_stats().missed;
    let started = Instant::now();
    let mut summary = Summary::default();
    let mut take = |reports: &mut dyn Iterator<Item = BlockReport>| {
        for block in reports {
            summary.add(&block);
            report(&block);
        }
    };
    std::thread::scope(|scope| {
        let follower = scope.spawn(move || follow(producer, shadow.as_ref(), &closed, &rooted));
        let produced = produce(producer, config, stop, waiting, &mut || take(&mut reports.try_iter()));
        take(&mut reports.iter());
        let followed = follower.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // Without roots nothing can be produced for long: what stopped the follower comes first.
        followed.and(produced)
    })?;
    summary.elapsed = started.elapsed();
    summary.read_ahead = producer.engine().hint_stats().missed - ahead_before;
    Ok(summary)
}

impl Summary {
    fn add(&mut self, block: &BlockReport) {
        self.verified += u64::from(block.verified);
        if block.number == BlockNumber(0) {
            return;
        }
        self.blocks += 1;
        self.transactions += block.transactions as u64;
        self.failed += block.failed as u64;
        self.execution += block.execution;
        self.close += block.close;
        self.waited += block.waited;
        self.reads += block.reads;
        if self.blocks > 1 {
            self.reads_after_first += block.reads;
        }
    }

    /// Time in which blocks are made: executing, closing, and waiting for either.
    pub fn producing(&self) -> Duration {
        self.execution + self.close + self.waited
    }

    /// Share of that time in which nothing executes, as flagstone is waited for between blocks.
    pub fn waiting(&self) -> f64 {
        (self.close + self.waited).as_secs_f64() / self.producing().as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Share of that time that reads took which were not answered from memory. They wait for one another in the executor.
    pub fn missing(&self) -> f64 {
        self.reads.missing.as_secs_f64() / self.producing().as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Another layout than the producer's, empty and in memory.
fn shadow(producer: &Producer) -> Result<Engine, SequencerError> {
    let layout = producer.engine().identity().layout;
    let other = LAYOUTS.iter().find(|entry| entry.name != layout).unwrap_or(&LAYOUTS[0]);
    // Closing must say whether the root is the same.
    let config = EngineConfig {
        cadence: Cadence::AtClose,
        read_cache_bytes: 0,
        recent_blocks_max: 0,
        history_blocks: 0,
        ..EngineConfig::default()
    };
    Ok(Engine::open(Box::new(MemoryStore::new()), other.make(), config)?)
}

/// The part that must not wait: executes and closes.
fn produce(
    producer: &Producer,
    config: &RunConfig,
    stop: &AtomicBool,
    waiting: SyncSender<Waiting>,
    between: &mut dyn FnMut(),
) -> Result<(), SequencerError> {
    if producer.engine().head().closed.is_none() {
        let genesis = workload::genesis()?;
        let closed = producer.close_update(&genesis.update, &genesis.classes)?;
        let report = BlockReport::of(&genesis.update, closed.elapsed);
        if waiting.send(Waiting { report, update: genesis.update, closed_at: Instant::now() }).is_err() {
            return Ok(());
        }
    }
    workload::check_genesis(&producer.engine().view())?;
    let mut waited = Duration::ZERO;
    for _ in 0..config.blocks {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let view = producer.engine().view();
        let number = view.block().and_then(BlockNumber::next).unwrap_or_default();
        let asked_at = Instant::now();
        let old = number.0.checked_sub(10).map(|old| producer.wait_for_root(BlockNumber(old))).transpose()?;
        waited += asked_at.elapsed();
        let of = BlockOf {
            workload: config.workload,
            seed: config.seed,
            number,
            transactions: config.transactions,
        };
        let block = workload::block(&of, &view, old.map(|root| root.commitment))?;
        let executed = producer.execute(&block)?;
        let closed = producer.close(&executed)?;
        let closed_at = Instant::now();
        let report = BlockReport { waited, ..BlockReport::of_executed(&executed, closed.elapsed) };
        if waiting.send(Waiting { report, update: executed.update, closed_at }).is_err() {
            // The follower has stopped and says why.
            break;
        }
        waited = closed_at.elapsed();
        between();
    }
    Ok(())
}

/// The part that follows: waits for roots, compares them, and reports.
fn follow(
    producer: &Producer,
    shadow: Option<&Engine>,
    closed: &Receiver<Waiting>,
    rooted: &Sender<BlockReport>,
) -> Result<(), SequencerError> {
    for Waiting { mut report, mut update, closed_at } in closed {
        let root = producer.wait_for_root(report.number)?;
        report.root_latency = closed_at.elapsed();
        report.root = root.commitment;
        let newest = producer.engine().head().closed.unwrap_or_default();
        report.lag = newest.0.saturating_sub(report.number.0);
        if let Some(shadow) = shadow {
            update.new_root = Some(root.commitment);
            shadow.close_block(&update)?;
            report.verified = true;
        }
        if rooted.send(report).is_err() {
            break;
        }
    }
    Ok(())
}

impl BlockReport {
    /// Of a block without transactions, as far as it is known when it is closed.
    fn of(update: &StateUpdate, close: Duration) -> Self {
        Self {
            number: update.block_number.unwrap_or_default(),
            transactions: 0,
            failed: 0,
            writes: update.diff.writes(),
            execution: Duration::ZERO,
            close,
            waited: Duration::ZERO,
            root_latency: Duration::ZERO,
            lag: 0,
            reads: ReadCounts::default(),
            hit_rate: 1.0,
            root: StateCommitment::ZERO,
            verified: false,
            panicked: None,
        }
    }

    fn of_executed(block: &Executed, close: Duration) -> Self {
        let succeeded = |outcome: &&_| matches!(outcome, Ok((info, _)) if !is_reverted(info));
        Self {
            transactions: block.outcomes.len(),
            failed: block.outcomes.len() - block.outcomes.iter().filter(succeeded).count(),
            execution: block.elapsed,
            reads: block.reads,
            hit_rate: block.reads.hit_rate(),
            panicked: block.panicked.clone(),
            ..Self::of(&block.update, close)
        }
    }
}

fn is_reverted(info: &blockifier::transaction::objects::TransactionExecutionInfo) -> bool {
    info.is_reverted()
}
