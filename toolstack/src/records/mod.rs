//! Records that outlive a process of dom0: nodes in xenstore below [`ROOT`], which no other domain may read,
//! and a file for what changes often ([`ModeFile`]).

pub mod assignable;
mod attachment;
mod carried;
pub mod claims;
mod error;
pub mod failed;
mod held;
pub mod interrupt_mode;
mod intx_disabled;
mod mapped;
mod mode_file;
mod paths;
mod quarantine;
mod renewal;
mod start;
pub mod stub_backup;
mod suspends;
pub mod unfinished;
mod version;

#[cfg(test)]
pub(crate) use attachment::tests;
pub use attachment::{Attachment, Device, devices_of};
pub use carried::{Carried, CarriedDevice, drop_carried, forget_carried};
pub use error::RecordError;
pub use held::{Seizure, adopt_seized, forget_seized, is_seized_by, record_seized, seized_from};
pub use intx_disabled::{forget_intx_disabled, intx_disabled, record_intx_disabled};
pub use mapped::{forget_dead_mappings, forget_mapped, mapped, mapped_by, record_mapped};
pub use mode_file::{ModeFile, ModeNode};
pub use paths::{ATTACHMENTS, ROOT, bdf_of, children, make_root, node_name, remove_from, stub_backup_dir};
pub use quarantine::{lift_quarantine, quarantine, quarantine_reason, quarantined};
pub use renewal::{renew, renew_device};
pub use start::{GuestStart, Stage, forget_start, has_not_run};
pub use suspends::{
    Due, Suspended, forget_suspended, record_suspended, record_suspends, suspended, suspends_dealt_with,
};
