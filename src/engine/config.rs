//! Settings of an engine. Each bound says what happens when it is reached.

use std::num::NonZeroU32;

use flagstone_core::layout::Layout;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::rows::Bounds;
use crate::error::Error;
use crate::journal::JournalConfig;
use crate::setters::setters;
use crate::threads::give_way;

/// Most threads that may be asked for, more than any machine in sight has cores. Each takes memory and a place in the
/// system's table: without a bound, a slip of the finger takes all of both.
pub const THREADS_MAX: usize = 1024;

/// When closed blocks are committed. The roots are the same whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cadence {
    /// Before the block is acknowledged: closing returns with its root, and refuses a block whose root is not the stated
    /// one before anything of it is kept.
    AtClose,
    /// In the background, when this many blocks are closed and not committed; then all of them.
    Blocks(NonZeroU32),
    /// In the background, when [`Engine::commit`](crate::engine::Engine::commit) or
    /// [`Engine::wait_for_root`](crate::engine::Engine::wait_for_root) asks, or a bound is reached.
    OnRequest,
}

impl Cadence {
    /// In the background, each block as soon as it is closed.
    pub const EVERY_BLOCK: Self = Self::Blocks(NonZeroU32::MIN);
}

/// Settings of an engine. None of them is stored: a database may be opened with others each time.
///
/// ```
/// use flagstone::{Cadence, EngineConfig};
///
/// let config = EngineConfig::default().with_cadence(Cadence::AtClose).with_threads(2);
/// assert_eq!((config.threads, config.coalesce), (2, false));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineConfig {
    /// When closed blocks are committed.
    pub cadence: Cadence,
    /// Whether blocks that are committed together may share one commitment: only the last of them then gets a root (and
    /// only its stated root is compared), and they are taken back together.
    pub coalesce: bool,
    /// Threads for commitment; 0 means as many as the machine has cores. More than [`THREADS_MAX`] are refused.
    pub threads: usize,
    /// Most blocks that may be closed and not committed. At the bound, closing a block waits for the commitment.
    pub pending_blocks_max: usize,
    /// Most values that may be closed and not committed; each takes some 300 bytes until then, and 300 bytes of blobs count as
    /// one. At the bound, closing a block waits for the commitment.
    pub pending_writes_max: usize,
    /// Most batches that may be committed and not written to the store. At the bound, commitment waits for the store.
    pub unwritten_batches_max: usize,
    /// About how many bytes of batches may be committed and not written to the store. At the bound, commitment waits.
    pub unwritten_bytes_max: usize,
    /// With a journal, the store is synced after so many blocks (or 32 MiB of their diffs). More mean a longer replay
    /// after a crash, and nothing else.
    pub persist_every: u32,
    /// How long a segment of the journal gets before the next one begins. The journal is let go of by whole segments: shorter ones
    /// leave sooner, and cost more syncs.
    pub journal_segment_bytes: u64,
    /// Most bytes of cached values in front of the layout; 0 turns the cache off. At the bound, values leave it
    /// that were not used for long.
    pub read_cache_bytes: usize,
    /// Most bytes of trie records that the layout keeps decoded between commitments; `None` leaves that to the layout, or in a
    /// [`database`](crate::database) in a directory is [`RECORD_CACHE_BYTES`](crate::database::RECORD_CACHE_BYTES). At the
    /// bound, records that were longest not used leave memory; a layout without such a cache takes no notice.
    pub record_cache_bytes: Option<usize>,
    /// About how many bytes values of blocks in the store may take, which keep views of the last blocks alive. At the
    /// bound the oldest block's leave, and views from before it expire.
    pub recent_bytes_max: usize,
    /// Of how many blocks in the store the values are kept so.
    pub recent_blocks_max: usize,
    /// How many of the last committed blocks can be taken back ([`Engine::revert_to`](crate::engine::Engine::revert_to)),
    /// viewed and proved ([`Engine::view_at`](crate::engine::Engine::view_at)). What takes older ones back is deleted; a layout
    /// that keeps old states can still be viewed and proved there.
    pub history_blocks: usize,
    /// Most bytes of rows that were overwritten, and are kept for who reads an earlier state in its tries. At the bound, the oldest
    /// reader fails with an error whose kind is [`ErrorKind::Expired`](crate::ErrorKind::Expired).
    pub reader_bytes_max: usize,
    /// The same where the store lends snapshots, so that what is overwritten stays on the disk: about how many bytes may be written
    /// while somebody reads an earlier state. At the bound, the oldest reader fails.
    pub lent_bytes_max: u64,
    /// About how many bytes values of blocks in the store may take while a view from before them is pinned
    /// ([`View::pinned`](crate::engine::View::pinned)). At the bound the oldest pinned views expire.
    pub pinned_bytes_max: usize,
    /// Most bytes that are kept of earlier states that were viewed or proved, for who asks for them again. At the bound those that were
    /// longest not asked for leave; so do all that nobody asks for.
    pub past_bytes_max: usize,
    /// Most candidates ([`Engine::propose`](crate::engine::Engine::propose)); more are refused.
    pub candidates_max: usize,
    /// About how many bytes candidates may take together, without what is computed for them; more are refused.
    pub candidate_bytes_max: usize,
    /// How many rows a second the background scrub reads at most, to find value rows that were lost or are old; 0 turns it
    /// off. A layout whose values are in its tries has nothing to scrub.
    pub scrub_rows_per_second: u32,
}

