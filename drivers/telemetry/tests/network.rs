//! The stub's network between xenstore, the backend and the guest's requests.

#[path = "../../netfront/tests/common/mod.rs"]
mod common;

use common::host::{BACKEND, Counted, FRONTEND, Host, connect};
use common::machine::Machine;
use core::time::Duration;
use drivers::background::{Background, View};
use drivers::platform::Platform;
use log::Level;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    Ipv4Address,
};
use telemetry::line_ring::LineRing;
use telemetry::network::{Environment, Network};
use telemetry::strikes::Strikes;
use xenbus::client::Client;
use xenbus::counters::Counters;
use xenbus::state::XenbusState;

const LINES: usize = 1024;
const COMMAND_LINE: &str = "loglevel=info guest=web ip=10.0.0.9/24 syslog=10.0.0.1:514";

/// A stub with its network, beside the model of a backend.
struct Stub {
    host: Host,
    store: Client<Counted>,
    network: Network<Machine, LINES>,
    lines: &'static LineRing<LINES>,
    now: Duration,
    until: Option<Duration>,
}

impl Stub {
    fn new(command_line: &'static str, strikes: &'static Strikes) -> Self {
        let host = Host::ready();
        let mut store = connect(&host.xenstored, &host.requests);
        let lines: &'static LineRing<LINES> = Box::leak(Box::default());
        let mut network = Network::new(Environment {
            lines,
            strikes,
            booted: || None,
            seed: 7,
            command_line,
        });
        let mut machine = host.machine.clone();
        let now = Duration::from_secs(10);
        machine.advance(now);
        network.start(&mut machine, &mut store, FRONTEND);
        Self {
            host,
            store,
            network,
            lines,
            now,
            until: Some(now),
        }
    }

    fn connected() -> Self {
        let mut stub = Self::new(COMMAND_LINE, Box::leak(Box::default()));
        stub.settle();
        assert!(stub.host.netback.rings.is_some());
        stub
    }

    /// One turn; a request of the guest waits if `asks`.
    fn turn(&mut self, asks: bool) {
        while let Some(event) = self.store.next_event().unwrap() {
            Background::<Machine, Counted>::changed(&mut self.network, &event.token);
        }
        let passed = self.now - self.host.machine.now();
        self.host.machine.advance(passed);
        let view = View {
            asks,
            guest: Some(3),
            counters: &Counters::default(),
            for_each_device: &|_| {},
        };
        let mut machine = self.host.machine.clone();
        self.until = self.network.turn(&mut machine, &mut self.store, view);
    }

    /// Both ends follow each other until they come to rest.
    fn settle(&mut self) {
        for _ in 0..40 {
            self.turn(false);
            self.host.netback.step();
            self.now += Duration::from_millis(100);
        }
    }

    fn port(&self) -> Option<u32> {
        Background::<Machine, Counted>::port(&self.network)
    }

    /// The backend delivers a frame, with an event.
    fn deliver(&mut self, frame: &[u8]) -> bool {
        let delivered = self.host.rings().deliver(frame);
        if let Some(port) = self.port() {
            self.host.machine.notify_frontend(port);
        }
        delivered
    }

    /// What the stub has sent of answers to `who_has`.
    fn answers(&mut self) -> usize {
        let frames = self.host.rings().collect();
        let answer = |frame: &&Vec<u8>| {
            let frame = EthernetFrame::new_checked(&frame[..]).unwrap();
            frame.ethertype() == EthernetProtocol::Arp && frame.dst_addr() == EthernetAddress([2; 6])
        };
        frames.iter().filter(answer).count()
    }
}

