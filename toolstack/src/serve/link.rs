//! One stub's connection: its page, its event channel, and the thread that answers.

use super::wake::Wake;
use crate::function::aer::{Condition, Told};
use crate::function::interrupts::Failure;
use crate::function::{Done, Functions};
use crate::host::store::{self, Store, StoreError};
use crate::host::sysfs::{Sysfs, SysfsError};
use crate::pci::config_space::ConfigFile;
use crate::records::interrupt_mode::{Change, Note};
use crate::records::{self, Attachment, RecordError};
use crate::serve::log_limit::LogLimit;
use crate::serve::throttle::{Burst, Limit, Throttle};
use crate::status::{RefusedWrite, Served};
use inject::Point;
use pci::bdf::Bdf;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use thiserror::Error;
use xen::xenctrl::{DomId, Xenctrl};
use xen::xendev::{Event, EventChannel, GrantedPage};
use xenbus::client::Store as Nodes;
use xenbus::counters::Counters;
use xenbus::handover_block::{self, HandoverBlock};
use xenbus::path::{Device as Hop, key};
use xenbus::pciif::aer::{self, AerRequest, Busy, Verdict};
use xenbus::pciif::backend::{Delivery, Success, Taken, take};
use xenbus::pciif::{AER_HANDLER, MAGIC, Request, SharedPage, layout};

