//! A host with a frontend and a backend.

use super::machine::Machine;
use super::netback::{Netback, Rings};
use netfront::{FRAME_MAX, Netfront};
use std::cell::Cell;
use std::rc::Rc;
use xenbus::client::{Client, Store, Transport};
use xenbus::model::{Connection, Xenstored};
use xenbus::permission::Permission;
use xenbus::state::XenbusState;
use xenbus::wire::ErrorName;

pub const FRONTEND: u16 = 4;
pub const BACKEND: u16 = 2;
pub const MAC: &str = "00:16:3e:01:02:03";

/// The frontend's connection to xenstored, with a count of its requests.
pub struct Counted {
    connection: Connection,
    requests: Rc<Cell<usize>>,
}

impl Transport for Counted {
    type Error = <Connection as Transport>::Error;

    fn send(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.requests.set(self.requests.get() + 1);
        self.connection.send(bytes)
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.connection.receive(bytes)
    }

    fn ready(&mut self) -> Result<bool, Self::Error> {
        self.connection.ready()
    }
}

pub struct Host {
    pub machine: Machine,
    pub xenstored: Xenstored,
    pub toolstack: Client<Connection>,
    pub netback: Netback,
    pub netfront: Netfront<Machine>,
    pub store: Client<Counted>,
    pub requests: Rc<Cell<usize>>,
    /// Refused requests to xenstore that the frontend has told of.
    pub refused: usize,
}

impl Host {
    /// A host without a network device.
    pub fn without_vif() -> Self {
        let machine = Machine::new();
        let xenstored = Xenstored::new();
        xenstored.introduce(FRONTEND);
        xenstored.introduce(BACKEND);
        let requests = Rc::new(Cell::new(0));
        Self {
            netback: Netback::new(&machine, &xenstored, BACKEND, FRONTEND),
            netfront: Netfront::new(FRONTEND, "vif"),
            store: connect(&xenstored, &requests),
            toolstack: Client::new(xenstored.connect(0)),
            requests,
            machine,
            xenstored,
            refused: 0,
        }
    }

    /// A host with a device and a backend that waits; the frontend has not begun.
    pub fn ready() -> Self {
        let mut host = Self::without_vif();
        host.attach(BACKEND);
        host.netback.begin();
        host
    }

    /// The same, connected.
    pub fn connected() -> Self {
        let mut host = Self::ready();
        host.begin();
        assert!(host.netfront.is_connected());
        host
    }

    /// The toolstack makes the device, in one transaction as libxl does.
    pub fn attach(&mut self, backend: u16) {
        let front = "/local/domain/4/device/vif/0";
        let back = format!("/local/domain/{backend}/backend/vif/4/0");
        self.toolstack
            .transaction(|store| {
                for (directory, owner, reader) in [(front, FRONTEND, backend), (&back, backend, FRONTEND)] {
                    store.mkdir(directory)?;
                    store.remove(directory)?;
                    store.mkdir(directory)?;
                    store.set_permissions(directory, &Permission::owned_by(owner, reader))?;
                }
                for (directory, key, value) in [
                    (front, "backend", back.as_str()),
                    (front, "backend-id", &backend.to_string()),
                    (front, "mac", MAC),
                    (front, "handle", "0"),
                    (front, "state", "1"),
                    (&back, "frontend", front),
                    (&back, "frontend-id", "4"),
                    (&back, "online", "1"),
                    (&back, "mac", MAC),
                    (&back, "state", "1"),
                ] {
                    store.write(&format!("{directory}/{key}"), value)?;
                }
                Ok(())
            })
            .unwrap();
    }

    /// The toolstack removes the device.
    pub fn detach(&mut self, backend: u16) {
        for path in [
            "/local/domain/4/device/vif".to_owned(),
            format!("/local/domain/{backend}/backend/vif"),
        ] {
            self.toolstack.remove(&path).unwrap();
        }
    }

    /// Another run of the stub in the same domain: its memory, grants and ports are as new.
    pub fn restart(&mut self) {
        self.netfront = Netfront::new(FRONTEND, "vif");
        self.machine.forget_all();
        self.store = connect(&self.xenstored, &self.requests);
    }

    /// One look at xenstore without an event: the first one, or one that the frontend wants.
    pub fn reconcile(&mut self) {
        if let Err(error) = self.netfront.reconcile(&mut self.machine, &mut self.store) {
            assert!(error.is_of_store(), "{error}");
            self.refused += 1;
        }
    }

    /// One step of the frontend's, if there is a reason for one.
    pub fn step(&mut self) -> bool {
        let mut reason = self.netfront.wants_reconcile();
        while let Some(event) = self.store.next_event().unwrap() {
            assert_eq!(event.token, "vif");
            reason = true;
        }
        if reason {
            self.reconcile();
        }
        reason
    }

    /// The stub begins, and all comes to rest.
    pub fn begin(&mut self) {
        self.reconcile();
        self.settle();
    }

    /// Has both ends follow each other until they come to rest.
    pub fn settle(&mut self) {
        for _ in 0..200 {
            let front = self.step();
            let back = self.netback.step();
            if !front && !back {
                return;
            }
        }
        panic!("they do not come to rest");
    }

    /// Has the frontend alone follow xenstore.
    pub fn settle_frontend(&mut self) {
        for _ in 0..100 {
            if !self.step() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// Has xenstore refuse one request of the frontend's after so many more.
    pub fn refuse_request(&self, after: usize, error: ErrorName) {
        self.store.transport().connection.refuse_requests(after, 1, error);
    }

    pub fn frontend_state(&mut self) -> XenbusState {
        self.toolstack
            .read_state("/local/domain/4/device/vif/0/state")
            .unwrap()
    }

    pub fn error_node(&mut self) -> String {
        self.toolstack
            .read_optional("/local/domain/4/error/device/vif/0/error")
            .unwrap()
            .unwrap_or_default()
    }

    pub fn rings(&mut self) -> &mut Rings {
        self.netback.rings()
    }

    /// All frames that have come.
    pub fn receive_all(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = [0; FRAME_MAX];
        while let Some(length) = self.netfront.receive(&mut self.machine, &mut buffer) {
            frames.push(buffer[..length].to_vec());
        }
        self.netfront.flush(&mut self.machine);
        frames
    }

    /// Sends a frame, and shows it to the backend.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        let sent = self.netfront.transmit(&mut self.machine, frame);
        self.netfront.flush(&mut self.machine);
        sent
    }

    pub fn events_sent(&self) -> usize {
        self.netfront.port().map_or(0, |port| self.machine.sent(port))
    }
}

/// The frontend's connection, which counts its requests in `requests`.
pub fn connect(xenstored: &Xenstored, requests: &Rc<Cell<usize>>) -> Client<Counted> {
    Client::new(Counted {
        connection: xenstored.connect(FRONTEND),
        requests: Rc::clone(requests),
    })
}

/// A frame with contents that tell it from others.
pub fn frame(length: usize, mark: u8) -> Vec<u8> {
    (0..length).map(|at| mark.wrapping_add(at as u8)).collect()
}
