//! The grant table, version 1: mapping pages of other domains, and granting own ones
//! (`xen/include/public/grant_table.h`).

#[cfg(feature = "misuse")]
mod misuse;

use crate::event::DOMID_SELF;
use crate::hypercall;
use crate::kept;
use crate::memory::{self, Mapping, PAGE_SIZE, Window};
use crate::page::RawPage;
use core::mem::ManuallyDrop;
use core::ops::Range;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use drivers::log;
use drivers::platform::{DomId, Errno, GrantRef};
use hermit_abi::errno::{EINVAL, ENOSPC};
use xen_sys::__HYPERVISOR_grant_table_op;
use xenbus::pciif::SharedPage;

const GNTTABOP_MAP_GRANT_REF: u32 = 0;
const GNTTABOP_UNMAP_GRANT_REF: u32 = 1;
const GNTTABOP_SETUP_TABLE: u32 = 2;
const GNTMAP_HOST_MAP: u32 = 1 << 1;

const GTF_PERMIT_ACCESS: u16 = 1;
/// `GTF_reading | GTF_writing`: the peer has the page mapped.
const GTF_IN_USE: u16 = 3 << 3;

/// References below this are the toolstack's, for console and xenstore.
const FIRST_FREE: GrantRef = 8;
/// Pages that can be shared.
const SHARED_COUNT: usize = (memory::SHARED.end - memory::SHARED.start) / PAGE_SIZE;
/// The pages for the hops.
pub const HOPS: Range<usize> = 0..8;
/// The pages for a network. A backend that keeps some of them mapped costs the network.
#[cfg(feature = "net")]
pub const NETWORK: Range<usize> = HOPS.end..SHARED_COUNT;
/// Entries of 8 bytes in the one frame that we use.
const ENTRIES: GrantRef = (PAGE_SIZE / 8) as GrantRef;
const _: () = assert!(reference_of(SHARED_COUNT) <= ENTRIES);

#[repr(C)]
struct SetupTable {
    domain: DomId,
    frame_count: u32,
    status: i16,
    frames: *mut u64,
}

#[repr(C)]
struct MapGrantRef {
    host_address: u64,
    flags: u32,
    reference: GrantRef,
    domain: DomId,
    status: i16,
    handle: u32,
    bus_address: u64,
}

#[repr(C)]
struct UnmapGrantRef {
    host_address: u64,
    bus_address: u64,
    handle: u32,
    status: i16,
}

const _: () = assert!(
    size_of::<SetupTable>() == 24 && size_of::<MapGrantRef>() == 32 && size_of::<UnmapGrantRef>() == 24
);

/// Turns the status of a grant operation (`GNTST_*`), which Xen gives beside the hypercall's result, into a result.
fn granted(operation: &str, status: i16) -> Result<(), Errno> {
    if status == 0 {
        return Ok(());
    }
    // Widened: the image has the code that writes an `i32` anyway.
    log::debug!("{operation}: grant table status {}", i32::from(status));
    Err(Errno(EINVAL))
}

/// A page of another domain, mapped.
#[derive(Debug)]
pub struct ForeignPage {
    window: ManuallyDrop<Window>,
    handle: u32,
    page: RawPage,
}

