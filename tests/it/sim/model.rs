//! What a state must be: plain maps, and the reference commitment.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use flagstone::core::commitment::{CommitmentRule, Roots};
use flagstone::core::diff::Subject;
use flagstone::core::felt::Felt;
use flagstone::core::types::{BlockHash, BlockNumber, StateCommitment, StateId};
use flagstone::engine::{Blob, BlockRoot};
use flagstone::{StateDiff, StateUpdate};
use flagstone_testkit::reference::ReferenceState;

use super::draw::Draw;

const CONTRACTS: u64 = 3;
const SLOTS: u64 = 4;
const CLASSES: [u64; 2] = [0x50, 0x51];
pub const BLOBS: [&[u8]; 2] = [b"a", b"b"];

/// Everything that a block of the simulation can set.
pub fn universe() -> Vec<Subject> {
    let mut all = Vec::new();
    for contract in 1..=CONTRACTS {
        all.extend([Subject::Nonce(contract.into()), Subject::ClassHash(contract.into())]);
        all.extend((0..SLOTS).map(|slot| Subject::Storage(contract.into(), slot.into())));
    }
    all.extend(CLASSES.map(|class| Subject::CompiledClassHash(class.into())));
    all
}

/// A block to be closed or proposed.
#[derive(Debug, Clone)]
pub struct Block {
    pub update: StateUpdate,
    pub blobs: Vec<Blob>,
    /// Whether it states a root that is not its own.
    pub is_wrong: bool,
}

impl Block {
    /// A block of a few values; every second one brings nothing else.
    pub fn draw(draw: &mut Draw, next: u64) -> Self {
        let (universe, mut values) = (universe(), BTreeMap::new());
        for _ in 0..draw.below(6) {
            values.insert(draw.below(universe.len()), draw.below(5) as u64);
        }
        let diff =
            values.into_iter().fold(StateDiff::builder(), |diff, (subject, value)| match universe[subject] {
                Subject::Storage(address, key) => diff.storage(address, key, value.into()),
                Subject::Nonce(address) => diff.nonce(address, value.into()),
                Subject::ClassHash(address) => diff.class_hash(address, value.into()),
                Subject::CompiledClassHash(class) => diff.class(class, value.into()),
            });
        let mut update = StateUpdate {
            starknet_version: "0.14.0".parse().ok(),
            ..StateUpdate::from(diff.build().unwrap())
        };
        if draw.chance(25) {
            update.block_number = Some(BlockNumber(next));
        }
        if draw.chance(25) {
            update.block_hash = Some(BlockHash::from(draw.next()));
        }
        let mut blobs = Vec::new();
        if draw.chance(20) {
            let bytes = vec![draw.next() as u8; draw.below(40)];
            blobs.push(Blob { key: draw.pick(&BLOBS).to_vec(), bytes: Arc::from(bytes) });
        }
        Self { update, blobs, is_wrong: false }
    }

    /// The same, stating a root that no block has.
    pub fn wrong(mut self) -> Self {
        self.update.new_root = Some(StateCommitment::from(0xbad));
        Self { is_wrong: true, ..self }
    }
}

/// The state after a block. Cheap to clone.
#[derive(Clone)]
pub struct State {
    /// `None` as long as the engine has not told.
    pub id: Option<StateId>,
    pub values: Rc<ReferenceState>,
    pub blobs: Rc<BTreeMap<Vec<u8>, Arc<[u8]>>>,
    pub hash: Option<BlockHash>,
    pub is_wrong: bool,
    roots: Rc<OnceCell<Roots>>,
}

impl State {
    pub fn empty(id: StateId) -> Self {
        Self {
            id: Some(id),
            values: Rc::default(),
            blobs: Rc::default(),
            hash: None,
            is_wrong: false,
            roots: Rc::default(),
        }
    }

    /// A state with these values, of which no more is known.
    pub fn of(values: ReferenceState) -> Self {
        Self { id: None, values: Rc::new(values), ..Self::empty(StateId::default()) }
    }

    /// The state after a block on top.
    pub fn after(&self, block: &Block) -> Self {
        let mut values = ReferenceState::clone(&self.values);
        values.apply(&block.update.diff);
        let mut blobs = BTreeMap::clone(&self.blobs);
        blobs.extend(block.blobs.iter().map(|blob| (blob.key.clone(), Arc::clone(&blob.bytes))));
        Self {
            id: None,
            values: Rc::new(values),
            blobs: Rc::new(blobs),
            hash: block.update.block_hash,
            is_wrong: block.is_wrong,
            roots: Rc::default(),
        }
    }

    /// The same state, whose id is known.
    pub fn with_id(self, id: StateId) -> Self {
        Self { id: Some(id), ..self }
    }

    /// The same state as an import has it: without what is beside the values.
    pub fn imported(&self, id: StateId) -> Self {
        Self { blobs: Rc::default(), hash: None, ..self.clone().with_id(id) }
    }

    pub fn value(&self, subject: &Subject) -> Felt {
        match subject {
            Subject::Storage(address, key) => self.values.storage_at(address, key).0,
            Subject::Nonce(address) => self.values.nonce_at(address).0,
            Subject::ClassHash(address) => self.values.class_hash_at(address).0,
            Subject::CompiledClassHash(class) => self.values.compiled_class_hash_at(class).0,
        }
    }

    pub fn all_values(&self) -> Vec<Felt> {
        universe().iter().map(|subject| self.value(subject)).collect()
    }

    /// By the reference; computed once.
    pub fn roots(&self) -> Roots {
        *self.roots.get_or_init(|| self.values.roots())
    }

    pub fn commitment(&self) -> StateCommitment {
        self.roots().commitment(CommitmentRule::AlwaysBoth)
    }

    /// Whether a root is the state's; `None` if the reference has not computed that, and computing is not wanted.
    pub fn has_root(&self, root: &BlockRoot, compute: bool) -> Option<bool> {
        let is_known = self.roots.get().is_some();
        (is_known || compute).then(|| (root.roots, root.commitment) == (self.roots(), self.commitment()))
    }
}
