//! Exceptions, and the timer's upcall. No exception is expected and none returns: the stub logs it and restarts in place.
//! The upcall returns, unless what it interrupts has run for too long.
//!
//! Xen delivers an exception of a PV guest as a frame on the current stack, rcx and r11 first, then the hardware's
//! frame, with an error code where the exception has one (`xen/include/public/arch-x86/xen.h`, trap table).

use crate::restart;
use crate::{deadline, hypercall, shared_info};
use core::arch::global_asm;
use core::fmt;
use drivers::crash_log::Cause;
use drivers::log;
use drivers::platform::Errno;

/// An exception, by vector and name.
struct Exception {
    vector: u8,
    name: &'static str,
}

/// The exceptions that a PV guest can have (Intel SDM volume 3, table 6-1; NMI and double fault stay with Xen).
const EXCEPTIONS: &[Exception] = &[
    Exception {
        vector: 0,
        name: "divide error",
    },
    Exception {
        vector: 1,
        name: "debug exception",
    },
    Exception {
        vector: 3,
        name: "breakpoint",
    },
    Exception {
        vector: 4,
        name: "overflow",
    },
    Exception {
        vector: 5,
        name: "bound range exceeded",
    },
    Exception {
        vector: 6,
        name: "invalid opcode",
    },
    Exception {
        vector: 7,
        name: "device not available",
    },
    Exception {
        vector: 10,
        name: "invalid TSS",
    },
    Exception {
        vector: 11,
        name: "segment not present",
    },
    Exception {
        vector: 12,
        name: "stack-segment fault",
    },
    Exception {
        vector: 13,
        name: "general protection fault",
    },
    Exception {
        vector: 14,
        name: "page fault",
    },
    Exception {
        vector: 16,
        name: "x87 floating-point error",
    },
    Exception {
        vector: 17,
        name: "alignment check",
    },
    Exception {
        vector: 19,
        name: "SIMD floating-point exception",
    },
];
const PAGE_FAULT: u64 = 14;
/// Stands in the place of a vector for the end of the time that work may take.
const DEADLINE: u64 = 32;
/// No upcall comes while an exception is handled (`TI_SET_IF`).
const MASK_UPCALLS: u8 = 4;
/// Vectors for which `trap_entries` holds an entry.
const VECTORS: usize = 20;
/// Bytes from one entry to the next.
const ENTRY_SIZE: usize = 16;

// One entry a vector. Vectors 8, 10 to 14 and 17 come with an error code; the others push 0 in its place, below the
// rcx and r11 that Xen has left on top, so that `trap_common` finds one layout.
global_asm!(
    ".section .text.trap, \"ax\", @progbits",
    ".balign 16",
    "trap_entries:",
    ".set vector, 0",
    ".rept 20",
    ".balign 16",
    "pop rcx",
    "pop r11",
    ".if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17)",
    "push 0",
    ".endif",
    ".byte 0x6a, vector", // push the vector
    "jmp trap_common",
    ".set vector, vector + 1",
    ".endr",
    ".balign 16",
    // The upcall's frame is that of an exception without an error code. Xen has put it right below what it interrupts,
    // where a red zone would be: the image is built without.
    "upcall_entry:",
    "pop rcx",
    "pop r11",
    "push 0",
    "push {deadline}",
    "push rax; push rbx; push rcx; push rdx; push rsi; push rdi; push rbp",
    "push r8; push r9; push r10; push r11; push r12; push r13; push r14; push r15",
    "mov rbx, rsp",
    "sub rsp, 512",
    "and rsp, -16",
    "fxsave64 [rsp]",
    "cld",
    "call {is_over}",
    "test al, al",
    "jnz 2f",
    "fxrstor64 [rsp]",
    "mov rsp, rbx",
    "pop r15; pop r14; pop r13; pop r12; pop r11; pop r10; pop r9; pop r8",
    "pop rbp; pop rdi; pop rsi; pop rdx; pop rcx; pop rbx; pop rax",
    // Vector and error code go; HYPERVISOR_iret wants its flags above rip, and does not return. The flags that it
    // restores open upcalls again.
    "add rsp, 16",
    "push 0",
    "jmp hypercall_page + {iret}",
    "2: mov rdi, rbx",
    "jmp 3f",
    "trap_common:",
    "push rax; push rbx; push rcx; push rdx; push rsi; push rdi; push rbp",
    "push r8; push r9; push r10; push r11; push r12; push r13; push r14; push r15",
    "mov rdi, rsp",
    "3:",
    "and rsp, -16",
    "cld",
    "call {report}",
    "ud2",
    ".previous",
    report = sym report,
    is_over = sym is_over,
    deadline = const DEADLINE,
    iret = const xen_sys::__HYPERVISOR_iret * 32,
);

