//! The link to one shard, as far as it needs nothing else.

use super::*;

impl Link {
    pub(super) fn new(addr: SocketAddr) -> Self {
        let now = Instant::now();
        Self {
            addr,
            number: 0,
            out: None,
            is_up: false,
            retry_at: Some(now),
            pause: PAUSE.0,
            run: 0,
            epoch: 0,
            epoch_seen: 0,
            sequence: 0,
            in_flight: VecDeque::new(),
            mark: 0,
            confirmed: BTreeSet::new(),
            settled: false,
            next_heartbeat: now,
            unanswered_since: None,
            question: 0,
            answered: 0,
            opened_for_claim: None,
        }
    }

    /// Sends a message if the link is up, else not: all that matters is told when it comes up.
    pub(super) fn send(&mut self, message: &Message<'_>) {
        if self.is_up {
            self.send_now(message);
        }
    }

    pub(super) fn send_now(&mut self, message: &Message<'_>) {
        if let Some(out) = &self.out {
            out.send(frame_of(message));
            self.unanswered_since.get_or_insert(Instant::now());
        }
    }

    pub(super) fn subscribe(&mut self, id: &DataId, since: Revision) {
        self.send(&Message::Subscribe(vec![SubscribeItem { id: id.clone(), since, digest: 0 }]));
    }

    /// A ping, then the question: what comes behind the pong is as new as the question.
    pub(super) fn ask(&mut self, id: &DataId, since: Revision) -> u64 {
        self.question += 1;
        self.send(&Message::Ping(self.question));
        self.subscribe(id, since);
        self.question
    }

    pub(super) fn lose(&mut self) {
        if let Some(out) = self.out.take() {
            let _ = out.stream.shutdown(Shutdown::Both);
        }
        (self.is_up, self.unanswered_since) = (false, None);
        self.in_flight.clear();
        self.retry_at = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(PAUSE.1);
    }

    pub(super) fn accounts_for(&self, owner: SessionId, own: SessionId) -> bool {
        self.settled || owner == own || self.confirmed.contains(&owner)
    }
}
