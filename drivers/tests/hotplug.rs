//! Devices that come to and leave a guest that runs.

mod common;

use common::host::{Host, STUB};
use common::service::Mood;
use drivers::error::MessageKind;
use drivers::hops::device_list::{self, Change, Entry};
use pci::bdf::Bdf;
use std::collections::BTreeMap;
use xenbus::client::Client;
use xenbus::path::{Numbered, key};
use xenbus::pciif::{Command, MsixEntry, Request};
use xenbus::state::XenbusState::*;

const A: &str = "0000:00:05.0";
const B: &str = "0000:00:06.0";
const C: &str = "0000:00:07.0";
/// Slots of the guest's bus, as devfn.
const SLOT: [u8; 4] = [0x00, 0x08, 0x10, 0x18];

fn at(devfn: u8) -> Bdf {
    Bdf::from_devfn(0, 0, devfn)
}

fn msix_on(host: &mut Host, devfn: u8) {
    let entries = [0, 1].map(|entry| MsixEntry { vector: 0, entry });
    host.ask(&Request::new(Command::EnableMsix, at(devfn)), &entries)
        .expect("MSI-X on");
}

/// What the guest finds on its bus: devfn, and the device number behind it.
fn bus(host: &mut Host) -> Vec<(u8, u32)> {
    host.mark();
    let found = host.bus().into_iter();
    found
        .map(|(devfn, number)| (devfn, number.expect("no dead device")))
        .collect()
}

#[test]
fn a_device_is_added_while_the_others_work() {
    let mut host = Host::running(&[A]);
    msix_on(&mut host, SLOT[0]);
    host.plug(&[B]);
    host.settle();
    assert_eq!(host.backend_state(), Reconfiguring, "the guest comes first");
    assert_eq!(host.of(Numbered::State, 1).as_deref(), Some("1"));

    assert!(host.pcifront());
    host.settle();
    assert_eq!(host.backend_state(), Reconfigured);
    assert_eq!(host.of(Numbered::State, 1).as_deref(), Some("3"));
    assert_eq!(
        host.of(Numbered::VirtualDevice, 1).as_deref(),
        Some("0000:00:01.00")
    );
    assert_eq!(host.guest.read_backend(key::ROOT_NUM).as_deref(), Some("1"));
    assert_eq!(host.guest.read_backend("root-0").as_deref(), Some("0000:00"));

    host.dance();
    assert_eq!(bus(&mut host), [(SLOT[0], 5), (SLOT[1], 6)]);
    assert_eq!(host.device.mode(), Some(MessageKind::Msix), "untouched");
}

#[test]
fn a_device_is_removed_after_the_guest_has_let_go_of_it_and_not_before() {
    let mut host = Host::running(&[A, B]);
    msix_on(&mut host, SLOT[0]);
    msix_on(&mut host, SLOT[1]);
    host.unplug(&[B]);
    host.settle();
    let served = host.ask(&Request::conf_write(at(SLOT[1]), 0x0c, 1, 8), &[]);
    assert!(served.is_ok(), "its driver may still turn it off");

    assert!(host.pcifront());
    host.settle();
    assert_eq!(host.backend_state(), Reconfigured);
    assert_eq!(host.of(Numbered::State, 1).as_deref(), Some("6"));
    assert_eq!(host.card(B).mode(), None, "its interrupts are off");
    assert_eq!(
        host.world.mapped(),
        2,
        "the guest's page, and one configuration space"
    );
    let read = host.ask(&Request::conf_read(at(SLOT[1]), 0, 4), &[]);
    assert_eq!(read.unwrap_err().raw(), -1);

    host.dance();
    host.strike(&[B]);
    host.settle();
    assert_eq!(bus(&mut host), [(SLOT[0], 5)]);
    assert_eq!(host.device.mode(), Some(MessageKind::Msix), "untouched");
}

#[test]
fn devices_leave_in_any_order_and_the_others_stay_where_they_are() {
    let all = [A, B, C];
    for leaving in [&[0][..], &[1], &[2], &[0, 2], &[2, 1], &[1, 0], &[0, 1, 2][..2]] {
        let mut host = Host::running(&all);
        for &index in leaving {
            host.unplug(&[all[index]]);
            host.dance();
            host.strike(&[all[index]]);
        }
        let left: Vec<_> = (0..3)
            .filter(|index| !leaving.contains(index))
            .map(|index| (SLOT[index], 5 + index as u32))
            .collect();
        assert_eq!(bus(&mut host), left, "{leaving:?}");
        // The last one in takes the first slot that was freed.
        let last = *leaving.last().unwrap();
        let first_free = *leaving.iter().min().unwrap();
        host.plug(&[all[last]]);
        host.dance();
        assert!(
            bus(&mut host).contains(&(SLOT[first_free], 5 + last as u32)),
            "{leaving:?}"
        );
    }
}

