//! The list of devices of a connection: adds devices, asks for them back, closes gaps.
//!
//! The order is libxl's; Linux's pcifront and the stub follow it. One transaction changes the list and sets the
//! backend's state to Reconfiguring. The guest lets go of what is leaving and goes there too. The stub changes what
//! it exports and goes to Reconfigured. The guest, then the stub, go back to Connected. Only then the list may change
//! again.

use crate::host::store::{Store, StoreError, Stream};
use crate::nodes::hops::{first_hop, of_first, of_second};
use crate::records::{Attachment, Device};
use pci::bdf::Bdf;
use std::ops::Range;
use xenbus::client::{Store as _, Transaction};
use xenbus::path::{Device as Hop, Numbered, key};
use xenbus::state::XenbusState;

/// The nodes of one device in the first hop.
const FIRST: [Numbered; 5] = [
    Numbered::Key,
    Numbered::Device,
    Numbered::VirtualDevice,
    Numbered::State,
    Numbered::Error,
];
/// The nodes of one device in the second hop.
const SECOND: [Numbered; 10] = [
    Numbered::Device,
    Numbered::Ids,
    Numbered::Ecam,
    Numbered::Bars,
    Numbered::Irq,
    Numbered::Intx,
    Numbered::Permissive,
    Numbered::Quirks,
    Numbered::Msi,
    Numbered::Virtual,
];

/// One device of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its real address; `None` if the node with that is damaged.
    pub bdf: Option<Bdf>,
    /// State: Initialising, new; Initialised, exported; Closing, asked back; Closed, not exported.
    pub state: XenbusState,
    /// Why the stub refused it.
    pub error: Option<String>,
}

/// The list of a first hop, with the states of both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// The stub's state.
    pub backend: XenbusState,
    /// The guest's state.
    pub guest: XenbusState,
    /// The devices, in the order of their numbers.
    pub entries: Vec<Entry>,
}

/// Limit of devices that are read: one bus. The stub could write any number.
const LONGEST: usize = 256;

impl List {
    /// Reads the list of an attachment, all at one moment.
    pub fn read(store: &mut Store, attachment: &Attachment) -> Result<Self, StoreError> {
        let hop = first_hop(attachment);
        store.transaction(|store| Self::read_of(store, hop))
    }

    fn read_of(store: &mut Transacted<'_>, hop: Hop) -> Result<Self, StoreError> {
        let count = length(store, hop)?.unwrap_or(0);
        let mut entries = Vec::new();
        for number in 0..count {
            let node = |key: Numbered| hop.backend_node(&key.at(number));
            let device = store.read_optional(&node(Numbered::Device))?;
            entries.push(Entry {
                bdf: device.and_then(|bdf| bdf.parse().ok()),
                state: store.read_state(&node(Numbered::State))?,
                error: store.read_optional(&node(Numbered::Error))?,
            });
        }
        Ok(Self {
            backend: store.read_state(&hop.backend_node(key::STATE))?,
            guest: store.read_state(&hop.frontend_node(key::STATE))?,
            entries,
        })
    }

    /// True if no change is under way, so that one can begin.
    pub fn is_connected(&self) -> bool {
        (self.backend, self.guest) == (XenbusState::Connected, XenbusState::Connected)
    }

    /// The entry of a device.
    pub fn entry(&self, bdf: Bdf) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.bdf == Some(bdf))
    }

    /// True if the guest may still have one of these devices.
    pub fn has_any(&self, bdfs: &[Bdf]) -> bool {
        let entries = bdfs.iter().filter_map(|&bdf| self.entry(bdf));
        entries
            .map(|entry| entry.state)
            .any(|state| matches!(state, XenbusState::Initialised | XenbusState::Closing))
    }
}

