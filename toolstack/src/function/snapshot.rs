//! Registers of a function that a reset clears, remembered so that they can be restored while a guest has the
//! function.

use crate::config_space::access::ConfigAccess;
use crate::config_space::bytes::register_at;
use crate::config_space::capabilities::Capabilities;
use crate::config_space::header as layout;
use pci::registers::{SILENT, command, express, register};
use std::io;

/// Registers of the header that hold no addresses.
const HEADER: [(u16, u8); 3] = [
    (register::CACHE_LINE, 1),
    (register::LATENCY, 1),
    (register::INTERRUPT_LINE, 1),
];
/// Registers of the PCI Express capability: device control, link control, and those two of version 2.
const EXPRESS: [(u16, u8); 4] = [(DEVICE_CONTROL, 2), (0x10, 2), (0x28, 2), (0x30, 2)];
const DEVICE_CONTROL: u16 = 0x08;
/// Number of those in version 1.
const EXPRESS_1: usize = 2;
/// Registers of the AER capability: masks, severities, control.
const AER: [(u16, u8); 4] = [(0x08, 4), (0x0c, 4), (0x14, 4), (0x18, 4)];
/// Device control: report correctable, non-fatal and fatal errors.
const REPORT_ERRORS: u16 = 0x7;
/// Bits of the command register that a reset clears and nothing else does.
const COMMAND_LOST: u16 = command::IO | command::MEMORY;

/// One register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Register {
    offset: u16,
    width: u8,
    value: u32,
}

/// The registers of one function.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The addresses, and a bridge's windows, as they are recorded: they come back first.
    addresses: Vec<Register>,
    registers: Vec<Register>,
    /// COMMAND, which is restored last.
    command: u16,
    /// The PCI Express capability of a function with error reporting.
    reporting: Option<u16>,
}

impl Snapshot {
    /// Reads the registers as they are now. The addresses are those of the recorded `header`. For a function that
    /// does not answer there is only that header.
    pub fn take(config: &impl ConfigAccess, header: &[u8], capabilities: &Capabilities) -> io::Result<Self> {
        let mut places = HEADER.to_vec();
        let mut reporting = None;
        let command = config.read16(register::COMMAND)?;
        let silent = command == SILENT;
        if silent {
            // It reads all-ones now, which must never be written back.
            places.clear();
        } else if let Some(express) = capabilities.express {
            let version = config.read16(express + express::CAPABILITIES)? & express::VERSION;
            let known = if version < 2 { EXPRESS_1 } else { EXPRESS.len() };
            places.extend(EXPRESS[..known].iter().map(|&(at, width)| (express + at, width)));
            if let Some(aer) = capabilities.aer {
                places.extend(AER.map(|(at, width)| (aer + at, width)));
                reporting = Some(express);
            }
        }
        // A capability may say that it lies where the space ends.
        let read = |(offset, width): (u16, u8)| {
            let value = config.read(offset, width).ok()?;
            Some(Register { offset, width, value })
        };
        let addresses = layout::addresses(header).iter().map(|&offset| (offset, 4));
        let addresses = addresses.chain(layout::windows(header).iter().copied());
        let address = |(offset, width)| {
            register_at(header, offset, width).map(|value| Register { offset, width, value })
        };
        Ok(Self {
            addresses: addresses.filter_map(address).collect(),
            registers: places.into_iter().filter_map(read).collect(),
            command: if silent {
                register_at(header, register::COMMAND, 2).unwrap_or_default() as u16
            } else {
                command
            },
            reporting,
        })
    }

    /// Takes in a write that has reached the device.
    pub fn update(&mut self, offset: u16, width: u8, value: u32) {
        if (offset, width) == (register::COMMAND, 2) {
            self.command = value as u16;
        }
        // A permissive guest writes in any width: byte N of the value belongs to byte `offset` + N.
        for register in &mut self.registers {
            for byte in 0..u16::from(width) {
                let at = (offset + byte).checked_sub(register.offset);
                if let Some(at) = at.filter(|&at| at < register.width.into()) {
                    let new = value >> (8 * byte) & 0xff;
                    register.value = register.value & !(0xff << (8 * at)) | new << (8 * at);
                }
            }
        }
    }

    /// Reads COMMAND again, if the device answers.
    pub fn update_command(&mut self, config: &impl ConfigAccess) -> io::Result<()> {
        self.set_command(config.read16(register::COMMAND)?);
        Ok(())
    }

    /// Takes in COMMAND as it is now, unless it is what a device reads that does not answer.
    pub const fn set_command(&mut self, command: u16) {
        if command != SILENT {
            self.command = command;
        }
    }

