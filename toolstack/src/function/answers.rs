//! The second hop's answers: what a stub asks of one of its devices.
//!
//! The stub has judged each request already; here it is judged again, because the stub may be the
//! guest's by now. Reads are not answered: a stub reads configuration space by itself.

use crate::config_space::access::{ConfigAccess, EXTENDED_SPACE, SPACE};
use crate::config_space::capabilities::Capabilities;
use crate::config_space::restore;
use crate::function::aer::Condition;
use crate::function::guard::{Guard, Refusal, Rule};
use crate::function::interrupts::{Decoder, Failure, Interrupts, disable_intx, enable_intx};
use crate::function::snapshot::Snapshot;
use crate::records::interrupt_mode::{Change, Mode, Note};
use crate::records::{Attachment, Device};
use pci::bdf::Bdf;
use pci::registers::{command, register};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::thread;
use std::time::Duration;
use xen::xenctrl::{DomId, Hypervisor};
use xenbus::pciif::backend::Taken;
use xenbus::pciif::{Command, OpError, Request};

/// The space that a write may lie in.
const CONFIG_SPACE: i32 = 4096;
/// The most refusals that are told one by one. A sound stub brings about none; one that was taken over can have every
/// register refused, and the status of the whole host would grow with that.
const MOST_TOLD: usize = 32;
/// Power state in PMCSR: 0 is D0, 3 is D3hot.
const POWER_STATE: u32 = 0x3;
/// How long a function may take from D3hot to D0 (PCI Power Management 1.2, section 5.6.1).
const WAKE_UP: Duration = Duration::from_millis(10);

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
    config: C,
    /// Of the physical function, if this is a virtual one, and where its power management lies.
    physical: Option<(C, Option<u16>)>,
    /// Where that of this function lies.
    power: Option<u16>,
    guard: Guard,
    interrupts: Interrupts,
    snapshot: Snapshot,
    refused: BTreeMap<(u16, Refusal), u64>,
    /// Beyond [`MOST_TOLD`].
    refused_besides: u64,
}

