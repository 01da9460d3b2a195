//! `bulkhead explain`: what a guest can see and change of a device, and why.
//!
//! [`model`] asks the code that judges, the stub's and dom0's, about every bit. [`regions`] says the answers in words, and
//! [`text`] and [`html`] show them.

mod explanation;
mod html;
mod model;
mod names;
mod regions;
mod text;

pub use explanation::{Explanation, Explanations, Holding, MemoryRange};
pub use regions::{Bits, ByteOwner, Region};

use super::select::{attachments, of_device, select};
use super::status;
use crate::admission::policy::{self, Choices};
use crate::admission::{self, Offer, Refusal, Surroundings, describe, line_sharers};
use crate::config_space::interrupts::{msi_vectors, msix_entries};
use crate::handover::intx_lines::line_is_known;
use crate::handover::reset::Plan;
use crate::host::Host;
use crate::host::pci_ids::PciIds;
use crate::host::xl;
use crate::nodes::device_list::guest_addresses;
use crate::records::interrupt_mode::Mode;
use crate::records::{Attachment, Device};
use crate::say::say;
use crate::status::{Served, Status};
use crate::terms::{Msi, Terms};
use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_config::name::Name;
use bulkhead_config::options::{Options, Wanted};
use model::JudgementModel;
use pci::bdf::Bdf;
use std::fs;
use std::path::Path;
use xenbus::device::{BAR_COUNT, Bars, SlotMode};

/// Arguments of `explain`.
#[derive(Clone, Debug)]
pub struct Explain {
    /// A guest, or devices with terms.
    pub who: Vec<String>,
    /// Choices for devices that no guest has.
    pub choices: Choices,
    /// How a guest would address them.
    pub slots: SlotMode,
}

/// A device to explain.
struct Case {
    device: Device,
    /// The guest that has it, with its interrupt mode.
    holding: Option<(Holding, Mode)>,
    unfit: Vec<String>,
    line: String,
    served: Option<Served>,
}

/// Explains a guest's devices, or devices. Nothing is changed.
pub fn explain(request: &Explain) -> Result<Explanations> {
    let mut host = Host::open()?;
    let names = PciIds::read();
    let mut cases = Vec::new();
    for who in &request.who {
        match who.parse::<Wanted>() {
            Ok(wanted) => cases.push(case_of_device(&mut host, wanted, request)?),
            // A mistake in a device's terms is none in a guest's name.
            Err(error) if who.contains(',') || who.parse::<Name>().is_ok() => {
                return Err(error).with_context(|| format!("{who:?}"));
            }
            Err(_) => cases.extend(cases_of_guest(&mut host, who)?),
        }
    }
    let devices = cases.into_iter().map(|case| case.explain(&host, &names));
    Ok(Explanations {
        devices: devices.collect::<Result<_>>()?,
    })
}

/// Writes the page for a browser.
pub fn write_page(explanations: &Explanations, file: &Path) -> Result<()> {
    let page = html::render(explanations).context("cannot make the page")?;
    fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))?;
    say!("wrote {}: a browser shows it", file.display());
    Ok(())
}

fn cases_of_guest(host: &mut Host, who: &str) -> Result<Vec<Case>> {
    let attachments = attachments(host)?;
    let words = [who.to_owned()];
    let selected = select(&mut host.store, &host.sysfs, &attachments, &words)?;
    let status = status::read()?;
    let bdfs = selected.bdfs.iter();
    bdfs.map(|&bdf| case_of_guest(host, selected.attachment, bdf, &status))
        .collect()
}

fn case_of_device(host: &mut Host, wanted: Wanted, request: &Explain) -> Result<Case> {
    let attachments = attachments(host)?;
    if let Ok((attachment, bdf)) = of_device(&host.sysfs, &attachments, &wanted.name) {
        let guest = &attachment.guest.name;
        ensure!(
            wanted.options == Options::default() && request.choices == Choices::default(),
            "guest {guest} has {bdf}, on the terms that were recorded then: leave the terms out"
        );
        return case_of_guest(host, attachment, bdf, &status::read()?);
    }
    case_without_guest(host, wanted, request)
}

/// A device that a guest has: what is recorded counts.
fn case_of_guest(host: &mut Host, attachment: &Attachment, bdf: Bdf, status: &Status) -> Result<Case> {
    let found = attachment
        .devices_and_modes()
        .find(|(device, _)| device.bdf == bdf);
    let (device, recorded) =
        found.with_context(|| format!("guest {} has lost {bdf}", attachment.guest.name))?;
    let address = guest_addresses(&mut host.store, attachment)?
        .into_iter()
        .find(|(other, _)| *other == bdf)
        .map(|(_, address)| address);
    let stub = status
        .stubs
        .iter()
        .find(|stub| stub.domain.domid == attachment.stub.domid);
    let line = match (device.gsi, device.line_offered) {
        (Some(gsi), true) => format!("GSI {gsi} is the guest's"),
        (Some(gsi), false) => format!("withheld: others use GSI {gsi} too (`bulkhead check {bdf}` says who)"),
        (None, _) => "none".into(),
    };
    let holding = Holding {
        name: attachment.guest.name.clone(),
        domid: attachment.guest.domid,
        address: address.map(|address| address.to_string()),
    };
    Ok(Case {
        device: device.clone(),
        holding: Some((holding, recorded.mode())),
        unfit: Vec::new(),
        line,
        served: stub.and_then(|stub| stub.served.clone()),
    })
}

