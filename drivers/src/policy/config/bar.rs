//! Base address registers as a guest sees them.
//!
//! A guest learns the size of a BAR by writing all-ones and reading back. Neither reaches the device, which would answer
//! at a wrong address meanwhile: the answers come from the regions that the toolstack lists.

use super::register::BarIndex;
use pci::registers::command;
use xenbus::device;

/// Index of the expansion ROM's register.
pub const ROM: BarIndex = 6;

/// Words of [`Bars::words`].
pub const BAR_WORDS: usize = 3 * device::BAR_COUNT + 1;

/// BAR: the region is in I/O space.
const IO: u8 = 0x1;
/// BAR: the bits that tell the width of a memory region.
const WIDTH: u8 = 0x6;
/// BAR: a memory region with a 64-bit address, which takes up two registers.
const WIDTH_64: u8 = 0x4;

const fn is_io(bar: device::Bar) -> bool {
    bar.flags & IO != 0
}

const fn is_wide(bar: device::Bar) -> bool {
    bar.flags & (IO | WIDTH) == WIDTH_64
}

/// One register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bar {
    /// What the guest reads, and the only value that is ever written to the device.
    value: u32,
    /// What the guest reads while it probes the size.
    size: u32,
    /// The bits that a probe may leave at 0.
    ignored: u32,
    /// The value may be restored in a device that lost it.
    restorable: bool,
    probing: bool,
}

impl Bar {
    fn of(region: device::Bar, rom: bool) -> Self {
        let ignored = match (rom, is_io(region)) {
            (true, _) => 0x7ff,
            (false, true) => 0x3,
            (false, false) => 0xf,
        };
        // The flags of the register: the ROM's enable bit, or type and prefetchable of a BAR.
        let flags = u32::from(region.flags) & if rom { 1 } else { ignored };
        Self {
            value: region.start as u32 | flags,
            // All-ones, with a 0 for each bit that an address of this size cannot have.
            size: region.size.wrapping_neg() as u32 | flags,
            ignored,
            // A guest cannot enable the ROM, so it matters to nobody where it would be.
            restorable: !rom,
            probing: false,
        }
    }

    fn upper_half(lower: device::Bar) -> Self {
        Self {
            value: (lower.start >> 32) as u32,
            size: (lower.size.wrapping_neg() >> 32) as u32,
            ignored: 0,
            restorable: true,
            probing: false,
        }
    }
}

/// What a write to a BAR asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarWrite {
    /// Nothing that concerns the device.
    Absorbed,
    /// Put this value, the recorded one, back into the device.
    Restore(u32),
}

/// All BARs of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bars {
    bars: [Bar; device::BAR_COUNT],
    /// COMMAND bits of the spaces that a BAR exists for.
    decodable: u16,
}

impl Bars {
    /// Registers for the regions that the toolstack lists.
    ///
    /// The entry after a 64-bit BAR's stands for the upper half of its address, and is not looked at.
    /// `None` if a region is no power of two, or not aligned to its size: no register can hold it.
    pub fn new(regions: &device::Bars) -> Option<Self> {
        let mut bars = [Bar::default(); device::BAR_COUNT];
        let mut decodable = 0;
        let mut upper_half = None;
        for (index, (bar, &region)) in bars.iter_mut().zip(&regions.0).enumerate() {
            let rom = index == usize::from(ROM);
            if let Some(lower) = upper_half.take() {
                *bar = Bar::upper_half(lower);
            } else if region.size != 0 {
                // A register shows a size by the low bits that an address of that size cannot have.
                if !region.size.is_power_of_two() || region.start & (region.size - 1) != 0 {
                    return None;
                }
                *bar = Bar::of(region, rom);
                if !rom {
                    decodable |= if is_io(region) {
                        command::IO
                    } else {
                        command::MEMORY
                    };
                    // The last BAR has no register after it to be the upper half.
                    upper_half = (is_wide(region) && index < 5).then_some(region);
                }
            }
        }
        Some(Self { bars, decodable })
    }

