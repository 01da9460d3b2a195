//! What other frontends got wrong, each by the number of its advisory (<https://xenbits.xen.org/xsa/>).

mod common;

use common::host::{Host, frame};
use common::netback::{RSP_PROD, rx_slot, tx_slot};
use netfront::{FRAME_MAX, Fault, PAGES, RX, TX};
use xenbus::client::Store;
use xenbus::pciif::SharedPage;
use xenbus::pciif::page::PAGE_SIZE;
use xenbus::state::XenbusState::*;

/// A page's contents.
fn contents(host: &Host, grant: u32) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_SIZE];
    host.machine.page(grant).memory().copy_out(0, &mut bytes);
    bytes
}

#[test]
fn xsa_39_an_index_far_away_costs_one_look() {
    let mut host = Host::connected();
    let rings = [host.rings().rx.clone(), host.rings().tx.clone()];
    for ring in &rings {
        ring.record_reads();
        ring.store(RSP_PROD, 0x7fff_ffff);
    }
    assert_eq!(host.receive_all(), Vec::<Vec<u8>>::new());
    for ring in rings {
        assert_eq!(ring.take_reads(), []);
    }
    assert!(!host.netfront.is_connected());
}

#[test]
fn xsa_155_a_response_is_read_once_and_a_frame_is_read_once() {
    let mut host = Host::connected();
    host.send(&frame(60, 1));
    let sent = host.rings().take_sent().unwrap();
    let (id, grant) = host.rings().take_wanted().unwrap();
    let page = host.machine.page(grant);
    page.memory().copy_in(100, &frame(1000, 5));
    let (rx, tx) = (host.rings().rx.clone(), host.rings().tx.clone());
    // The backend changes each byte as soon as it has been read.
    for page in [&page, &rx, &tx] {
        page.record_reads();
        page.spoil_what_is_read();
    }
    host.rings().respond_rx(id, 100, 0, 1000);
    host.rings().respond_tx(sent.id, 0);
    assert_eq!(host.receive_all(), [frame(1000, 5)]);
    assert!(host.netfront.can_transmit(&mut host.machine));
    assert!(host.netfront.is_connected());
    assert_eq!(page.take_reads(), [(100, 1100)]);
    assert_eq!(rx.take_reads(), [(rx_slot(0), rx_slot(1))]);
    assert_eq!(tx.take_reads(), [(tx_slot(0), tx_slot(0) + 4)]);
}

#[test]
fn xsa_349_state_changes_without_end_take_neither_memory_nor_steps_without_end() {
    let mut host = Host::connected();
    for _ in 0..200 {
        for _ in 0..50 {
            host.netback.set_state(Connected);
        }
        // One look for all of them, and nothing is written.
        let before = host.requests.get();
        assert!(host.step());
        assert_eq!(host.requests.get() - before, 5);
        assert!(!host.step());
    }
    assert!(host.rings().deliver(&frame(60, 1)));
    assert_eq!(host.receive_all().len(), 1);
}

#[test]
fn xsa_349_connections_without_end_leave_nothing_behind() {
    let mut host = Host::connected();
    for _ in 0..300 {
        host.netback.disconnect();
        host.netback.set_state(Closed);
        host.settle_frontend();
        host.netback.begin();
        host.settle();
        assert_eq!((host.machine.granted().len(), host.machine.ports()), (PAGES, 1));
    }
}

#[test]
fn xsa_391_events_without_end_cost_the_user_one_look_each() {
    use drivers::platform::Platform;
    let mut host = Host::connected();
    let port = host.netfront.port().unwrap();
    let (requests, events) = (host.requests.get(), host.events_sent());
    let mut buffer = [0; FRAME_MAX];
    let memory = allocation_counter::measure(|| {
        for _ in 0..100_000 {
            host.machine.notify_frontend(port);
            assert!(host.machine.take_pending(port));
            assert_eq!(host.netfront.receive(&mut host.machine, &mut buffer), None);
            host.netfront.flush(&mut host.machine);
            assert!(!host.netfront.arm());
        }
    });
    assert_eq!(memory.count_total, 0);
    assert_eq!((host.requests.get(), host.events_sent()), (requests, events));
    assert!(host.netfront.is_connected());
}

#[test]
fn xsa_391_answers_without_end_are_handed_up_in_bounded_numbers() {
    let mut host = Host::connected();
    let mut buffer = [0; FRAME_MAX];
    for round in 1..=1000 {
        // The backend answers each request the moment it sees it. In between the user has turns of other work.
        while host.rings().deliver(&frame(60, 1)) {}
        let mut taken = 0;
        while host.netfront.receive(&mut host.machine, &mut buffer).is_some() {
            taken += 1;
            assert!(!host.rings().deliver(&frame(60, 2)), "a page before the flush");
        }
        assert_eq!(taken, RX);
        host.netfront.flush(&mut host.machine);
        assert_eq!(host.netfront.statistics().received_frames, (round * RX) as u64);
    }
    // Answers without a frame likewise: one call ends.
    for _ in 0..RX {
        let (id, _) = host.rings().take_wanted().unwrap();
        host.rings().respond_rx(id, 0, 0, -1);
    }
    assert_eq!(host.netfront.receive(&mut host.machine, &mut buffer), None);
    assert_eq!(host.netfront.statistics().receive_dropped, RX as u64);
}