impl EngineConfig {
    setters! {
        with_cadence => cadence: Cadence,
        with_coalesce => coalesce: bool,
        with_threads => threads: usize,
        with_pending_blocks_max => pending_blocks_max: usize,
        with_pending_writes_max => pending_writes_max: usize,
        with_unwritten_batches_max => unwritten_batches_max: usize,
        with_unwritten_bytes_max => unwritten_bytes_max: usize,
        with_persist_every => persist_every: u32,
        with_journal_segment_bytes => journal_segment_bytes: u64,
        with_read_cache_bytes => read_cache_bytes: usize,
        with_record_cache_bytes => record_cache_bytes: Option<usize>,
        with_recent_bytes_max => recent_bytes_max: usize,
        with_recent_blocks_max => recent_blocks_max: usize,
        with_history_blocks => history_blocks: usize,
        with_reader_bytes_max => reader_bytes_max: usize,
        with_lent_bytes_max => lent_bytes_max: u64,
        with_pinned_bytes_max => pinned_bytes_max: usize,
        with_past_bytes_max => past_bytes_max: usize,
        with_candidates_max => candidates_max: usize,
        with_candidate_bytes_max => candidate_bytes_max: usize,
        with_scrub_rows_per_second => scrub_rows_per_second: u32,
    }

    /// Refuses settings that cannot work.
    ///
    /// # Errors
    /// [`Error::Config`] that names the setting, what it is, and its bound.
    pub fn check(&self) -> Result<(), Error> {
        if self.threads > THREADS_MAX {
            let asked = self.threads;
            return Err(Error::Config(format!(
                "{asked} threads for commitment are asked for, at most {THREADS_MAX} can be; 0 takes one for each core"
            )));
        }
        Ok(())
    }

    /// How much may be kept for readers.
    pub(super) fn reader_bounds(&self) -> Bounds {
        Bounds { kept_bytes: self.reader_bytes_max, lent_bytes: self.lent_bytes_max }
    }

    /// The bounds of its journal: zeros are not written farther ahead than a segment is long.
    pub(super) fn journal(&self) -> JournalConfig {
        let (config, bytes) = (JournalConfig::default(), self.journal_segment_bytes);
        config.with_segment_bytes(bytes).with_preallocate_bytes(config.preallocate_bytes.min(bytes))
    }

    /// Tells a layout how much it may keep.
    pub(super) fn bound_cache_of(&self, layout: &dyn Layout) {
        if let Some(bytes_max) = self.record_cache_bytes {
            layout.set_cache_bytes(bytes_max);
        }
    }

    /// Its threads, named for `what` they do.
    pub(super) fn pool(&self, what: &'static str) -> Result<ThreadPool, Error> {
        self.pool_of(what, ThreadPoolBuilder::new())
    }

    /// The same, of threads that give way to others.
    pub(super) fn background_pool(&self, what: &'static str) -> Result<ThreadPool, Error> {
        self.pool_of(what, ThreadPoolBuilder::new().start_handler(|_| give_way()))
    }

    fn pool_of(&self, what: &'static str, threads: ThreadPoolBuilder) -> Result<ThreadPool, Error> {
        self.check()?;
        let threads = threads.num_threads(self.threads);
        let named = threads.thread_name(move |index| format!("flagstone-{what}-{index}"));
        named.build().map_err(|error| {
            Error::Config(format!(
                "cannot start the {what} threads ({} were asked for): {error}",
                self.threads
            ))
        })
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            cadence: Cadence::EVERY_BLOCK,
            coalesce: false,
            threads: 0,
            pending_blocks_max: 1024,
            pending_writes_max: 100_000,
            unwritten_batches_max: 8,
            unwritten_bytes_max: 16 << 20,
            persist_every: 64,
            journal_segment_bytes: JournalConfig::default().segment_bytes,
            read_cache_bytes: 32 << 20,
            record_cache_bytes: None,
            recent_bytes_max: 16 << 20,
            recent_blocks_max: 64,
            history_blocks: 64,
            reader_bytes_max: 256 << 20,
            lent_bytes_max: 8 << 30,
            pinned_bytes_max: 256 << 20,
            past_bytes_max: 64 << 20,
            candidates_max: 64,
            candidate_bytes_max: 256 << 20,
            scrub_rows_per_second: 1000,
        }
    }
}
