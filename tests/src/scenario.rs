//! The scenarios, and what each of them needs.

use anyhow::{Context as _, Result, bail};
use images::emulator::Version;
use images::qemu::Xenstored;
use images::{Host, Suite};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Directory of the scenarios.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

/// One scenario. The second line of its file is its title. Lines `#: KEY VALUE` below say what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// The file's name without `.sh`. If the xenstored is not the scenario's usual one, `+` and its name follow.
    pub name: String,
    /// The file's name without `.sh`.
    file: String,
    /// What it shows, in one line.
    pub title: String,
    /// `#: device SPEC`, as many as there are: devices in the form of QEMU's `-device`.
    pub devices: Vec<String>,
    /// `#: suite NAME`: the suites that it runs on; all if there is none. If Xen and Linux of all suites behave alike,
    /// one suite saves time. `cargo verify --suite NAME --scenario NAME` runs it on another, `cargo verify --all` on
    /// all.
    pub suites: Vec<Suite>,
    /// `#: all`: takes so long that `cargo verify` runs it only with `--all`, or by name.
    pub costly: bool,
    /// `#: first`: shows what Bulkhead is for. `cargo verify --minutes` runs it before those without this line, whatever
    /// the time.
    pub first: bool,
    /// `#: host NAME`: what dom0 is, `busybox` by default, or `debian`: an installed Debian with systemd, on which
    /// Bulkhead is installed by the script (`install_bulkhead` of `lib.sh`). It takes a minute to boot.
    pub host: Host,
    /// `#: qemu VERSION`: which QEMU; the host's by default.
    pub qemu: Version,
    /// `#: timeout SECONDS`, from power-on.
    pub timeout: Duration,
    /// `#: timeout-all SECONDS`: the time limit with `--all`, when the script sees `$ALL`; twice the other by default.
    timeout_all: Option<Duration>,
    /// `#: cpus N`: physical processors; one by default. QEMU emulates each by a thread. If the machine has fewer
    /// processors to spare, Xen's clocks drift apart, and waits that count time end early.
    pub cpus: u8,
    /// `#: icount`: the machine's clocks count instructions ([`Machine::counts_instructions`]).
    ///
    /// [`Machine::counts_instructions`]: images::Machine::counts_instructions
    pub counts_instructions: bool,
    /// `#: cpu NAME`: QEMU's name of the processor, [`Host::cpu`] by default; `qemu64,+rdrand,+svm,+npt` has hardware virtualisation, which HVM
    /// guests and a PVH dom0 need.
    pub cpu: String,
    /// `#: xenstored NAME`: which xenstored dom0 runs, `xenstored` or `oxenstored`. If there are several lines, the
    /// first one counts, and `cargo verify --all` runs the scenario with each.
    pub xenstoreds: Vec<Xenstored>,
    /// `#: xen OPTION`: an option to add to Xen's command line.
    pub xen_options: Vec<String>,
    /// `#: dom0 OPTION`: an option to add to the command line of dom0's kernel.
    pub dom0_options: Vec<String>,
    /// `#: packages NAME...`: Debian packages whose programs the script runs by `in-packages`. They are fetched when the
    /// scenario first runs.
    pub packages: Vec<String>,
    /// The script.
    pub script: String,
    /// Settings beyond its file, as options of `cargo verify`.
    asked: String,
}

impl Scenario {
    /// The scenario of that name.
    ///
    /// # Errors
    /// As for [`Scenario::load`].
    pub fn named(name: &str) -> Result<Self> {
        Self::load(&directory().join(format!("{name}.sh")))
    }

    /// Reads a scenario's file.
    ///
    /// # Errors
    /// The file cannot be read, or a `#:` line is wrong. The error names it.
    pub fn load(path: &Path) -> Result<Self> {
        let name = path
            .file_stem()
            .context("a scenario has a name")?
            .to_string_lossy()
            .into_owned();
        let script = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(name, script).with_context(|| format!("scenario {}", path.display()))
    }

