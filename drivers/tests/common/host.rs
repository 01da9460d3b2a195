//! A whole host: xenstore, toolstack, service, stub, guest.

use super::device::{self, Device};
use super::guest::Guest;
use super::service::Service;
use super::world::{Death, Domain, STORE_PORT, StoreEvent, World};
use drivers::crash_log::{Cause, Next};
use drivers::stub::{Outcome, Stub};
use pci::bdf::Bdf;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::Duration;
use xenbus::client::{Client, Store, Transport};
use xenbus::handover_block;
use xenbus::model::{Connection, ConnectionError, Xenstored};
use xenbus::path::{self, Numbered, key};
use xenbus::pciif::backend;
use xenbus::pciif::frontend::{Answer, Posted};
use xenbus::pciif::{MsixEntry, Request};
use xenbus::permission::Permission;
use xenbus::state::XenbusState;
use xenbus::wire::{ErrorName, Header};

pub const STUB: u16 = 4;
pub const GUEST: u16 = 7;
/// How long xenstore takes for a request.
const ROUND_TRIP: Duration = Duration::from_millis(2);

pub type TestStub = Stub<Domain, StoreLine>;

/// The stub's connection to xenstore, which the test can look at too. The service runs between any two
/// requests, so that what it changes arrives in the middle of the stub's work.
#[derive(Clone)]
pub struct StoreLine {
    connection: Rc<RefCell<Connection>>,
    /// Number of the last request.
    last_request: Rc<Cell<u32>>,
    service: Rc<RefCell<Service>>,
    world: World,
    event: StoreEvent,
    /// What happens before the request with this number after now.
    before: Rc<RefCell<Option<Interlude>>>,
    /// How many requests were made.
    pub requests: Rc<Cell<usize>>,
    /// Requests until the connection breaks.
    breaks: Rc<Cell<usize>>,
    /// It broke at a request.
    lost: Rc<Cell<bool>>,
    always: Rc<RefCell<Box<dyn FnMut()>>>,
    /// Bytes of the message under way that are still to be received.
    left: Rc<Cell<usize>>,
}

/// What others do between two requests of the stub.
pub struct Interlude {
    pub left: usize,
    pub act: Box<dyn FnOnce()>,
}

impl Transport for StoreLine {
    type Error = ConnectionError;

    fn send(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        self.world.moment();
        self.service.borrow_mut().run();
        self.world.advance(ROUND_TRIP);
        (self.always.borrow_mut())();
        match self.breaks.get() {
            0 => {
                self.lost.set(true);
                return Err(ConnectionError::NothingToReceive);
            }
            usize::MAX => {}
            left => self.breaks.set(left - 1),
        }
        self.requests.set(self.requests.get() + 1);
        let due = match self.before.borrow_mut().as_mut() {
            Some(interlude) if interlude.left > 0 => {
                interlude.left -= 1;
                false
            }
            interlude => interlude.is_some(),
        };
        if due && let Some(interlude) = self.before.take() {
            (interlude.act)();
        }
        let number = bytes[4..8].try_into().expect("a header");
        self.last_request.set(u32::from_le_bytes(number));
        self.connection.borrow_mut().send(bytes)?;
        self.world.moment();
        Ok(())
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<(), ConnectionError> {
        self.world.moment();
        self.event.take();
        self.connection.borrow_mut().receive(bytes)?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.left.set(match self.left.get() {
            0 => {
                let header = bytes.first_chunk().expect("a header");
                Header::decode(header).length as usize
            }
            left => left - bytes.len(),
        });
        self.world.moment();
        Ok(())
    }

    fn ready(&mut self) -> Result<bool, ConnectionError> {
        self.connection.borrow_mut().ready()
    }
}

/// Frame of a function's ECAM page.
fn frame_of(bdf: Bdf) -> u64 {
    0xb0000 | u64::from(bdf.bus()) << 8 | u64::from(bdf.devfn())
}

/// What `work` returns; `None` if the stub died in it by order.
fn survives<R>(work: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => Some(result),
        Err(cause) if cause.is::<Death>() => None,
        Err(cause) => resume_unwind(cause),
    }
}

pub struct Host {
    pub world: World,
    pub xenstored: Xenstored,
    pub toolstack: Client<Connection>,
    pub service: Rc<RefCell<Service>>,
    pub stub: Option<TestStub>,
    line: Option<StoreLine>,
    pub guest: Guest,
    pub device: Device,
    pub first: path::Device,
    pub second: path::Device,
}

