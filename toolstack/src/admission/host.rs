//! Checks that the host can isolate a guest's device.

use crate::host::xl::HostInfo;
use thiserror::Error;

/// Xen's default of `extra_guest_irqs` for a guest.
const SPARE_PIRQS: u32 = 32;

/// Why a host can give no device to any guest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}: {}", self.cause(), self.next_step())]
pub enum HostFault {
    /// Dom0 is of another type than PV, such as PVH.
    Dom0Kind(String),
    /// Xen runs with `xsm=silo`, which forbids two guests to share memory and events.
    Silo,
    /// Without an IOMMU a guest's DMA reaches all memory.
    NoIommu,
    /// Xen's protection of configuration space is off, by this option.
    EcamWritable(String),
}

impl HostFault {
    /// What is wrong.
    pub fn cause(&self) -> String {
        match self {
            Self::Dom0Kind(kind) => format!(
                "dom0 is of type {kind}, and Bulkhead needs a PV dom0, because another one cannot give away configuration \
                 pages, has no xen-pciback that prepares MSI-X, and has other numbers for interrupt lines"
            ),
            Self::Silo => "Xen was booted with xsm=silo, which keeps a guest and its stub from sharing memory and events".into(),
            Self::NoIommu => "this host has no IOMMU that Xen uses for PV guests (xl info: virt_caps has no pv_directio), \
                              so a device's DMA could reach all memory"
                .into(),
            Self::EcamWritable(option) => format!(
                "Xen was booted with {option}, so the stub's configuration page would be writable, past every check"
            ),
        }
    }

    /// What the administrator can do about it.
    pub fn next_step(&self) -> String {
        match self {
            Self::Dom0Kind(kind) => format!("boot Xen without dom0={}", kind.to_lowercase()),
            Self::Silo | Self::EcamWritable(_) => "boot Xen without that option".into(),
            Self::NoIommu => "turn on VT-d or AMD-Vi in the firmware, and boot Xen with iommu=1".into(),
        }
    }
}

/// Checks that the host can keep a device's DMA and configuration space apart.
pub fn check_host(host: &HostInfo) -> Result<(), HostFault> {
    host_faults(host).into_iter().next().map_or(Ok(()), Err)
}

/// All that keeps the host from giving devices to guests.
pub fn host_faults(host: &HostInfo) -> Vec<HostFault> {
    let is_pv = matches!(host.dom0_type.as_str(), "PV" | "");
    let uses_iommu = host
        .capabilities
        .iter()
        .any(|capability| capability == "pv_directio");
    let mut options = host.command_line.split_whitespace();
    let faults = [
        (!is_pv).then(|| HostFault::Dom0Kind(host.dom0_type.clone())),
        (option(host, "xsm=") == Some("silo")).then_some(HostFault::Silo),
        (!uses_iommu).then_some(HostFault::NoIommu),
        options
            .find(|option| turns_mmcfg_off(option))
            .map(|option| HostFault::EcamWritable(option.into())),
    ];
    faults.into_iter().flatten().collect()
}

/// True if Xen does not use memory-mapped configuration space after this option, and so does not protect it. Read as Xen
/// reads it (`parse_params` in `xen/common/kernel.c`, `parse_mmcfg` in `xen/arch/x86/x86_64/mmconfig-shared.c`): a list,
/// in which no word turns it on again.
///
/// This gives the administrator an early message. The stub finds out for itself, by trying.
fn turns_mmcfg_off(option: &str) -> bool {
    const OFF: [&str; 5] = ["0", "no", "off", "false", "disable"];
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
    match name {
        "mmcfg" => value.split(',').any(|word| OFF.contains(&word)),
        "no-mmcfg" => value.is_empty(),
        _ => false,
    }
}

/// What the administrator should know about the host, whatever device it is about.
pub fn host_notes(host: &HostInfo) -> Vec<String> {
    let flask = option(host, "xsm=") == Some("flask") || option(host, "flask=").is_some();
    let note = "Xen runs with a policy of its own (XSM FLASK): that must let dom0 give devices to guests and configuration \
                pages to stubs, and a guest and its stub share memory and events; `xl dmesg` shows what it refuses";
    flask.then(|| note.to_owned()).into_iter().collect()
}

