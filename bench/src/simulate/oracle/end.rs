//! In the end everything is as if nothing had been.

use std::collections::{BTreeMap, BTreeSet};

use slotcast_engine::id::RegisterId;

use super::{Contents, Oracle, Reg, names};

impl Oracle {
    /// Whether it is known what has become of a registration. What was acknowledged as persistent may be lost with a disk.
    fn is_sure(&self, reg: &Reg) -> bool {
        if reg.is_doubtful || !reg.is_persistent() {
            return !reg.is_doubtful;
        }
        let told = if reg.wanted {
            reg.acknowledged.map(|it| it.revision)
        } else {
            reg.removal.map(|it| it.revision)
        };
        let lost = |term| told.is_none_or(|told| self.may_be_lost(term, reg.datum, told));
        !self.is_unclean(reg.datum) || !self.latest_term(reg.datum).is_some_and(lost)
    }

    /// Promise 13. `lists` are what the clients hold, `present` the clients that are there.
    pub fn check_end(
        &mut self,
        present: &BTreeSet<usize>,
        lists: &BTreeMap<(usize, usize), Option<Contents>>,
    ) {
        for datum in 0..self.datums.len() {
            let wanted = self
                .regs
                .values()
                .filter(|reg| reg.datum == datum && reg.wanted)
                .filter(|reg| self.is_sure(reg))
                .filter(|reg| reg.is_persistent() || present.contains(&reg.client));
            let expected: BTreeMap<RegisterId, Vec<u8>> = wanted
                .filter_map(|reg| Some((reg.registration.register, reg.contents.last()?.clone())))
                .collect();
            let is_sure = |register: &RegisterId| self.regs.get(register).is_none_or(|reg| self.is_sure(reg));
            let listed: Vec<RegisterId> =
                self.latest_list(datum).keys().copied().filter(|register| is_sure(register)).collect();
            let sure = |list: &Contents| -> Contents {
                let sure = list.iter().filter(|(register, _)| is_sure(register));
                sure.map(|(register, payload)| (*register, payload.clone())).collect()
            };
            let lists: BTreeMap<usize, Option<Contents>> = lists
                .iter()
                .filter(|((_, of), _)| *of == datum)
                .map(|((client, _), list)| (*client, list.as_ref().map(sure)))
                .collect();
            let told: BTreeMap<usize, Vec<RegisterId>> = lists
                .keys()
                .map(|client| {
                    let view = self.views.get(&(*client, datum));
                    let list = view.map(|view| view.list.keys().copied().filter(|it| is_sure(it)).collect());
                    (*client, list.unwrap_or_default())
                })
                .collect();
            if !listed.iter().eq(expected.keys()) {
                let text = format!(
                    "in the end the leader lists {} and should list {}",
                    names(listed.iter()),
                    names(expected.keys())
                );
                self.fail(Some(datum), text);
            }
            for (client, list) in &lists {
                if list.as_ref() != Some(&expected) {
                    let text = format!(
                        "in the end client {client} has {} and should have {}",
                        list.as_ref().map_or("nothing".into(), |list| names(list.keys())),
                        names(expected.keys())
                    );
                    self.fail(Some(datum), text);
                }
                let told = &told[client];
                if !told.iter().eq(expected.keys()) {
                    let text = format!("in the end client {client} was told {}", names(told.iter()));
                    self.fail(Some(datum), text);
                }
            }
        }
    }
}
