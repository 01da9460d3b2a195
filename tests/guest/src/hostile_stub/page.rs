//! Attacks by the page of the second hop.

use super::misuse::Misuse;
use super::stub::{FLOOD, HostileStub};
use super::tally::Kind;
use crate::frontend::Failure;
use crate::op::Op;
use alloc::vec::Vec;
use core::time::Duration;
use xenbus::client::Transport;
use xenbus::pciif::layout::{AER_OP, FLAGS, OP, OP_SIZE, TOTAL_SIZE};
use xenbus::pciif::{ACTIVE, Command, SharedPage};
use xenbus::{counters, handover_block};

/// How long to wait for an answer that need not come.
const TIMEOUT: Duration = Duration::from_millis(20);
/// Repetitions of an action that dom0 must look at.
const ROUNDS: usize = 300;
/// Bytes of a page.
const PAGE: usize = 4096;
/// Size of the handover block in bytes.
const HANDOVER: usize = PAGE - handover_block::OFFSET;

impl<P: Misuse, T: Transport> HostileStub<'_, P, T> {
    /// Sends a request, and waits a moment for its answer.
    fn ask(&mut self, op: &Op) {
        self.tally.count(Kind::Request);
        self.hop.send(self.platform, &op.encode());
        self.settle();
    }

    /// Waits a moment for an answer, and withdraws the request if there is none.
    pub(super) fn settle(&mut self) {
        let end = self.platform.now().saturating_add(TIMEOUT);
        while self.hop.is_active() && self.platform.now() < end {
            // Clear the event before the page is checked, so that an event after the check ends the wait.
            self.platform.take_pending(self.hop.port);
            if self.hop.is_active() {
                self.platform.wait(&[self.hop.port], Some(end));
            }
        }
        self.hop.page.clear_bits(FLAGS, ACTIVE);
    }

    /// A request about the device of that number.
    fn about(&self, device: usize, op: Op) -> Op {
        let Some(function) = self.devices.get(device) else {
            return op;
        };
        Op {
            domain: function.bdf.segment().into(),
            bus: function.bdf.bus().into(),
            devfn: function.bdf.devfn().into(),
            ..op
        }
    }

    /// A random request, mostly about a device of ours and nearly valid.
    pub(super) fn random_request(&mut self) -> Op {
        let device = self.random.usize(..self.devices.len().max(1));
        let random = &mut self.random;
        let command = match random.u8(..16) {
            0 => random.u32(..),
            1 => random.u32(..12),
            2 => Command::EnableMsi.raw(),
            3 => Command::EnableMsix.raw(),
            4 => Command::DisableMsi.raw(),
            5 => Command::DisableMsix.raw(),
            6 => Command::ConfRead.raw(),
            _ => Command::ConfWrite.raw(),
        };
        let offset = match random.u8(..8) {
            0 => random.i32(..),
            1 => random.i32(-8..5000),
            2 => random.i32(0x40..0x100),
            _ => random.i32(..0x100),
        };
        let size = [1, 2, 4, 1, 2, 4, 0, random.i32(..)][random.usize(..8)];
        let value = match random.u8(..4) {
            0 => 0,
            1 => u32::MAX,
            2 => 1 << random.u8(..32),
            _ => random.u32(..),
        };
        let entries: Vec<u16> = (0..random.usize(..6))
            .map(|_| {
                if random.bool() {
                    random.u16(..8)
                } else {
                    random.u16(..)
                }
            })
            .collect();
        let sound_count = random.u8(..4) != 0 && command == Command::EnableMsix.raw();
        let op = Op {
            command,
            offset,
            size,
            value: if sound_count { entries.len() as u32 } else { value },
            entries,
            ..Op::read(random.u32(..), 0, 4)
        };
        match random.u8(..8) {
            0 => Op {
                domain: random.u32(..),
                bus: random.u32(..),
                ..op
            },
            1 => Op {
                devfn: random.u32(..0x100),
                ..op
            },
            _ => self.about(device, op),
        }
    }

    pub(super) fn garbage_requests(&mut self) -> Result<(), Failure> {
        for _ in 0..ROUNDS * 4 {
            let op = self.random_request();
            self.ask(&op);
        }
        Ok(())
    }

    /// Every operation for every function of the first buses, with otherwise valid values.
    pub(super) fn foreign_devices(&mut self) -> Result<(), Failure> {
        let ours: Vec<_> = self.devices.iter().map(|device| device.bdf).collect();
        for (bus, devfn) in (0..2u32).flat_map(|bus| (0..0x100u32).map(move |devfn| (bus, devfn))) {
            if bus != 0 && devfn % 8 != 0
                || ours
                    .iter()
                    .any(|bdf| (u32::from(bdf.bus()), u32::from(bdf.devfn())) == (bus, devfn))
            {
                continue;
            }
            for op in [
                Op::write(devfn, 0x04, 2, 0),
                Op::write(devfn, 0x10, 4, 0),
                Op::new(Command::EnableMsi, devfn),
                Op::msix(devfn, [0]),
                Op::new(Command::DisableMsix, devfn),
            ] {
                self.tally.count(Kind::Request);
                self.hop.send(self.platform, &Op { bus, ..op }.encode());
                self.settle();
                let mut error = [0; 4];
                self.hop.page.copy_out(OP + 4, &mut error);
                if i32::from_le_bytes(error) == 0 {
                    return Err(Failure::Unsound(
                        "a request for a device of another was carried out",
                    ));
                }
            }
        }
        Ok(())
    }

    /// Zeros and ones to every register of the first 256 bytes in every width, and to some registers above.
    pub(super) fn every_register(&mut self) -> Result<(), Failure> {
        for device in 0..self.devices.len() {
            for size in [1, 2, 4] {
                for offset in (0..0x100).step_by(size as usize) {
                    for value in [u32::MAX, 0] {
                        let op = self.about(device, Op::write(0, offset, size, value));
                        self.ask(&op);
                    }
                }
            }
            for offset in (0x100..0x1000).step_by(0x1c) {
                let op = self.about(device, Op::write(0, offset & !3, 4, u32::MAX));
                self.ask(&op);
            }
        }
        Ok(())
    }

    pub(super) fn changing_requests(&mut self) -> Result<(), Failure> {
        for _ in 0..ROUNDS * 2 {
            let op = self.random_request();
            self.tally.count(Kind::Request);
            self.hop.send(self.platform, &op.encode());
            for _ in 0..self.random.usize(1..100) {
                if !self.hop.is_active() {
                    break;
                }
                self.change_request();
            }
            self.settle();
        }
        Ok(())
    }

    /// Changes a byte of the request, mostly one that the service uses.
    pub(super) fn change_request(&mut self) {
        self.tally.count(Kind::Change);
        let at = OP + self.random.usize(..OP_SIZE.min(64));
        let byte = if self.random.bool() {
            self.random.u8(..8)
        } else {
            self.random.u8(..)
        };
        self.hop.page.copy_in(at, &[byte]);
        if self.random.u8(..8) == 0 {
            self.platform.relax();
        }
    }

    pub(super) fn message_orders(&mut self) -> Result<(), Failure> {
        for _ in 0..ROUNDS {
            let device = self.random.usize(..self.devices.len().max(1));
            let count = self.random.u16(..6);
            let op = match self.random.u8(..6) {
                0 | 1 => Op::new(Command::EnableMsi, 0),
                2 | 3 => Op::msix(0, 0..count),
                4 => Op::new(Command::DisableMsi, 0),
                _ => Op::new(Command::DisableMsix, 0),
            };
            let op = self.about(device, op);
            self.ask(&op);
        }
        Ok(())
    }

    /// Random flags, and random verdicts on errors that no device had.
    pub(super) fn flags(&mut self) -> Result<(), Failure> {
        for _ in 0..ROUNDS * 4 {
            self.flip_flags();
        }
        self.hop.page.clear_bits(FLAGS, u32::MAX);
        Ok(())
    }

    pub(super) fn flip_flags(&mut self) {
        self.tally.count(Kind::Flags);
        let mut verdict = [0; TOTAL_SIZE - AER_OP];
        self.random.fill(&mut verdict);
        self.hop.page.copy_in(AER_OP, &verdict);
        let bits = self.random.u32(..);
        if self.random.bool() {
            self.hop.page.set_bits(FLAGS, bits);
        } else {
            self.hop.page.clear_bits(FLAGS, bits);
        }
        self.platform.notify(self.hop.port);
    }

    /// Requests as fast as they can be written, without reading an answer.
    pub(super) fn untaken_answers(&mut self) -> Result<(), Failure> {
        let end = self.platform.now().saturating_add(FLOOD);
        while self.platform.now() < end {
            let op = self.random_request();
            self.tally.count(Kind::Request);
            self.hop.send(self.platform, &op.encode());
            if self.random.u8(..4) == 0 {
                self.platform.relax();
            }
        }
        self.settle();
        Ok(())
    }

    pub(super) fn event_flood(&mut self) -> Result<(), Failure> {
        let end = self.platform.now().saturating_add(FLOOD);
        while self.platform.now() < end {
            self.tally.count(Kind::Event);
            self.platform.notify(self.hop.port);
        }
        Ok(())
    }

    pub(super) fn counters(&mut self) -> Result<(), Failure> {
        for round in 0..ROUNDS {
            self.garble_counters(round % 2 == 0);
            if round % 16 == 0 {
                self.pause(TIMEOUT);
            }
        }
        // The last values stay for `bulkhead status`: the largest that there are.
        self.hop.page.copy_in(counters::OFFSET, b"BHCT");
        self.hop
            .page
            .copy_in(counters::OFFSET + 4, &counters::VERSION.to_le_bytes());
        self.hop
            .page
            .copy_in(counters::OFFSET + 8, &[0xff; counters::BLOCK_SIZE - 8]);
        self.pause(FLOOD / 2);
        Ok(())
    }

    /// Random bytes after a valid head, or instead of it.
    pub(super) fn garble_counters(&mut self, sound: bool) {
        self.tally.count(Kind::Counters);
        let mut block = [0; counters::BLOCK_SIZE];
        self.random.fill(&mut block);
        if sound {
            block[..4].copy_from_slice(b"BHCT");
            block[4..8].copy_from_slice(&counters::VERSION.to_le_bytes());
        }
        self.hop.page.copy_in(counters::OFFSET, &block);
    }

    pub(super) fn handover(&mut self) -> Result<(), Failure> {
        for round in 0..ROUNDS {
            self.garble_handover(round % 4 != 0);
            if round % 16 == 0 {
                self.pause(TIMEOUT);
            }
        }
        Ok(())
    }

    /// A block with a valid head and numbers that may be too large; or random bytes.
    pub(super) fn garble_handover(&mut self, sound: bool) {
        self.tally.count(Kind::Handover);
        let mut block = [0; HANDOVER];
        self.random.fill(&mut block);
        if sound {
            block[..4].copy_from_slice(b"BHSV");
            block[4..8].copy_from_slice(&handover_block::VERSION.to_le_bytes());
            let functions = [0u16, 1, 256, 257, u16::MAX][self.random.usize(..5)];
            block[8..10].copy_from_slice(&functions.to_le_bytes());
            block[10] = [0, 4, 5, 255][self.random.usize(..4)];
            block[11] = [0, 1, 1, 2][self.random.usize(..4)];
        }
        self.hop.page.copy_in(handover_block::OFFSET, &block);
    }
}