impl Host {
    /// A host whose stub has not been started, and without any work for it.
    pub fn idle() -> Self {
        let world = World::default();
        let xenstored = Xenstored::new();
        xenstored.introduce(STUB);
        xenstored.introduce(GUEST);
        let mut toolstack = Client::new(xenstored.connect(0));
        toolstack
            .write(&format!("{}/domid", path::home(STUB)), &STUB.to_string())
            .unwrap();
        let first = path::Device::first_hop(STUB, GUEST);
        Self {
            service: Rc::new(RefCell::new(Service::new(&world, &xenstored, STUB))),
            guest: Guest::new(&world, &xenstored, first),
            stub: None,
            line: None,
            device: Device::e1000e(),
            second: path::Device::second_hop(STUB),
            toolstack,
            world,
            xenstored,
            first,
        }
    }

    /// A host with one device attached to the guest, and the stub up to where it waits for the guest.
    pub fn ready() -> Self {
        let mut host = Self::idle();
        host.attach_second(&["0000:00:05.0"]);
        host.attach_first(&["0000:00:05.0"]);
        host.start();
        host.settle();
        host
    }

    /// The same, with the guest connected.
    pub fn connected() -> Self {
        let mut host = Self::ready();
        host.guest.publish();
        host.settle();
        assert_eq!(host.backend_state(), XenbusState::Connected);
        host
    }

    pub fn start(&mut self) {
        self.connect_stub();
        self.begin();
    }

    /// Opens the stub's connection to xenstore.
    pub fn connect_stub(&mut self) {
        let connection = Rc::new(RefCell::new(self.xenstored.connect(STUB)));
        let arrived = Rc::clone(&connection);
        self.line = Some(StoreLine {
            connection,
            last_request: Rc::default(),
            service: Rc::clone(&self.service),
            world: self.world.clone(),
            event: StoreEvent {
                arrived: Some(Rc::new(move || arrived.borrow().arrived())),
                ..StoreEvent::default()
            },
            before: Rc::default(),
            requests: Rc::default(),
            breaks: Rc::new(Cell::new(usize::MAX)),
            lost: Rc::default(),
            always: Rc::new(RefCell::new(Box::new(|| {}))),
            left: Rc::default(),
        });
    }

    fn line(&self) -> &StoreLine {
        self.line.as_ref().expect("a connection")
    }

    /// How many requests the stub has made to xenstore.
    pub fn requests(&self) -> usize {
        self.line().requests.get()
    }

    /// Has `act` happen after this many more requests of the stub.
    pub fn interrupt(&self, after: usize, act: impl FnOnce() + 'static) {
        let act = Box::new(act);
        *self.line().before.borrow_mut() = Some(Interlude { left: after, act });
    }

    /// Has xenstore refuse so many requests of the stub after so many more.
    pub fn refuse_requests(&self, after: usize, times: usize, error: ErrorName) {
        let connection = self.line().connection.borrow();
        connection.refuse_requests(after, times, error);
    }

    /// Has the connection break at the stub's request that comes after this many more; `usize::MAX`: never.
    pub fn lose_store(&self, after: usize) {
        self.line().breaks.set(after);
    }

    /// True if the stub has made a request at which the connection was broken.
    pub fn has_lost_store(&self) -> bool {
        self.line().lost.get()
    }

    /// From now on this happens at each request of the stub.
    pub fn at_each_request(&self, act: impl FnMut() + 'static) {
        *self.line().always.borrow_mut() = Box::new(act);
    }

    /// The stub fails and begins anew in the same domain: its connection to xenstore goes on, and nobody is told.
    pub fn fail(&mut self) {
        self.fail_by(Cause::Panic);
    }

    /// As [`Self::fail`], by this cause.
    pub fn fail_by(&mut self, cause: Cause) {
        let next = self.world.fail(cause);
        assert!(matches!(next, Next::Restart(_)), "{next:?}");
        self.stub = None;
        self.world.kill(STUB);
        self.world.revoke_all(STUB);
        self.begin();
    }

    /// The stub's domain is gone, and the toolstack makes another one with the same number, whose home has what the
    /// dead one's had. The guest is not told.
    pub fn replace_stub(&mut self, devices: &[&str]) {
        let node = self.second.backend_node(key::HANDOVER_BLOCK);
        let known = self.get(&node);
        let left = self
            .service
            .borrow()
            .page()
            .and_then(handover_block::to_hex)
            .or(known);
        self.stub = None;
        self.world.kill(STUB);
        self.world.revoke_all(STUB);
        self.world.forget_lives();
        self.service.borrow_mut().restart();
        self.remove(&self.second.backend_dir());
        self.remove(&self.second.frontend_dir());
        self.attach_second(devices);
        if let Some(left) = left {
            self.set(&node, &left);
        }
        self.start();
    }

