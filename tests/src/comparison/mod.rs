//! xen-pciback and Bulkhead side by side: what differs, and which differences are meant.
//!
//! Three comparisons share this module. Each of them names itself as a [`Subject`]:
//!
//! | module | what is compared |
//! |---|---|
//! | [`sweep`](crate::sweep) | answers to configuration accesses of a stock Linux guest |
//! | [`ops`](crate::ops) | answers to requests of the bare test guest |
//! | [`lspci`](crate::lspci) | what `lspci -vvv` prints in a guest |
//!
//! Each subject has a table of differences that are meant, with a reason. docs/parity.md has the same tables. A
//! comparison fails if a difference shows that is not in the table. It also fails if a row of the table does not show:
//! such a row is stale.

mod compare;
mod files;
mod subject;
mod table;

pub use compare::{Comparison, STALE, UNEXPECTED};
pub use files::common_names;
pub use subject::{Difference, DifferenceOf, Known, Subject};
#[cfg(test)]
pub use table::assert_in_parity;
pub use table::render;