#[test]
fn several_devices_come_and_go_in_one_change() {
    let mut host = Host::running(&[A]);
    host.plug(&[B, C]);
    host.dance();
    assert_eq!(bus(&mut host), [(SLOT[0], 5), (SLOT[1], 6), (SLOT[2], 7)]);
    // One leaves in the very change that another one comes with.
    host.unplug(&[B]);
    host.extend_first(&["0000:00:09.0"]);
    host.list_second(&[A, B, C, "0000:00:09.0"]);
    host.dance();
    host.strike(&[B]);
    assert_eq!(bus(&mut host), [(SLOT[0], 5), (SLOT[1], 9), (SLOT[2], 7)]);
}

#[test]
fn the_functions_of_a_device_come_one_by_one_and_stay_together() {
    let mut host = Host::running(&["0000:00:05.1", B]);
    host.plug(&["0000:00:05.0"]);
    host.dance();
    assert_eq!(bus(&mut host), [(0x00, 5), (0x01, 5), (SLOT[1], 6)]);
}

#[test]
fn a_device_that_comes_back_a_hundred_times_leaves_nothing_behind() {
    let mut host = Host::running(&[A]);
    let before = (
        host.world.mapped(),
        host.world.open_ports(STUB),
        host.world.grants(STUB),
    );
    for _ in 0..100 {
        host.plug(&[B]);
        host.dance_for_good();
        msix_on(&mut host, SLOT[1]);
        host.unplug(&[B]);
        host.dance_for_good();
        host.strike(&[B]);
        host.settle_for_good();
        let now = (
            host.world.mapped(),
            host.world.open_ports(STUB),
            host.world.grants(STUB),
        );
        assert_eq!(now, before);
        assert_eq!(host.card(B).mode(), None);
    }
}

#[test]
fn a_new_device_starts_with_interrupts_off_and_no_memory_of_the_one_before_it() {
    use xenbus::counters::Counters;
    let mut host = Host::running(&[A, B]);
    host.ask(&Request::conf_write(at(SLOT[1]), 0x10, 4, u32::MAX), &[])
        .unwrap();
    host.ask(&Request::conf_write(at(SLOT[1]), 0x06, 2, 0xffff), &[])
        .unwrap();
    host.unplug(&[B]);
    host.dance();
    host.strike(&[B]);
    host.plug(&[C]);
    host.card(C).set_messages(MessageKind::Msi, true);
    host.dance();
    assert_eq!(host.card(C).mode(), None);
    let bar = host.ask(&Request::conf_read(at(SLOT[1]), 0x10, 4), &[]).unwrap();
    assert_eq!(bar.value, 0xfeb8_0000, "no size probe is left over");
    let service = host.service.borrow();
    let counters = Counters::collect(service.page().unwrap()).unwrap();
    assert_eq!(counters.dropped_writes().count(), 0);
}

#[test]
fn a_stub_that_dies_at_any_moment_of_a_change_is_followed_by_one_that_finishes_it() {
    // After how many turns of stub and guest the stub dies.
    for turn in 0..12 {
        let mut host = Host::running(&[A, B]);
        msix_on(&mut host, SLOT[0]);
        // A hole, so that the order of the list does not tell where devices stand.
        host.unplug(&[A]);
        host.dance();
        host.strike(&[A]);
        host.plug(&[C]);
        restart_after(&mut host, turn);
        assert_eq!(bus(&mut host), [(SLOT[0], 7), (SLOT[1], 6)], "turn {turn}");

        msix_on(&mut host, SLOT[0]);
        host.unplug(&[B]);
        restart_after(&mut host, turn);
        assert_eq!(
            host.card(C).mode(),
            Some(MessageKind::Msix),
            "turn {turn}: untouched"
        );
        host.strike(&[B]);
        host.settle();
        assert_eq!(bus(&mut host), [(SLOT[0], 7)], "turn {turn}");
    }
}

/// Lets the change under way go on for some turns, has the stub die, and lets its successor go on.
fn restart_after(host: &mut Host, turns: usize) {
    for turn in 0..turns {
        if turn % 3 == 2 {
            host.pcifront();
        } else {
            host.stub().step();
        }
    }
    host.restart_stub();
    host.dance();
}

#[test]
fn a_stub_that_dies_between_two_changes_puts_each_device_where_it_stood() {
    let mut host = Host::running(&[A, B, C]);
    host.unplug(&[A]);
    host.dance();
    // Before the toolstack has closed the gap, and after.
    host.restart_stub();
    host.dance();
    assert_eq!(bus(&mut host), [(SLOT[1], 6), (SLOT[2], 7)]);
    host.strike(&[A]);
    host.restart_stub();
    host.dance();
    assert_eq!(bus(&mut host), [(SLOT[1], 6), (SLOT[2], 7)]);
}

