//! The stub's whole life, from an empty xenstore to `xl shutdown`.

mod common;

use common::host::{GUEST, Host, STUB};
use common::service::Mood;
use drivers::error::MessageKind;
use drivers::stub::{Outcome, Reason};
use pci::bdf::Bdf;
use std::time::Duration;
use xenbus::path::{self, Numbered, key};
use xenbus::pciif::{Command, MsixEntry, Request};
use xenbus::state::XenbusState::{self, *};

const FIRST: Bdf = Bdf::from_devfn(0, 0, 0);
const IDLE: Outcome = Outcome::Wait { until: None };

fn entries(indices: &[u16]) -> Vec<MsixEntry> {
    indices
        .iter()
        .map(|&entry| MsixEntry { vector: 0, entry })
        .collect()
}

#[test]
fn a_stub_without_work_idles_and_wakes_for_nothing() {
    let mut host = Host::idle();
    host.start();
    assert_eq!(host.settle(), IDLE);
    assert_eq!(host.stub().ports().len(), 1, "xenstore only");
    assert_eq!((host.world.grants(STUB), host.world.open_ports(STUB)), (0, 0));
}

#[test]
fn work_that_comes_after_the_start_is_taken_up() {
    let mut host = Host::idle();
    host.start();
    host.attach_first(&["0000:00:05.0"]);
    host.settle();
    assert_eq!(
        host.backend_state(),
        Initialising,
        "nothing without dom0's service"
    );
    host.attach_second(&["0000:00:05.0"]);
    host.settle();
    assert_eq!(host.hop_state(), Connected);
    assert_eq!(host.backend_state(), Initialised);
}

#[test]
fn the_devices_are_published_as_pciback_does() {
    let mut host = Host::idle();
    let devices = ["0000:00:05.0", "0000:00:06.1", "0000:00:05.3"];
    host.attach_second(&devices);
    host.attach_first(&devices);
    host.start();
    host.settle();
    let first = host.first;
    for (index, place) in ["0000:00:00.00", "0000:00:01.01", "0000:00:00.03"]
        .iter()
        .enumerate()
    {
        let place = Some((*place).to_owned());
        assert_eq!(
            host.get(&first.backend_node(&Numbered::VirtualDevice.at(index))),
            place
        );
        let state = host.get(&first.backend_node(&Numbered::State.at(index)));
        assert_eq!(state.as_deref(), Some("3"));
    }
    assert_eq!(host.guest.read_backend("root-0").as_deref(), Some("0000:00"));
    assert_eq!(host.guest.read_backend(key::ROOT_NUM).as_deref(), Some("1"));
    assert_eq!(host.backend_state(), Initialised);
}

#[test]
fn a_guest_connects_and_drives_its_device_over_msix() {
    let mut host = Host::connected();
    host.guest.set_state(Connected);
    assert_eq!(host.settle(), IDLE);
    assert_eq!(host.stub().ports().len(), 3);

    assert_eq!(host.read(0x00, 4), 0x10d3_8086);
    assert_eq!(host.write(0x04, 2, 0x0007).map(|success| success.value), Ok(0));
    let answer = host.ask(&Request::new(Command::EnableMsix, FIRST), &entries(&[0, 1, 2]));
    let success = answer.unwrap();
    assert_eq!((success.value, success.vectors), (0, vec![55, 54, 53]));
    assert_eq!(host.device.mode(), Some(MessageKind::Msix));
}

#[test]
fn msix_survives_five_rebinds_by_a_linux_that_asks_for_the_wrong_disable() {
    let mut host = Host::connected();
    for round in 0..5 {
        let answer = host.ask(&Request::new(Command::EnableMsix, FIRST), &entries(&[0, 1, 2]));
        assert!(answer.is_ok(), "round {round}: {answer:?}");
        assert!(host.ask(&Request::new(Command::DisableMsi, FIRST), &[]).is_ok());
        assert_eq!(host.device.mode(), None, "round {round}");
    }
}

#[test]
fn a_guest_that_closes_leaves_nothing_mapped_and_its_interrupts_off() {
    for (last, left_at) in [(Closing, Closing), (Closed, Closed)] {
        let mut host = Host::connected();
        host.ask(&Request::new(Command::EnableMsix, FIRST), &entries(&[0]))
            .unwrap();
        host.guest.set_state(last);
        assert_eq!(host.settle(), IDLE);
        assert_eq!(host.backend_state(), left_at);
        assert_eq!(host.device.mode(), None);
        assert_eq!(host.world.mapped(), 0);
        assert_eq!(host.world.open_ports(STUB), 1, "the second hop's");
        assert_eq!(host.stub().ports().len(), 2);
    }
}

