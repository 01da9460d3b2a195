//! The interrupt mode of a function: its INTx line, MSI, or MSI-X.
//!
//! Xen splits the work: it programs address, data and mask of a message when a pirq is mapped, and
//! dom0 turns the capability on in the device. Xen lets the same MSI-X entry be mapped twice, so
//! that is refused here.

use crate::config_space::access::ConfigAccess;
use crate::config_space::capabilities::Capabilities;
use crate::config_space::interrupts::{clear, disable_intx, enable_intx};
use crate::function::failure::Failure;
use crate::function::msix_table::{Decoder, MsixTable, is_awake, msix_bar};
use crate::records::interrupt_mode::{Mode, ModeChange, ModeRecord};
use pci::bdf::Bdf;
use pci::registers::{msi, msix};
use std::io;
use xen::xenctrl::{DomId, Hypervisor};
use xenbus::device::Bars;
use xenbus::pciif::OpError;

mod orphans;

/// Everything about a function that its interrupts depend on.
#[derive(Clone, Debug)]
pub struct Interrupts {
    bdf: Bdf,
    capabilities: Capabilities,
    bars: Bars,
    line_offered: bool,
    mode: Mode,
    /// Where the range begins that holds the MSI-X table, once it was read: that never changes.
    table: Option<u64>,
    /// COMMAND, as the last change of the mode has left it.
    command: Option<u16>,
}

impl Interrupts {
    /// The interrupts of a function that is now in `mode`. `line_offered` is false if INTx must stay disabled because
    /// others use the line.
    pub fn new(bdf: Bdf, capabilities: Capabilities, bars: Bars, line_offered: bool, mode: Mode) -> Self {
        Self {
            bdf,
            capabilities,
            bars,
            line_offered,
            mode,
            table: None,
            command: None,
        }
    }

    /// The mode that is on.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// COMMAND, as a change of the mode has left it since this was asked for last.
    pub fn take_command(&mut self) -> Option<u16> {
        self.command.take()
    }

