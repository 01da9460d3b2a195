//! The program of the differential proof: `record` runs in a guest, `compare` in dom0, `known` prints tables for the
//! documentation.

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

/// Make the same configuration accesses through two backends, and compare the answers.
#[derive(Parser)]
#[command(name = "config-sweep")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// In a Linux guest: make accesses, and write a recording of the answers
    Record {
        /// Address of the function in the guest
        bdf: String,
        /// Which accesses to make
        phase: Phase,
        /// Dump of the function's config space; the accesses are chosen by it
        #[arg(long)]
        reference: PathBuf,
        /// File for the recording
        file: PathBuf,
        /// Seed of the random accesses
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Number of random accesses
        #[arg(long, default_value_t = 100_000)]
        count: usize,
    },
    /// Compare two directories of recordings. Fails if a difference is not meant, or one that is meant does not show
    Compare {
        /// Directory of recordings through xen-pciback
        pciback: PathBuf,
        /// Directory of recordings through Bulkhead
        bulkhead: PathBuf,
    },
    /// Compare two directories of lspci's listings. Fails as `compare` does
    CompareLspci {
        /// Directory of listings through xen-pciback
        pciback: PathBuf,
        /// Directory of listings through Bulkhead
        bulkhead: PathBuf,
    },
    /// Print the table of differences that are meant, for docs/parity.md
    Known,
    /// Print the same tables for lspci's listings
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
