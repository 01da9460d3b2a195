//! The end of a run: said, noted, and followed by another one where that helps.

use crate::entry::restart_in_place;
use crate::kept::{self, Damaged};
use crate::shutdown::{Reason, shutdown, stop};
use crate::{clock, console, deadline};
use core::sync::atomic::{AtomicU32, Ordering};
use drivers::crash_log::{Cause, Next};
use drivers::log;

/// Failures of this run: more than one if its end fails too.
static FAILURES: AtomicU32 = AtomicU32::new(0);

/// Ends this run because of `cause`, which `log_cause` puts into words, and begins the next one if the past gives hope.
#[cold]
pub fn end(cause: Cause, log_cause: &dyn Fn()) -> ! {
    deadline::ending();
    match FAILURES.fetch_add(1, Ordering::Relaxed) {
        0 => log_cause(),
        // The words failed: without them.
        1 => {}
        _ => stop(Reason::Crash),
    }
    match kept::fail(cause, clock::now()) {
        Ok(Next::Restart(pause)) => {
            if !pause.is_zero() {
                deadline::wait(&[], Some(clock::now() + pause));
                deadline::ending();
            }
            restart_in_place()
        }
        Ok(Next::GiveUp) => {
            // Room for the last word.
            console::drain();
            log::error!(
                "failed again and again and served nobody in between; shutting down with reason crash"
            );
        }
        Err(Damaged) => {
            log::error!("the record of earlier runs is damaged; shutting down with reason crash")
        }
    }
    shutdown(Reason::Crash)
}
