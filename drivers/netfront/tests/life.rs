//! The device's life in xenstore.

mod common;

use common::host::{BACKEND, FRONTEND, Host, MAC, frame};
use common::netback::Netback;
use netfront::PAGES;
use xenbus::client::Store;
use xenbus::state::XenbusState::*;
use xenbus::wire::ErrorName;

const VIF: &str = "/local/domain/4/device/vif/0";

/// Frames go both ways.
fn works(host: &mut Host) {
    assert!(host.netfront.is_connected());
    assert!(host.rings().deliver(&frame(60, 1)));
    assert_eq!(host.receive_all(), [frame(60, 1)]);
    assert!(host.send(&frame(70, 2)));
    assert_eq!(host.rings().collect(), [frame(70, 2)]);
}

/// The frontend shares nothing.
fn nothing_is_shared(host: &Host) {
    assert_eq!((host.machine.granted(), host.machine.ports()), (vec![], 0));
    assert_eq!(host.netfront.port(), None);
    assert!(!host.netfront.is_connected());
}

#[test]
fn a_backend_that_waits_finds_all_it_reads() {
    let mut host = Host::connected();
    let published = [
        ("request-rx-copy", "1"),
        ("feature-rx-notify", "1"),
        ("feature-no-csum-offload", "1"),
        ("feature-sg", "0"),
        ("feature-gso-tcpv4", "0"),
        ("feature-gso-tcpv6", "0"),
        ("state", "4"),
    ];
    for (key, value) in published {
        assert_eq!(host.netback.published(key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(host.netfront.mac(), Some([0, 0x16, 0x3e, 1, 2, 3]));
    assert_eq!(host.machine.granted().len(), PAGES);
    assert_eq!(host.netfront.statistics().connections, 1);
    works(&mut host);
}

#[test]
fn without_a_device_nothing_is_written_and_nothing_shared() {
    let mut host = Host::without_vif();
    host.reconcile();
    host.settle_frontend();
    nothing_is_shared(&host);
    assert_eq!(host.netfront.mac(), None);
    assert_eq!(host.error_node(), "");
    assert_eq!(host.toolstack.read_optional(VIF).unwrap(), None);
    // It is seen when it comes.
    host.attach(BACKEND);
    host.netback.begin();
    host.settle();
    works(&mut host);
}

#[test]
fn a_device_that_is_taken_away_is_forgotten() {
    let mut host = Host::connected();
    host.netback.disconnect();
    host.detach(BACKEND);
    host.settle_frontend();
    nothing_is_shared(&host);
    assert_eq!(host.toolstack.read_optional(VIF).unwrap(), None);
    assert_eq!(host.netfront.mac(), None);
}

#[test]
fn a_backend_that_closes_and_waits_again_is_connected_again() {
    let mut host = Host::connected();
    host.netback.disconnect();
    host.netback.set_state(Closing);
    host.settle_frontend();
    nothing_is_shared(&host);
    assert_eq!(host.frontend_state(), Closed);
    host.settle();
    assert_eq!(host.netback.state(), Closed);
    assert!(!host.netfront.is_connected());
    host.netback.begin();
    host.settle();
    works(&mut host);
    assert_eq!(host.netfront.statistics().connections, 2);
}

#[test]
fn a_backend_whose_nodes_go_is_a_backend_that_has_gone() {
    let mut host = Host::connected();
    host.netback.disconnect();
    host.toolstack.remove("/local/domain/2/backend/vif").unwrap();
    host.settle_frontend();
    nothing_is_shared(&host);
    assert_eq!(host.frontend_state(), Closed);
}

#[test]
fn a_backend_in_another_domain_takes_over() {
    let mut host = Host::connected();
    host.netback.disconnect();
    host.detach(BACKEND);
    host.xenstored.introduce(7);
    host.netback = Netback::new(&host.machine, &host.xenstored, 7, FRONTEND);
    host.attach(7);
    host.netback.begin();
    host.settle();
    works(&mut host);
    // The former backend's nodes are not watched any more.
    let before = host.requests.get();
    host.toolstack
        .write("/local/domain/2/backend/vif/4/0/state", "2")
        .unwrap();
    assert!(!host.step());
    assert_eq!(host.requests.get(), before);
}

#[test]
fn a_device_made_anew_under_the_same_numbers_is_connected_anew() {
    let mut host = Host::connected();
    host.netback.disconnect();
    host.attach(BACKEND);
    host.netback.begin();
    host.settle();
    works(&mut host);
    assert_eq!(host.netfront.statistics().connections, 2);
}

#[test]
fn a_restart_in_place_ends_the_connection_of_the_run_before_first() {
    let mut host = Host::connected();
    let before = host.machine.granted();
    assert_eq!(host.netback.state(), Connected);
    // The backend still has the rings mapped: the new run must not share anything before it has let go.
    let grants = ["tx-ring-ref", "rx-ring-ref"].map(|key| host.netback.published(key).unwrap());
    host.restart();
    host.begin();
    works(&mut host);
    assert_eq!(host.machine.granted(), before);
    // The same pages as before, so they were free when they were shared.
    assert_eq!(
        ["tx-ring-ref", "rx-ring-ref"].map(|key| host.netback.published(key).unwrap()),
        grants
    );
}

#[test]
fn a_restart_in_place_begins_with_state_1_and_shares_nothing_before_the_backend_waits() {
    let mut host = Host::connected();
    host.restart();
    host.reconcile();
    host.settle_frontend();
    assert_eq!(host.frontend_state(), Initialising);
    nothing_is_shared(&host);
    for state in [Closing, Closed] {
        host.netback.set_state(state);
        host.settle_frontend();
        assert_eq!(host.frontend_state(), Initialising, "{state:?}");
        nothing_is_shared(&host);
    }
    host.netback.begin();
    host.settle();
    works(&mut host);
}

#[test]
fn a_backend_that_is_bound_anew_takes_up_the_same_rings() {
    let mut host = Host::connected();
    works(&mut host);
    let before = host.machine.granted();
    host.netback.begin();
    host.settle_frontend();
    assert_eq!(host.frontend_state(), Connected);
    host.settle();
    works(&mut host);
    assert_eq!(host.machine.granted(), before);
    assert_eq!(host.netfront.statistics().connections, 1);
}

/// The backend closes each connection before it comes about, until the frontend gives in.
fn is_tried_four_times(host: &mut Host) {
    for _ in 0..3 {
        host.settle_frontend();
        assert_eq!(host.frontend_state(), Connected);
        host.netback.set_state(Closing);
        host.settle_frontend();
        assert_eq!(host.frontend_state(), Initialising);
        nothing_is_shared(host);
        host.netback.set_state(InitWait);
    }
    host.settle_frontend();
    assert_eq!(host.frontend_state(), Connected);
    host.netback.set_state(Closing);
    host.settle_frontend();
    assert_eq!(host.frontend_state(), Closed);
    nothing_is_shared(host);
    host.netback.set_state(Closed);
    host.settle_frontend();
}

#[test]
fn a_connection_that_does_not_come_about_is_tried_three_times_more() {
    let mut host = Host::ready();
    host.reconcile();
    is_tried_four_times(&mut host);
    // A new beginning counts afresh: the backend's,
    host.netback.begin();
    is_tried_four_times(&mut host);
    // the toolstack's under the same numbers,
    host.attach(BACKEND);
    host.netback.begin();
    is_tried_four_times(&mut host);
    // and that of another device.
    host.detach(BACKEND);
    host.settle_frontend();
    host.attach(BACKEND);
    host.netback.begin();
    is_tried_four_times(&mut host);
    host.netback.begin();
    host.settle();
    works(&mut host);
}

#[test]
fn a_device_that_is_going_is_not_tried_again() {
    let mut host = Host::ready();
    host.reconcile();
    host.settle_frontend();
    assert_eq!(host.frontend_state(), Connected);
    host.toolstack
        .write("/local/domain/2/backend/vif/4/0/online", "0")
        .unwrap();
    host.netback.set_state(Closing);
    host.settle_frontend();
    assert_eq!(host.frontend_state(), Closed);
    nothing_is_shared(&host);
}

#[test]
fn a_device_that_is_going_is_not_waited_for() {
    let mut host = Host::connected();
    host.restart();
    host.reconcile();
    host.settle_frontend();
    host.toolstack
        .write("/local/domain/2/backend/vif/4/0/online", "0")
        .unwrap();
    host.netback.set_state(Closing);
    host.settle_frontend();
    assert_eq!(host.frontend_state(), Closed);
    nothing_is_shared(&host);
    // If it comes back all the same, it is connected.
    host.netback.begin();
    host.settle();
    works(&mut host);
}

#[test]
fn nodes_that_make_no_sense_are_told_and_followed_once_they_do() {
    for (key, bad, good, words) in [
        ("mac", "01:00:5e:00:00:01", MAC, "the address of one card"),
        ("mac", "garbage", MAC, "the address of one card"),
        ("backend-id", "-1", "2", "a domain number"),
        ("backend-id", "70000", "2", "a domain number"),
        (
            "backend",
            "nowhere",
            "/local/domain/2/backend/vif/4/0",
            "the path of the backend's directory",
        ),
    ] {
        let mut host = Host::ready();
        let path = format!("{VIF}/{key}");
        host.toolstack.write(&path, bad).unwrap();
        host.begin();
        nothing_is_shared(&host);
        let told = host.error_node();
        assert!(told.starts_with("-22 ") && told.contains(words), "{told}");
        assert_eq!(host.frontend_state(), Initialising);
        host.toolstack.write(&path, good).unwrap();
        host.settle();
        works(&mut host);
    }
}

#[test]
fn a_missing_address_is_told_and_found_when_it_comes() {
    let mut host = Host::ready();
    host.toolstack.remove(&format!("{VIF}/mac")).unwrap();
    host.begin();
    let told = host.error_node();
    assert!(told.starts_with("-2 ") && told.contains("is missing"), "{told}");
    host.toolstack.write(&format!("{VIF}/mac"), MAC).unwrap();
    host.settle();
    works(&mut host);
}

#[test]
fn the_same_complaint_is_made_once_for_each_time_that_there_is_a_reason() {
    let mut host = Host::ready();
    let complains = |host: &mut Host| {
        host.settle();
        let complains = !host.error_node().is_empty();
        host.toolstack.remove("/local/domain/4/error").unwrap();
        complains
    };
    host.toolstack.mkdir("/local/domain/4/error").unwrap();
    host.toolstack.write(&format!("{VIF}/mac"), "garbage").unwrap();
    host.begin();
    assert!(complains(&mut host));
    host.toolstack.write(&format!("{VIF}/handle"), "1").unwrap();
    assert!(!complains(&mut host));
    // Better in between.
    host.toolstack.write(&format!("{VIF}/mac"), MAC).unwrap();
    assert!(!complains(&mut host));
    host.toolstack.write(&format!("{VIF}/mac"), "garbage").unwrap();
    assert!(complains(&mut host));
    // Gone in between.
    host.detach(BACKEND);
    assert!(!complains(&mut host));
    host.attach(BACKEND);
    host.toolstack.write(&format!("{VIF}/mac"), "garbage").unwrap();
    assert!(complains(&mut host));
}

#[test]
fn pages_and_ports_that_xen_refuses_leave_nothing_behind() {
    for after in 0..=PAGES {
        let mut host = Host::ready();
        host.machine.refuse_after(after);
        host.begin();
        nothing_is_shared(&host);
        assert!(host.error_node().starts_with("-28 "), "{}", host.error_node());
        assert_eq!(host.frontend_state(), Closed, "{after}");
        // It is no reason to give up for ever.
        host.netback.begin();
        host.settle();
        works(&mut host);
    }
}

#[test]
fn after_a_refusal_of_xens_the_backends_waiting_is_no_new_beginning() {
    let mut host = Host::ready();
    host.machine.refuse_after(0);
    host.reconcile();
    host.settle_frontend();
    assert_eq!(host.frontend_state(), Closing);
    nothing_is_shared(&host);
}

#[test]
fn a_request_that_xenstore_refuses_is_made_again() {
    let whole = {
        let mut host = Host::ready();
        host.begin();
        host.requests.get()
    };
    assert!(whole > 20, "{whole}");
    for error in [ErrorName::Enospc, ErrorName::Eagain] {
        for after in 0..whole {
            let mut host = Host::ready();
            host.refuse_request(after, error.clone());
            host.begin();
            // The user tries again later.
            for _ in 0..5 {
                host.reconcile();
                host.settle();
            }
            assert!(host.netfront.is_connected(), "{error} at {after}");
            works(&mut host);
            assert_eq!(host.machine.granted().len(), PAGES, "{error} at {after}");
        }
    }
}

#[test]
fn a_request_that_xenstore_refuses_while_the_backend_goes_is_made_again() {
    let act = |host: &mut Host| {
        host.netback.disconnect();
        host.netback.set_state(Closing);
        host.settle();
    };
    let whole = {
        let mut host = Host::connected();
        let before = host.requests.get();
        act(&mut host);
        host.requests.get() - before
    };
    assert!(whole > 5, "{whole}");
    for after in 0..whole {
        let mut host = Host::connected();
        host.refuse_request(after, ErrorName::Enospc);
        act(&mut host);
        for _ in 0..3 {
            host.reconcile();
            host.settle();
        }
        assert_eq!(host.frontend_state(), Closed, "{after}");
        nothing_is_shared(&host);
        host.netback.begin();
        for _ in 0..3 {
            host.reconcile();
            host.settle();
        }
        works(&mut host);
    }
}
