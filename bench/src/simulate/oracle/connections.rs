//! What happens to connections and processes, and what sessions and data nodes know of it.

use std::collections::{BTreeMap, BTreeSet};

use slotcast_engine::{
    id::{RegisterId, Revision, SessionId, SlotId},
    slot_state::SlotState,
};
use slotcast_net::io::ring::CloseReason;

use super::{Held, Oracle, SECOND, SLACK};
use crate::simulate::hosts::{CLIENT_TIMEOUT, GRACE, LEASE};

/// Fewer drops than this are never a storm, as the session documents it.
const STORM_DROPS_MIN: usize = 8;
/// So many more are a storm to both, however a drop at the edge of the grace is counted.
const STORM_MARGIN: usize = 2;

/// How a connection of a client ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// By itself.
    Dropped,
    /// By the session.
    Evicted,
}

/// A client connection as the session sees it.
pub(super) struct Attachment {
    pub(super) owner: SessionId,
    heard_at: u64,
    has_spoken: bool,
    pub(super) ended: Option<(u64, Ending)>,
}

/// A session's process.
#[derive(Default)]
pub(super) struct Incarnation {
    pub(super) died: Option<u64>,
    clients: usize,
    drops: Vec<u64>,
    /// Begin and end of storms.
    storms: Vec<(u64, u64)>,
    /// Leader epochs it was told in the greetings of data nodes' processes, and the greetings that are under way.
    pub(super) epochs: BTreeMap<usize, u32>,
    offered: BTreeMap<usize, u32>,
    /// Processes of data nodes that it has heard of.
    pub(super) known_by: BTreeSet<usize>,
}

/// The end of a session's lease at a data node.
#[derive(Clone, Copy)]
pub(super) struct LeaseEnd {
    /// When it was first seen.
    pub(super) at: u64,
    /// When the process had last heard of the session, in its running time. What that says later does not count.
    pub(super) heard: u64,
}

/// A data node's process.
pub(super) struct Process {
    pub(super) host: usize,
    pub(super) started: u64,
    pub(super) turned_at: u64,
    pub(super) has_ended: bool,
    /// How long it stood still.
    paused: u64,
    /// When it last heard of each session, in its running time.
    pub(super) heard: BTreeMap<SessionId, u64>,
    /// Sessions whose lease runs there.
    pub(super) alive: BTreeSet<SessionId>,
    /// Sessions whose lease it has ended.
    pub(super) refused: BTreeMap<SessionId, LeaseEnd>,
    /// What it did with each slot, and where that was, after its last turn.
    pub(super) seats: BTreeMap<SlotId, (SlotState, Revision)>,
    /// The slot table that it goes by.
    pub(super) table: u64,
    /// Open links, by connection.
    pub(super) links: BTreeMap<usize, SessionId>,
}

impl Oracle {
    /// A session's process has started.
    pub fn session_started(&mut self, id: SessionId) {
        self.sessions.insert(id, Incarnation::default());
        self.living.insert(id);
    }

    /// It is gone.
    pub fn session_ended(&mut self, id: SessionId) {
        self.living.remove(&id);
        let now = self.now;
        if let Some(session) = self.sessions.get_mut(&id) {
            session.died.get_or_insert(now);
        }
    }

    /// A client has connected to a session.
    pub fn session_accepted(&mut self, pair: usize, owner: SessionId) {
        let attachment = Attachment { owner, heard_at: self.now, has_spoken: false, ended: None };
        self.attachments.insert(pair, attachment);
        self.sessions.entry(owner).or_default().clients += 1;
    }

    /// A session has read bytes of a client.
    pub fn session_heard(&mut self, pair: usize) {
        if let Some(attachment) = self.attachments.get_mut(&pair) {
            (attachment.heard_at, attachment.has_spoken) = (self.now, true);
        }
    }