/// Why a stub is not served.
#[derive(Debug, Error)]
pub enum LinkError {
    /// A node of the stub's that is missing or nonsense.
    #[error("the stub's node {node} is {value:?}, which is no {expected}")]
    Particulars {
        /// The key.
        node: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// Its page cannot be mapped.
    #[error("cannot map the stub's grant {grant}")]
    Page {
        /// The grant reference.
        grant: u32,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Its port cannot be bound.
    #[error("cannot bind the stub's event channel {port}")]
    Port {
        /// The stub's port.
        port: u32,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A device cannot be used.
    #[error(transparent)]
    Device(#[from] SysfsError),
    /// A device cannot be used.
    #[error("cannot access the configuration space of a device")]
    Config(#[from] io::Error),
}

impl LinkError {
    /// True if it is about what the stub has published: it may do better with the next.
    pub const fn is_of_offer(&self) -> bool {
        matches!(
            self,
            Self::Particulars { .. } | Self::Page { .. } | Self::Port { .. }
        )
    }
}

/// What a stub publishes in xenstore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Particulars {
    grant: u32,
    port: u32,
}

/// The longest value of a stub's that is told.
const LONGEST_TOLD: usize = 60;

/// Reads a stub's particulars, all of one moment; `None` while it rewrites them. A transaction would say the same, but
/// one that only reads can be kept from its end for ever by whoever writes without a pause.
pub fn particulars(
    store: &mut impl Nodes<TransportError = io::Error>,
    hop: Hop,
) -> Result<Option<Result<Particulars, LinkError>>, StoreError> {
    let mut read = || {
        let mut values = [const { String::new() }; 3];
        for (value, key) in values
            .iter_mut()
            .zip([key::MAGIC, key::PCI_OP_REF, key::EVENT_CHANNEL])
        {
            *value = store.read_optional(&hop.frontend_node(key))?.unwrap_or_default();
        }
        Ok(values)
    };
    let values = read()?;
    Ok((read()? == values).then(|| parse_particulars(&values)))
}

fn parse_particulars([magic, grant, port]: &[String; 3]) -> Result<Particulars, LinkError> {
    let nonsense = |node, value: &String, expected| LinkError::Particulars {
        node,
        value: value.chars().take(LONGEST_TOLD).collect(),
        expected,
    };
    if magic != MAGIC {
        return Err(nonsense(
            key::MAGIC,
            magic,
            "version of the protocol that is known here (7)",
        ));
    }
    let number = |node, text: &String, expected| text.parse().map_err(|_| nonsense(node, text, expected));
    Ok(Particulars {
        grant: number(key::PCI_OP_REF, grant, "grant reference")?,
        port: number(key::EVENT_CHANNEL, port, "event channel port")?,
    })
}

/// What a stub may do so often and no more. They are the stub's, and not its connection's: one that was taken over can
/// have a new connection as often as it likes.
pub struct Limits {
    /// Of complaints.
    complaints: LogLimit,
    /// Of changes of interrupt modes, which a guest can bring about as often as it likes.
    notes: LogLimit,
    throttle: Throttle,
}

impl Limits {
    /// Nothing is used up.
    pub fn new(now: Instant) -> Self {
        Self {
            complaints: LogLimit::new(now),
            notes: LogLimit::new(now),
            throttle: Throttle::new(Limit::REQUESTS, now),
        }
    }
}

/// Whether one more complaint of a stub may be logged.
pub fn may_tell(limits: &Mutex<Limits>) -> bool {
    lock(limits).complaints.allow(Instant::now()).is_some()
}

/// The part of a link that the status looks at too.
struct Shared {
    page: GrantedPage,
    functions: Functions<ConfigFile>,
    requests: u64,
    failed: u64,
}

/// A stub that is served, until this is dropped.
pub struct Link {
    particulars: Particulars,
    handle: Handle,
    channel: Arc<EventChannel>,
    thread: Option<JoinHandle<()>>,
    ended: Arc<AtomicBool>,
    began: Instant,
}

/// What of a link other threads may use, and may have to wait for while a request is answered.
#[derive(Clone)]
pub struct Handle(Arc<Mutex<Shared>>);

/// Tells of the end of a link's thread, however it comes.
struct End {
    ended: Arc<AtomicBool>,
    wake: Wake,
}

impl Drop for End {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.wake.wake();
    }
}

impl Link {
    /// Maps, binds, and starts to answer. Interrupt modes are noted in xenstore over `store`; the end of the thread calls `wake`.
    pub fn start(
        attachment: &Attachment,
        particulars: Particulars,
        sysfs: &Sysfs,
        xen: Xenctrl,
        store: OwnedFd,
        wake: Wake,
        limits: Arc<Mutex<Limits>>,
    ) -> Result<Self, LinkError> {
        let Particulars { grant, port } = particulars;
        let stub = attachment.stub.domid;
        let mut functions =
            Functions::new(attachment, |bdf| sysfs.open_config(bdf).map_err(LinkError::from))?;
        report_errors(&mut functions, sysfs);
        let page = GrantedPage::map(stub, grant).map_err(|source| LinkError::Page { grant, source })?;
        let channel = EventChannel::bind(stub, port).map_err(|source| LinkError::Port { port, source })?;
        let shared = Arc::new(Mutex::new(Shared {
            page,
            functions,
            requests: 0,
            failed: 0,
        }));
        let channel = Arc::new(channel);
        let answerer = Answerer {
            stub,
            name: attachment.stub.name.clone(),
            shared: Arc::clone(&shared),
            channel: Arc::clone(&channel),
            xen,
            limits,
        };
        let ended = Arc::new(AtomicBool::new(false));
        let end = End {
            ended: Arc::clone(&ended),
            wake,
        };
        let thread = thread::Builder::new()
            .name(format!("stub {stub}"))
            .spawn(move || {
                let _end = end;
                answerer.run(store::over(store));
            })?;
        Ok(Self {
            particulars,
            handle: Handle(shared),
            channel,
            thread: Some(thread),
            ended,
            began: Instant::now(),
        })
    }

    /// True if nobody answers the stub any more, because the thread has failed.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// How long the stub is served.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// For other threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The stub's page and port.
    pub fn particulars(&self) -> Particulars {
        self.particulars
    }

    /// Serves the devices that the attachment has now.
    pub fn follow(&self, attachment: &Attachment, sysfs: &Sysfs) -> Result<(), LinkError> {
        let open = |bdf| sysfs.open_config(bdf).map_err(LinkError::from);
        let mut shared = self.handle.lock();
        shared.functions.follow(attachment, open)?;
        report_errors(&mut shared.functions, sysfs);
        Ok(())
    }

    /// Tells the guest of an error.
    pub fn tell(&self, request: &AerRequest) -> Told {
        let page = &self.handle.lock().page;
        if page.load(layout::FLAGS) & AER_HANDLER == 0 {
            return Told::Nobody;
        }
        match aer::post(page, request) {
            // A stub that cannot be notified is silent, which has its limit.
            Ok(()) => self.channel.notify().map_or(Told::Nobody, |()| Told::Yes),
            Err(Busy) => Told::Busy,
        }
    }

    /// What the guest says to that.
    pub fn verdict(&self) -> Option<Verdict> {
        aer::verdict(&self.handle.lock().page).map(Verdict::from_raw)
    }

    /// Sees what a device is like after an error, and restores it if it was reset.
    pub fn inspect(&self, bdf: Bdf, xen: &Xenctrl) -> io::Result<Condition> {
        let shared = self.handle.lock();
        let function = shared.functions.get(bdf).ok_or(io::ErrorKind::NotFound)?;
        function.inspect(xen)
    }

    /// Restores a device that was reset.
    pub fn renew(&self, bdf: Bdf, xen: &Xenctrl) -> io::Result<()> {
        let shared = self.handle.lock();
        let function = shared.functions.get(bdf).ok_or(io::ErrorKind::NotFound)?;
        function.renew(xen)
    }

    /// What the stub leaves to the one that takes its place, as text.
    pub fn handover_block(&self) -> Option<String> {
        handover_block::to_hex(&self.handle.lock().page)
    }
}

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.0)
    }