impl ForeignPage {
    /// Maps the page that `owner` granted us as `reference`, for reading and writing.
    ///
    /// # Errors
    /// `EINVAL` if there is no such grant for us, `ENOMEM` without a free window.
    pub fn map(owner: DomId, reference: GrantRef) -> Result<Self, Errno> {
        let window = Window::allocate()?;
        let va = window.address();
        // Recorded before the mapping is there: a run that ends in between leaves behind which window it may be in.
        kept::expect_foreign(va)?;
        let mut argument = MapGrantRef {
            host_address: va as u64,
            flags: GNTMAP_HOST_MAP,
            reference,
            domain: owner,
            status: -1,
            handle: 0,
            bus_address: 0,
        };
        // SAFETY: the structure of GNTTABOP_map_grant_ref. Xen replaces the entry of the window, whose own memory
        // nobody uses, and the page belongs to another domain.
        let called = unsafe {
            hypercall::operate_on_one(__HYPERVISOR_grant_table_op, GNTTABOP_MAP_GRANT_REF, &mut argument)
        };
        if let Err(errno) = called.and_then(|_| granted("map_grant_ref", argument.status)) {
            kept::forget_foreign(va);
            return Err(errno);
        }
        #[cfg(feature = "inject")]
        assert!(
            !hypercall::LOSE_HANDLE.swap(false, Ordering::Relaxed),
            "as ordered"
        );
        kept::record_handle(va, argument.handle);
        // SAFETY: just mapped there, readable and writable, until `drop`.
        let page = unsafe { RawPage::new(va) };
        Ok(Self {
            window: ManuallyDrop::new(window),
            handle: argument.handle,
            page,
        })
    }

    /// The view of the page.
    pub const fn page(&self) -> &RawPage {
        &self.page
    }
}

impl Drop for ForeignPage {
    fn drop(&mut self) {
        match unmap(self.window.address(), self.handle) {
            // SAFETY: not used again: `self` is going.
            Ok(()) => unsafe { ManuallyDrop::drop(&mut self.window) },
            // The window keeps showing the page, and is never handed out again: Xen crashes a domain that replaces
            // a granted entry by other means.
            Err(Errno(errno)) => log::error!("a foreign page would not unmap (errno {errno})"),
        }
    }
}

/// Ends the mapping of a foreign page at `va`. Nobody may have a view of it any more.
fn unmap(va: usize, handle: u32) -> Result<(), Errno> {
    let mut argument = UnmapGrantRef {
        host_address: va as u64,
        bus_address: 0,
        handle,
        status: -1,
    };
    // SAFETY: the structure of GNTTABOP_unmap_grant_ref. Xen refuses a handle and an address that do not belong
    // together; where it agrees, the entry of a window goes, whose only view is its `ForeignPage`'s: that is in its
    // `drop`, or belonged to a run that has ended.
    unsafe {
        hypercall::operate_on_one(
            __HYPERVISOR_grant_table_op,
            GNTTABOP_UNMAP_GRANT_REF,
            &mut argument,
        )
    }
    .and_then(|_| granted("unmap_grant_ref", argument.status))?;
    kept::forget_foreign(va);
    Ok(())
}

/// Handles that Xen may have given: those of one page of its table. A domain that maps a few pages at a time gets no
/// others.
const HANDLES: u32 = 256;

/// Unmaps the foreign pages of an earlier run. Where Xen refuses, the window stays in use.
pub fn unmap_earlier() {
    for (va, handle) in kept::foreign() {
        // A failure shows in `kept::is_foreign`: the entry stays.
        match handle {
            Some(handle) => _ = unmap(va, handle),
            // The earlier run ended before the mapping was made.
            None if memory::shows_own_memory(va) => kept::forget_foreign(va),
            // It ended between the mapping and the record of its handle. Xen refuses all handles but the one that belongs to
            // the address.
            None => _ = (0..HANDLES).find(|&handle| unmap(va, handle).is_ok()),
        }
    }
}

/// The stub's grant table.
///
/// Each page of [`memory::SHARED`] has a fixed reference. So the table itself tells which pages a peer still has mapped,
/// also those that an earlier run has shared.
#[derive(Debug)]
pub struct GrantTable {
    window: Window,
    /// The pages that this run has shared.
    lent: [bool; SHARED_COUNT],
}

