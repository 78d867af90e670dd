//! A state pinned at a block.
//!
//! A view answers for its block or fails with [`Error::ViewExpired`]; it never answers for another block. It waits for no
//! commitment and no batch of the store: values of recent blocks are in memory, and so are rows on their way to the store.

use std::collections::HashMap;
use std::sync::Arc;

use flagstone_core::commitment::Roots;
use flagstone_core::diff::Subject;
use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::layout::StateAt;
use flagstone_core::types::{
    BlockNumber, ClassHash, CompiledClassHash, ContractAddress, Nonce, StateId, StorageKey, StorageValue,
};

use super::life::Tip;
use super::meta;
use super::outcome::Outcome;
use super::pins::Pin;
use super::shared::Shared;
use super::state::Proposed;
use super::values::{Lookup, Vacancy};
use crate::error::Error;

/// Where a view finds the values of a block that are not among the recent ones.
#[derive(Clone)]
pub enum Past {
    /// Values as they were at the block, where they have changed since.
    Changed(Arc<HashMap<Subject, Felt>>),
    /// In rows that the layout keeps, under these roots.
    Kept(Roots),
}

impl Past {
    /// The value at the block, if it has changed since and is here.
    fn changed(&self, key: &Subject) -> Option<Felt> {
        match self {
            Self::Changed(values) => values.get(key).copied(),
            Self::Kept(_) => None,
        }
    }
}

/// The state after a block (or the empty state), for reading from any number of threads. Cheap to clone.
#[derive(Clone)]
pub struct View {
    pub(super) shared: Arc<Shared>,
    pub(super) stamp: u64,
    pub(super) block: Option<BlockNumber>,
    pub(super) outcome: Arc<Outcome>,
    /// For a view of a block whose values are not among the recent ones.
    pub(super) past: Option<Past>,
    /// For a view of a candidate.
    pub(super) proposed: Option<Arc<Proposed>>,
    /// For a view that is pinned.
    pub(super) _pin: Option<Arc<Pin>>,
}

impl View {
    /// The block this view is pinned at; `None` for the empty state.
    pub const fn block(&self) -> Option<BlockNumber> {
        self.block
    }

    /// The state this is a view of: what a block that is executed on it is to be closed on ([`NewBlock::on`](super::NewBlock::on)).
    pub fn state(&self) -> StateId {
        self.outcome.state()
    }

    /// Value of a storage slot; zero if it was never written.
    ///
    /// # Errors
    /// [`Error::ViewExpired`] if its block is no longer kept, [`Error::State`] if reading fails.
    pub fn storage_at(&self, address: &ContractAddress, key: &StorageKey) -> Result<StorageValue, Error> {
        self.value(&Subject::Storage(*address, *key)).map(StorageValue)
    }

    /// Nonce of a contract; zero if it has none.
    ///
    /// # Errors
    /// As [`View::storage_at`].
    pub fn nonce_at(&self, address: &ContractAddress) -> Result<Nonce, Error> {
        self.value(&Subject::Nonce(*address)).map(Nonce)
    }

    /// Class hash of a contract; zero if it is not deployed.
    ///
    /// # Errors
    /// As [`View::storage_at`].
    pub fn class_hash_at(&self, address: &ContractAddress) -> Result<ClassHash, Error> {
        self.value(&Subject::ClassHash(*address)).map(ClassHash)
    }

    /// Compiled class hash of a Sierra class; zero if it was not declared.
    ///
    /// # Errors
    /// As [`View::storage_at`].
    pub fn compiled_class_hash_at(&self, class_hash: &ClassHash) -> Result<CompiledClassHash, Error> {
        self.value(&Subject::CompiledClassHash(*class_hash)).map(CompiledClassHash)
    }

    /// Like [`View::value`], if that is in memory; `None` if the layout has to be asked, or the view does not answer.
    pub fn known(&self, subject: &Subject) -> Option<Felt> {
        if let Some(Past::Kept(_)) = self.past {
            return None;
        }
        if let Some(value) = self.past.as_ref().and_then(|past| past.changed(subject)) {
            return Some(value);
        }
        let key = self.shared.values.key(*subject);
        let own = self.proposed.as_ref().and_then(|proposed| proposed.value(&key));
        let value = own.or_else(|| self.shared.values.recall(self.stamp, key));
        let is_sound = || self.shared.doubts.check(subject).is_ok();
        value.filter(|_| !self.outcome.is_gone() && is_sound())
    }

    /// The blob of a key, if a block brought one: that of the last closed block that did, also if it is after this view's.
    ///
    /// # Errors
    /// [`Error::State`] if reading fails.
    pub fn blob(&self, key: &[u8]) -> Result<Option<Arc<[u8]>>, Error> {
        let recent = || {
            let blobs = self.shared.blobs.read();
            blobs.get(key).and_then(|brought| brought.last()).map(|(_, bytes)| Arc::clone(bytes))
        };
        let own = self.proposed.as_ref().and_then(|proposed| proposed.blob(key));
        if let Some(blob) = own.or_else(recent) {
            return Ok(Some(blob));
        }
        // Committed between the two looks at the earliest: then the rows have it.
        self.shared.rows.read(|state| meta::read_blob(state.store, key))
    }

