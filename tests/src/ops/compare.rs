//! Putting two recordings side by side.

use super::difference::Difference;
use super::known::{KNOWN, Known};
use super::recording::Recording;
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::fmt;

/// Both recordings, and all differences.
#[derive(Debug)]
pub struct Proof {
    /// How many requests there were.
    pub requests: usize,
    /// All differences, each with what explains it.
    pub differences: Vec<(Difference, Option<&'static Known>)>,
    /// Answers of Bulkhead that changed what they had no right to.
    pub strays: usize,
}

impl Proof {
    /// Compares two recordings.
    ///
    /// # Errors
    /// They are not of the same requests: then nothing can be said.
    pub fn new(pciback: &Recording, bulkhead: &Recording) -> Result<Self> {
        ensure!(
            pciback.plan == bulkhead.plan,
            "the requests are not the same: {:?} by xen-pciback, {:?} by Bulkhead",
            pciback.plan,
            bulkhead.plan
        );
        let answers = pciback.answers.iter().zip(&bulkhead.answers);
        let asked = bulkhead.plan.ops().zip(answers).enumerate();
        let differing = asked.filter(|(_, (_, (theirs, ours)))| theirs != ours);
        let differences = differing.map(|(index, ((case, shape, op), (theirs, ours)))| Difference {
            index,
            case,
            shape,
            op,
            pciback: *theirs,
            bulkhead: *ours,
        });
        Ok(Self {
            requests: bulkhead.answers.len(),
            differences: differences
                .map(|difference| {
                    let known = Known::of(&difference);
                    (difference, known)
                })
                .collect(),
            strays: bulkhead
                .answers
                .iter()
                .filter(|answer| answer.stray.is_some())
                .count(),
        })
    }

    /// Differences that are not meant.
    pub fn unexpected(&self) -> impl Iterator<Item = &Difference> {
        self.differences
            .iter()
            .filter(|(_, known)| known.is_none())
            .map(|(difference, _)| difference)
    }

    /// How often each difference that is meant shows.
    pub fn known(&self) -> impl Iterator<Item = (&'static Known, usize)> {
        KNOWN.iter().map(|known| {
            let same = |found: &Option<&'static Known>| found.is_some_and(|found| std::ptr::eq(found, known));
            (
                known,
                self.differences.iter().filter(|(_, found)| same(found)).count(),
            )
        })
    }

    /// Whether all is as it should be.
    pub fn holds(&self) -> bool {
        self.strays == 0 && self.unexpected().next().is_none() && self.known().all(|(_, count)| count != 0)
    }
}

/// How many differences of a case are shown.
const EXAMPLES: usize = 12;

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, unexpected) = (self.differences.len(), self.unexpected().count());
        writeln!(
            f,
            "{} requests, {all} differences, {} meant",
            self.requests,
            all - unexpected
        )?;
        for (known, count) in self.known() {
            let verdict = if count == 0 {
                "STALE: listed, and does not show"
            } else {
                "meant"
            };
            writeln!(
                f,
                "{verdict}: {} ({count} times): {}",
                known.requests, known.bulkhead
            )?;
        }
        if self.strays != 0 {
            writeln!(
                f,
                "UNEXPECTED: {} answers of Bulkhead changed more of the page than an answer may",
                self.strays
            )?;
        }
        let mut groups: BTreeMap<_, Vec<&Difference>> = BTreeMap::new();
        for difference in self.unexpected() {
            let devfn = difference.shape.map(|shape| shape.devfn);
            groups
                .entry((difference.case, devfn))
                .or_default()
                .push(difference);
        }
        for ((case, devfn), group) in &groups {
            match devfn {
                Some(devfn) => writeln!(f, "UNEXPECTED, {case}, devfn {devfn:#x}: {} times", group.len())?,
                None => writeln!(f, "UNEXPECTED, {case}: {} times", group.len())?,
            }
            for difference in group.iter().take(EXAMPLES) {
                writeln!(f, "  {difference}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::recording::tests::recording;
    use super::*;
    use test_guest::case::OTHER_KIND;
    use xenbus::pciif::Command;

    /// What xen-pciback and Bulkhead answer, as far as the known differences go.
    fn meant(bulkhead: bool) -> Recording {
        recording(|case, op| {
            let sound = matches!(op.size, 1 | 2 | 4) && op.offset % op.size == 0;
            let outside = sound && !(0..4096).contains(&op.offset);
            let (ours, theirs) = match op.known_command() {
                Command::ConfRead if op.devfn == 0x100 => ("-1:0", "0:0"),
                Command::ConfRead | Command::ConfWrite if outside => ("-2:0", "-22:0"),
                Command::ConfRead if op.offset == 0x3c && op.size == 4 => ("0:115", "0:133"),
                Command::ConfRead if op.size == 1 => ("0:34", "0:1234"),
                Command::ConfWrite if op.value != 0 => ("0:0", "0:1"),
                Command::EnableMsix if case == OTHER_KIND => ("0:v1", "-114:1"),
                Command::EnableMsix if op.value == 33 => ("-22:0", "-28:ffffffe4"),
                _ => ("0:0", "0:0"),
            };
            if bulkhead { ours } else { theirs }.to_owned()
        })
    }

    #[test]
    fn what_is_meant_is_no_failure() {
        let proof = Proof::new(&meant(false), &meant(true)).unwrap();
        assert!(proof.holds(), "{proof}");
        assert!(!proof.differences.is_empty());
    }

    #[test]
    fn one_other_answer_is_a_failure_and_is_named() {
        let mut bulkhead = meant(true);
        let index = bulkhead
            .plan
            .ops()
            .position(|(_, _, op)| op.command == 2)
            .unwrap();
        bulkhead.answers[index] = "0:pirq".parse().unwrap();
        let proof = Proof::new(&meant(false), &bulkhead).unwrap();
        assert!(!proof.holds());
        assert!(
            proof
                .to_string()
                .contains("0:0 by xen-pciback, 0:pirq by Bulkhead"),
            "{proof}"
        );
    }

    #[test]
    fn a_difference_that_is_listed_and_does_not_show_is_a_failure() {
        let proof = Proof::new(&meant(true), &meant(true)).unwrap();
        assert!(!proof.holds() && proof.to_string().contains("STALE"));
    }

    #[test]
    fn a_stray_byte_is_a_failure_even_if_both_write_it() {
        let stray = |bulkhead| {
            let mut recording = meant(bulkhead);
            recording.answers[0].stray = Some(552);
            recording
        };
        assert!(!Proof::new(&stray(false), &stray(true)).unwrap().holds());
    }

    #[test]
    fn recordings_of_other_requests_are_not_compared() {
        let mut other = meant(true);
        other.plan.seed += 1;
        assert!(Proof::new(&meant(false), &other).is_err());
    }
}
