//! Value rows that contradict the tries: found as blocks are committed, as values are read, and in the background.
//!
//! A damaged row says so when it is read; a lost one reads as zero, and a stale one as an old value, and an executor believes
//! it. Three things find them:
//!
//! - **Old leaves.** A commitment reads what written slots had before from the tries. That is held against what memory knows
//!   of the state before the block, which came from value rows and which an executor may have used, and, of what memory does
//!   not know, against the rows themselves: all of them in a block of ordinary size, and some [`HELD_ROWS_MAX`] of a large
//!   one's, picked by a keyed hash.
//! - **Reads.** A value that comes from a row, and is known to be another, is an error.
//! - **A scrub** on a thread of its own, at a bounded rate, reads all value rows again and again, and holds them against the
//!   number and digest that each contract keeps of them. Blocks go on being committed; what they change of the contract that
//!   the scrub is in is taken into account ([`Changes`](super::doubts::Changes)).
//!
//! What is found is the store's damage: the engine stops, no block is refused for it, and what is read of the contract is an
//! error from then on. `flagstone recover` rebuilds the rows.

use std::sync::atomic::Ordering;
use std::time::Duration;

use flagstone_core::diff::{StateDiff, Subject};
use flagstone_core::felt::Felt;
use flagstone_core::layout::StateAt;
use flagstone_core::scrub::{At, Contradiction, Scrub};
use flagstone_core::types::ContractAddress;

use super::doubts::{ScrubStats, Scrubbing, contract_of};
use super::rows::Base;
use super::running::Engine;
use super::shared::Shared;
use super::values::Held;
use crate::error::Error;

/// Most value rows that are read for one commitment, to hold them against the tries.
pub const HELD_ROWS_MAX: usize = 64;
/// How often the scrub reads some rows.
const STEP: Duration = Duration::from_millis(100);
/// How long it rests after it has read all.
const REST: Duration = Duration::from_secs(1);

impl Shared {
    /// From now on nothing that is beside this value is answered. Returns why.
    fn doubt(&self, contract: Option<ContractAddress>, what: String, problem: String) -> Error {
        self.doubts.add(contract);
        Error::damaged(
            what,
            format!(
                "{problem}: a row was lost or is an old one; no block was refused, and what was executed since then may have \
                 read it; rebuild the rows with `flagstone recover`"
            ),
        )
    }

    /// A value that was read contradicts one that is known.
    pub(super) fn doubt_read(&self, subject: &Subject, read: Felt, known: Felt) -> Error {
        let problem = format!("its row says {read:#x}, and it is known to be {known:#x}");
        let error = || self.doubt(contract_of(subject), subject.to_string(), problem.clone());
        self.stop(error());
        error()
    }

    /// Holds what blocks on a base replaced, as the tries say it, against the values that were read of the states before.
    ///
    /// # Errors
    /// The store's damage.
    pub(super) fn hold_replaced(&self, base: &Base, undo: &[(u64, StateDiff)]) -> Result<(), Error> {
        if !self.layout.has_value_rows() {
            return Ok(());
        }
        let mut before = base.stamp;
        for (through, undo) in undo {
            let Held { contradiction, unknown } = self.values.hold(before, undo, HELD_ROWS_MAX);
            if let Some((subject, known, replaced)) = contradiction {
                return Err(self.doubt_replaced(&subject, known, replaced));
            }
            // Values of blocks that are not in the base are known.
            let rows = self.rows.of(base);
            let state = StateAt { store: &rows, roots: base.root.roots };
            for (subject, replaced) in unknown {
                let value = self.layout.value(state, &subject)?;
                if value != replaced {
                    return Err(self.doubt_replaced(&subject, value, replaced));
                }
            }
            before = *through;
        }
        Ok(())
    }

    fn doubt_replaced(&self, subject: &Subject, value: Felt, replaced: Felt) -> Error {
        let problem = format!("its row says {value:#x}, and its leaf in the trie {replaced:#x}");
        self.doubt(contract_of(subject), subject.to_string(), problem)
    }

