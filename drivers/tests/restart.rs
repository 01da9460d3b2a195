//! The stub fails and begins anew in the same domain: the guest and its device notice nothing.

mod common;

use common::host::{GUEST, Host, STUB};
use common::service::Mood;
use drivers::crash_log::Cause;
use drivers::error::MessageKind;
use drivers::hops::second::TIMEOUT;
use drivers::snapshot::FUNCTIONS_MAX;
use drivers::stub::Outcome;
use pci::bdf::Bdf;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use xenbus::counters::{Counter, Counters};
use xenbus::path::{Numbered, key};
use xenbus::pciif::backend;
use xenbus::pciif::frontend::Answer;
use xenbus::pciif::{Command, MsixEntry, OpError, Request, SharedPage, layout};
use xenbus::state::XenbusState::*;

const FIRST: Bdf = Bdf::from_devfn(0, 0, 0);
const IDLE: Outcome = Outcome::Wait { until: None };

fn entries(indices: &[u16]) -> Vec<MsixEntry> {
    indices
        .iter()
        .map(|&entry| MsixEntry { vector: 0, entry })
        .collect()
}

/// Where a stub fails while it serves a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Nothing is done yet.
    Before,
    /// All is done, but for the answer.
    After,
}

/// Has the guest ask, the stub fail over it `times`, and the life after that answer.
fn ask_through(host: &mut Host, request: &Request, entries: &[MsixEntry], when: When, times: u32) -> Answer {
    if when == When::After {
        let real = Request {
            devfn: 5 << 3,
            ..*request
        };
        host.service.borrow_mut().carry_out(&real, entries);
    }
    let posted = host.guest.post(request, entries);
    let head = *backend::take(&host.guest.page).expect("a request").head();
    for _ in 0..times {
        host.world.set_under_way(Some(head));
        host.fail();
    }
    host.settle();
    host.guest.answer(posted)
}

#[test]
fn an_idle_stub_comes_back_and_nothing_is_left_over() {
    let mut host = Host::connected();
    host.guest.set_state(Connected);
    host.settle();
    let before = (
        host.world.grants(STUB),
        host.world.open_ports(STUB),
        host.world.mapped(),
    );
    for round in 1..=5 {
        host.fail();
        assert_eq!(host.settle(), IDLE);
        let after = (
            host.world.grants(STUB),
            host.world.open_ports(STUB),
            host.world.mapped(),
        );
        assert_eq!(after, before, "round {round}");
        assert_eq!(host.backend_state(), Connected);
        assert_eq!(host.hop_state(), Connected);
        assert_eq!(host.read(0x00, 4), 0x10d3_8086);
        assert!(host.write(0x0c, 1, round).is_ok(), "dom0 has the new page");
    }
    let service = host.service.borrow();
    let counters = Counters::collect(service.page().unwrap()).unwrap();
    assert_eq!(counters.get(Counter::Restarts), 5);
}

/// Whether the stub's first requests to xenstore come before the answer to a request of the guest that waits.
fn asks_xenstore_first(host: &mut Host) -> bool {
    let posted = host.guest.post(&Request::conf_read(FIRST, 0, 4), &[]);
    let page = host.guest.page.clone();
    let early = Rc::new(Cell::new(0));
    let seen = Rc::clone(&early);
    host.at_each_request(move || seen.set(seen.get() + usize::from(backend::is_pending(&page))));
    host.fail();
    host.settle();
    host.at_each_request(|| {});
    assert_eq!(host.guest.answer(posted).unwrap().value, 0x10d3_8086);
    early.get() > 0
}

#[test]
fn a_read_that_waits_is_answered_before_xenstore_is_asked() {
    let mut host = Host::connected();
    host.guest.set_state(Connected);
    host.settle();
    for round in 0..3 {
        assert!(!asks_xenstore_first(&mut host), "round {round}");
    }
    host.dance();
    host.plug(&["0000:00:06.0"]);
    host.dance();
    assert!(!asks_xenstore_first(&mut host), "after a hotplug");
    host.unplug(&["0000:00:06.0"]);
    host.dance();
    assert!(!asks_xenstore_first(&mut host), "and after another");
}

/// A guest in service with so many functions.
fn running_with(count: u32) -> Host {
    let devices: Vec<_> = (0..count)
        .map(|index| format!("0000:01:{:02x}.{}", index / 8, index % 8))
        .collect();
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    let mut host = Host::running(&devices);
    host.settle();
    host
}

