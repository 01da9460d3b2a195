//! The stub's network against a peer.

mod common;

use common::{Lan, SETTINGS, STUB, STUB_MAC, StubEnd, Text};
use core::time::Duration;
use log::Level;
use smoltcp::socket::tcp::State;
use smoltcp::wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress,
    EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, UdpPacket,
    UdpRepr,
};
use std::rc::Rc;
use telemetry::device::Frames;

const GET: &str = "GET /metrics HTTP/1.1\r\nHost: stub\r\n\r\n";

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// What the head says of the body's length.
fn length(head: &str) -> usize {
    let value = head.lines().find_map(|line| line.strip_prefix("Content-Length:"));
    value.unwrap().trim_start().parse().unwrap()
}

/// Head and body of an answer.
fn parts(answer: &str) -> (&str, &str) {
    answer.split_once("\r\n\r\n").expect(answer)
}

#[test]
fn a_scrape_gets_all_figures_and_their_length() {
    for length in [6, 100, 4096, 30_000] {
        let mut lan = Lan::new(SETTINGS);
        let body: String = ('a'..='z').cycle().take(length).collect();
        lan.text = Text(body.clone());
        let answer = lan.ask(40_000, GET);
        let (head, text) = parts(&answer);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(
            head.contains("Content-Type: application/openmetrics-text; version=1.0.0"),
            "{head}"
        );
        assert_eq!(self::length(head), length);
        assert_eq!(text, body);
    }
}

