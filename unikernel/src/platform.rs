//! The drivers' [`Platform`], by hypercalls.

use crate::grant::{ForeignPage, GrantTable, OwnPage};
use crate::memory::{Mapping, Window};
use crate::page::EcamPage;
use crate::{clock, deadline, event, grant, kept};
#[cfg(feature = "inject")]
use core::arch::asm;
use core::time::Duration;
use drivers::crash_log::{CrashLog, Op};
use drivers::log;
use drivers::platform::{DomId, EcamError, Errno, GrantRef, Platform, Port};
use drivers::snapshot::Snapshot;
use pci::bdf::Bdf;
use xenbus::pciif::page::{AtomicPage, PageMemory};

/// The machine: Xen.
#[derive(Debug)]
pub struct Xen {
    grants: GrantTable,
}

impl Xen {
    /// Wraps the grant table; everything else needs no state.
    pub const fn new(grants: GrantTable) -> Self {
        Self { grants }
    }

    /// The grant table, to do with it what [`Platform`] has no use for.
    #[cfg(feature = "misuse")]
    pub const fn grants(&mut self) -> &mut GrantTable {
        &mut self.grants
    }
}

/// A page that is shared with another domain.
#[derive(Debug)]
pub enum Page {
    /// A page of the other domain, granted to this one.
    Foreign(ForeignPage),
    /// A page of this domain, granted to the other one.
    Own(OwnPage),
}

impl PageMemory for Page {
    fn atomics(&self) -> AtomicPage<'_> {
        match self {
            Self::Foreign(page) => page.page().atomics(),
            Self::Own(page) => page.page().atomics(),
        }
    }
}

impl Platform for Xen {
    type Page = Page;
    type Ecam = EcamPage;

    fn now(&self) -> Duration {
        clock::now()
    }

    fn map_grant(&mut self, owner: DomId, grant: GrantRef) -> Result<Page, Errno> {
        ForeignPage::map(owner, grant).map(Page::Foreign)
    }

    fn unmap_grant(&mut self, page: Page) {
        drop(page);
    }

    fn share_page(&mut self, peer: DomId) -> Result<(Page, GrantRef), Errno> {
        let (page, grant) = self.grants.share(peer, grant::HOPS)?;
        Ok((Page::Own(page), grant))
    }

    #[cfg(feature = "net")]
    fn share_spare_page(&mut self, peer: DomId) -> Result<(Page, GrantRef), Errno> {
        let (page, grant) = self.grants.share(peer, grant::NETWORK)?;
        Ok((Page::Own(page), grant))
    }

    fn unshare_page(&mut self, page: Page, _: GrantRef) {
        if let Page::Own(page) = page {
            self.grants.unshare(page);
        }
    }

    fn bind_interdomain(&mut self, peer: DomId, remote: Port) -> Result<Port, Errno> {
        event::bind_interdomain(peer, remote)
    }

    fn alloc_unbound(&mut self, peer: DomId) -> Result<Port, Errno> {
        event::alloc_unbound(peer)
    }

    fn close(&mut self, port: Port) {
        event::close(port);
    }

    fn notify(&mut self, port: Port) {
        if let Err(Errno(errno)) = event::send(port) {
            log::warn!("event channel port {port} takes no events (errno {errno})");
        }
    }

    fn take_pending(&mut self, port: Port) -> bool {
        event::take_pending(port)
    }

    fn is_pending(&self, port: Port) -> bool {
        event::is_pending(port)
    }

    fn relax(&mut self) {
        event::yield_processor();
    }

    fn wait(&mut self, ports: &[Port], until: Option<Duration>) {
        deadline::wait(ports, until);
    }

    fn map_ecam(&mut self, frame: u64) -> Result<EcamPage, EcamError> {
        // SAFETY: Xen lets a domain without devices map no frames but its own and those granted with iomem permission,
        // and the toolstack grants this one, a configuration page. A frame of our own memory would be a second view,
        // through which nothing is read or written before it is refused below.
        let window = unsafe { Window::show(frame, Mapping::Device) }.map_err(EcamError::Refused)?;
        if window.is_writable() {
            return Err(EcamError::Writable);
        }
        // SAFETY: as above.
        Ok(unsafe { EcamPage::new(window) })
    }

    fn unmap_ecam(&mut self, ecam: EcamPage) {
        drop(ecam);
    }

    fn see_crash_log<R>(&self, see: impl FnOnce(&CrashLog) -> R) -> R {
        kept::see_crash_log(see)
    }

    fn update_crash_log(&mut self, change: impl FnOnce(&mut CrashLog)) {
        kept::update_crash_log(change);
    }

    fn set_under_way(&mut self, op: Option<&Op>) {
        kept::set_under_way(op);
    }

    fn recall(&self, guest_bdf: Bdf) -> Option<u32> {
        kept::recall(guest_bdf)
    }

    fn remember(&mut self, guest_bdf: Bdf, word: Option<u32>) {
        kept::remember(guest_bdf, word);
    }

    fn snapshot(&self) -> &Snapshot {
        &kept::SNAPSHOT
    }

    #[cfg(feature = "inject")]
    fn fault(&mut self, kind: drivers::failure::FailureKind) {
        use drivers::failure::FailureKind;
        if kind == FailureKind::Hypercall {
            crate::hypercall::REFUSE_MAPPING.store(true, core::sync::atomic::Ordering::Relaxed);
            return;
        }
        if kind == FailureKind::Handle {
            crate::hypercall::LOSE_HANDLE.store(true, core::sync::atomic::Ordering::Relaxed);
            return;
        }
        // SAFETY: none of these instructions does anything but raise the exception that the tests want: page 0 is
        // unmapped, and the other address is none of x86-64.
        unsafe {
            match kind {
                FailureKind::PageFault => asm!("mov eax, [0]", out("eax") _, options(nostack)),
                FailureKind::ProtectionFault => {
                    asm!("mov {0}, 1", "shl {0}, 62", "mov {0}, [{0}]", out(reg) _, options(nostack));
                }
                FailureKind::Deaf => {
                    event::open_upcalls(false);
                    loop {
                        core::hint::spin_loop();
                    }
                }
                _ => asm!("ud2", options(nostack)),
            }
        }
    }
}
