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
use std::time::Duration;
use toolstack::admission::policy::Choices;
use toolstack::commands::attach::{self, Attach};
use toolstack::commands::check::{self, Check};
use toolstack::commands::run::{self, Run};
use toolstack::commands::{Ended, destroy, detach, irq, release, seize};
use toolstack::control::{self, ControlError, Reply, Request};
use toolstack::host::recreate;
use toolstack::host::{Host, check_privilege};
use toolstack::serve::workers;
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
const DEVICE_HELP: &str = "A device for the guest, such as 0000:03:00.0 or 8086:10d3@0000:00:1c.0/00.0, with its terms: \
    NAME[,permissive=1][,msi=0][,quirk=REG:SIZE:MASK][,share-intx=1][,aer=leave|detach|destroy]. May be repeated";

#[derive(Subcommand)]
enum Command {
    /// Create a guest with devices: take the devices from dom0, create guest and stub, and connect them.
    Run {
        /// xl configuration file of the guest.
        #[arg(required_unless_present = "devices")]
        config: Option<String>,
        #[arg(long = "device", value_name = "NAME", required = true, num_args = 1.., help = DEVICE_HELP)]
        devices: Vec<String>,
        #[command(flatten)]
        terms: TermsArgs,
        /// Addresses of the devices in the guest: vpci puts all on one bus, passthrough keeps the addresses in dom0.
        #[arg(long, value_name = "MODE", default_value_t)]
        slots: SlotMode,
        /// Image of the stub.
        #[arg(long, value_name = "FILE", default_value = bulkhead_config::KERNEL)]
        kernel: PathBuf,
        /// Time limit for the guest to boot and connect. A slower guest keeps its devices; the exit code is 3 then.
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        wait: u64,
    },
    /// Give devices to a guest that exists. A running guest sees a hotplug.
    Attach {
        /// The guest, by name or number.
        #[arg(required_unless_present = "devices")]
        guest: Option<String>,
        /// A device for the guest, with its terms, as for `run`. May be repeated.
        #[arg(long = "device", value_name = "NAME", required = true, num_args = 1..)]
        devices: Vec<String>,
        #[command(flatten)]
        terms: TermsArgs,
        /// Addresses of the devices in the guest, as for `run` [default: as for the devices that it has; vpci for the first].
        #[arg(long, value_name = "MODE")]
        slots: Option<SlotMode>,
        /// Stub for a guest without devices, by name or number: a domain created from stubdom.cfg [default:
        /// GUEST-bulkhead, which is created if there is none].
        #[arg(long, value_name = "DOMAIN")]
        stub: Option<String>,
        /// Image of the stub, whether the stub is created or exists.
        #[arg(long, value_name = "FILE", default_value = bulkhead_config::KERNEL)]
        kernel: PathBuf,
        /// Time limit for a running guest to take the devices.
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        wait: u64,
    },
    /// Take devices back from a running guest. The guest lets go, then the devices are reset. The stub ends with the last device.
    Detach {
        /// The guest, by name or number, for all of its devices; or some of its devices.
        #[arg(value_name = "GUEST|DEVICE", required = true, num_args = 1..)]
        who: Vec<String>,
        /// Give the devices back to dom0's drivers at once, and trust the guest not to use memory of the devices that it may
        /// still have mapped. Without this option the devices stay held for that guest until it has ended.
        #[arg(long)]
        trusted_guest: bool,
    },
    /// Destroy a guest and its stub, reset its devices, and give the devices back to dom0.
    Destroy {
        /// The guest, by name or number, or one of its devices.
        #[arg(value_name = "GUEST|DEVICE")]
        who: String,
    },
    /// Report whether devices can be passed through, without changing anything. The exit code is 0 if all can.
    Check {
        /// A device, with its terms, as for `run`.
        #[arg(value_name = "NAME", required = true, num_args = 1..)]
        devices: Vec<String>,
        /// The guest that the devices are for, by name or number.
        #[arg(long, value_name = "GUEST")]
        guest: Option<String>,
        /// Addresses of the devices in the guest: vpci or passthrough.
        #[arg(long, value_name = "MODE", default_value_t = SlotMode::Vpci)]
        slots: SlotMode,
        #[command(flatten)]
        terms: TermsArgs,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take devices from dom0's drivers, reset them, and hold them for guests that start later.
    Seize {
        /// A device, named as for `run`, without terms.
        #[arg(value_name = "NAME", required_unless_present = "marked", num_args = 1..)]
        devices: Vec<Name>,
        /// Take the devices that the policy file marks with `seize = true`.
        #[arg(long, conflicts_with = "devices")]
        marked: bool,
        /// Policy file [default: /etc/bulkhead/policy.toml].
        #[arg(long, value_name = "FILE", requires = "marked")]
        policy: Option<PathBuf>,
    },
    /// Give held devices back to dom0's drivers. A device in quarantine is reset first. If that fails, it stays in quarantine.
    Release {
        /// A device, named as for `run`, without terms.
        #[arg(value_name = "NAME", required = true, num_args = 1..)]
        devices: Vec<Name>,
        /// Trust the running guest that had the devices not to use memory of them that it may still have mapped.
        #[arg(long)]
        trusted_guest: bool,
    },
    /// Switch dom0's acknowledgement of a shared INTx line on or off, for a guest's device. `status` shows the state.
    Irq {
        /// The device, named as for `run`, without terms.
        #[arg(value_name = "NAME")]
        device: Name,
        /// `off` lets dom0's kernel disable the line after 100,000 interrupts that no driver of dom0 claims.
        #[arg(value_name = "on|off")]
        ack: Switch,
    },
    /// Show stubs, guests, devices, interrupt modes and counters.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Serve stubs, with few privileges. The service's first process starts this.
    #[command(hide = true)]
    Worker,
    /// Create a stub again, as standard input says. The service starts this.
    #[command(hide = true)]
    Recreate,
    /// Run the dom0 service. `run` and `attach` start it if it does not run: as a systemd unit, or in the background.
    Serve {
        /// Wait for the end of another service instead of failing. For supervisors, which would restart this one in a loop.
        #[arg(long)]
        supervised: bool,
    },
}

/// Options about the terms on which a guest gets devices.
#[derive(Args)]
struct TermsArgs {
    /// Policy file [default: /etc/bulkhead/policy.toml, if it exists].
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// No MSI and MSI-X for any of the devices, except those with msi=1.
    #[arg(long)]
    no_msi: bool,
    /// No MSI and MSI-X for devices below this bridge, except those with msi=1. May be repeated.
    #[arg(long, value_name = "BRIDGE")]
    no_msi_below: Vec<Name>,
    /// The terms on which a guest had the devices, one for each device. No other source counts then. The service passes them
    /// when it gives devices to a guest again.
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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

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

impl Command {
    /// The name of the subcommand, for messages about its arguments.
    fn name(&self) -> &'static str {
        match self {
            Self::Run { .. } => "run",
            _ => "attach",
        }
    }
}

/// Separates the guest (or its configuration file) from the devices. It may stand behind the devices, as in the usage line, and
/// clap takes it for one more device then.
fn apart(
    command: &'static str,
    alone: Option<String>,
    mut words: Vec<String>,
) -> Result<(String, Vec<Wanted>), clap::Error> {
    let is_device = |word: &String| word.parse::<Wanted>().is_ok();
    // Only the last word: anything else that is no device is a mistake in a device.
    let alone = alone.or_else(|| words.pop_if(|last| !is_device(last)));
    // With the usage line of the subcommand, as clap's own errors have it.
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

fn log_as_service() {
    let filter = env_logger::Env::default().default_filter_or("info");
    // Milliseconds, because guests wait two seconds for an answer.
    env_logger::Builder::from_env(filter)
        .format_timestamp_millis()
        .init();
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

    /// To take in a change that was reviewed: run this test with INSTA_UPDATE=always.
    #[test]
    fn every_help_text_is_as_it_was_reviewed() {
        let mut cli = Cli::command().term_width(100);
        cli.build();
        insta::assert_snapshot!("bulkhead", cli.render_long_help());
        // `help` is clap's own.
        for command in cli
            .get_subcommands_mut()
            .filter(|command| command.get_name() != "help")
        {
            let name = command.get_name().to_owned();
            insta::assert_snapshot!(name, command.render_long_help());
        }
    }
}
