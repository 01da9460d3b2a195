//! The page that Xen shares with every guest (`struct shared_info`, `xen/include/public/xen.h`): the clock, the marks of
//! the event channels, and the address of a page fault.

use crate::memory::{Mapping, Window};
use core::sync::atomic::{AtomicPtr, Ordering};
use drivers::platform::Errno;
use xen_sys::shared_info as SharedInfo;

/// Where the page is mapped; null before [`map`].
static PAGE: AtomicPtr<SharedInfo> = AtomicPtr::new(core::ptr::null_mut());

/// Maps the page.
///
/// # Errors
/// The errno with which Xen refuses the mapping.
///
/// # Safety
/// `frame` must be the machine frame of the shared info page (start info).
pub unsafe fn map(frame: u64) -> Result<(), Errno> {
    // SAFETY: the page is Xen's, not memory of ours.
    let window = unsafe { Window::show(frame, Mapping::Shared) }?;
    let page = window.address() as *mut SharedInfo;
    core::mem::forget(window);
    PAGE.store(page, Ordering::Release);
    Ok(())
}

/// The page, once it is mapped; it stays mapped for ever. Xen writes it at any moment: volatile or atomic accesses only.
pub fn page() -> Option<*mut SharedInfo> {
    let page = PAGE.load(Ordering::Acquire);
    (!page.is_null()).then_some(page)
}
