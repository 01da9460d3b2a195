//! What dom0 remembers of an attachment, so that any process of dom0 can undo it.
//!
//! The record is written before anything is given away, and removed after everything is taken back:
//! whatever process dies in between, the next one knows what to undo. It lies in xenstore, below
//! [`ROOT`], which no other domain may read, and goes away with a reboot as all that it describes.

use crate::assignable::{self, Holder};
use crate::domains::is_alive;
use crate::inject::{self, Point};
use crate::mode::{Change, Mode, Note};
use crate::store::{Store, StoreError};
use crate::terms::Terms;
use crate::xenctrl::DomId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;
use xenbus::bdf::Bdf;
use xenbus::client::{Error as NodeError, Store as Nodes};
use xenbus::device::{Bars, Ids, SlotMode};
use xenbus::permission::{Access, Permission};

/// Directory of everything remembered.
pub const ROOT: &str = "/local/domain/0/bulkhead";
/// Directory of the attachments, by the stub's domid.
pub const ATTACHMENTS: &str = "/local/domain/0/bulkhead/attachment";
/// Below a record: the directory of the stub's [`crate::keepsake`].
const KEEPSAKE: &str = "keepsake";
/// Directory of the devices that did not recover: by [`node_name`], with the reason.
const QUARANTINE: &str = "/local/domain/0/bulkhead/quarantine";
/// Directory of the functions without a driver whose INTx was disabled (`crate::idle_intx`): by [`node_name`].
const INTX_DISABLED: &str = "/local/domain/0/bulkhead/intx-disabled";
/// Directory of the devices that were taken from a guest that lived on: by [`node_name`], with the guest.
const MAPPED: &str = "/local/domain/0/bulkhead/mapped";

/// A domain, told apart from a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// Its number.
    pub domid: DomId,
    /// Its name.
    pub name: String,
    /// Its UUID; empty if it was created without one.
    pub uuid: String,
}

/// One device of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Real address.
    #[serde(with = "text")]
    pub bdf: Bdf,
    /// Vendor and device.
    #[serde(with = "text")]
    pub ids: Ids,
    /// Address ranges.
    #[serde(with = "text")]
    pub bars: Bars,
    /// Machine frame of the ECAM page.
    pub ecam: u64,
    /// The INTx line, if there is one.
    pub gsi: Option<u32>,
    /// False if the line stays silent because others use it.
    pub line_offered: bool,
    /// The first 64 bytes of configuration space, as they were before the guest got the device.
    #[serde(with = "hex")]
    pub header: Vec<u8>,
    /// On what terms the guest has it.
    #[serde(default)]
    pub terms: Terms,
    /// The physical function of a virtual one (SR-IOV), which stays in dom0.
    #[serde(default, with = "optional_text")]
    pub physical: Option<Bdf>,
    /// The inode of its directory in sysfs: another one means that dom0 has removed it and found it again.
    #[serde(default)]
    pub inode: Option<u64>,
}

/// A guest, its stub, and the devices between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The guest that owns the devices.
    pub guest: Domain,
    /// The stub that serves it.
    pub stub: Domain,
    /// How the guest addresses them.
    pub slots: SlotMode,
    /// The devices, in the order of their numbers in xenstore.
    pub devices: Vec<Device>,
    /// The interrupt mode of each.
    pub modes: Vec<Mode>,
}

/// The version of records that is written. One that only adds what an earlier `bulkhead` may pass over keeps it.
const VERSION: u32 = 1;

/// Of records from before there were versions.
fn first_version() -> u32 {
    1
}

#[derive(Serialize, Deserialize)]
struct Ends {
    #[serde(default = "first_version")]
    version: u32,
    guest: Domain,
    stub: Domain,
    #[serde(default, with = "text")]
    slots: SlotMode,
}

#[derive(Deserialize)]
struct Versioned {
    #[serde(default = "first_version")]
    version: u32,
}

/// A record that could not be read or written.
#[derive(Debug, Error)]
pub enum RecordError {
    /// xenstore said no.
    #[error("cannot use the records of attachments in xenstore")]
    Store(#[from] StoreError),
    /// A record that nobody of ours wrote.
    #[error(
        "the record {path} is damaged ({cause}): end the guest that has its devices and domain {stub}, its stub, with \
         `xl destroy`, then remove it with `xenstore-rm {root}`; `bulkhead release` gives its devices back to dom0",
        root = self::path(*stub)
    )]
    Damaged {
        /// The stub whose record it is.
        stub: DomId,
        /// The node.
        path: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A record by a later version of this program.
    #[error(
        "the record {root} is of version {version}, by a newer bulkhead than this one, which knows version {VERSION}: \
         use the newer one for this guest",
        root = path(*stub)
    )]
    Newer {
        /// The stub whose record it is.
        stub: DomId,
        /// Its version.
        version: u32,
    },
    /// libxl has given a device away.
    #[error(
        "domain {domid} has {bdf} through dom0's xen-pciback since a moment ago: `xl pci-detach {domid} {bdf}` frees it"
    )]
    Taken {
        /// The device.
        bdf: Bdf,
        /// The domain, by libxl's note.
        domid: String,
    },
}

