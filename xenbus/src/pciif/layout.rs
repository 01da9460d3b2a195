//! Offsets of the fields of `struct xen_pci_sharedinfo` in the page, and the encoding of a request.
//!
//! All numbers are little endian; offsets are in bytes from the start of the page.

use super::{Command, MAX_VECTORS, MsixEntry, Request};

/// The flags word. Both ends change bits of it, so it is changed by locked operations only.
pub const FLAGS: usize = 0;
/// The request (`struct xen_pci_op`).
pub const OP: usize = 4;
/// Answer: 0 or a negative error.
pub const OP_ERR: usize = OP + 4;
/// Answer of `conf_read` and `enable_msi`; also part of the request.
pub const OP_VALUE: usize = OP + 28;
/// The MSI-X entries, `{ vector: u16, entry: u16 }` each.
pub const OP_ENTRIES: usize = OP + OP_HEAD_SIZE;
/// Size of the request before its MSI-X entries.
pub const OP_HEAD_SIZE: usize = 36;
/// Size of one MSI-X entry.
pub const ENTRY_SIZE: usize = 4;
/// Size of the request.
pub const OP_SIZE: usize = OP_HEAD_SIZE + MAX_VECTORS * ENTRY_SIZE;
/// The AER request (`struct xen_pcie_aer_op`), backend to frontend.
pub const AER_OP: usize = OP + OP_SIZE;
/// In a request the channel state of the device; in its answer the verdict.
pub const AER_OP_ERR: usize = AER_OP + 4;
/// Size of the AER request.
pub const AER_OP_SIZE: usize = 20;
/// Size of the whole structure. The rest of the page is free.
pub const TOTAL_SIZE: usize = AER_OP + AER_OP_SIZE;

/// The head of a request as it lies in the page.
pub(super) type Head = [u8; OP_HEAD_SIZE];

pub(super) fn encode_head(request: &Request) -> Head {
    let words = [
        request.command.raw(),
        // `err`, which the answer fills in.
        0,
        request.domain,
        request.bus,
        request.devfn,
        request.offset.cast_unsigned(),
        request.size.cast_unsigned(),
        request.value,
        request.info,
    ];
    let mut head = [0; OP_HEAD_SIZE];
    for (field, word) in head.chunks_exact_mut(4).zip(words) {
        field.copy_from_slice(&word.to_le_bytes());
    }
    head
}

impl Request {
    /// The request of which these are the bytes before its MSI-X entries.
    pub fn from_head(head: &[u8; OP_HEAD_SIZE]) -> Self {
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        Self {
            command: Command::from_raw(word(0)),
            domain: word(8),
            bus: word(12),
            devfn: word(16),
            offset: word(20).cast_signed(),
            size: word(24).cast_signed(),
            value: word(28),
            info: word(32),
        }
    }
}

/// Offset of the vector of MSI-X entry `index`.
pub const fn vector_offset(index: usize) -> usize {
    OP_ENTRIES + index * ENTRY_SIZE
}

pub(super) fn encode_entry(entry: MsixEntry) -> [u8; ENTRY_SIZE] {
    let [v0, v1] = entry.vector.to_le_bytes();
    let [e0, e1] = entry.entry.to_le_bytes();
    [v0, v1, e0, e1]
}

pub(super) fn decode_entry([v0, v1, e0, e1]: [u8; ENTRY_SIZE]) -> MsixEntry {
    MsixEntry {
        vector: u16::from_le_bytes([v0, v1]),
        entry: u16::from_le_bytes([e0, e1]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_sizes_and_offsets_of_the_header_file() {
        assert_eq!((OP_SIZE, AER_OP_SIZE, TOTAL_SIZE), (548, 20, 572));
        assert_eq!(
            (FLAGS, OP, OP_ERR, OP_VALUE, OP_ENTRIES, AER_OP, AER_OP_ERR),
            (0, 4, 8, 32, 40, 552, 556)
        );
        assert_eq!(vector_offset(127), 548);
    }

    #[test]
    fn each_field_of_a_request_has_its_place() {
        let request = Request {
            command: Command::Other(0x0101),
            domain: 0x0202,
            bus: 0x0303,
            devfn: 0x0404,
            offset: -5,
            size: -6,
            value: 0x0707,
            info: 0x0808,
        };
        let head = encode_head(&request);
        let word = |offset: usize| u32::from_le_bytes(head[offset - OP..offset - OP + 4].try_into().unwrap());
        let fields = [4, 8, 12, 16, 20, 24, 28, 32, 36].map(word);
        assert_eq!(
            fields,
            [
                0x0101,
                0,
                0x0202,
                0x0303,
                0x0404,
                u32::MAX - 4,
                u32::MAX - 5,
                0x0707,
                0x0808
            ]
        );
        assert_eq!(Request::from_head(&head), request);
    }

    #[test]
    fn an_entry_is_a_vector_and_a_table_index() {
        let entry = MsixEntry {
            vector: 0x1122,
            entry: 0x3344,
        };
        assert_eq!(encode_entry(entry), [0x22, 0x11, 0x44, 0x33]);
        assert_eq!(decode_entry(encode_entry(entry)), entry);
    }
}
