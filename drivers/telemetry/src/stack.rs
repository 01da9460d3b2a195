//! smoltcp's interface and the sockets: DHCP, syslog, HTTP.

use crate::device::{Buffers, Device, Frames, NoFrames};
use crate::line_ring::LineRing;
use crate::server::{ANSWER_MAX, Figures, Server};
use crate::settings::{Settings, is_host};
use crate::syslog::{self, MESSAGE_MAX, Origin};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::time::Duration;
use drivers::log;
use drivers::platform::sooner;
use smoltcp::iface::{
    Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet, SocketStorage,
};
use smoltcp::socket::{dhcpv4, tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{DhcpOption, EthernetAddress, IpCidr, IpEndpoint, Ipv4Cidr};

/// Connections of HTTP at a time: a scrape, and somebody who looks.
const SERVERS: usize = 3;
const SOCKETS: usize = SERVERS + 2;
/// Frames that one turn sends at most.
const SENT_MAX: usize = 8;
/// Steps with lines in one turn at most: a line is given to the device, or is found to have left it, or is left out.
const LINE_STEPS: usize = 16;
/// Pause until the next look at a line that is under way. It doubles, for a device may be down.
const UNDER_WAY: Duration = Duration::from_millis(1);
const UNDER_WAY_MAX: Duration = Duration::from_secs(1);
/// A server can change its mind without end: there is one line about DHCP in this time, ...
const DHCP_PACE: Duration = Duration::from_secs(5);
/// ... and so much of it may be used at once.
const DHCP_BURST: Duration = Duration::from_secs(20);
/// Any port but 0 would do: nothing is received.
const SYSLOG_PORT: u16 = 514;
/// DHCP's option for the name of a host (RFC 2132, 3.14).
const HOST_NAME: u8 = 12;

/// What one turn works with.
pub struct Turn<'a, 'o> {
    /// The device.
    pub frames: &'a mut dyn Frames,
    /// Time since boot.
    pub now: Duration,
    /// Frames that may be received.
    pub frames_max: u32,
    /// Whose lines are sent.
    pub origin: &'a Origin<'o>,
}

/// What a turn has done, and when the next one is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turned {
    /// Frames received.
    pub received: u32,
    /// `None`: not before a frame comes.
    pub until: Option<Duration>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Lines sent.
    pub lines: u64,
}

/// The interface and its sockets. All memory is taken when it is made.
pub struct Stack<const LINES: usize> {
    interface: Interface,
    sockets: SocketSet<'static>,
    buffers: Box<Buffers>,
    settings: Settings,
    lines: &'static LineRing<LINES>,
    dhcp: Option<SocketHandle>,
    syslog: Option<(SocketHandle, IpEndpoint)>,
    servers: [(SocketHandle, Server); SERVERS],
    /// Number of the line that is with the socket or the device.
    under_way: Option<u32>,
    /// Pause until the next look at it.
    pause: Duration,
    /// When the next line about DHCP would be due if each had kept [`DHCP_PACE`].
    paced: Duration,
    served: Served,
}

fn instant(time: Duration) -> Instant {
    Instant::from_micros(i64::try_from(time.as_micros()).unwrap_or(i64::MAX))
}

/// A name as hosts may have one (RFC 1123, 2.1): letters, digits and `-`, 63 at most.
fn host_name(name: &str) -> Vec<u8> {
    let letter = |byte: u8| if byte.is_ascii_alphanumeric() { byte } else { b'-' };
    name.bytes().take(63).map(letter).collect()
}

fn leak(bytes: usize) -> &'static mut [u8] {
    Box::leak(vec![0; bytes].into_boxed_slice())
}

