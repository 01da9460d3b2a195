//! The steps before devices are given to a guest: they are admitted, taken from dom0, and described.

use super::check::holder;
use super::dry_run::PlannedDevice;
use super::return_devices::why_held;
use super::undo::Undo;
use super::waiting::Interrupt;
use crate::admission::policy::{self, Choices, Decided};
use crate::admission::{self, Notice, Refusal, Surroundings};
use crate::handover::config_backup;
use crate::handover::intx_lines::line_is_known;
use crate::handover::reset::Plan;
use crate::handover::seize::{Before, Rebound, make_ready, rebind_driver, seize};
use crate::host::Host;
use crate::host::domains::Domain;
use crate::host::pci_ids::PciIds;
use crate::host::store::Store;
use crate::host::xl;
use crate::paths;
use crate::records::{self, Attachment, Device, Seizure};
use crate::say::{notice, say};
use crate::terms::Terms;
use anyhow::{Context, Result, anyhow, bail, ensure};
use bulkhead_config::options::Wanted;
use pci::bdf::Bdf;
use xenbus::device::SlotMode;

/// Devices that have passed all checks.
pub struct Admitted {
    bdfs: Vec<Bdf>,
    /// The terms of each of them.
    terms: Vec<Terms>,
    /// The devices that the guest has already.
    already: Vec<Bdf>,
    around: Surroundings,
}

/// Checks devices for a guest that has the devices `already`, and addresses all in this way. `guest` is absent if it is
/// still to be made.
pub fn admit(
    host: &mut Host,
    wanted: &[Wanted],
    choices: &Choices,
    guest: Option<&Domain>,
    already: &[Bdf],
    slots: SlotMode,
) -> Result<Admitted> {
    let Decided { devices, notices } = policy::decide(wanted, choices, &host.sysfs)?;
    notices.iter().for_each(|notice| notice!("{notice}"));
    let (bdfs, terms): (Vec<Bdf>, Vec<Terms>) = devices.into_iter().unzip();
    let info = xl::info()?;
    admission::check_host(&info)?;
    admission::host_notes(&info)
        .iter()
        .for_each(|text| notice!("{text}"));
    let mut around = Surroundings::read(host, &bdfs, &info)?;
    // What this guest had before, and may still have mapped, it can have again.
    if let Some(guest) = guest {
        around.claims.forgive(guest.domid);
    }
    let mut refusals = admission::check_devices(&bdfs, already, slots, &around);
    let wanted: Vec<_> = bdfs.iter().copied().zip(&terms).collect();
    refusals.extend(admission::check_quirks(&wanted, &host.sysfs));
    refusals.extend(admission::check_lines(&wanted, already, &around));
    // All refusals at once, so that the administrator need not try again for each.
    match refusals.len() {
        0 => Ok(Admitted {
            bdfs,
            terms,
            already: already.to_vec(),
            around,
        }),
        1 => Err(refusals
            .into_iter()
            .next()
            .map_or_else(|| anyhow!("refused"), anyhow::Error::from)),
        _ => bail!(
            refusals
                .iter()
                .map(Refusal::to_string)
                .collect::<Vec<_>>()
                .join("\n")
        ),
    }
}

impl Admitted {
    /// The devices.
    pub fn bdfs(&self) -> &[Bdf] {
        &self.bdfs
    }

    /// What would become of the devices, and what the administrator should know about them. Nothing is changed.
    pub fn plan(&self) -> Result<(Vec<PlannedDevice>, Vec<String>)> {
        let wanted: Vec<_> = self.bdfs.iter().copied().zip(&self.terms).collect();
        let (described, notices) = admission::describe_all(&wanted, &self.already, &self.around)?;
        let names = PciIds::read();
        let devices = described.iter().map(|device| PlannedDevice {
            bdf: device.bdf.to_string(),
            ids: device.ids.to_string(),
            called: names.name(device.ids),
            held_by: holder(device.bdf, &self.around),
            reset: Plan::of(device.bdf, &self.around.sysfs)
                .used()
                .map(|method| method.to_string()),
            terms: device.terms.to_string(),
        });
        // Linux assigns the line when it enables the device.
        let is_known = |notice: &&Notice| {
            let known = |bdf| line_is_known(bdf, &self.around.sysfs);
            !notice.is_about_line() || notice.bdf().is_none_or(known)
        };
        let notes = notices.iter().filter(is_known).map(Notice::to_string);
        Ok((devices.collect(), notes.collect()))
    }

