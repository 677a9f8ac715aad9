//! A trace as a workload: (service, instance) pairs become publishers, events become planned changes, edges become clients.

use std::ops::Range;

use anyhow::{Result, ensure};
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use slotcast_engine::id::DataId;

use crate::{
    clock::SECOND,
    draw::Subscriptions,
    timing::{self, Timing},
    trace::{self, Edge, Event, Input},
    workload::{Kind, Naming, Parts, Workload},
};

/// Clients when neither edges nor the user say how many.
pub const CLIENTS_DEFAULT: u32 = 1_000;
/// One client in so many subscribes to a service that the edges do not mention.
const CLIENTS_PER_UNMENTIONED: u32 = 100;

/// Parameters of a replay.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Replay {
    /// The events.
    pub trace: Input,
    /// What happens to their times.
    pub timing: Timing,
    /// Who subscribes to what; none: drawn evenly.
    pub edges: Option<Input>,
    /// Clients in all.
    pub clients: Option<u32>,
    /// Distinct services of each client where subscriptions are drawn.
    pub subscriptions_per_client: u32,
    /// Bytes of each payload.
    pub payload_bytes: usize,
    /// Fixes everything drawn.
    pub seed: u64,
    /// See [`crate::schedule::Synthetic::tag`].
    pub tag: u64,
}

impl Replay {
    /// Derives the workload, with the subscriptions of the clients in `keep`.
    pub fn build(&self, keep: Range<u32>) -> Result<Workload> {
        let events = trace::events(&self.trace)?;
        let edges = self.edges.as_ref().map(trace::edges).transpose()?;
        self.build_from(&events, edges.as_deref(), keep)
    }

    fn build_from(&self, events: &[Event], edges: Option<&[Edge]>, keep: Range<u32>) -> Result<Workload> {
        let mut names = Numbering::default();
        for event in events {
            names.number(&event.service);
        }
        for edge in edges.unwrap_or_default() {
            names.number(&edge.service);
        }
        let services = names.names.len() as u32;
        let times: Vec<u64> = events.iter().map(|event| event.t_ms).collect();
        let (times, timing_note) = timing::intended(self.timing, &times);
        let mut notes = vec![timing_note];
        let (clients, subscriptions, subscribers) = match edges {
            None => self.draw(services, keep, &mut notes),
            Some(edges) => self.expand(edges, &names, keep, &mut notes),
        };
        ensure!(clients > 0, "no clients");
        let (publishers, naming, ops, ignored) = publishers(events, &times, &names, clients);
        if ignored > 0 {
            notes.push(format!("{ignored} deregistrations of instances that were not there left out"));
        }
        let length = times.last().copied().unwrap_or(0) + 1;
        Workload::new(Parts {
            clients,
            services: self.data_ids(&names)?,
            publishers,
            names: naming,
            ops,
            subscriptions,
            subscribers,
            payload_bytes: self.payload_bytes,
            seed: self.seed,
            tag: self.seed ^ self.tag.rotate_left(32),
            window: 0..length.max(SECOND),
            notes,
            ..Parts::default()
        })
    }

    fn data_ids(&self, names: &Numbering) -> Result<Vec<DataId>> {
        let namespace = if self.tag == 0 { "replay".into() } else { format!("replay-{:x}", self.tag) };
        names.names.iter().map(|name| Ok(DataId::new(&namespace, "trace", name)?)).collect()
    }

    fn draw(
        &self,
        services: u32,
        keep: Range<u32>,
        notes: &mut Vec<String>,
    ) -> (u32, Subscriptions, Vec<u32>) {
        let clients = self.clients.unwrap_or(CLIENTS_DEFAULT).max(1);
        // Enough per client that every service has a subscriber even when clients are few.
        let per_client = self.subscriptions_per_client.max(services.div_ceil(clients)).min(services);
        notes.push(format!("subscriptions drawn: {per_client} of {services} services for each client"));
        let (rows, subscribers) = Subscriptions::draw((clients, services, per_client), self.seed, keep);
        (clients, rows, subscribers)
    }

