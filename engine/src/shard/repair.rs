//! Where a session and this shard hold different things: the comparison narrows, and what is too much here goes.

use std::collections::{BTreeMap, BTreeSet};

use super::{LinkError, Shard};
use crate::{
    batch::{Change, ChangeKind, Durability},
    digest::Digest,
    id::{DatumKey, ReaderId, RegisterId, SlotId, Version},
};

impl Shard {
    /// The digests of what the session behind a link owns in a slot, by data id.
    pub fn handle_digest_request(
        &self,
        reader: ReaderId,
        slot: SlotId,
    ) -> Result<BTreeMap<DatumKey, Digest>, LinkError> {
        let session = self.session_of(reader)?;
        Ok(self.slots.led(slot).map(|slot| slot.session_datum_digests(session)).unwrap_or_default())
    }

    /// The session tells every registration it holds of a data id; what else it is taken to own there goes. Travels in
    /// link order with its writes, so nothing that is still under way is lost.
    pub fn handle_holds(
        &mut self,
        reader: ReaderId,
        datum: DatumKey,
        registers: &BTreeSet<RegisterId>,
    ) -> Result<usize, LinkError> {
        let session = self.session_of(reader)?;
        let (slot_id, mark) = (datum.slot(self.config.slot_count), self.mark);
        let Some(slot) = self.slots.led(slot_id) else { return Ok(0) };
        let surplus: Vec<(RegisterId, Version)> = slot
            .session_registers(session, datum)
            .filter(|(register, _)| !registers.contains(register))
            .collect();
        for (register, version) in &surplus {
            self.seal_if_full(slot_id, self.now);
            let change = Change {
                kind: ChangeKind::Remove,
                durability: Durability::Ephemeral,
                datum,
                register: *register,
                version: *version,
                epoch: 0,
                owner: session,
            };
            if let Some(slot) = self.slots.get_mut(slot_id) {
                let _ = slot.admit_remove(&change, mark);
            }
        }
        if !surplus.is_empty() {
            self.dirty.push(slot_id);
        }
        Ok(surplus.len())
    }
}
