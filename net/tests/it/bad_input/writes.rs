//! Clients that publish what cannot be published, or what is not theirs.

use slotcast_engine::{
    batch::ENTRY_BYTES,
    error::Refusal,
    id::RegisterId,
    limits::{INSTANCE_NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, ZONE_BYTES_MAX},
    record::{HEADER_BYTES, Instance},
};
use slotcast_net::wire::{ErrorCode, Message};

use crate::{
    bad_input::{Bystanders, Scene, id, is_taken},
    cluster::Cluster,
    raw::{Raw, RawList, altered, forge_record, seal_record},
};

/// A write frame, for which the client is to be closed.
fn write(entries: &[u8]) -> Vec<u8> {
    altered(&Message::Write { sequence: 1, entries }, |_| {})
}

#[test]
fn a_truncated_record_is_refused_by_name() {
    let mut scene = Scene::new(&[]);
    let (mut raw, service) = (scene.raw(), id("cut"));
    let record = raw.record(&service, 1, &[0xff; 200]);
    for cut in [16, 32, 128] {
        let mut short = record[..record.len() - cut].to_vec();
        short[6] = 0;
        let len = short.len() as u32;
        short[0..4].copy_from_slice(&len.to_le_bytes());
        let entries = raw.put_record(&service, service.as_bytes(), 1, (1, 1), &short);
        scene.expect_refused(&mut raw, &entries, Refusal::RecordInvalid);
        seal_record(&mut short);
        let entries = raw.put_record(&service, service.as_bytes(), 1, (1, 1), &short);
        scene.expect_refused(&mut raw, &entries, Refusal::RecordInvalid);
    }
    let entries = raw.put_record(&service, service.as_bytes(), 1, (1, 1), &record);
    assert!(is_taken(&raw.write(&entries)), "the client goes on");
    scene.stop();
}

#[test]
fn a_record_that_is_longer_than_its_entry_closes_the_connection() {
    let mut scene = Scene::new(&[]);
    let service = id("longer");
    let raw = scene.raw();
    let record = raw.record(&service, 1, &[7; 200]);
    let entries = raw.put_record(&service, service.as_bytes(), 1, (1, 1), &record[..64]);
    scene.expect_closed(raw, &write(&entries), ErrorCode::Frame, "record is truncated");
    let raw = scene.raw();
    let mut entries = raw.put_record(&service, service.as_bytes(), 1, (1, 1), &record);
    entries.truncate(entries.len() - 16);
    scene.expect_closed(raw, &write(&entries), ErrorCode::Frame, "change entry is truncated");
    let raw = scene.raw();
    let mut entries = raw.put(&service, 1, 1, 1, b"a");
    let put = entries.len() - ENTRY_BYTES - raw.record(&service, 1, b"a").len();
    entries[put] = 77;
    scene.expect_closed(raw, &write(&entries), ErrorCode::Frame, "unknown change kind 77");
    let raw = scene.raw();
    let foreign = raw.record(&id("another"), 1, b"a");
    let entries = raw.put_record(&service, service.as_bytes(), 1, (1, 1), &foreign);
    scene.expect_closed(raw, &write(&entries), ErrorCode::Frame, "key differs from the entry's");
    scene.stop();
}

#[test]
fn an_archive_that_points_outside_itself_is_refused_though_all_checksums_fit() {
    let mut scene = Scene::new(&[]);
    let (mut raw, service) = (scene.raw(), id("pointer"));
    let record = raw.record(&service, 1, &[7; 200]);
    let root = record.len() - usize::from(record[6]) - 32;
    for (at, value) in [(24, i32::MAX), (24, i32::MIN), (28, i32::MAX), (8, 0x7fff_ff80), (12, -1_000_000)] {
        let mut broken = record.clone();
        broken[root + at..root + at + 4].copy_from_slice(&value.to_le_bytes());
        if at == 12 {
            // A long name, out of line: its distance is what is wrong.
            broken[root + 8..root + 12].copy_from_slice(&0x0000_00bfu32.to_le_bytes());
        }
        seal_record(&mut broken);
        let entries = raw.put_record(&service, service.as_bytes(), 1, (1, 1), &broken);
        scene.expect_refused(&mut raw, &entries, Refusal::RecordInvalid);
    }
    let mut broken = record;
    broken[HEADER_BYTES] ^= 1;
    let entries = raw.put_record(&service, service.as_bytes(), 1, (1, 1), &broken);
    scene.expect_refused(&mut raw, &entries, Refusal::RecordInvalid);
    scene.stop();
}

