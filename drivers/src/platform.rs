//! The trait for the machine below the drivers. The unikernel implements it by hypercalls, the tests by a model of Xen.

use crate::crash_log::{CrashLog, Op};
use crate::snapshot::Snapshot;
use core::time::Duration;
use pci::bdf::Bdf;
use xenbus::pciif::SharedPage;

/// Number of a domain.
pub type DomId = u16;
/// Local event channel port.
pub type Port = u32;
/// Grant reference.
pub type GrantRef = u32;

/// The longest that work may run. Then the machine ends the run, by [`Cause::Deadline`](crate::crash_log::Cause::Deadline).
/// Guests wait two seconds for an answer, and a restart takes some tenths of a second.
pub const WORK_LIMIT: Duration = Duration::from_millis(400);

/// A refused request of the hypervisor: the errno value, positive (`xen/errno.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// The earlier of two moments; `None` is never.
// One copy of it in the image: iterators cost more at each place.
#[inline(never)]
pub fn sooner(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Why a function's ECAM page cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EcamError {
    /// Xen refuses to map it.
    Refused(Errno),
    /// Xen would let this domain write it. A guest that takes over the stub could do anything to the device.
    Writable,
}

/// Read access to the 4 KiB configuration space of one PCI function.
pub trait ConfigSpace {
    /// Reads `width` bytes (1, 2 or 4) at `offset` (below 4096, a multiple of `width`), zero-extended.
    fn read(&self, offset: u16, width: u8) -> u32;
}

/// The services of the hypervisor that the drivers use.
pub trait Platform {
    /// A page shared with another domain.
    type Page: SharedPage;
    /// A function's ECAM page.
    type Ecam: ConfigSpace;

    /// Time since boot.
    fn now(&self) -> Duration;

    /// Maps the page that `owner` granted as `grant`, for reading and writing.
    fn map_grant(&mut self, owner: DomId, grant: GrantRef) -> Result<Self::Page, Errno>;
    /// Unmaps what [`Self::map_grant`] returned.
    fn unmap_grant(&mut self, page: Self::Page);
    /// Takes a zeroed page of this domain and grants it to `peer`.
    fn share_page(&mut self, peer: DomId) -> Result<(Self::Page, GrantRef), Errno>;
    /// The same with a page that is set apart for background work: a peer that keeps such pages mapped takes none from
    /// the hops.
    fn share_spare_page(&mut self, peer: DomId) -> Result<(Self::Page, GrantRef), Errno> {
        self.share_page(peer)
    }
    /// Ends the grant that [`Self::share_page`] made and frees its page.
    fn unshare_page(&mut self, page: Self::Page, grant: GrantRef);

    /// Binds a local port to `peer`'s unbound `remote` port.
    fn bind_interdomain(&mut self, peer: DomId, remote: Port) -> Result<Port, Errno>;
    /// Makes a port that `peer` can bind to.
    fn alloc_unbound(&mut self, peer: DomId) -> Result<Port, Errno>;
    /// Closes a local port.
    fn close(&mut self, port: Port);
    /// Sends an event over a local port.
    fn notify(&mut self, port: Port);
    /// Takes the pending mark off a port; true if it was set.
    fn take_pending(&mut self, port: Port) -> bool;
    /// True if `port` is pending; the mark stays.
    fn is_pending(&self, port: Port) -> bool;
    /// Lets other domains run for a moment, without going to sleep. A loop of these sees an event sooner than
    /// [`Self::wait`], which needs a wake-up by Xen.
    fn relax(&mut self);
    /// Blocks until one of `ports` is pending or the clock reaches `until`.
    fn wait(&mut self, ports: &[Port], until: Option<Duration>);

    /// Maps the ECAM page in machine frame `frame`, uncached, if Xen keeps it read-only for this domain.
    fn map_ecam(&mut self, frame: u64) -> Result<Self::Ecam, EcamError>;
    /// Unmaps what [`Self::map_ecam`] returned.
    fn unmap_ecam(&mut self, ecam: Self::Ecam);

    /// Calls `see` with the crash log of earlier runs. It must not call the platform.
    fn see_crash_log<R>(&self, see: impl FnOnce(&CrashLog) -> R) -> R;
    /// A copy of the crash log of earlier runs: too long for what happens in each request.
    fn crash_log(&self) -> CrashLog {
        self.see_crash_log(|crash_log| *crash_log)
    }
    /// Changes the crash log that later runs will find.
    fn update_crash_log(&mut self, change: impl FnOnce(&mut CrashLog));
    /// From here on a failure counts against this request of the guest; `None`: against no request.
    fn set_under_way(&mut self, op: Option<&Op>);
    /// The word that was [remembered](Self::remember) last about the function at this guest address.
    fn recall(&self, guest_bdf: Bdf) -> Option<u32>;
    /// Keeps a word about that function for later runs, or forgets the one that is kept.
    fn remember(&mut self, guest_bdf: Bdf, word: Option<u32>);
    /// What the next run is to serve the guest by.
    fn snapshot(&self) -> &Snapshot;

    /// Makes the processor fail in this way.
    #[cfg(feature = "inject")]
    fn fault(&mut self, kind: crate::failure::FailureKind);
}
