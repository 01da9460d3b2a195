//! `guest-run DOMAIN SECONDS COMMAND...` in dom0 of the rig runs COMMAND in a guest, through its shell, prints what it
//! printed and ends with its exit code.
//!
//! 124: COMMAND did not end within SECONDS (the time until the guest's agent is up counts) and was killed, or the guest
//! does not answer. 125: the guest could not be asked, or could not start a shell.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;
use std::time::SystemTime;

use agent::ask;
use agent::reply::End;
use anyhow::{Context, Result};

const NO_ANSWER: u8 = 124;
const NOT_ASKED: u8 = 125;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let code = match &words[..] {
        [domain, seconds, command @ ..] if !command.is_empty() => run(domain, seconds, &command.join(" ")),
        _ => Err(anyhow::anyhow!("usage: guest-run DOMAIN SECONDS COMMAND...")),
    };
    ExitCode::from(code.unwrap_or_else(|error| {
        eprintln!("guest-run: {error:#}");
        NOT_ASKED
    }))
}

fn run(domain: &str, seconds: &str, command: &str) -> Result<u8> {
    let limit = seconds
        .parse()
        .with_context(|| format!("{seconds:?} are no seconds"))?;
    let mut store = xenstore::open()?;
    let home = ask::home(&mut store, domain)?;
    // Two commands may ask the same guest at once, and numbers of processes are used again.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let id = format!("{}-{}", std::process::id(), now.as_millis());
    let ended = match ask::run(&mut store, &home, &id, limit, command)? {
        Ok(ended) => ended,
        Err(reason) => {
            eprintln!("guest-run: {domain}: {reason} within {limit} s");
            return Ok(NO_ANSWER);
        }
    };
    // A reader that has gone has seen enough.
    let _ = std::io::stdout().write_all(&ended.output);
    Ok(match ended.end {
        End::Exited(code) => code,
        End::Late => {
            eprintln!("guest-run: {domain}: {command:?} did not end within {limit} s");
            NO_ANSWER
        }
        End::Failed => {
            eprintln!("guest-run: {domain}: the guest could not run {command:?}");
            NOT_ASKED
        }
    })
}