#[test]
fn a_restart_asks_xenstore_no_more_for_many_devices_than_for_one() {
    let requests = |count: u32| {
        let mut host = running_with(count);
        let before = host.requests();
        host.fail();
        assert_eq!(host.requests(), before, "not before the first step");
        host.settle();
        for devfn in 0..count {
            let ids = Request::conf_read(Bdf::from_devfn(0, 0, devfn as u8), 0, 4);
            assert_eq!(host.ask(&ids, &[]).unwrap().value, 0x10d3_8086);
        }
        assert!(host.write(0x0c, 1, 8).is_ok());
        host.requests() - before
    };
    let one = requests(1);
    assert!(one < 40, "{one}");
    assert_eq!(requests(32), one);
    assert_eq!(requests(FUNCTIONS_MAX as u32), one);
}

#[test]
fn a_guest_with_more_functions_than_a_stub_can_map_would_be_served_by_what_xenstore_says() {
    let mut host = running_with(FUNCTIONS_MAX as u32 + 1);
    let before = host.requests();
    host.fail();
    assert!(host.requests() > before);
    host.settle();
    let last = Bdf::from_devfn(0, 0, FUNCTIONS_MAX as u8);
    assert!(host.ask(&Request::conf_read(last, 0, 4), &[]).is_ok());
}

#[test]
fn what_needs_dom0_waits_for_it_after_a_restart_and_in_vain_for_a_service_that_is_away() {
    let mut host = Host::connected();
    let write = Request::conf_write(FIRST, 0x0c, 1, 8);
    let posted = host.guest.post(&write, &[]);
    host.fail();
    host.stub().step();
    assert!(backend::is_pending(&host.guest.page), "dom0 does not serve yet");
    host.settle();
    assert!(host.guest.answer(posted).is_ok());
    assert_eq!(host.read(0x0c, 1), 8);

    host.service.borrow_mut().close();
    host.settle();
    // The guest has waited for the hang too.
    for (cause, longest) in [
        (Cause::Panic, TIMEOUT),
        (Cause::Deadline, TIMEOUT - Duration::from_millis(400)),
    ] {
        let posted = host.guest.post(&Request::conf_write(FIRST, 0x0c, 1, 16), &[]);
        host.fail_by(cause);
        let failed = host.world.now();
        host.settle_for_good();
        let waited = host.world.now() - failed;
        assert_eq!(host.guest.answer(posted), Err(OpError::OpFailed));
        let late = waited.saturating_sub(longest);
        assert!(
            waited >= longest && late < Duration::from_millis(50),
            "{cause:?}: {waited:?}"
        );
    }
    assert!(host.write(0x0c, 1, 16).is_err(), "from then on at once");
    assert_eq!(host.read(0x0c, 1), 8, "reads go on");
}

#[test]
fn a_request_that_was_held_is_answered_in_time_though_dom0_is_silent() {
    // By what was left, and by xenstore: there too the request lies in the page since before the failure.
    for is_restored in [true, false] {
        for (cause, longest) in [(Cause::Panic, 1900), (Cause::Deadline, 1500)] {
            // Without what was left a run needs 57 requests to xenstore, of 2 ms each, before it serves.
            let latest = longest - if is_restored { 10 } else { 150 };
            for up in [0, 500, 1000, 1090, 1490, latest] {
                if up > latest {
                    continue;
                }
                let context = format!("restored: {is_restored}, {cause:?}, dom0 is back after {up} ms");
                let mut host = Host::connected();
                host.guest.set_state(Connected);
                host.settle();
                host.service.borrow_mut().close();
                host.service.borrow_mut().mood = Mood::Silent;
                host.settle();
                if !is_restored {
                    host.world.snapshot().clear();
                }
                let posted = host.guest.post(&Request::conf_write(FIRST, 0x0c, 1, 16), &[]);
                let failed = host.world.now();
                host.fail_by(cause);
                host.settle();
                let since = host.world.now() - failed;
                let left = Duration::from_millis(up).saturating_sub(since);
                host.world.advance(left);
                host.service.borrow_mut().restart();
                host.settle_until_answered();
                let waited = host.world.told(GUEST, host.guest.port) - failed;
                assert_eq!(host.guest.answer(posted), Err(OpError::OpFailed), "{context}");
                assert!(waited <= Duration::from_millis(longest), "{context}: {waited:?}");
                // The next request has the usual time.
                let asked = host.world.now();
                host.service.borrow_mut().restart();
                host.settle();
                assert!(host.write(0x0c, 1, 16).is_err(), "{context}");
                assert!(host.world.now() - asked >= TIMEOUT, "{context}");
            }
        }
    }
}

