//! Memory that another domain, or Xen, or a device writes while we look.

use crate::memory::{PAGE_SIZE, Window};
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use drivers::platform::ConfigSpace;
use xenbus::pciif::SharedPage;

/// A page of ordinary memory that somebody else writes too.
///
/// Accessed by volatile copies and by atomics alone, so that a change by the other side can confuse values but never
/// Rust's rules.
#[derive(Debug)]
pub struct RawPage {
    va: usize,
}

impl RawPage {
    /// Makes a view of the page at `va`.
    ///
    /// # Safety
    /// `va` must be page-aligned and stay mapped readable and writable for as long as the view lives, and no
    /// Rust reference may point into the page.
    pub const unsafe fn new(va: usize) -> Self {
        Self { va }
    }

    /// Start of `len` bytes at `offset`.
    fn range(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset <= PAGE_SIZE && len <= PAGE_SIZE - offset,
            "bytes {offset}+{len} do not lie in a page"
        );
        (self.va + offset) as *mut u8
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "word at odd offset {offset}");
        // SAFETY: in the page (checked by `range`), aligned (checked above), mapped for the lifetime of `self`
        // (contract of `new`), and only ever accessed atomically or volatile.
        unsafe { AtomicU32::from_ptr(self.range(offset, 4).cast()) }
    }
}

impl SharedPage for RawPage {
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let from = self.range(offset, into.len());
        for (index, byte) in into.iter_mut().enumerate() {
            // SAFETY: `range` has checked that all `into.len()` bytes lie in the mapped page. An atomic read, because
            // the other side may write at the same time.
            *byte = unsafe { AtomicU8::from_ptr(from.add(index)) }.load(Ordering::Relaxed);
        }
    }

    fn copy_in(&self, offset: usize, bytes: &[u8]) {
        let to = self.range(offset, bytes.len());
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: as in `copy_out`.
            unsafe { AtomicU8::from_ptr(to.add(index)) }.store(*byte, Ordering::Relaxed);
        }
    }

    fn load(&self, offset: usize) -> u32 {
        self.word(offset).load(Ordering::Acquire)
    }

    fn store(&self, offset: usize, value: u32) {
        self.word(offset).store(value, Ordering::Release);
    }

    fn set_bits(&self, offset: usize, bits: u32) -> u32 {
        self.word(offset).fetch_or(bits, Ordering::AcqRel)
    }

    fn clear_bits(&self, offset: usize, bits: u32) -> u32 {
        self.word(offset).fetch_and(!bits, Ordering::AcqRel)
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
