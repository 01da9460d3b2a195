//! Claims on devices: by guests of ours and of `xl`, and by the quarantine.

use crate::host::domains::Domain;
use crate::host::store::{Store, StoreError};
use crate::records::assignable;
use crate::records::{self, Attachment, Device, RecordError};
use pci::bdf::Bdf;
use thiserror::Error;
use xen::xenctrl::DomId;
use xenbus::client::Store as _;

/// A claim on a device, with the way to end it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The device.
    pub bdf: Bdf,
    /// The domain that has it.
    pub domain: Option<DomId>,
    /// Such as `by guest web (through stub web-bulkhead)`.
    pub by: String,
    /// The next step, in words.
    pub next: String,
    /// True if the domain has the device's INTx line.
    pub uses_line: bool,
}

/// All claims on devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Devices that a guest has.
    pub taken: Vec<Claim>,
    /// Devices in quarantine, with the reason.
    pub quarantined: Vec<(Bdf, String)>,
    /// Devices that a guest which lives had, and may still have mapped.
    pub mapped: Vec<(Bdf, Domain)>,
}

/// The claims on devices could not be read.
#[derive(Debug, Error)]
pub enum ClaimsError {
    /// xenstore could not be read.
    #[error("cannot see in xenstore which devices are in use")]
    Store(#[from] StoreError),
    /// A record could not be read.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Directory of xen-pciback's devices: `GUEST/NUMBER/dev-N`.
const PCIBACK_BACKENDS: &str = "/local/domain/0/backend/pci";

impl Claims {
    /// Removes the claims by which this guest may have devices mapped, to check whether it can have them again.
    pub fn forgive(&mut self, guest: DomId) {
        self.mapped.retain(|(_, other)| other.domid != guest);
    }

    /// Removes the claims of guests on these devices, to check whether a guest can have them later. Returns who has each.
    pub fn set_aside(&mut self, bdfs: &[Bdf]) -> Vec<(Bdf, String)> {
        let mut users = Vec::new();
        self.taken.retain(|Claim { bdf, by, .. }| {
            let is_meant = bdfs.contains(bdf);
            if is_meant {
                users.push((*bdf, by.clone()));
            }
            !is_meant
        });
        self.mapped.retain(|(bdf, guest)| {
            let is_meant = bdfs.contains(bdf);
            if is_meant {
                let by = format!("by guest {}, which may still have its memory mapped", guest.name);
                users.push((*bdf, by));
            }
            !is_meant
        });
        users
    }

    /// Reads the claims from xenstore: our records, libxl's nodes, and xen-pciback's nodes.
    pub fn read(store: &mut Store) -> Result<Self, ClaimsError> {
        let (attachments, damaged) = Attachment::all(store)?;
        let mut taken: Vec<Claim> = attachments.iter().flat_map(attachment_claims).collect();
        for error in damaged {
            let Some(stub) = error.stub() else {
                return Err(error.into());
            };
            // A damaged record still names its devices by the keys of their modes.
            let bdfs = records::devices_of(store, stub)?;
            taken.extend(bdfs.into_iter().map(|bdf| unreadable_claim(bdf, stub, &error)));
        }
        // Our own nodes say no more than the records.
        let foreign = assignable::all_foreign(store)?.into_iter();
        taken.extend(foreign.map(|(bdf, domid)| xl_claim(bdf, &domid)));
        // Dom0's own connections to xen-pciback are no claims: see `crate::handover::shared_intx`.
        let guests = records::children(store, PCIBACK_BACKENDS)?;
        for guest in guests.into_iter().filter(|guest| guest != "0") {
            for number in records::children(store, &format!("{PCIBACK_BACKENDS}/{guest}"))? {
                let backend = format!("{PCIBACK_BACKENDS}/{guest}/{number}");
                for key in records::children(store, &backend)? {
                    if key.starts_with("dev-") {
                        let bdf = store.read_optional(&format!("{backend}/{key}"))?;
                        let bdf = bdf.and_then(|bdf| bdf.parse().ok());
                        taken.extend(bdf.map(|bdf| xl_claim(bdf, &guest)));
                    }
                }
            }
        }
        let quarantined = records::quarantined(store)?;
        let mapped = records::mapped(store)?;
        Ok(Self {
            taken,
            quarantined,
            mapped,
        })
    }
}

pub(crate) fn attachment_claims(attachment: &Attachment) -> impl Iterator<Item = Claim> {
    let (guest, stub) = (&attachment.guest.name, &attachment.stub.name);
    attachment.devices.iter().map(
        move |&Device {
                  bdf, line_offered, ..
              }| Claim {
            bdf,
            domain: Some(attachment.guest.domid),
            by: format!("by guest {guest} (through stub {stub})"),
            next: format!("`bulkhead detach {bdf}` or `bulkhead destroy {guest}` frees it"),
            uses_line: line_offered,
        },
    )
}

/// The claim on a device whose record cannot be read.
fn unreadable_claim(bdf: Bdf, stub: DomId, error: &RecordError) -> Claim {
    Claim {
        bdf,
        domain: None,
        by: format!("by a guest, through the stub with number {stub}"),
        next: error.to_string(),
        // Nobody can tell, so in doubt it has the line.
        uses_line: true,
    }
}

pub(crate) fn xl_claim(bdf: Bdf, domid: &str) -> Claim {
    Claim {
        bdf,
        domain: domid.parse().ok(),
        by: format!("by domain {domid} (through dom0's xen-pciback)"),
        next: format!("`xl pci-detach {domid} {bdf}` frees it"),
        // xen-pciback does not withhold lines.
        uses_line: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::{dom0, introduce};
    use xenbus::model::Xenstored;

    const A: &str = "0000:00:05.0";
    const B: &str = "0000:00:06.0";

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    #[test]
    fn claims_are_found_wherever_they_are_written_down() {
        let daemon = Xenstored::new();
        let mut store = dom0(&daemon);
        assert_eq!(Claims::read(&mut store).unwrap(), Claims::default());
        records::tests::attachment().write(&mut store).unwrap();
        records::quarantine(&mut store, bdf("00:0a.0"), "it is mute").unwrap();
        store.write("/libxl/pci/0000-00-08-0/domid", "7").unwrap();
        // What xl leaves behind for a device that is free again.
        store
            .write("/libxl/pci/0000-00-0b-0/driver_path", "/sys/x")
            .unwrap();
        store
            .write("/local/domain/0/backend/pci/9/0/dev-0", "0000:00:09.0")
            .unwrap();
        store
            .write("/local/domain/0/backend/pci/0/80/dev-0", "0000:00:0c.0")
            .unwrap();
        let claims = Claims::read(&mut store).unwrap();
        let taken: Vec<_> = claims.taken.iter().map(|claim| claim.bdf).collect();
        assert_eq!(taken, [bdf(A), bdf(B), bdf("00:08.0"), bdf("00:09.0")]);
        assert_eq!(claims.quarantined, [(bdf("00:0a.0"), "it is mute".to_owned())]);
        let web = records::tests::domain(3, "web");
        records::record_mapped(&mut store, bdf("00:0d.0"), &web).unwrap();
        assert_eq!(
            Claims::read(&mut store).unwrap().mapped,
            [],
            "a guest that is dead"
        );
        introduce(&daemon, 3, "web");
        let mut claims = Claims::read(&mut store).unwrap();
        assert_eq!(claims.mapped, [(bdf("00:0d.0"), web)]);
        claims.forgive(4);
        assert_eq!(claims.mapped.len(), 1);
        claims.forgive(3);
        assert_eq!(claims.mapped, []);
    }

    #[test]
    fn a_record_that_cannot_be_read_costs_its_own_devices_only() {
        let mut store = dom0(&Xenstored::new());
        records::tests::attachment().write(&mut store).unwrap();
        let node = "/local/domain/0/bulkhead/attachment/4";
        for damage in ["nonsense", r#"{"version":99}"#] {
            store.write(node, damage).unwrap();
            let claims = Claims::read(&mut store).unwrap();
            let taken: Vec<_> = claims.taken.iter().map(|claim| claim.bdf).collect();
            assert_eq!(taken, [bdf(A), bdf(B)]);
            assert!(claims.taken[0].next.contains(node), "{:?}", claims.taken[0]);
        }
    }
}
