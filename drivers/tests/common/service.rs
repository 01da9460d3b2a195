//! Dom0's service, as the other end of the second hop.

use super::device::Device;
use super::world::World;
use drivers::error::MessageKind;
use drivers::platform::{ConfigSpace, Port};
use pci::bdf::Bdf;
use std::collections::BTreeMap;
use std::time::Duration;
use xenbus::client::{Client, Store};
use xenbus::model::{Connection, Page, Xenstored};
use xenbus::path::{self, key};
use xenbus::pciif::aer::{self, AerRequest, Busy};
use xenbus::pciif::backend::{self, Success};
use xenbus::pciif::{Command, MsixEntry, OpError, Request};
use xenbus::state::XenbusState;

/// How the service behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// It answers.
    #[default]
    Willing,
    /// It lets requests lie.
    Silent,
    /// It lets requests lie until this time.
    SilentUntil(Duration),
    /// It lets requests lie, and answers one at this time.
    AnsweringOneAt(Duration),
    /// It refuses every request with this error.
    Refusing(i32),
}

pub struct Service {
    pub mood: Mood,
    pub devices: BTreeMap<Bdf, Device>,
    /// Requests answered.
    pub served: Vec<Request>,
    /// Looks on while a request is served.
    pub witness: Box<dyn FnMut(&Page)>,
    world: World,
    store: Client<Connection>,
    hop: path::Device,
    channel: Option<(Page, Port)>,
    /// The stub has restarted again before its offer was taken.
    awaits_offer: bool,
    /// The grant and the port that `channel` is made of.
    particulars: (u32, u32),
}

impl Service {
    pub fn new(world: &World, xenstored: &Xenstored, stub: u16) -> Self {
        Self {
            mood: Mood::Willing,
            devices: BTreeMap::new(),
            served: Vec::new(),
            witness: Box::new(|_| {}),
            world: world.clone(),
            store: Client::new(xenstored.connect(0)),
            hop: path::Device::second_hop(stub),
            channel: None,
            awaits_offer: false,
            particulars: (0, 0),
        }
    }

    /// Connects if the stub has published, and serves what is pending.
    pub fn run(&mut self) {
        // The link to another page begins only when the thread of the last one is through with its request.
        if self.answer() {
            self.connect();
            self.answer();
        }
    }

    /// Serves what is pending in the page that is connected; false if a request is let lie there.
    fn answer(&mut self) -> bool {
        let Some((page, port)) = self.channel.clone() else {
            return true;
        };
        self.world.take_pending(0, port);
        match self.mood {
            Mood::SilentUntil(time) if self.world.now() >= time => self.mood = Mood::Willing,
            Mood::AnsweringOneAt(time) if self.world.now() >= time => {}
            Mood::Silent | Mood::SilentUntil(_) | Mood::AnsweringOneAt(_) => {
                return backend::take(&page).is_none();
            }
            Mood::Willing | Mood::Refusing(_) => {}
        }
        while let Some(taken) = backend::take(&page) {
            let request = *taken.request();
            self.served.push(request);
            (self.witness)(&page);
            let entries = taken
                .entries()
                .expect("the stub never asks for too many")
                .to_vec();
            let mut vectors = Vec::new();
            let answer = match self.mood {
                Mood::Refusing(error) => Err(OpError::from_raw(error).unwrap()),
                _ => self.serve(&request, &entries, &mut vectors),
            };
            let answer = match answer {
                Ok(Some(value)) => Ok(Success::Value(value)),
                Ok(None) => Ok(Success::Vectors(&vectors)),
                Err(error) => Err(error),
            };
            if taken.answer(&page, answer) == backend::Delivery::Delivered {
                self.world.notify(0, port);
            }
            if matches!(self.mood, Mood::AnsweringOneAt(_)) {
                self.mood = Mood::Silent;
                break;
            }
        }
        true
    }

    /// Tells the guest of an error, or lets it lie with the one of before.
    pub fn tell(&mut self, request: &AerRequest) -> Result<(), Busy> {
        let (page, port) = self.channel.as_ref().expect("a connection");
        aer::post(page, request)?;
        self.world.notify(0, *port);
        Ok(())
    }

