//! The hypervisor's control interface, through the host's own `libxenctrl`.
//!
//! The numbers of these hypercalls change with every Xen release, so the library of the running Xen is
//! loaded at run time (decision 7). Only functions with scalar arguments, and few simple structures, are
//! used: their signatures (`tools/include/xenctrl.h`) are the same from Xen 4.17 to 4.20 and later.

mod xencall;

use inject::Point;
use libloading::Library;
use pci::bdf::Bdf;
use std::ffi::{c_int, c_uint, c_ulong, c_void};
use std::ops::Deref;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, io};
use thiserror::Error;
use xencall::Xencall;

/// Number of a domain.
pub type DomId = u16;

/// The hypervisor, as dom0's programs use it.
///
/// # Errors
/// A refusal is the errno that libxenctrl left.
pub trait Hypervisor {
    /// Pauses a domain once more. Xen counts: it runs again after as many calls that let it run.
    fn pause(&self, domain: DomId) -> io::Result<()>;
    /// Takes one pause of a domain away. `EINVAL` if it has none.
    fn unpause(&self, domain: DomId) -> io::Result<()>;
    /// How a domain has run so far; `None` if there is no such domain, or if it has ended.
    fn run_state(&self, domain: DomId) -> io::Result<Option<RunState>>;
    /// The UUID with which a domain was created; `None` if there is no such domain. libxl changes the one in xenstore when it
    /// preserves a domain under another name.
    fn uuid(&self, domain: DomId) -> io::Result<Option<String>>;
    /// Allows a domain to map machine frames `first..first + count`, or revokes that. Mappings that it has stay.
    fn allow_frames(&self, domain: DomId, first: u64, count: u64, allow: bool) -> io::Result<()>;
    /// Allows a domain to use I/O ports `first..first + count`, or revokes that.
    fn allow_ports(&self, domain: DomId, first: u32, count: u32, allow: bool) -> io::Result<()>;
    /// Allows a domain to use one of its pirqs, or revokes that.
    fn allow_pirq(&self, domain: DomId, pirq: u32, allow: bool) -> io::Result<()>;
    /// Maps the interrupt line `gsi` to the domain's pirq of the same number.
    fn map_gsi(&self, domain: DomId, gsi: u32) -> io::Result<()>;
    /// Maps a message-signalled interrupt of a function to a new pirq of the domain that owns it; returns the pirq.
    ///
    /// `msix` is the entry of the MSI-X table and the machine address of the BAR that holds the table; `None` means MSI.
    /// The function must be in segment 0. Xen has fewer pirqs than the 16 bits that pciif has for them. It maps an entry
    /// twice without complaint: the caller must not ask for that.
    fn map_msi(&self, domain: DomId, bdf: Bdf, msix: Option<(u16, u64)>) -> io::Result<u16>;
    /// Unmaps a pirq.
    fn unmap_pirq(&self, domain: DomId, pirq: u32) -> io::Result<()>;
    /// Has Xen write the MSI messages of a function into it again after a reset, for the same pirqs. The function must
    /// decode memory.
    fn restore_msi(&self, bdf: Bdf) -> io::Result<()>;
    /// Puts a function into the domain's IOMMU context.
    fn assign(&self, domain: DomId, bdf: Bdf) -> io::Result<()>;
    /// Takes a function out of the domain's IOMMU context, into quarantine or back to dom0.
    fn deassign(&self, domain: DomId, bdf: Bdf) -> io::Result<()>;
    /// The other functions of the domain in the IOMMU group of this one.
    fn group(&self, domain: DomId, bdf: Bdf) -> io::Result<Vec<Bdf>>;
}

