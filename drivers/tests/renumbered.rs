//! The toolstack takes a device off both lists and moves the others up, while the stub restarts or follows a change.

mod common;

use common::host::Host;
use pci::bdf::Bdf;
use std::cell::Cell;
use std::rc::Rc;
use xenbus::path::{Numbered, key};
use xenbus::pciif::{Command, MsixEntry, Request};
use xenbus::state::XenbusState::*;

const A: &str = "0000:00:05.0";
const B: &str = "0000:00:06.0";
const C: &str = "0000:00:07.0";
const D: &str = "0000:00:08.0";
const SLOT: [u8; 4] = [0x00, 0x08, 0x10, 0x18];

/// Has the first device of the lists struck before the stub's request after so many more; false if there were fewer.
fn strike_after(host: &mut Host, after: usize, course: impl FnOnce(&mut Host)) -> bool {
    let struck = Rc::new(Cell::new(false));
    let (seen, strike) = (Rc::clone(&struck), host.striking(0));
    host.interrupt(after, move || {
        strike();
        seen.set(true);
    });
    course(host);
    host.interrupt(usize::MAX, || {});
    struck.get()
}

fn bus(host: &mut Host) -> Vec<(u8, Option<u32>)> {
    host.mark();
    host.bus().into_iter().collect()
}

#[test]
fn a_restart_while_numbers_move_puts_each_device_where_it_stood() {
    restarts_while_numbers_move(true);
    restarts_while_numbers_move(false);
}

/// With what the last run has left in memory, or without.
fn restarts_while_numbers_move(remembers: bool) {
    for after in 0.. {
        let mut host = Host::running(&[A, B, C]);
        let on = Request::new(Command::EnableMsix, Bdf::from_devfn(0, 0, SLOT[1]));
        host.ask(&on, &[MsixEntry { vector: 0, entry: 0 }]).unwrap();
        host.unplug(&[A]);
        host.dance();
        if !remembers {
            host.world.snapshot().clear();
        }
        let struck = strike_after(&mut host, after, |host| {
            host.fail();
            host.settle_for_good();
        });
        let expected = [(SLOT[1], Some(6)), (SLOT[2], Some(7))];
        assert_eq!(bus(&mut host), expected, "{after}");
        assert!(host.card(B).mode().is_some(), "{after}: untouched");
        assert_eq!(host.world.mapped(), 3, "{after}");
        if !struck {
            assert!(after > if remembers { 15 } else { 40 }, "there was a course");
            break;
        }
    }
}

#[test]
fn a_change_while_numbers_move_exports_what_is_listed() {
    for after in 0.. {
        let mut host = Host::running(&[A, B, C]);
        host.unplug(&[A]);
        host.dance();
        host.plug(&[D]);
        let struck = strike_after(&mut host, after, |host| {
            host.settle();
            host.pcifront();
            host.settle_for_good();
        });
        host.dance_for_good();
        let expected = [(SLOT[0], Some(8)), (SLOT[1], Some(6)), (SLOT[2], Some(7))];
        assert_eq!(bus(&mut host), expected, "{after}");
        let last = if struck { 2 } else { 3 };
        assert_eq!(host.of(Numbered::Device, last).as_deref(), Some(D));
        assert_eq!(host.of(Numbered::State, last).as_deref(), Some("3"), "{after}");
        let place = host.of(Numbered::VirtualDevice, last);
        assert_eq!(place.as_deref(), Some("0000:00:00.00"), "{after}");
        assert_eq!(host.world.mapped(), 4, "{after}");
        if !struck {
            assert!(after > 20, "there was a course");
            break;
        }
    }
}

#[test]
fn a_list_that_never_stands_still_costs_time_and_no_device() {
    let mut host = Host::running(&[A, B]);
    let mut toolstack = xenbus::client::Client::new(host.xenstored.connect(0));
    let node = host.second.backend_node("restless");
    host.at_each_request(move || {
        xenbus::client::Store::write(&mut toolstack, &node, "1").unwrap();
    });
    host.fail();
    for _ in 0..20 {
        host.stub().step();
    }
    assert_eq!(host.backend_state(), Connected);
    host.at_each_request(|| {});
    host.settle_for_good();
    assert_eq!(bus(&mut host), [(SLOT[0], Some(5)), (SLOT[1], Some(6))]);
    assert_eq!(
        host.get(&host.first.backend_node(key::STATE)).as_deref(),
        Some("4")
    );
}
