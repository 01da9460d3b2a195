//! The answers to a sequence of accesses, as a file.
//!
//! The file is one line of JSON, then the answers. An answer is the status in one byte (0xff: four bytes follow), and
//! for a read also the value. The accesses are not in the file: they follow from phase, seed and reference.

use super::operation::{Answer, Operation};
use super::phase::Phase;
use super::sequence::sequence;
use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// The answers to one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRecording {
    /// What was done.
    pub about: About,
    /// In the order of the accesses.
    pub answers: Vec<Answer>,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Which part of the proof.
    pub phase: Phase,
    /// Seed of the random accesses.
    pub seed: u64,
    /// Number of random accesses.
    pub count: usize,
    /// Config space by which the accesses are chosen, in dwords: the same for both backends.
    pub reference: Vec<u32>,
    /// Config space as the guest read it before, in dwords.
    pub start: Vec<u32>,
    /// How long the accesses took.
    pub milliseconds: u64,
    /// Accesses that pcifront gave up on after two seconds, and that were made again.
    pub repeated: Vec<usize>,
}

const WIDE_STATUS: u8 = 0xff;

impl About {
    /// The accesses.
    pub fn operations(&self) -> Vec<Operation> {
        sequence(self.phase, &bytes(&self.reference), self.seed, self.count)
    }
}

/// A dump of config space, from dwords.
pub fn bytes(dwords: &[u32]) -> Vec<u8> {
    dwords.iter().flat_map(|dword| dword.to_le_bytes()).collect()
}

/// The dwords of a dump of config space.
pub fn dwords(bytes: &[u8]) -> Vec<u32> {
    let dword = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u32::from(*byte))
    };
    bytes.chunks(4).map(dword).collect()
}

impl AccessRecording {
    /// As a file.
    ///
    /// # Errors
    /// None in practice: everything here has a form in JSON.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(&self.about)?;
        bytes.push(b'\n');
        for (operation, answer) in self.about.operations().iter().zip(&self.answers) {
            match u8::try_from(answer.status) {
                Ok(status) if status != WIDE_STATUS => bytes.push(status),
                _ => {
                    bytes.push(WIDE_STATUS);
                    bytes.extend(answer.status.to_le_bytes());
                }
            }
            if let Operation::Read(span) = operation {
                bytes.extend(&answer.value.to_le_bytes()[..usize::from(span.width)]);
            }
        }
        Ok(bytes)
    }

    /// From a file.
    ///
    /// # Errors
    /// The file is no recording, or was cut.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let line = bytes.iter().position(|byte| *byte == b'\n');
        let (about, mut rest) = bytes.split_at(line.context("no recording: it has no first line")?);
        let about: About =
            serde_json::from_slice(about).context("no recording: its first line is not JSON")?;
        rest = rest.get(1..).unwrap_or_default();
        let mut take = |count: usize| -> Result<u32> {
            let (taken, left) = rest.split_at_checked(count).context("the recording was cut")?;
            rest = left;
            Ok(taken
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u32::from(*byte)))
        };
        let answers = about
            .operations()
            .iter()
            .map(|operation| {
                let status = match take(1)? {
                    0xff => take(4)? as i32,
                    status => status as i32,
                };
                let value = match operation {
                    Operation::Read(span) => take(span.width.into())?,
                    Operation::Write(..) => 0,
                };
                Ok(Answer { value, status })
            })
            .collect::<Result<Vec<Answer>>>()?;
        ensure!(rest.is_empty(), "the recording has {} bytes too many", rest.len());
        Ok(Self { about, answers })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::layout::tests::dump;
    use super::*;

    /// A recording of `phase`, each answer given by `answer`.
    pub fn recording(phase: Phase, mut answer: impl FnMut(usize, Operation) -> Answer) -> AccessRecording {
        let about = About {
            phase,
            seed: 7,
            count: 1000,
            reference: dwords(&dump()),
            start: dwords(&dump()),
            milliseconds: 1,
            repeated: Vec::new(),
        };
        let operations = about.operations();
        let answers = operations
            .iter()
            .enumerate()
            .map(|(index, operation)| answer(index, *operation));
        AccessRecording {
            answers: answers.collect(),
            about,
        }
    }

    fn sample() -> AccessRecording {
        recording(Phase::Random, |index, operation| Answer {
            value: match operation {
                Operation::Read(span) => index as u32 & span.mask(),
                Operation::Write(..) => 0,
            },
            status: [0, 0x88, -5, 0xff][index % 4],
        })
    }

    #[test]
    fn a_file_holds_all() {
        let sample = sample();
        assert_eq!(bytes(&sample.about.reference), dump());
        assert_eq!(
            AccessRecording::decode(&sample.encode().unwrap()).unwrap(),
            sample
        );
    }

    #[test]
    fn a_file_that_was_cut_or_is_another_is_refused() {
        let bytes = sample().encode().unwrap();
        for (bytes, part) in [
            (&bytes[..bytes.len() - 1], "cut"),
            (&bytes[..100], "first line"),
            (&b"sh: not found\n"[..], "JSON"),
            (&[&bytes[..], b"x"].concat(), "1 bytes too many"),
        ] {
            let error = AccessRecording::decode(bytes).unwrap_err();
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
    }
}
