//! The record of an attachment, by which any process of dom0 can undo it.
//!
//! The record is written before anything is given away, and removed after everything is taken back. Whatever process
//! dies in between, the next one knows what to undo. The record lies in xenstore, below [`ROOT`](super::ROOT), which
//! no other domain may read. It goes away with a reboot, as does all that it describes.

use super::assignable::{self, Holder};
use super::error::{Conflict, RecordError};
use super::paths::{
    ATTACHMENTS, STUB_BACKUP, attachment as path, bdf_of_mode, children, make_root, mode_key,
};
use crate::host::domains::Domain;
use crate::host::store::Store;
use crate::records::interrupt_mode::{Mode, Recorded};
use crate::records::mode_file::ModeNode;
use crate::records::version::{self, VERSION};
use crate::serde_text::{self, json};
use crate::terms::Terms;
use inject::Point;
use pci::bdf::Bdf;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use xen::xenctrl::DomId;
use xenbus::client::{Error, Store as Nodes};
use xenbus::device::{Bars, Ids, SlotMode};

/// One device of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Real address.
    #[serde(with = "serde_text::text")]
    pub bdf: Bdf,
    /// Vendor and device.
    #[serde(with = "serde_text::text")]
    pub ids: Ids,
    /// Address ranges.
    #[serde(with = "serde_text::text")]
    pub bars: Bars,
    /// Machine frame of the ECAM page.
    pub ecam: u64,
    /// The INTx line, if there is one.
    pub gsi: Option<u32>,
    /// False if INTx stays disabled because others use the line.
    pub line_offered: bool,
    /// The first 64 bytes of configuration space, as they were before the guest got the device.
    #[serde(with = "serde_text::hex")]
    pub header: Vec<u8>,
    /// The terms on which the guest has it.
    #[serde(default)]
    pub terms: Terms,
    /// The physical function of a virtual one (SR-IOV), which stays in dom0.
    #[serde(default, with = "serde_text::optional_text")]
    pub physical: Option<Bdf>,
    /// The inode of its directory in sysfs. If it differs, dom0 has removed the device and found it again.
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
    /// The addresses at which the guest sees them.
    pub slots: SlotMode,
    /// The devices, in the order of their numbers in xenstore.
    pub devices: Vec<Device>,
    /// Where the interrupt mode of each is recorded.
    pub modes: Vec<ModeNode>,
}

#[derive(Serialize, Deserialize)]
struct Ends {
    #[serde(default = "version::first")]
    version: u32,
    guest: Domain,
    stub: Domain,
    #[serde(default, with = "serde_text::text")]
    slots: SlotMode,
}

impl Attachment {
    /// The addresses of the devices.
    pub fn bdfs(&self) -> impl Iterator<Item = Bdf> {
        self.devices.iter().map(|device| device.bdf)
    }

    /// The holder of its devices, for libxl.
    pub fn holder(&self) -> Holder {
        Holder::Guest {
            guest: self.guest.domid,
            stub: self.stub.domid,
        }
    }

    /// The devices, each with what is recorded of its interrupt mode now. The service may change that at any time.
    pub fn devices_and_modes(&self) -> impl Iterator<Item = (&Device, Recorded)> {
        let nodes = self.devices.iter().zip(&self.modes);
        nodes.map(|(device, node)| (device, node.recorded(device.bdf)))
    }

    /// The same attachment with more devices, whose MSI is off.
    pub fn with(&self, devices: Vec<Device>) -> Self {
        let mut more = self.clone();
        more.modes.extend(devices.iter().map(|_| Mode::Intx.into()));
        more.devices.extend(devices);
        more
    }

