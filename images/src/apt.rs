//! A private apt with lists and a cache of its own, and an empty system. The state of the host's apt is read only to
//! learn which mirror the host uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::observer::Observer;
use crate::store::create_dir;
use crate::suite::Suite;

/// The environment variable with the address of a Debian mirror, for hosts whose apt has none configured.
pub const MIRROR_VARIABLE: &str = "BULKHEAD_RIG_MIRROR";

/// The keys of Debian's archive, as the package `debian-archive-keyring` installs them.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Names that the main archive of a Debian release can have in a host's configuration.
const RELEASE_NAMES: [&str; 9] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// The archives of Debian that the host uses.
#[derive(Debug, PartialEq, Eq)]
pub struct Mirrors {
    /// The main archive.
    pub main: String,
    /// Security updates, where the host takes them.
    pub security: Option<String>,
}

impl Mirrors {
    /// Picks the mirrors out of lines of "address release", as `apt-get indextargets` prints them.
    pub fn parse(targets: &str) -> Option<Mirrors> {
        let targets: Vec<_> = targets.lines().filter_map(|line| line.split_once(' ')).collect();
        let find = |matches: &dyn Fn(&str) -> bool| {
            targets
                .iter()
                .find(|(_, release)| matches(release))
                .map(|(address, _)| (*address).to_owned())
        };
        Some(Mirrors {
            main: find(&|release| RELEASE_NAMES.contains(&release))?,
            security: find(&|release| {
                release
                    .strip_suffix("-security")
                    .is_some_and(|name| RELEASE_NAMES.contains(&name))
            }),
        })
    }

    /// The mirrors of this host.
    fn of_host() -> Result<Mirrors> {
        if let Ok(main) = std::env::var(MIRROR_VARIABLE) {
            return Ok(Mirrors { main, security: None });
        }
        let mut command = Command::new("apt-get");
        command.args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE)",
            "Created-By: Packages",
        ]);
        Mirrors::parse(&output_of(&mut command)?).ok_or_else(|| {
            anyhow!(
                "this host's apt has no Debian archive configured: set {MIRROR_VARIABLE} to the address of a \
                 Debian mirror"
            )
        })
    }

    /// The lines of a `sources.list` for a release, from the mirrors that this host uses.
    ///
    /// # Errors
    /// There is no keyring or no known mirror on this host.
    pub fn list(suite: Suite) -> Result<String> {
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is missing: install the package debian-archive-keyring"
        );
        Ok(Mirrors::of_host()?.sources(suite))
    }

    /// The lines of a `sources.list` for a release.
    fn sources(&self, suite: Suite) -> String {
        let mut sources = format!("deb [signed-by={KEYRING}] {} {suite} main\n", self.main);
        if let Some(security) = self.security.as_ref().filter(|_| suite.has_security()) {
            sources += &format!("deb [signed-by={KEYRING}] {security} {suite}-security main\n");
        }
        sources
    }
}

/// A package file that apt would install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The package's name.
    pub name: String,
    /// The package's version.
    pub version: String,
    /// File name that `apt-get download` gives it.
    pub file: String,
    /// Size in bytes.
    pub size: u64,
}

impl Candidate {
    /// Reads a line of `apt-get install --print-uris`: `'ADDRESS' FILE SIZE HASH`.
    pub fn parse(line: &str) -> Option<Candidate> {
        let mut words = line.strip_prefix('\'')?.split(' ').skip(1);
        let (file, size) = (words.next()?, words.next()?);
        let mut parts = file.split('_');
        let (name, version) = (parts.next()?, parts.next()?);
        Some(Candidate {
            name: name.to_owned(),
            // File names have the colon of an epoch escaped.
            version: version.replace("%3a", ":"),
            file: file.to_owned(),
            size: size.parse().ok()?,
        })
    }
}

