//! The handover block: what the next stub domain must know, and only this one knows.
//!
//! The stub keeps it in the page of the second hop, from [`OFFSET`]. When the stub's domain is dead, dom0's service still
//! has that page mapped, and takes the block out of it. The next stub gets it as hex, in the node `survivor`. Nobody has
//! to trust it: it holds no more than values that a guest could have set itself.
//!
//! The block, little endian, offsets in bytes from its start:
//!
//! | offset | field |
//! |---|---|
//! | 0 | magic, `BHSV` |
//! | 4 | version, u32: [`VERSION`] |
//! | 8 | number of functions, u16: at most [`FUNCTIONS_MAX`] |
//! | 10 | number of refused requests, u8: at most [`REFUSED_MAX`]; 0x80 is added if the second table counts |
//! | 11 | 1: a request of the guest is under way, u8 |
//! | 12 | how often that request has brought a stub down before, u32 |
//! | 16 | the request, as it lay in the guest's page before its MSI-X entries |
//! | 52 | first table |
//! | 836 | second table |
//!
//! A table has room for [`REFUSED_MAX`] poison requests, each as above, and after them for each function
//! `{ devfn: u8, bus: u8, shadow: [u8; 3] }`: its guest address, COMMAND as the guest wrote it, which of its BARs the guest
//! probes (bit N is BAR N, 6 the ROM), and in the highest bit whether the guest has pirqs of MSI or MSI-X. The stub writes the table that does not count, and then the word at 8, which makes it count. So it may
//! die at any moment, and one whole table counts. In the node there is only the table that counts.

use crate::counters;
use crate::pciif::{SharedPage, layout::OP_HEAD_SIZE};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use pci::bdf::Bdf;

/// Offset of the block in the page.
pub const OFFSET: usize = 2048;
/// Version of the block's layout.
pub const VERSION: u32 = 2;
/// Most functions in the block: more than a stub has room to map.
pub const FUNCTIONS_MAX: usize = 128;
/// Most refused requests.
pub const REFUSED_MAX: usize = 4;

/// A request as it lies in a guest's page, before its MSI-X entries.
pub type Op = [u8; OP_HEAD_SIZE];

const MAGIC_AND_VERSION: [u8; 8] = {
    let [m0, m1, m2, m3] = *b"BHSV";
    let [v0, v1, v2, v3] = VERSION.to_le_bytes();
    [m0, m1, m2, m3, v0, v1, v2, v3]
};
const COUNTS: usize = 8;
const UNDER_WAY: usize = 11;
const STRIKES: usize = 12;
const REQUEST: usize = 16;
const REFUSED: usize = REQUEST + OP_HEAD_SIZE;
const FUNCTIONS: usize = REFUSED + REFUSED_MAX * OP_HEAD_SIZE;
const FUNCTION_SIZE: usize = 5;
const SIZE_MAX: usize = FUNCTIONS + FUNCTIONS_MAX * FUNCTION_SIZE;
/// Bytes of a table, which begins with the refused requests.
const TABLE_SIZE: usize = SIZE_MAX - REFUSED;
/// Added to the number of refused requests if the second table counts.
const SECOND: u8 = 0x80;

const _: () =
    assert!(OFFSET >= counters::OFFSET + counters::BLOCK_SIZE && OFFSET + SIZE_MAX + TABLE_SIZE <= 4096);

/// Writes everything but the request under way: functions by guest address and shadow, and the refused requests. What
/// there is no room for is left out, from the end.
pub fn publish(page: &impl SharedPage, functions: impl Iterator<Item = (Bdf, u32)>, refused: &[Op]) {
    let [_, _, now, under_way] = page.load(OFFSET + COUNTS).to_le_bytes();
    let other = now & SECOND ^ SECOND;
    let table = OFFSET + if other == 0 { 0 } else { TABLE_SIZE };
    // Into the table that does not count: the other one stays whole.
    let mut count = 0u16;
    for (guest_bdf, shadow) in functions.take(FUNCTIONS_MAX) {
        let [s0, s1, s2, _] = shadow.to_le_bytes();
        let entry = [guest_bdf.devfn(), guest_bdf.bus(), s0, s1, s2];
        page.copy_in(table + FUNCTIONS + usize::from(count) * FUNCTION_SIZE, &entry);
        count += 1;
    }
    let mut refusals = other;
    for op in refused.iter().take(REFUSED_MAX) {
        page.copy_in(
            table + REFUSED + usize::from(refusals & !SECOND) * OP_HEAD_SIZE,
            op,
        );
        refusals += 1;
    }
    // One word, by one store: it makes the other table count, with its numbers.
    let [c0, c1] = count.to_le_bytes();
    page.store(OFFSET + COUNTS, u32::from_le_bytes([c0, c1, refusals, under_way]));
    // Last: without the magic there is no block.
    page.copy_in(OFFSET, &MAGIC_AND_VERSION);
}

