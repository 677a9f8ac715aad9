//! What every client did and saw, kept so that the story of one data id can be told when something is wrong with it.

use std::collections::VecDeque;

use slotcast_engine::id::{DatumKey, RegisterId};

use crate::{
    chaos::truth::{Content, revision},
    clock::MILLISECOND,
};

/// Events kept; older ones go.
const EVENTS_MAX: usize = 400_000;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// To a process.
    Process(String),
    /// A client's connection: came or went.
    Connection(&'static str),
    /// A client is connected to the session with this port.
    Connected(u16),
    /// A client has sent a write.
    Sent(DatumKey, RegisterId, Content),
    /// A write of it was acknowledged with this revision, or refused.
    Acknowledged(DatumKey, RegisterId, Result<u64, String>),
    /// It asked for a data id, holding this revision.
    Asked(DatumKey, u64),
    /// It was told.
    Told {
        /// Of this data id.
        datum: DatumKey,
        /// The whole list.
        is_snapshot: bool,
        /// From and to.
        span: (u64, u64),
        /// Registrations gone.
        removes: Vec<RegisterId>,
        /// Registrations there.
        puts: Vec<(RegisterId, u64)>,
    },
}

/// The story so far.
#[derive(Default)]
pub struct Trajectory(VecDeque<(u64, Option<u32>, Event)>);

impl Trajectory {
    /// Notes what happened to a client, or to a process if it is no client.
    pub fn note(&mut self, at: u64, client: Option<u32>, event: Event) {
        if self.0.len() == EVENTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((at, client, event));
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The story of one data id up to a time, as `client` and all who publish saw it: at most `lines` lines, the last ones.
    pub fn of(&self, datum: DatumKey, client: u32, until: u64, lines: usize) -> Vec<String> {
        let told = |who: Option<u32>, event: &Event| match event {
            Event::Process(_) => true,
            Event::Connection(_) => true,
            Event::Connected(_) => who == Some(client),
            Event::Sent(of, ..) | Event::Acknowledged(of, ..) => *of == datum,
            Event::Asked(of, _) | Event::Told { datum: of, .. } => *of == datum && who == Some(client),
        };
        let concerned = self.0.iter().filter(|(at, who, event)| *at <= until && told(*who, event));
        let mut story: Vec<String> = concerned.map(|(at, who, event)| line(*at, *who, event)).collect();
        story.drain(..story.len().saturating_sub(lines));
        story
    }
}

fn line(at: u64, client: Option<u32>, event: &Event) -> String {
    let who = client.map_or("        ".into(), |client| format!("client {client:<3}"));
    let content = |content: &Content| content.map_or("removed".into(), |content| format!("put {content:x}"));
    let what = match event {
        Event::Process(what) => what.clone(),
        Event::Connection(what) => (*what).into(),
        Event::Connected(port) => format!("is connected to port {port}"),
        Event::Sent(_, register, it) => format!("sent {:x} {}", register.0, content(it)),
        Event::Acknowledged(_, register, Ok(at)) => {
            format!("acknowledged {:x} at {}", register.0, revision(*at))
        }
        Event::Acknowledged(_, register, Err(why)) => format!("refused {:x}: {why}", register.0),
        Event::Asked(_, since) => format!("asked since {}", revision(*since)),
        Event::Told { is_snapshot, span: (from, to), removes, puts, .. } => {
            let kind = if *is_snapshot { "snapshot" } else { "diff" };
            let puts: Vec<String> =
                puts.iter().map(|(register, content)| format!("{:x}={content:x}", register.0)).collect();
            let removes: Vec<String> = removes.iter().map(|register| format!("-{:x}", register.0)).collect();
            let (from, to) = (revision(*from), revision(*to));
            format!("told {kind} {from} to {to}: {} {}", puts.join(" "), removes.join(" "))
        }
    };
    format!("{:>9} ms  {who}  {what}", at / MILLISECOND)
}
