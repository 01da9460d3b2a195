//! A backend that answers at random. An oracle of the test's own says for each response what must come of it.

mod common;

use common::machine::{Machine, Page};
use common::netback::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, rx_slot, tx_slot};
use fastrand::Rng;
use netfront::channel::Channel;
use netfront::fault::Direction;
use netfront::{FRAME_MAX, Fault, RX, Statistics, TX};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};
use xenbus::pciif::SharedPage;

/// Sets the seed of the long test, to repeat a run.
const SEED: &str = "BULKHEAD_NETFRONT_SEED";
/// Responses of the long test.
const COUNT: u64 = 1_000_000;

const BACKEND: u16 = 2;

/// One response, in either ring.
#[derive(Clone, Copy, Debug, Default)]
struct Response {
    id: u16,
    offset: u16,
    flags: u16,
    status: i16,
}

impl Response {
    fn encode(self) -> Vec<u8> {
        let fields = [self.id, self.offset, self.flags, self.status as u16];
        fields.into_iter().flat_map(u16::to_le_bytes).collect()
    }

    fn read(page: &Page, at: usize) -> Self {
        let mut bytes = [0; 8];
        page.memory().copy_out(at, &mut bytes);
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            id: field(0),
            offset: field(2),
            flags: field(4),
            status: field(6) as i16,
        }
    }
}

fn out_of_step(ring: Direction, responses: u32, requests: u32) -> Expected {
    let fault = Fault::Index {
        ring,
        responses,
        requests,
    };
    Expected::Fault(Vec::new(), fault)
}

/// Something that a backend does.
#[derive(Clone, Debug)]
enum Deed {
    /// Answers in the receive ring, and moves the index by this much more than there are answers.
    Receive(Vec<Response>, u32),
    /// The same in the transmit ring.
    Transmit(Vec<Response>, u32),
    /// Writes an index that is the frontend's, or for events.
    Scribble {
        receive: bool,
        offset: usize,
        value: u32,
    },
    /// Writes all over the requests that were not taken, which are its own business.
    Garbage(u8),
}

/// What must come of a deed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    /// So many frames are handed up, with these lengths.
    Frames(Vec<usize>),
    /// The same, and then the fault.
    Fault(Vec<usize>, Fault),
}

