//! What holds whatever a guest, a device, dom0 and xenstore come up with.
//!
//! The models check on their own side: [`common::device::Device::guarded_write`] that nothing is written
//! outside the mask and decode is never turned off, `set_messages` and `map_entries` that MSI never meets
//! MSI-X and no entry is mapped twice, `Host::settle` that the stub comes to rest.

mod common;

use common::device::{Device, MSI, MSIX, PM, TABLE, VPD};
use common::host::{GUEST, Host};
use common::service::Mood;
use drivers::error::{MessageKind, RequestError};
use drivers::platform::ConfigSpace;
use drivers::policy::config::Access;
use drivers::policy::engine::{Engine, Reply};
use pci::bdf::Bdf;
use proptest::prelude::*;
use std::time::Duration;
use xenbus::path::{Numbered, key};
use xenbus::pciif::{Command, MsixEntry, Request, SharedPage, TooManyVectors, layout};

/// All that a guest may be told besides success.
const ERRORS: [i32; 8] = [-1, -2, -3, -4, -5, -6, -22, -114];

/// Something that happens to the engine.
#[derive(Clone, Debug)]
enum Event {
    Request(Request, Vec<u16>),
    /// More vectors than fit.
    TooMany(u32),
    /// The device changes on its own.
    Device(u16, u16),
    /// The service changes its mind.
    Service(Option<RequestError>),
    /// Answers are lost from now on, or come again.
    Lossy(bool),
}

fn offsets() -> impl Strategy<Value = i32> {
    let registers = [
        0x00, 0x04, 0x06, 0x0c, 0x0f, 0x10, 0x14, 0x18, 0x1c, 0x24, 0x30, 0x3c,
    ];
    let registers = registers
        .into_iter()
        .chain([PM, PM + 4, MSI, MSI + 2, MSIX, MSIX + 2, VPD, VPD + 2]);
    let registers: Vec<i32> = registers.map(i32::from).collect();
    prop_oneof![
        8 => proptest::sample::select(registers),
        4 => 0..256,
        1 => -8..4200,
        1 => any::<i32>(),
    ]
}

fn values() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0),
        Just(u32::MAX),
        0u32..8,
        Just(0xfeb8_0000),
        Just(0xc041),
        any::<u32>(),
    ]
}

fn requests() -> impl Strategy<Value = Request> {
    let command = prop_oneof![3 => Just(0), 8 => Just(1), 6 => 2u32..6, 1 => any::<u32>()];
    let size = prop_oneof![9 => proptest::sample::select(vec![1, 2, 4]), 1 => any::<i32>()];
    let devfn = prop_oneof![20 => Just(0), 1 => any::<u32>()];
    (command, offsets(), size, values(), devfn).prop_map(|(command, offset, size, value, devfn)| Request {
        command: Command::from_raw(command),
        offset,
        size,
        value,
        devfn,
        ..Request::new(Command::ConfRead, Bdf::from_devfn(0, 0, 0))
    })
}

