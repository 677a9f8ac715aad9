//! Pushing: a client with news stands in one queue, and when its turn comes it gets everything it lacks in one write.
//!
//! When little happens the queue is short and news goes out at once; under load a client waits longer and its writes grow
//! by themselves. A client whose socket takes nothing leaves the queue until it does; its subscriptions remember how far it
//! got, nothing is queued for it, and in the end it gets the latest state or is closed.

use std::hint::black_box;

use slotcast_engine::id::{Nanos, Revision};

use crate::{
    io::ring::{ConnId, SendOutcome, SharedFrame, Sockets},
    session::{
        cache::Cache,
        client::{AWAITING, Client, VACANT},
        core::{Peer, Session},
    },
    wire::ErrorCode,
};

/// Steps of one data id above which a client gets one merged diff.
const MERGE_ABOVE: usize = 4;
/// Clients that are looked at together before they are written to.
const WARMED: usize = 8;
/// Clients written to between two system calls in a round that is over in one turn.
const NUDGED: usize = 2 * WARMED;
/// A subscription takes 16 bytes, a cache line 64.
const SUBSCRIPTIONS_PER_LINE: usize = 4;
/// Frames from this size on are sent by themselves, without a copy.
const LARGE_FRAME_BYTES: usize = 16 * 1024;
/// Bytes of its own frames that may wait for a client whose socket takes nothing; to this come [`ANSWER_BYTES`] per
/// publisher and subscription that it may have.
const ANSWERS_BYTES_MIN: usize = 256 * 1024;
/// See [`ANSWERS_BYTES_MIN`]: the frame that says a list is still current.
const ANSWER_BYTES: usize = 48;
/// What one write brings a client: frames copied together, or one large frame by itself.
#[derive(Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    count: usize,
    large: Option<SharedFrame>,
}

impl Frames {
    pub(super) fn push(&mut self, frame: &SharedFrame) {
        self.count += 1;
        if self.count == 1 && frame.len() >= LARGE_FRAME_BYTES {
            self.large = Some(frame.clone());
            return;
        }
        if let Some(large) = self.large.take() {
            self.bytes.extend_from_slice(&large);
        }
        self.bytes.extend_from_slice(frame);
    }

    fn clear(&mut self) {
        self.back((0, 0));
    }

    fn len(&self) -> usize {
        self.large.as_ref().map_or(self.bytes.len(), |large| large.len())
    }

    /// A point to go [`Self::back`] to.
    fn mark(&self) -> (usize, usize) {
        (self.count, self.len())
    }

    fn back(&mut self, (count, bytes): (usize, usize)) {
        self.count = count;
        self.large = None;
        self.bytes.truncate(bytes);
    }
}

/// One round through the clients with news.
#[derive(Default)]
pub(super) struct Round {
    began: Nanos,
    /// Clients that had news then.
    size: usize,
    served: usize,
}

impl Round {
    /// When to go on, so that the round is spread evenly over `interval`.
    fn due(&self, interval: u64) -> Nanos {
        let share = self.served.min(self.size) as f64 / self.size.max(1) as f64;
        self.began.after((interval as f64 * share) as u64)
    }
}

impl Session {
    /// Writes to the clients whose turn it is, at most `clients_per_turn`. Returns whether some are left that may be written to.
    pub(super) fn write_clients(&mut self, now: Nanos, sockets: &mut dyn Sockets) -> bool {
        if self.news.is_empty() || now < self.next_write {
            return false;
        }
        if self.round.served == 0 {
            (self.round.began, self.round.size) = (now, self.news.len());
        }
        let mut pushed = 0;
        let mut left = self.config.clients_per_turn;
        // When everybody has a turn now, delay counts more than system calls: the first do not wait for the last, nor those who
        // receive for the processor.
        let (is_short, mut queued) = (self.round.size <= left, 0);
        let mut next = [0; WARMED];
        while left > 0 && !self.news.is_empty() {
            let room = left.min(WARMED);
            let taken = std::iter::from_fn(|| self.news.take());
            let count = next[..room].iter_mut().zip(taken).map(|(place, index)| *place = index).count();
            self.warm(&next[..count]);
            for index in &next[..count] {
                pushed += self.write_client(*index, now, sockets);
            }
            left -= count;
            queued += count;
            if is_short && queued >= NUDGED {
                sockets.nudge();
                queued = 0;
            }
            self.round.served += count;
            if count < room && !self.news.is_empty() && !self.end_round(now) {
                break;
            }
        }
        if self.news.is_empty() {
            self.end_round(now);
        } else {
            self.next_write = self.next_write.max(self.round.due(self.config.push_interval_min));
        }
        self.metrics.pushes.inc_by(pushed);
        !self.news.is_empty() && now >= self.next_write
    }

