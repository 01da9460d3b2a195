//! `bulkhead shutdown`: ends all guests with devices in order, as the host's shutdown needs it; and whether the package may be
//! removed, which it may not while there are such guests.
//!
//! Xen's own scripts for the host's shutdown would save guests and stubs one by one. A guest with devices cannot be saved, a stub
//! does not answer that, and a stub must not end before its guest.

use super::destroy;
use super::give::destroy_built;
use super::return_devices::{left_of, reclaim_attachment};
use super::turn::Turn;
use super::waiting::Interrupt;
use crate::control;
use crate::handover::carry::carry_over;
use crate::host::domains::{self, Domain, has_home, present};
use crate::host::store::{self, Store};
use crate::host::sysfs::{PCIBACK, Sysfs};
use crate::host::{Host, xl};
use crate::records::{Attachment, GuestStart, RecordError, has_not_run};
use crate::say::{notice, say};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};
use xen::xenctrl::{DomId, DomainState, Hypervisor, RunState, Xenctrl};

/// Interval at which the records are read. Guests take seconds to shut down, and each reading is many requests to xenstored.
const POLL: Duration = Duration::from_millis(500);

/// What has shut down is destroyed after this time, if xl does not do so.
const GRACE: Duration = Duration::from_secs(3);

/// Guests that have shut down, each with the time since when. xl's process that destroys such a guest lives in the session of
/// whoever created it, and ends with that session: when the host goes down, it may be gone before the guest.
#[derive(Default)]
struct Unattended(BTreeMap<DomId, Instant>);

impl Unattended {
    /// True if a guest has been shut down for so long that nobody destroys it.
    fn is_left(&mut self, guest: DomId, is_shut_down: bool, now: Instant) -> bool {
        if !is_shut_down {
            self.0.remove(&guest);
            return false;
        }
        let since = *self.0.entry(guest).or_insert(now);
        now >= since + GRACE
    }
}