    /// The scrub's thread.
    pub(super) fn scrub(&self) -> Result<(), Error> {
        let rate = self.config.scrub_rows_per_second;
        if rate == 0 || !self.layout.has_value_rows() {
            return Ok(());
        }
        self.scrubbing.news().wanted = true;
        let rows_max = (u64::from(rate) * STEP.as_millis() as u64 / 1000).max(1);
        let (mut scrub, mut pause) = (Scrub::default(), STEP);
        while self.scrubbing.pause(pause) && self.check_running().is_ok() {
            let rows = self.scrub_step(&mut scrub, rows_max)?;
            pause = Duration::from_secs_f64(rows as f64 / f64::from(rate)).max(STEP);
            if scrub.at() == At::End {
                scrub = Scrub::default();
                self.scrubbing.passes.fetch_add(1, Ordering::Relaxed);
                pause = pause.max(REST);
            }
        }
        Ok(())
    }

    /// Reads some rows of the newest committed state. Returns how many.
    fn scrub_step(&self, scrub: &mut Scrub, rows_max: u64) -> Result<u64, Error> {
        let done = loop {
            let base = self.rows.base();
            self.scrubbing.bring(scrub, base.stamp);
            let (rows, mut next) = (self.rows.of(&base), scrub.clone());
            let state = StateAt { store: &rows, roots: base.root.roots };
            let done = self.layout.scrub(state, &mut next, rows_max)?;
            if self.rows.is_still(&base) {
                *scrub = next;
                break done;
            }
        };
        self.scrubbing.rows.fetch_add(done.rows, Ordering::Relaxed);
        let found = done.findings.into_iter().next();
        match found {
            Some(Contradiction { contract, finding }) => {
                Err(self.doubt(contract, finding.place.to_string(), finding.problem))
            }
            None => Ok(done.rows),
        }
    }
}

impl Engine {
    /// What the background scrub has done since the opening.
    pub fn scrub_stats(&self) -> ScrubStats {
        let Scrubbing { rows, passes, .. } = &self.shared.scrubbing;
        ScrubStats { rows: rows.load(Ordering::Relaxed), passes: passes.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use flagstone_core::diff::StateDiff;
    use flagstone_core::store::MemoryStore;
    use flagstone_core::types::BlockNumber;
    use flagstone_core::update::StateUpdate;

    use super::*;
    use crate::engine::{Cadence, EngineConfig};
    use crate::registry::layout;

    fn update(number: u64, slots: impl Iterator<Item = u64>) -> StateUpdate {
        let mut diff = StateDiff::builder().class(7.into(), 8.into());
        for slot in slots {
            let value = if (number + slot).is_multiple_of(5) { 0 } else { number * 100 + slot + 1 };
            diff = diff.storage((slot % 3 + 1).into(), slot.into(), value.into());
        }
        let starknet_version = "0.14.0".parse().ok();
        StateUpdate { starknet_version, ..StateUpdate::from(diff.build().unwrap()) }
    }

    /// Steps of two rows between blocks, several at a time and coalesced or not, and blocks taken back: none of it is taken for
    /// damage, and the scrub gets through.
    #[test]
    fn what_changes_beside_a_scrub_is_no_contradiction() {
        for (cadence, coalesce) in
            [(Cadence::AtClose, false), (Cadence::OnRequest, false), (Cadence::OnRequest, true)]
        {
            let config =
                EngineConfig { cadence, coalesce, scrub_rows_per_second: 0, ..EngineConfig::default() };
            let store = Box::new(MemoryStore::new());
            let engine = Engine::open(store, layout("flat").unwrap().make(), config).unwrap();
            let shared = &engine.shared;
            shared.scrubbing.news().wanted = true;
            let (mut scrub, mut passes) = (Scrub::default(), 0);
            for number in 0..300u64 {
                engine
                    .close_block(&update(number, (0..40).filter(|slot| (slot * 7 + number) % 4 == 0)))
                    .unwrap();
                if number % 3 == 2 {
                    engine.commit().unwrap();
                    shared.scrub_step(&mut scrub, 2 + number % 5).unwrap();
                }
                if number % 31 == 30 {
                    let head = engine.head().committed.unwrap();
                    engine.revert_to(BlockNumber(head.0 - 3)).unwrap();
                    shared.scrub_step(&mut scrub, 2).unwrap();
                }
                if scrub.at() == At::End {
                    (scrub, passes) = (Scrub::default(), passes + 1);
                }
            }
            assert!(passes > 2, "{passes} passes");
        }
    }
}
