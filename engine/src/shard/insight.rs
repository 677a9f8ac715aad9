//! What a shard tells about the data in it: the largest, the most changed, the most wanted, the coldest.
//!
//! What the shard holds anyway is looked at when somebody asks, in steps, and told exactly; a row is as of the moment at
//! which the look came by. What passes through, the changes, is counted by a [`Sketch`], always, in bounded memory.

use std::collections::BTreeMap;

use super::Shard;
use crate::{
    id::{DatumKey, Nanos, ReaderId, SlotId},
    interest::Interests,
    sketch::{COUNTERS_DEFAULT, Sketch},
    slot::{DatumView, display_name},
    slots::Slots,
    top::{Largest, Row},
};

/// Nanoseconds in which a change counts half.
const HALF_LIFE: u64 = 60 * Nanos::SECOND;
/// Namespaces that are told apart; what further ones hold is told in one row.
const NAMESPACES_MAX: usize = 4096;
/// The row of the namespaces beyond that.
const OTHERS: &str = "(others)";

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TopKind {
    /// Single registrations by bytes of their records.
    Publishers,
    /// Data ids by publishers.
    DataIds,
    /// Namespaces by publishers.
    Namespaces,
    /// Data ids by changes, each batch that changed one counted once, halved every minute. Estimated.
    Changed,
    /// Data ids by readers, which at a data node are sessions.
    Subscribed,
    /// Data ids without a reader by the seconds for which they have been neither changed nor read.
    Cold,
}

impl TopKind {
    /// Everything that may be asked.
    pub const ALL: [TopKind; 6] =
        [Self::Publishers, Self::DataIds, Self::Namespaces, Self::Changed, Self::Subscribed, Self::Cold];

    /// Its name in questions.
    pub fn label(self) -> &'static str {
        match self {
            Self::Publishers => "publishers",
            Self::DataIds => "data-ids",
            Self::Namespaces => "namespaces",
            Self::Changed => "changed",
            Self::Subscribed => "subscribed",
            Self::Cold => "cold",
        }
    }
}

/// A look at everything a shard holds, taken in steps.
#[derive(Debug)]
pub struct TopScan {
    kind: TopKind,
    slot: SlotId,
    place: usize,
    wanted: Option<(SlotId, DatumKey)>,
    largest: Largest,
    namespaces: BTreeMap<Box<str>, Namespace>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Namespace {
    data_ids: u64,
    publishers: u64,
    bytes: u64,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct TopAnswer {
    /// The rows, the largest value first.
    pub rows: Vec<Row>,
    /// Of how many the rows are the largest; for changes, all changes counted.
    pub of: f64,
    /// What any value is too large by at most; 0: they are exact.
    pub error_max: f64,
    /// Nanoseconds in which what was counted loses half its weight; 0: it does not.
    pub half_life: u64,
}

impl TopScan {
    /// A look for the `limit` largest.
    pub fn new(kind: TopKind, limit: usize) -> Self {
        Self {
            kind,
            slot: SlotId(0),
            place: 0,
            wanted: None,
            largest: Largest::new(limit),
            namespaces: BTreeMap::new(),
        }
    }

    /// What was found. Meant for when [`Shard::top_step`] has said that it is done.
    pub fn answer(mut self) -> TopAnswer {
        for (name, sum) in self.namespaces {
            self.largest.offer(sum.publishers, || {
                Row::exact(&*name, sum.publishers).with("data_ids", sum.data_ids).with("bytes", sum.bytes)
            });
        }
        let of = self.largest.offered() as f64;
        TopAnswer { rows: self.largest.into_rows(), of, error_max: 0.0, half_life: 0 }
    }
}

/// What is counted as it passes.
pub(super) struct Insight {
    changed: Sketch,
}

impl Insight {
    pub(super) fn new(seed: u64) -> Self {
        Self { changed: Sketch::new(COUNTERS_DEFAULT, HALF_LIFE, seed) }
    }

    /// A batch changed these data ids.
    pub(super) fn changed(&mut self, datums: &[DatumKey]) {
        datums.iter().for_each(|datum| self.changed.add(datum.0, 1.0));
    }

    pub(super) fn pass(&mut self, now: Nanos) {
        self.changed.pass(now);
    }

    pub(super) fn bytes(&self) -> usize {
        self.changed.bytes()
    }
}

impl Shard {
    /// The data ids that change most, by a sketch. Costs a look at its counters.
    pub fn most_changed(&self, limit: usize) -> TopAnswer {
        let sketch = &self.insight.changed;
        let row = |counted: crate::sketch::Counted| {
            let key = DatumKey(counted.key);
            let view = self.slots.get(key.slot(self.config.slot_count)).and_then(|slot| slot.datum_view(key));
            let name = view.map_or_else(|| display_name(&[], key), |view| view.display());
            let row = Row { key: name, value: counted.count, error: counted.error, more: Vec::new() };
            row.with("publishers", view.map_or(0, |view| view.publishers))
        };
        TopAnswer {
            rows: sketch.top(limit.min(crate::top::LIMIT_MAX)).into_iter().map(row).collect(),
            of: sketch.total(),
            error_max: sketch.error_max(),
            half_life: sketch.half_life(),
        }
    }

    /// Goes on with a look at what the shard holds, for at most `budget` places. Returns whether it has seen all.
    pub fn top_step(&self, scan: &mut TopScan, budget: usize, now: Nanos) -> bool {
        match scan.kind {
            TopKind::Changed => true,
            TopKind::Subscribed => self.look_at_readers(scan, budget),
            _ => self.look_at_slots(scan, budget, now),
        }
    }

    /// A reader is interested in a data id, or was up to now.
    pub(super) fn note_read(&mut self, slot: SlotId, datum: DatumKey) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.note_read(datum, self.now);
        }
    }