    /// Sends an event that tells of nothing.
    pub fn poke(&mut self) {
        let (_, port) = self.channel.as_ref().expect("a connection");
        self.world.notify(0, *port);
    }

    /// The guest's verdict on the last error.
    pub fn verdict(&self) -> Option<i32> {
        aer::verdict(self.page().expect("a connection"))
    }

    /// Forgets its connection, as a service that is started anew does, and says so.
    pub fn restart(&mut self) {
        self.disconnect();
        self.set_state(XenbusState::Initialising);
    }

    pub fn close(&mut self) {
        self.disconnect();
        self.set_state(XenbusState::Closing);
    }

    pub fn set_state(&mut self, state: XenbusState) {
        let path = self.hop.backend_node(key::STATE);
        self.store.write(&path, state.as_str()).unwrap();
    }

    pub fn page(&self) -> Option<&Page> {
        self.channel.as_ref().map(|(page, _)| page)
    }

    fn disconnect(&mut self) {
        self.awaits_offer = false;
        if let Some((_, port)) = self.channel.take() {
            self.world.close(0, port);
        }
    }

    fn connect(&mut self) {
        let state = |store: &mut Client<_>, path: String| {
            let text = store.read_optional(&path).unwrap();
            text.map_or(XenbusState::Unknown, |text| XenbusState::parse(&text))
        };
        let stub = state(&mut self.store, self.hop.frontend_node(key::STATE));
        let own = state(&mut self.store, self.hop.backend_node(key::STATE));
        // A stub that restarted in place offers another page while all else stands as it was.
        let linked = self.channel.is_some() || self.awaits_offer;
        let offers = match stub {
            XenbusState::Initialised => linked || own <= XenbusState::InitWait,
            XenbusState::Connected => linked,
            _ => false,
        };
        if !offers {
            return;
        }
        let mut number = |key| -> u32 {
            let text = self.store.read(&self.hop.frontend_node(key)).unwrap();
            text.parse().unwrap()
        };
        let (grant, remote) = (number(key::PCI_OP_REF), number(key::EVENT_CHANNEL));
        if linked && (grant, remote) == self.particulars {
            return;
        }
        self.disconnect();
        self.particulars = (grant, remote);
        // A stub that died after it had published them has others in its next life.
        let mapped = self.world.map(0, self.hop.frontend(), grant);
        self.awaits_offer = mapped.is_err();
        let Ok(page) = mapped else {
            return;
        };
        let port = self.world.bind(0, self.hop.frontend(), remote).unwrap();
        self.channel = Some((page, port));
        self.set_state(XenbusState::Connected);
    }

    /// Does a request, which names the device by its real address, and answers nobody.
    pub fn carry_out(&mut self, request: &Request, entries: &[MsixEntry]) {
        let done = self.serve(request, entries, &mut Vec::new());
        done.expect("a request that can be carried out");
    }

    fn serve(
        &mut self,
        request: &Request,
        entries: &[MsixEntry],
        vectors: &mut Vec<u16>,
    ) -> Result<Option<u32>, OpError> {
        let device = request
            .function()
            .and_then(|bdf| self.devices.get(&bdf))
            .ok_or(OpError::DeviceNotFound)?;
        match request.command {
            Command::ConfWrite => {
                device.guarded_write(request.offset as u16, request.size as u8, request.value);
                Ok(Some(0))
            }
            Command::EnableMsi => {
                device.set_messages(MessageKind::Msi, true);
                Ok(Some(device.next_pirq().into()))
            }
            Command::EnableMsix => {
                *vectors = device.map_entries(entries);
                Ok(None)
            }
            Command::DisableMsi | Command::DisableMsix => {
                if let Some(kind) = device.mode() {
                    device.set_messages(kind, false);
                }
                Ok(Some(0))
            }
            Command::ConfRead => Ok(Some(device.read(request.offset as u16, request.size as u8))),
            Command::Other(_) => Err(OpError::NotImplemented),
        }
    }
}
