//! What is done before an engine runs: what the store and the journal say is held against each other.
//!
//! The journal is the truth, and it knows whose it is. A store of another database, or one that is on blocks that the journal
//! has taken back or does not know, is refused and named. After anything but an orderly end the store is held against all
//! frames that are kept, not only those behind it: roots that were computed must be those that it has, committing what the
//! frames set must change nothing, and a value that differs is written once more as the frames say.
//! Nothing is written before all of that is known, and the journal's next segment is begun before anything is.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, OnceLock};

use flagstone_core::codec::Reader;
use flagstone_core::commitment::Roots;
use flagstone_core::diff::{StateDiff, Subject};
use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::hash::Hasher;
use flagstone_core::layout::{Layout, StateAt};
use flagstone_core::store::{Store, StoreErrorKind, WriteBatch};
use flagstone_core::trie::{TrieId, lookup};
use flagstone_core::types::{BlockNumber, StateId, TrieKey};

use super::config::EngineConfig;
use super::doubts::{Doubts, Scrubbing};
use super::durable::{Durability, Journaled};
use super::events::Subscribers;
use super::hints::Hints;
use super::identity;
use super::life::{Chain, Tip};
use super::locks::{Lock, Order, Rank, Watched};
use super::meta::{self, BlockFacts, BlockRoot, Identity, Lineage, PendingBlock, StoredHead};
use super::opened::{House, Opened};
use super::outcome::Outcome;
use super::pasts::Pasts;
use super::rows::{Rows, require_atomic_batches};
use super::running::Engine;
use super::shared::Shared;
use super::values::{Values, each_value};
use crate::error::{Error, at};
use crate::journal::{Acknowledged, DatabaseId, Files, Journal, Position, Recovered, Recovery};
use crate::store::Sealed;

/// A database that is checked and not running yet.
pub(crate) struct Opening {
    store: Sealed<dyn Store>,
    layout: Box<dyn Layout>,
    hasher: Box<dyn Hasher>,
    config: EngineConfig,
    head: StoredHead,
    database: Option<DatabaseId>,
    house: House,
}

/// A journal that was looked at, and what it has for a store.
struct Looked {
    journal: Journal,
    opened: Opened,
    /// The last refusal that there is.
    refusal: Position,
    /// The first block that was taken back and that the store still has.
    taken_back: Option<BlockNumber>,
    /// Blocks that the store has as well, in order; none after an orderly end.
    kept: Vec<PendingBlock>,
    /// Blocks to close again, in order.
    missing: Vec<PendingBlock>,
}

impl Opening {
    /// Reads what a store says it is.
    pub fn new(
        store: Sealed<dyn Store>,
        layout: Box<dyn Layout>,
        config: EngineConfig,
        hasher: Box<dyn Hasher>,
    ) -> Result<Self, Error> {
        config.check()?;
        require_atomic_batches(&store, "the engine")?;
        config.bound_cache_of(layout.as_ref());
        let found = match identity::read_identity(&store)? {
            None => None,
            Some(stored) => {
                Identity::of(layout.as_ref()).check(&stored)?;
                Some((meta::read_head(&store)?, meta::read_database(&store)?))
            }
        };
        let (head, database) = found.unzip();
        Ok(Self {
            store,
            layout,
            hasher,
            config,
            head: head.unwrap_or_default(),
            database,
            house: House::default(),
        })
    }

    /// Keeps the lock on the directory until the engine and its views are gone.
    pub fn in_house(self, house: House) -> Self {
        Self { house, ..self }
    }

    /// Opens it without a journal.
    pub fn start_alone(mut self) -> Result<Engine, Error> {
        self.create(DatabaseId::fresh())?;
        let begun = Begun { refusal: self.head.refusal, taken_back: None, missing: Vec::new() };
        let opened = Opened { orderly: true, persisted: self.head.block, ..Opened::default() };
        self.start(Durability::Store, opened, begun)
    }

    /// Opens it with the journal in a directory.
    pub fn start_with_journal(mut self, files: Arc<dyn Files>, dir: &Path) -> Result<Engine, Error> {
        let looked = self.look(Arc::clone(&files), dir)?;
        let repair = self.hold(&looked)?;
        let Looked { mut journal, mut opened, refusal, taken_back, missing, .. } = looked;
        let database = self.database.or(journal.database()).unwrap_or_else(DatabaseId::fresh);
        journal.begin(database)?;
        self.create(database)?;
        opened.repaired = self.repair(repair)?;
        let journaled = Journaled::start(journal, (files, dir), self.config.persist_every)?;
        self.start(Durability::Journal(journaled), opened, Begun { refusal, taken_back, missing })
    }

