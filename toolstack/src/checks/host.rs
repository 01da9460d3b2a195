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
    const OFF: [&str; 6] = [
        "mmcfg=0",
        "mmcfg=off",
        "mmcfg=no",
        "mmcfg=false",
        "mmcfg=disable",
        "no-mmcfg",
    ];
    let mut options = host.command_line.split_whitespace();
    match options.find(|option| OFF.contains(option)) {
        Some(option) => Err(Refusal::EcamWritable {
            option: option.into(),
        }),
        None => Ok(()),
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
        for option in ["mmcfg=0", "mmcfg=off", "no-mmcfg"] {
            let refusal = check_host(&host("pv_directio", &format!("a {option} b"))).unwrap_err();
            assert!(refusal.to_string().contains(option), "{refusal}");
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
