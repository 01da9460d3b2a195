//! xenstore refuses a request, as where a quota is used up, or is lost: that says nothing about the guest, and the
//! guest's connection goes on.

mod common;

use common::host::{Host, STUB};
use pci::bdf::Bdf;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use xenbus::path::{self, Numbered, key};
use xenbus::pciif::{Command, MsixEntry, Request, backend};
use xenbus::state::XenbusState::*;
use xenbus::wire::ErrorName;

const A: &str = "0000:00:05.0";
const B: &str = "0000:00:06.0";
const C: &str = "0000:00:07.0";

/// A course of the stub, from what is there before to what must be there after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Start,
    Restart,
    Plug,
    Unplug,
    Close,
    ServiceRestarts,
    ServiceCloses,
}

const COURSES: [Course; 7] = [
    Course::Start,
    Course::Restart,
    Course::Plug,
    Course::Unplug,
    Course::Close,
    Course::ServiceRestarts,
    Course::ServiceCloses,
];

fn before(course: Course) -> Host {
    let mut host = if course == Course::Start {
        let mut host = Host::idle();
        host.attach_second(&[A, B]);
        host.attach_first(&[A, B]);
        host.guest.publish();
        host.connect_stub();
        host
    } else {
        let mut host = Host::running(&[A, B]);
        let on = Request::new(Command::EnableMsix, Bdf::from_devfn(0, 0, 0));
        host.ask(&on, &[MsixEntry { vector: 0, entry: 0 }]).unwrap();
        host
    };
    match course {
        Course::Plug => host.plug(&[C]),
        Course::Unplug => host.unplug(&[B]),
        _ => {}
    }
    host
}

fn run(host: &mut Host, course: Course) {
    match course {
        Course::Start => host.begin(),
        Course::Restart => host.fail(),
        Course::Close => host.guest.set_state(Closed),
        Course::ServiceRestarts => host.service.borrow_mut().restart(),
        Course::ServiceCloses => host.service.borrow_mut().close(),
        Course::Plug | Course::Unplug => {}
    }
    host.settle_for_good();
    while host.pcifront() {
        host.settle_for_good();
    }
}

fn check(host: &mut Host, course: Course, context: &str) {
    if course == Course::Close {
        assert_eq!(host.backend_state(), Closed, "{context}");
        assert_eq!((host.world.mapped(), host.device.mode()), (0, None), "{context}");
        return;
    }
    let states = (host.backend_state(), host.guest_state());
    assert_eq!(states, (Connected, Connected), "{context}");
    host.mark();
    let bus: Vec<_> = host.bus().into_values().flatten().collect();
    let expected: &[u32] = match course {
        Course::Plug => &[5, 6, 7],
        Course::Unplug => &[5],
        _ => &[5, 6],
    };
    assert_eq!(bus, expected, "{context}");
    assert_eq!(host.error(), None, "{context}");
    assert_eq!(host.world.mapped(), 1 + expected.len(), "{context}");
    if course == Course::ServiceCloses {
        assert_eq!(host.hop_state(), Closed, "{context}");
        return;
    }
    assert_eq!(host.hop_state(), Connected, "{context}");
    assert!(host.write(0x0c, 1, 8).is_ok(), "{context}: dom0 answers");
    if course != Course::Start {
        assert!(
            host.device.mode().is_some(),
            "{context}: interrupts are untouched"
        );
    }
    if course == Course::Unplug {
        assert_eq!(host.of(Numbered::State, 1).as_deref(), Some("6"), "{context}");
    }
}

#[test]
fn a_request_that_is_refused_at_any_moment_is_made_again() {
    for course in COURSES {
        for (times, error) in [(1, ErrorName::Equota), (9, ErrorName::Ebusy)] {
            for after in (0..).step_by(common::stride(3)) {
                let mut host = before(course);
                let made = host.requests();
                host.refuse_requests(after, times, error.clone());
                run(&mut host, course);
                check(&mut host, course, &format!("{course:?} {error} after {after}"));
                if host.requests() - made <= after {
                    assert!(after > 3, "there was a course");
                    break;
                }
            }
        }
    }
}

#[test]
fn a_guest_in_service_is_served_on_when_xenstore_is_lost_at_any_moment() {
    for course in [Course::Plug, Course::Unplug, Course::ServiceRestarts] {
        for after in (0..).step_by(common::stride(3)) {
            let mut host = before(course);
            host.lose_store(after);
            run(&mut host, course);
            assert_eq!(host.read(0, 4), 0x10d3_8086, "{course:?} {after}");
            assert!(host.device.mode().is_some(), "{course:?} {after}: untouched");
            if !host.has_lost_store() {
                assert!(after > 3, "there was a course");
                break;
            }
        }
    }
}

