//! The hostile network backend against the genuine frontend, in one process: each round ends as it must, on both sides.

#[allow(dead_code, reason = "the frontend's own tests use the rest")]
#[path = "../../../drivers/netfront/tests/common/machine.rs"]
mod machine;

use drivers::crash_log::{CrashLog, Op};
use drivers::platform::{DomId, EcamError, Errno, GrantRef, Platform, Port};
use machine::{Machine, NoEcam, Page};
use netfront::{FRAME_MAX, Netfront, PAGES};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use test_guest::hostile_netback::backend::HostileNetback;
use xenbus::client::{Client, Store, Transport};
use xenbus::model::{Connection, Xenstored};
use xenbus::permission::Permission;

const FRONTEND: DomId = 4;
const BACKEND: DomId = 2;
/// Foreign pages that a guest of ours can map (`unikernel/src/kept.rs`).
const MAPPINGS: usize = 4;

/// The frontend's domain: what a stub does with its network, one turn at a time.
struct Stub {
    machine: Machine,
    netfront: Netfront<Machine>,
    store: Client<Connection>,
    turns: usize,
    /// Frames in one turn, at most.
    most_frames: usize,
}

impl Stub {
    fn turn(&mut self) {
        self.turns += 1;
        let mut changed = self.turns == 1 || self.netfront.wants_reconcile();
        while self.store.next_event().unwrap().is_some() {
            changed = true;
        }
        if changed {
            self.netfront
                .reconcile(&mut self.machine, &mut self.store)
                .unwrap();
        }
        let mut buffer = [0; FRAME_MAX];
        let mut frames = 0;
        while self.netfront.receive(&mut self.machine, &mut buffer).is_some() {
            frames += 1;
        }
        self.most_frames = self.most_frames.max(frames);
        // Something is to be sent now and then.
        if self.turns.is_multiple_of(3) && self.netfront.can_transmit(&mut self.machine) {
            self.netfront.transmit(&mut self.machine, &[3; 342]);
        }
        self.netfront.flush(&mut self.machine);
        self.netfront.arm();
    }
}

type Neighbour = Rc<RefCell<Stub>>;

/// The backend's connection to xenstored. The stub has a turn at each request.
struct Line(Connection, Neighbour);

impl Transport for Line {
    type Error = <Connection as Transport>::Error;

    fn send(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.1.borrow_mut().turn();
        self.0.send(bytes)
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.0.receive(bytes)
    }

    fn ready(&mut self) -> Result<bool, Self::Error> {
        self.0.ready()
    }
}

/// The backend's domain. Time passes with each look at the clock.
struct Guest {
    machine: Machine,
    stub: Neighbour,
    clock: Cell<Duration>,
    /// Events of the frontend's that were seen.
    seen: usize,
}

impl Platform for Guest {
    type Page = Page;
    type Ecam = NoEcam;

    fn now(&self) -> Duration {
        self.clock.set(self.clock.get() + Duration::from_micros(200));
        self.clock.get()
    }

    fn map_grant(&mut self, owner: DomId, grant: GrantRef) -> Result<Page, Errno> {
        assert_eq!(owner, FRONTEND);
        if self.machine.mapped() == MAPPINGS {
            return Err(Errno(12));
        }
        self.machine.map(BACKEND, grant).ok_or(Errno(22))
    }

    fn unmap_grant(&mut self, page: Page) {
        self.machine.unmap_page(&page);
    }

    fn share_page(&mut self, _: DomId) -> Result<(Page, GrantRef), Errno> {
        unreachable!("a backend shares nothing")
    }

    fn unshare_page(&mut self, _: Page, _: GrantRef) {
        unreachable!("a backend shares nothing")
    }

    fn bind_interdomain(&mut self, peer: DomId, remote: Port) -> Result<Port, Errno> {
        assert_eq!(peer, FRONTEND);
        self.seen = 0;
        self.machine
            .bind(BACKEND, remote)
            .then_some(remote)
            .ok_or(Errno(22))
    }

    fn alloc_unbound(&mut self, _: DomId) -> Result<Port, Errno> {
        unreachable!("a backend binds ports")
    }

    fn close(&mut self, port: Port) {
        self.machine.unbind(port);
    }

    fn notify(&mut self, port: Port) {
        self.machine.notify_frontend(port);
        self.stub.borrow_mut().turn();
    }

    fn take_pending(&mut self, port: Port) -> bool {
        let pending = self.is_pending(port);
        self.seen = self.machine.sent(port);
        pending
    }

    fn is_pending(&self, port: Port) -> bool {
        self.machine.sent(port) > self.seen
    }