/// Tells all guests with devices to shut down, and waits until their devices are taken back and their stubs are gone. A guest
/// that is not done after `longest` is destroyed, if `destroy_late` says so. Guests that wait for their devices are destroyed:
/// they have not run yet, and cannot hear that they are to shut down.
pub fn shutdown_all(longest: Duration, destroy_late: bool) -> Result<()> {
    let mut host = Host::open()?;
    let interrupt = Interrupt::catch()?;
    let mut problems = Vec::new();
    let waiting = waiting(&mut host.store, Some(&host.xen), has_not_run)?;
    for guest in &waiting {
        // Each takes seconds. Somebody may have let this one run meanwhile.
        if !self::waiting(&mut host.store, Some(&host.xen), has_not_run)?.contains(guest) {
            continue;
        }
        match destroy_built(&mut host, guest) {
            Ok(()) => say!(
                "guest {} is destroyed: it has not run, and waited for its devices",
                guest.name
            ),
            Err(error) => problems.push(format!("guest {}: {error:#}", guest.name)),
        }
    }
    // Those that got their devices until now are among them.
    let (mut guests, damaged) = guests(&mut host.store)?;
    for error in damaged {
        notice!("{error}");
    }
    if guests.is_empty() {
        ensure!(problems.is_empty(), "{}", problems.join("\n"));
        if waiting.is_empty() {
            say!("no guest has devices");
        }
        return Ok(());
    }
    // The service takes the devices back. When the host goes down systemd may start it no more.
    if let Err(error) = control::ensure_running() {
        notice!("{error:#}");
    }
    for guest in &guests {
        match xl::shutdown(&guest.domid.to_string()) {
            Ok(()) => say!("guest {} is told to shut down", guest.name),
            // Without drivers that listen it never ends by itself; it may have ended by now too.
            Err(error) => notice!("guest {}: {error}", guest.name),
        }
    }
    // `None` for a time that `Instant` cannot express: no limit.
    let deadline = Instant::now().checked_add(longest);
    let mut unattended = Unattended::default();
    let mut left = still_there(&mut host.store, &guests)?;
    while !left.is_empty() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
        interrupt.check()?;
        thread::sleep(POLL);
        for guest in &left {
            let state = host.xen.domain_state(guest.domid);
            let is_shut_down = matches!(state, Ok(DomainState::ShutDown(_)));
            if unattended.is_left(guest.domid, is_shut_down, Instant::now()) {
                // It fails if somebody else has destroyed it by now. What stays is told below.
                if let Ok(Some(guest)) = present(&mut host, guest) {
                    let _ = domains::destroy(&mut host, &guest);
                }
            }
        }
        for guest in unattended_devices(&mut host, &left, control::is_running())? {
            if let Err(error) = reclaim(&mut host, &guest) {
                problems.push(format!("guest {}: {error:#}", guest.name));
                guests.retain(|other| *other != guest);
            }
        }
        left = still_there(&mut host.store, &guests)?;
    }
    let late = names(&left);
    ensure!(
        left.is_empty() || destroy_late,
        "{late} did not shut down within {} s: `xl console` shows what a guest does, and `bulkhead destroy` ends it",
        longest.as_secs()
    );
    for guest in &left {
        notice!(
            "guest {} did not shut down within {} s: it is destroyed",
            guest.name,
            longest.as_secs()
        );
        // One that does not die does not keep the others.
        if let Err(error) = destroy::destroy(&guest.domid.to_string()) {
            problems.push(format!("{error:#}"));
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    say!("done: the devices of {} are taken back", names(&guests));
    Ok(())
}

/// Those of these guests that have ended, and whose devices nobody takes back: the service does that, and when the host goes
/// down systemd does not start one that was stopped.
fn unattended_devices<X: Hypervisor>(
    host: &mut Host<X>,
    guests: &[Domain],
    service_runs: bool,
) -> Result<Vec<Domain>> {
    let mut unattended = Vec::new();
    if service_runs {
        return Ok(unattended);
    }
    for guest in guests {
        if present(host, guest)?.is_none() {
            unattended.push(guest.clone());
        }
    }
    Ok(unattended)
}

/// Takes the devices of a guest that has ended back, as the service does.
fn reclaim(host: &mut Host, guest: &Domain) -> Result<()> {
    let (mut turn, left) = Turn::take_for(|| {
        let left = left_of(host, guest)?;
        Ok((Some(guest.clone()), left))
    })?;
    let Some(left) = left else {
        return Ok(());
    };
    carry_over(&mut host.store, &left)?;
    let released = reclaim_attachment(host, &mut turn, &left)?;
    released.devices.iter().for_each(|line| say!("{line}"));
    ensure!(released.problems.is_empty(), "{}", released.problems.join("; "));
    Ok(())
}

/// Fails while a guest has devices, or waits for some: without the service it would lose their registers and interrupts at its
/// next change, or would wait for ever.
pub fn check_removable() -> Result<()> {
    // Without xenstore no guest runs.
    let Ok(mut store) = store::open() else {
        return Ok(());
    };
    let (guests, damaged) = guests(&mut store)?;
    // Without Xen's word, those count that the records tell.
    let xen = Xenctrl::open().ok();
    let xen = xen.as_ref().map(|xen| xen as &dyn Hypervisor);
    let waiting = waiting(&mut store, xen, |state| state.paused)?;
    refuse(&guests, &waiting, &damaged)?;
    let sysfs = Sysfs::host();
    let held: Vec<String> = sysfs
        .functions()?
        .into_iter()
        .filter(|&bdf| sysfs.driver(bdf).as_deref() == Some(PCIBACK))
        .map(|bdf| bdf.to_string())
        .collect();
    if !held.is_empty() {
        notice!(
            "{} stay with xen-pciback until the host restarts; `bulkhead release` gives devices back to dom0's drivers",
            held.join(", ")
        );
    }
    Ok(())
}

fn refuse(guests: &[Domain], waiting: &[Domain], damaged: &[impl Display]) -> Result<()> {
    if let Some(error) = damaged.first() {
        anyhow::bail!("it cannot be seen whether guests have devices: {error}");
    }
    ensure!(
        guests.is_empty(),
        "{} would lose the devices: Bulkhead stays. `bulkhead shutdown --all` ends these guests in order; then remove the \
         package again",
        names(guests)
    );
    ensure!(
        waiting.is_empty(),
        "{} would stay paused, because nobody else gives the devices: Bulkhead stays. `bulkhead shutdown --all` ends these \
         guests, and `xl unpause` lets one run without devices; then remove the package again",
        names(waiting)
    );
    Ok(())
}

fn names(guests: &[Domain]) -> String {
    let names: Vec<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
    let noun = if names.len() == 1 { "guest" } else { "guests" };
    format!("{noun} {}", names.join(", "))
}

/// The guests that have devices, and the records that cannot be read.
fn guests(store: &mut Store) -> Result<(Vec<Domain>, Vec<RecordError>)> {
    let (attachments, damaged) = Attachment::all(store)?;
    let guests = attachments.into_iter().map(|attachment| attachment.guest);
    Ok((guests.collect(), damaged))
}

/// The guests without devices that are paused until they have some, or until somebody lets them run; those of them whose
/// state in Xen `counts`.
fn waiting(
    store: &mut Store,
    xen: Option<&dyn Hypervisor>,
    counts: fn(RunState) -> bool,
) -> Result<Vec<Domain>> {
    let (attachments, _) = Attachment::all(store)?;
    let mut waiting = Vec::new();
    for start in GuestStart::all(store)? {
        if let Some(xen) = xen {
            let state = xen.run_state(start.guest.domid);
            let state = state
                .with_context(|| format!("cannot ask Xen whether guest {} is paused", start.guest.name))?;
            // Whatever the record says: `xl unpause` leaves no trace in it.
            if !state.is_some_and(counts) {
                continue;
            }
        }
        let has_devices = attachments
            .iter()
            .any(|attachment| attachment.guest == start.guest);
        if start.is_paused() && !has_devices && has_home(store, &start.guest)? {
            waiting.push(start.guest);
        }
    }
    Ok(waiting)
}

fn still_there(store: &mut Store, guests: &[Domain]) -> Result<Vec<Domain>> {
    let (now, _) = self::guests(store)?;
    // One that libxl keeps under another name has the old number.
    let is_there = |guest: &&Domain| {
        now.iter()
            .any(|other| other.uuid == guest.uuid || other.domid == guest.domid)
    };
    Ok(guests.iter().filter(is_there).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Runner;
    use crate::host::store::tests::{dom0, introduce};
    use crate::host::sysfs::tests::Tree;
    use crate::records::Stage;
    use crate::records::tests::{attachment, domain};
    use xen::model::{ModelDomain, Xen};
    use xenbus::model::Xenstored;

    fn host(daemon: &Xenstored, tree: &Tree) -> Host<Xen> {
        Host {
            store: dom0(daemon),
            xen: Xen::default(),
            sysfs: tree.sysfs(),
            runner: Runner::Model(Vec::new()),
        }
    }

    fn guest(name: &str) -> Domain {
        Domain {
            domid: 7,
            name: name.into(),
            uuid: format!("uuid of {name}"),
        }
    }

    #[test]
    fn a_guest_that_has_shut_down_is_destroyed_if_nobody_else_does_so() {
        let now = Instant::now();
        let mut unattended = Unattended::default();
        assert!(!unattended.is_left(3, false, now));
        assert!(!unattended.is_left(3, true, now));
        assert!(!unattended.is_left(4, true, now + POLL));
        assert!(unattended.is_left(3, true, now + GRACE));
        assert!(!unattended.is_left(4, true, now + GRACE));
        // Another domain has the number by now, such as after a restart.
        assert!(!unattended.is_left(3, false, now + GRACE));
        assert!(!unattended.is_left(3, true, now + GRACE));
    }

    #[test]
    fn the_package_stays_while_guests_have_devices_and_the_refusal_names_them_and_the_next_step() {
        refuse(&[], &[], &[] as &[String]).unwrap();
        let refused = refuse(&[guest("web"), guest("mail")], &[guest("news")], &[] as &[String]).unwrap_err();
        insta::assert_snapshot!(refused.to_string(), @"guests web, mail would lose the devices: Bulkhead stays. `bulkhead shutdown --all` ends these guests in order; then remove the package again");
        let waiting = refuse(&[], &[guest("news")], &[] as &[String]).unwrap_err();
        insta::assert_snapshot!(waiting.to_string(), @"guest news would stay paused, because nobody else gives the devices: Bulkhead stays. `bulkhead shutdown --all` ends these guests, and `xl unpause` lets one run without devices; then remove the package again");
        let unknown = refuse(&[], &[], &["record 7 is damaged"]).unwrap_err();
        insta::assert_snapshot!(unknown.to_string(), @"it cannot be seen whether guests have devices: record 7 is damaged");
    }

    #[test]
    fn guests_that_are_held_are_found_and_destroyed_and_those_that_were_let_run_are_not() {
        let (daemon, tree) = (Xenstored::new(), Tree::new());
        let mut host = host(&daemon, &tree);
        let held = || Stage::Failed {
            reason: "it is mute".into(),
            held: true,
        };
        // Guest web has its devices by now, and the administrator has let news run. The last domain has gone.
        attachment().write(&mut host.store).unwrap();
        for (domid, name, stage, pauses) in [
            (3, "web", Stage::Paused, 1),
            (7, "mail", held(), 1),
            (8, "news", held(), 0),
            (9, "post", Stage::Paused, 1),
            (10, "gone", held(), 1),
        ] {
            let guest = domain(domid, name);
            if name != "gone" {
                introduce(&daemon, domid, name);
            }
            let cpu_time = Duration::ZERO;
            host.xen.set_domain(domid, ModelDomain { pauses, cpu_time });
            GuestStart { guest, stage }.write(&mut host.store).unwrap();
        }
        let found = waiting(&mut host.store, Some(&host.xen), has_not_run).unwrap();
        assert_eq!(found, [domain(7, "mail"), domain(9, "post")]);
        let told = waiting(&mut host.store, None, has_not_run).unwrap();
        assert_eq!(told.len(), 3, "by the records alone: {told:?}");
        for guest in &found {
            destroy_built(&mut host, guest).unwrap();
        }
        assert!(matches!(&host.runner, Runner::Model(destroyed) if *destroyed == [7, 9]));
        assert_eq!(
            waiting(&mut host.store, Some(&host.xen), has_not_run).unwrap(),
            []
        );
    }

    #[test]
    fn devices_of_a_guest_that_has_ended_are_not_waited_for_if_no_service_runs() {
        let (daemon, tree) = (Xenstored::new(), Tree::new());
        let mut host = host(&daemon, &tree);
        let guests = [domain(3, "web"), domain(7, "mail")];
        introduce(&daemon, 3, "web");
        introduce(&daemon, 7, "mail");
        daemon.release(7);
        assert_eq!(unattended_devices(&mut host, &guests, true).unwrap(), []);
        let mail = &guests[1..];
        assert_eq!(unattended_devices(&mut host, &guests, false).unwrap(), mail);
    }
}
