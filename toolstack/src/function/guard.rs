//! Judgement 2: which configuration writes of a stub reach a device.
//!
//! The stub filters its guest's requests, but the guest may have taken the stub over. So dom0 judges every write
//! again, by one rule per register. A register that is not in the table, or that is written in another width, is
//! refused. The rules allow what xen-pciback's conf_space tables let through to hardware.
//!
//! The record of the device may widen that. A quirk is one more rule, for some bits of a register that has none. A
//! permissive device may be written wherever there is no rule and nothing belongs to dom0 or Xen.

use crate::config_space::bytes::u32_at;
use crate::config_space::capabilities::Capabilities;
use crate::config_space::header;
use crate::function::rule::{Denial, Rule};
use crate::terms::Terms;
use pci::registers::{power, register};
use std::ops::Range;
use xenbus::device::Quirk;

/// Registers without a rule that stay dom0's, whatever the record says: ids, latency timer, interrupt line and pin. A
/// bridge's buses and windows stay dom0's too.
const KEPT: [Range<u16>; 3] = [0x00..0x04, 0x0d..0x0e, 0x3c..0x3e];

/// PCI Express: device control and that of version 2, and the bits of them that can be a guest's. The others stay dom0's:
/// error reporting, payload size, and whatever the bridges above have to agree to; and the function level reset, which
/// takes base addresses and MSI-X from under Xen.
const DEVICE_CONTROL: (u16, u32) = (0x08, 0x7b10);
const DEVICE_CONTROL_2: (u16, u32) = (0x28, 0x031f);

/// Bytes that the capabilities of power management and of product data take. What of them has no rule is kept.
const POWER_LENGTH: u16 = 8;
const VPD_LENGTH: u16 = 8;

/// The rules for one function.
#[derive(Clone, Debug)]
pub struct Guard {
    rules: Vec<(u16, u8, Rule)>,
    kept: Vec<Range<u16>>,
    /// Words of which some bits can be a guest's.
    partly: Vec<(u16, u32)>,
    interrupts: Vec<Range<u16>>,
    power: Option<u16>,
    permissive: bool,
    unfit: Vec<Quirk>,
}

impl Guard {
    /// Makes the rules for a function from its header as it was recorded at the attach, from where its capabilities
    /// lie, and from the terms on which the guest has it. Registers beyond a header shorter than 64 bytes get no rule.
    pub fn new(recorded: &[u8], capabilities: &Capabilities, terms: &Terms) -> Self {
        let mut rules = vec![
            (register::COMMAND, 2, Rule::Command),
            (register::CACHE_LINE, 1, Rule::Any),
            (register::BIST, 1, Rule::SelfTest),
        ];
        for &offset in header::addresses(recorded) {
            if let Some(address) = u32_at(recorded, offset.into()) {
                // A device may lose its addresses in a reset. The guest's driver may write them back, and no others:
                // those would be another device's memory.
                rules.push((offset, 4, Rule::Exactly(address)));
            }
        }
        let windows = header::windows(recorded).iter();
        let windows = windows.map(|&(offset, width)| offset..offset + u16::from(width));
        let mut kept: Vec<_> = KEPT.into_iter().chain(windows).collect();
        if let Some(power) = capabilities.power {
            rules.push((power + power::CONTROL, 2, Rule::Power));
            kept.push(power..power + POWER_LENGTH);
        }
        if let Some(vpd) = capabilities.vpd {
            rules.push((vpd + 2, 2, Rule::VpdAddress));
            kept.push(vpd..vpd + VPD_LENGTH);
        }
        kept.extend(capabilities.kept.iter().cloned());
        let partly = capabilities.express.map(|at| {
            let second = capabilities.express_2.then_some(DEVICE_CONTROL_2);
            let words = [Some(DEVICE_CONTROL), second].into_iter().flatten();
            words.map(move |(offset, bits)| (at + offset, bits))
        });
        let mut guard = Self {
            rules,
            kept,
            partly: partly.into_iter().flatten().collect(),
            interrupts: capabilities.interrupts.clone(),
            power: capabilities.power,
            permissive: terms.permissive,
            unfit: Vec::new(),
        };
        // Quirks come last: they give nothing where there is a rule, or what belongs to dom0 or Xen.
        for &quirk in terms.quirks.as_slice() {
            let (offset, width) = (quirk.offset(), quirk.width());
            if guard.is_free(&span(offset, width), quirk.mask()) {
                guard.rules.push((offset, width, Rule::Bits(quirk.mask())));
            } else {
                guard.unfit.push(quirk);
            }
        }
        guard
    }

