//! What two Xen domains agree on to find each other and to talk about PCI.
//!
//! From the outside in: [`wire`] is the xenstore message format, [`client`] a
//! xenstore client over any byte [`client::Transport`], [`state`] the xenbus
//! states, [`path`] the names of our nodes, [`bdf`] the address of a PCI
//! function, and [`pciif`] the shared page over which config space and MSI
//! requests travel. [`ring`] is the byte ring of console and xenstore.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod bdf;
pub mod client;
pub mod device;
pub mod path;
pub mod pciif;
pub mod permission;
pub mod ring;
pub mod state;
pub mod wire;