    /// Those of an SR-IOV virtual function: they answer as the others do, but its registers hold no address, and its
    /// decode is that of its physical function.
    pub fn of_virtual_function(mut self) -> Self {
        for bar in &mut self.bars {
            bar.restorable = false;
        }
        Self { decodable: 0, ..self }
    }

    /// All of it but the probes, in words; the last one holds what has no word of its own.
    pub fn words(&self) -> [u32; BAR_WORDS] {
        let mut words = [0; BAR_WORDS];
        let (parts, rest) = words.split_at_mut(BAR_WORDS - 1);
        rest[0] = self.decodable.into();
        for (index, (bar, part)) in self.bars.iter().zip(parts.chunks_exact_mut(3)).enumerate() {
            part.copy_from_slice(&[bar.value, bar.size, bar.ignored]);
            rest[0] |= u32::from(bar.restorable) << (16 + index);
        }
        words
    }

    /// What [`Self::words`] is of.
    pub fn from_words(words: &[u32; BAR_WORDS]) -> Self {
        let mut bars = [Bar::default(); device::BAR_COUNT];
        let (parts, rest) = words.split_at(BAR_WORDS - 1);
        for (index, (bar, part)) in bars.iter_mut().zip(parts.as_chunks().0).enumerate() {
            let [value, size, ignored] = *part;
            *bar = Bar {
                value,
                size,
                ignored,
                restorable: rest[0] >> (16 + index) & 1 != 0,
                probing: false,
            };
        }
        Self {
            bars,
            decodable: rest[0] as u16,
        }
    }

    /// COMMAND's I/O and memory bits, as far as there is a BAR for them.
    pub const fn decodable(&self) -> u16 {
        self.decodable
    }

    /// The value that the device must hold before it decodes, if the register matters for that.
    pub fn address(&self, index: BarIndex) -> Option<u32> {
        let bar = self.bar(index);
        bar.restorable.then_some(bar.value)
    }

    /// What the guest reads.
    pub fn read(&self, index: BarIndex) -> u32 {
        let bar = self.bar(index);
        if bar.probing { bar.size } else { bar.value }
    }

    /// Serves a write of the whole register, which holds `hardware` in the device.
    pub fn write(&mut self, index: BarIndex, value: u32, hardware: u32) -> BarWrite {
        let Some(bar) = self.bars.get_mut(usize::from(index)) else {
            return BarWrite::Absorbed;
        };
        // Guests may leave the type bits at 0 when they probe.
        bar.probing = value | bar.ignored == u32::MAX;
        // A device that was in D3 may have lost its addresses; the guest's kernel writes them again then.
        let lost = !bar.probing && bar.restorable && value == bar.value && hardware != bar.value;
        if lost {
            BarWrite::Restore(bar.value)
        } else {
            BarWrite::Absorbed
        }
    }

    /// The registers that the guest probes at present: bit N is BAR N.
    pub fn probes(&self) -> u8 {
        let bits = self.bars.iter().enumerate();
        bits.fold(0, |probes, (index, bar)| probes | u8::from(bar.probing) << index)
    }

    /// Restores what [`Self::probes`] returned.
    pub fn set_probes(&mut self, probes: u8) {
        for (index, bar) in self.bars.iter_mut().enumerate() {
            bar.probing = probes >> index & 1 != 0;
        }
    }

