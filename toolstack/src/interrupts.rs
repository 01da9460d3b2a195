//! The interrupt mode of a function: its INTx line, MSI, or MSI-X.
//!
//! Xen splits the work: it programs address, data and mask of a message when a pirq is mapped, and
//! dom0 turns the capability on in the device. Xen lets the same MSI-X entry be mapped twice, so
//! that is refused here.

use crate::capabilities::Capabilities;
use crate::config::{Config, command, register};
use crate::xenctrl::{DomId, Hypervisor};
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::str::FromStr;
use thiserror::Error;
use xenbus::bdf::Bdf;
use xenbus::device::Bars;
use xenbus::pciif::{MAX_VECTORS, OpError};

/// Control word of MSI, and its enable bit.
const MSI_CONTROL: u16 = 2;
const MSI_ENABLE: u16 = 1 << 0;
/// Control word of MSI-X, and its bits.
const MSIX_CONTROL: u16 = 2;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK_ALL: u16 = 1 << 14;
const MSIX_LAST_ENTRY: u16 = 0x07ff;
/// Which base address register the table lies behind (low three bits), and where.
const MSIX_TABLE: u16 = 4;
const MSIX_TABLE_BAR: u32 = 0x7;

/// How a function interrupts its guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// By its INTx line, if it has one.
    #[default]
    Line,
    /// By one message; the pirq.
    Msi(u16),
    /// By the entries of its MSI-X table; entry and pirq of each that is mapped.
    Msix(Vec<(u16, u16)>),
}

impl Mode {
    /// The pirqs in use, besides that of the line.
    pub fn pirqs(&self) -> Vec<u16> {
        match self {
            Self::Line => Vec::new(),
            Self::Msi(pirq) => vec![*pirq],
            Self::Msix(entries) => entries.iter().map(|&(_, pirq)| pirq).collect(),
        }
    }
}

/// The form of the record: `intx`, `msi 55`, `msix 0=55 1=54`.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line => f.write_str("intx"),
            Self::Msi(pirq) => write!(f, "msi {pirq}"),
            Self::Msix(entries) => {
                f.write_str("msix")?;
                entries
                    .iter()
                    .try_for_each(|(entry, pirq)| write!(f, " {entry}={pirq}"))
            }
        }
    }
}