impl<const LINES: usize> Stack<LINES> {
    /// An interface with this hardware address. `seed` makes its choices (port numbers, sequence numbers) differ from those
    /// of others; `name` is the host name for DHCP.
    pub fn new(
        address: [u8; 6],
        settings: Settings,
        name: &str,
        lines: &'static LineRing<LINES>,
        seed: u64,
        now: Duration,
    ) -> Self {
        let mut config = Config::new(EthernetAddress(address).into());
        config.random_seed = seed;
        let mut buffers = Box::<Buffers>::default();
        let mut device = Device {
            frames: &mut NoFrames,
            buffers: &mut buffers,
        };
        let mut interface = Interface::new(config, &mut device, instant(now));
        let storage = Box::leak(Box::new([SocketStorage::EMPTY; SOCKETS]));
        let mut sockets = SocketSet::new(&mut storage[..]);
        let dhcp = match settings.network {
            Some(network) => {
                let cidr = Ipv4Cidr::new(network.address, network.prefix);
                configure(&mut interface, cidr, settings.gateway);
                None
            }
            None => {
                let mut socket = dhcpv4::Socket::new();
                let option = DhcpOption {
                    kind: HOST_NAME,
                    data: Box::leak(host_name(name).into_boxed_slice()),
                };
                socket.set_outgoing_options(Box::leak(Box::new([option])));
                Some(sockets.add(socket))
            }
        };
        let syslog = settings.syslog.map(|(address, port)| {
            let packet = |bytes| {
                let metadata = Box::leak(Box::new([udp::PacketMetadata::EMPTY; 1]));
                udp::PacketBuffer::new(&mut metadata[..], leak(bytes))
            };
            let mut socket = udp::Socket::new(packet(1), packet(MESSAGE_MAX));
            let _ = socket.bind(SYSLOG_PORT);
            (sockets.add(socket), IpEndpoint::new(address.into(), port))
        });
        let servers = core::array::from_fn(|_| (add_server(&mut sockets), Server::IDLE));
        Self {
            interface,
            sockets,
            buffers,
            settings,
            lines,
            dhcp,
            syslog,
            servers,
            under_way: None,
            pause: UNDER_WAY,
            paced: Duration::ZERO,
            served: Served::default(),
        }
    }

    /// The device was connected anew, maybe with another hardware address. What was under way is lost.
    pub fn restart(&mut self, address: [u8; 6]) {
        self.interface.set_hardware_addr(EthernetAddress(address).into());
        // Whoever answered before may be elsewhere now.
        self.interface.update_ip_addrs(|_| {});
        if let Some(handle) = self.dhcp {
            self.interface.update_ip_addrs(|addresses| addresses.clear());
            self.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).reset();
        }
        for (handle, _) in &self.servers {
            self.sockets.get_mut::<tcp::Socket<'_>>(*handle).abort();
        }
        self.forget_line();
    }

    /// The line under way is sent again: nobody knows what has become of it.
    fn forget_line(&mut self) {
        self.under_way = None;
        if let Some((handle, _)) = self.syslog {
            let socket = self.sockets.get_mut::<udp::Socket<'_>>(handle);
            socket.close();
            let _ = socket.bind(SYSLOG_PORT);
        }
    }

    /// What was served so far.
    pub const fn served(&self) -> Served {
        self.served
    }

    /// Receives, serves and sends, each within its limit.
    pub fn turn(&mut self, turn: Turn<'_, '_>, figures: &dyn Figures) -> Turned {
        let Turn {
            frames,
            now,
            frames_max,
            origin,
        } = turn;
        let mut received = 0;
        while received < frames_max {
            let mut device = Device {
                frames: &mut *frames,
                buffers: &mut self.buffers,
            };
            let polled = self
                .interface
                .poll_ingress_single(instant(now), &mut device, &mut self.sockets);
            if polled == PollIngressSingleResult::None {
                break;
            }
            received += 1;
        }
        self.follow_dhcp(now);
        if let Some(port) = self.settings.metrics {
            for (handle, server) in &mut self.servers {
                let socket = self.sockets.get_mut(*handle);
                server.serve(socket, port, now, figures);
            }
        }
        self.send_lines(frames, origin, now);
        for _ in 0..SENT_MAX {
            if self.send(frames, now) == PollResult::None {
                break;
            }
        }
        Turned {
            received,
            until: self.due(frames, now),
        }
    }

    /// When the next turn is due.
    fn due(&mut self, frames: &mut dyn Frames, now: Duration) -> Option<Duration> {
        // An event tells of free pages.
        if !frames.can_transmit() {
            return None;
        }
        let timers = self.interface.poll_at(instant(now), &self.sockets);
        let timers = timers.map(|at| Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)));
        let line = match self.syslog {
            Some(_) if self.under_way.is_some() && frames.is_transmitting() => {
                let pause = self.pause;
                self.pause = (pause * 2).min(UNDER_WAY_MAX);
                Some(now + pause)
            }
            // The device has taken the line, so the next one can follow.
            Some((handle, _)) if self.under_way.is_some() => {
                let queued = self.sockets.get::<udp::Socket<'_>>(handle).send_queue();
                (queued == 0).then_some(now)
            }
            _ => None,
        };
        let servers = self.servers.iter().map(|(_, server)| server.due());
        servers.fold(sooner(timers, line), sooner)
    }

    fn send(&mut self, frames: &mut dyn Frames, now: Duration) -> PollResult {
        let mut device = Device {
            frames,
            buffers: &mut self.buffers,
        };
        self.interface
            .poll_egress(instant(now), &mut device, &mut self.sockets)
    }

    /// True if a line about DHCP may be logged.
    fn may_tell(&mut self, now: Duration) -> bool {
        self.paced = self.paced.max(now) + DHCP_PACE;
        let may = self.paced <= now + DHCP_BURST;
        if !may {
            self.paced -= DHCP_PACE;
        }
        may
    }

    fn follow_dhcp(&mut self, now: Duration) {
        let Some(handle) = self.dhcp else { return };
        let socket = self.sockets.get_mut::<dhcpv4::Socket<'_>>(handle);
        match socket.poll() {
            None => return,
            // smoltcp would send to the server's address when the lease is renewed.
            Some(dhcpv4::Event::Configured(lease))
                if is_host(lease.server.address) && is_host(lease.address.address()) =>
            {
                let (address, router) = (lease.address, lease.router);
                if self.interface.ipv4_addr() == Some(address.address()) {
                    return configure(&mut self.interface, address, router);
                }
                configure(&mut self.interface, address, router);
                if self.may_tell(now) {
                    let [a, b, c, d] = address.address().octets();
                    log::info!("network: DHCP gave {a}.{b}.{c}.{d}/{}", address.prefix_len());
                }
            }
            Some(_) => {
                socket.reset();
                if self.interface.ipv4_addr().is_some() && self.may_tell(now) {
                    log::warn!("network: the address is lost, DHCP is asked for another");
                }
                self.interface.update_ip_addrs(|addresses| addresses.clear());
                self.interface.routes_mut().remove_default_ipv4_route();
            }
        }
        // What waits for a neighbour's address has a source that is gone.
        self.forget_line();
    }

    /// Sends lines, one at a time. A line leaves the ring once the device has taken it: a run that ends before leaves it to
    /// the next run.
    fn send_lines(&mut self, frames: &mut dyn Frames, origin: &Origin<'_>, now: Duration) {
        let Some((handle, target)) = self.syslog else {
            // Nobody wants them.
            while self.lines.oldest().is_some() {
                self.lines.pop();
            }
            return;
        };
        if self.interface.ipv4_addr().is_none() {
            return;
        }
        for _ in 0..LINE_STEPS {
            let socket = self.sockets.get_mut::<udp::Socket<'_>>(handle);
            let oldest = self.lines.oldest();
            if let Some(number) = self.under_way {
                if socket.send_queue() > 0 || frames.is_transmitting() {
                    return;
                }
                self.under_way = None;
                self.pause = UNDER_WAY;
                self.served.lines += 1;
                // Newer lines may have displaced it meanwhile.
                if oldest.is_some_and(|line| line.number == number) {
                    self.lines.pop();
                    continue;
                }
            }
            let Some(line) = oldest else { return };
            if line.level > self.settings.syslog_level {
                self.lines.pop();
                continue;
            }
            let mut message = [0; MESSAGE_MAX];
            let length = syslog::encode(&line, origin, &mut message);
            if socket.send_slice(&message[..length], target).is_err() {
                return;
            }
            self.under_way = Some(line.number);
            self.send(frames, now);
        }
    }
}

