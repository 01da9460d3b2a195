//! The answer to one request.

use crate::op::Op;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;
use xenbus::pciif::layout::{OP, OP_ERR, OP_SIZE, OP_VALUE, TOTAL_SIZE, vector_offset};
use xenbus::pciif::{Command, MAX_VECTORS};

/// Bytes of the page that belong to the protocol.
pub type Shared = [u8; TOTAL_SIZE];

/// The result of a request, apart from its error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gain {
    /// The value field.
    Value(u32),
    /// A pirq. Its number differs from run to run, and is not kept.
    Pirq,
    /// This many pirqs, all there and all different.
    Vectors(u8),
    /// MSI-X without a valid pirq for each entry.
    BadVectors,
}

/// The parts of a backend's answer that must be the same for every backend and in every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The error field; 0 is success.
    pub err: i32,
    /// The result.
    pub gain: Gain,
    /// Offset in the page of the first byte that the backend has written and should not have.
    pub stray: Option<u16>,
}

impl Answer {
    /// Reads the answer to `op` out of the page. `before` is the page's content when the request was sent.
    ///
    /// The flags word does not count, because both sides change it.
    pub fn read(op: &Op, before: &Shared, after: &Shared) -> Self {
        let word = |at: usize| u32::from_le_bytes([after[at], after[at + 1], after[at + 2], after[at + 3]]);
        let err = word(OP_ERR).cast_signed();
        let value = word(OP_VALUE);
        let mut vectors = 0;
        let gain = match op.known_command() {
            Command::EnableMsi if err == 0 && value != 0 => Gain::Pirq,
            Command::EnableMsix if err == 0 => {
                vectors = MAX_VECTORS.min(op.value as usize);
                let pirqs: Vec<u16> = (0..vectors)
                    .map(vector_offset)
                    .map(|at| u16::from_le_bytes([after[at], after[at + 1]]))
                    .collect();
                let sound = |(index, pirq): (usize, &u16)| *pirq != 0 && !pirqs[..index].contains(pirq);
                if value == 0 && pirqs.iter().enumerate().all(sound) {
                    Gain::Vectors(vectors as u8)
                } else {
                    Gain::BadVectors
                }
            }
            _ => Gain::Value(value),
        };
        let allowed = |at: usize| {
            let vector = (0..vectors)
                .map(vector_offset)
                .any(|start| (start..start + 2).contains(&at));
            (OP_ERR..OP_ERR + 4).contains(&at) || (OP_VALUE..OP_VALUE + 4).contains(&at) || vector
        };
        let stray = (OP..TOTAL_SIZE).find(|&at| before[at] != after[at] && !allowed(at));
        Self {
            err,
            gain,
            stray: stray.map(|at| at as u16),
        }
    }

    /// The value of a read; 0 if there is none.
    pub const fn value(&self) -> u32 {
        match self.gain {
            Gain::Value(value) => value,
            Gain::Pirq | Gain::Vectors(_) | Gain::BadVectors => 0,
        }
    }
}

const _: () = assert!(OP + OP_SIZE <= TOTAL_SIZE && TOTAL_SIZE < u16::MAX as usize && MAX_VECTORS < 256);

/// One word: `ERR:GAIN`, and `!OFFSET` for a stray byte.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.err)?;
        match self.gain {
            Gain::Value(value) => write!(f, "{value:x}")?,
            Gain::Pirq => f.write_str("pirq")?,
            Gain::Vectors(count) => write!(f, "v{count}")?,
            Gain::BadVectors => f.write_str("vbad")?,
        }
        self.stray.map_or(Ok(()), |at| write!(f, "!{at}"))
    }
}

/// A text that is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAnswer;

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an answer: expected ERR:GAIN")
    }
}

impl core::error::Error for NoAnswer {}

impl FromStr for Answer {
    type Err = NoAnswer;

