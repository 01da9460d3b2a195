//! The end of a run: it is logged and recorded, and a restart in place follows where that helps.

use crate::entry::restart_in_place;
use crate::kept::{self, Damaged};
use crate::shutdown::{Reason, shutdown, stop};
use crate::{clock, console, deadline};
use core::sync::atomic::{AtomicU32, Ordering};
use drivers::crash_log::{Cause, Next};
use drivers::log;

/// Failures of this run. More than one: its end has failed too.
static FAILURES: AtomicU32 = AtomicU32::new(0);

/// Records `cause`, logs it by `log_cause`, and restarts the stub in place, unless the crash log says that restarting no
/// longer helps.
#[cold]
pub fn end(cause: Cause, log_cause: &dyn Fn()) -> ! {
    deadline::ending();
    match FAILURES.fetch_add(1, Ordering::Relaxed) {
        0 => log_cause(),
        // Logging failed: once more without it.
        1 => {}
        // The rest of the end fails too.
        _ => stop(Reason::Crash),
    }
    match kept::fail(cause, clock::now()) {
        Ok(Next::Restart(pause)) => {
            if !pause.is_zero() {
                // The wait opens upcalls again when it ends.
                deadline::wait(&[], Some(clock::now() + pause));
                deadline::ending();
            }
            restart_in_place()
        }
        Ok(Next::GiveUp) => {
            // Room for the last line: the ones before may have filled the ring.
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
