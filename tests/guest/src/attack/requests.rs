//! Attacks by the shared page: requests that change, garbage, flags, and events.

use super::{Attacker, ROUNDS};
use crate::frontend::Failure;
use crate::grants::Grants;
use crate::op::Op;
use crate::random::Random;
use core::time::Duration;
use xenbus::client::Transport;
use xenbus::pciif::layout::{FLAGS, OP, OP_SIZE, TOTAL_SIZE};
use xenbus::pciif::{ACTIVE, SharedPage};

/// How long events are sent.
const STORM: Duration = Duration::from_secs(3);

impl<P: Grants, T: Transport> Attacker<'_, P, T> {
    /// Requests of all kinds. Any byte of a request may change until its answer is there.
    pub(super) fn changing_requests(&mut self) -> Result<(), Failure> {
        let mut requests = Random::new(&self.shapes, self.random.u64(..));
        for _ in 0..ROUNDS {
            let Some(op) = requests.next() else { return Ok(()) };
            self.frontend.send(self.platform, &op.encode());
            for _ in 0..self.random.usize(1..200) {
                if !self.frontend.is_active() {
                    break;
                }
                // Mostly the words that the backend uses: command, function, size, number of vectors, first entries.
                let at = OP + self.random.usize(..52);
                let byte = if self.random.bool() {
                    self.random.u8(..8)
                } else {
                    self.random.u8(..)
                };
                self.frontend.page.copy_in(at, &[byte]);
                if self.random.u8(..8) == 0 {
                    self.platform.relax();
                }
            }
            self.settle();
        }
        self.quiet()
    }

    pub(super) fn garbage(&mut self) -> Result<(), Failure> {
        for _ in 0..self.count {
            let mut bytes = [0; OP_SIZE];
            self.random.fill(&mut bytes);
            // A request of garbage alone would not get past the backend's first check.
            bytes[1..4].fill(0);
            // Mostly accesses: MSI and MSI-X have attacks of their own, and each change of the mode takes dom0 long.
            let commands = if self.random.u8(..4) == 0 { 12 } else { 2 };
            bytes[0] = self.random.u8(..commands);
            if self.random.u8(..4) != 0 {
                bytes[8..20].fill(0);
                bytes[16] = self
                    .random
                    .choice(self.shapes.iter().map(|shape| shape.devfn))
                    .unwrap_or(0);
            }
            if self.random.bool() {
                bytes[20..32].fill(0);
                let space: [u8; 2] = self.random.u16(..0x1000).to_le_bytes();
                bytes[20..22].copy_from_slice(&space);
                bytes[24] = [1, 2, 4][self.random.usize(..3)];
                bytes[28] = self.random.u8(..);
            }
            // A change of the power state takes long, so it comes rarely and at fixed places.
            if bytes[0] == 1 {
                bytes[28] &= !3;
            }
            if self.random.u8(..64) == 0
                && let Some(shape) = self.random.choice(&self.shapes).filter(|shape| shape.pm != 0)
            {
                let state = self.random.u32(..4);
                bytes = Op::write(shape.devfn.into(), i32::from(shape.pm) + 4, 2, state).encode();
            }
            self.frontend.send(self.platform, &bytes);
            self.settle();
        }
        self.quiet()
    }

    /// The flags of error recovery, set by the wrong side; then all bits without a meaning.
    pub(super) fn recovery_bits(&mut self) -> Result<(), Failure> {
        for round in 0..ROUNDS {
            let mut recovery = [0; TOTAL_SIZE - OP - OP_SIZE];
            self.random.fill(&mut recovery);
            self.frontend.page.copy_in(OP + OP_SIZE, &recovery);
            self.frontend.page.set_bits(FLAGS, self.random.u32(..) & !ACTIVE);
            self.platform.notify(self.frontend.port);
            if round % 16 == 0 {
                self.check_answers()?;
            }
            self.frontend
                .page
                .clear_bits(FLAGS, self.random.u32(..) & !ACTIVE);
        }
        self.frontend.page.clear_bits(FLAGS, !ACTIVE);
        Ok(())
    }

    pub(super) fn events(&mut self) -> Result<(), Failure> {
        let end = self.platform.now().saturating_add(STORM);
        while self.platform.now() < end {
            self.platform.notify(self.frontend.port);
        }
        Ok(())
    }
}
