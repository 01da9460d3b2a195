//! The guest's list of devices: the numbered nodes in our directory of the first hop.
//!
//! The toolstack adds a device with state Initialising and asks for one back with Closing. We answer with
//! Initialised and the device's place on the guest's bus, or with Closed: it is not, or not any more, exported.

use super::engine::MAX_FUNCTIONS;
use super::slots::bus_of;
use crate::error::{Blame, SetupError};
use crate::store;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use xenbus::bdf::Bdf;
use xenbus::client::{Client, Store, Transport};
use xenbus::path::{Device, Numbered, key};
use xenbus::state::XenbusState;

/// Most roots that are looked at: a segment full of buses. Only ours stand there.
const MAX_ROOTS: usize = 256;

/// What becomes of a device of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The guest has it.
    Exported {
        /// Its address there.
        place: Bdf,
        /// The guest is to look for its bus among the roots.
        root: bool,
    },
    /// The guest has let go of it.
    Removed,
    /// It is not exported, and this is why.
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

/// How many devices the list has: at least one.
///
/// # Errors
/// A missing or bad node, blamed on the toolstack, or [`SetupError::Store`].
pub fn count(store: &mut impl Store, device: Device) -> Result<usize, Box<SetupError>> {
    let count = node(store, device, key::NUM_DEVS, "a number from 1 to 256", |text| {
        store::decimal(text).filter(|&count| (1..=MAX_FUNCTIONS as u32).contains(&count))
    })?;
    Ok(count as usize)
}

/// The real address of device `number`.
///
/// # Errors
/// As [`count`].
pub fn address(store: &mut impl Store, device: Device, number: usize) -> Result<Bdf, Box<SetupError>> {
    let key = Numbered::Device.at(number);
    node(store, device, &key, "SSSS:BB:DD.F", |text| text.parse().ok())
}

/// Where device `number` stands on the guest's bus, as an earlier life of this stub has published it.
///
/// # Errors
/// As [`count`].
pub fn place(store: &mut impl Store, device: Device, number: usize) -> Result<Bdf, Box<SetupError>> {
    let key = Numbered::VirtualDevice.at(number);
    let expected = "SSSS:BB:DD.FF, or take the device off its list";
    node(store, device, &key, expected, |text| text.parse().ok())
}

/// The state of device `number`.
///
/// # Errors
/// As [`store::read`].
pub fn state(store: &mut impl Store, device: Device, number: usize) -> Result<XenbusState, Box<SetupError>> {
    store::state(store, &device.backend_node(&Numbered::State.at(number)))
}

/// Publishes what has become of devices, all at one moment. Returns those that the toolstack has taken off the
/// list meanwhile: they must not be exported.
///
/// # Errors
/// [`SetupError::Store`] or [`SetupError::StoreLost`].
pub fn publish<T: Transport>(
    client: &mut Client<T>,
    device: Device,
    entries: &[Entry],
) -> Result<Vec<Bdf>, Box<SetupError>> {
    let plan: Vec<_> = entries.iter().map(|entry| (entry, nodes(entry))).collect();
    let withdrawn = client.transaction(|store| {
        let mut withdrawn = Vec::new();
        let mut added = Vec::new();
        for (entry, nodes) in &plan {
            if let Some(bdf) = entry.bdf {
                let number = Numbered::Device.at(entry.number);
                let listed = store.read_optional(&device.backend_node(&number))?;
                if listed.and_then(|text| text.parse().ok()) != Some(bdf) {
                    if matches!(entry.change, Change::Exported { .. }) {
                        withdrawn.push(bdf);
                    }
                    continue;
                }
            }
            for (key, value) in nodes {
                store.write(&device.backend_node(key), value)?;
            }
            if let Change::Exported { place, root: true } = entry.change {
                added.push(root(place));
            }
        }
        publish_roots(store, device, added)?;
        Ok(withdrawn)
    });
    withdrawn.map_err(store::failed)
}

/// Appends the roots that are not in the list yet. As with xen-pciback, none ever leaves it: the guest keeps its buses.
fn publish_roots<S: Store>(
    store: &mut S,
    device: Device,
    added: Vec<String>,
) -> Result<(), xenbus::client::Error<S::TransportError>> {
    let node = |key: &str| device.backend_node(key);
    let count = store.read_optional(&node(key::ROOT_NUM))?;
    let count = count.and_then(|text| store::decimal(&text)).unwrap_or(0);
    let mut roots = Vec::new();
    for number in 0..(count as usize).min(MAX_ROOTS) {
        let known = store.read_optional(&node(&Numbered::Root.at(number)))?;
        roots.push(known.unwrap_or_default());
    }
    for root in added {
        if !roots.contains(&root) {
            store.write(&node(&Numbered::Root.at(roots.len())), &root)?;
            roots.push(root);
        }
    }
    store.write(&node(key::ROOT_NUM), &roots.len().to_string())
}

/// The root that a guest finds a function at this place below: its segment and bus.
fn root(place: Bdf) -> String {
    let (segment, bus) = bus_of(place);
    format!("{segment:04x}:{bus:02x}")
}

/// Key and value of the nodes that tell of a change.
fn nodes(entry: &Entry) -> Vec<(String, String)> {
    let at = |key: Numbered| key.at(entry.number);
    let state = |state: XenbusState| (at(Numbered::State), state.as_str().to_string());
    match &entry.change {
        Change::Exported { place, .. } => Vec::from([
            (at(Numbered::VirtualDevice), virtual_address(*place)),
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
    store: &mut impl Store,
    device: Device,
    key: &str,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Option<R>,
) -> Result<R, Box<SetupError>> {
    let path = device.backend_node(key);
    store::value(store, &path, Blame::Toolstack, expected, parse)
}

/// A function's address as pciback writes it into `vdev-N`: two digits for the function.
fn virtual_address(place: Bdf) -> String {
    format!(
        "{:04x}:{:02x}:{:02x}.{:02x}",
        place.segment(),
        place.bus(),
        place.device(),
        place.function()
    )
}
