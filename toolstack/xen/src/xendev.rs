//! A stub's page and event channel in this process, by the kernel's devices `gntdev` and `evtchn`; and a page of
//! this process that dom0's kernel may map, by `gntalloc`.
//!
//! The numbers and structures are those of Linux's `include/uapi/xen/gntdev.h`, `gntalloc.h` and `evtchn.h`.

use crate::xenctrl::DomId;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, write};
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use xenbus::pciif::SharedPage;

const GNTDEV: &str = "/dev/xen/gntdev";
const GNTALLOC: &str = "/dev/xen/gntalloc";
const EVTCHN: &str = "/dev/xen/evtchn";
const PAGE_SIZE: usize = 4096;
const DOM0: u32 = 0;

const MAP_GRANT_REF: (u8, u8) = (b'G', 0);
const UNMAP_GRANT_REF: (u8, u8) = (b'G', 1);
const ALLOC_GRANT_REF: (u8, u8) = (b'G', 5);
/// `GNTALLOC_FLAG_WRITABLE`.
const GRANT_WRITABLE: u16 = 1;
const BIND_INTERDOMAIN: (u8, u8) = (b'E', 1);
const BIND_UNBOUND_PORT: (u8, u8) = (b'E', 2);
const NOTIFY: (u8, u8) = (b'E', 4);

#[repr(C)]
struct MapGrantRef {
    count: u32,
    pad: u32,
    /// Where to map; the kernel's answer.
    index: u64,
    domid: u32,
    reference: u32,
}

#[repr(C)]
struct UnmapGrantRef {
    index: u64,
    count: u32,
    pad: u32,
}

#[repr(C)]
struct AllocGrantRef {
    domid: u16,
    flags: u16,
    count: u32,
    /// Where to map; the kernel's answer.
    index: u64,
    /// The kernel's answer.
    reference: u32,
    pad: u32,
}

#[repr(C)]
struct BindInterdomain {
    remote_domain: u32,
    remote_port: u32,
}

#[repr(C)]
struct BindUnboundPort {
    remote_domain: u32,
}

#[repr(C)]
struct Notify {
    port: u32,
}

/// A request of one of the two devices, whose result is a number.
struct Request<'a, T> {
    opcode: Opcode,
    argument: &'a mut T,
}

// SAFETY: the kernel reads and writes no more than the structure behind the pointer, because
// `submit`, which alone makes this type, is promised that the structure is the request's.
unsafe impl<T> Ioctl for Request<'_, T> {
    type Output = u32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut *self.argument).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| Errno::RANGE)
    }
}

/// Sends a request to a device.
///
/// # Safety
/// `device` is the one of the two that knows `request`, and `T` is the structure that the kernel's
/// header defines for it.
unsafe fn submit<T>(device: &OwnedFd, request: (u8, u8), argument: &mut T) -> io::Result<u32> {
    let (letter, number) = request;
    // The headers define all of these with _IOC_NONE, whatever the kernel reads or writes.
    let opcode = ioctl::opcode::none(letter, number) | opcode_of_size(size_of::<T>());
    // SAFETY: by the caller's promise.
    Ok(unsafe { ioctl::ioctl(device, Request { opcode, argument }) }?)
}

/// The size field of a request's number (`_IOC_SIZESHIFT`).
const fn opcode_of_size(size: usize) -> Opcode {
    (size as Opcode) << 16
}

fn open_device(path: &str) -> io::Result<OwnedFd> {
    let opened = open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    opened.map_err(|error| io::Error::new(error.kind(), format!("cannot open {path}: {error}")))
}

/// A page that another domain writes too, mapped for reading and writing.
#[derive(Debug)]
struct Mapping(NonNull<c_void>);

// SAFETY: the mapping belongs to the process, not to a thread, and every access through `&self` is a
// volatile copy or an atomic operation.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps a page of one of the grant devices.
    fn new(device: &OwnedFd, index: u64) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory in use.
        let mapped = unsafe {
            mmap(
                std::ptr::null_mut(),
                PAGE_SIZE,
                access,
                MapFlags::SHARED,
                device,
                index,
            )
        };
        let address = NonNull::new(mapped?).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self(address))
    }

    /// Ends the mapping; nothing may be read or written through it any more.
    fn unmap(&mut self) -> rustix::io::Result<()> {
        // SAFETY: the page was mapped by `new` with this size, and the owner calls this last of all.
        unsafe { munmap(self.0.as_ptr(), PAGE_SIZE) }
    }

    /// The word at `offset`.
    fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(
            offset.is_multiple_of(4) && offset < PAGE_SIZE,
            "no word of the page: {offset}"
        );
        // SAFETY: the word lies in the page, which stays mapped as long as `self`, and is aligned;
        // this process accesses it by atomic and volatile operations only, and what the other domain
        // does to it meanwhile is outside of this program.
        unsafe { AtomicU32::from_ptr(self.0.as_ptr().cast::<u8>().add(offset).cast()) }
    }

    fn check(offset: usize, length: usize) {
        let end = offset.checked_add(length);
        assert!(
            end.is_some_and(|end| end <= PAGE_SIZE),
            "outside of the page: {offset}+{length}"
        );
    }
}