#[test]
fn closing_is_followed_by_closed() {
    let mut host = Host::connected();
    host.guest.set_state(Closing);
    host.settle();
    host.guest.set_state(Closed);
    host.settle();
    assert_eq!(host.backend_state(), Closed);
}

#[test]
fn a_guest_whose_nodes_vanish_is_given_up() {
    let mut host = Host::connected();
    host.ask(&Request::new(Command::EnableMsi, FIRST), &[]).unwrap();
    host.remove(&path::home(GUEST));
    host.settle();
    assert_eq!(host.backend_state(), Closed);
    assert_eq!(host.device.mode(), None);
    assert_eq!(host.world.mapped(), 0);
}

#[test]
fn a_guest_that_vanishes_before_it_connects_is_given_up_and_one_that_was_never_there_awaited() {
    let mut host = Host::ready();
    host.remove(&path::home(GUEST));
    host.settle();
    assert_eq!((host.backend_state(), host.world.mapped()), (Closed, 0));

    let mut host = Host::idle();
    host.attach_second(&["0000:00:05.0"]);
    host.attach_first(&["0000:00:05.0"]);
    host.remove(&host.first.frontend_dir());
    host.start();
    host.settle();
    assert_eq!(host.backend_state(), Initialised);
}

#[test]
fn an_answer_that_comes_at_any_moment_ends_the_wait_for_it() {
    let mut host = Host::connected();
    host.world.preempt();
    for value in 0..20 {
        let before = host.world.now();
        assert!(host.write(0x0c, 1, value).is_ok());
        let waited = host.world.now() - before;
        assert!(waited < std::time::Duration::from_millis(2), "{waited:?}");
    }
}

#[test]
fn an_event_of_the_service_that_tells_of_nothing_does_not_end_in_a_busy_wait() {
    let mut host = Host::connected();
    host.service.borrow_mut().mood = common::service::Mood::Silent;
    host.service.borrow_mut().poke();
    let before = host.world.now();
    assert!(host.write(0x0c, 1, 8).is_err());
    let waited = host.world.now() - before;
    assert_eq!(waited, std::time::Duration::from_millis(1500));
}

#[test]
fn a_guest_whose_nodes_vanish_where_the_stub_may_not_look_is_given_up_too() {
    let mut host = Host::connected();
    // As the toolstack makes a home: nobody else may read it, so a missing node looks like a forbidden one.
    host.own(&path::home(GUEST), GUEST, 0);
    host.remove(&format!("{}/device", path::home(GUEST)));
    host.settle();
    assert_eq!(host.backend_state(), Closed);
    assert_eq!(host.world.mapped(), 0);
}

#[test]
fn a_backend_directory_that_vanishes_is_let_go() {
    let mut host = Host::connected();
    host.remove(&host.first.backend_dir());
    assert_eq!(host.settle(), IDLE);
    assert_eq!(host.world.mapped(), 0);
    assert_eq!(
        host.backend_state(),
        Unknown,
        "nothing is written where nothing is"
    );
}

#[test]
fn the_toolstack_can_start_a_connection_anew() {
    let mut host = Host::connected();
    host.write(0x04, 2, 0x0547).unwrap();
    host.write(0x10, 4, u32::MAX).unwrap();
    host.guest.set_state(Closed);
    host.settle();

    host.remove(&host.first.frontend_dir());
    host.guest = common::guest::Guest::new(&host.world, &host.xenstored, host.first);
    host.attach_first(&["0000:00:05.0"]);
    host.settle();
    host.guest.publish();
    host.settle();
    assert_eq!(host.backend_state(), Connected);
    assert_eq!(host.read(0x04, 2), 0x0007, "COMMAND is the device's again");
    assert_eq!(host.read(0x10, 4), 0xfeb8_0000, "no size probe is left over");
}