impl<C: ConfigAccess> Function<C> {
    /// Takes a device into service that is now in `mode`; `physical` is the configuration space of the physical
    /// function of a virtual one. A line that is withheld is silenced, one that is offered is allowed.
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
        if !device.line_offered {
            disable_intx(&config)?;
        } else if mode == Mode::Line {
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

    /// The writes refused so far: register, reason, how often.
    pub fn refused(&self) -> impl Iterator<Item = (u16, Refusal, u64)> {
        self.refused
            .iter()
            .map(|(&(offset, refusal), &count)| (offset, refusal, count))
    }

    /// How many more were refused, in registers that are not told one by one.
    pub const fn refused_besides(&self) -> u64 {
        self.refused_besides
    }

    fn note_refusal(&mut self, offset: u16, refusal: Refusal) {
        if let Some(count) = self.refused.get_mut(&(offset, refusal)) {
            *count += 1;
        } else if self.refused.len() < MOST_TOLD {
            self.refused.insert((offset, refusal), 1);
        } else {
            self.refused_besides += 1;
        }
    }

    /// Has the function report its errors, if it can.
    pub fn report_errors(&mut self) -> io::Result<()> {
        self.snapshot.report_errors(&self.config)
    }

    /// Sees what the function is like after an error. One that was reset gets its configuration and its messages back.
    pub fn inspect(&self, xen: &impl Hypervisor) -> io::Result<Condition> {
        if is_silent(&self.config)? {
            return Ok(Condition::Gone);
        }
        if !self.snapshot.is_lost(&self.config)? {
            return Ok(Condition::Sound);
        }
        self.renew(xen)?;
        Ok(Condition::Restored)
    }

    /// Gives the function its configuration and its messages back after a reset.
    pub fn renew(&self, xen: &impl Hypervisor) -> io::Result<()> {
        self.snapshot.restore(&self.config)?;
        self.interrupts.restore(&self.config, xen)
    }

    /// Finishes what a process that served this function before has left unfinished, if it died over it: a wake-up
    /// that took the addresses, or a change of the interrupt mode. For `change` and `known` see
    /// [`Interrupts::settle`]. Says what it found.
    fn settle(
        &mut self,
        xen: &impl Hypervisor,
        guest: DomId,
        change: Option<Change>,
        known: &BTreeSet<u32>,
        note: impl FnMut(Note<'_>),
    ) -> io::Result<Option<String>> {
        let config = &self.config;
        let power = self
            .guard
            .pmcsr()
            .map(|pmcsr| config.read(pmcsr, 2))
            .transpose()?;
        let asleep = power.is_some_and(|power| power & POWER_STATE != 0);
        // One that sleeps loses its addresses only when it wakes up.
        if asleep || is_silent(config)? {
            return Ok(None);
        }
        let found = if restore::addresses(config, &self.device.header)? {
            let recorded = restore::recorded(&self.device.header, register::COMMAND, 2).unwrap_or_default();
            let decode = recorded as u16 & (command::IO | command::MEMORY);
            config.write16(register::COMMAND, config.read16(register::COMMAND)? | decode)?;
            self.interrupts.restore(config, xen)?;
            Some("it had lost its addresses; they are back".to_owned())
        } else {
            let before = self.interrupts.mode().clone();
            let unmapped = self.interrupts.settle(config, xen, guest, change, known, note)?;
            let changed = change.is_some() || before != *self.interrupts.mode();
            changed.then(|| {
                format!(
                    "a change of its interrupt mode was cut short and is undone; pirqs unmapped: {unmapped}"
                )
            })
        };
        self.snapshot.note_command(&self.config)?;
        Ok(found)
    }

    /// Carries a request about this function out.
    fn carry_out(
        &mut self,
        taken: &Taken,
        xen: &impl Hypervisor,
        guest: DomId,
        note: impl FnMut(Note<'_>),
    ) -> Result<Done, Failure> {
        let request = taken.request();
        let Self {
            interrupts,
            config,
            physical,
            power,
            device,
            ..
        } = self;
        let config = &*config;
        match request.command {
            Command::EnableMsi | Command::EnableMsix if !device.terms.msi.is_on() => Err(Failure {
                error: OpError::OpFailed,
                cause: device.terms.to_string(),
            }),
            Command::ConfWrite => self.write(request, xen),
            Command::EnableMsi => {
                let pirq = interrupts.enable_msi(config, xen, guest, note)?;
                Ok(Done::Value(pirq.into()))
            }
            Command::EnableMsix => {
                let entries = taken.entries().map_err(|error| Failure {
                    error: OpError::EINVAL,
                    cause: error.to_string(),
                })?;
                let entries: Vec<u16> = entries.iter().map(|entry| entry.entry).collect();
                let decoder = match physical {
                    Some((config, power)) => Decoder {
                        config: &*config,
                        power: *power,
                    },
                    None => Decoder {
                        config,
                        power: *power,
                    },
                };
                interrupts
                    .enable_msix(config, decoder, xen, guest, &entries, note)
                    .map(Done::Vectors)
            }
            Command::DisableMsi | Command::DisableMsix => {
                interrupts
                    .disable(config, xen, guest, note)
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
        let (offset, width) = place(request)?;
        let value = request.value
            & u32::MAX
                .checked_shr(32 - 8 * u32::from(width))
                .unwrap_or(u32::MAX);
        let rule = self.guard.rule(offset, width);
        let mut current = 0;
        let verdict = match rule {
            Ok(rule) if rule.needs_current() => {
                current = self.config.read(offset, width).map_err(failed)?;
                let all_ones = u32::MAX >> (32 - 8 * u32::from(width));
                // In the registers of quirks all-ones may be sound.
                let strict = matches!(rule, Rule::Command | Rule::Power);
                if current == all_ones && (strict || is_silent(&self.config).map_err(failed)?) {
                    return Err(Failure {
                        error: OpError::OpFailed,
                        cause: "the device answers all-ones, from which no value can be derived".into(),
                    });
                }
                rule.judge(value, current)
            }
            Ok(rule) => rule.judge(value, current),
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = verdict {
            self.note_refusal(offset, refusal);
            let cause = format!("write of {value:#x} at {offset:#x}, {width} bytes: {refusal}");
            return Err(Failure {
                error: OpError::AccessDenied,
                cause,
            });
        }
        if self.guard.pmcsr() == Some(offset) {
            return self.write_power(offset, value, current, xen).map_err(failed);
        }
        self.config.write(offset, width, value).map_err(failed)?;
        self.snapshot.note(offset, width, value);
        Ok(Done::Value(0))
    }

    /// Writes the power state. A function that comes back from D3hot may have been reset on the way (No_Soft_Reset is 0):
    /// then it gets its configuration and its messages back, which neither the guest nor the stub may write.
    fn write_power(
        &mut self,
        offset: u16,
        value: u32,
        current: u32,
        xen: &impl Hypervisor,
    ) -> io::Result<Done> {
        let (from, to) = (current & POWER_STATE, value & POWER_STATE);
        if from == 0 && to != 0 {
            self.snapshot.note_command(&self.config)?;
        }
        self.config.write(offset, 2, value)?;
        if from != 0 && to == 0 {
            thread::sleep(WAKE_UP);
            // One that does not answer has nothing to be written to.
            self.config.read_sound(register::COMMAND)?;
            if self.snapshot.is_lost(&self.config)? || self.interrupts.is_lost(&self.config)? {
                self.renew(xen)?;
            }
        }
        Ok(Done::Value(0))
    }
}

/// True if the device does not answer. Also a virtual function has a class, unlike ids.
fn is_silent(config: &impl ConfigAccess) -> io::Result<bool> {
    Ok(config.read(register::REVISION, 4)? == u32::MAX)
}

/// The offset and width of a write, if it is one aligned register within configuration space.
fn place(request: &Request) -> Result<(u16, u8), Failure> {
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

fn failed(error: io::Error) -> Failure {
    Failure {
        error: OpError::OpFailed,
        cause: format!("the configuration space cannot be accessed: {error}"),
    }
}

/// All devices of one attachment.
#[derive(Debug)]
pub struct Functions<C> {
    guest: DomId,
    functions: Vec<Function<C>>,
}

impl<C: ConfigAccess> Functions<C> {
    /// Takes the devices of an attachment into service; `open` opens their configuration spaces.
    pub fn new<E: From<io::Error>>(
        attachment: &Attachment,
        open: impl FnMut(Bdf) -> Result<C, E>,
    ) -> Result<Self, E> {
        let mut functions = Self {
            guest: attachment.guest.domid,
            functions: Vec::new(),
        };
        functions.follow(attachment, open)?;
        Ok(functions)
    }

    /// Takes those devices into service that the attachment has got, and drops those that it has lost. What is
    /// known of the others stays.
    pub fn follow<E: From<io::Error>>(
        &mut self,
        attachment: &Attachment,
        mut open: impl FnMut(Bdf) -> Result<C, E>,
    ) -> Result<(), E> {
        self.functions
            .retain(|function| attachment.bdfs().any(|bdf| bdf == function.bdf()));
        for (device, mode) in attachment.devices_and_modes() {
            if !self.functions.iter().any(|function| function.bdf() == device.bdf) {
                let config = open(device.bdf)?;
                let physical = device.physical.map(&mut open).transpose()?;
                let function = Function::new(device.clone(), config, physical, mode.clone())?;
                self.functions.push(function);
            }
        }
        Ok(())
    }

    /// Takes devices out of service: no request for them is answered any more.
    pub fn drop_devices(&mut self, bdfs: &[Bdf]) {
        self.functions.retain(|function| !bdfs.contains(&function.bdf()));
    }

    /// The device at this address.
    pub fn get(&self, bdf: Bdf) -> Option<&Function<C>> {
        self.functions.iter().find(|function| function.bdf() == bdf)
    }

    /// The devices, in the order in which they came, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Function<C>> {
        self.functions.iter_mut()
    }

    /// The devices, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &Function<C>> {
        self.functions.iter()
    }

    /// Finishes what a process that served these devices before has left unfinished, if it died over it. `changes` are
    /// the changes of interrupt modes whose end was not noted, `known` the pirqs of the guest by its record. For each
    /// device where there was something it says what.
    pub fn settle(
        &mut self,
        xen: &impl Hypervisor,
        changes: &BTreeMap<Bdf, Change>,
        known: &BTreeSet<u32>,
        mut note: impl FnMut(Bdf, Note<'_>),
    ) -> Vec<(Bdf, io::Result<String>)> {
        let guest = self.guest;
        let settle = |function: &mut Function<C>| {
            let bdf = function.bdf();
            let change = changes.get(&bdf).copied();
            let settled = function.settle(xen, guest, change, known, |noted| note(bdf, noted));
            settled.transpose().map(|said| (bdf, said))
        };
        self.functions.iter_mut().filter_map(settle).collect()
    }

    /// Prepares for a request that was there before this process: it may have been carried out already, wholly or in
    /// part. One that turns messages on begins with turning them off, because nobody has heard of the pirqs; all others
    /// can be carried out twice.
    pub fn begin_again(
        &mut self,
        request: &Request,
        xen: &impl Hypervisor,
        mut note: impl FnMut(Bdf, Note<'_>),
    ) {
        let guest = self.guest;
        let bdf = request.function();
        let mut functions = self.functions.iter_mut();
        if matches!(request.command, Command::EnableMsi | Command::EnableMsix)
            && let Some(function) = functions.find(|function| Some(function.bdf()) == bdf)
        {
            let (bdf, config) = (function.bdf(), &function.config);
            // What cannot be turned off makes the request fail.
            let _ = function
                .interrupts
                .disable(config, xen, guest, |noted| note(bdf, noted));
        }
    }

    /// Carries a request out. `note` writes down that the device at this address changed its mode, or is about to.
    pub fn answer(
        &mut self,
        taken: &Taken,
        xen: &impl Hypervisor,
        mut note: impl FnMut(Bdf, Note<'_>),
    ) -> Result<Done, Failure> {
        let request = taken.request();
        let spoken_of = request.function();
        let mut functions = self.functions.iter_mut();
        let Some(function) = functions.find(|function| Some(function.bdf()) == spoken_of) else {
            return Err(Failure {
                error: OpError::DeviceNotFound,
                cause: "not a device of this stub".into(),
            });
        };
        let bdf = function.bdf();
        let done = function.carry_out(taken, xen, self.guest, |mode| note(bdf, mode));
        if !matches!(request.command, Command::ConfWrite) {
            // Messages silence the line, and it is allowed again with their end.
            let noted = function.snapshot.note_command(&function.config);
            return done.and_then(|done| noted.map(|()| done).map_err(failed));
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_space::access::tests::Model;
    use crate::config_space::capabilities::tests::space;
    use crate::records::tests::{attachment, device, virtual_function};
    use crate::terms::{Msi, Terms};
    use xen::model::Xen;
    use xenbus::model::Page;
    use xenbus::pciif::MsixEntry;
    use xenbus::pciif::backend::take;
    use xenbus::pciif::frontend::post;

    const POWER: u16 = 0x40;
    const MSIX: u16 = 0x70;

    /// An e1000e at 00:05.0 with five MSI-X entries behind BAR 3, decoding memory and ports.
    fn config() -> Model {
        let mut bytes = space(&[(POWER as u8, 1), (MSIX as u8, 0x11)]);
        bytes[0x04] = 0x03;
        bytes[0x10..0x14].copy_from_slice(&0xfebc_0000_u32.to_le_bytes());
        bytes[usize::from(MSIX) + 2] = 4;
        bytes[usize::from(MSIX) + 4] = 3;
        Model::new(bytes)
    }

    struct Hop {
        functions: Functions<Model>,
        xen: Xen,
        noted: Vec<String>,
    }

    impl Hop {
        fn new() -> Self {
            Self::with(Terms::default())
        }

        fn with(terms: Terms) -> Self {
            let mut attachment = attachment();
            attachment.devices.truncate(1);
            attachment.devices[0].terms = terms;
            attachment.devices[0].header = config().bytes.borrow()[..64].to_vec();
            attachment.modes = vec![Mode::Line];
            Self {
                functions: Functions::new(&attachment, |_| Ok::<_, io::Error>(config())).unwrap(),
                xen: Xen::default(),
                noted: Vec::new(),
            }
        }

        fn ask(&mut self, request: &Request, entries: &[u16]) -> Result<Done, OpError> {
            let page = Page::new();
            let entry = |&entry| MsixEntry { vector: 0, entry };
            let entries: Vec<_> = entries.iter().map(entry).collect();
            assert!(post(&page, request, &entries).is_ok());
            let taken = take(&page).unwrap();
            let noted = &mut self.noted;
            let note = |bdf: Bdf, note: Note<'_>| {
                noted.push(match note {
                    Note::Mode(mode) => format!("{bdf}: {mode}"),
                    Note::Change(change) => format!("{bdf}: {change}"),
                });
            };
            self.functions
                .answer(&taken, &self.xen, note)
                .map_err(|failure| failure.error)
        }

        /// The same device, served by another process, which reads this mode in the record.
        fn taken_up_again(self, mode: Mode) -> Self {
            let bytes = self.config().bytes.borrow().clone();
            let mut attachment = attachment();
            attachment.devices.truncate(1);
            attachment.devices[0].header = config().bytes.borrow()[..64].to_vec();
            attachment.modes = vec![mode];
            let open = |_| Ok::<_, io::Error>(Model::new(bytes.clone()));
            Self {
                functions: Functions::new(&attachment, open).unwrap(),
                ..Self::new()
            }
        }

        fn settle(&mut self, changes: &BTreeMap<Bdf, Change>) -> Vec<String> {
            let settled = self
                .functions
                .settle(&self.xen, changes, &BTreeSet::new(), |_, _| {});
            settled.into_iter().map(|(_, found)| found.unwrap()).collect()
        }

        fn config(&self) -> &Model {
            &self.functions.functions[0].config
        }

        fn writes(&self) -> Vec<(u16, u8, u32)> {
            self.config().writes.borrow().clone()
        }
    }

    fn bdf() -> Bdf {
        "00:05.0".parse().unwrap()
    }

    #[test]
    fn a_write_that_the_guard_lets_through_reaches_the_device_in_its_width() {
        let mut hop = Hop::new();
        let done = hop.ask(&Request::conf_write(bdf(), 4, 2, 0x0007), &[]);
        assert_eq!(done, Ok(Done::Value(0)));
        assert_eq!(
            hop.ask(&Request::conf_write(bdf(), 0xc, 1, 0xffff_ff10), &[]),
            Ok(Done::Value(0))
        );
        assert_eq!(hop.writes(), [(4, 2, 0x0007), (0xc, 1, 0x10)]);
    }

    #[test]
    fn a_write_that_the_guard_refuses_reaches_nothing_and_is_counted() {
        let mut hop = Hop::new();
        for (offset, width, value) in [
            (4, 2, 0),
            (0x10, 4, 0),
            (MSIX + 2, 2, 0x8000),
            (0x200, 4, 1),
            (4, 2, 0),
        ] {
            let answer = hop.ask(&Request::conf_write(bdf(), offset, width, value), &[]);
            assert_eq!(answer, Err(OpError::AccessDenied), "{offset:#x}");
        }
        assert!(hop.writes().is_empty());
        let function = hop.functions.iter().next().unwrap();
        let refused: Vec<_> = function.refused().collect();
        assert_eq!(
            refused,
            [
                (0x04, Refusal::Command, 2),
                (0x10, Refusal::BaseAddress, 1),
                (MSIX + 2, Refusal::Interrupts, 1),
                (0x200, Refusal::Unlisted, 1),
            ]
        );
    }

    #[test]
    fn however_many_registers_are_refused_what_is_told_of_them_is_short() {
        let mut hop = Hop::new();
        let mut asked = 0;
        for offset in 0x100..0x1000 {
            let answer = hop.ask(&Request::conf_write(bdf(), offset, 1, 1), &[]);
            assert_eq!(answer, Err(OpError::AccessDenied), "{offset:#x}");
            asked += 1;
        }
        // One that is told already is counted there.
        let again = Request::conf_write(bdf(), 0x100, 1, 1);
        assert_eq!(hop.ask(&again, &[]), Err(OpError::AccessDenied));
        let function = hop.functions.iter().next().unwrap();
        let told: Vec<_> = function.refused().collect();
        assert_eq!((told.len(), told[0]), (MOST_TOLD, (0x100, Refusal::Unlisted, 2)));
        let counted: u64 = told.iter().map(|(.., count)| count).sum();
        assert_eq!(counted + function.refused_besides(), asked + 1);
    }

    #[test]
    fn an_offset_or_size_that_is_no_register_is_refused() {
        let mut hop = Hop::new();
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
                hop.ask(&request, &[]),
                Err(OpError::InvalidOffset),
                "{offset} {size}"
            );
        }
        assert!(hop.writes().is_empty());
    }

    #[test]
    fn only_the_devices_of_the_attachment_are_spoken_to() {
        let mut hop = Hop::new();
        let other = Request::conf_write("00:06.0".parse().unwrap(), 4, 2, 7);
        assert_eq!(hop.ask(&other, &[]), Err(OpError::DeviceNotFound));
        let beyond = Request {
            bus: 0x1_0000,
            ..Request::conf_write(bdf(), 4, 2, 7)
        };
        assert_eq!(hop.ask(&beyond, &[]), Err(OpError::DeviceNotFound));
    }

    #[test]
    fn reads_and_unknown_commands_are_not_answered() {
        let mut hop = Hop::new();
        assert_eq!(
            hop.ask(&Request::conf_read(bdf(), 0, 4), &[]),
            Err(OpError::NotImplemented)
        );
        for raw in [6, 10, u32::MAX] {
            let request = Request::new(Command::from_raw(raw), bdf());
            assert_eq!(hop.ask(&request, &[]), Err(OpError::NotImplemented), "{raw}");
        }
    }

    #[test]
    fn msix_is_mapped_noted_and_ended_by_either_disable() {
        let mut hop = Hop::new();
        let enable = Request::new(Command::EnableMsix, bdf());
        assert_eq!(hop.ask(&enable, &[0, 2]), Ok(Done::Vectors(vec![55, 54])));
        assert_eq!(
            hop.ask(&Request::new(Command::DisableMsi, bdf()), &[]),
            Ok(Done::Value(0))
        );
        let noted = ["intx changing msix 2", "msix 0=55 2=54", "intx"];
        assert_eq!(hop.noted, noted.map(|note| format!("0000:00:05.0: {note}")));
        assert_eq!(hop.xen.calls()[2..], ["unmap 3 55", "unmap 3 54"]);
    }

    #[test]
    fn a_stub_gets_no_more_than_the_record_says() {
        let mut hop = Hop::with(Terms {
            quirks: "50:2:ff0".parse().unwrap(),
            msi: Msi::Off("policy.toml, all devices".into()),
            ..Terms::default()
        });
        for command in [Command::EnableMsi, Command::EnableMsix] {
            let answer = hop.ask(&Request::new(command, bdf()), &[0]);
            assert_eq!(answer, Err(OpError::OpFailed));
        }
        let write = |offset, size, value| Request::conf_write(bdf(), offset, size, value);
        let before = hop.writes().len();
        assert_eq!(hop.ask(&write(0x80, 4, 1), &[]), Err(OpError::AccessDenied));
        hop.config().set16(0x50, 0x1234);
        assert_eq!(hop.ask(&write(0x50, 2, 0x1ff4), &[]), Ok(Done::Value(0)));
        assert_eq!(hop.ask(&write(0x50, 2, 0x1ff5), &[]), Err(OpError::AccessDenied));
        assert_eq!(hop.writes()[before..], [(0x50, 2, 0x1ff4)]);
        assert!(hop.xen.calls().is_empty() && hop.noted.is_empty());

        let mut hop = Hop::with(Terms {
            permissive: true,
            ..Terms::default()
        });
        assert_eq!(hop.ask(&write(0x80, 4, 1), &[]), Ok(Done::Value(0)));
        for refused in [write(0x10, 4, 0), write(MSIX, 4, 0), write(4, 2, 0)] {
            assert_eq!(hop.ask(&refused, &[]), Err(OpError::AccessDenied));
        }
    }

    #[test]
    fn the_list_is_followed_and_the_devices_that_stay_keep_what_is_known_of_them() {
        let mut hop = Hop::new();
        let enable = Request::new(Command::EnableMsix, bdf());
        hop.ask(&enable, &[0]).unwrap();
        let mut one = attachment();
        one.devices.truncate(1);
        one.modes = vec![Mode::Line];
        let two = one.with(vec![device("00:06.0")]);
        let open = |_| Ok::<_, io::Error>(config());

        let other = "00:06.0".parse().unwrap();
        let write = Request::conf_write(other, 4, 2, 7);
        assert_eq!(hop.ask(&write, &[]), Err(OpError::DeviceNotFound));
        hop.functions.follow(&two, open).unwrap();
        assert_eq!(hop.ask(&write, &[]), Ok(Done::Value(0)));
        assert_eq!(
            hop.ask(&enable, &[0]),
            Err(OpError::EALREADY),
            "MSI-X is still known to be on"
        );

        hop.functions.drop_devices(&[bdf()]);
        assert_eq!(hop.ask(&enable, &[0]), Err(OpError::DeviceNotFound));
        hop.functions.follow(&one, open).unwrap();
        assert_eq!(hop.ask(&write, &[]), Err(OpError::DeviceNotFound));
        assert_eq!(hop.ask(&enable, &[0]).map(|_| ()), Ok(()), "it starts anew");
    }

    #[test]
    fn msix_of_a_virtual_function_waits_for_its_physical_one_to_decode_memory() {
        let mut one = attachment();
        one.devices = vec![virtual_function("01:10.0")];
        one.modes = vec![Mode::Line];
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
            let mut hop = Hop {
                functions: functions(decode),
                ..Hop::new()
            };
            let (physical, _) = hop.functions.functions[0].physical.as_ref().unwrap();
            physical.set16(POWER + 4, power);
            assert_eq!(hop.ask(&enable, &[0]), answer, "{decode}, D{power}");
        }
    }

    #[test]
    fn a_device_that_cannot_be_opened_is_an_error_and_the_others_are_served() {
        let mut hop = Hop::new();
        let more = attachment();
        let closed = |_| Err::<Model, _>(io::Error::from(io::ErrorKind::NotFound));
        assert!(hop.functions.follow(&more, closed).is_err());
        let write = Request::conf_write(bdf(), 4, 2, 7);
        assert_eq!(hop.ask(&write, &[]), Ok(Done::Value(0)));
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
        let function = Function::new(device, config(), None, Mode::Line).unwrap();
        assert_eq!(*function.config.writes.borrow(), [(4, 2, 0x0403)]);
    }

    #[test]
    fn a_line_that_is_offered_is_allowed_unless_messages_are_on() {
        for (mode, writes) in [(Mode::Line, vec![(4, 2, 0x0003)]), (Mode::Msi(55), vec![])] {
            let config = config();
            config.set16(4, 0x0403);
            let function = Function::new(device("00:05.0"), config, None, mode).unwrap();
            assert_eq!(*function.config.writes.borrow(), writes);
        }
    }

    #[test]
    fn a_function_that_forgets_its_addresses_in_its_sleep_gets_them_back() {
        let mut hop = Hop::new();
        hop.config().set16(4, 0x0007);
        let power = |value| Request::conf_write(bdf(), POWER + 4, 2, value);
        assert_eq!(hop.ask(&power(3), &[]), Ok(Done::Value(0)));
        // As a function does that resets itself on the way to D0.
        hop.config().set16(0x04, 0);
        hop.config().set16(0x12, 0);
        assert_eq!(hop.ask(&power(0), &[]), Ok(Done::Value(0)));
        let expected = [
            (POWER + 4, 2, 3),
            (POWER + 4, 2, 0),
            (0x10, 4, 0xfebc_0000),
            (4, 2, 0x0007),
        ];
        assert_eq!(hop.writes(), expected);
    }

    const EXPRESS: u16 = 0x90;

    /// One with PCI Express, of which the device control is 0x2810.
    fn express() -> Hop {
        let mut attachment = attachment();
        attachment.devices.truncate(1);
        attachment.modes = vec![Mode::Line];
        let list = [(POWER as u8, 1), (EXPRESS as u8, 0x10), (MSIX as u8, 0x11)];
        let mut bytes = config().bytes.into_inner();
        let linked = space(&list);
        for at in [POWER, POWER + 1, EXPRESS, EXPRESS + 1, MSIX, MSIX + 1, 0x06, 0x34] {
            bytes[usize::from(at)] = linked[usize::from(at)];
        }
        bytes[usize::from(EXPRESS) + 8..][..2].copy_from_slice(&[0x10, 0x28]);
        attachment.devices[0].header = bytes[..64].to_vec();
        Hop {
            functions: Functions::new(&attachment, |_| Ok::<_, io::Error>(Model::new(bytes.clone())))
                .unwrap(),
            ..Hop::new()
        }
    }

    #[test]
    fn a_function_that_resets_itself_on_its_way_to_d0_gets_all_back_also_its_messages() {
        let power = |value| Request::conf_write(bdf(), POWER + 4, 2, value);
        // What it loses: its addresses and all else, or its messages alone.
        for lost in [
            &[0x04, 0x12, EXPRESS + 8, MSIX + 2][..],
            &[0x04, MSIX + 2],
            &[MSIX + 2],
        ] {
            let mut hop = express();
            hop.ask(&Request::conf_write(bdf(), 4, 2, 0x0007), &[]).unwrap();
            hop.ask(&Request::new(Command::EnableMsix, bdf()), &[0, 2])
                .unwrap();
            let before = hop.config().bytes.borrow().clone();
            hop.ask(&power(3), &[]).unwrap();
            for &at in lost {
                let value = if at == MSIX + 2 { 4 } else { 0 };
                hop.config().set16(at, value);
            }
            assert_eq!(hop.ask(&power(0), &[]), Ok(Done::Value(0)));
            assert!(*hop.config().bytes.borrow() == before, "{lost:x?}");
            assert_eq!(hop.xen.calls().last().unwrap(), "restore messages 0000:00:05.0");
        }
    }

    #[test]
    fn one_that_does_not_answer_after_its_sleep_is_not_written_to() {
        let mut hop = Hop::new();
        let power = |value| Request::conf_write(bdf(), POWER + 4, 2, value);
        hop.ask(&power(3), &[]).unwrap();
        hop.config().bytes.borrow_mut()[..64].fill(0xff);
        let before = hop.writes().len();
        assert_eq!(hop.ask(&power(0), &[]), Err(OpError::OpFailed));
        assert_eq!(hop.writes()[before..], [(POWER + 4, 2, 0)]);
    }

    #[test]
    fn no_value_is_derived_from_all_ones_but_of_a_quirk_that_may_have_them() {
        let mut hop = Hop::with(Terms {
            quirks: "50:2:ff".parse().unwrap(),
            ..Terms::default()
        });
        let before = hop.writes().len();
        let write = |offset, width, value| Request::conf_write(bdf(), offset, width, value);
        hop.config().set16(0x50, 0xffff);
        assert_eq!(hop.ask(&write(0x50, 2, 0xff00), &[]), Ok(Done::Value(0)));
        // These two have bits that read 0.
        hop.config().set16(POWER + 4, 0xffff);
        hop.config().set16(4, 0xffff);
        for request in [write(4, 2, 0xfffb), write(POWER + 4, 2, 0xfffc)] {
            assert_eq!(hop.ask(&request, &[]), Err(OpError::OpFailed));
        }
        hop.config().bytes.borrow_mut().fill(0xff);
        for request in [write(0x50, 2, 0xff00), write(0x0f, 1, 0xbf)] {
            assert_eq!(hop.ask(&request, &[]), Err(OpError::OpFailed));
        }
        assert_eq!(hop.writes()[before..], [(0x50, 2, 0xff00)]);
    }

    #[test]
    fn messages_of_a_function_that_sleeps_wait_until_it_is_awake() {
        let mut hop = Hop::new();
        let power = |value| Request::conf_write(bdf(), POWER + 4, 2, value);
        hop.ask(&power(3), &[]).unwrap();
        let enable = Request::new(Command::EnableMsix, bdf());
        assert_eq!(hop.ask(&enable, &[0]), Err(OpError::EINVAL));
        assert!(hop.xen.calls().is_empty() && hop.noted.is_empty());
        hop.ask(&power(0), &[]).unwrap();
        assert_eq!(hop.ask(&enable, &[0]), Ok(Done::Vectors(vec![55])));
    }

    #[test]
    fn a_function_whose_wake_up_was_cut_short_gets_its_addresses_back() {
        let hop = Hop::new();
        // The process died in the pause after the write of D0.
        hop.config().set16(0x04, 0);
        hop.config().set16(0x12, 0);
        let mut hop = hop.taken_up_again(Mode::Line);
        let settled = hop.settle(&BTreeMap::new());
        assert_eq!(settled, ["it had lost its addresses; they are back"]);
        assert_eq!(hop.writes(), [(0x10, 4, 0xfebc_0000), (4, 2, 0x0003)]);
        assert!(hop.settle(&BTreeMap::new()).is_empty());
    }

    #[test]
    fn a_function_that_sleeps_while_the_service_is_replaced_wakes_up_as_before() {
        let mut hop = Hop::new();
        hop.config().set16(4, 0x0007);
        let power = |value| Request::conf_write(bdf(), POWER + 4, 2, value);
        hop.ask(&power(3), &[]).unwrap();
        let mut hop = hop.taken_up_again(Mode::Line);
        assert!(hop.settle(&BTreeMap::new()).is_empty());
        hop.config().set16(0x04, 0);
        hop.config().set16(0x12, 0);
        hop.ask(&power(0), &[]).unwrap();
        assert_eq!(hop.writes().last(), Some(&(4, 2, 0x0007)));
    }

    #[test]
    fn messages_that_a_dead_service_turned_on_and_nobody_heard_of_are_turned_on_anew() {
        let mut hop = Hop::new();
        let enable = Request::new(Command::EnableMsix, bdf());
        assert_eq!(hop.ask(&enable, &[0, 2]), Ok(Done::Vectors(vec![55, 54])));
        let mode = hop.functions.functions[0].mode().clone();
        let mut hop = hop.taken_up_again(mode);
        assert!(hop.settle(&BTreeMap::new()).is_empty(), "it is on, as recorded");
        let (functions, xen) = (&mut hop.functions, &hop.xen);
        functions.begin_again(&Request::conf_write(bdf(), 4, 2, 7), xen, |_, _| {});
        assert!(xen.calls().is_empty());
        functions.begin_again(&enable, xen, |_, _| {});
        assert_eq!(xen.calls(), ["unmap 3 55", "unmap 3 54"]);
        assert_eq!(hop.ask(&enable, &[0, 2]).map(|_| ()), Ok(()));
    }

    #[test]
    fn a_change_that_was_cut_short_is_undone_and_told() {
        let mut hop = Hop::new().taken_up_again(Mode::Line);
        hop.xen = Xen::with_pirqs(&[55, 54]);
        let settled = hop.settle(&[(bdf(), Change::Msix(3))].into());
        assert_eq!(
            settled,
            ["a change of its interrupt mode was cut short and is undone; pirqs unmapped: 2"]
        );
        assert!(hop.xen.pirqs().is_empty());
    }

    #[test]
    fn a_function_that_keeps_its_state_in_its_sleep_is_left_alone() {
        let mut hop = Hop::new();
        let power = |value| Request::conf_write(bdf(), POWER + 4, 2, value);
        assert_eq!(hop.ask(&power(3), &[]), Ok(Done::Value(0)));
        assert_eq!(hop.ask(&power(0), &[]), Ok(Done::Value(0)));
        assert_eq!(hop.writes(), [(POWER + 4, 2, 3), (POWER + 4, 2, 0)]);
    }

    #[test]
    fn a_function_that_was_reset_under_its_guest_gets_configuration_and_messages_back() {
        let mut hop = Hop::new();
        hop.ask(&Request::conf_write(bdf(), 4, 2, 0x0007), &[]).unwrap();
        hop.ask(&Request::new(Command::EnableMsix, bdf()), &[0, 2])
            .unwrap();
        let before = hop.config().bytes.borrow().clone();
        let inspect = |hop: &Hop| hop.functions.get(bdf()).unwrap().inspect(&hop.xen).unwrap();
        assert_eq!(inspect(&hop), Condition::Sound);
        // As dom0's kernel does to all that is below a port with a fatal error.
        hop.config().set16(4, 0);
        hop.config().set16(0x12, 0);
        hop.config().set16(MSIX + 2, 4);
        assert_eq!(inspect(&hop), Condition::Restored);
        assert!(*hop.config().bytes.borrow() == before, "INTx silenced, MSI-X on");
        assert_eq!(hop.xen.calls().last().unwrap(), "restore messages 0000:00:05.0");
        assert_eq!(inspect(&hop), Condition::Sound);
        hop.config().bytes.borrow_mut().fill(0xff);
        assert_eq!(inspect(&hop), Condition::Gone);
    }
}
