//! Frames, events, and what they cost.

mod common;

use common::host::{Host, frame};
use common::netback::{REQ_EVENT, REQ_PROD, RSP_EVENT};
use netfront::{FRAME_MAX, RX, TX};
use xenbus::pciif::SharedPage;

#[test]
fn frames_of_every_allowed_length_go_both_ways() {
    let mut host = Host::connected();
    let mut bytes = 0;
    for length in 14..=FRAME_MAX {
        assert!(host.rings().deliver(&frame(length, length as u8)));
        assert_eq!(host.receive_all(), [frame(length, length as u8)]);
        assert!(host.send(&frame(length, 7)));
        assert_eq!(host.rings().collect(), [frame(length, 7)]);
        bytes += length as u64;
    }
    let statistics = host.netfront.statistics();
    let count = (FRAME_MAX - 13) as u64;
    assert_eq!(
        (statistics.received_frames, statistics.received_bytes),
        (count, bytes)
    );
    assert_eq!((statistics.sent_frames, statistics.sent_bytes), (count, bytes));
    assert_eq!((statistics.receive_dropped, statistics.send_dropped), (0, 0));
}

#[test]
fn frames_too_long_or_too_short_are_not_sent() {
    let mut host = Host::connected();
    for length in [0, 13, FRAME_MAX + 1, 65_536 + 60] {
        assert!(!host.send(&frame(length, 1)));
    }
    assert_eq!(host.rings().collect(), Vec::<Vec<u8>>::new());
    assert_eq!(host.netfront.statistics().send_dropped, 4);
    assert_eq!(host.netfront.statistics().sent_frames, 0);
}

#[test]
fn a_frame_may_begin_anywhere_in_its_page() {
    let mut host = Host::connected();
    for offset in [0u16, 2, 64, 4096 - 60] {
        let (id, grant) = host.rings().take_wanted().unwrap();
        let page = host.machine.page(grant);
        page.memory().copy_in(offset.into(), &frame(60, offset as u8));
        // Its checksums are known to be right: a flag that changes nothing.
        host.rings().respond_rx(id, offset, 1, 60);
        assert_eq!(host.receive_all(), [frame(60, offset as u8)]);
    }
}

#[test]
fn order_is_kept_and_indices_go_round_the_ring() {
    let mut host = Host::connected();
    for round in 0..100u32 {
        let marks: Vec<u8> = (0..RX as u32).map(|n| (round * 3 + n) as u8).collect();
        for &mark in &marks {
            assert!(host.rings().deliver(&frame(64, mark)));
        }
        let frames: Vec<Vec<u8>> = marks.iter().map(|&mark| frame(64, mark)).collect();
        assert_eq!(host.receive_all(), frames);
        for frame in frames.iter().take(TX) {
            assert!(host.send(frame));
        }
        assert_eq!(host.rings().collect(), frames[..TX]);
    }
}

#[test]
fn the_backend_has_every_page_but_those_that_wait_for_the_user() {
    let mut host = Host::connected();
    assert_eq!(host.rings().wanted() as usize, RX);
    for mark in 0..RX as u8 {
        assert!(host.rings().deliver(&frame(60, mark)));
    }
    // No page is left for one frame more, until the user has taken some.
    assert!(!host.rings().deliver(&frame(60, 99)));
    let mut buffer = [0; FRAME_MAX];
    for _ in 0..3 {
        assert_eq!(host.netfront.receive(&mut host.machine, &mut buffer), Some(60));
    }
    assert_eq!(host.rings().wanted(), 0, "before the flush");
    host.netfront.flush(&mut host.machine);
    assert_eq!(host.rings().wanted(), 3, "as many as were taken");
}

