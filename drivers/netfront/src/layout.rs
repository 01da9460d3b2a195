//! Numbers of the protocol (`xen/include/public/io/netif.h`, `ring.h`). All fields are little-endian.

/// Shortest frame: destination, source and type.
pub const FRAME_MIN: usize = 14;
/// Longest frame: 1,500 bytes behind a header with a VLAN tag. No checksum follows.
pub const FRAME_MAX: usize = 1518;

/// Offset of the index behind the last request. Written by the frontend.
pub const REQ_PROD: usize = 0;
/// Offset of the request index at which the backend wants an event. Written by the backend.
pub const REQ_EVENT: usize = 4;
/// Offset of the index behind the last response. Written by the backend.
pub const RSP_PROD: usize = 8;
/// Offset of the response index at which the frontend wants an event. Written by the frontend.
pub const RSP_EVENT: usize = 12;
/// Offset of the first slot.
pub const SLOTS: usize = 64;
/// Slots of a ring: the highest power of two that fits in a page, in both rings.
pub const SLOT_COUNT: u32 = 256;

/// Bytes of a slot of the receive ring.
pub const RX_SLOT: usize = 8;
/// Bytes of a slot of the transmit ring.
pub const TX_SLOT: usize = 12;
const _: () = assert!(SLOTS + SLOT_COUNT as usize * TX_SLOT <= 4096);

/// Flag of a received frame: its checksums are known to be right.
pub const RX_DATA_VALIDATED: u16 = 1 << 0;
/// Flag of a received frame: its checksum has not been computed.
pub const RX_CHECKSUM_BLANK: u16 = 1 << 1;

/// A request for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxRequest {
    /// Number that the response repeats.
    pub id: u16,
    /// Grant reference of the page.
    pub grant: u32,
}

impl RxRequest {
    /// The bytes of the slot.
    pub fn encode(self) -> [u8; RX_SLOT] {
        let mut slot = [0; RX_SLOT];
        slot[0..2].copy_from_slice(&self.id.to_le_bytes());
        slot[4..8].copy_from_slice(&self.grant.to_le_bytes());
        slot
    }
}

/// A response with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxResponse {
    /// Number of the request.
    pub id: u16,
    /// Where the frame begins in its page.
    pub offset: u16,
    /// Flags: `RX_*`.
    pub flags: u16,
    /// Bytes of the frame; below 0: there is none.
    pub status: i16,
}

impl RxResponse {
    /// Reads the bytes of a slot.
    pub fn decode(slot: &[u8; RX_SLOT]) -> Self {
        let [a, b, c, d, e, f, g, h] = *slot;
        Self {
            id: u16::from_le_bytes([a, b]),
            offset: u16::from_le_bytes([c, d]),
            flags: u16::from_le_bytes([e, f]),
            status: i16::from_le_bytes([g, h]),
        }
    }
}

/// A frame to be sent, at the beginning of its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxRequest {
    /// Grant reference of the page.
    pub grant: u32,
    /// Number that the response repeats.
    pub id: u16,
    /// Bytes of the frame.
    pub size: u16,
}

impl TxRequest {
    /// The bytes of the slot. The fields for the offset and the flags are 0.
    pub fn encode(self) -> [u8; TX_SLOT] {
        let mut slot = [0; TX_SLOT];
        slot[0..4].copy_from_slice(&self.grant.to_le_bytes());
        slot[8..10].copy_from_slice(&self.id.to_le_bytes());
        slot[10..12].copy_from_slice(&self.size.to_le_bytes());
        slot
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxResponse {
    /// Number of the request.
    pub id: u16,
    /// 0: sent; below 0: not.
    pub status: i16,
}

impl TxResponse {
    /// Bytes of the response. The rest of its slot has no meaning.
    pub const SIZE: usize = 4;

    /// Reads the bytes of a response.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let [a, b, c, d] = *bytes;
        Self {
            id: u16::from_le_bytes([a, b]),
            status: i16::from_le_bytes([c, d]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_responses_lie_as_the_header_file_says() {
        let request = RxRequest {
            id: 0x0201,
            grant: 0x0807_0605,
        };
        assert_eq!(request.encode(), [1, 2, 0, 0, 5, 6, 7, 8]);
        let request = TxRequest {
            grant: 0x0403_0201,
            id: 0x0a09,
            size: 0x0605,
        };
        assert_eq!(request.encode(), [1, 2, 3, 4, 0, 0, 0, 0, 9, 10, 5, 6]);
        let response = RxResponse::decode(&[1, 2, 3, 4, 5, 6, 0xfe, 0xff]);
        assert_eq!(
            (response.id, response.offset, response.flags, response.status),
            (0x0201, 0x0403, 0x0605, -2)
        );
        let response = TxResponse::decode(&[1, 2, 0xff, 0xff]);
        assert_eq!((response.id, response.status), (0x0201, -1));
    }
}
