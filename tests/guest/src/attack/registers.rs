//! Attacks by configuration writes, and by MSI and MSI-X.

use super::{Attacker, ROUNDS};
use crate::ask::ask_dom0;
use crate::frontend::Failure;
use crate::grants::Grants;
use crate::op::Op;
use alloc::vec::Vec;
use xenbus::client::Transport;
use xenbus::pciif::Command;

/// Requests to dom0: turn memory decode of the guest's devices off, and on again.
const DECODE_OFF: &str = "decode-off";
const DECODE_ON: &str = "decode-on";
const COMMAND: i32 = 4;

impl<P: Grants, T: Transport> Attacker<'_, P, T> {
    pub(super) fn command_bits(&mut self) -> Result<(), Failure> {
        for shape in self.shapes.clone() {
            for value in [0, 0xffff, 0x0140, 0x0400, 0] {
                for size in [2, 4, 1] {
                    let op = Op::write(shape.devfn.into(), COMMAND, size, value);
                    self.frontend.ask(self.platform, &op)?;
                }
            }
        }
        // COMMAND stays 0: the scenario checks in dom0 that the devices still decode.
        Ok(())
    }

    /// Writes of every width at and across every register of the MSI and MSI-X capabilities, first with MSI and MSI-X
    /// off, then on. No write may change anything.
    pub(super) fn message_registers(&mut self) -> Result<(), Failure> {
        for shape in self.shapes.clone() {
            let devfn = u32::from(shape.devfn);
            let kinds = [
                (
                    shape.msi,
                    0x18,
                    Op::new(Command::EnableMsi, devfn),
                    Command::DisableMsi,
                ),
                (shape.msix, 0x0c, Op::msix(devfn, [0]), Command::DisableMsix),
            ];
            for (base, length, on, off) in kinds.into_iter().filter(|(base, ..)| *base != 0) {
                for on in [None, Some(on)] {
                    if let Some(on) = &on {
                        self.frontend.ask(self.platform, on)?;
                    }
                    let before = self.dump(devfn, base, length)?;
                    for size in [1, 2, 4] {
                        let first = i32::from(base) / size * size;
                        for offset in (first..i32::from(base) + length).step_by(size as usize) {
                            for value in [0, u32::MAX, 0xfee0_0000] {
                                self.frontend
                                    .ask(self.platform, &Op::write(devfn, offset, size, value))?;
                            }
                        }
                    }
                    if self.dump(devfn, base, length)? != before {
                        return Err(Failure::Unsound("a write has changed a message register"));
                    }
                }
                self.frontend.ask(self.platform, &Op::new(off, devfn))?;
            }
        }
        Ok(())
    }

    fn dump(&mut self, devfn: u32, base: u8, length: i32) -> Result<Vec<u32>, Failure> {
        let offsets = (0..length).step_by(4).map(|at| i32::from(base) + at);
        offsets
            .map(|offset| {
                Ok(self
                    .frontend
                    .ask(self.platform, &Op::read(devfn, offset, 4))?
                    .value())
            })
            .collect()
    }

    pub(super) fn message_orders(&mut self) -> Result<(), Failure> {
        for _ in 0..ROUNDS {
            let Some(shape) = self.random.choice(self.shapes.clone()) else {
                return Ok(());
            };
            let devfn = u32::from(shape.devfn);
            let count = self.random.u32(..5);
            let entries: Vec<u16> = (0..count).map(|_| self.random.u16(..7)).collect();
            let op = match self.random.u8(..7) {
                0 => Op::new(Command::EnableMsi, devfn),
                1 => Op::new(Command::DisableMsi, devfn),
                2 => Op::new(Command::DisableMsix, devfn),
                3 => Op::write(devfn, 4, 2, self.random.u32(..)),
                4 => Op {
                    value: self.random.u32(..),
                    ..Op::msix(devfn, entries)
                },
                _ => Op::msix(devfn, entries),
            };
            self.frontend.ask(self.platform, &op)?;
        }
        self.quiet()
    }

    /// MSI-X without memory decode: then the MSI-X table cannot be reached. The guest's writes to COMMAND never turn
    /// decode off in the device, so dom0 has to do it.
    pub(super) fn without_decode(&mut self) -> Result<(), Failure> {
        for shape in self.shapes.clone() {
            self.frontend
                .ask(self.platform, &Op::write(shape.devfn.into(), COMMAND, 2, 0))?;
        }
        ask_dom0(self.platform, self.client, DECODE_OFF)?;
        let mut refused = true;
        for shape in self.shapes.iter().filter(|shape| shape.msix != 0) {
            let answer = self
                .frontend
                .ask(self.platform, &Op::msix(shape.devfn.into(), [0]))?;
            refused &= answer.err != 0;
        }
        ask_dom0(self.platform, self.client, DECODE_ON)?;
        self.quiet()?;
        if refused {
            Ok(())
        } else {
            Err(Failure::Unsound("MSI-X was turned on without memory decode"))
        }
    }
}
