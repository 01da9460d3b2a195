//! From Xen's first jump to a machine on which Rust code can run.
//!
//! The image says what it is by ELF notes (`xen/include/public/elfnote.h`): a 64-bit PV kernel, linked at
//! `va = pfn * 4096`, entered at `_start` with rsi pointing to start info.

use crate::grant::GrantTable;
use crate::memory::{self, Window};
use crate::page::RawPage;
use crate::platform::Xen;
use crate::store::StoreRing;
use crate::{clock, console, event, grant, hypercall, survivor, trap};
use core::arch::global_asm;
use core::fmt;
use drivers::platform::Errno;
use xen_sys::start_info as StartInfo;

/// Bytes of the stack.
const STACK_SIZE: usize = 64 * 1024;

global_asm!(
    // One note: name "Xen", type, and the descriptor that follows up to the label 3.
    ".macro xen_note type",
    "  .long 4",
    "  .long 3f - 2f",
    "  .long \\type",
    "  .asciz \"Xen\"",
    "2:",
    ".endm",
    ".macro xen_note_end",
    "3:",
    "  .balign 4",
    ".endm",
    ".section .note.Xen, \"a\", @note",
    ".balign 4",
    "xen_note {guest_os}; .asciz \"Bulkhead\"; xen_note_end",
    "xen_note {xen_version}; .asciz \"xen-3.0\"; xen_note_end",
    "xen_note {loader}; .asciz \"generic\"; xen_note_end",
    "xen_note {pae}; .asciz \"yes\"; xen_note_end",
    "xen_note {virt_base}; .quad 0; xen_note_end",
    "xen_note {paddr_offset}; .quad 0; xen_note_end",
    "xen_note {entry}; .quad _start; xen_note_end",
    "xen_note {hypercall_page}; .quad hypercall_page; xen_note_end",
    ".previous",
    guest_os = const xen_sys::XEN_ELFNOTE_GUEST_OS,
    xen_version = const xen_sys::XEN_ELFNOTE_XEN_VERSION,
    loader = const xen_sys::XEN_ELFNOTE_LOADER,
    pae = const xen_sys::XEN_ELFNOTE_PAE_MODE,
    virt_base = const xen_sys::XEN_ELFNOTE_VIRT_BASE,
    paddr_offset = const xen_sys::XEN_ELFNOTE_PADDR_OFFSET,
    entry = const xen_sys::XEN_ELFNOTE_ENTRY,
    hypercall_page = const xen_sys::XEN_ELFNOTE_HYPERCALL_PAGE,
);

global_asm!(
    ".section .keep, \"aw\", @nobits",
    ".balign 4096",
    "stack_guard:",
    ".skip 4096",
    ".skip {size}",
    "stack_top:",
    "start_info:",
    ".skip 8",
    ".section .text.entry, \"ax\", @progbits",
    // Xen jumps here, once.
    ".globl _start",
    "_start:",
    "mov [rip + start_info], rsi",
    // Every life begins here: variables have their first values, the stack is empty.
    "begin_life:",
    "cld",
    "xor eax, eax",
    "lea rdi, [rip + bss_start]",
    "lea rcx, [rip + bss_end]",
    "sub rcx, rdi",
    "rep stosb",
    "lea rsi, [rip + data_load]",
    "lea rdi, [rip + data_start]",
    "lea rcx, [rip + data_end]",
    "sub rcx, rdi",
    "rep movsb",
    "lea rsp, [rip + stack_top]",
    "xor ebp, ebp",
    "mov rdi, [rip + start_info]",
    "call {enter}",
    "ud2",
    ".previous",
    size = const STACK_SIZE,
    enter = sym enter,
);

unsafe extern "C" {
    /// The page below the stack.
    static stack_guard: u8;
    /// Where every life begins. Not to be called: it takes the stack away.
    fn begin_life() -> !;
}

/// Begins a new life. Whatever runs now is cut off for good.
pub fn live_again() -> ! {
    // SAFETY: `begin_life` does to memory what Xen's loader did before the first life: it writes all variables, and
    // the stack is taken as empty, but for what `survivor` keeps on purpose. Nothing of this life runs afterwards or
    // is looked at: its stack is overwritten, its heap is made anew, and there is no other thread. What Xen, dom0 or
    // the guest may still write is none of that memory: pages shared with them are in areas of their own
    // (`memory`), from which nothing is reused before the peer has let go of it. What is mapped and what ports are
    // open `set_up` finds out and undoes before anything new is mapped.
    unsafe { begin_life() }
}

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

/// What the image gets to work with.
#[derive(Debug)]
pub struct Machine {
    /// Hypercalls, as the drivers want them.
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

/// Names the step in which a refusal happened.
trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, BootError>;
}

impl<T> Step<T> for Result<T, Errno> {
    fn step(self, step: &'static str) -> Result<T, BootError> {
        self.map_err(|errno| BootError { step, errno })
    }
}

/// The first Rust code of a life: called once by `begin_life`.
extern "C" fn enter(info: *const StartInfo) -> ! {
    // SAFETY: Xen passes start info in rsi, and `_start` keeps the pointer; it is an ordinary page of ours, mapped for
    // ever and not written by anybody.
    let info: &'static StartInfo = unsafe { &*info };
    // SAFETY: called once in a life, with Xen's start info, before anything else.
    match unsafe { set_up(info) } {
        Ok(machine) => bulkhead_main(machine),
        Err(error) => panic!("{error}"),
    }
}

/// Sets the machine up, in the first life and in every later one: what an earlier life left mapped, open or granted
/// is undone on the way, and in the first one there is nothing.
///
/// # Safety
/// Once in a life, with the start info that Xen has passed, before any other code of this crate.
unsafe fn set_up(info: &'static StartInfo) -> Result<Machine, BootError> {
    // SAFETY: the domain builder's tables, the one of frames with nr_pages entries; the notes ask for the layout that
    // `memory` describes.
    unsafe { memory::init(info.mfn_list as *mut u64, info.nr_pages, info.pt_base as usize) };
    survivor::open();
    grant::unmap_left_behind();
    // SAFETY: no window has been handed out in this life.
    unsafe { memory::take_back_windows(survivor::is_foreign) }.step("take windows back")?;
    // SAFETY: the address of shared info is machine-page aligned and Xen's.
    unsafe { event::init(info.shared_info >> 12) }.step("map the shared info page")?;
    clock::init();
    // SAFETY: a PV guest that is not dom0 has the domU half of the union.
    let console = unsafe { info.console.domU };
    // SAFETY: start info names this frame, and the builder has mapped it; nothing else uses it.
    let console_page = unsafe { RawPage::new(memory::address_of_frame(console.mfn)) };
    console::init(console_page, console.evtchn, command_line(info));
    trap::init().step("register the exception handlers")?;
    // SAFETY: nothing is ever placed in page 0, nor in the page that is set aside below the stack.
    unsafe {
        memory::guard(0).step("unmap page 0")?;
        memory::guard((&raw const stack_guard) as usize).step("unmap the page below the stack")?;
    }
    // SAFETY: once in a life; the table in `memory` sets these addresses aside.
    unsafe { crate::lang::init_heap() };
    event::close_all_but(&[console.evtchn, info.store_evtchn]);
    let grants = GrantTable::init().step("set up the grant table")?;
    // SAFETY: as for the console's page.
    let store_page = unsafe { RawPage::new(memory::address_of_frame(info.store_mfn)) };
    Ok(Machine {
        xen: Xen::new(grants),
        store: StoreRing::take_over(store_page, info.store_evtchn),
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