    /// Begins a life of the stub, the first or a later one.
    pub fn begin(&mut self) {
        let service = Rc::clone(&self.service);
        let platform = Domain {
            domid: STUB,
            world: self.world.clone(),
            others: Rc::new(RefCell::new(move || service.borrow_mut().run())),
            store: self.line().event.clone(),
            snapshot: self.world.snapshot(),
        };
        let line = self.line.clone().expect("a connection");
        // The rest of what an earlier life was receiving.
        let mut rest = vec![0; line.left.take()];
        line.connection.borrow_mut().receive(&mut rest).unwrap();
        let begin = || {
            let last_request = line.last_request.get();
            let client = Client::resume(line, last_request);
            Stub::new(platform, client, STORE_PORT).unwrap()
        };
        match survives(begin) {
            Some(stub) => self.stub = Some(stub),
            None => self.fail(),
        }
    }

    /// The stub's step, and its next life if it dies in it.
    fn step(&mut self) -> Outcome {
        let stub = self.stub.as_mut().expect("a started stub");
        survives(|| stub.step()).unwrap_or_else(|| {
            self.fail();
            Outcome::Wait {
                until: Some(self.world.now()),
            }
        })
    }

    /// The stub waits until then, or for an event; its next life begins if it dies in that.
    pub fn wait(&mut self, until: Duration) {
        let stub = self.stub.as_mut().expect("a started stub");
        if survives(|| stub.wait(Some(until))).is_none() {
            self.fail();
        }
    }

    /// Writes the nodes of the second hop.
    pub fn attach_second(&mut self, devices: &[&str]) {
        self.list_second(devices);
        let hop = self.second;
        self.set(&hop.backend_node(key::GUEST), &GUEST.to_string());
        self.set(&hop.backend_node(key::STATE), "1");
        self.own(&hop.backend_dir(), 0, STUB);
        self.set(&hop.frontend_node(key::BACKEND), &hop.backend_dir());
        self.set(&hop.frontend_node(key::BACKEND_ID), "0");
        self.own(&hop.frontend_dir(), STUB, 0);
        self.set(&hop.frontend_node(key::STATE), "1");
    }

    /// Writes the list of devices of the second hop. A device keeps its model.
    pub fn list_second(&mut self, devices: &[&str]) {
        let hop = self.second;
        for (index, device) in devices.iter().enumerate() {
            let bdf = device.parse::<Bdf>().ok();
            let frame = bdf.map_or(0, frame_of);
            for (key, value) in [
                (Numbered::Device, (*device).to_owned()),
                (Numbered::Ids, "8086:10d3".to_owned()),
                (Numbered::Ecam, format!("{frame:x}")),
                (Numbered::Bars, device::BARS.to_owned()),
                (Numbered::Irq, device::IRQ.to_string()),
                (Numbered::Intx, "1".to_owned()),
            ] {
                self.set(&hop.backend_node(&key.at(index)), &value);
            }
            if let Some(bdf) = bdf {
                let model = self.model(bdf, index == 0);
                self.world.add_ecam(frame, &model);
            }
        }
        self.set(&hop.backend_node(key::NUM_DEVS), &devices.len().to_string());
    }

    /// Xen would let the stub write this function's ECAM page.
    pub fn leave_writable(&self, bdf: &str) {
        self.world
            .leave_writable(frame_of(bdf.parse().expect("an address")));
    }

    /// The card at `bdf`; a new one is `self.device` if it is the first.
    fn model(&mut self, bdf: Bdf, first: bool) -> Device {
        let mut service = self.service.borrow_mut();
        let fresh = || {
            if first {
                self.device.clone()
            } else {
                Device::e1000e()
            }
        };
        service.devices.entry(bdf).or_insert_with(fresh).clone()
    }

    /// Writes the nodes of the first hop.
    pub fn attach_first(&mut self, devices: &[&str]) {
        let hop = self.first;
        self.set(&hop.frontend_node(key::BACKEND), &hop.backend_dir());
        self.set(&hop.frontend_node(key::STATE), "1");
        self.own(&hop.frontend_dir(), hop.frontend(), STUB);
        self.own(&hop.frontend_node(key::STATE), hop.frontend(), STUB);
        for (index, device) in devices.iter().enumerate() {
            self.set(&hop.backend_node(&Numbered::Device.at(index)), device);
            self.set(&hop.backend_node(&Numbered::State.at(index)), "1");
        }
        self.set(&hop.backend_node(key::NUM_DEVS), &devices.len().to_string());
        self.set(&hop.backend_node(key::STATE), "1");
        self.own(&hop.backend_dir(), STUB, hop.frontend());
        for node in [key::STATE, key::NUM_DEVS] {
            self.own(&hop.backend_node(node), STUB, hop.frontend());
        }
    }

