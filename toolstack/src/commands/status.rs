//! `bulkhead status`: asks the service, and shows what it tells, once or again and again.

use super::waiting::Interrupt;
use crate::control::{self, ControlError, Reply, Request};
use crate::host::Host;
use crate::host::pci_ids::PciIds;
use crate::layout::{Render, columns, rows};
use crate::status::{self, Status};
use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd;
use std::time::Duration;

/// Time between two looks.
const INTERVAL: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// The status, with the names of devices.
pub fn read() -> Result<Status> {
    complete(control::ask(Request::Status), &PciIds::read())
}

/// As [`read`], from a service that answers within `limit`.
pub fn read_within(limit: Duration) -> Result<Status> {
    complete(control::ask_status(limit), &PciIds::read())
}

/// The status of the service's answer, or of the records if no service runs.
fn complete(answer: Result<Reply, ControlError>, names: &PciIds) -> Result<Status> {
    let mut status = match answer {
        Ok(Reply::Status(status)) => *status,
        Ok(_) => bail!("the service's answer does not fit the request: restart the service"),
        // Without a service the records still tell what guests have.
        Err(ControlError::NotRunning(_)) => {
            let mut host = Host::open()?;
            status::collect(
                &mut host.store,
                Some(&host.xen),
                &host.sysfs,
                false,
                BTreeMap::new(),
            )?
        }
        Err(error) => return Err(error.into()),
    };
    status.add_names(names);
    Ok(status)
}

/// Shows the status until Ctrl-C, or until nobody reads any more. A terminal is drawn anew every second; a file or a pipe
/// gets the status when it has changed.
pub fn watch() -> Result<()> {
    let interrupt = Interrupt::catch()?;
    let names = PciIds::read();
    let mut stdout = io::stdout();
    let mut view = View::of(stdout.is_terminal());
    while interrupt.check().is_ok() {
        // The service may be about to start again: what it tells then is worth waiting for.
        let text = match complete(control::ask(Request::Status), &names) {
            Ok(status) => status.render(columns()),
            Err(error) => format!("bulkhead: {error:#}\n"),
        };
        match view.show(&text, rows(), &mut stdout) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            shown => shown.context("cannot show the status")?,
        }
        if has_no_reader(&stdout)? {
            return Ok(());
        }
    }
    view.end(&mut stdout).context("cannot write to the terminal")
}

/// Waits for the next look; true if nobody can read what is written.
fn has_no_reader(output: impl AsFd) -> Result<bool> {
    // No event is asked for: the kernel tells of an end all the same.
    let mut output = [PollFd::new(&output, PollFlags::empty())];
    match poll(&mut output, Some(&INTERVAL)) {
        Ok(ended) => Ok(ended > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error).context("cannot wait"),
    }
}

/// How a changing text is shown.
enum View {
    Terminal,
    /// The text that was written last.
    Stream(Option<String>),
}

impl View {
    fn of(is_terminal: bool) -> Self {
        if is_terminal {
            Self::Terminal
        } else {
            Self::Stream(None)
        }
    }

    /// Shows a text. Of one that is longer than a terminal, the beginning is shown.
    fn show(&mut self, text: &str, rows: usize, output: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Terminal => {
                let drawn = screen(text, rows);
                // Drawn over the last one, line by line: a screen that is cleared first would flicker.
                write!(output, "\x1b[H{drawn}\x1b[J")?;
            }
            Self::Stream(last) if last.as_deref() == Some(text) => return Ok(()),
            Self::Stream(last) => {
                // An empty line separates one from the next.
                let separator = if last.is_some() { "\n" } else { "" };
                write!(output, "{separator}{text}")?;
                *last = Some(text.to_owned());
            }
        }
        output.flush()
    }

    /// Leaves the terminal with the last text on it.
    fn end(&self, output: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Terminal => writeln!(output),
            Self::Stream(_) => Ok(()),
        }
    }
}

/// The lines of a text that fit the rows of a terminal, each with the code that clears the rest of its row. The last row is
/// left free.
fn screen(text: &str, rows: usize) -> String {
    let room = rows.saturating_sub(1).max(1);
    let lines: Vec<&str> = text.lines().collect();
    let mut shown: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
    if lines.len() > room {
        shown.truncate(room - 1);
        shown.push(format!(
            "… {} more lines: `bulkhead status | less` shows all",
            lines.len() + 1 - room
        ));
    }
    shown.iter().map(|line| format!("{line}\x1b[K\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_drawn_over_and_shows_what_fits() {
        assert_eq!(screen("one\ntwo\n", 24), "one\x1b[K\ntwo\x1b[K\n");
        let long = "line\n".repeat(30);
        let drawn = screen(&long, 24);
        assert_eq!(drawn.lines().count(), 23);
        assert!(drawn.contains("… 8 more lines"), "{drawn}");
        assert_eq!(screen(&long, 0).lines().count(), 1);
        let mut drawn = Vec::new();
        View::of(true).show("one\n", 24, &mut drawn).unwrap();
        assert_eq!(drawn, b"\x1b[Hone\x1b[K\n\x1b[J");
    }

    #[test]
    fn a_pipe_gets_each_change_once_and_no_codes() {
        let (mut view, mut written) = (View::of(false), Vec::new());
        for text in ["one\n", "one\n", "two\n"] {
            view.show(text, 24, &mut written).unwrap();
        }
        view.end(&mut written).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), "one\n\ntwo\n");
    }

    #[test]
    fn the_end_of_the_reader_is_noticed_though_nothing_is_written() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        assert!(has_no_reader(&writer).unwrap());
    }
}