/// Publishes that a request is under way, which has brought down so many stubs before.
pub fn begin(page: &impl SharedPage, op: &Op, strikes: u32) {
    // The byte that makes the request count comes last.
    page.copy_in(OFFSET + STRIKES, &strikes.to_le_bytes());
    page.copy_in(OFFSET + REQUEST, op);
    page.copy_in(OFFSET + UNDER_WAY, &[1]);
}

/// Publishes that no request is under way.
pub fn end(page: &impl SharedPage) {
    page.copy_in(OFFSET + UNDER_WAY, &[0]);
}

/// Takes the block out of the page as hex, for the node. `None`: there is none, or it is damaged.
pub fn to_hex(page: &impl SharedPage) -> Option<String> {
    HandoverBlock::from_page(page).map(|handover_block| hex(&handover_block.0))
}

/// Bytes as text.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        // A string takes all.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Number of bytes of the block that begins so; `None` if it is none of this version.
fn size(block: &[u8]) -> Option<usize> {
    let (head, _) = block.split_first_chunk::<REQUEST>()?;
    let count = usize::from(u16::from_le_bytes([head[8], head[9]]));
    // Every number is checked before it is used as one: a stub that was taken over may have written the block.
    let sound = head[..COUNTS] == MAGIC_AND_VERSION
        && count <= FUNCTIONS_MAX
        && usize::from(head[10]) <= REFUSED_MAX
        && head[UNDER_WAY] <= 1;
    sound.then_some(FUNCTIONS + count * FUNCTION_SIZE)
}

/// The block of an earlier stub domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandoverBlock(Vec<u8>);

impl HandoverBlock {
    /// Takes the block out of the page. `None`: there is none, or it is damaged.
    pub fn from_page(page: &impl SharedPage) -> Option<Self> {
        let mut block = [0; SIZE_MAX];
        page.copy_out(OFFSET, &mut block);
        // Into the form of the node, which has one table.
        if block[COUNTS + 2] & SECOND != 0 {
            block[COUNTS + 2] &= !SECOND;
            page.copy_out(OFFSET + SIZE_MAX, &mut block[REFUSED..]);
        }
        let size = size(&block)?;
        Some(Self(block[..size].to_vec()))
    }