    /// Turns MSI on with one vector, and returns its pirq. `record` writes what must outlive this process: the change
    /// before Xen maps anything, and the mode before the device can send anything.
    pub fn enable_msi(
        &mut self,
        config: &impl ConfigAccess,
        xen: &impl Hypervisor,
        guest: DomId,
        mut record: impl FnMut(ModeRecord<'_>),
    ) -> Result<u16, Failure> {
        let capability = self
            .capabilities
            .msi
            .ok_or_else(|| Failure::new(OpError::OpFailed, "the device has no MSI"))?;
        // The errors are those that xen-pciback answers with.
        match self.mode {
            Mode::Intx => {}
            Mode::Msi(_) => return Err(Failure::new(OpError::EALREADY, "MSI is on")),
            Mode::Msix(_) => return Err(Failure::new(OpError::ENXIO, "MSI-X is on")),
        }
        // All-ones means that the device does not answer: nothing is mapped for it.
        let control = config
            .read_sound(capability + msi::CONTROL)
            .map_err(Failure::config)?;
        if !is_awake(config, self.capabilities.power).map_err(Failure::config)? {
            return Err(Failure::asleep(OpError::OpFailed));
        }
        // The record comes before Xen maps anything: this process may die between any two steps (decision 48).
        record(ModeRecord::Change(ModeChange::Msi));
        let pirq = xen.map_msi(guest, self.bdf, None).map_err(|error| {
            // Nothing was mapped, so the earlier mode stays.
            record(ModeRecord::Mode(&self.mode));
            Failure::new(
                OpError::OpFailed,
                format!("Xen refused to map the message: {error}"),
            )
        })?;
        self.mode = Mode::Msi(pirq);
        // One vector was mapped, whatever number an earlier driver had set.
        let on = control & !msi::SEVERAL | msi::ENABLE;
        self.turn_on(config, xen, guest, (capability + msi::CONTROL, on), record)?;
        Ok(pirq)
    }

    /// Turns MSI-X on for all of `entries`, or for none, and returns a pirq for each. For `record`
    /// see [`Self::enable_msi`]. `decoder` is the function whose COMMAND turns decoding of memory on: the bit of a
    /// virtual one reads 0 (SR-IOV 1.1, section 3.4.1.3).
    pub fn enable_msix(
        &mut self,
        config: &impl ConfigAccess,
        decoder: Decoder<'_, impl ConfigAccess>,
        xen: &impl Hypervisor,
        guest: DomId,
        entries: &[u16],
        mut record: impl FnMut(ModeRecord<'_>),
    ) -> Result<Vec<u16>, Failure> {
        let capability = self
            .capabilities
            .msix
            .ok_or_else(|| Failure::new(OpError::OpFailed, "the device has no MSI-X"))?;
        match self.mode {
            Mode::Intx => {}
            Mode::Msi(_) => return Err(Failure::new(OpError::ENXIO, "MSI is on")),
            Mode::Msix(_) => return Err(Failure::new(OpError::EALREADY, "MSI-X is on")),
        }
        let table = MsixTable::find(config, decoder, capability, self.capabilities.power)?;
        let bar_start = match self.table {
            Some(start) => start,
            None => msix_bar(config, Some(capability), &self.bars).map_err(Failure::config)?,
        };
        self.table = Some(bar_start);
        table.check_entries(entries)?;
        record(ModeRecord::Change(ModeChange::Msix(entries.len())));
        let mut mapped: Vec<(u16, u16)> = Vec::with_capacity(entries.len());
        for &entry in entries {
            match xen.map_msi(guest, self.bdf, Some((entry, bar_start))) {
                Ok(pirq) => mapped.push((entry, pirq)),
                Err(error) => {
                    for (_, pirq) in mapped {
                        // A pirq that Xen will not take back is freed with the guest.
                        let _ = xen.unmap_pirq(guest, pirq.into());
                    }
                    record(ModeRecord::Mode(&self.mode));
                    let cause = format!("Xen refused to map entry {entry} of {}: {error}", entries.len());
                    return Err(Failure::new(OpError::OpFailed, cause));
                }
            }
        }
        let pirqs = mapped.iter().map(|&(_, pirq)| pirq).collect();
        self.mode = Mode::Msix(mapped);
        // The guest cannot write this register, so nobody else would take the mask over all entries away.
        let on = (table.control | msix::ENABLE) & !msix::MASK_ALL;
        self.turn_on(config, xen, guest, (capability + msix::CONTROL, on), record)?;
        Ok(pirqs)
    }

    /// Records the mode, whose vectors are mapped, and turns it on in the device: by this value of this register.
    fn turn_on(
        &mut self,
        config: &impl ConfigAccess,
        xen: &impl Hypervisor,
        guest: DomId,
        (control, value): (u16, u16),
        mut record: impl FnMut(ModeRecord<'_>),
    ) -> Result<(), Failure> {
        record(ModeRecord::Mode(&self.mode));
        let written = disable_intx(config).and_then(|command| {
            self.command = Some(command);
            config.write16(control, value)
        });
        written.map_err(|error| {
            // The mappings are of no use then. What cannot be unmapped goes with the guest.
            let _ = self.disable(config, xen, guest, record);
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
        mut record: impl FnMut(ModeRecord<'_>),
    ) -> io::Result<()> {
        let Some((control, enable)) = self.control() else {
            return Ok(());
        };
        let mode = std::mem::take(&mut self.mode);
        // The device comes first: it must send nothing for a pirq that is gone.
        let off = clear(config, control, enable);
        let mut unmapped = Ok(());
        for pirq in mode.pirqs() {
            unmapped = unmapped.and(xen.unmap_pirq(guest, pirq.into()));
        }
        let line = if self.line_offered {
            enable_intx(config).map(|command| self.command = Some(command))
        } else {
            Ok(())
        };
        record(ModeRecord::Mode(&self.mode));
        off.and(unmapped).and(line)
    }

    /// True if MSI or MSI-X is recorded as on, and off in the device, as after a reset.
    pub fn is_lost(&self, config: &impl ConfigAccess) -> io::Result<bool> {
        Ok(self.mode != Mode::Intx && !self.is_on(config)?)
    }

    /// True if the mode is MSI or MSI-X, and on in the device.
    fn is_on(&self, config: &impl ConfigAccess) -> io::Result<bool> {
        match self.control() {
            Some((control, enable)) => Ok(config.read16(control)? & enable != 0),
            None => Ok(false),
        }
    }

    /// The control word of the mode, and its enable bit; `None` for INTx.
    fn control(&self) -> Option<(u16, u16)> {
        match self.mode {
            Mode::Intx => None,
            Mode::Msi(_) => self.capabilities.msi.map(|at| (at + msi::CONTROL, msi::ENABLE)),
            Mode::Msix(_) => self
                .capabilities
                .msix
                .map(|at| (at + msix::CONTROL, msix::ENABLE)),
        }
    }

    /// Restores MSI or MSI-X after a reset, for the pirqs that the guest has. The device must decode memory.
    pub fn restore(&self, config: &impl ConfigAccess, xen: &impl Hypervisor) -> io::Result<()> {
        let control = match self.mode {
            Mode::Intx if self.line_offered => return Ok(()),
            Mode::Intx => return disable_intx(config).map(drop),
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
        // Xen writes addresses, data and masks again. The enable bit is dom0's.
        xen.restore_msi(self.bdf)?;
        let Some((control, on, off)) = control else {
            return Ok(());
        };
        // A device that does not answer must not get all-ones written back.
        let value = config.read_sound(control)?;
        config.write16(control, (value | on) & !off)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config_space::access::tests::Model;
    use crate::config_space::capabilities::tests::space;
    use pci::registers::{command, register};
    use xen::model::Xen;

    pub const GUEST: DomId = 3;
    pub const MSI: u16 = 0x50;
    pub const MSIX: u16 = 0x70;
    pub const COMMAND: u16 = register::COMMAND;

    /// A function with MSI, and MSI-X with five entries behind BAR 3.
    pub fn function() -> (Model, Interrupts) {
        let mut bytes = space(&[(MSI as u8, 5), (MSIX as u8, 0x11)]);
        bytes[usize::from(COMMAND)] = 7;
        bytes[usize::from(MSIX) + 2] = 4;
        bytes[usize::from(MSIX) + 4] = 3;
        let mut bars = Bars::default();
        bars.0[3].start = 0xfebd_4000;
        bars.0[3].size = 0x4000;
        let bdf = "00:05.0".parse().unwrap();
        let interrupts = Interrupts::new(bdf, Capabilities::find(&bytes), bars, true, Mode::Intx);
        (Model::new(bytes), interrupts)
    }

    /// A decoder without power management.
    pub fn own(config: &Model) -> Decoder<'_, Model> {
        Decoder { config, power: None }
    }

    #[test]
    fn msix_maps_every_entry_then_silences_the_line_then_enables() {
        let (config, mut interrupts) = function();
        let xen = Xen::default();
        let mut recorded = Vec::new();
        let pirqs = interrupts.enable_msix(&config, own(&config), &xen, GUEST, &[0, 4, 2], |mode| {
            recorded.push((text(mode), xen.calls().len(), config.writes.borrow().len()));
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
        let recorded: Vec<_> = recorded
            .iter()
            .map(|(text, calls, writes)| (text.as_str(), *calls, *writes))
            .collect();
        assert_eq!(recorded, expected);
    }

    #[test]
    fn msix_is_all_or_nothing() {
        let (config, mut interrupts) = function();
        let xen = Xen::refusing_after(2);
        let mut recorded = Vec::new();
        let failure = interrupts.enable_msix(&config, own(&config), &xen, GUEST, &[0, 1, 2], |mode| {
            recorded.push(text(mode));
        });
        assert_eq!(recorded, ["intx changing msix 3", "intx"]);
        let failure = failure.unwrap_err();
        assert_eq!(failure.error, OpError::OpFailed);
        assert!(
            failure.cause.starts_with("Xen refused to map entry 2 of 3: "),
            "{}",
            failure.cause
        );
        assert_eq!(xen.calls()[2..], ["unmap 3 55", "unmap 3 54"]);
        assert_eq!(*interrupts.mode(), Mode::Intx);
        assert!(config.writes.borrow().is_empty());
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
            let msi = interrupts.enable_msi(&config, &xen, GUEST, |_| panic!("recorded"));
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
        assert_eq!(*interrupts.mode(), Mode::Intx);
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
    fn what_cannot_be_unmapped_does_not_keep_the_rest_from_being_undone() {
        let (config, mut interrupts) = function();
        let xen = Xen::with_pirqs(&[]);
        interrupts
            .enable_msix(&config, own(&config), &xen, GUEST, &[0, 1, 2], |_| {})
            .unwrap();
        // Somebody else took the middle one.
        xen.unmap_pirq(GUEST, 54).unwrap();
        let mut recorded = 0;
        assert!(
            interrupts
                .disable(&config, &xen, GUEST, |_| recorded += 1)
                .is_err()
        );
        assert_eq!((xen.pirqs(), recorded), (vec![], 1));
        assert_eq!(*interrupts.mode(), Mode::Intx);
        assert_eq!(config.read16(MSIX + 2).unwrap(), 0x0004);
        assert_eq!(config.read16(COMMAND).unwrap() & command::INTX_DISABLE, 0);
    }

    #[test]
    fn msi_that_xen_refuses_to_map_leaves_no_change_behind() {
        let (config, mut interrupts) = function();
        let mut recorded = Vec::new();
        let failure = interrupts.enable_msi(&config, &Xen::refusing_after(0), GUEST, |mode| {
            recorded.push(text(mode))
        });
        assert_eq!(failure.unwrap_err().error, OpError::OpFailed);
        assert_eq!(recorded, ["intx changing msi", "intx"]);
        assert_eq!(*interrupts.mode(), Mode::Intx);
        assert!(config.writes.borrow().is_empty());
    }

    #[test]
    fn what_the_device_does_not_take_is_told_and_the_rest_is_undone_all_the_same() {
        for refused in [COMMAND, MSIX + 2] {
            let (mut config, mut interrupts) = function();
            config.refused = vec![refused];
            let xen = Xen::with_pirqs(&[]);
            let mut recorded = Vec::new();
            let failure = interrupts.enable_msix(&config, own(&config), &xen, GUEST, &[0, 1], |mode| {
                recorded.push(text(mode));
            });
            assert_eq!(failure.unwrap_err().error, OpError::OpFailed);
            assert_eq!(*interrupts.mode(), Mode::Intx);
            assert!(xen.pirqs().is_empty(), "{refused:#x}");
            assert_eq!(recorded.last().unwrap(), "intx");
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
            .disable(&config, &xen, GUEST, |mode| assert_eq!(text(mode), "intx"))
            .unwrap();
        assert_eq!(
            *config.writes.borrow(),
            [(MSIX + 2, 2, 0x0004), (COMMAND, 2, 0x0007)]
        );
        assert_eq!(xen.calls()[2..], ["unmap 3 55", "unmap 3 54"]);
    }

    /// What the record says then.
    pub fn text(mode: ModeRecord<'_>) -> String {
        match mode {
            ModeRecord::Change(change) => change.to_string(),
            ModeRecord::Mode(mode) => mode.to_string(),
        }
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
}
