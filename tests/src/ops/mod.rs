//! The differential proof of the operations: the same requests to xen-pciback and to Bulkhead, with every field that a
//! frontend can write.
//!
//! The crate `test_guest` makes the requests: a bare guest that sends what Linux cannot. It records the answers in
//! xenstore, and dom0 makes a file of them, a [`recording`]. [`compare`] puts two of them side by side. [`known`] has
//! the differences that are meant.

pub mod compare;
pub mod difference;
pub mod known;
pub mod recording;
