//! What an operator asks of one shard at run time, answered between turns: a look at one atomic when nobody asks anything.

use slotcast_engine::{
    id::Nanos,
    shard::{Shard, TopKind, TopScan},
};

use crate::{
    data::{
        compaction::{Change, CompactionOptions, Setting},
        status::{CompactionReport, LeaseReport, MemoryReport, OperationMetrics},
    },
    io::mailbox::{Mailbox, Post, Question},
    top::{TopAsk, TopReport, What},
};

/// Places that a look at everything a shard holds goes on by in one turn.
const PLACES_PER_TURN: usize = 4096;
/// Looks under way at once; further questions wait.
const SCANS_MAX: usize = 4;
/// Time between two looks at what is told as metrics.
const OBSERVE: u64 = Nanos::SECOND;

/// What may be asked of a shard.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Where compaction stands.
    Compaction,
    /// Hold compaction.
    Pause,
    /// Let it go on.
    Resume,
    /// A round from now on, also while it is held.
    Run,
    /// Other settings, for as long as the process runs.
    Set(Vec<Setting>),
    /// Memory by kind.
    Memory,
    /// Leases of sessions.
    Leases,
    /// The leases that are held back are to end: their sessions are gone.
    EndLeases,
    /// The largest of something.
    Top(TopAsk),
}

/// What a shard answers.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Where compaction stands; also after it was held, let go on or asked for a round.
    Compaction(Box<CompactionReport>),
    /// What was set.
    Changes(Vec<Change>),
    /// Memory by kind.
    Memory(MemoryReport),
    /// Leases of sessions.
    Leases(LeaseReport),
    /// The largest of something.
    Top(TopReport),
}

/// The operators' end of a shard's mailbox.
pub type ShardPost = Post<Ask, Answer>;
/// The shard's end.
pub type ShardMailbox = Mailbox<Ask, Answer>;

/// Everything about a shard that an operator may ask or change.
pub struct Operations {
    mailbox: ShardMailbox,
    options: CompactionOptions,
    metrics: OperationMetrics,
    /// Minute of the day in UTC.
    minute: fn() -> u32,
    next_look: Nanos,
    scans: Vec<(What, TopScan, Question<Ask, Answer>)>,
}

impl Operations {
    /// `minute` tells the minute of the day in UTC; it is asked once per second, and only if there are off-peak windows.
    pub fn new(
        mailbox: ShardMailbox,
        options: CompactionOptions,
        metrics: OperationMetrics,
        minute: fn() -> u32,
    ) -> Self {
        Self { mailbox, options, metrics, minute, next_look: Nanos(0), scans: Vec::new() }
    }

    /// Tells a fresh shard its settings.
    pub fn begin(&self, shard: &mut Shard) {
        shard.set_compaction(self.options.settings);
        shard.set_history_limits(self.options.history);
    }

    /// Compacts, answers, observes: whatever is due. `links` answers what is asked about links. Returns whether more is waiting.
    pub fn turn(
        &mut self,
        shard: &mut Shard,
        now: Nanos,
        links: impl Fn(TopAsk, &Shard) -> TopReport,
    ) -> bool {
        if now >= self.next_look {
            self.next_look = now.after(OBSERVE);
            let off_peak = !self.options.off_peak.is_empty() && self.options.is_off_peak((self.minute)());
            shard.set_off_peak(off_peak);
            self.metrics.observe(&shard.memory(), &shard.compaction_status(now));
        }
        if shard.compaction_due().is_some_and(|due| now >= due) {
            let begin = crate::io::clock::now();
            shard.compact(now);
            self.metrics.step_time.observe(crate::io::clock::now().since(begin) as f64 / 1e9);
        }
        while self.scans.len() < SCANS_MAX
            && let Some(question) = self.mailbox.take()
        {
            self.answer(question, shard, now, &links);
        }
        let mut at = 0;
        while at < self.scans.len() {
            if shard.top_step(&mut self.scans[at].1, PLACES_PER_TURN, now) {
                let (what, scan, question) = self.scans.swap_remove(at);
                question.tell(Answer::Top(TopReport::new(what, scan.answer())));
            } else {
                at += 1;
            }
        }
        !self.scans.is_empty()
    }

    fn answer(
        &mut self,
        question: Question<Ask, Answer>,
        shard: &mut Shard,
        now: Nanos,
        links: &impl Fn(TopAsk, &Shard) -> TopReport,
    ) {
        match &question.ask {
            Ask::Compaction => {}
            Ask::Pause => {
                tracing::info!("compaction is paused by an operator");
                shard.pause_compaction(true);
            }
            Ask::Resume => {
                tracing::info!("compaction is resumed by an operator");
                shard.pause_compaction(false);
            }
            Ask::Run => {
                tracing::info!("an operator asks for a round of compaction");
                shard.run_compaction();
            }
            Ask::Set(settings) => {
                let changes: Vec<Change> = settings.iter().map(|it| self.options.set(it)).collect();
                for Change { key, old, new } in &changes {
                    tracing::info!(key, old, new, "set by an operator, until the process ends");
                }
                self.begin(shard);
                self.next_look = now;
                return question.tell(Answer::Changes(changes));
            }
            Ask::Memory => return question.tell(Answer::Memory(MemoryReport::of(shard))),
            Ask::Leases => return question.tell(Answer::Leases(LeaseReport::of(shard, 0, now))),
            Ask::EndLeases => {
                let released = shard.release_leases();
                tracing::warn!(released, "an operator has the leases that are held back end");
                return question.tell(Answer::Leases(LeaseReport::of(shard, released, now)));
            }
            Ask::Top(ask) => {
                let ask = *ask;
                let kind = match ask.what {
                    What::Publishers => TopKind::Publishers,
                    What::DataIds => TopKind::DataIds,
                    What::Namespaces => TopKind::Namespaces,
                    What::Subscribed => TopKind::Subscribed,
                    What::Cold => TopKind::Cold,
                    What::Changed => {
                        let answer = shard.most_changed(ask.limit);
                        return question.tell(Answer::Top(TopReport::new(ask.what, answer)));
                    }
                    What::Requests | What::Clients | What::Connections => {
                        return question.tell(Answer::Top(links(ask, shard)));
                    }
                };
                self.scans.push((ask.what, TopScan::new(kind, ask.limit), question));
                return;
            }
        }
        let report = CompactionReport::of(shard, &self.options, now);
        question.tell(Answer::Compaction(Box::new(report)));
    }
}