/// The value of an option of Xen's; the last one counts.
fn option<'a>(host: &'a HostInfo, name: &str) -> Option<&'a str> {
    let options = host.command_line.split_whitespace();
    options.filter_map(|option| option.strip_prefix(name)).next_back()
}

/// Number of pirqs that Xen allows a guest besides those of INTx lines: the first number of its option
/// `extra_guest_irqs`.
pub fn spare_pirqs(host: &HostInfo) -> u32 {
    let mut options = host.command_line.split_whitespace();
    let numbers = options.find_map(|option| option.strip_prefix("extra_guest_irqs="));
    let first = numbers.and_then(|numbers| numbers.split(',').next()?.parse().ok());
    first.unwrap_or(SPARE_PIRQS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_an_iommu_or_with_writable_ecam_is_refused() {
        let host = |capabilities: &str, command_line: &str| HostInfo {
            capabilities: capabilities.split(' ').map(str::to_owned).collect(),
            command_line: command_line.into(),
            ..HostInfo::default()
        };
        assert!(check_host(&host("pv hvm pv_directio", "dom0_mem=1G")).is_ok());
        assert_eq!(
            check_host(&host("pv hvm hvm_directio", "")),
            Err(HostFault::NoIommu)
        );
        for option in [
            "mmcfg=0",
            "mmcfg=off",
            "no-mmcfg",
            "mmcfg=no,amd-fam10",
            "mmcfg=amd-fam10,disable",
            "mmcfg=yes,false,on",
        ] {
            let refusal = check_host(&host("pv_directio", &format!("a {option} b"))).unwrap_err();
            assert!(refusal.to_string().contains(option), "{refusal}");
            let later = format!("{option} mmcfg=on");
            assert!(check_host(&host("pv_directio", &later)).is_err(), "{later}");
        }
        for option in [
            "mmcfg",
            "mmcfg=",
            "mmcfg=on,amd-fam10",
            "mmcfg=offset",
            "no-mmcfg=1",
            "acpi=off",
        ] {
            assert!(check_host(&host("pv_directio", option)).is_ok(), "{option}");
        }
    }

    #[test]
    fn a_dom0_that_is_not_pv_and_guests_that_cannot_share_are_refused_by_name() {
        let host = |dom0: &str, command_line: &str| HostInfo {
            capabilities: vec!["pv_directio".into()],
            command_line: command_line.into(),
            dom0_type: dom0.into(),
            ..HostInfo::default()
        };
        assert!(check_host(&host("PV", "")).is_ok());
        assert!(
            check_host(&host("", "xsm=silo xsm=dummy")).is_ok(),
            "the last one counts"
        );
        let told = check_host(&host("PVH", "")).unwrap_err().to_string();
        assert!(
            told.starts_with("dom0 is of type PVH") && told.ends_with("without dom0=pvh"),
            "{told}"
        );
        let told = check_host(&host("PV", "loglvl=all xsm=silo"))
            .unwrap_err()
            .to_string();
        assert!(told.starts_with("Xen was booted with xsm=silo"), "{told}");
        for (options, notes) in [
            ("", 0),
            ("xsm=dummy", 0),
            ("xsm=flask", 1),
            ("flask=permissive", 1),
        ] {
            assert_eq!(host_notes(&host("PV", options)).len(), notes, "{options}");
        }
    }

    #[test]
    fn all_faults_of_a_host_are_told_each_with_the_next_step() {
        let host = HostInfo {
            command_line: "xsm=silo mmcfg=0".into(),
            dom0_type: "PVH".into(),
            ..HostInfo::default()
        };
        let told: Vec<_> = host_faults(&host).iter().map(HostFault::next_step).collect();
        let without = "boot Xen without that option";
        let iommu = "turn on VT-d or AMD-Vi in the firmware, and boot Xen with iommu=1";
        assert_eq!(told, ["boot Xen without dom0=pvh", without, iommu, without]);
    }

    #[test]
    fn the_spare_pirqs_of_a_guest_are_the_first_number_of_the_option() {
        for (option, spare) in [
            ("", 32),
            ("extra_guest_irqs=64", 64),
            ("extra_guest_irqs=,256", 32),
            ("a extra_guest_irqs=48,256 b", 48),
        ] {
            let host = HostInfo {
                command_line: option.into(),
                ..HostInfo::default()
            };
            assert_eq!(spare_pirqs(&host), spare, "{option}");
        }
    }
}
