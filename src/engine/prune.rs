//! Old roots, and rows that no kept state needs any more.

use std::ops::ControlFlow;

use flagstone_core::commitment::Roots;
use flagstone_core::store::{StoreRead, WriteBatch, keyspace};
use flagstone_core::types::BlockNumber;

use super::life::Chain;
use super::meta;
use super::rows::Base;
use super::running::Engine;
use super::shared::Shared;
use crate::error::Error;

/// Rows that are deleted in one unit.
const UNIT_ROWS: usize = 20_000;

/// What a pruning deleted, or would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Pruned {
    /// Blocks whose roots went: their states cannot be viewed or proved any more.
    pub roots: u64,
    /// The oldest block whose root is left.
    pub oldest: Option<BlockNumber>,
    /// Rows of the layout that only the states of these blocks needed.
    pub rows_of_roots: u64,
    /// Rows that no state needed: what blocks left that were taken back.
    pub rows_of_none: u64,
    /// Bytes of all these rows and their keys.
    pub bytes: u64,
    /// Rows that the kept states need, if the layout counts them.
    pub rows_needed: u64,
}

impl Engine {
    /// Forgets the roots of all but the last `keep` blocks (at least one is kept), and deletes the rows that only their states need; also
    /// those that blocks left that were taken back. `None` keeps all roots. Only a layout that keeps old states has such rows
    /// ([`Layout::needless_rows`](flagstone_core::layout::Layout::needless_rows)). What can be taken back stays so.
    ///
    /// No block is closed meanwhile. Takes memory for each row that the kept states need. With `dry_run` it tells, and deletes nothing.
    ///
    /// # Errors
    /// As [`Engine::commit`]; [`Error::State`] if the store fails, or a kept state's rows cannot be read: then nothing is deleted.
    pub fn prune(&self, keep: Option<u64>, dry_run: bool) -> Result<Pruned, Error> {
        let shared = &self.shared;
        shared.durability.check_writable()?;
        shared.in_turn(|| {
            drop(shared.await_turn(Chain::is_at_rest)?);
            Ok(shared.prune(keep, dry_run)?)
        })
    }
}

/// Blocks with roots, newest first.
struct Kept {
    roots: Vec<(BlockNumber, Roots)>,
    /// How many of them stay.
    count: usize,
}

impl Shared {
    /// The caller holds the closer's lock, and nothing is on its way.
    fn prune(&self, keep: Option<u64>, dry_run: bool) -> Result<Pruned, Error> {
        let base = self.rows.base();
        let kept = self.kept_roots(&base, keep)?;
        let rows = self.rows.of(&base);
        let all: Vec<Roots> = kept.roots.iter().map(|(_, roots)| *roots).collect();
        let mut pruned = Pruned {
            roots: (all.len() - kept.count) as u64,
            oldest: kept.roots[..kept.count].last().map(|(block, _)| *block),
            ..Pruned::default()
        };
        let mut keys: Vec<Vec<u8>> = Vec::new();
        let visit = &mut |key: &[u8], row: &[u8]| {
            pruned.bytes += (key.len() + row.len()) as u64;
            keys.push(key.to_vec());
        };
        let rows_needed = self.layout.needless_rows(&rows, &all[..kept.count], visit)?;
        pruned.rows_needed = rows_needed;
        let mut of_none = 0;
        if pruned.roots > 0 {
            self.layout.needless_rows(&rows, &all, &mut |_, _| of_none += 1)?;
        } else {
            of_none = keys.len() as u64;
        }
        (pruned.rows_of_none, pruned.rows_of_roots) = (of_none, keys.len() as u64 - of_none);
        drop(rows);
        if dry_run {
            return Ok(pruned);
        }
        // The roots first: one that is left can be read whole, however far this comes.
        let gone = kept.roots[kept.count..].iter().map(|(block, _)| *block).collect::<Vec<_>>();
        self.delete(|batch, base| {
            pruned
                .oldest
                .filter(|_| pruned.roots > 0)
                .iter()
                .for_each(|oldest| meta::put_oldest(batch, *oldest));
            gone.iter().try_for_each(|block| meta::delete_block(batch, &self.rows.of(base), *block))
        })?;
        for keys in keys.chunks(UNIT_ROWS) {
            self.delete(|batch, _| {
                keys.iter().for_each(|key| batch.delete(key));
                Ok(())
            })?;
        }
        Ok(pruned)
    }

    /// The roots that there are, and which of them stay: the last ones, and all that can be gone back to.
    fn kept_roots(&self, base: &Base, keep: Option<u64>) -> Result<Kept, Error> {
        let rows = self.rows.of(base);
        // All there are: blocks that were committed as one with others have none, and those before them do.
        let mut roots = Vec::new();
        rows.scan(&[keyspace::BLOCK], &mut |key, row| {
            let block = meta::block_of_key(key);
            roots
                .extend(block.map(|block| meta::facts_of(block, row).map(|facts| (block, facts.root.roots))));
            ControlFlow::Continue(())
        })?;
        let mut roots = roots.into_iter().collect::<Result<Vec<_>, _>>()?;
        roots.reverse();
        let undo = self.history().front().map(|first| first.0.saturating_sub(1));
        let wanted = keep.map_or(usize::MAX, |keep| usize::try_from(keep.max(1)).unwrap_or(usize::MAX));
        let can_go_back =
            roots.iter().take_while(|(block, _)| Some(block.0) >= undo && undo.is_some()).count();
        let count = wanted.max(can_go_back).min(roots.len());
        Ok(Kept { roots, count })
    }

    /// Has the writing thread delete rows, and waits for that.
    fn delete(&self, put: impl FnOnce(&mut WriteBatch, &Base) -> Result<(), Error>) -> Result<(), Error> {
        let base = self.rows.base();
        let mut batch = WriteBatch::default();
        put(&mut batch, &base)?;
        let after = Base { layers: Vec::new(), ..Base::clone(&base) };
        let layer = self.rows.commit(batch, after);
        let mut chain = self.chain();
        chain.tidy(layer)?;
        self.changed.notify_all();
        self.wait(chain, Chain::is_at_rest).map(drop)
    }
}
