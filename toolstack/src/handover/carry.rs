//! What a guest that ends has again at its next start.

use crate::host::domains::Domain;
use crate::host::guest_config::StubOrigin;
use crate::host::store::{Store, StoreError};
use crate::records::{Attachment, Carried, GuestStart, RecordError, Stage, stub_backup};

/// Records the devices of a guest that has ended, for its next start, unless its declaration decides about them.
pub fn carry_over(store: &mut Store, attachment: &Attachment) -> Result<(), RecordError> {
    let start = GuestStart::of(store, &attachment.guest)?;
    if start.is_some_and(|start| start.stage == Stage::Given { declared: true }) {
        return Ok(());
    }
    let origin = origin_of(store, attachment)?;
    Carried::new(attachment, origin).write(store)
}

/// What a stub was created from, by the backup of its configuration. Without a backup it is what stubs usually are created
/// from.
pub fn origin_of(store: &mut Store, attachment: &Attachment) -> Result<StubOrigin, StoreError> {
    let config = stub_backup::config(store, attachment.stub.domid)?;
    Ok(config.as_ref().and_then(StubOrigin::of).unwrap_or_default())
}

/// Goes on with the domain of a guest that has ended, which libxl keeps as `kept`. It has the devices until it is destroyed.
/// They are carried over for the guest, which starts in a new domain.
pub fn follow_kept(store: &mut Store, attachment: &Attachment, kept: Domain) -> Result<(), RecordError> {
    // If this is cut short it is done again: the record of the start tells how far it came.
    if GuestStart::of(store, &kept)?.is_none() {
        carry_over(store, attachment)?;
        // What it has is carried over by now: not once more, under its new UUID, when it is destroyed.
        let start = GuestStart {
            guest: kept.clone(),
            stage: Stage::Given { declared: true },
        };
        start.write(store)?;
    }
    attachment.rename_guest(store, kept.clone())?;
    log::warn!(
        "guest {} has ended, and libxl keeps its domain {domid} as {}, with its devices: `xl destroy {domid}` ends it",
        attachment.guest.name,
        kept.name,
        domid = kept.domid
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::domains::tests::preserve;
    use crate::host::store::tests::{dom0, introduce};
    use crate::records::tests::attachment;
    use xenbus::model::Xenstored;

    #[test]
    fn a_kept_domain_has_the_devices_and_its_guest_is_to_have_them_again() {
        for is_declared in [false, true] {
            let daemon = Xenstored::new();
            introduce(&daemon, 3, "web");
            let (mut store, before) = (dom0(&daemon), attachment());
            before.write(&mut store).unwrap();
            let start = GuestStart {
                guest: before.guest.clone(),
                stage: Stage::Given {
                    declared: is_declared,
                },
            };
            start.write(&mut store).unwrap();
            let kept = preserve(&daemon, 3, "web-20261130T0733Z");
            for _ in 0..2 {
                follow_kept(&mut store, &before, kept.clone()).unwrap();
            }
            let now = Attachment::read(&mut store, before.stub.domid).unwrap().unwrap();
            let expected = Attachment {
                guest: kept,
                ..before.clone()
            };
            assert_eq!(now, expected);
            let expected = if is_declared { vec![] } else { vec![before.guest] };
            // When it is destroyed, nothing changes about that.
            for _ in 0..2 {
                let carried = Carried::all(&mut store).unwrap();
                let guests: Vec<_> = carried.into_iter().map(|carried| carried.guest).collect();
                assert_eq!(guests, expected);
                carry_over(&mut store, &now).unwrap();
            }
        }
    }
}
