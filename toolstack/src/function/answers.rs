//! Answers a stub's requests for one device, over the second hop.
//!
//! The stub has judged each request already. It is judged again here, because the guest may have taken the stub over.
//! Reads are not answered: a stub reads configuration space by itself.

use crate::config_space::access::{ConfigAccess, EXTENDED_SPACE, SPACE};
use crate::config_space::capabilities::Capabilities;
use crate::config_space::interrupts::{disable_intx, enable_intx};
use crate::function::failure::Failure;
use crate::function::guard::Guard;
use crate::function::interrupts::Interrupts;
use crate::function::msix_table::Decoder;
use crate::function::rule::{Denial, Rule};
use crate::function::snapshot::Snapshot;
use crate::records::interrupt_mode::{Mode, ModeRecord};
use crate::records::{Device, ModeFile};
use pci::bdf::Bdf;
use pci::registers::register;
use std::collections::BTreeMap;
use std::io;
use xen::xenctrl::{DomId, Hypervisor};
use xenbus::pciif::backend::Taken;
use xenbus::pciif::{Command, OpError, Request};

mod renewal;

/// Bytes of configuration space with the extended space.
const CONFIG_SPACE: i32 = 4096;
/// Limit of refusals that are listed one by one. A sound stub causes none. One that was taken over can have every
/// register refused, and the status of the whole host would grow with that.
const MOST_TOLD: usize = 32;

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// No value, or one pirq.
    Value(u32),
    /// A pirq for each vector asked for.
    Vectors(Vec<u16>),
}

/// One device of an attachment, with its configuration space open.
#[derive(Debug)]
pub struct Function<C> {
    device: Device,
    pub(super) config: C,
    /// The physical function of a virtual one: its configuration space, and its power management capability.
    physical: Option<(C, Option<u16>)>,
    /// This function's power management capability.
    power: Option<u16>,
    guard: Guard,
    interrupts: Interrupts,
    snapshot: Snapshot,
    /// The file of the mode, once this process has recorded one.
    mode_file: Option<ModeFile>,
    /// True as long as nobody knows which messages an earlier process has left on.
    is_unresolved: bool,
    refused: BTreeMap<(u16, Denial), u64>,
    /// Refusals beyond [`MOST_TOLD`].
    refused_besides: u64,
}

impl<C: ConfigAccess> Function<C> {
    /// Takes a device into service that is now in `mode`. `physical` is the configuration space of the physical
    /// function of a virtual one. INTx is disabled if the line is withheld, and enabled if it is offered and MSI is
    /// off.
    pub fn new(device: Device, config: C, physical: Option<C>, mode: Mode) -> io::Result<Self> {
        let mut capabilities = Capabilities::find(&config.read_space(SPACE)?);
        if device.terms.reach_unlisted() || capabilities.express.is_some() {
            // What lies in the extended space matters to the guard, and to the snapshot.
            capabilities = Capabilities::find(&config.read_space(EXTENDED_SPACE)?);
        }
        let physical = physical.map(|config| {
            let power = Capabilities::find(&config.read_space(SPACE)?).power;
            Ok::<_, io::Error>((config, power))
        });
        // INTx may be on or off: whoever had the function before has set it.
        if !device.line_offered {
            disable_intx(&config)?;
        } else if mode == Mode::Intx {
            // The release from its last guest took it away.
            enable_intx(&config)?;
        }
        let guard = Guard::new(&device.header, &capabilities, &device.terms);
        Ok(Self {
            power: capabilities.power,
            snapshot: Snapshot::take(&config, &device.header, &capabilities)?,
            guard,
            interrupts: Interrupts::new(device.bdf, capabilities, device.bars, device.line_offered, mode),
            device,
            config,
            physical: physical.transpose()?,
            mode_file: None,
            is_unresolved: false,
            refused: BTreeMap::new(),
            refused_besides: 0,
        })
    }

    /// The device's address.
    pub fn bdf(&self) -> Bdf {
        self.device.bdf
    }

    /// The interrupt mode that is on.
    pub fn mode(&self) -> &Mode {
        self.interrupts.mode()
    }

    /// True as long as nobody knows which messages an earlier process has left on: the device slept, or Xen refused. None are
    /// turned on meanwhile.
    pub const fn is_unresolved(&self) -> bool {
        self.is_unresolved
    }

    /// The writes refused so far: register, reason, how often.
    pub fn refused(&self) -> impl Iterator<Item = (u16, Denial, u64)> {
        self.refused
            .iter()
            .map(|(&(offset, denial), &count)| (offset, denial, count))
    }

