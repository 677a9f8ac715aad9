//! What is promised, checked at every turn of the data node and at every update of a client.
//!
//! The oracle sees everything: what every client wants, which connection each registration came over, when a session saw
//! that connection end, and the lists of the data node at every revision it has ever answered at. The promises:
//!
//! 1. *One history.* A revision names one list for ever, as far as a session that has linked to a run of the data node
//!    knew of its earlier runs (rule 1), and a subscriber's revision never goes back within one subscription.
//! 2. *Complete.* A subscriber's list at a revision holds everything that the data node's list held there, with that
//!    content; nothing that was never published.
//! 3. *Nothing stale.* What it holds beyond that was listed when the run of the data node before ended; or that run is
//!    young, and the session did not hear that it went in an earlier one, or the client brought it along from another
//!    session: it is kept only because absence is not removal, until its owner is known to be complete (rule 6).
//! 4. *No wrong removal.* The data node unlists a registration only if its client withdrew it, or if the owning session
//!    saw that connection end and its grace (in a storm, or when the session itself closed it: its lease) is over, or if
//!    the lease of the owning session has run out in running time of the data node (rules 3, 7, 8).
//! 5. *Absence is not removal.* A registration that the new run of a data node has never listed vanishes from a
//!    subscriber only for one of the reasons of 4, where the lease counts from the start of that run (rule 6).
//! 6. *No resurrection.* Once a removal is acknowledged, the data node does not list the registration until it is
//!    published again (rules 3, 5), and by 3 nobody else does. Content never goes back to an older one.
//! 7. *Acknowledged means in effect.* The list at the revision of an acknowledgement holds, or lacks, what was
//!    acknowledged (rule 10). Nobody who does nothing wrong is refused.
//! 8. *In the end* every list is exactly the set of registrations that clients hold (checked when all is healed).
//!
//! What the data node's memory loss makes impossible, and so is not promised: a session that was cut off while a
//! registration moved on or was withdrawn may tell a new run of the data node what it still holds, until it learns better.
//! Such cases are counted, and only accepted when there is such a session.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use slotcast_engine::id::{DataId, DatumKey, RegisterId, Revision, SessionId, SlotId};
use slotcast_net::{
    client::{Registration, Update},
    data::node::Node,
    io::ring::CloseReason,
};

use super::{
    network::{MS, SECOND},
    trace::{Trace, label, ms},
    world::{CLIENT_TIMEOUT, GRACE, LEASE, SLOTS},
};

/// Payloads by registration.
type Contents = BTreeMap<RegisterId, Vec<u8>>;

/// Fewer drops than this are never a storm, as the session documents it.
const STORM_DROPS_MIN: usize = 8;
/// So many more are a storm to both, however a drop at the edge of the grace is counted.
const STORM_MARGIN: usize = 2;
/// Times seen by the oracle and by a role may differ by a turn.
const SLACK: u64 = 100 * MS;
/// Renewals of a lease come with heartbeats; other bytes may come later than the last of these.
const HEARTBEAT_SLACK: u64 = SECOND;

/// How long after its start a run of the data node may be unsettled to a session that it has no good connection with.
const UNSETTLED_MAX: u64 = LEASE + 40 * SECOND;

/// What was found to be wrong.
#[derive(Clone, Debug)]
pub struct Violation {
    pub at: u64,
    pub datum: Option<DatumKey>,
    pub text: String,
}

/// One registration as its client sees it.
pub struct Reg {
    pub client: usize,
    pub datum: usize,
    pub registration: Registration,
    pub contents: Vec<Vec<u8>>,
    /// The last content that a withdrawal covers.
    withdrawn: Option<usize>,
    pub wanted: bool,
    /// Revision and run of the acknowledged withdrawal.
    removal: Option<(Revision, usize)>,
}

/// A registration in a list of the data node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    content: usize,
    owner: SessionId,
    attach: u32,
    /// Since when this session owns it here.
    since: u64,
}

type List = Rc<BTreeMap<RegisterId, Held>>;

#[derive(Default)]
struct View {
    revision: Revision,
    list: BTreeMap<RegisterId, usize>,
    run: usize,
    resuming: bool,
    /// What it held when its client last connected: what it may have been told to keep.
    brought: BTreeSet<RegisterId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    Dropped,
    Evicted,
}

