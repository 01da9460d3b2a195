//! A frontend that starts anew, at any moment: its state goes back to Initialising, or only its page and port are other
//! ones. Linux does so from 7.0 on where its state was reset, and every Linux where a driver is bound again.

mod common;

use common::guest::Guest;
use common::host::{GUEST, Host, STUB};
use drivers::error::MessageKind;
use pci::bdf::Bdf;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use xenbus::client::Store;
use xenbus::path::{Numbered, key};
use xenbus::pciif::{Command, MsixEntry, Request};
use xenbus::state::XenbusState::*;

const A: &str = "0000:00:05.0";
const B: &str = "0000:00:06.0";
const C: &str = "0000:00:07.0";
const SLOT: [u8; 4] = [0x00, 0x08, 0x10, 0x18];

/// How a frontend starts anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Its state is reset, and the new one is there at once.
    AtOnce,
    /// Its state is reset, and the new one takes its time.
    Slowly,
    /// Its state is not seen to be reset.
    Unseen,
    /// What it had is gone, and what it has is not there yet.
    Torn,
}

const WAYS: [How; 4] = [How::AtOnce, How::Slowly, How::Unseen, How::Torn];

fn begin(guest: &mut Guest, how: How) {
    if how != How::Unseen {
        guest.set_state(Initialising);
    }
    guest.begin_anew();
    match how {
        How::AtOnce | How::Unseen => guest.publish(),
        How::Slowly => {}
        How::Torn => {
            guest
                .store
                .remove(&guest.device.frontend_node(key::PCI_OP_REF))
                .unwrap();
            guest.set_state(Initialised);
        }
    }
}

fn end(guest: &mut Guest, how: How) {
    if matches!(how, How::Slowly | How::Torn) {
        guest.publish();
    }
}

fn msix_on(host: &mut Host, devfn: u8) {
    let entries = [0, 1].map(|entry| MsixEntry { vector: 0, entry });
    let on = Request::new(Command::EnableMsix, Bdf::from_devfn(0, 0, devfn));
    host.ask(&on, &entries).expect("MSI-X on");
}

/// What the guest finds, by the device numbers behind it.
fn bus(host: &mut Host) -> Vec<u32> {
    host.mark();
    let found: BTreeMap<u8, Option<u32>> = host.bus();
    found
        .into_values()
        .map(|number| number.expect("no dead device"))
        .collect()
}

/// Has the frontend start anew before the stub's request after so many more. The new frontend is the host's when all
/// is settled. False if there were fewer requests than that in `course`.
fn anew_after(host: &mut Host, after: usize, how: How, course: impl FnOnce(&mut Host, &Cell<bool>)) -> bool {
    let placeholder = Guest::new(&host.world, &host.xenstored, host.first);
    let (world, grant, port) = (host.world.clone(), placeholder.grant, placeholder.port);
    world.close(GUEST, port);
    world.unshare(GUEST, grant);
    let guest = Rc::new(RefCell::new(std::mem::replace(&mut host.guest, placeholder)));
    let (there, come) = (Rc::clone(&guest), Rc::new(Cell::new(false)));
    let seen = Rc::clone(&come);
    host.interrupt(after, move || {
        begin(&mut there.borrow_mut(), how);
        seen.set(true);
    });
    course(host, &come);
    host.interrupt(usize::MAX, || {});
    host.guest = Rc::try_unwrap(guest).ok().expect("the only one").into_inner();
    if come.get() {
        host.settle();
        end(&mut host.guest, how);
        host.dance_for_good();
    }
    come.get()
}

/// Nothing of the old frontend is left with the stub.
fn check_nothing_is_left(host: &mut Host, devices: usize) {
    assert_eq!(host.world.mapped(), 1 + devices);
    assert_eq!(host.world.open_ports(STUB), 2);
    assert_eq!(host.error(), None);
}

