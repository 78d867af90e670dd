//! From a dump to a database: the one place besides the engine that writes a store, one that has no engine yet.
//!
//! A chunk of the dump is a diff on what came before, and is committed as one. Chunks are sorted, so each touches only the
//! right edge of a trie, and nearly every node is written once. What a chunk sets, and how far the import has come, are
//! one batch: after a kill the same command goes on behind the last chunk that the store has.
//!
//! Three things happen at a time: the dump is read, unpacked and parsed; a chunk is committed; and the batch of the chunk
//! before is written. The commitment reads that batch before the store.
//!
//! Until it is done, a store has no identity, so nothing opens it as a database. The last batch gives it one, with head
//! and block root, once the roots are those of the dump. A wrong storage root is noticed with the chunk its contract ends
//! in, and that chunk is not written.

use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use flagstone_core::commit::ContractLeafChange;
use flagstone_core::commitment::Roots;
use flagstone_core::felt::Felt;
use flagstone_core::hash::{Bulk, Hasher};
use flagstone_core::layout::{Layout, StateAt};
use flagstone_core::store::{Store, StoreError, WriteBatch};
use flagstone_core::trie::TrieId;

use super::config::EngineConfig;
use super::identity::{Unfinished, read_identity, read_unfinished};
use super::meta::{self, BlockFacts, BlockRoot, Identity, StoredHead};
use super::rows::{Layered, require_atomic_batches};
use super::running::Engine;
use crate::error::{Error, ImportOf};
use crate::journal::DatabaseId;
use crate::snapshot::error::SnapshotError;
use crate::snapshot::format::{Counts, Header};
use crate::snapshot::read::{Chunk, DumpReader, Position};
use crate::store::Sealed;

/// Chunks that are read ahead.
const READ_AHEAD: usize = 2;

/// The store is synced after so many chunks: what a power cut can take back.
const SYNC_CHUNKS: u32 = 128;

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ImportProgress {
    /// What the database has.
    pub counts: Counts,
    /// Bytes of the dump that were read for it.
    pub bytes: u64,
}

/// What was imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// What the dump said it is.
    pub header: Header,
    /// How much it held.
    pub counts: Counts,
    /// Items that an earlier run had imported already.
    pub resumed_after: u64,
}

impl Engine {
    /// Fills an empty store, or one with an unfinished import of the same dump, with the state that a dump holds. After
    /// that it can be opened as a database, whose next block is the one after the dump's.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if the dump is damaged, cut short, or cannot be read; [`Error::ImportRefused`] if its values do
    /// not give the roots that it states; [`Error::OtherImport`] if the store holds an unfinished import of another dump,
    /// or into another layout; [`Error::State`] if the store fails. The store keeps what was imported, except after a
    /// refusal, when it is of no use.
    pub fn import(
        store: Box<dyn Store>,
        layout: &dyn Layout,
        config: &EngineConfig,
        dump: impl Read + Send,
        progress: &mut dyn FnMut(ImportProgress),
    ) -> Result<Imported, Error> {
        let store = Sealed::from_box(store);
        import(&store, layout, config, dump, progress)
    }
}

/// [`Engine::import`] for a store that is behind seals already.
pub(crate) fn import(
    store: &dyn Store,
    layout: &dyn Layout,
    config: &EngineConfig,
    dump: impl Read + Send,
    progress: &mut dyn FnMut(ImportProgress),
) -> Result<Imported, Error> {
    let pool = config.pool("import")?;
    config.bound_cache_of(layout);
    let mut dump = DumpReader::new(dump)?;
    if let Some(counts) = finished_before(store, layout, &mut dump)? {
        return Ok(Imported { header: dump.header(), counts, resumed_after: counts.items() });
    }
    let from = begin(store, layout, dump.header())?;
    let resumed_after = from.counts.items();
    let (chunks, next_chunk) = sync_channel(READ_AHEAD);
    let (batches, next_batch) = sync_channel(0);
    let done = thread::scope(|scope| {
        scope.spawn(move || read_chunks(dump, &chunks));
        let writer = scope.spawn(move || write_batches(store, &next_batch));
        let import = Import { layout, store, pool: &pool, hasher: &Bulk, ahead: None, batches, at: from };
        let done = import.run(&next_chunk, progress);
        // The reader ends when its next chunk finds nobody.
        drop(next_chunk);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // A store that fails is why the rest failed.
        written.map_err(Error::from).and(done)
    })?;
    finish(store, &done)?;
    Ok(Imported { header: done.header, counts: done.counts, resumed_after })
}

