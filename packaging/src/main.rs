//! `cargo deb`: builds the Debian package.
#![forbid(unsafe_code)]

use anyhow::Result;
use clap::Parser;
use images::observer::Terminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Build bulkhead_VERSION_amd64.deb: command, stub image, units, configuration, manual pages, completions, documents.
#[derive(Parser)]
#[command(name = "cargo deb")]
struct Arguments {
    /// Directory for the package [default: target/debian]
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
    /// Give the package this version instead of the workspace's, as for a test of an upgrade
    #[arg(long, value_name = "VERSION")]
    as_version: Option<String>,
}

fn main() -> Result<()> {
    let Arguments { out, as_version } = Arguments::parse();
    let mut observer = Terminal::new(Arc::new(AtomicBool::new(false)));
    let package = packaging::build(as_version.as_deref(), out.as_deref(), &mut observer)?;
    // Its progress line would mix with the result.
    drop(observer);
    println!("{}", package.display());
    Ok(())
}
