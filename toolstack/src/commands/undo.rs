//! The steps of a command, which are undone if it fails.
//!
//! Only what the command itself did is undone. Other commands may have worked meanwhile (`run` lets them while its guest
//! boots). So each step checks first: a device that another command has taken since, or a number that another domain has by
//! now, is left alone.

use crate::host::Host;
use crate::say::{self, notice};
use anyhow::Result;
use std::fs;
use std::io;

/// Undoes one step.
type UndoStep = Box<dyn FnOnce(&mut Host) -> Result<()>>;

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
    pub fn push(&mut self, step: impl FnOnce(&mut Host) -> Result<()> + 'static) {
        self.steps.push(Box::new(step));
    }

    /// Undoes all steps, and tells what cannot be undone. The caller holds the lock of the commands.
    pub fn undo(self, host: &mut Host) {
        if !self.steps.is_empty() {
            say::progress("undoing what was done");
        }
        // One that fails does not stop the others: each leaves less behind.
        for step in self.steps.into_iter().rev() {
            if let Err(error) = step(host) {
                notice!("while undoing: {error:#}");
            }
        }
    }
}
