//! The files of the package.

use crate::{control, licences, manual};
use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

/// What the package is made from.
pub struct Sources {
    /// The root of the workspace.
    pub workspace: PathBuf,
    /// The command.
    pub command: Vec<u8>,
    /// The stub's image.
    pub stub: Vec<u8>,
    /// The image of stubs with a network.
    pub stub_net: Vec<u8>,
    /// The version of the package.
    pub version: String,
}

/// One file of the package.
#[derive(Debug)]
pub struct Entry {
    /// From the root of the host.
    pub path: String,
    /// Its permissions.
    pub mode: u32,
    /// Its content.
    pub content: Vec<u8>,
}

/// Files of the workspace, each with its directory on the host.
const FILES: [(&str, &str); 13] = [
    ("config/bulkhead.service", UNITS),
    ("config/bulkhead-guests.service", UNITS),
    ("config/bulkhead-seize.service", UNITS),
    ("config/bulkhead-metrics.socket", UNITS),
    ("config/bulkhead-metrics.service", UNITS),
    ("config/policy.toml", SETTINGS),
    ("config/stubdom.cfg", SETTINGS),
    ("config/guest.cfg", SETTINGS),
    ("config/grafana-dashboard.json", EXAMPLES),
    ("config/prometheus-alerts.yml", EXAMPLES),
    ("README.md", DOCUMENTS),
    ("packaging/copyright", DOCUMENTS),
    ("packaging/debian/lintian/bulkhead", "usr/share/lintian/overrides"),
];

/// Directories that are there though they may be empty.
pub const DIRECTORIES: [&str; 1] = ["etc/bulkhead/guests.d"];

const UNITS: &str = "usr/lib/systemd/system";
/// What lies here the administrator may change: an upgrade keeps it.
const SETTINGS: &str = "etc/bulkhead";
const DOCUMENTS: &str = "usr/share/doc/bulkhead";
/// What the documents show, for the administrator to copy. It lies below [`DOCUMENTS`] as it does in the workspace.
const EXAMPLES: &str = "usr/share/doc/bulkhead/config";

/// The programs that dpkg runs.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

fn read(sources: &Sources, path: &str) -> Result<Vec<u8>> {
    let path = sources.workspace.join(path);
    fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

fn compressed(text: &[u8]) -> Result<Vec<u8>> {
    // Without a time, so that the same text makes the same file.
    let mut file = GzBuilder::new().write(Vec::new(), Compression::best());
    file.write_all(text)?;
    Ok(file.finish()?)
}

/// All files for the host.
///
/// # Errors
/// Names a file that is missing.
pub fn files(sources: &Sources) -> Result<Vec<Entry>> {
    let entry = |path: String, content| Entry {
        path,
        mode: 0o644,
        content,
    };
    let mut entries = vec![
        Entry {
            mode: 0o755,
            ..entry("usr/bin/bulkhead".into(), sources.command.clone())
        },
        entry("usr/lib/bulkhead/bulkhead-stub".into(), sources.stub.clone()),
        entry(
            "usr/lib/bulkhead/bulkhead-stub-net".into(),
            sources.stub_net.clone(),
        ),
    ];
    for (path, directory) in FILES {
        let name = path.rsplit('/').next().unwrap_or(path);
        entries.push(entry(format!("{directory}/{name}"), read(sources, path)?));
    }
    // Below `docs`, as in the workspace, so that the links of the documents hold.
    for name in documents(sources)? {
        let content = read(sources, &format!("docs/{name}"))?;
        entries.push(entry(format!("{DOCUMENTS}/docs/{name}"), content));
    }
    let releases = control::releases(&String::from_utf8(read(sources, "CHANGELOG.md")?)?)?;
    let changelog = control::changelog(&releases, &sources.version)?;
    entries.push(entry(
        format!("{DOCUMENTS}/changelog.gz"),
        compressed(changelog.as_bytes())?,
    ));
    let third_party = licences::third_party(&sources.workspace)?;
    entries.push(entry(
        format!("{DOCUMENTS}/third-party-licences.gz"),
        compressed(third_party.as_bytes())?,
    ));
    let date = releases
        .first()
        .map(|release| release.date.to_string())
        .unwrap_or_default();
    for (name, page) in manual::pages(&date)? {
        entries.push(entry(format!("usr/share/man/man1/{name}.gz"), compressed(&page)?));
    }
    for (path, text) in manual::completions() {
        entries.push(entry(path.into(), text));
    }
    Ok(entries)
}

fn documents(sources: &Sources) -> Result<Vec<String>> {
    let directory = sources.workspace.join("docs");
    let mut names = Vec::new();
    for file in fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))? {
        let name = file?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".md") || name.ends_with(".svg") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The files for dpkg itself.
///
/// # Errors
/// Names a file that is missing.
pub fn control_files(sources: &Sources, files: &[Entry]) -> Result<Vec<Entry>> {
    let bytes: usize = files.iter().map(|file| file.content.len()).sum();
    let size = u64::try_from(bytes.div_ceil(1024))?;
    let control = control::control(&sources.version, &sources.command, size)?;
    let settings: Vec<&str> = files
        .iter()
        .map(|file| file.path.as_str())
        .filter(|path| path.starts_with("etc/"))
        .collect();
    let conffiles: String = settings.iter().map(|path| format!("/{path}\n")).collect();
    let mut entries = vec![
        Entry {
            path: "DEBIAN/control".into(),
            mode: 0o644,
            content: control.into_bytes(),
        },
        Entry {
            path: "DEBIAN/conffiles".into(),
            mode: 0o644,
            content: conffiles.into_bytes(),
        },
    ];
    for name in SCRIPTS {
        entries.push(Entry {
            path: format!("DEBIAN/{name}"),
            mode: 0o755,
            content: read(sources, &format!("packaging/debian/{name}"))?,
        });
    }
    Ok(entries)
}
