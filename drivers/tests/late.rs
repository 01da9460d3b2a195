//! MSI and MSI-X after a request about them that nobody has heard the end of: dom0 was silent, away, or at it for too long,
//! and the guest or the stub has begun anew meanwhile. Whatever became of the request, the guest can turn on either kind.

mod common;

use common::host::{GUEST, Host};
use common::service::Mood;
use drivers::error::MessageKind::{self, *};
use pci::bdf::Bdf;
use xenbus::handover_block;
use xenbus::path::Numbered;
use xenbus::pciif::backend;
use xenbus::pciif::frontend::Answer;
use xenbus::pciif::{Command, MsixEntry, OpError, Request, SharedPage, layout};
use xenbus::state::XenbusState::*;

const A: &str = "0000:00:05.0";
const FIRST: Bdf = Bdf::from_devfn(0, 0, 0);
const KINDS: [MessageKind; 2] = [Msi, Msix];

/// What happens between the request that is lost and the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    /// The guest asks again at once.
    Nothing,
    /// The toolstack makes the connection anew.
    Reattached,
    /// The frontend starts anew.
    Reprobed,
    /// Its driver is unbound and bound again.
    Rebound,
    /// The device leaves the guest and comes back.
    Replugged,
    /// The stub restarts in place.
    Restarted,
    /// It does so twice.
    RestartedTwice,
    /// The frontend starts anew, and then the stub restarts in place.
    ReprobedAndRestarted,
    /// Another stub domain takes the place of the stub's.
    Replaced,
}

use Between::*;

/// All ways by which the guest begins anew.
const NEW_STARTS: [Between; 4] = [Reattached, Reprobed, Rebound, Replugged];

impl Between {
    fn happen(self, host: &mut Host) {
        match self {
            Nothing => {}
            Reattached => {
                host.attach_first(&[A]);
                let state = host.first.backend_node(&Numbered::State.at(0));
                host.set(&state, "1");
                host.settle();
                host.guest.begin_anew();
                host.guest.publish();
                host.dance_for_good();
            }
            Reprobed => {
                host.guest.set_state(Initialising);
                host.guest.begin_anew();
                host.guest.publish();
                host.dance_for_good();
            }
            Rebound => {
                host.guest.set_state(Closed);
                host.settle();
                host.guest.set_state(Initialising);
                host.settle_for_good();
                host.guest.begin_anew();
                host.guest.publish();
                host.dance_for_good();
            }
            Replugged => {
                host.unplug(&[A]);
                host.dance();
                host.strike(&[A]);
                host.plug(&[A]);
                host.dance();
            }
            Restarted => {
                host.fail();
                host.settle();
            }
            RestartedTwice => {
                Restarted.happen(host);
                Restarted.happen(host);
            }
            ReprobedAndRestarted => {
                Reprobed.happen(host);
                Restarted.happen(host);
            }
            Replaced => {
                host.replace_stub(&[A]);
                host.settle();
            }
        }
    }
}

/// When dom0 carries the lost request out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// Before anything else happens.
    Soon,
    /// When all has happened.
    Late,
}

fn ask(host: &mut Host, command: Command) -> Answer {
    let entries = [0, 1].map(|entry| MsixEntry { vector: 0, entry });
    let entries = if command == Command::EnableMsix {
        &entries[..]
    } else {
        &[]
    };
    host.ask(&Request::new(command, FIRST), entries)
}

const fn on(kind: MessageKind) -> Command {
    match kind {
        Msi => Command::EnableMsi,
        Msix => Command::EnableMsix,
    }
}

const fn off(kind: MessageKind) -> Command {
    match kind {
        Msi => Command::DisableMsi,
        Msix => Command::DisableMsix,
    }
}

/// The guest turns this kind on, and its service does so.
fn check_turned_on(host: &mut Host, kind: MessageKind, context: &str) {
    let answer = ask(host, on(kind));
    assert!(answer.is_ok(), "{context}: {answer:?}");
    assert_eq!(host.device.mode(), Some(kind), "{context}");
    let off = ask(host, off(kind));
    assert!(off.is_ok() && host.device.mode().is_none(), "{context}: {off:?}");
}

