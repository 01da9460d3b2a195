//! A hypercall for which libxenctrl has no function, through the host's `libxencall`. It belongs to Xen's stable interface.

use libloading::Library;
use pci::bdf::Bdf;
use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::ptr::NonNull;

/// The library, by the version of its interface. libxenctrl needs it too, so it is installed.
pub const LIBRARY: &str = "libxencall.so.1";

/// `__HYPERVISOR_physdev_op` (`xen/include/public/xen.h`).
const PHYSDEV_OP: c_uint = 33;
/// `PHYSDEVOP_restore_msi_ext` (`xen/include/public/physdev.h`).
const RESTORE_MSI_EXT: u64 = 27;

/// `struct physdev_pci_device`.
#[repr(C)]
struct PciDevice {
    seg: u16,
    bus: u8,
    devfn: u8,
}

/// `xencall_handle *`, which only the library looks into.
type XencallHandle = *mut c_void;

/// The functions used, as `tools/include/xencall.h` declares them.
struct XencallFunctions {
    close: unsafe extern "C" fn(XencallHandle) -> c_int,
    call2: unsafe extern "C" fn(XencallHandle, c_uint, u64, u64) -> c_int,
    alloc_buffer: unsafe extern "C" fn(XencallHandle, usize) -> *mut c_void,
    free_buffer: unsafe extern "C" fn(XencallHandle, *mut c_void),
}

/// An open handle of the library.
pub struct Xencall {
    handle: NonNull<c_void>,
    functions: XencallFunctions,
    /// Keeps the code that `functions` point into mapped; dropped last.
    _library: Library,
}

/// Why the library cannot be used.
#[derive(Debug)]
pub enum OpenError {
    /// The library cannot be used.
    Library(libloading::Error),
    /// The hypervisor's device cannot be opened.
    Open(io::Error),
}

impl From<libloading::Error> for OpenError {
    fn from(error: libloading::Error) -> Self {
        Self::Library(error)
    }
}

// SAFETY: libxencall ties a handle to no thread: its state is a file descriptor and a cache of buffers behind a lock.
unsafe impl Send for Xencall {}

impl Xencall {
    /// Loads the library and opens a handle.
    pub fn open() -> Result<Self, OpenError> {
        // SAFETY: the system's own library; loading it runs no initialiser beyond those of libc's kind.
        let library = unsafe { Library::new(LIBRARY) }?;
        type XencallOpen = unsafe extern "C" fn(*mut c_void, c_uint) -> XencallHandle;
        // SAFETY: each type is the declaration of the named function in xencall.h, and the pointers are used only
        // while the library stays loaded, as `Self` keeps it.
        let (open, functions) = unsafe {
            let open = *library.get::<XencallOpen>(b"xencall_open\0")?;
            let functions = XencallFunctions {
                close: *library.get(b"xencall_close\0")?,
                call2: *library.get(b"xencall2\0")?,
                alloc_buffer: *library.get(b"xencall_alloc_buffer\0")?,
                free_buffer: *library.get(b"xencall_free_buffer\0")?,
            };
            (open, functions)
        };
        // SAFETY: a null logger stands for the default one and 0 for no flags, by its description in xencall.h.
        let handle = unsafe { open(std::ptr::null_mut(), 0) };
        let handle = NonNull::new(handle).ok_or_else(|| OpenError::Open(io::Error::last_os_error()))?;
        Ok(Self {
            handle,
            functions,
            _library: library,
        })
    }

    /// Has Xen write the MSI messages of a function into it again, and turn the capability on.
    pub fn restore_msi(&mut self, bdf: Bdf) -> io::Result<()> {
        let handle = self.handle.as_ptr();
        // SAFETY: the handle is live; the size is not 0.
        let buffer = unsafe { (self.functions.alloc_buffer)(handle, size_of::<PciDevice>()) };
        let Some(argument) = NonNull::new(buffer.cast::<PciDevice>()) else {
            return Err(io::Error::last_os_error());
        };
        let device = PciDevice {
            seg: bdf.segment(),
            bus: bdf.bus(),
            devfn: bdf.devfn(),
        };
        // SAFETY: the buffer is ours, page aligned and of this size at least; the hypercall reads the structure that
        // its number stands for, from this address, before it returns.
        let result = unsafe {
            argument.write(device);
            (self.functions.call2)(handle, PHYSDEV_OP, RESTORE_MSI_EXT, argument.as_ptr() as u64)
        };
        // Before the buffer is freed, which may change errno.
        let error = io::Error::last_os_error();
        // SAFETY: it came from `alloc_buffer` of this handle and is used no more.
        unsafe { (self.functions.free_buffer)(handle, buffer) };
        if result < 0 { Err(error) } else { Ok(()) }
    }
}

impl Drop for Xencall {
    fn drop(&mut self) {
        // SAFETY: the handle came from xencall_open and is used no more after this.
        let _ = unsafe { (self.functions.close)(self.handle.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn the_structure_is_that_of_the_header_file() {
        assert_eq!(size_of::<PciDevice>(), 4);
        assert_eq!(
            (
                offset_of!(PciDevice, seg),
                offset_of!(PciDevice, bus),
                offset_of!(PciDevice, devfn)
            ),
            (0, 2, 3)
        );
    }
}
