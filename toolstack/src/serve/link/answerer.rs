//! The thread of a link: it answers the stub's requests.

use super::limits::Limits;
use super::state::{LinkState, lock};
use crate::function::Done;
use crate::function::Failure;
use crate::host::store::Store;
use crate::records::interrupt_mode::{ModeChange, ModeRecord};
use crate::records::{self, Attachment, RecordError};
use crate::serve::log_limit::log_limited;
use crate::serve::throttle::Burst;
use inject::Point;
use log::Level;
use pci::bdf::Bdf;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;
use xen::xenctrl::{DomId, Xenctrl};
use xen::xendev::{Event, EventChannel};
use xenbus::pciif::Request;
use xenbus::pciif::backend::{Delivery, Success, Taken, take};

/// What the thread of a link works with.
pub struct Answerer {
    pub stub: DomId,
    pub name: String,
    pub shared: Arc<Mutex<LinkState>>,
    pub channel: Arc<EventChannel>,
    pub xen: Xenctrl,
    pub limits: Arc<Mutex<Limits>>,
}

impl Answerer {
    /// Answers until the channel is stopped.
    pub fn run(mut self, mut store: Store) {
        let ended = self
            .take_up(&mut store)
            .and_then(|()| Ok(self.serve(&mut store)?));
        if let Err(error) = ended {
            log::error!("stub {} is no longer served: {error:#}", self.name);
        }
    }

    /// Finishes what a service that died has left unfinished, and answers the request that waits in the page.
    fn take_up(&mut self, store: &mut Store) -> anyhow::Result<()> {
        inject::point(Point::TakeUp);
        // Unfinished changes come before the request in the page. That request is most likely the one that began the change,
        // and it is carried out from the start.
        let (changes, known) = unfinished(store, self.stub)?;
        let shared = Arc::clone(&self.shared);
        let mut shared = lock(&shared);
        let mut recorder = ModeRecorder {
            store,
            stub: self.stub,
            name: &self.name,
            limits: &self.limits,
        };
        let resolved = shared
            .functions
            .resolve_unknown(&self.xen, &changes, &known, |bdf, mode| {
                recorder.record(bdf, mode)
            });
        for (bdf, resolved) in resolved {
            match resolved {
                Ok(found) => log::warn!(DEVICE:% = bdf; "stub {}: {bdf}: {found}", self.name),
                Err(error) => log::error!(
                    DEVICE:% = bdf;
                    "stub {}: {bdf}: a change that an earlier service left unfinished cannot be finished: {error}",
                    self.name
                ),
            }
        }
        if let Some(taken) = take(&shared.page) {
            let mut recorder = ModeRecorder {
                store,
                stub: self.stub,
                name: &self.name,
                limits: &self.limits,
            };
            shared
                .functions
                .begin_again(taken.request(), &self.xen, |bdf, note| recorder.record(bdf, note));
            self.answer(&mut shared, taken, store)?;
        }
        // The service that died may have given an answer without an event.
        self.channel.notify()?;
        Ok(())
    }

    /// Serves until it is stopped. Interrupt modes are recorded in `store`.
    fn serve(&mut self, store: &mut Store) -> io::Result<()> {
        while self.channel.wait()? == Event::Peer {
            // An event without a request counts as one: it costs dom0 nearly as much.
            let requests = self.burst(store)?.max(1);
            let wait = lock(&self.limits).throttle.spend(requests, Instant::now());
            if !wait.is_zero() {
                // Not a sleep: the end of the link wakes this thread, so that it does not wait because of the stub.
                thread::park_timeout(wait);
            }
            self.channel.unmask()?;
        }
        Ok(())
    }

    /// Answers requests until there is none, and returns how many there were. The channel stays masked meanwhile, so that
    /// the stub's events cost dom0 nothing.
    ///
    /// The thread does not poll for a next request before it sleeps. The stub needs the processor, for it has to pass the
    /// answer on before its guest can ask again. Measured: polling made writes slower.
    ///
    /// A long burst is cut, so that other threads get at the shared state. The event of a request that is left waits behind
    /// the mask.
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

