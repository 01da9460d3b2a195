//! Putting two recordings side by side.

use super::difference::InAnswer;
use super::known::{KNOWN, Requests};
use super::recording::RequestRecording;
use crate::comparison::{Comparison, Difference, DifferenceOf, Known, Subject, UNEXPECTED};
use anyhow::{Result, ensure};
use std::fmt;
use test_guest::answer::Answer;

/// All requests of the test guest.
#[derive(Debug)]
pub struct Ops {
    /// How many requests there were.
    pub requests: usize,
    /// Answers of Bulkhead that changed more of the page than an answer may.
    pub strays: usize,
}

impl Subject for Ops {
    type Place = InAnswer;
    type Value = Answer;
    type Pattern = Requests;

    const COLUMNS: &'static [&'static str] = &["Requests"];

    fn table() -> &'static [Known<Requests>] {
        KNOWN
    }

    fn covers(known: &Known<Requests>, difference: &DifferenceOf<Self>) -> bool {
        (known.at.covers)(difference)
    }

    fn cells(requests: &Requests) -> Vec<String> {
        vec![requests.which.to_owned()]
    }

    fn fault(&self) -> Option<String> {
        let strays = self.strays;
        (strays != 0)
            .then(|| format!("{strays} answers of Bulkhead changed more of the page than an answer may"))
    }
}

impl Comparison<Ops> {
    /// Compares two recordings.
    ///
    /// # Errors
    /// They are not of the same requests: then nothing can be said.
    pub fn of(pciback: &RequestRecording, bulkhead: &RequestRecording) -> Result<Self> {
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
            place: InAnswer {
                index,
                case,
                shape,
                op,
            },
            pciback: *theirs,
            bulkhead: *ours,
        });
        let strays = bulkhead.answers.iter().filter(|answer| answer.stray.is_some());
        let ops = Ops {
            requests: bulkhead.answers.len(),
            strays: strays.count(),
        };
        Ok(Self::new(ops, differences))
    }
}

/// How many differences of a case are shown.
const EXAMPLES: usize = 12;

impl fmt::Display for Comparison<Ops> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, meant) = self.count(|_| true);
        writeln!(
            f,
            "{} requests, {all} differences, {meant} meant",
            self.subject.requests
        )?;
        self.write_known(f, |requests| requests.which)?;
        if let Some(fault) = self.subject.fault() {
            writeln!(f, "{UNEXPECTED}: {fault}")?;
        }
        let groups = self.unexpected_by(|place| (place.case, place.shape.map(|shape| shape.devfn)));
        for ((case, devfn), group) in groups {
            let count = group.len();
            match devfn {
                Some(devfn) => writeln!(f, "{UNEXPECTED}, {case}, devfn {devfn:#x}: {count} times")?,
                None => writeln!(f, "{UNEXPECTED}, {case}: {count} times")?,
            }
            for difference in group.into_iter().take(EXAMPLES) {
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
    fn meant(bulkhead: bool) -> RequestRecording {
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
        let comparison = Comparison::of(&meant(false), &meant(true)).unwrap();
        assert!(comparison.holds(), "{comparison}");
        assert_ne!(comparison.count(|_| true), (0, 0));
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
        let comparison = Comparison::of(&meant(false), &bulkhead).unwrap();
        assert!(!comparison.holds());
        assert!(
            comparison
                .to_string()
                .contains("0:0 by xen-pciback, 0:pirq by Bulkhead"),
            "{comparison}"
        );
    }

    #[test]
    fn a_difference_that_is_listed_and_does_not_show_is_a_failure() {
        let comparison = Comparison::of(&meant(true), &meant(true)).unwrap();
        assert!(!comparison.holds() && comparison.to_string().contains("STALE"));
    }

    #[test]
    fn a_stray_byte_is_a_failure_even_if_both_write_it() {
        let stray = |bulkhead| {
            let mut recording = meant(bulkhead);
            recording.answers[0].stray = Some(552);
            recording
        };
        assert!(!Comparison::of(&stray(false), &stray(true)).unwrap().holds());
    }

    #[test]
    fn recordings_of_other_requests_are_not_compared() {
        let mut other = meant(true);
        other.plan.seed += 1;
        assert!(Comparison::of(&meant(false), &other).is_err());
    }
}
