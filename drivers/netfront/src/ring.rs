//! One ring and the pages of its frames. The backend can write all of the ring's page at any moment.

use crate::fault::{Direction, Fault};
use crate::layout::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, RX_SLOT, SLOT_COUNT, SLOTS, TX_SLOT};
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};
use drivers::platform::{DomId, Errno, GrantRef, Platform};
use xenbus::pciif::SharedPage;

/// A page and its grant to the backend.
#[derive(Debug)]
pub struct Shared<Page> {
    /// The page.
    pub page: Page,
    /// Its grant reference.
    pub grant: GrantRef,
}

/// Where the page of a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// Here, and in no request.
    Us,
    /// In a request that the backend cannot see yet.
    Queue,
    /// In a request that has no response yet.
    Backend,
}

/// A page for frames. Its number in the ring is the id of its requests.
#[derive(Debug)]
struct Buffer<Page> {
    shared: Shared<Page>,
    holder: Holder,
    /// Bytes from the beginning that are not 0, as far as this end has written them.
    used: usize,
}

/// One ring.
#[derive(Debug)]
pub struct Ring<Page> {
    direction: Direction,
    shared: Shared<Page>,
    buffers: Vec<Buffer<Page>>,
    /// Index behind the last request that is written.
    produced: u32,
    /// Index behind the last request that the backend can see.
    published: u32,
    /// Index of the next response.
    consumed: u32,
}

impl<Page: SharedPage> Ring<Page> {
    /// Shares an empty ring and `count` pages for frames, fewer than slots, with `backend`.
    ///
    /// # Errors
    /// Xen's refusal. Nothing is shared then.
    pub fn share<P: Platform<Page = Page>>(
        platform: &mut P,
        backend: DomId,
        direction: Direction,
        count: usize,
    ) -> Result<Self, Errno> {
        let mut share = || {
            let (page, grant) = platform.share_spare_page(backend)?;
            Ok(Shared { page, grant })
        };
        let shared = share()?;
        let mut buffers = Vec::with_capacity(count);
        let mut refused = None;
        while buffers.len() < count && refused.is_none() {
            match share() {
                Ok(shared) => buffers.push(Buffer {
                    shared,
                    holder: Holder::Us,
                    used: 0,
                }),
                Err(errno) => refused = Some(errno),
            }
        }
        let ring = Self {
            direction,
            shared,
            buffers,
            produced: 0,
            published: 0,
            consumed: 0,
        };
        if let Some(errno) = refused {
            ring.unshare(platform);
            return Err(errno);
        }
        // The backend wants an event at the first request. This end's own index stays 0, and wants none.
        ring.shared.page.store(REQ_EVENT, 1);
        Ok(ring)
    }

    /// Grant reference of the ring's page.
    pub const fn grant(&self) -> GrantRef {
        self.shared.grant
    }

    /// Ends all grants.
    pub fn unshare<P: Platform<Page = Page>>(self, platform: &mut P) {
        platform.unshare_page(self.shared.page, self.shared.grant);
        for Buffer { shared, .. } in self.buffers {
            platform.unshare_page(shared.page, shared.grant);
        }
    }

    /// True if each request has had its response.
    pub const fn is_idle(&self) -> bool {
        self.produced == self.consumed
    }

    /// The number of a page that is in no request.
    pub fn free(&self) -> Option<u16> {
        let at = self
            .buffers
            .iter()
            .position(|buffer| buffer.holder == Holder::Us)?;
        u16::try_from(at).ok()
    }

    /// Puts `frame` at the beginning of page `id`, and zeros after it: the backend can read all of the page, and sees no
    /// more of an earlier frame than it has seen before.
    pub fn fill(&mut self, id: u16, frame: &[u8]) {
        const ZEROS: [u8; 64] = [0; 64];
        let Some(buffer) = self.buffers.get_mut(usize::from(id)) else {
            return;
        };
        buffer.shared.page.copy_in(0, frame);
        let mut at = frame.len();
        while at < buffer.used {
            let length = ZEROS.len().min(buffer.used - at);
            buffer.shared.page.copy_in(at, &ZEROS[..length]);
            at += length;
        }
        buffer.used = frame.len();
    }

