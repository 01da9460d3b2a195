//! How much of dom0's log and time one stub may take.

use crate::serve::log_limit::LogLimit;
use crate::serve::throttle::{Limit, Throttle};
use std::time::Instant;

/// Limits of one stub. They belong to the stub and not to its connection: a stub that was taken over can make a new
/// connection as often as it likes.
pub struct Limits {
    /// Of messages about the stub and its requests.
    pub complaints: LogLimit,
    /// Of messages about interrupt modes. A guest can change them as often as it likes, and must not hide complaints that way.
    pub mode_changes: LogLimit,
    /// Of requests and of events without one.
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
