//! The xenstore nodes of both hops, as docs/protocol.md lists them for the toolstack.

use super::suspension;
use crate::host::store::{Store, StoreError, Stream};
use crate::records::stub_backup::Published;
use crate::records::{self, Attachment};
use xen::xenctrl::DomId;
use xenbus::client::{Error, Store as _, Transaction};
use xenbus::path::{Device, Numbered, home, key};
use xenbus::permission::Permission;
use xenbus::state::XenbusState;

/// The directory of one end: its owner, its reader, and the nodes in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    path: String,
    owner: u16,
    reader: u16,
    nodes: Vec<(String, String)>,
}

impl Directory {
    /// The directory in which the owner reports errors of this device: beside it, below `error` (Linux's
    /// `xenbus_dev_error`).
    fn errors(&self) -> Option<String> {
        let home = home(self.owner);
        self.path
            .strip_prefix(&home)
            .map(|device| format!("{home}/error{device}"))
    }

    /// Writes the nodes. Earlier nodes are removed, with the errors that were reported.
    fn write(&self, store: &mut Transaction<'_, Stream>) -> Result<(), StoreError> {
        for stale in [Some(self.path.clone()), self.errors()].into_iter().flatten() {
            if store.read_optional(&stale)?.is_some() {
                store.remove(&stale)?;
            }
        }
        // The directory gets its permissions while it is empty, so that the nodes below belong to the right domain.
        store.mkdir(&self.path)?;
        // Nodes made below inherit this.
        store.set_permissions(&self.path, &Permission::owned_by(self.owner, self.reader))?;
        for (key, value) in &self.nodes {
            store.write(&format!("{}/{key}", self.path), value)?;
        }
        Ok(())
    }
}

/// The frontend's nodes that a backend reads.
const FRONTEND_NODES: [&str; 6] = [
    key::BACKEND,
    key::BACKEND_ID,
    key::PCI_OP_REF,
    key::EVENT_CHANNEL,
    key::MAGIC,
    key::STATE,
];
/// Limit of attempts to write the nodes of a stub that runs. After that the stub counts as one that prevents it.
const TRIES: u32 = 8;

/// Both ends of a hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HopNodes {
    frontend: Directory,
    backend: Directory,
}

impl HopNodes {
    fn new(device: Device, own: Vec<(String, String)>) -> Self {
        let initialising = XenbusState::Initialising.as_str();
        let node = |key: &str, value: String| (key.to_owned(), value);
        let mut backend = vec![
            node(key::FRONTEND, device.frontend_dir()),
            node(key::FRONTEND_ID, device.frontend().to_string()),
            node(key::ONLINE, "1".into()),
        ];
        backend.extend(own);
        // The state comes last: a reader that sees it sees the rest.
        backend.push(node(key::STATE, initialising.into()));
        // The frontend's state is written apart: see `write`.
        let frontend = vec![
            node(key::BACKEND, device.backend_dir()),
            node(key::BACKEND_ID, device.backend().to_string()),
        ];
        Self {
            frontend: Directory {
                path: device.frontend_dir(),
                owner: device.frontend(),
                reader: device.backend(),
                nodes: frontend,
            },
            backend: Directory {
                path: device.backend_dir(),
                owner: device.backend(),
                reader: device.frontend(),
                nodes: backend,
            },
        }
    }

    /// The first hop: the guest's pcifront finds its backend in the stub.
    pub fn first(attachment: &Attachment) -> Self {
        let mut nodes = vec![
            (key::DOMAIN.to_owned(), attachment.guest.name.clone()),
            (key::NUM_DEVS.to_owned(), attachment.devices.len().to_string()),
        ];
        for (number, device) in attachment.devices.iter().enumerate() {
            nodes.extend(of_first(number, device));
        }
        Self::new(first_hop(attachment), nodes)
    }

