//! How much of dom0's log and time one stub may take.

use crate::serve::log_limit::LogLimit;
use crate::serve::throttle::{Limit, Throttle};
use std::time::Instant;

/// What a stub may do so often and no more. They are the stub's, and not its connection's: one that was taken over can
/// have a new connection as often as it likes.
pub struct Limits {
    /// Of complaints.
    pub complaints: LogLimit,
    /// Of changes of interrupt modes, which a guest can bring about as often as it likes.
    pub mode_changes: LogLimit,
    pub throttle: Throttle,
}

impl Limits {
    /// Nothing is used up.
    pub fn new(now: Instant) -> Self {
        Self {
            complaints: LogLimit::new(now),
            mode_changes: LogLimit::new(now),
            throttle: Throttle::new(Limit::REQUESTS, now),
        }
    }
}