#[test]
fn a_successor_refuses_a_device_that_it_cannot_place_and_serves_the_others() {
    for (place, cause) in [
        ("", "-22 xenstore node"),
        ("0000:00:02.00 ", "-22 xenstore node"),
        ("0000:00:00.00", "-17 0000:00:06.0 cannot have stood"),
        ("0000:01:01.00", "-17 0000:00:06.0 cannot have stood"),
    ] {
        let mut host = Host::running(&[A, B, C]);
        let path = host.first.backend_node(&Numbered::VirtualDevice.at(1));
        host.set(&path, place);
        host.restart_stub();
        host.dance();
        assert_eq!(host.of(Numbered::State, 1).as_deref(), Some("6"));
        let error = host.of(Numbered::Error, 1).unwrap();
        assert!(error.starts_with(cause), "{error}");
        host.mark();
        let expected = [(SLOT[0], Some(5)), (SLOT[1], None), (SLOT[2], Some(7))];
        assert_eq!(host.bus(), BTreeMap::from(expected), "{place:?}");
    }
}

/// Two devices are added, the first of them with something wrong; the second must come all the same.
fn refused(spoil: impl FnOnce(&mut Host)) -> String {
    let mut host = Host::running(&[A]);
    msix_on(&mut host, SLOT[0]);
    host.plug(&[B, C]);
    spoil(&mut host);
    host.dance();
    assert_eq!(bus(&mut host), [(SLOT[0], 5), (SLOT[1], 7)]);
    assert_eq!(host.device.mode(), Some(MessageKind::Msix), "untouched");
    assert_eq!(host.of(Numbered::State, 1).as_deref(), Some("6"));
    assert_eq!(host.of(Numbered::State, 2).as_deref(), Some("3"));
    assert_eq!(host.of(Numbered::VirtualDevice, 1), None);
    assert_eq!(host.error(), None, "the connection itself is sound");
    assert_eq!(host.world.mapped(), 3);
    let error = host.of(Numbered::Error, 1).expect("an error node");
    // It can be taken off the list without a word to the guest, and tried again.
    host.strike_number(1);
    host.plug(&["0000:00:0a.0"]);
    host.dance();
    assert_eq!(bus(&mut host), [(SLOT[0], 5), (SLOT[1], 7), (SLOT[2], 10)]);
    error
}

#[test]
fn garbage_in_the_nodes_of_a_new_device_refuses_that_device_alone() {
    for (node, values) in [
        ("dev-1", &["", "5", "0000:00:06.8"][..]),
        ("ids-1", &["", "8086"]),
        ("ecam-1", &["", "0xb0030"]),
        ("bars-1", &["", "0,0,0"]),
        ("irq-1", &["", "-1"]),
        ("intx-1", &["", "2"]),
    ] {
        for value in values {
            let error = refused(|host| {
                let path = host.second.backend_node(node);
                host.set(&path, value);
            });
            let named = error.starts_with("-22 ") && error.contains(&format!("/{node} is"));
            assert!(named, "{node} {value:?}: {error}");
        }
    }
    for value in ["", "x", "0000:00:20.0"] {
        let error = refused(|host| {
            let path = host.first.backend_node("dev-1");
            host.set(&path, value);
        });
        assert!(
            error.starts_with("-22 ") && error.contains("/dev-1 is"),
            "{error}"
        );
    }
}

#[test]
fn a_new_device_that_is_not_what_the_toolstack_says_is_refused_alone() {
    for (spoil, cause) in [
        (
            Box::new(|host: &mut Host| host.card(B).fill(0xff)) as Box<dyn FnOnce(&mut Host)>,
            "-19 0000:00:06.0 answers all-ones",
        ),
        (
            Box::new(|host: &mut Host| host.card(B).poke(0, 4, 0x100e_8086)),
            "-19 0000:00:06.0 is 8086:100e, not 8086:10d3",
        ),
        (
            Box::new(|host: &mut Host| host.card(B).poke(0x0e, 1, 2)),
            "-19 0000:00:06.0 has header type 2",
        ),
        (
            Box::new(|host: &mut Host| {
                let path = host.second.backend_node("ecam-1");
                host.set(&path, "dead");
            }),
            "-1 cannot map the config space of 0000:00:06.0",
        ),
        (
            Box::new(|host: &mut Host| host.leave_writable(B)),
            "-1 0000:00:06.0 is refused: Xen leaves its config space",
        ),
        (
            Box::new(|host: &mut Host| {
                let path = host.first.backend_node("dev-1");
                host.set(&path, A);
            }),
            "-17 0000:00:05.0 is listed twice",
        ),
        (
            Box::new(|host: &mut Host| {
                let path = host.first.backend_node("dev-1");
                host.set(&path, "0000:00:1d.0");
            }),
            "-1 0000:00:1d.0 is exported to the guest, but dom0's service does not list it",
        ),
    ] {
        let error = refused(spoil);
        assert!(error.starts_with(cause), "{error}");
    }
}

