//! Checks that the host can isolate a guest's device.

use super::refusal::Refusal;
use crate::host::xl::HostInfo;

/// Xen's default of `extra_guest_irqs` for a guest.
const SPARE_PIRQS: u32 = 32;

/// Checks that the host can keep a device's DMA and configuration space apart.
pub fn check_host(host: &HostInfo) -> Result<(), Refusal> {
    if !matches!(host.dom0_type.as_str(), "PV" | "") {
        let kind = host.dom0_type.clone();
        return Err(Refusal::Dom0Kind { kind });
    }
    // The policy silo lets a guest share memory and events with dom0 alone.
    if option(host, "xsm=") == Some("silo") {
        return Err(Refusal::Silo);
    }
    if !host
        .capabilities
        .iter()
        .any(|capability| capability == "pv_directio")
    {
        return Err(Refusal::NoIommu);
    }
    let mut options = host.command_line.split_whitespace();
    match options.find(|option| turns_mmcfg_off(option)) {
        Some(option) => Err(Refusal::EcamWritable {
            option: option.into(),
        }),
        None => Ok(()),
    }
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
        assert!(matches!(
            check_host(&host("pv hvm hvm_directio", "")),
            Err(Refusal::NoIommu)
        ));
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
