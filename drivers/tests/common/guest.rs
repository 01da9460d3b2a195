//! A guest with a scripted pcifront.

use super::world::World;
use drivers::platform::Port;
use std::collections::BTreeSet;
use xenbus::client::{Client, Store};
use xenbus::model::{Connection, Page, Xenstored};
use xenbus::path::{Device, key};
use xenbus::pciif::aer::{self, AerRequest};
use xenbus::pciif::frontend::{self, Answer, Posted};
use xenbus::pciif::{self, MsixEntry, Request};
use xenbus::state::XenbusState;

pub struct Guest {
    pub page: Page,
    pub grant: u32,
    pub port: Port,
    pub store: Client<Connection>,
    pub device: Device,
    /// The addresses, as devfn, at which it knows a device.
    pub bus: BTreeSet<u8>,
    world: World,
}

impl Guest {
    pub fn new(world: &World, xenstored: &Xenstored, device: Device) -> Self {
        let (page, grant) = world.share(device.frontend(), device.backend()).unwrap();
        Self {
            page,
            grant,
            port: world.alloc_unbound(device.frontend(), device.backend()),
            store: Client::new(xenstored.connect(device.frontend())),
            device,
            bus: BTreeSet::new(),
            world: world.clone(),
        }
    }

    /// Another guest's driver, or the same one probed again: it has a page and a port of its own, and what it had
    /// before is gone.
    pub fn begin_anew(&mut self) {
        let (owner, peer) = (self.device.frontend(), self.device.backend());
        self.world.close(owner, self.port);
        self.world.unshare(owner, self.grant);
        (self.page, self.grant) = self.world.share(owner, peer).unwrap();
        self.port = self.world.alloc_unbound(owner, peer);
        self.bus.clear();
    }

    /// Publishes the page and the port, as pcifront does when it is probed.
    pub fn publish(&mut self) {
        let grant = self.grant.to_string();
        let port = self.port.to_string();
        self.publish_as(&grant, &port, pciif::MAGIC);
    }

    pub fn publish_as(&mut self, grant: &str, port: &str, magic: &str) {
        self.write(key::PCI_OP_REF, grant);
        self.write(key::EVENT_CHANNEL, port);
        self.write(key::MAGIC, magic);
        self.set_state(XenbusState::Initialised);
    }

    pub fn write(&mut self, key: &str, value: &str) {
        self.store.write(&self.device.frontend_node(key), value).unwrap();
    }

    pub fn set_state(&mut self, state: XenbusState) {
        self.write(key::STATE, state.as_str());
    }

    pub fn read_backend(&mut self, key: &str) -> Option<String> {
        self.store.read_optional(&self.device.backend_node(key)).unwrap()
    }

    pub fn post(&mut self, request: &Request, entries: &[MsixEntry]) -> Posted {
        let posted = frontend::post(&self.page, request, entries).unwrap();
        self.world.notify(self.device.frontend(), self.port);
        posted
    }

    /// Has its driver handle the error that it was told of, if it was: the driver says this.
    pub fn handle(&mut self, verdict: i32) -> Option<AerRequest> {
        let request = aer::pending(&self.page)?;
        aer::answer(&self.page, verdict);
        self.world.notify(self.device.frontend(), self.port);
        Some(request)
    }

    pub fn answer(&self, posted: Posted) -> Answer {
        posted.poll(&self.page).expect("an answer")
    }
}
