//! The launcher's side: carries out the orders of its workers.
//!
//! A limited number of orders is carried out at once; further ones wait for their turn ([`super::queue`]). None is
//! refused: a stub that nobody destroys would live on without a record.

use super::messages::{Answered, PlacedOrder, ServiceHistory, hear_without_file, pair, tell};
use super::queue::Queue;
use super::{Order, SharedFile, Ticket};
use crate::host::recreate::{self, NewStub, Spare};
use crate::host::{program, store, xl};
use bulkhead_config::telemetry::Telemetry;
use rustix::fd::OwnedFd;
use rustix::net::{SendFlags, Shutdown, shutdown};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use std::{io, thread};
use xen::xenctrl::DomId;

/// Limit of orders of each kind that are under way at once; see [`Desk`].
const MOST_AT_ONCE: usize = 32;
/// Interval of the checks whether all is done.
const POLL: Duration = Duration::from_millis(20);

/// Number of a worker.
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
    const fn get(&self, file: SharedFile) -> &OwnedFd {
        match file {
            SharedFile::Socket => &self.socket,
            SharedFile::Lock => &self.lock,
            SharedFile::Uevents => &self.uevents,
        }
    }
}

/// News of a worker.
pub enum News {
    /// It is set up, and waits for its turn.
    Ready(ReadyWorker),
    /// It has begun to serve.
    Began(WorkerId),
}

/// A worker that is set up. It may serve when no other one does.
pub struct ReadyWorker {
    /// The worker.
    pub worker: WorkerId,
    connection: Arc<Connection>,
    ticket: Ticket,
}

impl ReadyWorker {
    /// Has the worker serve. `history` is what has become of the service so far.
    pub fn give(self, history: ServiceHistory) {
        let answered = Answered {
            ticket: self.ticket,
            failure: None,
            history: Some(history),
        };
        self.connection.tell(&answered, None);
    }
}

/// An order whose end a worker waits for.
type Waiting = (Arc<Connection>, Ticket);

/// A worker's connection to the launcher.
struct Connection {
    worker: WorkerId,
    socket: OwnedFd,
    is_cut: AtomicBool,
}

impl Connection {
    /// Answers an order.
    fn answer(&self, ticket: Ticket, failure: Option<String>, file: Option<&OwnedFd>) {
        let answered = Answered {
            ticket,
            failure,
            history: None,
        };
        self.tell(&answered, file);
    }

    /// Sends an answer. A worker that does not take its answers loses the connection: nobody waits for it.
    fn tell(&self, answered: &Answered, file: Option<&OwnedFd>) {
        if tell(&self.socket, answered, file, SendFlags::DONTWAIT).is_err() {
            self.cut();
        }
    }

    /// Ends it for both sides, whoever holds an end.
    fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
        // It may be closed already.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

/// The state that all connections of a launcher share.
pub struct Desk {
    /// For orders to create a stub anew.
    spare: Arc<Spare>,
    /// None when the service ends.
    files: Mutex<Option<SharedFiles>>,
    connections: Mutex<Vec<Weak<Connection>>>,
    /// The workers that have told that they go on, since that was asked last. A set: a worker may tell it as often as it likes.
    alive: Mutex<BTreeSet<WorkerId>>,
    /// Called with news of workers.
    news: Box<dyn Fn(News) + Send + Sync>,
    /// The stubs that are being created anew, each with those who wait for that: a worker that has just begun may order
    /// what the one before it has ordered.
    recreating: Mutex<BTreeMap<DomId, Vec<Waiting>>>,
    /// Orders that need nobody else.
    pub(super) own: Arc<Queue>,
    /// Orders that are commands. A command waits for the service, which may wait for an order to destroy a domain. In one
    /// queue, commands that take all the turns would keep that order waiting.
    pub(super) commands: Arc<Queue>,
}

impl Desk {
    /// A desk that hands out these files, and calls `news` with news of workers.
    pub fn new(files: SharedFiles, news: impl Fn(News) + Send + Sync + 'static) -> Self {
        Self::with_limit(files, news, MOST_AT_ONCE)
    }

    /// A desk that carries out `limit` orders of each kind at once.
    pub(super) fn with_limit(
        files: SharedFiles,
        news: impl Fn(News) + Send + Sync + 'static,
        limit: usize,
    ) -> Self {
        Self {
            spare: Arc::default(),
            files: Mutex::new(Some(files)),
            connections: Mutex::default(),
            alive: Mutex::default(),
            news: Box::new(news),
            recreating: Mutex::default(),
            own: Arc::new(Queue::new(limit)),
            commands: Arc::new(Queue::new(limit)),
        }
    }