    fn parse(name: String, script: String) -> Result<Self> {
        let title = script.lines().nth(1).and_then(|line| line.strip_prefix("# "));
        let title = title
            .context("its second line is to be its title: `# The …`")?
            .to_owned();
        let mut scenario = Self {
            file: name.clone(),
            name,
            title,
            devices: Vec::new(),
            suites: Vec::new(),
            costly: false,
            first: false,
            host: Host::default(),
            qemu: Version::default(),
            timeout: Duration::from_secs(300),
            timeout_all: None,
            cpus: 1,
            counts_instructions: false,
            cpu: String::new(),
            xenstoreds: Vec::new(),
            xen_options: Vec::new(),
            dom0_options: Vec::new(),
            packages: Vec::new(),
            script: String::new(),
            asked: String::new(),
        };
        for need in script.lines().filter_map(|line| line.strip_prefix("#: ")) {
            match need {
                "all" => {
                    scenario.costly = true;
                    continue;
                }
                "first" => {
                    scenario.first = true;
                    continue;
                }
                "icount" => {
                    scenario.counts_instructions = true;
                    continue;
                }
                _ => {}
            }
            let seconds = |value: &str| {
                let seconds = value.parse().map(Duration::from_secs);
                seconds.with_context(|| format!("`#: {need}` wants seconds"))
            };
            let (key, value) = need
                .split_once(' ')
                .with_context(|| format!("`#: {need}` has no value"))?;
            match key {
                "device" => scenario.devices.push(value.to_owned()),
                "suite" => scenario
                    .suites
                    .push(value.parse().map_err(|error| anyhow::anyhow!("{error}"))?),
                "host" => scenario.host = value.parse().map_err(|error| anyhow::anyhow!("{error}"))?,
                "qemu" => scenario.qemu = value.parse().map_err(|error| anyhow::anyhow!("{error}"))?,
                "timeout" => scenario.timeout = seconds(value)?,
                "timeout-all" => scenario.timeout_all = Some(seconds(value)?),
                "cpus" => {
                    scenario.cpus = value
                        .parse()
                        .with_context(|| format!("`#: {need}` wants a number"))?;
                }
                "cpu" => scenario.cpu = value.to_owned(),
                "xenstored" => scenario
                    .xenstoreds
                    .push(value.parse().map_err(|error| anyhow::anyhow!("{error}"))?),
                "xen" => scenario.xen_options.push(value.to_owned()),
                "dom0" => scenario.dom0_options.push(value.to_owned()),
                "packages" => scenario
                    .packages
                    .extend(value.split_whitespace().map(str::to_owned)),
                _ => bail!(
                    "`#: {need}`: no such need; there are all, first, icount, device, suite, host, qemu, timeout, \
                     timeout-all, cpus, cpu, xenstored, xen, dom0 and packages"
                ),
            }
        }
        if scenario.cpu.is_empty() {
            scenario.cpu = scenario.host.cpu().to_owned();
        }
        if scenario.host == Host::Debian && !scenario.xenstoreds.is_empty() {
            bail!(
                "`#: xenstored` is for a host with busybox: a Debian host runs the xenstored that Debian chooses"
            );
        }
        scenario.script = script;
        Ok(scenario)
    }

    /// Runs the script in full: sets `$ALL`, and the time limit for that.
    pub fn whole(&mut self) {
        self.prepend("ALL=1\n");
        self.timeout = self.timeout_all.unwrap_or(2 * self.timeout);
        self.asked += " --all";
    }

    /// Which xenstored dom0 runs.
    pub fn xenstored(&self) -> Xenstored {
        self.xenstoreds.first().copied().unwrap_or_default()
    }

    /// The same with another xenstored.
    #[must_use]
    pub fn with(&self, xenstored: Xenstored) -> Self {
        let mut other = Self {
            xenstoreds: vec![xenstored],
            ..self.clone()
        };
        if xenstored != self.xenstored() {
            other.asked += &format!(" --xenstored {xenstored}");
            other.name = format!("{}+{xenstored}", self.file);
        }
        other
    }

