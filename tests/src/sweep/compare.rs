//! Putting two recordings side by side.

use super::difference::{InRegister, Seen};
use super::known::{KNOWN, Registers};
use super::layout::{Layout, Register};
use super::operation::{Answer, Operation, Span};
use super::phase::Phase;
use super::recording::{AccessRecording, bytes};
use crate::comparison::{Comparison, Difference, DifferenceOf, Known, Subject, UNEXPECTED, common_names};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::fs;
use std::path::Path;

/// What one backend gave for one sequence.
#[derive(Debug)]
pub struct Side {
    /// The guest's answers.
    pub recording: AccessRecording,
    /// Config space after it, as dom0 reads it.
    pub left: Vec<u8>,
}

impl Side {
    fn load(dir: &Path, name: &str) -> Result<Self> {
        let read = |suffix: &str| {
            let path = dir.join(format!("{name}.{suffix}"));
            fs::read(&path).with_context(|| format!("read {}", path.display()))
        };
        let recording = AccessRecording::decode(&read(RECORDING)?);
        Ok(Self {
            recording: recording.with_context(|| format!("{} of {}", name, dir.display()))?,
            left: read(LEFT)?,
        })
    }
}

/// Suffix of a guest's recording.
const RECORDING: &str = "recording";
/// Suffix of dom0's copy of config space.
const LEFT: &str = "left";

/// Finds all differences between the two in what `device` did.
///
/// # Errors
/// The two did not do the same: then nothing can be said.
pub fn differences(
    device: &str,
    pciback: &Side,
    bulkhead: &Side,
) -> Result<Vec<Difference<InRegister, String>>> {
    let (ours, theirs) = (&bulkhead.recording, &pciback.recording);
    let operations = ours.about.operations();
    ensure!(
        operations == theirs.about.operations(),
        "the accesses are not the same: other phases, seeds or references"
    );
    let pair = Pair {
        device,
        phase: ours.about.phase,
        layout: Layout::of(&bytes(&ours.about.reference)),
    };
    let (before, after) = (Seen::AtTheStart, Seen::LeftBehind);
    let mut found = pair.dumps(before, &bytes(&theirs.about.start), &bytes(&ours.about.start));
    for (index, operation) in operations.iter().enumerate() {
        let (theirs, ours) = (theirs.answers[index], ours.answers[index]);
        found.extend(pair.answers(index, *operation, theirs, ours));
    }
    found.extend(pair.dumps(after, &pciback.left, &bulkhead.left));
    Ok(found)
}

/// What both recordings of a pair have in common.
struct Pair<'a> {
    device: &'a str,
    phase: Phase,
    layout: Layout,
}

impl Pair<'_> {
    fn answers(
        &self,
        index: usize,
        operation: Operation,
        pciback: Answer,
        bulkhead: Answer,
    ) -> Vec<Difference<InRegister, String>> {
        let span = operation.span();
        let registers = self.layout.registers(span);
        let difference = |seen, register, bits| Difference {
            place: InRegister {
                access: Some((index, operation)),
                ..self.place(seen, register, bits)
            },
            pciback: pciback.to_string(),
            bulkhead: bulkhead.to_string(),
        };
        if pciback.status != bulkhead.status {
            // Headers of capabilities are written by nobody: the error is that of what follows them.
            let named = registers.iter().find(|(register, _)| register.is_named());
            let blamed = named.or(registers.first());
            return blamed
                .map(|&(register, _)| difference(Seen::Error, register, 0))
                .into_iter()
                .collect();
        }
        let differing = pciback.value ^ bulkhead.value;
        registers
            .into_iter()
            .map(|(register, place)| (register, place.bits_of(span, differing)))
            .filter(|(_, bits)| *bits != 0)
            .map(|(register, bits)| difference(Seen::Read, register, bits))
            .collect()
    }

    /// The differences between two dumps, register by register.
    fn dumps(&self, seen: Seen, pciback: &[u8], bulkhead: &[u8]) -> Vec<Difference<InRegister, String>> {
        let length = pciback.len().max(bulkhead.len()).min(0x1000) as u16;
        let places: BTreeSet<(Span, Register)> = (0..length)
            .map(|offset| self.layout.register_at(offset))
            .map(|(register, place)| (place, register))
            .collect();
        places
            .into_iter()
            .map(|(place, register)| (register, place.value_in(pciback), place.value_in(bulkhead)))
            .filter(|(_, pciback, bulkhead)| pciback != bulkhead)
            .map(|(register, pciback, bulkhead)| Difference {
                place: self.place(seen, register, pciback ^ bulkhead),
                pciback: format!("{pciback:#x}"),
                bulkhead: format!("{bulkhead:#x}"),
            })
            .collect()
    }

    fn place(&self, seen: Seen, register: Register, bits: u32) -> InRegister {
        InRegister {
            device: self.device.to_owned(),
            phase: self.phase,
            seen,
            register,
            bits,
            access: None,
        }
    }
}