    /// Looks at what the next clients hold, so that the processor waits for the memory of all of them at once and not of one
    /// after the other.
    fn warm(&self, indexes: &[u32]) {
        let clients = indexes.iter().filter_map(|index| match self.peers.get(*index as usize) {
            Some(Peer::Client(client)) => Some(client),
            _ => None,
        });
        black_box(clients.clone().fold(0, |all, client| all ^ client.subscriptions.len()));
        let held = clients.flat_map(|client| client.subscriptions.iter().step_by(SUBSCRIPTIONS_PER_LINE));
        black_box(held.fold(0, |all, subscription| all ^ subscription.datum));
    }

    /// Everybody has got what was there when the round began. Returns whether the next may begin.
    fn end_round(&mut self, now: Nanos) -> bool {
        let before = std::mem::replace(&mut self.round_carries, self.diff_received_at.take());
        let carried = if self.news.is_empty() { before.or(self.round_carries.take()) } else { before };
        if let Some(received_at) = carried {
            self.metrics.fanout_delay.observe(now.since(received_at) as f64 / 1e9);
        }
        self.next_write = self.round.began.after(self.config.push_interval_min).max(now);
        self.round.served = 0;
        now >= self.next_write
    }

    /// Returns the pushes written.
    fn write_client(&mut self, index: u32, now: Nanos, sockets: &mut dyn Sockets) -> u64 {
        let Some(Peer::Client(client)) = self.peers.get_mut(index as usize) else { return 0 };
        if client.busy_since.is_some() {
            if client.closing == Some(ErrorCode::SlowReader) {
                sockets.close(client.conn, true);
            }
            return 0;
        }
        self.frames.clear();
        self.reached.clear();
        let gathered = if self.push_stop.is_on() {
            Gathered::default()
        } else {
            let Self { cache, frames, reached, .. } = self;
            gather(client, cache, self.config.push_batch_max, frames, reached)
        };
        let written = send(client, &self.frames, sockets);
        match written {
            Some(bytes) => {
                for (position, revision) in &self.reached {
                    client.subscriptions[*position as usize].sent = *revision;
                }
                client.out = Vec::new();
                client.goes_on_at = gathered.stopped_at.unwrap_or(0);
                if bytes > 0 {
                    self.metrics.client_writes.inc();
                    self.metrics.client_bytes.inc_by(bytes as u64);
                    self.metrics.snapshots.inc_by(gathered.snapshots);
                }
                if client.closing.is_some() {
                    sockets.close(client.conn, false);
                } else if gathered.stopped_at.is_some() {
                    self.mark_dirty(index);
                }
                (self.frames.count as u64).saturating_sub(gathered.snapshots)
            }
            None => {
                client.busy_since = Some(now);
                self.slow.push(index);
                0
            }
        }
    }

    /// A socket takes writes again.
    pub(super) fn writable(&mut self, conn: ConnId) {
        let index = conn.index();
        if let Some(client) = self.client(index)
            && client.conn == conn
            && client.busy_since.take().is_some()
        {
            client.counted_slow = false;
            self.mark_dirty(index as u32);
        }
    }

    /// A client whose socket takes nothing while it asks for more and more is closed. Every publisher and subscription
    /// may be answered once, as after a reconnect.
    pub(super) fn bound_answers(&mut self, index: usize) {
        let answers_max = self.config.publishers_max as usize + self.config.subscriptions_max as usize;
        let bytes_max = ANSWERS_BYTES_MIN + answers_max * ANSWER_BYTES;
        if let Some(client) = self.client(index)
            && client.busy_since.is_some()
            && client.out.len() > bytes_max
        {
            self.refuse(index, ErrorCode::SlowReader, "the answers to this client are not read", 0);
        }
    }