    /// Sets variables that the script reads as `NAME=${NAME:-DEFAULT}`.
    pub fn set(&mut self, settings: &[Setting]) {
        let lines: String = settings
            .iter()
            .map(|Setting { name, value }| format!("{name}={value}\n"))
            .collect();
        self.prepend(&lines);
        for Setting { name, value } in settings {
            self.asked += &format!(" --set {name}={value}");
        }
    }

    /// Inserts lines right after the script's first line, which names the shell.
    fn prepend(&mut self, lines: &str) {
        let at = self.script.find('\n').map_or(0, |end| end + 1);
        self.script.insert_str(at, lines);
    }

    /// Replaces the time limit, in seconds from power-on.
    pub fn limit(&mut self, seconds: u64) {
        self.timeout = Duration::from_secs(seconds);
        self.asked += &format!(" --timeout {seconds}");
    }

    /// The command that runs it on `suite` with these settings.
    pub fn command(&self, suite: Suite) -> String {
        format!(
            "cargo verify --suite {suite} --scenario {}{}",
            self.file, self.asked
        )
    }

    /// Whether `cargo verify` without options runs it on `suite`.
    pub fn is_for(&self, suite: Suite) -> bool {
        self.suites.is_empty() || self.suites.contains(&suite)
    }
}

/// A variable for a scenario's script: `NAME=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    name: String,
    value: String,
}

