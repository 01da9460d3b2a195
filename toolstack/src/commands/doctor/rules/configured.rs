//! What the administrator's files say.

use super::super::facts::{Facts, Units, is_enabled};
use super::super::finding::{Finding, or_ok};
use crate::host::systemd;
use bulkhead_config::declaration::DIRECTORY;
use bulkhead_config::policy;

pub fn policy_file(facts: &Facts) -> Vec<Finding> {
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

pub fn declarations(facts: &Facts) -> Vec<Finding> {
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

/// Whether stubs can have the networks that files ask for. On a host where none does there is nothing to tell.
pub fn telemetry(facts: &Facts) -> Vec<Finding> {
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
