//! The accesses of each phase.

use super::exclusion::harmless;
use super::layout::{Block, CACHE_LINE_SIZE, COMMAND, Layout, MSI, MSIX, PMCSR};
use super::operation::{Operation, Span};
use super::phase::Phase;

/// Length of conventional config space. Both backends have tables for registers in it only.
const CONVENTIONAL: u16 = 0x100;
/// Most registers of an extended capability end here.
const EXTENDED_LENGTH: u16 = 0x40;

/// The accesses of `phase` to a function with the config space `start`. `seed` and `count` are for [`Phase::Random`].
pub fn sequence(phase: Phase, start: &[u8], seed: u64, count: usize) -> Vec<Operation> {
    let layout = Layout::of(start);
    match phase {
        Phase::Reads | Phase::Released => reads(&layout).collect(),
        Phase::Writes => Span::all(layout.length())
            .flat_map(|span| walk(&layout, phase, start, span))
            .collect(),
        Phase::Power => power(&layout, start),
        Phase::Random => random(&layout, start, seed, count),
        Phase::Driven => reads(&layout)
            .chain(
                Span::all(CONVENTIONAL)
                    .filter(|span| {
                        let block = layout.register_at(span.offset).0.block;
                        block == MSI || block == MSIX
                    })
                    .flat_map(|span| walk(&layout, phase, start, span)),
            )
            .collect(),
    }
}

fn reads(layout: &Layout) -> impl Iterator<Item = Operation> + use<> {
    Span::all(layout.length()).map(Operation::Read)
}

/// Writes of 0, all-ones and walking bits to one range, each followed by a read. The last write restores the value.
fn walk(layout: &Layout, phase: Phase, start: &[u8], span: Span) -> Vec<Operation> {
    let was = span.value_in(start);
    let bits = 0..if walks(layout, span) { 8 * span.width } else { 0 };
    let singles = bits.clone().map(|bit| 1 << bit);
    // Each write changes one bit of the start value.
    let flips = bits.map(|bit| was ^ 1 << bit);
    [0, u32::MAX]
        .into_iter()
        .chain(singles)
        .chain(flips)
        .chain([was])
        .flat_map(|value| {
            let value = harmless(layout, phase, span, value);
            [Operation::Write(span, value), Operation::Read(span)]
        })
        .collect()
}

/// Whether single bits walk through a range. They do if there may be a register.
fn walks(layout: &Layout, span: Span) -> bool {
    let (register, _) = layout.register_at(span.offset);
    match register.block {
        Block::Extended(_) => span.width == 4 && register.at.offset < EXTENDED_LENGTH,
        _ => span.offset < CONVENTIONAL,
    }
}

/// Values of PMCSR: all power states, some with data select, PME status or PME enable. A device may lack D1 and D2.
const POWER: &[u32] = &[
    0x1000, 1, 0x1000, 2, 0, 3, 0, 0x8003, 0x8000, 0x0103, 0x0100, 3, 1, 0, 3, 2, 0, 3, 3, 0,
];
/// Bits of COMMAND: decode of I/O and memory, bus master, memory-write-and-invalidate, INTx disable.
const COMMANDS: &[u32] = &[0, 1, 2, 4, 0x10, 0, 0x400, 7, 0x17, 0x407];

/// All power states, and in each of them COMMAND, cache line size and BARs. In the end all registers are restored.
fn power(layout: &Layout, start: &[u8]) -> Vec<Operation> {
    let (command, cache_line) = (COMMAND.at, CACHE_LINE_SIZE.at);
    let control = layout.place(PMCSR);
    let mut writes = Vec::new();
    for span in control
        .iter()
        .flat_map(|word| Span::WIDTHS.map(|width| Span::new(word.offset, width)))
    {
        writes.extend(POWER.iter().map(|&value| (span, value)));
    }
    for state in 0..4 {
        let state = control.map(|control| (control, state));
        writes.push((cache_line, 0));
        for &value in COMMANDS {
            writes.extend(state);
            writes.push((command, value));
        }
        for bar in (0..6).map(|index| Span::new(0x10 + 4 * index, 4)) {
            writes.extend([u32::MAX, 0, bar.value_in(start)].map(|value| (bar, value)));
        }
        writes.push((cache_line, 0x10));
    }
    writes.extend([command, cache_line].map(|span| (span, span.value_in(start))));
    writes.extend(control.map(|control| (control, control.value_in(start))));

    let watched = [command, Span::new(0x0c, 4)].into_iter().chain(control);
    let mut operations = Vec::new();
    for (span, value) in writes {
        operations.extend([Operation::Write(span, value & span.mask()), Operation::Read(span)]);
        operations.extend(watched.clone().map(Operation::Read));
    }
    operations.extend(
        (0..0x40)
            .step_by(4)
            .map(|offset| Operation::Read(Span::new(offset, 4))),
    );
    operations
}

