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

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
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

/// The locks of one engine. A thread that closes a block of one may come to close one of another meanwhile: while it waits for a thread
/// pool it may be given work of its own pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order(u64);

impl Order {
    /// Of an engine of its own.
    pub fn new() -> Self {
        static ENGINES: AtomicU64 = AtomicU64::new(0);
        Self(ENGINES.fetch_add(1, Ordering::Relaxed))
    }
}

thread_local! {
    /// What this thread holds.
    static HELD: RefCell<Vec<(Order, Rank)>> = const { RefCell::new(Vec::new()) };
}

/// A lock that this thread holds.
struct Held(Order, Rank);

impl Held {
    fn new(order: Order, rank: Rank) -> Self {
        if cfg!(debug_assertions) {
            let behind = HELD.with_borrow(|held| {
                held.iter()
                    .find(|(of, held)| *of == order && *held as u8 >= rank as u8)
                    .map(|(_, held)| *held)
            });
            debug_assert_eq!(behind, None, "{rank:?} is taken by who holds this: locks have an order");
            HELD.with_borrow_mut(|held| held.push((order, rank)));
        }
        Self(order, rank)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if cfg!(debug_assertions) {
            let this = (self.0, self.1);
            HELD.with_borrow_mut(|held| {
                if let Some(place) = held.iter().rposition(|held| *held == this) {
                    held.swap_remove(place);
                }
            });
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
    order: Order,
    rank: Rank,
    inner: Mutex<T>,
}

/// [`Lock::lock`]
pub type Locked<'a, T> = Guard<MutexGuard<'a, T>>;

impl<T> Lock<T> {
    pub const fn new(order: Order, rank: Rank, value: T) -> Self {
        Self { order, rank, inner: Mutex::new(value) }
    }

    /// Waits until nobody has it. A thread that panicked with it has left it whole.
    pub fn lock(&self) -> Locked<'_, T> {
        let held = Held::new(self.order, self.rank);
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
    order: Order,
    rank: Rank,
    inner: RwLock<T>,
}

impl<T> Watched<T> {
    pub const fn new(order: Order, rank: Rank, value: T) -> Self {
        Self { order, rank, inner: RwLock::new(value) }
    }

    pub fn read(&self) -> Guard<RwLockReadGuard<'_, T>> {
        let held = Held::new(self.order, self.rank);
        Guard { guard: self.inner.read().unwrap_or_else(PoisonError::into_inner), held }
    }

    pub fn write(&self) -> Guard<RwLockWriteGuard<'_, T>> {
        let held = Held::new(self.order, self.rank);
        Guard { guard: self.inner.write().unwrap_or_else(PoisonError::into_inner), held }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(debug_assertions)]
    fn locks_are_taken_in_order_and_what_was_let_go_can_be_taken_again() {
        let order = Order::new();
        let [closer, chain] = [Rank::Closer, Rank::Chain].map(|rank| Lock::new(order, rank, 0));
        let tip = Watched::new(order, Rank::Tip, 0);
        let another = Lock::new(Order::new(), Rank::Closer, 0);
        let asserts = |taken: &dyn Fn()| {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(taken));
            outcome.is_err()
        };
        let (first, mut second) = (closer.lock(), chain.lock());
        *second += *tip.read();
        assert!(asserts(&|| drop(closer.lock())), "it is held, and would be waited for without an end");
        drop(another.lock());
        drop(first);
        assert!(asserts(&|| drop(closer.lock())), "the chain is held");
        drop(second);
        let third = tip.write();
        assert!(asserts(&|| drop(chain.lock())) && asserts(&|| drop(tip.read())));
        drop(third);
        drop((closer.lock(), chain.lock()));
    }
}
