//! Steps of a program: what is asked of the engine, and what must come of it.

use std::path::PathBuf;

use flagstone::core::hash::Bulk;
use flagstone::core::types::{BlockNumber, StateCommitment, StateId};
use flagstone::engine::{BlockHandle, NewBlock};
use flagstone::journal::faulty::{Class, Fault, Operation};
use flagstone::{Cadence, Engine, Error, ErrorKind};

use flagstone_testkit::reference::ReferenceState;

use super::model::{Block, State, universe};
use super::world::{End, Pace, World};
use crate::candidates::is_gone;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Close,
    CloseWithWitness,
    CloseWrong,
    CloseElsewhere,
    Propose,
    Root,
    Decide,
    Drop,
    Commit,
    Wait,
    Sync,
    Revert,
    Pin,
    Unpin,
    ViewAt,
    Prove,
    Race,
    Check,
    Prune,
    Carry,
    Remember,
    Reopen,
    Kill,
    PowerCut,
    Damage,
    Rot,
    FullDisk,
}

/// How often each is drawn, beside the others.
const WEIGHTS: [(Op, u64); 27] = [
    (Op::Close, 30),
    (Op::CloseWithWitness, 2),
    (Op::CloseWrong, 3),
    (Op::CloseElsewhere, 2),
    (Op::Propose, 14),
    (Op::Root, 4),
    (Op::Decide, 10),
    (Op::Drop, 3),
    (Op::Commit, 4),
    (Op::Wait, 4),
    (Op::Sync, 3),
    (Op::Revert, 5),
    (Op::Pin, 4),
    (Op::Unpin, 3),
    (Op::ViewAt, 5),
    (Op::Prove, 2),
    (Op::Race, 2),
    (Op::Check, 1),
    (Op::Prune, 1),
    (Op::Carry, 1),
    (Op::Remember, 2),
    (Op::Reopen, 2),
    (Op::Kill, 2),
    (Op::PowerCut, 2),
    (Op::Damage, 2),
    (Op::Rot, 1),
    (Op::FullDisk, 1),
];

/// What may be asked while a block is closed that states a wrong root, and is not refused yet.
const WHILE_DOOMED: [(Op, u64); 7] = [
    (Op::Close, 4),
    (Op::Propose, 1),
    (Op::Commit, 3),
    (Op::Wait, 2),
    (Op::Reopen, 1),
    (Op::Kill, 1),
    (Op::PowerCut, 1),
];

impl World {
    /// Some of the operations are not in a program at all, so that programs differ.
    pub fn draw_weights(&mut self) -> Vec<(Op, u64)> {
        let mut weights = WEIGHTS.to_vec();
        for (op, weight) in &mut weights {
            if *op != Op::Close && self.draw.chance(25) {
                *weight = 0;
            } else if self.draw.chance(15) {
                *weight *= 4;
            }
        }
        weights
    }

    pub fn choose(&mut self, weights: &[(Op, u64)]) -> Op {
        let weights = if self.doomed().is_some() { &WHILE_DOOMED[..] } else { weights };
        let mut at = self.draw.below(weights.iter().map(|(_, weight)| *weight as usize).sum()) as u64;
        for (op, weight) in weights {
            match at.checked_sub(*weight) {
                Some(left) => at = left,
                None => return *op,
            }
        }
        Op::Close
    }

    /// One step, and what must hold after it.
    pub fn step(&mut self, op: Op) {
        self.stats.steps += 1;
        self.note(format!("{op:?} on {:?}", self.number()));
        let is_end = matches!(
            op,
            Op::Reopen | Op::Kill | Op::PowerCut | Op::Damage | Op::Rot | Op::FullDisk | Op::Race
        );
        let faults = self.setup.faults;
        if is_end && self.is_planned {
            self.plan_nothing();
        }
        if !is_end && !self.is_planned && self.doomed().is_none() && self.draw.chance(faults) {
            self.plan_a_fault();
        }
        self.hold_back(op);
        if let Err(error) = self.run(op) {
            self.note(format!("error: {error}"));
            self.expect_fault(&error);
        }
        if !self.disk.went_wrong() {
            self.rest();
        }
        self.bury();
        if self.is_planned {
            // What looks may meet with the fault itself.
            self.audit_loosely();
            if self.disk.went_wrong() {
                self.after_a_fault();
            }
            return;
        }
        self.audit();
    }

