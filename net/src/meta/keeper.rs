//! The thread on which a store may block: it asks to lead, loads, and stores what it is given.

use std::{sync::Arc, time::Duration};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use slotcast_engine::id::Nanos;

use crate::{
    io::{clock, ring::Waker},
    meta::store::{Lead, StoreError, TableStore},
    wire::slot_table::SlotTable,
};

/// Time between two questions who leads.
const CAMPAIGN: Duration = Duration::from_millis(500);

/// A table to be stored in place of the one of epoch `expected`.
pub(super) struct Swap {
    pub(super) expected: u64,
    pub(super) table: Arc<SlotTable>,
}

/// What the store said.
pub(super) enum KeeperNews {
    /// This process leads until then, at first; this is the table.
    Elected(Option<SlotTable>, Nanos),
    /// It leads until then.
    Renewed(Nanos),
    /// It does not lead; who does, if that is known.
    Deposed(Option<String>),
    /// The table of this epoch is stored.
    Stored(u64),
    /// It is not.
    Failed { epoch: u64, holds: Option<u64>, reason: String },
    /// The store does not work.
    Trouble(String),
}

/// The thread and the way to it. It ends, and gives the lead up, when this is dropped.
pub(super) struct Keeper {
    swaps: Option<Sender<Swap>>,
    news: Receiver<KeeperNews>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn start(store: Box<dyn TableStore>, waker: Waker) -> std::io::Result<Self> {
        // One table is stored at a time; news is taken in at every turn.
        let (swaps, wanted) = channel::bounded(1);
        let (tell, news) = channel::bounded(64);
        let thread = std::thread::Builder::new().name("meta-store".into()).spawn(move || {
            let tell = |event| {
                let told = tell.send(event).is_ok();
                let _ = waker.wake();
                told
            };
            run(store, &wanted, &tell);
        })?;
        Ok(Self { swaps: Some(swaps), news, thread: Some(thread) })
    }

    pub(super) fn poll(&self) -> Option<KeeperNews> {
        self.news.try_recv().ok()
    }

    /// Gives the lead up for good: this process must not keep it from others.
    pub(super) fn retire(&mut self) {
        self.swaps = None;
    }

    /// Asks for a table to be stored. False if the thread has not finished the one before.
    pub(super) fn swap(&self, swap: Swap) -> bool {
        self.swaps.as_ref().is_some_and(|swaps| swaps.try_send(swap).is_ok())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.swaps = None;
        // Nobody reads the news any more: the thread must not wait for that.
        let (_, nothing) = channel::bounded(1);
        self.news = nothing;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mut store: Box<dyn TableStore>, wanted: &Receiver<Swap>, tell: &dyn Fn(KeeperNews) -> bool) {
    let mut leads_until: Option<Nanos> = None;
    loop {
        let asked = clock::now();
        let told = match campaign(&mut *store, leads_until.is_some(), asked) {
            Ok(news) => {
                leads_until = match &news {
                    KeeperNews::Elected(_, until) | KeeperNews::Renewed(until) => Some(*until),
                    _ => None,
                };
                tell(news)
            }
            Err(error) => {
                let lost = leads_until.is_some_and(|until| clock::now() >= until);
                if lost {
                    leads_until = None;
                }
                tell(KeeperNews::Trouble(error.to_string())) && (!lost || tell(KeeperNews::Deposed(None)))
            }
        };
        if !told {
            break;
        }
        match wanted.recv_timeout(CAMPAIGN) {
            Ok(swap) => {
                if !tell(store_table(&mut *store, &swap)) {
                    break;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    store.resign();
}

fn campaign(store: &mut dyn TableStore, leads: bool, asked: Nanos) -> Result<KeeperNews, StoreError> {
    Ok(match store.campaign()? {
        Lead::Ours(time) => {
            let until = asked.after(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            if leads { KeeperNews::Renewed(until) } else { KeeperNews::Elected(store.load()?, until) }
        }
        Lead::Others(who) => KeeperNews::Deposed(who),
    })
}

fn store_table(store: &mut dyn TableStore, swap: &Swap) -> KeeperNews {
    let epoch = swap.table.epoch;
    match store.swap(swap.expected, &swap.table) {
        Ok(()) => KeeperNews::Stored(epoch),
        Err(error) => {
            let holds = match &error {
                StoreError::Conflict { found, .. } | StoreError::Older { held: found, .. } => Some(*found),
                _ => None,
            };
            KeeperNews::Failed { epoch, holds, reason: error.to_string() }
        }
    }
}
