//! Cases for each rule of the operations.

use crate::op::Op;
use crate::shape::Shape;
use crate::step::{Ask, Step};
use alloc::vec::Vec;
use xenbus::pciif::Command;

/// Config space registers that the cases write.
const COMMAND: i32 = 0x04;
const CACHE_LINE: i32 = 0x0c;
const INTERRUPT_LINE: i32 = 0x3c;
/// COMMAND: memory decode and bus master.
const WORKING: u32 = 0x0006;
/// Bytes of config space that are read at the end.
const CONVENTIONAL: u16 = 0x100;

/// Steps about one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Name in reports.
    pub name: &'static str,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// Name of the case in which a request turns off the mode that is not on. In this case the two backends differ on
/// purpose.
pub const OTHER_KIND: &str = "turning off the other kind";

/// All cases for one function. In the end the function is as before: MSI and MSI-X off, memory decode on.
pub fn cases(shape: &Shape) -> Vec<Case> {
    let devfn = u32::from(shape.devfn);
    let op = |command| Op::new(command, devfn);
    let msi = op(Command::EnableMsi);
    let no_msi = op(Command::DisableMsi);
    let no_msix = op(Command::DisableMsix);
    let msix = || Op::msix(devfn, [0]);
    let case = |name, ops: Vec<Op>| Case {
        name,
        steps: ops.into_iter().map(Step::Op).collect(),
    };
    let mut cases = Vec::from([
        case("unknown commands", unknown_commands(devfn)),
        case("no such function", absent(devfn)),
        case(
            "a devfn of more than 8 bits",
            Vec::from([Op::read(0x100 | devfn, 0, 4)]),
        ),
        case("sizes and alignment", unsound(devfn)),
        case("beyond config space", beyond(devfn)),
        case("writes over several registers", spanning(shape)),
        case("MSI twice", [&msi, &msi, &no_msi].map(Op::clone).into()),
        case("MSI-X twice", Vec::from([msix(), msix(), no_msix.clone()])),
        case(
            "turning off what is off",
            Vec::from([no_msi.clone(), no_msix.clone(), no_msi.clone()]),
        ),
        case("numbers of vectors", numbers(devfn)),
        case("table entries", entries(shape)),
        case(
            "MSI-X after the guest has cleared COMMAND",
            Vec::from([
                Op::write(devfn, COMMAND, 2, 0),
                msix(),
                no_msix.clone(),
                Op::write(devfn, COMMAND, 2, WORKING),
            ]),
        ),
    ]);
    cases.push(Case {
        name: "MSI-X while the device decodes no memory",
        steps: Vec::from([
            Step::Ask(Ask::DecodeOff(shape.devfn)),
            Step::Op(msix()),
            Step::Op(no_msix.clone()),
            Step::Ask(Ask::DecodeOn(shape.devfn)),
            Step::Op(msix()),
            Step::Op(no_msix.clone()),
        ]),
    });
    if shape.pm != 0 {
        let power = |state| Op::write(devfn, i32::from(shape.pm) + 4, 2, state);
        let ops = [power(3), msi.clone(), msix(), power(0), msix(), no_msix.clone()];
        cases.push(case("messages while the function sleeps in D3hot", ops.into()));
    }
    // These need both. Without MSI or MSI-X a request that turns it on is refused, and the one that turns it off is
    // about the mode that is not on.
    if shape.msi != 0 && shape.msix != 0 {
        cases.extend([
            case(
                "MSI-X while MSI is on",
                Vec::from([msi.clone(), msix(), no_msi.clone()]),
            ),
            case(
                "MSI while MSI-X is on",
                Vec::from([msix(), msi.clone(), no_msix.clone()]),
            ),
        ]);
    }
    let (control, ops) = (i32::from(shape.msi) + 2, [0, 1, 0xffff, 0]);
    if shape.msi != 0 {
        let mut steps = Vec::from([msi.clone()]);
        steps.extend(ops.map(|value| Op::write(devfn, control, 2, value)));
        steps.extend([
            Op::read(devfn, control, 2),
            no_msi.clone(),
            Op::read(devfn, control, 2),
        ]);
        cases.push(case("message control of MSI while it is on", steps));
    }
    cases.push(case(
        OTHER_KIND,
        Vec::from([
            msix(),
            no_msi.clone(),
            msix(),
            no_msix.clone(),
            msi.clone(),
            no_msix.clone(),
            msi,
            no_msi,
            no_msix,
        ]),
    ));
    cases.push(case("what is left", left(shape).collect()));
    cases
}