    /// Where the power management control register lies, if there is one.
    pub fn pmcsr(&self) -> Option<u16> {
        self.power.map(|at| at + power::CONTROL)
    }

    /// The quirks without effect: their registers have rules, or are dom0's or Xen's.
    pub fn unfit_quirks(&self) -> &[Quirk] {
        &self.unfit
    }

    /// The words of which a permissive guest may change some bits only, each with these bits.
    pub fn partly_free(&self) -> &[(u16, u32)] {
        if self.permissive { &self.partly } else { &[] }
    }

    /// The rule for a write of `width` bytes at `offset`.
    pub fn rule(&self, offset: u16, width: u8) -> Result<Rule, Denial> {
        let written = span(offset, width);
        // These come before all rules: no term of the record gives them away.
        if overlaps_any(&written, &self.interrupts) {
            return Err(Denial::Interrupts);
        }
        let listed = |(at, wide, _): &&(u16, u8, Rule)| (*at, *wide) == (offset, width);
        match self.rules.iter().find(listed) {
            Some((_, _, Rule::Bits(bits))) if self.permissive => {
                // Whoever is permissive has at least the bits that it would have without the quirk.
                let partly = self.part_of(offset, width).unwrap_or_default();
                Ok(Rule::Bits(bits | partly))
            }
            Some((_, _, rule)) => Ok(*rule),
            None if !self.permissive => Err(Denial::Unlisted),
            None => match self.part_of(offset, width) {
                Some(bits) => Ok(Rule::Bits(bits)),
                None if self.is_free(&written, u32::MAX) => Ok(Rule::Any),
                None => Err(Denial::Unlisted),
            },
        }
    }

    /// The bits that can be a guest's, if this is a word that has others.
    fn part_of(&self, offset: u16, width: u8) -> Option<u32> {
        let mut words = self.partly.iter().filter(|&&(at, _)| (at, 2) == (offset, width));
        words.next().map(|&(_, bits)| bits)
    }

    /// True if these bits of a register have no rule, and are neither kept nor Xen's.
    fn is_free(&self, register: &Range<u16>, bits: u32) -> bool {
        let ruled = |(at, wide, _): &(u16, u8, Rule)| overlap(register, &span(*at, *wide));
        // The word and the register, moved to where the lower of them begins.
        let dom0s = |&(at, free): &(u16, u32)| {
            let start = at.min(register.start);
            let moved = |bits: u32, from: u16| u64::from(bits) << (8 * (from - start).min(32));
            overlap(register, &span(at, 2)) && moved(bits, register.start) & moved(!free & 0xffff, at) != 0
        };
        !self.rules.iter().any(ruled)
            && !self.partly.iter().any(dom0s)
            && !overlaps_any(register, &self.kept)
            && !overlaps_any(register, &self.interrupts)
    }
}

fn span(offset: u16, width: u8) -> Range<u16> {
    offset..offset.saturating_add(width.into())
}

fn overlap(one: &Range<u16>, other: &Range<u16>) -> bool {
    one.start < other.end && other.start < one.end
}

