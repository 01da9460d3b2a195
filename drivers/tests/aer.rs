//! Errors of devices through the stub: what the guest is told, and what of its verdicts reaches dom0's service.

mod common;

use common::host::{GUEST, Host};
use drivers::error::MessageKind;
use drivers::stub::Outcome;
use pci::bdf::Bdf;
use proptest::prelude::*;
use xenbus::counters::{Counter, Counters};
use xenbus::pciif::aer::{AerRequest, Busy, Channel, Notice};
use xenbus::pciif::layout::FLAGS;
use xenbus::pciif::{AER_ACTIVE, AER_HANDLER, Command, MsixEntry, Request, SharedPage};
use xenbus::state::XenbusState::Closed;

const DEVICES: [&str; 2] = ["0000:00:05.0", "0000:01:06.0"];
const DETECTED: Notice = Notice::Detected(Channel::Normal);
const IDLE: Outcome = Outcome::Wait { until: None };
/// The verdicts of Linux, by number.
const NONE: i32 = 1;
const NEED_RESET: i32 = 3;
const NO_DRIVER: i32 = 6;

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

/// A guest with two devices that handles errors, as every Linux says it does.
fn host() -> Host {
    let mut host = Host::running(&DEVICES);
    host.guest.page.set_bits(FLAGS, AER_HANDLER);
    assert_eq!(host.settle(), IDLE);
    host
}

fn tell(host: &mut Host, device: &str, notice: Notice) -> Result<(), Busy> {
    let told = host
        .service
        .borrow_mut()
        .tell(&AerRequest::new(bdf(device), notice));
    host.settle();
    told
}

fn verdict(host: &mut Host) -> Option<i32> {
    host.settle();
    host.service.borrow().verdict()
}

#[test]
fn each_verdict_goes_back_as_it_is() {
    let mut host = host();
    for given in [1, 2, NEED_RESET, 4, 5, NO_DRIVER, 0, -1, 7, i32::MAX, i32::MIN] {
        assert_eq!(tell(&mut host, DEVICES[1], DETECTED), Ok(()));
        assert_eq!(verdict(&mut host), None, "the guest has not answered");
        let told = host.guest.handle(given);
        let place = bdf("0000:00:01.0");
        assert_eq!(
            told,
            Some(AerRequest::new(place, DETECTED)),
            "at its place on the guest's bus"
        );
        assert_eq!(verdict(&mut host), Some(given));
        assert_eq!(host.settle(), IDLE);
    }
}

#[test]
fn each_notice_goes_on_as_it_is() {
    let mut host = host();
    let place = bdf("0000:00:00.0");
    for notice in [
        DETECTED,
        Notice::Detected(Channel::Frozen),
        Notice::SlotReset,
        Notice::Resume,
    ] {
        tell(&mut host, DEVICES[0], notice).unwrap();
        assert_eq!(host.guest.handle(NONE), Some(AerRequest::new(place, notice)));
        assert_eq!(verdict(&mut host), Some(NONE));
    }
}

#[test]
fn the_guest_uses_its_device_while_it_handles_an_error_and_is_never_waited_for() {
    let mut host = host();
    tell(&mut host, DEVICES[0], DETECTED).unwrap();
    let before = host.world.now();
    let first = Bdf::from_devfn(0, 0, 0);
    let entries = [MsixEntry { vector: 0, entry: 0 }];
    for _ in 0..3 {
        assert_eq!(host.read(0, 4), 0x10d3_8086);
        assert!(host.write(0x0c, 1, 8).is_ok());
        assert!(
            host.ask(&Request::new(Command::EnableMsix, first), &entries)
                .is_ok()
        );
        assert_eq!(host.device.mode(), Some(MessageKind::Msix));
        assert!(host.ask(&Request::new(Command::DisableMsi, first), &[]).is_ok());
    }
    assert_eq!(host.settle(), IDLE, "nothing is done until the guest answers");
    assert!(host.world.now() - before < std::time::Duration::from_secs(1));
    assert!(host.guest.handle(NEED_RESET).is_some());
    assert_eq!(verdict(&mut host), Some(NEED_RESET));
}