impl RecordError {
    /// The stub whose record cannot be read, if it is about one.
    pub fn stub(&self) -> Option<DomId> {
        match self {
            Self::Damaged { stub, .. } | Self::Newer { stub, .. } => Some(*stub),
            Self::Store(_) | Self::Taken { .. } => None,
        }
    }
}

impl Attachment {
    /// The addresses of the devices.
    pub fn bdfs(&self) -> impl Iterator<Item = Bdf> {
        self.devices.iter().map(|device| device.bdf)
    }

    /// What libxl is told of its devices.
    pub fn holder(&self) -> Holder {
        Holder::Guest {
            guest: self.guest.domid,
            stub: self.stub.domid,
        }
    }

    /// The devices, each with its interrupt mode.
    pub fn devices_and_modes(&self) -> impl Iterator<Item = (&Device, &Mode)> {
        self.devices.iter().zip(&self.modes)
    }

    /// The same attachment with more devices, whose messages are off.
    pub fn with(&self, devices: Vec<Device>) -> Self {
        let mut more = self.clone();
        more.modes.extend(devices.iter().map(|_| Mode::Line));
        more.devices.extend(devices);
        more
    }

    /// The same attachment without some of its devices.
    pub fn without(&self, bdfs: &[Bdf]) -> Self {
        let kept = self
            .devices_and_modes()
            .filter(|(device, _)| !bdfs.contains(&device.bdf));
        let (devices, modes) = kept.map(|(device, mode)| (device.clone(), mode.clone())).unzip();
        Self {
            guest: self.guest.clone(),
            stub: self.stub.clone(),
            slots: self.slots,
            devices,
            modes,
        }
    }

    /// Writes the record down, and tells libxl ([`assignable`]), in one transaction. Of a device that is recorded already, the mode is left as it
    /// is: the service may have noted another one since `self` was read.
    pub fn write(&self, store: &mut Store) -> Result<(), RecordError> {
        let ends = Ends {
            version: VERSION,
            guest: self.guest.clone(),
            stub: self.stub.clone(),
            slots: self.slots,
        };
        let root = path(self.stub.domid);
        make_root(store)?;
        let taken = store.transaction(|store| {
            for bdf in self.bdfs() {
                if let Some(domid) = assignable::foreign(store, bdf)? {
                    return Ok(Some((bdf, domid)));
                }
            }
            store.write(&root, &json(&ends))?;
            let recorded = store.directory(&root)?;
            let mut nodes = BTreeSet::new();
            for (index, (device, mode)) in self.devices_and_modes().enumerate() {
                let (dev, irq) = (format!("dev-{index}"), mode_key(device.bdf));
                store.write(&format!("{root}/{dev}"), &json(device))?;
                if !recorded.contains(&irq) {
                    store.write(&format!("{root}/{irq}"), &mode.to_string())?;
                }
                assignable::claim(store, device.bdf, self.holder())?;
                nodes.extend([dev, irq]);
            }
            let stays = |key: &String| key == KEEPSAKE || nodes.contains(key);
            for left_over in recorded.iter().filter(|key| !stays(key)) {
                store.remove(&format!("{root}/{left_over}"))?;
                if let Some(bdf) = bdf_of_mode(left_over) {
                    assignable::unclaim(store, bdf)?;
                }
            }
            Ok(None)
        })?;
        if let Some((bdf, domid)) = taken {
            return Err(RecordError::Taken { bdf, domid });
        }
        inject::point(Point::Recorded);
        Ok(())
    }

    /// Reads the record of a stub; `None` if there is none.
    pub fn read(store: &mut Store, stub: DomId) -> Result<Option<Self>, RecordError> {
        let root = path(stub);
        let nodes = store.transaction(|store| {
            let Some(ends) = store.read_optional(&root)? else {
                return Ok(None);
            };
            let mut nodes = BTreeMap::new();
            for key in store.directory(&root)? {
                // xenstored shows what others have removed since the listing; the end of the transaction tells that.
                if let Some(value) = store.read_optional(&format!("{root}/{key}"))? {
                    nodes.insert(key, value);
                }
            }
            Ok(Some((ends, nodes)))
        })?;
        nodes
            .map(|(ends, nodes)| Self::from_nodes(stub, &ends, &nodes))
            .transpose()
    }