/// A neighbour asks for the stub's address.
fn who_has() -> Vec<u8> {
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress([2; 6]),
        source_protocol_addr: Ipv4Address::new(10, 0, 0, 1),
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: Ipv4Address::new(10, 0, 0, 9),
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress([2; 6]),
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Arp,
    };
    let mut bytes = vec![0; 14 + arp.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    ethernet.emit(&mut frame);
    arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn a_neighbour_is_answered_at_the_event() {
    let mut stub = Stub::connected();
    assert!(stub.deliver(&who_has()));
    stub.turn(false);
    assert_eq!(stub.answers(), 1);
}

#[test]
fn an_idle_network_waits_for_an_event_alone() {
    let mut stub = Stub::connected();
    for _ in 0..100 {
        stub.turn(false);
        stub.now += Duration::from_secs(60);
    }
    assert_eq!(stub.until, None);
    assert!(stub.port().is_some());
}

#[test]
fn a_turn_that_has_asked_xenstore_is_followed_by_another_look_at_once() {
    let mut stub = Stub::new(COMMAND_LINE, Box::leak(Box::default()));
    for _ in 0..8 {
        let before = stub.host.requests.get();
        stub.turn(false);
        let asked = stub.host.requests.get() > before;
        assert!(!asked || stub.until == Some(stub.now));
        stub.host.netback.step();
    }
    stub.turn(false);
    assert_eq!(stub.until, None);
}

#[test]
fn a_request_of_the_guest_comes_first_but_not_for_ever() {
    let mut stub = Stub::connected();
    stub.turn(false);
    assert!(stub.deliver(&who_has()));
    // The last turn with something to do.
    let last = stub.now;
    stub.turn(false);
    assert_eq!(stub.answers(), 1);
    assert!(stub.deliver(&who_has()));
    for (after, answers) in [(0, 0), (1, 0), (49, 0), (50, 1)] {
        stub.now = last + ms(after);
        stub.turn(true);
        assert_eq!(stub.answers(), answers, "after {after} ms");
    }
}

#[test]
fn a_flood_of_frames_is_taken_at_the_pace_of_the_budget() {
    let mut stub = Stub::connected();
    let end = stub.now + Duration::from_secs(1);
    let (mut taken, mut turns) = (0, 0);
    while stub.now < end {
        while stub.deliver(&who_has()) {}
        stub.turn(false);
        let answers = stub.answers();
        assert!(answers <= 8, "{answers} frames in a turn");
        taken += answers;
        turns += 1;
        match stub.port() {
            // Events wake nobody until then.
            None => stub.now = stub.until.expect("a time to look again"),
            Some(_) => stub.now += Duration::from_micros(1),
        }
    }
    assert!((1900..2100).contains(&taken), "{taken} frames in a second");
    assert!(turns < 2200, "{turns} turns");
}

#[test]
fn events_for_nothing_are_heard_at_the_pace_of_the_budget() {
    let mut stub = Stub::connected();
    let end = stub.now + Duration::from_secs(1);
    let mut turns = 0;
    while stub.now < end {
        if let Some(port) = stub.port() {
            stub.host.machine.notify_frontend(port);
        }
        stub.turn(false);
        turns += 1;
        stub.now = match stub.port() {
            None => stub.until.expect("a time to look again"),
            Some(_) => stub.now + Duration::from_micros(1),
        };
    }
    assert!(turns < 4300, "{turns} turns in a second");
}

#[test]
fn a_backend_that_changes_its_state_without_end_costs_few_requests_to_xenstore() {
    let mut stub = Stub::connected();
    let end = stub.now + Duration::from_secs(10);
    let (mut turns, before) = (0, stub.host.requests.get());
    while stub.now < end {
        let state = if turns % 2 == 0 {
            XenbusState::Closing
        } else {
            XenbusState::InitWait
        };
        stub.host.netback.disconnect();
        stub.host.netback.set_state(state);
        stub.turn(false);
        stub.now += ms(1);
        turns += 1;
    }
    let requests = stub.host.requests.get() - before;
    // 16 at once, then ten a second, of a dozen requests at most.
    assert!(requests < (16 + 100) * 30, "{requests}");
}

#[test]
fn a_backend_that_breaks_the_protocol_costs_the_network_until_it_begins_anew() {
    let mut stub = Stub::connected();
    stub.host.rings().respond_rx(200, 0, 0, 60);
    let port = stub.port().unwrap();
    stub.host.machine.notify_frontend(port);
    stub.turn(false);
    assert_eq!(stub.port(), None);
    assert_eq!(stub.host.machine.granted(), []);
    stub.settle();
    stub.host.netback.begin();
    stub.settle();
    assert!(stub.deliver(&who_has()));
    stub.turn(false);
    assert_eq!(stub.answers(), 1);
}

#[test]
fn a_backend_that_goes_and_comes_back_elsewhere_is_followed() {
    let mut stub = Stub::connected();
    stub.host.netback.disconnect();
    stub.host.detach(BACKEND);
    stub.settle();
    assert_eq!(stub.port(), None);
    stub.host.attach(BACKEND);
    stub.host.netback.begin();
    stub.settle();
    assert!(stub.deliver(&who_has()));
    stub.turn(false);
    assert_eq!(stub.answers(), 1);
}

#[test]
fn lines_that_are_logged_while_nothing_else_happens_are_sent() {
    let mut stub = Stub::connected();
    stub.turn(false);
    stub.lines.push(Level::Info, stub.now, b"x");
    stub.turn(false);
    let frames = stub.host.rings().collect();
    // The address of the collector is asked for first.
    assert_eq!(frames.len(), 1);
}

#[test]
fn after_three_failures_in_a_minute_there_is_no_network_and_nothing_is_due() {
    let strikes: &'static Strikes = Box::leak(Box::default());
    for run in 0..4 {
        let mut stub = Stub::new(COMMAND_LINE, strikes);
        stub.settle();
        assert_eq!(stub.port().is_some(), run < 3, "run {run}");
        if run == 3 {
            stub.turn(false);
            assert_eq!(stub.until, None);
        }
        // It fails in the middle of a turn.
        if run < 3 {
            strikes.enter();
        }
    }
}

#[test]
fn a_turn_that_ends_is_no_failure() {
    let strikes: &'static Strikes = Box::leak(Box::default());
    for _ in 0..10 {
        let mut stub = Stub::new(COMMAND_LINE, strikes);
        stub.settle();
        assert!(stub.port().is_some());
    }
}

#[test]
fn a_command_line_that_cannot_be_read_means_no_network() {
    let mut stub = Stub::new("ip=10.0.0.9", Box::leak(Box::default()));
    stub.settle();
    assert_eq!((stub.port(), stub.until), (None, None));
}
