//! The guest's list of devices: the numbered nodes in the backend's directory of the first hop.
//!
//! The toolstack adds a device with state Initialising, and asks for one back with Closing. The stub answers with
//! Initialised and the device's guest address, or with Closed: the device is not, or no longer, exported.

use crate::error::{Blame, SetupError};
use crate::hops::second::SecondHop;
use crate::policy::engine::MAX_FUNCTIONS;
use crate::policy::resources::Resources;
use crate::policy::slots::bus_of;
use crate::store::{self, Nodes};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use pci::bdf::Bdf;
use xenbus::client::{Client, TRANSACTION_TRIES, Transport};
use xenbus::device::SlotMode;
use xenbus::path::{Device, Numbered, key};
use xenbus::pciif::SharedPage;
use xenbus::state::XenbusState;

/// Most roots that are read: one for each bus of a segment.
const MAX_ROOTS: usize = 256;

/// What becomes of a device of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The guest has it.
    Exported {
        /// Its address there.
        guest_bdf: Bdf,
        /// Its bus is to be listed as a root, where pcifront looks for devices.
        root: bool,
    },
    /// The guest has let go of it, and it is exported no more.
    Removed,
    /// It is not exported, for this reason.
    Refused(Box<SetupError>),
}

/// A [`Change`] of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number in the list.
    pub number: usize,
    /// Its real address; `None` if the node with that is bad.
    pub bdf: Option<Bdf>,
    /// What becomes of it.
    pub change: Change,
}

/// A device of the list. What is wrong with it is an error of that device alone.
#[derive(Clone, Debug)]
pub struct ListedDevice {
    /// Its number in the list.
    pub number: usize,
    /// Its state.
    pub state: XenbusState,
    /// Its real address.
    pub bdf: Result<Bdf, Box<SetupError>>,
    /// Its guest address, as an earlier run of this stub has published it.
    pub guest_bdf: Result<Bdf, Box<SetupError>>,
    /// What dom0's service says about it.
    pub resources: Result<Resources, Box<SetupError>>,
}

/// Reads both lists as they are at one moment: the slot mode, and the devices in a state that is `wanted`.
///
/// In one transaction: the toolstack renumbers both lists in one change. Read one node after the other, a device would
/// get the guest address or the resources of another.
///
/// # Errors
/// A list without a sound length, or xenstore's.
pub fn read<T: Transport, Page: SharedPage>(
    client: &mut Client<T>,
    device: Device,
    second: &SecondHop<Page>,
    wanted: fn(XenbusState) -> bool,
) -> Result<(SlotMode, Vec<ListedDevice>), Box<SetupError>> {
    client.transaction_or(TRANSACTION_TRIES, |store| {
        let store: &mut dyn Nodes = store;
        let served = second.list(store)?;
        let mode = second.slots(store)?;
        let mut all = Vec::new();
        for number in 0..count(store, device)? {
            // First, for most changes concern one device: the others cost one request each.
            let state = store::state(store, &device.backend_node(&Numbered::State.at(number)))?;
            if !wanted(state) {
                continue;
            }
            let bdf = of_device(address(store, device, number))?;
            let guest_bdf = of_device(guest_bdf(store, device, number))?;
            let resources = match &bdf {
                Ok(bdf) => {
                    let served = served.number_of(*bdf);
                    of_device(served.and_then(|number| second.resources(store, *bdf, number)))?
                }
                Err(error) => Err(error.clone()),
            };
            all.push(ListedDevice {
                number,
                state,
                bdf,
                guest_bdf,
                resources,
            });
        }
        Ok((mode, all))
    })
}

/// Separates an error of one device (inner result) from a failure of xenstore (outer result), which says nothing about
/// the device.
fn of_device<R>(result: Result<R, Box<SetupError>>) -> Result<Result<R, Box<SetupError>>, Box<SetupError>> {
    match result {
        Err(error) if error.is_of_store() => Err(error),
        result => Ok(result),
    }
}

/// How many devices the list has: at least one.
///
/// # Errors
/// A missing or bad node, blamed on the toolstack, or [`SetupError::Store`].
fn count(store: &mut dyn Nodes, device: Device) -> Result<usize, Box<SetupError>> {
    let count = node(store, device, key::NUM_DEVS, "a number from 1 to 256", |text| {
        store::decimal(text).filter(|&count| (1..=MAX_FUNCTIONS as u32).contains(&count))
    })?;
    Ok(count as usize)
}

/// The real address of device `number`.
fn address(store: &mut dyn Nodes, device: Device, number: usize) -> Result<Bdf, Box<SetupError>> {
    let key = Numbered::Device.at(number);
    node(store, device, &key, "SSSS:BB:DD.F", |text| text.parse().ok())
}

