//! Which slot tables processes go by, and whom they listen to.

use slotcast_engine::id::{Revision, SessionId};
use slotcast_net::{data::node::Node, session::Session};

use super::Oracle;

/// What a session was last seen to have.
#[derive(Default)]
pub(super) struct Told {
    table: u64,
    /// By data id: the leader epoch of its slot, and the revision of the list.
    held: Vec<Option<(u32, Revision)>>,
    /// By data id: when it went on to a later leader epoch, and where it stood before. From there it asked that leader.
    left: Vec<Vec<(u64, Revision)>>,
}

impl Told {
    pub(super) fn left(&self, datum: usize) -> &[(u64, Revision)] {
        self.left.get(datum).map_or(&[], Vec::as_slice)
    }

    pub(super) fn goes_on(&mut self, datum: usize, at: u64, from: Revision) {
        if self.left.len() <= datum {
            self.left.resize(datum + 1, Vec::new());
        }
        self.left[datum].push((at, from));
    }
}

impl Oracle {
    /// A session has finished a turn.
    pub fn session_turn(&mut self, id: SessionId, session: &Session) {
        let table = session.table_epoch();
        let told = self.told.entry(id).or_default();
        let before = std::mem::replace(&mut told.table, table);
        self.seen.later_tables += u64::from(table > before);
        if table < before {
            self.fail(None, format!("session {} goes back from table {before} to table {table}", id.0));
        }
        for datum in 0..self.datums.len() {
            let now = session.held(&self.datums[datum]);
            let told = self.told.entry(id).or_default();
            if told.held.len() <= datum {
                told.held.resize(datum + 1, None);
            }
            let before = std::mem::replace(&mut told.held[datum], now);
            let (Some((epoch, was)), Some((_, revision))) = (before, now) else { continue };
            if was > Revision::ZERO && revision.epoch() > was.epoch() {
                told.goes_on(datum, self.now, was);
            }
            if revision != was && revision > Revision::ZERO && revision.epoch() < epoch {
                let text = format!(
                    "session {} goes on to {revision}, though by its table the slot was led in epoch {epoch}",
                    id.0
                );
                self.fail(Some(datum), text);
            }
        }
    }

    /// A data node goes by a table.
    pub(super) fn node_table(&mut self, process: usize, node: &Node) {
        let table = node.table_epoch();
        let before = std::mem::replace(&mut self.processes[process].table, table);
        self.seen.later_tables += u64::from(table > before);
        if table < before {
            let host = self.processes[process].host;
            self.fail(None, format!("host {host} goes back from table {before} to table {table}"));
        }
    }
}
