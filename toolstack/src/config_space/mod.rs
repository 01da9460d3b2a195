//! Configuration space: its registers and how to access them. The bytes come through a trait, or as a slice.

pub mod access;
pub mod bytes;
pub mod capabilities;
pub mod header;
pub mod interrupts;
pub mod resources;
pub mod restore;