    fn answer(&mut self, shared: &mut LinkState, taken: Taken, store: &mut Store) -> io::Result<()> {
        // The copy counts from here on: the stub can change the page at any time.
        let request = *taken.request();
        inject::point(Point::Taken);
        let mut recorder = ModeRecorder {
            store,
            stub: self.stub,
            name: &self.name,
            limits: &self.limits,
        };
        let note = |bdf: Bdf, note: ModeRecord<'_>| recorder.record(bdf, note);
        let done = shared.functions.answer(&taken, &self.xen, note);
        let answer = match &done {
            Ok(Done::Value(value)) => Ok(Success::Value(*value)),
            Ok(Done::Vectors(vectors)) => Ok(Success::Vectors(vectors)),
            Err(failure) => Err(failure.error),
        };
        // Answer and event first, log afterwards: the guest waits.
        let delivery = taken.answer(&shared.page, answer);
        inject::call(Point::Answered)?;
        self.channel.notify()?;
        shared.requests += 1;
        if let Err(failure) = done {
            shared.failed += 1;
            self.complain(&request, &failure);
        }
        if delivery == Delivery::Late {
            let name = &self.name;
            log_limited!(
                lock(&self.limits).complaints,
                Level::Warn,
                "stub {name}: {request}: answered too late"
            );
        }
        Ok(())
    }

    fn complain(&mut self, request: &Request, failure: &Failure) {
        let (name, Failure { error, cause }) = (&self.name, failure);
        log_limited!(
            lock(&self.limits).complaints,
            Level::Warn,
            "stub {name}: {request}: {error}: {cause}"
        );
    }
}

/// Records interrupt modes in xenstore, and logs them.
struct ModeRecorder<'a> {
    store: &'a mut Store,
    stub: DomId,
    name: &'a str,
    limits: &'a Mutex<Limits>,
}

impl ModeRecorder<'_> {
    fn record(&mut self, bdf: Bdf, note: ModeRecord<'_>) {
        inject::point(Point::Note);
        let noted = records::record_mode(self.store, self.stub, bdf, note);
        inject::point(Point::Noted);
        let mode = match (note, &noted) {
            // The mode that it ends in is logged.
            (ModeRecord::Change(_), Ok(())) => return,
            (ModeRecord::Change(change), Err(_)) => change.to_string(),
            (ModeRecord::Mode(mode), _) => mode.to_string(),
        };
        let name = self.name;
        match noted {
            Ok(()) => log_limited!(
                lock(self.limits).mode_changes,
                Level::Info,
                DEVICE = bdf;
                "stub {name}: {bdf} now interrupts by {mode}"
            ),
            Err(error) => log_limited!(
                lock(self.limits).mode_changes,
                Level::Error,
                DEVICE = bdf;
                "stub {name}: {bdf}: cannot note interrupt mode {mode}: {error}"
            ),
        }
    }
}

/// What an earlier service may have left: changes of interrupt modes whose end is not recorded, and the pirqs that the guest
/// has by the record.
fn unfinished(
    store: &mut Store,
    stub: DomId,
) -> Result<(BTreeMap<Bdf, ModeChange>, BTreeSet<u32>), RecordError> {
    let mut changes = BTreeMap::new();
    let mut known = BTreeSet::new();
    if let Some(attachment) = Attachment::read(store, stub)? {
        for (device, mode) in attachment.devices_and_modes() {
            let change = records::unfinished_change(store, stub, device.bdf)?;
            changes.extend(change.map(|change| (device.bdf, change)));
            // INTx counts too: the guest has that pirq from the start.
            known.extend(mode.pirqs().into_iter().map(u32::from).chain(device.gsi));
        }
    }
    Ok((changes, known))
}