fn events() -> impl Strategy<Value = Event> {
    let entries = proptest::collection::vec(prop_oneof![8 => 0..TABLE, 1 => any::<u16>()], 0..4);
    let words = proptest::sample::select(vec![0x04, 0x0c, 0x10, PM + 2, PM + 4, VPD + 2]);
    let error = proptest::sample::select(vec![
        None,
        None,
        Some(RequestError::ServiceAbsent),
        Some(RequestError::ServiceBusy),
        Some(RequestError::ServiceNonsense),
        Some(RequestError::ServiceSilent(Duration::from_millis(1500))),
    ]);
    prop_oneof![
        20 => (requests(), entries).prop_map(|(request, entries)| Event::Request(request, entries)),
        1 => any::<u32>().prop_map(Event::TooMany),
        2 => (words, prop_oneof![Just(0), Just(3), Just(u16::MAX), any::<u16>()])
            .prop_map(|(offset, value)| Event::Device(offset, value)),
        1 => error.prop_map(Event::Service),
        1 => any::<bool>().prop_map(Event::Lossy),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_sequence_of_requests_gets_past_the_policy(
        events in proptest::collection::vec(events(), 1..60),
        permissive: bool,
        quirk: bool,
        msi: bool,
    ) {
        let device = Device::e1000e();
        let mut resources = Device::resources("0000:00:05.0");
        if quirk {
            resources.quirks = "6:2:f900;54:2:ff0;148:4:ff;e8:2:7000".parse().unwrap();
            for quirk in resources.quirks.as_slice() {
                device.let_through(Some((quirk.offset(), quirk.width())));
            }
        }
        if permissive {
            device.let_through(None);
        }
        (resources.permissive, resources.msi) = (permissive, msi);
        let bdf: Bdf = "0000:00:05.0".parse().unwrap();
        let mut dom0 = common::device::DirectDom0([(bdf, device.clone())].into());
        let mut engine = Engine::default();
        engine.add(resources, device.clone(), None).unwrap();

        for event in events {
            let answer = match &event {
                Event::Request(request, indices) => {
                    let entries: Vec<MsixEntry> =
                        indices.iter().map(|&entry| MsixEntry { vector: 0, entry }).collect();
                    engine.serve(request, Ok(&entries), &mut dom0, Duration::ZERO)
                }
                Event::TooMany(count) => {
                    let request = Request::new(Command::EnableMsix, Bdf::from_devfn(0, 0, 0));
                    engine.serve(&request, Err(TooManyVectors(*count)), &mut dom0, Duration::ZERO)
                }
                Event::Device(offset, value) => {
                    device.poke(*offset, 2, (*value).into());
                    continue;
                }
                Event::Service(answer) => {
                    device.answer_with(*answer);
                    continue;
                }
                Event::Lossy(lossy) => {
                    device.lose_answers(*lossy);
                    continue;
                }
            };
            match (&event, answer) {
                (_, Err(error)) => prop_assert!(ERRORS.contains(&error.answer().raw()), "{}", error),
                (Event::Request(request, indices), Ok(Reply::Vectors(pirqs))) => {
                    prop_assert_eq!(request.command, Command::EnableMsix);
                    prop_assert!(msi);
                    prop_assert_eq!(indices.len(), pirqs.len());
                    prop_assert!(!pirqs.contains(&0));
                    prop_assert_eq!(device.mode(), Some(MessageKind::Msix));
                }
                (Event::Request(request, _), Ok(Reply::Value(_))) => match request.command {
                    Command::EnableMsi => prop_assert_eq!(device.mode(), Some(MessageKind::Msi)),
                    Command::DisableMsi | Command::DisableMsix => prop_assert_eq!(device.mode(), None),
                    _ => {}
                },
                (event, Ok(_)) => prop_assert!(false, "{:?} cannot succeed", event),
            }
        }
    }

    #[test]
    fn a_read_changes_nothing_and_bytes_agree_with_dwords(
        writes in proptest::collection::vec((0u16..64, values()), 0..8),
        at in 0u16..1024,
    ) {
        let device = Device::e1000e();
        let resources = Device::resources("0000:00:05.0");
        let mut config = drivers::policy::config::VirtualConfig::new(resources, &device).unwrap();
        for (dword, value) in writes {
            let access = Access::new(i32::from(dword) * 4, 4).unwrap();
            let _ = config.write(&device, &mut device.clone(), access, value, |_| {});
        }
        let before: Vec<u32> = (0..1024).map(|dword| device.read(dword * 4, 4)).collect();
        let dword = config.read(&device, Access::new(i32::from(at) * 4, 4).unwrap());
        let bytes = (0..4).map(|byte| {
            config.read(&device, Access::new(i32::from(at) * 4 + byte, 1).unwrap()) << (8 * byte)
        });
        prop_assert_eq!(dword, bytes.sum::<u32>());
        let after: Vec<u32> = (0..1024).map(|dword| device.read(dword * 4, 4)).collect();
        prop_assert_eq!(before, after);
    }
}

/// Something that happens to a whole host.
#[derive(Clone, Debug)]
enum Happening {
    GuestState(String),
    GuestNode(&'static str, String),
    Publish,
    /// A request over the shared page, as bytes.
    Page(Vec<u8>),
    Ask(Request),
    Service(u8),
    Toolstack(&'static str, String),
    Anew,
    RemoveBackend,
    RemoveGuest,
    Pass(u64),
    /// The stub dies after so many more moments, and begins anew in place.
    Die(usize),
}

fn happenings() -> impl Strategy<Value = Happening> {
    let text = prop_oneof![
        8 => (0..10u32).prop_map(|digit| digit.to_string()),
        1 => "[ -~]{0,40}",
        1 => any::<u32>().prop_map(|number| number.to_string()),
    ];
    let guest_keys = proptest::sample::select(vec![key::PCI_OP_REF, key::EVENT_CHANNEL, key::MAGIC]);
    let backend_keys =
        proptest::sample::select(vec![key::STATE, key::NUM_DEVS, "dev-0", "state-0", "vdev-0"]);
    prop_oneof![
        6 => text.clone().prop_map(Happening::GuestState),
        2 => (guest_keys, text.clone()).prop_map(|(key, value)| Happening::GuestNode(key, value)),
        4 => Just(Happening::Publish),
        2 => proptest::collection::vec(any::<u8>(), 40..600).prop_map(Happening::Page),
        8 => requests().prop_map(Happening::Ask),
        3 => (0u8..6).prop_map(Happening::Service),
        1 => (backend_keys, text).prop_map(|(key, value)| Happening::Toolstack(key, value)),
        3 => Just(Happening::Anew),
        1 => Just(Happening::RemoveBackend),
        1 => Just(Happening::RemoveGuest),
        1 => (0u64..40).prop_map(Happening::Pass),
        2 => (1usize..200).prop_map(Happening::Die),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_happens_the_stub_comes_to_rest_and_leaks_nothing(
        happenings in proptest::collection::vec(happenings(), 1..40),
    ) {
        let mut host = Host::ready();
        for happening in happenings {
            apply(&mut host, happening);
            host.settle();
            prop_assert!(host.world.mapped() <= 2, "one device and one page at most");
        }
        host.service.borrow_mut().mood = Mood::Willing;
        host.remove(&host.first.backend_dir());
        // A guest that has changed its state all the time is looked at later.
        host.settle_for_good();
        prop_assert_eq!(host.world.mapped(), 0);
        prop_assert!(host.stub().ports().len() <= 2, "the guest's is none of them");
    }
}

fn apply(host: &mut Host, happening: Happening) {
    match happening {
        Happening::GuestState(text) => set_by_guest(host, key::STATE, &text),
        Happening::GuestNode(key, text) => set_by_guest(host, key, &text),
        Happening::Publish => {
            let (grant, port) = (host.guest.grant.to_string(), host.guest.port.to_string());
            set_by_guest(host, key::PCI_OP_REF, &grant);
            set_by_guest(host, key::EVENT_CHANNEL, &port);
            set_by_guest(host, key::MAGIC, "7");
            set_by_guest(host, key::STATE, "3");
        }
        Happening::Page(bytes) => {
            host.guest.page.copy_in(4, &bytes);
            host.guest.page.set_bits(layout::FLAGS, 1);
            host.world.notify(GUEST, host.guest.port);
        }
        Happening::Ask(request) => {
            host.guest.page.clear_bits(layout::FLAGS, 1);
            let _ = host.guest.post(&request, &[MsixEntry::default()]);
        }
        Happening::Service(what) => {
            let mut service = host.service.borrow_mut();
            match what {
                0 => service.mood = Mood::Silent,
                1 => service.mood = Mood::Refusing(-5),
                2 => service.close(),
                3 => service.restart(),
                _ => service.mood = Mood::Willing,
            }
        }
        Happening::Toolstack(key, text) => {
            let path = host.first.backend_node(key);
            host.set(&path, &text);
        }
        Happening::Anew => {
            host.attach_first(&["0000:00:05.0"]);
            let path = host.first.backend_node(&Numbered::State.at(0));
            host.set(&path, "1");
        }
        Happening::RemoveBackend => {
            let path = host.first.backend_dir();
            host.remove(&path);
        }
        Happening::RemoveGuest => {
            let path = host.first.frontend_dir();
            host.remove(&path);
        }
        Happening::Pass(seconds) => {
            let until = host.world.now() + Duration::from_secs(seconds);
            host.wait(until);
        }
        // One that fails for ever ends, as it should.
        Happening::Die(moments) if host.world.outlives_a_failure() => {
            host.world.die_at(host.world.moments() + moments);
        }
        Happening::Die(_) => {}
    }
}

/// The guest writes a node of its own; if its directory is gone, the toolstack has forbidden that.
fn set_by_guest(host: &mut Host, key: &str, text: &str) {
    use xenbus::client::Store;
    let path = host.first.frontend_node(key);
    let _ = host.guest.store.write(&path, text);
}
