//! Producing blocks: execute, close, and say the root once it is known.
//!
//! Closing returns when the block is durable and visible. From then on the next block can execute, while the root of
//! this one follows: [`Producer::wait_for_root`] waits for it, from any thread. [`run`](super::run) puts the three in a loop.
//!
//! The executor panics where a worker cannot go on: if a read fails while a transaction is committed, and if it finds its own
//! bookkeeping of versions wrong. A panic ends neither the caller nor the workers' successors: the block fails if a read did, and
//! otherwise is executed once more, one transaction after the other, which gives the same block.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use blockifier::blockifier::concurrent_transaction_executor::ConcurrentTransactionExecutor;
use blockifier::blockifier::config::{TransactionExecutorConfig, WorkerPoolConfig};
use blockifier::blockifier::transaction_executor::{
    BlockExecutionSummary, DEFAULT_STACK_SIZE, TransactionExecutionOutput, TransactionExecutor,
    TransactionExecutorResult,
};
use blockifier::concurrency::worker_pool::WorkerPool;
use blockifier::context::BlockContext;
use blockifier::state::cached_state::CachedState;
use blockifier::transaction::transaction_execution::Transaction;
use flagstone_core::commitment::StarknetVersion;
use flagstone_core::types::{BlockNumber, ClassHash, StateId};
use flagstone_core::update::StateUpdate;
use starknet_api::block::BlockHashAndNumber;
use starknet_api::executable_transaction::AccountTransaction;

use super::classes::{ClassStore, DeclaredClass, cairo_0};
use super::convert;
use super::error::SequencerError;
use super::hints::{self, Prefetch, Recipes};
use super::reader::{ReadCounts, ViewReader};
use crate::engine::{BlockHandle, BlockRoot, Engine, NewBlock};
use crate::setters::setters;

/// How long the producer sleeps between looks at what the workers have done.
const POLL: Duration = Duration::from_micros(200);

/// Settings of a [`Producer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProducerConfig {
    /// Threads that execute transactions; 0 executes one after the other in the caller's thread. The result is the same.
    pub workers: usize,
    /// Stack of each such thread, in bytes.
    pub stack_bytes: usize,
}

impl ProducerConfig {
    setters! {
        with_workers => workers: usize,
        with_stack_bytes => stack_bytes: usize,
    }
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self { workers: 2, stack_bytes: DEFAULT_STACK_SIZE }
    }
}

/// A block to be executed on the state after the last closed one.
pub struct BlockInput {
    /// The block's header and the chain's constants. Its number must be the next one.
    pub context: BlockContext,
    /// From block 10 on, the hash of the block ten before, which the executor stores at address 0x1.
    pub old_block: Option<BlockHashAndNumber>,
    /// The transactions, in order.
    pub transactions: Vec<Transaction>,
}

/// A block that was executed and is not closed.
#[non_exhaustive]
pub struct Executed {
    /// The state it was executed on.
    pub parent: StateId,
    /// What it changes; ready for [`Producer::close`].
    pub update: StateUpdate,
    /// The classes it declares.
    pub classes: Vec<DeclaredClass>,
    /// How each transaction ended. Fewer than there were if the block became full; the rest are for a next block.
    pub outcomes: Vec<TransactionExecutorResult<TransactionExecutionOutput>>,
    /// What the executor says of the block.
    pub summary: BlockExecutionSummary,
    /// What the executor read.
    pub reads: ReadCounts,
    /// Why the block was executed once more, one transaction after the other: what the workers panicked with.
    pub panicked: Option<String>,
    /// Time from taking the view to having the state diff.
    pub elapsed: Duration,
}

/// A block that is durable and visible.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Closed {
    /// The block.
    pub number: BlockNumber,
    /// What becomes of it.
    pub block: BlockHandle,
    /// Time that closing took: all that the next block's execution waits for.
    pub elapsed: Duration,
}

/// Workers for as long as nobody else is given their results.
type Pool = WorkerPool<CachedState<ViewReader>>;

/// Makes blocks on an engine. One block at a time; roots may be waited for by other threads meanwhile.
pub struct Producer {
    engine: Arc<Engine>,
    classes: Arc<dyn ClassStore>,
    prefetch: Option<Arc<dyn Prefetch>>,
    recipes: Recipes,
    config: ProducerConfig,
    pool: Mutex<Option<Arc<Pool>>>,
}

impl Producer {
    /// A producer on an engine, with its compiled classes. Starts the workers.
    pub fn new(engine: Arc<Engine>, classes: Arc<dyn ClassStore>, config: ProducerConfig) -> Self {
        let pool = Mutex::new(start(config));
        Self { engine, classes, prefetch: None, recipes: Recipes::default(), config, pool }
    }

    /// Tells `prefetch` early what executions will read.
    #[must_use]
    pub fn with_prefetch(mut self, prefetch: Arc<dyn Prefetch>) -> Self {
        self.prefetch = Some(prefetch);
        self
    }