    /// Serves these devices no more. No request for them is under way when this returns.
    pub fn drop_devices(&self, bdfs: &[Bdf]) {
        self.lock().functions.drop_devices(bdfs);
    }

    /// What there is to tell of it.
    pub fn served(&self) -> Served {
        let shared = self.lock();
        let mut served = Served {
            requests: shared.requests,
            failed: shared.failed,
            ..Served::default()
        };
        for function in shared.functions.iter() {
            served.refused_besides += function.refused_besides();
            served
                .refused
                .extend(function.refused().map(|(offset, refusal, count)| RefusedWrite {
                    bdf: function.bdf().to_string(),
                    offset,
                    reason: refusal.to_string(),
                    count,
                }));
        }
        if let Ok(counters) = Counters::collect(&shared.page) {
            served.add_counters(&counters);
        }
        if let Some(handover_block) = HandoverBlock::from_page(&shared.page) {
            served.add_poisonous(handover_block.refused());
        }
        served
    }
}

/// Has those devices report their errors of whose errors dom0's kernel hears.
fn report_errors(functions: &mut Functions<ConfigFile>, sysfs: &Sysfs) {
    for function in functions
        .iter_mut()
        .filter(|function| sysfs.hears_errors(function.bdf()))
    {
        if let Err(error) = function.report_errors() {
            log::warn!("{}: it will not report its errors: {error}", function.bdf());
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Err(error) = self.channel.stop() {
            // Then it cannot be waited for either.
            log::error!("the thread of a stub cannot be stopped: {error}");
        } else if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                log::error!("the thread of a stub has failed");
            }
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // After a panic in a thread its link only waits to be dropped.
    shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

struct Answerer {
    stub: DomId,
    name: String,
    shared: Arc<Mutex<Shared>>,
    channel: Arc<EventChannel>,
    xen: Xenctrl,
    limits: Arc<Mutex<Limits>>,
}

impl Answerer {
    fn run(mut self, mut store: Store) {
        let ended = self
            .take_up(&mut store)
            .and_then(|()| Ok(self.serve(&mut store)?));
        if let Err(error) = ended {
            log::error!("stub {} is served no more: {error:#}", self.name);
        }
    }

    /// Finishes what a service that died has left unfinished, and answers the request that waits.
    fn take_up(&mut self, store: &mut Store) -> anyhow::Result<()> {
        inject::point(Point::TakeUp);
        let (changes, known) = unfinished(store, self.stub)?;
        let shared = Arc::clone(&self.shared);
        let mut shared = lock(&shared);
        let mut noter = Noter {
            store,
            stub: self.stub,
            name: &self.name,
            limits: &self.limits,
        };
        let settled = shared
            .functions
            .settle(&self.xen, &changes, &known, |bdf, note| noter.note(bdf, note));
        for (bdf, settled) in settled {
            match settled {
                Ok(found) => log::warn!("stub {}: {bdf}: {found}", self.name),
                Err(error) => log::error!(
                    "stub {}: {bdf}: what a service before this one left unfinished stays so: {error}",
                    self.name
                ),
            }
        }
        if let Some(taken) = take(&shared.page) {
            let mut noter = Noter {
                store,
                stub: self.stub,
                name: &self.name,
                limits: &self.limits,
            };
            shared
                .functions
                .begin_again(taken.request(), &self.xen, |bdf, note| noter.note(bdf, note));
            self.answer(&mut shared, taken, store)?;
        }
        // An answer that was given, but not told of.
        self.channel.notify()?;
        Ok(())
    }

    /// Serves until it is stopped; interrupt modes are noted in `store`.
    fn serve(&mut self, store: &mut Store) -> io::Result<()> {
        while self.channel.wait()? == Event::Peer {
            // An event without a request counts as one.
            let requests = self.burst(store)?.max(1);
            let wait = lock(&self.limits).throttle.spend(requests, Instant::now());
            if !wait.is_zero() {
                // Not a sleep: who ends the link wakes this thread up, and does not wait for the stub's sake.
                thread::park_timeout(wait);
            }
            self.channel.unmask()?;
        }
        Ok(())
    }

    /// Answers requests until there is none, and says how many there were. The channel stays masked meanwhile, so that
    /// the stub's events cost dom0 nothing.
    ///
    /// It does not look for a next one before it sleeps: the processor is better left to the stub, which has to
    /// pass the answer on before its guest can ask again (measured: looking made writes slower).
    ///
    /// A burst without end is cut, so that others get at what is shared: the events of the requests
    /// that follow wait behind the mask.
    fn burst(&mut self, store: &mut Store) -> io::Result<u32> {
        let shared = Arc::clone(&self.shared);
        let mut shared = lock(&shared);
        let mut burst = Burst::new(Instant::now());
        while burst.goes_on(Instant::now())
            && let Some(taken) = take(&shared.page)
        {
            self.answer(&mut shared, taken, store)?;
            burst.count();
        }
        Ok(burst.answered())
    }

    fn answer(&mut self, shared: &mut Shared, taken: Taken, store: &mut Store) -> io::Result<()> {
        let request = *taken.request();
        inject::point(Point::Taken);
        let mut noter = Noter {
            store,
            stub: self.stub,
            name: &self.name,
            limits: &self.limits,
        };
        let note = |bdf: Bdf, note: Note<'_>| noter.note(bdf, note);
        let done = shared.functions.answer(&taken, &self.xen, note);
        let answer = match &done {
            Ok(Done::Value(value)) => Ok(Success::Value(*value)),
            Ok(Done::Vectors(vectors)) => Ok(Success::Vectors(vectors)),
            Err(failure) => Err(failure.error),
        };
        let delivery = taken.answer(&shared.page, answer);
        inject::call(Point::Answered)?;
        self.channel.notify()?;
        shared.requests += 1;
        if let Err(failure) = done {
            shared.failed += 1;
            self.complain(&request, &failure);
        }
        if delivery == Delivery::Late
            && let Some(missed) = lock(&self.limits).complaints.allow(Instant::now())
        {
            log::warn!("stub {}: {request}: answered too late{}", self.name, more(missed));
        }
        Ok(())
    }

    fn complain(&mut self, request: &Request, failure: &Failure) {
        if let Some(missed) = lock(&self.limits).complaints.allow(Instant::now()) {
            let Failure { error, cause } = failure;
            log::warn!("stub {}: {request}: {error}: {cause}{}", self.name, more(missed));
        }
    }
}

/// Writes interrupt modes down, and tells of them.
struct Noter<'a> {
    store: &'a mut Store,
    stub: DomId,
    name: &'a str,
    limits: &'a Mutex<Limits>,
}

impl Noter<'_> {
    fn note(&mut self, bdf: Bdf, note: Note<'_>) {
        inject::point(Point::Note);
        let noted = records::note_mode(self.store, self.stub, bdf, note);
        inject::point(Point::Noted);
        let mode = match (note, &noted) {
            // Its end will be told.
            (Note::Change(_), Ok(())) => return,
            (Note::Change(change), Err(_)) => change.to_string(),
            (Note::Mode(mode), _) => mode.to_string(),
        };
        let Some(missed) = lock(self.limits).notes.allow(Instant::now()) else {
            return;
        };
        let (name, more) = (self.name, more(missed));
        match noted {
            Ok(()) => log::info!("stub {name}: {bdf} now interrupts by {mode}{more}"),
            Err(error) => {
                log::error!("stub {name}: {bdf}: cannot note interrupt mode {mode}: {error}{more}");
            }
        }
    }
}