/// One sequence on one function.
#[derive(Debug)]
pub struct Run {
    /// The device, as the name of its files begins.
    pub device: String,
    /// Which part of the proof, as it ends.
    pub phase: Phase,
    /// Through xen-pciback.
    pub pciback: Side,
    /// Through Bulkhead.
    pub bulkhead: Side,
}

impl Run {
    fn load(pciback: &Path, bulkhead: &Path, name: &str) -> Result<Self> {
        let (pciback, bulkhead) = (Side::load(pciback, name)?, Side::load(bulkhead, name)?);
        let phase = bulkhead.recording.about.phase;
        let device = name.strip_suffix(&format!("-{phase}"));
        Ok(Self {
            device: device
                .with_context(|| format!("{name} holds the phase {phase}"))?
                .to_owned(),
            phase,
            pciback,
            bulkhead,
        })
    }

    fn has(&self, place: &InRegister) -> bool {
        self.device == place.device && self.phase == place.phase
    }
}

/// All sequences on all functions.
#[derive(Debug)]
pub struct Sweep {
    /// By name.
    pub runs: Vec<Run>,
}

impl Subject for Sweep {
    type Place = InRegister;
    type Value = String;
    type Pattern = Registers;

    const COLUMNS: &'static [&'static str] = &["Register", "Bits", "Shows in", "Phases", "Devices"];

    fn table() -> &'static [Known<Registers>] {
        KNOWN
    }

    fn covers(known: &Known<Registers>, difference: &DifferenceOf<Self>) -> bool {
        known.at.have(&difference.place)
    }

    fn cells(registers: &Registers) -> Vec<String> {
        registers.cells()
    }
}

impl Comparison<Sweep> {
    /// Reads what the two backends gave: of each run `DEVICE-PHASE.recording` and `DEVICE-PHASE.left`, in both
    /// directories.
    ///
    /// # Errors
    /// A file that is missing or is no recording, or recordings of different things.
    pub fn load(pciback: &Path, bulkhead: &Path) -> Result<Self> {
        let names = common_names(pciback, bulkhead, RECORDING)?;
        let runs = names.iter().map(|name| Run::load(pciback, bulkhead, name));
        Self::of(runs.collect::<Result<Vec<Run>>>()?)
    }

    fn of(runs: Vec<Run>) -> Result<Self> {
        let mut found = Vec::new();
        for run in &runs {
            let differences = differences(&run.device, &run.pciback, &run.bulkhead);
            found.extend(differences.with_context(|| format!("{}-{}", run.device, run.phase))?);
        }
        Ok(Self::new(Sweep { runs }, found))
    }
}

/// How many differences of a kind are shown.
const EXAMPLES: usize = 3;
/// How many writes before a difference are shown.
const HISTORY: usize = 6;

