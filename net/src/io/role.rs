//! What the loop drives: a role decides, the sockets are given to it.

use slotcast_engine::id::Nanos;

use crate::io::ring::{Event, Sockets, Waker};

/// A data node, a session or a client as a state machine: events and time in, sends and closes out.
pub trait Role {
    /// Called once before all else, with what ends the loop's sleep from other threads.
    fn started(&mut self, _waker: Waker) {}

    /// Called once after the last turn: what has to be brought to an end is, though the loop is asked to stop.
    fn finish(&mut self) {}

    /// Notes what happened. Called any number of times before a turn.
    fn handle(&mut self, event: Event<'_>, now: Nanos);

    /// Does what is due: at most a bounded amount of work. Returns whether more is waiting, so that the next turn should
    /// follow without sleeping.
    fn turn(&mut self, now: Nanos, sockets: &mut dyn Sockets) -> bool;

    /// When the role wants a turn although nothing happens.
    fn wake_at(&self) -> Nanos;

    /// Whether the role has ended and the loop should too.
    fn is_finished(&self) -> bool {
        false
    }
}
