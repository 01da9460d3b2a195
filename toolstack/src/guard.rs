//! The second wall: which configuration writes of a stub reach a device.
//!
//! The stub filters what its guest asks for; the guest may have taken the stub over. So dom0 judges
//! every write again, by a rule per register and nothing else: a register that is not in the table,
//! or is written in another width, is refused. The rules are those of xen-pciback's conf_space
//! tables, seen from below: what its policy lets through to hardware.

use crate::capabilities::{Capabilities, MSIX_LENGTH};
use crate::config::{command, register};
use thiserror::Error;

/// COMMAND bits that belong to the guest: bus master, special cycles, memory write and invalidate,
/// VGA palette snoop, stepping, fast back-to-back.
const COMMAND_GUEST: u32 = 0x02bc;
const COMMAND_DECODE: u32 = (command::IO | command::MEMORY) as u32;
/// PMCSR: power state, data select and PME status. PME enable stays dom0's.
const PMCSR_GUEST: u32 = 0x9e03;
const BIST_START: u32 = 0x40;
const VPD_WRITE: u32 = 0x8000;

/// Why a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Refusal {
    /// No rule for this register in this width.
    #[error("no write of this width is allowed here")]
    Unlisted,
    /// The register holds message addresses, data or enable bits, which are Xen's.
    #[error("MSI and MSI-X registers belong to Xen")]
    Interrupts,
    /// A base address other than the recorded one.
    #[error("a base address may only be written back as it was")]
    BaseAddress,
    /// Turns off decoding, or changes a bit that is dom0's.
    #[error("the command register's decode bits stay on, and only bits 0x02bc may change")]
    Command,
    /// Changes a power management bit that is dom0's.
    #[error("only the power state and bits 0x9e00 may change")]
    Power,
    /// Would write to the device's product data.
    #[error("product data may not be written")]
    VpdWrite,
    /// Self test with other bits changed.
    #[error("only the start bit of the self test may change")]
    SelfTest,
}

/// What may be written to one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Anything.
    Any,
    /// The command register.
    Command,
    /// The self test register.
    SelfTest,
    /// This value only.
    Exactly(u32),
    /// The power management control register.
    Power,
    /// The address register of the product data.
    VpdAddress,
}

impl Rule {
    /// True if the verdict depends on what the register holds now.
    pub fn needs_current(self) -> bool {
        matches!(self, Self::Command | Self::SelfTest | Self::Power)
    }

    /// Judges the writing of `value`, where the register now reads `current`.
    pub fn judge(self, value: u32, current: u32) -> Result<(), Refusal> {
        let changed = value ^ current;
        let (allowed, refusal) = match self {
            Self::Any => return Ok(()),
            Self::Command => {
                let turned_on = changed & value & COMMAND_DECODE;
                (changed & !COMMAND_GUEST & !turned_on == 0, Refusal::Command)
            }
            Self::SelfTest => (
                changed & !BIST_START == 0 || value == BIST_START,
                Refusal::SelfTest,
            ),
            Self::Exactly(recorded) => (value == recorded, Refusal::BaseAddress),
            Self::Power => (changed & !PMCSR_GUEST == 0, Refusal::Power),
            Self::VpdAddress => (value & VPD_WRITE == 0, Refusal::VpdWrite),
        };
        if allowed { Ok(()) } else { Err(refusal) }
    }
}

/// The rules for one function.
#[derive(Clone, Debug)]
pub struct Guard {
    rules: Vec<(u16, u8, Rule)>,
    interrupts: Vec<std::ops::Range<u16>>,
    power: Option<u16>,
}

