//! Runs a plan: sends every request to the backend, and records every answer.

use crate::ask::ask_dom0;
use crate::frontend::{Failure, Frontend};
use crate::plan::Plan;
use crate::recorder::Recorder;
use crate::step::Step;
use alloc::string::ToString;
use core::time::Duration;
use drivers::platform::Platform;
use xenbus::client::{Client, Transport};

/// Node of the recording, below our home.
pub const RECORDING: &str = "data/ops";

/// Summary of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Requests that were answered.
    pub requests: usize,
    /// Time of the slowest answer.
    pub slowest: Duration,
}

/// Runs the plan on all functions that the backend has at function 0 of a slot.
///
/// The recording is these words: `seed=N`, `count=N`, a `shape=…` for each function, and an answer for each request.
///
/// # Errors
/// What [`Failure`] names. A refused request is no error.
pub fn run<P: Platform, T: Transport>(
    platform: &mut P,
    client: &mut Client<T>,
    frontend: &mut Frontend<P>,
    seed: u64,
    count: usize,
) -> Result<Summary, Failure> {
    let shapes = frontend.functions(platform)?;
    let plan = Plan { shapes, seed, count };
    let mut recorder = Recorder::new(RECORDING);
    recorder.push(client, &format_args!("seed={seed} count={count}"))?;
    for shape in &plan.shapes {
        recorder.push(client, &format_args!("shape={shape}"))?;
    }
    let mut summary = Summary {
        requests: 0,
        slowest: Duration::ZERO,
    };
    for (_, _, step) in plan.steps() {
        match step {
            Step::Op(op) => {
                let before = platform.now();
                let answer = frontend.ask(platform, &op)?;
                summary.slowest = summary.slowest.max(platform.now().saturating_sub(before));
                summary.requests += 1;
                recorder.push(client, &answer)?;
            }
            Step::Ask(ask) => ask_dom0(platform, client, &ask.to_string())?,
        }
    }
    recorder.finish(client)?;
    Ok(summary)
}