fn overlaps_any(one: &Range<u16>, others: &[Range<u16>]) -> bool {
    others.iter().any(|other| overlap(one, other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_space::capabilities::tests::{extended, space};

    const POWER: u16 = 0xc8;
    const MSI: u16 = 0xd0;
    const MSIX: u16 = 0xa0;
    const VPD: u16 = 0x60;

    impl Guard {
        fn judge(&self, offset: u16, width: u8, value: u32, current: u32) -> Result<(), Denial> {
            self.rule(offset, width)?.judge(value, current)
        }
    }

    fn guard() -> Guard {
        with(Terms::default())
    }

    fn with(terms: Terms) -> Guard {
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
        Guard::new(&config[..64], &Capabilities::find(&config), &terms)
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
            assert_eq!(guard.judge(0x10, 4, value, 0xfebc_0000), Err(Denial::BaseAddress));
        }
        assert_eq!(guard.judge(0x10, 2, 0, 0), Err(Denial::Unlisted));
        assert_eq!(guard.judge(0x12, 2, 0xfebc, 0), Err(Denial::Unlisted));
    }

    #[test]
    fn no_write_touches_an_interrupt_capability() {
        let guard = guard();
        let capabilities = [(MSI, 14), (MSIX, 12)];
        for (start, length) in capabilities {
            for width in [1, 2, 4] {
                for offset in (start + 1 - u16::from(width))..start + length {
                    let verdict = guard.judge(offset, width, 0, 0);
                    assert_eq!(verdict, Err(Denial::Interrupts), "{offset:#x} {width}");
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
        assert_eq!(guard.judge(POWER + 4, 2, 0x0100, 0), Err(Denial::Power));
        assert_eq!(guard.judge(POWER + 4, 2, 0x0000, 0x0100), Err(Denial::Power));
        assert_eq!(guard.judge(POWER + 2, 2, 0, 0), Err(Denial::Unlisted));
    }

    #[test]
    fn product_data_may_be_read_only() {
        let guard = guard();
        assert_eq!(guard.judge(VPD + 2, 2, 0x0010, 0), Ok(()));
        assert_eq!(guard.judge(VPD + 2, 2, 0x8010, 0), Err(Denial::VpdWrite));
        assert_eq!(guard.judge(VPD + 4, 4, 0, 0), Err(Denial::Unlisted));
    }

    #[test]
    fn the_self_test_may_be_started() {
        let guard = guard();
        assert_eq!(guard.judge(0xf, 1, 0xc0, 0x80), Ok(()));
        assert_eq!(guard.judge(0xf, 1, 0x40, 0x8f), Ok(()));
        assert_eq!(guard.judge(0xf, 1, 0x01, 0x80), Err(Denial::SelfTest));
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
        let guard = Guard::new(&[], &Capabilities::default(), &Terms::default());
        assert_eq!(guard.pmcsr(), None);
        assert_eq!(guard.judge(4, 2, 3, 3), Ok(()));
        assert_eq!(guard.judge(0x10, 4, 0, 0), Err(Denial::Unlisted));
    }

    /// The registers, in each width, that any value may be written to, where the usual guard allows none.
    fn gained(guard: &Guard) -> Vec<(u16, u8)> {
        let usual = self::guard();
        let mut gained = Vec::new();
        for width in [1, 2, 4] {
            for offset in (0..4096).step_by(width.into()) {
                if guard.rule(offset, width) != usual.rule(offset, width) {
                    assert_eq!(usual.rule(offset, width), Err(Denial::Unlisted));
                    gained.push((offset, width));
                }
            }
        }
        gained
    }

    #[test]
    fn a_permissive_device_may_be_written_wherever_no_rule_is_and_nothing_is_dom0s_or_xens() {
        let guard = with(Terms {
            permissive: true,
            ..Terms::default()
        });
        let taken = [
            // Ids, COMMAND; cache line, latency; BIST and BARs; ROM; interrupt line and pin.
            0x00..0x06,
            0x0c..0x0e,
            0x0f..0x28,
            0x30..0x34,
            0x3c..0x3e,
            VPD..VPD + 8,
            MSIX..MSIX + 12,
            POWER..POWER + 8,
            MSI..MSI + 14,
        ];
        let gained = gained(&guard);
        for width in [1, 2, 4] {
            for offset in (0..4096).step_by(width.into()) {
                let free = !overlaps_any(&span(offset, width), &taken);
                assert_eq!(gained.contains(&(offset, width)), free, "{offset:#x} {width}");
            }
        }
        assert_eq!(guard.rule(0x44, 4), Ok(Rule::Any));
    }

    #[test]
    fn to_which_addresses_a_permissive_device_answers_stays_dom0s() {
        let config = extended(&[(0x100, 0x0015), (0x140, 0x0010), (0x180, 0x0024)]);
        let terms = Terms {
            permissive: true,
            quirks: "148:2:1;1f0:1:1".parse().unwrap(),
            ..Terms::default()
        };
        let guard = Guard::new(&config, &Capabilities::find(&config), &terms);
        for (offset, free) in [
            (0xfc, true),
            (0x130, false),
            (0x134, true),
            (0x140, false),
            (0x17c, false),
            (0x1b4, true),
        ] {
            assert_eq!(guard.rule(offset, 4).is_ok(), free, "{offset:#x}");
        }
        assert_eq!(
            guard.unfit_quirks().len(),
            1,
            "the one on making virtual functions"
        );
    }

    #[test]
    fn what_dom0_needs_stays_dom0s_in_each_capability() {
        // From the PCI Express Base Specification 6.0, chapter 7: the bytes that each takes at least.
        let usual = [(0x13, 6), (0x14, 8), (0x15, 0x24), (0x08, 0x1c)].map(|(id, length)| (0x40, id, length));
        let more = [
            (0x0001, 0x38),
            (0x000d, 0x08),
            (0x000e, 0x08),
            (0x000f, 0x08),
            (0x0010, 0x40),
            (0x0012, 0x30),
            (0x0013, 0x10),
            (0x0015, 0x34),
            (0x0018, 0x08),
            (0x001b, 0x08),
            (0x001d, 0x10),
            (0x001e, 0x10),
            (0x0024, 0x34),
        ];
        for (base, id, length) in usual
            .into_iter()
            .chain(more.map(|(id, length)| (0x100, id, length)))
        {
            let config = if base == 0x40 {
                space(&[(0x40, id as u8)])
            } else {
                extended(&[(0x100, id)])
            };
            for offset in base..base + length {
                let terms = Terms {
                    permissive: true,
                    quirks: format!("{offset:x}:1:1").parse().unwrap(),
                    ..Terms::default()
                };
                let guard = Guard::new(&config[..64], &Capabilities::find(&config), &terms);
                assert_eq!(
                    guard.rule(offset, 1),
                    Err(Denial::Unlisted),
                    "{id:#x}: {offset:#x}"
                );
                assert_eq!(guard.unfit_quirks().len(), 1, "{id:#x}: {offset:#x}");
                let beyond = (base + 0x60, 4);
                assert_eq!(guard.rule(beyond.0, beyond.1), Ok(Rule::Any), "{id:#x}");
            }
        }
    }

    #[test]
    fn of_device_control_some_bits_are_a_permissive_guests_and_none_resets_the_device() {
        const EXPRESS: u16 = 0x60;
        let guard = |version: u8, permissive, quirks: &str| {
            let mut config = space(&[(EXPRESS as u8, 0x10)]);
            config[usize::from(EXPRESS) + 2] = version;
            let terms = Terms {
                permissive,
                quirks: quirks.parse().unwrap(),
                ..Terms::default()
            };
            Guard::new(&config[..64], &Capabilities::find(&config), &terms)
        };
        let (control, second) = (EXPRESS + 8, EXPRESS + 0x28);
        for (version, at, bits) in [(1, control, 0x7b10), (2, control, 0x7b10), (2, second, 0x031f)] {
            let permissive = guard(version, true, "");
            assert_eq!(permissive.rule(at, 2), Ok(Rule::Bits(bits)));
            for (offset, width) in [(at, 1), (at + 1, 1), (at, 4)] {
                assert_eq!(permissive.rule(offset, width), Err(Denial::Unlisted));
            }
            assert_eq!(permissive.rule(at + 2, 2), Ok(Rule::Any));
            assert_eq!(permissive.rule(at - 2, 2), Ok(Rule::Any));
            assert_eq!(guard(version, false, "").rule(at, 2), Err(Denial::Unlisted));
            assert_eq!(guard(version, false, "").partly_free(), []);
            for bit in 0..16 {
                for (offset, width, mask) in [
                    (at, 2, 1_u32 << bit),
                    (at, 4, 1 << bit | 0xffff_0000),
                    (at + bit / 8, 1, 1 << (bit % 8)),
                ] {
                    let quirk = format!("{offset:x}:{width}:{mask:x}");
                    let fits = guard(version, false, &quirk).unfit_quirks().is_empty();
                    assert_eq!(fits, bits >> bit & 1 != 0, "{quirk}");
                }
            }
        }
        assert_eq!(guard(1, true, "").rule(second, 2), Ok(Rule::Any), "not there");
        // A quirk adds nothing to what a permissive guest may, and takes nothing away.
        let both = guard(2, true, &format!("{control:x}:2:7000"));
        assert_eq!(both.rule(control, 2), Ok(Rule::Bits(0x7b10)));
        assert_eq!(both.partly_free(), [(control, 0x7b10), (second, 0x031f)]);
    }

    #[test]
    fn a_permissive_bridge_keeps_its_bus_numbers_and_windows() {
        let mut header = [0; 64];
        header[0x0e] = 0x81;
        header[0x38] = 0x01;
        let terms = Terms {
            permissive: true,
            ..Terms::default()
        };
        let guard = Guard::new(&header, &Capabilities::default(), &terms);
        let free: Vec<u16> = (0..64).filter(|&at| guard.rule(at, 1) == Ok(Rule::Any)).collect();
        // Status, revision and class, (cache line), header type, secondary status, capabilities pointer.
        assert_eq!(
            free,
            [6, 7, 8, 9, 0xa, 0xb, 0xc, 0xe, 0x1e, 0x1f, 0x34, 0x35, 0x36, 0x37]
        );
        assert_eq!(guard.rule(0x38, 4), Ok(Rule::Exactly(1)));
    }

    #[test]
    fn of_a_register_with_a_quirk_the_bits_of_the_mask_may_change_in_that_width() {
        for permissive in [false, true] {
            let guard = with(Terms {
                permissive,
                quirks: "44:2:ff0".parse().unwrap(),
                ..Terms::default()
            });
            for bit in 0..16 {
                let changed = guard.judge(0x44, 2, 0x1234 ^ 1 << bit, 0x1234);
                assert_eq!(changed.is_ok(), (4..12).contains(&bit), "{bit}");
            }
            assert_eq!(guard.judge(0x44, 2, 0xffff, 0), Err(Denial::Quirk));
            for (offset, width) in [(0x44, 1), (0x45, 1), (0x44, 4)] {
                assert_eq!(
                    guard.rule(offset, width),
                    Err(Denial::Unlisted),
                    "{offset:#x} {width}"
                );
            }
        }
        let quirky = with(Terms {
            quirks: "44:2:ff0;ffc:4:1".parse().unwrap(),
            ..Terms::default()
        });
        assert_eq!(gained(&quirky), [(0x44, 2), (0xffc, 4)]);
    }

    #[test]
    fn a_quirk_gives_nothing_that_has_a_rule_or_is_dom0s_or_xens() {
        let unfit = "4:2:400;8:4:1;10:2:ffff;30:1:1;3c:1:ff;60:2:1;64:4:1;a2:2:8000;cc:2:100;d4:4:1";
        let guard = with(Terms {
            quirks: unfit.parse().unwrap(),
            ..Terms::default()
        });
        let refused: Vec<String> = guard.unfit_quirks().iter().map(Quirk::to_string).collect();
        let free = "8:4:1";
        assert_eq!(
            refused,
            unfit
                .split(';')
                .filter(|quirk| *quirk != free)
                .collect::<Vec<_>>()
        );
        assert_eq!(gained(&guard), [(8, 4)]);
    }
}
