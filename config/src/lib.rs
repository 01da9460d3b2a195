//! The configuration files that are installed with Bulkhead, and the syntax of device names and options.
//!
//! `stubdom.cfg` has two uses: a user gives it to `xl create`, and `bulkhead run` fills it in with [`stubdom`].
//! `guest.cfg` is an example of a guest, `guests.d-example.toml` one of a declaration. `policy.toml` is the policy file, and
//! `bulkhead.service` the systemd unit of the service.
#![forbid(unsafe_code)]

pub mod declaration;
pub mod mac;
pub mod name;
pub mod options;
pub mod policy;
pub mod telemetry;
mod toml_error;

use mac::Mac;
use std::fmt;
use telemetry::Telemetry;

pub use toml_error::Broken;

/// The stub's configuration, as it is installed.
pub const STUBDOM: &str = include_str!("../stubdom.cfg");
/// An example of a guest's configuration.
pub const GUEST: &str = include_str!("../guest.cfg");
/// An example of the policy file, with every line commented out.
pub const POLICY: &str = include_str!("../policy.toml");
/// An example of a declaration.
pub const DECLARATION: &str = include_str!("../guests.d-example.toml");
/// The systemd unit of the service.
pub const SERVICE_UNIT: &str = include_str!("../bulkhead.service");
/// Where the stub's image is installed.
pub const KERNEL: &str = "/usr/lib/bulkhead/bulkhead-stub";
/// Where the image of stubs with a network is installed.
pub const NET_KERNEL: &str = "/usr/lib/bulkhead/bulkhead-stub-net";
/// Longest command line of a stub, in bytes: Xen's `MAX_GUEST_CMDLINE` (xen/include/public/xen.h) is 1024, with a zero at
/// the end.
const LONGEST_COMMAND_LINE: usize = 1023;

/// Why a stub's configuration cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StubdomError {
    /// A text that cannot stand between quotes in an xl configuration file.
    Unquotable {
        /// The line.
        key: &'static str,
        /// The text.
        value: String,
    },
    /// A guest's name that leaves no room on the stub's command line.
    LongCommandLine {
        /// The guest.
        guest: String,
        /// Bytes of the command line.
        length: usize,
    },
}

impl fmt::Display for StubdomError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unquotable { key, value } => write!(
                f,
                "the {key} {value:?} cannot be written into an xl configuration file: choose one without quotes, \
                 backslashes and control characters"
            ),
            Self::LongCommandLine { guest, length } => write!(
                f,
                "the command line of the stub of guest {guest} would have {length} bytes, and {LONGEST_COMMAND_LINE} are \
                 the limit: give the guest a shorter name, or leave telemetry out"
            ),
        }
    }
}

impl std::error::Error for StubdomError {}

/// The network of one guest's stub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StubNetwork {
    /// What was asked for.
    pub telemetry: Telemetry,
    /// The stub's Ethernet address.
    pub mac: Mac,
    /// The guest, which the stub names in its metrics and its log.
    pub guest: String,
}

/// The stub's configuration with this name and image, and with a network if there is to be one.
///
/// # Errors
/// [`StubdomError`].
pub fn stubdom(name: &str, kernel: &str, network: Option<&StubNetwork>) -> Result<String, StubdomError> {
    let mut lines = vec![assignment("name", name)?, assignment("kernel", kernel)?];
    let mut last = String::new();
    if let Some(StubNetwork {
        telemetry,
        mac,
        guest,
    }) = network
    {
        let command_line = format!("{} {}", LOG_LEVEL, telemetry.words(guest));
        let length = command_line.len();
        if length > LONGEST_COMMAND_LINE {
            let guest = guest.clone();
            return Err(StubdomError::LongCommandLine { guest, length });
        }
        lines.push(assignment("extra", &command_line)?);
        lines.push(("memory", format!("memory = {NET_MEMORY_MIB}")));
        last = format!(
            "\n# The interface by which the stub serves its metrics and sends its log.\nvif = [ \"{}\" ]\n",
            telemetry.vif(*mac)
        );
    }
    let mut filled_in = String::with_capacity(STUBDOM.len() + name.len() + kernel.len());
    for line in STUBDOM.lines() {
        let assigned = line.split_once(" = ").map(|(key, _)| key);
        let ours = lines.iter().find(|(key, _)| assigned == Some(key));
        filled_in.push_str(ours.map_or(line, |(_, line)| line));
        filled_in.push('\n');
    }
    Ok(filled_in + &last)
}

/// What a stub logs to its console, as in stubdom.cfg.
const LOG_LEVEL: &str = "loglevel=info";
/// Memory of a stub with a network, in MiB. Its image is larger than the default one, and it has buffers for packets.
const NET_MEMORY_MIB: u32 = 6;