#[test]
fn names_that_are_empty_too_long_or_have_control_characters_are_refused() {
    let mut scene = Scene::new(&[]);
    let (mut raw, service) = (scene.raw(), id("named"));
    let long = format!("public\u{1f}default\u{1f}{}", "x".repeat(257));
    let names = ["", "public\u{1f}default\u{1f}", "public\u{1f}default\u{1f}a\tb", "named", &long];
    let record = raw.record(&service, 1, b"a");
    for name in names.iter().map(|name| name.as_bytes()).chain([&b"\xff"[..], id("other").as_bytes()]) {
        let entries = raw.put_record(&service, name, 1, (1, 1), &record);
        scene.expect_refused(&mut raw, &entries, Refusal::NameInvalid);
    }
    for (name, zone) in [
        ("x".repeat(INSTANCE_NAME_BYTES_MAX + 1), String::new()),
        (String::new(), "z".repeat(ZONE_BYTES_MAX + 1)),
        ("a\u{7f}".into(), String::new()),
        (String::new(), "\0".into()),
    ] {
        let record = forge_record(service.key(), 1, &raw.instance(&name, &zone, b"a"));
        let entries = raw.put_record(&service, service.as_bytes(), 1, (1, 1), &record);
        scene.expect_refused(&mut raw, &entries, Refusal::NameInvalid);
    }
    let entries = raw.put_record(&service, &[b'y'; 387], 1, (1, 1), &record);
    scene.expect_closed(raw, &write(&entries), ErrorCode::Frame, "its length 448 is out of range");
    scene.stop();
}

#[test]
fn a_put_without_a_name_is_refused_when_nobody_has_told_it() {
    let mut scene = Scene::new(&[]);
    let (mut raw, service) = (scene.raw(), id("nameless"));
    let entries = raw.put(&service, 1, 1, 1, b"a");
    let put = entries.len() - ENTRY_BYTES - raw.record(&service, 1, b"a").len();
    scene.expect_refused(&mut raw, &entries[put..], Refusal::NameUnknown);
    scene.stop();
}

#[test]
fn a_payload_over_the_limit_is_refused_and_one_at_the_limit_taken() {
    let mut scene = Scene::new(&[]);
    let (mut raw, service) = (scene.raw(), id("payload"));
    let forged = |raw: &Raw, bytes: usize| {
        let record = forge_record(service.key(), 1, &raw.instance("", "", &vec![7; bytes]));
        raw.put_record(&service, service.as_bytes(), 1, (1, 1), &record)
    };
    let entries = forged(&raw, PAYLOAD_BYTES_MAX + 1);
    scene.expect_refused(&mut raw, &entries, Refusal::PayloadTooLarge);
    let entries = forged(&raw, PAYLOAD_BYTES_MAX);
    assert!(is_taken(&raw.write(&entries)));
    let entries = forged(&raw, PAYLOAD_BYTES_MAX * 2);
    scene.expect_closed(raw, &write(&entries), ErrorCode::Frame, "its length 65648 is out of range");
    scene.stop();
}

#[test]
fn a_registration_of_another_client_is_refused_on_the_same_session() {
    let mut scene = Scene::new(&[]);
    let service = id("mine");
    let (mut owner, mut raw) = (Raw::connect(scene.cluster.addr(0), 901), scene.raw());
    owner.publish(&service, 1, 1, 1, b"mine");
    let entries = raw.put(&service, 1, 2, 1, b"stolen");
    scene.expect_refused(&mut raw, &entries, Refusal::ForeignRegistration);
    let entries = raw.removal(&service, 1, 2, 1);
    scene.expect_refused(&mut raw, &entries, Refusal::ForeignRegistration);
    // A record in the name of another client, too.
    let instance = Instance { client: 901, name: String::new(), zone: String::new(), payload: b"x".to_vec() };
    let record = forge_record(service.key(), 2, &instance);
    let entries = raw.put_record(&service, service.as_bytes(), 2, (1, 1), &record);
    scene.expect_refused(&mut raw, &entries, Refusal::ForeignRegistration);
    raw.subscribe(&service);
    raw.expect_list(&mut RawList::default(), &service, &[b"mine"]);
    owner.publish(&service, 1, 2, 1, b"still mine");
    scene.stop();
}