    /// The second hop: the stub finds the service in dom0, and what it must know of the devices.
    pub fn second(attachment: &Attachment) -> Self {
        let mut nodes = vec![
            (key::GUEST.to_owned(), attachment.guest.domid.to_string()),
            (key::SLOTS.to_owned(), attachment.slots.to_string()),
            (key::NUM_DEVS.to_owned(), attachment.devices.len().to_string()),
        ];
        for (number, device) in attachment.devices.iter().enumerate() {
            let present = |(key, value): (_, Option<_>)| value.map(|value| (key, value));
            nodes.extend(of_second(number, device).into_iter().filter_map(present));
        }
        Self::new(Device::second_hop(attachment.stub.domid), nodes)
    }

    /// Writes the nodes in one transaction, but for the frontend's state. Nodes of an earlier hop between the same
    /// two are removed, with the errors that were reported. From now on the frontend's domain cannot be saved.
    ///
    /// The frontend's state comes last, in a write of its own. Linux probes a device as soon as its state reads
    /// Initialising, and has one more look at it for each node of its directory that changed, be it in one transaction.
    /// From 7.0 on it compares the nodes then, and takes a device that has no driver yet for one that was reset, if its
    /// backend is not in dom0 (until 7.2.13 and 7.3.4). With the state alone there is one look, and nothing to compare.
    pub fn write(&self, store: &mut Store) -> Result<(), StoreError> {
        suspension::refuse(store, self.frontend.owner)?;
        store.transaction(|store| {
            self.frontend.write(store)?;
            self.backend.write(store)
        })?;
        let state = format!("{}/{}", self.frontend.path, key::STATE);
        store.write(&state, XenbusState::Initialising.as_str())
    }

    /// Writes the backend's directory of a first hop for the stub's new domain, as the last one left it. The guest's
    /// directory is its own and stays as it is.
    ///
    /// Permissions older than a domain say nothing of it, even if they name its number (XSA-322): those of the guest's
    /// nodes are set again, when the new domain is there; of those that a stub reads, and one by one: a guest that writes
    /// its nodes without a pause, or has made hundreds of them, keeps nobody busy.
    pub fn write_again(
        store: &mut Store,
        attachment: &Attachment,
        published: &Published,
    ) -> Result<(), StoreError> {
        let mut hop = Self::first(attachment);
        if !published.is_empty() {
            // The nodes that name the two ends are written anew; all others are as the dead stub left them.
            let fixed = |key: &str| [key::FRONTEND, key::FRONTEND_ID, key::ONLINE].contains(&key);
            hop.backend.nodes.retain(|(key, _)| fixed(key));
            let kept = published.iter().map(|(key, value)| (key.clone(), value.clone()));
            hop.backend.nodes.extend(kept);
        }
        let Directory {
            path, owner, reader, ..
        } = hop.frontend;
        let permissions = Permission::owned_by(owner, reader);
        store.set_permissions(&path, &permissions)?;
        for key in FRONTEND_NODES {
            match store.set_permissions(&format!("{path}/{key}"), &permissions) {
                Err(error) if error.is_not_found() => {}
                set => set?,
            }
        }
        store.transaction_within(TRIES, |store| hop.backend.write(store))
    }
}

/// The directory in which a guest reports errors of its devices.
pub fn guest_errors(attachment: &Attachment) -> String {
    format!("{}/error/device/pci/0", home(attachment.guest.domid))
}

/// How far a guest's end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    /// It waits for its connection, and has published this port.
    Waits(u32),
    /// It is Connected.
    Connected,
    /// Anything else.
    Other,
}

/// How far a guest's end is, by its nodes.
pub fn guest_end<S: xenbus::client::Store>(
    store: &mut S,
    attachment: &Attachment,
) -> Result<GuestEnd, Error<S::TransportError>> {
    let hop = first_hop(attachment);
    match store.read_state(&hop.frontend_node(key::STATE))? {
        XenbusState::Connected => Ok(GuestEnd::Connected),
        XenbusState::Initialised => {
            let port = store.read_optional(&hop.frontend_node(key::EVENT_CHANNEL))?;
            let port = port.and_then(|port| port.parse().ok());
            Ok(port.map_or(GuestEnd::Other, GuestEnd::Waits))
        }
        _ => Ok(GuestEnd::Other),
    }
}