    fn from_nodes(stub: DomId, ends: &str, nodes: &BTreeMap<String, String>) -> Result<Self, RecordError> {
        let root = path(stub);
        let damaged = |path: &str, cause: &dyn std::fmt::Display| RecordError::Damaged {
            stub,
            path: path.to_owned(),
            cause: cause.to_string(),
        };
        // First the version alone: what else there is may have another form.
        let Versioned { version } = serde_json::from_str(ends).map_err(|error| damaged(&root, &error))?;
        if version > VERSION {
            return Err(RecordError::Newer { stub, version });
        }
        let ends: Ends = serde_json::from_str(ends).map_err(|error| damaged(&root, &error))?;
        let mut devices = Vec::new();
        let mut modes = Vec::new();
        for index in 0.. {
            let Some(device) = nodes.get(&format!("dev-{index}")) else {
                break;
            };
            let device: Device = serde_json::from_str(device)
                .map_err(|error| damaged(&format!("{root}/dev-{index}"), &error))?;
            let key = mode_key(device.bdf);
            let mode = nodes.get(&key).map_or("", String::as_str);
            modes.push(
                mode.parse()
                    .map_err(|error| damaged(&format!("{root}/{key}"), &error))?,
            );
            devices.push(device);
        }
        Ok(Self {
            guest: ends.guest,
            stub: ends.stub,
            slots: ends.slots,
            devices,
            modes,
        })
    }

    /// Reads all records. A damaged one does not hide the others.
    pub fn all(store: &mut Store) -> Result<(Vec<Self>, Vec<RecordError>), RecordError> {
        let mut stubs: Vec<DomId> = children(store, ATTACHMENTS)?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        stubs.sort_unstable();
        let mut attachments = Vec::new();
        let mut errors = Vec::new();
        for stub in stubs {
            match Self::read(store, stub) {
                Ok(attachment) => attachments.extend(attachment),
                Err(error) => errors.push(error),
            }
        }
        Ok((attachments, errors))
    }

    /// Removes the record, and tells libxl that its devices are free, in one transaction.
    pub fn remove(&self, store: &mut Store) -> Result<(), RecordError> {
        let root = path(self.stub.domid);
        store.transaction(|store| {
            for bdf in children(store, &root)?.iter().filter_map(|key| bdf_of_mode(key)) {
                assignable::unclaim(store, bdf)?;
            }
            store.remove(&root)
        })?;
        Ok(())
    }
}

/// The devices of a record, which may be damaged.
pub fn devices_of(store: &mut Store, stub: DomId) -> Result<Vec<Bdf>, RecordError> {
    let keys = children(store, &path(stub))?;
    Ok(keys.iter().filter_map(|key| bdf_of_mode(key)).collect())
}

/// Notes the interrupt mode of a device, or a change of it to come.
pub fn note_mode(store: &mut Store, stub: DomId, bdf: Bdf, note: Note<'_>) -> Result<(), RecordError> {
    let text = match note {
        Note::Change(change) => change.to_string(),
        Note::Mode(mode) => mode.to_string(),
    };
    Ok(store.write(&mode_path(stub, bdf), &text)?)
}

/// The change of a device's interrupt mode whose end was never noted, if there is one.
pub fn unfinished_change(store: &mut Store, stub: DomId, bdf: Bdf) -> Result<Option<Change>, RecordError> {
    let text = store.read_optional(&mode_path(stub, bdf))?;
    Ok(text.and_then(|text| text.parse().ok()))
}

/// By the device's address, which it keeps, whatever its number in the list becomes.
fn mode_key(bdf: Bdf) -> String {
    format!("{MODE}{}", node_name(bdf))
}

/// How a [`mode_key`] begins.
const MODE: &str = "irq-";

/// The device of a [`mode_key`].
fn bdf_of_mode(key: &str) -> Option<Bdf> {
    bdf_of(key.strip_prefix(MODE)?)
}

/// The node that every device of a record has, even if the record is damaged.
pub(crate) fn mode_path(stub: DomId, bdf: Bdf) -> String {
    format!("{}/{}", path(stub), mode_key(bdf))
}

/// What a device was taken from dom0 for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// A guest: it goes back after that.
    ForGuest,
    /// Guests to come: it stays held until it is released in words.
    ToKeep,
}

impl Taken {
    /// The node of a device that was taken for this, with the name of the driver that it was taken from.
    fn path(self, bdf: Bdf) -> String {
        let directory = match self {
            Self::ForGuest => "seized",
            Self::ToKeep => "kept",
        };
        format!("{ROOT}/{directory}/{}", node_name(bdf))
    }
}

