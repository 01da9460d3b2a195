//! Responses that the protocol does not allow: each ends the connection, in words, and nothing else.

mod common;

use common::host::{BACKEND, Host, frame};
use common::netback::{RSP_PROD, Rings};
use netfront::fault::Direction::{Receive, Transmit};
use netfront::{FRAME_MAX, Fault, RX, TX};
use xenbus::pciif::SharedPage;
use xenbus::state::XenbusState::*;

/// The network is given up with these words in the error node, the backend has been told, and it works again once the
/// backend begins anew.
fn is_given_up(host: &mut Host, fault: Fault) {
    let mut buffer = [0; FRAME_MAX];
    let before = *host.netfront.statistics();
    assert_eq!(
        host.netfront.receive(&mut host.machine, &mut buffer),
        None,
        "{fault}"
    );
    assert!(!host.netfront.can_transmit(&mut host.machine), "{fault}");
    assert!(!host.netfront.is_connected(), "{fault}");
    assert_eq!(host.netfront.statistics().faults, before.faults + 1, "{fault}");
    assert_eq!((host.machine.granted(), host.machine.ports()), (vec![], 0));
    assert!(host.netfront.wants_reconcile());
    host.settle_frontend();
    assert!(!host.netfront.wants_reconcile());
    assert_eq!(host.error_node(), format!("-71 {fault}"));
    assert_eq!(host.frontend_state(), Closing);
    // The backend follows, and that is the end, however often anybody looks.
    host.settle();
    assert_eq!((host.netback.state(), host.frontend_state()), (Closed, Closed));
    for _ in 0..3 {
        host.reconcile();
        host.settle();
        assert!(!host.netfront.is_connected(), "{fault}");
    }
    host.netback.begin();
    host.settle();
    assert!(host.netfront.is_connected(), "{fault}");
    assert!(host.rings().deliver(&frame(60, 3)));
    assert_eq!(host.receive_all(), [frame(60, 3)]);
    assert_eq!(host.netfront.statistics().connections, before.connections + 1);
}

/// A connected host, after `act` of its backend.
fn after(act: impl FnOnce(&mut Rings)) -> Host {
    let mut host = Host::connected();
    for mark in 0..3 {
        assert!(host.send(&frame(60, mark)));
    }
    act(host.rings());
    host
}

#[test]
fn an_index_that_no_request_is_behind() {
    for (ahead, responses) in [
        (RX as u32 + 1, RX as u32 + 1),
        (256, 256),
        (u32::MAX, u32::MAX),
        (0x8000_0000, 0x8000_0000),
    ] {
        let mut host = after(|rings| rings.rx.store(RSP_PROD, ahead));
        let fault = Fault::Index {
            ring: Receive,
            responses,
            requests: RX as u32,
        };
        is_given_up(&mut host, fault);
    }
    for ahead in [4, TX as u32, u32::MAX] {
        let mut host = after(|rings| rings.tx.store(RSP_PROD, ahead));
        let fault = Fault::Index {
            ring: Transmit,
            responses: ahead,
            requests: 3,
        };
        is_given_up(&mut host, fault);
    }
}

#[test]
fn an_index_that_goes_back() {
    let mut host = after(|rings| {
        assert!(rings.deliver(&frame(60, 1)));
    });
    assert_eq!(host.receive_all().len(), 1);
    host.rings().rx.store(RSP_PROD, 0);
    let fault = Fault::Index {
        ring: Receive,
        responses: u32::MAX,
        requests: RX as u32,
    };
    is_given_up(&mut host, fault);
}

#[test]
fn an_id_that_is_none() {
    for id in [RX as u16, 255, 256, u16::MAX] {
        let mut host = after(|rings| rings.respond_rx(id, 0, 0, 60));
        is_given_up(&mut host, Fault::Id { ring: Receive, id });
    }
    for id in [3, TX as u16, u16::MAX] {
        let mut host = after(|rings| rings.respond_tx(id, 0));
        is_given_up(&mut host, Fault::Id { ring: Transmit, id });
    }
}

#[test]
fn an_answer_given_twice() {
    let mut host = after(|rings| {
        rings.respond_rx(5, 0, 0, -1);
        rings.respond_rx(5, 0, 0, -1);
    });
    is_given_up(&mut host, Fault::Id { ring: Receive, id: 5 });
    let mut host = after(|rings| {
        rings.respond_tx(0, 0);
        rings.respond_tx(0, 0);
    });
    is_given_up(
        &mut host,
        Fault::Id {
            ring: Transmit,
            id: 0,
        },
    );
}

