//! The decisions about the limit: when to set the timer and the watchdog, and when work has run for too long.
//!
//! [`Limit`] decides, and [`Vcpu`] acts by hypercalls or, in tests, on a clock that the test moves.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use drivers::platform::{Port, WORK_LIMIT};

/// The timer fires after this time. No more than this is charged at once: where Xen itself runs in a virtual machine, it
/// counts gaps in which it did not run as the stub's time. Such a gap must not use up the whole limit.
const SLICE: Duration = Duration::from_millis(100);
/// The timer is set again when this much of its time is gone. So work is cut off after [`WORK_LIMIT`], or up to this much
/// before.
const SLACK: Duration = Duration::from_millis(50);
/// The time of Xen's watchdog: longer than a sound host keeps a domain from running, by an administrator's command or a
/// stalled processor.
const WATCHDOG: Duration = Duration::from_secs(10);
/// The watchdog is set again when this much of its time is gone.
const WATCHDOG_SLACK: Duration = Duration::from_secs(2);
/// A longer wait is being idle. Less than [`SLICE`], so that the timer seldom ends a wait: its event ends `SCHEDOP_poll`
/// although upcalls are masked.
const IDLE: Duration = Duration::from_millis(80);

/// The vCPU, as far as the limit controls it.
pub(super) trait Vcpu {
    /// Time since boot.
    fn now(&self) -> Duration;
    /// For how long Xen has run this vCPU.
    fn running(&self) -> Duration;
    /// Sets the timer to this time; `None` stops it. True if Xen has done so.
    fn set_timer(&self, at: Option<Duration>) -> bool;
    /// Has Xen end the domain after so many seconds; 0 turns that off. True if Xen has done so.
    fn set_watchdog(&self, seconds: u32) -> bool;
    /// Opens or masks the timer's upcall.
    fn open_upcalls(&self, open: bool);
    /// True if there is an event on one of these ports.
    fn is_pending(&self, ports: &[Port]) -> bool;
    /// Blocks until there is an event on one of these ports, or the clock reaches `until`. May end early.
    fn poll(&self, ports: &[Port], until: Option<Duration>);
}

/// The timer's judgement about the work that it interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may go on.
    GoOn,
    /// It has run for too long.
    Hung,
}

/// The state. Atomics, because the upcall comes at any instruction; all in microseconds.
pub(super) struct Limit {
    /// When the timer fires, since boot; 0: it is not set.
    expiry: AtomicU64,
    /// When Xen's watchdog ends the domain, since boot; 0: it is off.
    bite: AtomicU64,
    /// How long the vCPU had run when that was last read.
    ran: AtomicU64,
    /// What this work has been charged so far, at the ends of slices.
    charged: AtomicU64,
}

const fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

impl Limit {
    pub(super) const fn new() -> Self {
        Self {
            expiry: AtomicU64::new(0),
            bite: AtomicU64::new(0),
            ran: AtomicU64::new(0),
            charged: AtomicU64::new(0),
        }
    }

    /// The stub works from here on.
    #[inline(never)]
    pub(super) fn work(&self, vcpu: &impl Vcpu) {
        let now = vcpu.now();
        let left = self.expiry.load(Ordering::Relaxed).saturating_sub(micros(now));
        // What was charged belongs to the work before the wait. A timer that has enough time left is not set again.
        if left < micros(SLICE - SLACK) || self.charged.load(Ordering::Relaxed) != 0 {
            self.charged.store(0, Ordering::Relaxed);
            self.ran.store(micros(vcpu.running()), Ordering::Relaxed);
            self.arm(vcpu, now);
        }
        vcpu.open_upcalls(true);
    }

    /// Sets the timer, and the watchdog unless most of its time is left.
    #[inline(never)]
    fn arm(&self, vcpu: &impl Vcpu, now: Duration) {
        let expiry = now + SLICE;
        let is_set = vcpu.set_timer(Some(expiry));
        self.expiry
            .store(if is_set { micros(expiry) } else { 0 }, Ordering::Relaxed);
        let left = self.bite.load(Ordering::Relaxed).saturating_sub(micros(now));
        if left < micros(WATCHDOG - WATCHDOG_SLACK) {
            self.watch(vcpu, now);
        }
    }

    /// Sets the watchdog.
    fn watch(&self, vcpu: &impl Vcpu, now: Duration) {
        if vcpu.set_watchdog(WATCHDOG.as_secs() as u32) {
            self.bite.store(micros(now + WATCHDOG), Ordering::Relaxed);
        }
    }

    /// The timer has fired while the stub worked.
    pub(super) fn expire(&self, vcpu: &impl Vcpu) -> Verdict {
        let running = micros(vcpu.running());
        // Since the slice began, as Xen counts it.
        let slice = running.saturating_sub(self.ran.swap(running, Ordering::Relaxed));
        let charged = self.charged.load(Ordering::Relaxed) + slice.min(micros(SLICE));
        self.charged.store(charged, Ordering::Relaxed);
        if charged + micros(SLACK) >= micros(WORK_LIMIT) {
            return Verdict::Hung;
        }
        self.arm(vcpu, vcpu.now());
        Verdict::GoOn
    }

    /// This run ends: masks the upcall, and sets the watchdog for an end that hangs.
    pub(super) fn end(&self, vcpu: &impl Vcpu) {
        vcpu.open_upcalls(false);
        self.watch(vcpu, vcpu.now());
    }

    /// Blocks until there is an event on one of `ports`, or the clock reaches `until`. May end early.
    pub(super) fn wait(&self, vcpu: &impl Vcpu, ports: &[Port], until: Option<Duration>) {
        if !vcpu.is_pending(ports) {
            vcpu.open_upcalls(false);
            let is_set = self.expiry.load(Ordering::Relaxed) | self.bite.load(Ordering::Relaxed) != 0;
            // Most waits are short, and cost no hypercall for timer and watchdog then.
            let idle = vcpu.now() + IDLE;
            if is_set && until.is_none_or(|until| until > idle) {
                vcpu.poll(ports, Some(idle));
                if !vcpu.is_pending(ports) {
                    self.idle(vcpu);
                    vcpu.poll(ports, until);
                }
            } else {
                vcpu.poll(ports, until);
            }
        }
        self.work(vcpu);
    }

    /// Stops timer and watchdog for a long wait: the timer would end the wait, and the watchdog the domain.
    fn idle(&self, vcpu: &impl Vcpu) {
        if vcpu.set_watchdog(0) {
            self.bite.store(0, Ordering::Relaxed);
        }
        if vcpu.set_timer(None) {
            self.expiry.store(0, Ordering::Relaxed);
        }
    }
}

/// Sets Xen's watchdog, whether an earlier run has left one on or not. `set` makes the hypercall, by number and seconds.
pub(super) fn set_watchdog(seconds: u32, set: impl Fn(u32, u32) -> bool) -> bool {
    /// The only watchdog that we have: Xen numbers from 1.
    const ID: u32 = 1;
    /// Xen takes the first one that is free.
    const ANY: u32 = 0;
    // Turning off what is not on needs nothing. ANY with 0 seconds would be a new watchdog that ends the domain at once.
    set(ID, seconds) || seconds == 0 || set(ANY, seconds)
}

#[cfg(test)]
mod tests;
