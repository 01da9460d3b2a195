//! Runs `xl`, Xen's own command.

use inject::Point;
use pci::bdf::Bdf;
use serde_json::Value;
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use thiserror::Error;

/// A failed run of `xl`.
#[derive(Debug, Error)]
pub enum XlError {
    /// `xl` cannot be run.
    #[error("cannot run xl: install Xen's tools (Debian: xen-utils)")]
    Missing(#[source] io::Error),
    /// `xl` failed.
    #[error("`{command}` failed: {message}")]
    Failed {
        /// The command.
        command: String,
        /// The last lines that it printed.
        message: String,
    },
    /// `xl` printed something unexpected.
    #[error("`{command}` printed no {expected}")]
    Output {
        /// The command.
        command: String,
        /// The output that was expected.
        expected: &'static str,
    },
}

/// Number of last lines of a failed run that are shown.
const LINES_SHOWN: usize = 6;

/// Runs `xl` with the given arguments and returns what it printed.
fn xl(arguments: &[&OsStr]) -> Result<String, XlError> {
    let mut command = Command::new("xl");
    // xl runs in a process group of its own: Ctrl-C ends this process between two runs, and no run halfway.
    command.args(arguments).stdin(Stdio::null()).process_group(0);
    let output = command.output().map_err(XlError::Missing)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stderr, output.stdout].concat();
    Err(XlError::Failed {
        command: shown(arguments),
        message: last_lines(&String::from_utf8_lossy(&said), &output.status.to_string()),
    })
}

fn shown(arguments: &[&OsStr]) -> String {
    let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
    format!("xl {}", words.join(" "))
}

fn last_lines(text: &str, otherwise: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    match lines.len() {
        0 => otherwise.to_owned(),
        count => lines[count.saturating_sub(LINES_SHOWN)..].join("; "),
    }
}

fn xl_json(arguments: &[&OsStr]) -> Result<Value, XlError> {
    let printed = xl(arguments)?;
    parse_json(&printed).ok_or_else(|| XlError::Output {
        command: shown(arguments),
        expected: "JSON",
    })
}

/// The JSON in a text that may begin with lines of another kind.
fn parse_json(text: &str) -> Option<Value> {
    let starts_json = |line: &str| line.starts_with('{') || line.starts_with('[');
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        // xl may print other lines, such as warnings, before the JSON.
        if starts_json(line) {
            return serde_json::from_str(&text[at..]).ok();
        }
        at += line.len();
    }
    None
}

/// What `xl info` says of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostInfo {
    /// Xen's capabilities for guests, such as `pv hvm pv_directio`.
    pub capabilities: Vec<String>,
    /// Xen's own command line.
    pub command_line: String,
    /// Type of dom0: `PV`, `PVH` or `HVM`; empty if its kernel does not say.
    pub dom0_type: String,
    /// Xen's version, such as `4.20.0`.
    pub version: String,
    /// The release of dom0's kernel, such as `6.12.43+deb13-amd64`.
    pub kernel: String,
}

/// File in which Linux says how it runs under Xen.
const GUEST_TYPE: &str = "/sys/hypervisor/guest_type";

