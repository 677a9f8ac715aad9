//! Processes that should not be there: where they run, when they come and go.

use super::{
    hosts::{Actor, Kind, Layout},
    liars::{Liar, Lie},
    network::{MS, Task, address},
    rng::Rng,
    world::World,
};

/// Who takes a place that is not his.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guise {
    /// A data node with the id of the node on that host.
    Twin(usize),
    /// A data node that is configured for another cluster.
    OtherCluster,
    /// A data node that is configured for another number of slots.
    OtherSlots,
    /// Somebody who says what is not so, in the place of a process of the control plane if that is the host.
    Liar(Lie, usize),
}

impl Guise {
    /// One of them.
    pub fn choose(rng: &mut Rng, layout: &Layout) -> Self {
        match rng.below(100) {
            0..28 => Guise::Twin(rng.below(layout.nodes)),
            28..36 => Guise::OtherCluster,
            36..44 => Guise::OtherSlots,
            44..64 => Guise::Liar(Lie::OlderTable, layout.metas().start + rng.below(layout.metas)),
            64..76 => Guise::Liar(Lie::FutureTable, layout.liar()),
            76..84 => Guise::Liar(Lie::Foreign, layout.liar()),
            _ => Guise::Liar(Lie::Ahead, layout.liar()),
        }
    }

    /// The host on which it runs.
    pub fn host(&self, layout: &Layout) -> usize {
        match *self {
            Guise::Liar(_, host) => host,
            _ => layout.spare(),
        }
    }
}

impl World {
    /// A stranger comes up, unless one is in its place.
    pub(super) fn begin_guise(&mut self, guise: Guise) {
        let host = guise.host(&self.plan.layout);
        if self.guises.contains_key(&host) {
            return;
        }
        if self.plan.layout.kind(host) == Kind::Meta {
            self.crash(host, false);
        }
        self.reached.strangers += 1;
        self.guises.insert(host, guise);
        self.boot(host);
    }

    /// A stranger goes, and whoever's place it took comes back.
    pub(super) fn end_guise(&mut self, host: usize) {
        let Some(guise) = self.guises.remove(&host) else { return };
        let was_taken_in = match &self.actors[host] {
            Some(Actor::Node(node)) => node.role.table_epoch() > 0,
            _ => false,
        };
        if self.crash(host, false) {
            self.crash_disk(host);
        }
        match guise {
            Guise::Liar(_, host) if self.plan.layout.kind(host) == Kind::Meta => {
                self.net.schedule(self.net.now + 50 * MS, Task::Boot(host));
            }
            // Its twin was taken for it, so it is refused for good: an operator starts it again.
            Guise::Twin(node) if was_taken_in => {
                self.reached.twins_taken_in += 1;
                if self.crash(node, false) {
                    self.crash_disk(node);
                    self.net.schedule(self.net.now + 500 * MS, Task::Boot(node));
                }
            }
            _ => {}
        }
    }

    /// All strangers go.
    pub(super) fn end_guises(&mut self) {
        for host in self.guises.keys().copied().collect::<Vec<_>>() {
            self.end_guise(host);
        }
    }

    pub(super) fn new_liar(&mut self, host: usize, lie: Lie) -> Actor {
        let layout = &self.plan.layout;
        let peers = (layout.metas().map(address).collect(), layout.nodes().map(address).collect());
        let (store, identity) = (self.store.clone(), self.identity() & 0xf_ffff);
        self.oracle.say(None, || format!("on host {host} somebody lies: {lie:?}"));
        Actor::Liar(Box::new(Liar::new(lie, peers, store, identity)))
    }

    /// Counts what a liar did before it is gone.
    pub(super) fn count_liar(&mut self, liar: &Liar) {
        let (reached, counts) = (&mut self.reached, &liar.counts);
        match liar.lie() {
            Lie::FutureTable => reached.future_tables += counts.claims,
            Lie::Foreign => reached.foreign_refused += counts.refusals,
            Lie::Ahead => reached.lies_refused += counts.refusals,
            Lie::OlderTable => reached.older_tables += counts.claims,
        }
    }
}
