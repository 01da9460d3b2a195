//! `bulkhead check`: tells all that `run` or `attach` would tell about devices, without changing anything.

mod report;

#[cfg(test)]
pub(super) use report::tests;
pub use report::{DeviceFacts, DeviceReport, Guest, Line, Report, Reset};

use crate::admission::policy::{self, Choices};
use crate::admission::{self, Notice, Offer, Refusal, Surroundings, line_sharers, page_sharer, without_acs};
use crate::config_space::interrupts::{msi_vectors, msix_entries};
use crate::handover::intx_lines;
use crate::handover::intx_lines::line_is_known;
use crate::handover::reset::Plan;
use crate::host::Host;
use crate::host::dmar::{self, Dmar};
use crate::host::domains;
use crate::host::guest_config::GuestConfig;
use crate::host::ivrs::Ivrs;
use crate::host::pci_ids::PciIds;
use crate::host::sysfs::{PCIBACK, Sysfs};
use crate::host::xl;
use crate::records::Attachment;
use crate::terms::Terms;
use anyhow::{Result, bail};
use bulkhead_config::options::Wanted;
use pci::bdf::Bdf;
use pci::registers::register;
use std::ops::RangeInclusive;
use xenbus::device::SlotMode;

/// Arguments of `check`.
#[derive(Clone, Debug)]
pub struct Check {
    /// The devices, as they were named.
    pub devices: Vec<String>,
    /// The guest that they are for, by name or number.
    pub guest: Option<String>,
    /// How the guest's devices are to be addressed.
    pub slots: SlotMode,
    /// Choices for all of them.
    pub choices: Choices,
    /// True if they are for a later start: what guests have at the moment does not count.
    pub later: bool,
}

/// Checks devices with the same functions as `run` and `attach`.
pub fn check(request: &Check) -> Result<Report> {
    let mut host = Host::open()?;
    // A name that means no device is reported, and does not hide the others.
    let named: Vec<Result<(Bdf, Terms)>> = request
        .devices
        .iter()
        .map(|text| resolve(text, &request.choices, &host))
        .collect();
    let bdfs: Vec<Bdf> = named.iter().flatten().map(|(bdf, _)| *bdf).collect();
    let info = xl::info()?;
    let host_refusal = admission::check_host(&info).err();
    let around = Surroundings::read(&mut host, &bdfs, &info);
    let mut around = match (around, &host_refusal) {
        // What cannot be read may be missing because the host is of the wrong kind. That refusal says more.
        (Err(_), Some(refusal)) => bail!("{refusal}"),
        (around, _) => around?,
    };
    let (guest, already, guest_refusal) = guest(request.guest.as_deref(), &mut host)?;
    // What this guest had before, and may still have mapped, it can have again.
    if let Some(guest) = &guest {
        around.claims.forgive(guest.domid);
    }
    if request.later {
        around.claims.set_aside(&bdfs);
    }

    let wanted: Vec<_> = named.iter().flatten().map(|(bdf, terms)| (*bdf, terms)).collect();
    let mut refusals = admission::check_devices(&bdfs, &already, request.slots, &around);
    refusals.extend(admission::check_quirks(&wanted, &host.sysfs));
    refusals.extend(admission::check_lines(&wanted, &already, &around));
    let refused = |bdf: Bdf| refusals.iter().filter(move |refusal| refusal.bdf() == Some(bdf));
    // Notices are about devices that would be given; describing a refused one may fail.
    let fit: Vec<_> = wanted
        .iter()
        .copied()
        .filter(|&(bdf, _)| refused(bdf).next().is_none())
        .collect();
    let notices = admission::describe_all(&fit, &already, &around)?.1;
    let together = [already.as_slice(), &bdfs].concat();
    let firmware = Firmware::read();
    let names = PciIds::read();

    let mut report = Report {
        fit: host_refusal.is_none() && guest_refusal.is_none(),
        host: host_refusal.map(|refusal| refusal.to_string()),
        guest,
        spare_pirqs: around.spare_pirqs,
        ..Report::default()
    };
    report.notes.extend(guest_refusal);
    report.notes.extend(admission::host_notes(&info));
    // What concerns no single device.
    let general = refusals.iter().filter(|refusal| refusal.bdf().is_none());
    report.notes.extend(general.map(Refusal::to_string));
    let general = notices.iter().filter(|notice| notice.bdf().is_none());
    report.notes.extend(general.map(Notice::to_string));
    // A refusal that concerns no single device concerns all of them.
    report.fit &= refusals.iter().all(|refusal| refusal.bdf().is_some());
    for (name, named) in request.devices.iter().zip(&named) {
        let entry = match named {
            Ok((bdf, terms)) => DeviceReport {
                name: name.clone(),
                fit: refused(*bdf).next().is_none(),
                refusals: refused(*bdf).map(Refusal::to_string).collect(),
                notes: notes(*bdf, &notices, &around),
                device: device(*bdf, terms, &together, &around, &firmware, &names).ok(),
            },
            Err(error) => DeviceReport {
                name: name.clone(),
                fit: false,
                refusals: vec![format!("{error:#}")],
                notes: Vec::new(),
                device: None,
            },
        };
        report.fit &= entry.fit;
        report.devices.push(entry);
    }
    Ok(report)
}