impl HostInfo {
    fn parse(text: &str) -> Self {
        let value = |key: &str| {
            let pairs = text.lines().filter_map(|line| line.split_once(':'));
            let mut matching = pairs.filter(|(name, _)| name.trim() == key);
            matching
                .next()
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        Self {
            capabilities: value("virt_caps").split_whitespace().map(str::to_owned).collect(),
            command_line: value("xen_commandline"),
            dom0_type: String::new(),
            version: value("xen_version"),
            kernel: value("release"),
        }
    }
}

/// Asks Xen about the host.
pub fn info() -> Result<HostInfo, XlError> {
    let dom0_type = std::fs::read_to_string(GUEST_TYPE).unwrap_or_default();
    Ok(HostInfo {
        dom0_type: dom0_type.trim().to_owned(),
        ..HostInfo::parse(&xl(&["info".as_ref()])?)
    })
}

/// Xen's log, as far as it is kept: new messages overwrite the oldest ones.
pub fn messages() -> Result<String, XlError> {
    xl(&["dmesg".as_ref()])
}

/// The configuration that a file stands for, as xl understands it; nothing is created.
pub fn parse_config(file: &Path) -> Result<Value, XlError> {
    xl_json(&["create".as_ref(), "-n".as_ref(), "-q".as_ref(), file.as_os_str()])
}

/// The configuration of a domain that exists.
pub fn config_of(domain: &str) -> Result<Value, XlError> {
    xl_json(&["list", "-l", domain].map(OsStr::new))
}

/// Creates a domain, and leaves it paused if asked to. `overrides` are further lines of the file. Unless it is `watched`, no
/// process of xl's stays that carries out its `on_…` settings.
pub fn create(file: &Path, overrides: &[&str], paused: bool, watched: bool) -> Result<(), XlError> {
    let mut arguments: Vec<&OsStr> = ["create", "-q"].map(OsStr::new).to_vec();
    if !watched {
        arguments.push("-e".as_ref());
    }
    if paused {
        arguments.push("-p".as_ref());
    }
    arguments.push(file.as_os_str());
    arguments.extend(overrides.iter().map(OsStr::new));
    xl(&arguments)?;
    inject::point(Point::Created);
    Ok(())
}

/// Asks a domain to shut down.
pub fn shutdown(domain: &str) -> Result<(), XlError> {
    xl(&["shutdown", domain].map(OsStr::new)).map(drop)
}

/// Gives a domain a network interface, in the words of `vif=`.
pub fn network_attach(domain: &str, vif: &str) -> Result<(), XlError> {
    let words = ["network-attach", domain].into_iter().chain(vif.split(','));
    xl(&words.map(OsStr::new).collect::<Vec<_>>()).map(drop)
}

/// Destroys a domain.
pub fn destroy(domain: &str) -> Result<(), XlError> {
    xl(&["destroy", domain].map(OsStr::new)).map(drop)
}

/// Takes a device from its driver in dom0, and lets nothing but passthrough use it.
pub fn assignable_add(bdf: Bdf) -> Result<(), XlError> {
    xl(&["pci-assignable-add", &bdf.to_string()].map(OsStr::new)).map(drop)
}

/// Gives a device back to dom0, and to the driver that it was taken from if asked to.
pub fn assignable_remove(bdf: Bdf, to_driver: bool) -> Result<(), XlError> {
    let bdf = bdf.to_string();
    let arguments: &[&str] = if to_driver {
        &["pci-assignable-remove", "-r", &bdf]
    } else {
        &["pci-assignable-remove", &bdf]
    };
    xl(&arguments.iter().map(OsStr::new).collect::<Vec<_>>()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_capabilities_and_command_line_are_read() {
        let text = "host                   : dom0\nrelease                : 6.1.0-37-amd64\n\
                    xen_version            : 4.17.6-pre\nvirt_caps              : pv hvm hvm_directio pv_directio\n\
                    xen_commandline        : placeholder com1=115200,8n1 mmcfg=0\n";
        let info = HostInfo::parse(text);
        assert_eq!(info.capabilities, ["pv", "hvm", "hvm_directio", "pv_directio"]);
        assert_eq!(info.command_line, "placeholder com1=115200,8n1 mmcfg=0");
        assert_eq!(
            (info.version.as_str(), info.kernel.as_str()),
            ("4.17.6-pre", "6.1.0-37-amd64")
        );
        assert_eq!(HostInfo::parse("nothing of the kind"), HostInfo::default());
    }

    #[test]
    fn json_is_found_behind_what_xl_says_first() {
        let text = "Parsing config from web.cfg\n{\n  \"c_info\": {}\n}\n";
        assert_eq!(parse_json(text), Some(serde_json::json!({ "c_info": {} })));
        assert_eq!(parse_json("Parsing {config}\n"), None);
        assert_eq!(parse_json("{ \"half\":"), None);
    }

    #[test]
    fn of_a_failure_the_last_lines_are_told() {
        let text = (1..=9).map(|n| format!("line {n}\n\n")).collect::<String>();
        assert_eq!(
            last_lines(&text, ""),
            "line 4; line 5; line 6; line 7; line 8; line 9"
        );
        assert_eq!(last_lines("\n", "exit status: 1"), "exit status: 1");
    }
}
