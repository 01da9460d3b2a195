//! What a command has done so far, to be undone if it fails.
//!
//! Only what the command itself did is undone. It may have let others do their work meanwhile (`run` does while its guest
//! boots), so each step looks before it undoes: a device that another command has taken since, or a number that another
//! domain has by now, is left alone.

use crate::host::Host;
use crate::say::{self, note};
use anyhow::Result;
use std::fs;
use std::io;

/// Undoes one step.
type UndoStep = Box<dyn FnOnce(&mut Host) -> Result<()>>;

/// What was done so far, to be undone in the reverse order.
pub struct Undo {
    /// Tells this command from all others.
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

    /// What tells this command from others.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Notes how a step is undone, before the step is taken or right after: undoing what was not done must do no harm.
    pub fn push(&mut self, step: impl FnOnce(&mut Host) -> Result<()> + 'static) {
        self.steps.push(Box::new(step));
    }

    /// Undoes everything; what cannot be undone is told. No other command may change anything meanwhile.
    pub fn undo(self, host: &mut Host) {
        if !self.steps.is_empty() {
            say::progress("undoing what was done");
        }
        for step in self.steps.into_iter().rev() {
            if let Err(error) = step(host) {
                note!("while undoing: {error:#}");
            }
        }
    }
}
