//! Requests from a seed.

use crate::case::is_message;
use crate::op::Op;
use crate::shape::Shape;
use alloc::vec::Vec;
use fastrand::Rng;
use pci::registers::{command, register};
use xenbus::pciif::Command;

/// Limit of vectors of a request: Xen has that many pirqs for a guest by default.
const MOST_VECTORS: u16 = 32;

/// How a function interrupts, as far as its guest knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InterruptMode {
    Line,
    Msi,
    Msix,
}

/// An endless sequence of requests about some functions, the same for the same seed.
///
/// Two kinds of requests never come: a change of the power state, which takes long, and turning off the mode that is not
/// on, after which the two backends differ for good.
#[derive(Clone, Debug)]
pub struct Random {
    random: Rng,
    functions: Vec<(Shape, InterruptMode)>,
}

impl Random {
    /// The sequence of `seed`. All functions begin with MSI and MSI-X off.
    pub fn new(shapes: &[Shape], seed: u64) -> Self {
        Self {
            random: Rng::with_seed(seed),
            functions: shapes.iter().map(|&shape| (shape, InterruptMode::Line)).collect(),
        }
    }

    /// Requests that turn off whichever mode is on.
    pub fn quiet(&self) -> Vec<Op> {
        let off = |(shape, mode): &(Shape, InterruptMode)| turn_off(shape, *mode);
        self.functions.iter().filter_map(off).collect()
    }

    fn config(&mut self, shape: &Shape) -> Op {
        let random = &mut self.random;
        let devfn = shape.devfn.into();
        let size = [1, 2, 4][random.usize(..3)];
        let offset = match random.u8(..8) {
            0..4 => random.u16(..0x40),
            4..7 => {
                let bases = [shape.pm, shape.msi, shape.msix, 0x34];
                (u16::from(bases[random.usize(..4)]) + random.u16(..0x18)) & 0xff
            }
            _ => random.u16(..0x100),
        };
        let offset = offset / size * size;
        if is_message(shape, offset, size) {
            return Op::read(devfn, 0, 4);
        }
        let power = u16::from(shape.pm) + 4;
        let is_power = shape.pm != 0 && offset < power + 4 && power < offset + size;
        if is_power || random.bool() {
            return Op::read(devfn, offset.into(), size.into());
        }
        let value = match random.u8(..6) {
            0 => 0,
            1 => u32::MAX,
            2 | 3 => 1 << random.u8(..32),
            _ => random.u32(..),
        };
        // Memory-write-and-invalidate stays off: config-sweep has that difference.
        let is_command = (offset..offset + size).contains(&register::COMMAND);
        let value = if is_command {
            value & !u32::from(command::INVALIDATE)
        } else {
            value
        };
        Op::write(devfn, offset.into(), size.into(), value)
    }

    fn messages(&mut self, index: usize) -> Op {
        let (shape, mode) = self.functions[index];
        let devfn = u32::from(shape.devfn);
        let (next, op) = match self.random.u8(..6) {
            0 | 1 => {
                let next = if shape.msi != 0 && mode == InterruptMode::Line {
                    InterruptMode::Msi
                } else {
                    mode
                };
                (next, Op::new(Command::EnableMsi, devfn))
            }
            2 | 3 => {
                let most = shape.vectors.min(MOST_VECTORS);
                if most == 0 || self.random.u8(..4) == 0 {
                    (mode, self.bad_vectors(&shape))
                } else {
                    let mut entries: Vec<u16> = (0..shape.vectors).collect();
                    self.random.shuffle(&mut entries);
                    entries.truncate(self.random.u16(1..=most.min(6)).into());
                    let next = if mode == InterruptMode::Line {
                        InterruptMode::Msix
                    } else {
                        mode
                    };
                    (next, Op::msix(devfn, entries))
                }
            }
            _ => {
                let off = turn_off(&shape, mode);
                (
                    InterruptMode::Line,
                    off.unwrap_or(Op::new(Command::DisableMsi, devfn)),
                )
            }
        };
        self.functions[index].1 = next;
        op
    }

