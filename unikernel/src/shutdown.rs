//! The end of the domain.

use crate::{console, hypercall};
use xen_sys::{__HYPERVISOR_sched_op, SCHEDOP_shutdown};

/// Why the domain ends (`SHUTDOWN_*`, `xen/include/public/sched.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// As asked by `xl shutdown`.
    Poweroff = xen_sys::SHUTDOWN_poweroff,
    /// As asked by `xl reboot`.
    Reboot = xen_sys::SHUTDOWN_reboot,
    /// A panic or a fault.
    Crash = xen_sys::SHUTDOWN_crash,
}

/// Ends the domain, after a moment in which the console can be read.
pub fn shutdown(reason: Reason) -> ! {
    console::drain();
    stop(reason)
}

/// Ends the domain at once, whatever the console still holds.
pub fn stop(reason: Reason) -> ! {
    let mut argument = xen_sys::sched_shutdown {
        reason: reason as u32,
    };
    loop {
        // SAFETY: the structure of SCHEDOP_shutdown; nothing of ours runs afterwards.
        let _ = unsafe { hypercall::operate(__HYPERVISOR_sched_op, SCHEDOP_shutdown, &mut argument) };
    }
}
