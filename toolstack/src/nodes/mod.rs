//! Nodes of both hops in xenstore.

pub mod hops;
pub mod list;
pub mod progress;
