//! What the facts about a host mean. One function for each thing that is checked.

mod configured;
mod host;
mod installed;
mod running;

use super::facts::Facts;
use super::finding::Finding;
use crate::host::xl::HostInfo;
use configured::{declarations, policy_file, telemetry};
use host::{config_space, dom0, iommu, versions, xsm};
use installed::{files, libraries, names, nodes, pciback, xenstore};
use running::{libvirt, saved, service};

/// The checks that need to know what Xen says of the host, in the order in which an administrator needs them.
const OF_HOST: [fn(&HostInfo, &Facts) -> Vec<Finding>; 5] = [dom0, iommu, xsm, config_space, versions];
/// The other checks, in that order.
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

#[cfg(test)]
mod tests;