/// The devices that the stub offers, each with the address at which the guest sees it.
pub fn guest_addresses(store: &mut Store, attachment: &Attachment) -> Result<Vec<(Bdf, Bdf)>, StoreError> {
    let hop = first_hop(attachment);
    store.transaction(|store| {
        let mut addresses = Vec::new();
        for number in 0..length(store, hop)?.unwrap_or(0) {
            let mut address = |key: Numbered| -> Result<Option<Bdf>, StoreError> {
                let text = store.read_optional(&hop.backend_node(&key.at(number)))?;
                Ok(text.and_then(|text| text.parse().ok()))
            };
            // A stub may write anything: what is no address is none.
            let pair = (address(Numbered::Device)?, address(Numbered::VirtualDevice)?);
            addresses.extend(pair.0.zip(pair.1));
        }
        Ok(addresses)
    })
}

/// Adds the devices `new`, which the attachment names already, and has both ends follow. Returns false, and changes
/// nothing, while another change is under way or an end is not connected.
pub fn add(store: &mut Store, attachment: &Attachment, new: &[Device]) -> Result<bool, StoreError> {
    let hop = first_hop(attachment);
    store.transaction(|store| {
        let list = List::read_of(store, hop)?;
        if !list.is_connected() {
            return Ok(false);
        }
        write_second(store, attachment)?;
        // Earlier devices keep their numbers: new ones go to the end.
        let first = list.entries.len();
        for (number, device) in (first..).zip(new) {
            for (key, value) in of_first(number, device) {
                store.write(&hop.backend_node(&key), &value)?;
            }
        }
        write_length(store, hop, first + new.len())?;
        set_state(store, hop, XenbusState::Reconfiguring)?;
        Ok(true)
    })
}

/// Asks the guest to let go of devices. Devices that it does not have are left out. Returns false, and changes
/// nothing, as [`add`] does.
pub fn ask_back(store: &mut Store, attachment: &Attachment, bdfs: &[Bdf]) -> Result<bool, StoreError> {
    use XenbusState::{Closed, Closing, Initialised, Initialising, Reconfiguring};
    let hop = first_hop(attachment);
    store.transaction(|store| {
        let list = List::read_of(store, hop)?;
        if !list.is_connected() {
            return Ok(false);
        }
        change_states(store, hop, &list, bdfs, |state| match state {
            Initialised => Some(Closing),
            // The stub has never seen this device.
            Initialising => Some(Closed),
            _ => None,
        })?;
        // The state changes only if the guest has something to do: else both ends would wait for it.
        if list.has_any(bdfs) {
            set_state(store, hop, Reconfiguring)?;
        }
        Ok(true)
    })
}

/// Withdraws a change of these devices that the guest has not seen. Returns false, and changes nothing, if there is
/// none, or the guest has seen it.
///
/// A guest that sees it at this very moment goes to Reconfiguring all the same. The stub answers that, and the guest
/// finds again what it has let go of.
pub fn withdraw(store: &mut Store, attachment: &Attachment, bdfs: &[Bdf]) -> Result<bool, StoreError> {
    use XenbusState::{Closed, Closing, Connected, Initialised, Initialising, Reconfiguring};
    let hop = first_hop(attachment);
    store.transaction(|store| {
        let list = List::read_of(store, hop)?;
        if (list.backend, list.guest) != (Reconfiguring, Connected) {
            return Ok(false);
        }
        change_states(store, hop, &list, bdfs, |state| match state {
            Initialising => Some(Closed),
            Closing => Some(Initialised),
            _ => None,
        })?;
        set_state(store, hop, Connected)?;
        Ok(true)
    })
}