    /// Looks at the clients whose sockets take nothing: counts the slow ones, closes the hopeless ones.
    pub(super) fn sweep_slow(&mut self, now: Nanos, sockets: &mut dyn Sockets) {
        let (slow_after, evict_after) = (self.config.push_interval_max, self.config.slow_client_eviction);
        let mut waiting = std::mem::take(&mut self.slow);
        // A client stands here once per time that its socket took nothing.
        waiting.sort_unstable();
        waiting.dedup();
        let mut bytes = 0;
        waiting.retain(|index| {
            let Some(Peer::Client(client)) = self.peers.get_mut(*index as usize) else { return false };
            let Some(since) = client.busy_since else { return false };
            bytes += client.out.len();
            if now.since(since) >= slow_after && !client.counted_slow {
                client.counted_slow = true;
                self.metrics.slow_clients.inc();
            }
            if now.since(since) < evict_after {
                return true;
            }
            if client.closing.replace(ErrorCode::SlowReader).is_none() {
                self.metrics.client_errors.get_or_create(&ErrorCode::SlowReader.into()).inc();
            }
            sockets.close(client.conn, true);
            false
        });
        self.metrics.slow_client_bytes.set(bytes as i64);
        self.slow = waiting;
    }
}

/// What was collected for a client.
#[derive(Default)]
struct Gathered {
    snapshots: u64,
    /// The subscription that the next write is to begin with, if not all has room in this one.
    stopped_at: Option<u32>,
}

/// Collects the frames that a client lacks and how far they lead it. Begins with the subscription that the write before had no room
/// for, so that none waits for ever behind others that always have news.
fn gather(
    client: &Client,
    cache: &mut Cache,
    batch_max: usize,
    frames: &mut Frames,
    reached: &mut Vec<(u32, Revision)>,
) -> Gathered {
    let mut gathered = Gathered::default();
    if client.closing.is_some() {
        return gathered;
    }
    let first = (client.goes_on_at as usize).min(client.subscriptions.len());
    for position in (first..client.subscriptions.len()).chain(0..first) {
        let subscription = client.subscriptions[position];
        if subscription.datum == VACANT || subscription.sent == AWAITING {
            continue;
        }
        let latest = cache.latest(subscription.datum);
        if subscription.sent >= latest {
            continue;
        }
        let held = frames.mark();
        if held.0 >= batch_max {
            gathered.stopped_at = Some(position as u32);
            break;
        }
        let reader = (client.conn.index() as u32, subscription.sent);
        let (to, is_snapshot) =
            cache.frames_since(subscription.datum, reader, batch_max - held.0, MERGE_ABOVE, frames);
        let large = frames.len() - held.1 >= LARGE_FRAME_BYTES;
        if large && (held.0 > 0 || !client.out.is_empty()) {
            // It goes by itself, after these.
            frames.back(held);
            gathered.stopped_at = Some(position as u32);
            break;
        }
        if !is_snapshot && crate::faults::drop_diff() {
            frames.back(held);
        }
        gathered.snapshots += u64::from(is_snapshot);
        reached.push((position as u32, to));
        if large || to < latest {
            gathered.stopped_at = Some(position as u32 + 1);
            break;
        }
    }
    gathered
}

/// Writes a client's own frames and the shared ones in one go. Returns the bytes, or `None` if the socket takes nothing.
fn send(client: &Client, frames: &Frames, sockets: &mut dyn Sockets) -> Option<usize> {
    let bytes = client.out.len() + frames.len();
    let outcome = match &frames.large {
        Some(large) => {
            debug_assert!(client.out.is_empty(), "the client's own frames went before");
            sockets.send_shared(client.conn, large)
        }
        None if bytes == 0 => return Some(0),
        None => sockets.send(client.conn, &[&client.out, &frames.bytes]),
    };
    match outcome {
        SendOutcome::Busy => None,
        SendOutcome::Queued | SendOutcome::Gone => Some(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_spread_evenly_over_the_interval_and_no_longer() {
        let mut round = Round { began: Nanos(1_000), size: 10, served: 0 };
        assert_eq!(round.due(0), Nanos(1_000), "without an interval nobody waits");
        for (served, due) in [(0, 1_000), (1, 1_040), (5, 1_200), (10, 1_400), (25, 1_400)] {
            round.served = served;
            assert_eq!(round.due(400), Nanos(due), "after {served} of 10");
        }
        assert_eq!(Round::default().due(400), Nanos(0), "a round without anybody is over");
    }
}
