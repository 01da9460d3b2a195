//! Places and names of a function's registers.

use super::operation::Span;
use std::fmt;

/// Part of config space that a register belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Block {
    /// The first 64 bytes.
    Header,
    /// A capability, by id.
    Capability(u8),
    /// An extended capability, by id.
    Extended(u16),
    /// Bytes outside of all capabilities.
    Nothing,
}

/// Power management.
pub const PM: Block = Block::Capability(0x01);
/// Vital product data.
pub const VPD: Block = Block::Capability(0x03);
/// Message-signalled interrupts.
pub const MSI: Block = Block::Capability(0x05);
/// Message-signalled interrupts, extended.
pub const MSIX: Block = Block::Capability(0x11);
/// PCI Express.
pub const PCIE: Block = Block::Capability(0x10);

const NAMES: &[(Block, &str)] = &[
    (Block::Header, "header"),
    (PM, "PM"),
    (VPD, "VPD"),
    (MSI, "MSI"),
    (MSIX, "MSI-X"),
    (PCIE, "PCI Express"),
    (Block::Nothing, "no capability"),
];

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (NAMES.iter().find(|(block, _)| block == self), self) {
            (Some((_, name)), _) => f.write_str(name),
            (None, Self::Capability(id)) => write!(f, "capability {id:#04x}"),
            (None, Self::Extended(id)) => write!(f, "extended capability {id:#06x}"),
            (None, _) => Ok(()),
        }
    }
}

/// A register, wherever its block lies in a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Register {
    /// The part of config space.
    pub block: Block,
    /// Where in the block; for [`Block::Nothing`], where in config space.
    pub at: Span,
}

impl Register {
    /// A register.
    pub const fn new(block: Block, offset: u16, width: u8) -> Self {
        Self {
            block,
            at: Span::new(offset, width),
        }
    }

    /// Whether it has a name; capability headers, for one, have none.
    pub fn is_named(self) -> bool {
        REGISTERS.iter().any(|(register, _)| *register == self)
    }
}

/// Registers that are not 4 bytes wide, or that have a name in reports.
const REGISTERS: &[(Register, &str)] = &[
    (Register::new(Block::Header, 0x00, 2), "Vendor ID"),
    (Register::new(Block::Header, 0x02, 2), "Device ID"),
    (COMMAND, "Command"),
    (Register::new(Block::Header, 0x06, 2), "Status"),
    (Register::new(Block::Header, 0x08, 4), "Revision ID, Class Code"),
    (CACHE_LINE_SIZE, "Cache Line Size"),
    (Register::new(Block::Header, 0x0d, 1), "Latency Timer"),
    (Register::new(Block::Header, 0x0e, 1), "Header Type"),
    (Register::new(Block::Header, 0x0f, 1), "BIST"),
    (Register::new(Block::Header, 0x10, 4), "BAR 0"),
    (Register::new(Block::Header, 0x14, 4), "BAR 1"),
    (Register::new(Block::Header, 0x18, 4), "BAR 2"),
    (Register::new(Block::Header, 0x1c, 4), "BAR 3"),
    (Register::new(Block::Header, 0x20, 4), "BAR 4"),
    (Register::new(Block::Header, 0x24, 4), "BAR 5"),
    (Register::new(Block::Header, 0x30, 4), "Expansion ROM"),
    (Register::new(Block::Header, 0x3c, 1), "Interrupt Line"),
    (Register::new(Block::Header, 0x3d, 1), "Interrupt Pin"),
    (Register::new(PM, 2, 2), "PMC"),
    (PMCSR, "PMCSR"),
    (Register::new(PM, 6, 1), "PMCSR_BSE"),
    (Register::new(PM, 7, 1), "PM Data"),
    (Register::new(VPD, 2, 2), "VPD Address"),
    (Register::new(VPD, 4, 4), "VPD Data"),
    (Register::new(MSI, 2, 2), "MSI Message Control"),
    (MSIX_CONTROL, "MSI-X Message Control"),
];

/// The header's COMMAND.
pub const COMMAND: Register = Register::new(Block::Header, 0x04, 2);
/// The header's cache line size.
pub const CACHE_LINE_SIZE: Register = Register::new(Block::Header, 0x0c, 1);
/// MSI-X's message control: its enable bit.
pub const MSIX_CONTROL: Register = Register::new(MSIX, 2, 2);
/// Power management control and status.
pub const PMCSR: Register = Register::new(PM, 4, 2);

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match REGISTERS.iter().find(|(register, _)| register == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "{} + {}", self.block, self.at),
        }
    }
}

const HEADER_LENGTH: u16 = 0x40;
const STATUS: u16 = 0x06;
const STATUS_CAPABILITIES: u32 = 0x10;
const CAPABILITIES: u16 = 0x34;
const EXTENDED: u16 = 0x100;
/// Limit of entries: config space has no room for more, because each entry takes 4 bytes at least.
const MOST_BLOCKS: usize = 1024;

/// Where the blocks of a function begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// By offset; the header first.
    blocks: Vec<(u16, Block)>,
    length: u16,
}

