//! One stub's connection: its page, its event channel, and the thread that answers.

mod answerer;
mod limits;
mod ring_params;
mod state;

pub use limits::Limits;
pub use ring_params::{NodeError, RingParams, ring_params};
pub use state::{Handle, lock};

use super::wake::Wake;
use crate::function::Functions;
use crate::function::aer::{Condition, Told};
use crate::host::store;
use crate::host::sysfs::{Sysfs, SysfsError};
use crate::pci::config_space::ConfigFile;
use crate::records::Attachment;
use answerer::Answerer;
use pci::bdf::Bdf;
use state::LinkState;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use thiserror::Error;
use xen::xenctrl::Xenctrl;
use xen::xendev::{EventChannel, GrantedPage};
use xenbus::handover_block;
use xenbus::pciif::aer::{self, AerRequest, Busy, Verdict};
use xenbus::pciif::{AER_HANDLER, SharedPage as _, layout};

/// Why a stub is not served.
#[derive(Debug, Error)]
pub enum LinkError {
    /// What it has published makes no sense.
    #[error(transparent)]
    Node(#[from] NodeError),
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
        matches!(self, Self::Node(_) | Self::Page { .. } | Self::Port { .. })
    }
}

/// A stub that is served, until this is dropped.
pub struct Link {
    ring_params: RingParams,
    handle: Handle,
    channel: Arc<EventChannel>,
    thread: Option<JoinHandle<()>>,
    ended: Arc<AtomicBool>,
    began: Instant,
}

/// Tells of the end of a link's thread, however it comes.
struct ThreadEnd {
    ended: Arc<AtomicBool>,
    wake: Wake,
}

impl Drop for ThreadEnd {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.wake.wake();
    }
}

impl Link {
    /// Maps, binds, and starts to answer. Interrupt modes are noted in xenstore over `store`; the end of the thread calls `wake`.
    pub fn start(
        attachment: &Attachment,
        ring_params: RingParams,
        sysfs: &Sysfs,
        xen: Xenctrl,
        store: OwnedFd,
        wake: Wake,
        limits: Arc<Mutex<Limits>>,
    ) -> Result<Self, LinkError> {
        let RingParams { grant, port } = ring_params;
        let stub = attachment.stub.domid;
        let mut functions =
            Functions::new(attachment, |bdf| sysfs.open_config(bdf).map_err(LinkError::from))?;
        report_errors(&mut functions, sysfs);
        let page = GrantedPage::map(stub, grant).map_err(|source| LinkError::Page { grant, source })?;
        let channel = EventChannel::bind(stub, port).map_err(|source| LinkError::Port { port, source })?;
        let shared = Arc::new(Mutex::new(LinkState {
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
        let end = ThreadEnd {
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
            ring_params,
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
    pub fn ring_params(&self) -> RingParams {
        self.ring_params
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
