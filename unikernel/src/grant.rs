//! The grant table, version 1, both ways (`xen/include/public/grant_table.h`).

use crate::event::DOMID_SELF;
use crate::hypercall;
use crate::memory::{self, Mapping, PAGE_SIZE, Window};
use crate::page::RawPage;
use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use drivers::platform::{DomId, Errno, GrantRef};
use hermit_abi::errno::{EINVAL, ENOMEM, ENOSPC};
use xen_sys::__HYPERVISOR_grant_table_op;

const GNTTABOP_MAP_GRANT_REF: u32 = 0;
const GNTTABOP_UNMAP_GRANT_REF: u32 = 1;
const GNTTABOP_SETUP_TABLE: u32 = 2;
const GNTMAP_HOST_MAP: u32 = 1 << 1;

const GTF_PERMIT_ACCESS: u16 = 1;
/// `GTF_reading | GTF_writing`: the peer has the page mapped.
const GTF_IN_USE: u16 = 3 << 3;

/// References below this are the toolstack's, for console and xenstore.
const FIRST_FREE: GrantRef = 8;
/// Entries of 8 bytes in the one frame that we use.
const ENTRIES: GrantRef = (PAGE_SIZE / 8) as GrantRef;

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

/// Refuses a grant operation by its own status (`GNTST_*`), which Xen gives beside the hypercall's result.
fn granted(operation: &str, status: i16) -> Result<(), Errno> {
    if status == 0 {
        return Ok(());
    }
    log::debug!("{operation}: grant table status {status}");
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
        let window = Window::take()?;
        let mut argument = MapGrantRef {
            host_address: window.address() as u64,
            flags: GNTMAP_HOST_MAP,
            reference,
            domain: owner,
            status: -1,
            handle: 0,
            bus_address: 0,
        };
        // SAFETY: the structure of GNTTABOP_map_grant_ref. Xen replaces the entry of the window, whose own memory
        // nobody uses, and the page belongs to another domain.
        unsafe {
            hypercall::operate_on_one(__HYPERVISOR_grant_table_op, GNTTABOP_MAP_GRANT_REF, &mut argument)?;
        }
        granted("map_grant_ref", argument.status)?;
        // SAFETY: just mapped there, readable and writable, until `drop`.
        let page = unsafe { RawPage::new(window.address()) };
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
        let mut argument = UnmapGrantRef {
            host_address: self.window.address() as u64,
            bus_address: 0,
            handle: self.handle,
            status: -1,
        };
        // SAFETY: the structure of GNTTABOP_unmap_grant_ref; the only view of the page, `self.page`, ends here.
        let called = unsafe {
            hypercall::operate_on_one(
                __HYPERVISOR_grant_table_op,
                GNTTABOP_UNMAP_GRANT_REF,
                &mut argument,
            )
        };
        match called.and_then(|_| granted("unmap_grant_ref", argument.status)) {
            // SAFETY: not used again: `self` is going.
            Ok(()) => unsafe { ManuallyDrop::drop(&mut self.window) },
            // The window keeps showing the page, and is never handed out again: Xen crashes a domain that replaces
            // a granted entry by other means.
            Err(Errno(errno)) => log::error!("a foreign page would not unmap (errno {errno})"),
        }
    }
}

/// Our grant table.
#[derive(Debug)]
pub struct GrantTable {
    window: Window,
}

impl GrantTable {
    /// Asks Xen for the table and maps its first frame.
    ///
    /// # Errors
    /// What Xen says.
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
        Ok(Self { window })
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

    /// Grants `peer` the use of machine frame `frame`.
    fn grant(&mut self, peer: DomId, frame: u64) -> Result<GrantRef, Errno> {
        let frame = u32::try_from(frame).map_err(|_| Errno(EINVAL))?;
        let free =
            (FIRST_FREE..ENTRIES).find(|&reference| self.entry(reference).0.load(Ordering::Relaxed) == 0);
        let reference = free.ok_or(Errno(ENOSPC))?;
        let (flags, domain, target) = self.entry(reference);
        domain.store(peer, Ordering::Relaxed);
        target.store(frame, Ordering::Relaxed);
        // Last, and released: from here on the peer may map what the entry says.
        flags.store(GTF_PERMIT_ACCESS, Ordering::Release);
        Ok(reference)
    }

    /// Ends a grant; false if the peer has the page mapped.
    fn revoke(&mut self, reference: GrantRef) -> bool {
        let (flags, ..) = self.entry(reference);
        let ended = flags.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |now| {
            (now & GTF_IN_USE == 0).then_some(0)
        });
        ended.is_ok()
    }

    /// Takes a zeroed page and grants it to `peer`.
    ///
    /// # Errors
    /// `ENOMEM` or `ENOSPC`.
    pub fn share(&mut self, peer: DomId) -> Result<(OwnPage, GrantRef), Errno> {
        let own = OwnPage::new()?;
        let reference = self.grant(peer, memory::heap_frame(own.va))?;
        Ok((own, reference))
    }

    /// Ends the grant and frees the page; a page that the peer still has mapped is never used again instead.
    pub fn unshare(&mut self, page: OwnPage, reference: GrantRef) {
        if !self.revoke(reference) {
            log::warn!("grant {reference} is still in use by its peer: its page is set aside");
            core::mem::forget(page);
        }
    }
}

/// A page of the heap that is shared with another domain.
#[derive(Debug)]
pub struct OwnPage {
    va: usize,
    page: RawPage,
}

impl OwnPage {
    const LAYOUT: Layout = match Layout::from_size_align(PAGE_SIZE, PAGE_SIZE) {
        Ok(layout) => layout,
        Err(_) => panic!("a page is a sound layout"),
    };

    fn new() -> Result<Self, Errno> {
        // SAFETY: the layout's size is not zero.
        let va = unsafe { alloc_zeroed(Self::LAYOUT) } as usize;
        if va == 0 {
            return Err(Errno(ENOMEM));
        }
        // SAFETY: page-aligned by its layout, ours alone until dropped, and no reference points into it.
        let page = unsafe { RawPage::new(va) };
        Ok(Self { va, page })
    }

    /// The view of the page.
    pub const fn page(&self) -> &RawPage {
        &self.page
    }
}

impl Drop for OwnPage {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout; the view ends with `self`, and the grant has ended, or
        // the page would have been forgotten.
        unsafe { dealloc(self.va as *mut u8, Self::LAYOUT) }
    }
}
