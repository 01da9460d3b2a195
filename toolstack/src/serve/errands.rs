//! Work of the service that concerns no single stub.

use crate::host::domains::{has_home, is_alive};
use crate::host::store::Store;
use crate::records::failed::{self, Failed};
use crate::records::{self, Attachment, GuestStart, RecordError, forget_start};
use crate::serve::log_limit::{LogLimit, log_limited};
use log::Level;

/// Removes the records of failures, of starts and of mapped devices of guests that have ended.
pub fn tidy(store: &mut Store) -> Result<(), RecordError> {
    for failed in Failed::all(store)? {
        if !is_alive(store, &failed.guest)? {
            failed::forget(store, failed.guest.domid)?;
        }
    }
    let (attachments, _) = Attachment::all(store)?;
    for start in GuestStart::all(store)? {
        // It tells whether the devices of a guest that has ended are carried over.
        let had_devices = attachments
            .iter()
            .any(|attachment| attachment.guest == start.guest);
        if !had_devices && !has_home(store, &start.guest)? {
            forget_start(store, start.guest.domid)?;
        }
    }
    records::forget_dead_mappings(store)
}

/// Writes libxl's notes of devices again where they are missing. Without its note, libxl takes a device for free.
pub fn renew_libxl_notes(store: &mut Store, complaints: &mut LogLimit) -> Result<(), RecordError> {
    let (attachments, _) = Attachment::all(store)?;
    for bdf in records::renew(store, &attachments)? {
        log_limited!(
            complaints,
            Level::Warn,
            "libxl had lost the note that {bdf} is in use, as it does when it refuses the device to another guest: written \
             again"
        );
    }
    Ok(())
}
