//! `bulkhead`, the dom0 command.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use bulkhead_config::name::Name;
use bulkhead_config::options::Wanted;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use toolstack::admission::policy::Choices;
use toolstack::commands::attach::{self, Attach};
use toolstack::commands::run::{self, Run};
use toolstack::commands::{Ended, check, destroy, detach, irq, seize};
use toolstack::control::{self, ControlError, Reply, Request};
use toolstack::host::{Host, check_privilege};
use toolstack::host::{launcher, recreate};
use toolstack::terms::Terms;
use toolstack::{say, serve, status};
use xenbus::device::SlotMode;

/// PCI passthrough for Xen PV guests, with the backend in a stub domain of its own instead of dom0.
#[derive(Parser)]
#[command(name = "bulkhead", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Not a doc comment of the argument: brackets are links there.
const DEVICE_HELP: &str = "A device to give it, such as 0000:03:00.0 or 8086:10d3@0000:00:1c.0/00.0, and on what terms: \
    NAME[,permissive=1][,msi=0][,quirk=REG:SIZE:MASK][,share-intx=1][,aer=leave|detach|destroy]. May be repeated";

#[derive(Subcommand)]
enum Command {
    /// Create a guest that has devices: take them from dom0, create its stub, connect all.
    Run {
        /// The guest's xl configuration file.
        #[arg(required_unless_present = "devices")]
        config: Option<String>,
        #[arg(long = "device", value_name = "NAME", required = true, num_args = 1.., help = DEVICE_HELP)]
        devices: Vec<String>,
        #[command(flatten)]
        terms: TermsArgs,
        /// How the guest addresses them: vpci is one bus of its own, passthrough the addresses that they have in dom0.
        #[arg(long, value_name = "MODE", default_value_t)]
        slots: SlotMode,
        /// The stub's image.
        #[arg(long, value_name = "FILE", default_value = bulkhead_config::KERNEL)]
        kernel: PathBuf,
        /// How long the guest may take to boot and connect. One that is slower keeps its devices; the exit code is 3 then.
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        wait: u64,
    },
    /// Give devices to a guest that exists. One that runs sees them come.
    Attach {
        /// The guest, by name or number.
        #[arg(required_unless_present = "devices")]
        guest: Option<String>,
        /// A device to give it, and on what terms, as for `run`. May be repeated.
        #[arg(long = "device", value_name = "NAME", required = true, num_args = 1..)]
        devices: Vec<String>,
        #[command(flatten)]
        terms: TermsArgs,
        /// How the guest addresses them, as for `run` [default: as those that it has; vpci for the first ones].
        #[arg(long, value_name = "MODE")]
        slots: Option<SlotMode>,
        /// The stub of a guest that has no devices yet, by name or number: a domain created from stubdom.cfg [default:
        /// GUEST-bulkhead, created if it is not there].
        #[arg(long, value_name = "DOMAIN")]
        stub: Option<String>,
        /// The stub's image: of one that is created, and of one that is there.
        #[arg(long, value_name = "FILE", default_value = bulkhead_config::KERNEL)]
        kernel: PathBuf,
        /// How long a guest that runs may take to have them.
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        wait: u64,
    },
    /// Take devices of a running guest back: it lets go, they are reset. With the last one its stub ends.
    Detach {
        /// The guest, by name or number, or some of its devices.
        #[arg(value_name = "GUEST|DEVICE", required = true, num_args = 1..)]
        who: Vec<String>,
        /// Trust the guest to leave alone what it may still have mapped, and give the devices back to dom0's drivers.
        /// Without this they stay held, for that guest alone, until it has ended.
        #[arg(long)]
        trusted_guest: bool,
    },
    /// End a guest and its stub, reset its devices and give them back to dom0.
    Destroy {
        /// The guest, by name or number, or one of its devices.
        #[arg(value_name = "GUEST|DEVICE")]
        who: String,
    },
    /// Tell all about devices before a guest gets them, and whether it could. Changes nothing; succeeds if all are fit.
    Check {
        /// A device, and on what terms, as for `run`.
        #[arg(value_name = "NAME", required = true, num_args = 1..)]
        devices: Vec<String>,
        /// The guest that they are meant for, by name or number.
        #[arg(long, value_name = "GUEST")]
        guest: Option<String>,
        /// How the guest's devices are to be addressed: vpci or passthrough.
        #[arg(long, value_name = "MODE", default_value_t = SlotMode::Vpci)]
        slots: SlotMode,
        #[command(flatten)]
        terms: TermsArgs,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Take devices from dom0's drivers and hold them for guests to come, reset and out of everyone's reach.
    Seize {
        /// A device.
        #[arg(value_name = "NAME", required_unless_present = "marked", num_args = 1..)]
        devices: Vec<Name>,
        /// Those that the policy file marks with `seize = true`.
        #[arg(long, conflicts_with = "devices")]
        marked: bool,
        /// The policy file [default: /etc/bulkhead/policy.toml].
        #[arg(long, value_name = "FILE", requires = "marked")]
        policy: Option<PathBuf>,
    },
    /// Give devices that are held for guests back to dom0's drivers; also those in quarantine, if a reset revives them.
    Release {
        /// A device.
        #[arg(value_name = "NAME", required = true, num_args = 1..)]
        devices: Vec<Name>,
        /// Trust the guest that had the devices, and runs, to leave alone what it may still have mapped.
        #[arg(long)]
        trusted_guest: bool,
    },
    /// Switch whether dom0 answers for a guest's device on a line that dom0's drivers use too; `status` shows it.
    Irq {
        /// The device.
        #[arg(value_name = "NAME")]
        device: Name,
        /// Without an answer dom0's kernel takes the line for broken after 100,000 interrupts, and turns it off.
        #[arg(value_name = "on|off")]
        ack: Switch,
    },
    /// Show stubs, guests, devices, interrupt modes and counters.
    Status {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Run other programs for the service, which starts this.
    #[command(hide = true)]
    Launcher,
    /// Create a stub anew by the order on standard input; the service does that.
    #[command(hide = true)]
    Recreate,
    /// Answer the stubs. `run` and `attach` start this if it does not run: the unit of systemd, or in the background.
    Serve {
        /// Wait while another one runs, instead of failing: for a supervisor, which would start it again and again.
        #[arg(long)]
        supervised: bool,
    },
}

/// On what terms a guest gets devices.
#[derive(Args)]
struct TermsArgs {
    /// The policy file [default: /etc/bulkhead/policy.toml, which need not be there].
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Without MSI and MSI-X for all these devices, but those with msi=1.
    #[arg(long)]
    no_msi: bool,
    /// Without MSI and MSI-X for those of these devices that are below a bridge, but those with msi=1. May be repeated.
    #[arg(long, value_name = "BRIDGE")]
    no_msi_below: Vec<Name>,
    /// The terms on which a guest had the devices, one for each: nothing else is asked. The service says that when it
    /// gives devices again.
    #[arg(long, hide = true, value_name = "JSON")]
    recorded_terms: Vec<Terms>,
}

impl From<TermsArgs> for Choices {
    fn from(args: TermsArgs) -> Self {
        Self {
            file: args.policy,
            no_msi: args.no_msi,
            no_msi_below: args.no_msi_below,
            recorded: args.recorded_terms,
        }
    }
}

/// On or off.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// A guest that runs, and has not come so far in time.
const STILL_BOOTS: u8 = 3;

pub(crate) fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            say::error(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

impl Command {
    /// The name of the subcommand, for messages about its arguments.
    fn name(&self) -> &'static str {
        match self {
            Self::Run { .. } => "run",
            _ => "attach",
        }
    }
}

/// A word that stands on its own, such as the guest's configuration file, may stand behind the devices too, as the usage
/// line has it; clap takes it for one more device then. Returns that word and the devices.
fn apart(
    command: &'static str,
    alone: Option<String>,
    mut words: Vec<String>,
) -> Result<(String, Vec<Wanted>), clap::Error> {
    let is_device = |word: &String| word.parse::<Wanted>().is_ok();
    let alone = alone.or_else(|| words.pop_if(|last| !is_device(last)));
    let usage = |kind, text: String| {
        let mut cli = Cli::command();
        cli.build();
        let subcommand = cli.find_subcommand_mut(command);
        subcommand.map_or_else(|| clap::Error::raw(kind, &text), |cli| cli.error(kind, &text))
    };
    let devices = words.iter().map(|word| {
        word.parse()
            .map_err(|error| usage(ErrorKind::ValueValidation, format!("--device {word:?}: {error}")))
    });
    let devices = devices.collect::<Result<Vec<_>, _>>()?;
    match alone {
        Some(alone) if !devices.is_empty() => Ok((alone, devices)),
        Some(_) => Err(usage(
            ErrorKind::MissingRequiredArgument,
            "name a device with --device".into(),
        )),
        None => {
            let what = if command == "run" {
                "the guest's configuration file"
            } else {
                "the guest"
            };
            Err(usage(
                ErrorKind::MissingRequiredArgument,
                format!("{what} is missing"),
            ))
        }
    }
}

fn execute(command: Command) -> Result<ExitCode> {
    // Said first, whatever else is wrong.
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
        Command::Destroy { who } => destroy::destroy(&who),
        Command::Check {
            devices,
            guest,
            slots,
            terms,
            json,
        } => {
            let choices = terms.into();
            let report = check::check(&check::Request {
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
        } => seize::release(&devices, trusted_guest),
        Command::Irq { device, ack } => irq::answer_for_line(&device, ack == Switch::On),
        Command::Status { json } => show_status(json),
        Command::Launcher => {
            let socket = std::io::stdin().as_fd().try_clone_to_owned();
            let socket = socket.context("no socket of the service's on standard input")?;
            let spare = Arc::new(recreate::Spare::default());
            spare.prepare_soon();
            Ok(launcher::serve(socket, spare)?)
        }
        Command::Recreate => {
            say::progress(recreate::recreate(&mut std::io::stdin().lock())?);
            Ok(())
        }
        Command::Serve { supervised } => {
            let filter = env_logger::Env::default().default_filter_or("info");
            env_logger::Builder::from_env(filter).init();
            serve::serve(supervised).inspect_err(|error| log::error!("{error}"))?;
            Ok(())
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

fn show_status(json: bool) -> Result<()> {
    let status = match control::ask(Request::Status) {
        Ok(Reply::Status(status)) => status,
        Ok(_) => anyhow::bail!("the service answered something else than asked: restart it"),
        Err(ControlError::NotRunning(_)) => {
            let mut host = Host::open()?;
            status::collect(&mut host.store, &host.sysfs, false, BTreeMap::new())?
        }
        Err(error) => return Err(error.into()),
    };
    print(&status, json)
}

/// Prints what was found out, for people or for programs.
fn print(found: &(impl Serialize + Display), json: bool) -> Result<()> {
    let text = if json {
        serde_json::to_string_pretty(&versioned(found))? + "\n"
    } else {
        found.to_string()
    };
    match io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("cannot print what was found out"),
    }
}

/// Of the JSON that is printed: it grows when a field goes or gets another meaning, and not when one comes.
const JSON_VERSION: u32 = 1;

/// What programs read: the version of its form, then the fields in the order in which they are declared.
#[derive(Serialize)]
struct Versioned<'a, T> {
    version: u32,
    #[serde(flatten)]
    found: &'a T,
}

fn versioned<T: Serialize>(found: &T) -> Versioned<'_, T> {
    Versioned {
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

    /// The configuration file and the devices of a command line, or the first line of what is wrong.
    fn run(line: &str) -> Result<(String, Vec<String>), String> {
        let first = |error: clap::Error| error.to_string().lines().next().unwrap_or_default().to_owned();
        let words = line.split(' ');
        let Command::Run { config, devices, .. } = Cli::try_parse_from(words).map_err(first)?.command else {
            panic!("{line}");
        };
        let (config, devices) = apart("run", config, devices).map_err(first)?;
        let devices = devices.iter().map(|wanted| wanted.name.to_string()).collect();
        Ok((config, devices))
    }

    #[test]
    fn the_configuration_file_stands_before_or_behind_the_devices() {
        let (five, six) = ("0000:00:05.0".to_owned(), "0000:00:06.0".to_owned());
        for line in [
            "bulkhead run web.cfg --device 00:05.0 00:06.0",
            "bulkhead run --device 00:05.0 00:06.0 web.cfg",
            "bulkhead run --device 00:05.0 --device 00:06.0 web.cfg",
            "bulkhead run --device 00:05.0 --device=00:06.0 -- web.cfg",
            "bulkhead run --device 00:05.0,msi=0 --device 00:06.0 --wait 5 web.cfg",
        ] {
            let expected = ("web.cfg".to_owned(), vec![five.clone(), six.clone()]);
            assert_eq!(run(line), Ok(expected), "{line}");
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (line, expected) in [
            (
                "bulkhead run --device 00:05.0",
                "error: the guest's configuration file is missing",
            ),
            (
                "bulkhead run --device web.cfg",
                "error: name a device with --device",
            ),
            ("bulkhead run web.cfg", "error: the following required arguments"),
            (
                "bulkhead run web.cfg --device 00:05.0 other.cfg",
                "error: --device \"other.cfg\": ",
            ),
            (
                "bulkhead run --device nonsense 00:05.0 web.cfg",
                "error: --device \"nonsense\": ",
            ),
            (
                "bulkhead run web.cfg --device 00:05.0,msi=9",
                "error: --device \"00:05.0,msi=9\": ",
            ),
        ] {
            let error = run(line).unwrap_err();
            assert!(error.starts_with(expected), "{line}: {error}");
        }
    }

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
