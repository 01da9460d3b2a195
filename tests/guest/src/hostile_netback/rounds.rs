//! What the backend does, one deed in each round.

use super::backend::{Fate, HostileNetback};
use super::draw;
use super::rings::{NetResponse, REQ_EVENT, REQ_PROD, RSP_PROD};
use crate::frontend::Failure;
use alloc::vec::Vec;
use core::time::Duration;
use drivers::platform::Platform;
use xenbus::client::Transport;
use xenbus::pciif::SharedPage;
use xenbus::state::XenbusState;

/// Length of a flood.
const FLOOD: Duration = Duration::from_secs(4);
/// Changes of the state in a flood of them.
const STATES: u32 = 300;
/// Progress of the random responses is told so often.
const STEPS: usize = 10;
/// One frame in so many has random contents. The others leave in the page what is there.
const FILLED_ONE_IN: u8 = 16;

impl<P: Platform, T: Transport> HostileNetback<'_, P, T> {
    /// Answers some requests as it should.
    pub(super) fn honest(&mut self) -> Result<(), Failure> {
        for _ in 0..4 {
            self.deliver(64)?;
        }
        self.answer_all_sent()
    }

    /// Sends a frame of this length with contents that no protocol knows.
    fn deliver(&mut self, length: i16) -> Result<(), Failure> {
        let (id, grant) = self.next_wanted()?;
        let mut frame = [0x55; 1518];
        // To all stations, of a type that none knows.
        frame[..14].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
        self.write_page(grant, &frame[..length.unsigned_abs().into()]);
        self.mapped()?.answer_wanted(NetResponse::frame(id, length));
        self.notify();
        Ok(())
    }

    fn next_wanted(&mut self) -> Result<(u16, u32), Failure> {
        self.wait_for_request("a request for a frame", |rings| rings.wanted() > 0)?;
        self.mapped()?
            .take_wanted()
            .ok_or(Failure::Unsound("a request that has gone"))
    }

    fn answer_all_sent(&mut self) -> Result<(), Failure> {
        let rings = self.mapped()?;
        while let Some(id) = rings.take_sent() {
            rings.answer_sent(id, 0);
        }
        self.notify();
        Ok(())
    }

    /// Answers the next request for a frame with this response, whose number is that of the request.
    fn answer_with(&mut self, response: NetResponse) -> Result<(), Failure> {
        let (id, _) = self.next_wanted()?;
        self.mapped()?.answer_wanted(NetResponse { id, ..response });
        self.notify();
        Ok(())
    }

    pub(super) fn strange_id(&mut self) -> Result<(), Failure> {
        self.next_wanted()?;
        self.mapped()?.answer_wanted(NetResponse::frame(1234, 64));
        self.notify();
        Ok(())
    }

    pub(super) fn twice(&mut self) -> Result<(), Failure> {
        let (id, _) = self.next_wanted()?;
        let rings = self.mapped()?;
        rings.answer_wanted(NetResponse::frame(id, 64));
        rings.answer_wanted(NetResponse::frame(id, 64));
        self.notify();
        Ok(())
    }

    pub(super) fn unsent(&mut self) -> Result<(), Failure> {
        // Those that were sent are answered; the frontend is free to send more at any moment.
        self.answer_all_sent()?;
        self.mapped()?.answer_sent(4321, 0);
        self.notify();
        Ok(())
    }

    pub(super) fn short(&mut self) -> Result<(), Failure> {
        self.answer_with(NetResponse::frame(0, 13))
    }

    pub(super) fn long(&mut self) -> Result<(), Failure> {
        self.answer_with(NetResponse::frame(0, 1519))
    }

    pub(super) fn over_the_end(&mut self) -> Result<(), Failure> {
        self.answer_with(NetResponse {
            offset: 4096 - 63,
            ..NetResponse::frame(0, 64)
        })
    }

    pub(super) fn more_slots(&mut self) -> Result<(), Failure> {
        self.answer_with(NetResponse {
            flags: 1 << 2,
            ..NetResponse::frame(0, 64)
        })
    }

    pub(super) fn strange_status(&mut self) -> Result<(), Failure> {
        // If the frontend has sent nothing, an answer is one too many.
        let id = self.mapped()?.take_sent().unwrap_or_default();
        self.mapped()?.answer_sent(id, 1);
        self.notify();
        Ok(())
    }

    pub(super) fn far_ahead(&mut self) -> Result<(), Failure> {
        self.mapped()?.shift_rx(0x7fff_fff0);
        self.notify();
        Ok(())
    }

    pub(super) fn back(&mut self) -> Result<(), Failure> {
        let before = self.mapped()?.wanted();
        self.deliver(64)?;
        self.answer_all_sent()?;
        // When the page is asked for again, the frontend has seen the index.
        self.wait_for_request("the page of a frame", |rings| rings.wanted() >= before)?;
        let rings = self.mapped()?;
        rings.shift_rx(u32::MAX);
        rings.shift_tx(u32::MAX);
        self.notify();
        Ok(())
    }

    pub(super) fn torn(&mut self) -> Result<(), Failure> {
        // As if the index of four bytes were written in two steps, upper byte first.
        self.mapped()?.rx.copy_in(RSP_PROD + 3, &[0x80]);
        self.notify();
        Ok(())
    }

    pub(super) fn garbage(&mut self) -> Result<(), Failure> {
        let mut bytes = [0; 4096 - 64];
        self.random.fill(&mut bytes);
        let rings = self.mapped()?;
        rings.rx.copy_in(64, &bytes);
        rings.tx.copy_in(64, &bytes);
        rings.shift_rx(8);
        self.notify();
        Ok(())
    }

    pub(super) fn dropped(&mut self) -> Result<(), Failure> {
        for status in [-1, -2, i16::MIN] {
            self.answer_with(NetResponse::frame(0, status))?;
        }
        // Its checksum was not computed.
        self.answer_with(NetResponse {
            flags: 1 << 1,
            ..NetResponse::frame(0, 64)
        })
    }

    /// The frontend keeps indices of its own, and reads no request back.
    pub(super) fn scribble(&mut self) -> Result<(), Failure> {
        let taken = self.next_wanted()?;
        for _ in 0..100 {
            let (a, b) = (self.random.u32(..), self.random.u32(..));
            let rings = self.mapped()?;
            for ring in [&rings.rx, &rings.tx] {
                ring.store(REQ_PROD, a);
                ring.store(REQ_EVENT, b);
            }
            self.notify();
        }
        self.mapped()?.answer_wanted(NetResponse::frame(taken.0, 64));
        self.notify();
        Ok(())
    }

    pub(super) fn lost_events(&mut self) -> Result<(), Failure> {
        let rings = self.mapped()?;
        while let Some((id, _)) = rings.take_wanted() {
            rings.answer_wanted(NetResponse::frame(id, 64));
        }
        while let Some(id) = rings.take_sent() {
            rings.answer_sent(id, 0);
        }
        Ok(())
    }

    pub(super) fn event_flood(&mut self) -> Result<(), Failure> {
        let end = self.platform.now().saturating_add(FLOOD);
        while self.rest() < end {
            self.notify();
        }
        Ok(())
    }

    pub(super) fn frame_flood(&mut self) -> Result<(), Failure> {
        let end = self.platform.now().saturating_add(FLOOD);
        let mut frames = 0u64;
        while self.rest() < end {
            let rings = self.mapped()?;
            let mut answered = false;
            while let Some((id, _)) = rings.take_wanted() {
                rings.answer_wanted(NetResponse::frame(id, 1514));
                frames += 1;
                answered = true;
            }
            if answered {
                self.notify();
            } else {
                self.platform.relax();
            }
        }
        log::info!("netback: {frames} frames in {} s", FLOOD.as_secs());
        Ok(())
    }

    pub(super) fn unmapped(&mut self) -> Result<(), Failure> {
        // With requests under way.
        self.next_wanted()?;
        self.unmap();
        Ok(())
    }

    /// The frontend ends its grants while they are in use (XSA-396). Two pages: a guest of ours maps four at a time.
    pub(super) fn kept(&mut self) -> Result<(), Failure> {
        let (_, grant) = self.next_wanted()?;
        let page = self.platform.map_grant(self.domain, grant);
        self.kept.extend(page.ok());
        if let Some(rings) = self.rings.take() {
            self.platform.close(rings.port);
            self.platform.unmap_grant(rings.tx);
            self.kept.push(rings.rx);
        }
        Ok(())
    }

    /// Writes into the pages of before: they must be nobody's. Then lets them go.
    pub(super) fn after_kept(&mut self) -> Result<(), Failure> {
        for page in &self.kept {
            page.copy_in(0, &[0xee; 4096]);
        }
        self.honest()?;
        for page in core::mem::take(&mut self.kept) {
            self.platform.unmap_grant(page);
        }
        self.honest()
    }

    /// Other states without a pause. In the end it is connected, as far as it knows.
    pub(super) fn state_flood(&mut self) -> Result<(), Failure> {
        use XenbusState::*;
        const ALL: [XenbusState; 7] = [
            Unknown,
            Initialising,
            InitWait,
            Initialised,
            Connected,
            Closing,
            Closed,
        ];
        for _ in 0..STATES {
            let state = ALL[self.random.usize(..ALL.len())];
            self.set_state(state)?;
        }
        self.set_state(Connected)
    }

    /// Gives `count` random responses; the number of wrong ones, after each of which the frontend gave up.
    pub(super) fn at_random(&mut self, count: usize) -> Result<usize, Failure> {
        let (mut done, mut wrong, mut told) = (0, 0, 0);
        while done < count {
            if self.rings.is_none() {
                self.connect()?;
            }
            self.wait_for_request("any request", |rings| rings.wanted() + rings.sent() > 0)?;
            self.rest();
            let (given, was_wrong) = self.give(count - done)?;
            done += given;
            if was_wrong {
                wrong += 1;
                self.notify();
                let seen = self.see(Fate::GivesUp);
                let ended = self.end();
                seen.and(ended)?;
            } else if self.random.u8(..8) != 0 {
                // Or else the event is lost, until the next look at an empty ring.
                self.notify();
            }
            if done * STEPS / count > told {
                told = done * STEPS / count;
                log::info!("netback: {done} of {count} random responses");
            }
        }
        if self.rings.is_some() {
            let seen = self.see(Fate::Stays);
            let ended = self.end();
            seen.and(ended)?;
        }
        Ok(wrong)
    }

    /// Answers some of the requests that are there, at most `most`; how many, and whether the last one is wrong.
    fn give(&mut self, most: usize) -> Result<(usize, bool), Failure> {
        let mut wanted = Vec::new();
        let mut sent = Vec::new();
        let rings = self.mapped()?;
        while wanted.len() < most
            && let Some(request) = rings.take_wanted()
        {
            wanted.push(request);
        }
        while wanted.len() + sent.len() < most
            && let Some(id) = rings.take_sent()
        {
            sent.push(id);
        }
        // In any order: a request is known by its number.
        self.random.shuffle(&mut wanted);
        self.random.shuffle(&mut sent);
        let mut given = 0;
        for (id, grant) in wanted {
            if self.random.u8(..FILLED_ONE_IN) == 0 {
                let mut bytes = [0; 256];
                self.random.fill(&mut bytes);
                self.write_page(grant, &bytes);
            }
            given += 1;
            if draw::is_wrong(&mut self.random) {
                let response = draw::wrong(&mut self.random, id);
                self.mapped()?.answer_wanted(response);
                return Ok((given, true));
            }
            let response = draw::right(&mut self.random, id);
            self.mapped()?.answer_wanted(response);
        }
        for id in sent {
            given += 1;
            if draw::is_wrong(&mut self.random) {
                let status = self.random.i16(1..);
                self.mapped()?.answer_sent(id, status);
                return Ok((given, true));
            }
            let status = draw::right_status(&mut self.random);
            self.mapped()?.answer_sent(id, status);
        }
        Ok((given, false))
    }
}
