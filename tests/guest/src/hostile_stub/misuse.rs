//! What the hostile stub needs of a machine beyond what the drivers ask of it.

use crate::grants::Grants;
use drivers::platform::{DomId, Port};

/// `SHUTDOWN_crash` (`xen/include/public/sched.h`).
pub const CRASH: u32 = 3;

/// What a domain must not do, and does all the same.
pub trait Misuse: Grants {
    /// Makes every hypercall that is dom0's, against domain `victim`; `tell` hears of each whether it was refused.
    fn forbidden(&mut self, victim: DomId, tell: impl FnMut(&'static str, bool));
    /// The domain and the port that a port of ours is connected to, if it is.
    fn other_end(&mut self, port: Port) -> Option<(DomId, Port)>;
    /// Maps a machine frame writable, and unmaps it; false if Xen refuses.
    fn map_frame(&mut self, frame: u64) -> bool;
    /// Writes a byte into a configuration page. To return from this is a fault of Xen's.
    fn write_ecam(&mut self, frame: u64, offset: u16, value: u8);
    /// Ends the domain for a reason of any number.
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