/// A private apt for one release.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Sets up a private apt in `dir`.
    ///
    /// # Errors
    /// There is no apt, no keyring or no known mirror on this host, or `dir` cannot be written.
    pub fn create(dir: &Path, suite: Suite) -> Result<Apt> {
        let sources = Mirrors::list(suite)?;
        for part in ["lists/partial", "cache/archives/partial", "none"] {
            create_dir(&dir.join(part))?;
        }
        // For an empty system apt names every dependency, not only those that the host lacks.
        fs::write(dir.join("status"), "").with_context(|| format!("writing to {}", dir.display()))?;
        fs::write(dir.join("sources.list"), sources)
            .with_context(|| format!("writing to {}", dir.display()))?;
        Ok(Apt { dir: dir.to_owned() })
    }

    fn command(&self, verb: &str) -> Command {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let mut command = Command::new("apt-get");
        for (option, value) in [
            // No sources and no pins of the host count.
            ("Dir::Etc::sourcelist", path("sources.list")),
            ("Dir::Etc::sourceparts", path("none")),
            ("Dir::Etc::preferences", path("none/preferences")),
            ("Dir::Etc::preferencesparts", path("none")),
            ("Dir::State", path("")),
            ("Dir::State::lists", path("lists")),
            ("Dir::State::status", path("status")),
            ("Dir::Cache", path("cache")),
            ("APT::Architecture", "amd64".to_owned()),
            ("APT::Architectures", "amd64".to_owned()),
            ("APT::Default-Release", String::new()),
            ("APT::Install-Recommends", "false".to_owned()),
            // Apt's own unprivileged user cannot write below a directory that belongs to the caller.
            ("APT::Sandbox::User", "root".to_owned()),
            // A list that cannot be fetched is an error, not a warning.
            ("APT::Update::Error-Mode", "any".to_owned()),
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::Retries", "3".to_owned()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        command.args(["-qq", verb]).env("LC_ALL", "C");
        command
    }

    /// Fetches the package lists.
    ///
    /// # Errors
    /// The archive cannot be reached or its signature is wrong; apt's own words are in the error.
    pub fn update(&self) -> Result<()> {
        output_of(&mut self.command("update")).map(drop)
    }

    /// The packages and everything that they depend on.
    ///
    /// # Errors
    /// The release has no such package.
    pub fn closure(&self, packages: &[String]) -> Result<Vec<Candidate>> {
        let mut command = self.command("install");
        command.args(["--print-uris", "--yes"]).args(packages);
        let told = output_of(&mut command)
            .with_context(|| format!("the archive has no set of packages for {}", packages.join(" ")))?;
        let candidates: Vec<_> = told.lines().filter_map(Candidate::parse).collect();
        ensure!(
            !candidates.is_empty(),
            "apt-get names no files for {}",
            packages.join(" ")
        );
        Ok(candidates)
    }

    /// Downloads package files into `dir`; apt checks their hashes against the signed lists.
    ///
    /// # Errors
    /// A download fails or does not match its hash; apt's own words are in the error.
    pub fn download(&self, dir: &Path, wanted: &[Candidate], observer: &mut dyn Observer) -> Result<()> {
        let mut command = self.command("download");
        command
            .current_dir(dir)
            .args(wanted.iter().map(|deb| format!("{}={}", deb.name, deb.version)));
        let total = wanted.iter().map(|deb| deb.size).sum();
        let errors = dir.join("apt-get.stderr");
        let stderr = fs::File::create(&errors).with_context(|| format!("creating {}", errors.display()))?;
        let mut child = command
            .stdout(std::process::Stdio::null())
            .stderr(stderr)
            .spawn()
            .context("starting apt-get download")?;
        let status = loop {
            if let Some(status) = child.try_wait().context("waiting for apt-get download")? {
                break status;
            }
            if observer.cancelled() {
                let _ = child.kill();
                let _ = child.wait();
                bail!("stopped while downloading packages");
            }
            // With -qq apt prints no progress, so the sizes of its files stand for it.
            observer.bytes(size_of_files(dir).min(total), total);
            std::thread::sleep(std::time::Duration::from_millis(100));
        };
        let said = fs::read_to_string(&errors).unwrap_or_default();
        ensure!(status.success(), "apt-get download failed: {}", said.trim());
        Ok(fs::remove_file(errors)?)
    }
}

/// Bytes in the files of a directory. Files that cannot be read do not count.
fn size_of_files(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// Runs a command to its end and returns its output.
///
/// # Errors
/// The command is not installed, or fails. The error has the command's stderr.
pub fn output_of(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("starting {name} (is it installed?)"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let verb = command
            .get_args()
            .last()
            .map(|arg| arg.to_string_lossy().into_owned());
        bail!(
            "{name} … {} failed ({}): {}",
            verb.unwrap_or_default(),
            output.status,
            said.trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name} printed something that is no text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirrors_are_those_of_the_debian_archive() {
        let targets = "https://cloud.test/apt cloud-sdk\n\
                       http://mirror.test/debian/ bookworm-updates\n\
                       http://mirror.test/debian/ bookworm\n\
                       http://mirror.test/security/ bookworm-security\n";
        let mirrors = Mirrors::parse(targets).expect("there is a main archive");
        assert_eq!(mirrors.main, "http://mirror.test/debian/");
        assert_eq!(mirrors.security.as_deref(), Some("http://mirror.test/security/"));
    }

    #[test]
    fn a_host_without_debian_archive_has_no_mirrors() {
        assert_eq!(Mirrors::parse("http://mirror.test/ubuntu noble\n"), None);
    }

    #[test]
    fn security_updates_are_those_of_the_suite_not_of_the_host() {
        let mirrors = Mirrors {
            main: "http://m.test".into(),
            security: Some("http://s.test".into()),
        };
        let sources = mirrors.sources(Suite::Trixie);
        assert!(sources.contains("http://m.test trixie main\n"), "{sources}");
        assert!(
            sources.contains("http://s.test trixie-security main\n"),
            "{sources}"
        );
    }

    #[test]
    fn a_line_of_print_uris_gives_name_version_file_and_size() {
        let line = "'http://m.test/p/pciutils_3.9_amd64.deb' pciutils_1%3a3.9.0-4_amd64.deb 104436 MD5Sum:0";
        assert_eq!(
            Candidate::parse(line),
            Some(Candidate {
                name: "pciutils".into(),
                version: "1:3.9.0-4".into(),
                file: "pciutils_1%3a3.9.0-4_amd64.deb".into(),
                size: 104_436,
            })
        );
    }

    #[test]
    fn lines_that_name_no_file_are_passed_over() {
        for line in ["", "Reading package lists...", "'http://m.test/x' x"] {
            assert_eq!(Candidate::parse(line), None, "{line}");
        }
    }
}
