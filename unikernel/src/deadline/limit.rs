//! When the timer and the watchdog are set, and when work has run for too long.
//!
//! [`Limit`] decides and [`Vcpu`] acts, so that the decisions are tested on a clock that tests move.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use drivers::platform::Port;

/// The longest that work may run: it is cut off after this, or up to [`SLACK`] before. Guests wait two seconds for an
/// answer, of which a new run takes some tenths.
const LIMIT: Duration = Duration::from_millis(400);
/// The timer fires after this. No more than this is charged at a time: below a hypervisor of its own Xen takes time for
/// the stub's in which it was not run itself, and such a gap ends one slice, not four.
const SLICE: Duration = Duration::from_millis(100);
/// The timer is set again when this much of its time is gone.
const SLACK: Duration = Duration::from_millis(50);
/// Xen's watchdog. Longer than a sound host keeps a domain from running: a pause by an administrator's command, a
/// stalled processor.
const WATCHDOG: Duration = Duration::from_secs(10);
/// The watchdog is set again when this much of its time is gone.
const WATCHDOG_SLACK: Duration = Duration::from_secs(2);
/// Waiting for longer than this is being idle. Less than [`SLICE`], so that the timer seldom ends a wait.
const IDLE: Duration = Duration::from_millis(80);

/// What the limit asks of Xen.
pub(super) trait Vcpu {
    /// Time since boot.
    fn now(&self) -> Duration;
    /// For how long Xen has run this vCPU.
    fn running(&self) -> Duration;
    /// Has the timer's event come at this time; never if there is none. True if that is so from now on.
    fn set_timer(&self, at: Option<Duration>) -> bool;
    /// Has Xen end the domain after so many seconds; never if they are 0. True if that is so from now on.
    fn set_watchdog(&self, seconds: u32) -> bool;
    /// Lets the timer's upcall come, or not.
    fn open_upcalls(&self, open: bool);
    /// True if there is an event on one of these ports.
    fn is_pending(&self, ports: &[Port]) -> bool;
    /// Blocks until there is an event on one of these ports, or the clock reaches `until`. May end early.
    fn poll(&self, ports: &[Port], until: Option<Duration>);
}

/// What the timer's upcall says of the work that it interrupts.
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
    /// How long the vCPU had run when that was last looked at.
    ran: AtomicU64,
    /// What this work has been charged at the ends of slices.
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

    /// From here on the stub works.
    #[inline(never)]
    pub(super) fn work(&self, vcpu: &impl Vcpu) {
        let now = vcpu.now();
        let left = self.expiry.load(Ordering::Relaxed).saturating_sub(micros(now));
        // What has been charged is of other work.
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
        let slice = running.saturating_sub(self.ran.swap(running, Ordering::Relaxed));
        let charged = self.charged.load(Ordering::Relaxed) + slice.min(micros(SLICE));
        self.charged.store(charged, Ordering::Relaxed);
        if charged + micros(SLACK) >= micros(LIMIT) {
            return Verdict::Hung;
        }
        self.arm(vcpu, vcpu.now());
        Verdict::GoOn
    }

    /// This run ends: no upcall comes, and the watchdog sees to it that the end is not endless.
    pub(super) fn end(&self, vcpu: &impl Vcpu) {
        vcpu.open_upcalls(false);
        self.watch(vcpu, vcpu.now());
    }

    /// Blocks until there is an event on one of `ports`, or the clock reaches `until`. May end early.
    pub(super) fn wait(&self, vcpu: &impl Vcpu, ports: &[Port], until: Option<Duration>) {
        if !vcpu.is_pending(ports) {
            vcpu.open_upcalls(false);
            let is_set = self.expiry.load(Ordering::Relaxed) | self.bite.load(Ordering::Relaxed) != 0;
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

    /// Nothing is to come for long: the timer would end the wait, and the watchdog the domain.
    fn idle(&self, vcpu: &impl Vcpu) {
        if vcpu.set_watchdog(0) {
            self.bite.store(0, Ordering::Relaxed);
        }
        if vcpu.set_timer(None) {
            self.expiry.store(0, Ordering::Relaxed);
        }
    }
}

/// Sets Xen's watchdog by `set`, which takes its number and the seconds, whether an earlier run has left it on or not.
pub(super) fn set_watchdog(seconds: u32, set: impl Fn(u32, u32) -> bool) -> bool {
    /// The only watchdog that we have: Xen numbers from 1.
    const ID: u32 = 1;
    /// Xen takes the first that is free: it is that one.
    const ANY: u32 = 0;
    // To turn off what is not on needs nothing. ANY with no seconds would be a new watchdog that ends the domain at once.
    set(ID, seconds) || seconds == 0 || set(ANY, seconds)
}

#[cfg(test)]
mod tests;