    /// Takes the devices from dom0's drivers.
    pub fn seize(&self, host: &mut Host, interrupt: &Interrupt, undo: &mut Undo) -> Result<()> {
        for &bdf in &self.bdfs {
            // Undone also if it fails halfway: the record says whether this command has taken the device.
            let seized = seize(host, bdf, Seizure::ForGuest, undo.command());
            let command = undo.command().to_owned();
            undo.push(move |host, _| undo_seize(host, bdf, &command));
            match seized? {
                Before::Driven(driver) => say!("took {bdf} from dom0's driver {driver}"),
                Before::Idle => say!("took {bdf}, which had no driver in dom0"),
                Before::Held => say!("{bdf} is held by xen-pciback already"),
            }
            if let Some(method) = make_ready(host, bdf)? {
                say!("{bdf} was reset by {method}");
            }
            interrupt.check()?;
        }
        Ok(())
    }

    /// Describes the devices for the record, once they are taken. Tells what the administrator should know, and backs up the
    /// registers that the guest may change.
    pub fn describe(&self) -> Result<Vec<Device>> {
        let wanted: Vec<_> = self.bdfs.iter().copied().zip(&self.terms).collect();
        let (devices, notices) = admission::describe_all(&wanted, &self.already, &self.around)?;
        notices.iter().for_each(|notice| notice!("{notice}"));
        // Before the guest has the device: what it changes is put back when the device returns.
        for Device { bdf, terms, .. } in &devices {
            config_backup::keep(*bdf, terms, &self.around.sysfs)
                .with_context(|| format!("cannot back up the registers of {bdf} in {}", paths::RUN))?;
        }
        Ok(devices)
    }
}

/// Gives a device back to dom0 that `command` had taken.
fn undo_seize(host: &mut Host, bdf: Bdf, command: &str) -> Result<()> {
    if is_to_go_back(&mut host.store, bdf, command)?
        && let Rebound::MappedBy(guest) = rebind_driver(host, bdf)?
    {
        notice!("{}", why_held(bdf, &guest));
    }
    Ok(())
}

/// True if the device was taken by `command`, and no other command and no guest has it. Fails if a guest still has it, because
/// an earlier step could not be undone.
fn is_to_go_back(store: &mut Store, bdf: Bdf, command: &str) -> Result<bool> {
    if !records::is_seized_by(store, bdf, command)? {
        return Ok(false);
    }
    let (attachments, damaged) = Attachment::all(store)?;
    // A record that cannot be read may name this device.
    if let Some(error) = damaged.into_iter().next() {
        return Err(error).with_context(|| format!("{bdf} stays held: a guest may have it"));
    }
    for attachment in &attachments {
        ensure!(
            attachment.bdfs().all(|other| other != bdf),
            "{bdf} stays with guest {}: `bulkhead detach {bdf}` tries again to take it back",
            attachment.guest.name
        );
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::dom0;
    use crate::records::tests::attachment;
    use xenbus::client::Store as _;
    use xenbus::model::Xenstored;

    #[test]
    fn a_device_goes_back_if_this_command_took_it_and_nobody_else_has_since() {
        let mut store = dom0(&Xenstored::new());
        let bdf: Bdf = "00:05.0".parse().unwrap();
        let goes_back = |store: &mut Store| is_to_go_back(store, bdf, "this").unwrap();
        assert!(!goes_back(&mut store), "it was not taken");
        records::record_seized(&mut store, Seizure::ForGuest, bdf, "e1000e", "this").unwrap();
        assert!(goes_back(&mut store));
        records::record_seized(&mut store, Seizure::ForGuest, bdf, "e1000e", "another").unwrap();
        assert!(!goes_back(&mut store));
        records::record_seized(&mut store, Seizure::ForGuest, bdf, "e1000e", "this").unwrap();
        attachment().write(&mut store).unwrap();
        let error = is_to_go_back(&mut store, bdf, "this").unwrap_err().to_string();
        assert!(
            error.starts_with("0000:00:05.0 stays with guest web: `bulkhead detach"),
            "{error}"
        );
        let other: Bdf = "00:09.0".parse().unwrap();
        records::record_seized(&mut store, Seizure::ForGuest, other, "", "this").unwrap();
        assert!(is_to_go_back(&mut store, other, "this").unwrap());

        // Whom a damaged record gives it to is not known.
        store.write("/local/domain/0/bulkhead/attachment/9", "{").unwrap();
        let error = is_to_go_back(&mut store, other, "this").unwrap_err().to_string();
        assert_eq!(error, "0000:00:09.0 stays held: a guest may have it");
    }
}
