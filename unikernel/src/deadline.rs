//! A limit for work: between two waits the stub may run for [`WORK_LIMIT`](drivers::platform::WORK_LIMIT).
//!
//! Only time counts in which Xen ran the stub, not time on the clock. A stub that waits for a busy host, or is paused, is
//! not hung. While the stub works, one upcall is open, that of its timer. It comes at the end of each `limit::SLICE` and
//! adds up what the stub has run. Below the limit it returns to what it interrupted; at the limit it ends this run
//! ([`trap`](crate::trap)). While the stub waits, all upcalls are masked.
//!
//! Behind it stands Xen's watchdog, for a hang with upcalls masked. It counts time on the clock, so it is long, and each
//! upcall of the timer sets it again. Timer and watchdog are off while the stub idles.
//!
//! Both are set ahead and left alone while enough of their time is left, so that a request costs no hypercall for them.

mod limit;

use crate::{clock, event, hypercall};
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use drivers::platform::{Errno, Port};
use limit::{Limit, Vcpu, Verdict, set_watchdog};
use xen_sys::{__HYPERVISOR_callback_op, __HYPERVISOR_sched_op, __HYPERVISOR_vcpu_op};

const VCPUOP_GET_RUNSTATE_INFO: u32 = 4;
const VCPUOP_STOP_PERIODIC_TIMER: u32 = 7;
const VCPUOP_SET_SINGLESHOT_TIMER: u32 = 8;
const VCPUOP_STOP_SINGLESHOT_TIMER: u32 = 9;
const CALLBACKOP_REGISTER: u32 = 0;
const CALLBACKTYPE_EVENT: u16 = 0;

/// `struct vcpu_set_singleshot_timer`.
#[repr(C)]
struct SingleShot {
    /// Xen's system time, in nanoseconds.
    timeout: u64,
    flags: u32,
}

/// `struct vcpu_runstate_info`.
#[repr(C)]
#[derive(Default)]
struct RunState {
    state: i32,
    state_entry_time: u64,
    /// Nanoseconds in each state; the first is `RUNSTATE_running`.
    time: [u64; 4],
}

/// `struct callback_register`.
#[repr(C)]
struct Callback {
    kind: u16,
    flags: u16,
    address: u64,
}

const _: () =
    assert!(size_of::<SingleShot>() == 16 && size_of::<RunState>() == 48 && size_of::<Callback>() == 16);

/// The timer's port; 0 before [`init`].
static PORT: AtomicU32 = AtomicU32::new(0);
static LIMIT: Limit = Limit::new();

/// Registers `entry` for the timer's upcall, and limits work from here on.
///
/// # Errors
/// The errno with which Xen refuses.
///
/// # Safety
/// `entry` must be the address of code that takes an upcall's frame from the stack, and either leaves what was
/// interrupted as it was or never returns to it.
pub unsafe fn init(entry: u64) -> Result<(), Errno> {
    let mut callback = Callback {
        kind: CALLBACKTYPE_EVENT,
        flags: 0,
        address: entry,
    };
    // SAFETY: the structure of CALLBACKOP_register, an entry as the caller vouches.
    unsafe { hypercall::operate(__HYPERVISOR_callback_op, CALLBACKOP_REGISTER, &mut callback)? };
    operate(VCPUOP_STOP_PERIODIC_TIMER, &mut ())?;
    let port = event::bind_timer()?;
    PORT.store(port, Ordering::Relaxed);
    event::unmask(port);
    // At once, not at the first wait: an earlier run may have left the watchdog on, and only what is known to be on is
    // turned off while the stub waits.
    LIMIT.work(&XenVcpu);
    Ok(())
}

fn is_limited() -> bool {
    PORT.load(Ordering::Relaxed) != 0
}

/// The stub works from here on.
pub fn work() {
    if is_limited() {
        LIMIT.work(&XenVcpu);
    }
}

/// This run ends: masks upcalls, and has the watchdog end the domain if the end hangs.
pub fn ending() {
    if is_limited() {
        LIMIT.end(&XenVcpu);
    }
}

/// Called by the timer's upcall: true if the work that it interrupts has run for too long.
pub fn is_over() -> bool {
    LIMIT.expire(&XenVcpu) == Verdict::Hung
}

/// Blocks until one of `ports` is pending, or the clock reaches `until`. Without `until`, for ever. May end early.
///
/// At most 128 ports (Xen's limit); the stub has five.
pub fn wait(ports: &[Port], until: Option<Duration>) {
    if is_limited() {
        LIMIT.wait(&XenVcpu, ports, until);
    } else if !XenVcpu.is_pending(ports) {
        XenVcpu.poll(ports, until);
    }
}

/// Makes a sub-operation of `vcpu_op` on the only vCPU. `argument` must be its structure.
fn operate<T>(operation: u32, argument: &mut T) -> Result<u64, Errno> {
    let argument = core::ptr::from_mut(argument) as u64;
    // SAFETY: all callers are in this module and pass the structure that their operation reads or writes, or an empty
    // one where it takes none; it is exclusively ours for the length of the call.
    unsafe { hypercall::call4(__HYPERVISOR_vcpu_op, [u64::from(operation), 0, argument, 0]) }
}

/// Runs in the upcall too: no logging, for the interrupted code may be in the middle of that.
struct XenVcpu;

impl Vcpu for XenVcpu {
    fn now(&self) -> Duration {
        clock::now()
    }

    fn running(&self) -> Duration {
        let mut state = RunState::default();
        // Xen never refuses this. If it did, time on the clock would count.
        match operate(VCPUOP_GET_RUNSTATE_INFO, &mut state) {
            Ok(_) => Duration::from_nanos(state.time[0]),
            Err(_) => clock::now(),
        }
    }

    fn set_timer(&self, at: Option<Duration>) -> bool {
        event::acknowledge(PORT.load(Ordering::Relaxed));
        match at {
            Some(at) => {
                let mut timer = SingleShot {
                    timeout: clock::to_system_time(at),
                    flags: 0,
                };
                operate(VCPUOP_SET_SINGLESHOT_TIMER, &mut timer)
            }
            None => operate(VCPUOP_STOP_SINGLESHOT_TIMER, &mut ()),
        }
        .is_ok()
    }

    fn set_watchdog(&self, seconds: u32) -> bool {
        set_watchdog(seconds, |id, timeout| {
            let mut watchdog = xen_sys::sched_watchdog { id, timeout };
            // SAFETY: the structure of SCHEDOP_watchdog; Xen only reads it.
            unsafe { hypercall::operate(__HYPERVISOR_sched_op, xen_sys::SCHEDOP_watchdog, &mut watchdog) }
                .is_ok()
        })
    }

    fn open_upcalls(&self, open: bool) {
        event::open_upcalls(open);
    }

    fn is_pending(&self, ports: &[Port]) -> bool {
        ports.iter().any(|&port| event::is_pending(port))
    }

    fn poll(&self, ports: &[Port], until: Option<Duration>) {
        event::poll(ports, until);
    }
}
