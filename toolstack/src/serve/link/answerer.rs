//! The thread of a link: it answers the stub's requests.

use super::limits::Limits;
use super::modes::{LeftOver, ModeRecorder, unfinished};
use super::state::{LinkState, lock};
use crate::function::Done;
use crate::function::Failure;
use crate::host::store::Store;
use crate::records::ModeFile;
use crate::records::interrupt_mode::ModeRecord;
use crate::serve::log_limit::log_limited;
use crate::serve::throttle::Burst;
use inject::Point;
use log::Level;
use pci::bdf::Bdf;
use std::io;
use std::mem;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;
use xen::xenctrl::{DomId, Xenctrl};
use xen::xendev::{Event, EventChannel};
use xenbus::pciif::Request;
use xenbus::pciif::backend::{Delivery, Success, Taken, is_pending, take};

/// What the thread of a link works with.
pub struct Answerer {
    pub stub: DomId,
    pub name: String,
    pub shared: Arc<Mutex<LinkState>>,
    pub channel: Arc<EventChannel>,
    pub xen: Xenctrl,
    pub limits: Arc<Mutex<Limits>>,
    /// What an earlier thread has left.
    pub left: LeftOver,
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
        let left = mem::take(&mut self.left);
        let shared = Arc::clone(&self.shared);
        let mut shared = lock(&shared);
        self.resolve(&mut shared, store, &left);
        if let Some(taken) = take(&shared.page) {
            let mut recorder = ModeRecorder::new(store, self.stub, &self.name, &self.limits);
            shared
                .functions
                .begin_again(taken.request(), &self.xen, |bdf, file, record| {
                    recorder.record(bdf, file, record);
                });
            recorder.log();
            self.answer(&mut shared, taken, store)?;
        }
        // The service that died may have given an answer without an event.
        self.channel.notify()?;
        Ok(())
    }

    /// Finishes changes of interrupt modes that an earlier service has left unfinished.
    fn resolve(&self, shared: &mut LinkState, store: &mut Store, left: &LeftOver) {
        let mut recorder = ModeRecorder::new(store, self.stub, &self.name, &self.limits);
        let resolved =
            shared
                .functions
                .resolve_unknown(&self.xen, &left.changes, &left.known, |bdf, file, record| {
                    recorder.record(bdf, file, record);
                });
        recorder.log();
        // A stub can have this tried again by each request for messages, and by each restart.
        for (bdf, cause) in &left.causes {
            log_limited!(lock(&self.limits).complaints, Level::Error, DEVICE = *bdf; "{cause}");
        }
        for (bdf, resolved) in resolved {
            match resolved {
                Ok(found) => log_limited!(
                    lock(&self.limits).complaints,
                    Level::Warn,
                    DEVICE = bdf;
                    "stub {}: {bdf}: {found}",
                    self.name
                ),
                Err(error) => log_limited!(
                    lock(&self.limits).complaints,
                    Level::Error,
                    DEVICE = bdf;
                    "stub {}: {bdf}: a change that an earlier service left unfinished cannot be finished: {error}; it is \
                     tried again when the guest turns messages on",
                    self.name
                ),
            }
        }
    }

    /// Serves until it is stopped. Interrupt modes are recorded in `store`.
    fn serve(&mut self, store: &mut Store) -> io::Result<()> {
        while self.channel.wait()? == Event::Peer {
            let now = Instant::now();
            // An event without a request counts as one: it costs dom0 nearly as much.
            let requests = self.burst(store, now)?.max(1);
            let wait = lock(&self.limits).throttle.spend(requests, now);
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
    fn burst(&mut self, store: &mut Store, began: Instant) -> io::Result<u32> {
        let shared = Arc::clone(&self.shared);
        let mut shared = lock(&shared);
        let mut burst = Burst::new(began);
        while let Some(taken) = take(&shared.page) {
            self.answer(&mut shared, taken, store)?;
            burst.count();
            // The clock is read only if there is another request.
            if !is_pending(&shared.page) || !burst.goes_on(Instant::now()) {
                break;
            }
        }
        Ok(burst.answered())
    }

    fn answer(&mut self, shared: &mut LinkState, taken: Taken, store: &mut Store) -> io::Result<()> {
        // The copy counts from here on: the stub can change the page at any time.
        let request = *taken.request();
        inject::point(Point::Taken);
        if shared.functions.needs_resolving(&request) {
            // It may be awake by now.
            match unfinished(store, self.stub) {
                Ok(left) => self.resolve(shared, store, &left),
                Err(error) => log_limited!(
                    lock(&self.limits).complaints,
                    Level::Error,
                    "stub {}: {:#}",
                    self.name,
                    anyhow::Error::from(error)
                ),
            }
        }
        let mut recorder = ModeRecorder::new(store, self.stub, &self.name, &self.limits);
        let record = |bdf: Bdf, file: &mut Option<ModeFile>, record: ModeRecord<'_>| {
            recorder.record(bdf, file, record);
        };
        let done = shared.functions.answer(&taken, &self.xen, record);
        let answer = match &done {
            Ok(Done::Value(value)) => Ok(Success::Value(*value)),
            Ok(Done::Vectors(vectors)) => Ok(Success::Vectors(vectors)),
            Err(failure) => Err(failure.error),
        };
        // Answer and event first, log afterwards: the guest waits.
        let delivery = taken.answer(&shared.page, answer);
        inject::call(Point::Answered)?;
        self.channel.notify()?;
        recorder.log();
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