#[test]
fn an_error_posted_in_the_middle_of_a_request_is_not_missed() {
    let mut host = host();
    // The event of the request's answer and that of the error are one.
    let request = Request::conf_write(Bdf::from_devfn(0, 0, 0), 0x0c, 1, 0x10);
    let posted = host.guest.post(&request, &[]);
    let error = AerRequest::new(bdf(DEVICES[0]), DETECTED);
    host.service.borrow_mut().tell(&error).unwrap();
    host.stub().step();
    assert!(host.guest.answer(posted).is_ok());
    assert!(host.guest.handle(NEED_RESET).is_some(), "told in the same step");
    assert_eq!(verdict(&mut host), Some(NEED_RESET));
}

#[test]
fn a_guest_that_sits_on_an_error_blocks_errors_only_and_its_late_verdict_is_for_the_old_one() {
    let mut host = host();
    tell(&mut host, DEVICES[0], DETECTED).unwrap();
    assert_eq!(tell(&mut host, DEVICES[1], DETECTED), Err(Busy));
    assert_eq!(host.read(0, 4), 0x10d3_8086);
    assert_eq!(host.guest.handle(NEED_RESET).unwrap().devfn, 0);
    assert_eq!(verdict(&mut host), Some(NEED_RESET));
    assert_eq!(tell(&mut host, DEVICES[1], DETECTED), Ok(()));
    assert_eq!(host.guest.handle(NONE).unwrap().devfn, 8);
    assert_eq!(verdict(&mut host), Some(NONE));
}

#[test]
fn the_service_sees_whether_the_guest_handles_errors() {
    let mut host = Host::running(&DEVICES);
    let flag = |host: &Host| host.service.borrow().page().unwrap().load(FLAGS) & AER_HANDLER != 0;
    assert!(!flag(&host));
    host.guest.page.set_bits(FLAGS, AER_HANDLER);
    host.read(0, 4);
    assert!(flag(&host));
    host.guest.page.clear_bits(FLAGS, AER_HANDLER);
    host.read(0, 4);
    assert!(!flag(&host));
    host.guest.page.set_bits(FLAGS, AER_HANDLER);
    host.guest.set_state(Closed);
    host.settle();
    assert!(!flag(&host), "a guest that has gone handles nothing");
}

#[test]
fn a_device_that_the_guest_does_not_have_has_no_driver() {
    let mut host = host();
    tell(&mut host, "0000:00:07.0", DETECTED).unwrap();
    assert_eq!(verdict(&mut host), Some(NO_DRIVER));
    assert_eq!(host.guest.handle(NONE), None, "it is not told");

    host.guest.set_state(Closed);
    host.settle();
    tell(&mut host, DEVICES[0], DETECTED).unwrap();
    assert_eq!(verdict(&mut host), Some(NO_DRIVER));
}

#[test]
fn a_guest_that_goes_while_it_handles_an_error_has_no_driver() {
    let mut host = host();
    tell(&mut host, DEVICES[0], DETECTED).unwrap();
    host.guest.set_state(Closed);
    assert_eq!(verdict(&mut host), Some(NO_DRIVER));
}

#[test]
fn a_frontend_that_starts_anew_is_told_of_the_error_in_its_new_page() {
    let mut host = host();
    tell(&mut host, DEVICES[0], DETECTED).unwrap();
    host.guest.begin_anew();
    host.guest.publish();
    host.dance_for_good();
    assert_eq!(verdict(&mut host), None, "an empty page is no verdict");
    assert_eq!(host.guest.handle(5).unwrap().devfn, 0);
    assert_eq!(verdict(&mut host), Some(5));
}

#[test]
fn a_device_that_leaves_while_its_error_is_handled_leaves_orderly() {
    let mut host = host();
    tell(&mut host, DEVICES[1], DETECTED).unwrap();
    host.unplug(&DEVICES[1..]);
    host.dance();
    host.strike(&DEVICES[1..]);
    host.dance();
    assert!(host.guest.handle(NEED_RESET).is_some());
    assert_eq!(verdict(&mut host), Some(NEED_RESET));
    tell(&mut host, DEVICES[1], Notice::SlotReset).unwrap();
    assert_eq!(verdict(&mut host), Some(NO_DRIVER));
    tell(&mut host, DEVICES[0], DETECTED).unwrap();
    assert_eq!(host.guest.handle(5).unwrap().devfn, 0);
    assert_eq!(verdict(&mut host), Some(5));
}

