//! What an operator asks of a session core at run time, and what is counted for it as it passes.

use slotcast_engine::{
    id::{ClientId, DatumKey, Nanos},
    shard::TopAnswer,
    sketch::{COUNTERS_DEFAULT, Counted, Sketch},
    top::{LIMIT_MAX, Largest, Row},
};

use crate::{
    io::mailbox::{Mailbox, Post, Question},
    session::{
        client::{Client, VACANT},
        core::{Peer, Session},
        push_stop::{PushAsk, PushReport},
    },
    top::{Requests, TopAsk, TopReport, What},
    wire::Message,
};

/// Nanoseconds in which a request or a change counts half.
const HALF_LIFE: u64 = 60 * Nanos::SECOND;
/// Places that a look at all connections or data ids goes on by in one turn.
const PLACES_PER_TURN: usize = 1024;
/// Looks under way at once; further questions wait.
const SCANS_MAX: usize = 4;

/// What a session core is asked.
#[derive(Debug, Clone, Copy)]
pub enum Ask {
    /// Who has or does the most of something.
    Top(TopAsk),
    /// Whether pushes go out, or that they shall or shall not.
    Push(PushAsk),
}

/// What a session core answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Who has or does the most, or that it does not know and who does.
    Top(Result<TopReport, String>),
    /// Whether pushes go out now.
    Push(PushReport),
}

/// The operators' end of a session core's mailbox.
pub type SessionPost = Post<Ask, Answer>;
/// The core's end.
pub type SessionMailbox = Mailbox<Ask, Answer>;

/// See the module.
pub(super) struct Insight {
    mailbox: Option<SessionMailbox>,
    requests: Requests,
    by_client: Sketch,
    changed: Sketch,
    scans: Vec<Scan>,
}

struct Scan {
    question: Question<Ask, Answer>,
    what: What,
    place: usize,
    largest: Largest,
}

impl Insight {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            mailbox: None,
            requests: Requests::default(),
            by_client: Sketch::new(COUNTERS_DEFAULT, HALF_LIFE, seed),
            changed: Sketch::new(COUNTERS_DEFAULT, HALF_LIFE, seed),
            scans: Vec::new(),
        }
    }

    /// A client sent a message.
    pub(super) fn requested(&mut self, client: Option<ClientId>, message: &Message<'_>) {
        self.requests.count(message);
        if let Some(client) = client {
            self.by_client.add(client.0, 1.0);
        }
    }

    /// The list of a data id has changed.
    pub(super) fn changed(&mut self, datum: DatumKey) {
        self.changed.add(datum.0, 1.0);
    }

    pub(super) fn pass(&mut self, now: Nanos) {
        self.by_client.pass(now);
        self.changed.pass(now);
    }
}

impl Session {
    /// The same core, answering what is asked through `mailbox`.
    #[must_use]
    pub fn with_operations(mut self, mailbox: SessionMailbox) -> Self {
        self.insight.mailbox = Some(mailbox);
        self
    }

    /// Answers what is asked. Returns whether more is waiting.
    pub(super) fn operate(&mut self, now: Nanos) -> bool {
        while self.insight.scans.len() < SCANS_MAX
            && let Some(question) = self.insight.mailbox.as_ref().and_then(Mailbox::take)
        {
            self.answer(question, now);
        }
        if self.insight.scans.is_empty() {
            return false;
        }
        let mut scans = std::mem::take(&mut self.insight.scans);
        let mut at = 0;
        while at < scans.len() {
            if self.look(&mut scans[at], now) {
                let Scan { question, what, largest, .. } = scans.swap_remove(at);
                let of = largest.offered();
                question.tell(Answer::Top(Ok(TopReport::exact(what, largest.into_rows(), of))));
            } else {
                at += 1;
            }
        }
        self.insight.scans = scans;
        !self.insight.scans.is_empty()
    }

    fn answer(&mut self, question: Question<Ask, Answer>, now: Nanos) {
        let TopAsk { what, limit } = match question.ask {
            Ask::Top(ask) => ask,
            Ask::Push(ask) => {
                let report = self.answer_push(ask, now);
                return question.tell(Answer::Push(report));
            }
        };
        let answer = match what {
            What::Requests => Ok(self.insight.requests.report()),
            What::Clients => Ok(report(what, &self.insight.by_client, limit, |counted| Row {
                key: format!("{:016x}", counted.key),
                ..estimated(counted)
            })),
            What::Changed => Ok(report(what, &self.insight.changed, limit, |counted| {
                let datum = self.cache.find(DatumKey(counted.key)).and_then(|number| self.cache.get(number));
                let key = datum.map_or_else(|| format!("{:016x}", counted.key), |datum| datum.id.to_string());
                let row = Row { key, ..estimated(counted) };
                row.with("subscribers", datum.map_or(0, |datum| datum.subscribers.len()))
            })),
            What::Connections | What::Subscribed | What::DataIds => {
                self.insight.scans.push(Scan { question, what, place: 0, largest: Largest::new(limit) });
                return;
            }
            What::Publishers | What::Namespaces | What::Cold => {
                Err(format!("a session does not know {}: ask a data node", what.label()))
            }
        };
        question.tell(Answer::Top(answer));
    }

    fn look(&self, scan: &mut Scan, now: Nanos) -> bool {
        let what = scan.what;
        let places = if what == What::Connections { self.peers.len() } else { self.cache.places() };
        let end = places.min(scan.place + PLACES_PER_TURN);
        for place in scan.place..end {
            if what == What::Connections {
                if let Some(Peer::Client(client)) = self.peers.get(place) {
                    look_at_client(&mut scan.largest, place, client, now);
                }
            } else if let Some(datum) = self.cache.get(place as u32) {
                let (subscribers, publishers) = (datum.subscribers.len() as u64, datum.publishers() as u64);
                let value = if what == What::Subscribed { subscribers } else { publishers };
                scan.largest.offer(value, || {
                    let row = Row::exact(datum.id.to_string(), value);
                    row.with("subscribers", subscribers).with("publishers", publishers)
                });
            }
        }
        scan.place = end;
        end == places
    }
}

fn look_at_client(largest: &mut Largest, place: usize, client: &Client, now: Nanos) {
    let subscriptions = client.subscriptions.iter().filter(|held| held.datum != VACANT).count();
    let held = (subscriptions + client.published.len()) as u64;
    largest.offer(held, || {
        let seconds = |since: Nanos| now.since(since) / Nanos::SECOND;
        let id = client.id.map_or_else(|| "(no hello yet)".into(), |id| format!("{:016x}", id.0));
        Row::exact(format!("{id} #{place}"), held)
            .with("subscriptions", subscriptions)
            .with("publishers", client.published.len())
            .with("waiting_bytes", client.out.len())
            .with("silent_s", seconds(client.heard_at))
            .with("blocked_s", client.busy_since.map_or(0, seconds))
    });
}

fn estimated(counted: Counted) -> Row {
    Row { key: String::new(), value: counted.count, error: counted.error, more: Vec::new() }
}

fn report(what: What, sketch: &Sketch, limit: usize, row: impl FnMut(Counted) -> Row) -> TopReport {
    let rows = sketch.top(limit.min(LIMIT_MAX)).into_iter().map(row).collect();
    let (of, error_max, half_life) = (sketch.total(), sketch.error_max(), sketch.half_life());
    TopReport::new(what, TopAnswer { rows, of, error_max, half_life })
}
