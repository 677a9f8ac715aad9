//! The control plane of a run: its processes are the real ones, the store that they share is in memory, keeps every table that it
//! ever had, and fails, is slow or is set back as the faults say.

use std::sync::{Arc, Mutex};

use crossbeam::channel::{Sender, bounded};
use prometheus_client::registry::Registry;
use slotcast_engine::id::Nanos;
use slotcast_net::{
    meta::{
        core::MetaConfig,
        keeper::{CAMPAIGN, StoreSide},
        metrics::MetaMetrics,
        node::{MetaCommand, MetaNode},
        store::{Lead, StoreError, TableStore},
    },
    wire::slot_table::SlotTable,
};

use super::{
    hosts::{Actor, SLOTS},
    network::{MS, SECOND, Task},
    world::World,
};

/// Name of the simulated cluster.
pub const CLUSTER: &str = "sim";
/// Lease of a data node at the control plane.
pub const NODE_LEASE: u64 = 2 * SECOND;
/// How long a process of the control plane leads when the store says so.
const LEAD: u64 = 3 * SECOND;

/// What the processes of the control plane share.
#[derive(Default)]
pub struct StoreState {
    now: u64,
    /// Every table that it has had, the newest last.
    tables: Vec<SlotTable>,
    /// Which of them it has now, counted from one; 0: none.
    held: usize,
    leader: Option<(usize, u64)>,
    /// Until when it answers nobody.
    pub down_until: u64,
    /// Until when it is slow.
    pub slow_until: u64,
}

impl StoreState {
    /// An old backup is restored: one of the earlier tables, or none.
    fn set_back(&mut self, chance: usize) {
        self.held = chance % self.held.max(1);
    }

    /// The newest table that it has had of an epoch below `epoch`.
    pub fn older_than(&self, epoch: u64) -> Option<&SlotTable> {
        self.tables.iter().rev().find(|table| table.epoch < epoch)
    }

    /// The largest epoch that it has had a table of.
    pub fn latest_epoch(&self) -> u64 {
        self.tables.last().map_or(0, |table| table.epoch)
    }

    fn table(&self) -> Option<&SlotTable> {
        self.tables.get(self.held.checked_sub(1)?)
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.now < self.down_until {
            return Err(StoreError::Unavailable("the store does not answer".into()));
        }
        Ok(())
    }
}

/// The store as all see it.
pub type SharedStore = Arc<Mutex<StoreState>>;

/// The store as one process sees it.
struct StoreOf {
    host: usize,
    state: SharedStore,
}

impl StoreOf {
    fn with<T>(&self, ask: impl FnOnce(&mut StoreState) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut state = self.state.lock().map_err(|_| StoreError::NotLeading)?;
        state.check()?;
        ask(&mut state)
    }
}

impl TableStore for StoreOf {
    fn campaign(&mut self) -> Result<Lead, StoreError> {
        let host = self.host;
        self.with(|state| {
            let other = state.leader.filter(|(leader, until)| *leader != host && state.now < *until);
            if let Some((leader, _)) = other {
                return Ok(Lead::Others(Some(format!("meta-{leader}"))));
            }
            state.leader = Some((host, state.now + LEAD));
            Ok(Lead::Ours(std::time::Duration::from_nanos(LEAD)))
        })
    }

    fn load(&mut self) -> Result<Option<SlotTable>, StoreError> {
        self.with(|state| Ok(state.table().cloned()))
    }

    fn swap(&mut self, expected: u64, table: &SlotTable) -> Result<(), StoreError> {
        let host = self.host;
        self.with(|state| {
            if state.leader.is_none_or(|(leader, until)| leader != host || state.now >= until) {
                return Err(StoreError::NotLeading);
            }
            let held = state.table().map_or(0, |table| table.epoch);
            if table.epoch <= held {
                return Err(StoreError::Older { told: table.epoch, held });
            }
            if held != expected {
                return Err(StoreError::Conflict { expected, found: held });
            }
            state.tables.push(table.clone());
            state.held = state.tables.len();
            Ok(())
        })
    }

    fn resign(&mut self) {
        let host = self.host;
        let _ = self.with(|state| {
            state.leader.take_if(|(leader, _)| *leader == host);
            Ok(())
        });
    }
}

/// A process of the control plane.
pub struct Meta {
    /// The role.
    pub node: MetaNode,
    /// What its thread would do.
    side: StoreSide,
    commands: Sender<MetaCommand>,
    /// When the store is looked after next.
    store_at: u64,
}