/// The changes of interrupt modes whose end a service before this one did not note, and the pirqs that the guest has by
/// the record.
fn unfinished(store: &mut Store, stub: DomId) -> Result<(BTreeMap<Bdf, Change>, BTreeSet<u32>), RecordError> {
    let mut changes = BTreeMap::new();
    let mut known = BTreeSet::new();
    if let Some(attachment) = Attachment::read(store, stub)? {
        for (device, mode) in attachment.devices_and_modes() {
            let change = records::unfinished_change(store, stub, device.bdf)?;
            changes.extend(change.map(|change| (device.bdf, change)));
            known.extend(mode.pirqs().into_iter().map(u32::from).chain(device.gsi));
        }
    }
    Ok((changes, known))
}

pub fn more(missed: u64) -> String {
    match missed {
        0 => String::new(),
        missed => format!(" (and {missed} messages not shown)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(magic: &str, grant: &str, port: &str) -> Result<Particulars, String> {
        parse_particulars(&[magic, grant, port].map(str::to_owned)).map_err(|error| error.to_string())
    }

    #[test]
    fn particulars_are_a_grant_and_a_port() {
        assert_eq!(parse("7", "8", "15"), Ok(Particulars { grant: 8, port: 15 }));
    }

    /// A connection to xenstore during which somebody else writes.
    struct Meanwhile<F>(Store, F);

    impl<F: FnMut()> Nodes for Meanwhile<F> {
        type TransportError = io::Error;

        fn submit(&mut self, request: xenbus::client::StoreRequest<'_>) -> Result<Vec<u8>, StoreError> {
            let reply = self.0.submit(request);
            (self.1)();
            reply
        }
    }

    /// Particulars of stub 4, which writes `grants` one after the other, one before each further reading of a node.
    fn read_while_written(grants: &[&[u8]]) -> Option<Result<Particulars, LinkError>> {
        let daemon = xenbus::model::Xenstored::new();
        daemon.introduce(4);
        let hop = Hop::second_hop(4);
        let mut stub = store::tests::connect(&daemon, 4);
        for (key, value) in [
            (key::MAGIC, "7"),
            (key::PCI_OP_REF, "8"),
            (key::EVENT_CHANNEL, "15"),
        ] {
            stub.write(&hop.frontend_node(key), value).unwrap();
        }
        let mut grants = grants.iter();
        let write = || {
            if let Some(grant) = grants.next() {
                stub.write_bytes(&hop.frontend_node(key::PCI_OP_REF), grant)
                    .unwrap();
            }
        };
        particulars(&mut Meanwhile(store::tests::dom0(&daemon), write), hop).unwrap()
    }

    #[test]
    fn particulars_are_of_one_moment_or_come_later() {
        assert_eq!(
            read_while_written(&[]).unwrap().unwrap(),
            Particulars { grant: 8, port: 15 }
        );
        let numbers: Vec<String> = (0..12).map(|number| number.to_string()).collect();
        let numbers: Vec<&[u8]> = numbers.iter().map(|number| number.as_bytes()).collect();
        assert!(read_while_written(&numbers).is_none());
    }

    #[test]
    fn what_a_stub_writes_is_told_in_short_and_never_a_fault_of_xenstored() {
        for value in [&b"\xff"[..], b"", &[b'x'; 4000], "8\u{663}".as_bytes(), b"8\0"] {
            let error = read_while_written(&[value; 2]).unwrap().unwrap_err();
            assert!(error.is_of_offer());
            let text = error.to_string();
            assert!(text.contains("pci-op-ref") && text.len() < 500, "{text}");
        }
    }

    #[test]
    fn nonsense_is_named_by_its_node() {
        for (magic, grant, port, node) in [
            ("", "8", "15", "magic"),
            ("6", "8", "15", "magic"),
            ("7", "", "15", "pci-op-ref"),
            ("7", "-1", "15", "pci-op-ref"),
            ("7", "8", "4294967296", "event-channel"),
            ("7", "8", "x\n", "event-channel"),
        ] {
            let error = parse(magic, grant, port).unwrap_err();
            assert!(error.contains(&format!("node {node} is")), "{error}");
        }
    }
}
