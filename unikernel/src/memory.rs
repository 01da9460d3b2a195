//! The address space of the stub.
//!
//! The domain builder maps all memory from virtual address 0 on, `va = pfn * 4096`, and loads the image at 1 MiB
//! ([`xen_sys::XEN_ELFNOTE_VIRT_BASE`] is 0). It places nothing below the image, so this module hands that area out:
//!
//! | from | to | use |
//! |---|---|---|
//! | 0 | 4 KiB | never touched: unmapped by [`guard`], so that a null pointer faults |
//! | 4 KiB | 512 KiB | windows: addresses whose page-table entry is replaced to show foreign memory |
//! | 512 KiB | 544 KiB; 704 KiB with a network | pages to share with other domains |
//! | from there | 1 MiB | heap; with a network nothing, and the heap is behind the image |

use crate::hypercall;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use drivers::log;
use drivers::platform::Errno;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;
const WINDOWS: core::ops::Range<usize> = 0x1000..0x80000;
/// Pages of this domain that other domains map. They are not part of the heap: the heap starts anew with every run, and a
/// peer may still write to a page of the last one.
pub const SHARED: core::ops::Range<usize> = 0x80000..if cfg!(feature = "net") { 0xb_0000 } else { 0x8_8000 };

/// The heap's addresses.
#[cfg(not(feature = "net"))]
pub fn heap() -> core::ops::Range<usize> {
    SHARED.end..0x10_0000
}

/// The heap's addresses: behind the image. Buffers for a network would leave too little below it for 256 functions, of
/// 1,500 bytes each.
#[cfg(feature = "net")]
pub fn heap() -> core::ops::Range<usize> {
    let start = AREA.0.get() as usize;
    start..start + AREA_SIZE
}

#[cfg(feature = "net")]
const AREA_SIZE: usize = 704 * 1024;

/// Memory behind the image.
#[cfg(feature = "net")]
#[repr(align(4096))]
struct Area(core::cell::UnsafeCell<[u8; AREA_SIZE]>);

// SAFETY: the allocator alone uses this memory, by its address; no reference to it is ever made.
#[cfg(feature = "net")]
unsafe impl Sync for Area {}

/// Not cleared by a new run, which makes the heap anew.
#[cfg(feature = "net")]
#[unsafe(link_section = ".keep")]
static AREA: Area = Area(core::cell::UnsafeCell::new([0; AREA_SIZE]));
/// Number of windows: one for each device, and a few for shared pages.
pub const WINDOW_COUNT: usize = (WINDOWS.end - WINDOWS.start) / PAGE_SIZE;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;
/// The bits of an entry that name the frame.
const FRAME: u64 = (1 << 52) - (1 << 12);

/// `UVMF_INVLPG | UVMF_LOCAL`: flush this one translation, on this vCPU (there is no other).
const FLUSH_ONE: u64 = 2;

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Ordinary memory, shared with Xen or a domain.
    Shared,
    /// Configuration space: uncached, because Xen refuses other mappings (XSA-154). Asked for as writable, so that
    /// [`Window::is_writable`] tells whether Xen keeps it read-only.
    Device,
}

impl Mapping {
    const fn entry(self, frame: u64) -> u64 {
        let bits = match self {
            Self::Shared => PRESENT | WRITABLE | ACCESSED | DIRTY | NO_EXECUTE,
            Self::Device => PRESENT | WRITABLE | CACHE_DISABLE | WRITE_THROUGH | ACCESSED | NO_EXECUTE,
        };
        frame << 12 | bits
    }
}

/// The domain builder's table: machine frame of each pfn.
static FRAMES: AtomicPtr<u64> = AtomicPtr::new(core::ptr::null_mut());
/// Number of entries of [`FRAMES`].
static FRAME_COUNT: AtomicU64 = AtomicU64::new(0);
/// Address of the top-level page table, where the domain builder has mapped it, read-only.
static TOP_TABLE: AtomicUsize = AtomicUsize::new(0);
/// One bit for each window: set while it is in use.
static IN_USE: [AtomicU64; WINDOW_COUNT.div_ceil(64)] =
    [const { AtomicU64::new(0) }; WINDOW_COUNT.div_ceil(64)];