/// A client connection as the session sees it.
struct Attachment {
    owner: SessionId,
    heard_at: u64,
    has_spoken: bool,
    ended: Option<(u64, Ending)>,
}

#[derive(Default)]
struct Incarnation {
    died: Option<u64>,
    clients: usize,
    drops: Vec<u64>,
    /// Begin and end of storms.
    storms: Vec<(u64, u64)>,
    /// In running time of the data node.
    heard_at: u64,
    /// Leader epochs it was told in the greetings of the data node's runs, and the one that is under way.
    epochs: BTreeMap<usize, u32>,
    offered: Option<(usize, u32)>,
    known_by: BTreeSet<usize>,
}

/// How often what was reached.
#[derive(Default, Clone, Debug)]
pub struct Seen {
    pub updates: u64,
    pub resumed_by_diff: u64,
    pub resumed_by_snapshot: u64,
    pub retained: u64,
    pub withdrawn: u64,
    pub departed: u64,
    pub leases_ended: u64,
    pub moved: u64,
    pub stale_replays: u64,
    pub stale_contents: u64,
    pub unheard_moves: u64,
    pub removals_acknowledged: u64,
    pub revisions_reused: u64,
}

pub struct Oracle {
    pub now: u64,
    pub trace: Trace,
    pub failure: Option<Violation>,
    pub datums: Vec<DataId>,
    pub regs: BTreeMap<RegisterId, Reg>,
    pub seen: Seen,
    attachments: BTreeMap<usize, Attachment>,
    /// The connection of each (client, attach count).
    attached: BTreeMap<(usize, u32), usize>,
    attach_counts: BTreeMap<usize, u32>,
    client_of: BTreeMap<usize, usize>,
    /// Clients that have said goodbye, or were about to.
    gone: BTreeSet<usize>,
    sessions: BTreeMap<SessionId, Incarnation>,
    views: BTreeMap<(usize, usize), View>,
    run: usize,
    run_started: Vec<u64>,
    run_ended: Vec<u64>,
    /// The data node's clock without its pauses.
    node_paused: u64,
    node_turned_at: u64,
    slot_seen: BTreeMap<SlotId, Revision>,
    lists: Vec<List>,
    history: BTreeMap<(usize, Revision), Vec<(usize, List)>>,
    first_listed: BTreeMap<(RegisterId, usize), Revision>,
    /// What was listed last and has not been unlisted since, over all runs.
    truth: BTreeMap<RegisterId, Held>,
    /// That, as it was when a run began.
    carried: Vec<BTreeMap<RegisterId, Held>>,
    /// When something last stood between a host and its peers.
    pub disturbed: BTreeMap<usize, u64>,
}

impl Oracle {
    pub fn new(datums: Vec<DataId>) -> Self {
        Self {
            now: 0,
            trace: Trace::default(),
            failure: None,
            lists: vec![List::default(); datums.len()],
            datums,
            regs: BTreeMap::new(),
            seen: Seen::default(),
            attachments: BTreeMap::new(),
            attached: BTreeMap::new(),
            attach_counts: BTreeMap::new(),
            client_of: BTreeMap::new(),
            gone: BTreeSet::new(),
            sessions: BTreeMap::new(),
            views: BTreeMap::new(),
            run: 0,
            run_started: Vec::new(),
            run_ended: Vec::new(),
            node_paused: 0,
            node_turned_at: 0,
            slot_seen: BTreeMap::new(),
            history: BTreeMap::new(),
            first_listed: BTreeMap::new(),
            truth: BTreeMap::new(),
            carried: Vec::new(),
            disturbed: BTreeMap::new(),
        }
    }

    pub fn fail(&mut self, datum: Option<usize>, text: String) {
        if self.failure.is_none() {
            let datum = datum.map(|datum| self.datums[datum].key());
            self.failure = Some(Violation { at: self.now, datum, text });
        }
    }

    pub fn say(&mut self, datum: Option<usize>, text: impl FnOnce() -> String) {
        let datum = datum.map(|datum| self.datums[datum].key());
        self.trace.add(self.now, datum, text);
    }

    fn datum_of(&self, id: &DataId) -> usize {
        self.datums.iter().position(|held| held == id).expect("only known data ids are used")
    }

    // What clients want.