/// Why the library cannot be used.
#[derive(Debug, Error)]
pub enum XenctrlError {
    /// No Xen below.
    #[error(
        "cannot read Xen's version from /sys/hypervisor/version: boot this machine under Xen and run this in dom0"
    )]
    NoXen(#[source] io::Error),
    /// No library for this Xen.
    #[error(
        "found no libxenctrl.so.{version} for the running Xen {version} in {tried}: \
         install the Xen utilities of that version (Debian: xen-utils-{version}, libxenmisc{version})"
    )]
    NoLibrary {
        /// Major and minor version of the running Xen.
        version: String,
        /// The directories searched.
        tried: String,
    },
    /// The library is not what its name says.
    #[error("{path} cannot be used: install the Xen utilities that fit the running Xen")]
    Unusable {
        /// The library.
        path: String,
        /// What the loader said.
        #[source]
        source: libloading::Error,
    },
    /// The hypervisor's control device cannot be opened.
    #[error("cannot open Xen's control interface: load the module xen-privcmd, and run this as root in dom0")]
    Open(#[source] io::Error),
}

/// The directories in which the host's libraries may be.
pub const DIRECTORIES: [&str; 8] = [
    "/usr/lib/x86_64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/lib64",
    "/usr/lib",
    "/lib",
    "/usr/local/lib",
    "/usr/local/lib64",
];

/// `xc_interface *`, which only the library looks into.
type XcInterface = *mut c_void;

/// The functions used, as `tools/include/xenctrl.h` declares them.
struct XenctrlFunctions {
    close: unsafe extern "C" fn(XcInterface) -> c_int,
    iomem_permission: unsafe extern "C" fn(XcInterface, u32, c_ulong, c_ulong, u8) -> c_int,
    ioport_permission: unsafe extern "C" fn(XcInterface, u32, u32, u32, u32) -> c_int,
    irq_permission: unsafe extern "C" fn(XcInterface, u32, u32, bool) -> c_int,
    map_pirq: unsafe extern "C" fn(XcInterface, u32, c_int, *mut c_int) -> c_int,
    map_pirq_msi:
        unsafe extern "C" fn(XcInterface, u32, c_int, *mut c_int, c_int, c_int, c_int, u64) -> c_int,
    unmap_pirq: unsafe extern "C" fn(XcInterface, u32, c_int) -> c_int,
    assign_device: unsafe extern "C" fn(XcInterface, u32, u32, u32) -> c_int,
    deassign_device: unsafe extern "C" fn(XcInterface, u32, u32) -> c_int,
    get_device_group: unsafe extern "C" fn(XcInterface, u32, u32, u32, *mut u32, *mut u32) -> c_int,
    getinfolist: unsafe extern "C" fn(XcInterface, u32, c_uint, *mut DomainInfo) -> c_int,
    pause: unsafe extern "C" fn(XcInterface, u32) -> c_int,
    unpause: unsafe extern "C" fn(XcInterface, u32) -> c_int,
    evtchn_status: unsafe extern "C" fn(XcInterface, *mut EventChannelStatus) -> c_int,
}

/// `struct evtchn_status` (`xen/include/public/event_channel.h`): the first two fields are the question.
#[repr(C)]
struct EventChannelStatus {
    domain: u16,
    port: u32,
    status: u32,
    vcpu: u32,
    /// Of a channel between domains: the other one, and its port if that is bound.
    other: u16,
    other_port: u32,
}

/// `EVTCHNSTAT_unbound` and `EVTCHNSTAT_interdomain`.
const BETWEEN_DOMAINS: [u32; 2] = [1, 2];

/// `xc_domaininfo_t` (`struct xen_domctl_getdomaininfo`), whose fields up to `handle` are the same in all versions; the rest
/// grows, to about 200 bytes in Xen 4.20.
#[repr(C, align(64))]
struct DomainInfo {
    domain: u16,
    padding: u16,
    flags: u32,
    /// Numbers of pages, and the frame of the shared information.
    memory: [u64; 6],
    /// Nanoseconds.
    cpu_time: u64,
    /// Numbers of vCPUs, and the security label.
    numbers: [u32; 3],
    /// The UUID.
    handle: [u8; 16],
    rest: [u8; 4004],
}

impl DomainInfo {
    const EMPTY: Self = Self {
        domain: 0,
        padding: 0,
        flags: 0,
        memory: [0; 6],
        cpu_time: 0,
        numbers: [0; 3],
        handle: [0; 16],
        rest: [0; 4004],
    };
}

