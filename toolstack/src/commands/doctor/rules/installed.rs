//! What is installed in dom0: libraries, modules, daemons, files.

use super::super::facts::{Facts, Module, STUBDOM};
use super::super::finding::{Finding, or_ok};

pub fn libraries(facts: &Facts) -> Vec<Finding> {
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

pub fn nodes(facts: &Facts) -> Vec<Finding> {
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

pub fn pciback(facts: &Facts) -> Vec<Finding> {
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

pub fn xenstore(facts: &Facts) -> Vec<Finding> {
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

pub fn files(facts: &Facts) -> Vec<Finding> {
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

pub fn names(facts: &Facts) -> Vec<Finding> {
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
