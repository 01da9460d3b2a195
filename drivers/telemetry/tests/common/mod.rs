//! A network with two ends: the stub's stack, and a peer that is made of smoltcp too.

use core::fmt::{self, Write};
use core::time::Duration;
use metrics::Format;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use telemetry::device::{FRAME_MAX, Frames};
use telemetry::line_ring::LineRing;
use telemetry::server::Figures;
use telemetry::settings::Settings;
use telemetry::stack::{Stack, Turn, Turned};
use telemetry::syslog::Origin;

pub const STUB: Ipv4Address = Ipv4Address::new(10, 0, 0, 9);
pub const PEER: Ipv4Address = Ipv4Address::new(10, 0, 0, 1);
pub const STUB_MAC: [u8; 6] = [0, 0x16, 0x3e, 1, 2, 3];
pub const PEER_MAC: [u8; 6] = [0, 0x16, 0x3e, 9, 9, 9];
pub const SETTINGS: &str = "guest=web ip=10.0.0.9/24 metrics=9743 syslog=10.0.0.1:514";

const LINES: usize = 4096;

/// Frames on their way.
#[derive(Default)]
pub struct Wire {
    pub to_stub: VecDeque<Vec<u8>>,
    pub to_peer: VecDeque<Vec<u8>>,
    /// The stub's device takes frames and does not send them.
    pub stalled: bool,
}

/// The stub's device.
pub struct StubEnd(pub Rc<RefCell<Wire>>);

impl Frames for StubEnd {
    fn receive(&mut self, into: &mut [u8; FRAME_MAX]) -> Option<usize> {
        let frame = self.0.borrow_mut().to_stub.pop_front()?;
        into[..frame.len()].copy_from_slice(&frame);
        Some(frame.len())
    }

    fn can_transmit(&mut self) -> bool {
        let wire = self.0.borrow();
        !wire.stalled || wire.to_peer.len() < 8
    }

    fn transmit(&mut self, frame: &[u8]) {
        self.0.borrow_mut().to_peer.push_back(frame.to_vec());
    }

    fn is_transmitting(&mut self) -> bool {
        let wire = self.0.borrow();
        wire.stalled && !wire.to_peer.is_empty()
    }
}

/// The peer's device.
struct PeerEnd(Rc<RefCell<Wire>>);

struct PeerRx(Vec<u8>);
struct PeerTx(Rc<RefCell<Wire>>);

impl phy::RxToken for PeerRx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl phy::TxToken for PeerTx {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut frame = vec![0; length];
        let result = write(&mut frame);
        self.0.borrow_mut().to_stub.push_back(frame);
        result
    }
}

impl phy::Device for PeerEnd {
    type RxToken<'a> = PeerRx;
    type TxToken<'a> = PeerTx;

    fn receive(&mut self, _: Instant) -> Option<(PeerRx, PeerTx)> {
        let mut wire = self.0.borrow_mut();
        let frame = if wire.stalled {
            None
        } else {
            wire.to_peer.pop_front()
        };
        Some((PeerRx(frame?), PeerTx(Rc::clone(&self.0))))
    }

    fn transmit(&mut self, _: Instant) -> Option<PeerTx> {
        Some(PeerTx(Rc::clone(&self.0)))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// Figures of a fixed text.
#[derive(Clone)]
pub struct Text(pub String);

impl Figures for Text {
    fn write(&self, _: Format, out: &mut dyn Write) -> fmt::Result {
        // In small pieces, as figures are written.
        self.0
            .as_bytes()
            .chunks(7)
            .try_for_each(|piece| out.write_str(std::str::from_utf8(piece).unwrap()))
    }
}

pub struct Lan {
    pub wire: Rc<RefCell<Wire>>,
    pub stack: Stack<LINES>,
    pub lines: &'static LineRing<LINES>,
    pub now: Duration,
    pub text: Text,
    interface: Interface,
    peer: PeerEnd,
    pub sockets: SocketSet<'static>,
}

impl Lan {
    pub fn new(settings: &str) -> Self {
        let wire = Rc::<RefCell<Wire>>::default();
        let mut peer = PeerEnd(Rc::clone(&wire));
        let mut config = Config::new(EthernetAddress(PEER_MAC).into());
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut peer, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(PEER.into(), 24)).unwrap();
        });
        let lines: &'static LineRing<LINES> = Box::leak(Box::default());
        let now = Duration::from_secs(100);
        Self {
            wire,
            stack: Stack::new(
                STUB_MAC,
                Settings::parse(settings).unwrap(),
                "web-bulkhead",
                lines,
                42,
                now,
            ),
            lines,
            now,
            text: Text("# EOF\n".into()),
            interface,
            peer,
            sockets: SocketSet::new(vec![]),
        }
    }

    /// One turn of the stub.
    pub fn turn(&mut self) -> Turned {
        let origin = Origin {
            stub: "web-bulkhead",
            domid: 7,
            guest: "web",
            devices: &[],
            booted: None,
        };
        let text = &self.text;
        self.stack.turn(
            Turn {
                frames: &mut StubEnd(Rc::clone(&self.wire)),
                now: self.now,
                frames_max: 8,
                origin: &origin,
            },
            text,
        )
    }

    /// The peer sends what it has, and the stub answers.
    pub fn exchange(&mut self) {
        let now = Instant::from_micros(self.now.as_micros() as i64);
        for _ in 0..3 {
            self.interface.poll_egress(now, &mut self.peer, &mut self.sockets);
            self.turn();
        }
    }

    /// Both ends work for a while, a millisecond at a time.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.turn();
            let now = Instant::from_micros(self.now.as_micros() as i64);
            self.interface.poll(now, &mut self.peer, &mut self.sockets);
            self.now += Duration::from_millis(1);
        }
    }

    /// The peer begins a connection to the stub's port.
    pub fn connect(&mut self, local: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 65_536]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket
            .connect(self.interface.context(), (STUB, 9743), local)
            .unwrap();
        self.sockets.add(socket)
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// All that has come over a connection.
    pub fn received(&mut self, handle: SocketHandle) -> String {
        let socket = self.tcp(handle);
        let mut text = vec![0; 65_536];
        let length = socket.recv_slice(&mut text).unwrap_or(0);
        String::from_utf8(text[..length].to_vec()).unwrap()
    }

    /// Answer to one request.
    pub fn ask(&mut self, local: u16, request: &str) -> String {
        let handle = self.connect(local);
        self.run(Duration::from_millis(20));
        self.tcp(handle).send_slice(request.as_bytes()).unwrap();
        self.run(Duration::from_millis(200));
        let answer = self.received(handle);
        assert!(!self.tcp(handle).may_recv(), "the stub has not ended its side");
        self.tcp(handle).close();
        self.run(Duration::from_millis(20));
        answer
    }

    /// The peer listens for syslog.
    pub fn collector(&mut self) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 256], vec![0; 65_536]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(514).unwrap();
        self.sockets.add(socket)
    }

    pub fn messages(&mut self, handle: SocketHandle) -> Vec<String> {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(handle);
        std::iter::from_fn(|| {
            let (bytes, _) = socket.recv().ok()?;
            Some(String::from_utf8(bytes.to_vec()).unwrap())
        })
        .collect()
    }
}