impl fmt::Display for Comparison<Sweep> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for run in &self.subject.runs {
            let (all, meant) = self.count(|place| run.has(place));
            writeln!(
                f,
                "{:<8} {:<8} {:>6} accesses in {} by xen-pciback, {} by Bulkhead: {all} differences, {meant} meant",
                run.device,
                run.phase.to_string(),
                run.bulkhead.recording.answers.len(),
                time(&run.pciback),
                time(&run.bulkhead),
            )?;
        }
        self.write_known(f, |registers| registers.register)?;
        let groups = self.unexpected_by(|place| (&place.device, place.phase, place.register, place.seen));
        for ((device, phase, register, seen), group) in groups {
            let bits = group
                .iter()
                .fold(0, |bits, difference| bits | difference.place.bits);
            let count = group.len();
            writeln!(
                f,
                "{UNEXPECTED}, {device}, {phase}: {register}, bits {bits:#x}, {seen}: {count} times"
            )?;
            for difference in group.into_iter().take(EXAMPLES) {
                writeln!(f, "  {difference}")?;
                let place = &difference.place;
                let run = self.subject.runs.iter().find(|run| run.has(place));
                f.write_str(&run.map(|run| history(run, place)).unwrap_or_default())?;
            }
        }
        Ok(())
    }
}

/// How long the accesses took, and how many took too long.
fn time(side: &Side) -> String {
    let about = &side.recording.about;
    let seconds = about.milliseconds as f64 / 1000.0;
    match about.repeated.len() {
        0 => format!("{seconds:.1} s"),
        repeated => format!("{seconds:.1} s ({repeated} given up on and repeated)"),
    }
}