    /// Reads the node's text. `None`: it is none, or one of another version.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digit = |byte: u8| (byte as char).to_digit(16);
        let pairs = text.as_bytes().as_chunks().0.iter();
        let block: Option<Vec<u8>> = pairs
            .map(|&[high, low]| Some((digit(high)? << 4 | digit(low)?) as u8))
            .collect();
        let block = block?;
        // Neither more nor less than the block: an odd last digit would be lost in the pairs.
        (size(&block)? == block.len() && text.len() == block.len() * 2).then_some(Self(block))
    }

    /// The shadow of the function that had this guest address.
    pub fn shadow(&self, guest_bdf: Bdf) -> Option<u32> {
        // Without the segment: a guest has only segment 0.
        let mut entries = self.0[FUNCTIONS..].as_chunks::<FUNCTION_SIZE>().0.iter();
        let &[_, _, s0, s1, s2] = entries.find(|entry| entry[..2] == [guest_bdf.devfn(), guest_bdf.bus()])?;
        Some(u32::from_le_bytes([s0, s1, s2, 0]))
    }

    /// The refused requests, in the order in which they were published.
    pub fn refused(&self) -> &[Op] {
        &self.0[REFUSED..FUNCTIONS].as_chunks().0[..usize::from(self.0[10])]
    }

    /// The request that was under way, and how often it had brought a stub down before.
    pub fn under_way(&self) -> Option<(&Op, u32)> {
        let (strikes, rest) = self.0[STRIKES..].split_first_chunk()?;
        let op = rest.first_chunk()?;
        (self.0[UNDER_WAY] == 1).then_some((op, u32::from_le_bytes(*strikes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Page;
    use alloc::format;
    use core::cell::Cell;

    const READ: Op = [1; OP_HEAD_SIZE];
    const WRITE: Op = [2; OP_HEAD_SIZE];

    fn guest_bdf(devfn: u8) -> Bdf {
        Bdf::from_devfn(0, 3, devfn)
    }

    #[test]
    fn what_a_stub_leaves_is_what_the_next_one_reads() {
        let page = Page::new();
        assert_eq!(to_hex(&page), None, "nothing yet");
        let functions = (0..=255)
            .take(FUNCTIONS_MAX)
            .map(|devfn| (guest_bdf(devfn), 0x7f_0500 | u32::from(devfn)));
        publish(&page, functions, &[READ, WRITE]);
        begin(&page, &WRITE, 1);
        let text = to_hex(&page).unwrap();
        assert!(text.len() < 3072, "fits into a node");
        let left = HandoverBlock::from_hex(&text).unwrap();
        for devfn in 0..FUNCTIONS_MAX as u8 {
            assert_eq!(left.shadow(guest_bdf(devfn)), Some(0x7f_0500 | u32::from(devfn)));
        }
        assert_eq!(left.shadow(Bdf::from_devfn(0, 4, 0)), None);
        assert_eq!(left.refused(), [READ, WRITE]);
        assert_eq!(left.under_way(), Some((&WRITE, 1)));
        end(&page);
        publish(&page, core::iter::empty(), &[]);
        let left = HandoverBlock::from_hex(&to_hex(&page).unwrap()).unwrap();
        assert_eq!(
            (left.shadow(guest_bdf(0)), left.refused(), left.under_way()),
            (None, &[][..], None)
        );
    }

    /// A page that takes so many changes and no more: the stub dies there.
    struct Cut(Page, Cell<usize>);

    impl Cut {
        fn lives(&self) -> bool {
            let left = self.1.get();
            self.1.set(left.saturating_sub(1));
            left > 0
        }
    }

    impl SharedPage for Cut {
        fn copy_out(&self, offset: usize, into: &mut [u8]) {
            self.0.copy_out(offset, into);
        }
        fn copy_in(&self, offset: usize, bytes: &[u8]) {
            // Byte by byte, as a copy that is cut off.
            for (at, byte) in bytes.iter().enumerate() {
                if self.lives() {
                    self.0.copy_in(offset + at, &[*byte]);
                }
            }
        }
        fn load(&self, offset: usize) -> u32 {
            self.0.load(offset)
        }
        fn store(&self, offset: usize, value: u32) {
            if self.lives() {
                self.0.store(offset, value);
            }
        }
        fn set_bits(&self, offset: usize, bits: u32) -> u32 {
            self.0.set_bits(offset, bits)
        }
        fn clear_bits(&self, offset: usize, bits: u32) -> u32 {
            self.0.clear_bits(offset, bits)
        }
    }

    #[test]
    fn a_stub_that_dies_while_it_publishes_leaves_all_of_before_or_all_of_after() {
        let before = [(guest_bdf(0), 0x01_0507), (guest_bdf(8), 0x02_0002)];
        let after = [
            (guest_bdf(8), 0x04_0003),
            (guest_bdf(16), 0x08_0006),
            (guest_bdf(24), 9),
        ];
        // Both ways, from one table to the other.
        for turns in 0..2 {
            for cut in 0.. {
                let page = Cut(Page::new(), Cell::new(usize::MAX));
                for _ in 0..turns {
                    publish(&page, core::iter::empty(), &[]);
                }
                publish(&page, before.into_iter(), &[READ]);
                begin(&page, &READ, 1);
                let old = to_hex(&page).unwrap();
                page.1.set(cut);
                publish(&page, after.into_iter(), &[WRITE, READ]);
                let all_done = page.1.get() > 0;
                let left = to_hex(&page).unwrap();
                page.1.set(usize::MAX);
                publish(&page, after.into_iter(), &[WRITE, READ]);
                let new = to_hex(&page).unwrap();
                assert!(left == old || left == new, "cut {cut}: {left}");
                assert!(left == new || !all_done);
                if all_done {
                    break;
                }
            }
        }
    }

    #[test]
    fn what_no_stub_has_left_is_nothing() {
        let page = Page::new();
        publish(&page, [(guest_bdf(0), 1)].into_iter(), &[READ]);
        let text = to_hex(&page).unwrap();
        assert!(HandoverBlock::from_hex(&text).is_some());
        for bad in [
            "",
            "0",
            "zz",
            &text[2..],
            &text[..text.len() - 1],
            &format!("{text}00"),
        ] {
            assert_eq!(HandoverBlock::from_hex(bad), None, "{bad}");
        }
        for (offset, byte) in [(0, 0), (4, 1), (9, 2), (10, 5), (11, 2)] {
            publish(&page, [(guest_bdf(0), 1)].into_iter(), &[READ]);
            end(&page);
            page.copy_in(OFFSET + offset, &[byte]);
            assert_eq!(to_hex(&page), None, "byte {offset}");
        }
    }
}
