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
    /// What to do with the request, by earlier failures.
    pub advice: Advice,
}

impl Ledger {
    /// Attributes every failure from here on to request `op`.
    pub fn open<P: Platform>(op: Op, now: Duration, platform: &mut P, second: &SecondHop<P::Page>) -> Self {
        // First, so that no failure from here on goes without its request.
        platform.set_under_way(Some(&op));
        let (strikes, advice) =
            platform.see_crash_log(|crash_log| (crash_log.strikes(&op), crash_log.advise(&op, now)));
        second.begin_request(&op, strikes);
        Self { op, now, advice }
    }

    /// Ends the attribution of failures to the request, and publishes the counters. The guest has its answer.
    pub fn close<P: Platform>(
        self,
        engine: &mut Engine<P::Ecam>,
        platform: &mut P,
        second: &SecondHop<P::Page>,
    ) {
        platform.set_under_way(None);
        second.end_request();
        // Changing the log means copying it and computing its checksum: not for every request.
        if platform.see_crash_log(CrashLog::is_waiting) {
            platform.update_crash_log(|crash_log| crash_log.answered(&self.op, self.now));
        }
        second.publish_counters(engine.counters_mut(), false);
    }
}

/// Keeps, before the request is served, that the guest may not know the pirqs of what is on, or does not use them any more.
/// That holds whatever becomes of the request.
#[inline(never)]
pub fn prepare<P: Platform>(
    advice: Advice,
    request: &Request,
    engine: &mut Engine<P::Ecam>,
    platform: &mut P,
    second: &SecondHop<P::Page>,
) {
    if advice != Advice::Serve || matches!(request.command, Command::DisableMsi | Command::DisableMsix) {
        engine.mark_unknown(request);
        persist(request, engine, platform, second);
    }
}

/// Keeps what the request has changed in the engine.
pub fn persist<P: Platform>(
    request: &Request,
    engine: &Engine<P::Ecam>,
    platform: &mut P,
    second: &SecondHop<P::Page>,
) {
    // A read never changes the shadow, and most writes leave it as it was: the two copies are made where it changes.
    if request.command != Command::ConfRead
        && let Some((guest_bdf, shadow)) = engine.shadow(request)
        && platform.recall(guest_bdf) != Some(shadow)
    {
        platform.remember(guest_bdf, Some(shadow));
        second.publish_handover(engine.shadows(), platform.crash_log().poisoned());
    }
}
