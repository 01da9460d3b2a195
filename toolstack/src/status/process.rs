//! What a process holds, by its directory in `/proc`: privileges, pages of other domains, event channels, files.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::{fs, io};

/// The names of the capabilities, by number (`include/uapi/linux/capability.h`).
const CAPABILITIES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];
const GRANTS: &str = "/dev/xen/gntdev";
const EVENT_CHANNELS: &str = "/dev/xen/evtchn";

/// What a process holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProcessStats {
    /// Its process id.
    pub pid: u32,
    /// Its capabilities, such as `sys_admin`.
    pub capabilities: Vec<String>,
    /// True if no program that it runs can have more privileges.
    pub no_new_privileges: bool,
    /// True if its system calls are filtered.
    pub filtered: bool,
    /// Pages of stubs that are mapped.
    pub pages: usize,
    /// Open connections of event channels to stubs.
    pub event_channels: usize,
    /// Pirqs of guests for MSI and MSI-X that it keeps account of.
    pub pirqs: usize,
    /// Configuration spaces that are open: how often, by device.
    pub devices: BTreeMap<String, usize>,
}

impl ProcessStats {
    /// Reads about a process from its directory in `/proc`. `pirqs` stays 0, for the kernel does not know them.
    pub fn read(process: &Path) -> io::Result<Self> {
        let status = fs::read_to_string(process.join("status"))?;
        let field = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        let capabilities = u64::from_str_radix(&field("CapEff"), 16).map_err(io::Error::other)?;
        let named = CAPABILITIES.iter().enumerate();
        let named = named.filter(|(number, _)| capabilities >> number & 1 != 0);
        let mut stats = Self {
            pid: field("Pid").parse().map_err(io::Error::other)?,
            capabilities: named.map(|(_, name)| (*name).to_owned()).collect(),
            no_new_privileges: field("NoNewPrivs") == "1",
            filtered: field("Seccomp") == "2",
            ..Self::default()
        };
        // Each mapping of a grant is a line of its own.
        let maps = fs::read_to_string(process.join("maps"))?;
        stats.pages = maps.lines().filter(|line| line.ends_with(GRANTS)).count();
        for file in fs::read_dir(process.join("fd"))? {
            // A file may be closed meanwhile.
            if let Ok(target) = fs::read_link(file?.path()) {
                stats.count(&target);
            }
        }
        Ok(stats)
    }

    fn count(&mut self, file: &Path) {
        if file == Path::new(EVENT_CHANNELS) {
            self.event_channels += 1;
        // sysfs: `/sys/devices/…/0000:03:00.0/config`.
        } else if file.file_name().is_some_and(|name| name == "config")
            && let Some(device) = file.parent().and_then(Path::file_name)
        {
            *self
                .devices
                .entry(device.to_string_lossy().into_owned())
                .or_default() += 1;
        }
    }
}

impl fmt::Display for ProcessStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let capabilities = match self.capabilities.len() {
            0 => "none".to_owned(),
            count if count == CAPABILITIES.len() => "ALL".to_owned(),
            _ => self.capabilities.join(", "),
        };
        let calls = if self.filtered { "filtered" } else { "NOT filtered" };
        write!(
            f,
            "process {}, capabilities: {capabilities}, system calls {calls}; it holds {} pages of stubs, {} event channels, \
             {} pirqs, configuration spaces open: {}",
            self.pid,
            self.pages,
            self.event_channels,
            self.pirqs,
            self.devices.values().sum::<usize>()
        )?;
        for (index, (device, count)) in self.devices.iter().enumerate() {
            let before = if index == 0 { " (" } else { ", " };
            write!(f, "{before}{device}: {count}")?;
        }
        f.write_str(if self.devices.is_empty() { "" } else { ")" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_a_process_holds_is_told_by_its_directory() {
        let process = tempfile::tempdir().unwrap();
        let status = "Name:\tbulkhead\nPid:\t77\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000000200000\n\
                      NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";
        let maps = "7f00-7f01 rw-s 00000000 00:05 101 /dev/xen/gntdev\n7f01-7f02 r-xp 00000000 08:01 7 /lib/libc.so.6\n";
        fs::write(process.path().join("status"), status).unwrap();
        fs::write(process.path().join("maps"), maps).unwrap();
        let files = process.path().join("fd");
        fs::create_dir(&files).unwrap();
        let device = "/sys/devices/pci0000:00/0000:00:05.0";
        let targets = [
            "socket:[1234]",
            "/dev/xen/evtchn",
            &format!("{device}/config"),
            &format!("{device}/config"),
        ];
        for (number, target) in targets.iter().enumerate() {
            symlink(target, files.join(number.to_string())).unwrap();
        }
        let stats = ProcessStats::read(process.path()).unwrap();
        let expected = ProcessStats {
            pid: 77,
            capabilities: vec!["sys_admin".into()],
            no_new_privileges: true,
            filtered: true,
            pages: 1,
            event_channels: 1,
            pirqs: 0,
            devices: [("0000:00:05.0".to_owned(), 2)].into(),
        };
        assert_eq!(stats, expected);
        assert_eq!(
            stats.to_string(),
            "process 77, capabilities: sys_admin, system calls filtered; it holds 1 pages of stubs, 1 event channels, \
             0 pirqs, configuration spaces open: 2 (0000:00:05.0: 2)"
        );
    }

    #[test]
    fn this_process_can_be_asked_about() {
        let stats = ProcessStats::read(Path::new("/proc/self")).unwrap();
        assert_eq!(stats.pid, std::process::id());
    }
}
