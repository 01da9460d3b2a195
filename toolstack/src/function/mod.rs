//! What a stub may do to one of its devices: the second wall, which does not trust the first, in the stub.

pub mod aer;
mod answers;
pub mod guard;
pub mod interrupts;
pub mod snapshot;

pub use answers::{Done, Function, Functions};
