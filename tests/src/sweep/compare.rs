//! Putting two recordings side by side.

use super::difference::{Difference, Seen};
use super::known::{KNOWN, Known};
use super::layout::{Layout, Register};
use super::operation::{Answer, Operation, Span};
use super::phase::Phase;
use super::recording::{Recording, bytes};
use anyhow::{Context as _, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::fs;
use std::path::Path;

/// What one backend gave for one sequence.
#[derive(Debug)]
pub struct Side {
    /// The guest's answers.
    pub recording: Recording,
    /// Config space after it, as dom0 reads it.
    pub left: Vec<u8>,
}

impl Side {
    fn load(dir: &Path, name: &str) -> Result<Self> {
        let read = |suffix: &str| {
            let path = dir.join(format!("{name}.{suffix}"));
            fs::read(&path).with_context(|| format!("read {}", path.display()))
        };
        let recording = Recording::decode(&read(RECORDING)?);
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

/// Finds all differences between the two.
///
/// # Errors
/// The two did not do the same: then nothing can be said.
pub fn differences(pciback: &Side, bulkhead: &Side) -> Result<Vec<Difference>> {
    let (ours, theirs) = (&bulkhead.recording, &pciback.recording);
    let phase = ours.about.phase;
    let operations = ours.about.operations();
    ensure!(
        operations == theirs.about.operations(),
        "the accesses are not the same: other phases, seeds or references"
    );
    let layout = Layout::of(&bytes(&ours.about.reference));
    let mut found = dumps(
        phase,
        Seen::AtTheStart,
        &layout,
        &bytes(&theirs.about.start),
        &bytes(&ours.about.start),
    );
    for (index, operation) in operations.iter().enumerate() {
        let (theirs, ours) = (theirs.answers[index], ours.answers[index]);
        found.extend(answers(phase, &layout, index, *operation, theirs, ours));
    }
    found.extend(dumps(
        phase,
        Seen::LeftBehind,
        &layout,
        &pciback.left,
        &bulkhead.left,
    ));
    Ok(found)
}

fn answers(
    phase: Phase,
    layout: &Layout,
    index: usize,
    operation: Operation,
    pciback: Answer,
    bulkhead: Answer,
) -> Vec<Difference> {
    let span = operation.span();
    let registers = layout.registers(span);
    let difference = |seen, register, bits| Difference {
        phase,
        seen,
        register,
        bits,
        access: Some((index, operation)),
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
fn dumps(phase: Phase, seen: Seen, layout: &Layout, pciback: &[u8], bulkhead: &[u8]) -> Vec<Difference> {
    let length = pciback.len().max(bulkhead.len()).min(0x1000) as u16;
    let places: BTreeSet<(Span, Register)> = (0..length)
        .map(|offset| layout.register_at(offset))
        .map(|(register, place)| (place, register))
        .collect();
    let value = |place: Span, dump: &[u8]| place.value_in(dump);
    places
        .into_iter()
        .map(|(place, register)| (register, value(place, pciback), value(place, bulkhead)))
        .filter(|(_, pciback, bulkhead)| pciback != bulkhead)
        .map(|(register, pciback, bulkhead)| Difference {
            phase,
            seen,
            register,
            bits: pciback ^ bulkhead,
            access: None,
            pciback: format!("{pciback:#x}"),
            bulkhead: format!("{bulkhead:#x}"),
        })
        .collect()
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
    /// All of them.
    pub differences: Vec<Difference>,
}

impl Run {
    /// Whether a difference found in it is meant.
    fn means(&self, difference: &Difference) -> bool {
        KNOWN.iter().any(|known| known.covers(&self.device, difference))
    }
}

/// All sequences on all functions.
#[derive(Debug)]
pub struct Proof {
    /// By name.
    pub runs: Vec<Run>,
}

impl Proof {
    /// Reads what the two backends gave: of each run `DEVICE-PHASE.recording` and `DEVICE-PHASE.left`, in both
    /// directories.
    ///
    /// # Errors
    /// A file that is missing or is no recording, or recordings of different things.
    pub fn load(pciback: &Path, bulkhead: &Path) -> Result<Self> {
        let names = names(pciback)?;
        ensure!(!names.is_empty(), "no *.{RECORDING} in {}", pciback.display());
        ensure!(
            names == self::names(bulkhead)?,
            "{} and {} hold recordings of different runs",
            pciback.display(),
            bulkhead.display()
        );
        let runs = names
            .into_iter()
            .map(|name| {
                let (pciback, bulkhead) = (Side::load(pciback, &name)?, Side::load(bulkhead, &name)?);
                let differences = differences(&pciback, &bulkhead).with_context(|| name.clone())?;
                let phase = bulkhead.recording.about.phase;
                let device = name.strip_suffix(&format!("-{phase}"));
                Ok(Run {
                    device: device
                        .with_context(|| format!("{name} holds the phase {phase}"))?
                        .to_owned(),
                    phase,
                    pciback,
                    bulkhead,
                    differences,
                })
            })
            .collect::<Result<Vec<Run>>>()?;
        Ok(Self { runs })
    }

    /// Differences that are not meant, with the runs that they show in.
    pub fn unexpected(&self) -> impl Iterator<Item = (&Run, &Difference)> {
        self.all().filter(|(run, difference)| !run.means(difference))
    }

    /// How often each difference that is meant shows.
    pub fn known(&self) -> impl Iterator<Item = (&'static Known, usize)> {
        KNOWN.iter().map(|known| {
            let covered = self
                .all()
                .filter(|(run, difference)| known.covers(&run.device, difference));
            (known, covered.count())
        })
    }

    fn all(&self) -> impl Iterator<Item = (&Run, &Difference)> {
        let of = |run| move |difference| (run, difference);
        self.runs
            .iter()
            .flat_map(move |run: &Run| run.differences.iter().map(of(run)))
    }

    /// Whether all is as it should be.
    pub fn holds(&self) -> bool {
        self.unexpected().next().is_none() && self.known().all(|(_, count)| count != 0)
    }
}

fn names(dir: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == RECORDING)
            && let Some(name) = path.file_stem()
        {
            names.insert(name.to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// How many differences of a kind are shown.
const EXAMPLES: usize = 3;
/// How many writes before a difference are shown.
const HISTORY: usize = 6;

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for run in &self.runs {
            writeln!(
                f,
                "{:<8} {:<8} {:>6} accesses in {} by xen-pciback, {} by Bulkhead: {} differences, {} meant",
                run.device,
                run.phase.to_string(),
                run.bulkhead.recording.answers.len(),
                time(&run.pciback),
                time(&run.bulkhead),
                run.differences.len(),
                run.differences
                    .iter()
                    .filter(|difference| run.means(difference))
                    .count(),
            )?;
        }
        for (known, count) in self.known() {
            let verdict = if count == 0 {
                "STALE: listed, and does not show"
            } else {
                "meant"
            };
            writeln!(
                f,
                "{verdict}: {} ({count} times): {}",
                known.register, known.bulkhead
            )?;
        }
        let mut groups: BTreeMap<_, Vec<(&Run, &Difference)>> = BTreeMap::new();
        for (run, difference) in self.unexpected() {
            let key = (&run.device, run.phase, difference.register, difference.seen);
            groups.entry(key).or_default().push((run, difference));
        }
        for ((device, phase, register, seen), group) in &groups {
            let bits = group
                .iter()
                .fold(0, |bits, (_, difference)| bits | difference.bits);
            let count = group.len();
            writeln!(
                f,
                "UNEXPECTED, {device}, {phase}: {register}, bits {bits:#x}, {seen}: {count} times"
            )?;
            for (run, difference) in group.iter().take(EXAMPLES) {
                writeln!(f, "  {difference}")?;
                f.write_str(&history(run, difference))?;
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
fn history(run: &Run, difference: &Difference) -> String {
    let mut text = String::new();
    let Some((end, operation)) = difference.access else {
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
        // A `String` takes all that it is given.
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
            differences(&silent(Phase::Random), &silent(Phase::Random)).unwrap(),
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
        let found = differences(&silent(Phase::Reads), &other).unwrap();
        let [difference] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!((difference.register, difference.bits), (MSIX_CONTROL, 0x8000));
        assert_eq!(difference.seen, Seen::Read);
        assert!(difference.access.is_some_and(|(_, operation)| operation == at));
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
        let found = differences(&silent(Phase::Writes), &side(Phase::Writes, refuse)).unwrap();
        assert!(!found.is_empty());
        for difference in found {
            assert_eq!(
                (difference.register, difference.seen, difference.bits),
                (PMCSR, Seen::Error, 0)
            );
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
        let found = differences(&silent(Phase::Driven), &side(Phase::Driven, refuse)).unwrap();
        assert!(!found.is_empty());
        assert!(found.iter().all(|difference| difference.register == MSIX_CONTROL));
    }

    #[test]
    fn what_is_left_in_the_device_counts() {
        let mut other = silent(Phase::Reads);
        other.left[5] ^= 0x04;
        let found = differences(&silent(Phase::Reads), &other).unwrap();
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
        assert!(differences(&silent(Phase::Random), &other).is_err());
    }

    #[test]
    fn a_difference_that_is_not_listed_fails_the_proof_and_so_does_one_that_is_listed_and_gone() {
        let proof = |bulkhead: Side| Proof {
            runs: vec![Run {
                device: "e1000e".into(),
                phase: Phase::Reads,
                differences: differences(&silent(Phase::Reads), &bulkhead).unwrap(),
                pciback: silent(Phase::Reads),
                bulkhead,
            }],
        };
        let text = proof(silent(Phase::Reads)).to_string();
        assert!(text.contains("STALE") && !text.contains("UNEXPECTED"), "{text}");
        let mut other = silent(Phase::Reads);
        other.left[0] ^= 1;
        let proof = proof(other);
        assert!(!proof.holds());
        assert!(
            proof.to_string().contains("UNEXPECTED, e1000e, reads: Vendor ID"),
            "{proof}"
        );
    }
}
