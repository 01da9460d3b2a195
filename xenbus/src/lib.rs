//! What two Xen domains agree on to find each other and to talk about PCI.
//!
//! From the outside in:
//! - [`ring`]: the byte ring of console and xenstore; [`wire`]: the messages on the latter; [`client`]: a
//!   xenstore client over any byte [`client::Transport`]; [`permission`]: who may access a node.
//! - [`path`]: the names of our nodes; [`state`] and [`device`]: what is written into them.
//! - [`pciif`]: the shared page over which config space and MSI requests travel; [`counters`]: what the
//!   stub counts, and [`handover_block`]: what must outlive it, in the rest of that page.
//!
//! The feature `model` adds a xenstored and a shared page in memory, for the tests of every crate.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod client;
pub mod counters;
pub mod device;
pub mod handover_block;
#[cfg(any(test, feature = "model"))]
pub mod model;
pub mod path;
pub mod pciif;
pub mod permission;
pub mod printable;
pub mod ring;
pub mod state;
pub mod wire;