#[test]
fn a_run_that_fails_before_it_has_followed_xenstore_is_the_last_one_that_goes_by_what_was_left() {
    let mut host = Host::connected();
    host.guest.set_state(Connected);
    host.settle();
    host.fail();
    let before = host.requests();
    host.fail();
    assert!(host.requests() > before);
    host.settle();
    assert!(
        !asks_xenstore_first(&mut host),
        "what was read anew can be gone by"
    );
    host.fail();
    assert!(asks_xenstore_first(&mut host), "tried and not confirmed");
}

#[test]
fn a_run_after_two_failures_over_one_request_goes_by_xenstore() {
    let mut host = Host::connected();
    let poison = Request::conf_read(FIRST, 0x40, 4);
    let posted = host.guest.post(&poison, &[]);
    let head = *backend::take(&host.guest.page).expect("a request").head();
    for strike in 0..2 {
        let before = host.requests();
        host.world.set_under_way(Some(head));
        host.fail();
        assert_eq!(host.requests() > before, strike == 1);
        // Followed, but the request is not answered.
        host.guest.page.clear_bits(layout::FLAGS, 1);
        host.settle();
        host.guest.page.set_bits(layout::FLAGS, 1);
    }
    host.world.notify(GUEST, host.guest.port);
    host.settle();
    assert!(host.guest.answer(posted).is_err());
}

#[test]
fn what_is_there_no_more_is_not_gone_by() {
    // The guest has gone; and it has started anew, with another page.
    for gone in [true, false] {
        let mut host = Host::connected();
        host.guest.set_state(Connected);
        host.settle();
        if gone {
            host.world.unshare(GUEST, host.guest.grant);
            host.remove(&host.first.frontend_dir());
        } else {
            host.guest.begin_anew();
            host.guest.publish();
        }
        let before = host.requests();
        host.fail();
        assert!(host.requests() > before, "gone: {gone}");
        host.settle_for_good();
        if !gone {
            assert_eq!(host.read(0x00, 4), 0x10d3_8086);
        }
    }
    // Xen does not let the stub see a device any more: that device alone is refused.
    let mut host = Host::running(&["0000:00:05.0", "0000:00:06.0"]);
    host.leave_writable("0000:00:06.0");
    let before = host.requests();
    host.fail();
    assert!(host.requests() > before);
    host.settle_for_good();
    assert_eq!(host.of(Numbered::State, 1).as_deref(), Some("6"));
    assert_eq!(host.read(0x00, 4), 0x10d3_8086);
    assert_eq!(host.world.mapped(), 2);
}

#[test]
fn a_frontend_that_started_anew_with_the_same_numbers_is_seen_by_its_states() {
    // Whatever the stub's state was. The page is the old one: only the states tell.
    for own in ["4", "7", "8"] {
        for last in [Initialising, Initialised] {
            let mut host = Host::running(&["0000:00:05.0"]);
            let on = Request::new(Command::EnableMsi, FIRST);
            host.ask(&on, &[]).unwrap();
            host.set(&host.first.backend_node(key::STATE), own);
            host.guest.set_state(last);
            host.fail();
            host.settle_for_good();
            if last == Initialising {
                assert_eq!(host.backend_state(), InitWait, "{own}");
                host.guest.publish();
                host.settle_for_good();
            }
            let anew = last == Initialising || own == "8";
            assert_eq!(host.device.mode().is_none(), anew, "{own} {last:?}");
        }
    }
}

#[test]
fn a_request_that_the_stub_failed_over_is_answered_as_if_nothing_had_been() {
    for when in [When::Before, When::After] {
        let mut host = Host::connected();
        let read = Request::conf_read(FIRST, 0, 4);
        let answer = ask_through(&mut host, &read, &[], when, 1);
        assert_eq!(answer.unwrap().value, 0x10d3_8086, "{when:?}");

        let write = Request::conf_write(FIRST, 0x0c, 1, 8);
        assert!(ask_through(&mut host, &write, &[], when, 1).is_ok(), "{when:?}");
        assert_eq!(host.read(0x0c, 1), 8);

        let on = Request::new(Command::EnableMsix, FIRST);
        let vectors = ask_through(&mut host, &on, &entries(&[0, 1, 2]), when, 1)
            .unwrap()
            .vectors;
        assert_eq!(vectors.len(), 3, "{when:?}");
        assert_eq!(host.device.mode(), Some(MessageKind::Msix), "{when:?}");

        let off = Request::new(Command::DisableMsix, FIRST);
        assert!(ask_through(&mut host, &off, &[], when, 1).is_ok(), "{when:?}");
        assert_eq!(host.device.mode(), None, "{when:?}");

        let on = Request::new(Command::EnableMsi, FIRST);
        assert!(ask_through(&mut host, &on, &[], when, 1).is_ok(), "{when:?}");
        assert_eq!(host.device.mode(), Some(MessageKind::Msi), "{when:?}");
        let again = host.ask(&on, &[]);
        assert_eq!(
            again,
            Err(OpError::OpFailed),
            "on already: only a request that was under way is served twice"
        );
    }
}

