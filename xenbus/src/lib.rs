//! The protocols between domains: xenstore, xenbus and pciif. The stub and dom0 share them.
//!
//! From the outside in:
//! - [`ring`]: the byte ring of console and xenstore; [`wire`]: the messages on the latter; [`client`]: a
//!   xenstore client over any byte [`client::Transport`]; [`permission`]: who may access a node.
//! - [`path`]: the names of nodes; [`state`] and [`device`]: their values.
//! - [`pciif`]: the shared page for requests about configuration space and MSI. In the rest of the second hop's page:
//!   [`counters`], what the stub counts, and [`handover_block`], what must outlive its domain.
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