    /// Opens a private copy of a store with the journal in a directory, of which nothing is changed.
    pub fn start_looking(mut self, files: Arc<dyn Files>, dir: &Path) -> Result<Engine, Error> {
        let looked = self.look(Arc::clone(&files), dir)?;
        let repair = self.hold(&looked)?;
        let Looked { mut opened, refusal, taken_back, missing, .. } = looked;
        self.create(DatabaseId::fresh())?;
        opened.repaired = self.repair(repair)?;
        let nowhere = Durability::Nowhere(Some((files, dir.to_owned())));
        self.start(nowhere, opened, Begun { refusal, taken_back, missing })
    }

    /// Opens a private copy of a store, without the journal.
    pub fn start_to_look_alone(mut self) -> Result<Engine, Error> {
        self.create(DatabaseId::fresh())?;
        let begun = Begun { refusal: self.head.refusal, taken_back: None, missing: Vec::new() };
        let (persisted, copied_bytes) = (self.head.block, self.house.copied_bytes);
        let opened = Opened { persisted, copied_bytes, ..Opened::default() };
        self.start(Durability::Nowhere(None), opened, begun)
    }

    /// Says in an empty store what it is.
    fn create(&mut self, database: DatabaseId) -> Result<(), Error> {
        if self.database.is_some() {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        meta::put_identity(&mut batch, &Identity::of(self.layout.as_ref()));
        meta::put_database(&mut batch, database);
        meta::put_head(&mut batch, &self.head);
        self.store.write(&batch)?;
        self.store.sync()?;
        self.database = Some(database);
        Ok(())
    }

    /// Brings the store to where the journal is, and starts the threads.
    fn start(self, durability: Durability, opened: Opened, begun: Begun) -> Result<Engine, Error> {
        let Self { store, layout, hasher, config, head, database, house } = self;
        let pool = config.pool("pool")?;
        let lane = EngineConfig { threads: 1, ..config }.pool("read-ahead")?;
        let ahead_of_store = durability.is_ahead_of_store() || !store.capabilities().durable;
        let chain = Chain::at_rest(&head, begun.refusal);
        let history = meta::undo_chain(&store, head.block)?;
        let outcome = Outcome::new(head.block.unwrap_or_default(), head.state);
        let order = Order::new();
        let shared = Arc::new(Shared {
            layout,
            hasher,
            config,
            pool,
            rows: Rows::new(Box::new(store), &head, config.reader_bounds()),
            values: Arc::new(Values::new(config.read_cache_bytes)),
            hints: Hints::default(),
            lane,
            blobs: Watched::new(order, Rank::Blobs, HashMap::new()),
            tip: Watched::new(order, Rank::Tip, Tip { stamp: 0, block: head.block, outcome }),
            chain: Lock::new(order, Rank::Chain, chain),
            changed: Condvar::new(),
            closer: Lock::new(order, Rank::Closer, ()),
            installing: Lock::new(order, Rank::Installing, ()),
            durability,
            ahead_of_store,
            history: Lock::new(order, Rank::History, history),
            pasts: Pasts::new(config.past_bytes_max),
            history_pool: OnceLock::new(),
            pins: Arc::default(),
            subscribers: Subscribers::default(),
            candidates: Arc::default(),
            scrubbing: Scrubbing::default(),
            doubts: Doubts::default(),
            stopped: OnceLock::new(),
            opened,
            database: database.unwrap_or_else(DatabaseId::fresh),
            house: Mutex::new(Some(house)),
        });
        begun.run(&shared)
    }
}

/// What an engine begins with.
struct Begun {
    refusal: Position,
    taken_back: Option<BlockNumber>,
    missing: Vec<PendingBlock>,
}

impl Begun {
    fn run(self, shared: &Arc<Shared>) -> Result<Engine, Error> {
        if let Some(first) = self.taken_back {
            shared.finish_taking_back(first)?;
        }
        self.missing.into_iter().try_for_each(|block| shared.close_again(block))?;
        Engine::start(shared)
    }
}

/// Looking at the journal.
impl Opening {
    /// Reads the journal in a directory, and holds against each other whose it and the store are, and which blocks they are on.
    fn look(&self, files: Arc<dyn Files>, dir: &Path) -> Result<Looked, Error> {
        let head = &self.head;
        let acknowledged = head.block.map(|block| Acknowledged { block, refusal: head.refusal });
        let (journal, recovery) = Journal::inspect(files, dir, self.config.journal(), acknowledged)?;
        self.check_belongs(&journal, &recovery)?;
        let later = recovery.refusals.iter().filter(|refusal| refusal.at > head.refusal);
        let taken_back = later.map(|refusal| refusal.block).min().filter(|first| Some(*first) <= head.block);
        if taken_back.is_none() {
            check_reach(&journal, head)?;
        }
        let from = taken_back.or(head.block.map_or(Some(BlockNumber(0)), BlockNumber::next));
        let (mut kept, mut missing) = (Vec::new(), Vec::new());
        let mut before = None;
        for recovered in journal.replay() {
            let recovered = recovered?;
            let is_missing = from.is_some_and(|from| recovered.block >= from);
            let block = decode(&recovered, is_missing || !recovery.orderly)?;
            self.check_follows(before.as_ref(), &block, taken_back)?;
            before = Some((block.lineage.state, block.computed));
            if is_missing {
                missing.push(block);
            } else if !recovery.orderly {
                kept.push(block);
            }
        }
        let refusal = journal.refusal().map_or(head.refusal, |refusal| refusal.at.max(head.refusal));
        let opened = Opened {
            orderly: recovery.orderly,
            persisted: head.block,
            cut: recovery.cut,
            replayed: missing.len() as u64,
            held_against: kept.len() as u64,
            repaired: 0,
            copied_bytes: self.house.copied_bytes,
        };
        Ok(Looked { journal, opened, refusal, taken_back, kept, missing })
    }

