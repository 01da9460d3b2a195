//! MSI and MSI-X of one function: when they are turned on, and when not.

mod common;

use common::device::{Device, MSI, MSIX, PM};
use drivers::error::{MessageKind, MessageRefusal, RequestError};
use drivers::policy::config::{Access, VirtualConfig};
use drivers::policy::dom0::Dom0;
use drivers::policy::msi::{Mode, MsiState};
use pci::bdf::Bdf;
use xenbus::pciif::MsixEntry;

const COMMAND: u16 = 0x04;

fn messages(device: &Device) -> MsiState {
    let resources = Device::resources("0000:00:05.0");
    MsiState::new(&VirtualConfig::new(resources, device).unwrap(), device)
}

fn entries(entries: &[u16]) -> Vec<MsixEntry> {
    let entry = |&entry| MsixEntry { vector: 0, entry };
    entries.iter().map(entry).collect()
}

/// The answers to turning on MSI, and MSI-X. What is on after the first is turned off again.
fn answers(device: &Device) -> (Result<u32, RequestError>, Result<Vec<u16>, RequestError>) {
    let (mut messages, mut dom0) = (messages(device), device.clone());
    let msi = messages.enable_msi(device, &mut dom0);
    if msi.is_ok() {
        messages.disable(&mut dom0).unwrap();
    }
    let entries = entries(&[0, 1]);
    (msi, messages.enable_msix(device, &mut dom0, Ok(&entries)))
}

#[test]
fn neither_is_turned_on_while_the_function_sleeps() {
    use MessageKind::{Msi, Msix};
    let asleep = |kind| RequestError::Message(kind, MessageRefusal::Asleep);
    for state in 1..4 {
        let device = Device::e1000e();
        // The other bits of the register say nothing of the state.
        device.poke(PM + 4, 2, 0x8108 | state);
        assert_eq!(
            answers(&device),
            (Err(asleep(Msi)), Err(asleep(Msix))),
            "D{state}"
        );
        device.poke(PM + 4, 2, 0x8108);
        assert_eq!(answers(&device), (Ok(55), Ok(vec![55, 54])));
    }
}

#[test]
fn a_function_without_power_management_is_awake() {
    let device = Device::e1000e();
    device.poke(PM, 1, 0x09);
    device.poke(PM + 4, 2, 3);
    let mut messages = messages(&device);
    let resources = Device::resources("0000:00:05.0");
    assert_eq!(
        VirtualConfig::new(resources, &device).unwrap().power_capability(),
        None
    );
    device.poke(PM + 4, 2, 0);
    assert_eq!(messages.enable_msi(&device, &mut device.clone()), Ok(55));
}

#[test]
fn all_ones_in_any_register_that_decides_are_a_device_that_does_not_answer() {
    let silent = Err(RequestError::DeviceSilent);
    for (register, msi, msix) in [
        (COMMAND, false, true),
        (MSI + 2, true, false),
        (MSIX + 2, false, true),
        (PM + 4, true, true),
    ] {
        let device = Device::e1000e();
        let (mut first, mut second) = (messages(&device), messages(&device));
        device.poke(register, 2, 0xffff);
        assert_eq!(
            first.enable_msi(&device, &mut device.clone()).is_err(),
            msi,
            "{register:#x}"
        );
        if !msi {
            first.disable(&mut device.clone()).unwrap();
        }
        let answer = second.enable_msix(&device, &mut device.clone(), Ok(&entries(&[2047])));
        let beyond = MessageRefusal::EntryPastTable {
            entry: 2047,
            table: 5,
        };
        let beyond = Err(RequestError::Message(MessageKind::Msix, beyond));
        assert_eq!(
            answer,
            if msix { silent.clone() } else { beyond },
            "{register:#x}"
        );
    }
}

#[test]
fn what_is_on_in_a_device_that_does_not_answer_is_not_known() {
    for (register, kind) in [(MSIX + 2, MessageKind::Msix), (MSI + 2, MessageKind::Msi)] {
        let device = Device::e1000e();
        let config = VirtualConfig::new(Device::resources("0000:00:05.0"), &device).unwrap();
        device.poke(register, 2, 0xffff);
        let messages = MsiState::new(&config, &device);
        assert_eq!(messages.mode(), Mode::Unknown(kind));
    }
    let device = Device::e1000e();
    assert_eq!(messages(&device).mode(), Mode::Unconfirmed);
    device.poke(MSI + 2, 2, 0x0081);
    assert_eq!(messages(&device).mode(), Mode::On(MessageKind::Msi));
}

#[test]
fn all_entries_of_a_large_table_can_be_asked_for_and_none_past_it() {
    for table in [1_u16, 256, 257, 2048] {
        let device = Device::e1000e();
        device.poke(MSIX + 2, 2, u32::from(table) - 1);
        let mut messages = messages(&device);
        let mut dom0 = Answering(Ok(vec![55]));
        let past = messages.enable_msix(&device, &mut dom0, Ok(&entries(&[table])));
        let refusal = MessageRefusal::EntryPastTable { entry: table, table };
        assert_eq!(past, Err(RequestError::Message(MessageKind::Msix, refusal)));
        assert_eq!(
            messages.enable_msix(&device, &mut dom0, Ok(&entries(&[table - 1]))),
            Ok(vec![55])
        );
    }
}

#[test]
fn a_pirq_of_0_or_too_few_are_no_answer_and_what_is_on_is_not_known() {
    let turn_on_msi = |answer| {
        let device = Device::e1000e();
        let mut messages = messages(&device);
        let answer = messages.enable_msi(&device, &mut Answering(Ok(vec![answer])));
        (answer, messages.mode())
    };
    let nonsense = RequestError::ServiceNonsense;
    let (msi, msix) = (MessageKind::Msi, MessageKind::Msix);
    assert_eq!(turn_on_msi(0), (Err(nonsense), Mode::Unknown(MessageKind::Msi)));
    assert_eq!(turn_on_msi(1), (Ok(1), Mode::On(msi)));
    for (answer, expected, mode) in [
        (vec![55, 0], Err(nonsense), Mode::Unknown(msix)),
        (vec![0, 55], Err(nonsense), Mode::Unknown(msix)),
        (vec![55], Err(nonsense), Mode::Unknown(msix)),
        (vec![55, 54, 53], Err(nonsense), Mode::Unknown(msix)),
        (vec![55, 1], Ok(vec![55, 1]), Mode::On(msix)),
    ] {
        let device = Device::e1000e();
        let mut messages = messages(&device);
        let mut dom0 = Answering(Ok(answer));
        let got = messages.enable_msix(&device, &mut dom0, Ok(&entries(&[0, 1])));
        assert_eq!((got, messages.mode()), (expected, mode));
    }
}

/// A service that answers this to a request for messages, and leaves the device as it is.
struct Answering(Result<Vec<u16>, RequestError>);

impl Dom0 for Answering {
    fn conf_write(&mut self, _: Bdf, _: Access, _: u32) -> Result<(), RequestError> {
        panic!("turning messages on and off writes no register");
    }

    fn enable_msi(&mut self, _: Bdf) -> Result<u32, RequestError> {
        self.0.clone().map(|pirqs| pirqs[0].into())
    }

    fn enable_msix(&mut self, _: Bdf, _: &[MsixEntry]) -> Result<Vec<u16>, RequestError> {
        self.0.clone()
    }

    fn disable(&mut self, _: Bdf, _: MessageKind) -> Result<(), RequestError> {
        Ok(())
    }
}