#[test]
fn head_is_answered_without_a_body_and_all_else_is_refused() {
    let mut lan = Lan::new(SETTINGS);
    let answer = lan.ask(40_000, "HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(length(&answer) == 6 && answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = lan.ask(40_001, "GET /secret HTTP/1.1\r\n\r\n");
    let (head, body) = parts(&answer);
    assert!(head.starts_with("HTTP/1.1 404 ") && length(head) == body.len());
    assert!(
        lan.ask(40_002, "DELETE /metrics HTTP/1.1\r\n\r\n")
            .starts_with("HTTP/1.1 405 ")
    );
    assert!(lan.ask(40_003, &"x".repeat(1024)).starts_with("HTTP/1.1 431 "));
}

#[test]
fn figures_that_do_not_fit_are_an_error_and_not_half_an_answer() {
    let mut lan = Lan::new(SETTINGS);
    lan.text = Text("x".repeat(50_000));
    assert!(lan.ask(40_000, GET).starts_with("HTTP/1.1 500 "));
}

#[test]
fn one_scrape_after_the_other_finds_a_server_free() {
    let mut lan = Lan::new(SETTINGS);
    for round in 0..50 {
        assert!(lan.ask(40_000 + round, GET).ends_with("# EOF\n"), "round {round}");
    }
}

#[test]
fn clients_that_say_nothing_are_cut_off_and_others_are_served_again() {
    let mut lan = Lan::new(SETTINGS);
    let silent = [1, 2, 3].map(|number| lan.connect(number));
    lan.run(ms(100));
    assert!(
        silent
            .iter()
            .all(|handle| lan.tcp(*handle).state() == State::Established)
    );
    lan.run(ms(5100));
    for handle in silent {
        assert_eq!(lan.tcp(handle).state(), State::Closed);
    }
    assert!(lan.ask(40_000, GET).ends_with("# EOF\n"));
}

#[test]
fn a_client_that_ends_before_its_request_is_whole_frees_the_server() {
    let mut lan = Lan::new(SETTINGS);
    for number in 1..=6 {
        let handle = lan.connect(number);
        lan.run(ms(20));
        lan.tcp(handle).send_slice(b"GET /met").unwrap();
        lan.run(ms(20));
        lan.tcp(handle).close();
        lan.run(ms(20));
    }
    assert!(lan.ask(40_000, GET).ends_with("# EOF\n"));
}

#[test]
fn without_metrics_nobody_is_served() {
    let mut lan = Lan::new(&format!("{SETTINGS} metrics=off"));
    let handle = lan.connect(40_000);
    lan.run(ms(100));
    assert_eq!(lan.tcp(handle).state(), State::Closed);
}

/// The text of a message, behind its structured data.
fn text(message: &str) -> &str {
    message.rsplit_once("\"] ").expect(message).1
}

#[test]
fn every_line_arrives_once_and_in_order() {
    let mut lan = Lan::new(SETTINGS);
    let collector = lan.collector();
    // Before there is a network, and while it works.
    for number in 0..20 {
        lan.lines
            .push(Level::Info, lan.now, format!("line {number}").as_bytes());
    }
    lan.run(ms(500));
    for number in 20..200 {
        lan.lines
            .push(Level::Info, lan.now, format!("line {number}").as_bytes());
        lan.run(ms(1));
    }
    lan.run(ms(500));
    let messages = lan.messages(collector);
    let texts: Vec<&str> = messages.iter().map(|message| text(message)).collect();
    let wanted: Vec<String> = (0..200).map(|number| format!("line {number}")).collect();
    assert_eq!(texts, wanted);
    assert!(messages[7].contains("sequenceId=\"8\""), "{}", messages[7]);
    assert_eq!((lan.stack.served().lines, lan.lines.oldest()), (200, None));
}

#[test]
fn a_line_stays_until_the_device_has_taken_it() {
    let mut lan = Lan::new(SETTINGS);
    let collector = lan.collector();
    lan.lines.push(Level::Info, lan.now, b"first");
    lan.run(ms(100));
    assert_eq!(lan.messages(collector).len(), 1);
    lan.wire.borrow_mut().stalled = true;
    lan.lines.push(Level::Info, lan.now, b"second");
    lan.run(ms(300));
    assert_eq!(lan.lines.oldest().unwrap().text(), b"second");
    // The device is connected anew: what it had taken is lost, and sent again.
    lan.wire.borrow_mut().to_peer.clear();
    lan.wire.borrow_mut().stalled = false;
    lan.stack.restart(STUB_MAC);
    lan.run(ms(2000));
    let messages = lan.messages(collector);
    assert_eq!(
        messages.iter().map(|message| text(message)).collect::<Vec<_>>(),
        ["second"]
    );
}

#[test]
fn lines_below_the_level_are_not_sent() {
    let mut lan = Lan::new(&format!("{SETTINGS} sysloglevel=warn"));
    let collector = lan.collector();
    for level in [Level::Info, Level::Warn, Level::Debug, Level::Error] {
        lan.lines.push(level, lan.now, level.as_str().as_bytes());
    }
    lan.run(ms(500));
    let messages = lan.messages(collector);
    assert_eq!(
        messages.iter().map(|message| text(message)).collect::<Vec<_>>(),
        ["WARN", "ERROR"]
    );
    assert_eq!(lan.lines.oldest(), None);
}

#[test]
fn lines_that_nobody_wants_do_not_pile_up() {
    let mut lan = Lan::new("ip=10.0.0.9/24");
    lan.lines.push(Level::Info, lan.now, b"x");
    lan.run(ms(10));
    assert_eq!(lan.lines.oldest(), None);
}

#[test]
fn an_idle_network_asks_for_no_turn() {
    let mut lan = Lan::new(SETTINGS);
    lan.run(ms(100));
    assert_eq!(lan.turn().until, None);
    lan.ask(40_000, GET);
    lan.run(Duration::from_secs(30));
    assert_eq!(lan.turn().until, None);
}

#[test]
fn a_target_that_does_not_answer_causes_a_few_turns_a_second() {
    let mut lan = Lan::new("ip=10.0.0.9/24 syslog=10.0.0.77:514");
    lan.lines.push(Level::Info, lan.now, b"x");
    lan.run(ms(50));
    let (mut turns, end) = (0, lan.now + Duration::from_secs(30));
    while lan.now < end {
        let until = lan.turn().until.expect("it tries again");
        lan.now = until.max(lan.now + ms(1));
        turns += 1;
    }
    assert!(turns < 60, "{turns} turns in 30 s");
    assert!(lan.lines.oldest().is_some());
}

/// The stub's DHCP message in a frame, if it is one: what it asks, and its transaction.
fn dhcp_of(frame: &[u8]) -> Option<(DhcpMessageType, u32, bool)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
    if datagram.dst_port() != DHCP_SERVER_PORT {
        return None;
    }
    let packet = DhcpPacket::new_checked(datagram.payload()).ok()?;
    let named = packet
        .options()
        .any(|option| option.kind == 12 && option.data == b"web-bulkhead");
    let repr = DhcpRepr::parse(&packet).ok()?;
    Some((repr.message_type, repr.transaction_id, named))
}