#[test]
fn what_the_backend_drops_is_counted_and_not_handed_up() {
    let mut host = Host::connected();
    for (flags, status) in [(0, -1), (0, -2), (0, i16::MIN), (2, 60), (3, 60)] {
        let (id, _) = host.rings().take_wanted().unwrap();
        host.rings().respond_rx(id, 0, flags, status);
    }
    assert!(host.rings().deliver(&frame(60, 9)));
    assert_eq!(host.receive_all(), [frame(60, 9)]);
    assert_eq!(host.netfront.statistics().receive_dropped, 5);
    assert_eq!(host.rings().wanted() as usize, RX);
    for status in [-1, -2, i16::MIN] {
        assert!(host.send(&frame(60, 1)));
        let sent = host.rings().take_sent().unwrap();
        host.rings().respond_tx(sent.id, status);
    }
    assert!(host.netfront.can_transmit(&mut host.machine));
    assert_eq!(host.netfront.statistics().send_dropped, 3);
    assert!(host.netfront.is_connected());
}

#[test]
fn without_a_free_page_a_frame_is_dropped_and_sending_goes_on_after_a_response() {
    let mut host = Host::connected();
    for mark in 0..TX as u8 {
        assert!(host.netfront.can_transmit(&mut host.machine));
        assert!(host.send(&frame(60, mark)));
    }
    assert!(!host.netfront.can_transmit(&mut host.machine));
    assert!(!host.send(&frame(60, 99)));
    assert_eq!(host.netfront.statistics().send_dropped, 1);
    let sent = host.rings().take_sent().unwrap();
    host.rings().respond_tx(sent.id, 0);
    assert!(host.netfront.can_transmit(&mut host.machine));
    assert!(host.send(&frame(60, 8)));
    let frames: Vec<Vec<u8>> = (1..=8).map(|mark| frame(60, mark)).collect();
    assert_eq!(host.rings().collect(), frames);
}

#[test]
fn pages_of_frames_that_were_sent_are_free_after_a_look_for_received_ones() {
    let mut host = Host::connected();
    for mark in 0..TX as u8 {
        assert!(host.send(&frame(60, mark)));
    }
    assert_eq!(host.rings().collect().len(), TX);
    assert_eq!(host.receive_all(), Vec::<Vec<u8>>::new());
    // Nothing is left to be seen in the transmit ring, so no page is waited for.
    assert!(!host.netfront.arm());
    let sent = host.rings().tx.load(RSP_EVENT);
    assert_eq!(sent, 0);
}

#[test]
fn requests_are_seen_after_the_flush_alone() {
    let mut host = Host::connected();
    assert!(host.netfront.transmit(&mut host.machine, &frame(60, 1)));
    assert_eq!(host.rings().tx.load(REQ_PROD), 0);
    host.netfront.flush(&mut host.machine);
    assert_eq!(host.rings().tx.load(REQ_PROD), 1);
}

#[test]
fn an_event_is_sent_only_where_the_backends_index_asks_for_it() {
    let mut host = Host::connected();
    // The first request of a ring: the index says 1 from the beginning.
    assert!(host.send(&frame(60, 1)));
    assert_eq!(host.events_sent(), 1);
    // The backend has not set its index again: it is still at work.
    assert!(host.send(&frame(60, 2)));
    assert_eq!(host.events_sent(), 1);
    // It wants an event at request 3, and at 5.
    host.rings().tx.store(REQ_EVENT, 3);
    assert!(host.send(&frame(60, 3)));
    assert_eq!(host.events_sent(), 2);
    host.rings().tx.store(REQ_EVENT, 5);
    assert!(host.netfront.transmit(&mut host.machine, &frame(60, 4)));
    assert!(host.netfront.transmit(&mut host.machine, &frame(60, 5)));
    assert!(host.netfront.transmit(&mut host.machine, &frame(60, 6)));
    host.netfront.flush(&mut host.machine);
    assert_eq!(host.events_sent(), 3);
    // Pages for frames likewise.
    host.rings().rx.store(REQ_EVENT, RX as u32 + 1);
    assert!(host.rings().deliver(&frame(60, 1)));
    assert_eq!(host.receive_all().len(), 1);
    assert_eq!(host.events_sent(), 4);
    // Nothing new: no event.
    host.netfront.flush(&mut host.machine);
    assert_eq!(host.events_sent(), 4);
}

