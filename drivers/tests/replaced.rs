//! The stub's domain dies, and another one with its number takes its place: the guest, connected, notices nothing.

mod common;

use common::host::Host;
use drivers::error::MessageKind;
use pci::bdf::Bdf;
use xenbus::handover_block;
use xenbus::path::key;
use xenbus::pciif::backend;
use xenbus::pciif::{Command, MsixEntry, OpError, Request};
use xenbus::state::XenbusState::*;

const FIRST: Bdf = Bdf::from_devfn(0, 0, 0);
const DEVICES: [&str; 1] = ["0000:00:05.0"];

fn connected() -> Host {
    let mut host = Host::connected();
    host.guest.set_state(Connected);
    host.settle();
    host
}

/// The stub takes the guest's request, which has brought down so many before, and dies over it.
fn die_over_request(host: &mut Host, strikes: u32) {
    let op = *backend::take(&host.guest.page).expect("a request").head();
    handover_block::begin(host.service.borrow().page().expect("a page"), &op, strikes);
    host.replace_stub(&DEVICES);
}

#[test]
fn the_next_stub_goes_on_where_the_guest_stands_and_never_writes_another_state_than_connected() {
    let mut host = connected();
    host.write(0x04, 2, 0x0547).unwrap();
    host.write(0x10, 4, u32::MAX).unwrap();
    let (command, size) = (host.read(0x04, 2), host.read(0x10, 4));
    let on = Request::new(Command::EnableMsix, FIRST);
    let entries = [0, 1, 2].map(|entry| MsixEntry { vector: 0, entry });
    host.ask(&on, &entries).unwrap();

    let state = host.first.backend_node(key::STATE);
    host.toolstack.watch(&state, "state").unwrap();
    while host.toolstack.next_event().unwrap().is_some() {}
    host.replace_stub(&DEVICES);
    host.settle();
    assert_eq!(
        host.toolstack.next_event().unwrap(),
        None,
        "the state is left as it is"
    );
    assert_eq!(host.backend_state(), Connected);
    assert_eq!((host.read(0x04, 2), host.read(0x10, 4)), (command, size));
    assert_eq!(
        host.device.mode(),
        Some(MessageKind::Msix),
        "by the device's own word"
    );
    assert_eq!(
        host.ask(&on, &entries),
        Err(OpError::from_raw(-114).unwrap()),
        "on already"
    );
    host.ask(&Request::new(Command::DisableMsi, FIRST), &[]).unwrap();
    assert_eq!(host.device.mode(), None);

    // And the one after it, by way of a failure in place.
    host.fail();
    host.replace_stub(&DEVICES);
    host.settle();
    assert_eq!((host.read(0x04, 2), host.read(0x10, 4)), (command, size));
}

#[test]
fn a_request_under_way_is_served_again_and_one_that_has_taken_two_stubs_down_is_refused() {
    let mut host = connected();
    let on = Request::new(Command::EnableMsi, FIRST);
    // It was carried out, but the guest has not heard of it.
    host.device.set_messages(MessageKind::Msi, true);
    let posted = host.guest.post(&on, &[]);
    die_over_request(&mut host, 0);
    host.settle();
    assert!(host.guest.answer(posted).is_ok());

    let read = Request::conf_read(FIRST, 0x40, 4);
    let posted = host.guest.post(&read, &[]);
    die_over_request(&mut host, 0);
    // This one dies before it has looked at the request: that says nothing of it.
    host.replace_stub(&DEVICES);
    host.settle();
    assert!(host.guest.answer(posted).is_ok());

    let posted = host.guest.post(&read, &[]);
    die_over_request(&mut host, 1);
    host.settle();
    assert_eq!(host.guest.answer(posted), Err(OpError::OpFailed));
    assert_eq!(host.read(0x00, 4), 0x10d3_8086);
    host.replace_stub(&DEVICES);
    host.settle();
    assert_eq!(
        host.ask(&read, &[]),
        Err(OpError::OpFailed),
        "in every later stub"
    );
}
