//! Dom0's side of Bulkhead: everything behind the command `bulkhead`.
//!
//! Its rooms, from the top to the bottom. A room uses only those below it; a test of the workspace sees to that.
//!
//! | room | holds |
//! |---|---|
//! | [`arguments`] | the command line |
//! | [`commands`] | the subcommands, one file each |
//! | [`serve`] | the service, which answers the stubs, hears of errors of devices, and brings dead stubs back |
//! | [`control`] | what commands and service say to each other |
//! | [`status`] | what `bulkhead status` tells |
//! | [`admission`] | whether a device may go to a guest, and on what terms |
//! | [`handover`] | a device's way from dom0 to a guest, and back |
//! | [`function`] | what a stub may do to one of its devices: the guard, the interrupts |
//! | [`nodes`] | xenstore nodes of both hops |
//! | [`records`] | what outlives a process |
//! | [`host`] | this machine: Linux, xl, xenstored |
//! | [`config_space`] | what a configuration space says |
//!
//! Below all of them stand [`terms`], [`paths`], [`exit`], [`service_log`], [`say`], [`output`], [`layout`] and
//! [`serde_text`], and two crates: [`xen`], the hypervisor and its libraries, with all of dom0's `unsafe`, and [`inject`],
//! failures on demand.
#![forbid(unsafe_code)]
// A command whose reader has gone must not end halfway: see `say`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod admission;
pub mod arguments;
pub mod commands;
pub mod config_space;
pub mod control;
pub mod exit;
pub mod function;
pub mod handover;
pub mod host;
pub mod layout;
pub mod nodes;
pub mod output;
pub mod paths;
pub mod records;
pub mod say;
pub mod serde_text;
pub mod serve;
pub mod service_log;
pub mod status;
pub mod terms;