    /// Each subscriber's instances become clients; services that no edge mentions get one client in a hundred.
    fn expand(
        &self,
        edges: &[Edge],
        names: &Numbering,
        keep: Range<u32>,
        notes: &mut Vec<String>,
    ) -> (u32, Subscriptions, Vec<u32>) {
        let mut kinds = Numbering::default();
        let mut wanted: Vec<(u32, Vec<(u32, u32)>)> = Vec::new();
        for edge in edges {
            let kind = kinds.number(&edge.subscriber) as usize;
            wanted.resize_with(wanted.len().max(kind + 1), Default::default);
            wanted[kind].0 = wanted[kind].0.max(edge.instances.max(1));
            wanted[kind].1.push((names.get(&edge.service), edge.instances.max(1)));
        }
        let whole: u32 = wanted.iter().map(|(instances, _)| instances).sum();
        let factor = self.clients.map_or(1.0, |clients| f64::from(clients) / f64::from(whole));
        let scale = |instances: u32| ((f64::from(instances) * factor).round() as u32).max(1);
        let clients: u32 = wanted.iter().map(|(instances, _)| scale(*instances)).sum();
        if factor != 1.0 {
            notes.push(format!(
                "{clients} clients for {whole} subscriber instances, at least one of each kind"
            ));
        }
        let unmentioned = unmentioned(&wanted, names.names.len() as u32, clients, notes);
        let mut rows = Subscriptions::starting_at(keep.start);
        let mut subscribers = vec![0; names.names.len()];
        let mut client = 0;
        for (instances, services) in &wanted {
            for instance in 0..scale(*instances) {
                let listed =
                    services.iter().filter(|(_, of)| instance < scale(*of)).map(|&(service, _)| service);
                let mut mine: Vec<u32> =
                    listed.chain(unmentioned.get(&client).into_iter().flatten().copied()).collect();
                mine.sort_unstable();
                mine.dedup();
                mine.iter().for_each(|&service| subscribers[service as usize] += 1);
                if keep.contains(&client) {
                    rows.push(mine);
                }
                client += 1;
            }
        }
        (clients, rows, subscribers)
    }
}

/// Clients that take a service no edge mentions, spread over all clients.
fn unmentioned(
    wanted: &[(u32, Vec<(u32, u32)>)],
    services: u32,
    clients: u32,
    notes: &mut Vec<String>,
) -> HashMap<u32, Vec<u32>> {
    let mut is_mentioned = vec![false; services as usize];
    wanted.iter().flat_map(|(_, of)| of).for_each(|&(service, _)| is_mentioned[service as usize] = true);
    let left: Vec<u32> = (0..services).filter(|&service| !is_mentioned[service as usize]).collect();
    let each = (clients / CLIENTS_PER_UNMENTIONED).max(1);
    if !left.is_empty() {
        notes.push(format!("{} services without an edge got {each} drawn subscribers each", left.len()));
    }
    let mut out: HashMap<u32, Vec<u32>> = HashMap::new();
    let takers = left.iter().flat_map(|&service| std::iter::repeat_n(service, each as usize));
    for (service, client) in takers.zip((0..clients).cycle()) {
        out.entry(client).or_default().push(service);
    }
    out
}

type Published = (Vec<(u32, u32)>, Vec<Naming>, Vec<(u64, u32, Kind)>, usize);

/// Publishers, their names, and the operations of all events in order. A registration of one that is there already
/// publishes anew.
fn publishers(events: &[Event], times: &[u64], names: &Numbering, clients: u32) -> Published {
    let mut index: HashMap<(u32, &str), u32> = HashMap::new();
    let (mut publishers, mut naming, mut live): (Vec<(u32, u32)>, Vec<Naming>, Vec<bool>) =
        Default::default();
    let mut ops = Vec::with_capacity(events.len());
    let mut ignored = 0;
    for (event, &at) in events.iter().zip(times) {
        let service = names.get(&event.service);
        let publisher = *index.entry((service, &event.instance)).or_insert_with(|| {
            publishers.push((publishers.len() as u32 % clients, service));
            let (name, zone) = (event.instance.clone(), event.zone.clone());
            naming.push(Naming { name, zone, endpoint: event.endpoint.clone() });
            live.push(false);
            publishers.len() as u32 - 1
        });
        let was_live = std::mem::replace(&mut live[publisher as usize], event.is_register);
        match (event.is_register, was_live) {
            (true, false) => ops.push((at, publisher, Kind::Register)),
            (true, true) => ops.push((at, publisher, Kind::Update)),
            (false, true) => ops.push((at, publisher, Kind::Unregister)),
            (false, false) => ignored += 1,
        }
    }
    (publishers, naming, ops, ignored)
}