    /// Holds the store back, if that blocks nobody.
    fn hold_back(&mut self, op: Op) {
        let may_wait = matches!(
            op,
            Op::Close | Op::Propose | Op::Root | Op::Decide | Op::Pin | Op::ViewAt | Op::Kill | Op::PowerCut
        );
        let head = self.engine().head();
        let count = |head: Option<BlockNumber>| head.map_or(0, |head| head.0 + 1);
        let behind = count(head.committed).saturating_sub(count(head.persisted));
        let holds = self.setup.pace == Pace::Held && may_wait && behind + head.uncommitted < 5;
        self.gate.set(holds);
    }

    fn plan_a_fault(&mut self) {
        let under = self.draw.pick(&[PathBuf::new(), self.store_dir(), self.journal_dir()]);
        let kinds = [
            None,
            Some(Operation::Read),
            Some(Operation::Write),
            Some(Operation::Sync),
            Some(Operation::Change),
        ];
        let kind = self.draw.pick(&kinds);
        let at = self.draw.next() % 12;
        let fault = self.draw.pick(&[Fault::PowerCut(at), Fault::Fail(at), Fault::Full(at)]);
        self.plan(Class { under, kind }, fault);
    }

    /// Something went wrong on the disk: the engine may have stopped. What it still tells is right, and so is what is there afterwards.
    pub fn after_a_fault(&mut self) {
        self.stats.faults += 1;
        self.gate.set(false);
        self.audit_loosely();
        let is_off = self.disk.went_wrong() && self.draw.chance(50);
        let end =
            if is_off { End::PowerCut } else { self.draw.pick(&[End::Closed, End::Killed, End::PowerCut]) };
        self.end_faulty(end);
        self.recover(true);
        self.audit_all();
    }

    /// Ends an engine that may have stopped; after a power cut there is no other end.
    fn end_faulty(&mut self, end: End) {
        let was_cut = self.disk.all_operations() > 0 && self.power_is_off();
        self.end(if was_cut { End::PowerCut } else { end });
    }

    fn power_is_off(&self) -> bool {
        use flagstone::journal::Files;
        self.disk.went_wrong() && self.disk.list(std::path::Path::new("/")).is_err()
    }

    fn run(&mut self, op: Op) -> Result<(), Error> {
        match op {
            Op::Close => self.close(false),
            Op::CloseWrong => self.close(true),
            Op::CloseWithWitness => self.close_with_witness(),
            Op::CloseElsewhere => self.close_elsewhere(),
            Op::Propose => self.propose(),
            Op::Root => self.root_of_candidate(),
            Op::Decide => self.decide(),
            Op::Drop => self.drop_candidate(),
            Op::Commit => self.commit(),
            Op::Wait => self.wait(),
            Op::Sync => self.engine().sync(),
            Op::Revert => self.revert(),
            Op::Pin => self.pin(),
            Op::Unpin => self.unpin(),
            Op::ViewAt => self.view_at(),
            Op::Prove => self.prove(),
            Op::Race => self.race(),
            Op::Check => self.check(),
            Op::Prune => self.prune(),
            Op::Carry => self.carry(),
            Op::Remember => self.remember(),
            Op::Reopen => self.reopen(End::Closed),
            Op::Kill => self.reopen(End::Killed),
            Op::PowerCut => self.reopen(End::PowerCut),
            Op::Damage => self.damage(),
            Op::Rot => self.rot(),
            Op::FullDisk => self.full_disk(),
        }
    }

    fn reopen(&mut self, end: End) -> Result<(), Error> {
        if self.is_planned {
            self.plan_nothing();
        }
        self.end(end);
        self.recover(true);
        self.audit_all();
        Ok(())
    }

    /// A block on the tip; sometimes with what is known of it stated.
    fn draw_block(&mut self, wrong: bool, on: &State, number: u64) -> Block {
        let mut block = Block::draw(&mut self.draw, number);
        if self.draw.chance(5) && on.id.is_some() && !on.is_wrong {
            block.update.old_root = Some(on.commitment());
        }
        if self.draw.chance(5) {
            block.update.new_root = Some(on.after(&block).commitment());
        }
        if wrong { block.wrong() } else { block }
    }