/// Makes the guest's frontend start anew, if it still waits with this port for its connection. Errors that it has
/// reported are removed.
pub fn begin_anew(store: &mut Store, attachment: &Attachment, port: u32) -> Result<bool, StoreError> {
    let state = first_hop(attachment).frontend_node(key::STATE);
    let errors = guest_errors(attachment);
    store.transaction(|store| {
        // The test is repeated in the transaction: the guest may have gone on meanwhile.
        if guest_end(store, attachment)? != GuestEnd::Waits(port) {
            return Ok(false);
        }
        if store.read_optional(&errors)?.is_some() {
            store.remove(&errors)?;
        }
        store.write(&state, XenbusState::Initialising.as_str())?;
        Ok(true)
    })
}

/// The first hop of an attachment.
pub const fn first_hop(attachment: &Attachment) -> Device {
    Device::first_hop(attachment.stub.domid, attachment.guest.domid)
}

/// The nodes of device `number` in the backend's directory of the first hop, when it is new.
pub fn of_first(number: usize, device: &records::Device) -> [(String, String); 3] {
    let bdf = device.bdf.to_string();
    [
        (Numbered::Key, bdf.clone()),
        (Numbered::Device, bdf),
        (Numbered::State, XenbusState::Initialising.as_str().to_owned()),
    ]
    .map(|(key, value)| (key.at(number), value))
}

/// All nodes that device `number` can have in the backend's directory of the second hop. `None` stands for a node
/// that must be absent.
pub fn of_second(number: usize, device: &records::Device) -> [(String, Option<String>); 10] {
    let terms = &device.terms;
    [
        (Numbered::Device, Some(device.bdf.to_string())),
        (Numbered::Ids, Some(device.ids.to_string())),
        (Numbered::Ecam, Some(format!("{:x}", device.ecam))),
        (Numbered::Bars, Some(device.bars.to_string())),
        (Numbered::Irq, Some(device.gsi.unwrap_or(0).to_string())),
        (Numbered::Intx, Some(u8::from(device.line_offered).to_string())),
        (Numbered::Permissive, terms.permissive.then(|| "1".to_owned())),
        (
            Numbered::Quirks,
            (!terms.quirks.is_empty()).then(|| terms.quirks.to_string()),
        ),
        (Numbered::Msi, (!terms.msi.is_on()).then(|| "0".to_owned())),
        (Numbered::Virtual, device.physical.map(|_| "1".to_owned())),
    ]
    .map(|(key, value)| (key.at(number), value))
}

/// The node in which the service says why it does not serve a stub.
pub fn error_node(stub: DomId) -> String {
    format!("{}/0/error", error_directory(stub))
}

