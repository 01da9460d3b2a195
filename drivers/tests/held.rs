//! After a restart requests that need dom0 wait for its service: for how long, and what ends the wait.

mod common;

use common::host::{GUEST, Host};
use common::service::Mood;
use drivers::stub::Outcome;
use pci::bdf::Bdf;
use std::time::Duration;
use xenbus::path::Numbered;
use xenbus::pciif::backend;
use xenbus::pciif::frontend::Posted;
use xenbus::pciif::{OpError, Request};
use xenbus::state::XenbusState::*;
use xenbus::wire::ErrorName;

const A: &str = "0000:00:05.0";
const FIRST: Bdf = Bdf::from_devfn(0, 0, 0);

/// The guest asks for something that needs dom0.
fn post(host: &mut Host) -> Posted {
    host.guest.post(&Request::conf_write(FIRST, 0x0c, 1, 8), &[])
}

#[test]
fn the_wait_ends_in_time_though_xenstore_refuses_whatever_is_asked() {
    for is_away in [true, false] {
        let mut is_up = 0;
        for after in 0..20 {
            let context = format!("service away: {is_away}, after {after}");
            let mut host = Host::running(&[A]);
            host.settle();
            if is_away {
                host.service.borrow_mut().close();
                host.settle();
            }
            host.refuse_requests(after, usize::MAX - 1, ErrorName::Equota);
            let posted = post(&mut host);
            let failed = host.world.now();
            host.fail();
            host.settle_until_answered();
            let waited = host.world.told(GUEST, host.guest.port) - failed;
            // Where xenstore refuses after the second hop has come up, dom0 is asked all the same.
            match host.guest.answer(posted) {
                Ok(_) => is_up += 1,
                Err(error) => assert_eq!(error, OpError::OpFailed, "{context}"),
            }
            assert!(waited <= Duration::from_millis(1550), "{context}: {waited:?}");
        }
        assert_eq!(is_up > 0, !is_away);
    }
}

#[test]
fn xenstore_is_followed_when_the_wait_is_over_though_the_service_is_away() {
    let mut host = Host::running(&[A]);
    host.service.borrow_mut().close();
    host.settle();
    for round in 0..3 {
        let before = host.requests();
        host.fail();
        assert_eq!(
            host.requests(),
            before,
            "round {round}: the last run has followed it"
        );
        host.settle_for_good();
        assert_eq!(host.read(0, 4), 0x10d3_8086);
    }
    host.service.borrow_mut().restart();
    host.settle();
    assert!(host.write(0x0c, 1, 8).is_ok());
}

#[test]
fn a_request_waits_no_longer_when_its_connection_has_ended() {
    let mut host = Host::running(&[A]);
    host.settle();
    drop(post(&mut host));
    host.fail();
    host.stub().step();
    assert!(backend::is_pending(&host.guest.page), "held");
    // The toolstack makes the connection anew before xenstore is followed.
    host.attach_first(&[A]);
    host.set(&host.first.backend_node(&Numbered::State.at(0)), "1");
    assert_eq!(host.settle(), Outcome::Wait { until: None });
    assert_eq!(host.backend_state(), Initialised);
    host.guest.begin_anew();
    host.guest.publish();
    host.dance();
    assert!(host.write(0x0c, 1, 8).is_ok());
}

#[test]
fn a_request_that_comes_long_after_a_failure_has_the_usual_time() {
    let mut host = Host::running(&[A]);
    host.service.borrow_mut().close();
    host.settle();
    // Nothing is left to go by: the guest is served when the service is back, and has given up two requests by then.
    host.world.snapshot().clear();
    host.fail();
    host.settle();
    host.world.advance(Duration::from_secs(5));
    let posted = post(&mut host);
    host.service.borrow_mut().restart();
    host.settle();
    assert!(host.guest.answer(posted).is_ok());
}

#[test]
fn a_request_that_is_served_after_the_wait_of_another_has_the_usual_time() {
    let mut host = Host::running(&[A]);
    host.settle();
    let posted = post(&mut host);
    host.fail();
    host.settle();
    assert!(host.guest.answer(posted).is_ok());
    host.service.borrow_mut().mood = Mood::Silent;
    let asked = host.world.now();
    assert_eq!(host.write(0x0c, 1, 16), Err(OpError::OpFailed));
    assert!(host.world.now() - asked >= drivers::hops::second::TIMEOUT);
}
