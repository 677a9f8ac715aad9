//! Readers that catch up together: who of them is told what, beside what each would be told alone.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use slotcast_engine::{
    change_log::ChangeLogLimits,
    diff,
    id::{DataId, DatumKey, ReaderId, RegisterId, Revision, SlotId},
    limits::BATCH_CHANGES_MAX,
    shard::ShardConfig,
};

use crate::{
    model::proptest_config,
    support::{Frame, Held, Node, Seen, config, data_id, version},
};

const WRITER: u64 = 1;
const READERS: std::ops::RangeInclusive<u64> = 2..=7;
const SLOTS: u32 = 2;
const DATA_IDS: usize = 6;

#[derive(Clone, Debug)]
enum Op {
    Put {
        datum: usize,
        register: u64,
    },
    Remove {
        datum: usize,
        register: u64,
    },
    /// More changes than a batch takes.
    Flood {
        datum: usize,
    },
    Block(u64),
    Writable(u64),
    AllWritable,
    Ask {
        reader: u64,
        datum: usize,
    },
    AskAll {
        reader: u64,
    },
    Leave {
        reader: u64,
        datum: usize,
    },
    Turn,
}

fn op() -> impl Strategy<Value = Op> {
    let (reader, datum) = (|| READERS, || 0..DATA_IDS);
    prop_oneof![
        16 => (datum(), 0..4u64).prop_map(|(datum, register)| Op::Put { datum, register }),
        6 => (datum(), 0..4u64).prop_map(|(datum, register)| Op::Remove { datum, register }),
        1 => datum().prop_map(|datum| Op::Flood { datum }),
        6 => reader().prop_map(Op::Block),
        3 => reader().prop_map(Op::Writable),
        2 => Just(Op::AllWritable),
        3 => (reader(), datum()).prop_map(|(reader, datum)| Op::Ask { reader, datum }),
        2 => reader().prop_map(|reader| Op::AskAll { reader }),
        1 => (reader(), datum()).prop_map(|(reader, datum)| Op::Leave { reader, datum }),
        12 => Just(Op::Turn),
    ]
}

/// What one reader is told by the plain meaning, and what it holds by what it was told.
#[derive(Default)]
struct Reader {
    wants: BTreeSet<usize>,
    held: BTreeMap<usize, Option<Held>>,
    /// It has asked for these and has not been answered.
    asked: BTreeSet<usize>,
    /// It lags, and has got so far in each slot in which it read when it fell behind.
    marks: Option<BTreeMap<SlotId, Revision>>,
    blocked: bool,
}

/// Registrations tell of which data id they are.
fn register_of(datum: usize, register: u64) -> u64 {
    (datum as u64) << 8 | register
}

fn datum_of(register: RegisterId) -> usize {
    (register.0 >> 8) as usize
}

/// The number of the data id that a push is about.
fn datum_in(keys: &[DatumKey], seen: &Seen) -> usize {
    keys.iter().position(|key| *key == seen.datum).expect("a data id of this test")
}

struct World {
    node: Node,
    ids: Vec<DataId>,
    readers: BTreeMap<u64, Reader>,
    /// Revisions of the slots when pushes were last taken.
    told: BTreeMap<SlotId, Revision>,
    number: u64,
    /// Most readers of one push among those that caught up.
    together: usize,
}