#[test]
fn a_frontend_that_starts_anew_in_service_is_taken_up_again() {
    for how in WAYS {
        let mut host = Host::running(&[A, B]);
        msix_on(&mut host, SLOT[1]);
        host.ask(
            &Request::conf_write(Bdf::from_devfn(0, 0, 0), 0x10, 4, u32::MAX),
            &[],
        )
        .unwrap();
        begin(&mut host.guest, how);
        host.settle();
        end(&mut host.guest, how);
        host.dance_for_good();
        assert_eq!(bus(&mut host), [5, 6], "{how:?}");
        assert_eq!(host.card(B).mode(), None, "{how:?}: interrupts are off");
        assert_eq!(
            host.read(0x10, 4),
            0xfeb8_0000,
            "{how:?}: no size probe is left over"
        );
        msix_on(&mut host, SLOT[1]);
        check_nothing_is_left(&mut host, 2);
    }
}

#[test]
fn it_takes_its_drivers_down_by_the_old_page() {
    let mut host = Host::running(&[A]);
    msix_on(&mut host, SLOT[0]);
    host.guest.set_state(Initialising);
    host.settle();
    assert_eq!(host.backend_state(), InitWait, "the new one is to wait");
    let off = Request::new(Command::DisableMsix, Bdf::from_devfn(0, 0, 0));
    assert!(host.ask(&off, &[]).is_ok());
    assert_eq!(host.device.mode(), None);
    host.guest.begin_anew();
    host.guest.publish();
    host.dance_for_good();
    assert_eq!(bus(&mut host), [5]);
}

#[test]
fn one_that_reuses_its_page_and_port_is_taken_up_again() {
    let mut host = Host::running(&[A]);
    msix_on(&mut host, SLOT[0]);
    host.guest.set_state(Initialising);
    host.settle();
    host.guest.publish();
    host.dance_for_good();
    assert_eq!((bus(&mut host), host.device.mode()), (vec![5], None));
    check_nothing_is_left(&mut host, 1);
}

#[test]
fn at_any_moment_of_the_first_connection() {
    for how in WAYS {
        for after in (0..).step_by(common::stride(2)) {
            let mut host = Host::idle();
            host.attach_second(&[A, B]);
            host.attach_first(&[A, B]);
            host.guest.publish();
            host.connect_stub();
            let come = anew_after(&mut host, after, how, |host, _| {
                host.begin();
                host.settle();
            });
            if !come {
                assert!(after > 30, "there was a course");
                break;
            }
            assert_eq!(bus(&mut host), [5, 6], "{how:?} {after}");
            check_nothing_is_left(&mut host, 2);
        }
    }
}

#[test]
fn at_any_moment_of_a_restart_in_place() {
    for how in WAYS {
        for after in (0..).step_by(common::stride(2)) {
            let mut host = Host::running(&[A, B]);
            msix_on(&mut host, SLOT[0]);
            let come = anew_after(&mut host, after, how, |host, _| {
                host.fail();
                host.settle();
            });
            if !come {
                assert!(after > 30, "there was a course");
                break;
            }
            assert_eq!(bus(&mut host), [5, 6], "{how:?} {after}");
            check_nothing_is_left(&mut host, 2);
        }
    }
}

#[test]
fn while_the_stub_is_dead() {
    for how in WAYS {
        for state in [Connected, Reconfiguring, Reconfigured] {
            let mut host = Host::running(&[A, B]);
            msix_on(&mut host, SLOT[0]);
            let node = host.first.backend_node(key::STATE);
            host.set(&node, state.as_str());
            begin(&mut host.guest, how);
            host.fail();
            host.settle();
            end(&mut host.guest, how);
            host.dance_for_good();
            assert_eq!(bus(&mut host), [5, 6], "{how:?} {state:?}");
            assert_eq!(host.device.mode(), None, "{how:?} {state:?}");
            check_nothing_is_left(&mut host, 2);
        }
    }
}

#[test]
fn at_any_moment_of_a_hotplug_which_is_done_with_then() {
    for how in WAYS {
        for (before, plug, unplug, after_it) in [
            (&[A][..], &[B, C][..], &[][..], &[5, 6, 7][..]),
            (&[A, B, C], &[], &[B], &[5, 7]),
        ] {
            for after in (0..).step_by(common::stride(7)) {
                let mut host = Host::running(before);
                msix_on(&mut host, SLOT[0]);
                let come = anew_after(&mut host, after, how, |host, come| {
                    if unplug.is_empty() {
                        host.plug(plug);
                    } else {
                        host.unplug(unplug);
                    }
                    host.settle();
                    for state in [Reconfiguring, Connected] {
                        if come.get() {
                            break;
                        }
                        let guest = xenbus::path::Device::first_hop(STUB, GUEST).frontend_node(key::STATE);
                        host.set(&guest, state.as_str());
                        host.settle();
                    }
                });
                if !come {
                    assert!(after > 20, "there was a course");
                    break;
                }
                let context = format!("{how:?} {after} {plug:?} {unplug:?}");
                for number in 0..before.len().max(after_it.len()) {
                    let state = host.of(Numbered::State, number);
                    let gone = unplug.contains(&host.of(Numbered::Device, number).unwrap().as_str());
                    assert_eq!(state.as_deref(), Some(if gone { "6" } else { "3" }), "{context}");
                }
                assert_eq!(bus(&mut host), after_it, "{context}");
                check_nothing_is_left(&mut host, after_it.len());
            }
        }
    }
}

