//! What must hold: after each step, after each opening, and of what is damaged.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flagstone::core::diff::Subject;
use flagstone::core::felt::Felt;
use flagstone::core::hash::Bulk;
use flagstone::core::proof::{Anchor, ContractStorageKeys, ProofRequest, Proven, prove_storage};
use flagstone::core::types::BlockNumber;
use flagstone::engine::Candidate;
use flagstone::{Error, ErrorKind, View};

use super::model::{BLOBS, State, universe};
use super::world::{Pace, World};

impl World {
    /// Whether the way from a candidate down ends at the tip, and always did.
    pub fn is_alive(&self, candidate: &Candidate) -> bool {
        let tip = self.tip().id;
        let mut at = candidate.parent();
        while Some(at) != tip {
            match self.candidates.iter().find(|(below, _)| below.state() == at) {
                Some((below, _)) => at = below.parent(),
                None => return false,
            }
        }
        !self.dead.contains(&candidate.state())
    }

    /// Finds out which candidates are dead.
    pub fn bury(&mut self) {
        let dead = self.candidates.iter().filter(|(candidate, _)| !self.is_alive(candidate));
        let dead: Vec<_> = dead.map(|(candidate, _)| candidate.state()).collect();
        self.dead.extend(dead);
    }

    /// What is cheap to look at.
    pub fn audit(&mut self) {
        let view = self.engine().view();
        assert_eq!(self.engine().head().closed.map(|closed| closed.0), self.number());
        assert_eq!(Some(view.state()), self.tip().id, "the tip is another state");
        let universe = universe();
        assert_eq!(view.get_many(&universe).unwrap(), self.tip().all_values(), "values of the tip");
        let subject = self.draw.pick(&universe);
        assert_eq!(view.value(&subject).unwrap(), self.tip().value(&subject));
        for key in BLOBS {
            let blob = view.blob(key).unwrap();
            assert_eq!(blob.as_ref(), self.tip().blobs.get(key), "blob {key:?}");
        }
        if let (Some(hash), Some(number)) = (self.tip().hash, self.number()) {
            assert_eq!(self.engine().block_by_hash(hash).unwrap(), Some(BlockNumber(number)));
        }
        self.count_candidates();
        self.audit_candidates(&subject);
        self.audit_pins(&subject);
    }

