//! The differential proof's program: `record` in a guest, `compare` in dom0, `known` for the documentation.

use anyhow::{Context as _, Result};
use bulkhead_tests::comparison::{self, Comparison};
use bulkhead_tests::lspci::{self, Lspci};
use bulkhead_tests::sweep::compare::Sweep;
use bulkhead_tests::sweep::guest;
use bulkhead_tests::sweep::phase::Phase;
use clap::{Parser, Subcommand};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Makes the same configuration accesses through two backends and compares the answers.
#[derive(Parser)]
#[command(name = "config-sweep")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// In a Linux guest: make accesses and write a recording of the answers
    Record {
        /// The function, as the guest names it
        bdf: String,
        /// Which accesses
        phase: Phase,
        /// A dump of the function's config space: what the accesses are made for
        #[arg(long)]
        reference: PathBuf,
        /// Where the recording goes
        file: PathBuf,
        /// What accesses at random are made from
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many accesses at random
        #[arg(long, default_value_t = 100_000)]
        count: usize,
    },
    /// Compare two directories of recordings; fails if anything differs that is not meant to
    Compare {
        /// What was recorded through xen-pciback
        pciback: PathBuf,
        /// What was recorded through Bulkhead
        bulkhead: PathBuf,
    },
    /// Compare two directories of listings by lspci; fails as `compare` does
    CompareLspci {
        /// What was listed through xen-pciback
        pciback: PathBuf,
        /// What was listed through Bulkhead
        bulkhead: PathBuf,
    },
    /// Print the differences that are meant, as docs/parity.md has them
    Known,
    /// Print those of listings by lspci, as docs/parity.md has them
    KnownLspci,
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Record {
            bdf,
            phase,
            reference,
            file,
            seed,
            count,
        } => {
            let reference =
                std::fs::read(&reference).with_context(|| format!("read {}", reference.display()))?;
            let recording = guest::record(&bdf, phase, &reference, seed, count)?;
            std::fs::write(&file, recording.encode()?)
                .with_context(|| format!("write {}", file.display()))?;
        }
        Command::Compare { pciback, bulkhead } => {
            return Ok(Comparison::<Sweep>::load(&pciback, &bulkhead)?.conclude());
        }
        Command::CompareLspci { pciback, bulkhead } => {
            return Ok(Comparison::<Lspci>::load(&pciback, &bulkhead)?.conclude());
        }
        Command::KnownLspci => std::io::stdout().write_all(lspci::render().as_bytes())?,
        Command::Known => std::io::stdout().write_all(comparison::render::<Sweep>().as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}
