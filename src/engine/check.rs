//! Everything a database has, visited and held against everything else.
//!
//! The tries from the leaves up, the layout's rows against the tries, the engine's rows against both, states of earlier
//! blocks if the layout keeps them, and the journal against the store. Nothing is changed, and nothing ends at damage:
//! each thing that is wrong is a finding with its place.
//!
//! One thing cannot be noticed: roots of the first blocks that are gone, as a database may begin at any block.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use flagstone_core::audit::{Finding, Findings, Place, Visited, audit_tries, scan_rows};
use flagstone_core::commit::Overlaid;
use flagstone_core::compare::{StateTries, compare};
use flagstone_core::diff::Subject;
use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::hash::Hasher;
use flagstone_core::layout::StateAt;
use flagstone_core::proof;
use flagstone_core::store::{StoreErrorKind, StoreRead, keyspace};
use flagstone_core::types::{BlockHash, BlockNumber};

use super::meta::{self, BlockRoot, Head, PendingBlock};
use super::running::Engine;
use super::shared::Shared;
use super::values::each_value;
use crate::error::Error;
use crate::journal::{Journal, Position, Recovered};

/// What a check has visited and found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckReport {
    /// The state that was checked.
    pub head: Head,
    /// What it has.
    pub visited: Visited,
    /// Blocks whose roots are known.
    pub blocks: u64,
    /// Blocks in the journal.
    pub journal_blocks: u64,
    /// What is wrong, in the order of places; at most [`FINDINGS_MAX`](flagstone_core::audit::FINDINGS_MAX).
    pub findings: Vec<Finding>,
    /// How much is wrong.
    pub findings_total: u64,
    /// What is worth telling and not wrong, with how often.
    pub notes: BTreeMap<&'static str, u64>,
}

impl CheckReport {
    /// With one more finding, about the whole database.
    pub(crate) fn with(mut self, problem: String) -> Self {
        self.findings_total += 1;
        self.findings.insert(0, Finding::new(Place::Named("the database".to_owned()), problem));
        self
    }

    /// Whether nothing is wrong.
    pub const fn is_sound(&self) -> bool {
        self.findings_total == 0
    }
}

impl Engine {
    /// Checks the whole database as it is after the last closed block, which is committed first. While the journal is read no block closes;
    /// while the rest is, blocks are closed, committed and written, and do not change what is checked, until more was overwritten than
    /// [`EngineConfig::reader_bytes_max`](super::EngineConfig::reader_bytes_max). `progress` is told of storage entries now and then,
    /// on the threads that check: it is no place to call the engine from.
    ///
    /// # Errors
    /// As [`Engine::commit`], and [`Error::State`] if the store fails otherwise than by damage.
    pub fn check(&self, progress: &(dyn Fn(u64) + Sync)) -> Result<CheckReport, Error> {
        let findings = Findings::default();
        let (held, head, frames) = self.at_rest(|shared, head, journal| {
            let held = shared.rows.hold();
            let rows = held.rows(shared.rows.store());
            let check = Check { shared, store: &rows, head, findings: &findings };
            check.refusal(journal)?;
            let frames = journal.map_or(Ok(Frames::default()), |journal| check.journal(journal))?;
            drop(rows);
            Ok((held, head, frames))
        })?;
        let shared = &self.shared;
        let rows = held.rows(shared.rows.store());
        let check = Check { shared, store: &rows, head, findings: &findings };
        // Where blocks are produced, on threads that commit nothing.
        let pool = match shared.durability.check_writable() {
            Ok(()) => shared.history_pool()?,
            Err(_) => &shared.pool,
        };
        let visited = pool.install(|| check.state(shared.hasher.as_ref(), progress))?;
        let blocks = check.engine_rows()?;
        pool.install(|| check.history(shared.hasher.as_ref()))?;
        if shared.layout.keeps_old_states() {
            check.old_states()?;
        }
        check.last_values(&frames.last)?;
        if let Some(cut) = &shared.opened.cut {
            findings.note("bytes at the journal's end of a write that was cut short", cut.bytes);
        }
        let (findings_total, journal_blocks) = (findings.total(), frames.count);
        let (findings, notes) = findings.into_parts();
        Ok(CheckReport { head, visited, blocks, journal_blocks, findings, findings_total, notes })
    }
}

/// What the journal's frames say.
#[derive(Default)]
struct Frames {
    /// How many there are.
    count: u64,
    /// What they set last, and which block did.
    last: HashMap<Subject, (BlockNumber, Felt)>,
}

