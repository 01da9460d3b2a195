//! What a configuration space says. Its bytes come by a trait, or as a slice.

pub mod access;
pub mod bytes;
pub mod capabilities;
pub mod header;
pub mod interrupts;
pub mod resources;
pub mod restore;
