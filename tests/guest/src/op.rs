//! One request of a frontend that keeps no rule.

use alloc::vec::Vec;
use core::fmt;
use xenbus::pciif::layout::{OP, OP_ENTRIES, OP_ERR, OP_SIZE, OP_VALUE, vector_offset};
use xenbus::pciif::{Command, MAX_VECTORS};

/// Fills every byte of a request that has no value: neither 0 nor a value that a backend writes.
pub const FILLER: u8 = 0xee;

/// A request. Nothing is checked, and each field is independent of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// Number of the command.
    pub command: u32,
    /// PCI segment.
    pub domain: u32,
    /// Bus number.
    pub bus: u32,
    /// `device << 3 | function`.
    pub devfn: u32,
    /// Config space offset.
    pub offset: i32,
    /// Width of a config access.
    pub size: i32,
    /// Value to write, or number of MSI-X vectors.
    pub value: u32,
    /// Table indices of the MSI-X entries. Entries after the 128th do not fit into the page.
    pub entries: Vec<u16>,
}

impl Op {
    /// A request about the function at `devfn` of the first bus, without other fields.
    pub const fn new(command: Command, devfn: u32) -> Self {
        Self {
            command: command.raw(),
            domain: 0,
            bus: 0,
            devfn,
            offset: 0,
            size: 0,
            value: 0,
            entries: Vec::new(),
        }
    }

    /// A config read.
    pub fn read(devfn: u32, offset: i32, size: i32) -> Self {
        Self {
            offset,
            size,
            ..Self::new(Command::ConfRead, devfn)
        }
    }

    /// A config write.
    pub fn write(devfn: u32, offset: i32, size: i32, value: u32) -> Self {
        Self {
            offset,
            size,
            value,
            ..Self::new(Command::ConfWrite, devfn)
        }
    }

    /// MSI-X on, with a vector for each of `entries`.
    pub fn msix(devfn: u32, entries: impl IntoIterator<Item = u16>) -> Self {
        let entries: Vec<u16> = entries.into_iter().collect();
        Self {
            value: entries.len() as u32,
            entries,
            ..Self::new(Command::EnableMsix, devfn)
        }
    }

    /// The command, if a backend knows it.
    pub const fn known_command(&self) -> Command {
        Command::from_raw(self.command)
    }

    /// The bytes of `struct xen_pci_op`.
    pub fn encode(&self) -> [u8; OP_SIZE] {
        let mut bytes = [FILLER; OP_SIZE];
        let mut put = |at: usize, word: &[u8]| bytes[at - OP..at - OP + word.len()].copy_from_slice(word);
        put(OP, &self.command.to_le_bytes());
        let words = [self.domain, self.bus, self.devfn].map(u32::to_le_bytes);
        for (index, word) in words.iter().enumerate() {
            put(OP_ERR + 4 + 4 * index, word);
        }
        put(OP_VALUE - 8, &self.offset.to_le_bytes());
        put(OP_VALUE - 4, &self.size.to_le_bytes());
        put(OP_VALUE, &self.value.to_le_bytes());
        for (index, entry) in self.entries.iter().take(MAX_VECTORS).enumerate() {
            put(vector_offset(index) + 2, &entry.to_le_bytes());
        }
        bytes
    }
}

const _: () = assert!(OP_ENTRIES == OP_VALUE + 8);

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:x}:{:x}:{:x}",
            self.known_command(),
            self.domain,
            self.bus,
            self.devfn
        )?;
        match self.known_command() {
            Command::ConfRead => write!(f, " {:#x}/{}", self.offset, self.size),
            Command::ConfWrite => write!(f, " {:#x}/{} {:#x}", self.offset, self.size, self.value),
            Command::EnableMsix => {
                write!(f, " {} of", self.value)?;
                self.entries
                    .iter()
                    .take(8)
                    .try_for_each(|entry| write!(f, " {entry}"))?;
                f.write_str(if self.entries.len() > 8 { " ..." } else { "" })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenbus::model::Page;
    use xenbus::pciif::layout::{FLAGS, OP};
    use xenbus::pciif::{ACTIVE, Request, SharedPage, backend};

    /// The request as a backend of ours reads it from the page.
    fn taken(op: &Op) -> backend::Taken {
        let page = Page::new();
        page.copy_in(OP, &op.encode());
        page.set_bits(FLAGS, ACTIVE);
        backend::take(&page).unwrap()
    }

    #[test]
    fn a_backend_reads_what_was_meant() {
        let op = Op {
            domain: 1,
            bus: 2,
            ..Op::write(0x18, -5, 3, 0x1234_5678)
        };
        let request = *taken(&op).request();
        assert_eq!(
            request,
            Request {
                command: Command::ConfWrite,
                domain: 1,
                bus: 2,
                devfn: 0x18,
                offset: -5,
                size: 3,
                value: 0x1234_5678,
                info: u32::from_le_bytes([FILLER; 4]),
            }
        );
        let taken = taken(&Op::msix(8, [4, 0, 7]));
        let entries = taken.entries().unwrap().iter().map(|entry| entry.entry);
        assert!(entries.eq([4, 0, 7]));
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_the_number_still_sent() {
        let op = Op::msix(0, 0..200);
        assert_eq!(
            (taken(&op).request().value, taken(&op).entries().is_err()),
            (200, true)
        );
    }
}
