//! The steps of a command, which are undone if it fails.
//!
//! Only what the command itself did is undone. Other commands may have worked meanwhile (a command lets them
//! while it waits). So each step checks first: a device that another command has taken since, or a number that another domain has by
//! now, is left alone.

use super::turn::Turn;
use crate::host::Host;
use crate::say::{self, notice};
use anyhow::Result;
use std::fs;
use std::io;

/// Undoes one step.
type UndoStep = Box<dyn FnOnce(&mut Host, &mut Turn) -> Result<()>>;

/// The steps so far. They are undone in the reverse order.
pub struct Undo {
    /// Identifies this command in records.
    command: String,
    steps: Vec<UndoStep>,
}

/// A text that nobody else has.
pub fn unique() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid")?
        .trim()
        .to_owned())
}

impl Undo {
    /// Nothing is done yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            command: unique()?,
            steps: Vec::new(),
        })
    }

    /// Identifies this command in records.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Adds how a step is undone. If the step can fail halfway this comes before it, so undoing what was not done must do no
    /// harm.
    pub fn push(&mut self, step: impl FnOnce(&mut Host, &mut Turn) -> Result<()> + 'static) {
        self.steps.push(Box::new(step));
    }

    /// Undoes all steps in turn, and tells what cannot be undone.
    pub fn undo(self, host: &mut Host, turn: &mut Turn) {
        if !self.steps.is_empty() {
            say::progress("undoing what was done");
        }
        // One that fails does not stop the others: each leaves less behind.
        for step in self.steps.into_iter().rev() {
            if let Err(no_turn) = turn.resume() {
                notice!("not everything was undone ({no_turn:#}): `bulkhead status` shows what is left");
                return;
            }
            if let Err(error) = step(host, turn) {
                notice!("while undoing: {error:#}");
            }
        }
    }
}