    /// A request for MSI-X that is refused, whatever the mode.
    fn bad_vectors(&mut self, shape: &Shape) -> Op {
        let (random, devfn) = (&mut self.random, shape.devfn.into());
        match random.u8(..4) {
            0 => Op::msix(devfn, []),
            1 => Op {
                value: random.u32(129..),
                ..Op::msix(devfn, 0..128)
            },
            2 => Op::msix(devfn, [0, shape.vectors]),
            _ => Op::msix(devfn, [0, 0]),
        }
    }

    /// A request about a missing function, or with invalid fields.
    fn nonsense(&mut self, shape: &Shape) -> Op {
        let random = &mut self.random;
        let devfn = u32::from(shape.devfn);
        match random.u8(..4) {
            0 => Op {
                command: random.u32(6..),
                ..Op::read(devfn, 0, 4)
            },
            1 => Op {
                command: random.u32(..6),
                domain: random.u32(1..),
                ..Op::read(devfn, 0, 4)
            },
            2 => Op {
                command: random.u32(..6),
                bus: random.u32(1..),
                ..Op::read(devfn, 0, 4)
            },
            _ => Op {
                command: random.u32(..2),
                size: [0, 3, 5, -1, random.i32(5..)][random.usize(..5)],
                ..Op::read(devfn, random.i32(..), 0)
            },
        }
    }
}

fn turn_off(shape: &Shape, mode: InterruptMode) -> Option<Op> {
    let command = match mode {
        InterruptMode::Line => return None,
        InterruptMode::Msi => Command::DisableMsi,
        InterruptMode::Msix => Command::DisableMsix,
    };
    Some(Op::new(command, shape.devfn.into()))
}

impl Iterator for Random {
    type Item = Op;

    fn next(&mut self) -> Option<Op> {
        if self.functions.is_empty() {
            return None;
        }
        let index = self.random.usize(..self.functions.len());
        let shape = self.functions[index].0;
        Some(match self.random.u8(..32) {
            0..27 => self.config(&shape),
            27..30 => self.messages(index),
            _ => self.nonsense(&shape),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::tests::FULL;

    const PLAIN: Shape = Shape {
        devfn: 8,
        pm: 0,
        msi: 0x40,
        msix: 0,
        vectors: 0,
    };

    fn ops(seed: u64) -> Vec<Op> {
        Random::new(&[FULL, PLAIN], seed).take(20_000).collect()
    }

    #[test]
    fn a_seed_stands_for_a_sequence() {
        assert_eq!(ops(1), ops(1));
        assert_ne!(ops(1), ops(2));
    }

    #[test]
    fn every_command_comes_and_every_function() {
        for devfn in [0, 8] {
            for command in 0..6 {
                let count = ops(3)
                    .iter()
                    .filter(|op| op.command == command && op.devfn == devfn)
                    .count();
                assert!(count > 20, "{command} at {devfn}: {count}");
            }
        }
    }

    #[test]
    fn the_power_state_and_memory_write_and_invalidate_are_left_alone() {
        for op in ops(4).iter().filter(|op| op.command == 1 && op.devfn == 0) {
            let bytes = op.offset..op.offset.saturating_add(op.size);
            let sound = [1, 2, 4].contains(&op.size);
            assert!(!sound || !(0xcc..0xd0).any(|at| bytes.contains(&at)), "{op}");
            assert!(
                !sound || !bytes.contains(&4) || op.value >> (8 * (4 - op.offset)) & 0x10 == 0,
                "{op}"
            );
        }
    }

    #[test]
    fn nothing_is_turned_off_by_the_other_kinds_name() {
        let mut on = None;
        for op in ops(5)
            .iter()
            .filter(|op| op.devfn == 0 && op.domain == 0 && op.bus == 0)
        {
            let entries = &op.entries;
            let sound = !entries.is_empty()
                && op.value as usize == entries.len()
                && entries.iter().all(|entry| *entry < 5)
                && entries
                    .iter()
                    .enumerate()
                    .all(|(index, entry)| !entries[..index].contains(entry));
            match op.known_command() {
                Command::EnableMsi => on = on.or(Some(Command::DisableMsi)),
                Command::EnableMsix if sound => on = on.or(Some(Command::DisableMsix)),
                command @ (Command::DisableMsi | Command::DisableMsix) => {
                    assert!(on.is_none_or(|on| on == command));
                    on = None;
                }
                _ => {}
            }
        }
    }
}