    /// The engine.
    pub const fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Starts reading what these transactions will read, if there is somebody who reads ahead. [`Producer::execute`] does so
    /// for its block; the earlier it is known, the better, as when a transaction enters the mempool. Returns at once.
    pub fn hint(&self, transactions: &[Transaction], context: &BlockContext) {
        if let Some(prefetch) = &self.prefetch {
            let view = self.engine.view();
            prefetch.prefetch(hints::of_transactions(transactions, context, &view, &self.recipes));
        }
    }

    /// Executes a block on the state after the last closed block, and changes nothing.
    ///
    /// A transaction that fails is among the outcomes and does not fail the block.
    ///
    /// # Errors
    /// [`SequencerError::Read`] if the state could not be read, [`SequencerError::Executor`] if the executor failed,
    /// [`SequencerError::Diff`] if its diff has keys out of range.
    pub fn execute(&self, block: &BlockInput) -> Result<Executed, SequencerError> {
        let started = Instant::now();
        let view = self.engine.view();
        let parent = view.state();
        let reader = ViewReader::new(view, Arc::clone(&self.classes));
        self.hint(&block.transactions, &block.context);
        let ahead = Ahead { producer: self, context: &block.context };
        let (executed, panicked) = self.run(block, &reader, &ahead);
        let number = BlockNumber(block.context.block_info().block_number.0);
        if let Some(problem) = reader.failure() {
            return Err(SequencerError::Read { block: number, problem: problem.to_owned() });
        }
        let (outcomes, summary) = executed
            .map_err(|stopped| SequencerError::Executor { block: number, problem: stopped.to_string() })?;
        let classes = declared(&block.transactions, &outcomes);
        let cairo_0 = |class: &DeclaredClass| class.hashes.is_none().then_some(class.class_hash);
        let deprecated: Vec<ClassHash> = classes.iter().filter_map(cairo_0).collect();
        let version = block.context.block_info().starknet_version.to_string();
        let update = StateUpdate {
            block_number: Some(number),
            starknet_version: version.parse::<StarknetVersion>().ok(),
            ..StateUpdate::from(convert::state_diff(&summary.state_diff, &deprecated)?)
        };
        let elapsed = started.elapsed();
        Ok(Executed { parent, update, classes, outcomes, summary, reads: reader.counts(), panicked, elapsed })
    }

    /// Executes on the workers, if there are any, and once more without them if they panicked, and not because of a read. Says
    /// what they panicked with, too.
    fn run(
        &self,
        block: &BlockInput,
        reader: &ViewReader,
        ahead: &Ahead<'_>,
    ) -> (Result<Outcome, Stopped>, Option<String>) {
        let sequentially = || execute_sequentially(block, reader.clone(), ahead);
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(pool) = pool else { return (sequentially(), None) };
        let executed = execute_streaming(block, reader.clone(), &pool, ahead);
        let Err(Stopped::Panicked(problem)) = executed else { return (executed, None) };
        drop(pool);
        // A pool of which one worker panicked takes no more work.
        stop(std::mem::replace(
            &mut *self.pool.lock().unwrap_or_else(PoisonError::into_inner),
            start(self.config),
        ));
        match reader.failure() {
            Some(_) => (Err(Stopped::Panicked(problem)), None),
            None => (sequentially(), Some(problem)),
        }
    }

    /// Closes a block that was executed on the last closed one: its values and classes are durable, as one unit, and visible.
    ///
    /// # Errors
    /// [`Error::WrongState`](crate::Error::WrongState) if the state it was executed on is not the last any more; as [`Engine::close_block`], and [`SequencerError::Class`] if a class could not be kept; then nothing was closed.
    pub fn close(&self, block: &Executed) -> Result<Closed, SequencerError> {
        self.close_on(Some(block.parent), &block.update, &block.classes)
    }

    /// Closes a block that was not executed, like a genesis.
    ///
    /// # Errors
    /// As [`Producer::close`].
    pub fn close_update(
        &self,
        update: &StateUpdate,
        classes: &[DeclaredClass],
    ) -> Result<Closed, SequencerError> {
        self.close_on(None, update, classes)
    }

    fn close_on(
        &self,
        parent: Option<StateId>,
        update: &StateUpdate,
        classes: &[DeclaredClass],
    ) -> Result<Closed, SequencerError> {
        let started = Instant::now();
        let view = self.engine.view();
        let number = view.block().and_then(BlockNumber::next).unwrap_or_default();
        let records = cairo_0::records(&view, number, classes, self.classes.as_ref())?;
        let blobs = [self.classes.put(classes)?, records].concat();
        let new = NewBlock::from(update).with_blobs(&blobs);
        let block = self.engine.close_block(parent.map_or(new, |parent| new.on(parent)))?;
        Ok(Closed { number: block.number(), block, elapsed: started.elapsed() })
    }

    /// The root of a closed block, once it is known.
    ///
    /// # Errors
    /// As [`Engine::wait_for_root`].
    pub fn wait_for_root(&self, block: BlockNumber) -> Result<BlockRoot, SequencerError> {
        Ok(self.engine.wait_for_root(block)?)
    }
}

