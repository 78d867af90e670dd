//! Settings of an engine. Each bound says what happens when it is reached.

use std::num::NonZeroU32;

/// When closed blocks are committed. The roots are the same whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cadence {
    /// When this many blocks are closed and not committed; 1 commits each block as it closes.
    Blocks(NonZeroU32),
    /// When [`Engine::commit`](crate::engine::Engine::commit) is called, or a bound is reached.
    OnRequest,
}

impl Cadence {
    /// Each block as it closes.
    pub const EVERY_BLOCK: Self = Self::Blocks(NonZeroU32::MIN);
}

/// Settings of an engine. None of them is stored: a database may be opened with others each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// When closed blocks are committed.
    pub cadence: Cadence,
    /// Threads for commitment; 0 means as many as the machine has cores.
    pub threads: usize,
    /// Most blocks that may be closed and not committed. At the bound, closing a block commits them first.
    pub pending_blocks_max: usize,
    /// Most values that may be closed and not committed. At the bound, closing a block commits them first.
    pub pending_writes_max: usize,
    /// With a journal, the store is synced after so many blocks (or 32 MiB of their diffs). More mean a longer replay
    /// after a crash, and nothing else.
    pub persist_every: u32,
    /// Most bytes of the cache of values in front of the layout; 0 turns it off. At the bound, the values that were
    /// longest not used leave it.
    pub read_cache_bytes: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            cadence: Cadence::EVERY_BLOCK,
            threads: 0,
            pending_blocks_max: 1024,
            pending_writes_max: 1 << 20,
            persist_every: 64,
            read_cache_bytes: 32 << 20,
        }
    }
}
