//! What the load generator reads: diff frames, with a parser of its own, and traces.

#[path = "../../../engine/fuzz/src/mutate.rs"]
pub mod mutate;

#[path = "../../../engine/fuzz/src/repair.rs"]
mod repair;

use loadgen::{
    trace::{parse_edges, parse_events},
    verify::frame::{DIFF, DiffFrame},
};
use mutate::Target;
use slotcast_engine::{
    diff,
    id::{DatumKey, RegisterId, Revision, SlotId},
    record::{Encoder, Instance, Record},
};
use slotcast_net::wire::{Frame, Message, header::FRAME_BYTES_MAX, message::write_diff};

/// Every target of the load generator.
pub const TARGETS: [Target; 2] = [
    Target { name: "oracle", run: oracle, seeds: diffs },
    Target { name: "trace", run: trace, seeds: traces },
];

/// The oracle's parser takes a frame only if the wire's takes it, and reads the same.
pub fn oracle(bytes: &[u8]) -> bool {
    let mut repaired = bytes.to_vec();
    repair::wire(&mut repaired);
    agree(bytes) | agree(&repaired)
}

fn agree(bytes: &[u8]) -> bool {
    if bytes.get(4) != Some(&DIFF) {
        return false;
    }
    let Ok(mine) = DiffFrame::read(bytes) else { return false };
    let frame = match Frame::read(bytes, FRAME_BYTES_MAX) {
        Ok(Some(frame)) => frame,
        other => panic!("the oracle takes what the wire does not: {other:?}"),
    };
    let Ok(Message::Diff(diff)) = Message::read(frame) else {
        panic!("the oracle takes what the wire does not: {:?}", Message::read(frame).err())
    };
    assert_eq!((mine.datum, mine.from, mine.to), (diff.datum, diff.from.0, diff.to.0));
    assert_eq!(mine.is_snapshot, diff.is_snapshot);
    assert_eq!(mine.removes, diff.removes().collect::<Vec<_>>());
    assert!(mine.puts.iter().map(|put| put.bytes).eq(diff.puts().map(Record::bytes)));
    true
}

/// Events and edges: read, or refused with the file's name.
pub fn trace(bytes: &[u8]) -> bool {
    let errors = [
        parse_events(bytes, "some.csv").err().map(|error| format!("{error:#}")),
        parse_edges(bytes, "some.csv").err().map(|error| format!("{error:#}")),
    ];
    let read = errors.iter().any(Option::is_none);
    assert!(errors.into_iter().flatten().all(|error| error.starts_with("some.csv")));
    read
}

fn diffs() -> Vec<Vec<u8>> {
    [(0u64, 3u64), (4, 2), (4, 0)]
        .map(|(from, puts)| {
            let record = |register| {
                let instance =
                    Instance { client: 1, name: "n".into(), zone: "z".into(), payload: vec![7; 50] };
                Encoder::default()
                    .encode(DatumKey(5), RegisterId(register), &instance)
                    .expect("valid")
                    .to_vec()
            };
            let records: Vec<Vec<u8>> = (1..=puts).map(record).collect();
            let mut out = Vec::new();
            write_diff(&mut out, SlotId::NONE, |body| {
                let puts: Vec<Record<'_>> =
                    records.iter().map(|bytes| Record::read(bytes).expect("just written")).collect();
                let removes: &[RegisterId] = if from == 0 { &[] } else { &[RegisterId(8), RegisterId(9)] };
                diff::write(
                    body,
                    DatumKey(5),
                    (Revision(from), Revision(9)),
                    removes,
                    None,
                    puts.into_iter(),
                );
                if from == 0 { diff::SNAPSHOT } else { 0 }
            });
            out
        })
        .into()
}

fn traces() -> Vec<Vec<u8>> {
    [
        "t_ms,event,service,instance,zone,address,port\n1,register,s,i,z,10.0.0.1,80\n9,deregister,s,i,z,10.0.0.1,80\n",
        "subscriber,service,subscriber_instances\na,b,\na,c,7\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}