    pub fn set(&mut self, path: &str, value: &str) {
        self.toolstack.write(path, value).unwrap();
    }

    pub fn get(&mut self, path: &str) -> Option<String> {
        self.toolstack.read_optional(path).unwrap()
    }

    pub fn remove(&mut self, path: &str) {
        self.toolstack.remove(path).unwrap();
    }

    pub fn own(&mut self, path: &str, owner: u16, reader: u16) {
        let permissions = Permission::owned_by(owner, reader);
        self.toolstack.set_permissions(path, &permissions).unwrap();
    }

    pub fn backend_state(&mut self) -> XenbusState {
        let text = self.get(&self.first.backend_node(key::STATE));
        text.map_or(XenbusState::Unknown, |text| XenbusState::parse(&text))
    }

    pub fn hop_state(&mut self) -> XenbusState {
        let text = self.get(&self.second.frontend_node(key::STATE));
        text.map_or(XenbusState::Unknown, |text| XenbusState::parse(&text))
    }

    /// What the xenbus error node of the first hop says.
    pub fn error(&mut self) -> Option<String> {
        let home = path::home(STUB);
        self.get(&format!("{home}/error/backend/pci/{GUEST}/0/error"))
    }

    pub fn stub(&mut self) -> &mut TestStub {
        self.stub.as_mut().expect("a started stub")
    }

    /// Lets all run as they would on Xen: the stub steps when something wakes it. Returns its last word.
    pub fn settle(&mut self) -> Outcome {
        for _ in 0..100 {
            let outcome = self.step();
            self.service.borrow_mut().run();
            let more = matches!(outcome, Outcome::Wait { until: Some(until) } if until <= self.world.now());
            if matches!(outcome, Outcome::Shutdown(_)) || !more && !self.is_awake() {
                return outcome;
            }
        }
        panic!("the stub never comes to rest");
    }

    /// Lets all run until nothing is due any more, however long that takes.
    pub fn settle_for_good(&mut self) {
        for _ in 0..100 {
            let Outcome::Wait { until: Some(until) } = self.settle() else {
                return;
            };
            let left = until.saturating_sub(self.world.now());
            self.world.advance(left);
        }
        panic!("something is always due");
    }

    /// Lets all run until the request in the guest's page has its answer, however long that takes.
    pub fn settle_until_answered(&mut self) {
        for _ in 0..100 {
            let next = self.settle();
            if !backend::is_pending(&self.guest.page) {
                return;
            }
            let Outcome::Wait { until: Some(until) } = next else {
                panic!("the request waits for ever");
            };
            let left = until.saturating_sub(self.world.now());
            self.world.advance(left);
        }
        panic!("something is always due, and no answer comes");
    }

    /// True if something would end the stub's wait.
    fn is_awake(&mut self) -> bool {
        let ports = self.stub().ports().to_vec();
        self.line().event.is_pending() || self.world.is_pending(STUB, &ports)
    }

    /// Has the guest ask, and the stub answer.
    pub fn ask(&mut self, request: &Request, entries: &[MsixEntry]) -> Answer {
        let posted = self.guest.post(request, entries);
        self.world.take_pending(GUEST, self.guest.port);
        if self.world.is_mortal() {
            return self.await_answer(posted);
        }
        self.stub().step();
        assert!(
            self.world.take_pending(GUEST, self.guest.port),
            "an answer comes with an event"
        );
        self.guest.answer(posted)
    }

    /// The guest sleeps until it is told of the answer. Events that tell of nothing are allowed.
    fn await_answer(&mut self, mut posted: Posted) -> Answer {
        for _ in 0..50 {
            self.step();
            self.service.borrow_mut().run();
            if self.world.take_pending(GUEST, self.guest.port) {
                match posted.poll(&self.guest.page) {
                    Ok(answer) => return answer,
                    Err(still) => posted = still,
                }
            }
        }
        panic!("no answer, or no event that tells of it");
    }

    pub fn read(&mut self, offset: u16, width: u8) -> u32 {
        let answer = self.ask(&Request::conf_read(Bdf::from_devfn(0, 0, 0), offset, width), &[]);
        answer.expect("a read").value
    }

    pub fn write(&mut self, offset: u16, width: u8, value: u32) -> Answer {
        self.ask(
            &Request::conf_write(Bdf::from_devfn(0, 0, 0), offset, width, value),
            &[],
        )
    }
}
