//! States that are not decided: what candidates are, and which there are.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use flagstone_core::felt::Felt;
use flagstone_core::types::{BlockNumber, StateId};
use flagstone_core::update::StateUpdate;

use super::meta::{Blob, BlockRoot, PendingBlock};
use super::outcome::Outcome;
use super::rows::{Base, Layer};
use super::staged::Staged;
use super::values::{ByKey, Key};
use crate::error::Error;

/// About what a candidate takes beside its values and blobs.
const CANDIDATE_BYTES: usize = 1 << 10;
/// About what a value takes: in the diff, and by its key.
const VALUE_BYTES: usize = 2 * size_of::<Key>() + 2 * size_of::<Felt>();

/// What a candidate is.
pub struct Proposed {
    pub outcome: Arc<Outcome>,
    pub parent: Parent,
    pub update: StateUpdate,
    pub blobs: Vec<Blob>,
    values: ByKey<Felt>,
    bytes: usize,
    /// The stamp of its state once it is a block like all others; zero before.
    decided: AtomicU64,
    /// What was computed for it.
    made: Mutex<Option<Made>>,
    of: Weak<Registry>,
}

/// What a candidate is on.
pub enum Parent {
    /// A decided state, viewed by this stamp.
    Decided {
        stamp: u64,
        outcome: Arc<Outcome>,
    },
    Candidate(Arc<Proposed>),
}

impl Parent {
    /// The candidates that it is, and that are below it, the nearest first.
    pub fn downwards(&self) -> impl Iterator<Item = &Proposed> + Clone {
        std::iter::successors(self.candidate(), |proposed| proposed.parent.candidate())
    }

    fn candidate(&self) -> Option<&Proposed> {
        match self {
            Self::Candidate(parent) => Some(parent),
            Self::Decided { .. } => None,
        }
    }
}

/// The commitment of a candidate.
pub struct Made {
    /// What it is on.
    pub base: Base,
    pub staged: Staged,
    pub root: BlockRoot,
}

/// How many candidates there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CandidateStats {
    /// Candidates.
    pub count: usize,
    /// About how many bytes they take, without what was computed for them.
    pub bytes: usize,
}

/// The candidates there are.
#[derive(Default)]
pub struct Registry(Mutex<Listed>);

#[derive(Default)]
struct Listed {
    by_state: HashMap<StateId, Weak<Proposed>>,
    stats: CandidateStats,
}

impl Registry {
    fn list(&self) -> MutexGuard<'_, Listed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, state: StateId) -> Option<Arc<Proposed>> {
        self.list().by_state.get(&state)?.upgrade()
    }

    /// Whether it can still be decided, now or later.
    pub fn has(&self, proposed: &Proposed) -> bool {
        self.list().by_state.contains_key(&proposed.state()) && !proposed.outcome.is_gone()
    }

    /// How many there are.
    pub fn stats(&self) -> CandidateStats {
        self.list().stats
    }

    /// Adds a candidate, unless there are too many: at most so many, of so many bytes together.
    pub fn add(
        &self,
        proposed: Proposed,
        (count_max, bytes_max): (usize, usize),
    ) -> Result<Arc<Proposed>, Error> {
        let mut list = self.list();
        let (count, bytes) = (list.stats.count, list.stats.bytes + proposed.bytes);
        if count >= count_max || bytes > bytes_max {
            return Err(Error::TooManyCandidates { count, count_max, bytes, bytes_max });
        }
        let proposed = Arc::new(proposed);
        list.by_state.insert(proposed.state(), Arc::downgrade(&proposed));
        list.stats = CandidateStats { count: count + 1, bytes };
        Ok(proposed)
    }

    /// It is decided, and its state has a stamp.
    pub fn decide(&self, proposed: &Proposed, stamp: u64) {
        proposed.decided.store(stamp, Ordering::SeqCst);
        self.remove(proposed);
    }

    /// It is decided, or nobody has it any more.
    fn remove(&self, proposed: &Proposed) {
        let mut list = self.list();
        if list.by_state.remove(&proposed.state()).is_some() {
            list.stats.count -= 1;
            list.stats.bytes -= proposed.bytes;
        }
    }

    /// From now on only what descends from this state is a candidate.
    pub fn keep_on(&self, tip: StateId) {
        let list = self.list();
        let all: Vec<Arc<Proposed>> = list.by_state.values().filter_map(Weak::upgrade).collect();
        drop(list);
        for proposed in all.iter().filter(|proposed| proposed.state() != tip && !proposed.is_on(tip)) {
            proposed.outcome.take_back();
        }
    }
}

