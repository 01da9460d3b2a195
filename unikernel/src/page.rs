//! Memory that another domain, Xen, or a device writes at any moment.

use crate::memory::{PAGE_SIZE, Window};
use drivers::platform::ConfigSpace;
use xenbus::pciif::page::{AtomicPage, PageMemory};

/// A page of ordinary memory that somebody else writes too.
///
/// [`AtomicPage`] says how it is accessed.
#[derive(Debug)]
pub struct RawPage {
    va: usize,
}

impl RawPage {
    /// Makes a view of the page at `va`.
    ///
    /// # Safety
    /// `va` must be page-aligned and stay mapped readable and writable for as long as the view lives, and no
    /// Rust reference may point into the page, but for those to the atomics of [`PageMemory::atomics`].
    pub const unsafe fn new(va: usize) -> Self {
        Self { va }
    }
}

impl PageMemory for RawPage {
    fn atomics(&self) -> AtomicPage<'_> {
        // SAFETY: `va` is the address of a page, aligned for both arrays, which stays mapped readable and writable while
        // `self` is borrowed (contract of `new`). In this program the page is only ever accessed by these atomics, and by
        // one thread: there is no other.
        unsafe { AtomicPage::new(&*(self.va as *const _), &*(self.va as *const _)) }
    }
}

/// The configuration space of one PCI function: its ECAM page, read-only and uncached.
#[derive(Debug)]
pub struct EcamPage {
    window: Window,
}

impl EcamPage {
    /// Wraps a window that shows an ECAM page.
    ///
    /// # Safety
    /// The window must show device memory whose reads have no side effects (configuration space has none that
    /// matter to us).
    pub const unsafe fn new(window: Window) -> Self {
        Self { window }
    }
}

impl ConfigSpace for EcamPage {
    fn read(&self, offset: u16, width: u8) -> u32 {
        let (offset, width) = (usize::from(offset), usize::from(width));
        assert!(
            offset < PAGE_SIZE && width.is_power_of_two() && offset.is_multiple_of(width),
            "read {offset:#x}/{width}"
        );
        let address = self.window.address() + offset;
        // SAFETY: in the page, aligned (both checked), mapped while the window lives. Volatile: a device answers.
        unsafe {
            match width {
                1 => u32::from((address as *const u8).read_volatile()),
                2 => u32::from((address as *const u16).read_volatile()),
                _ => (address as *const u32).read_volatile(),
            }
        }
    }
}