    fn relax(&mut self) {
        self.stub.borrow_mut().turn();
    }

    fn wait(&mut self, ports: &[Port], until: Option<Duration>) {
        self.stub.borrow_mut().turn();
        if !ports.iter().any(|&port| self.is_pending(port)) {
            let until = until.expect("a wait without an end");
            self.clock.set(self.clock.get().max(until));
        }
    }

    fn map_ecam(&mut self, _: u64) -> Result<NoEcam, EcamError> {
        unreachable!("no functions")
    }

    fn unmap_ecam(&mut self, _: NoEcam) {
        unreachable!("no functions")
    }

    fn see_crash_log<R>(&self, _: impl FnOnce(&CrashLog) -> R) -> R {
        unreachable!("the stub's alone")
    }

    fn update_crash_log(&mut self, _: impl FnOnce(&mut CrashLog)) {
        unreachable!("the stub's alone")
    }

    fn set_under_way(&mut self, _: Option<&Op>) {
        unreachable!("the stub's alone")
    }

    fn recall(&self, _: pci::bdf::Bdf) -> Option<u32> {
        unreachable!("the stub's alone")
    }

    fn remember(&mut self, _: pci::bdf::Bdf, _: Option<u32>) {
        unreachable!("the stub's alone")
    }

    fn snapshot(&self) -> &drivers::snapshot::Snapshot {
        unreachable!("the stub's alone")
    }
}

/// dom0 makes the device.
fn attach(xenstored: &Xenstored) {
    let front = format!("/local/domain/{FRONTEND}/device/vif/0");
    let back = format!("/local/domain/{BACKEND}/backend/vif/{FRONTEND}/0");
    let mut toolstack = Client::new(xenstored.connect(0));
    for (directory, owner, reader) in [(&front, FRONTEND, BACKEND), (&back, BACKEND, FRONTEND)] {
        toolstack.mkdir(directory).unwrap();
        toolstack
            .set_permissions(directory, &Permission::owned_by(owner, reader))
            .unwrap();
    }
    for (directory, key, value) in [
        (&front, "backend", back.as_str()),
        (&front, "backend-id", "2"),
        (&front, "mac", "00:16:3e:01:02:03"),
        (&front, "state", "1"),
        (&back, "frontend-id", "4"),
        (&back, "online", "1"),
        (&back, "state", "1"),
        (&back, "frontend", front.as_str()),
    ] {
        toolstack.write(&format!("{directory}/{key}"), value).unwrap();
    }
}

/// Runs all rounds and so many random responses.
fn run(seed: u64, count: usize) -> Neighbour {
    let machine = Machine::new();
    let xenstored = Xenstored::new();
    xenstored.introduce(FRONTEND);
    xenstored.introduce(BACKEND);
    attach(&xenstored);
    let stub = Rc::new(RefCell::new(Stub {
        machine: machine.clone(),
        netfront: Netfront::new(FRONTEND, "vif"),
        store: Client::new(xenstored.connect(FRONTEND)),
        turns: 0,
        most_frames: 0,
    }));
    let mut guest = Guest {
        machine: machine.clone(),
        stub: Rc::clone(&stub),
        clock: Cell::new(Duration::ZERO),
        seen: 0,
    };
    let mut client = Client::new(Line(xenstored.connect(BACKEND), Rc::clone(&stub)));
    let mut netback = HostileNetback::find(&mut guest, &mut client, seed).unwrap();
    assert_eq!(
        netback.run(seed, count),
        0,
        "rounds have failed; the log says which"
    );
    assert_eq!(machine.mapped(), 0);
    // The last connection has ended on both sides.
    assert_eq!((machine.granted(), machine.ports()), (vec![], 0));
    stub
}

/// Shows the guest's console where a test fails.
struct Console;

impl log::Log for Console {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        println!("{}", record.args());
    }

    fn flush(&self) {}
}

#[test]
fn every_round_ends_as_it_must_and_each_wrong_random_response_is_noticed() {
    let _ = log::set_logger(&Console);
    log::set_max_level(log::LevelFilter::Info);
    for seed in 1..=3 {
        let stub = run(seed, 20_000);
        let stub = stub.borrow();
        let statistics = stub.netfront.statistics();
        // Twelve rounds have one, and about one random response in a thousand.
        assert!((20..60).contains(&statistics.faults), "{statistics:?}");
        assert!(statistics.connections > statistics.faults);
        assert!(statistics.received_frames > 10_000 && statistics.receive_dropped > 500);
        assert!(stub.most_frames <= PAGES, "{}", stub.most_frames);
    }
}