impl Drop for Producer {
    /// Stops the workers.
    fn drop(&mut self) {
        stop(self.pool.get_mut().unwrap_or_else(PoisonError::into_inner).take());
    }
}

fn start(config: ProducerConfig) -> Option<Arc<Pool>> {
    let pool = WorkerPoolConfig { n_workers: config.workers, stack_size: config.stack_bytes };
    (config.workers > 0).then(|| Arc::new(WorkerPool::start(&pool)))
}

/// Waits for the workers to end. Of a pool in which one has panicked, the others end by themselves, and joining panics.
fn stop(pool: Option<Arc<Pool>>) {
    if let Some(pool) = pool.and_then(Arc::into_inner) {
        let _ = catch_unwind(AssertUnwindSafe(|| pool.join()));
    }
}

/// What is told of a block while it executes.
struct Ahead<'a> {
    producer: &'a Producer,
    context: &'a BlockContext,
}

impl Ahead<'_> {
    /// What the block's end will read, now; what calls read, for the next block's hints.
    fn outcomes(&self, outcomes: &[TransactionExecutorResult<TransactionExecutionOutput>]) {
        let Producer { prefetch: Some(prefetch), recipes, classes, .. } = self.producer else { return };
        for (_, writes) in outcomes.iter().flatten() {
            prefetch.prefetch(hints::of_writes(writes, self.context));
        }
        for (info, writes) in outcomes.iter().flatten() {
            recipes.learn(info, writes, classes.as_ref());
        }
    }
}

type Outcomes = Vec<TransactionExecutorResult<TransactionExecutionOutput>>;
type Outcome = (Outcomes, BlockExecutionSummary);

/// Why a block could not be executed.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error("{0}")]
    Failed(String),
    #[error("it panicked: {0}")]
    Panicked(String),
}

/// A panic as an error. What was being changed is dropped with the executor.
fn caught<T>(execute: impl FnOnce() -> Result<T, Stopped>) -> Result<T, Stopped> {
    let text = |panic: Box<dyn Any + Send>| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => {
            panic.downcast::<&str>().map_or_else(|_| "it does not say why".into(), |text| (*text).into())
        }
    };
    catch_unwind(AssertUnwindSafe(execute)).unwrap_or_else(|panic| Err(Stopped::Panicked(text(panic))))
}

fn failed(error: impl std::fmt::Display) -> Stopped {
    Stopped::Failed(error.to_string())
}

/// Hands all transactions to the workers, and takes what they have done as it comes.
fn execute_streaming(
    block: &BlockInput,
    reader: ViewReader,
    pool: &Arc<Pool>,
    ahead: &Ahead<'_>,
) -> Result<Outcome, Stopped> {
    let (context, pool) = (block.context.clone(), Arc::clone(pool));
    let mut executor =
        ConcurrentTransactionExecutor::start_block(reader, context, block.old_block, pool, None)
            .map_err(failed)?;
    let executed = caught(|| {
        executor.add_txs(&block.transactions);
        let mut outcomes = Outcomes::new();
        loop {
            // In this order, so that nothing that was done before the end is left behind.
            let full = executor.is_done();
            let new = executor.get_new_results();
            ahead.outcomes(&new);
            outcomes.extend(new);
            if full || outcomes.len() == block.transactions.len() {
                break;
            }
            std::thread::sleep(POLL);
        }
        let summary = executor.close_block(outcomes.len()).map_err(failed)?;
        Ok((outcomes, summary))
    });
    if executed.is_err() {
        // Otherwise the workers would wait for more transactions.
        executor.abort_block();
    }
    executed
}

fn execute_sequentially(
    block: &BlockInput,
    reader: ViewReader,
    ahead: &Ahead<'_>,
) -> Result<Outcome, Stopped> {
    caught(|| {
        let (context, config) = (block.context.clone(), TransactionExecutorConfig::default());
        let mut executor =
            TransactionExecutor::pre_process_and_create(reader, context, block.old_block, config)
                .map_err(failed)?;
        let outcomes = executor.execute_txs(&block.transactions, None);
        ahead.outcomes(&outcomes);
        let summary = executor.finalize().map_err(failed)?;
        Ok((outcomes, summary))
    })
}

/// The classes of declarations that took place.
fn declared(transactions: &[Transaction], outcomes: &Outcomes) -> Vec<DeclaredClass> {
    let took_place = |outcome: &TransactionExecutorResult<TransactionExecutionOutput>| {
        outcome.as_ref().is_ok_and(|(info, _)| !info.is_reverted())
    };
    let of_transaction = |transaction: &Transaction| match transaction {
        Transaction::Account(account) => match &account.tx {
            AccountTransaction::Declare(declare) => {
                Some(DeclaredClass::new(ClassHash(declare.class_hash().0), declare.contract_class()))
            }
            _ => None,
        },
        Transaction::L1Handler(_) => None,
    };
    let outcomes = outcomes.iter().map(took_place);
    transactions
        .iter()
        .zip(outcomes)
        .filter_map(|(transaction, declared)| declared.then(|| of_transaction(transaction)).flatten())
        .collect()
}
