//! The machine of the hostile stub: operations that the drivers do not need.

use crate::grants::Grants;
use drivers::platform::{DomId, Port};

/// `SHUTDOWN_crash` (`xen/include/public/sched.h`).
pub const CRASH: u32 = 3;

/// Operations that a domain must not do.
pub trait Misuse: Grants {
    /// Makes every hypercall that only dom0 may make, against domain `victim`. Calls `tell` for each with whether Xen
    /// refused it.
    fn forbidden(&mut self, victim: DomId, tell: impl FnMut(&'static str, bool));
    /// The domain and the port that a port of ours is connected to, if it is.
    fn other_end(&mut self, port: Port) -> Option<(DomId, Port)>;
    /// Maps a machine frame writable, and unmaps it; false if Xen refuses.
    fn map_frame(&mut self, frame: u64) -> bool;
    /// Writes a byte into a configuration page. If this returns, Xen has a fault.
    fn write_ecam(&mut self, frame: u64, offset: u16, value: u8);
    /// Ends the domain with any number as the reason.
    fn shut_down(&mut self, reason: u32) -> !;
}

#[cfg(feature = "boot")]
impl Misuse for unikernel::platform::Xen {
    fn forbidden(&mut self, victim: DomId, tell: impl FnMut(&'static str, bool)) {
        unikernel::misuse::forbidden(victim, tell);
    }

    fn other_end(&mut self, port: Port) -> Option<(DomId, Port)> {
        unikernel::event::other_end(port)
    }

    fn map_frame(&mut self, frame: u64) -> bool {
        unikernel::misuse::map_frame(frame).is_ok()
    }

    fn write_ecam(&mut self, frame: u64, offset: u16, value: u8) {
        // A page that cannot even be mapped was not written.
        let _ = unikernel::misuse::write_ecam(frame, offset, value);
    }

    fn shut_down(&mut self, reason: u32) -> ! {
        unikernel::misuse::shut_down(reason)
    }
}