#[test]
fn a_run_that_loses_xenstore_before_it_has_followed_it_ends_and_the_next_one_connects_anew() {
    std::panic::set_hook(Box::new(|_| {}));
    for course in [Course::Start, Course::Restart] {
        let mut ends = 0;
        for after in (0..).step_by(common::stride(3)) {
            let context = format!("{course:?} after {after}");
            let mut host = before(course);
            host.lose_store(after);
            let is_alive = catch_unwind(AssertUnwindSafe(|| run(&mut host, course))).is_ok();
            let is_lost = host.has_lost_store();
            host.lose_store(usize::MAX);
            if is_alive {
                // Either nothing was lost, or all that the guest has was there by then. Also a later run has it.
                assert!(host.write(0x0c, 1, 8).is_ok(), "{context}: dom0 answers");
            } else {
                assert!(is_lost, "{context}: no other reason to end");
                ends += 1;
            }
            host.fail();
            host.settle_for_good();
            while host.pcifront() {
                host.settle_for_good();
            }
            check(&mut host, course, &context);
            if !is_lost {
                break;
            }
        }
        assert!(ends > 3, "{course:?}: {ends}");
    }
    let _ = std::panic::take_hook();
}

#[test]
fn a_run_that_loses_xenstore_while_a_frontend_starts_anew_ends_if_it_serves_that_one_already() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut ends = 0;
    for after in 0.. {
        let mut host = Host::running(&[A]);
        host.settle();
        host.guest.begin_anew();
        host.guest.publish();
        host.lose_store(after);
        let is_alive = catch_unwind(AssertUnwindSafe(|| host.settle_for_good())).is_ok();
        let is_lost = host.has_lost_store();
        host.lose_store(usize::MAX);
        if is_alive {
            let read = Request::conf_read(Bdf::from_devfn(0, 0, 0), 0, 4);
            drop(host.guest.post(&read, &[]));
            host.stub().step();
            let is_served = !backend::is_pending(&host.guest.page);
            assert!(!is_served || host.backend_state() == Connected, "after {after}");
        } else {
            ends += 1;
            host.fail();
            host.dance_for_good();
            assert_eq!(host.read(0, 4), 0x10d3_8086, "after {after}");
        }
        if !is_lost {
            break;
        }
    }
    assert!(ends > 3, "{ends}");
    let _ = std::panic::take_hook();
}

#[test]
fn a_shutdown_is_heard_though_xenstore_refuses() {
    for after in 0..2 {
        let mut host = Host::running(&[A]);
        let node = format!("{}/control/shutdown", path::home(STUB));
        host.set(&node, "poweroff");
        host.refuse_requests(after, 3, ErrorName::Equota);
        let mut outcome = host.settle();
        for _ in 0..10 {
            host.world.advance(std::time::Duration::from_millis(100));
            outcome = match outcome {
                drivers::stub::Outcome::Wait { .. } => host.settle(),
                ended => ended,
            };
        }
        assert!(matches!(outcome, drivers::stub::Outcome::Shutdown(_)), "{after}");
    }
}

#[test]
fn a_quota_that_is_used_up_for_long_is_asked_for_once_a_second() {
    let mut host = Host::running(&[A]);
    host.plug(&[B]);
    host.refuse_requests(0, usize::MAX - 1, ErrorName::Equota);
    let (made, start) = (host.requests(), host.world.now());
    for _ in 0..60 {
        let outcome = host.settle();
        let drivers::stub::Outcome::Wait { until: Some(until) } = outcome else {
            panic!("it tries again: {outcome:?}");
        };
        host.world.advance(until.saturating_sub(host.world.now()));
    }
    let seconds = (host.world.now() - start).as_secs();
    assert!(seconds > 30, "{seconds}");
    let requests = host.requests() - made;
    assert!(requests as u64 <= seconds + 20, "{requests} in {seconds} s");
    assert_eq!(host.read(0, 4), 0x10d3_8086);
    host.refuse_requests(0, 0, ErrorName::Equota);
    host.dance_for_good();
    assert_eq!(host.of(Numbered::State, 1).as_deref(), Some("3"));
    assert_eq!(
        host.get(&host.first.backend_node(key::STATE)).as_deref(),
        Some("4")
    );
}

#[test]
fn a_frontend_that_starts_anew_while_its_end_cannot_be_written_is_taken_up() {
    for after in 0..20 {
        let mut host = before(Course::Close);
        host.guest.set_state(Closed);
        host.refuse_requests(after, 1, ErrorName::Equota);
        host.settle();
        if host.backend_state() == Closed {
            assert!(after > 3, "there was a course");
            return;
        }
        host.guest.begin_anew();
        host.guest.publish();
        host.dance_for_good();
        host.mark();
        let bus: Vec<_> = host.bus().into_values().flatten().collect();
        assert_eq!(bus, [5, 6], "after {after}");
    }
    panic!("some request is always refused");
}

#[test]
fn a_failure_that_could_not_be_told_is_none_of_the_next_connections() {
    let mut told = 0;
    for after in 0..20 {
        let mut host = Host::ready();
        host.guest.publish_as("999", "999", "7");
        host.settle();
        host.world.advance(Duration::from_secs(6));
        host.refuse_requests(after, 1, ErrorName::Equota);
        host.settle();
        told += usize::from(host.error().is_some() && host.backend_state() == Closing);
        let state = host.first.backend_node(key::STATE);
        host.set(&state, "1");
        host.settle();
        // What was refused is asked again.
        host.world.advance(Duration::from_secs(1));
        host.settle();
        assert_eq!(host.backend_state(), Initialised, "after {after}");
    }
    assert!(
        (1..20).contains(&told),
        "it is told in some, and refused in others"
    );
}