impl SharedPage for Mapping {
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        Self::check(offset, into.len());
        let start = self.0.as_ptr().cast::<u8>().cast_const();
        for (index, byte) in into.iter_mut().enumerate() {
            // SAFETY: in the page by the check, mapped as long as `self`; volatile, because the other
            // domain may write it at any time.
            *byte = unsafe { start.add(offset + index).read_volatile() };
        }
    }

    fn copy_in(&self, offset: usize, bytes: &[u8]) {
        Self::check(offset, bytes.len());
        let start = self.0.as_ptr().cast::<u8>();
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: as in `copy_out`; the page is mapped for writing.
            unsafe { start.add(offset + index).write_volatile(*byte) };
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

/// The shared page of a type that holds one as `mapping`.
macro_rules! share_mapping {
    ($page:ty) => {
        impl SharedPage for $page {
            fn copy_out(&self, offset: usize, into: &mut [u8]) {
                self.mapping.copy_out(offset, into);
            }

            fn copy_in(&self, offset: usize, bytes: &[u8]) {
                self.mapping.copy_in(offset, bytes);
            }

            fn load(&self, offset: usize) -> u32 {
                self.mapping.load(offset)
            }

            fn store(&self, offset: usize, value: u32) {
                self.mapping.store(offset, value);
            }

            fn set_bits(&self, offset: usize, bits: u32) -> u32 {
                self.mapping.set_bits(offset, bits)
            }

            fn clear_bits(&self, offset: usize, bits: u32) -> u32 {
                self.mapping.clear_bits(offset, bits)
            }
        }
    };
}

/// A page of another domain, mapped until it is dropped.
#[derive(Debug)]
pub struct GrantedPage {
    mapping: Mapping,
    index: u64,
    device: OwnedFd,
}

share_mapping!(GrantedPage);

impl GrantedPage {
    /// Maps the page that `owner` granted to dom0 as `reference`.
    pub fn map(owner: DomId, reference: u32) -> io::Result<Self> {
        let device = open_device(GNTDEV)?;
        let mut request = MapGrantRef {
            count: 1,
            pad: 0,
            index: 0,
            domid: owner.into(),
            reference,
        };
        // SAFETY: gntdev knows this request, by this structure with one grant in it.
        unsafe { submit(&device, MAP_GRANT_REF, &mut request) }?;
        let index = request.index;
        // If that fails: the device forgets the grant when it is closed.
        let mapping = Mapping::new(&device, index)?;
        Ok(Self {
            mapping,
            index,
            device,
        })
    }
}

impl Drop for GrantedPage {
    fn drop(&mut self) {
        let unmapped = self.mapping.unmap();
        let mut request = UnmapGrantRef {
            index: self.index,
            count: 1,
            pad: 0,
        };
        // SAFETY: gntdev knows this request, by this structure.
        let forgotten = unsafe { submit(&self.device, UNMAP_GRANT_REF, &mut request) };
        if unmapped.is_err() || forgotten.is_err() {
            log::warn!("a page of a stub could not be unmapped; the kernel does it when this process ends");
        }
    }
}

/// A page of dom0's that its own kernel's backends may map. It is withdrawn when it is dropped, or as soon after that
/// as it is not mapped any more.
#[derive(Debug)]
pub struct OfferedPage {
    mapping: Mapping,
    reference: u32,
    /// Closing it withdraws the page.
    _device: OwnedFd,
}

share_mapping!(OfferedPage);

impl OfferedPage {
    /// Makes a page and grants it to dom0.
    pub fn new() -> io::Result<Self> {
        let device = open_device(GNTALLOC)?;
        let mut request = AllocGrantRef {
            domid: 0,
            flags: GRANT_WRITABLE,
            count: 1,
            index: 0,
            reference: 0,
            pad: 0,
        };
        // SAFETY: gntalloc knows this request, by this structure with room for the one reference.
        unsafe { submit(&device, ALLOC_GRANT_REF, &mut request) }?;
        Ok(Self {
            mapping: Mapping::new(&device, request.index)?,
            reference: request.reference,
            _device: device,
        })
    }

    /// The number of the grant.
    pub fn reference(&self) -> u32 {
        self.reference
    }
}

impl Drop for OfferedPage {
    fn drop(&mut self) {
        // What fails here the kernel does when this process ends.
        let _ = self.mapping.unmap();
    }
}

/// An event channel that dom0's kernel may bind to; it is closed when this is dropped.
#[derive(Debug)]
pub struct LocalPort {
    device: OwnedFd,
    port: u32,
}

impl LocalPort {
    /// Makes the port.
    pub fn new() -> io::Result<Self> {
        let device = open_device(EVTCHN)?;
        let mut request = BindUnboundPort { remote_domain: DOM0 };
        // SAFETY: evtchn knows this request, by this structure.
        let port = unsafe { submit(&device, BIND_UNBOUND_PORT, &mut request) }?;
        Ok(Self { device, port })
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.port
    }

    /// Sends an event to whoever has bound to it.
    pub fn notify(&self) -> io::Result<()> {
        notify(&self.device, self.port)
    }
}

/// What a wait for events ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer sent an event. No other comes until [`EventChannel::unmask`].
    Peer,
    /// Someone in this process called [`EventChannel::stop`].
    Stop,
}