impl World {
    pub(super) fn new_meta(&mut self, host: usize) -> Actor {
        let run = self.identity();
        let config = MetaConfig {
            run,
            nodes_min: self.plan.layout.nodes,
            lease: NODE_LEASE,
            replace_after: 4 * SECOND,
            sync_timeout: 10 * SECOND,
            ..MetaConfig::new(CLUSTER, SLOTS)
        };
        let store = Box::new(StoreOf { host, state: self.store.clone() });
        let metrics = MetaMetrics::new(&mut Registry::default());
        let (node, side, commands) = MetaNode::by_hand(config, store, metrics);
        let store_at = self.net.now + MS;
        self.net.schedule(store_at, Task::Store(host));
        Actor::Meta(Box::new(Meta { node, side, commands, store_at }))
    }

    /// What a process has given its store to keep is looked after soon.
    pub(super) fn after_meta_turn(&mut self, host: usize, meta: &mut Meta) {
        if !meta.side.has_table() {
            return;
        }
        let slow = self.store.lock().is_ok_and(|store| self.net.now < store.slow_until);
        let rng = &mut self.net.hosts[host].rng;
        let delay = if slow { rng.range(100 * MS, 3 * SECOND) } else { rng.range(MS / 5, 8 * MS) };
        let at = self.net.now + delay;
        if at < meta.store_at {
            meta.store_at = at;
            self.net.schedule(at, Task::Store(host));
        }
    }

    /// What the thread of the store does once.
    pub(super) fn drive_store(&mut self, host: usize) {
        let now = self.net.now;
        let Some(Actor::Meta(meta)) = &mut self.actors[host] else { return };
        if meta.store_at != now {
            return;
        }
        let state = &self.net.hosts[host];
        if state.paused_until > now {
            meta.store_at = state.paused_until;
            self.net.schedule(meta.store_at, Task::Store(host));
            return;
        }
        let clock = Nanos(now + state.clock_ahead);
        if let Ok(mut store) = self.store.lock() {
            store.now = now;
        }
        meta.side.store_table();
        let unclean = self.store.lock().ok().and_then(|store| {
            let table = store.tables.last()?;
            Some((table.epoch, table.slots.iter().position(|entry| entry.is_unclean)?))
        });
        if let Some((epoch, slot)) = unclean {
            let text = format!("by table {epoch} a node leads slot {slot} that may lack what is persistent");
            self.oracle.fail(None, text);
        }
        meta.side.campaign(clock, || clock);
        meta.store_at = now + CAMPAIGN.as_nanos() as u64;
        self.net.schedule(meta.store_at, Task::Store(host));
        self.net.wake(host, now);
    }

    /// An operator asks that a data node is emptied, or used again.
    pub(super) fn drain(&mut self, node: usize, on: bool) {
        let name = self.plan.layout.name(node);
        self.oracle.say(None, || format!("an operator asks to {} {name}", if on { "drain" } else { "use" }));
        for host in self.plan.layout.metas() {
            if let Some(Actor::Meta(meta)) = &mut self.actors[host] {
                let (answer, _) = bounded(1);
                let _ = meta.commands.try_send(MetaCommand::Drain { node: name.clone(), on, answer });
                self.net.wake(host, self.net.now);
            }
        }
    }

    /// An operator has leases end that are held back at a data node which cannot tell by itself whether others have come
    /// instead: it was not there, or led nothing, when the sessions went. Where it was, it has to find that out.
    pub(super) fn release_leases(&mut self) {
        for host in self.plan.layout.nodes() {
            let Some(Actor::Node(node)) = &mut self.actors[host] else { continue };
            if node.role.shard().leases_held_back().all(|it| it.silent_since.is_some()) {
                continue;
            }
            self.reached.leases_released += node.role.release_leases() as u64;
            let name = self.plan.layout.name(host);
            self.oracle.say(None, || format!("an operator says that those held back at {name} are gone"));
            self.net.wake(host, self.net.now);
        }
    }

    /// The store does not answer, is slow, or is set back.
    pub(super) fn trouble_store(&mut self, trouble: StoreTrouble, chance: usize) {
        let now = self.net.now;
        if let Ok(mut store) = self.store.lock() {
            match trouble {
                StoreTrouble::Down(nanos) => {
                    store.down_until = now + nanos;
                    self.reached.store_away += 1;
                }
                StoreTrouble::Slow(nanos) => {
                    store.slow_until = now + nanos;
                    self.reached.store_slow += 1;
                }
                StoreTrouble::SetBack => {
                    store.set_back(chance);
                    self.reached.store_set_back += 1;
                }
            }
        }
    }
}

/// What may befall the store of the slot table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreTrouble {
    /// It does not answer for this long.
    Down(u64),
    /// It takes up to seconds to store a table for this long.
    Slow(u64),
    /// It is restored from an old backup.
    SetBack,
}
