//! What becomes of all blocks, told to who looks after them.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use flagstone_core::types::BlockNumber;

use super::outcome::CommittedBlock;
use crate::error::Error;

/// Events that a subscriber may be behind; older ones are dropped, and counted.
const EVENTS_MAX: usize = 4096;

/// What happens in an engine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A block's root is known.
    Committed(CommittedBlock),
    /// All blocks up to this one are in the store.
    Persisted(BlockNumber),
    /// Blocks were taken back, from the first to the last, because of the first.
    TakenBack {
        /// The first.
        first: BlockNumber,
        /// The last.
        last: BlockNumber,
        /// Why.
        error: Error,
    },
    /// Nothing is closed, committed or written any more.
    Stopped(Error),
}

/// Events, in order, for one subscriber. Ends when it is dropped.
pub struct Subscription {
    queue: Arc<Queue>,
}

/// A subscriber's events.
#[derive(Default)]
struct Queue {
    events: Mutex<Events>,
    more: Condvar,
}

#[derive(Default)]
struct Events {
    waiting: VecDeque<Event>,
    lost: u64,
}

impl Queue {
    fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// The next event; `None` if there is none by then.
    pub fn next_within(&self, timeout: Duration) -> Option<Event> {
        let none = |events: &mut Events| events.waiting.is_empty();
        let events = self.queue.more.wait_timeout_while(self.queue.events(), timeout, none);
        events.unwrap_or_else(PoisonError::into_inner).0.waiting.pop_front()
    }

    /// How many events were dropped because the subscriber was more than 4096 behind; counts from zero again.
    pub fn lost(&self) -> u64 {
        std::mem::take(&mut self.queue.events().lost)
    }
}

/// Who has subscribed.
#[derive(Default)]
pub struct Subscribers(Mutex<Vec<Weak<Queue>>>);

impl Subscribers {
    fn list(&self) -> MutexGuard<'_, Vec<Weak<Queue>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another one, who is told of everything from now on.
    pub fn add(&self) -> Subscription {
        let queue = Arc::new(Queue::default());
        self.list().push(Arc::downgrade(&queue));
        Subscription { queue }
    }

    /// Tells all of them.
    pub fn tell(&self, event: impl Fn() -> Event) {
        let mut list = self.list();
        list.retain(|queue| {
            let Some(queue) = queue.upgrade() else { return false };
            let mut events = queue.events();
            if events.waiting.len() == EVENTS_MAX {
                events.waiting.pop_front();
                events.lost += 1;
            }
            events.waiting.push_back(event());
            queue.more.notify_all();
            true
        });
    }
}