/// Below the node of a device that was taken: the command that took it.
const BY: &str = "by";

/// Remembers that a device was taken from a driver of dom0's; the name is empty if it had none. `by` tells the command
/// from others.
pub fn note_taken(
    store: &mut Store,
    taken: Taken,
    bdf: Bdf,
    driver: &str,
    by: &str,
) -> Result<(), RecordError> {
    make_root(store)?;
    let path = taken.path(bdf);
    store.transaction(|store| {
        store.write(&path, driver)?;
        store.write(&format!("{path}/{BY}"), by)
    })?;
    Ok(())
}

/// Remembers that another command goes on with a device that one which was killed had taken for a guest.
pub fn adopt_taken(store: &mut Store, bdf: Bdf, by: &str) -> Result<(), RecordError> {
    let path = Taken::ForGuest.path(bdf);
    store.transaction(|store| match store.read_optional(&path)? {
        Some(_) => store.write(&format!("{path}/{BY}"), by),
        None => Ok(()),
    })?;
    Ok(())
}

/// True if a device is taken for a guest, by this command and by none since.
pub fn is_taken_by(store: &mut Store, bdf: Bdf, by: &str) -> Result<bool, RecordError> {
    let path = Taken::ForGuest.path(bdf);
    Ok(store.read_optional(&format!("{path}/{BY}"))?.as_deref() == Some(by))
}

/// The driver that a device was taken from; `None` if it was not taken for that.
pub fn taken_from(store: &mut Store, taken: Taken, bdf: Bdf) -> Result<Option<String>, RecordError> {
    Ok(store.read_optional(&taken.path(bdf))?)
}

/// Forgets that a device was taken.
pub fn forget_taken(store: &mut Store, taken: Taken, bdf: Bdf) -> Result<(), RecordError> {
    Ok(store.remove(&taken.path(bdf))?)
}

/// Remembers that INTx of a function without a driver was disabled.
pub fn note_intx_disabled(store: &mut Store, bdf: Bdf) -> Result<(), RecordError> {
    make_root(store)?;
    Ok(store.write(&intx_disabled_path(bdf), "")?)
}

/// The functions without a driver whose INTx was disabled.
pub fn intx_disabled(store: &mut Store) -> Result<Vec<Bdf>, RecordError> {
    let names = children(store, INTX_DISABLED)?;
    Ok(names.iter().filter_map(|name| bdf_of(name)).collect())
}

/// Forgets that INTx of a function was disabled.
pub fn forget_intx_disabled(store: &mut Store, bdf: Bdf) -> Result<(), RecordError> {
    Ok(store.transaction(|store| remove_from(store, INTX_DISABLED, &intx_disabled_path(bdf)))?)
}

/// Remembers that a device must not be given to anyone.
pub fn quarantine(store: &mut Store, bdf: Bdf, reason: &str) -> Result<(), RecordError> {
    make_root(store)?;
    store.transaction(|store| {
        store.write(&quarantine_path(bdf), reason)?;
        match assignable::holder(store, bdf)? {
            // It is about to leave its guest; from then on the quarantine counts.
            Some(_) => Ok(()),
            None => assignable::claim(store, bdf, Holder::Quarantine),
        }
    })?;
    Ok(())
}

/// The devices in quarantine, with the reason for each.
pub fn quarantined(store: &mut Store) -> Result<Vec<(Bdf, String)>, RecordError> {
    let mut devices = Vec::new();
    for name in children(store, QUARANTINE)? {
        let reason = store.read_optional(&format!("{QUARANTINE}/{name}"))?;
        devices.extend(bdf_of(&name).zip(reason));
    }
    Ok(devices)
}

/// Why a device is in quarantine, if it is.
pub fn quarantine_reason(store: &mut Store, bdf: Bdf) -> Result<Option<String>, RecordError> {
    Ok(store.read_optional(&quarantine_path(bdf))?)
}

/// Lets a device be given away again.
pub fn lift_quarantine(store: &mut Store, bdf: Bdf) -> Result<(), RecordError> {
    store.transaction(|store| {
        if store.read_optional(&quarantine_path(bdf))?.is_some() {
            store.remove(&quarantine_path(bdf))?;
        }
        match assignable::holder(store, bdf)? {
            Some(Holder::Quarantine) => assignable::unclaim(store, bdf),
            _ => Ok(()),
        }
    })?;
    Ok(())
}

pub(crate) fn quarantine_path(bdf: Bdf) -> String {
    format!("{QUARANTINE}/{}", node_name(bdf))
}

fn intx_disabled_path(bdf: Bdf) -> String {
    format!("{INTX_DISABLED}/{}", node_name(bdf))
}

