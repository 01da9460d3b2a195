//! Runs scenarios, and reports how they ended.

use crate::figure::Figure;
use crate::measure;
use crate::scenario::Scenario;
use crate::verdict::Verdict;
use anyhow::Result;
use images::{Boot, End, FileIn, Machine, Observer, Outcome, Rig};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One scenario that was run.
#[derive(Debug)]
pub struct Report {
    /// `suite/name`.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// From power-on to power-off.
    pub duration: Duration,
    /// Its output.
    pub output: String,
    /// Its figures; none unless the script succeeded.
    pub figures: Vec<Figure>,
    /// Where its logs are.
    pub dir: PathBuf,
}

/// How many lines of output are shown if a scenario does not succeed.
const SHOWN: usize = 40;

impl Report {
    /// The report on a scenario that was not started.
    pub fn without_a_run(rig: &Rig, scenario: &Scenario, verdict: Verdict) -> Self {
        Self {
            name: format!("{}/{}", rig.suite(), scenario.name),
            verdict,
            duration: Duration::ZERO,
            output: String::new(),
            figures: Vec::new(),
            dir: PathBuf::new(),
        }
    }

    /// Details for the reader. After a success: its figures. Otherwise: the end of the output, and the path of the logs.
    pub fn details(&self) -> String {
        let lines: Vec<&str> = self.output.lines().collect();
        let shown = match self.verdict {
            // `say` and `figure` of lib.sh indent their lines.
            Verdict::Success => lines
                .iter()
                .filter(|line| line.starts_with("  "))
                .copied()
                .collect(),
            _ => lines[lines.len().saturating_sub(SHOWN)..].to_vec(),
        };
        let mut details: String = shown
            .iter()
            .map(|line| format!("         {}\n", line.trim_start()))
            .collect();
        if !matches!(self.verdict, Verdict::Success) {
            details += &format!("         all logs: {}\n", self.dir.display());
        }
        details
    }
}

/// Runs `scenario` on `rig`. Its logs go below `out`.
///
/// # Errors
/// The rig itself fails: a device that QEMU does not know, a directory that cannot be written.
pub fn run(
    rig: &Rig,
    scenario: &Scenario,
    files: &[FileIn],
    out: &Path,
    observer: &mut dyn Observer,
) -> Result<Report> {
    let boot = Boot {
        machine: Machine {
            qemu: scenario.qemu,
            cpu: scenario.cpu.clone(),
            cpus: scenario.cpus,
            counts_instructions: scenario.counts_instructions,
            xenstored: scenario.xenstored(),
            devices: scenario.devices.clone(),
            xen_options: scenario.xen_options.clone(),
            dom0_options: scenario.dom0_options.clone(),
            ..Machine::default()
        },
        files: files.to_vec(),
        packages: scenario.packages.clone(),
        script: scenario.script.clone(),
        timeout: scenario.timeout,
    };
    let name = format!("{}/{}", rig.suite(), scenario.name);
    let outcome = rig.run(&boot, &out.join(&name), observer)?;
    let (verdict, figures) = match verdict(&outcome, scenario) {
        Verdict::Success => match Figure::all_of(rig.suite(), scenario, &outcome.script_log) {
            Ok(figures) => match &measure::beyond(&figures)[..] {
                [] => (Verdict::Success, figures),
                beyond => (Verdict::Failure(beyond.join("; ")), figures),
            },
            Err(error) => (Verdict::Error(error.to_string()), Vec::new()),
        },
        other => (other, Vec::new()),
    };
    Ok(Report {
        name,
        verdict,
        figures,
        duration: outcome.duration,
        output: outcome.script_log,
        dir: outcome.dir,
    })
}

fn verdict(outcome: &Outcome, scenario: &Scenario) -> Verdict {
    match &outcome.end {
        End::Exited(code) => Verdict::of(&outcome.script_log, *code),
        End::TimedOut => Verdict::Failure(format!("no end within {} s", scenario.timeout.as_secs())),
        End::Died(reason) => Verdict::Failure(reason.clone()),
    }
}