/// Numbers names in the order in which they are first seen.
#[derive(Default)]
struct Numbering {
    names: Vec<String>,
    numbers: HashMap<String, u32>,
}

impl Numbering {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        let number = self.names.len() as u32;
        self.names.push(name.into());
        self.numbers.insert(name.into(), number);
        number
    }

    /// The number of a name seen before.
    fn get(&self, name: &str) -> u32 {
        self.numbers.get(name).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay() -> Replay {
        Replay {
            trace: Input::Bundled,
            timing: Timing::Fit(30 * SECOND),
            edges: None,
            clients: None,
            subscriptions_per_client: 4,
            payload_bytes: 128,
            seed: 1,
            tag: 0,
        }
    }

    fn event(t_ms: u64, is_register: bool, service: &str, instance: &str) -> Event {
        let endpoint = "10.0.0.1:80".into();
        Event {
            t_ms,
            is_register,
            service: service.into(),
            instance: instance.into(),
            zone: "z".into(),
            endpoint,
        }
    }

    #[test]
    fn the_bundled_trace_becomes_planned_changes() {
        let workload = replay().build(0..1000).unwrap();
        assert_eq!((workload.planned().len(), workload.staged().len()), (12_102, 0));
        assert_eq!((workload.services().len(), workload.publishers().len()), (199, 6_609));
        assert!(workload.subscribers().iter().all(|&subscribers| subscribers >= 20));
        assert!(workload.window().end <= 30 * SECOND + 1);
        assert!(workload.notes()[0].starts_with("gaps capped at"), "{:?}", workload.notes());
        assert_eq!(workload.subscriptions().clients(), 0..1000);
    }

    #[test]
    fn events_out_of_state_publish_anew_or_are_left_out() {
        let events = [
            event(0, true, "a", "i"),
            event(1, true, "a", "i"),
            event(2, false, "a", "j"),
            event(3, false, "a", "i"),
        ];
        let workload = replay().build_from(&events, None, 0..0).unwrap();
        let kinds: Vec<Kind> = workload.ops().iter().map(|op| op.kind).collect();
        assert_eq!(kinds, [Kind::Register, Kind::Update, Kind::Unregister]);
        assert!(workload.notes().iter().any(|note| note.starts_with("1 deregistrations")));
    }

    #[test]
    fn edges_become_clients_and_every_service_has_a_subscriber() {
        let events = [event(0, true, "a", "i"), event(0, true, "b", "i"), event(0, true, "c", "i")];
        let edge = |subscriber: &str, service: &str, instances| Edge {
            subscriber: subscriber.into(),
            service: service.into(),
            instances,
        };
        let edges = [edge("x", "a", 300), edge("x", "b", 300), edge("y", "b", 100), edge("z", "gone", 1)];
        let whole = replay().build_from(&events, Some(&edges), 0..401).unwrap();
        assert_eq!((whole.clients(), whole.subscribers()), (401, &[300, 400, 4, 1][..]));
        let scaled = Replay { clients: Some(40), ..replay() };
        let scaled = scaled.build_from(&events, Some(&edges), 0..41).unwrap();
        assert_eq!((scaled.clients(), scaled.subscribers()), (41, &[30, 40, 1, 1][..]));
        assert!(
            scaled.notes().iter().any(|note| note.contains("41 clients for 401")),
            "{:?}",
            scaled.notes()
        );
        assert_eq!(scaled.subscriptions().clients(), 0..41);
    }
}