    /// The same attachment without some of its devices.
    pub fn without(&self, bdfs: &[Bdf]) -> Self {
        let kept = self
            .devices
            .iter()
            .zip(&self.modes)
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

    /// Writes the record and libxl's nodes ([`assignable`]) in one transaction. The mode of a device that is recorded
    /// already is left as it is: the service may have recorded another one since `self` was read.
    pub fn write(&self, store: &mut Store) -> Result<(), RecordError> {
        make_root(store)?;
        match store.transaction(|store| self.write_nodes(store))? {
            Some(conflict) => Err(conflict.into()),
            None => {
                inject::point(Point::Recorded);
                Ok(())
            }
        }
    }

    /// Adds devices to the record of this attachment as it is now; returns the attachment with them. Devices that the
    /// service has taken back since `self` was read do not come back.
    pub fn add(&self, store: &mut Store, new: &[Device]) -> Result<Self, RecordError> {
        let added = store.transaction(|store| {
            let recorded = match Self::read_nodes(store, self.stub.domid)? {
                Some(Err(damaged)) => return Ok(Err(damaged)),
                Some(Ok(recorded)) if recorded.is_of(self) => recorded,
                _ => {
                    let guest = self.guest.name.clone();
                    return Ok(Err(RecordError::Ended { guest }));
                }
            };
            let grown = recorded.with(new.to_vec());
            Ok(match grown.write_nodes(store)? {
                Some(conflict) => Err(conflict.into()),
                None => Ok(grown),
            })
        })??;
        inject::point(Point::Recorded);
        Ok(added)
    }

    /// True if both are of the same guest and stub.
    fn is_of(&self, other: &Self) -> bool {
        (&self.guest.uuid, &self.stub.uuid) == (&other.guest.uuid, &other.stub.uuid)
    }

    /// The nodes of [`Attachment::write`], unless another domain has one of the devices.
    fn write_nodes<S: Nodes>(&self, store: &mut S) -> Result<Option<Conflict>, Error<S::TransportError>> {
        for bdf in self.bdfs() {
            // What another domain has is not recorded: two domains would have the device.
            if let Some(domid) = assignable::foreign(store, bdf)? {
                return Ok(Some(Conflict::Libxl { bdf, domid }));
            }
            if let Some(holder @ Holder::Guest { guest, stub }) = assignable::holder(store, bdf)?
                && stub != self.stub.domid
                && holder.is_recorded(store, bdf)?
            {
                return Ok(Some(Conflict::Guest { bdf, guest, stub }));
            }
        }
        self.put_nodes(store)?;
        Ok(None)
    }

    fn ends(&self) -> Ends {
        Ends {
            version: VERSION,
            guest: self.guest.clone(),
            stub: self.stub.clone(),
            slots: self.slots,
        }
    }

    /// Records the name and the UUID that the domain of the guest has by now, unless the record has gone or is a later one.
    pub fn rename_guest(&self, store: &mut Store, guest: Domain) -> Result<(), RecordError> {
        let renamed = store.transaction(|store| match Self::read_nodes(store, self.stub.domid)? {
            Some(Ok(recorded)) if recorded.is_of(self) => {
                let ends = Self {
                    guest: guest.clone(),
                    ..recorded
                }
                .ends();
                store.write(&path(self.stub.domid), &json(&ends))
            }
            _ => Ok(()),
        });
        Ok(renamed?)
    }

    fn put_nodes<S: Nodes>(&self, store: &mut S) -> Result<(), Error<S::TransportError>> {
        let root = path(self.stub.domid);
        store.write(&root, &json(&self.ends()))?;
        let recorded = store.directory(&root)?;
        let mut nodes = BTreeSet::new();
        for (index, (device, mode)) in self.devices.iter().zip(&self.modes).enumerate() {
            let (dev, irq) = (format!("dev-{index}"), mode_key(device.bdf));
            store.write(&format!("{root}/{dev}"), &json(device))?;
            // The service may have changed the mode since `self` was read.
            if !recorded.contains(&irq) {
                store.write(&format!("{root}/{irq}"), &mode.to_string())?;
            }
            // This belongs to the same transaction: libxl must at no time take a recorded device for free
            // (decision 62).
            assignable::claim(store, device.bdf, self.holder())?;
            nodes.extend([dev, irq]);
        }
        let stays = |key: &String| key == STUB_BACKUP || nodes.contains(key);
        // Numbers close up when a device leaves. Nodes beyond the list, and modes of devices that left, are
        // removed.
        for left_over in recorded.iter().filter(|key| !stays(key)) {
            store.remove(&format!("{root}/{left_over}"))?;
            if let Some(bdf) = bdf_of_mode(left_over) {
                assignable::unclaim(store, bdf)?;
            }
        }
        Ok(())
    }

    /// Reads the record of a stub; `None` if there is none.
    pub fn read(store: &mut Store, stub: DomId) -> Result<Option<Self>, RecordError> {
        store
            .transaction(|store| Self::read_nodes(store, stub))?
            .transpose()
    }

    /// The outer error is xenstore's, the inner one is of the record.
    fn read_nodes<S: Nodes>(
        store: &mut S,
        stub: DomId,
    ) -> Result<Option<Result<Self, RecordError>>, Error<S::TransportError>> {
        let root = path(stub);
        let Some(ends) = store.read_optional(&root)? else {
            return Ok(None);
        };
        let keys = store.directory(&root)?;
        let paths: Vec<String> = keys.iter().map(|key| format!("{root}/{key}")).collect();
        // A node may be gone since the listing. The end of the transaction fails then, and it is tried again.
        let values = store.read_many(&paths)?;
        let nodes = keys.into_iter().zip(values).filter_map(present).collect();
        Ok(Some(Self::from_nodes(stub, &ends, &nodes)))
    }

    fn from_nodes(stub: DomId, ends: &str, nodes: &BTreeMap<String, String>) -> Result<Self, RecordError> {
        let root = path(stub);
        let damaged = |path: &str, cause: &dyn std::fmt::Display| RecordError::Damaged {
            stub,
            path: path.to_owned(),
            cause: cause.to_string(),
        };
        // The version is read alone first: a newer record may have another form.
        let version = version::of(ends).map_err(|error| damaged(&root, &error))?;
        if version > VERSION {
            return Err(RecordError::Newer {
                stub,
                version,
                known: VERSION,
            });
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
            // A device without a mode is a damaged record: the empty text is no mode.
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

    /// True if the record of the stub is of this attachment, and not of a later one by a stub with the same number.
    pub fn is_recorded(&self, store: &mut Store) -> Result<bool, RecordError> {
        let recorded = Self::read(store, self.stub.domid)?;
        Ok(recorded.is_some_and(|recorded| recorded.is_of(self)))
    }

    /// Reads all records, in a few round trips however many there are. A damaged one does not hide the others.
    pub fn all(store: &mut Store) -> Result<(Vec<Self>, Vec<RecordError>), RecordError> {
        let mut stubs: Vec<DomId> = children(store, ATTACHMENTS)?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        stubs.sort_unstable();
        let roots: Vec<String> = stubs.iter().copied().map(path).collect();
        let (ends, nodes) = store.transaction(|store| {
            let ends = store.read_many(&roots)?;
            let keys: Vec<Vec<String>> = store
                .directories(&roots)?
                .into_iter()
                .map(Option::unwrap_or_default)
                .collect();
            let below = roots.iter().zip(&keys);
            let paths: Vec<String> = below
                .flat_map(|(root, keys)| keys.iter().map(move |key| format!("{root}/{key}")))
                .collect();
            let mut values = store.read_many(&paths)?.into_iter();
            let nodes: Vec<BTreeMap<String, String>> = keys
                .into_iter()
                .map(|keys| keys.into_iter().zip(&mut values).filter_map(present).collect())
                .collect();
            Ok((ends, nodes))
        })?;
        let mut attachments = Vec::new();
        let mut errors = Vec::new();
        for ((stub, ends), nodes) in stubs.into_iter().zip(ends).zip(nodes) {
            // Removed since the listing.
            let Some(ends) = ends else {
                continue;
            };
            match Self::from_nodes(stub, &ends, &nodes) {
                Ok(attachment) => attachments.push(attachment),
                Err(error) => errors.push(error),
            }
        }
        Ok((attachments, errors))
    }

    /// Removes the devices of this attachment from the record, and the record with the last one, in one transaction.
    /// Devices that were added since `self` was read stay: nobody has taken them back. A record that cannot be read is
    /// removed.
    pub fn remove(&self, store: &mut Store) -> Result<(), RecordError> {
        let bdfs: Vec<Bdf> = self.bdfs().collect();
        let root = path(self.stub.domid);
        store.transaction(|store| {
            if let Some(Ok(recorded)) = Self::read_nodes(store, self.stub.domid)? {
                let left = recorded.without(&bdfs);
                if !left.devices.is_empty() {
                    return left.put_nodes(store);
                }
            }
            for key in children(store, &root)? {
                if let Some(bdf) = bdf_of_mode(&key) {
                    assignable::unclaim(store, bdf)?;
                }
            }
            store.remove(&root)
        })?;
        Ok(())
    }

    /// Removes some devices from the record of a stub, which stays also without any. Devices that were added meanwhile
    /// stay. A record that is not there any more is no error.
    pub fn remove_devices(store: &mut Store, stub: DomId, bdfs: &[Bdf]) -> Result<(), RecordError> {
        let removed = store.transaction(|store| match Self::read_nodes(store, stub)? {
            Some(Ok(recorded)) => recorded.without(bdfs).put_nodes(store).map(Ok),
            Some(Err(damaged)) => Ok(Err(damaged)),
            None => Ok(Ok(())),
        })?;
        inject::point(Point::Recorded);
        removed
    }
}

/// A node that was there when it was read.
fn present((key, value): (String, Option<String>)) -> Option<(String, String)> {
    value.map(|value| (key, value))
}

/// The devices of a record, even of a damaged one.
pub fn devices_of(store: &mut Store, stub: DomId) -> Result<Vec<Bdf>, RecordError> {
    let keys = children(store, &path(stub))?;
    Ok(keys.iter().filter_map(|key| bdf_of_mode(key)).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::host::guest_config::StubOrigin;
    use crate::host::store::tests::{connect, dom0};
    use crate::records::paths::ROOT;
    use bulkhead_config::telemetry::TelemetryChoice;
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
            bars: crate::config_space::resources::parse(crate::config_space::resources::tests::E1000E)
                .unwrap(),
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

    /// What a stub without a network was created from.
    pub fn origin() -> StubOrigin {
        StubOrigin {
            kernel: "/stub".into(),
            telemetry: Some(TelemetryChoice::Off),
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
            modes: vec![Mode::Msix(vec![(0, 55), (1, 54)]).into(), Mode::Intx.into()],
        }
    }

    /// As the service does when it records the mode of a device of stub 4 for the first time.
    fn in_file(store: &mut Store, bdf: &str) {
        let node = crate::records::paths::mode_path(4, bdf.parse().unwrap());
        store.write(&node, &ModeNode::File.to_string()).unwrap();
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
        assert!(text.contains("\"version\":2"), "{text}");
        // Records of the first version, with and without its number.
        for earlier in ["\"version\":1,", ""] {
            store
                .write(&path(4), &text.replace("\"version\":2,", earlier))
                .unwrap();
            assert_eq!(Attachment::read(&mut store, 4).unwrap(), Some(attachment()));
        }

        store.write(&path(4), r#"{"version":3,"domains":[3,4]}"#).unwrap();
        let error = Attachment::read(&mut store, 4).unwrap_err();
        assert!(
            matches!(
                error,
                RecordError::Newer {
                    stub: 4,
                    version: 3,
                    known: 2
                }
            ),
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
        in_file(&mut store, "00:06.0");
        let mut expected = attachment();
        expected.modes[1] = ModeNode::File;
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
    fn a_list_that_changes_keeps_what_the_service_has_recorded_meanwhile_and_leaves_nothing_behind() {
        let mut store = dom0(&Xenstored::new());
        let before = attachment();
        before.write(&mut store).unwrap();
        let five = "00:05.0".parse().unwrap();
        in_file(&mut store, "00:06.0");

        before.with(vec![device("00:07.0")]).write(&mut store).unwrap();
        let read = Attachment::read(&mut store, 4).unwrap().unwrap();
        assert_eq!(
            read.modes,
            [before.modes[0].clone(), ModeNode::File, Mode::Intx.into()]
        );

        // The number of the second device changes, its mode does not.
        read.without(&[five]).write(&mut store).unwrap();
        let read = Attachment::read(&mut store, 4).unwrap().unwrap();
        let left: Vec<_> = read.bdfs().map(|bdf| bdf.to_string()).collect();
        assert_eq!(left, ["0000:00:06.0", "0000:00:07.0"]);
        assert_eq!(read.modes, [ModeNode::File, Mode::Intx.into()]);
        assert_eq!(store.directory(&path(4)).unwrap().len(), 4);

        // A device that comes back starts anew.
        read.with(vec![device("00:05.0")]).write(&mut store).unwrap();
        let read = Attachment::read(&mut store, 4).unwrap().unwrap();
        assert_eq!(read.modes[2], Mode::Intx.into());
    }

    #[test]
    fn what_was_added_while_devices_were_taken_back_stays_recorded() {
        let mut store = dom0(&Xenstored::new());
        let before = attachment();
        before.write(&mut store).unwrap();
        before.with(vec![device("00:07.0")]).write(&mut store).unwrap();
        let five = "00:05.0".parse().unwrap();
        let seven = "00:07.0".parse().unwrap();
        let holder = Some(before.holder());

        Attachment::remove_devices(&mut store, 4, &[five]).unwrap();
        let read = Attachment::read(&mut store, 4).unwrap().unwrap();
        let left: Vec<_> = read.bdfs().map(|bdf| bdf.to_string()).collect();
        assert_eq!(left, ["0000:00:06.0", "0000:00:07.0"]);
        assert_eq!(assignable::holder(&mut store, five).unwrap(), None);

        before.remove(&mut store).unwrap();
        let read = Attachment::read(&mut store, 4).unwrap().unwrap();
        assert_eq!(read.bdfs().collect::<Vec<_>>(), [seven]);
        assert_eq!(assignable::holder(&mut store, seven).unwrap(), holder);

        read.remove(&mut store).unwrap();
        assert_eq!(Attachment::read(&mut store, 4).unwrap(), None);
        assert_eq!(assignable::holder(&mut store, seven).unwrap(), None);
        Attachment::remove_devices(&mut store, 4, &[five]).expect("a record that is gone");
        assert_eq!(
            Attachment::read(&mut store, 4).unwrap(),
            None,
            "it is not made again"
        );
    }

    #[test]
    fn what_was_taken_back_meanwhile_does_not_come_back_with_a_new_device() {
        let mut store = dom0(&Xenstored::new());
        let before = attachment();
        let seven = [device("00:07.0")];
        let ended = before.add(&mut store, &seven).unwrap_err().to_string();
        assert!(
            ended.starts_with("guest web has no devices through this stub any more"),
            "{ended}"
        );
        assert_eq!(
            Attachment::read(&mut store, 4).unwrap(),
            None,
            "it is not made again"
        );

        before.write(&mut store).unwrap();
        Attachment::remove_devices(&mut store, 4, &["00:05.0".parse().unwrap()]).unwrap();
        let grown = before.add(&mut store, &seven).unwrap();
        let left: Vec<_> = grown.bdfs().map(|bdf| bdf.to_string()).collect();
        assert_eq!(left, ["0000:00:06.0", "0000:00:07.0"]);
        assert_eq!(Attachment::read(&mut store, 4).unwrap(), Some(grown));

        let later = Attachment {
            stub: Domain {
                uuid: "later".into(),
                ..before.stub.clone()
            },
            ..before
        };
        later.add(&mut store, &[device("00:08.0")]).unwrap_err();
    }

    #[test]
    fn a_device_leaves_the_record_also_if_libxl_has_given_away_one_that_stays() {
        let mut store = dom0(&Xenstored::new());
        attachment().write(&mut store).unwrap();
        let [five, six] = ["00:05.0", "00:06.0"].map(|bdf| bdf.parse().unwrap());
        store.remove(&assignable::path(six, assignable::HOLDER)).unwrap();
        Attachment::remove_devices(&mut store, 4, &[five]).unwrap();
        let read = Attachment::read(&mut store, 4).unwrap().unwrap();
        assert_eq!(read.bdfs().collect::<Vec<_>>(), [six]);
    }

    #[test]
    fn a_device_is_in_one_record_only() {
        let mut store = dom0(&Xenstored::new());
        attachment().write(&mut store).unwrap();
        let other = Attachment {
            guest: domain(9, "mail"),
            stub: domain(10, "mail-bulkhead"),
            ..attachment()
        };
        let error = other.write(&mut store).unwrap_err().to_string();
        assert_eq!(
            error,
            "domain 3 has 0000:00:05.0 through stub 4 since a moment ago: `bulkhead detach 0000:00:05.0` frees it"
        );
        assert_eq!(Attachment::read(&mut store, 10).unwrap(), None);
        attachment().remove(&mut store).unwrap();
        other.write(&mut store).unwrap();
    }

    #[test]
    fn to_read_a_record_takes_as_many_round_trips_for_many_devices_as_for_one() {
        let daemon = Xenstored::new();
        let mut store = dom0(&daemon);
        let mut few = attachment();
        few.write(&mut store).unwrap();
        let more = (7..20).map(|number| device(&format!("00:{number:02x}.0")));
        let mut waits = |record: &Attachment| {
            record.write(&mut store).unwrap();
            let before = daemon.round_trips();
            assert_eq!(Attachment::read(&mut store, 4).unwrap().as_ref(), Some(record));
            daemon.round_trips() - before
        };
        // The transaction, its beginning and its end: the record, its nodes, their values.
        assert_eq!(waits(&few), 5);
        few = few.with(more.collect());
        assert_eq!(waits(&few), 5);
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
    fn a_header_that_is_no_row_of_bytes_is_refused() {
        let good = json(&device("00:05.0"));
        assert!(serde_json::from_str::<Device>(&good).is_ok());
        for bad in ["0", "0g", "+1", "é0"] {
            let text = good.replace("000102", bad);
            assert!(serde_json::from_str::<Device>(&text).is_err(), "{text}");
        }
    }
}