#[test]
fn whatever_became_of_a_lost_request_either_kind_can_be_turned_on() {
    let ways = [
        Nothing,
        Reattached,
        Reprobed,
        Rebound,
        Replugged,
        Restarted,
        RestartedTwice,
        ReprobedAndRestarted,
        Replaced,
    ];
    for between in ways {
        for lost in KINDS.map(on).into_iter().chain(KINDS.map(off)) {
            for done in [Done::Soon, Done::Late] {
                for kind in KINDS {
                    let context = format!("{lost:?}, carried out {done:?}, {between:?}, {kind}");
                    let mut host = Host::running(&[A]);
                    match lost {
                        Command::DisableMsi => drop(ask(&mut host, on(Msi)).unwrap()),
                        Command::DisableMsix => drop(ask(&mut host, on(Msix)).unwrap()),
                        // So that the request that is lost is the one that turns on.
                        _ => check_turned_on(&mut host, kind, &context),
                    }
                    host.service.borrow_mut().mood = Mood::Silent;
                    assert_eq!(ask(&mut host, lost), Err(OpError::OpFailed), "{context}");
                    if done == Done::Soon {
                        host.service.borrow_mut().mood = Mood::Willing;
                        host.service.borrow_mut().run();
                    }
                    between.happen(&mut host);
                    host.service.borrow_mut().mood = Mood::Willing;
                    host.service.borrow_mut().run();
                    host.settle();
                    check_turned_on(&mut host, kind, &context);
                }
            }
        }
    }
}

#[test]
fn what_could_not_be_turned_off_for_a_new_start_is_turned_off_when_the_guest_asks() {
    for between in NEW_STARTS.into_iter().chain([ReprobedAndRestarted]) {
        for earlier in KINDS {
            for kind in KINDS {
                let context = format!("{earlier}, {between:?}, {kind}");
                let mut host = Host::running(&[A]);
                ask(&mut host, on(earlier)).unwrap();
                host.service.borrow_mut().mood = Mood::Refusing(-5);
                between.happen(&mut host);
                assert_eq!(host.device.mode(), Some(earlier), "{context}");
                host.service.borrow_mut().mood = Mood::Willing;
                check_turned_on(&mut host, kind, &context);
            }
        }
    }
}

#[test]
fn what_the_guest_turned_off_while_dom0_was_away_can_be_turned_on_again() {
    for between in [Nothing, Restarted, RestartedTwice, Replaced] {
        for earlier in KINDS {
            for kind in KINDS {
                let context = format!("{earlier}, {between:?}, {kind}");
                let mut host = Host::running(&[A]);
                ask(&mut host, on(earlier)).unwrap();
                host.service.borrow_mut().close();
                host.settle();
                assert_eq!(ask(&mut host, off(earlier)), Err(OpError::OpFailed), "{context}");
                host.service.borrow_mut().restart();
                host.settle();
                between.happen(&mut host);
                assert_eq!(host.device.mode(), Some(earlier), "{context}");
                check_turned_on(&mut host, kind, &context);
            }
        }
    }
}

#[test]
fn what_was_turned_on_for_a_guest_that_had_given_up_is_turned_off_when_it_asks_again() {
    for between in [Nothing, Restarted, Replaced] {
        for earlier in KINDS {
            for kind in KINDS {
                let context = format!("{earlier}, {between:?}, {kind}");
                let mut host = Host::running(&[A]);
                let page = host.guest.page.clone();
                host.service.borrow_mut().witness = Box::new(move |_| {
                    page.clear_bits(layout::FLAGS, 1);
                });
                let request = Request::new(on(earlier), FIRST);
                drop(host.guest.post(&request, &[MsixEntry::default()]));
                host.settle();
                assert_eq!(host.device.mode(), Some(earlier), "{context}");
                host.service.borrow_mut().witness = Box::new(|_| {});
                host.world.take_pending(GUEST, host.guest.port);
                between.happen(&mut host);
                check_turned_on(&mut host, kind, &context);
            }
        }
    }
}