    /// Refuses a journal of another database, and a store or a journal that is older than what the other takes account of.
    fn check_belongs(&self, journal: &Journal, recovery: &Recovery) -> Result<(), Error> {
        if let (Some(store), Some(journal)) = (self.database, journal.database())
            && store != journal
        {
            let problem =
                format!("the store is of database {store}, and the journal is of database {journal}");
            return Err(Error::mixed(problem));
        }
        let known = self.head.refusal;
        if let Some(refusal) = recovery.trimmed_refusal.filter(|refusal| refusal.at > known)
            && self.head.block.is_some()
        {
            return Err(Error::mixed(format!(
                "block {} and those after it were taken back ({}), and the store, which is at {}, is from before that",
                refusal.block,
                refusal.at,
                at(&self.head.block)
            )));
        }
        if known != Position::default() && journal.refusal().is_none_or(|last| last.at < known) {
            return Err(Error::mixed(format!(
                "the store takes account of blocks that were taken back at {known}, of which the journal does not know: it is \
                 from before that"
            )));
        }
        Ok(())
    }

    /// What the store says of the state after a block; nothing if that is damaged, as the journal may say it again.
    fn stored_state(&self, number: BlockNumber) -> Result<Option<(BlockRoot, StateId)>, Error> {
        match meta::read_block_state(&self.store, number) {
            Err(Error::State(StateError::Store(error))) if error.kind() == StoreErrorKind::Corrupt => {
                Ok(None)
            }
            read => read,
        }
    }

