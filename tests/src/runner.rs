//! Runs scenarios and keeps the score.

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
    /// Where its logs are.
    pub dir: PathBuf,
}

/// Runs `scenario` on `rig`; its logs are left below `out`.
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
            cpus: scenario.cpus,
            devices: scenario.devices.clone(),
            xen_options: scenario.xen_options.clone(),
            ..Machine::default()
        },
        files: files.to_vec(),
        script: scenario.script.clone(),
        timeout: scenario.timeout,
    };
    let name = format!("{}/{}", rig.suite(), scenario.name);
    let outcome = rig.run(&boot, &out.join(&name), observer)?;
    let verdict = verdict(&outcome, scenario);
    Ok(Report {
        name,
        verdict,
        duration: outcome.duration,
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