/// The device that a text names, and the terms on which it would be given.
fn resolve(text: &str, choices: &Choices, host: &Host) -> Result<(Bdf, Terms)> {
    let wanted: Wanted = text.parse()?;
    let decided = policy::decide(&[wanted], choices, &host.sysfs)?;
    let device = decided.devices.into_iter().next();
    device.ok_or_else(|| anyhow::anyhow!("{text} names no device"))
}

/// The guest that is named, the devices that it has, and why it cannot get any.
fn guest(who: Option<&str>, host: &mut Host) -> Result<(Option<Guest>, Vec<Bdf>, Option<String>)> {
    let Some(who) = who else {
        return Ok((None, Vec::new(), None));
    };
    let guest = domains::find(&mut host.store, who)?;
    let config = xl::config_of(&guest.domid.to_string())?;
    let refusal = GuestConfig::from_json(&config).and_then(|config| config.check());
    let refusal = refusal.err().map(|refusal| refusal.to_string());
    let (attachments, _) = Attachment::all(&mut host.store)?;
    let attachment = attachments
        .into_iter()
        .find(|attachment| attachment.guest.domid == guest.domid);
    let modes = attachment.iter().flat_map(Attachment::devices_and_modes);
    let used: usize = modes.map(|(_, recorded)| recorded.mode().pirqs().len()).sum();
    let already = attachment.iter().flat_map(Attachment::bdfs).collect();
    let guest = Guest {
        name: guest.name,
        domid: guest.domid,
        pirqs_used: u32::try_from(used).unwrap_or(u32::MAX),
    };
    Ok((Some(guest), already, refusal))
}

/// What the administrator should know about a device.
fn notes(bdf: Bdf, notices: &[Notice], around: &Surroundings) -> Vec<String> {
    let known = line_is_known(bdf, &around.sysfs);
    let about = notices.iter().filter(|notice| notice.bdf() == Some(bdf));
    about
        .filter(|notice| known || !notice.is_about_line())
        .map(Notice::to_string)
        .collect()
}