    /// Refuses a block of the journal that does not follow the frame before it, or that the store does not lead to.
    fn check_follows(
        &self,
        before: Option<&(StateId, Option<BlockRoot>)>,
        block: &PendingBlock,
        taken_back: Option<BlockNumber>,
    ) -> Result<(), Error> {
        let number = block.number;
        if let Some((state, computed)) = before {
            let roots = computed.map(|root| root.commitment).zip(block.lineage.parent_root);
            if block.lineage.parent != *state || roots.is_some_and(|(computed, stated)| computed != stated) {
                let problem = "it does not follow the state that the frame before it leads to";
                return Err(Error::damaged(format!("the journal's frame of block {number}"), problem));
            }
        }
        let is_abandoned = |number: BlockNumber| taken_back.is_some_and(|first| number >= first);
        let stored = |number: Option<BlockNumber>| match number {
            None => Ok(Some((BlockRoot::default(), StateId::default()))),
            number if number == self.head.block => Ok(Some((self.head.root, self.head.state))),
            Some(number) => self.stored_state(number),
        };
        // What the store has of the block, and of the one before it, if these are not abandoned ones.
        if Some(number) <= self.head.block && !is_abandoned(number) {
            let same = |(root, state): (BlockRoot, StateId)| {
                state == block.lineage.state && block.computed.is_none_or(|computed| computed == root)
            };
            // Blocks that were committed as one have one row.
            return if stored(Some(number))?.is_none_or(same) { Ok(()) } else { Err(other_block(number)) };
        }
        let parent = number.0.checked_sub(1).map(BlockNumber);
        if parent <= self.head.block && parent.is_none_or(|parent| !is_abandoned(parent)) {
            let same = |(root, state): (BlockRoot, StateId)| {
                let stated = block.lineage.parent_root;
                state == block.lineage.parent && stated.is_none_or(|stated| stated == root.commitment)
            };
            let of = parent.unwrap_or_default();
            return if stored(parent)?.is_none_or(same) { Ok(()) } else { Err(other_block(of)) };
        }
        Ok(())
    }
}

/// The block of a frame; without its values, if `whole` is unset.
fn decode(recovered: &Recovered, whole: bool) -> Result<PendingBlock, Error> {
    let Recovered { block, payload, roots } = recovered;
    let damaged = |error| Error::damaged(format!("the journal's frame of block {block}"), error);
    let computed = roots.as_deref().map(BlockRoot::from_bytes).transpose().map_err(damaged)?;
    if !whole {
        let lineage = Lineage::decode(&mut Reader::new(payload)).map_err(damaged)?;
        return Ok(PendingBlock { number: *block, lineage, computed, ..PendingBlock::default() });
    }
    Ok(PendingBlock { computed, ..PendingBlock::decode(*block, payload).map_err(damaged)? })
}

fn other_block(block: BlockNumber) -> Error {
    Error::mixed(format!("the state after block {block} is another in the store than in the journal"))
}

/// Refuses a store that has fewer blocks than the journal can bring back.
fn check_reach(journal: &Journal, head: &StoredHead) -> Result<(), Error> {
    // All blocks before this one were acknowledged, and are not in the journal any more.
    let first = journal.held().map(|held| held.first).or(journal.next_block());
    let reaches = match head.block {
        Some(block) => first <= block.next(),
        None => journal.is_whole(),
    };
    if reaches {
        return Ok(());
    }
    let number =
        |block: Option<BlockNumber>| block.map_or("no block".to_owned(), |block| format!("block {block}"));
    let problem = format!(
        "it has {}, and the journal begins with {}: blocks are lost; restore a newer copy of the store, or rebuild it from \
         a dump with `flagstone recover`",
        number(head.block),
        number(first)
    );
    Err(Error::damaged("the store", problem))
}

/// Holding a store against frames that it had before.
impl Opening {
    /// What is to be written so that the store says what the kept frames say. Changes nothing.
    ///
    /// # Errors
    /// [`Error::State`] if the store is damaged otherwise than in its values.
    fn hold(&self, looked: &Looked) -> Result<Repair, Error> {
        let mut repair = Repair::default();
        if looked.kept.is_empty() {
            return Ok(repair);
        }
        let mut last = HashMap::new();
        looked.kept.iter().for_each(|block| {
            each_value(&block.diff, |subject, value| {
                last.insert(subject, value);
            })
        });
        let unknown = self.abandoned_subjects(looked.taken_back)?;
        last.retain(|subject, _| !unknown.contains(subject));
        let diff = diff_of(last)?;
        let state = StateAt { store: &self.store, roots: self.head.root.roots };
        let mut wrong = HashMap::new();
        let mut failed = None;
        each_value(&diff, |subject, value| match self.layout.value(state, &subject) {
            Ok(stored) if stored == value => {}
            Err(StateError::Store(error)) if error.kind() != StoreErrorKind::Corrupt => {
                failed.get_or_insert(error);
            }
            Ok(_) | Err(_) => drop(wrong.insert(subject, value)),
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        self.hold_tries(&diff, wrong, &mut repair)?;
        self.hold_blobs(looked, &mut repair)?;
        let oldest = meta::read_oldest(&self.store)?;
        let kept = looked.kept.iter().filter(|block| Some(block.number) >= oldest);
        // The first block of those that may have been committed as one.
        let mut begins = None;
        for PendingBlock { number, hash, lineage, computed, .. } in kept {
            let (first, stored) = (*begins.get_or_insert(*number), self.stored_state(*number)?);
            if stored.is_some() {
                begins = None;
            } else if let Some(root) = computed
                && self.may_have_root(root)?
            {
                let facts = BlockFacts { root: *root, state: lineage.state, first, hash: *hash };
                meta::put_block(&mut repair.batch, *number, &facts);
                repair.count += 1;
                begins = None;
            }
        }
        Ok(repair)
    }

    /// Whether the store may say that a state has these roots. Of a layout that keeps old states it then reads them, and blocks that had
    /// roots of their own may have been committed as one the next time: then the state's nodes were never written.
    fn may_have_root(&self, root: &BlockRoot) -> Result<bool, Error> {
        if !self.layout.keeps_old_states() {
            return Ok(true);
        }
        let tries = self.layout.tries(StateAt { store: &self.store, roots: root.roots });
        let Roots { contracts, classes } = root.roots;
        for (trie, root) in [(TrieId::Contracts, contracts.0), (TrieId::Classes, classes.0)] {
            match lookup(tries.as_ref(), trie, root, &TrieKey::default()) {
                Ok(_) => {}
                Err(StateError::Store(error)) if error.kind() != StoreErrorKind::Corrupt => {
                    return Err(error.into());
                }
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Commits what the frames set once more, which must change no root.
    fn hold_tries(
        &self,
        diff: &StateDiff,
        wrong: HashMap<Subject, Felt>,
        repair: &mut Repair,
    ) -> Result<(), Error> {
        let roots = self.head.root.roots;
        let state = StateAt { store: &self.store, roots };
        let staged = self.layout.stage_commitment(state, &[diff], self.hasher.as_ref())?;
        if staged.roots.first().is_some_and(|computed| *computed != roots) {
            let computed = staged.roots.first().copied().unwrap_or_default();
            let problem = format!(
                "its tries do not have what the journal's blocks up to {} set: with these its roots are {computed:?}, and it says \
                 {roots:?}; restore the store from a copy, or rebuild it with `flagstone recover`",
                at(&self.head.block)
            );
            return Err(Error::damaged("the store", problem));
        }
        if wrong.is_empty() {
            return Ok(());
        }
        repair.count += wrong.len() as u64;
        repair.batch.append(staged.batch);
        repair.batch.append(self.layout.stage_values(&diff_of(wrong)?));
        Ok(())
    }

    /// The last blob of each key that the frames bring is there.
    fn hold_blobs(&self, looked: &Looked, repair: &mut Repair) -> Result<(), Error> {
        if looked.taken_back.is_some() {
            return Ok(());
        }
        let blobs = looked.kept.iter().flat_map(|block| &block.blobs);
        let last: HashMap<&[u8], &meta::Blob> = blobs.map(|blob| (&blob.key[..], blob)).collect();
        for blob in last.into_values() {
            match meta::read_blob(&self.store, &blob.key) {
                Ok(Some(bytes)) if bytes == blob.bytes => continue,
                Err(Error::State(StateError::Store(error))) if error.kind() != StoreErrorKind::Corrupt => {
                    return Err(error.into());
                }
                _ => {}
            }
            repair.count += 1;
            meta::put_blob(&mut repair.batch, &self.store, blob)?;
        }
        Ok(())
    }

    /// What blocks set that the store has and the journal has taken back: of that the frames before do not tell.
    fn abandoned_subjects(&self, taken_back: Option<BlockNumber>) -> Result<HashSet<Subject>, Error> {
        let mut subjects = HashSet::new();
        let (Some(first), mut at) = (taken_back, self.head.block) else { return Ok(subjects) };
        while let Some(block) = at.filter(|block| *block >= first) {
            let Some(undo) = meta::read_undo(&self.store, block)? else { break };
            each_value(&undo.diff, |subject, _| {
                subjects.insert(subject);
            });
            at = undo.before;
        }
        Ok(subjects)
    }

    /// Writes a repair.
    fn repair(&self, repair: Repair) -> Result<u64, Error> {
        if repair.count > 0 {
            self.store.write(&repair.batch)?;
            self.store.sync()?;
        }
        Ok(repair.count)
    }
}

/// Rows that bring a store right.
#[derive(Default)]
struct Repair {
    batch: WriteBatch,
    /// Values, blobs and roots that were wrong.
    count: u64,
}

/// The diff that sets these values.
fn diff_of(values: HashMap<Subject, Felt>) -> Result<StateDiff, Error> {
    let diff = values.into_iter().fold(StateDiff::builder(), |diff, (subject, value)| match subject {
        Subject::Storage(address, key) => diff.storage(address, key, value.into()),
        Subject::Nonce(address) => diff.nonce(address, value.into()),
        Subject::ClassHash(address) => diff.class_hash(address, value.into()),
        Subject::CompiledClassHash(class) => diff.class(class, value.into()),
    });
    diff.build().map_err(|error| Error::damaged("the journal's blocks", error))
}