impl GrantTable {
    /// Asks Xen for the table and maps its first frame.
    ///
    /// # Errors
    /// The errno with which Xen refuses.
    pub fn init() -> Result<Self, Errno> {
        let mut frame = 0;
        let mut argument = SetupTable {
            domain: DOMID_SELF,
            frame_count: 1,
            status: -1,
            frames: &raw mut frame,
        };
        // SAFETY: the structure of GNTTABOP_setup_table, with room for the one frame number that it writes.
        unsafe {
            hypercall::operate_on_one(__HYPERVISOR_grant_table_op, GNTTABOP_SETUP_TABLE, &mut argument)?;
        }
        granted("setup_table", argument.status)?;
        // SAFETY: a frame of Xen's, not memory of ours.
        let window = unsafe { Window::show(frame, Mapping::Shared) }?;
        let mut table = Self {
            window,
            lent: [false; SHARED_COUNT],
        };
        for index in 0..SHARED_COUNT {
            // Where the peer still has the page mapped, this is tried again when the page is to be shared.
            table.revoke(reference_of(index));
        }
        Ok(table)
    }

    /// The parts of an entry: flags, domain and frame.
    fn entry(&self, reference: GrantRef) -> (&AtomicU16, &AtomicU16, &AtomicU32) {
        assert!(
            (FIRST_FREE..ENTRIES).contains(&reference),
            "grant reference {reference} is not ours"
        );
        let entry = self.window.address() + reference as usize * 8;
        // SAFETY: in the mapped table (checked above), aligned, and only ever accessed atomically: Xen writes the
        // flags at any moment.
        unsafe {
            (
                AtomicU16::from_ptr(entry as *mut u16),
                AtomicU16::from_ptr((entry + 2) as *mut u16),
                AtomicU32::from_ptr((entry + 4) as *mut u32),
            )
        }
    }

    /// Ends a grant; false if the peer has the page mapped.
    fn revoke(&mut self, reference: GrantRef) -> bool {
        let (flags, ..) = self.entry(reference);
        let ended = flags.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |now| {
            (now & GTF_IN_USE == 0).then_some(0)
        });
        ended.is_ok()
    }

    /// Takes a zeroed page, one of those with these numbers, and grants it to `peer`.
    ///
    /// # Errors
    /// `ENOSPC` if all pages are shared, or still mapped by those that they were shared with.
    #[inline(never)]
    pub fn share(&mut self, peer: DomId, mut pages: Range<usize>) -> Result<(OwnPage, GrantRef), Errno> {
        let free = pages.find(|&index| !self.lent[index] && self.revoke(reference_of(index)));
        let index = free.ok_or(Errno(ENOSPC))?;
        let va = memory::SHARED.start + index * PAGE_SIZE;
        let frame = u32::try_from(memory::shared_frame(va)).map_err(|_| Errno(EINVAL))?;
        // SAFETY: page-aligned, mapped for ever, used by nothing but these views, of which there is one at a time:
        // it was not lent by this run, those of earlier ones are gone, and no peer has it mapped.
        let page = unsafe { RawPage::new(va) };
        (0..PAGE_SIZE).step_by(4).for_each(|word| page.store(word, 0));
        self.lent[index] = true;
        let reference = reference_of(index);
        let (flags, domain, target) = self.entry(reference);
        domain.store(peer, Ordering::Relaxed);
        target.store(frame, Ordering::Relaxed);
        // Last, with release: from here on the peer may map what the entry says.
        flags.store(GTF_PERMIT_ACCESS, Ordering::Release);
        Ok((OwnPage { index, page }, reference))
    }

    /// Ends the grant. A page that the peer still has mapped is not shared again until the peer has unmapped it.
    pub fn unshare(&mut self, page: OwnPage) {
        self.lent[page.index] = false;
        let reference = reference_of(page.index);
        if !self.revoke(reference) {
            log::debug!(
                "grant {reference} is still in use by its peer: its page is set aside until it is not"
            );
        }
    }
}

/// A page of this domain that is shared with another one.
#[derive(Debug)]
pub struct OwnPage {
    /// In [`memory::SHARED`].
    index: usize,
    page: RawPage,
}

impl OwnPage {
    /// The view of the page.
    pub const fn page(&self) -> &RawPage {
        &self.page
    }
}

/// The reference of a page of [`memory::SHARED`].
const fn reference_of(index: usize) -> GrantRef {
    FIRST_FREE + index as GrantRef
}
