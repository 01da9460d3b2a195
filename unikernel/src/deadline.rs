//! A limit for work: between two waits the stub may be busy for [`LIMIT`], not longer.
//!
//! While it works, the upcall of one event is open: that of the timer. It comes when the limit is over, never returns,
//! and ends this life ([`trap`](crate::trap)); so it matters neither what it interrupts nor that its frame overwrites
//! the red zone. While the stub waits, all upcalls are masked. Behind it stands Xen's watchdog, which shuts the domain
//! down if this life's end hangs too; it is off while the stub has been idle for a moment, so that idling costs nothing.
//!
//! Both are set a little ahead and left alone while enough of their time is left: a request costs no hypercall for them.

use crate::{clock, event, hypercall};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use drivers::log;
use drivers::platform::{Errno, Port};
use xen_sys::{__HYPERVISOR_callback_op, __HYPERVISOR_sched_op, __HYPERVISOR_vcpu_op};

/// The longest that work may take: it is cut off after this, or up to [`SLACK`] before. Guests wait two seconds for
/// an answer, of which a new life takes some tenths.
pub const LIMIT: Duration = Duration::from_millis(400);
/// The timer is set again when this much of its time is gone.
const SLACK: Duration = Duration::from_millis(50);
/// Xen's watchdog, in seconds.
const WATCHDOG: u32 = 2;
/// Waiting for longer than this is being idle.
pub const IDLE: Duration = Duration::from_millis(500);

/// The only watchdog that we have: Xen numbers from 1.
const WATCHDOG_ID: u32 = 1;
const VCPUOP_STOP_PERIODIC_TIMER: u64 = 7;
const VCPUOP_SET_SINGLESHOT_TIMER: u64 = 8;
const CALLBACKOP_REGISTER: u32 = 0;
const CALLBACKTYPE_EVENT: u16 = 0;

/// `struct vcpu_set_singleshot_timer`.
#[repr(C)]
struct SingleShot {
    /// Xen's system time, in nanoseconds.
    timeout: u64,
    flags: u32,
}

/// `struct callback_register`.
#[repr(C)]
struct Callback {
    kind: u16,
    flags: u16,
    address: u64,
}

const _: () = assert!(size_of::<SingleShot>() == 16 && size_of::<Callback>() == 16);

/// The timer's port; 0 before [`init`].
static PORT: AtomicU32 = AtomicU32::new(0);
/// When the timer fires, in microseconds since boot; 0: neither it nor the watchdog is set.
static EXPIRY: AtomicU64 = AtomicU64::new(0);

/// Has the timer's upcall go to `entry`. Work is limited from the next [`work`] on.
///
/// # Errors
/// What Xen says.
///
/// # Safety
/// `entry` must be the address of code that takes an upcall's frame from the stack and never returns to what was
/// interrupted.
pub unsafe fn init(entry: u64) -> Result<(), Errno> {
    let mut callback = Callback {
        kind: CALLBACKTYPE_EVENT,
        flags: 0,
        address: entry,
    };
    // SAFETY: the structure of CALLBACKOP_register, an entry as the caller vouches. The other call takes no pointer.
    unsafe {
        hypercall::operate(__HYPERVISOR_callback_op, CALLBACKOP_REGISTER, &mut callback)?;
        hypercall::call4(__HYPERVISOR_vcpu_op, [VCPUOP_STOP_PERIODIC_TIMER, 0, 0, 0])?;
    }
    PORT.store(event::bind_timer()?, Ordering::Relaxed);
    Ok(())
}

fn port() -> Option<Port> {
    Some(PORT.load(Ordering::Relaxed)).filter(|&port| port != 0)
}

/// From here on the stub works.
pub fn work() {
    let Some(port) = port() else { return };
    let now = clock::now();
    let left = EXPIRY
        .load(Ordering::Relaxed)
        .saturating_sub(now.as_micros() as u64);
    if left < (LIMIT - SLACK).as_micros() as u64 {
        let expiry = now + LIMIT;
        if let Err(Errno(errno)) = set_timer(expiry).and_then(|()| set_watchdog(WATCHDOG)) {
            log::debug!("no limit for work: errno {errno}");
            return;
        }
        EXPIRY.store(expiry.as_micros() as u64, Ordering::Relaxed);
    }
    // The timer fires after LIMIT - SLACK at the earliest: what is pending is of before.
    event::open_upcall(port);
}

/// From here on it waits, or ends: no upcall comes.
pub fn rest() {
    event::shut_upcalls();
}

/// It has waited for [`IDLE`], and may wait for long.
pub fn idle() {
    if EXPIRY.swap(0, Ordering::Relaxed) != 0
        && let Err(Errno(errno)) = set_watchdog(0)
    {
        log::debug!("the watchdog stays on: errno {errno}");
    }
}

/// True if [`idle`] has something to do.
pub fn is_watched() -> bool {
    EXPIRY.load(Ordering::Relaxed) != 0
}

fn set_timer(expiry: Duration) -> Result<(), Errno> {
    let mut timer = SingleShot {
        timeout: clock::to_system_time(expiry),
        flags: 0,
    };
    let argument = &raw mut timer as u64;
    // SAFETY: the structure of VCPUOP_set_singleshot_timer, of vCPU 0; Xen only reads it.
    unsafe {
        hypercall::call4(
            __HYPERVISOR_vcpu_op,
            [VCPUOP_SET_SINGLESHOT_TIMER, 0, argument, 0],
        )
    }
    .map(drop)
}

/// Sets Xen's watchdog, in seconds; 0 ends it. An earlier life may have left it set.
fn set_watchdog(timeout: u32) -> Result<(), Errno> {
    let set = |id| {
        let mut watchdog = xen_sys::sched_watchdog { id, timeout };
        // SAFETY: the structure of SCHEDOP_watchdog; Xen only reads it.
        unsafe { hypercall::operate(__HYPERVISOR_sched_op, xen_sys::SCHEDOP_watchdog, &mut watchdog) }
    };
    // Without a number Xen takes the first that is free: it is this one.
    set(WATCHDOG_ID).or_else(|_| set(0)).map(drop)
}