impl World {
    fn new(entries_max: usize) -> Self {
        let log = ChangeLogLimits { entries_max, age_max: u64::MAX };
        let mut node = Node::new(ShardConfig { change_log: log, ..config(SLOTS) });
        (WRITER..=*READERS.end()).for_each(|session| node.open(session));
        let ids: Vec<DataId> = (0..DATA_IDS).map(|index| data_id(&format!("service-{index}"))).collect();
        let slots: BTreeSet<SlotId> = ids.iter().map(|id| id.key().slot(SLOTS)).collect();
        assert_eq!(slots.len(), SLOTS as usize, "every slot has a data id");
        let readers = READERS.map(|reader| (reader, Reader::default())).collect();
        let mut world = Self { node, ids, readers, told: BTreeMap::new(), number: 0, together: 0 };
        world.note_told();
        world
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Put { datum, register } => self.write(datum, |frame, id, number| {
                frame.put(id, register_of(datum, register), version(number, 1), 1, &number.to_le_bytes())
            }),
            Op::Remove { datum, register } => {
                self.write(datum, |frame, id, number| {
                    frame.remove(id, register_of(datum, register), version(number, 1))
                });
            }
            Op::Flood { datum } => self.write(datum, |mut frame, id, number| {
                for register in 0..=BATCH_CHANGES_MAX as u64 {
                    let (place, version) = (register_of(datum, register % 5), version(number + register, 1));
                    frame = frame.put(id, place, version, 1, &register.to_le_bytes());
                }
                frame
            }),
            Op::Block(reader) => self.block(reader),
            Op::Writable(reader) => self.writable(reader),
            Op::AllWritable => READERS.for_each(|reader| self.writable(reader)),
            Op::Ask { reader, datum } => self.ask(reader, datum),
            Op::AskAll { reader } => (0..DATA_IDS).for_each(|datum| self.ask(reader, datum)),
            Op::Leave { reader, datum } => {
                self.node.shard.handle_uninterest(ReaderId(reader as u32), self.ids[datum].key());
                let reader = self.reader(reader);
                reader.wants.remove(&datum);
                reader.asked.remove(&datum);
                reader.held.remove(&datum);
            }
            Op::Turn => self.turn(),
        }
    }

    fn write(&mut self, datum: usize, fill: impl FnOnce(Frame, &DataId, u64) -> Frame) {
        self.number += 2 * BATCH_CHANGES_MAX as u64;
        let id = &self.ids[datum];
        let frame = fill(Frame::of(WRITER).name(id), id, self.number);
        self.node.send(ReaderId(WRITER as u32), &frame).expect("a frame that can be read");
    }

    fn block(&mut self, number: u64) {
        self.node.shard.handle_reader_blocked(ReaderId(number as u32));
        let reader = self.readers.get_mut(&number).expect("one of the readers");
        if std::mem::replace(&mut reader.blocked, true) {
            return;
        }
        // What it had not been told yet when it blocks once more it lacks still.
        let earlier = reader.marks.take().unwrap_or_default();
        let slots = reader.wants.iter().map(|datum| self.ids[*datum].key().slot(SLOTS));
        let marks = slots.map(|slot| (slot, earlier.get(&slot).copied().unwrap_or(self.told[&slot])));
        reader.marks = Some(marks.collect());
    }

    fn writable(&mut self, number: u64) {
        self.node.shard.handle_reader_writable(ReaderId(number as u32));
        self.reader(number).blocked = false;
    }

    fn ask(&mut self, number: u64, datum: usize) {
        let reader = self.reader(number);
        if !reader.wants.insert(datum) {
            return;
        }
        reader.asked.insert(datum);
        self.node
            .shard
            .handle_interest(ReaderId(number as u32), &self.ids[datum], Revision::ZERO)
            .expect("a slot held here");
    }

    fn reader(&mut self, number: u64) -> &mut Reader {
        self.readers.get_mut(&number).expect("one of the readers")
    }

    fn note_told(&mut self) {
        self.told = self.node.shard.slots().map(|slot| (slot.id(), slot.revision())).collect();
    }

    fn turn(&mut self) {
        let (_, pushes) = self.node.turn();
        let keys: Vec<DatumKey> = self.ids.iter().map(DataId::key).collect();
        let mut got: BTreeMap<(u64, usize), Vec<&Seen>> = BTreeMap::new();
        for seen in &pushes {
            assert!(seen.readers.is_sorted_by(|a, b| a < b) && !seen.readers.is_empty());
            let datum = datum_in(&keys, seen);
            for reader in &seen.readers {
                got.entry((u64::from(reader.0), datum)).or_default().push(seen);
            }
        }
        let mut caught_up = BTreeSet::new();
        for (number, reader) in &mut self.readers {
            for (datum, key) in keys.iter().enumerate() {
                let told = got.remove(&(*number, datum)).unwrap_or_default();
                if reader.blocked || !reader.wants.contains(&datum) {
                    assert!(told.is_empty(), "{number} takes nothing of {datum}");
                    continue;
                }
                assert!(told.len() <= 1, "{number} is told of {datum} {} times", told.len());
                let slot = self.node.slot_of(&self.ids[datum]);
                let since = reader.marks.as_ref().and_then(|marks| marks.get(&slot.id()));
                let is_asked = reader.asked.remove(&datum);
                if let (Some(since), false) = (since, is_asked) {
                    // What it would be told if it were the only one.
                    let changed = slot.log().changes(*since).any(|entry| datum_of(entry.register) == datum);
                    let is_due = *since < slot.log().floor() || changed;
                    assert_eq!(told.len(), usize::from(is_due), "{number} of {datum} since {since}");
                    if let Some(seen) = told.first() {
                        let mut alone = diff::collect(slot, *key, *since);
                        if alone.is_snapshot && *since > Revision::ZERO {
                            // It may name what was removed since earlier than this reader asks for.
                            let from = seen.diff().from;
                            assert!(
                                Revision::ZERO < from && from <= *since,
                                "{number} of {datum} since {since}"
                            );
                            alone = diff::collect(slot, *key, from);
                        }
                        assert!(seen.is_like(&alone), "{number} of {datum} since {since}");
                        caught_up.insert((*number, datum));
                        self.together = self.together.max(seen.readers.len());
                    }
                }
                let held = reader.held.entry(datum).or_default();
                told.iter().for_each(|seen| Held::apply(held, &seen.diff()));
                let held = held.as_ref().map(|held| &held.list);
                assert_eq!(held, Some(&self.node.list(&self.ids[datum])), "{number} of {datum}");
            }
            if !reader.blocked {
                reader.marks = None;
            }
        }
        assert!(got.is_empty(), "somebody is told what nobody there wants");
        self.note_told();
        // Equal readers follow each other, however many data ids and slots there are.
        let sets = pushes.iter().filter(|seen| {
            let datum = datum_in(&keys, seen);
            seen.readers.iter().any(|reader| caught_up.contains(&(u64::from(reader.0), datum)))
        });
        let mut sets: Vec<&[ReaderId]> = sets.map(|seen| seen.readers.as_slice()).collect();
        sets.dedup();
        let stretches = sets.len();
        sets.sort_unstable();
        sets.dedup();
        assert_eq!(sets.len(), stretches, "equal readers are told in one stretch");
    }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn whoever_catches_up_together_is_told_what_each_would_be_told_alone(
        entries_max in prop::sample::select(vec![3usize, 12, 1000]),
        ops in prop::collection::vec(op(), 1..200),
    ) {
        let mut world = World::new(entries_max);
        READERS.for_each(|reader| world.apply(Op::AskAll { reader }));
        world.turn();
        ops.into_iter().for_each(|op| world.apply(op));
        world.turn();
        world.apply(Op::AllWritable);
        world.turn();
    }
}

