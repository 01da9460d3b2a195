//! Output of the commands.
//!
//! A reader that goes away (`bulkhead run … | head -1`) or a full disk must not end a command halfway. So a line that cannot be
//! written is dropped, where `println!` would panic.

use serde::Serialize;
use std::cell::RefCell;
use std::fmt::Display;
use std::io::{self, Write};

thread_local! {
    /// What a command has told, kept for its JSON document. `None`: what was done is printed. A command tells things in one
    /// thread.
    static TOLD: RefCell<Option<ToldLines>> = const { RefCell::new(None) };
}

/// What a command has told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ToldLines {
    /// What was done, a line for each step.
    pub done: Vec<String>,
    /// What the administrator should know.
    pub notes: Vec<String>,
}

/// From now on what was done is kept instead of printed. Notes are printed too: they go to standard error.
pub fn keep() {
    TOLD.set(Some(ToldLines::default()));
}

/// What was kept.
pub fn take_kept() -> ToldLines {
    TOLD.take().unwrap_or_default()
}

/// Adds to what is kept; false if nothing is.
fn add(line: &impl Display, list: fn(&mut ToldLines) -> &mut Vec<String>) -> bool {
    TOLD.with_borrow_mut(|told| {
        let told = told.as_mut();
        told.map(|told| list(told).push(line.to_string())).is_some()
    })
}

/// Tells on standard output what was done.
pub fn print_done(line: impl Display) {
    if !add(&line, |told| &mut told.done) {
        write_line(&mut io::stdout(), line);
    }
}

/// Tells on standard error what the administrator should know.
pub fn print_notice(line: impl Display) {
    add(&line, |told| &mut told.notes);
    write_line(&mut io::stderr(), format_args!("note: {line}"));
}

/// Tells on standard error what went wrong.
pub fn error(line: impl Display) {
    write_line(&mut io::stderr(), format_args!("bulkhead: {line}"));
}

/// Tells on standard error what is being done.
pub fn progress(line: impl Display) {
    write_line(&mut io::stderr(), line);
}

/// As `println!`, by [`print_done`].
macro_rules! say {
    ($($argument:tt)*) => { $crate::say::print_done(format_args!($($argument)*)) };
}

/// As `eprintln!`, by [`print_notice`].
macro_rules! notice {
    ($($argument:tt)*) => { $crate::say::print_notice(format_args!($($argument)*)) };
}

pub(crate) use {notice, say};

fn write_line(to: &mut impl Write, line: impl Display) {
    let _ = writeln!(to, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As standard output is when its reader has gone, or when the disk is full.
    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn a_line_that_cannot_be_written_is_passed_over() {
        for kind in [io::ErrorKind::BrokenPipe, io::ErrorKind::StorageFull] {
            write_line(&mut Broken(kind), "took 0000:00:05.0");
        }
        let mut lines = Vec::new();
        write_line(&mut lines, "took 0000:00:05.0");
        assert_eq!(lines, b"took 0000:00:05.0\n");
    }
}
