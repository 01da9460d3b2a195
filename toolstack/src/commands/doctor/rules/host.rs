//! What Xen says of the host.

use super::super::facts::Facts;
use super::super::finding::{Finding, or_ok};
use super::super::known::{
    Concerns, FaultPresence, KnownFault, LINUX, TESTED_LINUX, TESTED_SOURCE, TESTED_XEN, Vendor, XEN,
};
use super::super::version::Version;
use crate::admission::{HostFault, host_faults, host_notes};
use crate::host::xl::HostInfo;

/// What keeps the host from giving devices away, of this kind: the findings of `check`, `run` and `attach`.
fn refused(check: &'static str, info: &HostInfo, is_of: impl Fn(&HostFault) -> bool) -> Vec<Finding> {
    let faults = host_faults(info).into_iter().filter(is_of);
    faults
        .map(|fault| Finding::problem(check, fault.cause(), fault.next_step()))
        .collect()
}

pub fn dom0(info: &HostInfo, _: &Facts) -> Vec<Finding> {
    let findings = refused("dom0", info, |fault| matches!(fault, HostFault::Dom0Kind(_)));
    or_ok(findings, "dom0", "a PV domain")
}

pub fn iommu(info: &HostInfo, facts: &Facts) -> Vec<Finding> {
    let findings = refused("iommu", info, |fault| matches!(fault, HostFault::NoIommu));
    if !findings.is_empty() {
        return findings;
    }
    let iommu = match facts.vendor {
        Some(Vendor::Intel) => Finding::ok("iommu", "Xen uses VT-d for PV guests"),
        Some(Vendor::Amd) => Finding::ok("iommu", "Xen uses AMD-Vi for PV guests"),
        None => Finding::note(
            "iommu",
            "Xen uses an IOMMU, and the firmware has no table DMAR or IVRS that dom0 can read: memory that is reserved for \
             a device is not known",
            "`xl dmesg` shows what Xen knows of reserved memory (RMRR)",
        ),
    };
    vec![iommu, interrupt_remapping(facts)]
}

fn interrupt_remapping(facts: &Facts) -> Finding {
    let check = "interrupt-remapping";
    let messages = facts.messages.as_deref().unwrap_or_default().to_ascii_lowercase();
    // Xen says it for each kind of IOMMU, and once in the end.
    let said = messages
        .lines()
        .rev()
        .find(|line| line.contains("interrupt remapping"));
    match said {
        Some(line) if line.contains("not enabled") || line.contains("disabled") => Finding::problem(
            check,
            "the IOMMU does not check interrupts of devices: a guest can send any interrupt to the host by DMA",
            "turn on interrupt remapping (x2APIC) in the firmware, and boot Xen without iommu=no-intremap",
        ),
        Some(line) if line.contains("enabled") => {
            Finding::ok(check, "the IOMMU checks interrupts of devices")
        }
        _ => Finding::note(
            check,
            "not known: Xen's log does not go back to the boot any more",
            "`xl dmesg | grep -i remapping` after the next boot",
        ),
    }
}

pub fn xsm(info: &HostInfo, facts: &Facts) -> Vec<Finding> {
    let mut findings = refused("xsm", info, |fault| matches!(fault, HostFault::Silo));
    let messages = facts.messages.as_deref().unwrap_or_default();
    if findings.is_empty() && messages.contains("XSM SILO mode") {
        // The default of this Xen, which `xsm=` on its command line overrides.
        let cause = "this Xen was built to start with xsm=silo, which keeps a guest and its stub from sharing memory and events";
        findings.push(Finding::problem("xsm", cause, "boot Xen with xsm=dummy"));
    }
    let notes = host_notes(info).into_iter();
    findings.extend(notes.map(|note| Finding::note("xsm", note, "`xl dmesg | grep avc` shows refusals")));
    or_ok(findings, "xsm", "guests and stubs may share memory and events")
}

pub fn config_space(info: &HostInfo, facts: &Facts) -> Vec<Finding> {
    let check = "config-space";
    let mut findings = refused(check, info, |fault| matches!(fault, HostFault::EcamWritable(_)));
    if let Err(why) = &facts.mcfg {
        findings.push(Finding::problem(
            check,
            format!("no configuration space is mapped in memory, and the stub reads no other: {why}"),
            "turn on MMCONFIG in the firmware",
        ));
    }
    or_ok(findings, check, "mapped in memory, and protected by Xen")
}

pub fn versions(info: &HostInfo, facts: &Facts) -> Vec<Finding> {
    let xen = version("xen-version", "Xen", &info.version, XEN, facts, |version| {
        TESTED_XEN.contains(&version.branch())
    });
    let (oldest, newest) = TESTED_LINUX;
    let linux = version("linux-version", "Linux", &info.kernel, LINUX, facts, |version| {
        version.reaches(oldest) && version.branch().0 <= newest
    });
    [xen, linux].concat()
}

fn version(
    check: &'static str,
    name: &str,
    text: &str,
    faults: &'static [KnownFault],
    facts: &Facts,
    is_tested: impl Fn(Version) -> bool,
) -> Vec<Finding> {
    let Ok(version) = text.parse::<Version>() else {
        let found = format!("{name} does not tell its version in a known form: {text:?}");
        return vec![Finding::note(
            check,
            found,
            "nothing, if it works; tell of what does not",
        )];
    };
    let first = if is_tested(version) {
        Finding::ok(check, format!("{name} {text}, of a branch that is tested"))
    } else {
        Finding::note(
            check,
            format!("{name} {text} is of a branch that is not tested"),
            "nothing, if it works; tell of what does not",
        )
        .from_source(TESTED_SOURCE)
    };
    let mut findings = vec![first];
    for fault in faults {
        let concerns = match fault.on {
            Concerns::All => true,
            // The firmware's tables may be hidden: then both kinds count.
            Concerns::Vendor(vendor) => facts.vendor.is_none_or(|found| found == vendor),
            Concerns::VirtualFunctions => facts.virtual_functions,
        };
        let presence = fault.presence(version);
        if !concerns || presence == FaultPresence::Absent {
            continue;
        }
        let doubt = match presence {
            FaultPresence::Unclear => "may have this fault, or its correction already",
            _ => "has this fault, unless your distribution has corrected it",
        };
        let found = format!("{name} {version} {doubt}: {}", fault.what);
        findings.push(Finding::note(check, found, fault.next).from_source(fault.source));
    }
    findings
}