    /// Nobody keeps a candidate but who has it: a view of it does, too, and for a while the thread that computes its root.
    fn count_candidates(&self) {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let count = self.engine().candidate_stats().count;
            assert!(count >= self.candidates.len(), "a candidate that somebody has is gone");
            if count == self.candidates.len() || !self.pins.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "candidates are left that nobody has");
            std::thread::yield_now();
        }
    }

    fn audit_candidates(&self, subject: &Subject) {
        for (candidate, state) in &self.candidates {
            let is_alive = self.is_alive(candidate);
            assert_eq!(candidate.is_alive(), is_alive, "{candidate:?}");
            match candidate.view().value(subject) {
                Ok(value) => {
                    assert!(is_alive, "{candidate:?} is dead, and is read");
                    assert_eq!(value, state.value(subject), "{subject} of {candidate:?}");
                }
                Err(error) => {
                    assert!(!is_alive && error.kind() == ErrorKind::Expired, "{candidate:?}: {error}")
                }
            }
        }
    }

    fn audit_pins(&self, subject: &Subject) {
        for (view, state) in &self.pins {
            let is_decided = self.chain.iter().any(|decided| decided.id == Some(view.state()));
            let of_candidate =
                self.candidates.iter().find(|(candidate, _)| candidate.state() == view.state());
            let is_there = is_decided || of_candidate.is_some_and(|(candidate, _)| self.is_alive(candidate));
            match view.value(subject) {
                Ok(value) => assert_eq!(value, state.value(subject), "{subject} of {view:?}, pinned"),
                Err(error) => assert!(!is_there && error.kind() == ErrorKind::Expired, "{view:?}: {error}"),
            }
        }
    }

    /// While a fault is planned, and after it: nothing wrong is told.
    pub fn audit_loosely(&self) {
        let Some(engine) = &self.engine else { return };
        let view = engine.view();
        let chains = || self.others.iter().chain([&self.chain]);
        for subject in universe() {
            match view.value(&subject) {
                Ok(value) => {
                    let is_right = chains().any(|chain| chain.last().unwrap().value(&subject) == value);
                    assert!(is_right, "{subject} is {value:#x} after a fault");
                }
                // The state before may be back, as blocks are refused in the background.
                Err(error) if error.kind() == ErrorKind::Expired => {}
                Err(error) => self.expect_fault(&error),
            }
        }
    }

    /// Everything: roots by the reference, values, tries, roots of blocks, earlier states.
    pub fn audit_all(&mut self) {
        if self.draw.chance(50) || self.setup.pace == Pace::Held {
            self.gate.set(false);
        }
        let head = self.engine().commit().unwrap();
        assert_eq!((head.root.roots, head.root.commitment), (self.tip().roots(), self.tip().commitment()));
        self.audit();
        self.audit_roots();
        self.check().unwrap();
        for _ in 0..2 {
            self.view_at().unwrap();
        }
    }

    fn audit_roots(&mut self) {
        let Some(last) = self.number() else { return };
        for number in self.root_floor.max(last.saturating_sub(20))..=last {
            let root = self.engine().block_root(BlockNumber(number)).unwrap();
            assert!(root.is_some() || self.setup.config.coalesce, "the root of block {number} is gone");
            let right =
                root.is_none_or(|root| self.chain[number as usize + 1].has_root(&root, false) != Some(false));
            assert!(right, "block {number} has another root");
        }
    }

    /// Nothing of the disk changes by what only looks. (The journal's thread may still have been about to begin a segment; but not
    /// each time.)
    fn unchanged<T>(&self, look: impl Fn() -> T) -> T {
        for _ in 0..3 {
            let before = self.content();
            let looked = look();
            if self.setup.pace != Pace::Lockstep || self.content() == before {
                return looked;
            }
        }
        panic!("looking changes the files");
    }

    pub fn check(&mut self) -> Result<(), Error> {
        self.engine().commit()?;
        self.rest();
        let report = self.unchanged(|| self.engine().check(&|_| ()))?;
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        Ok(())
    }

    /// The number of an earlier block, and whether its state must be there.
    fn earlier(&mut self) -> Option<(u64, bool)> {
        let last = self.number()?;
        let number = last.saturating_sub(self.draw.below(6) as u64);
        Some((number, number >= self.undo_floor && !self.setup.config.coalesce))
    }

    pub fn view_at(&mut self) -> Result<(), Error> {
        let Some((number, must)) = self.earlier() else { return Ok(()) };
        match self.engine().view_at(BlockNumber(number)) {
            Ok(view) => {
                let state = &self.chain[number as usize + 1];
                assert_eq!(Some(view.state()), state.id, "the view of block {number} is of another state");
                match view.get_many(&universe()) {
                    Ok(values) => assert_eq!(values, state.all_values(), "values of block {number}"),
                    // With a cadence of their own, blocks come in between.
                    Err(error) if error.kind() == ErrorKind::Expired && self.setup.pace == Pace::Free => {}
                    Err(error) => return Err(error),
                }
                Ok(())
            }
            Err(error) => may_be_gone(number, must, error),
        }
    }

    pub fn prove(&mut self) -> Result<(), Error> {
        let Some((number, must)) = self.earlier() else { return Ok(()) };
        self.engine().commit()?;
        self.rest();
        let request = request();
        let proof = self.unchanged(|| {
            self.engine().at_commitment(Some(BlockNumber(number)), |tries, _, root| {
                Ok(prove_storage(tries, root.roots, &request, None)?)
            })
        });
        match proof {
            Ok(proof) => {
                let state = &self.chain[number as usize + 1];
                let anchor = Anchor { commitment: Some(state.commitment()), ..Anchor::default() };
                let verified = proof.verify(&request, &anchor, &Bulk).unwrap();
                for subject in universe() {
                    if let Subject::Storage(address, key) = subject {
                        let expected = match state.value(&subject) {
                            value if value == Felt::ZERO => Proven::Absent,
                            value => Proven::Value(value.into()),
                        };
                        assert_eq!(verified.storage(&address, &key), expected, "{subject} of block {number}");
                    }
                }
                Ok(())
            }
            Err(error) => may_be_gone(number, must, error),
        }
    }

    /// Readers on other threads, while blocks are closed, committed and written.
    pub fn race(&mut self) -> Result<(), Error> {
        self.gate.set(false);
        let (view, state) = (self.engine().view().pinned()?, self.tip().clone());
        let expected = state.all_values();
        let (others, done) = (self.draw.below(2) + 1, AtomicBool::new(false));
        let mut raced = Ok(());
        std::thread::scope(|scope| {
            let readers: Vec<_> =
                (0..others).map(|_| scope.spawn(|| read_until(&done, &view, &expected))).collect();
            for _ in 0..6 {
                raced = raced.clone().and_then(|()| self.close(false));
            }
            raced = raced.clone().and_then(|()| self.engine().commit().map(drop));
            raced = raced.clone().and_then(|()| self.engine().sync());
            done.store(true, Ordering::SeqCst);
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
        raced
    }
}

fn request() -> ProofRequest {
    let mut request = ProofRequest::default();
    for subject in universe() {
        match subject {
            Subject::Nonce(address) => {
                request.contract_addresses.push(address);
                let keys = universe().into_iter().filter_map(|subject| match subject {
                    Subject::Storage(of, key) if of == address => Some(key),
                    _ => None,
                });
                let keys = ContractStorageKeys { contract_address: address, storage_keys: keys.collect() };
                request.contracts_storage_keys.push(keys);
            }
            Subject::CompiledClassHash(class) => request.class_hashes.push(class),
            _ => {}
        }
    }
    request
}

/// Reads a pinned view again and again: it is always the same.
fn read_until(done: &AtomicBool, view: &View, expected: &[Felt]) {
    let universe = universe();
    loop {
        let last = done.load(Ordering::SeqCst);
        assert_eq!(view.get_many(&universe).unwrap(), expected, "a pinned view, while blocks are written");
        for (subject, expected) in universe.iter().zip(expected) {
            assert_eq!(view.value(subject).unwrap(), *expected, "{subject} of a pinned view");
        }
        if last {
            return;
        }
    }
}

impl State {
    /// What a value is told as, if it is told right.
    pub fn says(&self, subject: &Subject, value: &Felt) -> bool {
        self.value(subject) == *value
    }
}

/// An earlier state that need not be there any more is none that fails.
fn may_be_gone(number: u64, must: bool, error: Error) -> Result<(), Error> {
    if error.kind() != ErrorKind::Expired {
        return Err(error);
    }
    assert!(!must, "block {number}: {error}");
    Ok(())
}
