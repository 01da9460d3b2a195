//! What outlives a process of dom0: nodes in xenstore that no other domain may read, below [`ROOT`].

pub mod assignable;
mod attachment;
pub mod claims;
mod error;
pub mod failed;
mod held;
pub mod interrupt_mode;
mod intx_disabled;
mod mapped;
mod paths;
mod quarantine;
mod renewal;
pub mod stub_backup;
pub mod unfinished;

#[cfg(test)]
pub(crate) use attachment::tests;
pub use attachment::{Attachment, Device, devices_of, note_mode, unfinished_change};
pub use error::RecordError;
pub use held::{Taken, adopt_taken, forget_taken, is_taken_by, note_taken, taken_from};
pub use intx_disabled::{forget_intx_disabled, intx_disabled, note_intx_disabled};
pub use mapped::{forget_dead_mappings, forget_mapped, mapped, mapped_by, note_mapped};
pub use paths::{ATTACHMENTS, ROOT, bdf_of, children, keepsake, make_root, node_name, remove_from};
pub use quarantine::{lift_quarantine, quarantine, quarantine_reason, quarantined};
pub use renewal::renew;
