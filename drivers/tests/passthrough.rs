//! Devices at the addresses that they have in the host.

mod common;

use common::host::Host;
use pci::bdf::Bdf;
use xenbus::counters::Counters;
use xenbus::path::{Numbered, key};
use xenbus::pciif::{Command, MsixEntry, Request};
use xenbus::state::XenbusState::*;

const A: &str = "0000:00:05.0";
const B: &str = "0000:02:00.0";
const C: &str = "0000:03:05.0";

/// A host with these devices attached in passthrough mode, the stub not started.
fn attached(devices: &[&str]) -> Host {
    let mut host = Host::idle();
    host.attach_second(devices);
    let slots = host.second.backend_node(key::SLOTS);
    host.set(&slots, "passthrough");
    host.attach_first(devices);
    host
}

/// The same, with the guest connected.
fn running(devices: &[&str]) -> Host {
    let mut host = attached(devices);
    host.start();
    connect(&mut host);
    host
}

fn connect(host: &mut Host) {
    host.settle();
    host.guest.publish();
    host.settle();
    host.guest.set_state(Connected);
    host.settle();
    assert_eq!(host.backend_state(), Connected);
}

/// Turns the card at an address into a bridge to buses `secondary` to `subordinate`.
fn make_bridge(host: &Host, bdf: &str, secondary: u32, subordinate: u32) {
    let card = host.card(bdf);
    card.poke(0x0e, 1, 1);
    card.poke(0x18, 4, subordinate << 16 | secondary << 8);
}

fn roots(host: &mut Host) -> Vec<String> {
    let count = host.guest.read_backend(key::ROOT_NUM).unwrap();
    (0..count.parse().unwrap())
        .map(|number| host.guest.read_backend(&Numbered::Root.at(number)).unwrap())
        .collect()
}

fn ids_at(host: &mut Host, bdf: &str) -> Result<u32, i32> {
    let read = Request::conf_read(bdf.parse().unwrap(), 0, 4);
    let answer = host.ask(&read, &[]);
    answer.map(|success| success.value).map_err(|error| error.raw())
}

#[test]
fn each_device_stands_at_its_real_address_and_its_bus_is_a_root() {
    let mut host = running(&[B, A, "0000:02:00.3"]);
    for (number, place) in ["0000:02:00.00", "0000:00:05.00", "0000:02:00.03"]
        .iter()
        .enumerate()
    {
        assert_eq!(host.of(Numbered::VirtualDevice, number).as_deref(), Some(*place));
        assert_eq!(host.of(Numbered::State, number).as_deref(), Some("3"));
    }
    assert_eq!(roots(&mut host), ["0000:02", "0000:00"], "each once");
    for present in [A, B, "0000:02:00.3"] {
        assert_eq!(ids_at(&mut host, present), Ok(0x10d3_8086));
    }
    for absent in [
        "0000:00:00.0",
        "0000:02:05.0",
        "0000:00:05.1",
        "0001:00:05.0",
        "0000:01:00.0",
    ] {
        assert_eq!(ids_at(&mut host, absent), Err(-1), "{absent}");
    }
}

#[test]
fn each_device_has_interrupts_and_counters_of_its_own() {
    // The same place on two buses.
    let mut host = running(&["0000:02:00.0", "0000:03:00.0"]);
    let second: Bdf = "0000:03:00.0".parse().unwrap();
    let entries = [MsixEntry { vector: 0, entry: 0 }];
    host.ask(&Request::new(Command::EnableMsix, second), &entries)
        .unwrap();
    assert_eq!(host.card("0000:02:00.0").mode(), None);
    assert!(host.card("0000:03:00.0").mode().is_some());

    host.ask(&Request::conf_write(second, 0x0d, 1, 1), &[]).unwrap();
    let service = host.service.borrow();
    let counters = Counters::collect(service.page().unwrap()).unwrap();
    let dropped: Vec<_> = counters
        .dropped_writes()
        .map(|write| (write.bus, write.devfn))
        .collect();
    assert_eq!(dropped, [(3, 0)]);
}

