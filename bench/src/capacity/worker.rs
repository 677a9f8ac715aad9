//! One shard on its thread, told what to do next.

use std::{
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use slotcast_engine::{
    id::{Nanos, ReaderId, SessionId, mix64},
    shard::{Shard, ShardConfig},
};
use slotcast_net::io::clock;

use super::{Answer, CapacitySpec, Step};
use crate::population::{Publisher, Share, Shuffle, Writer};

/// Entries of a write frame, names not counted.
const FRAME: u64 = 100;
/// Time between two ticks, as in a data node.
const TICK: Duration = Duration::from_millis(100);
/// Look-ups that are prepared, and then timed together.
const LOOK_UPS: u64 = 1_000;

struct Worker<'a> {
    spec: &'a CapacitySpec,
    share: Share,
    writer: Writer,
    shard: Shard,
    sequences: Vec<u64>,
    frame: Vec<u8>,
    ticked: Instant,
    answer: Answer,
}

/// Does as it is ordered until nobody orders any more.
pub(super) fn serve(
    spec: &CapacitySpec,
    shard: u32,
    orders: &Receiver<Step>,
    answers: &Sender<anyhow::Result<Answer>>,
    done: &AtomicU64,
) {
    let mut share = Some(spec.population.share(spec.shard.slot_count, shard, spec.shards));
    if answers.send(Ok(Answer::default())).is_err() {
        return;
    }
    let mut worker = None;
    while let Ok(step) = orders.recv() {
        if let Some(share) = share.take() {
            worker = Some(Worker::open(spec, shard, share));
        }
        let Some(worker) = &mut worker else { return };
        let answer = worker.carry_out(step, done).with_context(|| format!("shard {shard}"));
        if answers.send(answer).is_err() {
            return;
        }
    }
}

/// The session that owns a publisher.
fn session_of(spec: &CapacitySpec, publisher: &Publisher) -> u32 {
    (mix64(publisher.register.0) % u64::from(spec.population.sessions)) as u32
}

fn incarnation(session: u32) -> SessionId {
    SessionId(u64::from(session) + 1)
}

impl<'a> Worker<'a> {
    fn open(spec: &'a CapacitySpec, number: u32, share: Share) -> Self {
        let mut shard = Shard::new(ShardConfig {
            shard: number,
            shards: spec.shards,
            seed: clock::unique(),
            session_lease: 3_600 * Nanos::SECOND,
            ..spec.shard.clone()
        });
        for session in 0..spec.population.sessions {
            let opened =
                shard.handle_link_open(ReaderId(session), incarnation(session), 0, true, clock::now());
            opened.expect("a fresh session");
        }
        Self {
            share,
            writer: Writer::new(spec.population),
            shard,
            sequences: vec![0; spec.population.sessions as usize],
            frame: Vec::new(),
            ticked: Instant::now(),
            answer: Answer::default(),
            spec,
        }
    }

    fn carry_out(&mut self, step: Step, done: &AtomicU64) -> anyhow::Result<Answer> {
        self.answer = Answer::default();
        let compacted = self.shard.compaction_stats().bytes_walked;
        match step {
            Step::Write { round } => self.write(round, done)?,
            Step::Find => self.find(done)?,
            Step::Compare { round } => self.compare(round, done)?,
            Step::Settle { at_most } => self.settle(at_most),
        }
        self.answer.memory = self.shard.memory();
        self.answer.publishers = self.shard.counts().publishers as u64;
        self.answer.compacted_bytes = self.shard.compaction_stats().bytes_walked - compacted;
        Ok(self.answer)
    }

    /// A turn per frame; each frame is of one session.
    fn write(&mut self, round: u64, done: &AtomicU64) -> anyhow::Result<()> {
        let order = Shuffle::new(self.share.len().max(1), round);
        let mut waiting: Vec<Vec<Publisher>> = vec![Vec::new(); self.sequences.len()];
        for place in 0..self.share.len() {
            let publisher = self.share.publisher(order.at(place));
            let session = session_of(self.spec, &publisher) as usize;
            waiting[session].push(publisher);
            if waiting[session].len() as u64 == FRAME {
                self.send(session, &mut waiting[session], round)?;
                done.fetch_add(FRAME, Ordering::Relaxed);
            }
        }
        for (session, left) in waiting.iter_mut().enumerate().filter(|(_, left)| !left.is_empty()) {
            self.send(session, left, round)?;
        }
        Ok(())
    }

