//! The cluster as its control plane sees it: `status` and `drain`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::{
    ctl::{Target, bytes, right, table},
    meta::{
        core::{NodeStatus, Phase},
        node::MetaView,
    },
};

/// Time between two looks at a drain.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Data nodes asked at the same time, and how long each may take.
const ASKED_AT_ONCE: usize = 32;
const NODE_TIMEOUT: Duration = Duration::from_secs(2);
/// Looks in a row that may fail: another process of the control plane may be taking over.
const FAILURES_MAX: u32 = 25;

/// Arguments of `drain`.
#[derive(Debug, Args)]
pub(super) struct Drain {
    /// Id of the data node
    node: String,
    /// Use the node again
    #[arg(long, conflicts_with_all = ["timeout", "no_wait"])]
    undo: bool,
    /// Longest wait until it holds nothing; the order stands also after that
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    timeout: humantime::Duration,
    /// Give the order and do not wait
    #[arg(long)]
    no_wait: bool,
}

/// The cluster as the control plane shows it, and how far followers are behind as their leaders tell it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Status {
    #[serde(flatten)]
    view: MetaView,
    /// By node; those that do not answer are not here.
    replication: BTreeMap<String, Replication>,
}

/// What a data node tells of the followers of the slots that it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Replication {
    /// Batches that the follower furthest behind lacks of one slot.
    lag_revisions: u64,
    /// Milliseconds since the oldest batch that any follower lacks.
    lag_ms: u64,
    /// Followers that do not count as in sync, summed over the slots.
    out_of_sync: u64,
}

impl Replication {
    fn read(metrics: &str) -> Self {
        let values = |name: &str| -> Vec<u64> {
            let lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
            let lines = lines.filter(|rest| rest.starts_with(['{', ' ']));
            lines.filter_map(|rest| Some(rest.rsplit(' ').next()?.parse::<f64>().ok()? as u64)).collect()
        };
        Self {
            lag_revisions: values("slotcast_data_replica_lag_revisions").into_iter().max().unwrap_or(0),
            lag_ms: values("slotcast_data_replica_lag_milliseconds").into_iter().max().unwrap_or(0),
            out_of_sync: values("slotcast_data_replicas_out_of_sync").iter().sum(),
        }
    }
}

/// Asks the control plane, and then the data nodes that it names. The answer is JSON.
pub(super) fn ask(target: &Target) -> anyhow::Result<String> {
    let view = view(target)?;
    let reached = |node: &&NodeStatus| node.http != 0 && node.lease_ms.is_some();
    let nodes: Vec<&NodeStatus> = view.status.nodes.iter().filter(reached).collect();
    let mut replication = BTreeMap::new();
    for some in nodes.chunks(ASKED_AT_ONCE) {
        let told = std::thread::scope(|scope| {
            let asked: Vec<_> = some.iter().map(|node| scope.spawn(|| replication_of(node))).collect();
            asked.into_iter().map(|thread| thread.join().ok().flatten()).collect::<Vec<_>>()
        });
        let named = some.iter().zip(told);
        replication.extend(named.filter_map(|(node, told)| Some((node.id.clone(), told?))));
    }
    Ok(serde_json::to_string(&Status { view, replication })?)
}

fn replication_of(node: &NodeStatus) -> Option<Replication> {
    let ip = node.addr.parse::<std::net::SocketAddr>().ok()?.ip();
    let target = Target(std::net::SocketAddr::new(ip, node.http).to_string());
    let metrics = target.ask_within(NODE_TIMEOUT, "GET", "/metrics", None).ok()?;
    Some(Replication::read(&metrics))
}

