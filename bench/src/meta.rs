//! The control plane by itself: what the heartbeats of very many nodes cost, and how long planning takes.
//!
//! Nodes are what a data node has in it to follow the table. Their frames go through encoding, decoding and the state machine
//! on one thread, without sockets. Only the control plane's side is timed: decoding what arrived, deciding, encoding.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use slotcast_engine::id::{Nanos, SlotId};
use slotcast_net::{
    follow::{LinkAction, MetaLink, MetaLinkConfig},
    meta::{
        core::{MetaConfig, MetaCore, Output, PeerFault, Phase},
        members::PeerId,
    },
    provenance,
    wire::{
        Decoder,
        header::FRAME_BYTES_MAX,
        meta::{HeldState, MetaMessage, MetaPeer, NodeLoad, SlotReport},
        slot_table::{NodeEntry, SlotTable},
    },
};

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct MetaSpec {
    /// Data nodes.
    pub nodes: u32,
    /// Slots of the cluster.
    pub slots: u32,
    /// Members per slot.
    pub replicas: usize,
    /// Zones that the nodes are spread over.
    pub zones: u32,
    /// Seconds of heartbeats, one per node and second.
    pub seconds: u32,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct MetaFound {
    /// CPU seconds of the control plane per second of heartbeats.
    pub heartbeat_cpu: f64,
    /// Heartbeats that were measured.
    pub heartbeats: u64,
    /// Bytes of one heartbeat and of its answer.
    pub heartbeat_bytes: (usize, usize),
    /// Milliseconds of the first plan, from an empty table.
    pub first_plan_ms: f64,
    /// Milliseconds of the plan after a tenth of the nodes was lost.
    pub loss_plan_ms: f64,
    /// The longest plan of all that followed the loss.
    pub longest_plan_ms: f64,
    /// Slots whose leader changed in the first plan after the loss.
    pub leaders_changed: u64,
    /// Bytes of a whole table.
    pub whole_bytes: usize,
    /// Bytes of the first delta after the loss.
    pub loss_delta_bytes: usize,
    /// Rounds, members added or leaders handed over, and bytes of all deltas that followed the loss until all was restored.
    pub restore: (u64, u64, usize),
}

struct Follower {
    link: MetaLink,
    decoder: Decoder,
    is_lost: bool,
}

struct World {
    core: MetaCore,
    followers: Vec<Follower>,
    now: Nanos,
    /// Time that the control plane has used, and that its longest plan has.
    used: Duration,
    longest: Duration,
    delta_bytes: Vec<usize>,
    /// The table that the nodes reported of last.
    reported: Arc<SlotTable>,
}

/// Measures; `tell` hears what is done next and how much of it.
pub fn run(spec: &MetaSpec, bar: &ProgressBar) -> anyhow::Result<MetaFound> {
    ensure!(
        spec.slots.is_power_of_two() && spec.slots <= 1 << 15,
        "slots has to be a power of two up to 32768"
    );
    ensure!(spec.nodes >= 10 && spec.zones >= 1, "at least 10 nodes and one zone are needed");
    let mut found = MetaFound::default();
    let mut world = World::new(spec);
    bar.set_length(u64::from(spec.nodes) * u64::from(spec.seconds + 4));

    bar.set_message("nodes arrive, first plan");
    while world.delta_bytes.is_empty() {
        ensure!(world.now < Nanos(60 * Nanos::SECOND), "no table was made");
        world.longest = Duration::ZERO;
        world.beat(&ProgressBar::hidden())?;
    }
    found.first_plan_ms = ms(world.longest);
    found.whole_bytes = world.delta_bytes[0];
    ensure!(world.core.phase() == Phase::Leading, "it never led");
    // Everybody has the table and says what it does with it.
    for _ in 0..4 {
        world.beat(bar)?;
    }
    let status = world.core.status(world.now);
    ensure!(
        status.slots_short == 0 && status.slots_without_leader == 0,
        "the first table is not whole: {status:?}"
    );

    bar.set_message("heartbeats");
    world.used = Duration::ZERO;
    let before = world.core.counters().heartbeats;
    for _ in 0..spec.seconds {
        found.heartbeat_bytes = world.beat(bar)?;
    }
    found.heartbeats = world.core.counters().heartbeats - before;
    ensure!(found.heartbeats == u64::from(spec.nodes) * u64::from(spec.seconds), "heartbeats are missing");
    found.heartbeat_cpu = world.used.as_secs_f64() / f64::from(spec.seconds);

    bar.set_message("a tenth of the nodes is lost");
    let counters = world.core.counters();
    world.delta_bytes.clear();
    let lost_at = world.now;
    world.followers.iter_mut().step_by(10).for_each(|follower| follower.is_lost = true);
    while world.delta_bytes.is_empty() {
        ensure!(world.now < lost_at.after(60 * Nanos::SECOND), "the loss was not noticed");
        world.longest = Duration::ZERO;
        world.beat(&ProgressBar::hidden())?;
    }
    found.loss_plan_ms = ms(world.longest);
    found.leaders_changed = world.core.counters().leaders_changed - counters.leaders_changed;
    found.loss_delta_bytes = world.delta_bytes[0];
    world.longest = Duration::ZERO;
    for _ in 0..10_000 {
        world.beat(&ProgressBar::hidden())?;
        let status = world.core.status(world.now);
        if status.slots_short == 0 && status.nodes.len() < spec.nodes as usize {
            break;
        }
    }
    let status = world.core.status(world.now);
    ensure!(status.slots_short == 0, "{} slots are still short", status.slots_short);
    ensure!(status.slots_unclean <= spec.slots as usize / 20, "too many slots lost all members at once");
    let after = world.core.counters();
    found.longest_plan_ms = ms(world.longest);
    found.restore =
        (after.tables - counters.tables, after.moves - counters.moves, world.delta_bytes.iter().sum());
    bar.finish_and_clear();
    Ok(found)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl World {
    fn new(spec: &MetaSpec) -> Self {
        let config = MetaConfig {
            replicas: spec.replicas,
            nodes_min: spec.nodes as usize,
            moves_max: 1000,
            ..MetaConfig::new("bench", spec.slots)
        };
        // A heartbeat a second needs a lease of several.
        let mut core = MetaCore::new(MetaConfig { lease: 4 * Nanos::SECOND, ..config });
        if core.handle_elected(None, Nanos(1)).is_err() {
            unreachable!("nothing was loaded that could be refused");
        }
        let metas: Vec<SocketAddr> = vec![SocketAddr::from(([127, 0, 0, 1], 7610))];
        let table = Arc::new(SlotTable::empty("bench", spec.slots));
        let followers = (0..spec.nodes).map(|number| {
            let entry = NodeEntry {
                id: format!("data-{number}.rack-{}.example", number % 97).into(),
                incarnation: u64::from(number) + 1,
                zone: format!("zone-{}", number % spec.zones).into(),
                ip: IpAddr::from([10, (number >> 16) as u8, (number >> 8) as u8, number as u8]),
                ports: vec![7620, 7621],
                http: 7629,
                draining: false,
            };
            let peer = MetaPeer::Data(Arc::new(entry));
            let config = MetaLinkConfig {
                heartbeat: Nanos::SECOND,
                patience: 60 * Nanos::SECOND,
                ..MetaLinkConfig::new(metas.clone(), "bench", spec.slots, peer)
            };
            let link = MetaLink::new(config, table.clone(), 0);
            Follower { link, decoder: Decoder::default(), is_lost: false }
        });
        Self {
            core,
            followers: followers.collect(),
            now: Nanos(1),
            used: Duration::ZERO,
            longest: Duration::ZERO,
            delta_bytes: Vec::new(),
            reported: table,
        }
    }

    /// A second passes, in tenths: in each a tenth of the nodes sends what it has to, and the control plane gets its tick. The
    /// bytes of a heartbeat and of its answer.
    fn beat(&mut self, bar: &ProgressBar) -> anyhow::Result<(usize, usize)> {
        let mut bytes = (0, 0);
        for tenth in 0..10 {
            self.now = self.now.after(Nanos::SECOND / 10);
            for at in (tenth..self.followers.len()).step_by(10) {
                bytes.0 = self.send(at)?.unwrap_or(bytes.0);
                bar.inc(1);
            }
            let begin = Instant::now();
            self.core.tick(self.now);
            let took = begin.elapsed();
            self.used += took;
            self.longest = self.longest.max(took);
            bytes.1 = self.deliver()?.unwrap_or(bytes.1);
        }
        Ok(bytes)
    }

    /// One node sends what it has to; the bytes of it.
    fn send(&mut self, at: usize) -> anyhow::Result<Option<usize>> {
        let (follower, now) = (&mut self.followers[at], self.now);
        let mut sent = None;
        if follower.is_lost {
            return Ok(sent);
        }
        follower.link.set_load(NodeLoad {
            publishers: now.0 ^ at as u64,
            bytes: now.0,
            cpu_permille: at as u32,
        });
        while let Some(action) = follower.link.poll(now, 0) {
            match action {
                LinkAction::Connect(_) => follower.link.handle_connected(now),
                LinkAction::Send(bytes) => {
                    sent = Some(bytes.len());
                    let (core, begin) = (&mut self.core, Instant::now());
                    let result = follower.decoder.feed(&bytes, FRAME_BYTES_MAX, |frame| {
                        core.handle_message(PeerId(at as u64), MetaMessage::read(frame)?, now)
                    });
                    self.used += begin.elapsed();
                    result.map_err(|fault: PeerFault| anyhow::anyhow!("node {at} was refused: {fault}"))?;
                }
                LinkAction::Close => anyhow::bail!("node {at} gave up: {:?}", follower.link.last_fault),
            }
        }
        Ok(sent)
    }

    /// Hands out what the control plane says; the bytes of the last small frame. The store takes everything at once.
    fn deliver(&mut self) -> anyhow::Result<Option<usize>> {
        let mut small = None;
        // All followers read the same table: it is decoded once for all, as each would for itself.
        let mut last: Option<(Rc<[u8]>, Arc<SlotTable>)> = None;
        let mut told: Vec<usize> = Vec::new();
        loop {
            let begin = Instant::now();
            let output = self.core.poll_output();
            self.used += begin.elapsed();
            match output {
                None => break,
                Some(Output::Send(PeerId(at), frame)) => {
                    let follower = &mut self.followers[at as usize];
                    if frame.len() < 256 {
                        small = Some(frame.len());
                        follower.link.handle_bytes(&frame);
                        continue;
                    }
                    let is_same = last.as_ref().is_some_and(|(known, _)| Rc::ptr_eq(known, &frame));
                    match &last {
                        Some((_, table)) if is_same => follower.link.share_table(table),
                        _ => {
                            follower.link.handle_bytes(&frame);
                            self.delta_bytes.push(frame.len());
                            last = Some((frame, follower.link.table().clone()));
                        }
                    }
                    told.push(at as usize);
                }
                Some(Output::Close(peer, _, text)) => anyhow::bail!("peer {} was closed: {text}", peer.0),
                Some(Output::Store { table, .. }) => {
                    let begin = Instant::now();
                    self.core.handle_stored(table.epoch, self.now);
                    self.used += begin.elapsed();
                }
            }
        }
        if !told.is_empty() {
            self.report(&told);
        }
        Ok(small)
    }

    /// Nodes do at once what the table says; those whose slots have not changed have nothing to say.
    fn report(&mut self, told: &[usize]) {
        let table = self.followers[told[0]].link.table().clone();
        let before = std::mem::replace(&mut self.reported, table.clone());
        let changed = before.slots.iter().zip(&table.slots).filter(|(old, new)| old != new);
        let concerned: std::collections::BTreeSet<u32> = changed
            .flat_map(|(old, new)| old.members().iter().chain(new.members()))
            .map(|member| member.node().0)
            .collect();
        let mut held: std::collections::BTreeMap<u32, Vec<SlotReport>> = Default::default();
        for (slot, entry) in table.slots.iter().enumerate() {
            for (at, member) in entry.members().iter().enumerate() {
                let others = entry.members()[1..].iter().map(|other| other.node());
                held.entry(member.node().0).or_default().push(SlotReport {
                    slot: SlotId(slot as u16),
                    state: if at == 0 { HeldState::Accept } else { HeldState::Following },
                    is_whole: false,
                    has_persistent: false,
                    leader_epoch: entry.leader_epoch,
                    in_sync: if at == 0 { others.collect() } else { Vec::new() },
                });
            }
        }
        let numbers: std::collections::BTreeMap<&str, u32> =
            table.nodes.iter().map(|(number, node)| (&*node.id, number.0)).collect();
        for at in told {
            let id = format!("data-{at}.rack-{}.example", at % 97);
            let Some(number) = numbers.get(&*id).filter(|number| concerned.contains(number)) else {
                continue;
            };
            let slots = held.remove(number).unwrap_or_default();
            self.followers[*at].link.set_slots(table.epoch, slots);
        }
    }
}

/// What a person reads.
pub fn table(spec: &MetaSpec, found: &MetaFound) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["what", "figure"]);
    let per_beat = found.heartbeat_cpu * 1e6 / f64::from(spec.nodes);
    for (what, figure) in [
        (
            "nodes, slots, members per slot, zones".into(),
            format!("{}, {}, {}, {}", spec.nodes, spec.slots, spec.replicas, spec.zones),
        ),
        ("a heartbeat per node and second, cores".into(), format!("{:.3}", found.heartbeat_cpu)),
        ("per heartbeat, µs".to_owned(), format!("{per_beat:.2}")),
        (
            "bytes of a heartbeat, of its answer".into(),
            format!("{}, {}", found.heartbeat_bytes.0, found.heartbeat_bytes.1),
        ),
        ("plan from empty, ms".into(), format!("{:.1}", found.first_plan_ms)),
        ("plan when a tenth of the nodes is lost, ms".into(), format!("{:.1}", found.loss_plan_ms)),
        ("slots with another leader after it".into(), found.leaders_changed.to_string()),
        ("longest plan until all is restored, ms".into(), format!("{:.1}", found.longest_plan_ms)),
        ("bytes of a whole table".into(), found.whole_bytes.to_string()),
        ("bytes of the delta of the loss".into(), found.loss_delta_bytes.to_string()),
        (
            "tables, moves, bytes of deltas per node until restored".into(),
            format!("{}, {}, {}", found.restore.0, found.restore.1, found.restore.2),
        ),
    ] {
        table.add_row([what, figure]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// What a program reads.
pub fn json(spec: &MetaSpec, found: &MetaFound) -> Value {
    let good = found.heartbeat_cpu <= 0.25 && found.first_plan_ms < 100.0 && found.loss_plan_ms < 100.0;
    provenance::stamped(json!({
        "verdict": if good { "ok" } else { "short of the target" },
        "nodes": spec.nodes,
        "slots": spec.slots,
        "replicas": spec.replicas,
        "zones": spec.zones,
        "duration_s": spec.seconds,
        "heartbeats": found.heartbeats,
        "cpu_s": { "meta": found.heartbeat_cpu * f64::from(spec.seconds) },
        "heartbeat_cores": found.heartbeat_cpu,
        "heartbeat_bytes": found.heartbeat_bytes.0,
        "answer_bytes": found.heartbeat_bytes.1,
        "first_plan_ms": found.first_plan_ms,
        "loss_plan_ms": found.loss_plan_ms,
        "longest_plan_ms": found.longest_plan_ms,
        "loss_leaders_changed": found.leaders_changed,
        "whole_bytes": found.whole_bytes,
        "loss_delta_bytes": found.loss_delta_bytes,
        "restore_tables": found.restore.0,
        "restore_moves": found.restore.1,
        "restore_delta_bytes": found.restore.2,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_cluster_is_planned_lost_in_part_and_restored() {
        let spec = MetaSpec { nodes: 40, slots: 256, replicas: 2, zones: 2, seconds: 2 };
        let found = run(&spec, &ProgressBar::hidden()).unwrap();
        assert_eq!(found.heartbeats, 80);
        assert!(found.leaders_changed >= 20 && found.restore.1 >= 40, "{found:?}");
        assert!(found.loss_delta_bytes < found.whole_bytes);
        assert_eq!(json(&spec, &found)["restore_moves"], found.restore.1);
    }
}
