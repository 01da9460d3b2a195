//! What the two ends say to one another.

use std::fmt;
use std::str::FromStr;

/// Most bytes of a piece. A guest may have 1,000 nodes of 2,048 bytes, the entry of the node itself included.
pub const PIECE: usize = 1800;
/// Most bytes of output that are kept: the last ones.
pub const OUTPUT_MAX: usize = 500 * PIECE;
/// Longest command, in bytes. A message to xenstored has 4,096 at most, and its path is one part of them.
pub const COMMAND_MAX: usize = 3000;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit code; with 128 and its number by a signal.
    Exited(u8),
    /// Its time was up, and it was killed.
    Late,
    /// The guest could not start it; the output says why.
    Failed,
}

/// The reply to a request, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// How the command ended.
    pub end: End,
    /// How many pieces of output there are.
    pub pieces: usize,
}

/// The words of the ends without a code.
const WORDS: [(End, &str); 2] = [(End::Late, "late"), (End::Failed, "failed")];

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.end {
            End::Exited(code) => write!(f, "{code}")?,
            end => {
                let word = WORDS.iter().find(|(known, _)| *known == end);
                f.write_str(word.map_or("", |(_, word)| word))?;
            }
        }
        write!(f, " {}", self.pieces)
    }
}

impl FromStr for Reply {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (end, pieces) = text.split_once(' ')?;
            let word = WORDS.iter().find(|(_, word)| *word == end);
            let end = match word {
                Some((end, _)) => *end,
                None => End::Exited(end.parse().ok()?),
            };
            let pieces = pieces.parse().ok()?;
            Some(Reply { end, pieces })
        };
        parse().ok_or_else(|| format!("the guest's agent replied {text:?}, which is no reply"))
    }
}

/// A request, as it travels.
pub fn request(seconds: u64, command: &str) -> String {
    format!("{seconds} {command}")
}

/// The seconds and the command of a request.
pub fn parse_request(text: &str) -> Option<(u64, &str)> {
    let (seconds, command) = text.split_once(' ')?;
    Some((seconds.parse().ok()?, command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_read_as_it_was_written() {
        for end in [End::Exited(0), End::Exited(137), End::Late, End::Failed] {
            let reply = Reply { end, pieces: 3 };
            assert_eq!(reply.to_string().parse(), Ok(reply));
        }
        for text in ["", "0", "0 ", "256 1", "late", "soon 1", "0 -1"] {
            let error = text.parse::<Reply>().expect_err(text);
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn a_request_keeps_the_spaces_of_its_command() {
        assert_eq!(parse_request(&request(60, "echo  a b")), Some((60, "echo  a b")));
        assert_eq!(parse_request("60"), None);
        assert_eq!(parse_request("soon true"), None);
    }

    #[test]
    fn the_pieces_of_the_longest_output_leave_room_in_the_guests_quota() {
        const { assert!(OUTPUT_MAX.div_ceil(PIECE) <= 900 && PIECE < 2048 - 100) };
    }
}