    /// Number of refused writes to registers that are not listed one by one.
    pub const fn refused_besides(&self) -> u64 {
        self.refused_besides
    }

    fn count_denial(&mut self, offset: u16, denial: Denial) {
        if let Some(count) = self.refused.get_mut(&(offset, denial)) {
            *count += 1;
        } else if self.refused.len() < MOST_TOLD {
            self.refused.insert((offset, denial), 1);
        } else {
            self.refused_besides += 1;
        }
    }

    /// Has the function report its errors, if it can.
    pub fn report_errors(&mut self) -> io::Result<()> {
        self.snapshot.report_errors(&self.config)
    }

    /// Answers a request about this function.
    pub(super) fn answer(
        &mut self,
        taken: &Taken,
        xen: &impl Hypervisor,
        guest: DomId,
        record: impl FnMut(&mut Option<ModeFile>, ModeRecord<'_>),
    ) -> Result<Done, Failure> {
        let done = self.carry_out(taken, xen, guest, record);
        if matches!(taken.request().command, Command::ConfWrite) {
            return done;
        }
        // Messages silence the line, and it is allowed again with their end.
        let updated = match self.interrupts.take_command() {
            Some(command) => {
                self.snapshot.set_command(command);
                Ok(())
            }
            None => self.snapshot.update_command(&self.config),
        };
        done.and_then(|done| updated.map(|()| done).map_err(Failure::config))
    }

    /// Turns off whichever of MSI and MSI-X is on.
    pub(super) fn disable_msi(
        &mut self,
        xen: &impl Hypervisor,
        guest: DomId,
        mut record: impl FnMut(&mut Option<ModeFile>, ModeRecord<'_>),
    ) -> io::Result<()> {
        let file = &mut self.mode_file;
        self.interrupts
            .disable(&self.config, xen, guest, |mode| record(file, mode))
    }

    fn carry_out(
        &mut self,
        taken: &Taken,
        xen: &impl Hypervisor,
        guest: DomId,
        mut record: impl FnMut(&mut Option<ModeFile>, ModeRecord<'_>),
    ) -> Result<Done, Failure> {
        let request = taken.request();
        let is_unresolved = self.is_unresolved;
        let Self {
            interrupts,
            config,
            physical,
            device,
            mode_file,
            ..
        } = self;
        let config = &*config;
        match request.command {
            // By the record, not by what the stub has been told: a stub that was taken over asks all the same.
            Command::EnableMsi | Command::EnableMsix if !device.terms.msi.is_on() => Err(Failure {
                error: OpError::OpFailed,
                cause: device.terms.to_string(),
            }),
            // Their record would take the place of the one that says so, and what was left would be found by nobody.
            Command::EnableMsi | Command::EnableMsix if is_unresolved => Err(Failure {
                error: OpError::OpFailed,
                cause: "which pirqs an earlier service has left is not known yet".into(),
            }),
            Command::ConfWrite => self.write(request, xen),
            Command::EnableMsi => {
                let pirq = interrupts.enable_msi(config, xen, guest, |mode| record(mode_file, mode))?;
                Ok(Done::Value(pirq.into()))
            }
            Command::EnableMsix => {
                let entries = taken.entries().map_err(|error| Failure {
                    error: OpError::EINVAL,
                    cause: error.to_string(),
                })?;
                let entries: Vec<u16> = entries.iter().map(|entry| entry.entry).collect();
                // A virtual function decodes memory by the COMMAND of its physical one (SR-IOV 1.1, section 3.4.1.3).
                let decoder = match physical {
                    Some((config, power)) => Decoder {
                        config: &*config,
                        power: *power,
                    },
                    // Its own power is looked at anyway.
                    None => Decoder { config, power: None },
                };
                interrupts
                    .enable_msix(config, decoder, xen, guest, &entries, |mode| {
                        record(mode_file, mode);
                    })
                    .map(Done::Vectors)
            }
            Command::DisableMsi | Command::DisableMsix => {
                interrupts
                    .disable(config, xen, guest, |mode| record(mode_file, mode))
                    .map_err(|error| Failure {
                        error: OpError::OpFailed,
                        cause: format!("the interrupts could not be turned off wholly: {error}"),
                    })?;
                Ok(Done::Value(0))
            }
            Command::ConfRead | Command::Other(_) => Err(Failure {
                error: OpError::NotImplemented,
                cause: "no request of this hop".into(),
            }),
        }
    }

    fn write(&mut self, request: &Request, xen: &impl Hypervisor) -> Result<Done, Failure> {
        let (offset, width) = aligned_register(request)?;
        // The value has 32 bits whatever the size. Only those that would be written are judged.
        let value = request.value
            & u32::MAX
                .checked_shr(32 - 8 * u32::from(width))
                .unwrap_or(u32::MAX);
        let rule = self.guard.rule(offset, width);
        let mut current = 0;
        let verdict = match rule {
            // The value that the device has now, not what the stub says: the stub may lie.
            Ok(rule) if rule.needs_current() => {
                current = self.config.read(offset, width).map_err(Failure::config)?;
                let all_ones = u32::MAX >> (32 - 8 * u32::from(width));
                // In the registers of quirks all-ones may be sound.
                let strict = matches!(rule, Rule::Command | Rule::Power);
                if current == all_ones && (strict || is_silent(&self.config).map_err(Failure::config)?) {
                    return Err(Failure {
                        error: OpError::OpFailed,
                        cause: "the device answers all-ones, from which no value can be derived".into(),
                    });
                }
                rule.judge(value, current)
            }
            Ok(rule) => rule.judge(value, current),
            Err(denial) => Err(denial),
        };
        if let Err(denial) = verdict {
            self.count_denial(offset, denial);
            let cause = format!("write of {value:#x} at {offset:#x}, {width} bytes: {denial}");
            return Err(Failure {
                error: OpError::AccessDenied,
                cause,
            });
        }
        // PMCSR is written apart: the write may wake the function up, and that may reset it.
        if self.guard.pmcsr() == Some(offset) {
            return self
                .write_power(offset, value, current, xen)
                .map_err(Failure::config);
        }
        self.config.write(offset, width, value).map_err(Failure::config)?;
        // The snapshot follows the write, because a reset later must restore what the device got.
        self.snapshot.update(offset, width, value);
        Ok(Done::Value(0))
    }
}

/// True if the device does not answer. Also a virtual function has a class, unlike ids.
fn is_silent(config: &impl ConfigAccess) -> io::Result<bool> {
    Ok(config.read(register::REVISION, 4)? == u32::MAX)
}

/// The offset and width of a write, if it is one aligned register within configuration space.
fn aligned_register(request: &Request) -> Result<(u16, u8), Failure> {
    let (offset, size) = (request.offset, request.size);
    let sound = matches!(size, 1 | 2 | 4) && (0..CONFIG_SPACE).contains(&offset) && offset % size == 0;
    match (u16::try_from(offset), u8::try_from(size)) {
        (Ok(offset), Ok(size)) if sound => Ok((offset, size)),
        _ => Err(Failure {
            error: OpError::InvalidOffset,
            cause: format!("write of {size} bytes at {offset}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::function::fixture::{MSIX, POWER, StubSide, bdf, config};
    use crate::function::functions::Functions;
    use crate::records::tests::{attachment, device, virtual_function};
    use crate::terms::{Msi, Terms};
    use xen::model::Xen;

    #[test]
    fn a_write_that_the_guard_lets_through_reaches_the_device_in_its_width() {
        let mut stub = StubSide::new();
        let done = stub.ask(&Request::conf_write(bdf(), 4, 2, 0x0007), &[]);
        assert_eq!(done, Ok(Done::Value(0)));
        assert_eq!(
            stub.ask(&Request::conf_write(bdf(), 0xc, 1, 0xffff_ff10), &[]),
            Ok(Done::Value(0))
        );
        assert_eq!(stub.writes(), [(4, 2, 0x0007), (0xc, 1, 0x10)]);
    }

    #[test]
    fn a_write_that_the_guard_refuses_reaches_nothing_and_is_counted() {
        let mut stub = StubSide::new();
        for (offset, width, value) in [
            (4, 2, 0),
            (0x10, 4, 0),
            (MSIX + 2, 2, 0x8000),
            (0x200, 4, 1),
            (4, 2, 0),
        ] {
            let answer = stub.ask(&Request::conf_write(bdf(), offset, width, value), &[]);
            assert_eq!(answer, Err(OpError::AccessDenied), "{offset:#x}");
        }
        assert!(stub.writes().is_empty());
        let function = stub.functions.iter().next().unwrap();
        let refused: Vec<_> = function.refused().collect();
        assert_eq!(
            refused,
            [
                (0x04, Denial::Command, 2),
                (0x10, Denial::BaseAddress, 1),
                (MSIX + 2, Denial::Interrupts, 1),
                (0x200, Denial::Unlisted, 1),
            ]
        );
    }

    #[test]
    fn however_many_registers_are_refused_what_is_told_of_them_is_short() {
        let mut stub = StubSide::new();
        let mut asked = 0;
        for offset in 0x100..0x1000 {
            let answer = stub.ask(&Request::conf_write(bdf(), offset, 1, 1), &[]);
            assert_eq!(answer, Err(OpError::AccessDenied), "{offset:#x}");
            asked += 1;
        }
        // One that is told already is counted there.
        let again = Request::conf_write(bdf(), 0x100, 1, 1);
        assert_eq!(stub.ask(&again, &[]), Err(OpError::AccessDenied));
        let function = stub.functions.iter().next().unwrap();
        let told: Vec<_> = function.refused().collect();
        assert_eq!((told.len(), told[0]), (MOST_TOLD, (0x100, Denial::Unlisted, 2)));
        let counted: u64 = told.iter().map(|(.., count)| count).sum();
        assert_eq!(counted + function.refused_besides(), asked + 1);
    }

    #[test]
    fn an_offset_or_size_that_is_no_register_is_refused() {
        let mut stub = StubSide::new();
        for (offset, size) in [
            (-4, 4),
            (4096, 1),
            (5, 2),
            (2, 4),
            (4, 3),
            (4, 0),
            (4, -2),
            (i32::MIN, i32::MIN),
            (4, i32::MAX),
        ] {
            let request = Request {
                offset,
                size,
                ..Request::conf_write(bdf(), 4, 2, 7)
            };
            assert_eq!(
                stub.ask(&request, &[]),
                Err(OpError::InvalidOffset),
                "{offset} {size}"
            );
        }
        assert!(stub.writes().is_empty());
    }

    #[test]
    fn reads_and_unknown_commands_are_not_answered() {
        let mut stub = StubSide::new();
        assert_eq!(
            stub.ask(&Request::conf_read(bdf(), 0, 4), &[]),
            Err(OpError::NotImplemented)
        );
        for raw in [6, 10, u32::MAX] {
            let request = Request::new(Command::from_raw(raw), bdf());
            assert_eq!(stub.ask(&request, &[]), Err(OpError::NotImplemented), "{raw}");
        }
    }

    #[test]
    fn msix_is_mapped_recorded_and_ended_by_either_disable() {
        let mut stub = StubSide::new();
        let enable = Request::new(Command::EnableMsix, bdf());
        assert_eq!(stub.ask(&enable, &[0, 2]), Ok(Done::Vectors(vec![55, 54])));
        assert_eq!(
            stub.ask(&Request::new(Command::DisableMsi, bdf()), &[]),
            Ok(Done::Value(0))
        );
        let recorded = ["intx changing msix 2", "msix 0=55 2=54", "intx"];
        assert_eq!(
            stub.recorded,
            recorded.map(|mode| format!("0000:00:05.0: {mode}"))
        );
        assert_eq!(stub.xen.calls()[2..], ["unmap 3 55", "unmap 3 54"]);
    }

    #[test]
    fn a_change_of_the_interrupt_mode_reads_each_register_once() {
        let (command, power, control) = (register::COMMAND, POWER + 4, MSIX + 2);
        let mut stub = StubSide::new();
        for round in 0..2 {
            for (request, registers) in [
                // COMMAND before the mapping, and once more before INTx is disabled.
                (Command::EnableMsix, &[command, control, power, command][..]),
                (Command::DisableMsix, &[control, command]),
            ] {
                stub.config().reads.borrow_mut().clear();
                stub.ask(&Request::new(request, bdf()), &[0, 2]).unwrap();
                let mut reads = stub.config().reads.take();
                // Where the table lies is known from the first time on.
                reads.retain(|&read| round > 0 || read != MSIX + 4);
                assert_eq!(reads, registers, "{request:?}, round {round}");
            }
        }
    }

    #[test]
    fn a_stub_gets_no_more_than_the_record_says() {
        let mut stub = StubSide::with(Terms {
            quirks: "50:2:ff0".parse().unwrap(),
            msi: Msi::Off("policy.toml, all devices".into()),
            ..Terms::default()
        });
        for command in [Command::EnableMsi, Command::EnableMsix] {
            let answer = stub.ask(&Request::new(command, bdf()), &[0]);
            assert_eq!(answer, Err(OpError::OpFailed));
        }
        let write = |offset, size, value| Request::conf_write(bdf(), offset, size, value);
        let before = stub.writes().len();
        assert_eq!(stub.ask(&write(0x80, 4, 1), &[]), Err(OpError::AccessDenied));
        stub.config().set16(0x50, 0x1234);
        assert_eq!(stub.ask(&write(0x50, 2, 0x1ff4), &[]), Ok(Done::Value(0)));
        assert_eq!(stub.ask(&write(0x50, 2, 0x1ff5), &[]), Err(OpError::AccessDenied));
        assert_eq!(stub.writes()[before..], [(0x50, 2, 0x1ff4)]);
        assert!(stub.xen.calls().is_empty() && stub.recorded.is_empty());

        let mut stub = StubSide::with(Terms {
            permissive: true,
            ..Terms::default()
        });
        assert_eq!(stub.ask(&write(0x80, 4, 1), &[]), Ok(Done::Value(0)));
        for refused in [write(0x10, 4, 0), write(MSIX, 4, 0), write(4, 2, 0)] {
            assert_eq!(stub.ask(&refused, &[]), Err(OpError::AccessDenied));
        }
    }

    #[test]
    fn msix_of_a_virtual_function_waits_for_its_physical_one_to_decode_memory() {
        let mut one = attachment();
        one.devices = vec![virtual_function("01:10.0")];
        one.modes = vec![Mode::Intx.into()];
        let physical = one.devices[0].physical.unwrap();
        let functions = |decode: u8| {
            let open = |bdf| {
                let config = config();
                config.bytes.borrow_mut()[4] = if bdf == physical { decode } else { 0 };
                Ok::<_, io::Error>(config)
            };
            Functions::new(&one, open).unwrap()
        };
        let enable = Request::new(Command::EnableMsix, one.devices[0].bdf);
        for (decode, power, answer) in [
            (0, 0, Err(OpError::ENXIO)),
            (2, 3, Err(OpError::EINVAL)),
            (2, 0, Ok(Done::Vectors(vec![55]))),
        ] {
            let mut stub = StubSide {
                functions: functions(decode),
                ..StubSide::new()
            };
            let (physical, _) = stub.function().physical.as_ref().unwrap();
            physical.set16(POWER + 4, power);
            assert_eq!(stub.ask(&enable, &[0]), answer, "{decode}, D{power}");
        }
    }

    #[test]
    fn the_service_takes_up_a_mode_that_another_one_turned_on() {
        let mode = Mode::Msix(vec![(0, 55)]);
        let mut function = Function::new(device("00:05.0"), config(), None, mode.clone()).unwrap();
        assert_eq!(*function.mode(), mode);
        let xen = Xen::default();
        function
            .interrupts
            .disable(&function.config, &xen, 3, |_| {})
            .unwrap();
        assert_eq!(xen.calls(), ["unmap 3 55"]);
    }

    #[test]
    fn a_line_that_is_withheld_is_silenced_at_once() {
        let device = Device {
            line_offered: false,
            ..device("00:05.0")
        };
        let function = Function::new(device, config(), None, Mode::Intx).unwrap();
        assert_eq!(*function.config.writes.borrow(), [(4, 2, 0x0403)]);
    }

    #[test]
    fn a_line_that_is_offered_is_allowed_unless_messages_are_on() {
        for (mode, writes) in [(Mode::Intx, vec![(4, 2, 0x0003)]), (Mode::Msi(55), vec![])] {
            let config = config();
            config.set16(4, 0x0403);
            let function = Function::new(device("00:05.0"), config, None, mode).unwrap();
            assert_eq!(*function.config.writes.borrow(), writes);
        }
    }

    #[test]
    fn no_value_is_derived_from_all_ones_but_of_a_quirk_that_may_have_them() {
        let mut stub = StubSide::with(Terms {
            quirks: "50:2:ff".parse().unwrap(),
            ..Terms::default()
        });
        let before = stub.writes().len();
        let write = |offset, width, value| Request::conf_write(bdf(), offset, width, value);
        stub.config().set16(0x50, 0xffff);
        assert_eq!(stub.ask(&write(0x50, 2, 0xff00), &[]), Ok(Done::Value(0)));
        // These two have bits that read 0.
        stub.config().set16(POWER + 4, 0xffff);
        stub.config().set16(4, 0xffff);
        for request in [write(4, 2, 0xfffb), write(POWER + 4, 2, 0xfffc)] {
            assert_eq!(stub.ask(&request, &[]), Err(OpError::OpFailed));
        }
        stub.config().bytes.borrow_mut().fill(0xff);
        for request in [write(0x50, 2, 0xff00), write(0x0f, 1, 0xbf)] {
            assert_eq!(stub.ask(&request, &[]), Err(OpError::OpFailed));
        }
        assert_eq!(stub.writes()[before..], [(0x50, 2, 0xff00)]);
    }
}
