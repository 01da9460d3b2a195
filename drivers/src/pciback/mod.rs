//! The PCI backend: what a guest's pcifront talks to.

pub mod aer;
pub mod config;
pub mod engine;
pub mod hardware;
pub mod lifecycle;
pub mod list;
pub mod messages;
pub mod resources;
pub mod slots;