/// The whole as tables.
pub(super) fn status(Status { view, replication }: &Status) -> String {
    let it = &view.status;
    let mut text = format!("cluster {}: {}\n\n", it.cluster, phase(view));
    let mut rows = table(&[
        "node",
        "zone",
        "address",
        "http",
        "incarnation",
        "state",
        "leads",
        "follows",
        "in sync",
        "publishers",
        "memory",
        "cpu",
        "followers' lag",
    ]);
    for node in &it.nodes {
        rows.add_row([
            node.id.clone(),
            node.zone.clone(),
            format!("{} ({} {})", node.addr, node.shards, if node.shards == 1 { "shard" } else { "shards" }),
            if node.http == 0 { "none".into() } else { node.http.to_string() },
            node.incarnation.clone(),
            state(node),
            node.leads.to_string(),
            node.holds.saturating_sub(node.leads).to_string(),
            node.in_sync.to_string(),
            node.publishers.to_string(),
            bytes(node.bytes as usize),
            format!("{:.1} %", f64::from(node.cpu_permille) / 10.0),
            match replication.get(&node.id) {
                Some(it) => format!("{} batches, {} ms", it.lag_revisions, it.lag_ms),
                None => "not told".into(),
            },
        ]);
    }
    right(&mut rows, 6..13);
    text += &format!("{rows}\n\n");
    let mut rows = table(&["cluster", ""]);
    let mut row = |name: &str, value: String| _ = rows.add_row([name.to_owned(), value]);
    row("slots", it.slots.to_string());
    row("table epoch, stored", format!("{}, {}", it.table_epoch, it.stored_epoch));
    row("largest leader epoch", it.leader_epoch_max.to_string());
    row("slots without a leader", it.slots_without_leader.to_string());
    row("slots whose leader is silent", it.slots_with_absent_leader.to_string());
    row("slots with too few in sync", it.slots_short.to_string());
    row("slots waiting for a node in sync", it.slots_waiting.to_string());
    row("slots given to a node that was not in sync", it.slots_unclean.to_string());
    row("moves under way", it.moves.to_string());
    row("leases held back", it.leases_held_back.to_string());
    row("sessions that follow the table", it.sessions.to_string());
    row("their pages", it.session_pages.iter().cloned().collect::<Vec<_>>().join(", "));
    text += &format!("{rows}\n");
    for trouble in [&it.store_error, &view.trouble].into_iter().flatten() {
        text += &format!("trouble: {trouble}\n");
    }
    text
}

fn phase(view: &MetaView) -> String {
    match (view.status.phase, &view.leader) {
        (Phase::Leading, _) => "this process of the control plane leads".into(),
        (Phase::Warming, _) => "this process leads and waits to hear from the nodes".into(),
        (Phase::Standby, Some(leader)) => {
            format!("this process stands by; {leader} leads: ask it for what is current")
        }
        (Phase::Standby, None) => "this process stands by; nobody is known to lead".into(),
    }
}

fn state(node: &NodeStatus) -> String {
    let lease = match node.lease_ms {
        Some(ms) => format!("alive, {ms} ms left"),
        None => "silent".into(),
    };
    if node.ending {
        return format!("{lease}, ending");
    }
    match (node.draining, node.holds) {
        (true, 0) => format!("{lease}, drained"),
        (true, _) => format!("{lease}, draining"),
        (false, _) => lease,
    }
}

/// Gives the order, and waits until the node holds nothing.
pub(super) fn drain(target: &Target, drain: &Drain) -> anyhow::Result<String> {
    let Drain { node, .. } = drain;
    let path = format!("/drain?node={}&on={}", encoded(node), !drain.undo);
    target.ask("POST", &path, None)?;
    if drain.undo {
        return Ok(format!("{node} is used again: slots come back to it in the background\n"));
    }
    if drain.no_wait {
        return Ok(format!("{node} is being emptied: slotcast ctl status shows how far it is\n"));
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} {bar:40} {msg}") {
        bar.set_style(style);
    }
    let waited = wait(target, drain, &bar);
    bar.finish_and_clear();
    waited
}