/// A device that no guest has, as one would get it now.
fn case_without_guest(host: &mut Host, wanted: Wanted, request: &Explain) -> Result<Case> {
    let decided = policy::decide(&[wanted], &request.choices, &host.sysfs)?;
    let Some((bdf, terms)) = decided.devices.into_iter().next() else {
        bail!("no device is named");
    };
    let info = xl::info()?;
    let around = Surroundings::read(host, &[bdf], &info)?;
    let mut refusals = admission::check_devices(&[bdf], &[], request.slots, &around);
    refusals.extend(admission::check_quirks(&[(bdf, &terms)], &host.sysfs));
    let faults = admission::host_faults(&info);
    let unfit = faults.iter().map(ToString::to_string);
    let unfit = unfit.chain(refusals.iter().map(Refusal::to_string)).collect();
    let sharers = line_sharers(bdf, &[bdf], &around)?;
    let offer = Offer::decide(bdf, &terms, &sharers, &host.sysfs)?;
    let device = describe(bdf, &terms, offer, &around)?;
    let line = match (device.gsi, offer) {
        (None, _) => "none".into(),
        (Some(_), _) if !line_is_known(bdf, &host.sysfs) => {
            "known once dom0 has turned the device on (`bulkhead seize` does)".into()
        }
        (Some(gsi), Offer::Withheld) => format!("withheld: GSI {gsi} is shared with {sharers}"),
        (Some(gsi), Offer::Forbidden) => {
            format!("forbidden by share-intx=0: GSI {gsi} is shared with {sharers}")
        }
        (Some(gsi), Offer::Shared | Offer::OnlyInterrupt) => {
            format!("GSI {gsi}, given though it is shared with {sharers}")
        }
        (Some(gsi), _) => format!("GSI {gsi}"),
    };
    Ok(Case {
        device,
        holding: None,
        unfit,
        line,
        served: None,
    })
}

impl Case {
    fn explain(self, host: &Host, names: &PciIds) -> Result<Explanation> {
        let Device { bdf, ids, .. } = self.device;
        let config = host.sysfs.config_bytes(bdf)?;
        let mut model = JudgementModel::new(&self.device, &config)?;
        let mut regions = regions::divide(&mut model, &self.device.terms);
        let (guest, mode) = self.holding.unzip();
        if let Some(served) = &self.served {
            let address = guest.as_ref().and_then(|guest| guest.address.as_deref());
            count(&mut regions, bdf, address, served);
        }
        Ok(Explanation {
            bdf: bdf.to_string(),
            ids: ids.to_string(),
            called: names.name(ids),
            guest,
            unfit: self.unfit,
            terms: self.device.terms.to_string(),
            interrupts: interrupts(&self.device.terms, &config, mode.as_ref()),
            line: self.line,
            memory: memory(&self.device.bars),
            reset: Plan::of(bdf, &host.sysfs).used().map(|method| method.to_string()),
            regions,
        })
    }
}

/// Adds the counters of writes that the stub dropped, by the guest's address of the device, and of those that dom0 refused.
fn count(regions: &mut [Region], bdf: Bdf, address: Option<&str>, served: &Served) {
    fn at(regions: &mut [Region], offset: u16) -> Option<&mut Region> {
        regions
            .iter_mut()
            .find(|region| (region.offset..region.end()).contains(&offset))
    }
    // The stub counts without the segment: there is one.
    let is_here = |slot: &str| address.is_some_and(|address| address.ends_with(&format!(":{slot}")));
    for dropped in served.dropped.iter().filter(|dropped| is_here(&dropped.slot)) {
        if let Some(region) = at(regions, dropped.offset) {
            region.dropped += u64::from(dropped.count);
        }
    }
    for refused in served
        .refused
        .iter()
        .filter(|refused| refused.bdf == bdf.to_string())
    {
        if let Some(region) = at(regions, refused.offset) {
            region.refused += refused.count;
        }
    }
}

fn interrupts(terms: &Terms, config: &[u8], mode: Option<&Mode>) -> String {
    let can = match (&terms.msi, msi_vectors(config), msix_entries(config)) {
        (Msi::Off(rule), ..) => format!("MSI and MSI-X are refused: {rule}"),
        (Msi::On, 0, 0) => "the device has no MSI and no MSI-X".into(),
        (Msi::On, 0, entries) => format!("the guest may use MSI-X, up to {entries} vectors"),
        (Msi::On, _, 0) => "the guest may use MSI, one vector".into(),
        (Msi::On, _, entries) => {
            format!("the guest may use MSI, one vector, or MSI-X, up to {entries} vectors")
        }
    };
    match mode {
        Some(Mode::Msix(entries)) => format!("{can}; it uses MSI-X, {} vectors", entries.len()),
        Some(Mode::Msi(_)) => format!("{can}; it uses MSI"),
        Some(Mode::Intx) | None => can,
    }
}

fn memory(bars: &Bars) -> Vec<MemoryRange> {
    let ranges = bars.0.iter().zip(0..).take(BAR_COUNT - 1);
    let ranges = ranges
        .filter(|(bar, _)| bar.size > 0)
        .map(|(bar, number)| MemoryRange {
            bar: number,
            kind: if bar.flags & 1 != 0 { "ports" } else { "memory" },
            start: bar.start,
            size: bar.size,
        });
    ranges.collect()
}

#[cfg(test)]
pub(super) mod tests;