    pub fn published(&mut self, client: usize, registration: Registration, datum: usize, payload: Vec<u8>) {
        self.say(Some(datum), || {
            format!("client {client} publishes {:04x} {}", registration.register.0 >> 48, label(&payload))
        });
        let fresh = Reg {
            client,
            datum,
            registration,
            contents: Vec::new(),
            withdrawn: None,
            wanted: true,
            removal: None,
        };
        let reg = self.regs.entry(registration.register).or_insert(fresh);
        // An equal publish after a withdrawal is a new content to the oracle, so that the two are told apart.
        if reg.contents.last() != Some(&payload) || !reg.wanted {
            reg.contents.push(payload);
        }
        (reg.wanted, reg.removal) = (true, None);
    }

    pub fn withdrew(&mut self, register: RegisterId) {
        let Some(reg) = self.regs.get_mut(&register) else { return };
        reg.wanted = false;
        reg.withdrawn = Some(reg.contents.len() - 1);
        let (client, datum) = (reg.client, reg.datum);
        self.say(Some(datum), || format!("client {client} unpublishes {:04x}", register.0 >> 48));
    }

    pub fn left(&mut self, client: usize) {
        self.say(None, || format!("client {client} leaves"));
        self.gone.insert(client);
        for reg in self.regs.values_mut().filter(|reg| reg.client == client) {
            reg.wanted = false;
            reg.withdrawn = Some(reg.contents.len() - 1);
        }
        self.views.retain(|(viewer, _), _| *viewer != client);
    }

    pub fn subscribed(&mut self, client: usize, datum: usize) {
        self.say(Some(datum), || format!("client {client} subscribes"));
        self.views.entry((client, datum)).or_default();
    }

    pub fn unsubscribed(&mut self, client: usize, datum: usize) {
        self.say(Some(datum), || format!("client {client} unsubscribes"));
        self.views.remove(&(client, datum));
    }

    pub fn is_subscribed(&self, client: usize, datum: usize) -> bool {
        self.views.contains_key(&(client, datum))
    }

    // What happens to connections and processes.

    pub fn session_started(&mut self, id: SessionId) {
        self.sessions.insert(id, Incarnation::default());
    }

    pub fn session_ended(&mut self, id: SessionId) {
        let now = self.now;
        if let Some(session) = self.sessions.get_mut(&id) {
            session.died.get_or_insert(now);
        }
    }

    pub fn session_accepted(&mut self, pair: usize, owner: SessionId) {
        let attachment = Attachment { owner, heard_at: self.now, has_spoken: false, ended: None };
        self.attachments.insert(pair, attachment);
        self.sessions.entry(owner).or_default().clients += 1;
    }

    pub fn session_heard(&mut self, pair: usize) {
        if let Some(attachment) = self.attachments.get_mut(&pair) {
            (attachment.heard_at, attachment.has_spoken) = (self.now, true);
        }
    }

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

    pub fn client_attached(&mut self, client: usize, pair: usize) {
        let count = self.attach_counts.entry(client).or_insert(0);
        *count += 1;
        let count = *count;
        self.attached.insert((client, count), pair);
        self.client_of.insert(pair, client);
        for view in self.views.iter_mut().filter(|((viewer, _), _)| *viewer == client).map(|(_, view)| view) {
            view.resuming = view.revision > Revision::ZERO;
            view.brought = view.list.keys().copied().collect();
        }
        self.say(None, || format!("client {client} is connected, connection {pair}, attach count {count}"));
    }

    pub fn node_started(&mut self) {
        // A run that outlived every lease has waited for the owners of what it never listed.
        let before = self.run;
        if before > 0 {
            self.run_ended.push(self.node_turned_at);
        }
        if before > 0 && self.node_turned_at + SLACK >= self.run_started[before - 1] + LEASE {
            let listed = &self.first_listed;
            self.truth.retain(|register, _| listed.contains_key(&(*register, before)));
        }
        self.run += 1;
        self.run_started.push(self.now);
        self.carried.push(self.truth.clone());
        self.slot_seen.clear();
        self.lists = vec![List::default(); self.datums.len()];
    }

    pub fn node_heard(&mut self, id: SessionId) {
        let at = self.now - self.node_paused;
        if let Some(session) = self.sessions.get_mut(&id) {
            session.heard_at = at;
        }
    }

