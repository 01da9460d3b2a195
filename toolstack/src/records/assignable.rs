//! libxl's nodes of the devices that guests have through stubs: `/libxl/pci/SSSS-BB-DD-F/domid`.
//!
//! libxl takes a device for free if xen-pciback holds it and it has no such node. It then resets the device, whoever
//! has it, and gives another guest its address ranges, before Xen refuses the assignment (`xl pci-attach`, `pci =
//! […]`, libvirt). So a device has the node from the transaction that records its attachment to the one that ends the
//! record. A device in quarantine has it too, and one that a guest may still have mapped. A second node beside it
//! names the holder; libxl does not read that one.
//!
//! libxl removes `domid` whenever it fails to add a device, also where it refused because of that very node. The service
//! watches [`DEVICES`] and writes what is missing again ([`super::renewal`]); until it has, libxl would take the device for free.

use super::paths::{bdf_of, children, mapped_path, mode_path, node_name, quarantine_path};
use crate::host::domains::Domain;
use crate::host::store::{Store, StoreError};
use pci::bdf::Bdf;
use std::fmt;
use std::str::FromStr;
use xen::xenctrl::DomId;
use xenbus::client::{Error, Store as Nodes};

/// Libxl's directory of devices.
pub const DEVICES: &str = "/libxl/pci";
/// libxl's node of a device: the domid of its guest.
const DOMID: &str = "domid";
/// Our node beside it: the [`Holder`].
pub const HOLDER: &str = "bulkhead";

/// Why a device is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A guest has it.
    Guest {
        /// The guest.
        guest: DomId,
        /// Its stub, by which the record is found.
        stub: DomId,
    },
    /// The device is in quarantine: no guest may have it.
    Quarantine,
    /// A guest had it and may still have it mapped: no other guest may have it.
    Mapped {
        /// The guest.
        guest: DomId,
    },
}

const QUARANTINE: &str = "quarantine";

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest { guest, stub } => write!(f, "guest {guest} stub {stub}"),
            Self::Quarantine => f.write_str(QUARANTINE),
            Self::Mapped { guest } => write!(f, "mapped {guest}"),
        }
    }
}

impl FromStr for Holder {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let words: Vec<_> = text.split(' ').collect();
        match words[..] {
            ["guest", guest, "stub", stub] => Ok(Self::Guest {
                guest: guest.parse().map_err(drop)?,
                stub: stub.parse().map_err(drop)?,
            }),
            [QUARANTINE] => Ok(Self::Quarantine),
            ["mapped", guest] => Ok(Self::Mapped {
                guest: guest.parse().map_err(drop)?,
            }),
            _ => Err(()),
        }
    }
}

impl Holder {
    /// The value for libxl, which only tests that the node exists. For a device in quarantine it is dom0's number.
    fn domid(self) -> DomId {
        match self {
            Self::Guest { guest, .. } | Self::Mapped { guest } => guest,
            Self::Quarantine => 0,
        }
    }

    /// True if the records agree. A node alone proves nothing: the process that wrote it may have been killed before
    /// it changed the record.
    pub fn is_recorded<S: Nodes>(self, store: &mut S, bdf: Bdf) -> Result<bool, Error<S::TransportError>> {
        let path = match self {
            Self::Guest { stub, .. } => mode_path(stub, bdf),
            Self::Quarantine => quarantine_path(bdf),
            Self::Mapped { .. } => mapped_path(bdf),
        };
        Ok(store.read_optional(&path)?.is_some())
    }
}

fn directory(bdf: Bdf) -> String {
    format!("{DEVICES}/{}", node_name(bdf))
}

/// The path of a node of a device, libxl's or ours.
pub fn path(bdf: Bdf, key: &str) -> String {
    format!("{}/{key}", directory(bdf))
}

/// The holder of a device by our node. `None` if there is no node, or only libxl's own.
pub fn holder<S: Nodes>(store: &mut S, bdf: Bdf) -> Result<Option<Holder>, Error<S::TransportError>> {
    let text = store.read_optional(&path(bdf, HOLDER))?;
    Ok(text.and_then(|text| text.parse().ok()))
}

/// The domain to which libxl itself has given a device; `None` if there is none, or the device is held through us.
pub fn foreign<S: Nodes>(store: &mut S, bdf: Bdf) -> Result<Option<String>, Error<S::TransportError>> {
    match store.read_optional(&path(bdf, HOLDER))? {
        Some(_) => Ok(None),
        None => store.read_optional(&path(bdf, DOMID)),
    }
}

/// All devices that libxl itself has given to a domain, each with the domain, in few round trips.
pub fn all_foreign(store: &mut Store) -> Result<Vec<(Bdf, String)>, StoreError> {
    let names = children(store, DEVICES)?;
    let devices: Vec<Bdf> = names.iter().filter_map(|name| bdf_of(name)).collect();
    let nodes = |key| -> Vec<String> { devices.iter().map(|&bdf| path(bdf, key)).collect() };
    let ours = store.read_many(&nodes(HOLDER))?;
    let domids = store.read_many(&nodes(DOMID))?;
    let of_each = devices.iter().zip(ours).zip(domids);
    let foreign = of_each.filter_map(|((&bdf, ours), domid)| match ours {
        Some(_) => None,
        None => domid.map(|domid| (bdf, domid)),
    });
    Ok(foreign.collect())
}

/// Tells libxl that a device is in use.
pub fn claim<S: Nodes>(store: &mut S, bdf: Bdf, holder: Holder) -> Result<(), Error<S::TransportError>> {
    store.write(&path(bdf, HOLDER), &holder.to_string())?;
    store.write(&path(bdf, DOMID), &holder.domid().to_string())
}

/// Tells libxl that a device is free, unless it is in quarantine, or a guest may still have it mapped. libxl's own
/// nodes stay.
pub fn unclaim<S: Nodes>(store: &mut S, bdf: Bdf) -> Result<(), Error<S::TransportError>> {
    // Without our node beside it, `domid` is libxl's own.
    if store.read_optional(&path(bdf, HOLDER))?.is_none() {
        return Ok(());
    }
    // Quarantine counts more than a mapping: it keeps the device from every guest.
    if Holder::Quarantine.is_recorded(store, bdf)? {
        return claim(store, bdf, Holder::Quarantine);
    }
    if let Some(guest) = mapping_guest(store, bdf)? {
        return claim(store, bdf, Holder::Mapped { guest });
    }
    for key in [HOLDER, DOMID] {
        store.remove(&path(bdf, key))?;
    }
    // libxl may have nodes of its own there, such as `driver_path`.
    if store.directory(&directory(bdf))?.is_empty() {
        store.remove(&directory(bdf))?;
    }
    Ok(())
}

/// True if both nodes of a device are those of this holder.
pub fn is_told<S: Nodes>(store: &mut S, bdf: Bdf, holder: Holder) -> Result<bool, Error<S::TransportError>> {
    let told = store.read_optional(&path(bdf, DOMID))?;
    let by_us = self::holder(store, bdf)? == Some(holder);
    Ok(by_us && told == Some(holder.domid().to_string()))
}

/// The guest that may have a device mapped, if it lives: its number.
fn mapping_guest<S: Nodes>(store: &mut S, bdf: Bdf) -> Result<Option<DomId>, Error<S::TransportError>> {
    let text = store.read_optional(&mapped_path(bdf))?;
    // A damaged record names no guest. libxl then reads dom0's number.
    Ok(text.map(|text| serde_json::from_str(&text).map_or(0, |guest: Domain| guest.domid)))
}
