//! `bulkhead doctor`: whether this host can give devices to guests, and what the administrator should do if not.
//!
//! [`facts`] reads the host, [`rules`] judges what was read, and [`known`] is the table of faults of Xen and Linux.

mod facts;
mod finding;
mod known;
mod rules;
mod telemetry;
mod version;

#[cfg(test)]
pub(super) use finding::tests;
pub use finding::{Diagnosis, Finding, Level};

use facts::Facts;

/// Checks the host. What cannot be read is a finding, so that one fault does not hide the others.
pub fn doctor() -> Diagnosis {
    Diagnosis::new(rules::judge(&Facts::read()))
}
