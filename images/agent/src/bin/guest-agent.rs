//! Runs in each guest of the rig, and answers `guest-run` in dom0.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    match agent::answer::serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
