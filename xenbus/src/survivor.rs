//! What must outlive a stub's domain and is known to the stub alone.
//!
//! The stub keeps it in the page of the second hop, from [`OFFSET`], and dom0's service has it there when the stub is
//! dead: the page is still mapped. To the next stub it goes as hex, in the node `survivor` of that stub's list of
//! devices. Neither side trusts the words of the other further than to a value that a guest could have set itself.
//!
//! The block, little endian, offsets in bytes from its start:
//!
//! | offset | field |
//! |---|---|
//! | 0 | magic, `BHSV` |
//! | 4 | version, u32: [`VERSION`] |
//! | 8 | number of functions, u16: at most [`FUNCTIONS_MAX`] |
//! | 10 | number of refused requests, u8: at most [`REFUSED_MAX`] |
//! | 11 | 1: a request of the guest is under way, u8 |
//! | 12 | how often that request has brought a stub down before, u32 |
//! | 16 | the request, as it lay in the guest's page before its MSI-X entries |
//! | 52 | [`REFUSED_MAX`] requests, as above, that have brought a stub down too often |
//! | 196 | for each function `{ devfn: u8, bus: u8, shadow: [u8; 3] }`: where it stands in the guest, COMMAND as the guest wrote it, and which of its BARs the guest probes |

use crate::bdf::Bdf;
use crate::counters;
use crate::pciif::{SharedPage, layout::OP_HEAD_SIZE};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// Offset of the block in the page.
pub const OFFSET: usize = 2048;
/// Version of the block's layout.
pub const VERSION: u32 = 1;
/// Most functions of a guest: a bus full.
pub const FUNCTIONS_MAX: usize = 256;
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

const _: () = assert!(OFFSET >= counters::OFFSET + counters::BLOCK_SIZE && OFFSET + SIZE_MAX <= 4096);

/// Writes all but the request under way: functions by place and shadow, and the refused requests. Of more than there
/// is room for the last are left out.
pub fn publish(page: &impl SharedPage, functions: impl Iterator<Item = (Bdf, u32)>, refused: &[Op]) {
    let mut count = 0u16;
    for (place, shadow) in functions.take(FUNCTIONS_MAX) {
        let [s0, s1, s2, _] = shadow.to_le_bytes();
        let entry = [place.devfn(), place.bus(), s0, s1, s2];
        page.copy_in(OFFSET + FUNCTIONS + usize::from(count) * FUNCTION_SIZE, &entry);
        count += 1;
    }
    let mut refusals = 0;
    for op in refused.iter().take(REFUSED_MAX) {
        page.copy_in(OFFSET + REFUSED + usize::from(refusals) * OP_HEAD_SIZE, op);
        refusals += 1;
    }
    let [c0, c1] = count.to_le_bytes();
    page.copy_in(OFFSET + COUNTS, &[c0, c1, refusals]);
    // Last: without it there is no block.
    page.copy_in(OFFSET, &MAGIC_AND_VERSION);
}

/// Notes that a request is under way which has brought the stub down so often before.
pub fn begin(page: &impl SharedPage, op: &Op, strikes: u32) {
    page.copy_in(OFFSET + STRIKES, &strikes.to_le_bytes());
    page.copy_in(OFFSET + REQUEST, op);
    page.copy_in(OFFSET + UNDER_WAY, &[1]);
}

/// Notes that it is not under way any more.
pub fn end(page: &impl SharedPage) {
    page.copy_in(OFFSET + UNDER_WAY, &[0]);
}

/// Takes the block out of the page as hex, for the node. `None`: there is none, or it is damaged.
pub fn to_hex(page: &impl SharedPage) -> Option<String> {
    Survivor::from_page(page).map(|survivor| hex(&survivor.0))
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

/// Bytes of a block that begins so.
fn size(block: &[u8]) -> Option<usize> {
    let (head, _) = block.split_first_chunk::<REQUEST>()?;
    let count = usize::from(u16::from_le_bytes([head[8], head[9]]));
    let sound = head[..COUNTS] == MAGIC_AND_VERSION
        && count <= FUNCTIONS_MAX
        && usize::from(head[10]) <= REFUSED_MAX
        && head[UNDER_WAY] <= 1;
    sound.then_some(FUNCTIONS + count * FUNCTION_SIZE)
}

/// A block of an earlier stub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor(Vec<u8>);

impl Survivor {
    /// Takes the block out of the page. `None`: there is none, or it is damaged.
    pub fn from_page(page: &impl SharedPage) -> Option<Self> {
        let mut block = [0; SIZE_MAX];
        page.copy_out(OFFSET, &mut block);
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
        (size(&block)? == block.len() && text.len() == block.len() * 2).then_some(Self(block))
    }

    /// The shadow of the function that stood at `place`.
    pub fn shadow(&self, place: Bdf) -> Option<u32> {
        let mut entries = self.0[FUNCTIONS..].as_chunks::<FUNCTION_SIZE>().0.iter();
        let &[_, _, s0, s1, s2] = entries.find(|entry| entry[..2] == [place.devfn(), place.bus()])?;
        Some(u32::from_le_bytes([s0, s1, s2, 0]))
    }

    /// The refused requests, the latest first.
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

    const READ: Op = [1; OP_HEAD_SIZE];
    const WRITE: Op = [2; OP_HEAD_SIZE];

    fn place(devfn: u8) -> Bdf {
        Bdf::from_devfn(0, 3, devfn)
    }

    #[test]
    fn what_a_stub_leaves_is_what_the_next_one_reads() {
        let page = Page::new();
        assert_eq!(to_hex(&page), None, "nothing yet");
        let functions = (0..=255).map(|devfn| (place(devfn), 0x7f_0500 | u32::from(devfn)));
        publish(&page, functions, &[READ, WRITE]);
        begin(&page, &WRITE, 1);
        let text = to_hex(&page).unwrap();
        assert!(text.len() < 3072, "fits into a node");
        let left = Survivor::from_hex(&text).unwrap();
        for devfn in 0..=255 {
            assert_eq!(left.shadow(place(devfn)), Some(0x7f_0500 | u32::from(devfn)));
        }
        assert_eq!(left.shadow(Bdf::from_devfn(0, 4, 0)), None);
        assert_eq!(left.refused(), [READ, WRITE]);
        assert_eq!(left.under_way(), Some((&WRITE, 1)));
        end(&page);
        publish(&page, core::iter::empty(), &[]);
        let left = Survivor::from_hex(&to_hex(&page).unwrap()).unwrap();
        assert_eq!(
            (left.shadow(place(0)), left.refused(), left.under_way()),
            (None, &[][..], None)
        );
    }

    #[test]
    fn what_no_stub_has_left_is_nothing() {
        let page = Page::new();
        publish(&page, [(place(0), 1)].into_iter(), &[READ]);
        let text = to_hex(&page).unwrap();
        assert!(Survivor::from_hex(&text).is_some());
        for bad in [
            "",
            "0",
            "zz",
            &text[2..],
            &text[..text.len() - 1],
            &format!("{text}00"),
        ] {
            assert_eq!(Survivor::from_hex(bad), None, "{bad}");
        }
        for (offset, byte) in [(0, 0), (4, 2), (9, 2), (10, 5), (11, 2)] {
            publish(&page, [(place(0), 1)].into_iter(), &[READ]);
            end(&page);
            page.copy_in(OFFSET + offset, &[byte]);
            assert_eq!(to_hex(&page), None, "byte {offset}");
        }
    }
}