impl Layout {
    /// Walks the capability lists in a dump of config space, of 256 or 4096 bytes.
    pub fn of(dump: &[u8]) -> Self {
        let length = dump.len().min(0x1000) as u16;
        let word = |offset| Span::new(offset, 2).value_in(dump) as u16;
        let dword = |offset| Span::new(offset, 4).value_in(dump);
        let mut blocks = vec![(0, Block::Header), (HEADER_LENGTH, Block::Nothing)];
        let mut add = |at, block| {
            let fresh = blocks.len() < MOST_BLOCKS
                && blocks
                    .iter()
                    .all(|&(other, known)| other != at || known == Block::Nothing);
            if fresh {
                blocks.retain(|&(other, _)| other != at);
                blocks.push((at, block));
            }
            fresh
        };
        let listed = u32::from(word(STATUS)) & STATUS_CAPABILITIES != 0;
        let mut next = if listed { word(CAPABILITIES) & 0xfc } else { 0 };
        while next >= HEADER_LENGTH {
            let [id, pointer] = word(next).to_le_bytes();
            if !add(next, Block::Capability(id)) {
                break;
            }
            next = u16::from(pointer) & 0xfc;
        }
        if length > EXTENDED {
            add(EXTENDED, Block::Nothing);
            let mut next = EXTENDED;
            while next >= EXTENDED && !matches!(dword(next), 0 | u32::MAX) {
                let header = dword(next);
                if !add(next, Block::Extended(header as u16)) {
                    break;
                }
                next = (header >> 20) as u16 & 0xffc;
            }
        }
        blocks.sort_unstable();
        Self { blocks, length }
    }

    /// Number of bytes of config space: 256 or 4096.
    pub const fn length(&self) -> u16 {
        self.length
    }

    /// Where the blocks begin.
    pub fn blocks(&self) -> &[(u16, Block)] {
        &self.blocks
    }

    /// Where `block` begins, if the function has it.
    pub fn base(&self, block: Block) -> Option<u16> {
        let found = self.blocks.iter().find(|(_, other)| *other == block);
        found.map(|&(base, _)| base)
    }

    /// Where `register` is, if the function has its block.
    pub fn place(&self, register: Register) -> Option<Span> {
        let base = match register.block {
            Block::Nothing => 0,
            block => self.base(block)?,
        };
        Some(Span::new(base + register.at.offset, register.at.width))
    }

    /// The register that a byte is part of, and where it is.
    pub fn register_at(&self, offset: u16) -> (Register, Span) {
        let index = self.blocks.partition_point(|&(base, _)| base <= offset);
        let (base, block) = match self.blocks[..index].last() {
            Some(&(base, block)) if block != Block::Nothing => (base, block),
            _ => (0, Block::Nothing),
        };
        let within = offset - base;
        let named = REGISTERS
            .iter()
            .map(|(register, _)| *register)
            .find(|register| register.block == block && register.at.bytes().contains(&within));
        let unnamed = match (block, within) {
            // A capability's header is its id and the pointer to the next one. The next register follows.
            (Block::Capability(_), 0..2) => Register::new(block, 0, 2),
            (Block::Capability(_), 2..4) => Register::new(block, 2, 2),
            _ => Register::new(block, within & !3, 4),
        };
        let register = named.unwrap_or(unnamed);
        (register, Span::new(base + register.at.offset, register.at.width))
    }

    /// The registers that a range touches, and where they are.
    pub fn registers(&self, span: Span) -> Vec<(Register, Span)> {
        let mut registers: Vec<_> = span.bytes().map(|offset| self.register_at(offset)).collect();
        registers.dedup();
        registers
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A PCI Express function like an e1000e: PM at c8, MSI at d0, PCI Express at e0, MSI-X at a0, AER at 100.
    pub fn dump() -> Vec<u8> {
        let mut dump = vec![0; 4096];
        for (offset, bytes) in [
            (0x00, &[0x86, 0x80, 0xd3, 0x10, 0x03, 0x00, 0x10, 0x00][..]),
            (0x34, &[0xc8]),
            (0xc8, &[0x01, 0xd0, 0x22, 0x00]),
            (0xd0, &[0x05, 0xe0, 0x80, 0x00]),
            (0xe0, &[0x10, 0xa0]),
            (0xa0, &[0x11, 0x00, 0x04, 0x00]),
            (0x100, &[0x01, 0x00, 0x02, 0x14]),
            (0x140, &[0x03, 0x00, 0x01, 0x00]),
        ] {
            dump[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        dump
    }

    #[test]
    fn capabilities_are_found_in_both_lists() {
        let layout = Layout::of(&dump());
        assert_eq!(
            layout.blocks(),
            [
                (0, Block::Header),
                (0x40, Block::Nothing),
                (0xa0, MSIX),
                (0xc8, PM),
                (0xd0, MSI),
                (0xe0, PCIE),
                (0x100, Block::Extended(1)),
                (0x140, Block::Extended(3)),
            ]
        );
        assert_eq!(layout.place(PMCSR), Some(Span::new(0xcc, 2)));
        assert_eq!(layout.place(Register::new(VPD, 2, 2)), None);
        let conventional = Layout::of(&dump()[..256]);
        assert_eq!(conventional.length(), 256);
        assert_eq!(conventional.blocks().len(), 6);
    }

    #[test]
    fn a_list_that_goes_round_ends() {
        let mut dump = dump();
        dump[0xa1] = 0xc8;
        dump[0x142] = 0x01;
        dump[0x143] = 0x10;
        assert_eq!(Layout::of(&dump).blocks().len(), 8);
    }

    #[test]
    fn bytes_are_named_by_their_registers() {
        let layout = Layout::of(&dump());
        let name = |offset| layout.register_at(offset).0.to_string();
        assert_eq!(name(0x05), "Command");
        assert_eq!(name(0xcd), "PMCSR");
        assert_eq!(name(0xd7), "MSI + 0x004/4");
        assert_eq!(name(0xd1), "MSI + 0x000/2");
        assert_eq!(name(0xd2), "MSI Message Control");
        assert_eq!(name(0x50), "no capability + 0x050/4");
        assert_eq!(name(0x146), "extended capability 0x0003 + 0x004/4");
        let command_and_status = layout.registers(Span::new(4, 4));
        assert_eq!(command_and_status.len(), 2);
        assert_eq!(command_and_status[1].1, Span::new(6, 2));
    }
}
