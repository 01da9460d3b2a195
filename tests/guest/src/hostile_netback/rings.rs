//! Both rings of a network device, as a backend sees them (`xen/include/public/io/netif.h`, `ring.h`).
//!
//! The numbers are written here once more, so that a fault in the frontend's own shows.

use drivers::platform::{GrantRef, Platform, Port};
use xenbus::pciif::SharedPage;

/// Offset of the index behind the last request.
pub const REQ_PROD: usize = 0;
/// Offset of the request index at which the backend wants an event.
pub const REQ_EVENT: usize = 4;
/// Offset of the index behind the last response.
pub const RSP_PROD: usize = 8;
/// Offset of the first slot.
const SLOTS: usize = 64;
/// Slots of each ring.
const SLOT_COUNT: u32 = 256;
const RX_SLOT: usize = 8;
const TX_SLOT: usize = 12;

/// A response in the receive ring. In the transmit ring there are `id` and `status` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetResponse {
    /// Number of the request.
    pub id: u16,
    /// Where the frame begins in its page.
    pub offset: u16,
    /// Flags of the frame.
    pub flags: u16,
    /// Bytes of the frame, or a negative number.
    pub status: i16,
}

impl NetResponse {
    /// A frame at the beginning of its page.
    pub const fn frame(id: u16, length: i16) -> Self {
        Self {
            id,
            offset: 0,
            flags: 0,
            status: length,
        }
    }
}

/// The mapped rings, with the backend's own indices.
#[derive(Debug)]
pub struct NetRings<P: Platform> {
    /// The receive ring: frames to the frontend.
    pub rx: P::Page,
    /// The transmit ring: frames from the frontend.
    pub tx: P::Page,
    /// The own port.
    pub port: Port,
    rx_requests: u32,
    rx_responses: u32,
    tx_requests: u32,
    tx_responses: u32,
}

impl<P: Platform> NetRings<P> {
    /// Rings that have just been mapped. No response is in them.
    pub const fn new(rx: P::Page, tx: P::Page, port: Port) -> Self {
        Self {
            rx,
            tx,
            port,
            rx_requests: 0,
            rx_responses: 0,
            tx_requests: 0,
            tx_responses: 0,
        }
    }

    /// Asks for an event at the next request in either ring.
    pub fn ask_for_events(&self) {
        self.rx.store(REQ_EVENT, self.rx_requests.wrapping_add(1));
        self.tx.store(REQ_EVENT, self.tx_requests.wrapping_add(1));
    }

    /// Requests for frames that were not taken.
    pub fn wanted(&self) -> u32 {
        self.rx.load(REQ_PROD).wrapping_sub(self.rx_requests)
    }

    /// Frames of the frontend that were not taken.
    pub fn sent(&self) -> u32 {
        self.tx.load(REQ_PROD).wrapping_sub(self.tx_requests)
    }

    /// Takes a request for a frame: its number, and the grant of its page.
    pub fn take_wanted(&mut self) -> Option<(u16, GrantRef)> {
        if self.wanted() == 0 {
            return None;
        }
        let mut slot = [0; RX_SLOT];
        self.rx.copy_out(slot_at(self.rx_requests, RX_SLOT), &mut slot);
        self.rx_requests = self.rx_requests.wrapping_add(1);
        let [a, b, _, _, grant @ ..] = slot;
        Some((u16::from_le_bytes([a, b]), GrantRef::from_le_bytes(grant)))
    }

    /// Takes the number of a frame of the frontend's.
    pub fn take_sent(&mut self) -> Option<u16> {
        if self.sent() == 0 {
            return None;
        }
        let mut id = [0; 2];
        self.tx.copy_out(slot_at(self.tx_requests, TX_SLOT) + 8, &mut id);
        self.tx_requests = self.tx_requests.wrapping_add(1);
        Some(u16::from_le_bytes(id))
    }

    /// Writes a response in the receive ring, and shows it.
    pub fn answer_wanted(&mut self, response: NetResponse) {
        let NetResponse {
            id,
            offset,
            flags,
            status,
        } = response;
        let mut slot = [0; RX_SLOT];
        for (at, field) in [id, offset, flags, status as u16].into_iter().enumerate() {
            slot[2 * at..2 * at + 2].copy_from_slice(&field.to_le_bytes());
        }
        self.rx.copy_in(slot_at(self.rx_responses, RX_SLOT), &slot);
        self.rx_responses = self.rx_responses.wrapping_add(1);
        self.rx.store(RSP_PROD, self.rx_responses);
    }

    /// Writes a response in the transmit ring, and shows it.
    pub fn answer_sent(&mut self, id: u16, status: i16) {
        let at = slot_at(self.tx_responses, TX_SLOT);
        self.tx.copy_in(at, &id.to_le_bytes());
        self.tx.copy_in(at + 2, &status.to_le_bytes());
        self.tx_responses = self.tx_responses.wrapping_add(1);
        self.tx.store(RSP_PROD, self.tx_responses);
    }

    /// Moves the index of the receive ring's responses away from where it should be.
    pub fn shift_rx(&self, by: u32) {
        self.rx.store(RSP_PROD, self.rx_responses.wrapping_add(by));
    }

    /// The same in the transmit ring.
    pub fn shift_tx(&self, by: u32) {
        self.tx.store(RSP_PROD, self.tx_responses.wrapping_add(by));
    }
}

const fn slot_at(index: u32, size: usize) -> usize {
    SLOTS + (index % SLOT_COUNT) as usize * size
}
