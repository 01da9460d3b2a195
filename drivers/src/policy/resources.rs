//! What the toolstack says about a function, in the nodes of the second hop.

use super::config::bar::{BAR_WORDS, Bars};
use crate::snapshot::{FUNCTION_WORDS, FunctionWords};
use pci::bdf::Bdf;
use xenbus::device::{Ids, MAX_QUIRKS, Quirk, Quirks};

const INTX: u32 = 1 << 0;
const PERMISSIVE: u32 = 1 << 1;
const MSI: u32 = 1 << 2;
const VIRTUAL_FUNCTION: u32 = 1 << 3;

/// Which of a function's words is its guest address.
pub const GUEST_BDF: usize = 1;
/// Words before those of the BARs.
const HEAD: usize = 7;
const _: () = assert!(HEAD + BAR_WORDS + 2 * MAX_QUIRKS == FUNCTION_WORDS);

/// What cannot be read from the function's config space, or must be checked against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Its real address.
    pub bdf: Bdf,
    /// What it must answer at offset 0.
    pub ids: Ids,
    /// Machine frame number of its ECAM page.
    pub ecam: u64,
    /// BAR 0 to 5 and the expansion ROM.
    pub bars: Bars,
    /// The GSI of its INTx line, which is also the pirq in the guest; 0 if it has none.
    pub irq: u32,
    /// True if the guest may use INTx; otherwise its pin register reads 0.
    pub intx: bool,
    /// True if writes to registers that no table names go to the device.
    pub permissive: bool,
    /// The registers that an administrator lets the guest write.
    pub quirks: Quirks,
    /// False if MSI and MSI-X are refused.
    pub msi: bool,
    /// True if it is an SR-IOV virtual function: its ids read all-ones, it has no INTx, and its BARs and memory decode are
    /// its physical function's, which dom0 has.
    pub virtual_function: bool,
}

impl Resources {
    /// Those of the function at `bdf` before anything is said about it.
    pub fn of(bdf: Bdf) -> Self {
        Self {
            bdf,
            ids: Ids { vendor: 0, device: 0 },
            ecam: 0,
            bars: Bars::default(),
            irq: 0,
            intx: false,
            permissive: false,
            quirks: Quirks::default(),
            msi: true,
            virtual_function: false,
        }
    }

    /// The function in words, for the [snapshot](crate::snapshot); that of [`GUEST_BDF`] is left at 0.
    pub fn words(&self) -> FunctionWords {
        let flag = |set, flag| if set { flag } else { 0 };
        let head = [
            self.bdf.word(),
            0,
            u32::from(self.ids.vendor) << 16 | u32::from(self.ids.device),
            self.ecam as u32,
            (self.ecam >> 32) as u32,
            self.irq,
            flag(self.intx, INTX)
                | flag(self.permissive, PERMISSIVE)
                | flag(self.msi, MSI)
                | flag(self.virtual_function, VIRTUAL_FUNCTION),
        ];
        let quirks = self.quirks.as_slice().iter().flat_map(|quirk| {
            let place = u32::from(quirk.offset()) << 8 | u32::from(quirk.width());
            [place, quirk.mask()]
        });
        let mut words = [0; FUNCTION_WORDS];
        let all = head.into_iter().chain(self.bars.words()).chain(quirks);
        for (word, value) in words.iter_mut().zip(all) {
            *word = value;
        }
        words
    }

    /// What the words are of, and the guest address; `None` if they are of nothing.
    pub fn from_words(words: &FunctionWords) -> Option<(Self, Bdf)> {
        let (&[bdf, guest_bdf, ids, ecam, ecam_high, irq, flags], rest) = words.split_first_chunk()?;
        let (bars, rest) = rest.split_first_chunk()?;
        let mut quirks = Quirks::default();
        for &[place, mask] in rest.as_chunks().0.iter().take_while(|[_, mask]| *mask != 0) {
            let quirk = Quirk::new((place >> 8) as u16, place as u8, mask);
            quirks.add(quirk.ok()?).ok()?;
        }
        let resources = Self {
            bdf: Bdf::from_word(bdf),
            ids: Ids {
                vendor: (ids >> 16) as u16,
                device: ids as u16,
            },
            ecam: u64::from(ecam_high) << 32 | u64::from(ecam),
            bars: Bars::from_words(bars),
            irq,
            intx: flags & INTX != 0,
            permissive: flags & PERMISSIVE != 0,
            quirks,
            msi: flags & MSI != 0,
            virtual_function: flags & VIRTUAL_FUNCTION != 0,
        };
        Some((resources, Bdf::from_word(guest_bdf)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::String;
    use xenbus::device;

    fn resources() -> Resources {
        let bars: device::Bars =
            "febc0000,20000,0;0,0,0;c040,20,1;0,0,0;3800000000,4000,c;0,0,0;feb80000,40000,0"
                .parse()
                .unwrap();
        Resources {
            bdf: "0001:03:00.1".parse().unwrap(),
            ids: "8086:10d3".parse().unwrap(),
            ecam: 0x12_3456_789a,
            bars: Bars::new(&bars).unwrap(),
            irq: 20,
            intx: false,
            permissive: false,
            quirks: Quirks::default(),
            msi: false,
            virtual_function: false,
        }
    }

    #[test]
    fn in_words_nothing_of_it_is_lost() {
        let most = (0..MAX_QUIRKS).map(|index| format!("{:x}:4:ffffffff;", index * 4));
        let most: String = most.collect();
        for (flags, quirks) in [
            (0, ""),
            (1, "44:2:ff0"),
            (2, "44:1:1;fff:1:80"),
            (4, ""),
            (8, ""),
            (15, most.trim_end_matches(';')),
        ] {
            let resources = Resources {
                intx: flags & 1 != 0,
                permissive: flags & 2 != 0,
                msi: flags & 4 != 0,
                virtual_function: flags & 8 != 0,
                quirks: quirks.parse().unwrap(),
                ..resources()
            };
            let guest_bdf: Bdf = "0000:00:02.1".parse().unwrap();
            let mut words = resources.words();
            assert_eq!(words[0], resources.bdf.word());
            words[GUEST_BDF] = guest_bdf.word();
            assert_eq!(Resources::from_words(&words), Some((resources, guest_bdf)));
        }
    }

    #[test]
    fn words_with_a_quirk_that_no_node_could_have_are_of_nothing() {
        let mut words = resources().words();
        assert!(Resources::from_words(&words).is_some());
        let quirks = HEAD + BAR_WORDS;
        words[quirks..quirks + 2].copy_from_slice(&[0x44 << 8 | 3, 1]);
        assert_eq!(Resources::from_words(&words), None);
    }
}