/// A DHCP server's answer, as a frame.
fn dhcp_answer(message_type: DhcpMessageType, transaction_id: u32) -> Vec<u8> {
    let server = common::PEER;
    dhcp_answer_of(message_type, transaction_id, server, server, STUB, 600)
}

/// The same from another sender, with another router, address and lease, in seconds.
fn dhcp_answer_of(
    message_type: DhcpMessageType,
    transaction_id: u32,
    server: Ipv4Address,
    router: Ipv4Address,
    your_ip: Ipv4Address,
    lease: u32,
) -> Vec<u8> {
    let dhcp = DhcpRepr {
        message_type,
        transaction_id,
        secs: 0,
        client_hardware_address: EthernetAddress(STUB_MAC),
        client_ip: Ipv4Address::UNSPECIFIED,
        your_ip,
        server_ip: server,
        router: Some(router),
        subnet_mask: Some(Ipv4Address::new(255, 255, 255, 0)),
        relay_agent_ip: Ipv4Address::UNSPECIFIED,
        broadcast: false,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(server),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        renew_duration: None,
        rebind_duration: None,
        lease_duration: Some(lease),
        additional_options: &[],
    };
    let udp = UdpRepr {
        src_port: DHCP_SERVER_PORT,
        dst_port: DHCP_CLIENT_PORT,
    };
    let ip = Ipv4Repr {
        src_addr: server,
        dst_addr: Ipv4Address::BROADCAST,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + dhcp.buffer_len(),
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(common::PEER_MAC),
        dst_addr: EthernetAddress(STUB_MAC),
        ethertype: EthernetProtocol::Ipv4,
    };
    let mut bytes = vec![0; 14 + ip.buffer_len() + ip.payload_len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    ethernet.emit(&mut frame);
    let checksums = smoltcp::phy::ChecksumCapabilities::default();
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &checksums);
    let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
    udp.emit(
        &mut datagram,
        &ip.src_addr.into(),
        &ip.dst_addr.into(),
        dhcp.buffer_len(),
        |payload| dhcp.emit(&mut DhcpPacket::new_unchecked(payload)).unwrap(),
        &checksums,
    );
    bytes
}

#[test]
fn an_address_comes_by_dhcp_and_the_server_hears_the_stubs_name() {
    let mut lan = Lan::new("syslog=10.0.0.1:514");
    let collector = lan.collector();
    lan.lines.push(Level::Info, lan.now, b"early");
    let mut asked = Vec::new();
    for _ in 0..3000 {
        lan.turn();
        let frames: Vec<_> = lan.wire.borrow().to_peer.iter().cloned().collect();
        for (kind, transaction, named) in frames.iter().filter_map(|frame| dhcp_of(frame)) {
            assert!(named);
            let answer = match kind {
                DhcpMessageType::Discover => DhcpMessageType::Offer,
                _ => DhcpMessageType::Ack,
            };
            asked.push(kind);
            lan.wire
                .borrow_mut()
                .to_stub
                .push_back(dhcp_answer(answer, transaction));
        }
        lan.wire
            .borrow_mut()
            .to_peer
            .retain(|frame| dhcp_of(frame).is_none());
        lan.now += ms(1);
    }
    lan.run(ms(2000));
    assert_eq!(asked, [DhcpMessageType::Discover, DhcpMessageType::Request]);
    assert_eq!(lan.messages(collector).len(), 1, "lines wait for the address");
    assert!(lan.ask(40_000, GET).ends_with("# EOF\n"));
}

#[test]
fn no_dhcp_server_does_more_than_give_no_address() {
    let odd = [
        common::PEER,
        STUB,
        Ipv4Address::UNSPECIFIED,
        Ipv4Address::BROADCAST,
        Ipv4Address::new(224, 0, 0, 1),
        Ipv4Address::new(192, 168, 7, 7),
    ];
    for choice in 0..odd.len().pow(3) {
        let [server, router, address] = [1, 6, 36].map(|place| odd[choice / place % odd.len()]);
        for lease in [0, 2, u32::MAX] {
            // The collector is in another network: the router is needed.
            let mut lan = Lan::new("syslog=172.16.0.1:514");
            lan.lines.push(Level::Info, lan.now, b"x");
            for _ in 0..200 {
                lan.turn();
                let frames: Vec<_> = lan.wire.borrow_mut().to_peer.drain(..).collect();
                for (kind, transaction, _) in frames.iter().filter_map(|frame| dhcp_of(frame)) {
                    let kind = match kind {
                        DhcpMessageType::Discover => DhcpMessageType::Offer,
                        _ => DhcpMessageType::Ack,
                    };
                    let answer = dhcp_answer_of(kind, transaction, server, router, address, lease);
                    lan.wire.borrow_mut().to_stub.push_back(answer);
                }
                lan.now += ms(50);
            }
        }
    }
}