    /// Whatever a diff can set; zero if it is not there. Asks the values in memory, and the layout if they do not know; they
    /// then have the last word, because blocks may have moved on meanwhile. Whether this view's block was taken back is looked
    /// at last, as its values go then.
    ///
    /// # Errors
    /// As [`View::storage_at`].
    pub fn value(&self, subject: &Subject) -> Result<Felt, Error> {
        self.shared.doubts.check(subject)?;
        if let Some(Past::Kept(roots)) = self.past {
            let kept = |state: StateAt<'_>| self.shared.layout.value(StateAt { roots, ..state }, subject);
            return self.shared.rows.read(kept).map_err(|error| self.or_pruned(error));
        }
        let value = match self.look(subject) {
            Lookup::Known(value) => Some(value),
            Lookup::Expired => None,
            Lookup::Unknown(vacancy) => {
                let answer = self.shared.rows.read(|state| self.shared.layout.value(state, subject))?;
                self.fill(subject, vacancy, answer)?
            }
        };
        value.filter(|_| !self.outcome.is_gone()).ok_or_else(|| self.expired())
    }

    /// Like [`View::value`] for many things at once, in order: those that are not in memory are read from the store together.
    ///
    /// # Errors
    /// As [`View::storage_at`].
    pub fn get_many(&self, subjects: &[Subject]) -> Result<Vec<Felt>, Error> {
        subjects.iter().try_for_each(|subject| self.shared.doubts.check(subject))?;
        if let Some(Past::Kept(roots)) = self.past {
            let kept = |state: StateAt<'_>| self.shared.layout.values(StateAt { roots, ..state }, subjects);
            return self.shared.rows.read(kept).map_err(|error| self.or_pruned(error));
        }
        let (mut values, mut vacancies) = (Vec::with_capacity(subjects.len()), Vec::new());
        for (place, subject) in subjects.iter().enumerate() {
            values.push(match self.look(subject) {
                Lookup::Known(value) => value,
                Lookup::Expired => return Err(self.expired()),
                Lookup::Unknown(vacancy) => {
                    vacancies.push((place, vacancy));
                    Felt::ZERO
                }
            });
        }
        if !vacancies.is_empty() {
            let asked: Vec<Subject> = vacancies.iter().map(|(place, _)| subjects[*place]).collect();
            let answers = self.shared.rows.read(|state| self.shared.layout.values(state, &asked))?;
            for ((place, vacancy), answer) in vacancies.into_iter().zip(answers) {
                let filled = self.fill(&subjects[place], vacancy, answer)?;
                values[place] = filled.ok_or_else(|| self.expired())?;
            }
        }
        if self.outcome.is_gone() { Err(self.expired()) } else { Ok(values) }
    }

    /// The same view, pinned: it answers as long as it is held, or a clone of it, whatever blocks come, until what they changed takes
    /// more than [`EngineConfig::pinned_bytes_max`](super::EngineConfig::pinned_bytes_max).
    ///
    /// # Errors
    /// [`Error::ViewExpired`] if it has expired already.
    pub fn pinned(&self) -> Result<Self, Error> {
        let shared = &self.shared;
        let chain = shared.chain();
        let pin = shared.pins.pin(self.stamp);
        let is_there = self.is_kept() || chain.reaches(self.stamp);
        drop(chain);
        if !is_there || self.outcome.is_gone() {
            return Err(self.expired());
        }
        Ok(Self { _pin: Some(Arc::new(pin)), ..self.clone() })
    }

    /// Why rows that the layout kept cannot be read: they were pruned, or else the error.
    fn or_pruned(&self, error: StateError) -> Error {
        let oldest = self.shared.rows.read(|state| meta::read_oldest(state.store));
        match oldest {
            Ok(oldest) if self.block < oldest => self.expired(),
            _ => error.into(),
        }
    }

    /// What memory knows of a thing.
    fn look(&self, subject: &Subject) -> Lookup {
        if let Some(value) = self.past.as_ref().and_then(|past| past.changed(subject)) {
            return Lookup::Known(value);
        }
        let key = self.shared.values.key(*subject);
        let own = self.proposed.as_ref().and_then(|proposed| proposed.value(&key));
        own.map_or_else(|| self.shared.values.get(self.stamp, key), Lookup::Known)
    }

    /// Takes what the layout answered; `None` if the view has expired meanwhile.
    fn fill(&self, subject: &Subject, vacancy: Vacancy, answer: Felt) -> Result<Option<Felt>, Error> {
        let filled = self.shared.values.fill(vacancy, answer);
        filled.map_err(|known| self.shared.doubt_read(subject, answer, known))
    }

    /// Whether it reads rows that the layout keeps, whatever comes.
    const fn is_kept(&self) -> bool {
        matches!(self.past, Some(Past::Kept(_)))
    }

    fn expired(&self) -> Error {
        Error::ViewExpired { view: self.block, now: self.shared.tip().block }
    }
}

impl Shared {
    /// A view of the newest state.
    pub(super) fn view(self: &Arc<Self>) -> View {
        let Tip { stamp, block, outcome } = self.tip();
        View { shared: Arc::clone(self), stamp, block, outcome, past: None, proposed: None, _pin: None }
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("block", &self.block()).finish_non_exhaustive()
    }
}
