//! The client as an application uses it: a thread that drives the state machine, commands in, updates out.

use std::{sync::Arc, thread::JoinHandle, time::Duration};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use slotcast_engine::{
    id::{ClientId, DataId, RegisterId},
    record::RecordError,
};

use crate::{
    client::state::{ClientConfig, ClientState, Registration, UPDATES_MAX, Update},
    io::{
        clock,
        ring::{RingConfig, RingSockets, Sockets, Waker},
        role::Role,
    },
};

/// Commands that may wait for the thread.
const COMMANDS_MAX: usize = 1024;
/// Longest sleep of the thread while updates wait for the application.
const NAP: Duration = Duration::from_millis(1);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The thread could not be started.
    #[error("starting the client: {0}")]
    Start(#[from] std::io::Error),
    /// The content cannot be published.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The client has ended.
    #[error("the client has ended")]
    Ended,
}

type Command = Box<dyn FnOnce(&mut ClientState) + Send>;

/// A connected client. Dropping it leaves: its registrations go at once.
pub struct Client {
    id: ClientId,
    commands: Sender<Command>,
    updates: Receiver<Update>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// Starts the client's thread. It connects, and connects again, by itself.
    pub fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        let (commands, taken) = bounded(COMMANDS_MAX);
        let (told, updates) = bounded(UPDATES_MAX);
        let (started, starting) = bounded(1);
        let state = ClientState::new(&config, clock::unique());
        let id = state.id();
        let thread = std::thread::Builder::new().name("slotcast-client".into()).spawn(move || {
            let ring = RingConfig {
                sq_entries: 64,
                cq_entries: 256,
                sockets_max: 8,
                recv_buffers: 64,
                ..RingConfig::default()
            };
            match RingSockets::new(ring).and_then(|mut sockets| Ok((sockets.waker()?, sockets))) {
                Ok((waker, sockets)) => {
                    let _ = started.send(Ok(waker));
                    drive(state, sockets, &taken, &told);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        })?;
        let waker = starting.recv().map_err(|_| ClientError::Ended)??;
        Ok(Self { id, commands, updates, waker, thread: Some(thread) })
    }

    /// The identity of this client.
    pub fn id(&self) -> ClientId {
        self.id
    }

    /// Registers an instance of a data id. [`Update::Acknowledged`] follows when it is in effect.
    pub fn publish(
        &self,
        id: &DataId,
        name: &str,
        zone: &str,
        payload: &[u8],
    ) -> Result<Registration, ClientError> {
        let (id, name, zone, payload) = (id.clone(), name.to_string(), zone.to_string(), payload.to_vec());
        let (answer, answered) = bounded(1);
        self.command(move |state| {
            let _ = answer.send(state.publish(&id, &name, &zone, &payload));
        })?;
        Ok(answered.recv().map_err(|_| ClientError::Ended)??)
    }

    /// Changes the content of a registration.
    pub fn republish(
        &self,
        registration: Registration,
        id: &DataId,
        name: &str,
        zone: &str,
        payload: &[u8],
    ) -> Result<(), ClientError> {
        let (id, name, zone, payload) = (id.clone(), name.to_string(), zone.to_string(), payload.to_vec());
        let (answer, answered) = bounded(1);
        self.command(move |state| {
            let _ = answer.send(state.publish_as(registration, &id, &name, &zone, &payload));
        })?;
        Ok(answered.recv().map_err(|_| ClientError::Ended)??)
    }

    /// Removes a registration.
    pub fn unpublish(&self, registration: Registration) -> Result<(), ClientError> {
        self.command(move |state| state.unpublish(registration))
    }

    /// Registers, or changes, an instance that is not tied to this client: it stays until it is removed by request, however
    /// often clients, sessions and data nodes restart. [`Update::Acknowledged`] follows when it is durable;
    /// [`Update::NotDurable`] first, if that takes longer than it should.
    ///
    /// It belongs to nobody. Whoever names its number within the data id and a larger version changes it, so the
    /// application chooses both: numbers that it finds again after a restart, versions that grow with every change and
    /// removal, such as the generation of a configuration.
    pub fn publish_persistent(
        &self,
        id: &DataId,
        (register, version): (RegisterId, u64),
        name: &str,
        zone: &str,
        payload: &[u8],
    ) -> Result<Registration, ClientError> {
        let (id, name, zone, payload) = (id.clone(), name.to_string(), zone.to_string(), payload.to_vec());
        let (answer, answered) = bounded(1);
        self.command(move |state| {
            let _ = answer.send(state.publish_persistent(&id, (register, version), &name, &zone, &payload));
        })?;
        Ok(answered.recv().map_err(|_| ClientError::Ended)??)
    }

    /// Removes an instance that was registered to stay, by whomever: its version has to be `version` or smaller.
    pub fn remove_persistent(
        &self,
        id: &DataId,
        register: RegisterId,
        version: u64,
    ) -> Result<Registration, ClientError> {
        let id = id.clone();
        let registration = Registration { datum: id.key(), register };
        self.command(move |state| _ = state.remove_persistent(&id, register, version))?;
        Ok(registration)
    }

    /// Subscribes to a data id; the first update is a snapshot, empty if nobody publishes it.
    pub fn subscribe(&self, id: &DataId) -> Result<(), ClientError> {
        let id = id.clone();
        self.command(move |state| state.subscribe(&id))
    }

    /// No longer wants a data id.
    pub fn unsubscribe(&self, id: &DataId) -> Result<(), ClientError> {
        let id = id.clone();
        self.command(move |state| state.unsubscribe(&id))
    }

    /// Drops the connection as a failing network would; the client reconnects and resumes.
    pub fn drop_connection(&self) -> Result<(), ClientError> {
        self.command(ClientState::drop_connection)
    }

    /// Updates as they come; ends when the client does.
    pub fn updates(&self) -> impl Iterator<Item = Update> + '_ {
        self.updates.iter()
    }