#[test]
fn a_kind_that_is_asked_for_in_vain_when_the_stub_fails_leaves_the_other_kind_on() {
    for (on, other) in [
        (Command::EnableMsix, Command::EnableMsi),
        (Command::EnableMsi, Command::EnableMsix),
    ] {
        let mut host = Host::connected();
        host.ask(&Request::new(on, FIRST), &entries(&[0])).unwrap();
        let mode = host.device.mode();
        let asked = Request::new(other, FIRST);
        let answer = ask_through(&mut host, &asked, &entries(&[1]), When::Before, 1);
        assert!(answer.is_err(), "{other:?}");
        assert_eq!(host.device.mode(), mode, "{other:?}");
    }
}

#[test]
fn a_request_is_under_way_from_when_it_is_taken_until_it_is_answered() {
    use std::cell::RefCell;
    use std::rc::Rc;
    use xenbus::handover_block::HandoverBlock;
    let mut host = Host::connected();
    let seen = Rc::new(RefCell::new(None));
    let (world, witness) = (host.world.clone(), Rc::clone(&seen));
    host.service.borrow_mut().witness = Box::new(move |page| {
        let left = HandoverBlock::from_page(page).expect("a block");
        *witness.borrow_mut() = Some((world.under_way(), left.under_way().map(|(op, _)| *op)));
    });
    host.write(0x0c, 1, 8).unwrap();
    let (kept, published) = seen.take().expect("the service was asked");
    assert!(kept.is_some() && kept == published);
    assert_eq!(host.world.under_way(), None);
    let service = host.service.borrow();
    let left = HandoverBlock::from_page(service.page().unwrap()).unwrap();
    assert_eq!(left.under_way(), None);
}

#[test]
fn what_was_refused_to_the_last_guest_is_served_to_the_next() {
    let mut host = Host::connected();
    let poison = Request::conf_read(FIRST, 0x40, 4);
    assert!(ask_through(&mut host, &poison, &[], When::Before, 2).is_err());
    host.guest.set_state(Closed);
    host.settle();
    // A driver that is bound again is not another guest.
    host.guest.set_state(Initialising);
    host.settle_for_good();
    host.guest.begin_anew();
    host.guest.publish();
    host.settle();
    assert_eq!(host.ask(&poison, &[]), Err(OpError::OpFailed));

    host.guest.set_state(Closed);
    host.settle();
    host.remove(&host.first.frontend_dir());
    host.guest = common::guest::Guest::new(&host.world, &host.xenstored, host.first);
    host.attach_first(&["0000:00:05.0"]);
    host.settle();
    host.guest.publish();
    host.settle();
    assert!(host.ask(&poison, &[]).is_ok());
}

#[test]
fn a_stub_that_fails_while_a_device_is_asked_back_serves_it_until_the_guest_lets_go() {
    let mut host = Host::running(&["0000:00:05.0", "0000:00:06.0"]);
    host.unplug(&["0000:00:06.0"]);
    host.fail();
    host.settle();
    let second = Bdf::from_devfn(0, 0, 8);
    assert!(host.ask(&Request::conf_write(second, 0x0c, 1, 8), &[]).is_ok());
    assert_eq!(host.backend_state(), Reconfiguring);
    host.dance();
    let gone = host.ask(&Request::conf_read(second, 0, 4), &[]);
    assert_eq!(gone, Err(OpError::DeviceNotFound));
}

#[test]
fn a_stub_that_fails_after_it_has_reconfigured_leaves_its_state_to_the_guest() {
    let mut host = Host::running(&["0000:00:05.0"]);
    host.plug(&["0000:00:06.0"]);
    host.settle();
    assert!(host.pcifront());
    host.settle();
    assert_eq!(host.backend_state(), Reconfigured);
    host.fail();
    host.settle();
    assert_eq!(
        host.backend_state(),
        Reconfigured,
        "the guest has not looked at its bus yet"
    );
    host.dance();
    assert_eq!(host.guest.bus.len(), 2);
}

