//! The interrupt mode of a function: its INTx line, MSI, or MSI-X.
//!
//! Xen splits the work: it programs address, data and mask of a message when a pirq is mapped, and
//! dom0 turns the capability on in the device. Xen lets the same MSI-X entry be mapped twice, so
//! that is refused here.

use crate::pci::capabilities::Capabilities;
use crate::pci::config_space::ConfigAccess;
use crate::records::interrupt_mode::{Change, Mode, Note};
use pci::bdf::Bdf;
use pci::registers::{SILENT, command, msi, msix, power, register};
use std::collections::BTreeSet;
use std::io;
use xen::xenctrl::{DomId, Hypervisor};
use xenbus::device::Bars;
use xenbus::pciif::{MAX_VECTORS, OpError};

/// How many numbers in a row may be no pirqs of a guest among those that it has: Xen keeps the number of an unmapped
/// one from it as long as the guest has it bound.
const LONGEST_GAP: usize = 256;
/// The function that decodes memory for another: itself, or the physical one of a virtual one.
#[derive(Debug)]
pub struct Decoder<'a, C> {
    /// Its configuration space.
    pub config: &'a C,
    /// Where its power management lies, if it has it.
    pub power: Option<u16>,
}

/// Everything about a function that its interrupts depend on.
#[derive(Clone, Debug)]
pub struct Interrupts {
    bdf: Bdf,
    capabilities: Capabilities,
    bars: Bars,
    line_offered: bool,
    mode: Mode,
}

/// Why a mode was not turned on: the answer to the stub, and the cause for the log.
#[derive(Debug)]
pub struct Failure {
    /// The answer.
    pub error: OpError,
    /// The cause.
    pub cause: String,
}

impl Failure {
    fn new(error: OpError, cause: impl Into<String>) -> Self {
        let cause = cause.into();
        Self { error, cause }
    }

    fn asleep(error: OpError) -> Self {
        Self::new(
            error,
            "the device is not in D0, and answers no memory access: the guest must set its power state first",
        )
    }

    fn config(error: io::Error) -> Self {
        Self::new(
            OpError::OpFailed,
            format!("the configuration space cannot be accessed: {error}"),
        )
    }
}

impl Interrupts {
    /// The interrupts of a function that is now in `mode`. `line_offered` is false where the INTx
    /// line must stay silent because others use it.
    pub fn new(bdf: Bdf, capabilities: Capabilities, bars: Bars, line_offered: bool, mode: Mode) -> Self {
        Self {
            bdf,
            capabilities,
            bars,
            line_offered,
            mode,
        }
    }

