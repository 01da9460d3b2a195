//! The service's end of one second hop: the stub's page, its event channel, and the thread that answers.

mod answerer;
mod error;
mod limits;
mod modes;
mod removed;
mod ring_params;
mod state;

pub use error::LinkError;
pub use limits::Limits;
pub use removed::follow;
pub use ring_params::{RingParams, ring_params};
pub use state::{Handle, lock};

use super::wake::Wake;
use crate::config_space::access::ConfigFile;
use crate::function::Functions;
use crate::function::aer::{Health, Told};
use crate::host::store;
use crate::host::sysfs::Sysfs;
use crate::records::Attachment;
use crate::serve::log_limit::log_limited;
use crate::service_log::{self, About};
use answerer::Answerer;
use log::Level;
use modes::unfinished_of;
use pci::bdf::Bdf;
use state::LinkState;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use xen::xenctrl::Xenctrl;
use xen::xendev::{EventChannel, GrantedPage};
use xenbus::handover_block;
use xenbus::pciif::aer::{self, AerRequest, Busy, Verdict};
use xenbus::pciif::{AER_HANDLER, SharedPage as _, layout};

/// A stub that is served. The thread ends when this is dropped, after the request that it is at.
pub struct Link {
    ring_params: RingParams,
    handle: Handle,
    channel: Arc<EventChannel>,
    thread: Option<JoinHandle<()>>,
    ended: Arc<AtomicBool>,
    began: Instant,
    /// Names of the guest and of the stub, for the log.
    names: (String, String),
}

/// Tells of the end of a link's thread, a panic included.
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
    /// Maps the stub's page, binds its port, and starts to answer. `attachment` was read since the stub's last link ended.
    ///
    /// The thread records interrupt modes with the help of `store`, and calls
    /// `wake` when it ends.
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
        let mut functions = Functions::none(attachment.guest.domid);
        for bdf in removed::follow(&mut functions, attachment, sysfs)? {
            // A stub restarts as often as it likes, and has a new link each time.
            log_limited!(
                lock(&limits).complaints,
                Level::Error,
                DEVICE = bdf;
                "{}",
                removed::message(attachment, bdf)
            );
        }
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
            left: unfinished_of(attachment),
        };
        let names = (attachment.guest.name.clone(), attachment.stub.name.clone());
        let (guest_name, stub_name) = names.clone();
        let ended = Arc::new(AtomicBool::new(false));
        let end = ThreadEnd {
            ended: Arc::clone(&ended),
            wake,
        };
        let thread = thread::Builder::new()
            .name(format!("stub {stub}"))
            .spawn(move || {
                // Dropped last, also when the thread unwinds.
                let _end = end;
                let _about = service_log::about(&guest_name, &stub_name);
                answerer.run(store::over(store));
            })?;
        Ok(Self {
            ring_params,
            handle: Handle(shared),
            channel,
            thread: Some(thread),
            ended,
            began: Instant::now(),
            names,
        })
    }

    /// Says that the thread works on this stub from now on.
    pub fn about(&self) -> About {
        let (guest, stub) = &self.names;
        service_log::about(guest, stub)
    }

    /// True if nobody answers the stub any more, because the thread has failed.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Time since the link was made.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// A handle for other threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The stub's page and port.
    pub fn ring_params(&self) -> RingParams {
        self.ring_params
    }

    /// Serves the devices that the attachment has now.
    pub fn follow(&self, attachment: &Attachment, sysfs: &Sysfs) -> Result<(), LinkError> {
        let mut shared = self.handle.lock();
        for bdf in removed::follow(&mut shared.functions, attachment, sysfs)? {
            log::error!(DEVICE:% = bdf; "{}", removed::message(attachment, bdf));
        }
        report_errors(&mut shared.functions, sysfs);
        Ok(())
    }

    /// Passes an error of a device on to the guest, by way of the stub.
    pub fn tell(&self, request: &AerRequest) -> Told {
        let page = &self.handle.lock().page;
        // The guest sets the flag, and the stub mirrors it. Without it nobody would answer.
        if page.load(layout::FLAGS) & AER_HANDLER == 0 {
            return Told::Nobody;
        }
        match aer::post(page, request) {
            // A stub that cannot be notified is silent, which has its limit.
            Ok(()) => self.channel.notify().map_or(Told::Nobody, |()| Told::Yes),
            // An earlier one has no verdict yet. A request is never withdrawn, because pciif has no request numbers.
            Err(Busy) => Told::Busy,
        }
    }

    /// The guest's answer to that; `None` while there is none.
    pub fn verdict(&self) -> Option<Verdict> {
        aer::verdict(&self.handle.lock().page).map(Verdict::from_raw)
    }

    /// Finds out how a device is after an error, and restores it if it was reset.
    pub fn inspect(&self, bdf: Bdf, xen: &Xenctrl) -> io::Result<Health> {
        let shared = self.handle.lock();
        let function = shared.functions.get(bdf).ok_or(io::ErrorKind::NotFound)?;
        function.inspect(xen)
    }

    /// Finds out how a device is after the host was suspended, and restores it if it has lost its state; with `in_doubt` also if
    /// nobody can tell.
    pub fn resume(&self, bdf: Bdf, xen: &Xenctrl, in_doubt: bool) -> io::Result<Health> {
        let shared = self.handle.lock();
        let function = shared.functions.get(bdf).ok_or(io::ErrorKind::NotFound)?;
        function.resume(xen, in_doubt)
    }

    /// Restores a device that was reset.
    pub fn renew(&self, bdf: Bdf, xen: &Xenctrl) -> io::Result<()> {
        let shared = self.handle.lock();
        let function = shared.functions.get(bdf).ok_or(io::ErrorKind::NotFound)?;
        function.renew(xen)
    }

    /// The stub's handover block, as text.
    pub fn handover_block(&self) -> Option<String> {
        handover_block::to_hex(&self.handle.lock().page)
    }
}

/// Turns error reporting on in the devices whose errors reach dom0's kernel.
fn report_errors(functions: &mut Functions<ConfigFile>, sysfs: &Sysfs) {
    for function in functions
        .iter_mut()
        .filter(|function| sysfs.hears_errors(function.bdf()))
    {
        if let Err(error) = function.report_errors() {
            let bdf = function.bdf();
            log::warn!(DEVICE:% = bdf; "{bdf}: it will not report its errors: {error}");
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Err(error) = self.channel.stop() {
            // Nor can the thread be waited for then: it may never end.
            log::error!("the thread of a stub cannot be stopped: {error}");
        } else if let Some(thread) = self.thread.take() {
            // It may be parked, because its stub has sent too many requests.
            thread.thread().unpark();
            if thread.join().is_err() {
                log::error!("the thread of a stub has failed");
            }
        }
    }
}
