//! What `bulkhead doctor` has found, as text and as JSON.

use crate::layout::{COLUMNS, Lines, Render};
use serde::Serialize;
use std::fmt;

/// All findings about a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Diagnosis {
    /// True if no finding is a problem.
    pub sound: bool,
    /// The findings, in the order in which things are needed.
    pub findings: Vec<Finding>,
}

/// What was found out about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Finding {
    /// What was checked, such as `iommu`.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it; absent if all is well.
    pub next: Option<String>,
    /// Where the knowledge is from, if it is not from this host.
    pub source: Option<&'static str>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing. Guests can have devices all the same.
    Note,
    /// Something does not work, or is not safe.
    Problem,
}

impl Finding {
    /// All is well.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Ok,
            found: found.into(),
            next: None,
            source: None,
        }
    }

    /// Something that is worth knowing, with what to do.
    pub fn note(check: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            level: Level::Note,
            next: Some(next.into()),
            ..Self::ok(check, found)
        }
    }

    /// Something that does not work or is not safe, with what to do.
    pub fn problem(check: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            level: Level::Problem,
            ..Self::note(check, found, next)
        }
    }

    /// The same, known from this source.
    pub fn from_source(self, source: &'static str) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }
}

/// These findings, or one that says that all is well.
pub fn or_ok(findings: Vec<Finding>, check: &'static str, found: impl Into<String>) -> Vec<Finding> {
    if findings.is_empty() {
        vec![Finding::ok(check, found)]
    } else {
        findings
    }
}

impl Diagnosis {
    /// From all findings.
    pub fn new(findings: Vec<Finding>) -> Self {
        Self {
            sound: findings.iter().all(|finding| finding.level < Level::Problem),
            findings,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "PROBLEM",
        })
    }
}

/// Columns of the first column.
const LEVEL: usize = 7;

impl Render for Diagnosis {
    fn render(&self, columns: usize) -> String {
        let mut lines = Lines::new(columns);
        for Finding {
            check,
            level,
            found,
            next,
            source,
        } in &self.findings
        {
            lines.row(0, &level.to_string(), LEVEL, format_args!("{check}: {found}"));
            if let Some(next) = next {
                lines.row(0, "", LEVEL, format_args!("next: {next}"));
            }
            if let Some(source) = source {
                lines.row(0, "", LEVEL, format_args!("source: {source}"));
            }
        }
        let problems = self
            .findings
            .iter()
            .filter(|finding| finding.level == Level::Problem);
        match problems.count() {
            0 => lines.line("nothing is wrong"),
            1 => lines.line("1 problem"),
            count => lines.line(format_args!("{count} problems")),
        }
        lines.into_text()
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(COLUMNS))
    }
}

#[cfg(test)]
pub(in crate::commands) mod tests {
    use super::*;

    pub fn diagnosis() -> Diagnosis {
        Diagnosis::new(vec![
            Finding::ok("iommu", "Xen uses it"),
            Finding::note("linux", "old", "install a newer kernel in dom0").from_source("docs/support.md"),
        ])
    }

    #[test]
    fn a_host_is_sound_without_a_problem_and_the_verdict_is_told_last() {
        let fine = vec![
            Finding::ok("iommu", "Xen uses it"),
            Finding::note("linux", "old", "install a newer kernel in dom0").from_source("docs/support.md"),
        ];
        let diagnosis = Diagnosis::new(fine.clone());
        assert!(diagnosis.sound);
        assert_eq!(
            diagnosis.to_string(),
            "ok      iommu: Xen uses it\nnote    linux: old\n        next: install a newer kernel in dom0\n        \
             source: docs/support.md\nnothing is wrong\n"
        );
        let problem = Finding::problem("files", "no image", "install it");
        let diagnosis = Diagnosis::new([fine, vec![problem]].concat());
        assert!(!diagnosis.sound);
        let text = diagnosis.to_string();
        assert!(
            text.ends_with("PROBLEM files: no image\n        next: install it\n1 problem\n"),
            "{text}"
        );
    }
}