/// Sets the addresses of the table of machine frames and of the page tables.
///
/// # Safety
/// `top_table` must be the address of the page table that is in use (start info's `pt_base`). `frames` must point to
/// `count` entries that stay valid and unchanged for ever (start info's `mfn_list`), and the low `count` pages of the
/// address space must be mapped to them, with nothing below 1 MiB in use.
pub unsafe fn init(frames: *mut u64, count: u64, top_table: usize) {
    TOP_TABLE.store(top_table, Ordering::Relaxed);
    FRAMES.store(frames, Ordering::Relaxed);
    FRAME_COUNT.store(count, Ordering::Relaxed);
}

/// Machine frame behind address `va` of our own memory, as the domain builder mapped it.
fn frame_of(va: usize) -> u64 {
    let pfn = (va / PAGE_SIZE) as u64;
    let frames = FRAMES.load(Ordering::Relaxed);
    assert!(
        !frames.is_null() && pfn < FRAME_COUNT.load(Ordering::Relaxed),
        "no frame known for address {va:#x}"
    );
    // SAFETY: `init`'s contract: the table has FRAME_COUNT entries, and the index has just been checked.
    unsafe { frames.add(pfn as usize).read() }
}

/// Machine frame of a page of [`SHARED`].
///
/// # Panics
/// If `va` is none: other memory may be mapped to something else by now.
pub fn shared_frame(va: usize) -> u64 {
    assert!(
        SHARED.contains(&va) && va.is_multiple_of(PAGE_SIZE),
        "{va:#x} is no page to be shared"
    );
    frame_of(va)
}

/// Restores the domain's own memory behind all windows, whatever an earlier run had them show. Those that `is_lost` are
/// never handed out: only a grant operation may remove their entries.
///
/// # Errors
/// The errno with which Xen refuses.
///
/// # Safety
/// No window may be in use.
pub unsafe fn reset_windows(is_lost: impl Fn(usize) -> bool) -> Result<(), Errno> {
    for index in 0..WINDOW_COUNT {
        let va = WINDOWS.start + index * PAGE_SIZE;
        if is_lost(va) {
            IN_USE[index / 64].fetch_or(1 << (index % 64), Ordering::Relaxed);
            continue;
        }
        // SAFETY: nobody uses the window, by the caller's word; the frame is our own page of that address, which is
        // used by nobody else.
        unsafe { set_entry(va, Mapping::Shared.entry(frame_of(va))) }?;
    }
    Ok(())
}

/// Address at which the domain builder mapped the page in machine frame `frame`, found by Xen's machine-to-physical
/// table (`MACH2PHYS_VIRT_START`, readable by every PV guest).
///
/// # Safety
/// `frame` must be a machine frame of ours, named by start info or a page table: any other may have no entry in the
/// table.
pub unsafe fn address_of_frame(frame: u64) -> usize {
    let table = xen_sys::__MACH2PHYS_VIRT_START as *const u64;
    // SAFETY: Xen maps the table read-only at this fixed address, with an entry for every frame of the machine.
    let pfn = unsafe { table.add(frame as usize).read_volatile() };
    pfn as usize * PAGE_SIZE
}

/// The page-table entry of the page at `va`, as Xen has it.
fn entry_of(va: usize) -> u64 {
    /// The lowest bit of an address that selects an entry, from the top-level table down.
    const LEVELS: [u32; 4] = [39, 30, 21, 12];
    let mut entry = 0;
    let mut table = TOP_TABLE.load(Ordering::Relaxed);
    for level in LEVELS {
        let index = va >> level & 511;
        // SAFETY: the table is one of our page tables, which the domain builder has mapped read-only with the rest of
        // our memory, and the index is one of its 512 entries. Xen changes entries at our own requests alone, but sets
        // bits at any access: volatile.
        entry = unsafe { (table as *const u64).add(index).read_volatile() };
        if level > LEVELS[3] {
            // SAFETY: all memory below 2 MiB is mapped, so that this entry is present and names a page table of ours.
            table = unsafe { address_of_frame((entry & FRAME) >> 12) };
        }
    }
    entry
}

