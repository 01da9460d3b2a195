//! Which module of a crate uses which: floors, circles, and imports from a room to one above it.
//!
//! A module is one source file; a room is a directory below `src/`, or a file beside it. An import is any path in one
//! file that leads to an item of another file of the same crate, in a `use` or in the code. Tests are left out, and so is
//! the crate's root, which only declares modules.

mod graph;
mod rooms;
mod source;

pub use graph::Graph;
pub use rooms::{CRATES, Crate};
