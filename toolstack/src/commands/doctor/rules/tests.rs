//! Each finding, by a change to a sound host.

use super::super::facts::{DeclarationFacts, Module, NODES, PolicyFacts, Saved, Units};
use super::super::finding::{Diagnosis, Level};
use super::super::known::Vendor;
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
                facts.telemetry.without_script = vec![("guest web".into(), "/etc/xen/scripts/vif-x".into())];
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