#[test]
fn a_stub_started_anew_takes_no_verdict_for_that_on_another_error() {
    let mut host = host();
    tell(&mut host, DEVICES[0], DETECTED).unwrap();
    host.restart_stub();
    host.settle();
    // The guest is still at the error of before; this one waits for it.
    tell(&mut host, DEVICES[1], DETECTED).unwrap();
    assert_eq!(host.guest.handle(NEED_RESET).unwrap().devfn, 0);
    assert_eq!(verdict(&mut host), None);
    assert_eq!(host.guest.handle(5).unwrap().devfn, 8);
    assert_eq!(verdict(&mut host), Some(5));
}

#[test]
fn a_service_started_anew_gets_no_verdict_that_it_has_not_asked_for() {
    let mut host = host();
    tell(&mut host, DEVICES[0], DETECTED).unwrap();
    host.service.borrow_mut().restart();
    host.settle();
    let page = host.service.borrow().page().unwrap().clone();
    assert!(host.guest.handle(NEED_RESET).is_some());
    assert_eq!(verdict(&mut host), Some(0), "the page is as it was made");
    assert_eq!(page.load(FLAGS) & AER_ACTIVE, 0);
    tell(&mut host, DEVICES[0], DETECTED).unwrap();
    assert!(host.guest.handle(5).is_some());
    assert_eq!(verdict(&mut host), Some(5));
}

#[test]
fn a_verdict_is_no_spurious_event_and_one_that_nobody_asked_for_is() {
    let mut host = host();
    let spurious = |host: &Host| {
        let counters = Counters::collect(host.service.borrow().page().unwrap()).unwrap();
        counters.get(Counter::SpuriousEvents)
    };
    host.read(0, 4);
    let before = spurious(&host);
    tell(&mut host, DEVICES[0], DETECTED).unwrap();
    assert!(host.guest.handle(NEED_RESET).is_some());
    assert_eq!(verdict(&mut host), Some(NEED_RESET));
    host.world.notify(GUEST, host.guest.port);
    host.settle();
    host.read(0, 4);
    assert_eq!(spurious(&host), before + 1);
}

/// What a guest that means harm does to its page.
#[derive(Clone, Copy, Debug)]
enum Trick {
    Set(u32),
    Clear(u32),
    Scribble(usize, u32),
    Knock,
}

fn trick() -> impl Strategy<Value = Trick> {
    let flag = prop_oneof![
        Just(AER_ACTIVE),
        Just(AER_HANDLER),
        any::<u32>().prop_map(|bits| bits & !1)
    ];
    prop_oneof![
        flag.clone().prop_map(Trick::Set),
        flag.prop_map(Trick::Clear),
        (138..143_usize, any::<u32>()).prop_map(|(word, value)| Trick::Scribble(4 * word, value)),
        Just(Trick::Knock),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_guest_that_lies_spoils_its_own_errors_only(tricks in prop::collection::vec((trick(), any::<bool>()), 1..40)) {
        let mut host = host();
        let mut asked = 0_usize;
        let mut verdicts = 0_usize;
        for (trick, error) in tricks {
            if error && tell(&mut host, DEVICES[0], DETECTED).is_ok() {
                asked += 1;
            }
            let page = host.guest.page.clone();
            match trick {
                Trick::Set(bits) => _ = page.set_bits(FLAGS, bits),
                Trick::Clear(bits) => _ = page.clear_bits(FLAGS, bits),
                Trick::Scribble(offset, value) => page.store(offset, value),
                Trick::Knock => host.world.notify(GUEST, host.guest.port),
            }
            // Comes to rest, or panics.
            host.settle();
            if asked > verdicts && host.service.borrow().verdict().is_some() {
                verdicts += 1;
            }
            prop_assert!(verdicts <= asked);
            prop_assert_eq!(host.read(0, 4), 0x10d3_8086);
        }
        // Once it behaves, all is as ever.
        host.guest.handle(NONE);
        host.settle();
        while host.service.borrow().verdict().is_none() {
            prop_assert!(host.guest.handle(NONE).is_some());
            host.settle();
        }
        tell(&mut host, DEVICES[0], DETECTED).unwrap();
        if host.guest.handle(NEED_RESET).is_none() {
            // It had set the flag for nothing.
            prop_assert!(false, "an honest guest is told");
        }
        prop_assert_eq!(verdict(&mut host), Some(NEED_RESET));
    }
}
