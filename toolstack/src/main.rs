//! `bulkhead`, the dom0 command.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::Parser as _;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;
use toolstack::arguments::{Cli, Command, Switch, apart};
use toolstack::commands::attach::{self, Attach};
use toolstack::commands::check::{self, Check};
use toolstack::commands::declare::{self, Declare};
use toolstack::commands::explain::{self, Explain};
use toolstack::commands::run::{self, Run};
use toolstack::commands::{Ended, Named, destroy, detach, doctor, irq, release, seize, start, status};
use toolstack::host::check_privilege;
use toolstack::host::recreate;
use toolstack::output::print;
use toolstack::serve::workers;
use toolstack::{say, serve};

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
                named: Named {
                    devices,
                    choices: terms.into(),
                    slots,
                    kernel,
                },
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
                named: Named {
                    devices,
                    choices: terms.into(),
                    slots,
                    kernel,
                },
                wait: Duration::from_secs(wait),
            })
        }
        Command::Detach { who, trusted_guest } => detach::detach(&who, trusted_guest),
        Command::Destroy { who } => destroy::destroy(&who),
        Command::Declare {
            guest,
            devices,
            no_msi,
            slots,
            unfit,
            dry_run,
        } => {
            let (guest, devices) = apart(name, guest, devices).unwrap_or_else(|error| error.exit());
            declare::declare(&Declare {
                guest,
                devices,
                no_msi,
                slots,
                unfit,
                dry_run,
            })
        }
        Command::Undeclare { guest } => declare::undeclare(&guest),
        Command::Start { guest } => start::start(guest),
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
            return Ok(verdict(report.fit));
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
        Command::Status { watch: true, .. } => status::watch(),
        Command::Status { json, .. } => print(&status::read()?, json),
        Command::Explain {
            who,
            html,
            slots,
            terms,
            json,
        } => {
            let choices = terms.into();
            let explanations = explain::explain(&Explain { who, choices, slots })?;
            match html {
                Some(file) => explain::write_page(&explanations, &file),
                None => print(&explanations, json),
            }
        }
        Command::Doctor { json } => {
            let diagnosis = doctor::doctor();
            print(&diagnosis, json)?;
            return Ok(verdict(diagnosis.sound));
        }
        Command::Worker => {
            log_as_service();
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
            log_as_service();
            workers::run(supervised).inspect_err(|error| log::error!("{error}"))?;
            Ok(())
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

fn verdict(is_good: bool) -> ExitCode {
    if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn log_as_service() {
    let filter = env_logger::Env::default().default_filter_or("info");
    // Milliseconds, because guests wait two seconds for an answer.
    env_logger::Builder::from_env(filter)
        .format_timestamp_millis()
        .init();
}