#[test]
fn a_scan_that_ends_after_the_first_packets_costs_nothing() {
    let mut lan = Lan::new(SETTINGS);
    lan.run(ms(10));
    for port in 1..=6 {
        let handle = lan.connect(port);
        lan.exchange();
        lan.tcp(handle).abort();
        lan.run(ms(2));
    }
    lan.run(Duration::from_secs(6));
    assert_eq!(lan.turn().until, None);
    assert!(lan.ask(40_000, GET).ends_with("# EOF\n"));
}

/// 10^5 frames, each a sound one that was changed, or one of nothing but chance.
#[test]
fn no_frame_does_more_than_be_dropped() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    // Frames as they are seen in a conversation.
    let mut sound = vec![
        dhcp_answer(DhcpMessageType::Offer, 1),
        dhcp_answer(DhcpMessageType::Ack, 1),
        dhcp_answer(DhcpMessageType::Nak, 1),
    ];
    let mut other = Lan::new(SETTINGS);
    other.collector();
    for round in 0..3 {
        other.lines.push(Level::Info, other.now, b"x");
        let handle = other.connect(round + 1);
        for _ in 0..40 {
            sound.extend(other.wire.borrow().to_stub.iter().cloned());
            other.run(ms(1));
            let _ = other.tcp(handle).send_slice(GET.as_bytes());
        }
        sound.extend(other.wire.borrow().to_peer.iter().cloned());
    }
    for settings in [SETTINGS, "ip=dhcp syslog=10.0.0.1:514"] {
        flood(&mut random, &sound, Lan::new(settings));
    }
}

/// Sends 50,000 of these frames, most of them changed.
fn flood(random: &mut fastrand::Rng, sound: &[Vec<u8>], mut lan: Lan) {
    for round in 0..50_000u32 {
        let mut frame = sound[random.usize(..sound.len())].clone();
        match random.u8(..10) {
            0 => {
                frame.resize(random.usize(14..1519), 0);
                random.fill(&mut frame);
            }
            1 => frame.truncate(random.usize(14..=frame.len().max(14))),
            2 => frame.resize(random.usize(14..1519), random.u8(..)),
            _ => {}
        }
        for _ in 0..random.usize(..6) {
            let at = random.usize(..frame.len());
            frame[at] = random.u8(..);
        }
        repair(&mut frame);
        let mut wire = lan.wire.borrow_mut();
        wire.to_stub.push_back(frame);
        wire.to_peer.clear();
        drop(wire);
        if random.u8(..) == 0 {
            lan.lines.push(Level::Info, lan.now, b"line");
            lan.stack.restart(STUB_MAC);
        }
        lan.turn();
        lan.now += ms(random.u64(..20));
        assert!(StubEnd(Rc::clone(&lan.wire)).can_transmit(), "round {round}");
    }
}

/// Corrects the checksums, so that more than them is tested.
fn repair(frame: &mut [u8]) {
    let Ok(mut frame) = EthernetFrame::new_checked(frame) else {
        return;
    };
    let Ok(mut packet) = Ipv4Packet::new_checked(frame.payload_mut()) else {
        return;
    };
    packet.fill_checksum();
    let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
    match packet.next_header() {
        IpProtocol::Udp => {
            if let Ok(mut datagram) = UdpPacket::new_checked(packet.payload_mut()) {
                datagram.fill_checksum(&from, &to);
            }
        }
        IpProtocol::Tcp => {
            if let Ok(mut segment) = smoltcp::wire::TcpPacket::new_checked(packet.payload_mut()) {
                segment.fill_checksum(&from, &to);
            }
        }
        _ => {}
    }
}
