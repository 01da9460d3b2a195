//! Hotplug as the other ends do it: the toolstack's changes of the list, and Linux' pcifront.

use super::device::Device;
use super::host::Host;
use pci::bdf::Bdf;
use std::collections::BTreeMap;
use xenbus::path::{Numbered, key};
use xenbus::pciif::Request;
use xenbus::state::XenbusState::{self, *};

/// The numbered nodes of one device of the second hop.
const SECOND: [Numbered; 6] = [
    Numbered::Device,
    Numbered::Ids,
    Numbered::Ecam,
    Numbered::Bars,
    Numbered::Irq,
    Numbered::Intx,
];

/// The numbered nodes of one device of the first hop.
const NODES: [Numbered; 5] = [
    Numbered::Key,
    Numbered::Device,
    Numbered::VirtualDevice,
    Numbered::State,
    Numbered::Error,
];

impl Host {
    /// The guest is connected, with these devices, and has looked at its bus.
    pub fn running(devices: &[&str]) -> Self {
        let mut host = Self::idle();
        host.attach_second(devices);
        host.attach_first(devices);
        host.start();
        host.settle();
        host.guest.publish();
        host.settle();
        host.guest.set_state(Connected);
        host.scan();
        host
    }

    /// The toolstack adds devices, all in one change.
    pub fn plug(&mut self, devices: &[&str]) {
        let listed = self.listed();
        let all: Vec<&str> = listed
            .iter()
            .map(String::as_str)
            .chain(devices.iter().copied())
            .collect();
        self.list_second(&all);
        self.extend_first(devices);
    }

    /// The part of [`Self::plug`] that the first hop sees.
    pub fn extend_first(&mut self, devices: &[&str]) {
        let first = self.first;
        let count = self.count();
        let hop = |key: &str| first.backend_node(key);
        let nodes = devices.iter().enumerate().flat_map(|(index, device)| {
            let number = count + index;
            let own = [
                (Numbered::Key, *device),
                (Numbered::Device, *device),
                (Numbered::State, "1"),
            ];
            own.map(|(key, value)| (hop(&key.at(number)), value.to_owned()))
        });
        let rest = [
            (hop(key::NUM_DEVS), (count + devices.len()).to_string()),
            (hop(key::STATE), "7".to_owned()),
        ];
        let nodes: Vec<_> = nodes.chain(rest).collect();
        self.set_all(&nodes);
    }

    /// The toolstack asks for devices back, all in one change.
    pub fn unplug(&mut self, devices: &[&str]) {
        let first = self.first;
        let listed = self.listed();
        let mut nodes = Vec::new();
        for device in devices {
            let number = listed.iter().position(|listed| listed == device).expect("listed");
            nodes.push((first.backend_node(&Numbered::State.at(number)), "5".to_owned()));
        }
        nodes.push((first.backend_node(key::STATE), "7".to_owned()));
        self.set_all(&nodes);
    }

    /// The toolstack takes devices off both lists, and closes the gaps as libxl does.
    pub fn strike(&mut self, devices: &[&str]) {
        let listed = self.listed();
        self.keep(|number| !devices.contains(&listed[number].as_str()));
    }

