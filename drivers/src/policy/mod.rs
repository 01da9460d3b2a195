//! What a guest may read and write, and which interrupts it gets. Pure logic: reads go to a
//! [`ConfigSpace`](crate::platform::ConfigSpace), everything that changes a device goes to [`dom0::Dom0`].

pub mod config;
pub mod dom0;
pub mod engine;
pub mod msi;
pub mod resources;
pub mod slots;
