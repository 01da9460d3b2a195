//! Hypercalls, through the page that Xen fills with its entry sequences.
//!
//! ABI: `xen/include/public/arch-x86/xen-x86_64.h`: number selects a 32-byte slot, arguments in rdi, rsi, rdx,
//! r10, result in rax, rcx and r11 lost. xen-sys supplies numbers and structures; its call functions are not used,
//! because they hide from the compiler that a call writes to the stack.

use core::arch::{asm, global_asm};
#[cfg(feature = "inject")]
use core::sync::atomic::{AtomicBool, Ordering};
use drivers::platform::Errno;

// Xen fills this page once, before the first instruction of the guest runs, so that it takes no room in the image. The
// domain builder maps all memory executable.
global_asm!(
    ".section .keep.page, \"aw\", @nobits",
    ".balign 4096",
    ".globl hypercall_page",
    "hypercall_page:",
    ".skip 4096",
    ".previous",
);

/// If set, the next call that maps memory fails with `EPERM` before it reaches Xen. For tests.
#[cfg(feature = "inject")]
pub static REFUSE_MAPPING: AtomicBool = AtomicBool::new(false);

/// If set, this run ends between the next mapping of a foreign page and the record of its handle. For tests.
#[cfg(feature = "inject")]
pub static LOSE_HANDLE: AtomicBool = AtomicBool::new(false);

#[cfg(feature = "inject")]
fn is_refused(number: u32) -> bool {
    number == xen_sys::__HYPERVISOR_update_va_mapping && REFUSE_MAPPING.swap(false, Ordering::Relaxed)
}

/// Turns a hypercall's result into the value, or the positive errno.
fn outcome(result: i64) -> Result<u64, Errno> {
    if result < 0 {
        Err(Errno(i32::try_from(-result).unwrap_or(i32::MAX)))
    } else {
        Ok(result as u64)
    }
}

/// Makes hypercall `number`.
///
/// # Errors
/// What Xen answers, as a positive errno (`xen/include/public/errno.h`).
///
/// # Safety
/// The arguments must be what the hypercall's interface asks for: pointers among them valid for the accesses
/// that Xen makes, and the effect (on page tables above all) harmless to memory that Rust code owns.
pub unsafe fn call4(number: u32, arguments: [u64; 4]) -> Result<u64, Errno> {
    #[cfg(feature = "inject")]
    if is_refused(number) {
        return Err(Errno(hermit_abi::errno::EPERM));
    }
    let [a1, a2, a3, a4] = arguments;
    let mut result: i64;
    // SAFETY: the caller vouches for the arguments. Xen keeps every register but those named; the stack write of
    // `call` is declared by the absence of `nostack`.
    unsafe {
        asm!(
            "lea rax, [rip + hypercall_page]",
            "add rax, rcx",
            "call rax",
            out("rax") result,
            inlateout("rcx") u64::from(number) * 32 => _,
            inlateout("rdi") a1 => _,
            inlateout("rsi") a2 => _,
            inlateout("rdx") a3 => _,
            inlateout("r10") a4 => _,
            lateout("r8") _,
            lateout("r9") _,
            lateout("r11") _,
        );
    }
    outcome(result)
}

/// Makes a hypercall of the kind that takes a sub-operation and one structure.
///
/// # Errors
/// As [`call4`].
///
/// # Safety
/// `argument` must be the structure that sub-operation `operation` of hypercall `number` reads and writes, and the
/// effect must be harmless as in [`call4`].
pub unsafe fn operate<T>(number: u32, operation: u32, argument: &mut T) -> Result<u64, Errno> {
    // SAFETY: passed on; the structure is valid and exclusively ours for the length of the call.
    unsafe {
        call4(
            number,
            [u64::from(operation), core::ptr::from_mut(argument) as u64, 0, 0],
        )
    }
}

/// As [`operate`], for `GNTTABOP_*`, which take an array: here always of one element.
///
/// # Errors
/// As [`call4`].
///
/// # Safety
/// As [`operate`].
pub unsafe fn operate_on_one<T>(number: u32, operation: u32, argument: &mut T) -> Result<u64, Errno> {
    // SAFETY: passed on; an array of one element is that element.
    unsafe {
        call4(
            number,
            [u64::from(operation), core::ptr::from_mut(argument) as u64, 1, 0],
        )
    }
}