    pub fn close(&mut self, wrong: bool) -> Result<(), Error> {
        let tip = self.tip().clone();
        let doomed = self.doomed();
        let wrong = wrong && doomed.is_none();
        let mut block = self.draw_block(wrong, &tip, self.next_number());
        if doomed.is_some() {
            block.update.old_root = None;
            block.update.new_root = None;
        }
        let state = tip.after(&block);
        let on = tip.id.filter(|_| doomed.is_none() && self.draw.chance(30));
        let new = NewBlock::from(&block.update).with_blobs(&block.blobs);
        let closed = self.engine().close_block(on.map_or(new, |on| new.on(on)));
        self.closed(closed, state)
    }

    /// What became of a block that was to be closed on the tip.
    fn closed(&mut self, closed: Result<BlockHandle, Error>, state: State) -> Result<(), Error> {
        let number = self.next_number();
        let at_close = self.setup.config.cadence == Cadence::AtClose;
        match closed {
            Ok(handle) => {
                assert!(!(state.is_wrong && at_close), "a wrong root is not noticed at the close");
                assert_eq!(handle.number(), BlockNumber(number));
                self.push(state, handle);
                self.resolve_soon()
            }
            Err(Error::RootMismatch { block, .. }) if state.is_wrong && block.0 == number => Ok(()),
            // A block before it was refused meanwhile.
            Err(Error::RootMismatch { block, .. }) if self.doomed() == Some(block.0 as usize + 1) => {
                self.chain.truncate(block.0 as usize + 1);
                Ok(())
            }
            Err(error) => {
                if error.kind() != ErrorKind::Full {
                    self.others.push(self.chain.iter().cloned().chain([state]).collect());
                }
                Err(error)
            }
        }
    }

    /// Has a block with a wrong root refused before the next step, unless it waits for that by itself.
    fn resolve_soon(&mut self) -> Result<(), Error> {
        if self.doomed().is_none() {
            return Ok(());
        }
        let config = &self.setup.config;
        let waits = config.cadence == Cadence::OnRequest && config.pending_blocks_max > 2 && !config.coalesce;
        if waits && self.draw.chance(50) { Ok(()) } else { self.resolve() }
    }

