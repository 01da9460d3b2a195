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
use alloc::string::String;
use alloc::vec::Vec;
use pci::bdf::Bdf;
use xenbus::client::{Client, Transport};
use xenbus::device::SlotMode;
use xenbus::path::{Device, Numbered, key};
use xenbus::pciif::SharedPage;
use xenbus::state::XenbusState;

/// What an address in the guest should look like.
const GUEST_BDF: &str = "SSSS:BB:DD.FF, or take the device off its list";

/// Most roots that are read: one for each bus of a segment.
const MAX_ROOTS: usize = 256;

/// What becomes of a device of the list.
#[derive(Debug, PartialEq, Eq)]
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
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number in the list.
    pub number: usize,
    /// Its real address; `None` if the node with that is bad.
    pub bdf: Option<Bdf>,
    /// What becomes of it.
    pub change: Change,
}

/// A device of the list. What is wrong with it is an error of that device alone.
#[derive(Debug)]
pub struct ListedDevice {
    /// Its number in the list.
    pub number: usize,
    /// Its state.
    pub state: XenbusState,
    /// Its real address; `None` if the node with that is bad.
    pub bdf: Option<Bdf>,
    /// Its guest address, as an earlier run of this stub has published it.
    pub guest_bdf: Result<Bdf, Box<SetupError>>,
    /// What dom0's service says about it, or what is wrong with its address.
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
    let mut mode = SlotMode::default();
    let mut all = Vec::new();
    store::transaction(client, &mut |store| {
        let listed = second.list(store)?;
        mode = second.slots(store)?;
        all.clear();
        for number in 0..count(store, device)? {
            // First, for most changes concern one device: the others cost one request each.
            let state = store::state(store, &device.numbered_node(Numbered::State, number))?;
            if !wanted(state) {
                continue;
            }
            let bdf = address(store, device.numbered_node(Numbered::Device, number), store::BDF)?;
            let guest_bdf = address(
                store,
                device.numbered_node(Numbered::VirtualDevice, number),
                GUEST_BDF,
            )?;
            let (bdf, resources) = match bdf {
                Ok(bdf) => {
                    let resources = second.resources(store, &listed, bdf);
                    (Some(bdf), of_device(resources)?)
                }
                Err(error) => (None, Err(error)),
            };
            all.push(ListedDevice {
                number,
                state,
                bdf,
                guest_bdf,
                resources,
            });
        }
        Ok(())
    })?;
    Ok((mode, all))
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

/// The address of a function, from a node of the list. A bad one is an error of that device alone.
fn address(
    store: &mut dyn Nodes,
    path: String,
    expected: &'static str,
) -> Result<Result<Bdf, Box<SetupError>>, Box<SetupError>> {
    of_device(store::address(store, &path, expected))
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
    let mut plan = Vec::new();
    for entry in entries {
        plan_nodes(device, entry, &mut plan);
    }
    let mut published = false;
    store::transaction(client, &mut |store| {
        published = false;
        let mut is_at = |key: Numbered, number, bdf| -> Result<bool, Box<SetupError>> {
            let text = store.get(&device.numbered_node(key, number))?;
            Ok(text.and_then(|text| text.parse::<Bdf>().ok()) == bdf)
        };
        for entry in entries {
            if !is_at(Numbered::Device, entry.number, entry.bdf)? {
                return Ok(());
            }
        }
        for &(number, bdf, guest_bdf) in exported {
            if !is_at(Numbered::Device, number, Some(bdf))?
                || !is_at(Numbered::VirtualDevice, number, Some(guest_bdf))?
            {
                return Ok(());
            }
        }
        // Nothing is written before all is checked: an early return commits what was written.
        for (path, value) in &plan {
            store.set(path, value)?;
        }
        publish_roots(store, device, entries)?;
        published = true;
        Ok(())
    })?;
    Ok(published)
}

/// Appends the roots that are not in the list yet. None is ever removed, as with xen-pciback: the guest keeps its buses.
fn publish_roots(store: &mut dyn Nodes, device: Device, entries: &[Entry]) -> Result<(), Box<SetupError>> {
    let root_num = device.backend_node(key::ROOT_NUM);
    // Missing until the first device is exported. Garbage counts as none: the node is the stub's own.
    let count = store.get(&root_num)?;
    let count = count.and_then(|text| store::decimal(&text)).unwrap_or(0);
    let mut roots = Vec::new();
    for number in 0..(count as usize).min(MAX_ROOTS) {
        let known = store.get(&device.numbered_node(Numbered::Root, number))?;
        roots.push(known.unwrap_or_default());
    }
    for entry in entries {
        let Change::Exported {
            guest_bdf,
            root: true,
        } = entry.change
        else {
            continue;
        };
        let root = root(guest_bdf);
        if !roots.contains(&root) {
            store.set(&device.numbered_node(Numbered::Root, roots.len()), &root)?;
            roots.push(root);
        }
    }
    store.set(&root_num, &format!("{}", roots.len()))
}

/// The root of a function at this guest address: segment and bus.
fn root(guest_bdf: Bdf) -> String {
    let (segment, bus) = bus_of(guest_bdf);
    format!("{segment:04x}:{bus:02x}")
}

/// Appends paths and values of the nodes that publish a change.
fn plan_nodes(device: Device, entry: &Entry, plan: &mut Vec<(String, String)>) {
    let mut set = |key, value| plan.push((device.numbered_node(key, entry.number), value));
    let state = match &entry.change {
        Change::Exported { guest_bdf, .. } => {
            set(Numbered::VirtualDevice, virtual_address(*guest_bdf));
            XenbusState::Initialised
        }
        Change::Removed => XenbusState::Closed,
        Change::Refused(error) => {
            set(Numbered::Error, store::error_text(error));
            XenbusState::Closed
        }
    };
    set(Numbered::State, String::from(state.as_str()));
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
