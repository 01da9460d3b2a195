//! The drivers of the stub: the PCI backend, the frontend of the second hop, the console.
//!
//! From the top to the bottom; a room uses only those below it:
//! - [`stub`]: the loop; [`background`]: what else a stub does between two requests.
//! - [`hops`]: the [`first`](hops::first) hop, where the guest's pcifront connects, and the [`second`](hops::second),
//!   over which dom0's service does what a stub may not.
//! - [`inject`]: failures on demand, in the tests' image alone.
//! - [`policy`]: what a guest may do. [`policy::engine`] answers requests with [`policy::config`], [`policy::msi`]
//!   and [`policy::slots`].
//! - [`store`]: xenstore as a stub uses it; [`log`] and [`limiter`]: log lines and their limits.
//! - [`platform`]: the trait for the machine below; [`console`]: where log lines go; [`crash_log`] and
//!   [`snapshot`]: what a restart must know.
//!
//! Time and hardware are arguments everywhere, so that all of it runs against models on the host.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod background;
pub mod console;
pub mod crash_log;
pub mod error;
#[cfg(feature = "inject")]
pub mod failure;
pub mod hops;
pub mod inject;
pub mod limiter;
pub mod log;
pub mod platform;
pub mod policy;
pub mod snapshot;
pub mod store;
pub mod stub;
