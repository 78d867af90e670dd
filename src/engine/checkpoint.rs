//! Writing what is committed to the store: the one place that writes.

use super::events::Event;
use super::life::{Chain, Unwritten};
use super::rows::Layer;
use super::shared::Shared;
use crate::error::Error;

impl Shared {
    /// The writing thread: writes all that is committed, whenever there is something, until the end. What was committed
    /// while it wrote goes together, so a slow store gets fewer and larger units.
    pub(super) fn write_committed(&self) -> Result<(), Error> {
        while let Some(unwritten) = self.next(Chain::begin_to_write) {
            self.write(&unwritten)?;
        }
        Ok(())
    }

    /// Steps 4 to 6 of [`durable`](super::durable).
    fn write(&self, unwritten: &[Unwritten]) -> Result<(), Error> {
        let layers: Vec<&Layer> = unwritten.iter().map(|unwritten| &unwritten.layer).collect();
        let blocks: u32 = unwritten.iter().map(|unwritten| unwritten.blocks.len() as u32).sum();
        let Some(Unwritten { head, refusal, .. }) = unwritten.last() else { return Ok(()) };
        self.rows.write(&layers, |store, batch| store.write(batch))?; // 4
        if self.durability.sync_is_due(blocks) {
            self.rows.sync()?; // 5
            self.durability.synced(*head, *refusal)?; // 6
        }
        let mut chain = self.chain();
        let leaving = chain.in_store(&self.config, self.pins.oldest())?;
        drop(chain);
        self.pasts.drop_idle();
        for closed in leaving {
            self.values.retire(closed.stamp, &closed.block.diff);
        }
        // At one instant: who finds nothing unwritten may go back, and then says itself what is persisted.
        let mut chain = self.chain();
        chain.written()?.into_iter().for_each(|tip| self.set_tip(tip));
        drop(chain);
        self.changed.notify_all();
        if let Some(head) = *head {
            self.subscribers.tell(|| Event::Persisted(head));
        }
        unwritten.iter().flat_map(|written| &written.blocks).for_each(|closed| closed.outcome.persist());
        Ok(())
    }
}
