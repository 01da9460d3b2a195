//! The service, the guests, and what else starts and saves guests.

use super::super::facts::{Facts, Saved, Units, is_enabled};
use super::super::finding::Finding;
use crate::host::systemd;
use crate::status::Status;
use std::collections::BTreeSet;

pub fn service(facts: &Facts) -> Vec<Finding> {
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

/// What is wrong with devices and guests now; `bulkhead status` tells more.
fn guests(status: &Status) -> Vec<Finding> {
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

/// Whether the start of libvirt ends guests. On a host without this there is nothing to tell.
pub fn libvirt(facts: &Facts) -> Vec<Finding> {
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
pub fn saved(facts: &Facts) -> Vec<Finding> {
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