/// Remembers that a device was taken from a guest that lives on. Xen forbids the guest to map the device's memory from
/// then on, but leaves the mappings that it has.
pub fn note_mapped(store: &mut Store, bdf: Bdf, guest: &Domain) -> Result<(), RecordError> {
    make_root(store)?;
    Ok(store.write(&mapped_path(bdf), &json(guest))?)
}

/// The devices that a guest which lives may still have mapped, each with that guest.
pub fn mapped(store: &mut Store) -> Result<Vec<(Bdf, Domain)>, RecordError> {
    let mut devices = Vec::new();
    for bdf in children(store, MAPPED)?.iter().filter_map(|name| bdf_of(name)) {
        devices.extend(mapped_by(store, bdf)?.map(|guest| (bdf, guest)));
    }
    Ok(devices)
}

/// The guest that lives and may still have a device mapped, if there is one.
pub fn mapped_by(store: &mut Store, bdf: Bdf) -> Result<Option<Domain>, RecordError> {
    let path = mapped_path(bdf);
    let Some(text) = store.read_optional(&path)? else {
        return Ok(None);
    };
    match serde_json::from_str(&text) {
        Ok(guest) => Ok(is_alive(store, &guest)?.then_some(guest)),
        // Whoever that was, it may live.
        Err(_) => Ok(Some(Domain {
            domid: DomId::MAX,
            name: format!("of the damaged note {path}"),
            uuid: String::new(),
        })),
    }
}

/// The guest that may have a device mapped, if it lives: its number.
pub(crate) fn mapping_guest<S: Nodes>(
    store: &mut S,
    bdf: Bdf,
) -> Result<Option<DomId>, NodeError<S::TransportError>> {
    let text = store.read_optional(&mapped_path(bdf))?;
    // One that cannot be read may be anybody's, and is dom0's for libxl.
    Ok(text.map(|text| serde_json::from_str(&text).map_or(0, |guest: Domain| guest.domid)))
}

/// Forgets that a guest may have a device mapped: the guest is dead, or trusted.
pub fn forget_mapped(store: &mut Store, bdf: Bdf) -> Result<(), RecordError> {
    store.transaction(|store| {
        remove_from(store, MAPPED, &mapped_path(bdf))?;
        match assignable::holder(store, bdf)? {
            Some(Holder::Mapped { .. } | Holder::Quarantine) => assignable::unclaim(store, bdf),
            _ => Ok(()),
        }
    })?;
    Ok(())
}

/// Forgets what guests had mapped that have ended.
pub fn forget_dead_mappings(store: &mut Store) -> Result<(), RecordError> {
    for bdf in children(store, MAPPED)?.iter().filter_map(|name| bdf_of(name)) {
        if mapped_by(store, bdf)?.is_none() {
            forget_mapped(store, bdf)?;
        }
    }
    Ok(())
}

pub(crate) fn mapped_path(bdf: Bdf) -> String {
    format!("{MAPPED}/{}", node_name(bdf))
}

/// A device's address as the name of a node, which holds no colons and dots: `SSSS-BB-DD-F`, as libxl
/// writes it too.
pub fn node_name(bdf: Bdf) -> String {
    bdf.to_string().replace([':', '.'], "-")
}

/// The address in a [`node_name`].
pub fn bdf_of(name: &str) -> Option<Bdf> {
    name.replacen('-', ":", 2).replacen('-', ".", 1).parse().ok()
}

/// The children of a node; none if it does not exist.
pub fn children<S: Nodes>(store: &mut S, path: &str) -> Result<Vec<String>, NodeError<S::TransportError>> {
    match store.directory(path) {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        children => children,
    }
}

/// Removes a node, if it is there, and its directory with the last one.
pub fn remove_from<S: Nodes>(
    store: &mut S,
    directory: &str,
    node: &str,
) -> Result<(), NodeError<S::TransportError>> {
    if store.read_optional(node)?.is_none() {
        return Ok(());
    }
    store.remove(node)?;
    if children(store, directory)?.is_empty() {
        store.remove(directory)?;
    }
    Ok(())
}

fn path(stub: DomId) -> String {
    format!("{ATTACHMENTS}/{stub}")
}

/// Where a stub's [`crate::keepsake`] lies: it goes with the record.
pub fn keepsake(stub: DomId) -> String {
    format!("{}/{KEEPSAKE}", path(stub))
}

/// Makes the directory, closed to every other domain; what is made below inherits that.
pub(crate) fn make_root(store: &mut Store) -> Result<(), RecordError> {
    store.mkdir(ROOT)?;
    let dom0_only = Permission {
        domid: 0,
        access: Access::None,
    };
    Ok(store.set_permissions(ROOT, &[dom0_only])?)
}

