//! `bulkhead release`: held devices go back to dom0's drivers.

use super::turn::Turn;
use crate::handover::seize::{self, Rebound, make_ready};
use crate::host::Host;
use crate::host::device_names;
use crate::host::sysfs::PCIBACK;
use crate::records::claims::Claims;
use crate::records::{self, drop_carried};
use crate::say::say;
use anyhow::{Result, anyhow, bail, ensure};
use bulkhead_config::name::Name;
use pci::bdf::Bdf;

/// Gives devices that no guest has back to dom0's drivers. A device in quarantine has to pass its reset first. A device that a
/// guest may still have mapped stays held until the guest has ended, unless it is `trusted`.
pub fn release(devices: &[Name], trusted: bool) -> Result<()> {
    let mut host = Host::open()?;
    let _turn = Turn::take()?;
    let mut problems = Vec::new();
    for name in devices {
        let released = device_names::resolve(name, &host.sysfs)
            .map_err(anyhow::Error::from)
            .and_then(|bdf| release_one(&mut host, bdf, trusted));
        // A problem with one device does not keep the others.
        match released {
            Ok(line) => say!("{line}"),
            Err(error) => problems.push(format!("{error:#}")),
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

fn release_one(host: &mut Host, bdf: Bdf, trusted: bool) -> Result<String> {
    // Before anything that may fail, and also for a device that dom0 has already.
    if let Some(guest) = drop_carried(&mut host.store, bdf)? {
        say!("guest {} does not get {bdf} at its next start", guest.name);
        if host.sysfs.driver(bdf).as_deref() != Some(PCIBACK) {
            return Ok(format!("dom0 has {bdf} already"));
        }
    }
    give_to_dom0(host, bdf, trusted)
}

fn give_to_dom0(host: &mut Host, bdf: Bdf, trusted: bool) -> Result<String> {
    if let Some(line) = clear(host, bdf, trusted)? {
        return Ok(line);
    }
    Ok(match seize::release(host, bdf)? {
        Rebound::Driver(driver) => format!("gave {bdf} back to dom0's driver {driver}"),
        _ => format!("gave {bdf} back to dom0, where no driver takes it"),
    })
}

/// Checks that a device may go to dom0, and removes what keeps it from that. Returns a message if dom0 has it already.
fn clear<X>(host: &mut Host<X>, bdf: Bdf, trusted: bool) -> Result<Option<String>> {
    let claims = Claims::read(&mut host.store)?;
    if let Some(claim) = claims.taken.iter().find(|claim| claim.bdf == bdf) {
        bail!("{bdf} is in use {}: {}", claim.by, claim.next);
    }
    let quarantine = records::quarantine_reason(&mut host.store, bdf)?;
    let driver = host.sysfs.driver(bdf);
    if driver.as_deref() != Some(PCIBACK) {
        let driver = driver.map_or_else(
            || "without a driver".into(),
            |driver| format!("with its driver {driver}"),
        );
        ensure!(
            quarantine.is_some(),
            "{bdf} is not held for guests: dom0 has it, {driver}"
        );
        // The administrator has given it to dom0 by other means, and so judged that it works.
        records::lift_quarantine(&mut host.store, bdf)?;
        return Ok(Some(format!(
            "{bdf} is in quarantine no more: dom0 has it, {driver}"
        )));
    }
    if let Some((_, guest)) = claims.mapped.iter().find(|(mapped, _)| *mapped == bdf) {
        ensure!(
            trusted,
            "guest {0}, which had {bdf} until it was detached, runs and may still have its memory mapped: end the guest \
             first, or trust it to leave the device alone (`bulkhead release --trusted-guest {bdf}`)",
            guest.name
        );
    }
    // That guest has ended, or is trusted.
    records::forget_mapped(&mut host.store, bdf)?;
    if let Some(reason) = quarantine {
        // The reset that failed before is tried once more. The device leaves quarantine only if it succeeds.
        make_ready(host, bdf).map_err(|error| {
            anyhow!(
                "{error:#} (it was kept because {reason}): power-cycle the host, which resets every device"
            )
        })?;
        records::lift_quarantine(&mut host.store, bdf)?;
        say!("{bdf} answers again, and is in quarantine no more");
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Runner;
    use crate::host::store::tests::{dom0, introduce};
    use crate::host::sysfs::tests::Tree;
    use crate::records::tests::{attachment, domain};
    use xen::model::Xen;
    use xenbus::model::Xenstored;

    const NAME: &str = "0000:00:05.0";

    /// A host whose guest 3 runs, and whose device 00:05.0 has this driver.
    fn host(driver: &str) -> (Tree, Host<Xen>, Bdf) {
        let (tree, daemon) = (Tree::new(), Xenstored::new());
        introduce(&daemon, 3, "web");
        tree.add(NAME, &[]);
        tree.bind(NAME, driver);
        let host = Host {
            store: dom0(&daemon),
            xen: Xen::default(),
            sysfs: tree.sysfs(),
            runner: Runner::Model(Vec::new()),
        };
        (tree, host, NAME.parse().unwrap())
    }

    fn refusal(cleared: Result<Option<String>>) -> String {
        cleared.unwrap_err().to_string()
    }

    #[test]
    fn a_device_that_a_guest_has_is_not_released_whoever_is_trusted() {
        let (_tree, mut host, bdf) = host(PCIBACK);
        attachment().write(&mut host.store).unwrap();
        for trusted in [false, true] {
            let error = refusal(clear(&mut host, bdf, trusted));
            assert!(
                error.starts_with("0000:00:05.0 is in use by guest web"),
                "{error}"
            );
        }
    }

    #[test]
    fn one_that_a_guest_may_have_mapped_is_released_if_the_guest_is_trusted() {
        let (_tree, mut host, bdf) = host(PCIBACK);
        records::record_mapped(&mut host.store, bdf, &domain(3, "web")).unwrap();
        let error = refusal(clear(&mut host, bdf, false));
        assert!(error.contains("--trusted-guest 0000:00:05.0"), "{error}");
        assert_eq!(records::mapped(&mut host.store).unwrap().len(), 1);
        assert_eq!(clear(&mut host, bdf, true).unwrap(), None);
        assert_eq!(records::mapped(&mut host.store).unwrap(), []);
    }

    #[test]
    fn one_that_dom0_has_is_not_held_and_its_quarantine_ends() {
        let (_tree, mut host, bdf) = host("e1000e");
        let error = refusal(clear(&mut host, bdf, false));
        assert!(
            error.contains("is not held for guests: dom0 has it, with its driver e1000e"),
            "{error}"
        );
        records::quarantine(&mut host.store, bdf, "it is mute").unwrap();
        let line = clear(&mut host, bdf, false).unwrap().unwrap();
        assert!(line.contains("in quarantine no more"), "{line}");
        assert_eq!(records::quarantine_reason(&mut host.store, bdf).unwrap(), None);
    }
}