/// A text that is no interrupt mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not an interrupt mode: expected intx, msi PIRQ or msix ENTRY=PIRQ…")]
pub struct ModeError;

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        let mut words = text.split(' ');
        let kind = words.next();
        let mode = match kind {
            Some("intx") => Self::Line,
            Some("msi") => Self::Msi(words.next().and_then(|word| word.parse().ok()).ok_or(ModeError)?),
            Some("msix") => {
                let pair = |word: &str| {
                    let (entry, pirq) = word.split_once('=').ok_or(ModeError)?;
                    Ok((
                        entry.parse().map_err(|_| ModeError)?,
                        pirq.parse().map_err(|_| ModeError)?,
                    ))
                };
                return words.map(pair).collect::<Result<_, _>>().map(Self::Msix);
            }
            _ => return Err(ModeError),
        };
        words.next().is_none().then_some(mode).ok_or(ModeError)
    }
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

    /// Turns MSI on, for one message, and returns its pirq. `note` writes the mode down before the
    /// device can send a message, so that it outlives this process.
    pub fn enable_msi(
        &mut self,
        config: &impl Config,
        xen: &impl Hypervisor,
        guest: DomId,
        note: impl FnOnce(&Mode),
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
        let pirq = xen.map_msi(guest, self.bdf, None).map_err(|error| {
            Failure::new(
                OpError::OpFailed,
                format!("Xen refused to map the message: {error}"),
            )
        })?;
        self.mode = Mode::Msi(pirq);
        note(&self.mode);
        let turned_on = silence_line(config).and_then(|()| {
            let control = config.read16(capability + MSI_CONTROL)?;
            config.write16(capability + MSI_CONTROL, control | MSI_ENABLE)
        });
        match turned_on {
            Ok(()) => Ok(pirq),
            Err(error) => {
                // The mapping is of no use then; what cannot be undone either is left to the release.
                let _ = self.disable(config, xen, guest, |_| {});
                Err(Failure::config(error))
            }
        }
    }

    /// Turns MSI-X on for all of `entries`, or for none, and returns a pirq for each. For `note`
    /// see [`Self::enable_msi`]. `decoder` is the function whose COMMAND turns decoding of memory on: this one, or the
    /// physical one of a virtual one, whose own bit reads 0 (SR-IOV 1.1, section 3.4.1.3).
    pub fn enable_msix(
        &mut self,
        config: &impl Config,
        decoder: &impl Config,
        xen: &impl Hypervisor,
        guest: DomId,
        entries: &[u16],
        note: impl FnOnce(&Mode),
    ) -> Result<Vec<u16>, Failure> {
        let table = self.msix_table(config, decoder)?;
        self.check_entries(entries, table.last_entry)?;
        let mut mapped: Vec<(u16, u16)> = Vec::with_capacity(entries.len());
        for &entry in entries {
            match xen.map_msi(guest, self.bdf, Some((entry, table.bar_start))) {
                Ok(pirq) => mapped.push((entry, pirq)),
                Err(error) => {
                    for (_, pirq) in mapped {
                        // A pirq that Xen will not take back is freed with the guest.
                        let _ = xen.unmap_pirq(guest, pirq.into());
                    }
                    let cause = format!("Xen refused to map entry {entry} of {}: {error}", entries.len());
                    return Err(Failure::new(OpError::OpFailed, cause));
                }
            }
        }
        let pirqs = mapped.iter().map(|&(_, pirq)| pirq).collect();
        self.mode = Mode::Msix(mapped);
        note(&self.mode);
        let turned_on = silence_line(config).and_then(|()| {
            let control = config.read16(table.control)?;
            config.write16(table.control, (control | MSIX_ENABLE) & !MSIX_MASK_ALL)
        });
        match turned_on {
            Ok(()) => Ok(pirqs),
            Err(error) => {
                // As with MSI.
                let _ = self.disable(config, xen, guest, |_| {});
                Err(Failure::config(error))
            }
        }
    }

    /// Turns off whichever of MSI and MSI-X is on. With neither on there is nothing to do.
    ///
    /// Every step is tried; the first failure is returned.
    pub fn disable(
        &mut self,
        config: &impl Config,
        xen: &impl Hypervisor,
        guest: DomId,
        note: impl FnOnce(&Mode),
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
            release_line(config)
        } else {
            Ok(())
        };
        note(&self.mode);
        off.and(unmapped).and(line)
    }

    /// Brings the messages back that the device has lost in a reset, for the pirqs that the guest has. The device must
    /// decode memory.
    pub fn restore(&self, config: &impl Config, xen: &impl Hypervisor) -> io::Result<()> {
        let control = match self.mode {
            Mode::Line if self.line_offered => return Ok(()),
            Mode::Line => return silence_line(config),
            Mode::Msi(_) => self.capabilities.msi.map(|at| (at + MSI_CONTROL, MSI_ENABLE, 0)),
            Mode::Msix(_) => self
                .capabilities
                .msix
                .map(|at| (at + MSIX_CONTROL, MSIX_ENABLE, MSIX_MASK_ALL)),
        };
        silence_line(config)?;
        xen.restore_messages(self.bdf)?;
        let Some((control, on, off)) = control else {
            return Ok(());
        };
        let value = config.read16(control)?;
        config.write16(control, (value | on) & !off)
    }

    fn msix_table(&self, config: &impl Config, decoder: &impl Config) -> Result<MsixTable, Failure> {
        let capability = self
            .capabilities
            .msix
            .ok_or_else(|| Failure::new(OpError::OpFailed, "the device has no MSI-X"))?;
        match self.mode {
            Mode::Line => {}
            Mode::Msi(_) => return Err(Failure::new(OpError::ENXIO, "MSI is on")),
            Mode::Msix(_) => return Err(Failure::new(OpError::EALREADY, "MSI-X is on")),
        }
        let decodes = decoder.read16(register::COMMAND).map_err(Failure::config)? & command::MEMORY != 0;
        if !decodes {
            return Err(Failure::new(OpError::ENXIO, "the device does not decode memory"));
        }
        let control = capability + MSIX_CONTROL;
        let last_entry = config.read16(control).map_err(Failure::config)? & MSIX_LAST_ENTRY;
        let table = config.read(capability + MSIX_TABLE, 4).map_err(Failure::config)?;
        let bar = self.bars.0.get((table & MSIX_TABLE_BAR) as usize);
        // The seventh range is the ROM, which holds no table.
        let bar = bar.filter(|bar| bar.size != 0 && table & MSIX_TABLE_BAR < 6);
        let bar_start = bar.map(|bar| bar.start).ok_or_else(|| {
            Failure::new(
                OpError::OpFailed,
                "the MSI-X table lies behind a base address that is not there",
            )
        })?;
        Ok(MsixTable {
            control,
            last_entry,
            bar_start,
        })
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

struct MsixTable {
    control: u16,
    last_entry: u16,
    bar_start: u64,
}

/// How many MSI-X entries a function has; 0 without MSI-X.
pub fn msix_entries(config: &[u8]) -> u16 {
    let control = control(config, Capabilities::find(config).msix, MSIX_CONTROL);
    control.map_or(0, |control| (control & MSIX_LAST_ENTRY) + 1)
}

/// True if MSI or MSI-X is on, so that the function raises no line.
pub fn sends_messages(config: &[u8]) -> bool {
    let Capabilities { msi, msix, .. } = Capabilities::find(config);
    let on = |at, offset, bit| control(config, at, offset).is_some_and(|control| control & bit != 0);
    on(msi, MSI_CONTROL, MSI_ENABLE) || on(msix, MSIX_CONTROL, MSIX_ENABLE)
}

/// The control word of a capability.
fn control(config: &[u8], capability: Option<u16>, offset: u16) -> Option<u16> {
    let at = usize::from(capability? + offset);
    Some(u16::from_le_bytes(config.get(at..at + 2)?.try_into().ok()?))
}

/// How many messages the MSI capability of a function can send; 0 without MSI.
pub fn msi_messages(config: &[u8]) -> u32 {
    let control = control(config, Capabilities::find(config).msi, MSI_CONTROL);
    // Bits 1 to 3 hold the logarithm; 6 and 7 are reserved.
    control.map_or(0, |control| 1 << (control >> 1 & 7).min(5))
}

/// Turns MSI and MSI-X off in the device.
pub fn turn_off(config: &impl Config, capabilities: &Capabilities) -> io::Result<()> {
    let msi = capabilities.msi.map(|at| (at + MSI_CONTROL, MSI_ENABLE));
    let msix = capabilities.msix.map(|at| (at + MSIX_CONTROL, MSIX_ENABLE));
    for (control, enable) in msi.into_iter().chain(msix) {
        let value = config.read16(control)?;
        if value & enable != 0 {
            config.write16(control, value & !enable)?;
        }
    }
    Ok(())
}

/// Forbids the function its INTx line.
pub fn silence_line(config: &impl Config) -> io::Result<()> {
    let value = config.read16(register::COMMAND)?;
    if value & command::INTX_DISABLE == 0 {
        config.write16(register::COMMAND, value | command::INTX_DISABLE)?;
    }
    Ok(())
}

/// Allows the function its INTx line again.
pub fn release_line(config: &impl Config) -> io::Result<()> {
    let value = config.read16(register::COMMAND)?;
    if value & command::INTX_DISABLE != 0 {
        config.write16(register::COMMAND, value & !command::INTX_DISABLE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::tests::space;
    use crate::config::tests::Model;
    use crate::xenctrl::tests::Xen;

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
    fn a_mode_is_written_down_and_read_back() {
        for (text, mode) in [
            ("intx", Mode::Line),
            ("msi 55", Mode::Msi(55)),
            ("msix 0=55 4=54", Mode::Msix(vec![(0, 55), (4, 54)])),
        ] {
            assert_eq!(mode.to_string(), text);
            assert_eq!(text.parse(), Ok(mode));
        }
        for text in [
            "",
            "msi",
            "msi x",
            "msi 1 2",
            "intx 1",
            "msix 0",
            "msix 0=x",
            "msix 70000=1",
            "MSI 1",
        ] {
            assert_eq!(text.parse::<Mode>(), Err(ModeError), "{text}");
        }
    }

    #[test]
    fn msix_maps_every_entry_then_silences_the_line_then_enables() {
        let (config, mut interrupts) = function();
        let xen = Xen::default();
        let mut noted = None;
        let pirqs = interrupts.enable_msix(&config, &config, &xen, GUEST, &[0, 4, 2], |mode| {
            noted = Some(mode.clone())
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
        assert_eq!(noted, Some(Mode::Msix(vec![(0, 55), (4, 54), (2, 53)])));
    }

    #[test]
    fn msix_is_all_or_nothing() {
        let (config, mut interrupts) = function();
        let xen = Xen::refusing_after(2);
        let failure = interrupts.enable_msix(&config, &config, &xen, GUEST, &[0, 1, 2], |_| {
            panic!("nothing is on")
        });
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
                .enable_msix(&config, &config, &xen, GUEST, entries, |_| {})
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
            .enable_msix(&config, &config, &xen, GUEST, &[0], |_| {})
            .unwrap_err();
        assert_eq!(failure.error, OpError::ENXIO);
        config.set16(COMMAND, 7);
        for bar in [4, 6, 7] {
            config.set16(MSIX + 4, bar);
            let failure = interrupts
                .enable_msix(&config, &config, &xen, GUEST, &[0], |_| {})
                .unwrap_err();
            assert_eq!(failure.error, OpError::OpFailed, "{bar}");
        }
        assert!(xen.calls().is_empty());
    }

    #[test]
    fn msix_of_a_virtual_function_needs_the_decode_bit_of_its_physical_one() {
        let (config, mut interrupts) = function();
        config.set16(COMMAND, 0);
        let physical = Model::new(vec![0; 64]);
        let xen = Xen::default();
        let mut enable = || interrupts.enable_msix(&config, &physical, &xen, GUEST, &[0], |_| {});
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
            .enable_msix(&config, &config, &xen, GUEST, &[0], |_| {})
            .unwrap_err()
            .error;
        assert_eq!((msi, msix), (OpError::EALREADY, OpError::ENXIO));
        interrupts.disable(&config, &xen, GUEST, |_| {}).unwrap();
        interrupts
            .enable_msix(&config, &config, &xen, GUEST, &[0], |_| {})
            .unwrap();
        let msi = interrupts
            .enable_msi(&config, &xen, GUEST, |_| {})
            .unwrap_err()
            .error;
        let msix = interrupts
            .enable_msix(&config, &config, &xen, GUEST, &[0], |_| {})
            .unwrap_err()
            .error;
        assert_eq!((msi, msix), (OpError::ENXIO, OpError::EALREADY));
    }

    #[test]
    fn disabling_turns_the_device_off_first_and_gives_the_line_back() {
        let (config, mut interrupts) = function();
        let xen = Xen::default();
        interrupts
            .enable_msix(&config, &config, &xen, GUEST, &[0, 1], |_| {})
            .unwrap();
        config.writes.borrow_mut().clear();
        interrupts
            .disable(&config, &xen, GUEST, |mode| assert_eq!(*mode, Mode::Line))
            .unwrap();
        assert_eq!(
            *config.writes.borrow(),
            [(MSIX + 2, 2, 0x0004), (COMMAND, 2, 0x0007)]
        );
        assert_eq!(xen.calls()[2..], ["unmap 3 55", "unmap 3 54"]);
    }

    #[test]
    fn messages_that_were_lost_in_a_reset_come_back_for_the_same_pirqs() {
        for (msix, control, value) in [(true, MSIX + 2, 0x8004), (false, MSI + 2, 0x0001)] {
            let (config, mut interrupts) = function();
            let xen = Xen::default();
            if msix {
                interrupts
                    .enable_msix(&config, &config, &xen, GUEST, &[0, 4], |_| {})
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