    /// Copies bytes out of page `id`, once.
    pub fn copy_out(&self, id: u16, offset: usize, into: &mut [u8]) {
        if let Some(buffer) = self.buffers.get(usize::from(id)) {
            buffer.shared.page.copy_out(offset, into);
        }
    }

    /// Writes a request for page `id`, which is in none. The backend sees it after [`Self::publish`].
    pub fn request<const SLOT: usize>(&mut self, id: u16, request: impl FnOnce(GrantRef) -> [u8; SLOT]) {
        if let Some(buffer) = self.buffers.get_mut(usize::from(id)) {
            buffer.holder = Holder::Queue;
            let slot = request(buffer.shared.grant);
            let at = self.slot_at(self.produced);
            self.shared.page.copy_in(at, &slot);
            self.produced = self.produced.wrapping_add(1);
        }
    }

    /// Shows the backend the requests that were written; true if it wants an event for them.
    pub fn publish(&mut self) -> bool {
        if self.produced == self.published {
            return false;
        }
        for buffer in &mut self.buffers {
            if buffer.holder == Holder::Queue {
                buffer.holder = Holder::Backend;
            }
        }
        self.shared.page.store(REQ_PROD, self.produced);
        // The backend sets its event index and then looks for requests. Either it sees these, or they see the index.
        fence(Ordering::SeqCst);
        let event = self.shared.page.load(REQ_EVENT);
        let wanted = self.produced.wrapping_sub(event) < self.produced.wrapping_sub(self.published);
        self.published = self.produced;
        wanted
    }

    /// The first `N` bytes of the next response, copied out once, if there is one.
    ///
    /// # Errors
    /// [`Fault::Index`].
    pub fn next_response<const N: usize>(&mut self) -> Result<Option<[u8; N]>, Fault> {
        let responses = self.shared.page.load(RSP_PROD).wrapping_sub(self.consumed);
        let requests = self.published.wrapping_sub(self.consumed);
        // An index that has gone back is a great distance too.
        if responses > requests {
            return Err(Fault::Index {
                ring: self.direction,
                responses,
                requests,
            });
        }
        if responses == 0 {
            return Ok(None);
        }
        let mut response = [0; N];
        self.shared
            .page
            .copy_out(self.slot_at(self.consumed), &mut response);
        self.consumed = self.consumed.wrapping_add(1);
        Ok(Some(response))
    }

    /// Takes page `id` back, to which a response has come.
    ///
    /// # Errors
    /// [`Fault::Id`] if it is in no request, or there is no such page.
    pub fn take_back(&mut self, id: u16) -> Result<(), Fault> {
        match self.buffers.get_mut(usize::from(id)) {
            Some(buffer) if buffer.holder == Holder::Backend => {
                buffer.holder = Holder::Us;
                Ok(())
            }
            _ => Err(Fault::Id {
                ring: self.direction,
                id,
            }),
        }
    }

    /// Asks for an event at the next response; true if it is there already.
    pub fn arm(&mut self) -> bool {
        self.shared.page.store(RSP_EVENT, self.consumed.wrapping_add(1));
        // The other way round than in `publish`: either this end sees the response, or the backend sees the index.
        fence(Ordering::SeqCst);
        self.shared.page.load(RSP_PROD) != self.consumed
    }

    /// Offset of the slot with this index.
    const fn slot_at(&self, index: u32) -> usize {
        let size = match self.direction {
            Direction::Receive => RX_SLOT,
            Direction::Transmit => TX_SLOT,
        };
        SLOTS + (index % SLOT_COUNT) as usize * size
    }
}
