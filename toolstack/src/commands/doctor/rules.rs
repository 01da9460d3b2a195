//! What the facts about a host mean. One function for each thing that is checked, in the order in which they are needed.

use super::facts::{Facts, Module, STUBDOM, Saved, Units, is_enabled};
use super::finding::Finding;
use super::known::{
    Concerns, FaultPresence, KnownFault, LINUX, TESTED_LINUX, TESTED_SOURCE, TESTED_XEN, Vendor, XEN,
};
use super::version::Version;
use crate::admission::{HostFault, host_faults, host_notes};
use crate::host::systemd;
use crate::host::xl::HostInfo;
use bulkhead_config::declaration::DIRECTORY;
use bulkhead_config::policy;
use std::collections::BTreeSet;

/// The checks that need to know what Xen says of the host.
const OF_HOST: [fn(&HostInfo, &Facts) -> Vec<Finding>; 5] = [dom0, iommu, xsm, config_space, versions];
/// The other checks.
const OF_THE_REST: [fn(&Facts) -> Vec<Finding>; 12] = [
    libraries,
    nodes,
    pciback,
    xenstore,
    policy_file,
    declarations,
    files,
    telemetry,
    service,
    libvirt,
    saved,
    names,
];

/// All findings.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = match &facts.info {
        Ok(info) => OF_HOST.iter().flat_map(|check| check(info, facts)).collect(),
        Err(why) => vec![Finding::problem(
            "xen",
            why,
            "install Xen's tools (Debian: xen-utils), and see that xenstored runs",
        )],
    };
    findings.extend(OF_THE_REST.iter().flat_map(|check| check(facts)));
    findings
}

/// What keeps the host from giving devices away, of this kind: the findings of `check`, `run` and `attach`.
fn refused(check: &'static str, info: &HostInfo, is_of: impl Fn(&HostFault) -> bool) -> Vec<Finding> {
    let faults = host_faults(info).into_iter().filter(is_of);
    faults
        .map(|fault| Finding::problem(check, fault.cause(), fault.next_step()))
        .collect()
}

/// These findings, or one that says that all is well.
fn or_ok(findings: Vec<Finding>, check: &'static str, found: impl Into<String>) -> Vec<Finding> {
    if findings.is_empty() {
        vec![Finding::ok(check, found)]
    } else {
        findings
    }
}

fn dom0(info: &HostInfo, _: &Facts) -> Vec<Finding> {
    let findings = refused("dom0", info, |fault| matches!(fault, HostFault::Dom0Kind(_)));
    or_ok(findings, "dom0", "a PV domain")
}

