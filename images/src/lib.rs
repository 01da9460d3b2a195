//! Bootable images, and the rig: a real Xen host in QEMU.
//!
//! The rig boots Debian's Xen and Debian's kernel, both as they are shipped, in QEMU without KVM, so it needs no
//! privilege and no special machine. A script then runs in dom0, with Xen's tools, PCI devices behind a virtual
//! IOMMU and a Linux guest at hand.
//!
//! ```no_run
//! use std::time::Duration;
//! use images::{Boot, Host, Machine, Rig, Suite, observer::Quiet};
//!
//! # fn main() -> anyhow::Result<()> {
//! let rig = Rig::prepare(Suite::Bookworm, Host::Busybox, &mut Quiet)?;
//! let boot = Boot {
//!     machine: Machine { devices: vec!["e1000e,netdev=n0,addr=5".into()], ..Machine::default() },
//!     timeout: Duration::from_secs(60),
//!     ..Boot::script("#!/bin/sh\nxl info\nlspci\n")
//! };
//! let outcome = rig.run(&boot, "target/rig-out/info".as_ref(), &mut Quiet)?;
//! assert_eq!(outcome.exit_code(), 0, "{}", outcome.script_log);
//! # Ok(())
//! # }
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`suite`] | which Debian releases there are, and their packages |
//! | [`apt`], [`packages`] | fetching the packages without touching the host's apt |
//! | [`package_disk`] | further packages for one scenario |
//! | [`built`] | what is made of the packages, kept and checked |
//! | [`cpio`], [`elf`], [`kernel`], [`modules`], [`rootfs`] | building the initial file systems of dom0 and of the guest |
//! | [`host`], [`debian`] | what dom0 is, and the disk of one that is an installed Debian |
//! | [`rig`] | the cache of all that |
//! | [`emulator`] | QEMU: the host's, or a newer one |
//! | [`qemu`] | the machine |
//! | [`boot`] | one run and its outcome |
//! | [`products`] | building the stub's image, the toolstack, and programs for tests |
//! | [`sizes`] | how many bytes of an image each module has |
//! | [`file_in`] | files of this host for dom0 |
#![forbid(unsafe_code)]

pub mod apt;
pub mod boot;
pub mod built;
pub mod cpio;
pub mod debian;
pub mod elf;
pub mod emulator;
pub mod file_in;
pub mod host;
pub mod installed;
pub mod kernel;
pub mod modules;
pub mod observer;
pub mod package_disk;
pub mod packages;
pub mod products;
pub mod qemu;
mod red_zone;
pub mod rig;
pub mod rootfs;
pub mod sizes;
pub mod store;
pub mod suite;

pub use boot::{Boot, End, Outcome};
pub use emulator::Emulator;
pub use file_in::FileIn;
pub use host::Host;
pub use observer::Observer;
pub use qemu::Machine;
pub use rig::Rig;
pub use suite::Suite;
