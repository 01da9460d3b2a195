//! What must outlive a request, if the stub fails during it or later.
//!
//! Each fact is kept twice: for the next run in this domain by the platform, and for the next stub domain in the page of
//! the second hop, which dom0 still has mapped when this domain is dead.

use crate::crash_log::{Advice, CrashLog, Op};
use crate::hops::second::SecondHop;
use crate::platform::Platform;
use crate::policy::engine::Engine;
use core::time::Duration;
use xenbus::pciif::{Command, Request};

/// The bookkeeping of one request, from before the engine's work until the guest has its answer.
pub struct Ledger {
    op: Op,
    /// When the request was taken.
    now: Duration,
    /// A copy. Nothing that is asked of it changes while a request is under way.
    crash_log: CrashLog,
    /// What to do with the request, by earlier failures.
    pub advice: Advice,
}

impl Ledger {
    /// Attributes every failure from here on to request `op`.
    pub fn open<P: Platform>(op: Op, now: Duration, platform: &mut P, second: &SecondHop<P::Page>) -> Self {
        // First, so that no failure from here on goes without its request.
        platform.set_under_way(Some(&op));
        let crash_log = platform.crash_log();
        second.begin_request(&op, crash_log.strikes(&op));
        Self {
            advice: crash_log.advise(&op, now),
            op,
            now,
            crash_log,
        }
    }

    /// Keeps what the request has changed in the engine. Must be called before the guest gets its answer: what the guest
    /// has been told must hold after a restart.
    pub fn persist<P: Platform>(
        &self,
        request: &Request,
        engine: &Engine<P::Ecam>,
        platform: &mut P,
        second: &SecondHop<P::Page>,
    ) {
        // Only a write changes the shadow, and most leave it as it was: the two copies are made where it changes.
        if request.command == Command::ConfWrite
            && let Some((guest_bdf, shadow)) = engine.shadow(request)
            && platform.recall(guest_bdf) != Some(shadow)
        {
            platform.remember(guest_bdf, Some(shadow));
            second.publish_handover(engine.shadows(), self.crash_log.poisoned());
        }
    }

    /// Ends the attribution of failures to the request, and publishes the counters. The guest has its answer.
    pub fn close<P: Platform>(self, engine: &Engine<P::Ecam>, platform: &mut P, second: &SecondHop<P::Page>) {
        platform.set_under_way(None);
        second.end_request();
        // Changing the log means copying it and computing its checksum: not for every request.
        if self.crash_log.is_waiting() {
            platform.update_crash_log(|crash_log| crash_log.answered(&self.op, self.now));
        }
        second.publish_counters(engine.counters());
    }
}