pub(crate) fn json(value: &impl Serialize) -> String {
    // Structures of texts and numbers, which have no way to fail.
    serde_json::to_string(value).unwrap_or_default()
}

/// Values that are written as their text.
pub(crate) mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::fmt::Display;
    use std::str::FromStr;

    pub fn serialize<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// Values that may be absent, written as their texts.
mod optional_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
    use std::fmt::Display;
    use std::str::FromStr;

    pub fn serialize<S: Serializer>(value: &Option<impl Display>, serializer: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(ToString::to_string).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom))
            .transpose()
    }
}

/// Lists of values that are written as their texts.
pub mod texts {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::fmt::Display;
    use std::str::FromStr;

    /// Writes the texts.
    pub fn serialize<S: Serializer>(values: &[impl Display], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(ToString::to_string))
    }

    /// Reads the texts.
    pub fn deserialize<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts
            .iter()
            .map(|text| text.parse().map_err(D::Error::custom))
            .collect()
    }
}

/// Bytes that are written as hexadecimal digits.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&digits)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let digits = String::deserialize(deserializer)?;
        let byte = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair)
                .ok()
                .filter(|pair| pair.len() == 2 && !pair.starts_with('+'));
            pair.and_then(|pair| u8::from_str_radix(pair, 16).ok())
        };
        let bytes: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(byte).collect();
        bytes.ok_or_else(|| D::Error::custom("not a row of hexadecimal bytes"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::tests::{connect, dom0, introduce};
    use xenbus::model::Xenstored;

    pub fn domain(domid: DomId, name: &str) -> Domain {
        Domain {
            domid,
            name: name.into(),
            uuid: format!("00000000-0000-0000-0000-{domid:012}"),
        }
    }

    pub fn device(bdf: &str) -> Device {
        Device {
            bdf: bdf.parse().unwrap(),
            ids: "8086:10d3".parse().unwrap(),
            bars: crate::resources::parse(crate::resources::tests::E1000E).unwrap(),
            ecam: 0xb0028,
            gsi: Some(20),
            line_offered: true,
            header: (0..64).collect(),
            terms: Terms::default(),
            physical: None,
            inode: None,
        }
    }

    /// A virtual function of 01:00.0.
    pub fn virtual_function(bdf: &str) -> Device {
        Device {
            gsi: None,
            line_offered: false,
            physical: Some("01:00.0".parse().unwrap()),
            ..device(bdf)
        }
    }

    pub fn attachment() -> Attachment {
        let without_line = Device {
            gsi: None,
            line_offered: false,
            ..device("00:06.0")
        };
        Attachment {
            guest: domain(3, "web"),
            stub: domain(4, "web-bulkhead"),
            slots: SlotMode::Vpci,
            devices: vec![device("00:05.0"), without_line],
            modes: vec![Mode::Msix(vec![(0, 55), (1, 54)]), Mode::Line],
        }
    }

    #[test]
    fn every_node_fits_in_a_message_of_xenstore() {
        let mode = Mode::Msix((1920..2048).map(|entry| (entry, 65_535)).collect());
        for value in [mode.to_string(), json(&device("00:05.0"))] {
            assert!(value.len() < 3072, "{}: {value}", value.len());
        }
    }

    #[test]
    fn a_damaged_record_is_named_with_its_cause_and_the_way_out() {
        let nodes = [("dev-0".to_owned(), "{}".to_owned())].into();
        let Attachment {
            guest, stub, slots, ..
        } = attachment();
        let version = VERSION;
        let domains = json(&Ends {
            version,
            guest,
            stub,
            slots,
        });
        let error = Attachment::from_nodes(4, &domains, &nodes).unwrap_err();
        assert_eq!(error.stub(), Some(4));
        let error = error.to_string();
        let root = "/local/domain/0/bulkhead/attachment/4";
        assert!(
            error.starts_with(&format!(
                "the record {root}/dev-0 is damaged (missing field `bdf`"
            )),
            "{error}"
        );
        assert!(
            error.contains("domain 4, its stub") && error.contains(&format!("`xenstore-rm {root}`")),
            "{error}"
        );
        let error = Attachment::from_nodes(4, "", &nodes).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("the record {root} is damaged")),
            "{error}"
        );
    }

    #[test]
    fn a_field_of_a_later_version_is_passed_over_and_a_later_form_is_named() {
        let mut store = dom0(&Xenstored::new());
        attachment().write(&mut store).unwrap();
        for node in [path(4), format!("{}/dev-0", path(4))] {
            let text = store.read(&node).unwrap();
            store
                .write(&node, &text.replacen('{', r#"{"of_a_later_version":[1],"#, 1))
                .unwrap();
        }
        assert_eq!(Attachment::read(&mut store, 4).unwrap(), Some(attachment()));
        let text = store.read(&path(4)).unwrap();
        assert!(text.contains("\"version\":1"), "{text}");
        store
            .write(&path(4), &text.replace("\"version\":1,", ""))
            .unwrap();
        assert_eq!(Attachment::read(&mut store, 4).unwrap(), Some(attachment()));

        store.write(&path(4), r#"{"version":2,"domains":[3,4]}"#).unwrap();
        let error = Attachment::read(&mut store, 4).unwrap_err();
        assert!(
            matches!(error, RecordError::Newer { stub: 4, version: 2 }),
            "{error}"
        );
        assert!(error.to_string().contains("use the newer one"), "{error}");
    }

    #[test]
    fn a_record_of_before_there_were_terms_is_read_as_one_of_usual_terms() {
        let mut device = device("00:05.0");
        let usual = json(&device);
        device.terms = crate::terms::tests::unusual();
        assert_eq!(serde_json::from_str::<Device>(&json(&device)).unwrap(), device);
        let terms = format!(
            ",\"terms\":{},\"physical\":null,\"inode\":null",
            json(&Terms::default())
        );
        let old = usual.replace(&terms, "");
        assert_ne!(old, usual);
        device.terms = Terms::default();
        assert_eq!(serde_json::from_str::<Device>(&old).unwrap(), device);
    }

    #[test]
    fn the_physical_function_of_a_virtual_one_is_recorded() {
        let device = virtual_function("01:10.0");
        assert_eq!(serde_json::from_str::<Device>(&json(&device)).unwrap(), device);
        let damaged = json(&device).replace("0000:01:00.0", "the first");
        assert!(serde_json::from_str::<Device>(&damaged).is_err());
    }

    #[test]
    fn a_record_lies_in_xenstore_out_of_sight_of_other_domains() {
        let daemon = Xenstored::new();
        let mut store = dom0(&daemon);
        attachment().write(&mut store).unwrap();
        note_mode(
            &mut store,
            4,
            "00:06.0".parse().unwrap(),
            Note::Mode(&Mode::Msi(53)),
        )
        .unwrap();
        let mut expected = attachment();
        expected.modes[1] = Mode::Msi(53);
        let (all, damaged) = Attachment::all(&mut store).unwrap();
        assert_eq!((all, damaged.len()), (vec![expected.clone()], 0));

        daemon.introduce(4);
        let mut stub = connect(&daemon, 4);
        for node in [ROOT, ATTACHMENTS, &path(4), &format!("{}/dev-0", path(4))] {
            assert!(stub.read(node).is_err(), "{node}");
        }

        expected.remove(&mut store).unwrap();
        assert_eq!(Attachment::read(&mut store, 4).unwrap(), None);
        assert!(Attachment::all(&mut store).unwrap().0.is_empty());
    }

    #[test]
    fn a_list_that_changes_keeps_what_the_service_has_noted_meanwhile_and_leaves_nothing_behind() {
        let mut store = dom0(&Xenstored::new());
        let before = attachment();
        before.write(&mut store).unwrap();
        let [five, six] = ["00:05.0", "00:06.0"].map(|bdf| bdf.parse().unwrap());
        note_mode(&mut store, 4, six, Note::Mode(&Mode::Msi(53))).unwrap();

        before.with(vec![device("00:07.0")]).write(&mut store).unwrap();
        let read = Attachment::read(&mut store, 4).unwrap().unwrap();
        assert_eq!(read.modes, [before.modes[0].clone(), Mode::Msi(53), Mode::Line]);

        // The number of the second device changes, its mode does not.
        read.without(&[five]).write(&mut store).unwrap();
        let read = Attachment::read(&mut store, 4).unwrap().unwrap();
        let left: Vec<_> = read.bdfs().map(|bdf| bdf.to_string()).collect();
        assert_eq!(left, ["0000:00:06.0", "0000:00:07.0"]);
        assert_eq!(read.modes, [Mode::Msi(53), Mode::Line]);
        assert_eq!(store.directory(&path(4)).unwrap().len(), 4);

        // A device that comes back starts anew.
        read.with(vec![device("00:05.0")]).write(&mut store).unwrap();
        let read = Attachment::read(&mut store, 4).unwrap().unwrap();
        assert_eq!(read.modes[2], Mode::Line);
    }

    #[test]
    fn a_damaged_record_does_not_hide_the_others() {
        let daemon = Xenstored::new();
        let mut store = dom0(&daemon);
        attachment().write(&mut store).unwrap();
        store.write(&path(9), "nonsense").unwrap();
        let (all, damaged) = Attachment::all(&mut store).unwrap();
        assert_eq!((all.len(), damaged.len()), (1, 1));
    }

    #[test]
    fn seized_and_quarantined_devices_are_remembered_and_forgotten() {
        let daemon = Xenstored::new();
        let mut store = dom0(&daemon);
        let bdf = "0000:00:05.0".parse().unwrap();
        for (taken, other) in [(Taken::ForGuest, Taken::ToKeep), (Taken::ToKeep, Taken::ForGuest)] {
            note_taken(&mut store, taken, bdf, "e1000e", "run").unwrap();
            assert_eq!(
                taken_from(&mut store, taken, bdf).unwrap().as_deref(),
                Some("e1000e")
            );
            assert_eq!(taken_from(&mut store, other, bdf).unwrap(), None);
            forget_taken(&mut store, taken, bdf).unwrap();
            assert_eq!(taken_from(&mut store, taken, bdf).unwrap(), None);
        }
        quarantine(&mut store, bdf, "it is mute").unwrap();
        assert_eq!(quarantined(&mut store).unwrap(), [(bdf, "it is mute".to_owned())]);
    }

    #[test]
    fn a_device_is_taken_by_the_last_command_that_took_it() {
        let mut store = dom0(&Xenstored::new());
        let bdf = "0000:00:05.0".parse().unwrap();
        adopt_taken(&mut store, bdf, "second").unwrap();
        assert!(
            !is_taken_by(&mut store, bdf, "second").unwrap(),
            "nobody has taken it"
        );
        note_taken(&mut store, Taken::ForGuest, bdf, "e1000e", "first").unwrap();
        assert!(is_taken_by(&mut store, bdf, "first").unwrap());
        adopt_taken(&mut store, bdf, "second").unwrap();
        assert!(!is_taken_by(&mut store, bdf, "first").unwrap());
        assert!(is_taken_by(&mut store, bdf, "second").unwrap());
        let driver = taken_from(&mut store, Taken::ForGuest, bdf).unwrap();
        assert_eq!(driver.as_deref(), Some("e1000e"));
        forget_taken(&mut store, Taken::ForGuest, bdf).unwrap();
        assert!(!is_taken_by(&mut store, bdf, "second").unwrap());
        note_taken(&mut store, Taken::ToKeep, bdf, "e1000e", "first").unwrap();
        assert!(!is_taken_by(&mut store, bdf, "first").unwrap(), "not for a guest");
    }

    #[test]
    fn a_device_may_be_mapped_by_the_guest_that_had_it_until_that_has_ended() {
        let daemon = Xenstored::new();
        introduce(&daemon, 3, "web");
        let mut store = dom0(&daemon);
        let [five, six] = ["00:05.0", "00:06.0"].map(|bdf| bdf.parse().unwrap());
        assert_eq!(mapped(&mut store).unwrap(), []);
        for bdf in [five, six] {
            note_mapped(&mut store, bdf, &domain(3, "web")).unwrap();
        }
        forget_mapped(&mut store, six).unwrap();
        forget_mapped(&mut store, six).expect("once more does no harm");
        forget_dead_mappings(&mut store).unwrap();
        assert_eq!(mapped(&mut store).unwrap(), [(five, domain(3, "web"))]);
        // Another guest that got the number.
        let vm = "/vm/00000000-0000-0000-0000-000000000099";
        store.write("/local/domain/3/vm", vm).unwrap();
        assert_eq!(mapped_by(&mut store, five).unwrap(), None);
        assert_eq!(mapped(&mut store).unwrap(), []);
        forget_dead_mappings(&mut store).unwrap();
        assert_eq!(store.read_optional(MAPPED).unwrap(), None, "nor the directory");
        store.write(&mapped_path(five), "nonsense").unwrap();
        let guest = mapped_by(&mut store, five).unwrap().expect("in doubt it lives");
        assert!(guest.name.contains("mapped/0000-00-05-0"), "{guest:?}");
    }

    #[test]
    fn an_address_can_be_the_name_of_a_node() {
        let bdf = "0000:00:1f.2".parse().unwrap();
        assert_eq!(node_name(bdf), "0000-00-1f-2");
        assert_eq!(bdf_of("0000-00-1f-2"), Some(bdf));
        assert_eq!(bdf_of("0000-00-1f"), None);
    }

    #[test]
    fn a_header_that_is_no_row_of_bytes_is_refused() {
        let good = json(&device("00:05.0"));
        assert!(serde_json::from_str::<Device>(&good).is_ok());
        for bad in ["0", "0g", "+1", "é0"] {
            let text = good.replace("000102", bad);
            assert!(serde_json::from_str::<Device>(&text).is_err(), "{text}");
        }
    }
}