#[test]
fn a_list_without_a_sound_length_changes_nothing_and_the_guest_goes_on() {
    for count in ["", "x", "0", "257"] {
        let mut host = Host::running(&[A]);
        let path = host.first.backend_node(key::NUM_DEVS);
        host.set(&path, count);
        let state = host.first.backend_node(key::STATE);
        host.set(&state, "7");
        host.settle();
        host.guest.set_state(Reconfiguring);
        host.settle();
        assert_eq!(host.backend_state(), Reconfigured, "{count:?}");
        host.guest.set_state(Connected);
        host.settle();
        assert_eq!(host.backend_state(), Connected);
        assert_eq!(host.read(0, 4), 0x10d3_8086);
    }
}

#[test]
fn a_change_that_the_toolstack_takes_back_is_answered_all_the_same() {
    let mut host = Host::running(&[A]);
    host.plug(&[B]);
    host.settle();
    host.strike(&[B]);
    let state = host.first.backend_node(key::STATE);
    host.set(&state, "4");
    host.settle();
    // The guest had seen the change by then.
    host.guest.set_state(Reconfiguring);
    host.dance();
    assert_eq!(bus(&mut host), [(SLOT[0], 5)]);
    host.plug(&[B]);
    host.dance();
    assert_eq!(bus(&mut host), [(SLOT[0], 5), (SLOT[1], 6)]);
}

#[test]
fn a_device_that_is_taken_off_the_list_while_it_is_being_exported_is_not_published() {
    let mut host = Host::running(&[A]);
    host.plug(&[B]);
    host.strike(&[B]);
    let entry = |number, bdf: &str, change| Entry {
        number,
        bdf: Some(bdf.parse().unwrap()),
        change,
    };
    let entries = [
        entry(
            1,
            B,
            Change::Exported {
                guest_bdf: at(SLOT[1]),
                root: true,
            },
        ),
        entry(2, C, Change::Removed),
    ];
    let mut stub = Client::new(host.xenstored.connect(STUB));
    let published = device_list::publish(&mut stub, host.first, &entries, &[]).unwrap();
    assert!(!published);
    for number in [1, 2] {
        assert_eq!(host.of(Numbered::State, number), None);
        assert_eq!(host.of(Numbered::VirtualDevice, number), None);
    }
}

#[test]
fn a_guest_that_reconfigures_by_itself_is_answered_and_nothing_changes() {
    let mut host = Host::running(&[A]);
    msix_on(&mut host, SLOT[0]);
    for _ in 0..20 {
        host.guest.set_state(Reconfiguring);
        host.settle_for_good();
        assert_eq!(host.backend_state(), Reconfigured);
        host.guest.set_state(Reconfiguring);
        host.settle_for_good();
        assert_eq!(host.backend_state(), Reconfigured);
        host.guest.set_state(Connected);
        host.settle_for_good();
        assert_eq!(host.backend_state(), Connected);
    }
    assert_eq!(host.device.mode(), Some(MessageKind::Msix));
    assert_eq!(bus(&mut host), [(SLOT[0], 5)]);
}

#[test]
fn a_device_goes_even_if_the_service_does_not_answer() {
    let mut host = Host::running(&[A, B]);
    msix_on(&mut host, SLOT[1]);
    host.service.borrow_mut().mood = Mood::Silent;
    host.unplug(&[B]);
    host.dance();
    assert_eq!(host.of(Numbered::State, 1).as_deref(), Some("6"));
    assert_eq!(bus(&mut host), [(SLOT[0], 5)]);
}

#[test]
fn a_guest_that_dies_in_the_middle_of_a_change_leaves_nothing_mapped() {
    for plug in [true, false] {
        let mut host = Host::running(&[A, B]);
        msix_on(&mut host, SLOT[1]);
        if plug {
            host.plug(&[C]);
        } else {
            host.unplug(&[B]);
        }
        host.settle();
        let home = xenbus::path::home(common::host::GUEST);
        host.remove(&home);
        host.settle();
        assert_eq!(host.backend_state(), Closed);
        assert_eq!(host.world.mapped(), 0);
        assert_eq!(host.card(B).mode(), None);
    }
}