fn assignment(key: &'static str, value: &str) -> Result<(&'static str, String), StubdomError> {
    let sound = value.chars().all(|c| !c.is_control() && c != '"' && c != '\\');
    if sound {
        Ok((key, format!("{key} = \"{value}\"")))
    } else {
        let value = value.to_owned();
        Err(StubdomError::Unquotable { key, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The assignments of a file, without comments.
    fn assignments(config: &str) -> Vec<&str> {
        config
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect()
    }

    #[test]
    fn the_installed_file_boots_the_installed_image_in_4_mib() {
        let lines = assignments(STUBDOM);
        for line in [
            "type = \"pv\"",
            "memory = 4",
            "vcpus = 1",
            &format!("kernel = \"{KERNEL}\""),
        ] {
            assert!(lines.contains(&line), "{line}");
        }
    }

    #[test]
    fn filling_in_changes_the_name_and_the_image_and_nothing_else() {
        let filled_in = stubdom("web-bulkhead", "/tmp/stub", None).unwrap();
        let (before, after) = (assignments(STUBDOM), assignments(&filled_in));
        let changed: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
        assert_eq!(changed, [&"name = \"web-bulkhead\"", &"kernel = \"/tmp/stub\""]);
        assert_eq!(before.len(), after.len());
        assert_eq!(stubdom("bulkhead-stub", KERNEL, None).unwrap(), STUBDOM);
    }

    fn network(guest: &str) -> StubNetwork {
        let telemetry: Telemetry = "bridge=xenbr0,backend=sys-net,syslog=10.0.0.5:514"
            .parse()
            .unwrap();
        StubNetwork {
            telemetry,
            mac: "00:16:3e:12:34:56".parse().unwrap(),
            guest: guest.into(),
        }
    }

    #[test]
    fn a_stub_with_a_network_has_an_interface_more_memory_and_its_settings_on_its_command_line() {
        let filled_in = stubdom("web-bulkhead", NET_KERNEL, Some(&network("web"))).unwrap();
        let (before, after) = (assignments(STUBDOM), assignments(&filled_in));
        let changed: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
        assert_eq!(
            changed,
            [
                &"name = \"web-bulkhead\"",
                &"kernel = \"/usr/lib/bulkhead/bulkhead-stub-net\"",
                &"memory = 6",
                &"extra = \"loglevel=info guest=web ip=dhcp metrics=9743 syslog=10.0.0.5:514\"",
                &"vif = [ \"mac=00:16:3e:12:34:56,bridge=xenbr0,backend=sys-net\" ]",
            ]
        );
        assert_eq!(before.len() + 1, after.len());
        assert!(STUBDOM.contains(&format!("\nextra = \"{LOG_LEVEL}\"\n")));
    }

    #[test]
    fn a_guest_whose_name_leaves_no_room_on_the_command_line_is_refused() {
        let error = |guest: &str| stubdom("s", NET_KERNEL, Some(&network(guest))).err();
        let rest = "loglevel=info guest= ip=dhcp metrics=9743 syslog=10.0.0.5:514".len();
        assert_eq!(error(&"a".repeat(1023 - rest)), None);
        let told = error(&"a".repeat(1024 - rest)).unwrap().to_string();
        assert!(
            told.contains("would have 1024 bytes, and 1023 are the limit"),
            "{told}"
        );
    }

    #[test]
    fn a_name_that_would_end_the_line_is_refused() {
        for name in ["a\"b", "a\\b", "a\nmemory = 9"] {
            let error = stubdom(name, KERNEL, None).unwrap_err();
            assert!(error.to_string().starts_with("the name "), "{error}");
        }
    }

    #[test]
    fn the_example_guest_has_what_passthrough_needs_and_no_devices_of_its_own() {
        let lines = assignments(GUEST);
        for line in ["type = \"pv\"", "e820_host = 1", "passthrough = \"enabled\""] {
            assert!(lines.contains(&line), "{line}");
        }
        assert!(!lines.iter().any(|line| line.starts_with("pci")));
    }

    #[test]
    fn every_assignment_says_why_it_is_there() {
        let lines: Vec<_> = STUBDOM.lines().collect();
        for (index, line) in lines
            .iter()
            .enumerate()
            .filter(|(_, line)| line.contains(" = ") && !line.starts_with('#'))
        {
            let above = lines[..index]
                .iter()
                .rev()
                .find(|line| !line.contains(" = ") || line.starts_with('#'));
            assert!(above.is_some_and(|line| line.starts_with("# ")), "{line}");
        }
    }

    #[test]
    fn the_unit_starts_the_service() {
        assert!(SERVICE_UNIT.contains("\nExecStart=/usr/bin/bulkhead serve --supervised\n"));
    }
}