/// An event channel to another domain, and a second one from this process to itself that ends a wait.
///
/// The second one makes a wait one blocking read: this is the path that every write of a guest takes,
/// and a system call more is felt there.
#[derive(Debug)]
pub struct EventChannel {
    device: OwnedFd,
    peer: u32,
    /// The ends of the second channel: what is sent on the first arrives at the other.
    stop: (u32, u32),
}

impl EventChannel {
    /// Binds to the `remote` port, which `peer` has made for dom0.
    pub fn bind(peer: DomId, remote: u32) -> io::Result<Self> {
        // Closing the device unbinds all its ports.
        let device = open_device(EVTCHN)?;
        let mut unbound = BindUnboundPort { remote_domain: DOM0 };
        // SAFETY: evtchn knows this request, by this structure.
        let arrives = unsafe { submit(&device, BIND_UNBOUND_PORT, &mut unbound) }?;
        Ok(Self {
            stop: (bind_interdomain(&device, DOM0, arrives)?, arrives),
            peer: bind_interdomain(&device, peer.into(), remote)?,
            device,
        })
    }

    /// Waits until something happens.
    pub fn wait(&self) -> io::Result<Event> {
        loop {
            let mut port = [0; 4];
            match read(&self.device, &mut port) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            match u32::from_ne_bytes(port) {
                port if port == self.peer => return Ok(Event::Peer),
                port if port == self.stop.1 => return Ok(Event::Stop),
                // A fresh channel tells of itself once.
                _ => {}
            }
        }
    }

    /// Sends an event to the peer.
    pub fn notify(&self) -> io::Result<()> {
        notify(&self.device, self.peer)
    }

    /// Ends the wait of another thread, now or when it begins.
    pub fn stop(&self) -> io::Result<()> {
        notify(&self.device, self.stop.0)
    }

    /// Lets the peer's events come again; one that was sent meanwhile comes at once.
    pub fn unmask(&self) -> io::Result<()> {
        write(&self.device, &self.peer.to_ne_bytes())?;
        Ok(())
    }
}

fn bind_interdomain(device: &OwnedFd, remote_domain: u32, remote_port: u32) -> io::Result<u32> {
    let mut request = BindInterdomain {
        remote_domain,
        remote_port,
    };
    // SAFETY: evtchn knows this request, by this structure.
    unsafe { submit(device, BIND_INTERDOMAIN, &mut request) }
}

fn notify(device: &OwnedFd, port: u32) -> io::Result<()> {
    let mut request = Notify { port };
    // SAFETY: evtchn knows this request, by this structure.
    unsafe { submit(device, NOTIFY, &mut request) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_the_requests_are_those_of_the_kernels_headers() {
        let number =
            |(letter, number): (u8, u8), size| ioctl::opcode::none(letter, number) | opcode_of_size(size);
        assert_eq!(number(MAP_GRANT_REF, size_of::<MapGrantRef>()), 0x0018_4700);
        assert_eq!(number(ALLOC_GRANT_REF, size_of::<AllocGrantRef>()), 0x0018_4705);
        assert_eq!(number(UNMAP_GRANT_REF, size_of::<UnmapGrantRef>()), 0x0010_4701);
        assert_eq!(
            number(BIND_INTERDOMAIN, size_of::<BindInterdomain>()),
            0x0008_4501
        );
        assert_eq!(
            number(BIND_UNBOUND_PORT, size_of::<BindUnboundPort>()),
            0x0004_4502
        );
        assert_eq!(number(NOTIFY, size_of::<Notify>()), 0x0004_4504);
    }
}