    fn send(&mut self, session: usize, publishers: &mut Vec<Publisher>, round: u64) -> anyhow::Result<()> {
        self.frame.clear();
        self.writer.next_frame();
        let reader = ReaderId(session as u32);
        for publisher in publishers.iter() {
            self.writer.put(publisher, round, incarnation(session as u32), &mut self.frame);
        }
        self.sequences[session] += 1;
        let (start, now) = (Instant::now(), clock::now());
        self.shard.handle_write(reader, self.sequences[session], &self.frame, now)?;
        if self.ticked.elapsed() >= TICK {
            self.shard.tick(now);
            self.ticked = start;
        }
        self.shard.compact(now);
        self.shard.seal(now);
        let mut taken = 0;
        while let Some(ack) = self.shard.poll_ack() {
            taken += ack.outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        }
        self.shard.poll_push(|_| ());
        self.count(publishers.len() as u64, start.elapsed());
        ensure!(taken == publishers.len(), "{taken} of {} puts were taken", publishers.len());
        publishers.clear();
        Ok(())
    }

    fn count(&mut self, operations: u64, took: Duration) {
        self.answer.operations += operations;
        self.answer.busy += took;
        self.answer.turn_max = self.answer.turn_max.max(took);
    }

    /// Looks everybody up, in an order of its own, and reads a word of each record.
    fn find(&mut self, done: &AtomicU64) -> anyhow::Result<()> {
        let order = Shuffle::new(self.share.len().max(1), u64::MAX);
        let (mut place, mut wanted) = (0, Vec::new());
        while place < self.share.len() {
            wanted.clear();
            let end = (place + LOOK_UPS).min(self.share.len());
            wanted.extend((place..end).map(|place| self.share.publisher(order.at(place))));
            place = end;
            let start = Instant::now();
            let found = wanted.iter().filter(|publisher| {
                let record = self.shard.record(publisher.datum, publisher.register);
                record.is_some_and(|(record, _)| record.register() == publisher.register)
            });
            let found = found.count();
            let took = start.elapsed();
            ensure!(found == wanted.len(), "{found} of {} publishers were found", wanted.len());
            self.answer.operations += found as u64;
            self.answer.busy += took;
            done.fetch_add(found as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Compares everybody's bytes and owner with what was published.
    fn compare(&mut self, round: u64, done: &AtomicU64) -> anyhow::Result<()> {
        let start = Instant::now();
        for at in 0..self.share.len() {
            let publisher = self.share.publisher(at);
            let (record, owner) =
                self.shard.record(publisher.datum, publisher.register).context("a publisher is missing")?;
            let same = record.bytes() == self.writer.record(&publisher, round);
            ensure!(same, "publisher {publisher:?} holds other bytes than those of round {round}");
            ensure!(
                owner == incarnation(session_of(self.spec, &publisher)),
                "{publisher:?} has another owner"
            );
            if at % 1024 == 1023 {
                done.fetch_add(1024, Ordering::Relaxed);
            }
        }
        self.answer.operations = self.share.len();
        self.answer.busy = start.elapsed();
        Ok(())
    }

    /// Does what a node without anything to do does, until rounds of compaction find nothing any more.
    fn settle(&mut self, at_most: Duration) {
        let (start, mut emptied) = (Instant::now(), u64::MAX);
        let mut rounds = self.shard.compaction_stats().rounds;
        while start.elapsed() < at_most {
            let now = clock::now();
            let due = self.shard.compaction_due().unwrap_or(now).since(now);
            std::thread::sleep(Duration::from_nanos(due).min(TICK));
            let began = Instant::now();
            self.shard.tick(clock::now());
            self.shard.seal(clock::now());
            self.count(0, began.elapsed());
            let stats = self.shard.compaction_stats();
            if stats.rounds > rounds {
                if stats.segments_emptied == emptied {
                    return;
                }
                (rounds, emptied) = (stats.rounds, stats.segments_emptied);
            }
        }
    }
}