fn guest_bdf(store: &mut dyn Nodes, device: Device, number: usize) -> Result<Bdf, Box<SetupError>> {
    let key = Numbered::VirtualDevice.at(number);
    let expected = "SSSS:BB:DD.FF, or take the device off its list";
    node(store, device, &key, expected, |text| text.parse().ok())
}

/// Publishes what has become of devices, all at one moment.
///
/// Publishes nothing and returns false if the list has been renumbered since it was read: if a device of `entries` has
/// another number, or one of `exported`, whose nodes stay as they are, another number or guest address.
///
/// # Errors
/// [`SetupError::Store`] or [`SetupError::StoreLost`].
pub fn publish<T: Transport>(
    client: &mut Client<T>,
    device: Device,
    entries: &[Entry],
    exported: &[(usize, Bdf, Bdf)],
) -> Result<bool, Box<SetupError>> {
    // Made before the transaction, whose body runs again where another writer comes first.
    let plan: Vec<_> = entries.iter().map(|entry| (entry, nodes(entry))).collect();
    client.transaction_or(TRANSACTION_TRIES, |store| {
        let store: &mut dyn Nodes = store;
        let mut is_at = |key: Numbered, number, bdf| -> Result<bool, Box<SetupError>> {
            let text = store.get(&device.backend_node(&key.at(number)))?;
            Ok(text.and_then(|text| text.parse::<Bdf>().ok()) == bdf)
        };
        for entry in entries {
            if !is_at(Numbered::Device, entry.number, entry.bdf)? {
                return Ok(false);
            }
        }
        for &(number, bdf, guest_bdf) in exported {
            if !is_at(Numbered::Device, number, Some(bdf))?
                || !is_at(Numbered::VirtualDevice, number, Some(guest_bdf))?
            {
                return Ok(false);
            }
        }
        // Nothing is written before all is checked: an early return commits what was written.
        let mut added = Vec::new();
        for (entry, nodes) in &plan {
            for (key, value) in nodes {
                store.set(&device.backend_node(key), value)?;
            }
            if let Change::Exported {
                guest_bdf,
                root: true,
            } = entry.change
            {
                added.push(root(guest_bdf));
            }
        }
        publish_roots(store, device, added)?;
        Ok(true)
    })
}

/// Appends the roots that are not in the list yet. None is ever removed, as with xen-pciback: the guest keeps its buses.
fn publish_roots(store: &mut dyn Nodes, device: Device, added: Vec<String>) -> Result<(), Box<SetupError>> {
    let node = |key: &str| device.backend_node(key);
    // Missing until the first device is exported. Garbage counts as none: the node is the stub's own.
    let count = store.get(&node(key::ROOT_NUM))?;
    let count = count.and_then(|text| store::decimal(&text)).unwrap_or(0);
    let mut roots = Vec::new();
    for number in 0..(count as usize).min(MAX_ROOTS) {
        let known = store.get(&node(&Numbered::Root.at(number)))?;
        roots.push(known.unwrap_or_default());
    }
    for root in added {
        if !roots.contains(&root) {
            store.set(&node(&Numbered::Root.at(roots.len())), &root)?;
            roots.push(root);
        }
    }
    store.set(&node(key::ROOT_NUM), &roots.len().to_string())
}

/// The root of a function at this guest address: segment and bus.
fn root(guest_bdf: Bdf) -> String {
    let (segment, bus) = bus_of(guest_bdf);
    format!("{segment:04x}:{bus:02x}")
}

/// Keys and values of the nodes that publish a change.
fn nodes(entry: &Entry) -> Vec<(String, String)> {
    let at = |key: Numbered| key.at(entry.number);
    let state = |state: XenbusState| (at(Numbered::State), state.as_str().to_string());
    match &entry.change {
        Change::Exported { guest_bdf, .. } => Vec::from([
            (at(Numbered::VirtualDevice), virtual_address(*guest_bdf)),
            state(XenbusState::Initialised),
        ]),
        Change::Removed => Vec::from([state(XenbusState::Closed)]),
        Change::Refused(error) => Vec::from([
            (at(Numbered::Error), store::error_text(error)),
            state(XenbusState::Closed),
        ]),
    }
}

fn node<R>(
    store: &mut dyn Nodes,
    device: Device,
    key: &str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<R>,
) -> Result<R, Box<SetupError>> {
    let path = device.backend_node(key);
    store::value(store, &path, Blame::Toolstack, expected, parse)
}

/// A function's address as pciback writes it into `vdev-N`: two digits for the function.
fn virtual_address(guest_bdf: Bdf) -> String {
    format!(
        "{:04x}:{:02x}:{:02x}.{:02x}",
        guest_bdf.segment(),
        guest_bdf.bus(),
        guest_bdf.device(),
        guest_bdf.function()
    )
}
