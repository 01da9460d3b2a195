//! `bulkhead`, the dom0 command.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::Parser as _;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;
use toolstack::arguments::{Cli, Command, Switch, apart};
use toolstack::commands::attach::{self, Attach};
use toolstack::commands::check::{self, Check};
use toolstack::commands::run::{self, Run};
use toolstack::commands::{Ended, destroy, detach, irq, release, seize, shutdown};
use toolstack::control::{self, ControlError, Reply, Request};
use toolstack::host::recreate;
use toolstack::host::{Host, check_privilege};
use toolstack::serve::workers;
use toolstack::{say, serve, service_log, status};

/// Exit code of `run` for a guest that runs and has not connected in time.
const STILL_BOOTS: u8 = 3;

pub(crate) fn main() -> ExitCode {
    // A process that was started through /proc/self/exe would be called `exe`.
    let _ = rustix::thread::set_name(c"bulkhead");
    match execute(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            say::error(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<ExitCode> {
    // Before the arguments are looked at closely: without root nothing works.
    check_privilege()?;
    let name = command.name();
    match command {
        Command::Run {
            config,
            devices,
            terms,
            slots,
            kernel,
            wait,
        } => {
            let (config, devices) = apart(name, config, devices).unwrap_or_else(|error| error.exit());
            let ended = run::run(&Run {
                config: config.into(),
                devices,
                choices: terms.into(),
                slots,
                kernel,
                wait: Duration::from_secs(wait),
            })?;
            return Ok(match ended {
                Ended::Done => ExitCode::SUCCESS,
                Ended::GuestStillBoots => STILL_BOOTS.into(),
            });
        }
        Command::Attach {
            guest,
            devices,
            terms,
            slots,
            stub,
            kernel,
            wait,
        } => {
            let (guest, devices) = apart(name, guest, devices).unwrap_or_else(|error| error.exit());
            attach::attach(&Attach {
                guest,
                stub,
                devices,
                choices: terms.into(),
                slots,
                kernel,
                wait: Duration::from_secs(wait),
            })
        }
        Command::Detach { who, trusted_guest } => detach::detach(&who, trusted_guest),
        Command::Shutdown {
            all: _,
            wait,
            destroy,
        } => shutdown::shutdown_all(Duration::from_secs(wait), destroy),
        Command::CheckRemovable => shutdown::check_removable(),
        Command::Destroy { who } => destroy::destroy(&who),
        Command::Check {
            devices,
            guest,
            slots,
            terms,
            json,
        } => {
            let choices = terms.into();
            let report = check::check(&Check {
                devices,
                guest,
                slots,
                choices,
            })?;
            print(&report, json)?;
            return Ok(if report.fit {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Command::Seize {
            marked: true, policy, ..
        } => seize::seize_marked(policy.as_deref()),
        Command::Seize { devices, .. } => seize::seize(&devices),
        Command::Release {
            devices,
            trusted_guest,
        } => release::release(&devices, trusted_guest),
        Command::Irq { device, ack } => irq::answer_for_line(&device, ack == Switch::On),
        Command::Status { json } => show_status(json),
        Command::Worker => {
            service_log::start();
            // The launcher passes its socket as standard input, the one descriptor that a new program surely has.
            let socket = std::io::stdin().as_fd().try_clone_to_owned();
            let socket = socket.context("no socket of the service's on standard input")?;
            serve::work(socket).inspect_err(|error| log::error!("{error}"))?;
            Ok(())
        }
        Command::Recreate => {
            say::progress(recreate::recreate(&mut std::io::stdin().lock())?);
            Ok(())
        }
        Command::Serve { supervised } => {
            service_log::start();
            workers::run(supervised).inspect_err(|error| log::error!("{error}"))?;
            Ok(())
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

fn show_status(json: bool) -> Result<()> {
    let status = match control::ask(Request::Status) {
        Ok(Reply::Status(status)) => status,
        Ok(_) => anyhow::bail!("the service's answer does not fit the request: restart the service"),
        // Without a service the records still tell what guests have.
        Err(ControlError::NotRunning(_)) => {
            let mut host = Host::open()?;
            status::collect(&mut host.store, &host.sysfs, false, BTreeMap::new())?
        }
        Err(error) => return Err(error.into()),
    };
    print(&status, json)
}

/// Prints a status or a report, as text or as JSON.
fn print(found: &(impl Serialize + Display), json: bool) -> Result<()> {
    let text = if json {
        serde_json::to_string_pretty(&versioned(found))? + "\n"
    } else {
        found.to_string()
    };
    match io::stdout().write_all(text.as_bytes()) {
        // As with `| head`: the reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("cannot print what was found out"),
    }
}

/// Version of the JSON that is printed. It changes when a field is removed or gets another meaning, not when one is added.
const JSON_VERSION: u32 = 1;

/// JSON as it is printed: the version first, then the fields in the order in which they are declared.
#[derive(Serialize)]
struct JsonDocument<'a, T> {
    version: u32,
    #[serde(flatten)]
    found: &'a T,
}

fn versioned<T: Serialize>(found: &T) -> JsonDocument<'_, T> {
    JsonDocument {
        version: JSON_VERSION,
        found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_says_its_version() {
        let printed = serde_json::to_value(versioned(&status::Status::default())).unwrap();
        assert_eq!(printed["version"], 1);
        assert_eq!(printed["stubs"], serde_json::json!([]));
    }
}
