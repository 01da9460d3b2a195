//! The configuration files that are installed with Bulkhead, and the syntax of device names and options.
//!
//! `stubdom.cfg` has two uses: a user gives it to `xl create`, and `bulkhead run` fills it in with [`stubdom`].
//! `guest.cfg` is an example of a guest, `guests.d-example.toml` one of a declaration. `policy.toml` is the policy file, and
//! `bulkhead.service` the systemd unit of the service.
#![forbid(unsafe_code)]

pub mod declaration;
pub mod name;
pub mod options;
pub mod policy;
mod toml_error;

use std::fmt;

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

/// A text that cannot stand between quotes in an xl configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unquotable {
    key: &'static str,
    value: String,
}

impl fmt::Display for Unquotable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the {} {:?} cannot be written into an xl configuration file: choose one without quotes, backslashes \
             and control characters",
            self.key, self.value
        )
    }
}

impl std::error::Error for Unquotable {}

/// The stub's configuration with this name and image.
///
/// # Errors
/// [`Unquotable`] if either holds a quote, a backslash or a control character.
pub fn stubdom(name: &str, kernel: &str) -> Result<String, Unquotable> {
    let lines = [assignment("name", name)?, assignment("kernel", kernel)?];
    let mut filled_in = String::with_capacity(STUBDOM.len() + name.len() + kernel.len());
    for line in STUBDOM.lines() {
        let assigned = line.split_once(" = ").map(|(key, _)| key);
        let ours = lines.iter().find(|(key, _)| assigned == Some(key));
        filled_in.push_str(ours.map_or(line, |(_, line)| line));
        filled_in.push('\n');
    }
    Ok(filled_in)
}

fn assignment(key: &'static str, value: &str) -> Result<(&'static str, String), Unquotable> {
    let sound = value.chars().all(|c| !c.is_control() && c != '"' && c != '\\');
    if sound {
        Ok((key, format!("{key} = \"{value}\"")))
    } else {
        let value = value.to_owned();
        Err(Unquotable { key, value })
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
        let filled_in = stubdom("web-bulkhead", "/tmp/stub").unwrap();
        let (before, after) = (assignments(STUBDOM), assignments(&filled_in));
        let changed: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
        assert_eq!(changed, [&"name = \"web-bulkhead\"", &"kernel = \"/tmp/stub\""]);
        assert_eq!(before.len(), after.len());
        assert_eq!(stubdom("bulkhead-stub", KERNEL).unwrap(), STUBDOM);
    }

    #[test]
    fn a_name_that_would_end_the_line_is_refused() {
        for name in ["a\"b", "a\\b", "a\nmemory = 9"] {
            let error = stubdom(name, KERNEL).unwrap_err();
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
