//! `bulkhead`, the dom0 command.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use bulkhead_config::name::Name;
use bulkhead_config::options::Wanted;
use clap::{Args, Parser, Subcommand};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use toolstack::control::{self, ControlError, Reply, Request};
use toolstack::host::{Host, check_privilege};
use toolstack::launch::{self, Attach, Run};
use toolstack::policy::Choices;
use toolstack::{serve, status};
use xenbus::device::SlotMode;

/// PCI passthrough for Xen PV guests, with the backend in a stub domain of its own instead of dom0.
#[derive(Parser)]
#[command(name = "bulkhead", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create a guest that has devices: take them from dom0, create its stub, connect all.
    Run {
        /// The guest's xl configuration file.
        config: PathBuf,
        /// A device to give it, such as 0000:03:00.0 or 8086:10d3@0000:00:1c.0/00.0, and on what terms:
        /// NAME[,permissive=1][,msi=0][,quirk=REG:SIZE:MASK][,share-intx=1][,aer=leave|detach|destroy]. May be repeated.
        #[arg(long = "device", value_name = "NAME", required = true, num_args = 1..)]
        devices: Vec<Wanted>,
        #[command(flatten)]
        terms: TermsArgs,
        /// How the guest addresses them: vpci is one bus of its own, passthrough the addresses that they have in dom0.
        #[arg(long, value_name = "MODE", default_value_t)]
        slots: SlotMode,
        /// The stub's image.
        #[arg(long, value_name = "FILE", default_value = bulkhead_config::KERNEL)]
        kernel: PathBuf,
        /// How long the guest may take to boot and connect.
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        wait: u64,
    },
    /// Give devices to a guest that exists. One that runs sees them come.
    Attach {
        /// The guest, by name or number.
        guest: String,
        /// A device to give it, and on what terms, as for `run`. May be repeated.
        #[arg(long = "device", value_name = "NAME", required = true, num_args = 1..)]
        devices: Vec<Wanted>,
        #[command(flatten)]
        terms: TermsArgs,
        /// How the guest addresses them, as for `run` [default: as those that it has; vpci for the first ones].
        #[arg(long, value_name = "MODE")]
        slots: Option<SlotMode>,
        /// The stub of a guest that has no devices yet, by name or number [default: GUEST-bulkhead, created if it is
        /// not there].
        #[arg(long, value_name = "DOMAIN")]
        stub: Option<String>,
        /// The image of a stub that is created.
        #[arg(long, value_name = "FILE", default_value = bulkhead_config::KERNEL)]
        kernel: PathBuf,
        /// How long a guest that runs may take to have them.
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        wait: u64,
    },
    /// Take devices of a running guest back: it lets go, they are reset. With the last one its stub ends.
    Detach {
        /// The guest, by name or number, or some of its devices.
        #[arg(value_name = "GUEST|BDF", required = true, num_args = 1..)]
        who: Vec<String>,
    },
    /// End a guest and its stub, reset its devices and give them back to dom0.
    Destroy {
        /// The guest, by name or number, or one of its devices.
        who: String,
    },
    /// Show stubs, guests, devices, interrupt modes and counters.
    Status {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Answer the stubs. `run` and `attach` start this in the background if it does not run.
    Serve,
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
}

impl From<TermsArgs> for Choices {
    fn from(args: TermsArgs) -> Self {
        Self {
            file: args.policy,
            no_msi: args.no_msi,
            no_msi_below: args.no_msi_below,
        }
    }
}

fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkhead: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<()> {
    // Said first, whatever else is wrong.
    check_privilege()?;
    match command {
        Command::Run {
            config,
            devices,
            terms,
            slots,
            kernel,
            wait,
        } => launch::run(&Run {
            config,
            devices,
            choices: terms.into(),
            slots,
            kernel,
            wait: Duration::from_secs(wait),
        }),
        Command::Attach {
            guest,
            devices,
            terms,
            slots,
            stub,
            kernel,
            wait,
        } => launch::attach(&Attach {
            guest,
            stub,
            devices,
            choices: terms.into(),
            slots,
            kernel,
            wait: Duration::from_secs(wait),
        }),
        Command::Detach { who } => launch::detach(&who),
        Command::Destroy { who } => launch::destroy(&who),
        Command::Status { json } => show_status(json),
        Command::Serve => {
            let filter = env_logger::Env::default().default_filter_or("info");
            env_logger::Builder::from_env(filter).init();
            // Returns on errors only.
            serve::serve().inspect_err(|error| log::error!("{error}"))?;
            Ok(())
        }
    }
}

fn show_status(json: bool) -> Result<()> {
    let status = match control::ask(Request::Status) {
        Ok(Reply::Status(status)) => status,
        Ok(_) => anyhow::bail!("the service answered something else than asked: restart it"),
        Err(ControlError::NotRunning(_)) => status::collect(&mut Host::open()?, false, BTreeMap::new())?,
        Err(error) => return Err(error.into()),
    };
    let text = if json {
        serde_json::to_string_pretty(&status)? + "\n"
    } else {
        status.to_string()
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write the status")
}
