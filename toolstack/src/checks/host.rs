//! Whether the host itself can keep a guest's device apart.

use super::Refusal;
use crate::xl::HostInfo;

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
}