/// `count` accesses, half of them writes, most of them where registers are.
fn random(layout: &Layout, start: &[u8], seed: u64, count: usize) -> Vec<Operation> {
    let mut random = fastrand::Rng::with_seed(seed);
    let blocks: Vec<u16> = layout
        .blocks()
        .iter()
        .filter(|(_, block)| matches!(block, Block::Capability(_) | Block::Extended(_)))
        .map(|&(base, _)| base)
        .collect();
    (0..count)
        .map(|_| {
            let width = random.choice(Span::WIDTHS).unwrap_or(4);
            let offset = match (random.u8(..8), random.choice(&blocks)) {
                (0..4, _) => random.u16(..0x40),
                (4..7, Some(base)) => (base + random.u16(..0x20)) % layout.length(),
                _ => random.u16(..layout.length()),
            };
            let span = Span::new(offset / u16::from(width) * u16::from(width), width);
            if random.bool() {
                return Operation::Read(span);
            }
            let bit = 1 << random.u8(..32);
            let value = match random.u8(..8) {
                0 => 0,
                1 => u32::MAX,
                2 => bit,
                3 | 4 => span.value_in(start),
                5 | 6 => span.value_in(start) ^ bit,
                _ => random.u32(..),
            };
            Operation::Write(span, harmless(layout, Phase::Random, span, value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::layout::tests::dump;
    use super::*;

    fn written(operations: &[Operation], span: Span) -> Vec<u32> {
        let value = |operation: &Operation| match *operation {
            Operation::Write(at, value) if at == span => Some(value),
            _ => None,
        };
        operations.iter().filter_map(value).collect()
    }

    #[test]
    fn all_that_can_be_read_is_read() {
        assert_eq!(sequence(Phase::Reads, &dump(), 0, 0).len(), 7168);
        assert_eq!(sequence(Phase::Reads, &dump()[..256], 0, 0).len(), 448);
    }

    #[test]
    fn each_range_is_written_with_all_values_and_restored() {
        let operations = sequence(Phase::Writes, &dump(), 0, 0);
        for span in Span::all(4096) {
            let values = written(&operations, span);
            let sure = |value| harmless(&Layout::of(&dump()), Phase::Writes, span, value);
            assert!(
                values.contains(&sure(0)) && values.contains(&sure(u32::MAX)),
                "{span}"
            );
            assert_eq!(values.last(), Some(&sure(span.value_in(&dump()))), "{span}");
            if span.offset < 0x100 || span.width == 4 && span.offset < 0x180 {
                for bit in 0..8 * span.width {
                    assert!(values.contains(&sure(1 << bit)), "{span} bit {bit}");
                }
            }
        }
    }

    #[test]
    fn the_power_phase_ends_in_d0_with_the_header_as_it_was() {
        let operations = sequence(Phase::Power, &dump(), 0, 0);
        for span in [
            Span::new(0xcc, 2),
            Span::new(4, 2),
            Span::new(0x10, 4),
            Span::new(0xc, 1),
        ] {
            let values = written(&operations, span);
            assert_eq!(values.last(), Some(&span.value_in(&dump())), "{span}");
        }
    }

    #[test]
    fn a_seed_stands_for_a_sequence() {
        let of = |seed| sequence(Phase::Random, &dump(), seed, 5000);
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        let writes = of(7)
            .iter()
            .filter(|operation| matches!(operation, Operation::Write(..)))
            .count();
        assert!((2000..3000).contains(&writes), "{writes}");
        assert!(of(7).iter().all(|operation| operation.span().bytes().end <= 4096));
    }

    #[test]
    fn a_driver_is_left_alone_but_for_its_messages() {
        for operation in sequence(Phase::Driven, &dump(), 0, 0) {
            if let Operation::Write(span, _) = operation {
                assert!((0xa0..0xc8).contains(&span.offset) || (0xd0..0xe0).contains(&span.offset));
            }
        }
    }
}
