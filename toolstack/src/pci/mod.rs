//! What a configuration space says. Its bytes come by a trait, or as a slice.

pub mod bytes;
pub mod capabilities;
pub mod config_space;
pub mod header;
pub mod resources;
pub mod restore;
