//! Whether devices can be given to a guest, and what to say if not.
//!
//! Nothing here changes anything: a refusal leaves the host as it was. One module for each kind of check.

mod acs;
mod console;
pub mod declared;
mod describe;
mod device;
#[cfg(test)]
mod fixture;
mod group;
mod host;
mod leaving;
mod line;
mod mounts;
pub mod network;
mod page;
pub mod policy;
mod quirk;
mod refusal;
mod sriov;
mod surroundings;

pub use acs::without_acs;
pub use describe::{Notice, describe, describe_all};
pub use device::check_devices;
pub use group::Groups;
pub use host::{HostFault, check_host, host_faults, host_notes, spare_pirqs};
pub use leaving::check_leaving;
pub use line::{Offer, check_lines, line_sharers};
pub use mounts::{Mounts, MountsError, Use};
pub use page::page_sharer;
pub use quirk::check_quirks;
pub use refusal::Refusal;
pub use sriov::check_sriov;
pub use surroundings::{Surroundings, SurroundingsError};
