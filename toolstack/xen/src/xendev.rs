//! Shared pages and event channels of this process, by the kernel's devices `gntdev`, `gntalloc` and `evtchn`.
//!
//! A [`GrantedPage`] is a stub's, an [`OfferedPage`] is this process's, for a backend in dom0's kernel.
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
use xenbus::pciif::page::{AtomicPage, PAGE_SIZE, PageMemory};

const GNTDEV: &str = "/dev/xen/gntdev";
const GNTALLOC: &str = "/dev/xen/gntalloc";
const EVTCHN: &str = "/dev/xen/evtchn";
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

/// An ioctl of one of these devices, whose result is a number.
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

/// Makes an ioctl on a device.
///
/// # Safety
/// `device` is the one that knows `request`, and `T` is the structure that the kernel's
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

// SAFETY: the mapping belongs to the process, not to a thread, and every access through `&self` is an
// atomic operation.
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

    /// Ends the mapping. Nothing may be accessed through it any more.
    fn unmap(&mut self) -> rustix::io::Result<()> {
        // SAFETY: the page was mapped by `new` with this size, and the owner calls this last of all.
        unsafe { munmap(self.0.as_ptr(), PAGE_SIZE) }
    }
}

impl PageMemory for Mapping {
    fn atomics(&self) -> AtomicPage<'_> {
        // SAFETY: the address is that of a page, aligned for both arrays, which stays mapped as long as `self`. This
        // process accesses it by these atomics only, and by one thread at a time: `Mapping` is not `Sync`, and the atomics
        // are not `Send`. What the other domain does to it meanwhile is outside of this program.
        unsafe { AtomicPage::new(self.0.cast().as_ref(), self.0.cast().as_ref()) }
    }
}

/// A page of another domain, mapped until it is dropped.
#[derive(Debug)]
pub struct GrantedPage {
    mapping: Mapping,
    index: u64,
    device: OwnedFd,
}

impl PageMemory for GrantedPage {
    fn atomics(&self) -> AtomicPage<'_> {
        self.mapping.atomics()
    }
}

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
        // If this fails, the device drops the grant when it is closed.
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

/// A page of this process that a backend in dom0's kernel may map. The grant ends when this is dropped, or later, when the
/// backend has unmapped the page.
#[derive(Debug)]
pub struct OfferedPage {
    mapping: Mapping,
    reference: u32,
    /// Closing it ends the grant.
    _device: OwnedFd,
}

impl PageMemory for OfferedPage {
    fn atomics(&self) -> AtomicPage<'_> {
        self.mapping.atomics()
    }
}

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
        // If this fails, the kernel does it when the process ends.
        let _ = self.mapping.unmap();
    }
}

/// An unbound port that dom0's kernel may bind to. It is closed when this is dropped.
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

    /// Sends an event to the end that has bound to it.
    pub fn notify(&self) -> io::Result<()> {
        notify(&self.device, self.port)
    }
}

/// Why a wait for events ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer sent an event. The next one comes after [`EventChannel::unmask`].
    Peer,
    /// Someone in this process called [`EventChannel::stop`].
    Stop,
}

/// An event channel to another domain, and a second one from this process to itself, which ends a wait.
///
/// With the second one a wait is one blocking read. Every write of a guest takes this path, and one more system call
/// would be felt there.
#[derive(Debug)]
pub struct EventChannel {
    device: OwnedFd,
    peer: u32,
    /// The ends of the second channel: an event sent on the first arrives at the other.
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
                // Xen marks a port pending once when it is bound; and an interrupted read leaves 0, which is no port.
                _ => {}
            }
        }
    }

    /// Sends an event to the peer.
    pub fn notify(&self) -> io::Result<()> {
        notify(&self.device, self.peer)
    }

    /// Ends the wait of another thread, at once or as soon as it begins.
    pub fn stop(&self) -> io::Result<()> {
        notify(&self.device, self.stop.0)
    }

    /// Lets the peer's events come again. One that was sent meanwhile comes at once.
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
    use xenbus::pciif::SharedPage;

    /// A page of this process, which nobody else writes.
    #[repr(C, align(4096))]
    struct OwnPage([u8; PAGE_SIZE]);

    fn with_page(test: impl FnOnce(&Mapping)) -> Box<OwnPage> {
        let page = NonNull::from(Box::leak(Box::new(OwnPage([0; PAGE_SIZE]))));
        test(&Mapping(page.cast()));
        // SAFETY: the box that was leaked above; the mapping, which is gone, does not free it.
        unsafe { Box::from_raw(page.as_ptr()) }
    }

    #[test]
    fn bytes_and_words_are_the_same_memory() {
        let page = with_page(|page| {
            page.store(4, 0x0403_0201);
            page.copy_in(4095, &[9]);
            let mut bytes = [0; 4];
            page.copy_out(6, &mut bytes);
            assert_eq!((bytes, page.load(4)), ([3, 4, 0, 0], 0x0403_0201));
            assert_eq!(page.set_bits(4, 0xf0), 0x0403_0201);
            assert_eq!(page.clear_bits(4, 0x01), 0x0403_02f1);
        });
        assert_eq!((&page.0[4..8], page.0[4095]), (&[0xf0, 2, 3, 4][..], 9));
    }

    #[test]
    fn a_copy_begins_and_ends_at_any_byte() {
        for offset in 0..8 {
            for length in 0..14 {
                let bytes: Vec<u8> = (1..=length).collect();
                let page = with_page(|page| {
                    page.copy_in(offset, &bytes);
                    let mut copy = vec![0; bytes.len()];
                    page.copy_out(offset, &mut copy);
                    assert_eq!(copy, bytes);
                });
                let mut expected = [0; 24];
                expected[offset..offset + bytes.len()].copy_from_slice(&bytes);
                assert_eq!(page.0[..24], expected, "{length} bytes at {offset}");
            }
        }
    }

    #[test]
    fn nothing_outside_of_the_page_is_accessed() {
        let outside: [fn(&Mapping); 5] = [
            |page| page.copy_out(4092, &mut [0; 8]),
            |page| page.copy_out(4093, &mut [0; 4]),
            |page| page.copy_in(4096, &[0]),
            |page| _ = page.load(4096),
            |page| page.store(2, 0),
        ];
        for access in outside {
            let refused = std::panic::catch_unwind(|| drop(with_page(access)));
            assert!(refused.is_err());
        }
    }

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