#[test]
fn received_frames_wake_and_sent_ones_do_not() {
    use drivers::platform::Platform;
    let mut host = Host::connected();
    let port = host.netfront.port().unwrap();
    assert!(!host.netfront.arm());
    assert!(host.send(&frame(60, 1)));
    host.rings().collect();
    assert!(!host.machine.take_pending(port), "a frame was sent");
    assert!(host.rings().deliver(&frame(60, 1)));
    assert!(host.machine.take_pending(port), "a frame has come");
    // While it is being handled, further ones are silent; the last look finds them.
    assert!(host.rings().deliver(&frame(60, 2)));
    assert!(!host.machine.take_pending(port));
    assert!(host.netfront.arm());
    assert_eq!(host.receive_all().len(), 2);
    assert!(!host.netfront.arm());
    assert!(host.rings().deliver(&frame(60, 3)));
    assert!(host.machine.take_pending(port));
}

#[test]
fn a_free_page_wakes_where_all_were_in_use() {
    use drivers::platform::Platform;
    let mut host = Host::connected();
    let port = host.netfront.port().unwrap();
    for mark in 0..TX as u8 {
        assert!(host.send(&frame(60, mark)));
    }
    assert!(!host.netfront.arm());
    let sent = host.rings().take_sent().unwrap();
    host.rings().respond_tx(sent.id, 0);
    assert!(host.machine.take_pending(port));
    // The last look finds a page that became free before it.
    assert!(host.netfront.can_transmit(&mut host.machine));
    assert!(host.send(&frame(60, 9)));
    let sent = host.rings().take_sent().unwrap();
    host.rings().respond_tx(sent.id, 0);
    assert!(host.netfront.arm());
    assert!(host.netfront.can_transmit(&mut host.machine));
    assert!(!host.netfront.arm());
}

#[test]
fn an_event_that_is_lost_loses_no_frame() {
    let mut host = Host::connected();
    assert!(!host.netfront.arm());
    // The backend answers, and never sends an event.
    let (id, grant) = host.rings().take_wanted().unwrap();
    host.machine.page(grant).memory().copy_in(0, &frame(60, 5));
    host.rings().rx.store(RSP_EVENT, 0);
    host.rings().respond_rx(id, 0, 0, 60);
    assert_eq!(host.receive_all(), [frame(60, 5)]);
}

#[test]
fn no_frame_costs_memory() {
    let mut host = Host::connected();
    let mut buffer = [0; FRAME_MAX];
    let data = frame(FRAME_MAX, 1);
    for _ in 0..50 {
        assert!(host.rings().deliver(&data));
        let memory = allocation_counter::measure(|| {
            assert_eq!(
                host.netfront.receive(&mut host.machine, &mut buffer),
                Some(FRAME_MAX)
            );
            assert_eq!(host.netfront.receive(&mut host.machine, &mut buffer), None);
            assert!(host.netfront.can_transmit(&mut host.machine));
            assert!(host.netfront.transmit(&mut host.machine, &data));
            host.netfront.flush(&mut host.machine);
            assert!(!host.netfront.arm());
        });
        assert_eq!(memory.count_total, 0);
        host.rings().collect();
    }
}

#[test]
fn without_a_connection_nothing_is_sent_or_received() {
    let mut host = Host::ready();
    let mut buffer = [0; FRAME_MAX];
    assert!(!host.netfront.can_transmit(&mut host.machine));
    assert!(!host.netfront.transmit(&mut host.machine, &frame(60, 1)));
    assert_eq!(host.netfront.receive(&mut host.machine, &mut buffer), None);
    host.netfront.flush(&mut host.machine);
    assert!(!host.netfront.arm());
}