/// Where to begin: at the start of an empty store, or behind what an earlier run has imported of the same dump.
fn begin(store: &dyn Store, layout: &dyn Layout, header: Header) -> Result<Unfinished, Error> {
    require_atomic_batches(store, "an import")?;
    let identity = Identity::of(layout);
    if let Some(unfinished) = read_unfinished(store)? {
        if unfinished.header != header || unfinished.identity != identity {
            return Err(other_import(&unfinished, &header, &identity));
        }
        return Ok(unfinished);
    }
    if !meta::is_empty(store)? {
        return Err(Error::Refused(
            "the store to import into is not empty; an import makes a new database".to_owned(),
        ));
    }
    let (counts, roots) = (Counts::default(), Roots::default());
    let start = Unfinished { header, chunks: 0, counts, last: Position::Start, roots, identity };
    let mut batch = WriteBatch::default();
    batch.put(meta::meta_key(meta::IMPORT), start.encode());
    store.write(&batch)?;
    store.sync()?;
    Ok(start)
}

fn other_import(begun: &Unfinished, header: &Header, identity: &Identity) -> Error {
    let import = |header: &Header, identity: &Identity| {
        let (block, commitment, layout) = (header.block, header.commitment, identity.layout.clone());
        Box::new(ImportOf { block, commitment, layout })
    };
    Error::OtherImport { begun: import(&begun.header, &begun.identity), given: import(header, identity) }
}

/// What the dump holds, if the store has all of it and is a database already: an earlier run was ended after its last
/// batch.
fn finished_before<R: Read>(
    store: &dyn Store,
    layout: &dyn Layout,
    dump: &mut DumpReader<R>,
) -> Result<Option<Counts>, Error> {
    if store.get(&meta::meta_key(meta::IMPORT))?.is_some() || meta::is_empty(store)? {
        return Ok(None);
    }
    let Some(stored) = read_identity(store)? else { return Ok(None) };
    Identity::of(layout).check(&stored)?;
    let (head, header) = (meta::read_head(store)?, dump.header());
    if (head.block, head.root.roots) != (Some(header.block), header.roots) {
        return Ok(None);
    }
    while dump.next_chunk()?.is_some() {}
    Ok(dump.summary().map(|summary| summary.counts))
}

/// The last batch: the store is a database from here on.
fn finish(store: &dyn Store, done: &Unfinished) -> Result<(), Error> {
    let block = done.header.block;
    let root = BlockRoot { roots: done.roots, commitment: done.header.commitment };
    let mut batch = WriteBatch::default();
    batch.delete(meta::meta_key(meta::IMPORT));
    meta::put_identity(&mut batch, &done.identity);
    let state = meta::fresh_state();
    meta::put_database(&mut batch, DatabaseId::fresh());
    meta::put_block(&mut batch, block, &BlockFacts { root, state, first: block, hash: None });
    meta::put_head(&mut batch, &StoredHead { block: Some(block), root, state, ..StoredHead::default() });
    // Nothing before it may be missing when it is there.
    store.sync()?;
    store.write(&batch)?;
    Ok(store.sync()?)
}

/// A chunk and how many bytes of the dump were read with it.
type ReadAhead = Result<Option<(Chunk, u64)>, SnapshotError>;

fn read_chunks<R: Read>(mut dump: DumpReader<R>, chunks: &SyncSender<ReadAhead>) {
    loop {
        let chunk = dump.next_chunk().map(|chunk| chunk.map(|chunk| (chunk, dump.bytes())));
        let last = !matches!(chunk, Ok(Some(_)));
        if chunks.send(chunk).is_err() || last {
            return;
        }
    }
}

