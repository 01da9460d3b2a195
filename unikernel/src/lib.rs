//! What a single-purpose Xen PV guest stands on.
//!
//! One vCPU, event upcalls masked for ever, one loop around `SCHEDOP_poll`: nothing in here is ever interrupted,
//! apart from an exception, and an exception never returns. `docs/soundness.md` says what every `unsafe` block
//! in this crate relies on.
//!
//! | module | holds |
//! |---|---|
//! | `boot` | ELF notes, entry point, start info, order of set-up |
//! | [`hypercall`] | the calls into Xen |
//! | [`memory`] | the address space: windows, heap area, page-table updates |
//! | [`page`] | memory that another domain writes too |
//! | [`event`] | event channels and `SCHEDOP_poll` |
//! | [`grant`] | the grant table, both ways |
//! | [`clock`] | the paravirtual clock |
//! | [`console`] | the console ring behind `log` |
//! | [`store`] | the xenstore ring |
//! | [`platform`] | all of the above as `drivers::platform::Platform` |
//! | [`trap`] | exceptions |
//! | [`shutdown`] | the ways to end |
#![no_std]

extern crate alloc;

#[cfg(feature = "boot")]
pub mod boot;
pub mod clock;
pub mod console;
pub mod event;
pub mod grant;
pub mod hypercall;
#[cfg(feature = "boot")]
mod lang;
pub mod memory;
pub mod page;
pub mod platform;
pub mod shutdown;
pub mod store;
pub mod trap;
