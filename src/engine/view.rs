//! A state pinned at a block.
//!
//! A view answers for its block or fails with [`Error::ViewExpired`]; it never answers for another block. It holds
//! no lock: it reads, and then checks that the store's values did not move meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::layout::{Layout, StateAt};
use flagstone_core::types::{
    BlockNumber, ClassHash, CompiledClassHash, ContractAddress, Nonce, StorageKey, StorageValue,
};

use super::overlay::ValueKey;
use super::read_cache::Lookup;
use super::{Head, Shared};
use crate::error::Error;

/// The state after a block (or the empty state), for reading from any number of threads. Cheap to clone.
#[derive(Clone)]
pub struct View {
    pub(super) shared: Arc<Shared>,
    pub(super) head: Head,
    /// The store's epoch that this view belongs to.
    pub(super) epoch: u64,
}

impl View {
    /// The block this view is pinned at; `None` for the empty state.
    pub const fn block(&self) -> Option<BlockNumber> {
        self.head.closed
    }

    /// Value of a storage slot; zero if it was never written.
    ///
    /// # Errors
    /// [`Error::ViewExpired`] if the store has moved on, [`Error::State`] if reading fails.
    pub fn storage_at(&self, address: &ContractAddress, key: &StorageKey) -> Result<StorageValue, Error> {
        let of_layout =
            |layout: &dyn Layout, state: StateAt<'_>| Ok(layout.storage_at(state, address, key)?.0);
        self.read(ValueKey::Storage(*address, *key), of_layout).map(StorageValue)
    }

    /// Nonce of a contract; zero if it has none.
    ///
    /// # Errors
    /// As [`View::storage_at`].
    pub fn nonce_at(&self, address: &ContractAddress) -> Result<Nonce, Error> {
        let of_layout = |layout: &dyn Layout, state: StateAt<'_>| Ok(layout.nonce_at(state, address)?.0);
        self.read(ValueKey::Nonce(*address), of_layout).map(Nonce)
    }

    /// Class hash of a contract; zero if it is not deployed.
    ///
    /// # Errors
    /// As [`View::storage_at`].
    pub fn class_hash_at(&self, address: &ContractAddress) -> Result<ClassHash, Error> {
        let of_layout = |layout: &dyn Layout, state: StateAt<'_>| Ok(layout.class_hash_at(state, address)?.0);
        self.read(ValueKey::ClassHash(*address), of_layout).map(ClassHash)
    }

    /// Compiled class hash of a Sierra class; zero if it was not declared.
    ///
    /// # Errors
    /// As [`View::storage_at`].
    pub fn compiled_class_hash(&self, class_hash: &ClassHash) -> Result<CompiledClassHash, Error> {
        let of_layout =
            |layout: &dyn Layout, state: StateAt<'_>| Ok(layout.compiled_class_hash(state, class_hash)?.0);
        self.read(ValueKey::CompiledClassHash(*class_hash), of_layout).map(CompiledClassHash)
    }

    /// Reads the overlay, the cache, or the layout, in this order, and then looks at the epoch. While it is the view's
    /// own, none of the three has moved; if it changed meanwhile, whatever was read (an error included) is not this
    /// block's. What the layout said goes into the cache only after that look.
    fn read(
        &self,
        key: ValueKey,
        of_layout: impl FnOnce(&dyn Layout, StateAt<'_>) -> Result<Felt, StateError>,
    ) -> Result<Felt, Error> {
        if let Some(value) = self.head.closed.and_then(|block| self.shared.overlay().get(&key, block)) {
            return self.check_current().map(|()| value);
        }
        let vacancy = match self.shared.read_cache.get(self.epoch, key) {
            Lookup::Known(value) => return self.check_current().map(|()| value),
            Lookup::Unknown(vacancy) => vacancy,
        };
        let value = of_layout(self.shared.layout.as_ref(), self.state());
        self.check_current()?;
        let value = value?;
        self.shared.read_cache.fill(vacancy, value);
        Ok(value)
    }

    /// Reads a value ahead of those who will ask for it, into the read cache and nowhere else. It counts as no read there.
    #[cfg(feature = "blockifier")]
    pub(crate) fn warm(&self, key: ValueKey) -> Result<(), Error> {
        let overlaid = self.head.closed.is_some_and(|block| self.shared.overlay().get(&key, block).is_some());
        let Some(vacancy) = self.shared.read_cache.place_ahead(self.epoch, key).filter(|_| !overlaid) else {
            return self.check_current();
        };
        let (layout, state) = (self.shared.layout.as_ref(), self.state());
        let value = match key {
            ValueKey::Storage(address, key) => layout.storage_at(state, &address, &key).map(|value| value.0),
            ValueKey::Nonce(address) => layout.nonce_at(state, &address).map(|value| value.0),
            ValueKey::ClassHash(address) => layout.class_hash_at(state, &address).map(|value| value.0),
            ValueKey::CompiledClassHash(class) => {
                layout.compiled_class_hash(state, &class).map(|value| value.0)
            }
        };
        self.check_current()?;
        self.shared.read_cache.fill(vacancy, value?);
        Ok(())
    }

    fn state(&self) -> StateAt<'_> {
        StateAt { store: self.shared.store.as_ref(), roots: self.head.root.roots }
    }

    /// Whether what was read until now is of this view's block.
    fn check_current(&self) -> Result<(), Error> {
        self.shared.check_running()?;
        if self.shared.epoch.load(Ordering::SeqCst) == self.epoch {
            return Ok(());
        }
        Err(Error::ViewExpired { view: self.block(), store: self.shared.tip().head.closed })
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("block", &self.block()).finish_non_exhaustive()
    }
}