#[test]
fn a_bus_behind_a_bridge_that_the_guest_has_is_no_root() {
    let mut host = attached(&[C, A, B]);
    make_bridge(&host, A, 2, 3);
    host.start();
    connect(&mut host);
    assert_eq!(roots(&mut host), ["0000:00"], "whichever comes first");
    for device in [A, B, C] {
        assert_eq!(ids_at(&mut host, device), Ok(0x10d3_8086));
    }
}

#[test]
fn a_bus_that_a_bridge_does_not_lead_to_is_one() {
    for (secondary, subordinate) in [(3, 3), (4, 9), (0, 0)] {
        let mut host = attached(&[A, B]);
        make_bridge(&host, A, secondary, subordinate);
        host.start();
        connect(&mut host);
        assert_eq!(
            roots(&mut host),
            ["0000:00", "0000:02"],
            "{secondary} to {subordinate}"
        );
    }
}

#[test]
fn devices_come_and_go_and_roots_are_added_and_never_taken_away() {
    let mut host = running(&[A]);
    host.plug(&[B]);
    host.dance();
    assert_eq!(roots(&mut host), ["0000:00", "0000:02"]);
    assert_eq!(
        host.of(Numbered::VirtualDevice, 1).as_deref(),
        Some("0000:02:00.00")
    );
    assert!(ids_at(&mut host, B).is_ok());

    host.unplug(&[B]);
    host.dance();
    host.strike(&[B]);
    assert_eq!(ids_at(&mut host, B), Err(-1));
    host.plug(&[B, C]);
    host.dance();
    assert_eq!(roots(&mut host), ["0000:00", "0000:02", "0000:03"]);
    assert!(ids_at(&mut host, B).is_ok() && ids_at(&mut host, C).is_ok());
}

#[test]
fn a_device_that_comes_behind_a_bridge_names_its_bus_for_a_guest_looks_at_roots_only() {
    let mut host = attached(&[A]);
    make_bridge(&host, A, 2, 3);
    host.start();
    connect(&mut host);
    host.plug(&[B]);
    host.dance();
    assert_eq!(roots(&mut host), ["0000:00", "0000:02"]);
}

#[test]
fn a_stub_that_is_started_anew_takes_up_each_device_where_it_is() {
    let mut host = running(&[A, B]);
    host.restart_stub();
    host.settle();
    assert_eq!(host.backend_state(), Connected);
    assert_eq!(roots(&mut host), ["0000:00", "0000:02"]);
    assert!(ids_at(&mut host, A).is_ok() && ids_at(&mut host, B).is_ok());
}

#[test]
fn a_stub_that_is_started_anew_in_the_other_mode_serves_no_device_at_a_place_that_it_has_not() {
    let mut host = running(&[A, B]);
    let slots = host.second.backend_node(key::SLOTS);
    host.set(&slots, "vpci");
    host.restart_stub();
    host.settle();
    let error = host.of(Numbered::Error, 1).unwrap();
    assert!(error.contains("0000:02:00.0 cannot have stood"), "{error}");
    assert_eq!(ids_at(&mut host, B), Err(-1));
}

#[test]
fn a_run_that_goes_by_what_the_last_one_has_left_takes_up_each_device_where_it_is() {
    let mut host = running(&[A, B]);
    for round in 0..3 {
        let before = host.requests();
        host.fail();
        assert_eq!(host.requests(), before, "round {round}: it goes by what was left");
        host.settle();
        assert!(ids_at(&mut host, A).is_ok() && ids_at(&mut host, B).is_ok());
        assert_eq!(ids_at(&mut host, "0000:00:00.0"), Err(-1));
        assert_eq!(roots(&mut host), ["0000:00", "0000:02"]);
    }
    host.plug(&[C]);
    host.dance();
    assert!(ids_at(&mut host, C).is_ok(), "a device that comes later, too");
    assert_eq!(roots(&mut host), ["0000:00", "0000:02", "0000:03"]);
}