/// True if the window at `va` shows our own memory, as one does that nothing was mapped in.
pub fn shows_own_memory(va: usize) -> bool {
    let own = Mapping::Shared.entry(frame_of(va));
    (entry_of(va) ^ own) & (FRAME | PRESENT) == 0
}

/// Replaces the page-table entry of `va`.
///
/// # Safety
/// Nothing may use the memory that `va` showed before, and `entry` must not give a second, ordinary view of memory
/// that Rust code owns.
unsafe fn set_entry(va: usize, entry: u64) -> Result<(), Errno> {
    // SAFETY: update_va_mapping takes an address, an entry and flags, no pointers; the caller vouches for the effect.
    unsafe {
        hypercall::call4(
            xen_sys::__HYPERVISOR_update_va_mapping,
            [va as u64, entry, FLUSH_ONE, 0],
        )
    }
    .map(drop)
}

/// Unmaps page `va`, so that touching it faults.
///
/// # Errors
/// The errno with which Xen refuses.
///
/// # Safety
/// Nothing may be stored in that page.
pub unsafe fn guard(va: usize) -> Result<(), Errno> {
    // SAFETY: the caller vouches that nobody uses the page.
    unsafe { set_entry(va, 0) }
}

/// An address for foreign memory. When it is dropped, the domain's own memory is behind it again.
#[derive(Debug)]
pub struct Window {
    va: usize,
}

impl Window {
    /// Takes a free window.
    ///
    /// # Errors
    /// `ENOMEM` if all are taken.
    pub fn allocate() -> Result<Self, Errno> {
        for (word, bits) in IN_USE.iter().enumerate() {
            let free = bits.load(Ordering::Relaxed).trailing_ones() as usize;
            let index = word * 64 + free;
            if free < 64 && index < WINDOW_COUNT {
                bits.fetch_or(1 << free, Ordering::Relaxed);
                return Ok(Self {
                    va: WINDOWS.start + index * PAGE_SIZE,
                });
            }
        }
        Err(Errno(hermit_abi::errno::ENOMEM))
    }

    /// Takes a window and shows machine frame `frame` in it.
    ///
    /// # Errors
    /// `ENOMEM` without a free window; else what Xen says: `EPERM` or `EINVAL` for a frame that this domain may not map.
    ///
    /// # Safety
    /// `frame` must not be memory that Rust code owns by another address.
    pub unsafe fn show(frame: u64, mapping: Mapping) -> Result<Self, Errno> {
        let window = Self::allocate()?;
        // SAFETY: a window's own memory is used by nobody; the caller vouches for the frame.
        unsafe { set_entry(window.va, mapping.entry(frame)) }?;
        Ok(window)
    }

    /// True if the page can be written through the window. Xen removes that right from the entries of pages that it keeps
    /// read-only, so reading the entry is enough.
    pub fn is_writable(&self) -> bool {
        entry_of(self.va) & WRITABLE != 0
    }

    /// The window's address.
    pub const fn address(&self) -> usize {
        self.va
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the window's holder is gone, so nobody uses what it shows; the frame behind it is our own page of
        // that address, which is used by nobody else.
        let restored = unsafe { set_entry(self.va, Mapping::Shared.entry(frame_of(self.va))) };
        match restored {
            Ok(()) => {
                let index = (self.va - WINDOWS.start) / PAGE_SIZE;
                IN_USE[index / 64].fetch_and(!(1 << (index % 64)), Ordering::Relaxed);
            }
            // Never handed out again: a leak of one address is harmless, a stale view is not.
            Err(Errno(errno)) => log::error!(
                "window {:#x} is lost: Xen refuses to unmap it (errno {errno})",
                self.va
            ),
        }
    }
}
