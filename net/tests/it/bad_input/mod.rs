//! What happens when somebody does what he should not: the one at fault is told, it is counted, nobody else is disturbed.

mod frames;

mod writes;

mod limits;

mod slow_readers;

mod links;

mod second_start;

use slotcast_engine::{
    error::Refusal,
    id::{DataId, Revision},
};
use slotcast_net::{
    client::{Client, Registration, Update},
    wire::ErrorCode,
};

use crate::{
    cluster::{Cluster, View, until},
    raw::Raw,
};

fn id(service: &str) -> DataId {
    DataId::new("public", "default", service).unwrap()
}

/// Clients that do nothing wrong: one publishes, one subscribes.
struct Bystanders {
    publisher: Client,
    subscriber: Client,
    registration: Registration,
    service: DataId,
    view: View,
    changes: u32,
}

impl Bystanders {
    fn new(cluster: &Cluster, session: usize) -> Self {
        Self::of(cluster, session, id("bystanders"))
    }

    fn of(cluster: &Cluster, session: usize, service: DataId) -> Self {
        let (publisher, subscriber) = (cluster.client(session), cluster.client(session));
        subscriber.subscribe(&service).unwrap();
        let mut view = View::default();
        until(&subscriber, |update| {
            view.take(&service, update);
            view.snapshots == 1
        });
        let registration = publisher.publish(&service, "bystander", "", b"0").unwrap();
        let mut bystanders = Self { publisher, subscriber, registration, service, view, changes: 0 };
        bystanders.hear(b"0");
        until(&bystanders.publisher, |update| matches!(update, Update::Acknowledged { .. }));
        bystanders
    }

    /// Makes a change and waits until the subscriber has it.
    fn change(&mut self, payload: &[u8]) {
        let (publisher, registration) = (&self.publisher, self.registration);
        publisher.republish(registration, &self.service, "bystander", "", payload).unwrap();
        self.hear(payload);
        until(&self.publisher, |update| match update {
            Update::Acknowledged { .. } => true,
            other => panic!("the publisher was disturbed: {other:?}"),
        });
    }

    fn hear(&mut self, payload: &[u8]) {
        until(&self.subscriber, |update| {
            let disturbed = matches!(update, Update::Disconnected(_) | Update::Connected(_));
            assert!(!disturbed, "the subscriber was disturbed: {update:?}");
            self.view.take(&self.service, update);
            self.view.payloads.values().any(|held| held == payload)
        });
    }

    /// The next change arrives as a diff, on the connections of before.
    fn assert_undisturbed(&mut self) {
        let removals = self.view.removals_seen;
        self.changes += 1;
        let payload = self.changes.to_string();
        self.change(payload.as_bytes());
        assert_eq!((self.view.snapshots, self.view.removals_seen), (1, removals));
    }
}

/// A cluster of one session with bystanders.
struct Scene {
    cluster: Cluster,
    bystanders: Bystanders,
}

impl Scene {
    fn new(settings: &[&str]) -> Self {
        let cluster = Cluster::start(1, 1, settings);
        let bystanders = Bystanders::new(&cluster, 0);
        Self { cluster, bystanders }
    }

    fn raw(&self) -> Raw {
        Raw::connect(self.cluster.addr(0), 900)
    }

    fn open(&self) -> Raw {
        Raw::open(self.cluster.addr(0))
    }

    /// Sends bytes for which the client is told `code` and a text with `words`, and is closed. It is counted, and nobody
    /// is disturbed.
    fn expect_closed(&mut self, mut raw: Raw, bytes: &[u8], code: ErrorCode, words: &str) {
        let before = self.errors(code);
        raw.send_bytes(bytes);
        let (told, text) = raw.expect_error();
        assert_eq!(told, code as u16, "{text}");
        assert!(text.contains(words), "{text:?} does not say {words:?}");
        assert_eq!(self.errors(code), before + 1.0, "counted once");
        self.bystanders.assert_undisturbed();
    }

    /// Writes entries of which the last is refused. It is counted, the client stays, and nobody is disturbed.
    fn expect_refused(&mut self, raw: &mut Raw, entries: &[u8], refusal: Refusal) {
        let label = format!("\"{}\"", refusal.label());
        let refused = |scene: &Self| {
            scene.cluster.session_metric(0, "session_writes_refused", &label)
                + scene.cluster.data_metric("data_writes_refused", &label)
        };
        let before = refused(self);
        assert_eq!(raw.write(entries).pop(), Some(Err(refusal)));
        assert_eq!(refused(self), before + 1.0, "counted once");
        self.bystanders.assert_undisturbed();
    }

    fn errors(&self, code: ErrorCode) -> f64 {
        self.cluster.session_metric(0, "session_client_errors", &format!("\"{}\"", code.label()))
    }

    fn stop(self) {
        drop(self.bystanders);
        self.cluster.stop();
    }
}

/// The outcome of a write that was taken.
fn is_taken(outcomes: &[Result<Revision, Refusal>]) -> bool {
    !outcomes.is_empty() && outcomes.iter().all(Result::is_ok)
}
