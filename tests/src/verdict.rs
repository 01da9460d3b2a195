//! The verdict of a scenario, which is its last line: `VERDICT Success`, or `VERDICT Failure: the reason`.

use std::fmt;

/// How a scenario ended. The vocabulary is that of the Xen Test Framework.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that it checks holds.
    Success,
    /// It cannot check anything on this machine. Holds the reason.
    Skip(String),
    /// The scenario or its machine is broken. Holds the reason.
    Error(String),
    /// The tested code is wrong. Holds the reason.
    Failure(String),
}

impl Verdict {
    /// Reads the verdict from a script's output and exit code. Without a clear verdict the result is an error: a
    /// scenario that dies half-way has not succeeded.
    pub fn of(output: &str, exit_code: i32) -> Self {
        let last = output
            .lines()
            .rev()
            .map(str::trim)
            .find(|line| !line.is_empty())
            .unwrap_or_default();
        let verdict = last.strip_prefix("VERDICT ").and_then(|text| {
            let (word, reason) = text.split_once(": ").unwrap_or((text, ""));
            let verdict = match word {
                "Success" if reason.is_empty() => Self::Success,
                "Skip" => Self::Skip(reason.into()),
                "Error" => Self::Error(reason.into()),
                "Failure" => Self::Failure(reason.into()),
                _ => return None,
            };
            Some(verdict)
        });
        match verdict {
            Some(verdict) if verdict.exit_code() == exit_code => verdict,
            Some(verdict) => Self::Error(format!("it says {verdict}, but ends with exit code {exit_code}")),
            None => Self::Error(format!(
                "no verdict on the last line (exit code {exit_code}): {last}"
            )),
        }
    }

    /// The exit code that goes with the verdict (1 and 2 are left to the shell).
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::Success => 0,
            Self::Skip(_) => 3,
            Self::Error(_) => 4,
            Self::Failure(_) => 5,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("Success"),
            Self::Skip(reason) => write!(f, "Skip: {reason}"),
            Self::Error(reason) => write!(f, "Error: {reason}"),
            Self::Failure(reason) => write!(f, "Failure: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_and_the_exit_code_agree_on_a_verdict() {
        assert_eq!(Verdict::of("ok: a\nVERDICT Success\n\n", 0), Verdict::Success);
        assert_eq!(
            Verdict::of("VERDICT Failure: 3 pings lost\r\n", 5),
            Verdict::Failure("3 pings lost".into())
        );
        assert_eq!(
            Verdict::of("VERDICT Skip: no VF", 3),
            Verdict::Skip("no VF".into())
        );
    }

    #[test]
    fn anything_else_is_an_error() {
        for (output, exit_code) in [
            ("", 0),
            ("VERDICT Success", 1),
            ("VERDICT Success\nand then it crashed", 0),
            ("VERDICT Success: almost", 0),
            ("VERDICT Splendid", 0),
        ] {
            assert!(
                matches!(Verdict::of(output, exit_code), Verdict::Error(_)),
                "{output:?} {exit_code}"
            );
        }
    }
}
