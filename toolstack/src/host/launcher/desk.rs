//! The launcher's end: what it does with the orders of its workers.
//!
//! Only so many orders are carried out at once; further ones wait for their turn ([`super::queue`]). None is refused: a
//! stub that nobody destroys would live on without a record.

use super::messages::{Answered, Asked, hear, pair, tell};
use super::queue::Queue;
use super::{Order, Shared, Ticket};
use crate::host::recreate::{self, Spare};
use crate::host::{program, store, xl};
use rustix::fd::OwnedFd;
use std::fmt::Display;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

/// How many orders of each kind may be under way at once; see [`Desk`].
const MOST_AT_ONCE: usize = 32;
/// Between two looks whether all is done.
const LOOK: Duration = Duration::from_millis(20);

/// Which of the launcher's workers.
pub type WorkerId = u64;

/// The files that the workers have in common.
#[derive(Debug)]
pub struct SharedFiles {
    /// The socket on which commands ask the service.
    pub socket: OwnedFd,
    /// The lock of the one service of this host.
    pub lock: OwnedFd,
    /// The kernel's events.
    pub uevents: OwnedFd,
}

impl SharedFiles {
    const fn get(&self, file: Shared) -> &OwnedFd {
        match file {
            Shared::Socket => &self.socket,
            Shared::Lock => &self.lock,
            Shared::Uevents => &self.uevents,
        }
    }
}

/// A worker that is set up, and may serve when no other one does.
pub struct Turn {
    /// Which.
    pub worker: WorkerId,
    socket: Arc<OwnedFd>,
    ticket: Ticket,
}

impl Turn {
    /// Has the worker serve.
    pub fn give(self) {
        let Self { socket, ticket, .. } = self;
        // The end of one that has died is heard of elsewhere.
        let _ = tell(
            &*socket,
            &Answered {
                ticket,
                failure: None,
            },
            None,
        );
    }
}

/// What all connections of a launcher have in common.
pub struct Desk {
    /// For orders to create a stub anew.
    spare: Arc<Spare>,
    /// None when the service ends.
    files: Mutex<Option<SharedFiles>>,
    /// Hears of each worker that is set up.
    ready: Box<dyn Fn(Turn) + Send + Sync>,
    /// Orders that need nobody else.
    pub(super) own: Arc<Queue>,
    /// Orders that are commands. A command waits for the service, which may wait for an order to destroy a domain. In one
    /// queue, commands that take all the turns would keep that order waiting.
    pub(super) commands: Arc<Queue>,
}

impl Desk {
    /// A desk that gives these files out, and tells `ready` of each worker that is set up.
    pub fn new(files: SharedFiles, ready: impl Fn(Turn) + Send + Sync + 'static) -> Self {
        Self::with_limit(files, ready, MOST_AT_ONCE)
    }

    /// One that carries `limit` orders of each kind out at once.
    pub(super) fn with_limit(
        files: SharedFiles,
        ready: impl Fn(Turn) + Send + Sync + 'static,
        limit: usize,
    ) -> Self {
        Self {
            spare: Arc::default(),
            files: Mutex::new(Some(files)),
            ready: Box::new(ready),
            own: Arc::new(Queue::new(limit)),
            commands: Arc::new(Queue::new(limit)),
        }
    }

    /// Has a process started in a while that creates the next stub.
    pub fn prepare_spare(&self) {
        self.spare.prepare_soon();
    }

    /// Waits until nothing is under way any more: it would end with this process. To be called when there are no workers.
    pub fn close(&self) {
        // A command that is under way finds the service gone, and does not wait for its answer.
        drop(self.files().take());
        while !self.is_idle() {
            thread::sleep(LOOK);
        }
        self.spare.end();
    }

    fn files(&self) -> MutexGuard<'_, Option<SharedFiles>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.own.is_idle() && self.commands.is_idle()
    }

    fn queue(&self, order: &Order) -> &Arc<Queue> {
        if order.is_command() {
            &self.commands
        } else {
            &self.own
        }
    }
}

/// Carries out what comes over `socket`, until that ends.
pub fn attend(socket: OwnedFd, worker: WorkerId, desk: &Arc<Desk>) -> io::Result<()> {
    let socket = Arc::new(socket);
    while let Some((asked, _)) = hear::<Asked>(&*socket)? {
        let Asked { ticket, order } = asked;
        match &order {
            Order::Store | Order::Share { .. } | Order::Connection => {
                let opened = open(&order, worker, desk);
                let failure = opened.as_ref().err().map(ToString::to_string);
                tell(&*socket, &Answered { ticket, failure }, opened.ok().as_ref())?;
                continue;
            }
            Order::Serve => {
                let socket = Arc::clone(&socket);
                (desk.ready)(Turn {
                    worker,
                    socket,
                    ticket,
                });
                continue;
            }
            _ => {}
        }
        let queue = Arc::clone(desk.queue(&order));
        let (socket, spare) = (Arc::clone(&socket), Arc::clone(&desk.spare));
        queue.add(move || {
            let failure = carry_out(&order, &spare).err();
            // A worker that has died has no use for it.
            let _ = tell(&*socket, &Answered { ticket, failure }, None);
            if matches!(order, Order::Recreate(_)) {
                spare.prepare_soon();
            }
        })?;
    }
    Ok(())
}

/// Opens what a worker cannot.
fn open(order: &Order, worker: WorkerId, desk: &Arc<Desk>) -> io::Result<OwnedFd> {
    match order {
        Order::Store => store::connect().map_err(io::Error::other),
        Order::Share { file } => {
            let files = desk.files();
            let files = files
                .as_ref()
                .ok_or_else(|| io::Error::other("the service ends"))?;
            files.get(*file).try_clone()
        }
        _ => {
            let (ours, theirs) = pair()?;
            let desk = Arc::clone(desk);
            thread::Builder::new().spawn(move || attend(ours, worker, &desk))?;
            Ok(theirs)
        }
    }
}

fn carry_out(order: &Order, spare: &Spare) -> Result<(), String> {
    match order {
        Order::DestroyDomain { domid } => xl::destroy(&domid.to_string()).map_err(|error| error.to_string()),
        Order::Detach { bdf } => bulkhead(&["detach", &bdf.to_string()]),
        Order::DestroyGuest { bdf } => bulkhead(&["destroy", &bdf.to_string()]),
        Order::Attach {
            guest,
            devices,
            slots,
            kernel,
        } => {
            let (guest, slots) = (guest.to_string(), slots.to_string());
            let terms: Vec<String> = devices.iter().map(|(_, terms)| terms.to_word()).collect();
            let mut words = vec!["attach", &guest, "--slots", &slots, "--kernel", kernel];
            for ((device, _), terms) in devices.iter().zip(&terms) {
                words.extend(["--device", device, "--recorded-terms", terms]);
            }
            bulkhead(&words)
        }
        Order::Recreate(domain) => recreate::run(domain, spare),
        Order::Settle => recreate::wait_for_all().map_err(|error| error.to_string()),
        // Answered at once, or by the turn.
        Order::Store | Order::Share { .. } | Order::Connection | Order::Serve => Ok(()),
    }
}

/// Runs a subcommand of this program; what it says goes where our own words go.
fn bulkhead(words: &[&str]) -> Result<(), String> {
    let failed = |why: &dyn Display| format!("`bulkhead {}` failed: {why}", words.join(" "));
    let status = program::own().args(words).stdin(Stdio::null()).status();
    let status = status.map_err(|error| failed(&error))?;
    status.success().then_some(()).ok_or_else(|| failed(&status))
}
