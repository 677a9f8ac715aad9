//! What is promised, checked at every turn of a data node and at every update of a client.
//!
//! The oracle sees everything: what every client wants, which connection each registration came over, when a session saw
//! that connection end, and the lists of every leader at every revision it has ever answered at. A *term* is the time in
//! which one process of a data node leads a slot without a break. The promises:
//!
//! 1. *One history.* A revision names one list for ever (where there is no control plane: as far as a session that has
//!    linked to a run of the data node knew of its earlier runs), whoever holds it; a leader epoch of a slot is opened by
//!    one process only; a subscriber's revision never goes back within one subscription.
//! 2. *Complete.* A subscriber's list at a revision holds everything that the leader's list held there, with that
//!    content, or with a newer one that an earlier term listed and a young one has not heard of, or, be it newer or not, with what the
//!    subscriber's session held where it left the history of a young term that cannot tell what has changed since, and only until the
//!    term has heard of the owner; nothing that was never published.
//! 3. *Nothing stale.* What it holds beyond that was listed when the term before ended; or the term is
//!    young, and the session did not hear that it went in an earlier one; or the term is young, the client brought it along from
//!    another session, and the leader has let go of it so long ago that its log does not say so any more, or is not asked, where
//!    there is no control plane and so no revision that is known to be of its history: it is kept only because absence is not
//!    removal, until its owner is known to be complete.
//! 4. *No wrong removal.* A leader unlists a registration only if its client withdrew it, or if the owning session
//!    saw that connection end and its grace (in a storm, or when the session itself closed it: its lease) is over, or if
//!    the lease of the owning session has run out in running time of the data node; or if that session is the owner only as far
//!    as this leader knows, and another one, who may be a leader no more, has heard that it is not.
//! 5. *Absence is not removal.* A registration that a new term has never listed vanishes from a subscriber only for one of the
//!    reasons of 4, where the lease counts from the start of that term.
//! 6. *No resurrection.* Once a removal is acknowledged, no leader that answers readers lists the registration until it is
//!    published again, and by 3 nobody else does. Content never goes back to an older one, but for a persistent one that was told
//!    before it was durable, not acknowledged, and lost with the leader that told it.
//! 7. *Acknowledged means in effect.* The list at the revision of an acknowledgement holds, or lacks, what was
//!    acknowledged. Nobody who does nothing wrong is refused.
//! 8. *Answers are complete.* A leader that begins to answer before it has waited for `settle` lists everything that a session
//!    which is linked to it, and whose lease it has not ended, holds and was acknowledged. A data node that leads something ends
//!    the lease of no session that it has heard of within a lease in its running time, whether it lists anything of it or not.
//! 9. *Nothing twice.* A diff tells a subscriber nothing that it has: an equal publish, a new leader and a new session push
//!    nothing again. No connection carries more than a bounded number of writes in a second, whatever breaks.
//! 10. *Led again in time.* When a data node is lost and nothing else is wrong, others answer for its slots within
//!     [`DETECTION_MAX`].
//! 11. *The table never goes back*: a process that has gone by a slot table goes by no older one.
//! 12. *No former leader.* A session that goes by a table takes nothing into a list that is of a leader before that of the
//!     table.
//! 13. *In the end* every list is exactly the set of registrations that clients hold (checked when all is healed).
//!
//! What the loss of a data node's memory makes impossible, and so is not promised: a session that was cut off while a
//! registration moved on or was withdrawn may tell a new leader what it still holds, until it learns better.
//! Such cases are counted, and only accepted when there is such a session. Nor is a removal kept that only a leader and a
//! session knew of which are both lost: the next leader lists the registration until that session's lease ends there.

mod accept;
mod connections;
mod contents;
mod end;
mod lists;
mod tables;
mod views;
mod wants;

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use slotcast_engine::id::{DataId, DatumKey, RegisterId, Revision, SessionId, SlotId};

use super::{
    control::NODE_LEASE,
    hosts::LEASE,
    network::{MS, SECOND},
    plan::Shape,
    trace::Trace,
};
use connections::{Attachment, Incarnation, Process};
use lists::{Held, List, Term};
use views::View;
pub use wants::Reg;

/// Payloads by registration.
pub type Contents = BTreeMap<RegisterId, Vec<u8>>;

/// Times seen by the oracle and by a role may differ by a turn.
const SLACK: u64 = 100 * MS;
/// How long after its start a term may be unsettled to a session that it has no good connection with.
const UNSETTLED_MAX: u64 = LEASE + 40 * SECOND;

/// From the loss of a data node until others answer for what it led: its lease, and the time for a table and for `settle`.
pub const DETECTION_MAX: u64 = NODE_LEASE + 1500 * MS;

/// What was found to be wrong.
#[derive(Clone, Debug)]
pub struct Violation {
    /// When, in virtual nanoseconds.
    pub at: u64,
    /// The data id concerned, if it is one.
    pub datum: Option<DatumKey>,
    /// What.
    pub text: String,
}

