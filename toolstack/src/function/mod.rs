//! What a stub may do to one of its devices: the second judgement, which does not trust the first one in the stub.

pub mod aer;
mod answers;
mod failure;
#[cfg(test)]
pub(crate) mod fixture;
mod functions;
pub mod guard;
pub mod interrupts;
pub mod msix_table;
pub mod rule;
pub mod snapshot;

pub use answers::{Done, Function};
pub use failure::Failure;
pub use functions::Functions;
