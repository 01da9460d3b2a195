//! Dom0's side of Bulkhead: everything behind the command `bulkhead`.
//!
//! A reader may start here:
//! - [`checks`] decides whether a device can be given away, from [`sysfs`], [`mcfg`] and the guest's
//!   configuration ([`guest`]).
//! - [`attach`] gives it: permissions, assignment, and the xenstore nodes of both hops ([`nodes`]).
//!   What it gave is in a [`records`] first, and [`release`] undoes whatever is recorded.
//!   [`records::assignable`] has libxl know.
//! - [`acking`] keeps a line that a guest shares with dom0 alive in dom0; [`idle_intx`] keeps functions that nobody
//!   drives from holding it down.
//! - [`serve`] answers the stubs: each request goes through [`function`], which asks the [`guard`]
//!   about writes and keeps the [`interrupts`].
//!   It also hears of errors of devices ([`uevent`]) and takes the guest through their [`recovery`]; a [`snapshot`]
//!   brings back what a reset took.
//! - [`launcher`] is the process that runs other programs for the service.
//! - [`commands`] and [`status`] are around that; [`list`] changes the devices of a guest that runs.
//! - A stub that dies is brought back: [`revival`] says whether, [`keepsake`] has what it left, [`recreate`] creates its
//!   domain through [`xenlight`]; [`failed`] notes those that could not be.
//!
//! `unsafe` is confined to [`xenctrl`] (the host's libxenctrl and libxencall), [`xenlight`] (libxenlight) and [`xendev`] (mapped grants and
//! event channels).
#![deny(unsafe_code)]
// A command whose reader has gone must not end halfway: see `say`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod acking;
pub mod attach;
pub mod bytes;
pub mod capabilities;
pub mod checks;
pub mod claims;
pub mod commands;
pub mod config;
pub mod confine;
pub mod control;
pub mod dmar;
pub mod domains;
pub mod domid_history;
pub mod failed;
pub mod function;
pub mod guard;
pub mod guest;
pub mod header;
pub mod holdings;
pub mod host;
pub mod idle_intx;
pub mod inject;
pub mod interrupts;
pub mod ivrs;
pub mod keepsake;
pub mod launcher;
pub mod lines;
pub mod list;
pub mod mcfg;
pub mod mode;
pub mod names;
pub mod nodes;
pub mod originals;
pub mod pace;
pub mod paths;
pub mod pci_ids;
pub mod policy;
pub mod progress;
pub mod ratelimit;
pub mod records;
pub mod recovery;
pub mod recreate;
pub mod registers;
pub mod release;
pub mod reset;
pub mod resources;
pub mod restore;
pub mod revival;
pub mod say;
pub mod seize;
pub mod serde_text;
pub mod serve;
pub mod snapshot;
pub mod status;
pub mod store;
pub mod sysfs;
pub mod systemd;
pub mod terms;
pub mod uevent;
pub mod unfinished;
pub mod xenctrl;
pub mod xendev;
pub mod xenlight;
pub mod xl;