fn iommu(info: &HostInfo, facts: &Facts) -> Vec<Finding> {
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

fn xsm(info: &HostInfo, facts: &Facts) -> Vec<Finding> {
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

fn config_space(info: &HostInfo, facts: &Facts) -> Vec<Finding> {
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

fn versions(info: &HostInfo, facts: &Facts) -> Vec<Finding> {
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

fn libraries(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(why) = &facts.xenctrl {
        findings.push(Finding::problem(
            "libraries",
            why,
            "install Xen's libraries of the running Xen's version (Debian: libxenmisc), and boot into the Xen that they are \
             for",
        ));
    }
    if let Err(why) = &facts.xenlight {
        findings.push(Finding::problem(
            "libraries",
            format!("a stub that dies cannot be brought back: {why}"),
            "install Xen's tools of the running Xen's version (Debian: xen-utils)",
        ));
    }
    or_ok(findings, "libraries", "those of the running Xen are there")
}

fn nodes(facts: &Facts) -> Vec<Finding> {
    let missing = facts.missing.iter().map(|node| {
        let found = format!("{} is not there, which is needed for {}", node.path, node.use_for);
        let next = format!("`modprobe {}`", node.module);
        if node.is_needed {
            Finding::problem("modules", found, next)
        } else {
            Finding::note("modules", found, next)
        }
    });
    or_ok(
        missing.collect(),
        "modules",
        "dom0's kernel has the devices below /dev/xen",
    )
}

fn pciback(facts: &Facts) -> Vec<Finding> {
    vec![match facts.pciback {
        Module::Loaded => Finding::ok("xen-pciback", "loaded"),
        Module::Installed => Finding::ok(
            "xen-pciback",
            "not loaded; the commands load it when they need it",
        ),
        Module::Missing => Finding::problem(
            "xen-pciback",
            "dom0's running kernel has no xen-pciback, which holds devices for guests",
            "install the modules of the running kernel, or reboot into the kernel whose modules are installed",
        ),
    }]
}

fn xenstore(facts: &Facts) -> Vec<Finding> {
    if let Err(why) = &facts.store {
        let next = "`systemctl status xenstored xen`, or the host's init scripts, say why it does not run";
        return vec![Finding::problem("xenstore", why, next)];
    }
    let kind = match facts.xenstored {
        Some("oxenstored") => "the OCaml xenstored (oxenstored)",
        Some(_) => "the C xenstored",
        None => "a xenstored without a process in dom0, which may be a domain",
    };
    vec![if facts.xenstored.is_some() {
        Finding::ok("xenstore", kind)
    } else {
        Finding::note(
            "xenstore",
            kind,
            "nothing, if it works: both kinds of process are tested, a domain is not",
        )
    }]
}

fn policy_file(facts: &Facts) -> Vec<Finding> {
    let check = "policy";
    let policy = match &facts.policy {
        Ok(policy) => policy,
        Err(why) => {
            let next = format!(
                "correct the line; the comments in {} say what is allowed",
                policy::PATH
            );
            return vec![Finding::problem(check, why, next)];
        }
    };
    let mut findings: Vec<_> = policy
        .without_effect
        .iter()
        .map(|entry| {
            let next = format!("take the entry out of {}, or correct it", policy::PATH);
            Finding::note(
                check,
                format!("an entry has no effect: it is about {entry}"),
                next,
            )
        })
        .collect();
    let seize_is_off = |units: &Units| !is_enabled(&units.seize);
    if policy.seizes && facts.units.as_ref().is_some_and(seize_is_off) {
        findings.push(Finding::problem(
            check,
            "devices are marked with seize = true, and nothing seizes them at boot",
            format!("`systemctl enable {}`", systemd::SEIZE_UNIT),
        ));
    }
    let found = if policy.exists {
        format!("{} is understood", policy::PATH)
    } else {
        format!("there is no {}: the defaults hold", policy::PATH)
    };
    or_ok(findings, check, found)
}

fn declarations(facts: &Facts) -> Vec<Finding> {
    let check = "declarations";
    let declarations = match &facts.declarations {
        Ok(declarations) => declarations,
        Err(why) => {
            let next = format!("make {DIRECTORY} a directory that root can read");
            return vec![Finding::problem(check, why, next)];
        }
    };
    let mut findings: Vec<_> = declarations
        .broken
        .iter()
        .map(|why| {
            let next =
                "correct the file, or write it anew with `bulkhead declare`; other guests are not concerned";
            Finding::problem(check, why, next)
        })
        .collect();
    findings.extend(declarations.missing.iter().map(|(guest, device)| {
        Finding::problem(
            check,
            format!("guest {guest} is declared with {device}, and this host has no such device, or more than one"),
            format!("`lspci -Dnn` shows what is there; `bulkhead declare {guest} --device NAME` writes another declaration"),
        )
    }));
    let found = match declarations.files {
        0 => format!("no guest is declared in {DIRECTORY}"),
        1 => "1 guest is declared, and its devices are there".into(),
        count => format!("{count} guests are declared, and their devices are there"),
    };
    or_ok(findings, check, found)
}

fn files(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !facts.image {
        findings.push(Finding::problem(
            "files",
            format!("the stub's image {} is not there", bulkhead_config::KERNEL),
            "install Bulkhead again, or name another image with --kernel",
        ));
    }
    if !facts.stubdom {
        findings.push(Finding::note(
            "files",
            format!("there is no {STUBDOM}, which `xl create` needs for a stub that is made by hand"),
            "install Bulkhead again; `run` and `attach` do without this file",
        ));
    }
    or_ok(
        findings,
        "files",
        "the stub's image and its configuration are there",
    )
}

/// Whether stubs can have the networks that files ask for. On a host where none does there is nothing to tell.
fn telemetry(facts: &Facts) -> Vec<Finding> {
    let check = "telemetry";
    let telemetry = &facts.telemetry;
    let Some(first) = telemetry.guests.first() else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    if !telemetry.image {
        let image = bulkhead_config::NET_KERNEL;
        findings.push(Finding::problem(
            check,
            format!(
                "{first} is to have a stub with a network, and the image of such stubs {image} is not there: the guest gets \
                 no device"
            ),
            format!("install Bulkhead again: its package holds {image}; or say telemetry = \"off\" in the file"),
        ));
    }
    for (guest, bridge) in &telemetry.without_bridge {
        findings.push(Finding::problem(
            check,
            format!("{guest} is to have a stub on the bridge {bridge}, which dom0 does not have: the guest gets no device"),
            format!("`ip link add {bridge} type bridge` makes it; or name another in the file"),
        ));
    }
    for (guest, script) in &telemetry.without_script {
        let script = script.display();
        findings.push(Finding::problem(
            check,
            format!("{guest} is to have a stub with the hotplug script {script}, which is not there: the guest gets no device"),
            "name another in the file, or leave script= out",
        ));
    }
    or_ok(
        findings,
        check,
        "image and bridges of stubs with a network are there",
    )
}

fn service(facts: &Facts) -> Vec<Finding> {
    let check = "service";
    let mut findings = Vec::new();
    let unit = facts.units.as_ref().map(|units| units.service.as_str());
    match unit {
        None | Some("enabled" | "enabled-runtime") => {}
        Some("not-found") => findings.push(Finding::note(
            check,
            format!(
                "{} is not installed: the service does not start at boot",
                systemd::UNIT
            ),
            "install Bulkhead again",
        )),
        Some("masked" | "masked-runtime") => findings.push(Finding::problem(
            check,
            format!("{} is masked: no service can start", systemd::UNIT),
            format!("`systemctl unmask {}`", systemd::UNIT),
        )),
        Some(other) => findings.push(Finding::problem(
            check,
            format!("{} is {other}: the service does not start at boot", systemd::UNIT),
            format!("`systemctl enable --now {}`", systemd::UNIT),
        )),
    }
    match &facts.service {
        Err(why) => findings.push(Finding::problem(
            check,
            why,
            format!("`systemctl restart {}`; guests keep their devices", systemd::UNIT),
        )),
        Ok(status) => {
            let start = if unit.is_none_or(|unit| unit == "not-found") {
                "`bulkhead serve` starts it in the foreground".to_owned()
            } else {
                format!("`systemctl start {}`", systemd::UNIT)
            };
            if status.service.running {
                findings.push(Finding::ok(check, "running"));
            } else if status.stubs.is_empty() {
                let found = "it does not run, and no guest has devices: `run` and `attach` start it";
                findings.push(Finding::note(check, found, start));
            } else {
                let found =
                    "it does not run, and guests have devices: their writes and interrupt changes fail";
                findings.push(Finding::problem(check, found, start));
            }
            findings.extend(guests(status));
        }
    }
    findings
}

/// Whether the start of libvirt ends guests. On a host without this there is nothing to tell.
fn libvirt(facts: &Facts) -> Vec<Finding> {
    let Some(Units {
        xendomains,
        libvirt: Some(unit),
        ..
    }) = &facts.units
    else {
        return Vec::new();
    };
    if !is_enabled(xendomains) {
        return Vec::new();
    }
    vec![Finding::problem(
        "libvirt",
        format!(
            "{unit} conflicts with {}: the first `virsh` starts libvirt, and systemd stops {0} then, which saves or shuts \
             down all guests",
            systemd::XENDOMAINS
        ),
        format!(
            "let one of them start guests at boot: `systemctl disable xendomains` if that is libvirt, `systemctl mask {unit}` \
             if that is xl; use no `virsh` before the next boot"
        ),
    )]
}

/// Files of guests with devices that were to be saved. The refusal leaves a file without a guest, and at the next start libvirt,
/// or libxl in it, crashes on that.
fn saved(facts: &Facts) -> Vec<Finding> {
    let declared = facts.declarations.iter().flat_map(|facts| &facts.guests);
    let stubs = facts.service.iter().flat_map(|status| &status.stubs);
    let domains = stubs.flat_map(|stub| [&stub.domain.name, &stub.guest.name]);
    let names: BTreeSet<&String> = declared.chain(domains).collect();
    let concerned = facts.saved.iter().filter(|saved| names.contains(&saved.guest));
    concerned
        .map(|Saved { guest, path }| {
            let path = path.display();
            let found = format!(
                "guest {guest} was to be saved, and a guest with devices cannot be: {path} would be restored in place of its \
                 start"
            );
            Finding::problem("saved", found, format!("`rm {path}`"))
        })
        .collect()
}

/// What is wrong with devices and guests now; `bulkhead status` tells more.
fn guests(status: &crate::status::Status) -> Vec<Finding> {
    let mut findings = Vec::new();
    for device in &status.quarantined {
        findings.push(Finding::problem(
            "devices",
            format!("{} is in quarantine, because {}", device.bdf, device.reason),
            format!("`bulkhead release {}` tries its reset again", device.bdf),
        ));
    }
    for failed in &status.failed {
        let next = format!(
            "`bulkhead status`, and `xl console {}`, tell more",
            failed.guest.name
        );
        findings.push(Finding::problem("guests", failed.to_string(), next));
    }
    for problem in &status.problems {
        findings.push(Finding::problem(
            "guests",
            problem,
            "`bulkhead status` tells more",
        ));
    }
    findings
}

fn names(facts: &Facts) -> Vec<Finding> {
    vec![if facts.pci_ids {
        Finding::ok("pci.ids", "devices have their products' names beside their ids")
    } else {
        Finding::note(
            "pci.ids",
            "there is no list of products' names, so devices have ids alone",
            "install pci.ids (Debian: the package pci.ids)",
        )
    }]
}

#[cfg(test)]
mod tests {
    use super::super::facts::{DeclarationFacts, NODES, PolicyFacts};
    use super::super::finding::{Diagnosis, Level};
    use super::super::telemetry::TelemetryFacts;
    use super::*;
    use crate::records::failed::Failed;
    use crate::records::tests::attachment;
    use crate::status::{Quarantined, ServiceStatus, Status};

    fn sound() -> Facts {
        Facts {
            info: Ok(HostInfo {
                capabilities: vec!["pv_directio".into()],
                command_line: "dom0_mem=1G".into(),
                dom0_type: "PV".into(),
                version: "4.20.2".into(),
                kernel: "6.12.43+deb13-amd64".into(),
            }),
            messages: Ok(
                "(XEN) Intel VT-d Interrupt Remapping enabled.\n(XEN) Interrupt remapping enabled\n".into(),
            ),
            vendor: Some(Vendor::Intel),
            virtual_functions: false,
            mcfg: Ok(()),
            xenctrl: Ok(()),
            xenlight: Ok(()),
            store: Ok(()),
            xenstored: Some("xenstored"),
            missing: vec![],
            pciback: Module::Loaded,
            pci_ids: true,
            policy: Ok(PolicyFacts {
                exists: true,
                ..PolicyFacts::default()
            }),
            declarations: Ok(DeclarationFacts {
                guests: vec!["web".into(), "mail".into()],
                files: 2,
                ..DeclarationFacts::default()
            }),
            telemetry: TelemetryFacts::default(),
            image: true,
            stubdom: true,
            units: Some(Units {
                service: "enabled".into(),
                seize: "disabled".into(),
                xendomains: "enabled".into(),
                libvirt: None,
            }),
            service: Ok(Status {
                service: ServiceStatus {
                    running: true,
                    process: None,
                    history: None,
                },
                ..Status::default()
            }),
            // No declared guest.
            saved: vec![save("news", "/var/lib/xen/save/news")],
        }
    }

    /// A host on which guest web is to have a stub with a network, and can have it.
    fn networked() -> TelemetryFacts {
        TelemetryFacts {
            guests: vec!["guest web".into()],
            image: true,
            ..TelemetryFacts::default()
        }
    }

    fn save(guest: &str, path: &str) -> Saved {
        Saved {
            guest: guest.into(),
            path: path.into(),
        }
    }

    fn host(facts: &mut Facts) -> &mut HostInfo {
        facts.info.as_mut().unwrap()
    }

    #[test]
    fn on_a_sound_host_nothing_is_wrong() {
        let findings = judge(&sound());
        let told = |finding: &Finding| finding.level > Level::Ok || finding.next.is_some();
        assert_eq!(findings.iter().find(|finding| told(finding)), None);
        insta::assert_snapshot!(Diagnosis::new(judge(&sound())));
    }

    /// A change to a sound host, and the finding that it leads to: the check, how bad it is, and a part of its text.
    type Case = (fn(&mut Facts), &'static str, Level, &'static str);

    #[test]
    fn each_fault_is_found_with_its_next_step() {
        let cases: [Case; 42] = [
            (
                |facts| facts.saved = vec![save("web", "/var/lib/libvirt/libxl/save/web.save")],
                "saved",
                Level::Problem,
                "`rm /var/lib/libvirt/libxl/save/web.save`",
            ),
            (
                |facts| facts.saved = vec![save("mail", "/var/lib/xen/save/mail")],
                "saved",
                Level::Problem,
                "`rm /var/lib/xen/save/mail`",
            ),
            (
                |facts| facts.units.as_mut().unwrap().libvirt = Some("libvirtd.service"),
                "libvirt",
                Level::Problem,
                "`systemctl mask libvirtd.service` if that is xl",
            ),
            (
                |facts| facts.info = Err("cannot run xl".into()),
                "xen",
                Level::Problem,
                "cannot run xl",
            ),
            (
                |facts| host(facts).dom0_type = "PVH".into(),
                "dom0",
                Level::Problem,
                "boot Xen without dom0=pvh",
            ),
            (
                |facts| host(facts).capabilities.clear(),
                "iommu",
                Level::Problem,
                "turn on VT-d or AMD-Vi",
            ),
            (|facts| facts.vendor = None, "iommu", Level::Note, "no table DMAR"),
            (
                |facts| facts.messages = Ok("(XEN) Interrupt remapping disabled".into()),
                "interrupt-remapping",
                Level::Problem,
                "no-intremap",
            ),
            (
                |facts| facts.messages = Ok("(XEN) Intel VT-d Interrupt Remapping not enabled.".into()),
                "interrupt-remapping",
                Level::Problem,
                "x2APIC",
            ),
            (
                |facts| facts.messages = Ok("later\n".into()),
                "interrupt-remapping",
                Level::Note,
                "not known",
            ),
            (
                |facts| host(facts).command_line = "xsm=silo".into(),
                "xsm",
                Level::Problem,
                "boot Xen without that option",
            ),
            (
                |facts| facts.messages = Ok("(XEN) Initialising XSM SILO mode".into()),
                "xsm",
                Level::Problem,
                "xsm=dummy",
            ),
            (
                |facts| host(facts).command_line = "xsm=flask".into(),
                "xsm",
                Level::Note,
                "FLASK",
            ),
            (
                |facts| host(facts).command_line = "mmcfg=0".into(),
                "config-space",
                Level::Problem,
                "mmcfg=0",
            ),
            (
                |facts| facts.mcfg = Err("cannot read MCFG".into()),
                "config-space",
                Level::Problem,
                "turn on MMCONFIG",
            ),
            (
                |facts| host(facts).version = "4.17.5".into(),
                "xen-version",
                Level::Note,
                "4.17.5 has this fault, unless your distribution",
            ),
            (
                |facts| host(facts).version = "4.17.6-pre".into(),
                "xen-version",
                Level::Note,
                "4.17.6-pre may have this fault",
            ),
            (
                |facts| facts.virtual_functions = true,
                "xen-version",
                Level::Note,
                "4.20.2 may have this fault, or its correction already: the host stops",
            ),
            (
                |facts| host(facts).version = "4.19.4".into(),
                "xen-version",
                Level::Note,
                "not tested",
            ),
            (
                |facts| host(facts).version = "new".into(),
                "xen-version",
                Level::Note,
                "\"new\"",
            ),
            (
                |facts| host(facts).kernel = "5.10.0-35-amd64".into(),
                "linux-version",
                Level::Note,
                "landlock",
            ),
            (
                |facts| facts.xenctrl = Err("no libxenctrl".into()),
                "libraries",
                Level::Problem,
                "no libxenctrl",
            ),
            (
                |facts| facts.xenlight = Err("no libxenlight".into()),
                "libraries",
                Level::Problem,
                "cannot be brought back",
            ),
            (
                |facts| facts.missing = vec![&NODES[2]],
                "modules",
                Level::Problem,
                "`modprobe xen-gntdev`",
            ),
            (
                |facts| facts.missing = vec![&NODES[3]],
                "modules",
                Level::Note,
                "`modprobe xen-gntalloc`",
            ),
            (
                |facts| facts.pciback = Module::Missing,
                "xen-pciback",
                Level::Problem,
                "no xen-pciback",
            ),
            (
                |facts| facts.store = Err("no xenstored".into()),
                "xenstore",
                Level::Problem,
                "no xenstored",
            ),
            (
                |facts| facts.xenstored = None,
                "xenstore",
                Level::Note,
                "may be a domain",
            ),
            (
                |facts| facts.policy = Err("broken in line 3".into()),
                "policy",
                Level::Problem,
                "line 3",
            ),
            (
                |facts| facts.policy.as_mut().unwrap().without_effect = vec!["0000:00:1d.0".into()],
                "policy",
                Level::Note,
                "0000:00:1d.0",
            ),
            (
                |facts| facts.policy.as_mut().unwrap().seizes = true,
                "policy",
                Level::Problem,
                "`systemctl enable bulkhead-seize.service`",
            ),
            (
                |facts| facts.declarations = Err("cannot read guests.d".into()),
                "declarations",
                Level::Problem,
                "cannot read guests.d",
            ),
            (
                |facts| facts.declarations.as_mut().unwrap().broken = vec!["web.toml, line 3".into()],
                "declarations",
                Level::Problem,
                "web.toml, line 3",
            ),
            (
                |facts| {
                    let missing = ("web".into(), "0000:03:00.0".into());
                    facts.declarations.as_mut().unwrap().missing = vec![missing];
                },
                "declarations",
                Level::Problem,
                "`bulkhead declare web --device NAME`",
            ),
            (
                |facts| facts.image = false,
                "files",
                Level::Problem,
                "bulkhead-stub",
            ),
            (|facts| facts.stubdom = false, "files", Level::Note, "stubdom.cfg"),
            (
                |facts| {
                    facts.telemetry = networked();
                    facts.telemetry.image = false;
                },
                "telemetry",
                Level::Problem,
                "guest web is to have a stub with a network, and the image of such stubs \
                 /usr/lib/bulkhead/bulkhead-stub-net is not there",
            ),
            (
                |facts| {
                    facts.telemetry = networked();
                    facts.telemetry.without_bridge = vec![("guest web".into(), "xenbr1".into())];
                },
                "telemetry",
                Level::Problem,
                "`ip link add xenbr1 type bridge`",
            ),
            (
                |facts| {
                    facts.telemetry = networked();
                    facts.telemetry.without_script =
                        vec![("guest web".into(), "/etc/xen/scripts/vif-x".into())];
                },
                "telemetry",
                Level::Problem,
                "/etc/xen/scripts/vif-x",
            ),
            (
                |facts| facts.units.as_mut().unwrap().service = "disabled".into(),
                "service",
                Level::Problem,
                "`systemctl enable --now bulkhead.service`",
            ),
            (
                |facts| facts.service = Err("it does not answer".into()),
                "service",
                Level::Problem,
                "`systemctl restart bulkhead.service`",
            ),
            (|facts| facts.pci_ids = false, "pci.ids", Level::Note, "ids alone"),
        ];
        for (change, check, level, text) in cases {
            let mut facts = sound();
            change(&mut facts);
            let findings = judge(&facts);
            let fits = |finding: &&Finding| {
                let next = finding.next.as_deref().unwrap_or_default();
                (finding.check, finding.level) == (check, level)
                    && (finding.found.contains(text) || next.contains(text))
            };
            let found = findings.iter().find(fits);
            assert!(
                found.is_some_and(|found| found.next.is_some()),
                "{text}: {findings:#?}"
            );
            let sound = Diagnosis::new(findings).sound;
            assert_eq!(sound, level != Level::Problem, "{text}");
        }
    }

    #[test]
    fn the_image_of_stubs_with_a_network_may_be_missing_where_nobody_asks_for_one() {
        let mut facts = sound();
        facts.telemetry.image = false;
        assert_eq!(judge(&facts), judge(&sound()));
        facts.telemetry = networked();
        let diagnosis = Diagnosis::new(judge(&facts));
        assert!(diagnosis.sound, "{diagnosis}");
        assert!(
            diagnosis.to_string().contains("telemetry: image and bridges"),
            "{diagnosis}"
        );
    }

    #[test]
    fn a_service_that_is_down_is_a_problem_once_a_guest_has_devices() {
        let mut facts = sound();
        facts.units = None;
        let status = facts.service.as_mut().unwrap();
        status.service.running = false;
        assert!(Diagnosis::new(judge(&facts)).sound);
        let status = facts.service.as_mut().unwrap();
        status.stubs = crate::status::tests::status().stubs;
        let diagnosis = Diagnosis::new(judge(&facts));
        assert!(!diagnosis.sound, "{diagnosis}");
        assert!(
            diagnosis.to_string().contains("`bulkhead serve` starts it"),
            "{diagnosis}"
        );
    }

    #[test]
    fn what_is_wrong_with_devices_and_guests_is_told_with_the_next_step() {
        let mut facts = sound();
        let status = facts.service.as_mut().unwrap();
        status.quarantined.push(Quarantined {
            bdf: "0000:00:06.0".into(),
            reason: "it is mute".into(),
        });
        status.failed.push(Failed::new(&attachment(), "crashed"));
        status.problems.push("a record is damaged".into());
        let text = Diagnosis::new(judge(&facts)).render_wide();
        for expected in [
            "devices: 0000:00:06.0 is in quarantine, because it is mute\n        next: `bulkhead release 0000:00:06.0`",
            "guests: guest web lost 0000:00:05.0",
            "guests: a record is damaged\n        next: `bulkhead status` tells more",
            "3 problems",
        ] {
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn a_fault_of_another_vendors_iommu_is_not_told() {
        let mut facts = sound();
        host(&mut facts).version = "4.17.2".into();
        let about = |facts: &Facts| {
            let sources = judge(facts).into_iter().filter_map(|finding| finding.source);
            sources.filter(|source| source.starts_with("XSA-4")).count()
        };
        assert_eq!(about(&facts), 2, "XSA-449 and 467");
        facts.vendor = Some(Vendor::Amd);
        assert_eq!(about(&facts), 2, "XSA-442 and 449");
        facts.vendor = None;
        assert_eq!(about(&facts), 3);
    }

    impl Diagnosis {
        fn render_wide(&self) -> String {
            crate::layout::Render::render(self, 10_000)
        }
    }

    #[test]
    fn libvirt_alone_ends_no_guest() {
        let mut facts = sound();
        let units = facts.units.as_mut().unwrap();
        units.libvirt = Some("libvirtd.service");
        units.xendomains = "disabled".into();
        assert_eq!(judge(&facts), judge(&sound()));
    }
}
