//! docs/formats.md against the code: the dumps on that page are what is written, and a record can be read by its tables.

use std::{fs, path::Path};

use proptest::prelude::*;
use slotcast_engine::{
    batch::{Batch, ENTRY_BYTES, Entry, OpenBatch, entries},
    diff,
    digest::fingerprint,
    error::Refusal,
    id::{DataId, DatumKey, RegisterId, Revision, SessionId, SlotId},
    limits::{BATCH_CHANGES_MAX, DATA_ID_BYTES_MAX, RECORD_BYTES_MAX, SLOTS_MAX},
    record::{Encoder, Instance, Record},
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    model::proptest_config,
    support::{data_id, version},
};

const REGISTER: RegisterId = RegisterId(0x1122_3344_5566_7788);

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats.md");
    fs::read_to_string(path).expect("the page is there")
}

/// The bytes of a dump on the page: hex digits, with the offset before the colon and notes behind the bar left out.
fn dump(name: &str) -> Vec<u8> {
    let page = page();
    let (_, rest) = page.split_once(&format!("```hex {name}\n")).expect("a dump of that name");
    let (block, _) = rest.split_once("\n```").expect("an end of it");
    let digits: String = block
        .lines()
        .map(|line| line.split_once(": ").map_or(line, |(_, bytes)| bytes))
        .flat_map(|line| line.chars().filter(char::is_ascii_hexdigit))
        .collect();
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex digits");
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn lines(bytes: &[u8]) -> String {
    let line = |(at, row): (usize, &[u8])| {
        let words: Vec<String> =
            row.chunks(4).map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
        format!("{:03x}: {}", at * 16, words.join(" "))
    };
    bytes.chunks(16).enumerate().map(line).collect::<Vec<_>>().join("\n")
}

fn assert_dumped(name: &str, bytes: &[u8]) {
    assert!(dump(name) == bytes, "the page's dump `{name}` should read\n{}", lines(bytes));
}

fn checkout() -> DataId {
    data_id("checkout")
}

fn golden_instance() -> Instance {
    Instance {
        client: 0xc1,
        name: "mw2051.codfw.example".into(),
        zone: "codfw".into(),
        payload: b"10.0.0.7:8080".to_vec(),
    }
}

fn golden_record() -> Vec<u8> {
    Encoder::default().encode(checkout().key(), REGISTER, &golden_instance()).expect("it is valid").to_vec()
}

fn golden_entries() -> Vec<u8> {
    use slotcast_engine::batch::{Change, ChangeKind, Durability, write_name, write_put};
    let mut bytes = Vec::new();
    write_name(&mut bytes, checkout().key(), checkout().as_bytes());
    let change = Change {
        kind: ChangeKind::Put,
        durability: Durability::Ephemeral,
        datum: checkout().key(),
        register: REGISTER,
        version: version(5, 2),
        epoch: 0,
        owner: SessionId(0x51),
    };
    write_put(&mut bytes, &change, Record::read(&golden_record()).expect("just written"));
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Reads a record by the tables of the page and by nothing else.
fn read_by_hand(record: &[u8]) -> Instance {
    let length = u32_at(record, 0) as usize;
    assert_eq!((record.len(), record[4], record[5], record[7]), (length, 1, 1, 0));
    let end = length - usize::from(record[6]);
    assert!(record[end..].iter().all(|byte| *byte == 0));
    assert_eq!(u64_at(record, 24), xxh3_64_with_seed(&record[32..], xxh3_64(&record[..24])));
    let root = end - 32;
    assert_eq!(root % 8, 0);
    let text = |field: usize| {
        let inline = &record[field..field + 8];
        let bytes = if inline[0] & 0xc0 == 0x80 {
            let w = u32_at(record, field);
            let length = (w & 0x3f) | ((w & 0xffff_ff00) >> 2);
            let start = field as i64 + i64::from(u32_at(record, field + 4) as i32);
            &record[start as usize..][..length as usize]
        } else {
            &inline[..inline.iter().position(|byte| *byte == 0xff).unwrap_or(8)]
        };
        String::from_utf8(bytes.to_vec()).expect("UTF-8")
    };
    let start = (root + 24) as i64 + i64::from(u32_at(record, root + 24) as i32);
    Instance {
        client: u64_at(record, root),
        name: text(root + 8),
        zone: text(root + 16),
        payload: record[start as usize..][..u32_at(record, root + 28) as usize].to_vec(),
    }
}

#[test]
fn the_golden_record_is_what_is_written() {
    let record = golden_record();
    assert_dumped("record", &record);
    assert_eq!(read_by_hand(&record), golden_instance());
    assert_eq!(Record::read(&dump("record")).unwrap().instance().unwrap(), golden_instance());
}

#[test]
fn the_golden_entries_are_what_is_written() {
    assert_dumped("entries", &golden_entries());
    let dumped = dump("entries");
    let read: Vec<Entry<'_>> = entries(&dumped).map(|entry| entry.unwrap()).collect();
    assert_eq!(read[0].name(), Some(checkout().as_bytes()));
    assert_eq!(read[1].change.version, version(5, 2));
    assert_eq!(&read[1].bytes()[ENTRY_BYTES..], golden_record());
}

#[test]
fn the_golden_batch_is_what_is_sealed() {
    let (entries_bytes, mut open) = (golden_entries(), OpenBatch::default());
    entries(&entries_bytes).for_each(|entry| open.push(entry.unwrap()));
    let before = Revision::open(5);
    let bytes = open.seal(checkout().key().slot(1024), before, before.next(), 2);
    assert_dumped("batch", &bytes);
    assert_eq!(u64_at(&bytes, 40), xxh3_64_with_seed(&bytes[48..], xxh3_64(&bytes[..40])));
    let dumped = dump("batch");
    let batch = Batch::read(&dumped).unwrap();
    assert_eq!((batch.slot(), batch.changes()), (SlotId(978), 2));
}

#[test]
fn the_golden_diff_is_what_is_written() {
    let (record, mut body) = (golden_record(), Vec::new());
    let record = Record::read(&record).unwrap();
    let from = Revision::open(5);
    diff::write(
        &mut body,
        checkout().key(),
        (from, from.next().next()),
        &[RegisterId(9)],
        Some(&[SessionId(0x51)]),
        [record].into_iter(),
    );
    assert_dumped("diff", &body);
    let dumped = dump("diff");
    let read = diff::Diff::read(diff::OWNERS, &dumped).unwrap();
    assert_eq!(read.removes().collect::<Vec<_>>(), [RegisterId(9)]);
    assert_eq!(read.owners().unwrap().collect::<Vec<_>>(), [SessionId(0x51)]);
    assert_eq!(read.puts().collect::<Vec<_>>(), [record]);
}

#[test]
fn every_cut_of_a_diff_body_is_noticed() {
    let body = dump("diff");
    for cut in 0..body.len() {
        assert!(diff::Diff::read(diff::OWNERS, &body[..cut]).is_err(), "cut at {cut}");
    }
    let with = |at: usize, value: u8| {
        let mut body = body.clone();
        body[at] = value;
        diff::Diff::read(diff::OWNERS, &body).err()
    };
    assert!(matches!(with(24, 200), Some(diff::DiffError::Length(_))), "more removes than bytes");
    assert!(with(28, 2).is_some(), "more puts than records");
    assert!(with(31, 0xff).is_some(), "no end of puts");
    assert_eq!(with(0, !body[0]), Some(diff::DiffError::ForeignRecord));
    assert!(matches!(with(15, 0xff), Some(diff::DiffError::Backwards(..))));
    let mut longer = body.clone();
    longer.extend_from_slice(&[0; 16]);
    assert!(diff::Diff::read(diff::OWNERS, &longer).is_err());
}

#[test]
fn the_numbers_of_the_page_are_the_codes() {
    let page = page();
    let checksum = Record::read(&golden_record()).unwrap().checksum();
    let print = fingerprint(checkout().key(), REGISTER, version(5, 2), checksum);
    let list_print = diff::list_fingerprint(REGISTER, checksum);
    let sentence = format!(
        "For the golden put the fingerprint is `{print:016x}`, and its list fingerprint `{list_print:016x}`."
    );
    assert!(page.contains(&sentence), "{sentence}");
    let digits = |number: usize| {
        let text = number.to_string();
        let split = text.len().saturating_sub(3);
        if split == 0 { text } else { format!("{},{}", &text[..split], &text[split..]) }
    };
    for (what, number) in [
        ("at most {} bytes", DATA_ID_BYTES_MAX),
        ("a multiple of 16, at most {}", RECORD_BYTES_MAX),
        ("at most {}, the\nsame everywhere", SLOTS_MAX as usize),
        ("entries in the batch, at most {}", BATCH_CHANGES_MAX),
    ] {
        let what = what.replace("{}", &digits(number));
        assert!(page.contains(&what), "{what}");
    }
    for refusal in Refusal::ALL {
        let row = format!("| {} | {} |", refusal.code(), refusal);
        assert!(page.contains(&row), "{row}");
    }
}

#[test]
fn the_keys_of_the_page_are_the_codes() {
    let page = page();
    for (namespace, group, service) in [
        ("public", "default", "checkout"),
        ("public", "default", "api_appserver/apache2"),
        ("名前空間", "グループ", "サービス"),
    ] {
        let id = DataId::new(namespace, group, service).unwrap();
        let key = id.key();
        assert_eq!(key, DatumKey(xxh3_64(format!("{namespace}\x1f{group}\x1f{service}").as_bytes())));
        let row =
            format!("| `{namespace}`, `{group}`, `{service}` | `{:016x}` | {} |", key.0, key.slot(1024).0);
        assert!(page.contains(&row), "{row}");
        assert_eq!(u64::from(key.slot(1024).0), key.0 >> 54, "the top bits");
    }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn any_record_can_be_read_by_the_page_alone(
        client in any::<u64>(),
        name in "[a-zé.0-9]{0,80}",
        zone in "[a-z0-9]{0,20}",
        payload in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let instance = Instance { client, name, zone, payload };
        let mut encoder = Encoder::default();
        let bytes = encoder.encode(DatumKey(1), RegisterId(2), &instance).expect("within the limits");
        prop_assert_eq!(read_by_hand(bytes), instance);
    }
}