/// Whether the journal says that other roots were computed for a block.
fn computed_other(recovered: &Recovered, root: &BlockRoot) -> bool {
    recovered.roots.as_ref().is_some_and(|roots| *roots != root.to_bytes())
}

struct Check<'a> {
    shared: &'a Shared,
    store: &'a dyn StoreRead,
    head: Head,
    findings: &'a Findings,
}

impl Check<'_> {
    const fn store(&self) -> &dyn StoreRead {
        self.store
    }

    /// Tries and the layout's rows.
    fn state(&self, hasher: &dyn Hasher, progress: &(dyn Fn(u64) + Sync)) -> Result<Visited, StateError> {
        let roots = self.head.root.roots;
        let state = StateAt { store: self.store(), roots };
        let tries = self.shared.layout.tries(state);
        let visited = audit_tries(tries.as_ref(), roots, hasher, self.findings, progress)?;
        self.shared.layout.audit(state, &visited, hasher, self.findings)?;
        Ok(visited)
    }

    /// The head, the roots of blocks, and that there is nothing else. Returns how many blocks have roots.
    fn engine_rows(&self) -> Result<u64, Error> {
        let head_row = || Place::Named("the head row".to_owned());
        let stored = meta::read_head(self.store()).unwrap_or_default();
        if self.head.committed.is_none() && self.head.root != BlockRoot::default() {
            self.findings.add(head_row(), "it has roots, and no block is committed");
        }
        check_commitment(self.findings, head_row(), &self.head.root);
        let blocks = self.block_roots()?;
        if let Some(committed) = self.head.committed {
            match meta::read_block_state(self.store(), committed) {
                Ok(Some(found)) if found == (self.head.root, stored.state) => {}
                Ok(Some(_)) => {
                    self.findings.add(head_row(), format!("its roots are not those of block {committed}"));
                }
                Ok(None) => self.findings.add(Place::Block(committed), "the row of its roots is missing"),
                Err(Error::State(error)) => self.findings.damage(Place::Block(committed), error)?,
                Err(error) => return Err(error),
            }
        }
        self.blobs()?;
        self.unknown_rows()?;
        Ok(blocks)
    }

    /// Each blob has all its rows, and is as long as it says.
    fn blobs(&self) -> Result<(), Error> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        scan_rows(
            self.store(),
            &[keyspace::BLOB],
            self.findings,
            &mut |row, _| match meta::blob_of_key(row) {
                Some(key) if keys.last().is_none_or(|last| last != key) => keys.push(key.to_vec()),
                Some(_) => {}
                None => self.findings.add(Place::Row(row.to_vec()), "it is no key of a piece of a blob"),
            },
        )?;
        for key in keys {
            match meta::read_blob(self.store(), &key) {
                Ok(_) => {}
                Err(Error::State(error)) => self.findings.damage(Place::Named("a blob".to_owned()), error)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Roots of blocks come without gaps, but for blocks that were committed as one, up to the head's.
    fn block_roots(&self) -> Result<u64, Error> {
        let (mut blocks, mut next, mut hashes) = (0, None, HashMap::new());
        scan_rows(self.store(), &[keyspace::BLOCK], self.findings, &mut |key, row| {
            let Some(block) = meta::block_of_key(key) else {
                self.findings.add(Place::Row(key.to_vec()), "it is no key of a block's roots");
                return;
            };
            blocks += 1;
            let follows = std::mem::replace(&mut next, block.next());
            if Some(block) > self.head.committed {
                self.findings.add(Place::Block(block), "it has roots, and is not committed");
            }
            match meta::decode_block(row) {
                Ok(facts) => {
                    // The journal may have told roots of some of them, which were put there again.
                    if let Some(missing) = follows.filter(|follows| *follows < facts.first) {
                        self.findings.add(Place::Block(missing), "the row of its roots is missing");
                    }
                    check_commitment(self.findings, Place::Block(block), &facts.root);
                    hashes.extend(facts.hash.map(|hash| (hash, block)));
                }
                Err(error) => self.findings.add(Place::Block(block), error.to_string()),
            }
        })?;
        self.block_hashes(hashes)?;
        Ok(blocks)
    }

    /// Blocks are found by the hashes that they have, and by no others.
    fn block_hashes(&self, mut hashes: HashMap<BlockHash, BlockNumber>) -> Result<(), Error> {
        scan_rows(self.store(), &[keyspace::BLOCK_HASH], self.findings, &mut |key, row| {
            let Some(hash) = meta::hash_of_key(key) else {
                self.findings.add(Place::Row(key.to_vec()), "it is no key of a block's hash");
                return;
            };
            match meta::decode_number(row) {
                Ok(block) if hashes.remove(&hash) == Some(block) => {}
                Ok(block) => {
                    self.findings
                        .add(Place::Block(block), format!("it is found by hash {hash}, and has another"));
                }
                Err(error) => self.findings.add(Place::Row(key.to_vec()), error.to_string()),
            }
        })?;
        for (hash, block) in hashes {
            self.findings.add(Place::Block(block), format!("it is not found by its hash {hash}"));
        }
        Ok(())
    }

    /// What takes blocks back leads, from the head on, from state to state, each with the roots that it states and that were
    /// stored. (A database may begin at any block, so how far back is not known.)
    fn history(&self, hasher: &dyn Hasher) -> Result<(), Error> {
        let mut left = meta::undo_blocks(self.store()).unwrap_or_default();
        let (mut at, mut roots) = (self.head.committed, self.head.root.roots);
        let state = StateAt { store: self.store(), roots };
        let mut tries = Overlaid::new(self.shared.layout.tries(state));
        while let Some(block) = left.pop() {
            let place = || Place::Named(format!("what takes block {block} back"));
            if at != Some(block) {
                self.findings.add(place(), format!("it is not known how the state gets there from {at:?}"));
                return Ok(());
            }
            let undo = match meta::read_undo(self.store(), block) {
                Ok(undo) => undo.unwrap_or_default(),
                Err(Error::State(error)) => return Ok(self.findings.damage(place(), error)?),
                Err(error) => return Err(error),
            };
            // If not, the tries are damaged, which was found already.
            let Ok(computed) = tries.advance(roots, &undo.diff, hasher) else { return Ok(()) };
            let stored = match undo.before {
                Some(before) => meta::read_block_root(self.store(), before).unwrap_or_default(),
                None => Some(BlockRoot::default()),
            };
            if computed != undo.root.roots || stored.is_some_and(|stored| stored != undo.root) {
                self.findings.add(place(), "it does not lead to the roots that the block before had");
                return Ok(());
            }
            (at, roots) = (undo.before, computed);
        }
        Ok(())
    }

    /// The head takes account of a refusal that the journal can have.
    fn refusal(&self, journal: Option<&Journal>) -> Result<(), Error> {
        let stored = meta::read_head(self.store()).unwrap_or_default();
        if stored.refusal > journal.map_or_else(Position::default, Journal::position) {
            let problem = "it speaks of a refusal that is behind the journal's end";
            self.findings.add(Place::Named("the head row".to_owned()), problem);
        }
        Ok(())
    }

    /// Rows that are nobody's.
    fn unknown_rows(&self) -> Result<(), Error> {
        let nobodys = |key: &[u8]| self.findings.add(Place::Row(key.to_vec()), "a row that nobody writes");
        let mut first = None;
        // A damaged row is found by the scans of what it is among.
        let _ = self.store().scan(&[], &mut |key, _| {
            first = Some(key.is_empty());
            ControlFlow::Break(())
        });
        if first == Some(true) {
            nobodys(&[]);
        }
        for byte in (0..keyspace::LAYOUT_FIRST).filter(|byte| *byte != keyspace::BLOB) {
            scan_rows(self.store(), &[byte], self.findings, &mut |key, _| match byte {
                keyspace::META if meta::is_known(key) => {}
                keyspace::BLOCK | keyspace::UNDO | keyspace::BLOCK_HASH => {}
                _ => nobodys(key),
            })?;
        }
        Ok(())
    }

    /// States of earlier blocks: what differs from the state after them is there.
    fn old_states(&self) -> Result<(), Error> {
        let Some(mut newer) = self.head.committed.map(|block| (block, self.head.root)) else { return Ok(()) };
        while let Ok(Some(facts)) = meta::read_block(self.store(), newer.0)
            && let Some(number) = facts.first.0.checked_sub(1).map(BlockNumber)
        {
            let Ok(Some(older)) = meta::read_block_root(self.store(), number) else { break };
            let [new, old] = [newer.1, older].map(|root| StateAt { store: self.store(), roots: root.roots });
            let (new_tries, old_tries) = (self.shared.layout.tries(new), self.shared.layout.tries(old));
            let mut failed = Ok(());
            compare(
                StateTries { rows: old_tries.as_ref(), roots: old.roots },
                StateTries { rows: new_tries.as_ref(), roots: new.roots },
                &mut |found| {
                    if let Err(broken) = found {
                        failed = self.findings.broken(broken);
                    }
                    failed.is_ok()
                },
            );
            failed?;
            newer = (number, older);
        }
        Ok(())
    }

    /// The journal's frames can be read, and say of blocks what the store says.
    fn journal(&self, journal: &Journal) -> Result<Frames, Error> {
        let mut frames = Frames::default();
        for recovered in journal.replay() {
            frames.count += 1;
            match recovered {
                Ok(recovered) => self.frame(&recovered, &mut frames.last)?,
                Err(error) => self.findings.damage(
                    Place::Named("the journal".to_owned()),
                    StateError::from(flagstone_core::store::StoreError::from(error)),
                )?,
            }
        }
        if let (Some(next), Some(closed)) = (journal.next_block(), self.head.closed)
            && Some(next) != closed.next()
        {
            let problem = format!("it goes on with block {next}, the store with the one after {closed}");
            self.findings.add(Place::Named("the journal".to_owned()), problem);
        }
        Ok(frames)
    }

    /// What the journal's blocks set last is what the store has.
    fn last_values(&self, last: &HashMap<Subject, (BlockNumber, Felt)>) -> Result<(), Error> {
        let state = StateAt { store: self.store(), roots: self.head.root.roots };
        let mut wrong = Vec::new();
        for (subject, (block, value)) in
            last.iter().filter(|(_, (block, _))| Some(*block) <= self.head.closed)
        {
            match self.shared.layout.value(state, subject) {
                Ok(stored) if stored == *value => {}
                Ok(stored) => wrong.push((*block, subject.to_string(), value, stored)),
                Err(StateError::Store(error)) if error.kind() != StoreErrorKind::Corrupt => {
                    return Err(error.into());
                }
                // Damage that was found among the layout's rows.
                Err(_) => {}
            }
        }
        wrong.sort_by(|(a, a_name, ..), (b, b_name, ..)| (a, a_name).cmp(&(b, b_name)));
        for (block, subject, value, stored) in wrong {
            let problem =
                format!("its frame in the journal sets {subject} to {value:#x}, the store has {stored:#x}");
            self.findings.add(Place::Block(block), problem);
        }
        Ok(())
    }

    /// Holds a frame against the store's roots, and notes what it sets.
    fn frame(
        &self,
        recovered: &Recovered,
        last: &mut HashMap<Subject, (BlockNumber, Felt)>,
    ) -> Result<(), Error> {
        let number = recovered.block;
        let block = match PendingBlock::decode(number, &recovered.payload) {
            Ok(block) => block,
            Err(error) => {
                self.findings.add(Place::Block(number), format!("its frame in the journal: {error}"));
                return Ok(());
            }
        };
        each_value(&block.diff, |subject, value| {
            last.insert(subject, (number, value));
        });
        // A damaged or missing row was told already.
        if let Ok(Some((root, state))) = meta::read_block_state(self.store(), number)
            && (state != block.lineage.state || computed_other(recovered, &root))
        {
            self.findings
                .add(Place::Block(number), "the state after it is another in the store than in the journal");
        }
        let before = number.0.checked_sub(1).map(BlockNumber);
        let stated = [(Some(number), block.new_root), (before, block.old_root)];
        for (of, stated) in stated {
            let (Some(of), Some(stated)) = (of, stated) else { continue };
            // A damaged or missing row was told already.
            let Ok(Some(root)) = meta::read_block_root(self.store(), of) else { continue };
            if root.commitment != stated {
                let problem = format!(
                    "its frame in the journal states root {stated} after block {of}, the store says {}",
                    root.commitment
                );
                self.findings.add(Place::Block(number), problem);
            }
        }
        if Some(number) > self.head.closed {
            self.findings.add(Place::Block(number), "it is in the journal, and not in the store");
        }
        Ok(())
    }
}

/// A commitment is one that its roots can have.
fn check_commitment(findings: &Findings, place: Place, root: &BlockRoot) {
    if proof::check_commitment(root.roots, root.commitment, None, true).is_err() {
        findings.add(place, format!("the state commitment {} is not that of its roots", root.commitment));
    }
}
