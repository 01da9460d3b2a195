//! `bulkhead seize`: devices are taken from dom0's drivers and held for guests to come.
//!
//! A held device belongs to xen-pciback in dom0 and to no domain in Xen: no driver of dom0's touches it, and its DMA goes
//! nowhere. [`crate::handover::seize`] does the work for one device.

use super::turn::Turn;
use crate::admission::{self, Surroundings};
use crate::handover::seize::{self, Before, make_ready};
use crate::host::Host;
use crate::host::device_names;
use crate::host::xl;
use crate::records::Seizure;
use crate::say::say;
use anyhow::{Result, ensure};
use bulkhead_config::name::Name;
use bulkhead_config::policy::Policy;
use pci::bdf::Bdf;
use std::path::Path;
use xenbus::device::SlotMode;

/// Takes devices from dom0's drivers. A refusal of one does not stop the others.
pub fn seize(devices: &[Name]) -> Result<()> {
    let mut host = Host::open()?;
    let bdfs = devices
        .iter()
        .map(|name| device_names::resolve(name, &host.sysfs).map_err(anyhow::Error::from));
    let bdfs = bdfs.collect::<Result<Vec<_>>>()?;
    seize_all(&mut host, &bdfs, Vec::new())
}

/// Takes the devices that a policy file marks with `seize = true`. Without `file`, the installed one counts.
pub fn seize_marked(file: Option<&Path>) -> Result<()> {
    let mut host = Host::open()?;
    let policy = Policy::read(file)?;
    let functions = host.sysfs.functions()?;
    let mut bdfs = Vec::new();
    let mut problems = Vec::new();
    for device in policy.devices.iter().filter(|device| device.seize) {
        let before = bdfs.len();
        let meant = |&bdf: &Bdf| device_names::means(&device.name, bdf, &host.sysfs);
        bdfs.extend(functions.iter().copied().filter(meant));
        if bdfs.len() == before {
            let why = device_names::resolve(&device.name, &host.sysfs).err();
            let why = why.map_or_else(|| "it is gone again".to_owned(), |error| error.to_string());
            problems.push(format!(
                "the policy file has seize = true for {}: {why}",
                device.name
            ));
        }
    }
    // Two entries of the policy may name one device.
    bdfs.sort_unstable();
    bdfs.dedup();
    if bdfs.is_empty() && problems.is_empty() {
        say!("the policy marks no device with seize = true");
    }
    seize_all(&mut host, &bdfs, problems)
}

fn seize_all(host: &mut Host, bdfs: &[Bdf], mut problems: Vec<String>) -> Result<()> {
    let _turn = Turn::take()?;
    let info = xl::info()?;
    admission::check_host(&info)?;
    let around = Surroundings::read(host, bdfs, &info)?;
    // No guest is known yet. Whether its slot mode fits is checked by `run` and `attach`.
    let refusals = admission::check_devices(bdfs, &[], SlotMode::Passthrough, &around);
    problems.extend(refusals.iter().map(ToString::to_string));
    for &bdf in bdfs {
        // It is among the problems already.
        if refusals.iter().any(|refusal| refusal.bdf() == Some(bdf)) {
            continue;
        }
        match seize_one(host, bdf) {
            Ok(line) => say!("{line}"),
            Err(error) => problems.push(format!("{error:#}")),
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

fn seize_one(host: &mut Host, bdf: Bdf) -> Result<String> {
    let from = match seize::seize(host, bdf, Seizure::ToKeep, "seize")? {
        Before::Held => return Ok(format!("{bdf} is held for guests already")),
        Before::Driven(driver) => format!("dom0's driver {driver}"),
        Before::Idle => "dom0, where it had no driver".into(),
    };
    let reset = make_ready(host, bdf)?;
    let reset = reset.map_or_else(
        || "it has no reset method".into(),
        |method| format!("reset by {method}"),
    );
    Ok(format!("took {bdf} from {from}; {reset}; held for guests"))
}