impl Guard {
    /// Makes the rules for a function from its header as it was recorded at the attach, and from
    /// where its capabilities lie. Registers beyond a header shorter than 64 bytes get no rule.
    pub fn new(header: &[u8], capabilities: &Capabilities) -> Self {
        let mut rules = vec![
            (register::COMMAND, 2, Rule::Command),
            (register::CACHE_LINE, 1, Rule::Any),
            (register::BIST, 1, Rule::SelfTest),
        ];
        let addresses = (0..6).map(|n| register::BAR + 4 * n).chain([register::ROM]);
        for offset in addresses {
            let at = usize::from(offset);
            if let Some(raw) = header.get(at..at + 4).and_then(|raw| raw.try_into().ok()) {
                rules.push((offset, 4, Rule::Exactly(u32::from_le_bytes(raw))));
            }
        }
        if let Some(power) = capabilities.power {
            rules.push((power + 4, 2, Rule::Power));
        }
        if let Some(vpd) = capabilities.vpd {
            rules.push((vpd + 2, 2, Rule::VpdAddress));
        }
        let msi = capabilities.msi.map(|at| at..at + capabilities.msi_length);
        let msix = capabilities.msix.map(|at| at..at + MSIX_LENGTH);
        Self {
            rules,
            interrupts: msi.into_iter().chain(msix).collect(),
            power: capabilities.power,
        }
    }

    /// Where the power management control register lies, if there is one.
    pub fn pmcsr(&self) -> Option<u16> {
        self.power.map(|at| at + 4)
    }