    pub fn node_greeted(&mut self, id: SessionId, epoch: u32) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.offered = Some((self.run, epoch));
        }
    }

    pub fn session_heard_node(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id)
            && let Some((run, epoch)) = session.offered.take()
        {
            session.epochs.insert(run, epoch);
            session.known_by.insert(run);
        }
    }

    pub fn node_was_paused(&mut self, nanos: u64) {
        self.node_paused += nanos;
    }

    // What the data node lists.

    pub fn node_turn(&mut self, node: &Node) {
        self.node_turned_at = self.now;
        for slot in node.shard().slots() {
            let revision = slot.revision();
            if self.slot_seen.insert(slot.id(), revision) == Some(revision) {
                continue;
            }
            for datum in 0..self.datums.len() {
                let key = self.datums[datum].key();
                if key.slot(SLOTS) != slot.id() {
                    continue;
                }
                let mut list = BTreeMap::new();
                for (record, owner) in slot.records(key) {
                    let register = record.register();
                    let attach = slot.version(key, register).map_or(0, |(version, _)| version.attach);
                    let payload = record.instance().map(|instance| instance.payload).unwrap_or_default();
                    let Some(content) = self.content(register, &payload) else {
                        self.fail(Some(datum), format!("the data node lists {} ...", label(&payload)));
                        continue;
                    };
                    let since = match self.truth.get(&register) {
                        Some(held) if held.owner == owner => held.since,
                        _ => self.now,
                    };
                    list.insert(register, Held { content, owner, attach, since });
                }
                self.node_list(datum, revision, list);
            }
        }
    }

    /// Which content of a registration this is, the latest if it was published twice.
    fn content(&self, register: RegisterId, payload: &[u8]) -> Option<usize> {
        self.regs.get(&register)?.contents.iter().rposition(|content| content == payload)
    }

    fn node_list(&mut self, datum: usize, revision: Revision, list: BTreeMap<RegisterId, Held>) {
        let before = self.lists[datum].clone();
        let list = if *before == list { before.clone() } else { Rc::new(list) };
        for (register, held) in before.iter().filter(|(register, _)| !list.contains_key(register)) {
            self.check_unlisted(datum, *register, held);
            self.truth.remove(register);
        }
        for (register, held) in list.iter() {
            let was = before.get(register);
            if was == Some(held) {
                continue;
            }
            self.first_listed.entry((*register, self.run)).or_insert(revision);
            if was.is_none() {
                self.check_listed(datum, *register);
            } else if was.is_some_and(|was| was.owner != held.owner) {
                self.seen.moved += 1;
            }
            self.truth.insert(*register, *held);
        }
        let run = self.run;
        let same = |held: &List, list: &List| held.keys().eq(list.keys());
        let known = self.history.entry((datum, revision)).or_default();
        let others: Vec<usize> =
            known.iter().filter(|(_, held)| !same(held, &list)).map(|(run, _)| *run).collect();
        known.push((run, list.clone()));
        self.lists[datum] = list;
        for other in others {
            self.seen.revisions_reused += 1;
            let told = self.sessions.values().any(|session| {
                let knew = session.epochs.get(&other).is_some_and(|epoch| *epoch >= revision.epoch());
                knew && session.known_by.contains(&run)
            });
            if told || other == run {
                self.fail(
                    Some(datum),
                    format!("revision {revision} names two lists, of runs {other} and {run}"),
                );
            }
        }
    }

    /// Promise 4.
    fn check_unlisted(&mut self, datum: usize, register: RegisterId, held: &Held) {
        let what = format!("{:04x}", register.0 >> 48);
        if self.is_withdrawn(register, held) {
            self.seen.withdrawn += 1;
        } else if self.has_departed(register, held) {
            self.seen.departed += 1;
        } else {
            let silent = self.silence(held.owner);
            if silent + HEARTBEAT_SLACK < LEASE {
                let text = format!(
                    "the data node unlists {what} of session {} (attach count {}), which it heard of {} ago: {}",
                    held.owner.0,
                    held.attach,
                    ms(silent),
                    self.connection_story(register, held)
                );
                self.fail(Some(datum), text);
            }
            self.seen.leases_ended += 1;
        }
        self.say(Some(datum), || format!("the data node unlists {what}"));
    }

    fn connection_story(&self, register: RegisterId, held: &Held) -> String {
        let Some(reg) = self.regs.get(&register) else { return "nobody's".into() };
        let pair = self.attached.get(&(reg.client, held.attach));
        let ended = pair.and_then(|pair| self.attachments.get(pair)).map(|attachment| attachment.ended);
        format!("client {}, connection {pair:?}, ended {ended:?}", reg.client)
    }

    fn is_withdrawn(&self, register: RegisterId, held: &Held) -> bool {
        self.regs.get(&register).is_some_and(|reg| reg.withdrawn >= Some(held.content))
    }

    /// Whether a session has seen the end of the connection that this came over, or of one that it was told over again
    /// since, and the grace is over.
    fn has_departed(&self, register: RegisterId, held: &Held) -> bool {
        let Some(reg) = self.regs.get(&register) else { return false };
        let latest = self.attach_counts.get(&reg.client).copied().unwrap_or(0);
        (held.attach..=latest).any(|attach| self.has_left(reg.client, attach))
    }

    fn has_left(&self, client: usize, attach: u32) -> bool {
        let Some(pair) = self.attached.get(&(client, attach)) else { return false };
        let Some(attachment) = self.attachments.get(pair) else { return false };
        let Some((at, ending)) = attachment.ended else { return false };
        let storms = &self.sessions[&attachment.owner].storms;
        let stretched = |(begin, until): &(u64, u64)| {
            *begin + SLACK <= at + GRACE && self.now + SLACK < (*until).min(at + LEASE)
        };
        let grace = if ending == Ending::Evicted { LEASE } else { GRACE };
        self.now + SLACK >= at + grace && !storms.iter().any(stretched)
    }

    /// How long the data node has not heard of a session, in its running time.
    fn silence(&self, owner: SessionId) -> u64 {
        let heard = self.sessions.get(&owner).map_or(0, |session| session.heard_at);
        (self.now - self.node_paused).saturating_sub(heard)
    }

    /// Promise 6, at the data node.
    fn check_listed(&mut self, datum: usize, register: RegisterId) {
        let Some(reg) = self.regs.get(&register) else { return };
        let (client, removal) = (reg.client, reg.removal);
        self.say(Some(datum), || format!("the data node lists {:04x} of client {client}", register.0 >> 48));
        let Some((revision, run)) = removal else { return };
        if run < self.run && self.has_stale_holder(client) {
            self.seen.stale_replays += 1;
            return;
        }
        let text = format!(
            "the data node lists {:04x} again, whose removal was acknowledged at {revision}",
            register.0 >> 48
        );
        self.fail(Some(datum), text);
    }

    /// Whether a living session may still hold what this client published over an earlier connection.
    fn has_stale_holder(&self, client: usize) -> bool {
        let latest = self.attach_counts.get(&client).copied().unwrap_or(0);
        (1..=latest).filter_map(|attach| self.attached.get(&(client, attach))).any(|pair| {
            self.attachments.get(pair).is_some_and(|attachment| {
                let over = |(at, _): (u64, Ending)| at + LEASE + SECOND < self.now;
                let alive = self.sessions[&attachment.owner].died.is_none_or(|died| died + SECOND > self.now);
                alive && !attachment.ended.is_some_and(over)
            })
        })
    }

    // What clients are told.

    pub fn update(&mut self, client: usize, update: &Update) {
        self.seen.updates += 1;
        match update {
            Update::Snapshot { id, revision, instances } => {
                let list = instances.iter().map(|(register, it)| (*register, Some(it.payload.clone())));
                self.view(client, id, *revision, true, list.collect());
            }
            Update::Diff { id, revision, changed, removed } => {
                let changes = changed.iter().map(|(register, it)| (*register, Some(it.payload.clone())));
                let removes = removed.iter().map(|register| (*register, None));
                self.view(client, id, *revision, false, removes.chain(changes).collect());
            }
            Update::Acknowledged { registration, revision } => {
                self.acknowledged(client, registration.register, *revision);
            }
            Update::Refused { registration, refusal } => {
                let datum = self.regs.get(&registration.register).map(|reg| reg.datum);
                let what = registration.register.0 >> 48;
                self.fail(datum, format!("client {client}: {what:04x} is refused: {refusal}"));
            }
            Update::NotDurable { refusal, .. } => {
                self.fail(
                    None,
                    format!("client {client}: nothing here is persistent, and it hears {refusal}"),
                );
            }
            Update::SubscriptionRefused { id, refusal } => {
                let datum = self.datum_of(id);
                self.fail(Some(datum), format!("client {client}: subscription refused: {refusal}"));
            }
            Update::Connected(session) => {
                self.say(None, || format!("client {client} is welcome at session {}", session.0));
            }
            Update::Disconnected(reason) => {
                self.say(None, || format!("client {client} is disconnected: {reason}"));
            }
        }
    }

    fn view(
        &mut self,
        client: usize,
        id: &DataId,
        revision: Revision,
        is_snapshot: bool,
        changes: Vec<(RegisterId, Option<Vec<u8>>)>,
    ) {
        let datum = self.datum_of(id);
        let Some(view) = self.views.get(&(client, datum)) else { return };
        let before = view.list.clone();
        let (revision_before, run_before, resuming) = (view.revision, view.run, view.resuming);
        let mut list = if is_snapshot { BTreeMap::new() } else { before.clone() };
        let mut unknown = None;
        for (register, payload) in changes {
            match payload {
                None => {
                    list.remove(&register);
                }
                Some(payload) => match self.content(register, &payload) {
                    Some(content) => {
                        list.insert(register, content);
                    }
                    None => unknown = Some(label(&payload)),
                },
            }
        }
        let names: Vec<String> = list.keys().map(|register| format!("{:04x}", register.0 >> 48)).collect();
        let kind = if is_snapshot { "snapshot" } else { "diff" };
        self.say(Some(datum), || format!("client {client}: {kind} at {revision}: {}", names.join(" ")));
        if let Some(unknown) = unknown {
            self.fail(Some(datum), format!("client {client} is told {unknown}, which nobody published"));
        }
        if resuming && is_snapshot {
            self.seen.resumed_by_snapshot += 1;
        } else if resuming {
            self.seen.resumed_by_diff += 1;
        }
        if revision < revision_before || (revision == revision_before && !is_snapshot && !resuming) {
            let text = format!("client {client} goes from {revision_before} back to {revision}");
            self.fail(Some(datum), text);
        }
        let Some((run, truth)) = self.truth_for(datum, revision, &list) else {
            self.fail(Some(datum), format!("client {client} is at {revision}, which never was"));
            return;
        };
        self.check_complete(client, datum, revision, &list, &truth);
        self.check_extra(client, datum, revision, run, &list, &truth);
        for register in before.keys().filter(|register| !list.contains_key(register)) {
            self.check_absent(client, datum, *register, revision, run);
        }
        for (register, content) in &list {
            let earlier = before.get(register);
            if earlier.is_some_and(|earlier| content < earlier) {
                let owner = self.regs[register].client;
                if run > run_before && self.has_stale_holder(owner) {
                    self.seen.stale_contents += 1;
                    continue;
                }
                let text = format!("client {client} sees {:04x} with older content", register.0 >> 48);
                self.fail(Some(datum), text);
            }
        }
        if let Some(view) = self.views.get_mut(&(client, datum)) {
            (view.revision, view.list, view.run, view.resuming) = (revision, list, run, false);
        }
    }

    /// The list of this revision; where a run of the data node has reused it, the one that fits.
    fn truth_for(
        &self,
        datum: usize,
        revision: Revision,
        list: &BTreeMap<RegisterId, usize>,
    ) -> Option<(usize, List)> {
        let known = self.history.get(&(datum, revision))?;
        let fits = |(_, truth): &&(usize, List)| {
            truth.iter().all(|(register, held)| list.get(register) == Some(&held.content))
        };
        known.iter().rev().find(fits).or(known.last()).cloned()
    }

    /// Promise 2.
    fn check_complete(
        &mut self,
        client: usize,
        datum: usize,
        revision: Revision,
        list: &BTreeMap<RegisterId, usize>,
        truth: &List,
    ) {
        for (register, held) in truth.iter() {
            let text = match list.get(register) {
                None => "lacks",
                Some(content) if *content != held.content => "has other content of",
                Some(_) => continue,
            };
            let text = format!("client {client} at {revision} {text} {:04x}", register.0 >> 48);
            self.fail(Some(datum), text);
        }
    }

    /// Promise 3.
    fn check_extra(
        &mut self,
        client: usize,
        datum: usize,
        revision: Revision,
        run: usize,
        list: &BTreeMap<RegisterId, usize>,
        truth: &List,
    ) {
        for register in list.keys().filter(|register| !truth.contains_key(register)) {
            let before = run.checked_sub(1).and_then(|run| self.carried.get(run));
            let young = self.run_started[run - 1] + UNSETTLED_MAX > self.now;
            let brought =
                self.views.get(&(client, datum)).is_some_and(|view| view.brought.contains(register));
            let earlier = (1..run).any(|run| self.first_listed.contains_key(&(*register, run)));
            let young = young && (brought || earlier);
            if !young && !before.is_some_and(|before| before.contains_key(register)) {
                let text = format!(
                    "client {client} at {revision} still has {:04x}, unlisted before",
                    register.0 >> 48
                );
                self.fail(Some(datum), text);
            }
            self.seen.retained += 1;
        }
    }

    /// Promise 5.
    fn check_absent(
        &mut self,
        client: usize,
        datum: usize,
        register: RegisterId,
        revision: Revision,
        run: usize,
    ) {
        if self.first_listed.get(&(register, run)).is_some_and(|first| *first <= revision) {
            return;
        }
        let Some(held) = run.checked_sub(1).and_then(|run| self.carried.get(run)?.get(&register)).copied()
        else {
            return;
        };
        let started = self.run_started[run - 1];
        if self.is_withdrawn(register, &held)
            || self.has_departed(register, &held)
            || self.now + SLACK >= started + LEASE
        {
            return;
        }
        // The owner's name travels like any change: who has not heard of a move goes by the former owner.
        let moved_in = self.run_started.iter().filter(|started| **started <= held.since).count();
        let latest = self.attach_counts.get(&client).copied().unwrap_or(0);
        let through = self.attached.get(&(client, latest)).and_then(|pair| self.attachments.get(pair));
        let linked = through.and_then(|attachment| self.sessions.get(&attachment.owner));
        let cut_off = linked.is_some_and(|session| !session.known_by.contains(&moved_in));
        let disturbed = self.disturbed.values().any(|at| *at + 10 * SECOND > held.since);
        let last_word = self.run_ended.get(moved_in - 1).is_some_and(|ended| held.since + SECOND > *ended);
        if cut_off || last_word || disturbed && held.since + 10 * SECOND > started {
            self.seen.unheard_moves += 1;
            return;
        }
        let text = format!(
            "client {client} at {revision} no longer has {:04x}, which session {} holds (since {}) and the new data \
             node has never listed: {}",
            register.0 >> 48,
            held.owner.0,
            ms(held.since),
            self.connection_story(register, &held)
        );
        self.fail(Some(datum), text);
    }

    /// Promise 7.
    fn acknowledged(&mut self, client: usize, register: RegisterId, revision: Revision) {
        let Some(reg) = self.regs.get_mut(&register) else { return };
        let (datum, wanted, latest) = (reg.datum, reg.wanted, reg.contents.len() - 1);
        let run = self.history.get(&(datum, revision)).and_then(|known| known.last()).map(|(run, _)| *run);
        if !wanted {
            reg.removal = Some((revision, run.unwrap_or(self.run)));
            self.seen.removals_acknowledged += 1;
        }
        self.say(Some(datum), || {
            format!("client {client}: {:04x} acknowledged at {revision}", register.0 >> 48)
        });
        let what = register.0 >> 48;
        let lists: Vec<List> = match self.history.get(&(datum, revision)) {
            Some(known) => known.iter().map(|(_, list)| list.clone()).collect(),
            None if revision == Revision::ZERO => vec![self.lists[datum].clone()],
            None => {
                self.fail(Some(datum), format!("{what:04x} is acknowledged at {revision}, which never was"));
                return;
            }
        };
        let expected = wanted.then_some(latest);
        let fits = |list: &List| list.get(&register).map(|held| held.content) == expected;
        if !lists.iter().any(fits) {
            let what = if wanted { format!("{what:04x}") } else { format!("the removal of {what:04x}") };
            self.fail(Some(datum), format!("{what} is acknowledged at {revision} and not in effect there"));
        }
    }

    // The end.

    /// Promise 8. `lists` are what the clients hold, `present` the clients that are there.
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
            let listed: Vec<RegisterId> = self.lists[datum].keys().copied().collect();
            if !listed.iter().eq(expected.keys()) {
                let text = format!(
                    "in the end the data node lists {} and should list {}",
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

fn names<'a>(registers: impl Iterator<Item = &'a RegisterId>) -> String {
    let names: Vec<String> = registers.map(|register| format!("{:04x}", register.0 >> 48)).collect();
    format!("[{}]", names.join(" "))
}
