//! What a stub may do to one of its devices: the second wall, which does not trust the first, in the stub.

mod answers;
pub mod guard;
pub mod interrupts;
pub mod recovery;
pub mod snapshot;

pub use answers::{Done, Function, Functions};
