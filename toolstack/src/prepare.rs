//! What comes before devices are given to a guest: they are checked, taken from dom0, and described.

use crate::checks::{self, Refusal, Surroundings};
use crate::control;
use crate::domains::Domain;
use crate::host::Host;
use crate::originals;
use crate::policy::{self, Choices, Decided};
use crate::records::{Device, Taken};
use crate::say::{note, say};
use crate::seize::{Before, make_ready, seize};
use crate::terms::Terms;
use crate::undo::{Step, Undo};
use crate::waiting::Interrupt;
use crate::xl;
use anyhow::{Context, Result, anyhow, bail};
use bulkhead_config::options::Wanted;
use xenbus::bdf::Bdf;
use xenbus::device::SlotMode;

/// Devices that have passed all checks.
pub struct Checked {
    bdfs: Vec<Bdf>,
    /// For each, on what terms the guest gets it.
    terms: Vec<Terms>,
    /// The devices that the guest has besides.
    already: Vec<Bdf>,
    around: Surroundings,
}

/// Checks devices for a guest that has the devices `already`, and addresses all in this way. `guest` is absent if it is
/// still to be made.
pub fn check(
    host: &mut Host,
    wanted: &[Wanted],
    choices: &Choices,
    guest: Option<&Domain>,
    already: &[Bdf],
    slots: SlotMode,
) -> Result<Checked> {
    let Decided { devices, notices } = policy::decide(wanted, choices, &host.sysfs)?;
    notices.iter().for_each(|notice| note!("{notice}"));
    let (bdfs, terms): (Vec<Bdf>, Vec<Terms>) = devices.into_iter().unzip();
    let info = xl::info()?;
    checks::check_host(&info)?;
    checks::host_notes(&info).iter().for_each(|text| note!("{text}"));
    let mut around = Surroundings::read(host, &bdfs, &info)?;
    if let Some(guest) = guest {
        around.claims.forgive(guest.domid);
    }
    let mut refusals = checks::check_devices(&bdfs, already, slots, &around);
    let wanted: Vec<_> = bdfs.iter().copied().zip(&terms).collect();
    refusals.extend(checks::check_quirks(&wanted, &host.sysfs));
    refusals.extend(checks::check_lines(&wanted, already, &around));
    match refusals.len() {
        0 => Ok(Checked {
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

impl Checked {
    /// The devices.
    pub fn bdfs(&self) -> &[Bdf] {
        &self.bdfs
    }

    /// Takes the devices from dom0's drivers.
    pub fn take_from_dom0(&self, host: &mut Host, interrupt: &Interrupt, undo: &mut Undo) -> Result<()> {
        for &bdf in &self.bdfs {
            let seized = seize(host, bdf, Taken::ForGuest, undo.command());
            undo.push(Step::Seized(bdf));
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

    /// Describes the devices, once they are taken, and tells what the administrator should know.
    pub fn describe(&self) -> Result<Vec<Device>> {
        let wanted: Vec<_> = self.bdfs.iter().copied().zip(&self.terms).collect();
        let (devices, notices) = checks::describe_all(&wanted, &self.already, &self.around)?;
        notices.iter().for_each(|notice| note!("{notice}"));
        for Device { bdf, terms, .. } in &devices {
            originals::keep(*bdf, terms, &self.around.sysfs).with_context(|| {
                format!("cannot keep what the registers of {bdf} hold in {}", control::RUN)
            })?;
        }
        Ok(devices)
    }
}