fn wait(target: &Target, drain: &Drain, bar: &ProgressBar) -> anyhow::Result<String> {
    let began = Instant::now();
    let id = &drain.node;
    let (mut most, mut failures, mut last) = (0, 0, usize::MAX);
    loop {
        match view(target) {
            Ok(view) => {
                failures = 0;
                let Some(node) = view.status.nodes.iter().find(|node| node.id == *id) else {
                    bail!("{id} is not in the cluster any more: end its process, if it still runs");
                };
                most = most.max(node.holds);
                bar.set_length(most as u64);
                bar.set_position((most - node.holds) as u64);
                bar.set_message(format!(
                    "{id} leads {} and follows {} slots, {} moves under way",
                    node.leads,
                    node.holds - node.leads,
                    view.status.moves
                ));
                if bar.is_hidden() && node.holds != last {
                    eprintln!("{id} leads {} and holds {} slots", node.leads, node.holds);
                    last = node.holds;
                }
                if node.holds == 0 && node.draining {
                    let seconds = began.elapsed().as_secs_f64();
                    return Ok(format!("{id} is empty after {seconds:.1} s: its process may be ended\n"));
                }
                if began.elapsed() > *drain.timeout {
                    bail!(
                        "{id} still leads {} and holds {} slots after {}; the order stands: ask again with a longer \
                         --timeout, or take it back with --undo. Slots stay where no other node may have them",
                        node.leads,
                        node.holds,
                        drain.timeout
                    );
                }
            }
            Err(error) if failures == FAILURES_MAX || began.elapsed() > *drain.timeout => return Err(error),
            Err(_) => failures += 1,
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Where the sessions are, as the control plane knows it, and what is to be said when it does not know all.
pub(super) fn sessions(target: &Target) -> anyhow::Result<(Vec<Target>, Option<String>)> {
    let MetaView { leader, status, .. } = view(target)?;
    if status.phase == Phase::Standby {
        bail!(
            "this process of the control plane stands by and knows no sessions: ask the one that leads, {}",
            leader.as_deref().unwrap_or("whichever that is")
        );
    }
    if status.sessions == 0 {
        bail!("no session follows the slot table: name their addresses, if there are any");
    }
    // Shards of data nodes beside the first follow the table, too.
    let shards: usize = status.nodes.iter().map(|node| node.shards.saturating_sub(1)).sum();
    let silent = status.without_pages.saturating_sub(shards);
    let unknown = (silent > 0).then(|| {
        format!(
            "{silent} session cores have not told where their pages are, because session.http is no address of one host: set \
             session.advertise, and name them here meanwhile"
        )
    });
    Ok((status.session_pages.into_iter().map(Target).collect(), unknown))
}

/// What the control plane shows now.
pub(super) fn view(target: &Target) -> anyhow::Result<MetaView> {
    let text = target.ask("GET", "/status", None)?;
    serde_json::from_str(&text).context("the answer is of another version")
}

/// A text as a value in a query.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_lag_of_all_shards_is_told() {
        let name = "slotcast_data_replica";
        let metrics = format!(
            "# HELP {name}_lag_revisions x\n{name}_lag_revisions{{shard=\"0\"}} 3\n{name}_lag_revisions{{shard=\"1\"}} 17\n\
             {name}_lag_milliseconds{{shard=\"0\"}} 250\n{name}s_out_of_sync{{shard=\"0\"}} 2\n{name}s_out_of_sync{{shard=\"1\"}} 5\n"
        );
        let told = Replication::read(&metrics);
        assert_eq!(told, Replication { lag_revisions: 17, lag_ms: 250, out_of_sync: 7 });
        assert_eq!(Replication::read(""), Replication { lag_revisions: 0, lag_ms: 0, out_of_sync: 0 });
    }

    #[test]
    fn a_name_is_written_so_that_no_byte_of_it_means_something_in_a_query() {
        assert_eq!(encoded("data-1.a_b~"), "data-1.a_b~");
        assert_eq!(encoded("a&b=c d/ä"), "a%26b%3Dc%20d%2F%C3%A4");
    }
}