#[test]
fn xsa_396_pages_that_the_backend_keeps_are_not_used_again() {
    let mut host = Host::connected();
    let kept = [host.rings().rx.clone(), host.rings().tx.clone()];
    let before = host.machine.granted();
    // It keeps the page of a frame too.
    assert!(host.send(&frame(1000, 1)));
    let sent = host.rings().take_sent().unwrap();
    let third = host.machine.map(2, sent.grant).unwrap();
    let frames: Vec<Vec<u8>> = [&kept[0], &kept[1], &third]
        .into_iter()
        .map(|page| {
            let mut bytes = vec![0; PAGE_SIZE];
            page.memory().copy_out(0, &mut bytes);
            bytes
        })
        .collect();
    // The connection ends, and the backend unmaps nothing.
    let rings = host.netback.rings.take();
    host.netback.set_state(Closed);
    host.settle_frontend();
    assert_eq!(host.machine.granted(), []);
    host.netback.begin();
    host.settle();
    assert!(host.netfront.is_connected());
    let after = host.machine.granted();
    let reused: Vec<_> = before.iter().filter(|grant| after.contains(grant)).collect();
    assert_eq!(reused.len(), PAGES - 3);
    assert!(host.send(&frame(FRAME_MAX, 77)));
    assert_eq!(host.rings().collect(), [frame(FRAME_MAX, 77)]);
    for (page, bytes) in [&kept[0], &kept[1], &third].into_iter().zip(frames) {
        let mut now = vec![0; PAGE_SIZE];
        page.memory().copy_out(0, &mut now);
        assert!(now == bytes, "a page that the backend has kept has changed");
    }
    drop(rings);
}

#[test]
fn xsa_396_what_the_backend_keeps_may_use_up_the_pages_and_no_more() {
    let mut host = Host::connected();
    // Two connections' worth of pages are there. The backend keeps all of them.
    for _ in 0..2 {
        for grant in host.machine.granted() {
            host.machine.map(2, grant).unwrap();
        }
        host.netback.set_state(Closed);
        host.settle_frontend();
        host.netback.rings = None;
        host.netback.begin();
        host.settle();
    }
    assert!(!host.netfront.is_connected());
    assert_eq!(host.machine.granted(), []);
    assert!(host.error_node().starts_with("-28 "), "{}", host.error_node());
}

#[test]
fn xsa_403_a_shared_page_holds_one_frame_and_zeros() {
    let mut host = Host::connected();
    // All pages but the rings are zeroed when they are granted, and no page is granted twice.
    let rings = ["tx-ring-ref", "rx-ring-ref"]
        .map(|key| host.netback.published(key).unwrap().parse::<u32>().unwrap());
    let granted = host.machine.granted();
    assert_eq!(granted.len(), PAGES);
    for grant in granted.iter().filter(|grant| !rings.contains(grant)) {
        assert!(contents(&host, *grant).iter().all(|&byte| byte == 0));
    }
    // In the rings are indices, and requests of their own slots alone.
    let rx = contents(&host, rings[1]);
    assert!(rx[16..64].iter().all(|&byte| byte == 0));
    assert!(rx[rx_slot(RX as u32)..].iter().all(|&byte| byte == 0));
    assert!(contents(&host, rings[0])[16..].iter().all(|&byte| byte == 0));
    // A long frame, then a short one in the same page, and again.
    for (length, mark) in [
        (1500, 1),
        (60, 2),
        (14, 3),
        (15, 4),
        (1518, 5),
        (64, 6),
        (128, 7),
        (100, 8),
    ] {
        assert!(host.send(&frame(length, mark)));
        let sent = host.rings().take_sent().unwrap();
        let page = contents(&host, sent.grant);
        assert_eq!(page[..length], frame(length, mark));
        assert!(
            page[length..].iter().all(|&byte| byte == 0),
            "after {length} bytes"
        );
        host.rings().respond_tx(sent.id, 0);
    }
}

#[test]
fn xsa_403_requests_to_send_say_no_more_than_they_must() {
    let mut host = Host::connected();
    for mark in 0..TX as u8 {
        assert!(host.send(&frame(60 + usize::from(mark), mark)));
    }
    for mark in 0..TX as u16 {
        let sent = host.rings().take_sent().unwrap();
        assert_eq!((sent.offset, sent.flags), (0, 0));
        assert_eq!((sent.id, sent.size), (mark, 60 + mark));
    }
}

#[test]
fn xsa_405_a_response_to_a_request_that_is_not_outstanding_hands_up_nothing() {
    let mut host = Host::connected();
    assert!(host.rings().deliver(&frame(60, 1)));
    assert_eq!(host.receive_all().len(), 1);
    // Page 0 is in a new request; it is answered, and then answered again.
    assert!(host.rings().take_wanted().is_some());
    host.rings().respond_rx(1, 0, 0, 60);
    assert_eq!(host.receive_all().len(), 1);
    host.rings().respond_rx(2, 0, 0, 60);
    host.rings().respond_rx(2, 0, 0, 60);
    assert_eq!(host.receive_all().len(), 1);
    assert!(!host.netfront.is_connected());
    assert!(host.netfront.wants_reconcile());
}

#[test]
fn xsa_432_frames_in_several_slots_are_neither_taken_nor_sent() {
    for (flags, name) in [
        (4, "more data"),
        (8, "extra information"),
        (16, "a prefix for GSO"),
    ] {
        let mut host = Host::connected();
        for _ in 0..RX {
            let (id, _) = host.rings().take_wanted().unwrap();
            host.rings().respond_rx(id, 0, flags, 1500);
        }
        assert_eq!(host.receive_all(), Vec::<Vec<u8>>::new(), "{name}");
        host.settle_frontend();
        assert_eq!(host.error_node(), format!("-71 {}", Fault::Flags(flags)));
    }
    let mut host = Host::connected();
    assert!(!host.send(&frame(FRAME_MAX + 1, 1)));
    assert_eq!(host.rings().take_sent(), None);
    for key in ["feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6"] {
        let told = host
            .toolstack
            .read(&format!("/local/domain/4/device/vif/0/{key}"))
            .unwrap();
        assert_eq!(told, "0", "{key}");
    }
}