    /// The next update, waiting for it at most `timeout`.
    pub fn next_update(&self, timeout: Duration) -> Option<Update> {
        self.updates.recv_timeout(timeout).ok()
    }

    fn command(&self, run: impl FnOnce(&mut ClientState) + Send + 'static) -> Result<(), ClientError> {
        self.commands.send(Box::new(run)).map_err(|_| ClientError::Ended)?;
        let _ = self.waker.wake();
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.command(ClientState::leave);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn drive(
    mut state: ClientState,
    mut sockets: RingSockets,
    commands: &Receiver<Command>,
    updates: &Sender<Update>,
) {
    let mut kept = None;
    while !state.is_finished() {
        while let Ok(command) = commands.try_recv() {
            command(&mut state);
        }
        let now = clock::now();
        let polled = sockets.poll(&mut |event| state.handle(event, now));
        state.turn(clock::now(), &mut sockets);
        kept = deliver(&mut state, updates, kept);
        if polled.and_then(|_| sockets.flush()).is_err() {
            return;
        }
        let until = Duration::from_nanos(state.wake_at().since(clock::now()));
        let nap = if kept.is_some() { NAP } else { until.min(Duration::from_secs(1)) };
        if commands.is_empty() && !state.is_finished() && sockets.wait(nap).is_err() {
            return;
        }
    }
    // The goodbye is queued: let it out.
    let _ = sockets.flush();
    let _ = sockets.wait(Duration::from_millis(20));
}

/// Hands updates over while there is room; returns the one that found none.
fn deliver(state: &mut ClientState, updates: &Sender<Update>, kept: Option<Update>) -> Option<Update> {
    let mut next = kept.or_else(|| state.poll_update());
    while let Some(update) = next {
        match updates.try_send(update) {
            Ok(()) => next = state.poll_update(),
            Err(TrySendError::Full(update)) => return Some(update),
            Err(TrySendError::Disconnected(_)) => return None,
        }
    }
    None
}

const _: () = {
    const fn assert_send<T: Send>() {}
    assert_send::<Client>();
    assert_send::<Arc<Client>>();
};
