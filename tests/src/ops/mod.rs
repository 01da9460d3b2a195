//! The differential proof of the operations: the same requests to xen-pciback and to Bulkhead, with every field that a
//! frontend can write, and what differs in the answers.
//!
//! The requests are those of the crate `test_guest`, a bare guest that sends what Linux cannot; it records the answers
//! in xenstore, and dom0 makes a file of them, a [`recording`]. [`compare`] puts two of them side by side; differences
//! other than those of [`known`] are failures.

pub mod compare;
pub mod difference;
pub mod known;
pub mod recording;
