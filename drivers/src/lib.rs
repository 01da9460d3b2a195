//! The drivers of the stub: the PCI backend, the client of the second hop, the console.
//!
//! From the bottom up:
//! - [`platform`]: what is asked of the machine; [`console`]: the log's way out.
//! - [`pciback::config`], [`pciback::messages`], [`pciback::slots`]: the policy, pure logic over
//!   [`pciback::hardware::Hardware`]. [`pciback::engine`] answers requests with them.
//! - [`pciback::lifecycle`]: the first hop, where the guest's pcifront connects to the engine; [`pciback::aer`] passes
//!   errors of devices on to it.
//! - [`pcifront`]: the second hop, over which dom0's service does what a stub may not.
//! - [`stub`]: all of it in one loop; [`journal`]: what it leaves to its next life.
//! - [`inject`]: failures on demand, in the tests' image alone.
//!
//! Nothing here reads a clock or touches memory that it does not own: time and hardware are arguments.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod console;
pub mod error;
#[cfg(feature = "inject")]
pub mod failure;
pub mod inject;
pub mod journal;
pub mod limiter;
pub mod log;
pub mod pciback;
pub mod pcifront;
pub mod platform;
pub mod store;
pub mod stub;
