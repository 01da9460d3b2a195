//! What is shared with the backend in one connection: two rings, their pages, and a port.

use crate::fault::{Direction, Fault};
use crate::layout::{
    FRAME_MAX, FRAME_MIN, RX_CHECKSUM_BLANK, RX_DATA_VALIDATED, RxRequest, RxResponse, TxRequest, TxResponse,
};
use crate::ring::Ring;
use crate::statistics::Statistics;
use crate::{RX, TX};
use drivers::platform::{DomId, Errno, GrantRef, Platform, Port};
use xenbus::pciif::SharedPage;
use xenbus::pciif::page::PAGE_SIZE;

/// Both rings and the port of one connection.
#[derive(Debug)]
pub struct Channel<Page> {
    rx: Ring<Page>,
    tx: Ring<Page>,
    port: Port,
}

impl<Page: SharedPage> Channel<Page> {
    /// Shares all pages and a port with `backend`, and asks for frames.
    ///
    /// # Errors
    /// Xen's refusal. Nothing is shared then.
    pub fn share<P: Platform<Page = Page>>(platform: &mut P, backend: DomId) -> Result<Self, Errno> {
        let mut rx = Ring::share(platform, backend, Direction::Receive, RX)?;
        let tx = match Ring::share(platform, backend, Direction::Transmit, TX) {
            Ok(tx) => tx,
            Err(errno) => {
                rx.unshare(platform);
                return Err(errno);
            }
        };
        let port = match platform.alloc_unbound(backend) {
            Ok(port) => port,
            Err(errno) => {
                rx.unshare(platform);
                tx.unshare(platform);
                return Err(errno);
            }
        };
        while let Some(id) = rx.free() {
            rx.request(id, |grant| RxRequest { id, grant }.encode());
        }
        // The backend finds them when it connects.
        rx.publish();
        Ok(Self { rx, tx, port })
    }

    /// Closes the port and ends the grants.
    pub fn unshare<P: Platform<Page = Page>>(self, platform: &mut P) {
        platform.close(self.port);
        self.rx.unshare(platform);
        self.tx.unshare(platform);
    }

    /// Grant reference of the receive ring.
    pub const fn rx_grant(&self) -> GrantRef {
        self.rx.grant()
    }

    /// Grant reference of the transmit ring.
    pub const fn tx_grant(&self) -> GrantRef {
        self.tx.grant()
    }

    /// The local port.
    pub const fn port(&self) -> Port {
        self.port
    }

    /// Takes the next frame; its length, or `None` if there is none. Takes back the pages of frames that were sent, too.
    ///
    /// # Errors
    /// The first response that is not allowed.
    pub fn receive(
        &mut self,
        into: &mut [u8; FRAME_MAX],
        statistics: &mut Statistics,
    ) -> Result<Option<usize>, Fault> {
        self.reap(statistics)?;
        // Responses without a frame are passed over. There are at most so many: new requests are not seen before `flush`.
        for _ in 0..RX {
            let Some(slot) = self.rx.next_response()? else {
                return Ok(None);
            };
            let response = RxResponse::decode(&slot);
            self.rx.take_back(response.id)?;
            let frame = check(response)?;
            if let Some((offset, length)) = frame {
                // Once, before the page can be used again: what the user sees cannot change any more (XSA-155).
                self.rx.copy_out(response.id, offset, &mut into[..length]);
            }
            let id = response.id;
            self.rx.request(id, |grant| RxRequest { id, grant }.encode());
            if let Some((_, length)) = frame {
                statistics.received_frames += 1;
                statistics.received_bytes += length as u64;
                return Ok(Some(length));
            }
            statistics.receive_dropped += 1;
        }
        Ok(None)
    }

    /// True if a page for a frame is free, after the backend's responses were taken.
    ///
    /// # Errors
    /// The first response that is not allowed.
    pub fn can_transmit(&mut self, statistics: &mut Statistics) -> Result<bool, Fault> {
        self.reap(statistics)?;
        Ok(self.tx.free().is_some())
    }

    /// Takes back the pages of frames that were sent.
    fn reap(&mut self, statistics: &mut Statistics) -> Result<(), Fault> {
        // There are at most so many: new requests are not seen before `flush`.
        for _ in 0..TX {
            let Some(bytes) = self.tx.next_response()? else {
                break;
            };
            let response = TxResponse::decode(&bytes);
            self.tx.take_back(response.id)?;
            match response.status {
                0 => {}
                // Not sent. Frames may be lost in any network.
                ..0 => statistics.send_dropped += 1,
                status => {
                    return Err(Fault::Status {
                        ring: Direction::Transmit,
                        status,
                    });
                }
            }
        }
        Ok(())
    }

    /// True while the backend has not answered all requests to send.
    ///
    /// # Errors
    /// As [`Self::can_transmit`].
    pub fn is_transmitting(&mut self, statistics: &mut Statistics) -> Result<bool, Fault> {
        self.can_transmit(statistics)?;
        Ok(!self.tx.is_idle())
    }

    /// Writes a request to send `frame`; false if it is too long, too short, or no page is free.
    ///
    /// # Errors
    /// As [`Self::can_transmit`].
    pub fn transmit(&mut self, frame: &[u8], statistics: &mut Statistics) -> Result<bool, Fault> {
        self.reap(statistics)?;
        let size = u16::try_from(frame.len()).ok();
        let size = size.filter(|_| (FRAME_MIN..=FRAME_MAX).contains(&frame.len()));
        let (Some(size), Some(id)) = (size, self.tx.free()) else {
            statistics.send_dropped += 1;
            return Ok(false);
        };
        self.tx.fill(id, frame);
        self.tx
            .request(id, |grant| TxRequest { grant, id, size }.encode());
        statistics.sent_frames += 1;
        statistics.sent_bytes += u64::from(size);
        Ok(true)
    }

    /// Shows the backend all requests; true if it wants an event.
    pub fn publish(&mut self) -> bool {
        let rx = self.rx.publish();
        let tx = self.tx.publish();
        rx || tx
    }

    /// Asks for an event at the next frame, and at the next free page if there is none; true if it is there already.
    pub fn arm(&mut self) -> bool {
        // A frame that was sent is no reason to wake up, unless the next one waits for its page. Nothing is received before
        // that: a frame may have to be answered.
        if self.tx.free().is_none() {
            return self.tx.arm();
        }
        self.rx.arm()
    }
}

/// Where the frame of a response lies in its page: offset and length. `None`: the backend has dropped it, or its checksum was
/// not computed, which this end has declined (`feature-no-csum-offload`): no receiver would take it.
///
/// # Errors
/// What is wrong with the response.
fn check(response: RxResponse) -> Result<Option<(usize, usize)>, Fault> {
    let RxResponse {
        offset,
        flags,
        status,
        ..
    } = response;
    // More slots, extra information, and any flag to come: none was negotiated (XSA-432).
    if flags & !(RX_DATA_VALIDATED | RX_CHECKSUM_BLANK) != 0 {
        return Err(Fault::Flags(flags));
    }
    // Below 0: no frame.
    let Ok(length) = u16::try_from(status) else {
        return Ok(None);
    };
    let (from, count) = (usize::from(offset), usize::from(length));
    if !(FRAME_MIN..=FRAME_MAX).contains(&count) || from + count > PAGE_SIZE {
        return Err(Fault::Range { offset, length });
    }
    let complete = flags & RX_CHECKSUM_BLANK == 0;
    Ok(complete.then_some((from, count)))
}
