//! The tries of a committed state, for proofs and witnesses: the one way to them.

use flagstone_core::commit::TrieRows;
use flagstone_core::diff::Subject;
use flagstone_core::types::BlockNumber;
use flagstone_core::update::StateUpdate;
use flagstone_core::witness::Witness;

use super::{BlockRoot, Engine};
use crate::error::Error;

impl Engine {
    /// Reads the tries as they are after a block; without one, after the last committed block. `read` is handed the
    /// tries, the block (`None` before the first) and its roots. Nothing is committed meanwhile, so `read` must not wait
    /// for a block to be closed.
    ///
    /// ```
    /// use flagstone::core::hash::Bulk;
    /// use flagstone::core::proof::{Anchor, ContractStorageKeys, ProofRequest, Proven, prove_storage};
    /// # use flagstone::{Engine, EngineConfig, StateDiff, StateUpdate, layout, store::MemoryStore};
    /// # let engine = Engine::open(Box::new(MemoryStore::new()), layout("flat")?.make(), EngineConfig::default())?;
    /// # let diff = StateDiff::builder().storage(1.into(), 2.into(), 3.into()).build()?;
    /// # engine.close_block(&StateUpdate { starknet_version: "0.14.0".parse().ok(), ..diff.into() })?;
    /// let slots = ContractStorageKeys { contract_address: 1.into(), storage_keys: vec![2.into(), 9.into()] };
    /// let request = ProofRequest {
    ///     contract_addresses: vec![1.into()],
    ///     contracts_storage_keys: vec![slots],
    ///     ..ProofRequest::default()
    /// };
    /// let (proof, root) = engine.at_commitment(None, |tries, _block, root| {
    ///     Ok((prove_storage(tries, root.roots, &request, None)?, root.commitment))
    /// })?;
    ///
    /// // Somebody else, who has the root from the block's header:
    /// let trusted = Anchor { commitment: Some(root), ..Anchor::default() };
    /// let verified = proof.verify(&request, &trusted, &Bulk)?;
    /// assert_eq!(verified.storage(&1.into(), &2.into()), Proven::Value(3.into()));
    /// assert_eq!(verified.storage(&1.into(), &9.into()), Proven::Absent);
    /// assert_eq!(verified.contract(&5.into()), Proven::Absent);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::StateNotKept`] if the database does not have the state of that block, and what `read` says.
    pub fn at_commitment<R>(
        &self,
        block: Option<BlockNumber>,
        read: impl FnOnce(&dyn TrieRows, Option<BlockNumber>, &BlockRoot) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let writer = self.writer()?;
        let head = &writer.head;
        if let Some(block) = block
            && head.committed != Some(block)
        {
            return Err(Error::StateNotKept { block, committed: head.committed });
        }
        let tries = self.shared.layout.tries(self.shared.state_at(head.root.roots));
        read(tries.as_ref(), head.committed, &head.root)
    }

    /// The witness of the next block, without closing it: what committing `update` reads and writes in all tries, and
    /// what it reads besides. All blocks before must be committed.
    ///
    /// # Errors
    /// [`Error::WrongNumber`], [`Error::WrongParent`] and [`Error::VersionNeeded`] as [`Engine::close_block`];
    /// [`Error::StateNotKept`] if closed blocks are not committed; [`Error::State`] if the tries cannot be read.
    pub fn witness(&self, update: &StateUpdate, reads: &[Subject]) -> Result<Witness, Error> {
        let writer = self.writer()?;
        let block = self.accept(&writer, update)?;
        let head = &writer.head;
        if let Some(closed) = head.closed
            && head.committed != head.closed
        {
            return Err(Error::StateNotKept { block: closed, committed: head.committed });
        }
        let state = self.shared.state_at(head.root.roots);
        let (layout, hasher) = (self.shared.layout.as_ref(), self.hasher.as_ref());
        let staged =
            self.pool.install(|| layout.stage_commitment_with_witness(state, &block.diff, reads, hasher));
        let (_, witness) = staged?;
        Ok(Witness { block: Some(block.number), ..witness })
    }
}