/// The readers of every push, and whether it is a whole list.
fn sets(pushes: &[Seen]) -> Vec<(Vec<u32>, bool)> {
    let readers = |seen: &Seen| seen.readers.iter().map(|reader| reader.0).collect();
    pushes.iter().map(|seen| (readers(seen), seen.diff().is_snapshot)).collect()
}

#[test]
fn those_who_lack_the_same_get_one_push_and_the_log_is_read_for_all() {
    let mut world = World::new(1000);
    READERS.for_each(|reader| world.apply(Op::AskAll { reader }));
    let put = |world: &mut World, datum: usize, register: u64| {
        world.apply(Op::Put { datum, register });
        world.turn();
    };
    (0..DATA_IDS).for_each(|datum| (0..4).for_each(|register| put(&mut world, datum, register)));
    // Three fall behind at once; one more when the first data id has changed, and one when that matters to none.
    (2..=4).for_each(|reader| world.apply(Op::Block(reader)));
    put(&mut world, 0, 1);
    world.apply(Op::Block(5));
    (1..DATA_IDS).for_each(|datum| put(&mut world, datum, 1));
    world.apply(Op::Block(6));
    world.apply(Op::AllWritable);
    world.node.shard.seal(world.node.now);
    let mut seen = Vec::new();
    world.node.shard.poll_push(|push| {
        seen.push(Seen::of(push.readers, push.slot, push.datum, &push.answer));
    });
    let told = sets(&seen);
    let (all, first) = ((vec![2, 3, 4, 5], false), (vec![2, 3, 4], false));
    assert_eq!(told.iter().filter(|told| **told == all).count(), DATA_IDS - 1);
    assert_eq!(told.iter().filter(|told| **told == first).count(), 1);
    assert_eq!(told.len(), DATA_IDS);
    assert!(told[0] == first || told[DATA_IDS - 1] == first, "equal readers are told in one stretch");
}

#[test]
fn those_for_whom_the_log_is_too_short_share_whole_lists_wherever_they_are() {
    let mut world = World::new(3);
    READERS.for_each(|reader| world.apply(Op::AskAll { reader }));
    world.turn();
    for reader in READERS {
        world.apply(Op::Block(reader));
        (0..DATA_IDS).for_each(|datum| {
            world.apply(Op::Put { datum, register: reader });
            world.turn();
        });
    }
    (0..2).for_each(|_| {
        (0..DATA_IDS).for_each(|datum| {
            world.apply(Op::Put { datum, register: 1 });
            world.turn();
        })
    });
    world.apply(Op::AllWritable);
    world.turn();
    assert_eq!(world.together, READERS.count());
}