fn unknown_commands(devfn: u32) -> Vec<Op> {
    // 6 to 9 are the commands of error recovery, which only a backend may send. 10 is MSI with several vectors: the
    // header file has it, and nobody implements it.
    let numbers = [6, 7, 8, 9, 10, 11, 12, 0x100, 0x8000_0000, u32::MAX];
    let op = |command| Op {
        command,
        value: 4,
        ..Op::read(devfn, 0, 4)
    };
    numbers.map(op).into()
}

/// Every command, at addresses without a function.
fn absent(devfn: u32) -> Vec<Op> {
    let places = [
        (1, 0, devfn),
        (u32::MAX, 0, devfn),
        (0, 1, devfn),
        (0, 0x100, devfn),
        (0, u32::MAX, devfn),
        (0, 0, devfn | 7),
        (0, 0, 0xf8),
        (0, 0, u32::MAX),
    ];
    let of = |(domain, bus, devfn): (u32, u32, u32)| {
        (0..=6).map(move |command| Op {
            command,
            domain,
            bus,
            value: 1,
            entries: Vec::from([0]),
            ..Op::read(devfn, 0, 4)
        })
    };
    places.into_iter().flat_map(of).collect()
}

/// A read and a write of 0.
fn both(devfn: u32, offset: i32, size: i32) -> [Op; 2] {
    [Op::read(devfn, offset, size), Op::write(devfn, offset, size, 0)]
}

fn unsound(devfn: u32) -> Vec<Op> {
    let sizes = [0, 3, 5, 6, 7, 8, 16, -1, -2, -4, i32::MIN, i32::MAX];
    let sizes = sizes.into_iter().flat_map(|size| [(0, size), (0x10, size)]);
    let unaligned = [
        (1, 2),
        (3, 2),
        (0x0d, 2),
        (1, 4),
        (2, 4),
        (3, 4),
        (0x0e, 4),
        (0xff, 2),
        (0xfe, 4),
        (4095, 4),
    ];
    let all = sizes.chain(unaligned);
    all.flat_map(|(offset, size)| both(devfn, offset, size)).collect()
}

fn beyond(devfn: u32) -> Vec<Op> {
    let offsets = [-4, -256, -4096, i32::MIN, 4096, 4100, 0x1_0000, 0x7fff_fffc];
    let aligned = offsets
        .into_iter()
        .flat_map(|offset| [(offset, 1), (offset, 2), (offset, 4)]);
    let odd = [(-1, 1), (-2, 2), (i32::MAX, 1)];
    aligned
        .chain(odd)
        .flat_map(|(offset, size)| both(devfn, offset, size))
        .collect()
}

fn spanning(shape: &Shape) -> Vec<Op> {
    let devfn = shape.devfn.into();
    let capabilities = [shape.pm, shape.msi, shape.msix]
        .into_iter()
        .filter(|at| *at != 0);
    let mut places = Vec::from([
        (CACHE_LINE, 4),
        (CACHE_LINE, 2),
        (CACHE_LINE + 2, 2),
        (INTERRUPT_LINE, 4),
    ]);
    places.extend([(0x00, 4), (0x08, 4), (0x10, 2), (0x12, 2), (0x30, 2), (0x32, 2)]);
    places.extend(capabilities.flat_map(|at| [(i32::from(at), 4), (i32::from(at), 2)]));
    let values = [0, u32::MAX, 0x4000_0008, 0x4040_4040, 0x0001_0001, 0x1122_3344];
    let mut ops = Vec::new();
    for (offset, size) in places {
        for value in values {
            ops.extend([
                Op::write(devfn, offset, size, value),
                Op::read(devfn, offset, size),
            ]);
        }
    }
    // COMMAND and STATUS in one access. Memory-write-and-invalidate stays off: config-sweep has that difference.
    for value in [0, 0xffff_ffef, 0xffff_0000, WORKING] {
        ops.extend([Op::write(devfn, COMMAND, 4, value), Op::read(devfn, COMMAND, 4)]);
    }
    ops.push(Op::write(devfn, CACHE_LINE, 1, 0x10));
    ops
}