#[test]
fn a_stub_that_fails_where_the_guest_closes_follows_it_to_the_end() {
    for last in [Closing, Closed] {
        let mut host = Host::connected();
        host.guest.set_state(Closing);
        host.settle();
        assert_eq!(host.backend_state(), Closing);
        host.fail();
        host.settle();
        host.guest.set_state(last);
        host.guest.set_state(Closed);
        host.settle();
        assert_eq!(host.backend_state(), Closed);
        assert_eq!(host.world.mapped(), 0);
    }
}

#[test]
fn an_answer_that_the_guest_was_not_told_of_is_told_of_by_the_next_life() {
    let mut host = Host::connected();
    host.guest.set_state(Connected);
    host.settle();
    let posted = host.guest.post(&Request::conf_read(FIRST, 0, 4), &[]);
    let taken = backend::take(&host.guest.page).expect("a request");
    let delivered = taken.answer(&host.guest.page, Ok(backend::Success::Value(7)));
    assert_eq!(delivered, backend::Delivery::Delivered);
    host.world.take_pending(GUEST, host.guest.port);
    host.fail();
    host.settle();
    assert!(host.world.take_pending(GUEST, host.guest.port));
    assert_eq!(host.guest.answer(posted).unwrap().value, 7);
}

#[test]
fn what_only_the_stub_knew_of_the_guests_view_outlives_it() {
    let mut host = Host::connected();
    host.write(0x04, 2, 0x0547).unwrap();
    host.write(0x10, 4, u32::MAX).unwrap();
    let (command, size) = (host.read(0x04, 2), host.read(0x10, 4));
    assert_eq!(command & 0x0543, 0x0543);
    host.fail();
    host.settle();
    assert_eq!((host.read(0x04, 2), host.read(0x10, 4)), (command, size));

    // The next guest of this place begins with the device's own.
    host.guest.set_state(Closed);
    host.settle();
    host.fail();
    host.remove(&host.first.frontend_dir());
    host.guest = common::guest::Guest::new(&host.world, &host.xenstored, host.first);
    host.attach_first(&["0000:00:05.0"]);
    host.settle();
    host.guest.publish();
    host.settle();
    assert_eq!((host.read(0x04, 2), host.read(0x10, 4)), (0x0007, 0xfeb8_0000));
}

#[test]
fn a_request_that_brings_the_stub_down_twice_is_refused_and_the_others_are_served() {
    let mut host = Host::connected();
    let poison = Request::conf_read(FIRST, 0x40, 4);
    assert_eq!(
        ask_through(&mut host, &poison, &[], When::Before, 2),
        Err(OpError::OpFailed)
    );
    assert_eq!(host.ask(&poison, &[]), Err(OpError::OpFailed), "for good");
    assert_eq!(host.read(0x00, 4), 0x10d3_8086);
    assert!(host.ask(&Request::conf_read(FIRST, 0x44, 4), &[]).is_ok());
    let service = host.service.borrow();
    let counters = Counters::collect(service.page().unwrap()).unwrap();
    assert_eq!(counters.get(Counter::BlamedSelf), 2);
}

#[test]
fn a_stub_that_fails_anywhere_on_its_way_up_gets_there_in_the_end() {
    // In every step of the guest's and the service's life: the next life goes on from what stands in xenstore.
    let mut host = Host::idle();
    host.attach_second(&["0000:00:05.0"]);
    host.attach_first(&["0000:00:05.0"]);
    host.start();
    for _ in 0..3 {
        host.stub().step();
        host.fail();
    }
    host.settle();
    assert_eq!(host.backend_state(), Initialised);
    host.guest.publish();
    host.fail();
    host.settle();
    assert_eq!(host.backend_state(), Connected);
    host.guest.set_state(Closing);
    host.fail();
    host.settle();
    assert_eq!(host.backend_state(), Closing);
    assert_eq!((host.world.mapped(), host.device.mode()), (0, None));
}

#[test]
fn hotplug_goes_on_over_a_failure() {
    let mut host = Host::connected();
    host.guest.set_state(Connected);
    host.settle();
    let state = host.first.backend_node(key::STATE);
    host.set(&state, "7");
    host.guest.set_state(Reconfiguring);
    host.fail();
    host.settle();
    assert_eq!(host.backend_state(), Reconfigured);
    host.fail();
    host.guest.set_state(Connected);
    host.settle();
    assert_eq!(host.backend_state(), Connected);
    assert_eq!(host.read(0x00, 4), 0x10d3_8086);
}
