//! `bulkhead`, the dom0 command.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::Parser as _;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;
use toolstack::arguments::{Cli, Command, DeviceArgs, Switch, apart};
use toolstack::commands::attach::{self, Attach};
use toolstack::commands::check::{self, Check};
use toolstack::commands::declare::{self, Declare};
use toolstack::commands::explain::{self, Explain};
use toolstack::commands::run::{self, Run};
use toolstack::commands::{
    Ended, Named, destroy, detach, doctor, irq, metrics, release, seize, shutdown, start, status,
};
use toolstack::exit::{ActionReport, Exit};
use toolstack::host::check_privilege;
use toolstack::host::recreate;
use toolstack::output::{print, print_document, print_text};
use toolstack::serve::workers;
use toolstack::{say, serve, service_log};

pub(crate) fn main() -> ExitCode {
    // A process that was started through /proc/self/exe would be called `exe`.
    let _ = rustix::thread::set_name(c"bulkhead");
    match execute(Cli::parse().command) {
        Ok(exit) => exit.into(),
        Err(error) => {
            say::error(format_args!("{error:#}"));
            Exit::Failed.into()
        }
    }
}

/// Runs a command that changes something, and prints its report if that is wanted.
fn act(name: &'static str, json: bool, run: impl FnOnce() -> Result<Exit>) -> Result<Exit> {
    if !json {
        return run();
    }
    let (report, ended) = ActionReport::of(name, run);
    print_document(&report)?;
    ended
}

fn done(result: Result<()>) -> Result<Exit> {
    result.map(|()| Exit::Done)
}

/// The guest, or its configuration file, and its devices. Ends the program if the command line is wrong.
fn named(command: &'static str, guest: Option<String>, given: DeviceArgs) -> (String, Named) {
    let (guest, devices) = apart(command, guest, given.devices).unwrap_or_else(|error| error.exit());
    let named = Named {
        devices,
        choices: given.terms.into(),
        slots: given.slots,
        kernel: given.kernel,
        telemetry: given.telemetry,
    };
    (guest, named)
}

fn execute(command: Command) -> Result<Exit> {
    if let Command::Metrics { names: true, .. } = command {
        return done(print_text(&metrics::table()));
    }
    // Before the arguments are looked at closely: without root nothing else works.
    check_privilege()?;
    let name = command.name();
    match command {
        Command::Run { config, given } => {
            let (wait, dry_run, json) = (Duration::from_secs(given.wait), given.dry_run, given.json);
            let (config, named) = named(name, config, given);
            let request = Run {
                config: config.into(),
                named,
                wait,
            };
            if dry_run {
                return done(print(&run::plan(&request)?, json));
            }
            act("run", json, || {
                Ok(match run::run(&request)? {
                    Ended::Done => Exit::Done,
                    Ended::GuestStillBoots => Exit::StillBoots,
                })
            })
        }
        Command::Attach { guest, given, stub } => {
            let (wait, dry_run, json) = (Duration::from_secs(given.wait), given.dry_run, given.json);
            let (guest, named) = named(name, guest, given);
            let request = Attach {
                guest,
                stub,
                named,
                wait,
            };
            if dry_run {
                return done(print(&attach::plan(&request)?, json));
            }
            act("attach", json, || done(attach::attach(&request)))
        }
        Command::Detach {
            who,
            trusted_guest,
            json,
        } => act("detach", json, || done(detach::detach(&who, trusted_guest))),
        Command::Destroy { who, json } => act("destroy", json, || done(destroy::destroy(&who))),
        Command::Declare {
            guest,
            devices,
            no_msi,
            slots,
            unfit,
            telemetry,
            dry_run,
            json,
        } => {
            let (guest, devices) = apart(name, guest, devices).unwrap_or_else(|error| error.exit());
            let request = Declare {
                guest,
                devices,
                no_msi,
                slots,
                unfit,
                telemetry,
                dry_run,
            };
            act("declare", json, || done(declare::declare(&request)))
        }
        Command::Undeclare { guest, json } => act("undeclare", json, || done(declare::undeclare(&guest))),
        Command::Start { guest } => done(start::start(guest)),
        Command::Shutdown {
            all: _,
            wait,
            destroy,
            json,
        } => act("shutdown", json, || {
            done(shutdown::shutdown_all(Duration::from_secs(wait), destroy))
        }),
        Command::CheckRemovable => done(shutdown::check_removable()),
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
                later: false,
            })?;
            print(&report, json)?;
            Ok(Exit::verdict(report.fit))
        }
        Command::Seize {
            devices,
            marked,
            policy,
            json,
        } => act("seize", json, || {
            done(if marked {
                seize::seize_marked(policy.as_deref())
            } else {
                seize::seize(&devices)
            })
        }),
        Command::Release {
            devices,
            trusted_guest,
            json,
        } => act("release", json, || {
            done(release::release(&devices, trusted_guest))
        }),
        Command::Irq { device, ack, json } => act("irq", json, || {
            done(irq::answer_for_line(&device, ack == Switch::On))
        }),
        Command::Status { watch: true, .. } => done(status::watch()),
        Command::Status { json, .. } => done(print(&status::read()?, json)),
        Command::Metrics {
            format,
            listen,
            textfile,
            every,
            names: _,
        } => done(match (listen, textfile) {
            (Some(listen), _) => metrics::serve(listen),
            (None, Some(directory)) => metrics::write_file(&directory, every.map(Duration::from_secs)),
            (None, None) => metrics::print(format.into()),
        }),
        Command::Explain {
            who,
            html,
            slots,
            terms,
            json,
        } => {
            let choices = terms.into();
            let explanations = explain::explain(&Explain { who, choices, slots })?;
            done(match html {
                Some(file) => explain::write_page(&explanations, &file),
                None => print(&explanations, json),
            })
        }
        Command::Doctor { json } => {
            let diagnosis = doctor::doctor();
            print(&diagnosis, json)?;
            Ok(Exit::verdict(diagnosis.sound))
        }
        Command::Worker => {
            service_log::start();
            // The launcher passes its socket as standard input, the one descriptor that a new program surely has.
            let socket = std::io::stdin().as_fd().try_clone_to_owned();
            let socket = socket.context("no socket of the service's on standard input")?;
            serve::work(socket).inspect_err(|error| log::error!("{error}"))?;
            Ok(Exit::Done)
        }
        Command::Recreate => {
            say::progress(recreate::recreate(&mut std::io::stdin().lock())?);
            Ok(Exit::Done)
        }
        Command::Serve { supervised } => {
            service_log::start();
            workers::run(supervised).inspect_err(|error| log::error!("{error}"))?;
            Ok(Exit::Done)
        }
    }
}