fn numbers(devfn: u32) -> Vec<Op> {
    let of = |count: u32| {
        let most = count.min(128) as u16;
        [
            Op {
                value: count,
                ..Op::msix(devfn, 0..most)
            },
            Op::new(Command::DisableMsix, devfn),
        ]
    };
    [
        0,
        1,
        2,
        3,
        5,
        32,
        33,
        64,
        128,
        129,
        65535,
        65536,
        0x8000_0000,
        u32::MAX,
    ]
    .into_iter()
    .flat_map(of)
    .collect()
}

fn entries(shape: &Shape) -> Vec<Op> {
    let end = shape.vectors;
    let lists: [&[u16]; 13] = [
        &[0, 2, 4],
        &[4, 0, 2],
        &[2, 1],
        &[end.saturating_sub(1)],
        &[end],
        &[0, end],
        &[end, 0],
        &[0x7ff],
        &[0x800],
        &[u16::MAX],
        &[1, 1],
        &[0, 1, 0],
        &[3, 2, 1, 3],
    ];
    let devfn = shape.devfn.into();
    lists
        .into_iter()
        .flat_map(|list| {
            [
                Op::msix(devfn, list.iter().copied()),
                Op::new(Command::DisableMsix, devfn),
            ]
        })
        .collect()
}

/// Reads of all of conventional config space, except MSI addresses and data: they are Xen's, and differ from run to
/// run.
fn left(shape: &Shape) -> impl Iterator<Item = Op> + use<> {
    let shape = *shape;
    (0..CONVENTIONAL)
        .step_by(4)
        .filter(move |&offset| !is_message(&shape, offset, 4))
        .map(move |offset| Op::read(shape.devfn.into(), offset.into(), 4))
}

/// Whether a range touches the registers of MSI that differ from run to run.
pub fn is_message(shape: &Shape, offset: u16, size: u16) -> bool {
    let base = u16::from(shape.msi);
    shape.msi != 0 && offset < base + 0x14 && base + 4 < offset + size
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::tests::FULL;
    use alloc::collections::BTreeSet;

    fn ops(case: &Case) -> impl Iterator<Item = &Op> {
        case.steps.iter().filter_map(|step| match step {
            Step::Op(op) => Some(op),
            Step::Ask(_) => None,
        })
    }

    #[test]
    fn each_case_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = cases(&FULL).iter().map(|case| case.name).collect();
        assert_eq!(names.len(), cases(&FULL).len());
    }

    #[test]
    fn what_a_case_turns_on_it_turns_off() {
        for case in cases(&FULL) {
            let mut on = false;
            for op in ops(&case) {
                match op.known_command() {
                    Command::EnableMsi | Command::EnableMsix => on = op.domain == 0 && op.devfn == 0,
                    Command::DisableMsi | Command::DisableMsix => on = false,
                    _ => {}
                }
            }
            assert!(!on, "{}", case.name);
        }
    }

    #[test]
    fn memory_decode_is_given_back() {
        let asks: Vec<Ask> = cases(&FULL)
            .into_iter()
            .flat_map(|case| case.steps)
            .filter_map(|step| match step {
                Step::Ask(ask) => Some(ask),
                Step::Op(_) => None,
            })
            .collect();
        assert_eq!(asks, [Ask::DecodeOff(0), Ask::DecodeOn(0)]);
    }

    #[test]
    fn a_function_without_messages_has_all_cases_but_those_that_need_them() {
        let plain = Shape::default();
        assert_eq!(cases(&plain).len() + 4, cases(&FULL).len());
    }
}
