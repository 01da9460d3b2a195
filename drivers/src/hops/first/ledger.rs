//! What must outlive a request, should the stub fail over it or later.
//!
//! The next run of this stub has it from the platform; a stub after this one, from the page of the second hop.

use crate::crash_log::{Advice, CrashLog, Op};
use crate::hops::second::SecondHop;
use crate::platform::Platform;
use crate::policy::engine::Engine;
use core::time::Duration;
use xenbus::pciif::{Command, Request};

/// The books of one request: opened before the engine's work, and closed when the guest has its answer.
pub struct Ledger {
    op: Op,
    /// When the request was taken.
    now: Duration,
    /// A copy. Nothing that is asked of it changes while a request is under way.
    crash_log: CrashLog,
    /// What earlier runs say about the request.
    pub advice: Advice,
}

impl Ledger {
    /// Puts every failure from here on down to request `op`.
    pub fn open<P: Platform>(op: Op, now: Duration, platform: &mut P, second: &SecondHop<P::Page>) -> Self {
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

    /// Keeps what the request has changed in the engine. To be called before the guest is told: what it has been told
    /// holds in every later run.
    pub fn persist<P: Platform>(
        &self,
        request: &Request,
        engine: &Engine<P::Ecam>,
        platform: &mut P,
        second: &SecondHop<P::Page>,
    ) {
        if request.command == Command::ConfWrite
            && let Some((guest_bdf, shadow)) = engine.shadow(request)
            && platform.recall(guest_bdf) != Some(shadow)
        {
            platform.remember(guest_bdf, Some(shadow));
            second.publish_handover(engine.shadows(), self.crash_log.poisoned());
        }
    }

    /// Notes that the request is answered, and publishes the counters.
    pub fn close<P: Platform>(self, engine: &Engine<P::Ecam>, platform: &mut P, second: &SecondHop<P::Page>) {
        platform.set_under_way(None);
        second.end_request();
        if self.crash_log.is_waiting() {
            platform.update_crash_log(|crash_log| crash_log.answered(&self.op, self.now));
        }
        second.publish_counters(engine.counters());
    }
}
