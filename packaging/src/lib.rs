//! The Debian package of Bulkhead: its files ([`contents`]), its control file and changelog ([`control`]), the pages and
//! completions that are made from the command line ([`manual`]), the licences of other people's crates ([`licences`]), and
//! the archive ([`archive`]).
#![forbid(unsafe_code)]

pub mod archive;
pub mod contents;
pub mod control;
pub mod licences;
pub mod manual;

use anyhow::{Context as _, Result, ensure};
use contents::Sources;
use images::observer::Observer;
use images::store::{target_dir, workspace_dir};
use images::{installed, products};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the command and the stub's image, and packs them. Returns the path of the package. `version` replaces the version
/// of the workspace, as for a test of an upgrade.
///
/// # Errors
/// Something does not compile, or a file is missing.
pub fn build(version: Option<&str>, out: Option<&Path>, observer: &mut dyn Observer) -> Result<PathBuf> {
    for (program, package) in [("dpkg-deb", "dpkg"), ("strip", "binutils")] {
        installed::ensure(program, package, observer)?;
    }
    let command = products::TOOLSTACK.build(observer)?;
    let stub = products::STUB.build(observer)?;
    let stub_net = products::STUB_NET.build(observer)?;
    let directory = out.map_or_else(|| target_dir().join("debian"), Path::to_owned);
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    observer.phase("packing");
    let sources = Sources {
        workspace: workspace_dir(),
        command: stripped(&command)?,
        stub: read(&stub)?,
        stub_net: read(&stub_net)?,
        version: version.unwrap_or(env!("CARGO_PKG_VERSION")).to_owned(),
    };
    archive::pack(&sources, &directory)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("reading {}", file.display()))
}

/// A program without the symbols that only a debugger needs.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let copy = program.with_extension("stripped");
    let status = Command::new("strip")
        .args(["--strip-all", "--remove-section=.comment", "-o"])
        .args([&copy, program])
        .status()
        .context("running strip (Debian: binutils)")?;
    ensure!(status.success(), "strip {}: {status}", program.display());
    let bytes = read(&copy)?;
    fs::remove_file(&copy).with_context(|| format!("removing {}", copy.display()))?;
    Ok(bytes)
}
