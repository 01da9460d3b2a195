//! In dom0: compares the answers of two backends to the test guest. Prints the table of meant differences.

use anyhow::{Context as _, Result};
use bulkhead_tests::comparison::{self, Comparison};
use bulkhead_tests::ops::compare::Ops;
use bulkhead_tests::ops::recording::RequestRecording;
use clap::{Parser, Subcommand};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Compare the answers of two backends to the same requests.
#[derive(Parser)]
#[command(name = "ops-compare")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare two recordings. Fails if a difference is not meant, or one that is meant does not show
    Compare {
        /// Recording through xen-pciback
        pciback: PathBuf,
        /// Recording through Bulkhead
        bulkhead: PathBuf,
    },
    /// Print the table of differences that are meant, for docs/parity.md
    Known,
}

fn load(path: &Path) -> Result<RequestRecording> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    RequestRecording::parse(&text).with_context(|| path.display().to_string())
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Compare { pciback, bulkhead } => {
            return Ok(Comparison::<Ops>::of(&load(&pciback)?, &load(&bulkhead)?)?.conclude());
        }
        Command::Known => std::io::stdout().write_all(comparison::render::<Ops>().as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}
