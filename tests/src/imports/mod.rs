//! How each crate is built up: which module uses which, type names that stand twice, and how much code there is.
//!
//! A module is one source file; a room is a directory below `src/`, or a file beside it. An import is any path in one
//! file that leads to an item of another file of the same crate, in a `use` or in the code. Tests are left out. The
//! crate's root only declares modules: it is no module here.

mod files;
mod graph;
mod measure;
mod rooms;
mod source;
mod test_code;
mod types;

pub use files::{File, ModulePath, read};
pub use graph::Graph;
pub use measure::{Size, measure};
pub use rooms::{CRATES, Crate};
pub use types::{Duplicate, duplicates};