    /// A session has learnt that a client's connection has ended.
    pub fn session_saw_end(&mut self, pair: usize, reason: CloseReason) {
        let now = self.now;
        let Some(attachment) = self.attachments.get_mut(&pair) else { return };
        let silent = now - attachment.heard_at + SLACK >= CLIENT_TIMEOUT;
        let ending = if reason == CloseReason::Local && !silent { Ending::Evicted } else { Ending::Dropped };
        attachment.ended = Some((now, ending));
        let (owner, counts) = (attachment.owner, attachment.has_spoken && ending == Ending::Dropped);
        // A goodbye is no drop.
        let counts = counts && !self.client_of.get(&pair).is_some_and(|client| self.gone.contains(client));
        let Some(session) = self.sessions.get_mut(&owner) else { return };
        session.clients -= 1;
        if !counts {
            return;
        }
        session.drops.retain(|at| now - at <= GRACE);
        session.drops.push(now);
        let drops = session.drops.len();
        if drops >= STORM_DROPS_MIN + STORM_MARGIN && drops * 10 > session.clients + drops {
            session.storms.push((now, now + LEASE));
        }
        self.say(None, || format!("session {} saw the end of connection {pair}: {ending:?}", owner.0));
    }

    /// A client's connect was answered.
    pub fn client_attached(&mut self, client: usize, pair: usize) {
        let count = self.attach_counts.entry(client).or_insert(0);
        *count += 1;
        let count = *count;
        self.attached.insert((client, count), pair);
        self.client_of.insert(pair, client);
        for view in self.views.iter_mut().filter(|((viewer, _), _)| *viewer == client).map(|(_, view)| view) {
            view.connected();
        }
        self.say(None, || format!("client {client} is connected, connection {pair}, attach count {count}"));
    }

    /// A data node's process has started. Returns its number.
    pub fn node_started(&mut self, host: usize) -> usize {
        self.processes.push(Process {
            host,
            started: self.now,
            turned_at: self.now,
            has_ended: false,
            paused: 0,
            heard: BTreeMap::new(),
            alive: BTreeSet::new(),
            refused: BTreeMap::new(),
            seats: BTreeMap::new(),
            table: 0,
            links: BTreeMap::new(),
        });
        self.processes.len() - 1
    }

    /// It is gone.
    pub fn node_ended(&mut self, process: usize) {
        self.processes[process].has_ended = true;
        let ended = self.processes[process].turned_at;
        for term in self.terms.iter_mut().filter(|term| term.process == process) {
            term.ended.get_or_insert(ended);
        }
    }

    /// A data node has read a session's greeting: an earlier link of it counts no more.
    pub fn node_linked(&mut self, process: usize, id: SessionId, pair: usize) {
        self.processes[process].links.retain(|_, other| *other != id);
        self.processes[process].links.insert(pair, id);
        self.node_heard(process, id, pair);
    }

    /// A data node has read bytes of a session.
    pub fn node_heard(&mut self, process: usize, id: SessionId, pair: usize) {
        let at = self.running_time(process);
        let Process { heard, links, .. } = &mut self.processes[process];
        if links.get(&pair) == Some(&id) {
            heard.insert(id, at);
        }
    }

    /// A data node has learnt that a connection has ended.
    pub fn node_saw_end(&mut self, process: usize, pair: usize) {
        self.processes[process].links.remove(&pair);
    }

