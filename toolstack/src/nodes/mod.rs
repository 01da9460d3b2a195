//! Nodes of both hops in xenstore.

pub mod device_list;
pub mod hops;
pub mod progress;
pub mod suspension;