    fn bar(&self, index: BarIndex) -> Bar {
        self.bars.get(usize::from(index)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 32-bit memory, I/O, 64-bit prefetchable (two registers), nothing, and a ROM.
    fn bars() -> Bars {
        let region = |start, size, flags| device::Bar { start, size, flags };
        let none = device::Bar::default();
        Bars::new(&device::Bars([
            region(0xfebc_0000, 0x2_0000, 0x0),
            region(0xc040, 0x40, 0x1),
            region(0x38_0000_0000, 0x4000_0000, 0xc),
            none,
            none,
            none,
            region(0xfeb8_0000, 0x4_0000, 0x0),
        ]))
        .unwrap()
    }

    #[test]
    fn a_bar_reads_its_address_and_while_probed_its_size() {
        for (index, address, size) in [
            (0, 0xfebc_0000, 0xfffe_0000),
            (1, 0xc041, 0xffff_ffc1),
            (2, 0x0000_000c, 0xc000_000c),
            (3, 0x0000_0038, 0xffff_ffff),
            (4, 0, 0),
            (5, 0, 0),
            (ROM, 0xfeb8_0000, 0xfffc_0000),
        ] {
            let mut bars = bars();
            assert_eq!(bars.read(index), address, "BAR {index}");
            assert_eq!(bars.write(index, u32::MAX, address), BarWrite::Absorbed);
            assert_eq!(bars.read(index), size, "BAR {index}");
            assert_eq!(bars.write(index, address, address), BarWrite::Absorbed);
            assert_eq!(bars.read(index), address, "BAR {index}");
        }
    }

    #[test]
    fn a_probe_may_leave_the_type_bits_at_zero() {
        for (index, probe) in [(0, 0xffff_fff0), (1, 0xffff_fffc), (ROM, 0xffff_f800)] {
            let mut bars = bars();
            let address = bars.read(index);
            bars.write(index, probe, address);
            assert_ne!(bars.read(index), address, "BAR {index}");
        }
        let mut bars = bars();
        bars.write(3, 0xffff_fff0, 0x38);
        assert_eq!(bars.read(3), 0x38, "an upper half has no type bits");
    }

    #[test]
    fn only_the_recorded_address_goes_to_the_device_and_only_if_it_is_lost() {
        let mut bars = bars();
        assert_eq!(bars.write(0, 0xfebc_0000, 0), BarWrite::Restore(0xfebc_0000));
        assert_eq!(bars.write(0, 0xfebc_0000, 0xfebc_0000), BarWrite::Absorbed);
        assert_eq!(bars.write(0, 0xdead_0000, 0), BarWrite::Absorbed);
        assert_eq!(bars.write(3, 0x38, 0), BarWrite::Restore(0x38));
        assert_eq!(bars.write(4, 0, 0x1234), BarWrite::Absorbed, "not implemented");
        for value in [0xfeb8_0000, 0xfeb8_0001] {
            assert_eq!(bars.write(ROM, value, 0), BarWrite::Absorbed, "ROM");
        }
    }

    #[test]
    fn a_virtual_functions_bars_can_be_sized_and_are_never_written() {
        let mut bars = bars().of_virtual_function();
        bars.write(0, u32::MAX, 0);
        assert_eq!(bars.read(0), 0xfffe_0000);
        assert_eq!(bars.write(0, 0xfebc_0000, 0), BarWrite::Absorbed);
        assert_eq!(bars.read(0), 0xfebc_0000);
        assert_eq!((bars.address(0), bars.decodable()), (None, 0));
    }

    #[test]
    fn in_words_nothing_of_them_is_lost() {
        for bars in [bars(), bars().of_virtual_function()] {
            assert_eq!(Bars::from_words(&bars.words()), bars);
        }
    }

    #[test]
    fn decode_bits_follow_the_kinds_of_bars() {
        assert_eq!(bars().decodable(), command::IO | command::MEMORY);
        let none = Bars::new(&device::Bars::default()).unwrap();
        assert_eq!(none.decodable(), 0);
    }

    #[test]
    fn a_region_that_no_register_can_hold_is_refused() {
        for (start, size) in [(0x1000, 0x3000), (0x1000, 0x2000), (8, 0x10)] {
            let mut regions = device::Bars::default();
            regions.0[0] = device::Bar {
                start,
                size,
                flags: 0,
            };
            assert!(Bars::new(&regions).is_none(), "{start:#x} {size:#x}");
        }
    }
}