    /// A data node has answered a session's greeting.
    pub fn node_greeted(&mut self, process: usize, id: SessionId, epoch: u32) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.offered.insert(process, epoch);
        }
    }

    /// A session has read bytes that came from a data node.
    pub fn session_heard_node(&mut self, id: SessionId, host: usize) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.offered.is_empty() {
            return;
        }
        let processes = &self.processes;
        for (process, epoch) in session.offered.extract_if(.., |process, _| processes[*process].host == host)
        {
            session.epochs.insert(process, epoch);
            session.known_by.insert(process);
        }
    }

    /// A data node stood still.
    pub fn node_was_paused(&mut self, process: usize, nanos: u64) {
        self.processes[process].paused += nanos;
    }

    /// How long a process has run by now.
    pub(super) fn running_time(&self, process: usize) -> u64 {
        self.now - self.processes[process].paused
    }

    /// How long a process has not heard of a session, in its running time; it counts from `start` if that is later.
    pub(super) fn silence(&self, process: usize, owner: SessionId, start: u64) -> u64 {
        let Process { heard, refused, .. } = &self.processes[process];
        let ended = refused.get(&owner).map(|end| end.heard);
        let heard = ended.or_else(|| heard.get(&owner).copied()).unwrap_or(0);
        self.running_time(process).saturating_sub(heard.max(start))
    }

    /// Whether a process refuses a session for ever, though its link may still be there to tell it so: it has ended the lease, or has
    /// run for as long before it heard of the session, which was linked to an earlier process.
    pub(super) fn refuses(&self, process: usize, session: SessionId) -> bool {
        let Process { started, alive, refused, .. } = &self.processes[process];
        let is_late = self.running_time(process) + SLACK >= *started + LEASE;
        !alive.contains(&session) && (refused.contains_key(&session) || is_late)
    }

    /// Whether a session has seen the end of the connection that this came over, or of one that it was told over again
    /// since, and the grace is over.
    pub(super) fn has_departed(&self, register: RegisterId, held: &Held) -> bool {
        let Some(reg) = self.regs.get(&register).filter(|reg| !reg.is_persistent()) else { return false };
        let latest = self.attach_counts.get(&reg.client).copied().unwrap_or(0);
        (held.attach..=latest).any(|attach| self.has_left(reg.client, attach))
    }

    fn has_left(&self, client: usize, attach: u32) -> bool {
        let Some(attachment) = self.attachment(client, attach) else { return false };
        let Some((at, ending)) = attachment.ended else { return false };
        let storms = &self.sessions[&attachment.owner].storms;
        let stretched = |(begin, until): &(u64, u64)| {
            *begin + SLACK <= at + GRACE && self.now + SLACK < (*until).min(at + LEASE)
        };
        let grace = if ending == Ending::Evicted { LEASE } else { GRACE };
        self.now + SLACK >= at + grace && !storms.iter().any(stretched)
    }

    /// A client's connection as its session saw it.
    pub(super) fn attachment(&self, client: usize, attach: u32) -> Option<&Attachment> {
        self.attachments.get(self.attached.get(&(client, attach))?)
    }

    /// The session that a client was last connected to.
    pub(super) fn session_of(&self, client: usize) -> Option<(SessionId, &Incarnation)> {
        let latest = self.attach_counts.get(&client).copied().unwrap_or(0);
        let id = self.attachment(client, latest)?.owner;
        Some((id, self.sessions.get(&id)?))
    }

    /// Whether a living session may still hold what this client published over an earlier connection.
    pub(super) fn has_stale_holder(&self, client: usize) -> bool {
        let latest = self.attach_counts.get(&client).copied().unwrap_or(0);
        (1..=latest).filter_map(|attach| self.attachment(client, attach)).any(|attachment| {
            let over = |(at, _): (u64, Ending)| at + LEASE + SECOND < self.now;
            let alive = self.sessions[&attachment.owner].died.is_none_or(|died| died + SECOND > self.now);
            alive && !attachment.ended.is_some_and(over)
        })
    }

    pub(super) fn connection_story(&self, register: RegisterId, held: &Held) -> String {
        let Some(reg) = self.regs.get(&register) else { return "nobody's".into() };
        let pair = self.attached.get(&(reg.client, held.attach));
        let ended = pair.and_then(|pair| self.attachments.get(pair)).map(|attachment| attachment.ended);
        format!("client {}, connection {pair:?}, ended {ended:?}", reg.client)
    }
}
