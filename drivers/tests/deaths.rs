//! The stub dies before or after any call of the machine below it and any transfer to or from xenstore, and begins anew
//! in place: guest, toolstack and devices end up where they would have been.

mod common;

use common::host::{Host, STUB};
use pci::bdf::Bdf;
use std::fmt::Write;
use xenbus::path::{Numbered, key};
use xenbus::pciif::{Command, MsixEntry, Request};
use xenbus::state::XenbusState::*;

const A: &str = "0000:00:05.0";
const B: &str = "0000:00:06.0";
const C: &str = "0000:00:07.0";

/// What there is to see for others.
fn look(host: &mut Host) -> String {
    let mut text = format!(
        "own {:?} guest {:?} hop {:?} mapped {} ports {} grants {} error {:?};",
        host.backend_state(),
        host.guest_state(),
        host.hop_state(),
        host.world.mapped(),
        host.world.open_ports(STUB),
        host.world.grants(STUB),
        host.error(),
    );
    for number in 0..3 {
        let nodes = [Numbered::Device, Numbered::State, Numbered::VirtualDevice];
        let nodes = nodes.map(|key| host.of(key, number));
        _ = write!(text, " {number} {nodes:?}");
    }
    for bdf in [A, B, C] {
        let service = host.service.borrow();
        let card = service.devices.get(&bdf.parse().expect("an address"));
        _ = write!(text, " {bdf} {:?}", card.map(|card| card.mode()));
    }
    text
}

/// What the guest is told.
fn ask(host: &mut Host, request: &Request, entries: u16) -> String {
    let entries: Vec<_> = (0..entries).map(|entry| MsixEntry { vector: 0, entry }).collect();
    match host.ask(request, &entries) {
        // pirqs are taken anew if a life died over them.
        Ok(success) if request.command == Command::EnableMsix => format!("{} pirqs", success.vectors.len()),
        Ok(_) if request.command == Command::EnableMsi => "a pirq".to_owned(),
        Ok(success) => format!("{:#x}", success.value),
        Err(error) => format!("{error:?}"),
    }
}

/// A whole life of a connection; what was seen on its way.
fn course(host: &mut Host) -> Vec<String> {
    let mut seen = Vec::new();
    let at = |devfn| Bdf::from_devfn(0, 0, devfn);
    host.attach_second(&[A, B]);
    host.attach_first(&[A, B]);
    host.start();
    host.settle_for_good();
    seen.push(look(host));
    host.guest.publish();
    host.dance_for_good();
    seen.push(look(host));
    for (request, entries) in [
        (Request::conf_read(at(0), 0, 4), 0),
        (Request::conf_write(at(0), 0x04, 2, 0x0547), 0),
        (Request::conf_read(at(0), 0x04, 2), 0),
        (Request::conf_write(at(0), 0x10, 4, u32::MAX), 0),
        (Request::conf_read(at(0), 0x10, 4), 0),
        (Request::conf_write(at(0), 0x10, 4, 0xfeb8_0000), 0),
        (Request::conf_write(at(8), 0x0c, 1, 8), 0),
        (Request::new(Command::EnableMsix, at(0)), 3),
        (Request::new(Command::EnableMsi, at(0)), 0),
        (Request::new(Command::EnableMsi, at(8)), 0),
        (Request::new(Command::DisableMsi, at(8)), 0),
        (Request::new(Command::EnableMsi, at(8)), 0),
    ] {
        let answer = ask(host, &request, entries);
        seen.push(format!(
            "{request}: {answer}, {:?} {:?}",
            host.device.mode(),
            host.card(B).mode()
        ));
    }
    host.plug(&[C]);
    host.dance_for_good();
    seen.push(look(host));
    host.unplug(&[B]);
    host.dance_for_good();
    host.strike(&[B]);
    host.settle_for_good();
    seen.push(look(host));
    host.service.borrow_mut().restart();
    host.settle_for_good();
    seen.push(ask(host, &Request::conf_write(at(0), 0x0c, 1, 16), 0));
    host.guest.set_state(Initialising);
    host.settle_for_good();
    host.guest.begin_anew();
    host.guest.publish();
    host.dance_for_good();
    seen.push(look(host));
    host.mark();
    seen.push(format!("{:?} {:?}", host.bus(), host.device.mode()));
    host.guest.set_state(Closing);
    host.settle_for_good();
    host.guest.set_state(Closed);
    host.settle_for_good();
    seen.push(look(host));
    assert_eq!(
        host.get(&host.first.backend_node(key::STATE)).as_deref(),
        Some("6")
    );
    seen
}

#[test]
fn one_death_at_any_moment_changes_nothing_for_the_others() {
    let mut undisturbed = Host::idle();
    undisturbed.world.die_at(usize::MAX);
    let expected = course(&mut undisturbed);
    let moments = undisturbed.world.moments();
    assert!(moments > 3000, "{moments}");
    for moment in (1..=moments).step_by(common::stride(499)) {
        let mut host = Host::idle();
        host.world.die_at(moment);
        let seen = course(&mut host);
        for (seen, expected) in seen.iter().zip(&expected) {
            assert_eq!(seen, expected, "death at moment {moment} of {moments}");
        }
    }
}

/// What a restart may find: a connection in service, and changes of the list at any stage; and where B is.
const SCENES: [(fn() -> Host, u8); 5] = [
    (|| Host::running(&[A, B]), 8),
    (
        || {
            let mut host = Host::running(&[A]);
            host.plug(&[B]);
            host
        },
        8,
    ),
    (
        || {
            let mut host = Host::running(&[A]);
            host.plug(&[B]);
            host.settle();
            host.pcifront();
            host
        },
        8,
    ),
    (
        || {
            let mut host = Host::running(&[A, C, B]);
            host.unplug(&[C]);
            host.settle();
            host.pcifront();
            host
        },
        16,
    ),
    (
        || {
            let mut host = Host::running(&[A, C, B]);
            host.unplug(&[C]);
            host.dance();
            host.strike(&[C]);
            host
        },
        16,
    ),
];

#[test]
fn a_death_at_any_moment_of_a_restart_changes_nothing_for_the_others() {
    for (number, (scene, b)) in SCENES.iter().enumerate() {
        let course = |second: Option<usize>| {
            let mut host = scene();
            let at = |card: &str| Bdf::from_devfn(0, 0, if card == A { 0 } else { *b });
            let write = Request::conf_write(at(A), 0x04, 2, 0x0547);
            host.ask(&write, &[]).expect("a write");
            host.ask(&Request::new(Command::EnableMsi, at(A)), &[])
                .expect("a pirq");
            let before = host.world.moments();
            host.world
                .die_at(second.map_or(usize::MAX, |moment| before + moment));
            host.fail();
            host.dance_for_good();
            let moments = host.world.moments() - before;
            let read = ask(&mut host, &Request::conf_read(at(A), 0x04, 2), 0);
            let write = ask(&mut host, &Request::conf_write(at(B), 0x0c, 1, 8), 0);
            host.mark();
            let bus = host.bus();
            (format!("{read} {write} {bus:?} {}", look(&mut host)), moments)
        };
        let (expected, moments) = course(None);
        for moment in (1..=moments).step_by(common::stride(61)) {
            let (seen, _) = course(Some(moment));
            assert_eq!(
                seen, expected,
                "scene {number}, death at moment {moment} of {moments}"
            );
        }
    }
}