    /// What takes the device with this number off both lists, all in one change, as the toolstack does.
    pub fn striking(&self, struck: usize) -> impl FnOnce() + 'static {
        use xenbus::client::{Client, Store};
        let mut store = Client::new(self.xenstored.connect(0));
        let hops = [(self.first, &NODES[..]), (self.second, &SECOND[..])];
        move || {
            let done = store.transaction(|store| {
                for (hop, keys) in hops {
                    let count: usize = store.read(&hop.backend_node(key::NUM_DEVS))?.parse().unwrap();
                    for key in keys {
                        for to in struck..count {
                            let path = hop.backend_node(&key.at(to));
                            match store.read_optional(&hop.backend_node(&key.at(to + 1)))? {
                                Some(value) => store.write(&path, &value)?,
                                None => store.remove(&path)?,
                            }
                        }
                    }
                    store.write(&hop.backend_node(key::NUM_DEVS), &(count - 1).to_string())?;
                }
                Ok(())
            });
            done.unwrap();
        }
    }

    /// The same, for the device with this number.
    pub fn strike_number(&mut self, struck: usize) {
        self.keep(|number| number != struck);
    }

    fn keep(&mut self, keep: impl Fn(usize) -> bool) {
        let first = self.first;
        let count = self.count();
        let listed = self.listed();
        let kept: Vec<usize> = (0..count).filter(|&number| keep(number)).collect();
        for key in NODES {
            let mut values = Vec::new();
            for &number in &kept {
                values.push(self.get(&first.backend_node(&key.at(number))));
            }
            for number in 0..count {
                let path = first.backend_node(&key.at(number));
                match values.get(number).cloned().flatten() {
                    Some(value) => self.set(&path, &value),
                    None => self.remove(&path),
                }
            }
        }
        self.set(&first.backend_node(key::NUM_DEVS), &kept.len().to_string());
        let kept: Vec<&str> = kept.iter().map(|&number| listed[number].as_str()).collect();
        self.list_second(&kept);
    }

    /// What Linux' pcifront does about the states of both ends; true if that was anything.
    pub fn pcifront(&mut self) -> bool {
        let text = self.guest.read_backend(key::STATE).unwrap_or_default();
        match (self.guest_state(), XenbusState::parse(&text)) {
            (Connected, Reconfiguring) => {
                for number in 0..self.count() {
                    let mut read = |key: Numbered| self.guest.read_backend(&key.at(number));
                    if read(Numbered::State).as_deref() == Some("5") {
                        let place: Bdf = read(Numbered::VirtualDevice).unwrap().parse().unwrap();
                        self.guest.bus.remove(&place.devfn());
                    }
                }
                self.guest.set_state(Reconfiguring);
                true
            }
            // Probed while a change is under way: its bus is looked at when that is done.
            (Initialised, Reconfiguring) => {
                self.guest.set_state(Reconfiguring);
                true
            }
            (Initialised, Connected) => {
                self.scan();
                self.guest.set_state(Connected);
                true
            }
            (Reconfiguring, Reconfigured) => {
                self.scan();
                self.guest.set_state(Connected);
                true
            }
            _ => false,
        }
    }

    /// The same where one of them waits for something.
    pub fn dance_for_good(&mut self) {
        self.settle_for_good();
        while self.pcifront() {
            self.settle_for_good();
        }
        assert_eq!((self.backend_state(), self.guest_state()), (Connected, Connected));
    }

    /// Lets stub and guest go on until both have nothing more to do.
    pub fn dance(&mut self) {
        self.settle();
        while self.pcifront() {
            self.settle();
        }
        assert_eq!((self.backend_state(), self.guest_state()), (Connected, Connected));
    }

    /// The guest asks every address of its bus that it knows no device at.
    fn scan(&mut self) {
        for devfn in 0..=255 {
            let read = Request::conf_read(Bdf::from_devfn(0, 0, devfn), 0, 4);
            if !self.guest.bus.contains(&devfn) && self.ask(&read, &[]).is_ok() {
                self.guest.bus.insert(devfn);
            }
        }
    }

    /// What the guest finds behind the addresses that it knows: the number that [`Self::mark`] gave.
    pub fn bus(&mut self) -> BTreeMap<u8, Option<u32>> {
        let known = self.guest.bus.clone();
        let mut number = |devfn| {
            let read = Request::conf_read(Bdf::from_devfn(0, 0, devfn), 0x2e, 2);
            self.ask(&read, &[]).ok().map(|success| success.value)
        };
        known.into_iter().map(|devfn| (devfn, number(devfn))).collect()
    }

    /// Gives each device a number that can be told from the others': its device number as subsystem id.
    pub fn mark(&mut self) {
        for (bdf, device) in &self.service.borrow().devices {
            device.poke(0x2e, 2, bdf.device().into());
        }
    }

    /// The card at an address.
    pub fn card(&self, bdf: &str) -> Device {
        self.service.borrow().devices[&bdf.parse::<Bdf>().unwrap()].clone()
    }

    /// The stub dies at once, and another one with its number is started, which has nothing to go by but xenstore.
    pub fn restart_stub(&mut self) {
        use super::host::STUB;
        self.stub = None;
        self.world.snapshot().clear();
        self.world.kill(STUB);
        self.service.borrow_mut().restart();
        let state = self.second.frontend_node(key::STATE);
        self.set(&state, "1");
        self.start();
    }

    pub fn guest_state(&mut self) -> XenbusState {
        let text = self.get(&self.first.frontend_node(key::STATE));
        XenbusState::parse(&text.unwrap_or_default())
    }

    /// A numbered node of the first hop.
    pub fn of(&mut self, key: Numbered, number: usize) -> Option<String> {
        self.get(&self.first.backend_node(&key.at(number)))
    }

    fn count(&mut self) -> usize {
        let count = self.get(&self.first.backend_node(key::NUM_DEVS));
        count.unwrap().parse().unwrap()
    }

    fn listed(&mut self) -> Vec<String> {
        let count = self.count();
        (0..count)
            .map(|number| self.of(Numbered::Device, number).unwrap())
            .collect()
    }

    fn set_all(&mut self, nodes: &[(String, String)]) {
        use xenbus::client::Store;
        let written = self.toolstack.transaction(|store| {
            nodes
                .iter()
                .try_for_each(|(path, value)| store.write(path, value))
        });
        written.unwrap();
    }
}
