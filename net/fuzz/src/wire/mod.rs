//! The wire, and every role that hears it.
#![allow(missing_docs, reason = "each target is described where it is listed")]

#[path = "../../../../engine/fuzz/src/mutate.rs"]
pub mod mutate;

#[path = "../../../../engine/fuzz/src/repair.rs"]
pub mod repair;

mod config;

mod control;

mod good;

mod replica;

mod roles;

use slotcast_net::wire::{
    Decoder, Frame, FrameError, Kind, Message, header::FRAME_BYTES_MAX, meta::MetaMessage,
    replica::ReplicaMessage,
};

pub use config::settings_are_taken_or_refused;
pub use control::{a_table_is_read_or_refused, the_control_plane_survives_its_peers};
pub use mutate::{Outcome, Target};
pub use replica::{a_follower_survives_its_leader, a_leader_survives_its_followers};
pub use roles::{
    a_client_survives_its_session, a_node_survives_its_links, a_session_survives_its_clients,
    a_session_survives_its_node,
};

/// Every target of this crate.
pub const TARGETS: [Target; 10] = [
    Target { name: "frames", run: frames, seeds: good::streams },
    Target { name: "node", run: a_node_survives_its_links, seeds: good::from_session },
    Target { name: "session_client", run: a_session_survives_its_clients, seeds: good::from_client },
    Target { name: "session_link", run: a_session_survives_its_node, seeds: good::from_node },
    Target { name: "client", run: a_client_survives_its_session, seeds: good::from_session_to_client },
    Target { name: "replica_leader", run: a_leader_survives_its_followers, seeds: replica::from_follower },
    Target { name: "replica_follower", run: a_follower_survives_its_leader, seeds: replica::from_leader },
    Target { name: "control", run: the_control_plane_survives_its_peers, seeds: control::from_peers },
    Target { name: "table", run: a_table_is_read_or_refused, seeds: control::tables },
    Target { name: "config", run: settings_are_taken_or_refused, seeds: good::settings },
];

/// A stream is the same frames however it is cut, and what is read of a frame is what it would be written from.
pub fn frames(bytes: &[u8]) -> bool {
    let mut repaired = bytes.to_vec();
    repair::wire(&mut repaired);
    read_stream(bytes) | read_stream(&repaired)
}

fn read_stream(bytes: &[u8]) -> bool {
    let whole = decode(bytes, bytes.len().max(1));
    for cut in [1, 7, 16, 61] {
        let again = decode(bytes, cut);
        assert_eq!(again, whole, "the stream means something else in pieces of {cut}");
    }
    let (frames, fault, held) = whole;
    let mut good = !frames.is_empty() && fault.is_none() && held == 0;
    for bytes in &frames {
        let frame = Frame::read(bytes, FRAME_BYTES_MAX).ok().flatten().expect("it was just handed out");
        let Some((message, written)) = read_message(frame) else {
            good = false;
            continue;
        };
        if !written.is_empty() {
            let again = Frame::read(&written, FRAME_BYTES_MAX).ok().flatten().expect("it was just written");
            let (again, _) = read_message(again).expect("it was just written");
            assert_eq!(again, message);
        }
    }
    good
}

/// A message as text, and as it is written; diffs are not written again.
fn read_message(frame: Frame<'_>) -> Option<(String, Vec<u8>)> {
    let mut written = Vec::new();
    let text = if frame.kind.is_of_replicas() {
        let message = ReplicaMessage::read(frame).ok()?;
        message.write(&mut written);
        format!("{message:?}")
    } else if frame.kind as u8 >= Kind::MetaHello as u8 {
        let message = MetaMessage::read(frame).ok()?;
        message.write(&mut written);
        format!("{message:?}")
    } else {
        let message = Message::read(frame).ok()?;
        if !matches!(message, Message::Diff(_)) {
            message.write(&mut written);
        }
        format!("{message:?}")
    };
    Some((text, written))
}

/// The frames of a stream that comes in pieces of `cut` bytes, what ended it, and what is held of an unfinished one.
fn decode(bytes: &[u8], cut: usize) -> (Vec<Vec<u8>>, Option<FrameError>, usize) {
    let (mut decoder, mut frames, mut fault) = (Decoder::default(), Vec::new(), None);
    for piece in bytes.chunks(cut) {
        let fed = decoder.feed(piece, FRAME_BYTES_MAX, |frame| {
            frames.push(frame.bytes.to_vec());
            Ok::<_, FrameError>(())
        });
        if let Err(error) = fed {
            fault = Some(error);
            break;
        }
    }
    let held = if fault.is_some() { 0 } else { decoder.held() };
    (frames, fault, held)
}