/// The directory of [`error_node`], which goes away with the attachment.
pub fn error_directory(stub: DomId) -> String {
    format!("/local/domain/0/error/backend/bulkhead/{stub}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::{connect, dom0};
    use crate::records::interrupt_mode::Mode;
    use crate::records::tests::{attachment, virtual_function};
    use xenbus::device::SlotMode;
    use xenbus::model::Xenstored;

    fn listing(directory: &Directory) -> Vec<String> {
        directory
            .nodes
            .iter()
            .map(|(key, value)| format!("{key} = {value}"))
            .collect()
    }

    #[test]
    fn the_first_hop_is_written_as_libxl_writes_it_but_with_the_stub_as_backend() {
        let hop = HopNodes::first(&attachment());
        assert_eq!(hop.backend.path, "/local/domain/4/backend/pci/3/0");
        assert_eq!((hop.backend.owner, hop.backend.reader), (4, 3));
        assert_eq!(
            listing(&hop.backend),
            [
                "frontend = /local/domain/3/device/pci/0",
                "frontend-id = 3",
                "online = 1",
                "domain = web",
                "num_devs = 2",
                "key-0 = 0000:00:05.0",
                "dev-0 = 0000:00:05.0",
                "state-0 = 1",
                "key-1 = 0000:00:06.0",
                "dev-1 = 0000:00:06.0",
                "state-1 = 1",
                "state = 1",
            ]
        );
        assert_eq!(hop.frontend.path, "/local/domain/3/device/pci/0");
        assert_eq!((hop.frontend.owner, hop.frontend.reader), (3, 4));
        assert_eq!(
            listing(&hop.frontend),
            ["backend = /local/domain/4/backend/pci/3/0", "backend-id = 4"]
        );
    }

    #[test]
    fn the_second_hop_tells_the_stub_all_about_its_devices() {
        let hop = HopNodes::second(&attachment());
        assert_eq!(hop.backend.path, "/local/domain/0/backend/bulkhead/4/0");
        assert_eq!((hop.backend.owner, hop.backend.reader), (0, 4));
        let bars = "febc0000,20000,0;febe0000,20000,0;c000,20,1;febd4000,4000,0;0,0,0;0,0,0;feb80000,40000,0";
        assert_eq!(
            listing(&hop.backend),
            [
                "frontend = /local/domain/4/device/bulkhead/0",
                "frontend-id = 4",
                "online = 1",
                "guest = 3",
                "slots = vpci",
                "num_devs = 2",
                "dev-0 = 0000:00:05.0",
                "ids-0 = 8086:10d3",
                "ecam-0 = b0028",
                &format!("bars-0 = {bars}"),
                "irq-0 = 20",
                "intx-0 = 1",
                "dev-1 = 0000:00:06.0",
                "ids-1 = 8086:10d3",
                "ecam-1 = b0028",
                &format!("bars-1 = {bars}"),
                "irq-1 = 0",
                "intx-1 = 0",
                "state = 1",
            ]
        );
        assert_eq!(hop.frontend.path, "/local/domain/4/device/bulkhead/0");
        assert_eq!((hop.frontend.owner, hop.frontend.reader), (4, 0));
        assert_eq!(
            listing(&hop.frontend),
            ["backend = /local/domain/0/backend/bulkhead/4/0", "backend-id = 0"]
        );
    }

    #[test]
    fn terms_are_told_where_they_are_not_the_usual_ones() {
        let mut attachment = attachment();
        attachment.devices[1].terms = crate::terms::tests::unusual();
        attachment.devices.push(virtual_function("01:10.0"));
        attachment.modes.push(Mode::Intx.into());
        let hop = HopNodes::second(&attachment);
        let listing = listing(&hop.backend);
        for line in [
            "permissive-1 = 1",
            "quirks-1 = 44:2:ff;60:1:1",
            "msi-1 = 0",
            "irq-2 = 0",
            "virtual-2 = 1",
        ] {
            assert!(listing.contains(&line.to_owned()), "{line}");
        }
        assert!(!listing.iter().any(|line| line.starts_with("virtual-1")));
        assert!(!listing.iter().any(|line| line.starts_with("permissive-0")));
    }

    #[test]
    fn the_stub_is_told_how_the_guest_addresses_its_devices() {
        let passthrough = Attachment {
            slots: SlotMode::Passthrough,
            ..attachment()
        };
        let nodes = listing(&HopNodes::second(&passthrough).backend);
        assert!(nodes.contains(&"slots = passthrough".to_owned()));
    }

    /// Linux looks at its nodes once for each event, and probes the device when the state is there.
    #[test]
    fn the_guest_hears_nothing_after_the_state_of_its_end() {
        let daemon = Xenstored::new();
        [3, 4].into_iter().for_each(|domid| daemon.introduce(domid));
        let mut guest = connect(&daemon, 3);
        guest.watch("/local/domain/3/device", "device").unwrap();
        let mut store = dom0(&daemon);
        HopNodes::first(&attachment()).write(&mut store).unwrap();
        let mut paths = Vec::new();
        while let Some(event) = guest.next_event().unwrap() {
            paths.push(event.path);
        }
        let state = "/local/domain/3/device/pci/0/state";
        assert_eq!(paths.iter().filter(|path| *path == state).count(), 1, "{paths:?}");
        assert_eq!(paths.last().map(String::as_str), Some(state), "{paths:?}");
        // What it finds when it looks is whole.
        assert_eq!(guest.read(state).unwrap(), "1");
        assert_eq!(
            guest.read("/local/domain/3/device/pci/0/backend-id").unwrap(),
            "4"
        );
        assert_eq!(guest.read("/local/domain/4/backend/pci/3/0/state").unwrap(), "1");
    }

    #[test]
    fn what_was_told_of_an_earlier_hop_is_forgotten() {
        let daemon = Xenstored::new();
        for domid in [3, 4] {
            daemon.introduce(domid);
        }
        let mut store = dom0(&daemon);
        let error = "/local/domain/3/error/device/pci/0/error";
        store.write(error, "22 freeing event channel 8").unwrap();
        HopNodes::first(&attachment()).write(&mut store).unwrap();
        assert_eq!(store.read_optional(error).unwrap(), None);
    }

    #[test]
    fn the_next_life_of_a_stub_finds_what_the_last_one_left_and_the_guest_notices_nothing() {
        let daemon = Xenstored::new();
        [3, 4].into_iter().for_each(|domid| daemon.introduce(domid));
        let mut store = dom0(&daemon);
        HopNodes::first(&attachment()).write(&mut store).unwrap();
        let mut guest = connect(&daemon, 3);
        for (key, value) in [("pci-op-ref", "8"), ("event-channel", "9"), ("state", "4")] {
            guest
                .write(&format!("/local/domain/3/device/pci/0/{key}"), value)
                .unwrap();
        }
        let other = "/local/domain/3/device/pci/0/other";
        guest.write(other, "x").unwrap();
        guest.set_permissions(other, &Permission::owned_by(3, 3)).unwrap();
        daemon.release(4);
        store.remove("/local/domain/4").unwrap();
        daemon.introduce(4);
        let published = [("state", "4"), ("vdev-0", "0000:00:01.00"), ("num_devs", "1")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        HopNodes::write_again(&mut store, &attachment(), &published).unwrap();

        let mut stub = connect(&daemon, 4);
        let mut nodes = stub.directory("/local/domain/4/backend/pci/3/0").unwrap();
        nodes.sort();
        assert_eq!(
            nodes,
            ["frontend", "frontend-id", "num_devs", "online", "state", "vdev-0"]
        );
        assert_eq!(guest.read("/local/domain/4/backend/pci/3/0/state").unwrap(), "4");
        for (key, value) in [("pci-op-ref", "8"), ("event-channel", "9"), ("state", "4")] {
            let node = format!("/local/domain/3/device/pci/0/{key}");
            assert_eq!(stub.read(&node).unwrap(), value);
            assert!(stub.write(&node, "9").is_err());
        }
        assert!(
            stub.read(other).is_err(),
            "what is no node of the protocol's is left alone"
        );
    }

    #[test]
    fn each_end_writes_its_own_nodes_and_reads_the_others_and_nobody_else_does() {
        let daemon = Xenstored::new();
        for domid in [3, 4, 5] {
            daemon.introduce(domid);
        }
        let mut store = dom0(&daemon);
        // Twice, as after an attach that failed halfway.
        for _ in 0..2 {
            HopNodes::second(&attachment()).write(&mut store).unwrap();
            HopNodes::first(&attachment()).write(&mut store).unwrap();
        }
        for (writer, reader, node) in [
            (3, 4, "/local/domain/3/device/pci/0/state"),
            (4, 3, "/local/domain/4/backend/pci/3/0/state"),
            (4, 0, "/local/domain/4/device/bulkhead/0/state"),
            (0, 4, "/local/domain/0/backend/bulkhead/4/0/state"),
        ] {
            assert_eq!(
                connect(&daemon, reader).read(node).unwrap(),
                "1",
                "{reader} reads {node}"
            );
            connect(&daemon, writer).write(node, "2").unwrap();
            for other in [3, 4, 5].into_iter().filter(|&domid| domid != writer) {
                assert!(
                    connect(&daemon, other).write(node, "9").is_err(),
                    "{other} writes {node}"
                );
            }
            assert!(connect(&daemon, 5).read(node).is_err(), "5 reads {node}");
        }
    }
}