    /// Starts a spare process after a while, which creates the next stub.
    pub fn prepare_spare(&self) {
        self.spare.prepare_soon();
    }

    /// Waits until nothing is under way any more, but no longer than that. Programs that run then go on by themselves. To be
    /// called when there are no workers.
    pub fn close(&self, longest: Duration) {
        // A command that is under way finds the service gone, and does not wait for its answer.
        drop(lock(&self.files).take());
        let deadline = Instant::now() + longest;
        while !self.is_idle() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        self.spare.end();
    }

    /// True if a worker has told since the last call that it goes on.
    pub fn take_alive(&self, worker: WorkerId) -> bool {
        lock(&self.alive).remove(&worker)
    }

    /// Ends all connections of a worker that has ended. Whoever has a copy of one has none any more.
    pub fn cut(&self, worker: WorkerId) {
        let mut connections = lock(&self.connections);
        for connection in connections.iter().filter_map(Weak::upgrade) {
            if connection.worker == worker {
                connection.cut();
            }
        }
        // Connections that have ended leave an entry behind.
        connections.retain(|connection| connection.strong_count() > 0);
        drop(connections);
        lock(&self.alive).remove(&worker);
    }

    /// Takes a connection in: a worker's first one, or a further one that it has ordered over `orderer`. None if that one
    /// was cut meanwhile.
    fn admit(
        &self,
        socket: OwnedFd,
        worker: WorkerId,
        orderer: Option<&Connection>,
    ) -> Option<Arc<Connection>> {
        // All of a worker's are cut under this lock.
        let mut connections = lock(&self.connections);
        if orderer.is_some_and(|orderer| orderer.is_cut.load(Ordering::Relaxed)) {
            return None;
        }
        let connection = Arc::new(Connection {
            worker,
            socket,
            is_cut: AtomicBool::new(false),
        });
        connections.retain(|connection| connection.strong_count() > 0);
        connections.push(Arc::downgrade(&connection));
        Some(connection)
    }