/// The last writes to the registers that a difference is about, and what they were answered.
fn history(run: &Run, place: &InRegister) -> String {
    let mut text = String::new();
    let Some((end, operation)) = place.access else {
        return text;
    };
    let (ours, theirs) = (&run.bulkhead.recording, &run.pciback.recording);
    let operations = ours.about.operations();
    let layout = Layout::of(&bytes(&ours.about.reference));
    let places = layout.registers(operation.span());
    let concerns = |operation: &Operation| matches!(operation, Operation::Write(span, _) if places.iter().any(|(_, place)| place.touches(*span)));
    let before = operations[..end].iter().enumerate().rev();
    let mut last: Vec<_> = before
        .filter(|(_, operation)| concerns(operation))
        .take(HISTORY)
        .collect();
    last.reverse();
    for (index, operation) in last {
        // Writing to a `String` cannot fail.
        let _ = writeln!(
            text,
            "    after access {index}, {operation}: {} by xen-pciback, {} by Bulkhead",
            theirs.answers[index], ours.answers[index]
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::layout::tests::dump;
    use super::super::layout::{MSIX_CONTROL, PMCSR};
    use super::super::recording::tests::recording;
    use super::*;

    const DEVICE: &str = "e1000e";

    /// A backend that answers each read with 0, but for `answer`.
    fn side(phase: Phase, answer: impl Fn(Operation) -> Option<Answer>) -> Side {
        let nothing = Answer { value: 0, status: 0 };
        Side {
            recording: recording(phase, |_, operation| answer(operation).unwrap_or(nothing)),
            left: dump(),
        }
    }

    fn silent(phase: Phase) -> Side {
        side(phase, |_| None)
    }

    #[test]
    fn the_same_answers_are_no_difference() {
        assert_eq!(
            differences(DEVICE, &silent(Phase::Random), &silent(Phase::Random)).unwrap(),
            []
        );
    }

    #[test]
    fn a_value_that_differs_is_put_down_to_its_register() {
        let at = Operation::Read(Span::new(0xa0, 4));
        let other = side(Phase::Reads, |operation| {
            (operation == at).then_some(Answer {
                value: 0x8000_0000,
                status: 0,
            })
        });
        let found = differences(DEVICE, &silent(Phase::Reads), &other).unwrap();
        let [difference] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(
            (difference.place.register, difference.place.bits),
            (MSIX_CONTROL, 0x8000)
        );
        assert_eq!(difference.place.seen, Seen::Read);
        assert!(
            difference
                .place
                .access
                .is_some_and(|(_, operation)| operation == at)
        );
    }

    #[test]
    fn an_error_that_only_one_gives_is_a_difference() {
        let refuse = |operation| match operation {
            Operation::Write(
                Span {
                    offset: 0xcc,
                    width: 4,
                },
                _,
            ) => Some(Answer {
                value: 0,
                status: 0x88,
            }),
            _ => None,
        };
        let found = differences(DEVICE, &silent(Phase::Writes), &side(Phase::Writes, refuse)).unwrap();
        assert!(!found.is_empty());
        for Difference { place, .. } in found {
            assert_eq!((place.register, place.seen, place.bits), (PMCSR, Seen::Error, 0));
        }
    }

    #[test]
    fn the_error_of_an_access_that_begins_at_a_capabilitys_header_is_that_of_the_register_behind_it() {
        let refuse = |operation| match operation {
            Operation::Write(
                Span {
                    offset: 0xa0,
                    width: 4,
                },
                _,
            ) => Some(Answer {
                value: 0,
                status: 0x88,
            }),
            _ => None,
        };
        let found = differences(DEVICE, &silent(Phase::Driven), &side(Phase::Driven, refuse)).unwrap();
        assert!(!found.is_empty());
        assert!(
            found
                .iter()
                .all(|difference| difference.place.register == MSIX_CONTROL)
        );
    }

    #[test]
    fn what_is_left_in_the_device_counts() {
        let mut other = silent(Phase::Reads);
        other.left[5] ^= 0x04;
        let found = differences(DEVICE, &silent(Phase::Reads), &other).unwrap();
        let [difference] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(
            difference.to_string(),
            "left in the device: 0x3 by xen-pciback, 0x403 by Bulkhead"
        );
    }

    #[test]
    fn different_accesses_are_not_compared() {
        let mut other = silent(Phase::Random);
        other.recording.about.seed += 1;
        assert!(differences(DEVICE, &silent(Phase::Random), &other).is_err());
    }

    #[test]
    fn a_difference_that_is_not_listed_fails_the_proof_and_so_does_one_that_is_listed_and_gone() {
        let compared = |bulkhead: Side| {
            let run = Run {
                device: DEVICE.into(),
                phase: Phase::Reads,
                pciback: silent(Phase::Reads),
                bulkhead,
            };
            Comparison::<Sweep>::of(vec![run]).unwrap()
        };
        let text = compared(silent(Phase::Reads)).to_string();
        assert!(text.contains("STALE") && !text.contains("UNEXPECTED"), "{text}");
        let mut other = silent(Phase::Reads);
        other.left[0] ^= 1;
        let comparison = compared(other);
        assert!(!comparison.holds());
        assert!(
            comparison
                .to_string()
                .contains("UNEXPECTED, e1000e, reads: Vendor ID"),
            "{comparison}"
        );
    }

    /// What a backend gives for `phase`, with other bits of `register` left in the device.
    fn leaves(phase: Phase, register: Register, bits: u32) -> Side {
        let mut side = silent(phase);
        let place = Layout::of(&dump()).place(register).unwrap();
        for (offset, byte) in place.bytes().zip(bits.to_le_bytes()) {
            side.left[usize::from(offset)] ^= byte;
        }
        side
    }

    #[test]
    fn a_difference_is_meant_only_where_its_row_says_so() {
        let meant = |device, phase, register, bits| {
            let found = differences(device, &silent(phase), &leaves(phase, register, bits)).unwrap();
            Comparison::new(Sweep { runs: Vec::new() }, found)
                .unexpected()
                .next()
                .is_none()
        };
        assert!(meant("e1000e", Phase::Released, MSIX_CONTROL, 0x8000));
        assert!(!meant("edu", Phase::Released, MSIX_CONTROL, 0x8000), "the device");
        assert!(!meant("e1000e", Phase::Reads, MSIX_CONTROL, 0x8000), "the phase");
        assert!(
            !meant("e1000e", Phase::Released, MSIX_CONTROL, 0xc000),
            "the bits"
        );
        assert!(!meant("e1000e", Phase::Released, PMCSR, 0x8000), "the register");
        assert!(!meant("e1000e", Phase::Power, PMCSR, 0x0200), "where it is seen");
    }
}
