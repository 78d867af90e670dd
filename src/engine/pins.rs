//! Views that somebody holds on to.
//!
//! A view is answered from the values of the blocks after it, and those leave memory at a bound. While a view is pinned they stay
//! beyond that bound, up to [`EngineConfig::pinned_bytes_max`](super::EngineConfig::pinned_bytes_max); at that one they leave all the
//! same, and the oldest pinned views expire.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which states are pinned, by their stamps.
#[derive(Default)]
pub struct Pins {
    counts: Mutex<BTreeMap<u64, usize>>,
}

/// A state is pinned.
pub struct Pin {
    pins: Arc<Pins>,
    stamp: u64,
}

impl Pins {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pins the state with a stamp.
    pub fn pin(self: &Arc<Self>, stamp: u64) -> Pin {
        *self.counts().entry(stamp).or_default() += 1;
        Pin { pins: Arc::clone(self), stamp }
    }

    /// The oldest pinned state.
    pub fn oldest(&self) -> Option<u64> {
        self.counts().first_key_value().map(|(stamp, _)| *stamp)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut counts = self.pins.counts();
        if let Some(count) = counts.get_mut(&self.stamp) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.stamp);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_the_oldest_that_somebody_has() {
        let pins = Arc::<Pins>::default();
        assert_eq!(pins.oldest(), None);
        let (first, later, again) = (pins.pin(3), pins.pin(5), pins.pin(3));
        drop(first);
        assert_eq!(pins.oldest(), Some(3));
        drop(again);
        assert_eq!(pins.oldest(), Some(5));
        drop(later);
        assert_eq!(pins.oldest(), None);
    }
}