    /// Turns error reporting on in the function, if it has AER.
    pub fn report_errors(&mut self, config: &impl ConfigAccess) -> io::Result<()> {
        let Some(express) = self.reporting else {
            return Ok(());
        };
        // Older Linux leaves this to the driver, whose writes to this register are dropped (decision 37).
        let control = config.read_sound(express + DEVICE_CONTROL)?;
        let reporting = control | REPORT_ERRORS;
        if reporting != control {
            config.write16(express + DEVICE_CONTROL, reporting)?;
        }
        self.update(express + DEVICE_CONTROL, 2, reporting.into());
        Ok(())
    }

    /// True if the function has lost an address or its decode bits: it has been reset.
    pub fn is_lost(&self, config: &impl ConfigAccess) -> io::Result<bool> {
        let now = config.read16(register::COMMAND)?;
        // The guard lets no guest turn decoding off, so a function that does not decode has been reset.
        if self.command & !now & COMMAND_LOST != 0 {
            return Ok(true);
        }
        for register in &self.addresses {
            if config.read(register.offset, register.width)? != register.value {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes back all registers that differ.
    pub fn restore(&self, config: &impl ConfigAccess) -> io::Result<()> {
        for &Register { offset, width, value } in self.addresses.iter().chain(&self.registers) {
            if config.read(offset, width)? != value {
                config.write(offset, width, value)?;
            }
        }
        // COMMAND comes last, when the addresses are right again.
        if config.read16(register::COMMAND)? != self.command {
            config.write16(register::COMMAND, self.command)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_space::access::tests::Model;
    use crate::config_space::capabilities::tests::space;

    const EXP: usize = 0xc0;

    /// A function with addresses, PCI Express of this version, and error reporting.
    fn function(version: u8) -> (Model, Snapshot) {
        let mut bytes = space(&[(EXP as u8, 0x10)]);
        bytes.resize(4096, 0);
        bytes[0x04..0x06].copy_from_slice(&[0x07, 0x04]);
        bytes[0x0c] = 0x10;
        bytes[0x10..0x14].copy_from_slice(&0xfebc_0000_u32.to_le_bytes());
        bytes[EXP + 2] = version;
        bytes[EXP + 8] = 0x20;
        bytes[EXP + 0x28] = 0x05;
        bytes[0x100..0x104].copy_from_slice(&0x0002_0001_u32.to_le_bytes());
        bytes[0x10c] = 0x30;
        let capabilities = Capabilities::find(&bytes);
        let header = bytes[..64].to_vec();
        let config = Model::new(bytes);
        let snapshot = Snapshot::take(&config, &header, &capabilities).unwrap();
        (config, snapshot)
    }

    fn reset(config: &Model) {
        let mut bytes = config.bytes.borrow_mut();
        for range in [
            0x04..0x06,
            0x0c..0x0d,
            0x10..0x14,
            EXP + 8..EXP + 10,
            EXP + 0x28..EXP + 0x2a,
            0x10c..0x110,
        ] {
            bytes[range].fill(0);
        }
    }

    #[test]
    fn what_a_reset_took_comes_back_and_the_command_register_last() {
        let (config, snapshot) = function(2);
        let before = config.bytes.borrow().clone();
        assert!(!snapshot.is_lost(&config).unwrap());
        reset(&config);
        assert!(snapshot.is_lost(&config).unwrap());
        snapshot.restore(&config).unwrap();
        assert!(*config.bytes.borrow() == before);
        assert_eq!(config.writes.borrow().last(), Some(&(4, 2, 0x0407)));
        config.writes.borrow_mut().clear();
        snapshot.restore(&config).unwrap();
        assert!(config.writes.borrow().is_empty(), "only what differs is written");
    }

    #[test]
    fn a_function_of_version_1_is_not_written_past_its_capability() {
        let (config, snapshot) = function(1);
        reset(&config);
        snapshot.restore(&config).unwrap();
        let beyond = EXP as u16 + 0x14..0x100;
        assert!(
            !config
                .writes
                .borrow()
                .iter()
                .any(|(at, _, _)| beyond.contains(at))
        );
    }

    #[test]
    fn what_the_guest_has_written_since_is_what_comes_back() {
        let (config, mut snapshot) = function(2);
        snapshot.update(4, 2, 0x0403);
        snapshot.update(0x0c, 1, 0x08);
        snapshot.update(0x44, 2, 0x1234);
        reset(&config);
        snapshot.restore(&config).unwrap();
        assert_eq!(config.read(4, 2).unwrap(), 0x0403);
        assert_eq!(config.read(0x0c, 1).unwrap(), 0x08);
        assert_eq!(config.read(0x44, 2).unwrap(), 0);
        config.set16(4, 0x0006);
        snapshot.update_command(&config).unwrap();
        config.set16(4, 0);
        snapshot.restore(&config).unwrap();
        assert_eq!(config.read(4, 2).unwrap(), 0x0006);
    }

    #[test]
    fn a_write_of_any_width_is_what_comes_back() {
        let (config, mut snapshot) = function(2);
        let link = EXP as u16 + 0x10;
        for (offset, width, value) in [
            (link, 4, 0x5566_0143),
            (link + 1, 1, 0x02),
            (0x0c, 4, 0x0080_2010),
        ] {
            snapshot.update(offset, width, value);
        }
        reset(&config);
        snapshot.restore(&config).unwrap();
        assert_eq!(config.read(link, 4).unwrap(), 0x0000_0243);
        assert_eq!(config.read(0x0c, 4).unwrap(), 0x0000_2010);
    }

    #[test]
    fn nothing_that_a_silent_device_reads_is_ever_written_to_it() {
        let (config, mut snapshot) = function(2);
        let sound = config.bytes.borrow().clone();
        config.bytes.borrow_mut().fill(0xff);
        snapshot.update_command(&config).unwrap();
        assert!(snapshot.report_errors(&config).is_err());
        let capabilities = Capabilities::find(&sound);
        let later = Snapshot::take(&config, &sound[..64], &capabilities).unwrap();
        *config.bytes.borrow_mut() = sound.clone();
        config.writes.borrow_mut().clear();
        snapshot.restore(&config).unwrap();
        assert!(config.writes.borrow().is_empty(), "it is as it was");
        reset(&config);
        assert!(later.is_lost(&config).unwrap());
        later.restore(&config).unwrap();
        assert_eq!(
            *config.writes.borrow(),
            [(0x10, 4, 0xfebc_0000), (4, 2, 0x0407)],
            "what the record knows"
        );
    }

    #[test]
    fn a_capability_past_the_end_of_the_space_costs_its_registers_only() {
        let mut bytes = space(&[(EXP as u8, 0x10)]);
        bytes[EXP + 2] = 2;
        let capabilities = Capabilities {
            aer: Some(0x0ff0),
            ..Capabilities::find(&bytes)
        };
        bytes[0x0c] = 0x10;
        let header = bytes[..64].to_vec();
        let config = Model::new(bytes);
        let snapshot = Snapshot::take(&config, &header, &capabilities).unwrap();
        config.bytes.borrow_mut()[0x0c] = 0;
        snapshot.restore(&config).unwrap();
        assert_eq!(*config.writes.borrow(), [(0x0c, 1, 0x10)]);
    }

    #[test]
    fn the_registers_of_both_versions_and_of_error_reporting_come_back() {
        let places = [0x08, 0x10, 0x28, 0x30].map(|at| EXP as u16 + at);
        for (version, known) in [(1, 2), (2, 4)] {
            let (config, snapshot) = function(version);
            let was = places.map(|at| config.read16(at).unwrap());
            let reporting = [0x108, 0x10c, 0x114, 0x118].map(|at| (at, config.read(at, 4).unwrap()));
            for at in places {
                config.set16(at, 0x1234);
            }
            for (at, _) in reporting {
                config.write(at, 4, 0x1234_5678).unwrap();
            }
            snapshot.restore(&config).unwrap();
            for (index, (at, was)) in places.into_iter().zip(was).enumerate() {
                let expected = if index < known { was } else { 0x1234 };
                assert_eq!(config.read16(at).unwrap(), expected, "{version}: {at:#x}");
            }
            for (at, was) in reporting {
                assert_eq!(config.read(at, 4).unwrap(), was, "{at:#x}");
            }
        }
    }

    #[test]
    fn decoding_that_was_lost_is_a_reset_and_a_bus_master_that_was_stopped_is_none() {
        let (config, snapshot) = function(2);
        config.set16(4, 0x0403);
        assert!(!snapshot.is_lost(&config).unwrap());
        config.set16(4, 0x0405);
        assert!(snapshot.is_lost(&config).unwrap());
    }

    #[test]
    fn errors_are_reported_from_then_on_also_after_a_reset() {
        let (config, mut snapshot) = function(2);
        snapshot.report_errors(&config).unwrap();
        assert_eq!(config.read(EXP as u16 + 8, 2).unwrap(), 0x27);
        reset(&config);
        snapshot.restore(&config).unwrap();
        assert_eq!(config.read(EXP as u16 + 8, 2).unwrap(), 0x27);

        let without = Model::new(vec![0; 4096]);
        let mut snapshot = Snapshot::take(&without, &[0; 64], &Capabilities::default()).unwrap();
        snapshot.report_errors(&without).unwrap();
        assert!(without.writes.borrow().is_empty());
    }
}