/// The guest asks for this, which waits for dom0 after a restart, and gives it up before dom0 is back. `strikes`: the stub
/// fails over it, and not before it.
fn give_up_while_held(host: &mut Host, command: Command, strikes: bool) {
    host.service.borrow_mut().close();
    host.settle();
    if !strikes {
        host.fail();
        host.stub().step();
    }
    let entries = [MsixEntry::default()];
    let entries = if command == Command::EnableMsix {
        &entries[..]
    } else {
        &[]
    };
    drop(host.guest.post(&Request::new(command, FIRST), entries));
    if strikes {
        let head = *backend::take(&host.guest.page).expect("a request").head();
        host.world.set_under_way(Some(head));
        host.fail();
    }
    host.stub().step();
    host.guest.page.clear_bits(layout::FLAGS, 1);
    host.world.take_pending(GUEST, host.guest.port);
}

#[test]
fn what_the_guest_turned_off_and_gave_up_while_it_was_held_can_be_turned_on_again() {
    for between in [Nothing, Restarted, Replaced] {
        for strikes in [false, true] {
            for earlier in KINDS {
                for kind in KINDS {
                    let context = format!("{earlier}, {between:?}, {kind}, failed over it: {strikes}");
                    let mut host = Host::running(&[A]);
                    host.settle();
                    ask(&mut host, on(earlier)).unwrap();
                    give_up_while_held(&mut host, off(earlier), strikes);
                    host.service.borrow_mut().restart();
                    host.settle_for_good();
                    between.happen(&mut host);
                    assert_eq!(host.device.mode(), Some(earlier), "{context}");
                    check_turned_on(&mut host, kind, &context);
                }
            }
        }
    }
}

#[test]
fn what_was_turned_on_for_a_guest_that_gave_up_while_it_was_held_is_turned_off_when_it_asks_again() {
    for between in [Nothing, Restarted, Replaced] {
        for earlier in KINDS {
            for kind in KINDS {
                let context = format!("{earlier}, {between:?}, {kind}");
                let mut host = Host::running(&[A]);
                host.settle();
                // Done and kept, but for the answer: the stub fails over it then.
                ask(&mut host, on(earlier)).unwrap();
                give_up_while_held(&mut host, on(earlier), true);
                // The guest goes on with something else.
                let read = Request::conf_read(FIRST, 0, 4);
                host.ask(&read, &[]).unwrap();
                host.service.borrow_mut().restart();
                host.settle_for_good();
                between.happen(&mut host);
                assert_eq!(host.device.mode(), Some(earlier), "{context}");
                check_turned_on(&mut host, kind, &context);
            }
        }
    }
}

#[test]
fn what_the_guest_uses_stays_on_over_a_restart_and_counts_as_on() {
    for between in [Restarted, RestartedTwice, Replaced] {
        for kind in KINDS {
            let context = format!("{kind}, {between:?}");
            let mut host = Host::running(&[A]);
            ask(&mut host, on(kind)).unwrap();
            host.service.borrow_mut().served.clear();
            between.happen(&mut host);
            for other in KINDS {
                assert!(ask(&mut host, on(other)).is_err(), "{context}");
            }
            assert_eq!(host.device.mode(), Some(kind), "{context}");
            assert!(
                host.service.borrow().served.is_empty(),
                "{context}: nothing is asked"
            );
        }
    }
}

#[test]
fn a_stub_that_has_no_word_of_the_one_before_leaves_on_what_is_on_and_turns_it_off_for_a_request() {
    for earlier in KINDS {
        for kind in KINDS {
            let mut host = Host::running(&[A]);
            ask(&mut host, on(earlier)).unwrap();
            let service = host.service.borrow();
            let page = service.page().expect("a connection").clone();
            drop(service);
            page.copy_in(handover_block::OFFSET, &[0; 8]);
            Replaced.happen(&mut host);
            assert_eq!(host.device.mode(), Some(earlier), "{kind}");
            check_turned_on(&mut host, kind, "no handover block");
        }
    }
}