fn write_batches(store: &dyn Store, batches: &Receiver<Arc<WriteBatch>>) -> Result<(), StoreError> {
    let mut unsynced = 0;
    for batch in batches {
        store.write(&batch)?;
        unsynced += 1;
        if unsynced == SYNC_CHUNKS {
            store.sync()?;
            unsynced = 0;
        }
    }
    Ok(())
}

struct Import<'a> {
    layout: &'a dyn Layout,
    store: &'a dyn Store,
    pool: &'a rayon::ThreadPool,
    hasher: &'a dyn Hasher,
    /// The batch that is being written.
    ahead: Option<Arc<WriteBatch>>,
    batches: SyncSender<Arc<WriteBatch>>,
    at: Unfinished,
}

impl Import<'_> {
    /// Imports all chunks and checks the roots.
    fn run(
        mut self,
        chunks: &Receiver<ReadAhead>,
        progress: &mut dyn FnMut(ImportProgress),
    ) -> Result<Unfinished, Error> {
        let first = self.at.chunks;
        while let Ok(chunk) = chunks.recv() {
            let Some((chunk, bytes)) = chunk? else {
                return self.check_roots();
            };
            if chunk.number < first {
                self.skip(&chunk, first)?;
            } else {
                self.chunk(&chunk)?;
            }
            progress(ImportProgress { counts: self.at.counts, bytes });
        }
        Err(Error::Config("the dump's reader has ended early".to_owned()))
    }

    /// A chunk that the store has already; the last of these must end where the store's import does.
    fn skip(&self, chunk: &Chunk, first: u32) -> Result<(), Error> {
        if chunk.number.checked_add(1) == Some(first) && chunk.last != self.at.last {
            return Err(other_import(&self.at, &self.at.header, &self.at.identity));
        }
        Ok(())
    }

    fn chunk(&mut self, chunk: &Chunk) -> Result<(), Error> {
        let rows = Layered { layers: self.ahead.as_slice(), store: self.store };
        let state = StateAt { store: &rows, roots: self.at.roots };
        let stage = || self.layout.stage_commitment(state, &[&chunk.diff], self.hasher);
        let staged = self.pool.install(stage)?;
        let changed = staged.contracts.last().map(Vec::as_slice).unwrap_or_default();
        self.check_claims(chunk, changed)?;
        let mut batch = self.layout.stage_values(&chunk.diff);
        batch.append(staged.batch);
        self.at.roots = staged.roots.last().copied().unwrap_or(self.at.roots);
        self.at.chunks = chunk.number.saturating_add(1);
        self.at.counts += chunk.counts;
        self.at.last = chunk.last;
        batch.put(meta::meta_key(meta::IMPORT), self.at.encode());
        let batch = Arc::new(batch);
        // Returns when the writer takes it, and so has written the one before.
        let taken = self.batches.send(Arc::clone(&batch));
        self.ahead = Some(batch);
        staged.applied.into_iter().for_each(|applied| applied());
        taken.map_err(|_| Error::Config("the writer of the import has ended early".to_owned()))
    }

    /// Every contract that ends in a chunk changes its leaf in it, or did so in the one before and is as it was.
    fn check_claims(&self, chunk: &Chunk, changed: &[ContractLeafChange]) -> Result<(), Error> {
        for claim in &chunk.claims {
            let found = changed.binary_search_by(|change| change.address.cmp(&claim.address));
            let computed = found.map_or(Felt::ZERO, |at| changed[at].leaf.storage_root.0);
            if computed != claim.storage_root.0 {
                return Err(self.refuse(TrieId::Storage(claim.address), claim.storage_root.0, computed));
            }
        }
        Ok(())
    }

    fn check_roots(self) -> Result<Unfinished, Error> {
        let (stated, computed) = (self.at.header.roots, self.at.roots);
        if stated.contracts != computed.contracts {
            return Err(self.refuse(TrieId::Contracts, stated.contracts.0, computed.contracts.0));
        }
        if stated.classes != computed.classes {
            return Err(self.refuse(TrieId::Classes, stated.classes.0, computed.classes.0));
        }
        Ok(self.at)
    }

    fn refuse(&self, trie: TrieId, stated: Felt, computed: Felt) -> Error {
        Error::ImportRefused { block: self.at.header.block, trie, stated, computed }
    }
}