#[test]
fn a_stub_can_be_given_to_another_guest_in_one_change() {
    const OTHER: u16 = 9;
    let mut host = Host::connected();
    host.xenstored.introduce(OTHER);
    let hop = path::Device::first_hop(STUB, OTHER);
    // Between two steps of the stub: the old guest's nodes go, the new one's come.
    host.remove(&format!("{}/backend/pci/{GUEST}", path::home(STUB)));
    host.first = hop;
    host.guest = common::guest::Guest::new(&host.world, &host.xenstored, hop);
    let served = host.second.backend_node(key::GUEST);
    host.set(&served, &OTHER.to_string());
    host.attach_first(&["0000:00:05.0"]);
    host.settle();
    assert_eq!(host.backend_state(), Initialised);
    host.guest.publish();
    host.settle();
    assert_eq!(host.backend_state(), Connected);
    assert_eq!(host.world.mapped(), 2);
}

#[test]
fn interrupts_that_an_earlier_guest_left_on_are_turned_off_before_the_next() {
    let mut host = Host::idle();
    host.device.set_messages(MessageKind::Msix, true);
    host.attach_second(&["0000:00:05.0"]);
    host.attach_first(&["0000:00:05.0"]);
    host.start();
    host.settle();
    assert_eq!(host.device.mode(), None);
}

#[test]
fn a_stub_started_anew_takes_up_the_connection_where_it_was() {
    let mut host = Host::connected();
    host.guest.set_state(Connected);
    host.ask(&Request::new(Command::EnableMsix, FIRST), &entries(&[0, 1]))
        .unwrap();
    host.settle();

    // The stub dies: Xen unbinds its ports, and the service starts over with the new one.
    host.restart_stub();
    host.settle();

    assert_eq!(
        host.backend_state(),
        Connected,
        "never below, or the guest frees its bus"
    );
    assert_eq!(host.read(0x00, 4), 0x10d3_8086);
    let again = host.ask(&Request::new(Command::EnableMsix, FIRST), &entries(&[0]));
    assert_eq!(again.unwrap_err().raw(), -114, "MSI-X is still on");
    assert!(host.ask(&Request::new(Command::DisableMsix, FIRST), &[]).is_ok());
    assert_eq!(host.device.mode(), None);
}

#[test]
fn reads_go_on_without_the_service_and_writes_come_back_with_it() {
    let mut host = Host::connected();
    host.service.borrow_mut().close();
    host.settle();
    assert_eq!(host.hop_state(), Closed);
    assert_eq!(host.read(0x00, 4), 0x10d3_8086);
    assert_eq!(host.write(0x0c, 1, 8).unwrap_err().raw(), -5);
    assert_eq!(
        host.write(0x10, 4, u32::MAX).map(|_| ()),
        Ok(()),
        "needs no service"
    );

    host.service.borrow_mut().restart();
    host.settle();
    assert_eq!(host.hop_state(), Connected);
    assert!(host.write(0x0c, 1, 8).is_ok());
    assert_eq!(host.world.grants(STUB), 1);
}

#[test]
fn a_service_that_starts_over_gets_a_new_page() {
    let mut host = Host::connected();
    host.service.borrow_mut().restart();
    host.settle();
    assert_eq!(host.hop_state(), Connected);
    assert!(host.write(0x0c, 1, 8).is_ok());
    assert_eq!((host.world.grants(STUB), host.world.open_ports(STUB)), (1, 2));
}

#[test]
fn particulars_that_the_toolstack_wiped_out_are_published_again() {
    let mut host = Host::idle();
    host.attach_second(&["0000:00:05.0"]);
    host.remove(&host.second.backend_node(key::STATE));
    let silent = host.second.backend_node(key::STATE);
    host.start();
    host.set(&silent, "3");
    host.stub().step();
    assert_eq!(
        host.hop_state(),
        Initialised,
        "offered, and the service has not taken it up"
    );

    host.remove(&host.second.frontend_dir());
    host.attach_second(&["0000:00:05.0"]);
    host.settle();
    assert_eq!(host.hop_state(), Connected);
    assert_eq!((host.world.grants(STUB), host.world.open_ports(STUB)), (1, 1));
}

#[test]
fn shutdown_requests_are_obeyed_and_acknowledged() {
    for (asked, reason) in [
        ("poweroff", Reason::Poweroff),
        ("halt", Reason::Poweroff),
        ("reboot", Reason::Reboot),
    ] {
        let mut host = Host::connected();
        let node = format!("{}/control/shutdown", path::home(STUB));
        host.set(&node, asked);
        assert_eq!(host.settle(), Outcome::Shutdown(reason));
        assert_eq!(host.get(&node).as_deref(), Some(""));
    }
}