/// The frontend's half of one connection, with what the oracle knows of it.
struct World {
    machine: Machine,
    channel: Option<Channel<Page>>,
    rx: Page,
    tx: Page,
    /// Requests without a response.
    rx_outstanding: BTreeSet<u16>,
    tx_outstanding: BTreeSet<u16>,
    rx_responses: u32,
    tx_responses: u32,
    statistics: Statistics,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            machine: Machine::new(),
            channel: None,
            rx: Page::default(),
            tx: Page::default(),
            rx_outstanding: BTreeSet::new(),
            tx_outstanding: BTreeSet::new(),
            rx_responses: 0,
            tx_responses: 0,
            statistics: Statistics::default(),
        };
        world.connect();
        world
    }

    /// Begins a new connection.
    fn connect(&mut self) {
        if let Some(channel) = self.channel.take() {
            channel.unshare(&mut self.machine);
        }
        assert_eq!((self.machine.granted(), self.machine.ports()), (vec![], 0));
        let channel = Channel::share(&mut self.machine, BACKEND).unwrap();
        self.rx = self.machine.page(channel.rx_grant());
        self.tx = self.machine.page(channel.tx_grant());
        self.channel = Some(channel);
        self.rx_outstanding = (0..RX as u16).collect();
        self.tx_outstanding.clear();
        (self.rx_responses, self.tx_responses) = (0, 0);
    }

    /// The rule for one response of the receive ring: its frame's length, or none.
    fn judge_rx(outstanding: &mut BTreeSet<u16>, response: Response) -> Result<Option<usize>, Fault> {
        let Response {
            id,
            offset,
            flags,
            status,
        } = response;
        if !outstanding.remove(&id) {
            let ring = Direction::Receive;
            return Err(Fault::Id { ring, id });
        }
        if flags > 3 {
            return Err(Fault::Flags(flags));
        }
        if status < 0 {
            return Ok(None);
        }
        let length = status as usize;
        if !(14..=1518).contains(&length) || usize::from(offset) + length > 4096 {
            return Err(Fault::Range {
                offset,
                length: status as u16,
            });
        }
        Ok((flags & 2 == 0).then_some(length))
    }

    /// Does the deed, and says what must come of it.
    fn do_deed(&mut self, deed: &Deed) -> Expected {
        match deed {
            Deed::Receive(responses, excess) => {
                let first = self.rx_responses;
                for (at, response) in responses.iter().enumerate() {
                    self.rx
                        .copy_in(rx_slot(first.wrapping_add(at as u32)), &response.encode());
                }
                let announced = (responses.len() as u32).wrapping_add(*excess);
                self.rx_responses = first.wrapping_add(announced);
                self.rx.store(RSP_PROD, self.rx_responses);
                let requests = self.rx_outstanding.len() as u32;
                if announced > requests {
                    return out_of_step(Direction::Receive, announced, requests);
                }
                let mut frames = Vec::new();
                for at in 0..announced {
                    // Also what nobody has written there as a response.
                    let response = Response::read(&self.rx, rx_slot(first.wrapping_add(at)));
                    match Self::judge_rx(&mut self.rx_outstanding, response) {
                        Ok(frame) => frames.extend(frame),
                        Err(fault) => return Expected::Fault(frames, fault),
                    }
                }
                Expected::Frames(frames)
            }
            Deed::Transmit(responses, excess) => {
                let first = self.tx_responses;
                for (at, Response { id, status, .. }) in responses.iter().enumerate() {
                    let mut slot = id.to_le_bytes().to_vec();
                    slot.extend(status.to_le_bytes());
                    self.tx.copy_in(tx_slot(first.wrapping_add(at as u32)), &slot);
                }
                let announced = (responses.len() as u32).wrapping_add(*excess);
                self.tx_responses = first.wrapping_add(announced);
                self.tx.store(RSP_PROD, self.tx_responses);
                let ring = Direction::Transmit;
                let requests = self.tx_outstanding.len() as u32;
                if announced > requests {
                    return out_of_step(ring, announced, requests);
                }
                for at in 0..announced {
                    // The first two fields of a longer response.
                    let read = Response::read(&self.tx, tx_slot(first.wrapping_add(at)));
                    let (id, status) = (read.id, read.offset as i16);
                    if !self.tx_outstanding.remove(&id) {
                        return Expected::Fault(Vec::new(), Fault::Id { ring, id });
                    }
                    if status > 0 {
                        return Expected::Fault(Vec::new(), Fault::Status { ring, status });
                    }
                }
                Expected::Frames(Vec::new())
            }
            Deed::Scribble {
                receive,
                offset,
                value,
            } => {
                let page = if *receive { &self.rx } else { &self.tx };
                page.store(*offset, *value);
                Expected::Frames(Vec::new())
            }
            Deed::Garbage(byte) => {
                // Slots behind the requests: whatever stands there is not the frontend's.
                for page in [&self.rx, &self.tx] {
                    page.copy_in(16, &[*byte; 48]);
                    page.copy_in(3200, &[*byte; 896]);
                }
                Expected::Frames(Vec::new())
            }
        }
    }

    /// What the frontend makes of it.
    fn look(&mut self) -> Expected {
        let channel = self.channel.as_mut().unwrap();
        let mut frames = Vec::new();
        let mut buffer = [0; FRAME_MAX];
        loop {
            match channel.receive(&mut buffer, &mut self.statistics) {
                Ok(Some(length)) => frames.push(length),
                Ok(None) => break,
                Err(fault) => return Expected::Fault(frames, fault),
            }
            assert!(frames.len() <= RX, "frames without end");
        }
        match channel.can_transmit(&mut self.statistics) {
            Ok(_) => Expected::Frames(frames),
            Err(fault) => Expected::Fault(frames, fault),
        }
    }

    /// Does a deed and checks what comes of it; a new connection after a fault, or else new requests. Returns the fault.
    fn play(&mut self, deed: &Deed) -> Option<Fault> {
        let expected = self.do_deed(deed);
        let found = self.look();
        assert_eq!(found, expected, "after {deed:?}");
        if let Expected::Fault(_, fault) = found {
            self.connect();
            return Some(fault);
        }
        let channel = self.channel.as_mut().unwrap();
        // The user sends some frames, never more than there is room for.
        let room = TX - self.tx_outstanding.len();
        for _ in 0..room.min(3) {
            assert_eq!(channel.transmit(&[7; 60], &mut self.statistics), Ok(true));
        }
        channel.publish();
        self.rx_outstanding = (0..RX as u16).collect();
        for id in (0..TX as u16)
            .filter(|id| !self.tx_outstanding.contains(id))
            .take(room.min(3))
            .collect::<Vec<_>>()
        {
            self.tx_outstanding.insert(id);
        }
        None
    }
}

/// A response that is often right.
fn draw_response(random: &mut Rng, outstanding: &BTreeSet<u16>) -> Response {
    // So that a connection lives for some hundred responses.
    let wrong = random.u32(..400) == 0;
    let id = match outstanding.iter().nth(random.usize(..outstanding.len().max(1))) {
        Some(&id) if !(wrong && random.bool()) => id,
        _ => [random.u16(..), random.u16(..32)][random.usize(..2)],
    };
    let status = match random.u8(..8) {
        0 => -1,
        1 => -2,
        2 if wrong => [0, 13, 1519, i16::MAX, i16::MIN][random.usize(..5)],
        3 if wrong => random.i16(..),
        _ => random.i16(14..1519),
    };
    let offset = if wrong && random.bool() {
        random.u16(..)
    } else {
        random.u16(..2500)
    };
    let flags = if wrong && random.bool() {
        1 << random.u32(..16)
    } else {
        random.u16(..4)
    };
    Response {
        id,
        offset,
        flags,
        status,
    }
}