#[test]
fn an_answer_to_a_request_that_was_not_shown_yet() {
    let mut host = after(|_| {});
    // In the ring, where the backend can see it, but not flushed.
    assert!(host.netfront.transmit(&mut host.machine, &frame(60, 9)));
    host.rings().respond_tx(3, 0);
    is_given_up(
        &mut host,
        Fault::Id {
            ring: Transmit,
            id: 3,
        },
    );
    // Nor do such requests count.
    let mut host = after(|_| {});
    assert!(host.netfront.transmit(&mut host.machine, &frame(60, 9)));
    for id in 0..4 {
        host.rings().respond_tx(id, 0);
    }
    let fault = Fault::Index {
        ring: Transmit,
        responses: 4,
        requests: 3,
    };
    is_given_up(&mut host, fault);
    let mut host = after(|rings| {
        assert!(rings.deliver(&frame(60, 1)));
    });
    let mut buffer = [0; FRAME_MAX];
    assert_eq!(host.netfront.receive(&mut host.machine, &mut buffer), Some(60));
    host.rings().respond_rx(0, 0, 0, 60);
    is_given_up(&mut host, Fault::Id { ring: Receive, id: 0 });
}

#[test]
fn a_frame_that_is_none() {
    for (offset, status) in [
        (0, 0),
        (0, 13),
        (0, FRAME_MAX as i16 + 1),
        (0, i16::MAX),
        (4096 - 59, 60),
        (4096, 14),
        (u16::MAX, 60),
        (4096 - 1517, 1518),
    ] {
        let mut host = after(|rings| rings.respond_rx(0, offset, 0, status));
        let fault = Fault::Range {
            offset,
            length: status as u16,
        };
        is_given_up(&mut host, fault);
    }
    // One without a checksum is checked all the same.
    let mut host = after(|rings| rings.respond_rx(0, 0, 2, 13));
    is_given_up(
        &mut host,
        Fault::Range {
            offset: 0,
            length: 13,
        },
    );
}

#[test]
fn flags_that_were_not_negotiated() {
    for bit in 2..16 {
        for status in [60, -1] {
            let mut host = after(|rings| rings.respond_rx(0, 0, 1 << bit, status));
            is_given_up(&mut host, Fault::Flags(1 << bit));
        }
    }
}

#[test]
fn a_status_of_a_sent_frame_that_is_none() {
    for status in [1, 2, i16::MAX] {
        let mut host = after(|rings| rings.respond_tx(0, status));
        let fault = Fault::Status {
            ring: Transmit,
            status,
        };
        is_given_up(&mut host, fault);
    }
}

#[test]
fn words_of_a_fault_name_what_was_wrong_and_the_next_step() {
    for (fault, words) in [
        (
            Fault::Index {
                ring: Receive,
                responses: 40,
                requests: 16,
            },
            "40 responses to 16 requests in the receive ring",
        ),
        (
            Fault::Id {
                ring: Transmit,
                id: 9,
            },
            "a response to request 9 in the transmit ring, which waits for none",
        ),
        (
            Fault::Status {
                ring: Transmit,
                status: 1,
            },
            "status 1 in the transmit ring",
        ),
        (
            Fault::Range {
                offset: 4000,
                length: 1500,
            },
            "a frame of 1500 bytes at 4000 of its page",
        ),
        (
            Fault::Flags(4),
            "a frame with flags 0x4, which were not negotiated",
        ),
    ] {
        let text = fault.to_string();
        assert_eq!(
            text,
            format!("{words}; see the backend's domain, and attach the vif anew")
        );
    }
}

#[test]
fn a_fault_of_a_device_that_is_made_anew_does_not_concern_the_new_one() {
    for detached in [true, false] {
        let mut host = after(|rings| rings.respond_rx(99, 0, 0, 60));
        assert!(host.receive_all().is_empty());
        assert!(host.netfront.wants_reconcile());
        host.netback.disconnect();
        if detached {
            host.detach(BACKEND);
            host.settle_frontend();
            assert!(!host.netfront.wants_reconcile());
        }
        host.attach(BACKEND);
        host.netback.begin();
        host.settle();
        assert!(host.netfront.is_connected());
        assert_eq!(host.error_node(), "");
    }
}

#[test]
fn a_fault_is_told_again_where_xenstore_refuses_to_hear_of_it() {
    use xenbus::wire::ErrorName;
    for after_requests in 0..10 {
        let mut host = after(|rings| rings.respond_rx(99, 0, 0, 60));
        assert!(host.receive_all().is_empty());
        host.refuse_request(after_requests, ErrorName::Enospc);
        for _ in 0..4 {
            host.settle_frontend();
            host.reconcile();
        }
        assert_eq!(host.frontend_state(), Closing, "{after_requests}");
        host.settle();
        assert_eq!(host.frontend_state(), Closed);
    }
}
