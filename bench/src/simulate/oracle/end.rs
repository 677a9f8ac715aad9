//! In the end everything is as if nothing had been.

use std::collections::{BTreeMap, BTreeSet};

use slotcast_engine::id::RegisterId;

use super::{Contents, Oracle, names};

impl Oracle {
    /// Promise 9. `lists` are what the clients hold, `present` the clients that are there.
    pub fn check_end(
        &mut self,
        present: &BTreeSet<usize>,
        lists: &BTreeMap<(usize, usize), Option<Contents>>,
    ) {
        for datum in 0..self.datums.len() {
            let wanted = self
                .regs
                .values()
                .filter(|reg| reg.datum == datum && reg.wanted && present.contains(&reg.client));
            let expected: BTreeMap<RegisterId, Vec<u8>> = wanted
                .filter_map(|reg| Some((reg.registration.register, reg.contents.last()?.clone())))
                .collect();
            let listed: Vec<RegisterId> = self.latest_list(datum).keys().copied().collect();
            if !listed.iter().eq(expected.keys()) {
                let text = format!(
                    "in the end the leader lists {} and should list {}",
                    names(listed.iter()),
                    names(expected.keys())
                );
                self.fail(Some(datum), text);
            }
            for ((client, _), list) in lists.iter().filter(|((_, of), _)| *of == datum) {
                if list.as_ref() != Some(&expected) {
                    let text = format!(
                        "in the end client {client} has {} and should have {}",
                        list.as_ref().map_or("nothing".into(), |list| names(list.keys())),
                        names(expected.keys())
                    );
                    self.fail(Some(datum), text);
                }
                let view = self.views.get(&(*client, datum)).map(|view| view.list.keys().copied().collect());
                let told: Vec<RegisterId> = view.unwrap_or_default();
                if !told.iter().eq(expected.keys()) {
                    let text = format!("in the end client {client} was told {}", names(told.iter()));
                    self.fail(Some(datum), text);
                }
            }
        }
    }
}
