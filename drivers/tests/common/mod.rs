//! The models that the tests run against.

#![allow(dead_code, reason = "each test file uses a part")]

pub mod device;
pub mod guest;
pub mod host;
pub mod hotplug;
pub mod service;
pub mod world;

/// The distance between moments that a test tries: `one_in`, which is no divisor of what repeats; 1 where
/// `BULKHEAD_EVERY_MOMENT` is set.
pub fn stride(one_in: usize) -> usize {
    if std::env::var_os("BULKHEAD_EVERY_MOMENT").is_some() {
        1
    } else {
        one_in
    }
}
