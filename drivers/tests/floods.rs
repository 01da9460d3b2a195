//! Who writes nodes without end costs xenstored, which all domains share, a bounded number of requests, and no request
//! of the guest its answer.

mod common;

use common::host::{GUEST, Host};
use drivers::stub::Outcome;
use pci::bdf::Bdf;
use std::time::Duration;
use xenbus::client::{Client, Store};
use xenbus::path::key;
use xenbus::pciif::Request;
use xenbus::state::XenbusState::*;

const A: &str = "0000:00:05.0";

#[test]
fn a_guest_that_touches_its_state_costs_three_reads_each_time() {
    let mut host = Host::running(&[A]);
    for _ in 0..50 {
        let made = host.requests();
        host.guest.set_state(Connected);
        host.settle();
        assert!(host.requests() - made <= 3, "{}", host.requests() - made);
    }
    let made = host.requests();
    let below = host.first.frontend_node(&format!("{}/below", key::STATE));
    host.guest.store.write(&below, "x").unwrap();
    host.settle();
    assert!(host.requests() - made <= 3, "a child of the node as well");
}

#[test]
fn more_writes_than_one_in_ten_milliseconds_are_looked_at_together() {
    let mut host = Host::running(&[A]);
    let (made, start) = (host.requests(), host.world.now());
    for _ in 0..5000 {
        host.guest.set_state(Connected);
        host.settle();
        host.world.advance(Duration::from_micros(100));
    }
    let elapsed = host.world.now() - start;
    let most = 3 * (64 + elapsed.as_millis() as usize / 10 + 1);
    let requests = host.requests() - made;
    assert!(requests <= most, "{requests} requests in {elapsed:?}, of {most}");

    // And none of them is lost.
    host.guest.set_state(Closed);
    host.settle_for_good();
    assert_eq!(host.backend_state(), Closed);
}

#[test]
fn a_state_that_changes_without_end_costs_xenstored_a_bounded_number_of_requests() {
    for states in [
        [Reconfiguring, Connected],
        [Connected, InitWait],
        [Initialised, InitWait],
    ] {
        let mut host = Host::running(&[A]);
        let (made, start) = (host.requests(), host.world.now());
        for _ in 0..2000 {
            for state in states {
                host.guest.set_state(state);
                host.settle();
                host.world.advance(Duration::from_millis(1));
            }
        }
        let seconds = (host.world.now() - start).as_secs_f64();
        let rate = (host.requests() - made) as f64 / seconds;
        assert!(rate < 600.0, "{states:?}: {rate} requests a second");
    }
}

#[test]
fn a_state_that_changes_at_each_look_does_not_keep_requests_from_being_served() {
    let mut host = Host::running(&[A]);
    let mut guest = Client::new(host.xenstored.connect(GUEST));
    let node = host.first.frontend_node(key::STATE);
    let mut round = 0;
    host.at_each_request(move || {
        round += 1;
        guest.write(&node, ["4", "2"][round % 2]).unwrap();
        // More at once than are queued one by one.
        for n in 0..100 {
            guest.write(&format!("{node}/{n}"), "").unwrap();
        }
    });
    host.guest.set_state(Connected);
    for _ in 0..20 {
        let made = host.requests();
        let posted = host
            .guest
            .post(&Request::conf_read(Bdf::from_devfn(0, 0, 0), 0, 4), &[]);
        let outcome = host.stub().step();
        assert!(
            matches!(outcome, Outcome::Wait { until: Some(_) }),
            "there is more"
        );
        assert_eq!(host.guest.answer(posted).unwrap().value, 0x10d3_8086);
        assert!(host.requests() - made < 100, "{}", host.requests() - made);
    }
    host.at_each_request(|| {});
    host.guest.set_state(Connected);
    host.settle_for_good();
    assert_eq!(host.backend_state(), Connected);
}
