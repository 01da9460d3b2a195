//! The guest's end: takes requests, and runs their commands.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use xenbus::client::Store as _;
use xenstore::Store;

use crate::nodes;
use crate::patience::readable;
use crate::reply::{End, OUTPUT_MAX, PIECE, Reply, parse_request};

/// Takes requests as long as xenstored is there. Each has a thread and a connection of its own, so that a command that
/// hangs holds up no other.
///
/// # Errors
/// xenstored cannot be reached, or refuses.
pub fn serve() -> Result<()> {
    let mut store = xenstore::open()?;
    store.watch(nodes::REQUESTS, "")?;
    store.write(nodes::AGENT, "1")?;
    loop {
        while let Some(event) = store.next_event()? {
            if let Some(id) = nodes::request_of_event(&event.path) {
                let id = id.to_owned();
                std::thread::spawn(move || {
                    if let Err(error) = xenstore::open()
                        .map_err(Into::into)
                        .and_then(|mut store| answer(&mut store, &id))
                    {
                        eprintln!("guest-agent: request {id}: {error:#}");
                    }
                });
            }
        }
        readable(store.transport(), None)?;
    }
}

/// Takes one request, runs its command and leaves the reply. Does nothing if there is no such request: its removal makes
/// an event, too.
///
/// # Errors
/// xenstored refuses.
pub fn answer(store: &mut Store, id: &str) -> Result<()> {
    let path = nodes::request(id);
    let Some(request) = store.read_optional(&path)? else {
        return Ok(());
    };
    store.remove(&path)?;
    let ended = match parse_request(&request) {
        Some((seconds, command)) => run(command, Duration::from_secs(seconds)),
        None => Err(anyhow::anyhow!("{request:?} is no request")),
    };
    let (end, output) = ended.unwrap_or_else(|error| (End::Failed, format!("{error:#}\n").into()));
    let mut pieces = 0;
    for piece in output.chunks(PIECE) {
        store.write_bytes(&nodes::piece(id, pieces), piece)?;
        pieces += 1;
    }
    store.write(&nodes::reply(id), &Reply { end, pieces }.to_string())?;
    Ok(())
}

/// Runs a command in a shell for so long at most. Gives what it printed until then, or the end of that.
fn run(command: &str, limit: Duration) -> Result<(End, Vec<u8>)> {
    // A file and no pipe: what the command leaves running must not be waited for.
    let output = temporary().context("making a file for the output")?;
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()
        .context("starting sh")?;
    let end = match ended_within(&mut child, limit)? {
        Some(status) => End::Exited(exit_code(status)),
        None => {
            child.kill()?;
            child.wait()?;
            End::Late
        }
    };
    let length = output.metadata()?.len();
    let from = length.saturating_sub(OUTPUT_MAX as u64);
    let mut printed = vec![0; (length - from) as usize];
    output.read_exact_at(&mut printed, from)?;
    Ok((end, printed))
}

/// A file without a name.
fn temporary() -> std::io::Result<File> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("guest-agent-{}-{number}", std::process::id()));
    let file = File::options()
        .read(true)
        .append(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

fn ended_within(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    let pid = Pid::from_child(child);
    let process = pidfd_open(pid, PidfdFlags::empty()).context("watching the command")?;
    if readable(process, Some(end))? {
        return Ok(Some(child.wait()?));
    }
    Ok(None)
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenbus::model::Xenstored;

    const ID: &str = "17";

    /// What the agent replies to a request, and the pieces of output.
    fn replied(request: &str) -> (Reply, Vec<u8>) {
        let daemon = Xenstored::new();
        daemon.introduce(1);
        let mut guest = xenstore::over_model(daemon.connect(1));
        guest.write(&nodes::request(ID), request).unwrap();
        answer(&mut guest, ID).unwrap();
        assert_eq!(guest.read_optional(&nodes::request(ID)).unwrap(), None);
        let reply: Reply = guest.read(&nodes::reply(ID)).unwrap().parse().unwrap();
        let pieces = (0..reply.pieces).map(|number| guest.read_bytes(&nodes::piece(ID, number)).unwrap());
        (reply, pieces.collect::<Vec<_>>().concat())
    }

    #[test]
    fn a_command_is_run_by_a_shell_and_its_code_and_both_its_outputs_come_back() {
        let (reply, output) = replied("9 echo one; echo two >&2; exit 3");
        assert_eq!(reply.end, End::Exited(3));
        assert_eq!(output, b"one\ntwo\n");
        assert_eq!(replied("9 kill -9 $$").0.end, End::Exited(137));
    }

    #[test]
    fn long_output_comes_in_pieces_whatever_its_bytes_and_of_too_much_the_end() {
        let (reply, output) = replied("9 head -c 5000 /dev/zero; printf '\\377end'");
        assert_eq!(reply.pieces, 3);
        assert_eq!(output.len(), 5004);
        assert!(output.starts_with(&[0; 5000]) && output.ends_with(b"\xffend"));
        let (_, output) = replied("9 yes | head -c 2000000; echo end");
        assert_eq!(output.len(), OUTPUT_MAX);
        assert!(output.ends_with(b"\nend\n"));
    }

    #[test]
    fn what_a_command_leaves_running_is_not_waited_for() {
        let started = Instant::now();
        assert_eq!(replied("9 sleep 5 & echo started").1, b"started\n");
        assert!(started.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn a_command_that_takes_too_long_is_killed_and_what_it_printed_is_kept() {
        let (reply, output) = replied("1 echo begun; sleep 30");
        assert_eq!((reply.end, &output[..]), (End::Late, &b"begun\n"[..]));
    }

    #[test]
    fn a_request_of_no_form_is_answered_and_a_missing_one_is_not() {
        let (reply, output) = replied("nonsense");
        assert_eq!(reply.end, End::Failed);
        assert!(String::from_utf8_lossy(&output).contains("nonsense"));
        let daemon = Xenstored::new();
        daemon.introduce(1);
        let mut guest = xenstore::over_model(daemon.connect(1));
        answer(&mut guest, ID).unwrap();
        assert_eq!(guest.read_optional(&nodes::reply(ID)).unwrap(), None);
    }
}
