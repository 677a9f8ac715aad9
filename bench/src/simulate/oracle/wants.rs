//! What clients want.

use slotcast_engine::{
    id::{RegisterId, Revision, SessionId},
    record::Record,
};
use slotcast_net::client::Registration;

use super::{Oracle, short};
use crate::simulate::trace::label;

/// One registration as its client sees it.
pub struct Reg {
    /// The client's number.
    pub client: usize,
    /// The data id's number.
    pub datum: usize,
    /// What the client calls it.
    pub registration: Registration,
    /// Everything it ever held, the latest last.
    pub contents: Vec<Vec<u8>>,
    /// Whether the client wants it to be listed.
    pub wanted: bool,
    /// The version of a persistent one; 0: it is ephemeral.
    pub version: u64,
    /// Whether it is not known what became of the last thing that was asked of a persistent one.
    pub(super) is_doubtful: bool,
    /// The last content that a withdrawal covers.
    pub(super) withdrawn: Option<usize>,
    /// The withdrawal, once it is acknowledged.
    pub(super) removal: Option<Removal>,
    /// The last content that was acknowledged, while it is wanted.
    pub(super) acknowledged: Option<Acknowledged>,
    /// The last content that ever was.
    pub(super) confirmed: Option<usize>,
    /// The record that was looked at last, by its checksum and by how many contents there were then, and its content.
    found: Option<((u64, usize), usize)>,
}

impl Reg {
    /// Whether it stays until it is removed by request.
    pub fn is_persistent(&self) -> bool {
        self.version > 0
    }

    /// Whoever asked for the last change will not ask again.
    pub(super) fn doubt(&mut self) {
        let latest = self.contents.len() - 1;
        let is_told = if self.wanted {
            self.acknowledged.is_some_and(|it| it.content == latest)
        } else {
            self.removal.is_some()
        };
        self.is_doubtful |= !is_told;
    }
}

/// An acknowledged withdrawal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removal {
    pub(super) revision: Revision,
    /// Whose list it is not in, if that is known.
    pub(super) term: Option<usize>,
    /// The session that it went through.
    pub(super) session: Option<SessionId>,
}

/// An acknowledged content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acknowledged {
    pub(super) content: usize,
    /// The session that it went through.
    pub(super) session: SessionId,
    /// The count of the client's connection to that.
    pub(super) attach: u32,
    pub(super) revision: Revision,
}

impl Oracle {
    /// A client publishes.
    pub fn published(&mut self, client: usize, registration: Registration, datum: usize, payload: Vec<u8>) {
        self.say(Some(datum), || {
            format!("client {client} publishes {} {}", short(registration.register), label(&payload))
        });
        let fresh = Reg {
            client,
            datum,
            registration,
            contents: Vec::new(),
            withdrawn: None,
            wanted: true,
            version: 0,
            is_doubtful: false,
            removal: None,
            acknowledged: None,
            confirmed: None,
            found: None,
        };
        let reg = self.regs.entry(registration.register).or_insert(fresh);
        // An equal publish after a withdrawal is a new content to the oracle, so that the two are told apart.
        if reg.contents.last() != Some(&payload) || !reg.wanted {
            reg.contents.push(payload);
        }
        (reg.wanted, reg.removal) = (true, None);
    }

    /// A client publishes something that is to stay without it.
    pub fn published_for_good(
        &mut self,
        client: usize,
        registration: Registration,
        datum: usize,
        (payload, version): (Vec<u8>, u64),
    ) {
        self.published(client, registration, datum, payload);
        if let Some(reg) = self.regs.get_mut(&registration.register) {
            reg.version = version;
        }
    }

    /// A client withdraws a registration.
    pub fn withdrew(&mut self, register: RegisterId) {
        let Some(reg) = self.regs.get_mut(&register) else { return };
        (reg.wanted, reg.acknowledged) = (false, None);
        reg.withdrawn = Some(reg.contents.len() - 1);
        let (client, datum) = (reg.client, reg.datum);
        self.say(Some(datum), || format!("client {client} unpublishes {}", short(register)));
    }

    /// A client says goodbye.
    pub fn left(&mut self, client: usize) {
        self.say(None, || format!("client {client} leaves"));
        self.gone.insert(client);
        for reg in self.regs.values_mut().filter(|reg| reg.client == client) {
            if reg.is_persistent() {
                reg.doubt();
            } else {
                reg.wanted = false;
                reg.withdrawn = Some(reg.contents.len() - 1);
            }
        }
        self.views.retain(|(viewer, _), _| *viewer != client);
    }

    /// A client will not come back under this identity.
    pub fn client_crashed(&mut self, client: usize) {
        for reg in self.regs.values_mut().filter(|reg| reg.client == client) {
            if reg.is_persistent() {
                reg.doubt();
            } else {
                reg.wanted = false;
            }
        }
    }

    /// A client wants to be told of a data id.
    pub fn subscribed(&mut self, client: usize, datum: usize) {
        self.say(Some(datum), || format!("client {client} subscribes"));
        self.views.entry((client, datum)).or_default();
    }

    /// It does not want that any more.
    pub fn unsubscribed(&mut self, client: usize, datum: usize) {
        self.say(Some(datum), || format!("client {client} unsubscribes"));
        self.views.remove(&(client, datum));
    }

    /// Whether a client wants to be told of a data id.
    pub fn is_subscribed(&self, client: usize, datum: usize) -> bool {
        self.views.contains_key(&(client, datum))
    }

    /// Which content of its registration a record holds. What was found is kept: most records are looked at very often.
    pub(super) fn content_of(&mut self, record: &Record<'_>) -> Option<usize> {
        let (register, checksum) = (record.register(), record.checksum());
        let reg = self.regs.get(&register)?;
        let now = (checksum, reg.contents.len());
        if let Some((_, content)) = reg.found.filter(|(then, _)| *then == now) {
            return Some(content);
        }
        let payload = record.instance().map(|instance| instance.payload).unwrap_or_default();
        let content = self.content(register, &payload)?;
        if let Some(reg) = self.regs.get_mut(&register) {
            reg.found = Some((now, content));
        }
        Some(content)
    }

    /// Which content of a registration this is, the latest if it was published twice.
    pub(super) fn content(&self, register: RegisterId, payload: &[u8]) -> Option<usize> {
        self.regs.get(&register)?.contents.iter().rposition(|content| content == payload)
    }
}
