//! The machine of the stub: a single-purpose Xen PV guest.
//!
//! One vCPU, one loop around `SCHEDOP_poll`. Only two things interrupt it: exceptions, which never return, and the timer
//! that limits work ([`deadline`]), whose upcall returns unless the time for work is over. After an exception, a panic, or
//! work without end the stub restarts in place: a new *run*. `docs/soundness.md` has the arguments that the `unsafe`
//! blocks of this crate rely on.
//!
//! | module | holds |
//! |---|---|
//! | `entry` | ELF notes, entry point, stack, start of every run |
//! | `boot` | start info, order of set-up |
//! | `run` | the drivers, from start to the end of the domain |
//! | [`hypercall`] | the calls into Xen |
//! | [`memory`] | the address space: windows, heap area, page-table updates |
//! | [`page`] | memory that another domain writes too |
//! | [`deadline`] | a limit for work, and Xen's watchdog |
//! | [`shared_info`] | the page that Xen shares with every guest |
//! | [`event`] | event channels and `SCHEDOP_poll` |
//! | [`grant`] | the grant table, both ways |
//! | [`clock`] | the paravirtual clock |
//! | [`console`] | the console ring behind `log` |
//! | [`store`] | the xenstore ring |
//! | [`platform`] | all of the above as `drivers::platform::Platform` |
//! | `trap` | exceptions |
//! | `restart` | the end of a run and the restart in place |
//! | [`kept`] | kept memory: what a run leaves to the next |
//! | [`shutdown`] | the ways to end |
//! | `misuse` | what a domain must not do, for the hostile guest and the hostile stub of the tests |
#![no_std]
#[cfg(test)]
extern crate std;

extern crate alloc;

#[cfg(feature = "boot")]
pub mod boot;
pub mod clock;
pub mod console;
pub mod deadline;
#[cfg(feature = "boot")]
mod entry;
pub mod event;
pub mod grant;
pub mod hypercall;
pub mod kept;
#[cfg(feature = "boot")]
mod lang;
pub mod memory;
#[cfg(feature = "misuse")]
pub mod misuse;
pub mod page;
pub mod platform;
#[cfg(feature = "boot")]
mod restart;
#[cfg(feature = "boot")]
pub mod run;
pub mod shared_info;
pub mod shutdown;
pub mod store;
#[cfg(feature = "boot")]
pub mod trap;
