//! The policy file: the terms on which guests get devices. `policy.toml` explains each line.

use crate::declaration::names;
use crate::name::Name;
use crate::options::{AerFate, Options};
use crate::telemetry::{Telemetry, TelemetryChoice};
use crate::toml_error::Broken;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};
use xenbus::device::Quirks;

/// Where the policy is installed.
pub const PATH: &str = "/etc/bulkhead/policy.toml";

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// MSI and MSI-X of all devices.
    pub msi: Option<bool>,
    /// The network of the stubs of all guests. It names no address.
    #[serde(default, deserialize_with = "of_all_stubs")]
    pub telemetry: Option<TelemetryChoice>,
    /// The guests.
    #[serde(default, rename = "guest")]
    pub guests: Vec<Guest>,
    /// The bridges.
    #[serde(default, rename = "bridge")]
    pub bridges: Vec<Bridge>,
    /// The devices.
    #[serde(default, rename = "device")]
    pub devices: Vec<Device>,
}

/// Rule for a guest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Its name or UUID.
    pub r#match: String,
    /// The network of its stub.
    pub telemetry: TelemetryChoice,
}

/// Rule for all devices below a bridge.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bridge {
    /// The bridge.
    pub address: Name,
    /// MSI and MSI-X of those devices.
    pub msi: bool,
}

/// Rule for a device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "RawDevice")]
pub struct Device {
    /// The device; ids alone stand for every device with these ids.
    pub name: Name,
    /// Its options.
    pub options: Options,
    /// Whether it is taken from dom0's drivers at boot.
    pub seize: bool,
}

/// A device's keys in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawDevice {
    r#match: Name,
    msi: Option<bool>,
    permissive: Option<bool>,
    #[serde(default, deserialize_with = "quirks")]
    quirks: Option<Quirks>,
    share_intx: Option<bool>,
    aer: Option<AerFate>,
    #[serde(default)]
    seize: bool,
}

impl From<RawDevice> for Device {
    fn from(raw: RawDevice) -> Self {
        Self {
            name: raw.r#match,
            options: Options {
                msi: raw.msi,
                permissive: raw.permissive,
                quirks: raw.quirks,
                share_intx: raw.share_intx,
                aer: raw.aer,
            },
            seize: raw.seize,
        }
    }
}

fn quirks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Quirks>, D::Error> {
    let mut quirks = Quirks::default();
    for text in Vec::<String>::deserialize(deserializer)? {
        let added = text.parse().and_then(|quirk| quirks.add(quirk));
        added.map_err(|error| D::Error::custom(format!("{text:?}: {error}")))?;
    }
    Ok(Some(quirks))
}

fn of_all_stubs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TelemetryChoice>, D::Error> {
    let choice = TelemetryChoice::deserialize(deserializer)?;
    match choice.network().and_then(Telemetry::of_one_stub) {
        None => Ok(Some(choice)),
        Some(word) => Err(D::Error::custom(format!(
            "{word} for all guests: each stub needs an address of its own, so say it below [[guest]]"
        ))),
    }
}

/// Why there is no policy.
#[derive(Debug)]
pub enum PolicyError {
    /// The file cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file cannot be parsed.
    Broken {
        /// The file.
        path: PathBuf,
        /// The mistake.
        broken: Broken,
    },
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, .. } => write!(
                f,
                "cannot read the policy {}: name another with --policy",
                path.display()
            ),
            Self::Broken { path, broken } => write!(
                f,
                "the policy {} is broken in {broken}. Nothing is given to a guest before the line is corrected or taken \
                 out",
                path.display()
            ),
        }
    }
}

impl std::error::Error for PolicyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            Self::Broken { .. } => None,
        }
    }
}