fn draw(random: &mut Rng, world: &World) -> Deed {
    let excess = if random.u32(..2000) == 0 {
        [random.u32(..), random.u32(..40), u32::MAX][random.usize(..3)]
    } else {
        0
    };
    let mut take = |outstanding: &BTreeSet<u16>, sent: bool| {
        let mut left = outstanding.clone();
        let count = random.usize(..=left.len());
        let mut responses = Vec::new();
        for _ in 0..count {
            let mut response = draw_response(random, &left);
            if sent && response.status > 0 && random.u32(..400) != 0 {
                response.status = 0;
            }
            left.remove(&response.id);
            responses.push(response);
        }
        responses
    };
    let receive = take(&world.rx_outstanding, false);
    let transmit = take(&world.tx_outstanding, true);
    match random.u8(..16) {
        0..8 => Deed::Receive(receive, excess),
        8..14 => Deed::Transmit(transmit, excess),
        14 => Deed::Scribble {
            receive: random.bool(),
            offset: [REQ_PROD, REQ_EVENT, RSP_EVENT][random.usize(..3)],
            value: random.u32(..),
        },
        _ => Deed::Garbage(random.u8(..)),
    }
}

fn seed() -> u64 {
    match std::env::var(SEED) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |time| time.as_nanos() as u64),
    }
}

#[test]
fn a_million_random_responses_are_each_judged_as_the_protocol_says() {
    let seed = seed();
    println!("{SEED}={seed}");
    let mut random = Rng::with_seed(seed);
    let mut world = World::new();
    let mut responses = 0;
    let mut faults = [0u64; 6];
    while responses < COUNT {
        let deed = draw(&mut random, &world);
        if let Deed::Receive(list, _) | Deed::Transmit(list, _) = &deed {
            responses += list.len() as u64;
        }
        let kind = match world.play(&deed) {
            None => continue,
            Some(Fault::Index { .. }) => 0,
            Some(Fault::Id {
                ring: Direction::Receive,
                ..
            }) => 1,
            Some(Fault::Id { .. }) => 2,
            Some(Fault::Status { .. }) => 3,
            Some(Fault::Range { .. }) => 4,
            Some(Fault::Flags(_)) => 5,
        };
        faults[kind] += 1;
    }
    println!("{responses} responses, faults {faults:?}, {:?}", world.statistics);
    assert!(faults.iter().all(|&count| count > 10), "{faults:?}");
    assert!(world.statistics.received_frames > COUNT / 10);
    assert!(world.statistics.receive_dropped > COUNT / 100);
    assert!(world.statistics.send_dropped > COUNT / 100);
}

fn responses() -> impl Strategy<Value = Response> {
    let ids = prop_oneof![12 => 0u16..RX as u16, 1 => 0u16..40, 1 => any::<u16>()];
    let statuses = prop_oneof![8 => 14i16..1519, 3 => -2i16..1, 1 => Just(0), 1 => Just(1), 1 => Just(1519), 1 => any::<i16>()];
    let offsets = prop_oneof![8 => 0u16..2500, 1 => any::<u16>()];
    let flags = prop_oneof![12 => 0u16..4, 1 => any::<u16>()];
    (ids, offsets, flags, statuses).prop_map(|(id, offset, flags, status)| Response {
        id,
        offset,
        flags,
        status,
    })
}

fn deeds() -> impl Strategy<Value = Deed> {
    let list = || proptest::collection::vec(responses(), 0..6);
    let excess = || prop_oneof![12 => Just(0u32), 1 => 0u32..40, 1 => any::<u32>()];
    prop_oneof![
        4 => (list(), excess()).prop_map(|(list, excess)| Deed::Receive(list, excess)),
        3 => (list(), excess()).prop_map(|(list, excess)| Deed::Transmit(list, excess)),
        1 => (any::<bool>(), proptest::sample::select(vec![REQ_PROD, REQ_EVENT, RSP_EVENT]), any::<u32>())
            .prop_map(|(receive, offset, value)| Deed::Scribble { receive, offset, value }),
        1 => any::<u8>().prop_map(Deed::Garbage),
    ]
}

proptest! {
    #[test]
    fn whatever_a_backend_does_comes_out_as_the_protocol_says(deeds in proptest::collection::vec(deeds(), 1..40)) {
        let mut world = World::new();
        for deed in &deeds {
            world.play(deed);
        }
    }

    #[test]
    fn any_bytes_in_both_rings_end_in_frames_or_in_one_fault(
        rx in proptest::collection::vec(any::<u8>(), 4096),
        tx in proptest::collection::vec(any::<u8>(), 4096),
        near in 0u32..24,
    ) {
        let mut world = World::new();
        world.rx.copy_in(0, &rx);
        world.tx.copy_in(0, &tx);
        world.rx.store(RSP_PROD, near);
        // It ends, without a panic; what comes of it the test above says.
        let _ = world.look();
        world.connect();
    }
}