impl Violation {
    /// The kind of it: the text without all that has a digit.
    pub fn kind(&self) -> String {
        let words = self.text.split_whitespace();
        words.filter(|word| !word.contains(|c: char| c.is_ascii_digit())).collect::<Vec<_>>().join(" ")
    }
}

/// How often what was reached.
#[derive(Default, Clone, Debug)]
#[expect(missing_docs, reason = "each is described where it is reported")]
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
    pub kept_contents: u64,
    pub unheard_moves: u64,
    pub removals_acknowledged: u64,
    pub revisions_reused: u64,
    pub promotions: u64,
    pub demotions: u64,
    pub led_from_nothing: u64,
    pub slots_left: u64,
    pub accepts_confirmed: u64,
    pub accepts_late: u64,
    pub copies_compared: u64,
    pub forks: u64,
    pub migrations: u64,
    pub later_tables: u64,
    pub persistent_acknowledged: u64,
    pub persistent_refused: u64,
    pub not_durable_yet: u64,
}

/// Who knows everything.
pub struct Oracle {
    /// The virtual time.
    pub now: u64,
    /// What a person wants to read about a failure.
    pub trace: Trace,
    /// The first broken promise.
    pub failure: Option<Violation>,
    /// The data ids there are.
    pub datums: Vec<DataId>,
    /// Every registration that ever was.
    pub regs: BTreeMap<RegisterId, Reg>,
    /// How often what was reached.
    pub seen: Seen,
    /// When something last stood between a session and its peers, by its host.
    pub disturbed: BTreeMap<usize, u64>,
    shape: Shape,
    attachments: BTreeMap<usize, Attachment>,
    /// The connection of each (client, attach count).
    attached: BTreeMap<(usize, u32), usize>,
    attach_counts: BTreeMap<usize, u32>,
    client_of: BTreeMap<usize, usize>,
    /// Clients that have said goodbye, or were about to.
    gone: BTreeSet<usize>,
    sessions: BTreeMap<SessionId, Incarnation>,
    /// Those that live.
    living: BTreeSet<SessionId>,
    views: BTreeMap<(usize, usize), View>,
    processes: Vec<Process>,
    terms: Vec<Term>,
    /// The terms of each slot, the latest last.
    terms_of: BTreeMap<SlotId, Vec<usize>>,
    history: BTreeMap<(usize, Revision), Vec<(usize, List)>>,
    /// Who opened each epoch of a slot.
    opened: BTreeMap<(SlotId, u32), usize>,
    /// Epochs whose end nobody could look at, and the last revision of them that was seen.
    unseen: BTreeMap<(SlotId, u32), Revision>,
    settle: u64,
    /// The table that each session goes by, and what it has of each data id: leader epoch and revision.
    told: BTreeMap<SessionId, tables::Told>,
    /// Slots of which what was acknowledged as persistent may be lost with a disk: a node with the id of another, and without its
    /// disk, has held them. No other slot is excused.
    pub unclean: BTreeSet<SlotId>,
}

impl Oracle {
    /// Nothing has happened yet.
    pub fn new(datums: Vec<DataId>, shape: Shape, settle: u64) -> Self {
        Self {
            now: 0,
            trace: Trace::default(),
            failure: None,
            datums,
            regs: BTreeMap::new(),
            seen: Seen::default(),
            disturbed: BTreeMap::new(),
            shape,
            attachments: BTreeMap::new(),
            attached: BTreeMap::new(),
            attach_counts: BTreeMap::new(),
            client_of: BTreeMap::new(),
            gone: BTreeSet::new(),
            sessions: BTreeMap::new(),
            living: BTreeSet::new(),
            views: BTreeMap::new(),
            processes: Vec::new(),
            terms: Vec::new(),
            terms_of: BTreeMap::new(),
            history: BTreeMap::new(),
            opened: BTreeMap::new(),
            unseen: BTreeMap::new(),
            settle,
            told: BTreeMap::new(),
            unclean: BTreeSet::new(),
        }
    }

    /// A promise is broken. Only the first counts.
    pub fn fail(&mut self, datum: Option<usize>, text: String) {
        if self.failure.is_none() {
            let datum = datum.map(|datum| self.datums[datum].key());
            self.failure = Some(Violation { at: self.now, datum, text });
        }
    }

    /// For the trace.
    pub fn say(&mut self, datum: Option<usize>, text: impl FnOnce() -> String) {
        let datum = datum.map(|datum| self.datums[datum].key());
        self.trace.add(self.now, datum, text);
    }

    fn datum_of(&self, id: &DataId) -> usize {
        self.datums.iter().position(|held| held == id).expect("only known data ids are used")
    }
}

/// The readable part of a registration's number.
fn short(register: RegisterId) -> String {
    format!("{:04x}", register.0 >> 48)
}

fn names<'a>(registers: impl Iterator<Item = &'a RegisterId>) -> String {
    let names: Vec<String> = registers.map(|register| short(*register)).collect();
    format!("[{}]", names.join(" "))
}

/// An empty list.
fn nothing() -> List {
    Rc::new(BTreeMap::new())
}
