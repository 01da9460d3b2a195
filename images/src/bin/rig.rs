//! Boots Debian's Xen in QEMU and runs a script in dom0.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use images::emulator::Version;
use images::observer::{Observer, Terminal};
use images::qemu::Xenstored;
use images::{Boot, Emulator, End, FileIn, Host, Machine, Outcome, Rig, Suite, products, store};

/// Boot Debian's Xen in QEMU, and run a script in dom0.
#[derive(Debug, Parser)]
#[command(name = "cargo rig")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Fetch the packages and build the images, if they are not there yet
    Prepare(Prepare),
    /// Boot, run a script in dom0, and end with its exit code (124: time limit reached, 125: the rig failed)
    Run(Box<Run>),
}

#[derive(Debug, clap::Args)]
struct Prepare {
    /// Prepare only this Debian release: bookworm, trixie or sid
    #[arg(long)]
    suite: Option<Suite>,
    /// What dom0 is: busybox, or debian (an installed Debian with systemd, made as root)
    #[arg(long, default_value_t)]
    host: Host,
    /// Prepare this QEMU: host (installed if missing) or 10 (from Debian's packages, not installed)
    #[arg(long, default_value_t)]
    qemu: Version,
    /// Fetch the newest packages even if older ones are there
    #[arg(long)]
    refresh: bool,
}

#[derive(Debug, clap::Args)]
struct Run {
    /// The Debian release: bookworm (Xen 4.17, Linux 6.1), trixie (Xen 4.20, Linux 6.12) or sid (the newest of both)
    #[arg(long, default_value_t = Suite::Bookworm)]
    suite: Suite,
    /// What dom0 is: busybox, or debian (an installed Debian with systemd, made as root)
    #[arg(long, default_value_t)]
    host: Host,
    /// QEMU to run: host, or 10 (has igb with virtual functions; fetched, not installed)
    #[arg(long, default_value_t)]
    qemu: Version,
    /// Script that dom0 runs as root
    #[arg(long)]
    script: PathBuf,
    /// Argument for QEMU's -device, e.g. e1000e,netdev=n0,addr=5; netdev=NAME adds a network, drive=NAME a disk
    #[arg(long = "device", value_name = "SPEC")]
    devices: Vec<String>,
    /// File or directory to copy into dom0
    #[arg(long = "file", value_name = "HOST=TARGET")]
    files: Vec<FileIn>,
    /// Debian package whose programs the script runs by `in-packages`; the disk with it is made at the first use
    #[arg(long = "package", value_name = "NAME")]
    packages: Vec<String>,
    /// Build the stub's image and the bulkhead command, and install them in dom0
    #[arg(long)]
    bulkhead: bool,
    /// Directory for the logs [default: rig-out/SCRIPT in the target directory]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Time limit from power-on to power-off
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// Physical processors
    #[arg(long, default_value_t = Machine::default().cpus, value_parser = clap::value_parser!(u8).range(1..=255))]
    cpus: u8,
    /// Let the machine's clocks count instructions, one for each nanosecond; for one processor
    #[arg(long)]
    counts_instructions: bool,
    /// Physical memory
    #[arg(long, value_name = "MIB", default_value_t = Machine::default().memory_mib)]
    memory: u32,
    /// Dom0's virtual processors
    #[arg(long, value_name = "N", default_value_t = Machine::default().dom0_vcpus, value_parser = clap::value_parser!(u8).range(1..=255))]
    dom0_vcpus: u8,
    /// Dom0's memory
    #[arg(long, value_name = "MIB", default_value_t = Machine::default().dom0_memory_mib)]
    dom0_memory: u32,
    /// QEMU's name of the processor, such as qemu64,+rdrand,+svm,+npt for HVM guests and a PVH dom0 [default: the host's]
    #[arg(long)]
    cpu: Option<String>,
    /// xenstored to run in dom0: xenstored (in C) or oxenstored (in OCaml)
    #[arg(long, default_value_t)]
    xenstored: Xenstored,
    /// Option to add to Xen's command line
    #[arg(long = "xen-option", value_name = "OPTION")]
    xen_options: Vec<String>,
    /// Option to add to the command line of dom0's kernel
    #[arg(long = "dom0-option", value_name = "OPTION")]
    dom0_options: Vec<String>,
}

/// Exit code if the rig failed, not the script.
const RIG_FAILED: u8 = 125;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.verb) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("rig: {error:#}");
            ExitCode::from(RIG_FAILED)
        }
    }
}

fn run(verb: Verb) -> Result<u8> {
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&cancel)).context("installing a signal handler")?;
    }
    let mut terminal = Terminal::new(cancel);
    match verb {
        Verb::Prepare(prepare) => prepare.run(&mut terminal),
        Verb::Run(run) => run.run(terminal),
    }
}

impl Prepare {
    fn run(self, observer: &mut dyn Observer) -> Result<u8> {
        Emulator::prepare(self.qemu, observer)?;
        for suite in self.suite.map_or(Suite::ALL.to_vec(), |suite| vec![suite]) {
            if self.refresh {
                Rig::forget(suite)?;
            }
            Rig::prepare(suite, self.host, observer)?;
            observer.phase(&format!("{suite}: ready"));
        }
        Ok(0)
    }
}

impl Run {
    fn run(self, mut terminal: Terminal) -> Result<u8> {
        let script = std::fs::read_to_string(&self.script)
            .with_context(|| format!("reading the script {}", self.script.display()))?;
        let mut files = self.files;
        for file in &files {
            file.host
                .metadata()
                .with_context(|| format!("reading {}", file.host.display()))?;
        }
        let out = self.out.unwrap_or_else(|| {
            let name = self.script.file_stem().unwrap_or("script".as_ref());
            store::target_dir().join("rig-out").join(name)
        });
        if self.bulkhead {
            files.extend(products::install(&mut terminal)?);
        }
        let boot = Boot {
            machine: Machine {
                qemu: self.qemu,
                cpu: self.cpu.unwrap_or_else(|| self.host.cpu().to_owned()),
                cpus: self.cpus,
                counts_instructions: self.counts_instructions,
                memory_mib: self.memory,
                dom0_memory_mib: self.dom0_memory,
                dom0_vcpus: self.dom0_vcpus,
                xenstored: self.xenstored,
                xen_options: self.xen_options,
                dom0_options: self.dom0_options,
                devices: self.devices,
            },
            files,
            packages: self.packages,
            script,
            timeout: Duration::from_secs(self.timeout),
        };
        let outcome = Rig::prepare(self.suite, self.host, &mut terminal)?.run(&boot, &out, &mut terminal)?;
        drop(terminal);
        report(&outcome);
        Ok(outcome.exit_code().clamp(0, 255) as u8)
    }
}

fn report(outcome: &Outcome) {
    let seconds = outcome.duration.as_secs_f32();
    match &outcome.end {
        End::Exited(code) => eprintln!("rig: the script ended with {code} after {seconds:.1} s"),
        End::TimedOut => {
            eprintln!("rig: the time of {seconds:.0} s is up");
            show_end(&outcome.dir.join("script.log"));
            show_end(&outcome.dir.join("serial.log"));
        }
        End::Died(reason) => {
            eprintln!("rig: {reason}");
            show_end(&outcome.dir.join("serial.log"));
        }
    }
    eprintln!("rig: logs are in {}", outcome.dir.display());
}

/// Shows the last lines of a log.
fn show_end(path: &Path) {
    const LINES: usize = 15;
    let text = std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    eprintln!("rig: the last lines of {}:", path.display());
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        eprintln!("  {line}");
    }
}