#[test]
fn a_registration_of_another_client_is_refused_on_another_session() {
    let cluster = Cluster::start(1, 2, &["session.publishers_max=1"]);
    let mut scene = Scene { bystanders: Bystanders::new(&cluster, 0), cluster };
    let service = id("mine");
    let (mut owner, mut raw) = (Raw::connect(scene.cluster.addr(1), 901), scene.raw());
    owner.publish(&service, 1, 1, 1, b"mine");
    for number in 2..5 {
        let entries = raw.put(&service, 1, number, 1, b"stolen");
        scene.expect_refused(&mut raw, &entries, Refusal::ForeignRegistration);
    }
    let entries = raw.removal(&service, 1, 9, 1);
    scene.expect_refused(&mut raw, &entries, Refusal::UnknownRegistration);
    raw.publish(&service, 2, 1, 1, b"own");
    raw.subscribe(&service);
    raw.expect_list(&mut RawList::default(), &service, &[b"mine", b"own"]);
    owner.publish(&service, 1, 2, 1, b"still mine");
    scene.stop();
}

#[test]
fn an_older_version_is_superseded_and_an_unknown_removal_named() {
    let mut scene = Scene::new(&[]);
    let (mut raw, service) = (scene.raw(), id("older"));
    raw.publish(&service, 1, 5, 2, b"new");
    for (number, attach) in [(4, 9), (5, 1)] {
        let entries = raw.put(&service, 1, number, attach, b"old");
        scene.expect_refused(&mut raw, &entries, Refusal::Superseded);
        let entries = raw.removal(&service, 1, number, attach);
        scene.expect_refused(&mut raw, &entries, Refusal::Superseded);
    }
    let entries = raw.removal(&service, 2, 1, 1);
    scene.expect_refused(&mut raw, &entries, Refusal::UnknownRegistration);
    raw.subscribe(&service);
    raw.expect_list(&mut RawList::default(), &service, &[b"new"]);
    let entries = raw.removal(&service, 1, 6, 2);
    assert!(is_taken(&raw.write(&entries)));
    scene.expect_refused(&mut raw, &entries, Refusal::UnknownRegistration);
    // The removal is remembered behind the session, too: an older put does not come back.
    let entries = raw.put(&service, 1, 6, 2, b"back");
    scene.expect_refused(&mut raw, &entries, Refusal::Superseded);
    scene.stop();
}

#[test]
fn a_persistent_publisher_is_refused_by_name() {
    let mut scene = Scene::new(&[]);
    let (mut raw, service) = (scene.raw(), id("persistent"));
    let mut entries = raw.put(&service, 1, 1, 1, b"a");
    let put = entries.len() - ENTRY_BYTES - raw.record(&service, 1, b"a").len();
    entries[put + 1] = 1;
    scene.expect_refused(&mut raw, &entries, Refusal::PersistentUnavailable);
    scene.stop();
}

#[test]
fn changes_that_only_batches_hold_are_refused() {
    let mut scene = Scene::new(&[]);
    let (mut raw, service) = (scene.raw(), id("internal"));
    for kind in [2, 5] {
        let mut entries = raw.removal(&service, 1, 1, 1);
        entries[0] = kind;
        scene.expect_refused(&mut raw, &entries, Refusal::RecordInvalid);
    }
    scene.stop();
}

#[test]
fn good_entries_of_a_frame_are_taken_beside_refused_ones() {
    let scene = Scene::new(&[]);
    let (mut raw, service) = (scene.raw(), id("mixed"));
    let mut entries = raw.put(&service, 1, 1, 1, b"a");
    entries.extend(raw.removal(&service, 2, 1, 1));
    entries.extend(raw.put(&service, 3, 1, 1, b"c"));
    let outcomes = raw.write(&entries);
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
    assert_eq!(outcomes[1], Err(Refusal::UnknownRegistration));
    let mut list = RawList::default();
    raw.subscribe(&service);
    raw.expect_list(&mut list, &service, &[b"a", b"c"]);
    assert_eq!(list.payloads.keys().copied().collect::<Vec<_>>(), [RegisterId(1), RegisterId(3)]);
    scene.stop();
}