/// Facts about a device.
fn device(
    bdf: Bdf,
    terms: &Terms,
    together: &[Bdf],
    around: &Surroundings,
    firmware: &Firmware,
    names: &PciIds,
) -> Result<DeviceFacts, Refusal> {
    let sysfs = &around.sysfs;
    let config = sysfs.config_bytes(bdf)?;
    let bars = sysfs.bars(bdf)?;
    let all = sysfs.functions().map_err(Refusal::NoSysfs)?;
    let mut shares_page_with = Vec::new();
    for other in all.into_iter().filter(|&other| other != bdf) {
        // One at a time, for the names of all of them are wanted.
        if page_sharer(&bars, std::iter::once(other), sysfs)?.is_some() {
            shares_page_with.push(other.to_string());
        }
    }
    let class = |offset| config.get(usize::from(offset)).copied().unwrap_or(0xff);
    Ok(DeviceFacts {
        bdf: bdf.to_string(),
        ids: sysfs.ids(bdf)?.to_string(),
        called: names.name(sysfs.ids(bdf)?),
        class: format!(
            "{:02x}{:02x}{:02x}",
            class(register::BASE_CLASS),
            class(register::BASE_CLASS - 1),
            class(register::BASE_CLASS - 2)
        ),
        held_by: holder(bdf, around),
        reset: reset(&Plan::of(bdf, sysfs)),
        group: texts(around.groups.others(bdf)),
        without_acs: texts(&without_acs(bdf, sysfs)),
        shares_page_with,
        line: line(bdf, terms, together, around)?,
        msi: msi_vectors(&config),
        msix: msix_entries(&config).into(),
        reserved: firmware.reserved_for(bdf, sysfs),
        terms: terms.to_string(),
    })
}

/// The firmware's table of memory that is reserved for the DMA of devices.
enum Firmware {
    Intel(Dmar),
    Amd(Ivrs),
    /// There is no table: reserved memory is unknown, which is not the same as none.
    Silent,
}

impl Firmware {
    fn read() -> Self {
        let intel = Dmar::read().map(Self::Intel);
        intel
            .or_else(|| Ivrs::read().map(Self::Amd))
            .unwrap_or(Self::Silent)
    }

    fn reserved_for(&self, bdf: Bdf, sysfs: &Sysfs) -> Option<Vec<String>> {
        let text = |range: RangeInclusive<u64>| format!("{:#x}-{:#x}", range.start(), range.end());
        match self {
            Self::Intel(dmar) => {
                let behind = |bus, devfn| dmar::secondary_bus(bus, devfn, sysfs);
                Some(dmar.reserved_for(bdf, behind).map(text).collect())
            }
            Self::Amd(ivrs) => Some(ivrs.reserved_for(bdf).map(text).collect()),
            Self::Silent => None,
        }
    }
}

/// What holds the device now, in words.
pub fn holder(bdf: Bdf, around: &Surroundings) -> String {
    if let Some(claim) = around.claims.taken.iter().find(|claim| claim.bdf == bdf) {
        return claim.by.trim_start_matches("by ").to_owned();
    }
    match around.sysfs.driver(bdf) {
        Some(driver) if driver == PCIBACK => "xen-pciback, free for a guest".into(),
        Some(driver) => format!("dom0's driver {driver}"),
        None => "no driver".into(),
    }
}

fn reset(plan: &Plan) -> Reset {
    Reset {
        methods: plan.methods.iter().map(ToString::to_string).collect(),
        used: plan.used().map(|method| method.to_string()),
        blocked_by: texts(plan.blocked_by()),
    }
}

fn line(bdf: Bdf, terms: &Terms, together: &[Bdf], around: &Surroundings) -> Result<Option<Line>, Refusal> {
    let Some(gsi) = intx_lines::line(bdf, &around.sysfs) else {
        return Ok(None);
    };
    // Linux assigns the GSI when it enables the device.
    if !line_is_known(bdf, &around.sysfs) {
        return Ok(Some(Line {
            gsi: None,
            shared_with: Vec::new(),
            offered: false,
        }));
    }
    let sharers = line_sharers(bdf, together, around)?;
    let offer = Offer::decide(bdf, terms, &sharers, &around.sysfs)?;
    let functions = texts(&sharers.dom0).into_iter().chain(texts(&sharers.guests));
    Ok(Some(Line {
        gsi: Some(gsi),
        offered: offer.is_given(),
        shared_with: functions.chain(sharers.handlers).collect(),
    }))
}

fn texts(bdfs: &[Bdf]) -> Vec<String> {
    bdfs.iter().map(Bdf::to_string).collect()
}
