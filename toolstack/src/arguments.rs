//! The command line: subcommands, arguments and their help.

use crate::admission::policy::Choices;
use crate::commands::metrics::Listen;
use crate::exit;
use crate::terms::Terms;
use bulkhead_config::declaration::Unfit;
use bulkhead_config::name::Name;
use bulkhead_config::options::Wanted;
use bulkhead_config::telemetry::TelemetryChoice;
use clap::error::ErrorKind;
use clap::{Arg, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use metrics::Format;
use std::path::PathBuf;
use xen::xenctrl::DomId;
use xenbus::device::SlotMode;

/// PCI passthrough for Xen PV guests, with the backend in a stub domain of its own instead of dom0.
#[derive(Parser)]
#[command(name = "bulkhead", version, after_help = exit::HELP)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// A subcommand with its arguments.
#[derive(Subcommand)]
pub enum Command {
    /// Create a guest with devices: take the devices from dom0, create guest and stub, and connect them.
    Run {
        /// xl configuration file of the guest.
        #[arg(required_unless_present = "devices")]
        config: Option<String>,
        /// The devices, and how they are given.
        #[command(flatten)]
        given: DeviceArgs,
    },
    /// Give devices to a guest that exists. A running guest sees a hotplug.
    #[command(mut_args(help_of_attach))]
    Attach {
        /// The guest, by name or number.
        #[arg(required_unless_present = "devices")]
        guest: Option<String>,
        /// The devices, and how they are given.
        #[command(flatten)]
        given: DeviceArgs,
        /// Stub for a guest without devices, by name or number: a domain created from stubdom.cfg [default:
        /// GUEST-bulkhead, which is created if there is none].
        #[arg(long, value_name = "DOMAIN", display_order = STUB_ORDER)]
        stub: Option<String>,
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
        /// Print a JSON report of what was done instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Destroy a guest and its stub, reset its devices, and give the devices back to dom0.
    Destroy {
        /// The guest, by name or number, or one of its devices.
        #[arg(value_name = "GUEST|DEVICE")]
        who: String,
        /// Print a JSON report of what was done instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Write down which devices a guest gets whenever it starts, whoever starts it. Checks the devices first, as `check` does.
    Declare {
        /// The guest, by name or UUID. It need not exist.
        #[arg(required_unless_present = "devices")]
        guest: Option<String>,
        /// A device for the guest, with its terms, as for `run`. May be repeated.
        #[arg(long = "device", value_name = "NAME", required = true, num_args = 1..)]
        devices: Vec<String>,
        /// No MSI and MSI-X for any of the devices, except those with msi=1.
        #[arg(long)]
        no_msi: bool,
        /// Addresses of the devices in the guest, as for `run`.
        #[arg(long, value_name = "MODE", default_value_t)]
        slots: SlotMode,
        /// What happens to the guest if it cannot have all of its devices: hold keeps it paused, start starts it without
        /// them, destroy ends it.
        #[arg(long, value_name = "hold|start|destroy", default_value_t)]
        unfit: Unfit,
        /// The network of the guest's stub, as for `run`.
        #[arg(long, value_name = "NETWORK")]
        telemetry: Option<TelemetryChoice>,
        /// Only print what would be written.
        #[arg(long)]
        dry_run: bool,
        /// Print a JSON report of what was done instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Remove what `declare` has written for a guest. A guest that runs keeps its devices until it ends.
    Undeclare {
        /// The guest, by name or UUID.
        guest: String,
        /// Print a JSON report of what was done instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Shut down all guests that have devices, and wait until their devices are taken back.
    Shutdown {
        /// All guests that have devices: to shut down one guest, use `xl shutdown`.
        #[arg(long, required = true)]
        all: bool,
        /// Time limit for the guests to end.
        #[arg(long, value_name = "SECONDS", default_value_t = 180)]
        wait: u64,
        /// Destroy a guest that has not ended by then. Without this option the command fails, and the guest stays.
        #[arg(long)]
        destroy: bool,
        /// Print a JSON report of what was done instead of text.
        #[arg(long)]
        json: bool,
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
        /// Terms for all of the devices.
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
        /// Print a JSON report of what was done instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Give held devices back to dom0's drivers. A device in quarantine is reset first. If that fails, it stays in quarantine.
    Release {
        /// A device, named as for `run`, without terms.
        #[arg(value_name = "NAME", required = true, num_args = 1..)]
        devices: Vec<Name>,
        /// Trust the running guest that had the devices not to use memory of them that it may still have mapped.
        #[arg(long)]
        trusted_guest: bool,
        /// Print a JSON report of what was done instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Switch dom0's acknowledgement of a shared INTx line on or off, for a guest's device. `status` shows the state.
    Irq {
        /// The device, named as for `run`, without terms.
        #[arg(value_name = "NAME")]
        device: Name,
        /// Whether dom0 acknowledges the line's interrupts.
        #[arg(value_name = "on|off")]
        ack: Switch,
        /// Print a JSON report of what was done instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Show stubs, guests, devices, interrupt modes and counters.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Show it again every second, until Ctrl-C. A file or a pipe gets it again when it has changed.
        #[arg(long, conflicts_with = "json")]
        watch: bool,
    },
    /// Print all that stubs and the service count, as text for Prometheus; or serve it, or write it to a file.
    Metrics {
        /// The text format to print.
        #[arg(long, value_name = "FORMAT", default_value = "openmetrics", conflicts_with_all = ["listen", "textfile", "names"])]
        format: MetricsFormat,
        /// Serve both formats by HTTP at /metrics, on this address, such as 127.0.0.1:9742; or on the socket that systemd
        /// passes. Whoever can reach the address can read the names and counters of guests.
        #[arg(long, value_name = "ADDRESS:PORT|socket", conflicts_with_all = ["textfile", "names"])]
        listen: Option<Listen>,
        /// Write bulkhead.prom into this directory, for node_exporter.
        #[arg(long, value_name = "DIRECTORY", conflicts_with = "names")]
        textfile: Option<PathBuf>,
        /// Write it again and again, with this time between.
        #[arg(long, value_name = "SECONDS", requires = "textfile", value_parser = clap::value_parser!(u64).range(1..=86400))]
        every: Option<u64>,
        /// Print the table of all metrics.
        #[arg(long)]
        names: bool,
    },
    /// Tell what a guest can see and change of a device, and why. Of a device that no guest has, tell what one would get.
    Explain {
        /// A guest, by name or number, for all of its devices; or a device, with its terms, as for `run`.
        #[arg(value_name = "GUEST|DEVICE", required = true, num_args = 1..)]
        who: Vec<String>,
        /// Write a page for a browser, with a picture of configuration space, instead of the text.
        #[arg(long, value_name = "FILE", conflicts_with = "json")]
        html: Option<PathBuf>,
        /// Addresses of the devices in the guest: vpci or passthrough.
        #[arg(long, value_name = "MODE", default_value_t = SlotMode::Vpci)]
        slots: SlotMode,
        /// Terms for devices that no guest has.
        #[command(flatten)]
        terms: TermsArgs,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check whether this host can give devices to guests, and tell the next step for what is wrong. The exit code is 0 if
    /// nothing is.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Serve stubs, with few privileges. The service's first process starts this.
    #[command(hide = true)]
    Worker,
    /// Give a guest that starts the devices that it is to have, and let it run. The service starts this.
    #[command(hide = true)]
    Start {
        /// The guest's number.
        guest: DomId,
    },
    /// Create a stub again, as standard input says. The service starts this.
    #[command(hide = true)]
    Recreate,
    /// Fail while a guest has devices. The package runs this before it is removed.
    #[command(hide = true)]
    CheckRemovable,
    /// Run the dom0 service. `run` and `attach` start it if it does not run: as a systemd unit, or in the background.
    Serve {
        /// Wait for the end of another service instead of failing. For supervisors, which would restart this one in a loop.
        #[arg(long)]
        supervised: bool,
    },
}

/// Which devices `run` and `attach` give, and how.
#[derive(Args)]
pub struct DeviceArgs {
    /// A device for the guest, such as `0000:03:00.0` or `8086:10d3@0000:00:1c.0/00.0`, with its terms:
    /// `NAME[,permissive=1][,msi=0][,quirk=REG:SIZE:MASK][,share-intx=1][,aer=leave|detach|destroy]`. May be repeated. A
    /// declared guest has its devices without this option.
    #[arg(long = "device", value_name = "NAME", num_args = 1..)]
    pub devices: Vec<String>,
    /// Terms for all of the devices.
    #[command(flatten)]
    pub terms: TermsArgs,
    /// Addresses of the devices in the guest: vpci puts all on one bus, passthrough keeps the addresses in dom0 [default:
    /// vpci].
    #[arg(long, value_name = "MODE")]
    pub slots: Option<SlotMode>,
    /// Image of the stub [default: /usr/lib/bulkhead/bulkhead-stub, or bulkhead-stub-net beside it if it has a network].
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The network by which the stub serves its metrics and sends its log: `bridge=NAME[,KEY=VALUE]...`, or off. The keys are
    /// backend=DOMAIN, mac=MAC, script=NAME, address=dhcp|IP/BITS, gateway=IP, syslog=IP:PORT, syslog-level=LEVEL and
    /// metrics=PORT|off [default: what the declaration says, or else the policy file, or else off].
    #[arg(long, value_name = "NETWORK")]
    pub telemetry: Option<TelemetryChoice>,
    /// Time limit for the guest to boot and connect. A slower guest keeps its devices; the exit code is 3 then.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub wait: u64,
    /// Make all checks, tell what would be done, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Print a JSON report of what was done instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Puts `--stub` behind `--slots`, the sixth of [`DeviceArgs`] with those of the terms.
const STUB_ORDER: usize = 5;

/// The same options mean a little less for a guest that exists.
fn help_of_attach(option: Arg) -> Arg {
    let help = match option.get_id().as_str() {
        "devices" => {
            "A device for the guest, with its terms, as for `run`. May be repeated. A declared guest gets the devices of its \
             declaration without this option"
        }
        "slots" => {
            "Addresses of the devices in the guest, as for `run` [default: as for the devices that it has; vpci for the first]"
        }
        "kernel" => {
            "Image of the stub, whether the stub is created or exists [default: /usr/lib/bulkhead/bulkhead-stub, or \
             bulkhead-stub-net beside it if it has a network]"
        }
        "wait" => "Time limit for a running guest to take the devices",
        _ => return option,
    };
    option.help(help)
}

/// Options about the terms on which a guest gets devices.
#[derive(Args)]
pub struct TermsArgs {
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

/// A text format of metrics.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MetricsFormat {
    /// OpenMetrics 1.0.
    Openmetrics,
    /// Text format 0.0.4 of Prometheus.
    Prometheus,
}

impl From<MetricsFormat> for Format {
    fn from(format: MetricsFormat) -> Self {
        match format {
            MetricsFormat::Openmetrics => Self::OpenMetrics,
            MetricsFormat::Prometheus => Self::Prometheus,
        }
    }
}

/// Whether something is on.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Dom0 acknowledges them.
    On,
    /// Dom0's kernel disables the line after 100,000 interrupts that no driver of dom0 claims.
    Off,
}

impl Command {
    /// The name of the subcommand, for messages about its arguments.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Run { .. } => "run",
            Self::Declare { .. } => "declare",
            _ => "attach",
        }
    }
}

/// Separates the guest (or its configuration file) from the devices. It may stand behind the devices, as in the usage line, and
/// clap takes it for one more device then.
pub fn apart(
    command: &'static str,
    alone: Option<String>,
    mut words: Vec<String>,
) -> Result<(String, Vec<Wanted>), clap::Error> {
    let asks_for_devices = !words.is_empty();
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
        // Without the option the guest's declaration says which devices it has.
        Some(alone) if !devices.is_empty() || !asks_for_devices => Ok((alone, devices)),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The configuration file and the devices of a command line, or the first line of what is wrong.
    fn run(line: &str) -> Result<(String, Vec<String>), String> {
        let first = |error: clap::Error| error.to_string().lines().next().unwrap_or_default().to_owned();
        let words = line.split(' ');
        let Command::Run { config, given } = Cli::try_parse_from(words).map_err(first)?.command else {
            panic!("{line}");
        };
        let (config, devices) = apart("run", config, given.devices).map_err(first)?;
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
    fn a_declared_guest_needs_no_devices() {
        assert_eq!(
            run("bulkhead run web.cfg"),
            Ok(("web.cfg".to_owned(), Vec::new()))
        );
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
            ("bulkhead run", "error: the following required arguments"),
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