/// How a domain has run so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunState {
    /// True if it is paused.
    pub paused: bool,
    /// Time for which its vCPUs have run in all. Zero: it has not executed an instruction yet.
    pub cpu_time: Duration,
}

/// The state of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainState {
    /// There is no domain with this number.
    Absent,
    /// It runs, or could.
    Alive,
    /// It has shut itself down, or Xen has, for this reason (`SHUTDOWN_*`, `xen/include/public/sched.h`).
    ShutDown(u8),
    /// It is destroyed, and Xen still holds a part of it, perhaps because others have pages of it mapped. Its number is not
    /// free yet.
    Dying,
}

/// Flags `XEN_DOMINF_*` of `domctl.h`.
const DYING: u32 = 1 << 0;
const SHUT_DOWN: u32 = 1 << 2;
const PAUSED: u32 = 1 << 3;

impl DomainState {
    /// By the flags `XEN_DOMINF_*` of `domctl.h`.
    fn of(flags: u32) -> Self {
        let [_, _, reason, _] = flags.to_le_bytes();
        match flags {
            flags if flags & DYING != 0 => Self::Dying,
            flags if flags & SHUT_DOWN != 0 => Self::ShutDown(reason),
            _ => Self::Alive,
        }
    }
}

/// An open control interface. Clones share it, and make one call at a time.
#[derive(Clone)]
pub struct Xenctrl(Arc<Interface>);

impl Deref for Xenctrl {
    type Target = Interface;

    fn deref(&self) -> &Interface {
        &self.0
    }
}

/// The library, with an open handle.
pub struct Interface {
    handle: Mutex<NonNull<c_void>>,
    calls: Mutex<Xencall>,
    functions: XenctrlFunctions,
    /// Keeps the code that `functions` point into mapped; dropped last.
    _library: Library,
}

// SAFETY: the handle is only used behind the mutex, so by one thread at a time, and libxenctrl ties
// a handle to no thread: its state is a file descriptor and a cache of buffers.
unsafe impl Send for Interface {}
// SAFETY: as above; the function pointers are plain code addresses that stay mapped with `_library`.
unsafe impl Sync for Interface {}

impl Xenctrl {
    /// Loads the library of the running Xen and opens the control interface.
    pub fn open() -> Result<Self, XenctrlError> {
        let version = version().map_err(XenctrlError::NoXen)?;
        let name = format!("libxenctrl.so.{version}");
        let candidates = DIRECTORIES
            .iter()
            .map(|directory| PathBuf::from(directory).join(&name));
        let Some(path) = candidates.into_iter().find(|path| path.exists()) else {
            let tried = DIRECTORIES.join(", ");
            return Err(XenctrlError::NoLibrary { version, tried });
        };
        let unusable = |source| XenctrlError::Unusable {
            path: path.display().to_string(),
            source,
        };

        // SAFETY: the library is the system's own libxenctrl, found in a directory that only root
        // writes; loading it runs no initialiser beyond those of libc's kind.
        let library = unsafe { Library::new(&path) }.map_err(unusable)?;
        let functions = load_functions(&library).map_err(unusable)?;
        type XcInterfaceOpen = unsafe extern "C" fn(*mut c_void, *mut c_void, c_uint) -> XcInterface;
        // SAFETY: `XcInterfaceOpen` is the declaration of this function in xenctrl.h.
        let open = *unsafe { library.get::<XcInterfaceOpen>(b"xc_interface_open\0") }.map_err(unusable)?;
        let calls = Xencall::open().map_err(|error| match error {
            xencall::OpenError::Library(source) => XenctrlError::Unusable {
                path: xencall::LIBRARY.into(),
                source,
            },
            xencall::OpenError::Open(source) => XenctrlError::Open(source),
        })?;
        // SAFETY: null loggers stand for the default ones and 0 for no flags, by its description in
        // xenctrl.h; it may be called at any time.
        let handle = unsafe { open(std::ptr::null_mut(), std::ptr::null_mut(), 0) };
        let handle = NonNull::new(handle).ok_or_else(|| XenctrlError::Open(io::Error::last_os_error()))?;
        Ok(Self(Arc::new(Interface {
            handle: Mutex::new(handle),
            calls: Mutex::new(calls),
            functions,
            _library: library,
        })))
    }

