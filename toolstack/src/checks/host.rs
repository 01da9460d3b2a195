//! Whether the host itself can keep a guest's device apart.

use super::Refusal;
use crate::xl::HostInfo;

/// What `extra_guest_irqs` is for a guest if Xen is not told otherwise.
const SPARE_PIRQS: u32 = 32;

/// Checks that the host can keep a device's DMA and configuration space apart.
pub fn check_host(host: &HostInfo) -> Result<(), Refusal> {
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
/// An early word to whoever types the command. The stub finds out for itself, by trying.
fn turns_mmcfg_off(option: &str) -> bool {
    const OFF: [&str; 5] = ["0", "no", "off", "false", "disable"];
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
    match name {
        "mmcfg" => value.split(',').any(|word| OFF.contains(&word)),
        "no-mmcfg" => value.is_empty(),
        _ => false,
    }
}

/// How many pirqs Xen has for a guest besides those of the lines: the first number of its option `extra_guest_irqs`.
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