impl Drop for Proposed {
    fn drop(&mut self) {
        self.of.upgrade().into_iter().for_each(|registry| registry.remove(self));
    }
}

impl Proposed {
    pub fn new(
        of: &Arc<Registry>,
        outcome: Arc<Outcome>,
        parent: Parent,
        update: &StateUpdate,
        blobs: &[Blob],
        values: ByKey<Felt>,
    ) -> Self {
        let blob_bytes: usize = blobs.iter().map(|blob| blob.key.len() + blob.bytes.len()).sum();
        let bytes = CANDIDATE_BYTES + values.len() * VALUE_BYTES + blob_bytes;
        let (update, blobs, decided) = (update.clone(), blobs.to_vec(), AtomicU64::new(0));
        Self {
            outcome,
            parent,
            update,
            blobs,
            values,
            bytes,
            decided,
            made: Mutex::default(),
            of: Arc::downgrade(of),
        }
    }

    /// The stamp of the decided state that is the nearest below it, or is its own: by an older one it would expire while it lives.
    pub fn stamp(&self) -> u64 {
        let stamp = |proposed: &Self| match (proposed.decided_at(), &proposed.parent) {
            (Some(stamp), _) => Some(stamp),
            (None, Parent::Decided { stamp, .. }) => Some(*stamp),
            (None, Parent::Candidate(_)) => None,
        };
        self.downwards().find_map(stamp).unwrap_or_default()
    }

    /// The stamp of its state, if it is decided.
    fn decided_at(&self) -> Option<u64> {
        Some(self.decided.load(Ordering::SeqCst)).filter(|stamp| *stamp > 0)
    }

    pub fn state(&self) -> StateId {
        self.outcome.state()
    }

    /// The state it is on.
    pub fn parent(&self) -> StateId {
        match &self.parent {
            Parent::Decided { outcome, .. } => outcome.state(),
            Parent::Candidate(parent) => parent.state(),
        }
    }

    /// Itself and the candidates below it, the nearest first.
    pub fn downwards(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.parent.downwards())
    }

    /// Whether it is on a state, or on candidates that are.
    fn is_on(&self, state: StateId) -> bool {
        for proposed in self.downwards() {
            if proposed.parent() == state {
                return true;
            }
            // What is decided and not the tip is below it, or was taken back.
            if proposed.parent.candidate().is_some_and(|parent| parent.decided_at().is_some()) {
                return false;
            }
        }
        false
    }

    /// The value that it or a candidate below it sets.
    pub fn value(&self, key: &Key) -> Option<Felt> {
        self.downwards().find_map(|proposed| proposed.values.get(key).copied())
    }

    /// The blob that it or a candidate below it brings.
    pub fn blob(&self, key: &[u8]) -> Option<Arc<[u8]>> {
        let blobs = |proposed: &Self| {
            proposed.blobs.iter().rev().find(|blob| blob.key == key).map(|blob| Arc::clone(&blob.bytes))
        };
        self.downwards().find_map(blobs)
    }

    /// The block without its values, as far as its root depends on it.
    pub fn facts(&self) -> PendingBlock {
        let StateUpdate { starknet_version: version, old_root, new_root, .. } = self.update;
        PendingBlock { number: self.number(), version, old_root, new_root, ..PendingBlock::default() }
    }

    pub fn made(&self) -> MutexGuard<'_, Option<Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over what was computed for it, if it is for this state below, and not being computed.
    pub fn take_made(&self, base: StateId) -> Option<Made> {
        self.made.try_lock().ok()?.take_if(|made| made.base.state == base)
    }

    pub fn number(&self) -> BlockNumber {
        self.outcome.number()
    }
}

impl Made {
    /// The state after the candidate, in rows.
    pub fn after(&self, of: &Proposed) -> Base {
        let batch = Arc::clone(&self.staged.rows.batch);
        // It is in no store before the candidate is decided, and then this is not asked any more.
        let own = Layer { generation: self.base.generation, bytes: batch.bytes(), batch };
        let layers = std::iter::once(own).chain(self.base.layers.iter().map(Layer::clone)).collect();
        Base { layers, block: Some(of.number()), root: self.root, state: of.state(), ..self.base.clone() }
    }
}
