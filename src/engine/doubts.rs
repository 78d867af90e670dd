//! What commitments tell the scrub, and what was found: the parts of [`scrub`](super::scrub) that the engine's threads share.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use flagstone_core::diff::{StateDiff, Subject};
use flagstone_core::scrub::Scrub;
use flagstone_core::types::{ContractAddress, StorageValue};

use super::closed::Closed;
use crate::error::Error;

/// Commitments between two of the scrub's steps that it takes into account; after more it begins again with its contract.
const CHANGES_MAX: usize = 64;

/// What the background scrub has done since the opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ScrubStats {
    /// Rows that were read.
    pub rows: u64,
    /// How often it has been through all of them.
    pub passes: u64,
}

/// What a commitment changes: its blocks, and what takes them back, with the stamp of the last block of each.
pub struct Changes {
    pub stamp: u64,
    pub blocks: Vec<Arc<Closed>>,
    pub undo: Vec<(u64, StateDiff)>,
}

impl Changes {
    /// Tells a scrub what changed behind it in the contract that it is in.
    fn tell(&self, scrub: &mut Scrub) {
        let Some((address, _)) = scrub.inside() else { return };
        for (through, undo) in &self.undo {
            let contracts = undo.contracts();
            let Ok(found) = contracts.binary_search_by(|contract| contract.address.cmp(&address)) else {
                continue;
            };
            let blocks = || self.blocks.iter().rev().filter(|closed| closed.stamp <= *through);
            for (key, before) in &contracts[found].storage {
                let subject = Subject::Storage(address, *key);
                let after = blocks().find_map(|closed| closed.block.diff.value(&subject));
                scrub.changed(key, before, &after.map_or(*before, StorageValue));
            }
        }
    }
}

/// The scrub's end of the commitments, and what it has done.
#[derive(Default)]
pub struct Scrubbing {
    news: Mutex<News>,
    ended: Condvar,
    pub rows: AtomicU64,
    pub passes: AtomicU64,
}

#[derive(Default)]
pub struct News {
    /// Whether anybody wants them.
    pub wanted: bool,
    /// In order. Each is here before anybody can read its rows.
    changes: VecDeque<Changes>,
    /// Some were dropped.
    lost: bool,
    ended: bool,
}

impl Scrubbing {
    pub fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of a commitment, before its rows can be read.
    pub fn tell(&self, changes: Changes) {
        let mut news = self.news();
        if news.wanted {
            news.changes.push_back(changes);
        }
        if news.changes.len() > CHANGES_MAX {
            news.changes.clear();
            news.lost = true;
        }
    }

    /// Brings a scrub to the state with a stamp.
    pub fn bring(&self, scrub: &mut Scrub, stamp: u64) {
        let mut news = self.news();
        while let Some(changes) = news.changes.pop_front_if(|changes| changes.stamp <= stamp) {
            changes.tell(scrub);
        }
        if std::mem::take(&mut news.lost) {
            scrub.begin_contract_again();
        }
    }

    /// Waits so long; whether to go on then.
    pub fn pause(&self, pause: Duration) -> bool {
        let going_on = self.ended.wait_timeout_while(self.news(), pause, |news| !news.ended);
        !going_on.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    /// The scrub ends after its step.
    pub fn end(&self) {
        self.news().ended = true;
        self.ended.notify_all();
    }
}

/// Things whose rows were found to contradict the tries.
#[derive(Default)]
pub struct Doubts {
    any: AtomicBool,
    contracts: RwLock<HashSet<ContractAddress>>,
    classes: AtomicBool,
}

impl Doubts {
    pub fn add(&self, contract: Option<ContractAddress>) {
        match contract {
            Some(address) => {
                self.contracts.write().unwrap_or_else(PoisonError::into_inner).insert(address);
            }
            None => self.classes.store(true, Ordering::SeqCst),
        }
        self.any.store(true, Ordering::SeqCst);
    }

    fn has(&self, subject: &Subject) -> bool {
        match contract_of(subject) {
            Some(address) => self.contracts.read().unwrap_or_else(PoisonError::into_inner).contains(&address),
            None => self.classes.load(Ordering::SeqCst),
        }
    }

    /// Refuses to answer for what is in doubt.
    pub fn check(&self, subject: &Subject) -> Result<(), Error> {
        if !self.any.load(Ordering::Relaxed) || !self.has(subject) {
            return Ok(());
        }
        let problem = "value rows beside it were found to contradict the tries, so it may be wrong as well; \
                       `flagstone recover` rebuilds them";
        Err(Error::damaged(subject.to_string(), problem))
    }
}

/// The contract of whose rows a value is; `None` for a class's.
pub fn contract_of(subject: &Subject) -> Option<ContractAddress> {
    match subject {
        Subject::Storage(address, _) | Subject::Nonce(address) | Subject::ClassHash(address) => {
            Some(*address)
        }
        Subject::CompiledClassHash(_) => None,
    }
}