/// Removes all devices from both lists that the attachment does not name, and closes the gaps.
pub fn strike(store: &mut Store, kept: &Attachment) -> Result<(), StoreError> {
    let hop = first_hop(kept);
    let stays = |entry: &Entry| kept.bdfs().any(|bdf| entry.bdf == Some(bdf));
    store.transaction(|store| {
        if length(store, hop)?.is_some() {
            let list = List::read_of(store, hop)?;
            let numbers = 0..list.entries.len();
            let stay: Vec<usize> = numbers.filter(|&number| stays(&list.entries[number])).collect();
            // `to` is never above `from`, so no node is overwritten before it was read.
            for (to, from) in stay.iter().copied().enumerate() {
                for key in FIRST.into_iter().filter(|_| to != from) {
                    let (to, from) = (hop.backend_node(&key.at(to)), hop.backend_node(&key.at(from)));
                    match store.read_optional(&from)? {
                        Some(value) => store.write(&to, &value)?,
                        None => store.remove(&to)?,
                    }
                }
            }
            remove_numbers(store, hop, &FIRST, stay.len()..list.entries.len())?;
            write_length(store, hop, stay.len())?;
        }
        write_second(store, kept)
    })
}

type Transacted<'a> = Transaction<'a, Stream>;

/// Writes the list of the second hop, if there is one.
fn write_second(store: &mut Transacted<'_>, attachment: &Attachment) -> Result<(), StoreError> {
    let hop = Hop::second_hop(attachment.stub.domid);
    let Some(before) = length(store, hop)? else {
        return Ok(());
    };
    for (number, device) in attachment.devices.iter().enumerate() {
        for (key, value) in of_second(number, device) {
            let node = hop.backend_node(&key);
            match value {
                Some(value) => store.write(&node, &value)?,
                // The device that had this number before may have had other terms.
                None => store.remove(&node)?,
            }
        }
    }
    remove_numbers(store, hop, &SECOND, attachment.devices.len()..before)?;
    write_length(store, hop, attachment.devices.len())
}

/// The length of a hop's list; `None` if there is no such hop.
fn length(store: &mut Transacted<'_>, hop: Hop) -> Result<Option<usize>, StoreError> {
    let text = store.read_optional(&hop.backend_node(key::NUM_DEVS))?;
    // The stub owns the first hop's node, and may write any number.
    Ok(text.map(|text| text.parse().unwrap_or(0).min(LONGEST)))
}

fn write_length(store: &mut Transacted<'_>, hop: Hop, length: usize) -> Result<(), StoreError> {
    store.write(&hop.backend_node(key::NUM_DEVS), &length.to_string())
}

fn remove_numbers(
    store: &mut Transacted<'_>,
    hop: Hop,
    keys: &[Numbered],
    numbers: Range<usize>,
) -> Result<(), StoreError> {
    for number in numbers {
        for key in keys {
            store.remove(&hop.backend_node(&key.at(number)))?;
        }
    }
    Ok(())
}

/// Sets the state of each of these devices to what `next` returns for it, if anything.
fn change_states(
    store: &mut Transacted<'_>,
    hop: Hop,
    list: &List,
    bdfs: &[Bdf],
    next: impl Fn(XenbusState) -> Option<XenbusState>,
) -> Result<(), StoreError> {
    for (number, entry) in list.entries.iter().enumerate() {
        let named = entry.bdf.is_some_and(|bdf| bdfs.contains(&bdf));
        if let Some(state) = next(entry.state).filter(|_| named) {
            store.write(&hop.backend_node(&Numbered::State.at(number)), state.as_str())?;
        }
    }
    Ok(())
}