impl FromStr for Setting {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, value) = text
            .split_once('=')
            .with_context(|| format!("{text} is no NAME=VALUE"))?;
        let is_name = |c: char| c.is_ascii_uppercase() || c == '_';
        // The value goes into the script unquoted, so it must not have characters that mean something to the shell.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
        if name.is_empty() || !name.chars().all(is_name) {
            bail!("{name} is no name of a setting: capital letters");
        }
        if !value.chars().all(is_plain) {
            bail!("{value} is no value of a setting: letters, digits and `.`, `_`, `:`, `-`");
        }
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// All scenarios, by name.
///
/// # Errors
/// A file is no valid scenario.
pub fn all() -> Result<Vec<Scenario>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sh") && !path.ends_with("lib.sh") {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| Scenario::load(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Scenario> {
        Scenario::parse("s".into(), text.into())
    }

    #[test]
    fn a_scenario_names_its_needs_at_its_top() {
        let scenario = parse(
            "#!/bin/sh\n# The title.\n#: device e1000e,addr=5\n#: device edu\n#: timeout 7\n#: suite trixie\n#: xen iommu=0\n#: dom0 quiet\n#: cpus 2\n#: host debian\n#: qemu 10\n#: packages prometheus rsyslog\n#: icount\ntrue\n",
        )
        .unwrap();
        assert_eq!(scenario.title, "The title.");
        assert_eq!(scenario.devices, ["e1000e,addr=5", "edu"]);
        assert_eq!(scenario.timeout, Duration::from_secs(7));
        assert!(scenario.is_for(Suite::Trixie) && !scenario.is_for(Suite::Bookworm));
        assert_eq!(scenario.xen_options, ["iommu=0"]);
        assert_eq!(scenario.dom0_options, ["quiet"]);
        assert_eq!(scenario.cpus, 2);
        assert_eq!(scenario.host, Host::Debian);
        assert_eq!(scenario.qemu, Version::Ten);
        assert_eq!(scenario.packages, ["prometheus", "rsyslog"]);
        assert!(scenario.counts_instructions && !parse("#!/bin/sh\n# T.\n").unwrap().counts_instructions);
    }

    #[test]
    fn dom0_has_busybox_unless_the_scenario_names_another_host() {
        let usual = parse("#!/bin/sh\n# T.\ntrue\n").unwrap();
        assert_eq!(
            (usual.host, usual.cpu.as_str()),
            (Host::Busybox, Host::Busybox.cpu())
        );
        let debian = parse("#!/bin/sh\n# T.\n#: host debian\n").unwrap();
        assert_eq!(
            (debian.host, debian.cpu.as_str()),
            (Host::Debian, Host::Debian.cpu())
        );
        let other = parse("#!/bin/sh\n# T.\n#: cpu max\n#: host debian\n").unwrap();
        assert_eq!(other.cpu, "max");
    }

    #[test]
    fn a_need_that_is_none_is_named() {
        for (line, part) in [
            ("#: timeout-all ever", "timeout-all ever"),
            ("#: devise edu", "devise"),
            ("#: timeout soon", "timeout soon"),
            ("#: cpus all", "cpus all"),
            ("#: xenstored mysql", "mysql"),
            ("#: suite buster", "buster"),
            ("#: qemu 1", "called 1"),
            ("#: host fedora", "called fedora"),
            ("#: host debian\n#: xenstored xenstored", "that Debian chooses"),
            ("#: device", "device"),
        ] {
            let error = parse(&format!("#!/bin/sh\n# T.\n{line}\n")).unwrap_err();
            assert!(format!("{error:#}").contains(part), "{line}: {error:#}");
        }
        assert!(parse("#!/bin/sh\ntrue\n").is_err());
    }

    #[test]
    fn a_setting_comes_before_all_that_the_script_does() {
        let mut scenario = parse("#!/bin/sh\n# The title.\nCOUNT=${COUNT:-3}\n").unwrap();
        scenario.set(&["COUNT=7".parse().unwrap(), "SEED=1".parse().unwrap()]);
        assert_eq!(
            scenario.script,
            "#!/bin/sh\nCOUNT=7\nSEED=1\n# The title.\nCOUNT=${COUNT:-3}\n"
        );
        scenario.limit(70);
        assert_eq!(
            scenario.command(Suite::Trixie),
            "cargo verify --suite trixie --scenario s --set COUNT=7 --set SEED=1 --timeout 70"
        );
        for (text, part) in [
            ("COUNT", "NAME=VALUE"),
            ("count=7", "capital"),
            ("=7", "capital"),
            ("COUNT=$(reboot)", "no value"),
        ] {
            let error = text.parse::<Setting>().unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_whole_of_a_scenario_is_asked_for_by_a_setting_and_has_more_time() {
        let mut scenario =
            parse("#!/bin/sh\n# The title.\n#: all\n#: timeout 100\n#: timeout-all 900\ntrue\n").unwrap();
        assert!(scenario.costly);
        assert_eq!(scenario.timeout, Duration::from_secs(100));
        scenario.whole();
        assert_eq!(scenario.timeout, Duration::from_secs(900));
        assert!(scenario.script.starts_with("#!/bin/sh\nALL=1\n# The title.\n"));
        assert_eq!(
            scenario.command(Suite::Sid),
            "cargo verify --suite sid --scenario s --all"
        );
        let mut other = parse("#!/bin/sh\n# The title.\n#: timeout 100\ntrue\n").unwrap();
        assert!(!other.costly);
        other.whole();
        assert_eq!(other.timeout, Duration::from_secs(200));
    }

    #[test]
    fn a_scenario_with_another_xenstored_has_another_name_and_command() {
        let text =
            "#!/bin/sh\n# T.\n#: xenstored xenstored\n#: xenstored oxenstored\n#: cpu qemu64,+svm\ntrue\n";
        let scenario = parse(text).unwrap();
        assert_eq!(scenario.xenstored(), Xenstored::C);
        assert_eq!(scenario.cpu, "qemu64,+svm");
        let other = scenario.with(Xenstored::Ocaml);
        assert_eq!(
            (other.name.as_str(), other.xenstored()),
            ("s+oxenstored", Xenstored::Ocaml)
        );
        assert_eq!(
            other.command(Suite::Sid),
            "cargo verify --suite sid --scenario s --xenstored oxenstored"
        );
        assert_eq!(scenario.with(Xenstored::C).name, "s");
    }

    #[test]
    fn every_scenario_in_the_tree_is_sound() {
        let scenarios = all().unwrap();
        assert!(!scenarios.is_empty());
        for scenario in scenarios {
            assert!(
                scenario.script.contains(". /rig/scenarios/lib.sh"),
                "{} gives no verdict",
                scenario.name
            );
        }
    }
}