unsafe extern "C" {
    /// The first of [`VECTORS`] entries. Not to be called.
    fn trap_entries();
    /// Where the upcall of the timer leads. Not to be called.
    fn upcall_entry();
}

/// What `trap_common` leaves on the stack, lowest address first: see [`REGISTERS`].
type Frame = [u64; 22];

/// The words of a [`Frame`].
const REGISTERS: &str =
    "r15 r14 r13 r12 r11 r10 r9 r8 rbp rdi rsi rdx rcx rbx rax vector error rip cs flags rsp ss";
const VECTOR: usize = 15;
const ERROR: usize = 16;
const RIP: usize = 17;
/// Registers in a line of the log.
const PER_LINE: usize = 6;

/// Registers the handlers with Xen.
///
/// # Errors
/// The errno with which Xen refuses.
pub fn init() -> Result<(), Errno> {
    let mut table = [xen_sys::trap_info {
        vector: 0,
        flags: 0,
        cs: 0,
        address: 0,
    }; EXCEPTIONS.len() + 1];
    for (info, exception) in table.iter_mut().zip(EXCEPTIONS) {
        *info = xen_sys::trap_info {
            vector: exception.vector,
            flags: MASK_UPCALLS,
            cs: xen_sys::FLAT_KERNEL_CS as u16,
            address: (trap_entries as *const () as usize + usize::from(exception.vector) * ENTRY_SIZE) as u64,
        };
    }
    // SAFETY: set_trap_table reads entries up to one with address 0, the last of the array; each names an entry
    // point in this module.
    unsafe {
        hypercall::call4(
            xen_sys::__HYPERVISOR_set_trap_table,
            [table.as_ptr() as u64, 0, 0, 0],
        )
    }
    .map(drop)
}

/// Starts the limit for work ([`deadline`]), whose end is reported as exceptions are.
///
/// # Errors
/// The errno with which Xen refuses.
pub fn limit_work() -> Result<(), Errno> {
    // SAFETY: `upcall_entry` saves all registers, those of SSE included, and has Xen restore them with the frame; what
    // runs in between touches nothing but the limit's own atomics, the shared info page and memory below the frame. No
    // code in the image keeps anything below its stack pointer. If the time is over it does not return.
    unsafe { deadline::init(upcall_entry as *const () as u64) }
}

/// See [`deadline::is_over`].
extern "C" fn is_over() -> bool {
    deadline::is_over()
}

/// Logs an exception, or the end of the time for work, and ends this run.
extern "C" fn report(frame: &Frame) -> ! {
    let cause = match frame[VECTOR] {
        DEADLINE => Cause::Deadline,
        // Below VECTORS: pushed by an entry of ours.
        vector => Cause::Fault(vector as u8),
    };
    restart::end(cause, &|| log_exception(frame))
}

fn log_exception(frame: &Frame) {
    let (vector, error, rip) = (frame[VECTOR], frame[ERROR], frame[RIP]);
    let name = EXCEPTIONS
        .iter()
        .find(|exception| u64::from(exception.vector) == vector);
    let name = name.map_or("work has no end", |exception| exception.name);
    log::error!("fault: {name} (vector {vector}, error code {error:#x}) at {rip:#x}");
    if vector == PAGE_FAULT {
        log::error!("  faulting address {:#x}", faulting_address());
    }
    for line in (0..frame.len()).step_by(PER_LINE) {
        log::error!(" {}", RegisterLine { frame, first: line });
    }
}

/// Some registers of a frame.
struct RegisterLine<'a> {
    frame: &'a Frame,
    first: usize,
}

impl fmt::Display for RegisterLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registers = REGISTERS.split(' ').zip(self.frame);
        let mut line = registers.skip(self.first).take(PER_LINE);
        line.try_for_each(|(name, value)| write!(f, " {name} {value:x}"))
    }
}

/// The address whose access faulted: Xen keeps a PV guest's cr2 in its vCPU info.
fn faulting_address() -> u64 {
    shared_info::page().map_or(0, |page| {
        // SAFETY: in the mapped shared info page, written by Xen before it delivered the fault.
        unsafe { (&raw const (*page).vcpu_info[0].arch.cr2).read_volatile() }
    })
}

const _: () = assert!(EXCEPTIONS[EXCEPTIONS.len() - 1].vector < VECTORS as u8);