fn set_state(store: &mut Transacted<'_>, hop: Hop, state: XenbusState) -> Result<(), StoreError> {
    store.write(&hop.backend_node(key::STATE), state.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::{connect, dom0};
    use crate::nodes::hops;
    use crate::records::tests::{attachment, device};
    use XenbusState::*;
    use xenbus::model::Xenstored;
    use xenbus::path::DeviceType;

    const FIRST_HOP: &str = "/local/domain/4/backend/pci/3/0";
    const SECOND_HOP: &str = "/local/domain/0/backend/bulkhead/4/0";

    /// A guest that is connected with devices 05.0 and 06.0, exported in slots 0 and 1.
    fn connected() -> (Xenstored, Store) {
        let daemon = Xenstored::new();
        daemon.introduce(3);
        daemon.introduce(4);
        let mut store = dom0(&daemon);
        hops::HopNodes::second(&attachment()).write(&mut store).unwrap();
        hops::HopNodes::first(&attachment()).write(&mut store).unwrap();
        let mut stub = connect(&daemon, 4);
        for (key, value) in [
            ("vdev-0", "0000:00:00.00"),
            ("vdev-1", "0000:00:01.00"),
            ("state-0", "3"),
            ("state-1", "3"),
            ("root-0", "0000:00"),
            ("root_num", "1"),
        ] {
            stub.write(&format!("{FIRST_HOP}/{key}"), value).unwrap();
        }
        states(&daemon, Connected, Connected);
        (daemon, store)
    }

    fn states(daemon: &Xenstored, backend: XenbusState, guest: XenbusState) {
        let (own, peer) = (format!("{FIRST_HOP}/state"), "/local/domain/3/device/pci/0/state");
        connect(daemon, 4).write(&own, backend.as_str()).unwrap();
        connect(daemon, 3).write(peer, guest.as_str()).unwrap();
    }

    /// All numbered nodes below a directory, and the length and state.
    fn listing(store: &mut Store, directory: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for key in store.directory(directory).unwrap() {
            let listed = key.contains('-') && !key.starts_with("frontend") && !key.starts_with("bars");
            if listed || key == "num_devs" || key == "state" {
                let value = store.read(&format!("{directory}/{key}")).unwrap();
                lines.push(format!("{key}={value}"));
            }
        }
        lines.sort();
        lines
    }

    fn list(store: &mut Store) -> Vec<String> {
        let list = List::read(store, &attachment()).unwrap();
        let entry = |entry: &Entry| {
            let bdf = entry
                .bdf
                .map_or("?".into(), |bdf| bdf.to_string()[5..].to_owned());
            format!("{bdf} {:?}", entry.state)
        };
        list.entries.iter().map(entry).collect()
    }

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    #[test]
    fn a_device_is_added_to_both_lists_as_libxl_does_and_the_state_comes_with_it() {
        let (daemon, mut store) = connected();
        let grown = attachment().with(vec![device("00:07.0")]);
        assert!(add(&mut store, &grown, &grown.devices[2..]).unwrap());
        assert_eq!(
            listing(&mut store, FIRST_HOP),
            [
                "dev-0=0000:00:05.0",
                "dev-1=0000:00:06.0",
                "dev-2=0000:00:07.0",
                "key-0=0000:00:05.0",
                "key-1=0000:00:06.0",
                "key-2=0000:00:07.0",
                "num_devs=3",
                "root-0=0000:00",
                "state-0=3",
                "state-1=3",
                "state-2=1",
                "state=7",
                "vdev-0=0000:00:00.00",
                "vdev-1=0000:00:01.00",
            ]
        );
        let second = listing(&mut store, SECOND_HOP);
        for line in [
            "dev-2=0000:00:07.0",
            "ids-2=8086:10d3",
            "irq-2=20",
            "num_devs=3",
            "state=1",
        ] {
            assert!(second.contains(&line.to_owned()), "{line} in {second:?}");
        }
        // The guest reads it, the stub writes it.
        assert_eq!(
            connect(&daemon, 3).read(&format!("{FIRST_HOP}/state-2")).unwrap(),
            "1"
        );
        connect(&daemon, 4)
            .write(&format!("{FIRST_HOP}/state-2"), "3")
            .unwrap();
        assert_eq!(
            connect(&daemon, 4).read(&format!("{SECOND_HOP}/dev-2")).unwrap(),
            "0000:00:07.0"
        );
    }

    #[test]
    fn one_change_comes_after_another() {
        let grown = attachment().with(vec![device("00:07.0")]);
        let five = bdf("00:05.0");
        for backend in [
            Initialised,
            Connected,
            Closing,
            Reconfiguring,
            Reconfigured,
            Unknown,
        ] {
            for guest in [Initialising, Initialised, Connected, Closed, Reconfiguring] {
                if (backend, guest) == (Connected, Connected) {
                    continue;
                }
                let (daemon, mut store) = connected();
                states(&daemon, backend, guest);
                let before = listing(&mut store, FIRST_HOP);
                assert!(!add(&mut store, &grown, &grown.devices[2..]).unwrap());
                assert!(!ask_back(&mut store, &attachment(), &[five]).unwrap());
                assert_eq!(listing(&mut store, FIRST_HOP), before);
            }
        }
    }

    #[test]
    fn only_what_the_guest_has_is_asked_back() {
        let (daemon, mut store) = connected();
        let bdfs = [bdf("00:05.0"), bdf("00:09.0")];
        assert!(ask_back(&mut store, &attachment(), &bdfs).unwrap());
        assert_eq!(list(&mut store), ["00:05.0 Closing", "00:06.0 Initialised"]);
        assert_eq!(store.read(&format!("{FIRST_HOP}/state")).unwrap(), "7");

        // The stub has followed; what is not exported needs no handshake.
        let mut stub = connect(&daemon, 4);
        stub.write(&format!("{FIRST_HOP}/state-0"), "6").unwrap();
        stub.write(&format!("{FIRST_HOP}/state-1"), "1").unwrap();
        states(&daemon, Connected, Connected);
        assert!(ask_back(&mut store, &attachment(), &[bdf("00:05.0"), bdf("00:06.0")]).unwrap());
        assert_eq!(list(&mut store), ["00:05.0 Closed", "00:06.0 Closed"]);
        assert_eq!(store.read(&format!("{FIRST_HOP}/state")).unwrap(), "4");
    }

    #[test]
    fn a_change_is_withdrawn_only_before_the_guest_has_looked() {
        let grown = attachment().with(vec![device("00:07.0")]);
        let (daemon, mut store) = connected();
        let seven = [bdf("00:07.0")];
        assert!(
            !withdraw(&mut store, &grown, &seven).unwrap(),
            "there is no change"
        );
        add(&mut store, &grown, &grown.devices[2..]).unwrap();
        assert!(withdraw(&mut store, &grown, &seven).unwrap());
        let entries = ["00:05.0 Initialised", "00:06.0 Initialised", "00:07.0 Closed"];
        assert_eq!(list(&mut store), entries);
        assert!(List::read(&mut store, &grown).unwrap().is_connected());

        ask_back(&mut store, &grown, &[bdf("00:06.0")]).unwrap();
        assert!(withdraw(&mut store, &grown, &[bdf("00:06.0")]).unwrap());
        assert_eq!(list(&mut store), entries);

        ask_back(&mut store, &grown, &[bdf("00:06.0")]).unwrap();
        states(&daemon, Reconfiguring, Reconfiguring);
        assert!(!withdraw(&mut store, &grown, &[bdf("00:06.0")]).unwrap());
    }

    #[test]
    fn the_gaps_are_closed_and_each_device_keeps_what_is_its_own() {
        let (daemon, mut store) = connected();
        let grown = attachment().with(vec![device("00:07.0")]);
        add(&mut store, &grown, &grown.devices[2..]).unwrap();
        let mut stub = connect(&daemon, 4);
        for (key, value) in [("state-2", "6"), ("error-2", "-22 why"), ("state-0", "6")] {
            stub.write(&format!("{FIRST_HOP}/{key}"), value).unwrap();
        }
        strike(&mut store, &grown.without(&[bdf("00:05.0")])).unwrap();
        assert_eq!(
            listing(&mut store, FIRST_HOP),
            [
                "dev-0=0000:00:06.0",
                "dev-1=0000:00:07.0",
                "error-1=-22 why",
                "key-0=0000:00:06.0",
                "key-1=0000:00:07.0",
                "num_devs=2",
                "root-0=0000:00",
                "state-0=3",
                "state-1=6",
                "state=7",
                "vdev-0=0000:00:01.00",
            ]
        );
        strike(&mut store, &grown.without(&[bdf("00:05.0"), bdf("00:07.0")])).unwrap();
        assert_eq!(
            listing(&mut store, FIRST_HOP),
            [
                "dev-0=0000:00:06.0",
                "key-0=0000:00:06.0",
                "num_devs=1",
                "root-0=0000:00",
                "state-0=3",
                "state=7",
                "vdev-0=0000:00:01.00",
            ]
        );
        let mut stub = connect(&daemon, 4);
        stub.write(&format!("{FIRST_HOP}/vdev-0"), "0000:00:01.00")
            .unwrap();
        assert_eq!(
            connect(&daemon, 3).read(&format!("{FIRST_HOP}/dev-0")).unwrap(),
            "0000:00:06.0"
        );
        let second = listing(&mut store, SECOND_HOP);
        assert_eq!(
            second,
            [
                "dev-0=0000:00:06.0",
                "ecam-0=b0028",
                "ids-0=8086:10d3",
                "intx-0=0",
                "irq-0=0",
                "num_devs=1",
                "state=1"
            ]
        );
    }

    #[test]
    fn the_terms_of_a_device_move_along_with_its_number() {
        let (_, mut store) = connected();
        let mut odd = device("00:07.0");
        odd.terms = crate::terms::tests::unusual();
        let grown = attachment().with(vec![odd, device("00:08.0")]);
        add(&mut store, &grown, &grown.devices[2..]).unwrap();
        let terms = |store: &mut Store| {
            let mut terms = listing(store, SECOND_HOP);
            terms.retain(|line| {
                ["permissive", "quirks", "msi"]
                    .iter()
                    .any(|key| line.starts_with(key))
            });
            terms
        };
        assert_eq!(
            terms(&mut store),
            ["msi-2=0", "permissive-2=1", "quirks-2=44:2:ff;60:1:1"]
        );
        let left = grown.without(&[bdf("00:05.0")]);
        strike(&mut store, &left).unwrap();
        assert_eq!(
            terms(&mut store),
            ["msi-1=0", "permissive-1=1", "quirks-1=44:2:ff;60:1:1"]
        );
        strike(&mut store, &left.without(&[bdf("00:07.0")])).unwrap();
        assert_eq!(terms(&mut store), [""; 0]);
    }

    #[test]
    fn lists_that_are_gone_are_passed_over_and_not_made_again() {
        let (_, mut store) = connected();
        store.remove(FIRST_HOP).unwrap();
        store.remove(SECOND_HOP).unwrap();
        strike(&mut store, &attachment().without(&[bdf("00:05.0")])).unwrap();
        assert!(
            store
                .directory(&DeviceType::Bulkhead.backends(0))
                .unwrap_or_default()
                .len()
                <= 1
        );
        assert!(
            store
                .read_optional(&format!("{FIRST_HOP}/num_devs"))
                .unwrap()
                .is_none()
        );
        assert!(
            store
                .read_optional(&format!("{SECOND_HOP}/num_devs"))
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn what_a_stub_writes_into_its_list_costs_dom0_no_more_than_a_bus_full() {
        let (daemon, mut store) = connected();
        for length in ["4294967295", "18446744073709551616", "-1", "x"] {
            let mut stub = connect(&daemon, 4);
            stub.write(&format!("{FIRST_HOP}/num_devs"), length).unwrap();
            assert!(list(&mut store).len() <= LONGEST);
        }
        let mut stub = connect(&daemon, 4);
        stub.write(&format!("{FIRST_HOP}/num_devs"), "2").unwrap();
        stub.write(&format!("{FIRST_HOP}/dev-0"), "nonsense").unwrap();
        stub.write(&format!("{FIRST_HOP}/state-1"), "nonsense").unwrap();
        assert_eq!(list(&mut store), ["? Initialised", "00:06.0 Unknown"]);
    }
}
