//! The connection to xenstored: one page with two byte rings, and an event channel.

use crate::kept::{LAST_REQUEST, NEXT_REPLY};
use crate::page::RawPage;
use crate::{deadline, event};
use core::fmt;
use core::sync::atomic::Ordering;
use drivers::platform::Port;
use xenbus::client::Transport;
use xenbus::pciif::SharedPage;
use xenbus::ring::{ByteRing, Corrupt, STORE_REPLIES, STORE_REQUESTS};
use xenbus::wire::Header;

/// The event channel to xenstored.
pub trait Channel {
    /// Has xenstored look at the rings.
    ///
    /// # Errors
    /// Xen refuses.
    fn notify(&self) -> Result<(), StoreError>;
    /// Forgets an event of xenstored's.
    fn clear(&self);
    /// Blocks until there is an event of xenstored's.
    fn wait(&self);
}

impl Channel for Port {
    fn notify(&self) -> Result<(), StoreError> {
        event::send(*self).map_err(|_| StoreError::Port(*self))
    }

    fn clear(&self) {
        event::take_pending(*self);
    }

    fn wait(&self) {
        deadline::wait(&[*self], None);
    }
}

/// The xenstore page and its event channel, from start info.
#[derive(Debug)]
pub struct StoreRing<P = RawPage, C = Port> {
    page: P,
    channel: C,
    /// The rest of a message that an earlier run was reading may still be there, or still come.
    behind: bool,
}

impl<P: SharedPage, C: Channel> StoreRing<P, C> {
    /// Resumes the connection of an earlier run, if there was one. The rest of a reply that it was reading is dropped here;
    /// later replies to its requests are dropped by [`Client::resume`](xenbus::client::Client).
    ///
    /// The ring never holds a part of a request: see [`Transport::send`].
    pub fn resume(page: P, channel: C) -> Self {
        if LAST_REQUEST.load(Ordering::Relaxed) == 0 {
            // Nothing was ever read: the first message is the next.
            NEXT_REPLY.store(page.load(STORE_REPLIES.consumer), Ordering::Relaxed);
        }
        Self {
            page,
            channel,
            behind: true,
        }
    }

    /// Number of the last request that was made, in whichever run; 0 before the first.
    pub fn last_request(&self) -> u32 {
        LAST_REQUEST.load(Ordering::Relaxed)
    }

    /// Drops what is left of a message that an earlier run was reading.
    fn catch_up(&mut self) -> Result<(), StoreError> {
        while self.behind {
            self.channel.clear();
            self.behind = !STORE_REPLIES.skip(&self.page, &NEXT_REPLY)?;
            // There is room for more.
            self.channel.notify()?;
            if self.behind {
                self.channel.wait();
            }
        }
        Ok(())
    }

    /// Moves bytes until `total` are done. `advance` moves some from an offset on, and returns how many.
    fn run(
        &mut self,
        total: usize,
        mut advance: impl FnMut(&P, usize) -> Result<usize, Corrupt>,
    ) -> Result<(), StoreError> {
        let mut done = 0;
        while done < total {
            // Cleared before the ring is read: an event that comes after that ends the wait.
            self.channel.clear();
            match advance(&self.page, done)? {
                0 => self.channel.wait(),
                count => {
                    done += count;
                    self.channel.notify()?;
                }
            }
        }
        Ok(())
    }
}

impl StoreRing {
    /// The port on which xenstored tells of replies and watch events.
    pub const fn port(&self) -> Port {
        self.channel
    }
}

/// The connection to xenstored is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// xenstored wrote nonsense.
    Ring(Corrupt),
    /// The event channel is not ours.
    Port(Port),
    /// A request of this many bytes: more than the ring holds, or less than a header.
    TooLong(usize),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(corrupt) => write!(f, "xenstore connection: {corrupt}"),
            Self::Port(port) => write!(f, "xenstore connection: Xen refuses event channel port {port}"),
            Self::TooLong(bytes) => write!(f, "xenstore connection: a request of {bytes} bytes does not fit"),
        }
    }
}

impl From<Corrupt> for StoreError {
    fn from(corrupt: Corrupt) -> Self {
        Self::Ring(corrupt)
    }
}

impl<P: SharedPage, C: Channel> Transport for StoreRing<P, C> {
    type Error = StoreError;

    /// A message goes into the ring whole.
    const PAYLOAD_MAX: usize = STORE_REQUESTS.size as usize - Header::SIZE;

    /// Sends one whole message. It goes into the ring by one change of the index, so that a run that ends leaves no part of
    /// one. xenstored has taken the request before this one, so there is room. Only the first request of a run may find the
    /// ring full: the last run may have ended before it told xenstored of its request.
    fn send(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        const RING: ByteRing = STORE_REQUESTS;
        let too_long = StoreError::TooLong(bytes.len());
        let header = bytes.first_chunk().ok_or(too_long)?;
        if bytes.len() > RING.size as usize {
            return Err(too_long);
        }
        if self.behind {
            self.channel.notify()?;
        }
        LAST_REQUEST.store(Header::decode(header).request, Ordering::Relaxed);
        self.run(bytes.len(), |page, _| {
            if (RING.size - RING.held(page)?) as usize >= bytes.len() {
                RING.push(page, bytes)
            } else {
                Ok(0)
            }
        })
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<(), StoreError> {
        const RING: ByteRing = STORE_REPLIES;
        if self.behind {
            self.catch_up()?;
        }
        self.run(into.len(), |page, done| {
            RING.pop_message(page, &NEXT_REPLY, &mut into[done..])
        })
    }

    fn ready(&mut self) -> Result<bool, StoreError> {
        Ok(STORE_REPLIES.held(&self.page)? > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use core::cell::Cell;
    use xenbus::model::Page;

    /// xenstored, as far as the rings go: once told, it takes all requests while the stub waits.
    struct Xenstored<'a> {
        page: &'a Page,
        told: Cell<bool>,
        taken: Cell<usize>,
    }

    impl Channel for Xenstored<'_> {
        fn notify(&self) -> Result<(), StoreError> {
            self.told.set(true);
            Ok(())
        }

        fn clear(&self) {}

        fn wait(&self) {
            assert!(self.told.take(), "both sides would wait for ever");
            let mut all = [0; STORE_REQUESTS.size as usize];
            self.taken
                .set(self.taken.get() + STORE_REQUESTS.pop(self.page, &mut all).unwrap());
        }
    }

    #[test]
    fn a_run_that_finds_the_ring_full_tells_xenstored_before_it_waits() {
        for left in [0, 500, STORE_REQUESTS.size as usize] {
            let page = Page::new();
            STORE_REQUESTS
                .push(&page, &Vec::from_iter((0..left).map(|_| 7)))
                .unwrap();
            let xenstored = Xenstored {
                page: &page,
                told: Cell::new(false),
                taken: Cell::new(0),
            };
            let mut ring = StoreRing::resume(page.clone(), xenstored);
            for _ in 0..20 {
                ring.send(&[0; 700]).unwrap();
                assert!(ring.channel.told.get());
            }
            assert!(ring.channel.taken.get() >= left);
        }
    }
}
