//! Event channels (`xen/include/public/event_channel.h`), two-level and polled. The only upcall that is ever delivered is
//! that of [`deadline`](crate::deadline), which also has the wait that all others use.

use crate::{clock, hypercall, shared_info};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use core::time::Duration;
use drivers::log;
use drivers::platform::{DomId, Errno, Port};
use xen_sys::{__HYPERVISOR_event_channel_op, __HYPERVISOR_sched_op};

/// The calling domain (`DOMID_SELF`).
pub const DOMID_SELF: DomId = 0x7ff0;

/// Ports of the two-level ABI: 64 words of 64 bits.
const PORT_LIMIT: Port = 64 * 64;

/// Masks all upcalls, and all ports.
pub fn init() {
    let Some(page) = shared_info::page() else { return };
    open_upcalls(false);
    for word in 0..PORT_LIMIT / 64 {
        // SAFETY: in the page, which stays mapped for ever; Xen reads it at any moment, hence atomic.
        unsafe { AtomicU64::from_ptr(&raw mut (*page).evtchn_mask[word as usize]) }
            .store(u64::MAX, Ordering::Relaxed);
    }
}

/// Lets an event on `port` bring an upcall, while upcalls are open.
pub fn unmask(port: Port) {
    if let Some(page) = shared_info::page().filter(|_| port < PORT_LIMIT) {
        // SAFETY: in the page, which stays mapped for ever (the port is below the limit); Xen reads it at any moment,
        // hence atomic.
        unsafe { AtomicU64::from_ptr(&raw mut (*page).evtchn_mask[(port / 64) as usize]) }
            .fetch_and(!(1 << (port % 64)), Ordering::SeqCst);
    }
}

/// Acknowledges an event on `port`, the only one that is unmasked: the next one brings another upcall.
///
/// An event that comes in the middle of this may bring an upcall that finds nothing pending. No event is lost.
pub fn acknowledge(port: Port) {
    let Some(page) = shared_info::page() else { return };
    // SAFETY: as above.
    unsafe {
        let info = &raw mut (*page).vcpu_info[0];
        AtomicU8::from_ptr(&raw mut (*info).evtchn_upcall_pending).store(0, Ordering::SeqCst);
        AtomicU64::from_ptr(&raw mut (*info).evtchn_pending_sel).store(0, Ordering::SeqCst);
    }
    take_pending(port);
}

/// Opens or masks all upcalls.
pub fn open_upcalls(open: bool) {
    let Some(page) = shared_info::page() else { return };
    // SAFETY: as above.
    let pending = unsafe {
        let info = &raw mut (*page).vcpu_info[0];
        AtomicU8::from_ptr(&raw mut (*info).evtchn_upcall_mask).store((!open).into(), Ordering::SeqCst);
        AtomicU8::from_ptr(&raw mut (*info).evtchn_upcall_pending).load(Ordering::SeqCst)
    };
    if open && pending != 0 {
        // Xen delivers an event that came while upcalls were masked only on the way back from the next hypercall.
        yield_processor();
    }
}

/// Makes a port for the events of this vCPU's timer.
///
/// # Errors
/// `EEXIST` if there is one.
pub fn bind_timer() -> Result<Port, Errno> {
    let mut argument = xen_sys::evtchn_bind_virq {
        virq: xen_sys::VIRQ_TIMER,
        vcpu: 0,
        port: 0,
    };
    // SAFETY: the structure of EVTCHNOP_bind_virq, which touches no memory of ours.
    unsafe { operate(xen_sys::EVTCHNOP_bind_virq, &mut argument) }?;
    Ok(argument.port)
}

/// The word of the shared info page that holds the pending mark of `port`, and its bit.
fn pending_mark(port: Port) -> Option<(&'static AtomicU64, u64)> {
    let page = shared_info::page().filter(|_| port < PORT_LIMIT)?;
    // SAFETY: in the page, which stays mapped for ever (the port is below the limit); Xen sets bits atomically, and so
    // do we.
    let word = unsafe { AtomicU64::from_ptr(&raw mut (*page).evtchn_pending[(port / 64) as usize]) };
    Some((word, 1 << (port % 64)))
}

/// Takes the pending mark off `port`; true if it was set.
pub fn take_pending(port: Port) -> bool {
    pending_mark(port).is_some_and(|(word, bit)| word.fetch_and(!bit, Ordering::AcqRel) & bit != 0)
}

/// True if an event came over `port` since the last [`take_pending`].
pub fn is_pending(port: Port) -> bool {
    pending_mark(port).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
}

/// Lets Xen run another vCPU on this processor for a moment.
pub fn yield_processor() {
    const NONE: u64 = 0;
    let operation = u64::from(xen_sys::SCHEDOP_yield);
    // SAFETY: SCHEDOP_yield takes no argument.
    let yielded = unsafe { hypercall::call4(__HYPERVISOR_sched_op, [operation, NONE, NONE, NONE]) };
    debug_assert!(yielded.is_ok(), "SCHEDOP_yield: {yielded:?}");
}

