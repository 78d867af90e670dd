//! The engine's own locks, and the order in which they are taken.
//!
//! Who holds one of them takes only those behind it:
//!
//! 1. [`Rank::Closer`]: who closes blocks or takes them back ([`close`](super::close)).
//! 2. [`Rank::Installing`]: who installs a commitment of blocks that wait for it, or takes such blocks back ([`commit`](super::commit)).
//! 3. [`Rank::History`]: which blocks can be taken back ([`undo`](super::undo)).
//! 4. [`Rank::Blobs`]: blobs of blocks that are closed and not committed.
//! 5. [`Rank::Chain`]: where each block is on its way ([`life`](super::life)), held for moments. Who waits, waits on the condition beside it, for
//!    room, for a root, or for work.
//! 6. [`Rank::Tip`]: the state that a new view begins with.
//!
//! Builds with debug assertions look at each lock that is taken. Locks inside of a part (rows, values, outcomes, pins) come after all of
//! these, and no part takes one of these while it holds its own. Two are otherwise: what is computed for a candidate
//! ([`Proposed::made`](super::state::Proposed::made)), and who leads back to an earlier state ([`Pasts::leading`](super::pasts::Pasts::leading)). They are held while a
//! commitment is waited for or computed, so they come before the history and the chain, and who has the closer's lock only tries for the first.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A lock's place in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    Closer,
    Installing,
    History,
    Blobs,
    Chain,
    Tip,
}

thread_local! {
    /// A bit for each rank that this thread holds.
    static HELD: Cell<u8> = const { Cell::new(0) };
}

/// A rank that this thread holds.
struct Held(Rank);

impl Held {
    fn new(rank: Rank) -> Self {
        if cfg!(debug_assertions) {
            let held = HELD.get();
            debug_assert!(
                held >> rank as u8 == 0,
                "{rank:?} is taken by who holds {held:#b}: locks have an order"
            );
            HELD.set(held | 1 << rank as u8);
        }
        Self(rank)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if cfg!(debug_assertions) {
            HELD.set(HELD.get() & !(1 << self.0 as u8));
        }
    }
}

/// A lock that is held.
pub struct Guard<G> {
    guard: G,
    held: Held,
}

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;

    fn deref(&self) -> &Self::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.guard
    }
}

/// What one at a time has.
pub struct Lock<T> {
    rank: Rank,
    inner: Mutex<T>,
}

/// [`Lock::lock`]
pub type Locked<'a, T> = Guard<MutexGuard<'a, T>>;

impl<T> Lock<T> {
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { rank, inner: Mutex::new(value) }
    }

    /// Waits until nobody has it. A thread that panicked with it has left it whole.
    pub fn lock(&self) -> Locked<'_, T> {
        let held = Held::new(self.rank);
        Guard { guard: self.inner.lock().unwrap_or_else(PoisonError::into_inner), held }
    }
}

impl<T> Locked<'_, T> {
    /// Lets go until something changes.
    pub fn wait(self, changed: &Condvar) -> Self {
        let Self { guard, held } = self;
        Self { guard: changed.wait(guard).unwrap_or_else(PoisonError::into_inner), held }
    }
}

/// What one at a time changes, and many read.
pub struct Watched<T> {
    rank: Rank,
    inner: RwLock<T>,
}

impl<T> Watched<T> {
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { rank, inner: RwLock::new(value) }
    }

    pub fn read(&self) -> Guard<RwLockReadGuard<'_, T>> {
        let held = Held::new(self.rank);
        Guard { guard: self.inner.read().unwrap_or_else(PoisonError::into_inner), held }
    }

    pub fn write(&self) -> Guard<RwLockWriteGuard<'_, T>> {
        let held = Held::new(self.rank);
        Guard { guard: self.inner.write().unwrap_or_else(PoisonError::into_inner), held }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(debug_assertions)]
    fn locks_are_taken_in_order_and_what_was_let_go_can_be_taken_again() {
        let [closer, chain] = [Rank::Closer, Rank::Chain].map(|rank| Lock::new(rank, 0));
        let tip = Watched::new(Rank::Tip, 0);
        let asserts = |taken: &dyn Fn()| {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(taken));
            outcome.is_err()
        };
        let (first, mut second) = (closer.lock(), chain.lock());
        *second += *tip.read();
        assert!(asserts(&|| drop(closer.lock())), "it is held, and would be waited for without an end");
        drop(first);
        assert!(asserts(&|| drop(closer.lock())), "the chain is held");
        drop(second);
        let third = tip.write();
        assert!(asserts(&|| drop(chain.lock())) && asserts(&|| drop(tip.read())));
        drop(third);
        drop((closer.lock(), chain.lock()));
    }
}