    /// The rule for a write of `width` bytes at `offset`.
    pub fn rule(&self, offset: u16, width: u8) -> Result<Rule, Refusal> {
        let end = offset.saturating_add(width.into());
        if self
            .interrupts
            .iter()
            .any(|range| offset < range.end && range.start < end)
        {
            return Err(Refusal::Interrupts);
        }
        let listed = |(at, wide, _): &&(u16, u8, Rule)| (*at, *wide) == (offset, width);
        let (_, _, rule) = self.rules.iter().find(listed).ok_or(Refusal::Unlisted)?;
        Ok(*rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::tests::space;

    const POWER: u16 = 0xc8;
    const MSI: u16 = 0xd0;
    const MSIX: u16 = 0xa0;
    const VPD: u16 = 0x60;

    impl Guard {
        fn judge(&self, offset: u16, width: u8, value: u32, current: u32) -> Result<(), Refusal> {
            self.rule(offset, width)?.judge(value, current)
        }
    }

    fn guard() -> Guard {
        let list = [
            (POWER as u8, 1),
            (MSI as u8, 5),
            (MSIX as u8, 0x11),
            (VPD as u8, 3),
        ];
        let mut config = space(&list);
        config[0x10..0x14].copy_from_slice(&0xfebc_0000_u32.to_le_bytes());
        config[usize::from(MSI) + 2] = 0x80;
        config[0x30..0x34].copy_from_slice(&0xfeb8_0000_u32.to_le_bytes());
        Guard::new(&config[..64], &Capabilities::find(&config))
    }

    #[test]
    fn the_guests_command_bits_may_change_and_decode_may_be_turned_on() {
        let guard = guard();
        for (value, current) in [
            (0x0007, 0x0003),
            (0x0003, 0x0007),
            (0x02bf, 0x0003),
            (0x0003, 0),
            (0x407, 0x403),
        ] {
            assert_eq!(
                guard.judge(4, 2, value, current),
                Ok(()),
                "{current:#x} to {value:#x}"
            );
        }
    }

    #[test]
    fn decode_is_never_turned_off_and_dom0s_command_bits_never_change() {
        let guard = guard();
        for bit in 0..16 {
            let bit = 1 << bit;
            let off = guard.judge(4, 2, 0xffff & !bit, 0xffff).is_ok();
            assert_eq!(off, bit & 0x02bc != 0, "turning off {bit:#x}");
            let on = guard.judge(4, 2, bit, 0).is_ok();
            assert_eq!(on, bit & 0x02bf != 0, "turning on {bit:#x}");
        }
    }

    #[test]
    fn a_base_address_may_only_be_restored() {
        let guard = guard();
        assert_eq!(guard.judge(0x10, 4, 0xfebc_0000, 0), Ok(()));
        assert_eq!(guard.judge(0x30, 4, 0xfeb8_0000, 0), Ok(()));
        for value in [0, 0xffff_ffff, 0xfebc_0001, 0xfebd_0000] {
            assert_eq!(
                guard.judge(0x10, 4, value, 0xfebc_0000),
                Err(Refusal::BaseAddress)
            );
        }
        assert_eq!(guard.judge(0x10, 2, 0, 0), Err(Refusal::Unlisted));
        assert_eq!(guard.judge(0x12, 2, 0xfebc, 0), Err(Refusal::Unlisted));
    }

    #[test]
    fn no_write_touches_an_interrupt_capability() {
        let guard = guard();
        let capabilities = [(MSI, 14), (MSIX, MSIX_LENGTH)];
        for (start, length) in capabilities {
            for width in [1, 2, 4] {
                for offset in (start + 1 - u16::from(width))..start + length {
                    let verdict = guard.judge(offset, width, 0, 0);
                    assert_eq!(verdict, Err(Refusal::Interrupts), "{offset:#x} {width}");
                }
            }
        }
    }

    #[test]
    fn the_power_state_may_change_and_pme_may_not_be_enabled() {
        let guard = guard();
        assert_eq!(guard.pmcsr(), Some(POWER + 4));
        assert_eq!(guard.judge(POWER + 4, 2, 0x0003, 0), Ok(()));
        assert_eq!(guard.judge(POWER + 4, 2, 0x9e00, 0x0003), Ok(()));
        assert_eq!(guard.judge(POWER + 4, 2, 0x0100, 0), Err(Refusal::Power));
        assert_eq!(guard.judge(POWER + 4, 2, 0x0000, 0x0100), Err(Refusal::Power));
        assert_eq!(guard.judge(POWER + 2, 2, 0, 0), Err(Refusal::Unlisted));
    }

    #[test]
    fn product_data_may_be_read_only() {
        let guard = guard();
        assert_eq!(guard.judge(VPD + 2, 2, 0x0010, 0), Ok(()));
        assert_eq!(guard.judge(VPD + 2, 2, 0x8010, 0), Err(Refusal::VpdWrite));
        assert_eq!(guard.judge(VPD + 4, 4, 0, 0), Err(Refusal::Unlisted));
    }

    #[test]
    fn the_self_test_may_be_started() {
        let guard = guard();
        assert_eq!(guard.judge(0xf, 1, 0xc0, 0x80), Ok(()));
        assert_eq!(guard.judge(0xf, 1, 0x40, 0x8f), Ok(()));
        assert_eq!(guard.judge(0xf, 1, 0x01, 0x80), Err(Refusal::SelfTest));
    }

    #[test]
    fn everything_else_is_refused() {
        let guard = guard();
        let mut allowed = Vec::new();
        for width in [1, 2, 4] {
            for offset in 0..4096 {
                // Nothing changes, so only the table decides.
                let current = match (offset, width) {
                    (0x10, 4) => 0xfebc_0000,
                    (0x30, 4) => 0xfeb8_0000,
                    _ => 0,
                };
                if guard.judge(offset, width, current, current).is_ok() {
                    allowed.push((offset, width));
                }
            }
        }
        allowed.sort_unstable();
        let bars = (0..6).map(|n| (0x10 + 4 * n, 4));
        let mut expected: Vec<_> = bars
            .chain([(4, 2), (0xc, 1), (0xf, 1), (0x30, 4), (0x62, 2), (0xcc, 2)])
            .collect();
        expected.sort_unstable();
        assert_eq!(allowed, expected);
    }

    #[test]
    fn a_function_without_capabilities_has_header_rules_only() {
        let guard = Guard::new(&[], &Capabilities::default());
        assert_eq!(guard.pmcsr(), None);
        assert_eq!(guard.judge(4, 2, 3, 3), Ok(()));
        assert_eq!(guard.judge(0x10, 4, 0, 0), Err(Refusal::Unlisted));
    }
}
