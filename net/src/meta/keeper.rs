//! The store beside the role that must not wait for it: what drives it asks to lead, loads, and stores what it is given. It may
//! block, so that is a thread of its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use slotcast_engine::id::Nanos;

use crate::{
    io::{clock, ring::Waker},
    meta::store::{Lead, StoreError, TableStore},
    wire::slot_table::SlotTable,
};

/// Time between two questions who leads.
pub const CAMPAIGN: Duration = Duration::from_millis(500);

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

/// The side of the store: asks to lead, loads, and stores what it is given. A thread drives it, or whoever knows the time
/// better.
pub struct StoreSide {
    store: Box<dyn TableStore>,
    wanted: Receiver<Swap>,
    news: Sender<KeeperNews>,
    leads_until: Option<Nanos>,
    gave_up: Arc<AtomicBool>,
}

impl StoreSide {
    /// Asks to lead, or to lead on. `now` is the time before, and `after` tells it when the store has answered. Returns whether
    /// anybody still listens.
    pub fn campaign(&mut self, now: Nanos, after: impl Fn() -> Nanos) -> bool {
        if self.gave_up.swap(false, Ordering::AcqRel) {
            self.leads_until = None;
        }
        match campaign(&mut *self.store, self.leads_until.is_some(), now) {
            Ok(news) => {
                self.leads_until = match &news {
                    KeeperNews::Elected(_, until) | KeeperNews::Renewed(until) => Some(*until),
                    _ => None,
                };
                self.tell(news)
            }
            Err(error) => {
                // With another store behind it, it has to be elected anew, and to read what that has.
                let is_other = matches!(error, StoreError::SetBack { .. });
                let lost = self.leads_until.take_if(|until| is_other || after() >= *until).is_some();
                self.tell(KeeperNews::Trouble(error.to_string()))
                    && (!lost || self.tell(KeeperNews::Deposed(None)))
            }
        }
    }

    /// Whether a table waits to be stored.
    pub fn has_table(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Stores the table that waits, if one does.
    pub fn store_table(&mut self) {
        if let Ok(swap) = self.wanted.try_recv() {
            self.store(&swap);
        }
    }

    fn store(&mut self, swap: &Swap) -> bool {
        let news = store_table(&mut *self.store, swap);
        self.tell(news)
    }

    fn tell(&self, news: KeeperNews) -> bool {
        self.news.send(news).is_ok()
    }
}

/// The way to the store, and the thread that drives it. The thread ends, and gives the lead up, when this is dropped.
pub(super) struct Keeper {
    swaps: Option<Sender<Swap>>,
    news: Receiver<KeeperNews>,
    /// The process does not lead any more, whatever was said last.
    gave_up: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Keeper {
    /// With nobody who drives the store yet.
    pub(super) fn by_hand(store: Box<dyn TableStore>) -> (Self, StoreSide) {
        // One table is stored at a time; news is taken in at every turn.
        let (swaps, wanted) = channel::bounded(1);
        let (tell, news) = channel::bounded(64);
        let gave_up = Arc::new(AtomicBool::new(false));
        let side = StoreSide { store, wanted, news: tell, leads_until: None, gave_up: gave_up.clone() };
        (Self { swaps: Some(swaps), news, gave_up, thread: None }, side)
    }

    pub(super) fn start(store: Box<dyn TableStore>, waker: Waker) -> std::io::Result<Self> {
        let (mut keeper, side) = Self::by_hand(store);
        let thread = std::thread::Builder::new().name("meta-store".into());
        keeper.thread = Some(thread.spawn(move || run(side, &waker))?);
        Ok(keeper)
    }

    pub(super) fn poll(&self) -> Option<KeeperNews> {
        self.news.try_recv().ok()
    }

    /// The lead has run out here before it was renewed: to lead again, this process has to be elected again.
    pub(super) fn give_up(&self) {
        self.gave_up.store(true, Ordering::Release);
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

fn run(mut side: StoreSide, waker: &Waker) {
    loop {
        let told = side.campaign(clock::now(), clock::now);
        let _ = waker.wake();
        if !told {
            break;
        }
        match side.wanted.recv_timeout(CAMPAIGN) {
            Ok(swap) => {
                let told = side.store(&swap);
                let _ = waker.wake();
                if !told {
                    break;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    side.store.resign();
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
