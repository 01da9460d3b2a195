//! Set-up of the machine, from the first Rust code of a run on.

use crate::grant::GrantTable;
use crate::memory::{self, Window};
use crate::page::RawPage;
use crate::platform::Xen;
use crate::store::StoreRing;
use crate::{clock, console, entry, event, grant, hypercall, kept, shared_info, trap};
use core::fmt;
use drivers::platform::Errno;
use xen_sys::start_info as StartInfo;

unsafe extern "Rust" {
    /// The image's `main`, with the machine set up. See [`main!`](crate::main).
    safe fn bulkhead_main(machine: Machine) -> !;
}

/// Names the function that runs once the machine is set up: `fn(Machine) -> !`.
#[macro_export]
macro_rules! main {
    ($main:path) => {
        #[unsafe(no_mangle)]
        fn bulkhead_main(machine: $crate::boot::Machine) -> ! {
            $main(machine)
        }
    };
}

/// The machine that is set up, for the image's main function.
#[derive(Debug)]
pub struct Machine {
    /// The drivers' platform, by hypercalls.
    pub xen: Xen,
    /// The connection to xenstored.
    pub store: StoreRing,
    /// Xen's version: major, minor.
    pub xen_version: (u16, u16),
    /// Memory of this domain, in pages of 4 KiB.
    pub pages: u64,
    /// The kernel command line: `extra=` of the domain's configuration, up to the first byte that is not ASCII.
    pub command_line: &'static str,
}

/// Set-up stopped: at which step, and what Xen said.
#[derive(Debug)]
struct BootError {
    step: &'static str,
    errno: Errno,
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot: Xen refuses to {} (errno {})", self.step, self.errno.0)
    }
}

/// Adds the step to a refusal.
trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, BootError>;
}

impl<T> Step<T> for Result<T, Errno> {
    fn step(self, step: &'static str) -> Result<T, BootError> {
        self.map_err(|errno| BootError { step, errno })
    }
}

/// The first Rust code of a run: called once by `begin_run` in `entry`.
#[unsafe(no_mangle)]
extern "C" fn bulkhead_enter(info: *const StartInfo) -> ! {
    // SAFETY: Xen passes start info in rsi, and `_start` keeps the pointer; it is an ordinary page of ours, mapped for
    // ever and not written by anybody.
    let info: &'static StartInfo = unsafe { &*info };
    // SAFETY: called once in a run, with Xen's start info, before anything else.
    match unsafe { set_up(info) } {
        Ok(machine) => bulkhead_main(machine),
        Err(error) => panic!("{error}"),
    }
}

/// Sets the machine up, in the first run and in every later one: what an earlier run left mapped, open or granted
/// is undone on the way, and in the first one there is nothing.
///
/// # Safety
/// Once in a run, with the start info that Xen has passed, before any other code of this crate.
unsafe fn set_up(info: &'static StartInfo) -> Result<Machine, BootError> {
    // SAFETY: the domain builder's tables, the one of frames with nr_pages entries; the notes ask for the layout that
    // `memory` describes.
    unsafe { memory::init(info.mfn_list as *mut u64, info.nr_pages, info.pt_base as usize) };
    kept::open();
    // The record says which windows show foreign pages: those must go by the grant operation, before the windows do.
    grant::unmap_earlier();
    // SAFETY: no window has been handed out in this run.
    unsafe { memory::reset_windows(kept::is_foreign) }.step("take windows back")?;
    // SAFETY: the address of shared info is machine-page aligned and Xen's.
    unsafe { shared_info::map(info.shared_info >> 12) }.step("map the shared info page")?;
    // No upcall before its handler is there.
    event::init();
    clock::init();
    // SAFETY: a PV guest that is not dom0 has the domU half of the union.
    let console = unsafe { info.console.domU };
    // SAFETY: start info names this frame, and the builder has mapped it; nothing else uses it.
    let console_page = unsafe { RawPage::new(memory::address_of_frame(console.mfn)) };
    console::init(console_page, console.evtchn, command_line(info));
    // After the console, which tells of exceptions, and before what may cause one.
    trap::init().step("register the exception handlers")?;
    // SAFETY: nothing is ever placed in page 0, nor in the page that is set aside below the stack.
    unsafe {
        memory::guard(0).step("unmap page 0")?;
        memory::guard(entry::stack_guard_page()).step("unmap the page below the stack")?;
    }
    // SAFETY: once in a run; the table in `memory` sets these addresses aside.
    unsafe { crate::lang::init_heap() };
    // The console's and xenstore's ports are the toolstack's: nobody could make them again.
    event::close_all_but(&[console.evtchn, info.store_evtchn]);
    let grants = GrantTable::init().step("set up the grant table")?;
    // SAFETY: as for the console's page.
    let store_page = unsafe { RawPage::new(memory::address_of_frame(info.store_mfn)) };
    Ok(Machine {
        xen: Xen::new(grants),
        store: StoreRing::resume(store_page, info.store_evtchn),
        xen_version: xen_version().step("tell its version")?,
        pages: info.nr_pages,
        command_line: command_line(info),
    })
}

/// See [`Machine::command_line`].
fn command_line(info: &StartInfo) -> &str {
    // SAFETY: the same bytes, seen as unsigned.
    let bytes = unsafe { &*(&raw const info.cmd_line).cast::<[u8; 1024]>() };
    let end = bytes
        .iter()
        .position(|byte| *byte == 0 || !byte.is_ascii())
        .unwrap_or(bytes.len());
    core::str::from_utf8(&bytes[..end]).unwrap_or_default()
}

/// Asks Xen for its version: major, minor.
fn xen_version() -> Result<(u16, u16), Errno> {
    const XENVER_VERSION: u64 = 0;
    // SAFETY: XENVER_version takes no argument.
    let version = unsafe { hypercall::call4(xen_sys::__HYPERVISOR_xen_version, [XENVER_VERSION, 0, 0, 0]) }?;
    Ok(((version >> 16) as u16, version as u16))
}

const _: () = assert!(memory::WINDOW_COUNT > 8 && size_of::<Window>() == 8);
