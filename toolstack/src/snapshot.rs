//! What a reset takes from a function's configuration, remembered, so that it can be put back while a guest has it.

use crate::capabilities::Capabilities;
use crate::config::{Config, command, register};
use crate::header as layout;
use crate::restore::recorded;
use std::io;

/// Registers of the header that hold no addresses.
const HEADER: [(u16, u8); 3] = [
    (register::CACHE_LINE, 1),
    (register::LATENCY, 1),
    (register::INTERRUPT_LINE, 1),
];
/// Of the PCI Express capability: device control, link control, and both again of version 2.
const EXPRESS: [(u16, u8); 4] = [(DEVICE_CONTROL, 2), (0x10, 2), (0x28, 2), (0x30, 2)];
const DEVICE_CONTROL: u16 = 0x08;
/// How many of them version 1 has.
const EXPRESS_1: usize = 2;
const EXPRESS_VERSION: u16 = 0xf;
/// Of the error reporting capability: masks, severities, control.
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
    /// It comes back last.
    command: u16,
    /// The PCI Express capability of a function with error reporting.
    reporting: Option<u16>,
}

impl Snapshot {
    /// Takes down what the function has now, and its addresses from the header that was recorded of it.
    pub fn take(config: &impl Config, header: &[u8], capabilities: &Capabilities) -> io::Result<Self> {
        let mut places = HEADER.to_vec();
        let mut reporting = None;
        if let Some(express) = capabilities.express {
            let version = config.read16(express + 2)? & EXPRESS_VERSION;
            let known = if version < 2 { EXPRESS_1 } else { EXPRESS.len() };
            places.extend(EXPRESS[..known].iter().map(|&(at, width)| (express + at, width)));
            if let Some(aer) = capabilities.aer {
                places.extend(AER.map(|(at, width)| (aer + at, width)));
                reporting = Some(express);
            }
        }
        let read = |(offset, width): (u16, u8)| {
            config
                .read(offset, width)
                .map(|value| Register { offset, width, value })
        };
        let addresses = layout::addresses(header).iter().map(|&offset| (offset, 4));
        let addresses = addresses.chain(layout::windows(header).iter().copied());
        let address =
            |(offset, width)| recorded(header, offset, width).map(|value| Register { offset, width, value });
        Ok(Self {
            addresses: addresses.filter_map(address).collect(),
            registers: places.into_iter().map(read).collect::<io::Result<_>>()?,
            command: config.read16(register::COMMAND)?,
            reporting,
        })
    }

    /// Takes in a write that has reached the device.
    pub fn note(&mut self, offset: u16, width: u8, value: u32) {
        if (offset, width) == (register::COMMAND, 2) {
            self.command = value as u16;
        }
        let written = |register: &&mut Register| (register.offset, register.width) == (offset, width);
        if let Some(register) = self.registers.iter_mut().find(written) {
            register.value = value;
        }
    }

    /// Takes the command register down again.
    pub fn note_command(&mut self, config: &impl Config) -> io::Result<()> {
        self.command = config.read16(register::COMMAND)?;
        Ok(())
    }

    /// Turns on that the function reports its errors; nothing where it cannot.
    pub fn report_errors(&mut self, config: &impl Config) -> io::Result<()> {
        let Some(express) = self.reporting else {
            return Ok(());
        };
        let control = config.read16(express + DEVICE_CONTROL)?;
        let reporting = control | REPORT_ERRORS;
        if reporting != control {
            config.write16(express + DEVICE_CONTROL, reporting)?;
        }
        self.note(express + DEVICE_CONTROL, 2, reporting.into());
        Ok(())
    }

    /// True if the function has lost an address, or that it answers to its addresses: it has been reset.
    pub fn is_lost(&self, config: &impl Config) -> io::Result<bool> {
        let now = config.read16(register::COMMAND)?;
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

    /// Puts back what differs.
    pub fn restore(&self, config: &impl Config) -> io::Result<()> {
        for &Register { offset, width, value } in self.addresses.iter().chain(&self.registers) {
            if config.read(offset, width)? != value {
                config.write(offset, width, value)?;
            }
        }
        if config.read16(register::COMMAND)? != self.command {
            config.write16(register::COMMAND, self.command)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::tests::space;
    use crate::config::tests::Model;

    const EXP: usize = 0xe0;

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
        snapshot.note(4, 2, 0x0403);
        snapshot.note(0x0c, 1, 0x08);
        snapshot.note(0x44, 2, 0x1234);
        reset(&config);
        snapshot.restore(&config).unwrap();
        assert_eq!(config.read(4, 2).unwrap(), 0x0403);
        assert_eq!(config.read(0x0c, 1).unwrap(), 0x08);
        assert_eq!(config.read(0x44, 2).unwrap(), 0);
        config.set16(4, 0x0006);
        snapshot.note_command(&config).unwrap();
        config.set16(4, 0);
        snapshot.restore(&config).unwrap();
        assert_eq!(config.read(4, 2).unwrap(), 0x0006);
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
