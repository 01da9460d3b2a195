//! Decides the terms of a device from the command line, the policy file and Linux.

use crate::host::device_names::{self, NameError};
use crate::host::sysfs::{Sysfs, SysfsError};
use crate::terms::{Msi, Terms};
use bulkhead_config::name::Name;
use bulkhead_config::options::{Options, Wanted};
use bulkhead_config::policy::{self, Policy, PolicyError};
use pci::bdf::Bdf;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Options of a command that concern all its devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// The policy file, if not the installed one.
    pub file: Option<PathBuf>,
    /// `--no-msi`: no device gets MSI.
    pub no_msi: bool,
    /// `--no-msi-below`: no device below these bridges gets MSI.
    pub no_msi_below: Vec<Name>,
    /// The terms on which a guest had the devices, in their order, as they were recorded. If there are any, nothing else
    /// is asked.
    pub recorded: Vec<Terms>,
}

/// Why there are no terms.
#[derive(Debug, Error)]
pub enum TermsError {
    /// The file.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A device or bridge of the command line.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A bridge that is above none of the devices.
    #[error("--no-msi-below {bridge}: none of the devices is below it; `lspci -tD` shows what is")]
    NothingBelow {
        /// The bridge.
        bridge: Bdf,
    },
    /// The number of recorded terms is not that of the devices.
    #[error("{terms} recorded terms for {devices} devices: each needs its own")]
    Recorded {
        /// Number of terms.
        terms: usize,
        /// Number of devices.
        devices: usize,
    },
    /// sysfs cannot be read.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
}

/// A bridge of the policy file that this host does not have. Its rule has no effect.
#[derive(Debug, Error)]
#[error("{file} speaks of bridge {name}, but {cause}")]
pub struct NoBridge {
    file: String,
    name: Name,
    cause: NameError,
}

/// The devices that are wanted, each with its terms, in the same order; and what of the policy has no effect.
#[derive(Debug)]
pub struct Decided {
    /// The devices.
    pub devices: Vec<(Bdf, Terms)>,
    /// For the administrator.
    pub notices: Vec<NoBridge>,
}

/// Decides on what terms a guest gets the devices that are wanted.
///
/// # Errors
/// A name that means no device, a policy that cannot be read, a bridge above none of the devices.
pub fn decide(wanted: &[Wanted], choices: &Choices, sysfs: &Sysfs) -> Result<Decided, TermsError> {
    // The guest gets its devices again on the terms that it had, whatever the file says by now.
    if !choices.recorded.is_empty() {
        return recorded(wanted, &choices.recorded, sysfs);
    }
    // A file that cannot be understood gives no device to anyone: half a policy may lack the line that matters.
    let policy = Policy::read(choices.file.as_deref())?;
    let file = label(choices.file.as_deref());
    let no_msi_below: Vec<Bdf> = choices
        .no_msi_below
        .iter()
        .map(|name| device_names::resolve(name, sysfs))
        .collect::<Result<_, _>>()?;
    let mut notices = Vec::new();
    let mut file_bridges = Vec::new();
    for bridge in &policy.bridges {
        match device_names::resolve(&bridge.address, sysfs) {
            Ok(bdf) => file_bridges.push((bdf, bridge.msi)),
            Err(cause) => notices.push(NoBridge {
                file: file.clone(),
                name: bridge.address.clone(),
                cause,
            }),
        }
    }
    let mut unused = no_msi_below.clone();
    let mut devices = Vec::new();
    for Wanted { name, options } in wanted {
        let bdf = device_names::resolve(name, sysfs)?;
        let above = sysfs.bridges_above(bdf)?;
        // A bridge of the command line that is above no device is a mistake of the user's.
        unused.retain(|bridge| !above.contains(bridge));
        // The last of two entries counts, and the nearest of two bridges.
        let entries = || {
            let matching = |entry: &&policy::Device| device_names::means(&entry.name, bdf, sysfs);
            policy.devices.iter().rev().filter(matching)
        };
        let entry_of = |bridge: &Bdf| file_bridges.iter().rev().find(|(other, _)| other == bridge);
        let sources = MsiSources {
            option: options.msi,
            command_below: above.iter().copied().find(|bridge| no_msi_below.contains(bridge)),
            command: choices.no_msi,
            file_device: entries().find_map(|entry| Some((entry.options.msi?, &entry.name))),
            file_bridge: above.iter().find_map(entry_of).copied(),
            linux: above.iter().copied().find(|&bridge| !sysfs.msi_below(bridge)),
            file: policy.msi,
        };
        // An option that is set stays: the command line comes first, then the file's entries from the last to the
        // first.
        let options = entries().fold(options.clone(), |options, entry| {
            options.or(entry.options.clone())
        });
        devices.push((bdf, terms(options, sources.msi(&file))));
    }
    match unused.first() {
        Some(&bridge) => Err(TermsError::NothingBelow { bridge }),
        None => Ok(Decided { devices, notices }),
    }
}