    /// The state of a domain.
    pub fn domain_state(&self, domain: DomId) -> io::Result<DomainState> {
        let info = self.domain_info(domain)?;
        Ok(info.map_or(DomainState::Absent, |info| DomainState::of(info.flags)))
    }

    /// The state of a domain, and the UUID with which it was created; `None` if there is no such domain.
    pub fn identity(&self, domain: DomId) -> io::Result<Option<(DomainState, String)>> {
        let info = self.domain_info(domain)?;
        Ok(info.map(|info| (DomainState::of(info.flags), uuid_text(info.handle))))
    }

    fn domain_info(&self, domain: DomId) -> io::Result<Option<DomainInfo>> {
        let mut info = DomainInfo::EMPTY;
        let mut found = 0;
        self.call(|xen, handle| {
            // SAFETY: the library writes one element at most, which is smaller than `info`, which outlives the call;
            // the handle is live.
            found = unsafe { (xen.getinfolist)(handle, domain.into(), 1, &raw mut info) };
            found.min(0)
        })?;
        // Xen answers for the first domain with this number or a higher one.
        Ok((found == 1 && info.domain == domain).then_some(info))
    }

    /// True if this port of `domain` is bound to a port of `other`, or waits for `other` to bind to it.
    pub fn is_port_for(&self, domain: DomId, port: u32, other: DomId) -> io::Result<bool> {
        let mut status = EventChannelStatus {
            domain,
            port,
            status: 0,
            vcpu: 0,
            other: 0,
            other_port: 0,
        };
        // SAFETY: `status` has the layout that the library copies in and out, and outlives the call; the handle is live.
        self.call(|xen, handle| unsafe { (xen.evtchn_status)(handle, &raw mut status) })?;
        Ok(BETWEEN_DOMAINS.contains(&status.status) && status.other == other)
    }
}