    fn from_str(text: &str) -> Result<Self, NoAnswer> {
        let (text, stray) = match text.split_once('!') {
            Some((text, at)) => (text, Some(at.parse().map_err(|_| NoAnswer)?)),
            None => (text, None),
        };
        let (err, gain) = text.split_once(':').ok_or(NoAnswer)?;
        let gain = match (gain, gain.strip_prefix('v')) {
            ("pirq", _) => Gain::Pirq,
            ("vbad", _) => Gain::BadVectors,
            (_, Some(count)) => Gain::Vectors(count.parse().map_err(|_| NoAnswer)?),
            (value, None) => Gain::Value(u32::from_str_radix(value, 16).map_err(|_| NoAnswer)?),
        };
        Ok(Self {
            err: err.parse().map_err(|_| NoAnswer)?,
            gain,
            stray,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use xenbus::pciif::layout::AER_OP;

    fn page(op: &Op) -> Shared {
        let mut page = [0; TOTAL_SIZE];
        page[OP..OP + OP_SIZE].copy_from_slice(&op.encode());
        page
    }

    /// The answer to `op` after a backend has written these bytes.
    fn answered(op: &Op, writes: &[(usize, &[u8])]) -> Answer {
        let before = page(op);
        let mut after = before;
        for (at, bytes) in writes {
            after[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        Answer::read(op, &before, &after)
    }

    const OK: (usize, &[u8]) = (OP_ERR, &[0; 4]);

    #[test]
    fn an_answer_is_written_down_and_read_back() {
        for text in ["0:10d38086", "-2:0", "0:pirq", "0:v128", "0:vbad", "-114:1!552"] {
            assert_eq!(text.parse::<Answer>().unwrap().to_string(), text);
        }
        for text in ["", "0", "0:", ":0", "0:x", "0:v", "0:v256", "0:0!", "x:0"] {
            assert_eq!(text.parse::<Answer>(), Err(NoAnswer), "{text}");
        }
    }

    #[test]
    fn pirqs_count_if_they_are_there_and_different() {
        let op = Op::msix(0, [3, 1]);
        let vectors = |first: u8, second: u8| {
            let (zero, one) = (vector_offset(0), vector_offset(1));
            let writes: [(usize, &[u8]); 4] =
                [OK, (OP_VALUE, &[0; 4]), (zero, &[first, 0]), (one, &[second, 0])];
            answered(&op, &writes).to_string()
        };
        assert_eq!(vectors(55, 54), "0:v2");
        assert_eq!(
            (vectors(55, 55), vectors(0, 54)),
            ("0:vbad".into(), "0:vbad".into())
        );
        let op = Op::new(Command::EnableMsi, 0);
        assert_eq!(
            answered(&op, &[OK, (OP_VALUE, &[55, 0, 0, 0])]).to_string(),
            "0:pirq"
        );
    }

    #[test]
    fn a_backend_may_write_nothing_but_its_answer() {
        let read = Op::read(0, 0, 4);
        assert_eq!(
            answered(&read, &[OK, (OP_VALUE, &[1, 2, 3, 4])]).to_string(),
            "0:4030201"
        );
        assert_eq!(answered(&read, &[OK, (OP, &[9])]).stray, Some(4));
        assert_eq!(answered(&read, &[OK, (vector_offset(0), &[9])]).stray, Some(40));
        assert_eq!(answered(&read, &[OK, (AER_OP, &[9])]).stray, Some(552));
        // A request that failed brings no vectors, and one that succeeded only those that it asked for.
        let msix = Op::msix(0, [0]);
        let failed: [(usize, &[u8]); 2] = [(OP_ERR, &[0xff; 4]), (vector_offset(0), &[9])];
        assert_eq!(answered(&msix, &failed).stray, Some(40));
        assert_eq!(answered(&msix, &[OK, (vector_offset(1), &[9])]).stray, Some(44));
        assert_eq!(
            answered(&msix, &[OK, (vector_offset(0) + 2, &[9])]).stray,
            Some(42)
        );
    }
}
