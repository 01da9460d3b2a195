//! Output of the commands.
//!
//! A reader that goes away (`bulkhead run … | head -1`) or a full disk must not end a command halfway. So a line that cannot be
//! written is dropped, where `println!` would panic.

use std::fmt::Display;
use std::io::{self, Write};

/// Tells on standard output what was done.
pub fn print_done(line: impl Display) {
    write_line(&mut io::stdout(), line);
}

/// Tells on standard error what the administrator should know.
pub fn print_notice(line: impl Display) {
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