impl Interface {
    /// Runs one function of the library. Its result is 0, or -1 with errno set.
    fn call(&self, function: impl FnOnce(&XenctrlFunctions, XcInterface) -> c_int) -> io::Result<()> {
        // A panic elsewhere leaves no half-done state in the handle: each call is whole.
        let handle = self
            .handle
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        match function(&self.functions, handle.as_ptr()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        // SAFETY: the handle came from xc_interface_open and is used no more after this.
        let _ = self.call(|functions, handle| unsafe { (functions.close)(handle) });
    }
}

fn load_functions(library: &Library) -> Result<XenctrlFunctions, libloading::Error> {
    // SAFETY: each field's type is the declaration of the named function in xenctrl.h, and the
    // pointers are used only while `Xenctrl` keeps the library loaded.
    unsafe {
        Ok(XenctrlFunctions {
            close: *library.get(b"xc_interface_close\0")?,
            iomem_permission: *library.get(b"xc_domain_iomem_permission\0")?,
            ioport_permission: *library.get(b"xc_domain_ioport_permission\0")?,
            irq_permission: *library.get(b"xc_domain_irq_permission\0")?,
            map_pirq: *library.get(b"xc_physdev_map_pirq\0")?,
            map_pirq_msi: *library.get(b"xc_physdev_map_pirq_msi\0")?,
            unmap_pirq: *library.get(b"xc_physdev_unmap_pirq\0")?,
            assign_device: *library.get(b"xc_assign_device\0")?,
            deassign_device: *library.get(b"xc_deassign_device\0")?,
            get_device_group: *library.get(b"xc_get_device_group\0")?,
            getinfolist: *library.get(b"xc_domain_getinfolist\0")?,
            pause: *library.get(b"xc_domain_pause\0")?,
            unpause: *library.get(b"xc_domain_unpause\0")?,
            evtchn_status: *library.get(b"xc_evtchn_status\0")?,
        })
    }
}

/// `MAJOR.MINOR` of the running Xen.
pub fn version() -> io::Result<String> {
    running_version(|part| fs::read_to_string(format!("/sys/hypervisor/version/{part}")))
}

/// `MAJOR.MINOR` of the running Xen, from the files `major` and `minor`.
fn running_version(read: impl Fn(&str) -> io::Result<String>) -> io::Result<String> {
    Ok(format!("{}.{}", read("major")?.trim(), read("minor")?.trim()))
}

/// A UUID as xenstore has it.
fn uuid_text(handle: [u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in handle.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// A function's address as the control interface packs it: segment, bus, devfn.
fn machine_sbdf(bdf: Bdf) -> u32 {
    u32::from(bdf.segment()) << 16 | u32::from(bdf.bus()) << 8 | u32::from(bdf.devfn())
}

/// Room for the members of a group: twice as many as a bus can have.
const LARGEST_GROUP: u32 = 512;

/// A member of a group, whose bus and devfn Xen packs one byte higher than anywhere else
/// (`iommu_get_device_group` in `xen/drivers/passthrough/pci.c`).
fn group_member(segment: u16, packed: u32) -> Bdf {
    let [_, devfn, bus, _] = packed.to_le_bytes();
    Bdf::from_devfn(segment, bus, devfn)
}

fn int(value: u32) -> io::Result<c_int> {
    c_int::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}

// Every block below passes the live handle and scalars by value, in the order of the declaration in
// xenctrl.h; `pirq` points to a local variable that outlives the call.
impl Hypervisor for Xenctrl {
    fn pause(&self, domain: DomId) -> io::Result<()> {
        // SAFETY: scalars only, the handle is live (see above).
        self.call(|xen, handle| unsafe { (xen.pause)(handle, domain.into()) })
    }

    fn unpause(&self, domain: DomId) -> io::Result<()> {
        // SAFETY: scalars only, the handle is live (see above).
        self.call(|xen, handle| unsafe { (xen.unpause)(handle, domain.into()) })
    }

    fn run_state(&self, domain: DomId) -> io::Result<Option<RunState>> {
        let info = self.domain_info(domain)?;
        let alive = info.filter(|info| DomainState::of(info.flags) == DomainState::Alive);
        Ok(alive.map(|info| RunState {
            paused: info.flags & PAUSED != 0,
            cpu_time: Duration::from_nanos(info.cpu_time),
        }))
    }

    fn uuid(&self, domain: DomId) -> io::Result<Option<String>> {
        Ok(self.domain_info(domain)?.map(|info| uuid_text(info.handle)))
    }

    fn allow_frames(&self, domain: DomId, first: u64, count: u64, allow: bool) -> io::Result<()> {
        // SAFETY: scalars only, the handle is live (see above).
        self.call(|xen, handle| unsafe {
            (xen.iomem_permission)(handle, domain.into(), first, count, allow.into())
        })
    }

    fn allow_ports(&self, domain: DomId, first: u32, count: u32, allow: bool) -> io::Result<()> {
        // SAFETY: scalars only, the handle is live (see above).
        self.call(|xen, handle| unsafe {
            (xen.ioport_permission)(handle, domain.into(), first, count, allow.into())
        })
    }

    fn allow_pirq(&self, domain: DomId, pirq: u32, allow: bool) -> io::Result<()> {
        // SAFETY: scalars only, the handle is live (see above).
        self.call(|xen, handle| unsafe { (xen.irq_permission)(handle, domain.into(), pirq, allow) })
    }

    fn map_gsi(&self, domain: DomId, gsi: u32) -> io::Result<()> {
        let gsi = int(gsi)?;
        let mut pirq = gsi;
        // SAFETY: `pirq` outlives the call; otherwise scalars, the handle is live (see above).
        self.call(|xen, handle| unsafe { (xen.map_pirq)(handle, domain.into(), gsi, &mut pirq) })
    }

    fn map_msi(&self, domain: DomId, bdf: Bdf, msix: Option<(u16, u64)>) -> io::Result<u16> {
        let (entry, table) = msix.unwrap_or_default();
        let (devfn, bus) = (bdf.devfn().into(), bdf.bus().into());
        let mut pirq: c_int = -1;
        inject::call(Point::Map)?;
        // SAFETY: `pirq` outlives the call; otherwise scalars, the handle is live (see above).
        self.call(|xen, handle| unsafe {
            (xen.map_pirq_msi)(
                handle,
                domain.into(),
                -1,
                &mut pirq,
                devfn,
                bus,
                entry.into(),
                table,
            )
        })?;
        inject::point(Point::Mapped);
        // Xen's limit is far below; a larger one could not be sent to the guest.
        u16::try_from(pirq).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn unmap_pirq(&self, domain: DomId, pirq: u32) -> io::Result<()> {
        let pirq = int(pirq)?;
        inject::call(Point::Unmap)?;
        // SAFETY: scalars only, the handle is live (see above).
        let unmapped = self.call(|xen, handle| unsafe { (xen.unmap_pirq)(handle, domain.into(), pirq) });
        inject::point(Point::Unmapped);
        unmapped
    }

    fn restore_msi(&self, bdf: Bdf) -> io::Result<()> {
        // As in `call`.
        let mut calls = self.calls.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        calls.restore_msi(bdf)
    }

    fn assign(&self, domain: DomId, bdf: Bdf) -> io::Result<()> {
        inject::call(Point::Assign)?;
        // SAFETY: scalars only, the handle is live (see above).
        self.call(|xen, handle| unsafe { (xen.assign_device)(handle, domain.into(), machine_sbdf(bdf), 0) })
    }

    fn deassign(&self, domain: DomId, bdf: Bdf) -> io::Result<()> {
        inject::call(Point::Deassign)?;
        // SAFETY: scalars only, the handle is live (see above).
        self.call(|xen, handle| unsafe { (xen.deassign_device)(handle, domain.into(), machine_sbdf(bdf)) })
    }

    fn group(&self, domain: DomId, bdf: Bdf) -> io::Result<Vec<Bdf>> {
        let mut members = [0_u32; LARGEST_GROUP as usize];
        let mut count = 0;
        let (array, found) = (members.as_mut_ptr(), &raw mut count);
        // SAFETY: `count` and `members` outlive the call, which is told how many elements there are; otherwise
        // scalars, the handle is live (see above).
        self.call(|xen, handle| unsafe {
            (xen.get_device_group)(
                handle,
                domain.into(),
                machine_sbdf(bdf),
                LARGEST_GROUP,
                found,
                array,
            )
        })?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        Ok(members
            .iter()
            .take(count)
            .map(|&member| group_member(bdf.segment(), member))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_running_xen() {
        let files = |part: &str| Ok(if part == "major" { "4\n" } else { "17\n" }.to_owned());
        assert_eq!(running_version(files).unwrap(), "4.17");
        assert!(running_version(|_| Err(io::ErrorKind::NotFound.into())).is_err());
    }

    #[test]
    fn of_a_domain_the_flags_tell_whether_it_lives() {
        assert_eq!(size_of::<DomainInfo>(), 4096);
        assert_eq!(std::mem::offset_of!(DomainInfo, cpu_time), 56);
        assert_eq!(std::mem::offset_of!(DomainInfo, handle), 76);
        assert_eq!(size_of::<EventChannelStatus>(), 24);
        for (flags, life) in [
            (0x0000_0020, DomainState::Alive),
            (0x0000_0008, DomainState::Alive),
            (0x0003_0004, DomainState::ShutDown(3)),
            (0x0004_0014, DomainState::ShutDown(4)),
            (0x0003_0005, DomainState::Dying),
        ] {
            assert_eq!(DomainState::of(flags), life, "{flags:x}");
        }
    }

    #[test]
    fn a_uuid_is_written_as_libxl_writes_it() {
        let handle = std::array::from_fn(|index| 0x10 * index as u8 + 1);
        assert_eq!(uuid_text(handle), "01112131-4151-6171-8191-a1b1c1d1e1f1");
    }

    #[test]
    fn a_member_of_a_group_is_unpacked() {
        assert_eq!(group_member(1, 0x0003_ff00), "0001:03:1f.7".parse().unwrap());
    }

    #[test]
    fn an_address_is_packed_as_segment_bus_devfn() {
        assert_eq!(machine_sbdf("0001:03:1f.7".parse().unwrap()), 0x0001_03ff);
    }
}