    /// Waits until a block with a wrong root is refused, with all after it.
    fn resolve(&mut self) -> Result<(), Error> {
        let Some(doomed) = self.doomed() else { return Ok(()) };
        match self.engine().commit() {
            Ok(_) => panic!("block {} states a wrong root, and is committed", doomed - 1),
            Err(Error::RootMismatch { block, .. })
                if block.0 as usize + 1 == doomed || self.setup.config.coalesce =>
            {
                self.cut_at(doomed);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The blocks from one on are gone. Those that were to be committed as one with the first went with it.
    fn cut_at(&mut self, doomed: usize) {
        let left = self.engine().head().closed.map_or(1, |closed| closed.0 as usize + 2);
        assert!(
            left == doomed || (self.setup.config.coalesce && left < doomed),
            "{left} are left, not {doomed}"
        );
        self.chain.truncate(left);
    }

    fn close_with_witness(&mut self) -> Result<(), Error> {
        let tip = self.tip().clone();
        let block = self.draw_block(false, &tip, self.next_number());
        let state = tip.after(&block);
        let reads: Vec<_> = universe().into_iter().filter(|_| self.draw.chance(20)).collect();
        let new = NewBlock::from(&block.update).with_blobs(&block.blobs);
        match self.engine().close_block_with_witness(new, &reads) {
            Ok((handle, witness)) => {
                assert_eq!(witness.before, tip.roots());
                let changes = witness.apply(&block.update.diff, &Bulk).unwrap();
                assert_eq!(changes.roots, state.roots());
                self.closed(Ok(handle), state)
            }
            Err(error) => self.closed(Err(error), state),
        }
    }

    /// Blocks that do not follow are refused, and leave nothing.
    fn close_elsewhere(&mut self) -> Result<(), Error> {
        let mut block = self.draw_block(false, &self.tip().clone(), self.next_number());
        block.update.old_root = None;
        let new = |block: &Block, engine: &Engine, on: Option<StateId>| {
            let new = NewBlock::from(&block.update);
            engine.close_block(on.map_or(new, |on| new.on(on))).map(drop)
        };
        // The first block follows whatever number it has.
        let kinds = if self.number().is_some() { 3 } else { 1 };
        let refused = match self.draw.below(kinds) {
            0 => new(&block, self.engine(), Some(StateId(7))),
            1 => {
                block.update.block_number = Some(BlockNumber(self.next_number() + 3));
                new(&block, self.engine(), None)
            }
            _ => {
                self.engine().commit()?;
                block.update.old_root = Some(StateCommitment::from(0xbad));
                new(&block, self.engine(), None)
            }
        };
        match refused {
            Err(Error::WrongState { .. } | Error::WrongNumber { .. } | Error::WrongParent { .. }) => Ok(()),
            Ok(()) => panic!("a block is closed that does not follow: {block:?}"),
            Err(error) => Err(error),
        }
    }

    fn propose(&mut self) -> Result<(), Error> {
        let index = self.draw.below(self.candidates.len() + 1);
        let (parent, on, number) = match index.checked_sub(1).map(|index| &self.candidates[index]) {
            None => (self.tip().id.unwrap(), self.tip().clone(), self.next_number()),
            Some((candidate, state)) => (candidate.state(), state.clone(), candidate.number().0 + 1),
        };
        let is_there = index == 0 || self.is_alive(&self.candidates[index - 1].0);
        let mut block = self.draw_block(false, &on, number);
        block.update.old_root = None;
        if on.is_wrong {
            block.update.new_root = None;
        }
        let new = NewBlock::from(&block.update).with_blobs(&block.blobs);
        match self.engine().propose(parent, new) {
            Ok(candidate) => {
                assert!(is_there, "a candidate on what is gone");
                self.proposed.insert(candidate.state(), block.update.diff.clone());
                self.candidates.push((candidate, on.after(&block)));
            }
            Err(Error::TooManyCandidates { count, .. }) => assert_eq!(count, 8),
            Err(error) => assert!(!is_there && is_gone(&error), "{error}"),
        }
        Ok(())
    }

    fn pick_candidate(&mut self) -> Option<usize> {
        (!self.candidates.is_empty()).then(|| self.draw.below(self.candidates.len()))
    }

    /// What can be computed of a candidate: its root, its witness, or what takes it back.
    fn root_of_candidate(&mut self) -> Result<(), Error> {
        let Some(index) = self.pick_candidate() else { return Ok(()) };
        let (candidate, state) = self.candidates[index].clone();
        let computed = match self.draw.below(5) {
            0 => candidate.compute_ahead(),
            1 => candidate.witness(&[]).map(|witness| {
                let changes = witness.apply(&self.proposed[&candidate.state()], &Bulk).unwrap();
                assert_eq!(changes.roots, state.roots());
            }),
            2 => candidate.undo().map(|undo| {
                let mut before = ReferenceState::clone(&state.values);
                before.apply(&undo);
                let before = State::of(before);
                let parent = self
                    .known
                    .get(&candidate.parent())
                    .cloned()
                    .or_else(|| self.state_of(candidate.parent()));
                assert!(
                    parent.is_none_or(|parent| parent.all_values() == before.all_values()),
                    "{candidate:?}"
                );
            }),
            _ => candidate.root().map(|root| assert_eq!(root.roots, state.roots())),
        };
        match computed {
            Err(error) if error.kind() == ErrorKind::Expired => {
                assert!(!self.is_alive(&candidate), "{error}");
                Ok(())
            }
            computed => computed,
        }
    }

    /// The state of a candidate that somebody has.
    fn state_of(&self, id: StateId) -> Option<State> {
        let of = self.candidates.iter().find(|(candidate, _)| candidate.state() == id);
        of.map(|(_, state)| state.clone())
    }

    fn decide(&mut self) -> Result<(), Error> {
        let on_tip = self
            .candidates
            .iter()
            .position(|(candidate, _)| Some(candidate.parent()) == self.tip().id && self.is_alive(candidate));
        let on_tip = on_tip.filter(|_| self.draw.chance(80));
        let Some(index) = on_tip.or_else(|| self.pick_candidate()) else { return Ok(()) };
        let (candidate, state) = self.candidates[index].clone();
        let on_tip = Some(candidate.parent()) == self.tip().id && self.is_alive(&candidate);
        match self.engine().decide(&candidate) {
            Ok(block) => {
                assert!(on_tip, "a candidate is decided that is not on the tip");
                assert_eq!(block.state(), candidate.state());
                self.candidates.remove(index);
                self.closed(Ok(block), state)
            }
            Err(error) if is_gone(&error) => {
                assert!(!on_tip, "{error}");
                Ok(())
            }
            Err(error) => self.closed(Err(error), state.with_id(candidate.state())),
        }
    }

    fn drop_candidate(&mut self) -> Result<(), Error> {
        let Some(index) = self.pick_candidate() else { return Ok(()) };
        let state = self.candidates[index].0.state();
        // Those on top keep it alive.
        if self.candidates.iter().all(|(on, _)| on.parent() != state) {
            self.candidates.remove(index);
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Error> {
        if self.doomed().is_some() {
            return self.resolve();
        }
        let head = self.engine().commit()?;
        assert_eq!(head.committed, head.closed);
        if self.draw.chance(30) {
            assert_eq!(
                (head.root.roots, head.root.commitment),
                (self.tip().roots(), self.tip().commitment())
            );
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), Error> {
        let Some(last) = self.last.clone() else { return Ok(()) };
        if self.doomed().is_some() {
            return self.resolve();
        }
        let is_there = self.tip().id == Some(last.state());
        if !is_there {
            return Ok(());
        }
        if self.draw.chance(50) {
            return last.persisted().wait();
        }
        let root = last.committed().wait()?;
        let compute = self.draw.chance(30);
        let right = root.is_none_or(|root| self.tip().has_root(&root, compute) != Some(false));
        assert!(right, "block {} has another root: {root:?}", last.number());
        Ok(())
    }

    fn revert(&mut self) -> Result<(), Error> {
        let back = 1 + self.draw.below(4) as u64;
        let Some(to) = self.number().and_then(|number| number.checked_sub(back)) else { return Ok(()) };
        let must = to >= self.undo_floor && !self.setup.config.coalesce;
        match self.engine().revert_to(BlockNumber(to)) {
            Ok(root) => {
                self.chain.truncate(to as usize + 2);
                self.undo_floor = self.undo_floor.min(to);
                if self.draw.chance(20) {
                    assert_eq!(root.roots, self.tip().roots());
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Expired => {
                assert!(!must, "block {to}: {error}");
                Ok(())
            }
            Err(error) => {
                self.others.push(self.chain[..to as usize + 2].to_vec());
                Err(error)
            }
        }
    }

    fn pin(&mut self) -> Result<(), Error> {
        if self.pins.len() > 4 {
            return Ok(());
        }
        let (view, state) = match self.draw.below(self.candidates.len() + 1).checked_sub(1) {
            None => (self.engine().view(), self.tip().clone()),
            Some(index) => (self.candidates[index].0.view(), self.candidates[index].1.clone()),
        };
        match view.pinned() {
            Ok(view) => self.pins.push((view, state)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Expired),
        }
        Ok(())
    }

    fn unpin(&mut self) -> Result<(), Error> {
        if !self.pins.is_empty() {
            let index = self.draw.below(self.pins.len());
            self.pins.swap_remove(index);
        }
        Ok(())
    }

    fn prune(&mut self) -> Result<(), Error> {
        let keep = 1 + self.draw.next() % 4;
        let dry_run = self.draw.chance(30);
        let closed = self.number();
        self.engine().commit()?;
        if let Some(closed) = closed.filter(|_| !dry_run) {
            self.root_floor = self.root_floor.max((closed + 1).saturating_sub(keep));
        }
        self.engine().prune(Some(keep), dry_run).map(drop)
    }

    /// What the files are like now, for later.
    fn remember(&mut self) -> Result<(), Error> {
        if self.attic.len() == 3 {
            self.attic.remove(0);
        }
        let files = self.content();
        self.attic.push((self.home, files));
        Ok(())
    }

    /// The journal's disk is full for a while: blocks are refused and leave nothing, what is there is read, and afterwards blocks go on.
    fn full_disk(&mut self) -> Result<(), Error> {
        self.engine().commit()?;
        self.engine().sync()?;
        let class = Class { under: self.journal_dir(), kind: None };
        self.plan(class, Fault::Full(self.draw.clone().next() % 3));
        for _ in 0..3 {
            match self.close(false) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Full => self.audit(),
                Err(error) => return Err(error),
            }
        }
        self.plan_nothing();
        self.close(false)
    }
}
