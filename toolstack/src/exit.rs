//! Exit codes of the commands. docs/administration.md has the same table; a test compares them.

use crate::say::{self, ToldLines};
use anyhow::Result;
use serde::Serialize;
use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked.
    Done,
    /// It did not, or found that not all is well.
    Failed,
    /// The guest still boots.
    StillBoots,
}

impl Exit {
    /// For a command that only looks.
    pub fn verdict(is_good: bool) -> Self {
        if is_good { Self::Done } else { Self::Failed }
    }

    /// The code.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::StillBoots => 3,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// All codes, with their meanings, for the help text.
pub const HELP: &str = "\
Exit codes:
  0  done; `check`: all devices are fit; `doctor`: no problem; `--dry-run`: nothing speaks against it
  1  refused or failed (`run` and `attach` undo what they began); `check`: not all are fit; `doctor`: a problem
  2  the command line is wrong
  3  `run`: the guest runs and has not connected in time; it keeps its devices";

/// What a command that changes something has done, as a JSON document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ActionReport {
    /// The command, such as `run`.
    pub command: &'static str,
    /// Its exit code.
    pub exit_code: u8,
    /// What was done, and what the administrator should know.
    #[serde(flatten)]
    pub told: ToldLines,
    /// Why it failed; absent if it did not.
    pub error: Option<String>,
}

impl ActionReport {
    /// Runs a command. What it tells is kept meanwhile.
    pub fn of(command: &'static str, run: impl FnOnce() -> Result<Exit>) -> (Self, Result<Exit>) {
        say::keep();
        let ended = run();
        let report = Self {
            command,
            exit_code: ended.as_ref().map_or(Exit::Failed, |&exit| exit).code(),
            told: say::take_kept(),
            error: ended.as_ref().err().map(|error| format!("{error:#}")),
        };
        (report, ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Document;
    use crate::say::{notice, say};
    use serde_json::json;

    #[test]
    fn a_commands_report_has_what_it_told_and_how_it_ended() {
        let (report, ended) = ActionReport::of("release", || {
            say!("gave {} back", "0000:00:05.0");
            notice!("mind it");
            anyhow::bail!("the other one is gone")
        });
        assert!(ended.is_err());
        let expected = json!({
            "version": 1,
            "command": "release",
            "exit_code": 1,
            "done": ["gave 0000:00:05.0 back"],
            "notes": ["mind it"],
            "error": "the other one is gone"
        });
        assert_eq!(serde_json::to_value(Document::new(&report)).unwrap(), expected);
        let (report, _) = ActionReport::of("run", || Ok(Exit::StillBoots));
        assert_eq!((report.exit_code, report.error), (3, None));
    }

    #[test]
    fn the_codes_are_those_of_the_help_and_of_the_document() {
        let document = include_str!("../../docs/administration.md");
        let rows: Vec<&str> = document
            .lines()
            .skip_while(|line| !line.starts_with("| exit code"))
            .skip(2)
            .map_while(|line| line.strip_prefix("| "))
            .collect();
        let codes: Vec<&str> = rows.iter().filter_map(|row| row.split(' ').next()).collect();
        let helped: Vec<&str> = HELP
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert_eq!(codes, ["0", "1", "2", "3"]);
        assert_eq!(codes, helped);
        for exit in [Exit::Done, Exit::Failed, Exit::StillBoots] {
            assert!(codes.contains(&exit.code().to_string().as_str()), "{exit:?}");
        }
        // Clap's own, for a command line that is wrong.
        let wrong = clap::Command::new("bulkhead").try_get_matches_from(["bulkhead", "--nonsense"]);
        assert_eq!(wrong.unwrap_err().exit_code(), 2);
    }
}