#[test]
fn a_connection_that_has_closed_begins_again() {
    for (last, own) in [(Closed, Closed), (Closing, Closing)] {
        for state in [Initialising, Initialised] {
            let mut host = Host::running(&[A]);
            host.guest.set_state(last);
            host.settle();
            assert_eq!(host.backend_state(), own);
            host.fail();
            host.settle();
            if state == Initialised && own == Closing {
                continue;
            }
            host.guest.begin_anew();
            if state == Initialising {
                host.guest.set_state(Initialising);
                host.settle_for_good();
                assert_eq!(host.backend_state(), Initialised);
            }
            host.guest.publish();
            host.dance_for_good();
            assert_eq!(bus(&mut host), [5]);
            check_nothing_is_left(&mut host, 1);
        }
    }
}

#[test]
fn a_frontend_whose_page_never_comes_fails_in_the_end_and_can_start_anew_then() {
    let mut host = Host::ready();
    host.guest.publish_as("999", "999", "7");
    host.settle();
    assert_eq!(host.backend_state(), Initialised, "it is given time");
    let before = host.requests();
    host.settle_for_good();
    assert_eq!(host.backend_state(), Closing);
    assert!(host.requests() - before < 200, "{}", host.requests() - before);
    assert!(host.error().unwrap().starts_with("-22 cannot map grant 999"));
    host.guest.set_state(Closed);
    host.settle();
    host.guest.set_state(Initialising);
    host.settle_for_good();
    host.guest.publish();
    host.dance_for_good();
    assert_eq!(bus(&mut host), [5]);
}

#[test]
fn one_that_starts_anew_without_end_costs_xenstore_little() {
    let mut host = Host::running(&[A]);
    let (before, start) = (host.requests(), host.world.now());
    for _ in 0..300 {
        host.guest.begin_anew();
        host.guest.publish();
        host.settle();
        host.world.advance(Duration::from_millis(3));
    }
    let seconds = (host.world.now() - start).as_secs_f64();
    let rate = (host.requests() - before) as f64 / seconds;
    assert!(rate < 500.0, "{rate} requests a second, of 500 that there are");
    host.dance_for_good();
    assert_eq!(bus(&mut host), [5]);
}

#[test]
fn one_that_starts_anew_without_end_is_taken_up_more_and_more_seldom_and_at_once_after_a_rest() {
    let mut host = Host::running(&[A]);
    let anew = |host: &mut Host| {
        let start = host.world.now();
        host.guest.begin_anew();
        host.guest.publish();
        host.dance_for_good();
        host.world.now() - start
    };
    anew(&mut host);
    let waits: Vec<_> = (0..8).map(|_| anew(&mut host)).collect();
    assert!(
        waits.is_sorted() && waits[0] < Duration::from_millis(600),
        "{waits:?}"
    );
    assert!((4..5).contains(&waits[7].as_secs()), "{waits:?}");
    host.world.advance(Duration::from_secs(10));
    assert!(anew(&mut host) < waits[0]);
}

#[test]
fn a_device_that_died_meanwhile_is_withheld_and_the_others_come() {
    let mut host = Host::running(&[A, B]);
    host.device.fill(0xff);
    host.guest.set_state(Initialising);
    host.guest.begin_anew();
    host.guest.publish();
    host.dance_for_good();
    assert_eq!(host.of(Numbered::State, 0).as_deref(), Some("6"));
    assert_eq!(bus(&mut host), [6]);
    assert_eq!(host.card(B).mode(), None::<MessageKind>);
}