/// Makes a sub-operation of `event_channel_op`.
///
/// # Safety
/// As [`hypercall::operate`].
unsafe fn operate<T>(operation: u32, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: passed on.
    unsafe { hypercall::operate(__HYPERVISOR_event_channel_op, operation, argument) }.map(drop)
}

/// Sends an event over `port`.
///
/// # Errors
/// `EINVAL` if the port is not one of ours.
pub fn send(port: Port) -> Result<(), Errno> {
    // SAFETY: the structure of EVTCHNOP_send, which touches no memory of ours.
    unsafe { operate(xen_sys::EVTCHNOP_send, &mut xen_sys::evtchn_send { port }) }
}

/// Makes a port that domain `peer` can bind to.
///
/// # Errors
/// `ENOSPC` without a free port.
pub fn alloc_unbound(peer: DomId) -> Result<Port, Errno> {
    let mut argument = xen_sys::evtchn_alloc_unbound {
        dom: DOMID_SELF,
        remote_dom: peer,
        port: 0,
    };
    // SAFETY: the structure of EVTCHNOP_alloc_unbound, which touches no memory of ours.
    unsafe { operate(xen_sys::EVTCHNOP_alloc_unbound, &mut argument) }?;
    Ok(argument.port)
}

/// Binds a port of ours to `peer`'s unbound port `remote`. Xen marks it pending at once.
///
/// # Errors
/// `EINVAL` if the peer has no such port for us, `ESRCH` if there is no such domain.
pub fn bind_interdomain(peer: DomId, remote: Port) -> Result<Port, Errno> {
    let mut argument = xen_sys::evtchn_bind_interdomain {
        remote_dom: peer,
        remote_port: remote,
        local_port: 0,
    };
    // SAFETY: the structure of EVTCHNOP_bind_interdomain, which touches no memory of ours.
    unsafe { operate(xen_sys::EVTCHNOP_bind_interdomain, &mut argument) }?;
    Ok(argument.local_port)
}

/// Closes `port` and forgets what was pending on it.
pub fn close(port: Port) {
    // SAFETY: the structure of EVTCHNOP_close, which touches no memory of ours.
    let closed = unsafe { operate(xen_sys::EVTCHNOP_close, &mut xen_sys::evtchn_close { port }) };
    if let Err(Errno(errno)) = closed {
        log::warn!("event channel port {port} would not close (errno {errno})");
    }
    take_pending(port);
}

/// `struct evtchn_status`.
#[repr(C)]
struct Status {
    domain: DomId,
    port: Port,
    status: u32,
    vcpu: u32,
    /// What follows depends on the kind of port.
    details: [u32; 2],
}

const _: () = assert!(size_of::<Status>() == 24);

impl Status {
    /// Of one of our ports; `None` if Xen knows no such port.
    fn of(port: Port) -> Option<Self> {
        let mut argument = Self {
            domain: DOMID_SELF,
            port,
            status: 0,
            vcpu: 0,
            details: [0; 2],
        };
        // SAFETY: the structure of EVTCHNOP_status, which touches no other memory of ours.
        unsafe { operate(xen_sys::EVTCHNOP_status, &mut argument) }.ok()?;
        Some(argument)
    }
}

/// Closes the ports that an earlier run has left open: all but `kept`, which the toolstack has made.
pub fn close_all_but(kept: &[Port]) {
    // Xen's table of ports has no gaps: behind the first unknown one there is none.
    for status in (1..PORT_LIMIT).map_while(Status::of) {
        if status.status != xen_sys::EVTCHNSTAT_closed && !kept.contains(&status.port) {
            close(status.port);
        }
    }
}

/// The domain and the port at the other end of a port, if it is connected.
pub fn other_end(port: Port) -> Option<(DomId, Port)> {
    let status = Status::of(port)?;
    let [domain, remote] = status.details;
    (status.status == xen_sys::EVTCHNSTAT_interdomain).then_some((domain as DomId, remote))
}

/// Blocks until one of `ports` is pending, or the clock reaches `until`. May end early.
pub(crate) fn poll(ports: &[Port], until: Option<Duration>) {
    let mut argument = xen_sys::sched_poll {
        ports: ports.as_ptr().cast_mut(),
        nr_ports: ports.len() as u32,
        timeout: until.map_or(0, |until| clock::to_system_time(until).max(1)),
    };
    // SAFETY: the structure of SCHEDOP_poll; Xen only reads the ports, which live until the call returns.
    let polled = unsafe { hypercall::operate(__HYPERVISOR_sched_op, xen_sys::SCHEDOP_poll, &mut argument) };
    debug_assert!(polled.is_ok(), "SCHEDOP_poll: {polled:?}");
}