impl Policy {
    /// Reads the file that is named, or else the installed one, which need not be there.
    ///
    /// # Errors
    /// A file that cannot be read or understood. Half a policy is none: nothing of it counts then.
    pub fn read(named: Option<&Path>) -> Result<Self, PolicyError> {
        let path = named.unwrap_or(Path::new(PATH));
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(PolicyError::Unreadable {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Reads the text of the file at `path`.
    ///
    /// # Errors
    /// [`PolicyError::Broken`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, PolicyError> {
        toml::from_str(text).map_err(|error| PolicyError::Broken {
            path: path.to_owned(),
            broken: Broken::new(text, &error),
        })
    }

    /// The network of the stub of the guest with this name and UUID; `None` if nothing is said about it.
    pub fn telemetry_of(&self, name: &str, uuid: &str) -> Option<&TelemetryChoice> {
        let guests = self.guests.iter().rev();
        let own = guests.map(|guest| (names(&guest.r#match, name, uuid), &guest.telemetry));
        let own = own.filter_map(|(matches, telemetry)| matches.then_some(telemetry));
        own.chain(&self.telemetry).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Policy, PolicyError> {
        Policy::parse(text, Path::new("/etc/bulkhead/policy.toml"))
    }

    #[test]
    fn the_installed_example_says_nothing_and_explains_everything() {
        assert_eq!(parse(crate::POLICY).unwrap(), Policy::default());
        let uncommented: String = crate::POLICY
            .lines()
            .map(|line| match line.strip_prefix('#') {
                // Explanations have a space after the sign, lines of the file have none.
                Some(line) if !line.starts_with(' ') => format!("{line}\n"),
                _ => "\n".into(),
            })
            .collect();
        let policy = parse(&uncommented).unwrap();
        assert_eq!(policy.msi, Some(true));
        let all: TelemetryChoice = "bridge=xenbr0,syslog=10.0.0.5:514".parse().unwrap();
        assert_eq!(policy.telemetry, Some(all));
        assert_eq!(policy.guests[0].r#match, "web");
        assert_eq!(policy.bridges[0].address.to_string(), "0000:00:1c.0");
        assert!(!policy.bridges[0].msi);
        let device = &policy.devices[0];
        assert_eq!(device.name.to_string(), "8086:10d3@0000:03:00.0");
        let options = Options {
            msi: Some(false),
            permissive: Some(true),
            quirks: Some("44:2:ff;60:4:1".parse().unwrap()),
            share_intx: Some(true),
            aer: Some(AerFate::Detach),
        };
        assert_eq!((&device.options, device.seize), (&options, true));
    }

    #[test]
    fn what_is_left_out_is_not_said() {
        let policy = parse("[[device]]\nmatch = \"8086:10d3\"\n").unwrap();
        assert_eq!((policy.msi, policy.bridges.len()), (None, 0));
        assert_eq!(policy.devices[0].options, Options::default());
        assert!(!policy.devices[0].seize);
    }

    #[test]
    fn the_last_word_on_a_guest_counts_before_the_word_on_all() {
        let uuid = "0f1e2d3c-0000-0000-0000-00000000abcd";
        let text = format!(
            "telemetry = \"bridge=all\"\n[[guest]]\nmatch = \"web\"\ntelemetry = \"bridge=first\"\n\
             [[guest]]\nmatch = \"web\"\ntelemetry = \"off\"\n\
             [[guest]]\nmatch = \"{}\"\ntelemetry = \"bridge=own\"\n",
            uuid.to_uppercase()
        );
        let policy = parse(&text).unwrap();
        let of = |name, uuid| policy.telemetry_of(name, uuid).map(ToString::to_string);
        assert_eq!(of("web", "").as_deref(), Some("off"));
        assert_eq!(of("mail", uuid).as_deref(), Some("bridge=own"));
        assert_eq!(of("mail", "").as_deref(), Some("bridge=all"));
        assert_eq!(Policy::default().telemetry_of("web", uuid), None);
    }

    #[test]
    fn one_guest_can_be_given_an_address_and_all_can_be_given_none() {
        let network = "bridge=b,mac=00:16:3e:12:34:56,address=10.0.0.9/24";
        let text = format!("[[guest]]\nmatch = \"web\"\ntelemetry = \"{network}\"");
        let policy = parse(&text).unwrap();
        assert_eq!(
            policy.telemetry_of("web", "").map(ToString::to_string).as_deref(),
            Some(network)
        );
        parse("telemetry = \"off\"").unwrap();
        parse("telemetry = \"bridge=b,address=dhcp\"").unwrap();
    }

    #[test]
    fn a_broken_file_is_refused_with_file_line_and_cause() {
        for (text, line, cause) in [
            ("msi = 0", 1, "invalid type: integer `0`, expected a boolean"),
            (
                "\n\nfast = true",
                3,
                "unknown field `fast`, expected one of `msi`, `telemetry`, `guest`, `bridge`, `device`",
            ),
            ("msi = true\nmsi = false", 2, "duplicate key"),
            ("[[device]]\nmsi = true", 1, "missing field `match`"),
            ("[[device]]\nmatch = \"eth0\"", 2, "\"eth0\" names no PCI device"),
            (
                "[[device]]\nmatch = \"00:05.0\"\nshare_intx = true",
                3,
                "unknown field `share_intx`",
            ),
            (
                "[[device]]\nmatch = \"00:05.0\"\naer = \"kill\"",
                3,
                "unknown variant `kill`",
            ),
            (
                "[[device]]\nmatch = \"00:05.0\"\nquirks = [\"44:3:1\"]",
                3,
                "\"44:3:1\": expected a quirk's size of 1, 2 or 4",
            ),
            (
                "[[device]]\nmatch = \"00:05.0\"\nquirks = [\"44:2:1\", \"45:1:1\"]",
                3,
                "\"45:1:1\": expected quirks of different registers",
            ),
            (
                "telemetry = \"bridge=b,metrics=0\"",
                1,
                "metrics=0: expected a TCP port from 1 to 65535, or off",
            ),
            (
                "msi = true\ntelemetry = \"bridge=b,address=10.0.0.9/24\"",
                2,
                "address=10.0.0.9/24 for all guests: each stub needs an address of its own, so say it below [[guest]]",
            ),
            (
                "telemetry = \"bridge=b,mac=00:16:3e:12:34:56\"",
                1,
                "mac=00:16:3e:12:34:56 for all guests: each stub needs",
            ),
            ("[[guest]]\nmatch = \"web\"", 1, "missing field `telemetry`"),
            ("[[bridge]]\naddress = \"00:1c.0\"", 1, "missing field `msi`"),
            ("msi = ", 1, ""),
            ("[[device]", 1, ""),
        ] {
            let error = parse(text).unwrap_err().to_string();
            let start = format!("the policy /etc/bulkhead/policy.toml is broken in line {line}, column ");
            assert!(error.starts_with(&start), "{text:?}: {error}");
            assert!(error.contains(&format!(": {cause}")), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let path = Path::new("/nonexistent/policy.toml");
        let error = Policy::read(Some(path)).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot read the policy /nonexistent/policy.toml"),
            "{error}"
        );
    }
}