/// The devices on the terms that a guest had them on.
fn recorded(wanted: &[Wanted], terms: &[Terms], sysfs: &Sysfs) -> Result<Decided, TermsError> {
    if terms.len() != wanted.len() {
        return Err(TermsError::Recorded {
            terms: terms.len(),
            devices: wanted.len(),
        });
    }
    let named = wanted.iter().zip(terms).map(|(Wanted { name, .. }, terms)| {
        let bdf = device_names::resolve(name, sysfs)?;
        Ok((bdf, terms.clone()))
    });
    Ok(Decided {
        devices: named.collect::<Result<_, TermsError>>()?,
        notices: Vec::new(),
    })
}

/// The name of the policy file in a rule's text.
fn label(file: Option<&Path>) -> String {
    let path = file.unwrap_or(Path::new(policy::PATH));
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

fn terms(options: Options, msi: Msi) -> Terms {
    Terms {
        permissive: options.permissive.unwrap_or_default(),
        quirks: options.quirks.unwrap_or_default(),
        msi,
        share_intx: options.share_intx,
        aer: options.aer.unwrap_or_default(),
    }
}

/// What decides whether a device gets MSI, in order of precedence: command line over policy file, device over bridge
/// over all devices. Linux's `msi_bus` of a bridge comes after the file's bridges, and before the file's rule for all
/// devices.
#[derive(Clone, Debug, Default)]
struct MsiSources<'a> {
    /// `msi=` of the device on the command line.
    option: Option<bool>,
    /// A bridge above it that `--no-msi-below` names.
    command_below: Option<Bdf>,
    /// `--no-msi`.
    command: bool,
    /// The file's last word on the device, and the name that it is under.
    file_device: Option<(bool, &'a Name)>,
    /// The file's word on the nearest bridge above.
    file_bridge: Option<(Bdf, bool)>,
    /// A bridge above it below which Linux has turned MSI off.
    linux: Option<Bdf>,
    /// The file's word on all devices.
    file: Option<bool>,
}

impl MsiSources<'_> {
    /// The decision. An `Off` names its rule.
    fn msi(&self, file: &str) -> Msi {
        let rules = [
            self.option.map(|on| (on, "command line, msi=0".into())),
            self.command_below
                .map(|bridge| (false, format!("command line, --no-msi-below {bridge}"))),
            self.command.then(|| (false, "command line, --no-msi".into())),
            self.file_device
                .map(|(on, name)| (on, format!("{file}, device {name}"))),
            self.file_bridge
                .map(|(bridge, on)| (on, format!("{file}, bridge {bridge}"))),
            self.linux
                .map(|bridge| (false, format!("Linux, msi_bus of bridge {bridge}"))),
            self.file.map(|on| (on, format!("{file}, all devices"))),
        ];
        match rules.into_iter().flatten().next() {
            Some((false, rule)) => Msi::Off(rule),
            _ => Msi::On,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::device_names::tests::host;
    use std::fs;

    /// The card behind a bridge.
    const CARD: &str = "0000:02:00.0";
    /// Two bridges up.
    const DISK: &str = "0000:03:1f.7";

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_in_this_order_that_says_anything_decides() {
        let name: Name = "8086:10d3".parse().unwrap();
        let bridge = bdf("00:1c.0");
        // Each row alone turns MSI off; with all stronger ones silent it wins over all weaker ones.
        let rows: [(MsiSources<'_>, &str); 7] = [
            (
                MsiSources {
                    option: Some(false),
                    ..MsiSources::default()
                },
                "command line, msi=0",
            ),
            (
                MsiSources {
                    command_below: Some(bridge),
                    ..MsiSources::default()
                },
                "command line, --no-msi-below 0000:00:1c.0",
            ),
            (
                MsiSources {
                    command: true,
                    ..MsiSources::default()
                },
                "command line, --no-msi",
            ),
            (
                MsiSources {
                    file_device: Some((false, &name)),
                    ..MsiSources::default()
                },
                "policy.toml, device 8086:10d3",
            ),
            (
                MsiSources {
                    file_bridge: Some((bridge, false)),
                    ..MsiSources::default()
                },
                "policy.toml, bridge 0000:00:1c.0",
            ),
            (
                MsiSources {
                    linux: Some(bridge),
                    ..MsiSources::default()
                },
                "Linux, msi_bus of bridge 0000:00:1c.0",
            ),
            (
                MsiSources {
                    file: Some(false),
                    ..MsiSources::default()
                },
                "policy.toml, all devices",
            ),
        ];
        assert_eq!(MsiSources::default().msi("policy.toml"), Msi::On);
        let stronger = |a: &MsiSources<'_>, b: &MsiSources<'_>| MsiSources {
            option: a.option.or(b.option),
            command_below: a.command_below.or(b.command_below),
            command: a.command || b.command,
            file_device: [a.file_device, b.file_device][usize::from(a.file_device.is_none())]
                .map(|(on, _)| (on, &name)),
            file_bridge: a.file_bridge.or(b.file_bridge),
            linux: a.linux.or(b.linux),
            file: a.file.or(b.file),
        };
        for (index, (said, rule)) in rows.iter().enumerate() {
            for (weaker, _) in &rows[index..] {
                assert_eq!(
                    stronger(said, weaker).msi("policy.toml"),
                    Msi::Off((*rule).into())
                );
            }
        }
        // What can say on, wins over the weaker ones that say off.
        let off: Vec<&MsiSources<'_>> = rows.iter().map(|(sources, _)| sources).collect();
        for (index, on) in [
            (
                0,
                MsiSources {
                    option: Some(true),
                    ..MsiSources::default()
                },
            ),
            (
                3,
                MsiSources {
                    file_device: Some((true, &name)),
                    ..MsiSources::default()
                },
            ),
            (
                4,
                MsiSources {
                    file_bridge: Some((bridge, true)),
                    ..MsiSources::default()
                },
            ),
        ] {
            for (other, said) in off.iter().enumerate().filter(|(other, _)| *other != index) {
                let msi = stronger(&on, said).msi("policy.toml");
                assert_eq!(msi.is_on(), other > index, "{index} {other}");
            }
        }
        let all_on = MsiSources {
            file: Some(true),
            ..rows[5].0.clone()
        };
        assert!(
            !all_on.msi("policy.toml").is_on(),
            "Linux's word on a bridge is more than one on all"
        );
    }

    fn decided(wanted: &[&str], choices: &Choices, policy: &str) -> Result<Vec<String>, String> {
        let tree = host();
        let file = tree.directory.path().join("policy.toml");
        fs::write(&file, policy).unwrap();
        let choices = Choices {
            file: Some(file),
            ..choices.clone()
        };
        let wanted: Vec<Wanted> = wanted.iter().map(|text| text.parse().unwrap()).collect();
        match decide(&wanted, &choices, &tree.sysfs()) {
            Ok(decided) => {
                let devices = decided
                    .devices
                    .iter()
                    .map(|(bdf, terms)| format!("{bdf}: {terms}"));
                Ok(devices
                    .chain(decided.notices.iter().map(NoBridge::to_string))
                    .collect())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_device_gets_what_is_said_of_it_and_of_the_bridges_above_it() {
        let bridge = "[[bridge]]\naddress = \"00:1c.0\"\nmsi = false\n";
        let nearer = "[[bridge]]\naddress = \"00:1c.0/01.0\"\nmsi = true\n";
        let usual = Choices::default();
        for (wanted, policy, expected) in [
            (CARD, "", "0000:02:00.0: "),
            ("00:05.0", bridge, "0000:00:05.0: "),
            (
                CARD,
                bridge,
                "0000:02:00.0: MSI off: policy.toml, bridge 0000:00:1c.0",
            ),
            (
                DISK,
                bridge,
                "0000:03:1f.7: MSI off: policy.toml, bridge 0000:00:1c.0",
            ),
            (DISK, &[bridge, nearer].concat(), "0000:03:1f.7: "),
            (
                DISK,
                "msi = false",
                "0000:03:1f.7: MSI off: policy.toml, all devices",
            ),
            ("1b36:0010,msi=1", "msi = false", "0000:03:1f.7: "),
            (
                "00:1c.0/00.0,msi=0",
                "",
                "0000:02:00.0: MSI off: command line, msi=0",
            ),
        ] {
            assert_eq!(
                decided(&[wanted], &usual, policy).unwrap(),
                [expected],
                "{policy}"
            );
        }
        let below = Choices {
            no_msi_below: vec!["00:1c.0".parse().unwrap()],
            ..Choices::default()
        };
        assert_eq!(
            decided(&[CARD, "00:05.0"], &below, "").unwrap(),
            [
                "0000:02:00.0: MSI off: command line, --no-msi-below 0000:00:1c.0",
                "0000:00:05.0: "
            ]
        );
        let none = Choices {
            no_msi: true,
            ..Choices::default()
        };
        assert_eq!(
            decided(&[CARD], &none, "").unwrap(),
            ["0000:02:00.0: MSI off: command line, --no-msi"]
        );
    }

    #[test]
    fn the_command_line_wins_over_the_file_option_by_option_and_the_last_entry_over_the_first() {
        let policy = "[[device]]\nmatch = \"8086:10d3\"\npermissive = true\nquirks = [\"44:2:ff\"]\naer = \"detach\"\n\
                      [[device]]\nmatch = \"00:05.0\"\naer = \"destroy\"\n\
                      [[device]]\nmatch = \"00:06.0\"\nmsi = false\n";
        assert_eq!(
            decided(
                &["00:05.0,quirk=60:1:1,permissive=0", CARD],
                &Choices::default(),
                policy
            )
            .unwrap(),
            [
                "0000:00:05.0: quirks 60:1:1; after an error: destroy",
                "0000:02:00.0: permissive; quirks 44:2:ff; after an error: detach"
            ]
        );
    }

    #[test]
    fn recorded_terms_are_the_terms_whatever_the_file_and_linux_say_by_now() {
        let below = Terms {
            msi: Msi::Off("command line, --no-msi-below 0000:00:1c.0".into()),
            ..Terms::default()
        };
        let choices = |recorded: &[&Terms]| Choices {
            recorded: recorded.iter().map(|&terms| terms.clone()).collect(),
            ..Choices::default()
        };
        let usual = Terms::default();
        let all = "msi = false\n[[device]]\nmatch = \"8086:10d3\"\npermissive = true\nquirks = [\"44:2:ff\"]\n\
                   share-intx = true\naer = \"destroy\"\n[[bridge]]\naddress = \"00:1c.0\"\nmsi = true\n";
        for policy in [all, "broken"] {
            assert_eq!(
                decided(&["00:05.0", CARD], &choices(&[&usual, &below]), policy).unwrap(),
                [
                    "0000:00:05.0: ",
                    "0000:02:00.0: MSI off: command line, --no-msi-below 0000:00:1c.0"
                ]
            );
        }
        assert_eq!(
            decided(&["00:05.0", CARD], &choices(&[&usual]), "").unwrap_err(),
            "1 recorded terms for 2 devices: each needs its own"
        );
    }

    #[test]
    fn what_linux_says_of_a_bridge_is_honoured() {
        let tree = host();
        tree.add("0000:00:1c.0", &[("msi_bus", b"0\n")]);
        let wanted = [DISK.parse().unwrap()];
        let file = tree.directory.path().join("none.toml");
        fs::write(&file, "").unwrap();
        let choices = Choices {
            file: Some(file),
            ..Choices::default()
        };
        let decided = decide(&wanted, &choices, &tree.sysfs()).unwrap();
        assert_eq!(
            decided.devices[0].1.to_string(),
            "MSI off: Linux, msi_bus of bridge 0000:00:1c.0"
        );
    }

    #[test]
    fn a_bridge_of_no_effect_is_refused_on_the_command_line_and_told_of_the_file() {
        let below = |name: &str| Choices {
            no_msi_below: vec![name.parse().unwrap()],
            ..Choices::default()
        };
        let error = decided(&["00:05.0"], &below("00:1c.0"), "").unwrap_err();
        assert!(
            error.starts_with("--no-msi-below 0000:00:1c.0: none of the devices is below it"),
            "{error}"
        );
        let error = decided(&["00:05.0"], &below("00:1d.0"), "").unwrap_err();
        assert!(
            error.starts_with("there is no PCI device 0000:00:1d.0"),
            "{error}"
        );
        let policy = "[[bridge]]\naddress = \"00:1d.0\"\nmsi = false";
        let told = decided(&["00:05.0"], &Choices::default(), policy).unwrap();
        assert!(
            told[1].starts_with("policy.toml speaks of bridge 0000:00:1d.0, but there is no PCI device"),
            "{told:?}"
        );
    }
}