    /// Answers all orders for a stub. The next order creates it anew again.
    fn end_recreation(&self, stub: DomId, failure: Option<&str>) {
        let waiting = lock(&self.recreating).remove(&stub);
        for (connection, ticket) in waiting.into_iter().flatten() {
            connection.answer(ticket, failure.map(str::to_owned), None);
        }
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries out what comes over `socket`, until that ends.
///
/// # Errors
/// The connection ends with an error if a message is no order, or one that may not be given.
pub fn attend(socket: OwnedFd, worker: WorkerId, desk: &Arc<Desk>) -> io::Result<()> {
    match desk.admit(socket, worker, None) {
        Some(connection) => attend_connection(&connection, desk, true),
        None => Ok(()),
    }
}

fn attend_connection(connection: &Arc<Connection>, desk: &Arc<Desk>, is_first: bool) -> io::Result<()> {
    let ended = take_orders(connection, desk, is_first);
    connection.cut();
    ended
}

fn take_orders(connection: &Arc<Connection>, desk: &Arc<Desk>, is_first: bool) -> io::Result<()> {
    let worker = connection.worker;
    // What a worker says of itself it says once, over its first connection.
    let (mut may_be_ready, mut may_begin) = (is_first, is_first);
    while let Some(PlacedOrder { ticket, order }) = hear_without_file(&connection.socket)? {
        match order {
            Order::Store | Order::Share { .. } | Order::Connection => {
                let opened = open(&order, connection, desk);
                let failure = opened.as_ref().err().map(ToString::to_string);
                connection.answer(ticket, failure, opened.ok().as_ref());
            }
            // Answered by `ReadyWorker::give`, when no other worker serves. This one waits until then.
            Order::Serve if std::mem::take(&mut may_be_ready) => (desk.news)(News::Ready(ReadyWorker {
                worker,
                connection: Arc::clone(connection),
                ticket,
            })),
            Order::Begun if std::mem::take(&mut may_begin) => {
                (desk.news)(News::Began(worker));
                connection.answer(ticket, None, None);
            }
            Order::Alive => _ = lock(&desk.alive).insert(worker),
            // A second time, or over another connection, these are no orders: see above.
            Order::Serve | Order::Begun => return Err(io::ErrorKind::InvalidData.into()),
            // Apart from the queue's other jobs: two workers may order the same stub.
            Order::Recreate(domain) => create_anew(domain, Arc::clone(connection), ticket, desk)?,
            order => {
                let connection = Arc::clone(connection);
                desk.queue(&order)
                    .add(move || connection.answer(ticket, carry_out(&order).err(), None))?;
            }
        }
    }
    Ok(())
}

/// Has a stub created anew. If that is under way already, all who ordered it get the same answer.
fn create_anew(
    domain: NewStub,
    connection: Arc<Connection>,
    ticket: Ticket,
    desk: &Arc<Desk>,
) -> io::Result<()> {
    let mut recreating = lock(&desk.recreating);
    let is_new = !recreating.contains_key(&domain.domid);
    recreating
        .entry(domain.domid)
        .or_default()
        .push((connection, ticket));
    // Released before the job is added: its end takes the same lock.
    drop(recreating);
    if !is_new {
        return Ok(());
    }
    let (orders, domid) = (Arc::clone(desk), domain.domid);
    let added = desk.own.add(move || {
        let failure = recreate::run(&domain, &orders.spare).err();
        orders.end_recreation(domid, failure.as_deref());
        // This order has used the spare up.
        orders.spare.prepare_soon();
    });
    // Without a thread nobody would ever answer those who wait.
    added.inspect_err(|error| desk.end_recreation(domid, Some(&error.to_string())))
}

/// Opens a file or connection that a worker cannot open itself.
fn open(order: &Order, orderer: &Connection, desk: &Arc<Desk>) -> io::Result<OwnedFd> {
    match order {
        Order::Store => store::connect().map_err(io::Error::other),
        Order::Share { file } => {
            let files = lock(&desk.files);
            let files = files
                .as_ref()
                .ok_or_else(|| io::Error::other("the service ends"))?;
            files.get(*file).try_clone()
        }
        _ => {
            let (ours, theirs) = pair()?;
            // Admitted before the thread starts, so that a worker that dies now takes this connection along.
            let further = desk.admit(ours, orderer.worker, Some(orderer));
            let further = further.ok_or_else(|| io::Error::other("the worker has ended"))?;
            let desk = Arc::clone(desk);
            thread::Builder::new().spawn(move || attend_connection(&further, &desk, false))?;
            Ok(theirs)
        }
    }
}

fn carry_out(order: &Order) -> Result<(), String> {
    match order {
        Order::DestroyDomain { domid } => xl::destroy(&domid.to_string()).map_err(|error| error.to_string()),
        Order::Detach { bdf } => bulkhead(&["detach", &bdf.to_string()]),
        Order::DestroyGuest { bdf } => bulkhead(&["destroy", &bdf.to_string()]),
        Order::Start { guest } => bulkhead(&["start", &guest.to_string()]),
        Order::Attach {
            guest,
            devices,
            slots,
            origin,
        } => {
            let (guest, slots) = (guest.to_string(), slots.to_string());
            // The recorded terms, whatever the policy file says by now.
            let terms: Vec<String> = devices.iter().map(|(_, terms)| terms.to_word()).collect();
            let telemetry = origin.telemetry.as_ref().map(ToString::to_string);
            let mut words = vec!["attach", &guest, "--slots", &slots];
            if let Some(kernel) = origin.named_kernel() {
                words.extend(["--kernel", kernel]);
            }
            if let Some(telemetry) = &telemetry {
                words.extend(["--telemetry", telemetry]);
            }
            for ((device, _), terms) in devices.iter().zip(&terms) {
                words.extend(["--device", device, "--recorded-terms", terms]);
            }
            bulkhead(&words)
        }
        Order::Network { stub, telemetry } => attach_network(*stub, telemetry),
        Order::AwaitCreations => recreate::wait_for_all().map_err(|error| error.to_string()),
        // See `take_orders`.
        Order::Recreate(_)
        | Order::Store
        | Order::Share { .. }
        | Order::Connection
        | Order::Serve
        | Order::Begun
        | Order::Alive => Ok(()),
    }
}

/// Gives a stub its interface, unless it has one: the worker before this one may have ordered it too.
fn attach_network(stub: DomId, telemetry: &Telemetry) -> Result<(), String> {
    let stub = stub.to_string();
    let config = xl::config_of(&stub).map_err(|error| error.to_string())?;
    if config.pointer("/0/config/nics/0").is_some() {
        return Ok(());
    }
    let mac = telemetry.mac.ok_or("its Ethernet address is not known")?;
    xl::network_attach(&stub, &telemetry.vif(mac)).map_err(|error| error.to_string())
}

/// Runs a subcommand of this program. Its output goes to this process's.
fn bulkhead(words: &[&str]) -> Result<(), String> {
    let failed = |why: &dyn Display| format!("`bulkhead {}` failed: {why}", words.join(" "));
    let status = program::own()
        .args(words)
        .env(program::ORDERED, "1")
        .stdin(Stdio::null())
        .status();
    let status = status.map_err(|error| failed(&error))?;
    status.success().then_some(()).ok_or_else(|| failed(&status))
}
