//! Metrics of stubs and of dom0's service: their names, and the text that Prometheus reads.
//!
//! [`families`] is the table of all names, [`exposition`] writes them in either [`Format`], and [`stub`] writes what one stub
//! counts. Dom0's command and a stub that serves its own metrics use the same code, so that both tell the same names.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate alloc;

pub mod exposition;
pub mod families;
pub mod format;
pub mod stub;

pub use exposition::{Exposition, Value};
pub use families::{Family, Kind};
pub use format::Format;
pub use stub::Stub;

/// TCP port at which a stub serves its metrics if nothing else is asked for.
pub const STUB_PORT: u16 = 9743;