    /// The mode that is on.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Turns MSI on, for one message, and returns its pirq. `note` writes down what is to outlive this process: the
    /// change before Xen maps anything, the mode before the device can send a message.
    pub fn enable_msi(
        &mut self,
        config: &impl ConfigAccess,
        xen: &impl Hypervisor,
        guest: DomId,
        mut note: impl FnMut(Note<'_>),
    ) -> Result<u16, Failure> {
        let capability = self
            .capabilities
            .msi
            .ok_or_else(|| Failure::new(OpError::OpFailed, "the device has no MSI"))?;
        match self.mode {
            Mode::Line => {}
            Mode::Msi(_) => return Err(Failure::new(OpError::EALREADY, "MSI is on")),
            Mode::Msix(_) => return Err(Failure::new(OpError::ENXIO, "MSI-X is on")),
        }
        config
            .read_sound(capability + msi::CONTROL)
            .map_err(Failure::config)?;
        if !is_awake(config, self.capabilities.power).map_err(Failure::config)? {
            return Err(Failure::asleep(OpError::OpFailed));
        }
        note(Note::Change(Change::Msi));
        let pirq = xen.map_msi(guest, self.bdf, None).map_err(|error| {
            note(Note::Mode(&self.mode));
            Failure::new(
                OpError::OpFailed,
                format!("Xen refused to map the message: {error}"),
            )
        })?;
        self.mode = Mode::Msi(pirq);
        // One message was mapped, whatever number an earlier driver had set.
        let turn_on = |control| control & !msi::SEVERAL | msi::ENABLE;
        self.turn_on(config, xen, guest, capability + msi::CONTROL, turn_on, note)?;
        Ok(pirq)
    }

    /// Turns MSI-X on for all of `entries`, or for none, and returns a pirq for each. For `note`
    /// see [`Self::enable_msi`]. `decoder` is the function whose COMMAND turns decoding of memory on: the bit of a
    /// virtual one reads 0 (SR-IOV 1.1, section 3.4.1.3).
    pub fn enable_msix(
        &mut self,
        config: &impl ConfigAccess,
        decoder: Decoder<'_, impl ConfigAccess>,
        xen: &impl Hypervisor,
        guest: DomId,
        entries: &[u16],
        mut note: impl FnMut(Note<'_>),
    ) -> Result<Vec<u16>, Failure> {
        let table = self.msix_table(config, decoder)?;
        self.check_entries(entries, table.last_entry)?;
        note(Note::Change(Change::Msix(entries.len())));
        let mut mapped: Vec<(u16, u16)> = Vec::with_capacity(entries.len());
        for &entry in entries {
            match xen.map_msi(guest, self.bdf, Some((entry, table.bar_start))) {
                Ok(pirq) => mapped.push((entry, pirq)),
                Err(error) => {
                    for (_, pirq) in mapped {
                        // A pirq that Xen will not take back is freed with the guest.
                        let _ = xen.unmap_pirq(guest, pirq.into());
                    }
                    note(Note::Mode(&self.mode));
                    let cause = format!("Xen refused to map entry {entry} of {}: {error}", entries.len());
                    return Err(Failure::new(OpError::OpFailed, cause));
                }
            }
        }
        let pirqs = mapped.iter().map(|&(_, pirq)| pirq).collect();
        self.mode = Mode::Msix(mapped);
        let turn_on = |control| (control | msix::ENABLE) & !msix::MASK_ALL;
        self.turn_on(config, xen, guest, table.control, turn_on, note)?;
        Ok(pirqs)
    }

    /// Notes the mode, whose messages are mapped, and has the device send them: `change` says what becomes of the
    /// register `control`.
    fn turn_on(
        &mut self,
        config: &impl ConfigAccess,
        xen: &impl Hypervisor,
        guest: DomId,
        control: u16,
        change: impl FnOnce(u16) -> u16,
        mut note: impl FnMut(Note<'_>),
    ) -> Result<(), Failure> {
        note(Note::Mode(&self.mode));
        let written =
            disable_intx(config).and_then(|()| config.write16(control, change(config.read_sound(control)?)));
        written.map_err(|error| {
            // The mappings are of no use then; what cannot be undone either is left to the release.
            let _ = self.disable(config, xen, guest, note);
            Failure::config(error)
        })
    }

    /// Turns off whichever of MSI and MSI-X is on. With neither on there is nothing to do.
    ///
    /// Every step is tried; the first failure is returned.
    pub fn disable(
        &mut self,
        config: &impl ConfigAccess,
        xen: &impl Hypervisor,
        guest: DomId,
        mut note: impl FnMut(Note<'_>),
    ) -> io::Result<()> {
        let mode = std::mem::take(&mut self.mode);
        if mode == Mode::Line {
            return Ok(());
        }
        let off = turn_off(config, &self.capabilities);
        let mut unmapped = Ok(());
        for pirq in mode.pirqs() {
            unmapped = unmapped.and(xen.unmap_pirq(guest, pirq.into()));
        }
        let line = if self.line_offered {
            enable_intx(config)
        } else {
            Ok(())
        };
        note(Note::Mode(&self.mode));
        off.and(unmapped).and(line)
    }

    /// Finishes what a process that died has begun: `change` is the one that it had noted, `known` are the pirqs that
    /// the guest has for all of its functions, by the record. A mode that is recorded and not on in the device was on
    /// its way on or off; the guest has no answer yet, and asks again.
    ///
    /// Returns how many pirqs were found and unmapped.
    pub fn settle(
        &mut self,
        config: &impl ConfigAccess,
        xen: &impl Hypervisor,
        guest: DomId,
        change: Option<Change>,
        known: &BTreeSet<u32>,
        mut note: impl FnMut(Note<'_>),
    ) -> io::Result<usize> {
        let mut unmapped = 0;
        if let Some(change) = change {
            unmapped = self.reclaim(config, xen, guest, change, known)?;
        }
        let off = self.is_lost(config)?;
        if off {
            for pirq in std::mem::take(&mut self.mode).pirqs() {
                // An error says that it is not mapped any more.
                unmapped += usize::from(xen.unmap_pirq(guest, pirq.into()).is_ok());
            }
            if self.line_offered {
                enable_intx(config)?;
            }
        }
        if off || change.is_some() {
            note(Note::Mode(&self.mode));
        }
        Ok(unmapped)
    }

    /// True if the device has forgotten that it is to send messages, as it does in a reset.
    pub fn is_lost(&self, config: &impl ConfigAccess) -> io::Result<bool> {
        Ok(self.mode != Mode::Line && !self.is_on(config)?)
    }

    /// True if the device sends messages in the way of the mode.
    fn is_on(&self, config: &impl ConfigAccess) -> io::Result<bool> {
        let (control, enable) = match self.mode {
            Mode::Line => return Ok(false),
            Mode::Msi(_) => (self.capabilities.msi.map(|at| at + msi::CONTROL), msi::ENABLE),
            Mode::Msix(_) => (self.capabilities.msix.map(|at| at + msix::CONTROL), msix::ENABLE),
        };
        let Some(control) = control else {
            return Ok(false);
        };
        Ok(config.read16(control)? & enable != 0)
    }

    /// Unmaps the pirqs of a change that nobody noted the end of. Xen cannot be asked which pirqs a domain has, but it
    /// gives the highest number that is free (`get_free_pirq` in `xen/arch/x86/irq.c`): so they lie above the next one
    /// that it gives, and whatever lies there is taken.
    fn reclaim(
        &self,
        config: &impl ConfigAccess,
        xen: &impl Hypervisor,
        guest: DomId,
        change: Change,
        known: &BTreeSet<u32>,
    ) -> io::Result<usize> {
        let probe = match change {
            Change::Msi => None,
            Change::Msix(_) => Some((0, self.msix_bar(config)?)),
        };
        let free = u32::from(xen.map_msi(guest, self.bdf, probe)?);
        let (mut found, mut missed) = (0, 0);
        for pirq in (free + 1..=u16::MAX.into()).filter(|pirq| !known.contains(pirq)) {
            if found == change.pirqs() || missed == LONGEST_GAP {
                break;
            }
            match xen.unmap_pirq(guest, pirq) {
                Ok(()) => (found, missed) = (found + 1, 0),
                Err(_) => missed += 1,
            }
        }
        xen.unmap_pirq(guest, free)?;
        Ok(found)
    }

    /// Brings the messages back that the device has lost in a reset, for the pirqs that the guest has. The device must
    /// decode memory.
    pub fn restore(&self, config: &impl ConfigAccess, xen: &impl Hypervisor) -> io::Result<()> {
        let control = match self.mode {
            Mode::Line if self.line_offered => return Ok(()),
            Mode::Line => return disable_intx(config),
            Mode::Msi(_) => self
                .capabilities
                .msi
                .map(|at| (at + msi::CONTROL, msi::ENABLE, msi::SEVERAL)),
            Mode::Msix(_) => self
                .capabilities
                .msix
                .map(|at| (at + msix::CONTROL, msix::ENABLE, msix::MASK_ALL)),
        };
        disable_intx(config)?;
        xen.restore_msi(self.bdf)?;
        let Some((control, on, off)) = control else {
            return Ok(());
        };
        let value = config.read_sound(control)?;
        config.write16(control, (value | on) & !off)
    }

    fn msix_table<C: ConfigAccess>(
        &self,
        config: &impl ConfigAccess,
        decoder: Decoder<'_, C>,
    ) -> Result<MsixTable, Failure> {
        let capability = self
            .capabilities
            .msix
            .ok_or_else(|| Failure::new(OpError::OpFailed, "the device has no MSI-X"))?;
        match self.mode {
            Mode::Line => {}
            Mode::Msi(_) => return Err(Failure::new(OpError::ENXIO, "MSI is on")),
            Mode::Msix(_) => return Err(Failure::new(OpError::EALREADY, "MSI-X is on")),
        }
        let command = decoder.config.read_sound(register::COMMAND);
        if command.map_err(Failure::config)? & command::MEMORY == 0 {
            return Err(Failure::new(OpError::ENXIO, "the device does not decode memory"));
        }
        let control = capability + msix::CONTROL;
        let last_entry = config.read_sound(control).map_err(Failure::config)? & msix::LAST_ENTRY;
        let awake = is_awake(decoder.config, decoder.power)
            .and_then(|decoder| Ok(decoder && is_awake(config, self.capabilities.power)?));
        if !awake.map_err(Failure::config)? {
            return Err(Failure::asleep(OpError::EINVAL));
        }
        let bar_start = self.msix_bar(config).map_err(Failure::config)?;
        Ok(MsixTable {
            control,
            last_entry,
            bar_start,
        })
    }

    /// Where the range begins that holds the MSI-X table.
    fn msix_bar(&self, config: &impl ConfigAccess) -> io::Result<u64> {
        let no_table = || io::Error::other("the MSI-X table lies behind a base address that is not there");
        let capability = self.capabilities.msix.ok_or_else(no_table)?;
        let table = config.read(capability + msix::TABLE, 4)?;
        let bar = self.bars.0.get((table & msix::TABLE_BAR) as usize);
        // The seventh range is the ROM, which holds no table.
        let bar = bar.filter(|bar| bar.size != 0 && table & msix::TABLE_BAR < 6);
        bar.map(|bar| bar.start).ok_or_else(no_table)
    }

    fn check_entries(&self, entries: &[u16], last: u16) -> Result<(), Failure> {
        let refuse = |cause: String| Err(Failure::new(OpError::EINVAL, cause));
        if entries.is_empty() || entries.len() > MAX_VECTORS {
            return refuse(format!(
                "{} vectors: 1 to {MAX_VECTORS} can be asked for",
                entries.len()
            ));
        }
        if let Some(beyond) = entries.iter().find(|&&entry| entry > last) {
            return refuse(format!("entry {beyond}: the table ends with {last}"));
        }
        let mut seen = BTreeSet::new();
        match entries.iter().find(|&&entry| !seen.insert(entry)) {
            Some(twice) => refuse(format!("entry {twice} is asked for twice")),
            None => Ok(()),
        }
    }
}

/// True if a function with its power management at `power` is in D0. In any other state it answers no memory access,
/// although its COMMAND says that it decodes; Xen looks at that alone, and would write to its table.
fn is_awake(config: &impl ConfigAccess, power: Option<u16>) -> io::Result<bool> {
    match power {
        Some(power) => Ok(config.read_sound(power + power::CONTROL)? & power::STATE == 0),
        None => Ok(true),
    }
}

struct MsixTable {
    control: u16,
    last_entry: u16,
    bar_start: u64,
}

/// How many MSI-X entries a function has; 0 without MSI-X.
pub fn msix_entries(config: &[u8]) -> u16 {
    let control = control(config, Capabilities::find(config).msix, msix::CONTROL);
    control.map_or(0, |control| (control & msix::LAST_ENTRY) + 1)
}

/// True if MSI or MSI-X is on, so that the function raises no line.
pub fn sends_messages(config: &[u8]) -> bool {
    let Capabilities { msi, msix, .. } = Capabilities::find(config);
    let on = |at, offset, bit| control(config, at, offset).is_some_and(|control| control & bit != 0);
    on(msi, msi::CONTROL, msi::ENABLE) || on(msix, msix::CONTROL, msix::ENABLE)
}

/// The control word of a capability.
fn control(config: &[u8], capability: Option<u16>, offset: u16) -> Option<u16> {
    let at = usize::from(capability? + offset);
    Some(u16::from_le_bytes(config.get(at..at + 2)?.try_into().ok()?))
}

/// How many messages the MSI capability of a function can send; 0 without MSI.
pub fn msi_messages(config: &[u8]) -> u32 {
    let control = control(config, Capabilities::find(config).msi, msi::CONTROL);
    // Bits 1 to 3 hold the logarithm; 6 and 7 are reserved.
    control.map_or(0, |control| 1 << (control >> 1 & 7).min(5))
}

/// Turns MSI and MSI-X off in the device.
pub fn turn_off(config: &impl ConfigAccess, capabilities: &Capabilities) -> io::Result<()> {
    let msi = capabilities.msi.map(|at| (at + msi::CONTROL, msi::ENABLE));
    let msix = capabilities.msix.map(|at| (at + msix::CONTROL, msix::ENABLE));
    for (control, enable) in msi.into_iter().chain(msix) {
        let value = config.read16(control)?;
        if value != SILENT && value & enable != 0 {
            config.write16(control, value & !enable)?;
        }
    }
    Ok(())
}

/// Forbids the function its INTx line.
pub fn disable_intx(config: &impl ConfigAccess) -> io::Result<()> {
    let value = config.read16(register::COMMAND)?;
    if value & command::INTX_DISABLE == 0 {
        config.write16(register::COMMAND, value | command::INTX_DISABLE)?;
    }
    Ok(())
}

/// Allows the function its INTx line again.
pub fn enable_intx(config: &impl ConfigAccess) -> io::Result<()> {
    let value = config.read16(register::COMMAND)?;
    if value != SILENT && value & command::INTX_DISABLE != 0 {
        config.write16(register::COMMAND, value & !command::INTX_DISABLE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::capabilities::tests::space;
    use crate::pci::config_space::tests::Model;
    use xen::model::Xen;

    const GUEST: DomId = 3;
    const MSI: u16 = 0x50;
    const MSIX: u16 = 0x70;
    const COMMAND: u16 = register::COMMAND;

    /// A function with MSI, and MSI-X with five entries behind BAR 3.
    fn function() -> (Model, Interrupts) {
        let mut bytes = space(&[(MSI as u8, 5), (MSIX as u8, 0x11)]);
        bytes[usize::from(COMMAND)] = 7;
        bytes[usize::from(MSIX) + 2] = 4;
        bytes[usize::from(MSIX) + 4] = 3;
        let mut bars = Bars::default();
        bars.0[3].start = 0xfebd_4000;
        bars.0[3].size = 0x4000;
        let bdf = "00:05.0".parse().unwrap();
        let interrupts = Interrupts::new(bdf, Capabilities::find(&bytes), bars, true, Mode::Line);
        (Model::new(bytes), interrupts)
    }

    /// A decoder without power management.
    fn own(config: &Model) -> Decoder<'_, Model> {
        Decoder { config, power: None }
    }

    #[test]
    fn the_messages_of_msi_are_counted_by_the_power_of_two() {
        let mut config = space(&[(MSI as u8, 5)]);
        for (control, messages) in [(0x80, 1), (0x8a, 32), (0x8e, 32)] {
            config[usize::from(MSI) + 2] = control;
            assert_eq!(msi_messages(&config), messages);
        }
        assert_eq!(msi_messages(&[0; 256]), 0);
    }

    #[test]
    fn msix_maps_every_entry_then_silences_the_line_then_enables() {
        let (config, mut interrupts) = function();
        let xen = Xen::default();
        let mut noted = Vec::new();
        let pirqs = interrupts.enable_msix(&config, own(&config), &xen, GUEST, &[0, 4, 2], |note| {
            noted.push((text(note), xen.calls().len(), config.writes.borrow().len()));
        });
        assert_eq!(pirqs.unwrap(), [55, 54, 53]);
        assert_eq!(
            xen.calls(),
            [
                "map 3 0000:00:05.0 entry 0 of febd4000: 55",
                "map 3 0000:00:05.0 entry 4 of febd4000: 54",
                "map 3 0000:00:05.0 entry 2 of febd4000: 53",
            ]
        );
        assert_eq!(
            *config.writes.borrow(),
            [(COMMAND, 2, 0x0407), (MSIX + 2, 2, 0x8004)]
        );
        // The change before Xen does anything, the mode before the device does.
        let expected = [("intx changing msix 3", 0, 0), ("msix 0=55 4=54 2=53", 3, 0)];
        let noted: Vec<_> = noted
            .iter()
            .map(|(text, calls, writes)| (text.as_str(), *calls, *writes))
            .collect();
        assert_eq!(noted, expected);
    }

    #[test]
    fn msix_is_all_or_nothing() {
        let (config, mut interrupts) = function();
        let xen = Xen::refusing_after(2);
        let mut noted = Vec::new();
        let failure = interrupts.enable_msix(&config, own(&config), &xen, GUEST, &[0, 1, 2], |note| {
            noted.push(text(note));
        });
        assert_eq!(noted, ["intx changing msix 3", "intx"]);
        let failure = failure.unwrap_err();
        assert_eq!(failure.error, OpError::OpFailed);
        assert!(
            failure.cause.starts_with("Xen refused to map entry 2 of 3: "),
            "{}",
            failure.cause
        );
        assert_eq!(xen.calls()[2..], ["unmap 3 55", "unmap 3 54"]);
        assert_eq!(*interrupts.mode(), Mode::Line);
        assert!(config.writes.borrow().is_empty());
    }

    #[test]
    fn what_cannot_be_asked_for_is_refused_before_anything_is_mapped() {
        let many: Vec<u16> = (0..129).collect();
        for (entries, cause) in [
            (&[][..], "0 vectors: 1 to 128 can be asked for"),
            (&many[..], "129 vectors: 1 to 128 can be asked for"),
            (&[0, 5][..], "entry 5: the table ends with 4"),
            (&[1, 0, 1][..], "entry 1 is asked for twice"),
        ] {
            let (config, mut interrupts) = function();
            let xen = Xen::default();
            let failure = interrupts
                .enable_msix(&config, own(&config), &xen, GUEST, entries, |_| {})
                .unwrap_err();
            assert_eq!((failure.error, failure.cause.as_str()), (OpError::EINVAL, cause));
            assert!(xen.calls().is_empty());
        }
    }

    #[test]
    fn msix_needs_memory_decode_and_a_table_that_is_there() {
        let (config, mut interrupts) = function();
        config.set16(COMMAND, 5);
        let xen = Xen::default();
        let failure = interrupts
            .enable_msix(&config, own(&config), &xen, GUEST, &[0], |_| {})
            .unwrap_err();
        assert_eq!(failure.error, OpError::ENXIO);
        config.set16(COMMAND, 7);
        // The ROM is there, and holds no table.
        interrupts.bars.0[6].size = 0x1000;
        for bar in [4, 6, 7] {
            config.set16(MSIX + 4, bar);
            let failure = interrupts
                .enable_msix(&config, own(&config), &xen, GUEST, &[0], |_| {})
                .unwrap_err();
            assert_eq!(failure.error, OpError::OpFailed, "{bar}");
        }
        assert!(xen.calls().is_empty());
    }

    const POWER: u16 = 0x40;

    /// The same function with power management, and its power::CONTROL.
    fn with_power(pmcsr: u16) -> (Model, Interrupts) {
        let (config, mut interrupts) = function();
        interrupts.capabilities.power = Some(POWER);
        config.set16(POWER + 4, pmcsr);
        (config, interrupts)
    }

    #[test]
    fn neither_is_turned_on_while_the_function_or_its_decoder_sleeps() {
        let xen = Xen::default();
        let physical = |pmcsr| {
            let config = Model::new(vec![0; 256]);
            config.set16(COMMAND, command::MEMORY);
            config.set16(POWER + 4, pmcsr);
            config
        };
        for state in 1..4 {
            let (config, mut interrupts) = with_power(0x8108 | state);
            let msi = interrupts.enable_msi(&config, &xen, GUEST, |_| panic!("noted"));
            assert_eq!(msi.unwrap_err().error, OpError::OpFailed, "D{state}");
            let enable = |interrupts: &mut Interrupts, config: &Model, decoder: &Model, power| {
                let decoder = Decoder {
                    config: decoder,
                    power,
                };
                let answer = interrupts.enable_msix(config, decoder, &xen, GUEST, &[0], |_| {});
                answer.map_err(|failure| failure.error)
            };
            let asleep = Err(OpError::EINVAL);
            assert_eq!(
                enable(&mut interrupts, &config, &physical(0), Some(POWER)),
                asleep
            );
            assert_eq!(enable(&mut interrupts, &config, &physical(0), None), asleep);
            let (config, mut interrupts) = with_power(0x8108);
            let physical = physical(state);
            assert_eq!(enable(&mut interrupts, &config, &physical, Some(POWER)), asleep);
            assert!(config.writes.borrow().is_empty() && physical.writes.borrow().is_empty());
            assert!(xen.calls().is_empty());
        }
        let (config, mut interrupts) = with_power(0x8108);
        assert!(interrupts.enable_msi(&config, &xen, GUEST, |_| {}).is_ok());
        interrupts.disable(&config, &xen, GUEST, |_| {}).unwrap();
        let decoder = Decoder {
            config: &config,
            power: Some(POWER),
        };
        assert!(
            interrupts
                .enable_msix(&config, decoder, &xen, GUEST, &[0], |_| {})
                .is_ok()
        );
    }

    #[test]
    fn all_ones_turn_nothing_on_and_are_not_written_back() {
        let xen = Xen::default();
        for (register, msi, msix) in [
            (COMMAND, true, false),
            (MSI + 2, false, true),
            (MSIX + 2, true, false),
            (POWER + 4, false, false),
        ] {
            for (kind, works) in [(MSI, msi), (MSIX, msix)] {
                let (config, mut interrupts) = with_power(0);
                config.set16(register, 0xffff);
                let answer = if kind == MSI {
                    interrupts.enable_msi(&config, &xen, GUEST, |_| {}).map(|_| ())
                } else {
                    interrupts
                        .enable_msix(&config, own(&config), &xen, GUEST, &[4], |_| {})
                        .map(|_| ())
                };
                assert_eq!(answer.is_ok(), works, "{register:#x}");
                if let Err(failure) = answer {
                    assert_eq!(failure.error, OpError::OpFailed, "{register:#x}");
                    assert!(failure.cause.contains("answers all-ones"), "{}", failure.cause);
                }
            }
        }
        // A device that went away while its messages were on.
        let (config, mut interrupts) = function();
        interrupts.enable_msi(&config, &xen, GUEST, |_| {}).unwrap();
        config.bytes.borrow_mut().fill(0xff);
        config.writes.borrow_mut().clear();
        assert!(interrupts.restore(&config, &xen).is_err());
        interrupts.disable(&config, &xen, GUEST, |_| {}).unwrap();
        assert_eq!(*interrupts.mode(), Mode::Line);
        assert!(config.writes.borrow().is_empty());
    }

    #[test]
    fn one_message_is_turned_on_whatever_an_earlier_driver_had_set() {
        let (config, mut interrupts) = function();
        let xen = Xen::default();
        config.set16(MSI + 2, 0x01fa);
        interrupts.enable_msi(&config, &xen, GUEST, |_| {}).unwrap();
        assert_eq!(config.read16(MSI + 2).unwrap(), 0x018b);
        config.set16(MSI + 2, 0x01fa);
        assert!(interrupts.is_lost(&config).unwrap());
        interrupts.restore(&config, &xen).unwrap();
        assert_eq!(config.read16(MSI + 2).unwrap(), 0x018b);
        assert!(!interrupts.is_lost(&config).unwrap());
    }

    #[test]
    fn the_mask_over_all_entries_is_taken_away_and_the_size_of_the_table_stays() {
        let (config, mut interrupts) = function();
        let xen = Xen::default();
        config.set16(MSIX + 2, 0x4004);
        interrupts
            .enable_msix(&config, own(&config), &xen, GUEST, &[4], |_| {})
            .unwrap();
        assert_eq!(config.read16(MSIX + 2).unwrap(), 0x8004);
        config.set16(MSIX + 2, 0x4004);
        interrupts.restore(&config, &xen).unwrap();
        assert_eq!(config.read16(MSIX + 2).unwrap(), 0x8004);
    }

    #[test]
    fn the_last_entry_of_the_largest_table_can_be_asked_for() {
        let (config, mut interrupts) = function();
        let xen = Xen::default();
        config.set16(MSIX + 2, 0x07ff);
        assert_eq!(msix_entries(&config.bytes.borrow()), 2048);
        let entries: Vec<u16> = (1920..2048).collect();
        let pirqs = interrupts.enable_msix(&config, own(&config), &xen, GUEST, &entries[112..], |_| {});
        assert_eq!(pirqs.unwrap().len(), 16);
    }

    #[test]
    fn what_cannot_be_unmapped_does_not_keep_the_rest_from_being_undone() {
        let (config, mut interrupts) = function();
        let xen = Xen::with_pirqs(&[]);
        interrupts
            .enable_msix(&config, own(&config), &xen, GUEST, &[0, 1, 2], |_| {})
            .unwrap();
        // Somebody else took the middle one.
        xen.unmap_pirq(GUEST, 54).unwrap();
        let mut noted = 0;
        assert!(interrupts.disable(&config, &xen, GUEST, |_| noted += 1).is_err());
        assert_eq!((xen.pirqs(), noted), (vec![], 1));
        assert_eq!(*interrupts.mode(), Mode::Line);
        assert_eq!(config.read16(MSIX + 2).unwrap(), 0x0004);
        assert_eq!(config.read16(COMMAND).unwrap() & command::INTX_DISABLE, 0);
    }

    #[test]
    fn msi_that_xen_refuses_to_map_leaves_no_change_behind() {
        let (config, mut interrupts) = function();
        let mut noted = Vec::new();
        let failure = interrupts.enable_msi(&config, &Xen::refusing_after(0), GUEST, |note| {
            noted.push(text(note))
        });
        assert_eq!(failure.unwrap_err().error, OpError::OpFailed);
        assert_eq!(noted, ["intx changing msi", "intx"]);
        assert_eq!(*interrupts.mode(), Mode::Line);
        assert!(config.writes.borrow().is_empty());
    }

    #[test]
    fn what_the_device_does_not_take_is_told_and_the_rest_is_undone_all_the_same() {
        for refused in [COMMAND, MSIX + 2] {
            let (mut config, mut interrupts) = function();
            config.refused = vec![refused];
            let xen = Xen::with_pirqs(&[]);
            let mut noted = Vec::new();
            let failure = interrupts.enable_msix(&config, own(&config), &xen, GUEST, &[0, 1], |note| {
                noted.push(text(note));
            });
            assert_eq!(failure.unwrap_err().error, OpError::OpFailed);
            assert_eq!(*interrupts.mode(), Mode::Line);
            assert!(xen.pirqs().is_empty(), "{refused:#x}");
            assert_eq!(noted.last().unwrap(), "intx");
        }
        for refused in [COMMAND, MSIX + 2] {
            let (mut config, mut interrupts) = function();
            let xen = Xen::with_pirqs(&[]);
            interrupts
                .enable_msix(&config, own(&config), &xen, GUEST, &[0, 1], |_| {})
                .unwrap();
            config.refused = vec![refused];
            let told = interrupts.disable(&config, &xen, GUEST, |_| {});
            assert_eq!(
                told.unwrap_err().kind(),
                io::ErrorKind::PermissionDenied,
                "{refused:#x}"
            );
            assert!(xen.pirqs().is_empty());
        }
    }

    #[test]
    fn orphans_are_looked_for_past_a_gap_and_not_without_end() {
        for (gap, left) in [(255, 0), (256, 1)] {
            let (config, mut interrupts) = function();
            // Above 55, which Xen gives next.
            let xen = Xen::with_pirqs(&[56 + gap]);
            interrupts
                .settle(
                    &config,
                    &xen,
                    GUEST,
                    Some(Change::Msix(1)),
                    &BTreeSet::new(),
                    |_| {},
                )
                .unwrap();
            assert_eq!(xen.pirqs().len(), left, "a gap of {gap}");
        }
        // What was found begins the count anew.
        let (config, mut interrupts) = function();
        let xen = Xen::with_pirqs(&[256, 456]);
        let change = Some(Change::Msix(2));
        interrupts
            .settle(&config, &xen, GUEST, change, &BTreeSet::new(), |_| {})
            .unwrap();
        assert!(xen.pirqs().is_empty());
    }

    #[test]
    fn msix_of_a_virtual_function_needs_the_decode_bit_of_its_physical_one() {
        let (config, mut interrupts) = function();
        config.set16(COMMAND, 0);
        let physical = Model::new(vec![0; 64]);
        let xen = Xen::default();
        let mut enable = || interrupts.enable_msix(&config, own(&physical), &xen, GUEST, &[0], |_| {});
        assert_eq!(enable().unwrap_err().error, OpError::ENXIO);
        assert!(xen.calls().is_empty());
        physical.set16(COMMAND, command::MEMORY);
        assert_eq!(enable().unwrap(), [55]);
        assert!(physical.writes.borrow().is_empty());
    }

    #[test]
    fn a_second_mode_is_refused_while_one_is_on() {
        let (config, mut interrupts) = function();
        let xen = Xen::default();
        assert_eq!(interrupts.enable_msi(&config, &xen, GUEST, |_| {}).unwrap(), 55);
        let msi = interrupts
            .enable_msi(&config, &xen, GUEST, |_| {})
            .unwrap_err()
            .error;
        let msix = interrupts
            .enable_msix(&config, own(&config), &xen, GUEST, &[0], |_| {})
            .unwrap_err()
            .error;
        assert_eq!((msi, msix), (OpError::EALREADY, OpError::ENXIO));
        interrupts.disable(&config, &xen, GUEST, |_| {}).unwrap();
        interrupts
            .enable_msix(&config, own(&config), &xen, GUEST, &[0], |_| {})
            .unwrap();
        let msi = interrupts
            .enable_msi(&config, &xen, GUEST, |_| {})
            .unwrap_err()
            .error;
        let msix = interrupts
            .enable_msix(&config, own(&config), &xen, GUEST, &[0], |_| {})
            .unwrap_err()
            .error;
        assert_eq!((msi, msix), (OpError::ENXIO, OpError::EALREADY));
    }

    #[test]
    fn disabling_turns_the_device_off_first_and_gives_the_line_back() {
        let (config, mut interrupts) = function();
        let xen = Xen::default();
        interrupts
            .enable_msix(&config, own(&config), &xen, GUEST, &[0, 1], |_| {})
            .unwrap();
        config.writes.borrow_mut().clear();
        interrupts
            .disable(&config, &xen, GUEST, |note| assert_eq!(text(note), "intx"))
            .unwrap();
        assert_eq!(
            *config.writes.borrow(),
            [(MSIX + 2, 2, 0x0004), (COMMAND, 2, 0x0007)]
        );
        assert_eq!(xen.calls()[2..], ["unmap 3 55", "unmap 3 54"]);
    }

    /// What the record says then.
    fn text(note: Note<'_>) -> String {
        match note {
            Note::Change(change) => change.to_string(),
            Note::Mode(mode) => mode.to_string(),
        }
    }

    /// Settles what a process has left that died with these pirqs mapped; the pirqs that are left, and the notes.
    fn settle(
        interrupts: &mut Interrupts,
        config: &Model,
        change: Option<Change>,
        mapped: &[u16],
        known: &[u32],
    ) -> (Vec<u16>, Vec<String>) {
        let xen = Xen::with_pirqs(mapped);
        let mut noted = Vec::new();
        let known = known.iter().copied().collect();
        let settled = interrupts.settle(config, &xen, GUEST, change, &known, |note| noted.push(text(note)));
        settled.unwrap();
        (xen.pirqs(), noted)
    }

    #[test]
    fn pirqs_that_were_mapped_and_never_noted_are_unmapped_wherever_the_process_died() {
        // 55 and 52 are another function's; 20 is a line.
        for orphans in [&[][..], &[54], &[54, 53], &[54, 53, 51]] {
            let (config, mut interrupts) = function();
            let mapped = [&[55, 52, 20][..], orphans].concat();
            let change = Some(Change::Msix(3));
            let (left, noted) = settle(&mut interrupts, &config, change, &mapped, &[55, 52, 20]);
            assert_eq!(
                (left, noted),
                (vec![20, 52, 55], vec!["intx".to_owned()]),
                "{orphans:?}"
            );
            assert!(config.writes.borrow().is_empty());
        }
    }

    #[test]
    fn no_more_pirqs_are_taken_than_the_change_can_have_mapped() {
        let (config, mut interrupts) = function();
        let (left, _) = settle(&mut interrupts, &config, Some(Change::Msi), &[55, 54], &[]);
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn a_mode_that_is_recorded_and_not_on_is_undone() {
        let recorded = Mode::Msix(vec![(0, 55), (1, 54)]);
        // It was about to be turned on, or off with one pirq gone already.
        for mapped in [&[55, 54][..], &[54]] {
            let (config, mut interrupts) = function();
            interrupts.mode = recorded.clone();
            disable_intx(&config).unwrap();
            let (left, noted) = settle(&mut interrupts, &config, None, mapped, &[55, 54]);
            assert_eq!((left, noted), (vec![], vec!["intx".to_owned()]));
            assert_eq!(*interrupts.mode(), Mode::Line);
            assert_eq!(config.read16(COMMAND).unwrap() & command::INTX_DISABLE, 0);
        }
        // One that is on stays.
        let (config, mut interrupts) = function();
        interrupts.mode = recorded.clone();
        config.set16(MSIX + 2, 0x8004);
        let (left, noted) = settle(&mut interrupts, &config, None, &[55, 54], &[55, 54]);
        assert_eq!((left, noted), (vec![54, 55], vec![]));
        assert_eq!(*interrupts.mode(), recorded);
    }

    #[test]
    fn messages_that_were_lost_in_a_reset_come_back_for_the_same_pirqs() {
        for (msix, control, value) in [(true, MSIX + 2, 0x8004), (false, MSI + 2, 0x0001)] {
            let (config, mut interrupts) = function();
            let xen = Xen::default();
            if msix {
                interrupts
                    .enable_msix(&config, own(&config), &xen, GUEST, &[0, 4], |_| {})
                    .unwrap();
            } else {
                interrupts.enable_msi(&config, &xen, GUEST, |_| {}).unwrap();
            }
            let mode = interrupts.mode().clone();
            config.set16(COMMAND, 7);
            config.set16(control, value & !0x8001);
            config.writes.borrow_mut().clear();
            interrupts.restore(&config, &xen).unwrap();
            assert_eq!(xen.calls().last().unwrap(), "restore messages 0000:00:05.0");
            assert_eq!(
                *config.writes.borrow(),
                [(COMMAND, 2, 0x0407), (control, 2, value.into())]
            );
            assert_eq!(*interrupts.mode(), mode);
        }
    }

    #[test]
    fn a_line_alone_needs_nothing_but_its_silence_where_it_is_withheld() {
        let (config, interrupts) = function();
        let xen = Xen::default();
        interrupts.restore(&config, &xen).unwrap();
        assert!(config.writes.borrow().is_empty());
        let withheld = Interrupts {
            line_offered: false,
            ..interrupts
        };
        withheld.restore(&config, &xen).unwrap();
        assert_eq!(*config.writes.borrow(), [(COMMAND, 2, 0x0407)]);
        assert!(xen.calls().is_empty());
    }

    #[test]
    fn a_line_that_is_withheld_stays_silent() {
        let (config, interrupts) = function();
        let mut interrupts = Interrupts {
            line_offered: false,
            ..interrupts
        };
        let xen = Xen::default();
        interrupts.enable_msi(&config, &xen, GUEST, |_| {}).unwrap();
        interrupts.disable(&config, &xen, GUEST, |_| {}).unwrap();
        assert_eq!(
            config.read16(COMMAND).unwrap() & command::INTX_DISABLE,
            command::INTX_DISABLE
        );
    }

    #[test]
    fn disabling_what_is_off_does_nothing() {
        let (config, mut interrupts) = function();
        let xen = Xen::default();
        interrupts
            .disable(&config, &xen, GUEST, |_| panic!("nothing changed"))
            .unwrap();
        assert!(config.writes.borrow().is_empty() && xen.calls().is_empty());
    }

    #[test]
    fn the_size_of_the_table_is_read_from_the_capability() {
        let (config, _) = function();
        assert_eq!(msix_entries(&config.bytes.borrow()), 5);
        assert_eq!(msix_entries(&[0; 256]), 0);
        assert_eq!(msix_entries(&[]), 0);
    }
}
