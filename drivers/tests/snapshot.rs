//! A run that goes by what the last one has left sees all that changes from then on, and none goes by what is no longer
//! true.

mod common;

use common::host::{GUEST, Host, STUB};
use drivers::error::MessageKind;
use drivers::stub::{Outcome, Reason};
use pci::bdf::Bdf;
use std::cell::Cell;
use std::rc::Rc;
use xenbus::path::{self, Numbered, key};
use xenbus::pciif::{Command, Request, backend, frontend};
use xenbus::state::XenbusState::*;

const A: &str = "0000:00:05.0";
const B: &str = "0000:00:06.0";
const FIRST: Bdf = Bdf::from_devfn(0, 0, 0);

/// A guest in service, whose stub has just restarted by what was left.
fn restarted(devices: &[&str]) -> Host {
    let mut host = Host::running(devices);
    host.settle();
    let before = host.requests();
    host.fail();
    assert_eq!(host.requests(), before, "it goes by what was left");
    host
}

#[test]
fn every_change_is_seen_after_a_restart() {
    // The service begins anew.
    let mut host = restarted(&[A]);
    host.settle();
    host.service.borrow_mut().restart();
    host.settle();
    assert!(host.write(0x0c, 1, 8).is_ok());
    // The toolstack makes the nodes of the second hop anew.
    let mut host = restarted(&[A]);
    host.settle();
    host.service.borrow_mut().restart();
    host.remove(&host.second.frontend_dir());
    host.attach_second(&[A]);
    host.settle();
    assert_eq!(host.hop_state(), Connected);
    // A device comes.
    let mut host = restarted(&[A]);
    host.settle();
    host.plug(&[B]);
    host.dance();
    assert_eq!(host.guest.bus.len(), 2);
    // The guest closes.
    let mut host = restarted(&[A]);
    host.settle();
    host.guest.set_state(Closed);
    host.settle();
    assert_eq!(host.backend_state(), Closed);
    // The domain is to end.
    let mut host = restarted(&[A]);
    host.settle();
    host.set(&format!("{}/control/shutdown", path::home(STUB)), "poweroff");
    assert_eq!(host.settle(), Outcome::Shutdown(Reason::Poweroff));
}

#[test]
fn what_the_first_run_has_told_xl_is_not_told_again() {
    let mut host = Host::running(&[A]);
    host.settle();
    let features = ["poweroff", "reboot"].map(|kind| format!("{}/control/feature-{kind}", path::home(STUB)));
    for feature in &features {
        assert_eq!(host.get(feature).as_deref(), Some("1"));
        host.remove(feature);
    }
    host.fail();
    host.settle();
    for feature in &features {
        assert_eq!(host.get(feature), None);
    }
}

#[test]
fn what_cannot_be_gone_by_is_let_go_before_xenstore_is_asked() {
    let gone: [fn(&mut Host); 2] = [
        // The second of two devices, so that the first one is there by then.
        |host| host.leave_writable(B),
        |host| host.world.unshare(GUEST, host.guest.grant),
    ];
    for (number, lose) in gone.iter().enumerate() {
        let mut host = Host::running(&[A, B]);
        host.settle();
        lose(&mut host);
        let mapped = Rc::new(Cell::new(None));
        let (seen, world) = (Rc::clone(&mapped), host.world.clone());
        host.at_each_request(move || seen.set(seen.get().or(Some(world.mapped()))));
        let before = host.world.open_ports(STUB);
        host.fail();
        assert_eq!(mapped.get(), Some(0), "{number}");
        assert!(host.world.open_ports(STUB) < before, "{number}");
    }
}

#[test]
fn a_connection_that_has_ended_is_not_gone_by() {
    let ends: [fn(&mut Host); 3] = [
        |host| host.guest.set_state(Closed),
        |host| host.attach_first(&[A]),
        |host| host.remove(&host.first.backend_dir()),
    ];
    for (number, end) in ends.iter().enumerate() {
        let mut host = Host::running(&[A]);
        host.settle();
        end(&mut host);
        host.settle();
        let before = host.requests();
        host.fail();
        assert!(host.requests() > before, "{number}");
    }
}

/// The frontend of [`restarted`] starts anew with the page and the port that it had: only states tell.
fn check_anew(host: &mut Host, context: &str) {
    assert_eq!(
        host.device.mode(),
        None,
        "{context}: a new start finds interrupts off"
    );
    host.dance_for_good();
    let on = Request::new(Command::EnableMsi, FIRST);
    assert!(host.ask(&on, &[]).is_ok(), "{context}");
}

fn running_with_msi() -> Host {
    let mut host = Host::running(&[A]);
    host.ask(&Request::new(Command::EnableMsi, FIRST), &[]).unwrap();
    host.settle();
    assert_eq!(host.device.mode(), Some(MessageKind::Msi));
    host
}

#[test]
fn a_frontend_that_was_seen_to_start_anew_is_not_taken_for_the_one_of_before() {
    let mut host = running_with_msi();
    host.guest.set_state(Initialising);
    host.settle();
    assert_eq!(host.backend_state(), InitWait, "it is seen");
    host.guest.publish();
    host.fail();
    host.settle_for_good();
    check_anew(&mut host, "");
}

#[test]
fn a_new_start_is_not_undone_by_a_death_while_it_is_begun() {
    let begun = || {
        let mut host = running_with_msi();
        host.set(&host.first.backend_node(key::STATE), "8");
        host.guest.set_state(Initialised);
        host
    };
    // The guest is told that it is seen, and then dom0 is asked to turn its interrupts off.
    let mut host = begun();
    let asked = Rc::new(Cell::new(None));
    let (seen, world) = (Rc::clone(&asked), host.world.clone());
    host.service.borrow_mut().witness = Box::new(move |_| seen.set(seen.get().or(Some(world.moments()))));
    host.settle_for_good();
    let asked = asked.get().expect("a request");
    for before in 0..20 {
        let mut host = begun();
        host.world.die_at(asked - before);
        host.settle_for_good();
        check_anew(&mut host, &format!("death {before} moments before dom0 is asked"));
    }
}

#[test]
fn a_read_that_comes_while_the_hops_are_followed_does_not_wait_for_both() {
    let mut host = Host::running(&[A]);
    host.settle();
    let page = host.guest.page.clone();
    let (world, port) = (host.world.clone(), host.guest.port);
    // While the second hop is followed.
    host.interrupt(0, move || {
        drop(frontend::post(&page, &Request::conf_read(FIRST, 0, 4), &[]).unwrap());
        world.notify(GUEST, port);
    });
    let waited = Rc::new(Cell::new(0));
    let (seen, page) = (Rc::clone(&waited), host.guest.page.clone());
    host.at_each_request(move || seen.set(seen.get() + usize::from(backend::is_pending(&page))));
    let before = host.requests();
    host.set(&host.first.backend_node(&Numbered::Key.at(0)), A);
    host.stub().step();
    let requests = host.requests() - before;
    assert!(!backend::is_pending(&host.guest.page), "answered");
    assert!(
        waited.get() <= 2 && requests > 5,
        "it waited for {} of {requests} requests",
        waited.get()
    );
}
