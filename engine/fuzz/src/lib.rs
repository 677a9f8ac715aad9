//! What is fed with damaged bytes: every reader of the engine's formats. `cargo fuzz` runs these, and so does the engine's own
//! test binary, a bounded number of times.
#![allow(missing_docs, reason = "each target is described where it is listed")]

pub mod directory;

pub mod mutate;

pub mod repair;

mod good;

mod recovery;

mod writes;

use slotcast_engine::{
    batch::{self, Batch, Entry},
    diff::{self, Diff},
    id::{DatumKey, RegisterId},
    record::{Encoder, Record},
};

pub use mutate::{Outcome, Target};
pub use recovery::{directory_is_read_or_refused, journal_is_read_or_refused, snapshot_is_read_or_refused};
pub use writes::writes_are_admitted_or_refused;

/// Every target.
pub const TARGETS: [Target; 8] = [
    Target { name: "record", run: record, seeds: good::records },
    Target { name: "entries", run: entries, seeds: good::entries },
    Target { name: "batch", run: batch, seeds: good::batches },
    Target { name: "diff", run: diff, seeds: good::diffs },
    Target { name: "writes", run: writes_are_admitted_or_refused, seeds: good::writes },
    Target { name: "journal", run: journal_is_read_or_refused, seeds: good::journals },
    Target { name: "snapshot", run: snapshot_is_read_or_refused, seeds: good::snapshots },
    Target { name: "directory", run: directory_is_read_or_refused, seeds: good::directories },
];

/// The bytes as they are, and with checksums that fit.
fn both(bytes: &[u8], repair: impl FnOnce(&mut [u8]), mut check: impl FnMut(&[u8]) -> bool) -> bool {
    let mut repaired = bytes.to_vec();
    repair(&mut repaired);
    check(bytes) | check(&repaired)
}

/// A record that passes all checks says the same to both of its readers, and is the one that would be written of it.
pub fn record(bytes: &[u8]) -> bool {
    both(bytes, repair::record, |bytes| {
        let Ok(record) = Record::read(bytes) else { return false };
        assert_eq!(record.bytes().len() % 16, 0);
        let Ok(client) = record.validate() else { return false };
        let instance = record.instance().expect("what is validated can be read");
        assert_eq!(client.0, instance.client);
        let mut encoder = Encoder::default();
        let again =
            encoder.encode(record.datum(), record.register(), &instance).expect("it is within limits");
        let again = Record::read(again).expect("it was just written");
        assert_eq!(again.instance().expect("it was just written"), instance);
        true
    })
}

/// Entries stand one behind the other; whatever is read of one lies in it.
pub fn entries(bytes: &[u8]) -> bool {
    both(bytes, repair::entries, all_are_read)
}

fn all_are_read(bytes: &[u8]) -> bool {
    let mut read = 0;
    for entry in batch::entries(bytes) {
        let Ok(entry) = entry else { return false };
        assert!(bytes[read..].starts_with(entry.bytes()));
        read += entry.bytes().len();
        check(entry);
    }
    assert_eq!(read, bytes.len());
    read > 0
}

fn check(entry: Entry<'_>) {
    if let Some(record) = entry.record() {
        assert_eq!((record.datum(), record.register()), (entry.change.datum, entry.change.register));
        let _ = record.validate();
    }
    assert!(entry.name().is_none_or(|name| name.len() <= entry.bytes().len()));
}

/// A batch is read whole or refused; its entries are.
pub fn batch(bytes: &[u8]) -> bool {
    both(bytes, repair::batch, |bytes| {
        let Ok(batch) = Batch::read(bytes) else { return false };
        let mut good = true;
        for entry in batch.entries() {
            match entry {
                Ok(entry) => check(entry),
                Err(_) => good = false,
            }
        }
        good
    })
}

/// What is read of a diff's body is what it would be written from. The first byte is the flags.
pub fn diff(bytes: &[u8]) -> bool {
    let Some((&flags, body)) = bytes.split_first() else { return false };
    both(
        body,
        |body| repair::diff(flags, body),
        |body| {
            let Ok(diff) = Diff::read(flags, body) else { return false };
            let ids = |diff: &Diff<'_>| diff.removes().chain(diff.unchanged()).collect::<Vec<RegisterId>>();
            let first = ids(&diff);
            assert!(diff.removes().next().is_none() || diff.unchanged().next().is_none());
            let puts: Vec<Record<'_>> = diff.puts().collect();
            let owners: Option<Vec<_>> = diff.owners().map(Iterator::collect);
            assert_eq!(puts.len(), diff.put_count());
            assert!(owners.as_ref().is_none_or(|owners| owners.len() == puts.len()));
            assert!(puts.iter().all(|put| put.datum() == diff.datum) && diff.from <= diff.to);
            let mut again = Vec::new();
            let span = (diff.from, diff.to);
            diff::write(&mut again, diff.datum, span, &first, owners.as_deref(), puts.iter().copied());
            assert_eq!(again.len(), body.len(), "nothing else is in the body");
            let again = Diff::read(flags, &again).expect("it was just written");
            assert_eq!((again.datum, again.from, again.to), (diff.datum, diff.from, diff.to));
            assert_eq!(ids(&again), first);
            assert!(again.puts().map(Record::bytes).eq(puts.iter().map(|put| put.bytes())));
            true
        },
    )
}

fn key_of(name: &[u8]) -> Option<DatumKey> {
    slotcast_engine::id::DataId::key_of_canonical(name).ok()
}