#[test]
fn other_shutdown_requests_are_left_alone() {
    let mut host = Host::connected();
    let node = format!("{}/control/shutdown", path::home(STUB));
    for asked in ["", "suspend", "poweroff\n", "\u{1b}[2J"] {
        host.set(&node, asked);
        assert_eq!(host.settle(), IDLE, "{asked:?}");
    }
}

#[test]
fn the_stub_tells_xl_what_it_obeys() {
    let mut host = Host::idle();
    host.start();
    for feature in ["feature-poweroff", "feature-reboot"] {
        let node = format!("{}/control/{feature}", path::home(STUB));
        assert_eq!(host.get(&node).as_deref(), Some("1"));
    }
}

#[test]
fn states_that_mean_nothing_change_nothing() {
    let mut host = Host::connected();
    for state in [InitWait, Initialised, Reconfigured, Connected] {
        host.guest.set_state(state);
        host.settle();
        assert_eq!(host.backend_state(), Connected, "{state:?}");
    }
    assert_eq!(host.read(0x00, 4), 0x10d3_8086);
}

#[test]
fn the_counters_lie_in_the_page_of_the_second_hop() {
    use xenbus::counters::{Counter, Counters};
    let mut host = Host::connected();
    for _ in 0..3 {
        host.read(0x00, 4);
    }
    host.write(0x04, 2, 0x0007).unwrap();
    host.write(0x10, 4, u32::MAX).unwrap();
    host.write(0x06, 2, 0xffff).unwrap();
    host.ask(&Request::new(Command::Other(6), FIRST), &[])
        .unwrap_err();
    let service = host.service.borrow();
    let counters = Counters::collect(service.page().unwrap()).unwrap();
    for (counter, count) in [
        (Counter::Reads, 3),
        (Counter::WritesForwarded, 1),
        (Counter::WritesAbsorbed, 1),
        (Counter::WritesDropped, 1),
        (Counter::Refused, 1),
        (Counter::BlamedGuest, 1),
    ] {
        assert_eq!(counters.get(counter), count, "{}", counter.name());
    }
    let dropped: Vec<_> = counters.dropped_writes().collect();
    assert_eq!((dropped.len(), dropped[0].offset), (1, 0x06));
}

#[test]
fn how_long_the_guest_waited_for_each_answer_lies_there_too() {
    use xenbus::counters::{BUCKETS, Class, Counters};
    let mut host = Host::connected();
    for _ in 0..3 {
        host.read(0x00, 4);
    }
    host.ask(&Request::new(Command::EnableMsi, FIRST), &[]).unwrap();
    // Has no class.
    host.ask(&Request::new(Command::Other(6), FIRST), &[])
        .unwrap_err();
    let count = |host: &Host, class| {
        let service = host.service.borrow();
        let counters = Counters::collect(service.page().unwrap()).unwrap();
        counters.latency(class)
    };
    let counts = |host: &Host| Class::ALL.map(|class| count(host, class).buckets.iter().sum::<u64>());
    assert_eq!(counts(&host), [3, 0, 1]);

    // The stub waits for the service as long as it may, and then refuses.
    host.service.borrow_mut().mood = Mood::Silent;
    let (before, already) = (host.world.now(), count(&host, Class::ConfWrite).sum());
    host.write(0x04, 2, 0x0007).unwrap_err();
    let waited = host.world.now() - before;
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
    let writes = count(&host, Class::ConfWrite);
    assert_eq!(counts(&host), [3, 1, 1]);
    assert_eq!(writes.buckets[BUCKETS - 1], 1, "longer than the last bound");
    let told = writes.sum() - already;
    assert!(
        told <= waited && told + Duration::from_millis(1) >= waited,
        "{told:?} of {waited:?}"
    );
}

#[test]
fn every_state_on_the_way_up_is_the_protocols() {
    let mut host = Host::idle();
    host.attach_second(&["0000:00:05.0"]);
    host.attach_first(&["0000:00:05.0"]);
    host.guest.publish();
    host.start();
    let mut seen: Vec<XenbusState> = vec![host.hop_state()];
    for _ in 0..6 {
        host.stub().step();
        host.service.borrow_mut().run();
        let state = host.hop_state();
        if seen.last() != Some(&state) {
            seen.push(state);
        }
    }
    assert_eq!(seen, [Initialised, Connected]);
    assert_eq!(
        host.backend_state(),
        Connected,
        "a guest that published first is taken up at once"
    );
}