    fn look_at_readers(&self, scan: &mut TopScan, budget: usize) -> bool {
        let mut wanted = self.interests.wanted_after(scan.wanted);
        for _ in 0..budget {
            let Some((slot, datum, readers)) = wanted.next() else { return true };
            scan.wanted = Some((slot, datum));
            scan.largest.offer(readers as u64, || {
                let view = self.slots.get(slot).and_then(|slot| slot.datum_view(datum));
                let name = view.map_or_else(|| display_name(&[], datum), |view| view.display());
                Row::exact(name, readers as u64).with("publishers", view.map_or(0, |view| view.publishers))
            });
        }
        false
    }

    fn look_at_slots(&self, scan: &mut TopScan, budget: usize, now: Nanos) -> bool {
        for _ in 0..budget {
            let Some(id) = self.slots.first_from(scan.slot) else { return true };
            if id != scan.slot {
                (scan.slot, scan.place) = (id, 0);
            }
            let Some(slot) = self.slots.get(id) else { return true };
            let place = scan.place;
            scan.place += 1;
            let more = if scan.kind == TopKind::Publishers {
                let found = slot.publication_at(place);
                if let Ok(Some((datum, register, owner, record))) = found {
                    let bytes = record.bytes().len() as u64;
                    scan.largest.offer(bytes, || {
                        Row::exact(format!("{} {:016x}", datum.display(), register.0), bytes)
                            .with("client", format!("{:016x}", record.client().map_or(0, |client| client.0)))
                            .with("session", format!("{:016x}", owner.0))
                    });
                }
                found.is_ok()
            } else {
                let found = slot.datum_at(place);
                if let Ok(Some(datum)) = found {
                    self.look_at_datum(scan, id, &datum, now);
                }
                found.is_ok()
            };
            if !more {
                (scan.slot, scan.place) = (SlotId(id.0 + 1), 0);
            }
        }
        false
    }

    fn look_at_datum(&self, scan: &mut TopScan, slot: SlotId, datum: &DatumView<'_>, now: Nanos) {
        match scan.kind {
            TopKind::DataIds => scan.largest.offer(datum.publishers.into(), || {
                Row::exact(datum.display(), datum.publishers.into()).with("bytes", datum.bytes)
            }),
            TopKind::Cold if self.interests.readers(slot, datum.key).is_empty() => {
                let since = |second: u32| u64::from(now.seconds().saturating_sub(second.max(1)));
                let told = |second: u32| if second == 0 { "never".into() } else { since(second).to_string() };
                let cold = since(datum.changed_at.max(datum.read_at));
                scan.largest.offer(cold, || {
                    Row::exact(datum.display(), cold)
                        .with("publishers", datum.publishers)
                        .with("bytes", datum.bytes)
                        .with("changed_s_ago", told(datum.changed_at))
                        .with("read_s_ago", told(datum.read_at))
                });
            }
            TopKind::Namespaces => {
                let name = std::str::from_utf8(datum.name).unwrap_or_default();
                let namespace = name.split('\u{1f}').next().unwrap_or_default();
                let known = scan.namespaces.contains_key(namespace);
                let name = if known || scan.namespaces.len() < NAMESPACES_MAX { namespace } else { OTHERS };
                let sum = match scan.namespaces.get_mut(name) {
                    Some(sum) => sum,
                    None => scan.namespaces.entry(name.into()).or_default(),
                };
                sum.data_ids += 1;
                sum.publishers += u64::from(datum.publishers);
                sum.bytes += datum.bytes as u64;
            }
            _ => {}
        }
    }
}

/// A reader is about to be gone.
pub(super) fn note_reads(slots: &mut Slots, interests: &Interests, reader: ReaderId, now: Nanos) {
    for (slot, datum) in interests.of_reader(reader) {
        if let Some(slot) = slots.get_mut(slot) {
            slot.note_read(datum, now);
        }
    }
}