// One copy of it in the image, whatever the number of servers.
#[inline(never)]
fn add_server(sockets: &mut SocketSet<'static>) -> SocketHandle {
    let buffer = |bytes| tcp::SocketBuffer::new(leak(bytes));
    sockets.add(tcp::Socket::new(
        buffer(crate::http::HEAD_MAX),
        buffer(ANSWER_MAX),
    ))
}

fn configure(interface: &mut Interface, address: Ipv4Cidr, gateway: Option<Ipv4Addr>) {
    interface.update_ip_addrs(|addresses| {
        addresses.clear();
        // There is room for one: smoltcp's default is two.
        let _ = addresses.push(IpCidr::Ipv4(address));
    });
    let routes = interface.routes_mut();
    // Any other could not be reached, and smoltcp would ask for its hardware address.
    let gateway = gateway.filter(|gateway| is_host(*gateway) && address.contains_addr(gateway));
    match gateway {
        // Likewise.
        Some(gateway) => _ = routes.add_default_ipv4_route(gateway),
        None => _ = routes.remove_default_ipv4_route(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_is_short_and_plain() {
        assert_eq!(host_name("web-1"), b"web-1");
        assert_eq!(host_name("a b.\u{e9}"), b"a-b---");
        assert_eq!(host_name(&"\u{1f980}".repeat(64)).len(), 63);
    }
}
