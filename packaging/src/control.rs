//! The control file, and the changelog in Debian's form.

use anyhow::{Context as _, Result, bail, ensure};
use goblin::elf::Elf;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use std::fmt::Write as _;

/// Who answers for the package.
pub const MAINTAINER: &str = "Bulkhead maintainers <bulkhead@example.org>";

const DESCRIPTION: &str = "\
Description: PCI passthrough for Xen with its backend in stub domains
 Bulkhead gives PCI devices to Xen PV guests. The backend of each guest runs in
 a stub domain of 4 MiB instead of dom0's kernel. A stub that fails comes back,
 and the traffic of its guest goes on meanwhile.
 .
 This package has the command bulkhead, the image of the stub, and the service
 that answers the stubs in dom0. The service does nothing unless the host is a
 Xen dom0.
";

/// The control file. `size` is what the files take, in KiB.
///
/// # Errors
/// The command is no ELF file.
pub fn control(version: &str, command: &[u8], size: u64) -> Result<String> {
    ensure!(
        version.starts_with(|first: char| first.is_ascii_digit())
            && version
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || ".+~".contains(c)),
        "{version:?} is no version of a package: it begins with a digit, and consists of letters, digits and .+~"
    );
    let libc = libc_version(command)?;
    // libxenctrl and libxenlight are loaded at run time, in the version of the Xen that runs: xen-system brings them.
    Ok(format!(
        "Package: bulkhead\nVersion: {version}\nArchitecture: amd64\nMaintainer: {MAINTAINER}\nInstalled-Size: {size}\n\
         Depends: libc6 (>= {libc}), libgcc-s1, xen-utils-common\nRecommends: xen-system-amd64\nSuggests: pci.ids\n\
         Section: admin\nPriority: optional\n{DESCRIPTION}"
    ))
}

/// The version of glibc that a program needs.
fn libc_version(program: &[u8]) -> Result<String> {
    let elf = Elf::parse(program).context("reading the ELF headers of the command")?;
    let needed = elf.verneed.iter().flat_map(|needed| needed.iter());
    let versions = needed
        .flat_map(|library| library.iter().collect::<Vec<_>>())
        .filter_map(|version| elf.dynstrtab.get_at(version.vna_name))
        .filter_map(|name| name.strip_prefix("GLIBC_"))
        .filter_map(|version| {
            let numbers = version.split('.').map(|number| number.parse().ok());
            Some((numbers.collect::<Option<Vec<u32>>>()?, version))
        });
    let newest = versions.max().context("the command needs no glibc")?;
    Ok(newest.1.to_owned())
}

/// One version of the changelog.
#[derive(Debug, PartialEq, Eq)]
pub struct Release {
    /// Its number.
    pub version: String,
    /// The day of its release.
    pub date: Date,
    changes: Vec<String>,
}

/// The versions of `CHANGELOG.md`, the newest first. A version is `## 1.2.3 (2026-11-30)`, a change `- text`, which goes on
/// in lines that are set in.
///
/// # Errors
/// Names the line that cannot be parsed.
pub fn releases(changelog: &str) -> Result<Vec<Release>> {
    let mut releases: Vec<Release> = Vec::new();
    for (number, line) in (1..).zip(changelog.lines()) {
        let place = || format!("CHANGELOG.md, line {number}: {line:?}");
        if let Some(heading) = line.strip_prefix("## ") {
            let (version, date) = heading
                .strip_suffix(')')
                .and_then(|heading| heading.split_once(" ("))
                .with_context(|| format!("{} is no `## VERSION (YEAR-MONTH-DAY)`", place()))?;
            releases.push(Release {
                version: version.to_owned(),
                date: date.parse().with_context(place)?,
                changes: Vec::new(),
            });
        } else if let Some(release) = releases.last_mut() {
            if let Some(change) = line.strip_prefix("- ") {
                release.changes.push(change.to_owned());
            } else if let Some(more) = line.strip_prefix("  ")
                && let Some(change) = release.changes.last_mut()
            {
                *change += &format!(" {}", more.trim());
            } else if !line.trim().is_empty() {
                bail!("{} is no version, no change and no part of one", place());
            }
        }
    }
    ensure!(!releases.is_empty(), "CHANGELOG.md has no version");
    Ok(releases)
}

/// Columns of a line of Debian's changelog.
const WIDTH: usize = 78;

/// The changelog in Debian's form. `version` stands in place of the newest one's.
///
/// # Errors
/// A date has no time zone.
pub fn changelog(releases: &[Release], version: &str) -> Result<String> {
    let mut text = String::new();
    for (index, release) in releases.iter().enumerate() {
        let version = if index == 0 { version } else { &release.version };
        writeln!(text, "bulkhead ({version}) unstable; urgency=medium\n")?;
        for change in &release.changes {
            text += &wrapped(change);
        }
        let day = release.date.to_zoned(TimeZone::UTC)?;
        let day = jiff::fmt::rfc2822::to_string(&day)?;
        writeln!(text, "\n -- {MAINTAINER}  {day}\n")?;
    }
    Ok(text)
}

fn wrapped(change: &str) -> String {
    let mut lines = vec!["  *".to_owned()];
    for word in change.split_whitespace() {
        if let Some(line) = lines
            .last_mut()
            .filter(|line| line.len() + 1 + word.len() <= WIDTH)
        {
            *line += &format!(" {word}");
        } else {
            lines.push(format!("    {word}"));
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGELOG: &str = "# Changelog\n\nWhat changed.\n\n## 0.2.0 (2027-01-05)\n\n- One change\n  of two lines.\n- \
                             Another.\n\n## 0.1.0 (2026-11-30)\n\n- The first.\n";

    #[test]
    fn debians_changelog_is_made_from_the_projects_own() {
        let releases = releases(CHANGELOG).unwrap();
        let expected = format!(
            "bulkhead (0.2.0+1) unstable; urgency=medium\n\n  * One change of two lines.\n  * Another.\n\n \
             -- {MAINTAINER}  Tue, 5 Jan 2027 00:00:00 +0000\n\nbulkhead (0.1.0) unstable; urgency=medium\n\n  * The first.\
             \n\n -- {MAINTAINER}  Mon, 30 Nov 2026 00:00:00 +0000\n\n"
        );
        assert_eq!(changelog(&releases, "0.2.0+1").unwrap(), expected);
    }

    #[test]
    fn a_line_that_makes_no_sense_is_named() {
        for (text, named) in [
            ("## 0.1.0\n", "line 1"),
            ("## 0.1.0 (yesterday)\n", "line 1"),
            ("## 0.1.0 (2026-11-30)\ntext\n", "line 2"),
            ("nothing\n", "no version"),
        ] {
            let error = format!("{:#}", releases(text).unwrap_err());
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn long_changes_are_wrapped() {
        let wrapped = wrapped(&"word ".repeat(40));
        assert!(wrapped.lines().count() > 2);
        assert!(wrapped.lines().all(|line| line.len() <= WIDTH));
        assert!(wrapped.starts_with("  * word") && wrapped.contains("\n    word"));
    }

    #[test]
    fn the_control_file_asks_for_the_libc_that_the_command_needs() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let control = control("1.0", &own, 7).unwrap();
        assert!(control.contains("\nDepends: libc6 (>= 2."), "{control}");
        assert!(control.contains("\nInstalled-Size: 7\n"));
        assert!(super::control("1.0", b"no program", 7).is_err());
        for version in ["", "v1", "1.0/2", "1.0 2"] {
            assert!(super::control(version, &own, 7).is_err(), "{version}");
        }
    }
}
