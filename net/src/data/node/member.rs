//! The shard as a member of a cluster: links of followers among those of sessions, and what each turn does for them.

use slotcast_engine::{
    id::Nanos,
    shard::{Shard, ShardConfig},
};

use super::{LinkFault, Node, NodeLimits};
use crate::{
    data::{
        cluster::{Cluster, ClusterConfig, metrics::ClusterMetrics},
        metrics::DataMetrics,
        replica::ReplicaFault,
    },
    io::ring::Sockets,
    wire::{Frame, replica::ReplicaMessage},
};

/// Bytes that one follower gets in one turn.
const FILL_MAX: usize = 1 << 20;

impl Node {
    /// A shard that is a member of a cluster: it holds what the slot table says. `run` is a number that no earlier run has used.
    pub fn clustered(
        config: ShardConfig,
        limits: NodeLimits,
        run: u64,
        metrics: DataMetrics,
        (cluster, told): (ClusterConfig, ClusterMetrics),
    ) -> Self {
        let cluster = Cluster::new(cluster, &config, told);
        let mut node = Self::around(config.slot_count, Shard::clustered(config), limits, run, metrics);
        node.cluster = Some(Box::new(cluster));
        node
    }

    /// The epoch of the slot table that is followed; 0: none.
    pub fn table_epoch(&self) -> u64 {
        self.cluster.as_ref().map_or(0, |cluster| cluster.table_epoch())
    }

    /// Whether what comes over a link is a follower's business.
    pub(super) fn is_of_follower(&self, index: usize, frame: &Frame<'_>) -> bool {
        let is_follower = self.links[index].as_ref().is_some_and(|link| link.is_follower);
        is_follower || frame.kind.is_of_replicas()
    }

    /// A frame of a shard that follows, or wants to.
    pub(super) fn hear_follower(
        &mut self,
        index: usize,
        frame: Frame<'_>,
        now: Nanos,
    ) -> Result<(), LinkFault> {
        let message = ReplicaMessage::read(frame)?;
        let Some(cluster) = self.cluster.as_mut() else { return Err(ReplicaFault::NotClustered.into()) };
        let Some(link) = self.links[index].as_mut() else { return Ok(()) };
        if link.session.is_some() {
            return Err(LinkFault::Unexpected);
        }
        if link.is_follower {
            return Ok(cluster.hear_follower(index as u32, message, &mut self.shard, link.out.own(), now)?);
        }
        let replaced = cluster.greet(index as u32, &message, link.out.own(), now)?;
        link.is_follower = true;
        if let Some(other) = replaced {
            self.refuse(other as usize, &LinkFault::FollowerReplaced, now);
        }
        Ok(())
    }

    /// Whether a follower that got nothing in this turn has room for it now.
    pub(super) fn has_room_again(&self) -> bool {
        let room = |link: &u32| {
            let link = self.links.get(*link as usize).and_then(Option::as_ref);
            link.is_some_and(|link| link.out.len() < self.limits.link_buffer_max)
        };
        self.starved.iter().any(room)
    }

    /// A link is gone, or about to be.
    pub(super) fn close_follower(&mut self, index: usize) {
        if let Some(cluster) = &mut self.cluster {
            cluster.close_follower(index as u32, &mut self.shard);
        }
    }

    /// Whether a follower has said nothing for too long.
    pub(super) fn is_silent_follower(&self, index: usize, now: Nanos) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.is_silent(index as u32, now))
    }

    /// Sends the slot table to a session whose own is of an older epoch, once for each epoch.
    pub(super) fn tell_table(&mut self, index: usize, session_epoch: u64) {
        let (Some(cluster), Some(Some(link))) = (&mut self.cluster, self.links.get_mut(index)) else {
            return;
        };
        let epoch = cluster.table_epoch();
        if link.table_told < epoch
            && let Some(frame) = cluster.table_for(session_epoch)
        {
            link.table_told = epoch;
            link.out.own().extend_from_slice(frame);
        }
    }

    /// Does what the slot table asks for. Returns whether another turn should follow.
    pub(super) fn follow_table(&mut self, now: Nanos, sockets: &mut dyn Sockets) -> bool {
        let cluster = self.cluster.as_mut();
        cluster.is_some_and(|cluster| cluster.follow_table(&mut self.shard, now, sockets))
    }

    /// Puts what followers lack into the buffers of their links, tells leaders how far this shard is, and reports. Returns
    /// whether there is more to put.
    pub(super) fn replicate(&mut self, now: Nanos, sockets: &mut dyn Sockets) -> bool {
        let Some(mut cluster) = self.cluster.take() else { return false };
        let (mut more, mut waiting) = (false, 0);
        self.starved.clear();
        for index in cluster.followers() {
            let Some(Some(link)) = self.links.get_mut(index as usize) else { continue };
            let before = link.out.len();
            let room = self.limits.link_buffer_max.saturating_sub(before).min(FILL_MAX);
            if link.closing.is_some() {
                continue;
            }
            waiting += before;
            if room == 0 {
                self.starved.push(index);
                continue;
            }
            let has_more = cluster.fill(index, &mut self.shard, room, link.out.own());
            if link.out.len() > before {
                // What cannot be told yet, although it is there, is told after an event.
                more |= has_more;
                self.mark_dirty(index);
            }
        }
        cluster.observe_links(self.starved.len(), waiting);
        cluster.report(&mut self.shard, now, sockets);
        self.cluster = Some(cluster);
        more
    }
}
