//! Brings dead stubs back, each with the number that it had. Their guests notice a slow access at most.
//!
//! pcifront waits two seconds for an answer. What it has open towards its stub (grant, event channel, watch) holds for any
//! domain of the same number. So a new domain gets the number, and finds in xenstore what the old one left. States 5, 6 and 7
//! of the first hop are never written on the way.
//!
//! If that fails, the guest sees an orderly hot unplug ([`unplug`]). If only the number could not be had, the devices come
//! back with a stub of another number. If the stub died again and again, they do not.

mod backoff;
mod network;
mod stub;
mod stub_domain;
mod unplug;

pub use stub::{Afterwards, StubAction};

use crate::host::domains::is_alive;
use crate::host::guest_config::StubOrigin;
use crate::host::launcher::{LaunchError, Launcher, Order, Ticket};
use crate::host::{Host, Runner};
use crate::records::failed::Failed;
use crate::records::{Attachment, RecordError};
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::time::{Duration, Instant};
use stub::{Moment, Revival, RevivalStage};
use xen::xenctrl::DomId;

/// What is known of each stub, dead or alive.
pub struct Revivals {
    stubs: BTreeMap<DomId, Revival>,
    /// Orders for guests, by their names, that get their devices back through a stub of another number.
    replugs: Vec<(String, Ticket)>,
    /// Orders for stubs, by their names, that get their network again.
    networks: Vec<(String, Ticket)>,
    /// What the times of [`Backoff`](backoff::Backoff) count from.
    epoch: Instant,
}

impl Revivals {
    /// No stub is known yet.
    pub fn new() -> Self {
        Self {
            stubs: BTreeMap::new(),
            replugs: Vec::new(),
            networks: Vec::new(),
            epoch: Instant::now(),
        }
    }

    /// Forgets all other stubs.
    pub fn keep(&mut self, stubs: &BTreeSet<DomId>) {
        self.stubs.retain(|stub, _| stubs.contains(stub));
    }

    /// Forgets a stub that has no record any more.
    pub fn drop_stub(&mut self, stub: DomId) {
        self.stubs.remove(&stub);
    }

    /// How often a stub was brought back.
    pub fn count(&self, stub: DomId) -> u64 {
        self.stubs
            .get(&stub)
            .map_or(0, |revival| revival.backoff.revivals())
    }

    /// True if a stub lives and serves, as far as is known: what it publishes is its own.
    pub fn is_running(&self, stub: DomId) -> bool {
        let stage = self.stubs.get(&stub).map(|revival| &revival.stage);
        matches!(stage, Some(RevivalStage::Running))
    }

    /// True while a stub is being created, but for no longer than [`stub::CREATION`]. A creation cannot be stopped, and its
    /// domain would have to be destroyed afterwards.
    pub fn is_creating(&self, stub: DomId) -> bool {
        let stage = self.stubs.get(&stub).map(|revival| &revival.stage);
        matches!(stage, Some(RevivalStage::Creating(..)))
    }

    /// True if an answer of the launcher is outstanding.
    pub fn expect_answers(&self) -> bool {
        let mut stages = self.stubs.values().map(|revival| &revival.stage);
        !self.replugs.is_empty()
            || !self.networks.is_empty()
            || stages.any(|stage| {
                matches!(
                    stage,
                    RevivalStage::Creating(..) | RevivalStage::Overdue(_) | RevivalStage::Clearing { .. }
                )
            })
    }

    /// Time until the next step of any stub; `None` if only an event can bring one.
    pub fn due(&self) -> Option<Duration> {
        let now = Instant::now();
        let waiting = self.stubs.values().filter(|revival| !revival.called);
        let due = waiting.filter_map(|revival| revival.stage.due(now));
        due.min().map(|due| due.saturating_duration_since(now))
    }

    /// The stubs that have become ready for their next step. Each is called once until [`Self::advance`] has taken that step.
    pub fn ready(&mut self, runner: &mut Runner) -> Result<Vec<DomId>, LaunchError> {
        let now = Instant::now();
        let Runner::Launcher(launcher) = runner else {
            return Ok(Vec::new());
        };
        self.finish_replugs(launcher)?;
        self.finish_networks(launcher)?;
        let mut ready = Vec::new();
        for (&stub, revival) in &mut self.stubs {
            match revival.stage {
                RevivalStage::Creating(ticket, _) | RevivalStage::Overdue(ticket) => {
                    if let Some(created) = launcher.poll(ticket)? {
                        revival.stage = RevivalStage::Created(created);
                    }
                }
                RevivalStage::Clearing { ticket, is_final } => {
                    if let Some(destroyed) = launcher.poll(ticket)? {
                        // The next attempt fails by itself if the number is still taken.
                        if let Err(error) = destroyed {
                            log::error!("cannot destroy what there is of stub {stub}: {error}");
                        }
                        revival.stage = RevivalStage::Cleared { is_final };
                    }
                }
                _ => {}
            }
            let is_ready = revival.stage.due(now).is_some_and(|due| due <= now);
            if is_ready && !mem::replace(&mut revival.called, true) {
                if let RevivalStage::Creating(ticket, _) = revival.stage {
                    // The next call is for the launcher's answer.
                    revival.stage = RevivalStage::Overdue(ticket);
                }
                ready.push(stub);
            }
        }
        Ok(ready)
    }

    /// Takes the next step for a stub whose guest lives. `on_death` is called when the stub is found dead, and returns its
    /// handover block as text. `is_busy`: something else is being done for the stub.
    pub fn advance(
        &mut self,
        host: &mut Host,
        attachment: &Attachment,
        is_busy: bool,
        on_death: impl FnOnce() -> Option<String>,
    ) -> Result<StubAction, RecordError> {
        let now = Instant::now();
        let revival = self
            .stubs
            .entry(attachment.stub.domid)
            .or_insert_with(|| Revival::new(now));
        revival.called = false;
        // The step consumes its stage. If it fails, the stage at rest is put back, and the step is repeated.
        let stage = mem::replace(&mut revival.stage, RevivalStage::Running);
        let before = stage.at_rest();
        let clock = now.duration_since(self.epoch);
        let moment = Moment { now, clock, is_busy };
        match revival.step(host, attachment, stage, moment, on_death) {
            Ok((verdict, stage)) => {
                revival.stage = stage;
                Ok(verdict)
            }
            Err(error) => {
                revival.stage = before;
                Err(error)
            }
        }
    }

    /// Has a stub that serves its guest get its network, once for each domain of the stub.
    pub fn connect_network(&mut self, host: &mut Host, attachment: &Attachment) -> Result<(), RecordError> {
        if let Some(revival) = self.stubs.get_mut(&attachment.stub.domid)
            && !revival.is_networked
        {
            let ticket = network::attach(host, attachment)?;
            revival.is_networked = true;
            let stub = &attachment.stub.name;
            self.networks.extend(ticket.map(|ticket| (stub.clone(), ticket)));
        }
        Ok(())
    }

    /// Gives the devices of an attachment, which were taken back, to its guest again, through a stub of another number.
    pub fn replug<X>(&mut self, host: &mut Host<X>, attachment: &Attachment, origin: StubOrigin) {
        let guest = &attachment.guest.name;
        // A record that is written after the guest's death would stay: the event of the death is over.
        if is_alive(&mut host.store, &attachment.guest).is_ok_and(|lives| !lives) {
            return;
        }
        // Before the order: if this service dies, `bulkhead status` tells what to do. The record goes when the guest gets its
        // devices.
        let failed = Failed::new(attachment, "could not be brought back with its number");
        if let Err(error) = failed.write(&mut host.store) {
            log::error!("cannot record that {failed}: {error}");
        }
        let devices = attachment.devices.iter();
        let order = Order::Attach {
            guest: attachment.guest.domid,
            devices: devices
                // The terms that the guest had: a policy file that has changed since must not change them.
                .map(|device| (device.bdf.to_string(), device.terms.clone()))
                .collect(),
            slots: attachment.slots,
            origin,
        };
        let Runner::Launcher(launcher) = &mut host.runner else {
            return;
        };
        match launcher.order(order) {
            Ok(ticket) => self.replugs.push((guest.clone(), ticket)),
            Err(error) => log::error!("guest {guest} does not get its devices again: {error}"),
        }
    }

    /// Takes in the launcher's answers about networks.
    fn finish_networks(&mut self, launcher: &mut Launcher) -> Result<(), LaunchError> {
        let mut under_way = Vec::new();
        for (stub, ticket) in self.networks.drain(..) {
            match launcher.poll(ticket)? {
                None => under_way.push((stub, ticket)),
                Some(Ok(())) => log::info!("stub {stub} has its network again"),
                Some(Err(error)) => log::error!(
                    "stub {stub} has no network, and serves its guest without: {error}. `xl destroy {stub}` has a new \
                     stub try again"
                ),
            }
        }
        self.networks = under_way;
        Ok(())
    }

    /// Takes in the launcher's answers about replugs.
    fn finish_replugs(&mut self, launcher: &mut Launcher) -> Result<(), LaunchError> {
        let mut under_way = Vec::new();
        for (guest, ticket) in self.replugs.drain(..) {
            match launcher.poll(ticket)? {
                None => under_way.push((guest, ticket)),
                Some(Ok(())) => {
                    log::warn!("guest {guest} has its devices again, by a stub with another number")
                }
                // Its record stays, which tells what to do.
                Some(Err(error)) => log::error!("guest {guest} does not get its devices again: {error}"),
            }
        }
        self.replugs = under_way;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::stub::CREATION;
    use super::stub::tests::{AGES, unplugging};
    use super::*;
    use crate::host::store::tests::{dom0, introduce};
    use crate::host::sysfs::tests::Tree;
    use crate::records::tests::attachment;
    use xen::model::Xen;
    use xenbus::model::Xenstored;

    const STUB: DomId = 4;

    fn at(stage: RevivalStage) -> Revivals {
        let mut revivals = Revivals::new();
        let mut revival = Revival::new(Instant::now());
        revival.stage = stage;
        revivals.stubs.insert(STUB, revival);
        revivals
    }

    #[test]
    fn a_stub_is_called_once_when_its_time_has_come() {
        let (launcher, _) = Launcher::to_a_thread();
        let mut runner = Runner::Launcher(launcher);
        let now = Instant::now();
        for stage in [
            RevivalStage::Due(now),
            unplugging(now),
            RevivalStage::Cleared { is_final: false },
            RevivalStage::Created(Ok(())),
        ] {
            let mut revivals = at(stage);
            // Nothing else need happen for it to be called.
            assert_eq!(revivals.due(), Some(Duration::ZERO));
            assert_eq!(revivals.ready(&mut runner).unwrap(), [STUB]);
            // Until it is looked at: nobody waits with no time at all meanwhile.
            assert_eq!(revivals.ready(&mut runner).unwrap(), [0; 0]);
            assert_eq!(revivals.due(), None);
        }
        for stage in [RevivalStage::Running, RevivalStage::Off, RevivalStage::Stuck] {
            assert_eq!(at(stage).ready(&mut runner).unwrap(), [0; 0]);
        }
        for stage in [RevivalStage::Due(now + AGES), unplugging(now + AGES)] {
            let mut revivals = at(stage);
            assert_eq!(revivals.ready(&mut runner).unwrap(), [0; 0]);
            assert!(revivals.due().unwrap() > AGES / 2);
        }
    }

    #[test]
    fn the_launchers_answer_brings_the_next_stage() {
        let (mut launcher, _) = Launcher::to_a_thread();
        // There is no Xen here: both fail.
        let order = Order::DestroyDomain { domid: 32_751 };
        let tickets = [
            launcher.order(order.clone()).unwrap(),
            launcher.order(order).unwrap(),
        ];
        let mut runner = Runner::Launcher(launcher);
        let stages = [
            RevivalStage::Creating(tickets[0], Instant::now()),
            RevivalStage::Clearing {
                ticket: tickets[1],
                is_final: true,
            },
        ];
        for (stage, is_creating) in stages.into_iter().zip([true, false]) {
            let mut revivals = at(stage);
            assert!(revivals.expect_answers());
            assert_eq!(revivals.is_creating(STUB), is_creating);
            while revivals.ready(&mut runner).unwrap().is_empty() {
                std::thread::yield_now();
            }
            assert!(!revivals.expect_answers() && !revivals.is_creating(STUB));
            let stage = &revivals.stubs[&STUB].stage;
            assert!(matches!(
                stage,
                RevivalStage::Created(Err(_)) | RevivalStage::Cleared { is_final: true }
            ));
        }
    }

    #[test]
    fn a_creation_that_does_not_end_holds_nobody_up_for_ever() {
        let (mut launcher, _) = Launcher::to_a_thread();
        let ticket = launcher.order(Order::DestroyDomain { domid: 32_751 }).unwrap();
        // The answer is taken, so that none comes any more.
        launcher.wait(ticket).unwrap_err();
        let mut runner = Runner::Launcher(launcher);
        let began = Instant::now();
        let mut revivals = at(RevivalStage::Creating(ticket, began));
        assert!(revivals.due().unwrap() > CREATION / 2);
        assert_eq!(revivals.ready(&mut runner).unwrap(), [0; 0]);
        assert!(revivals.is_creating(STUB));

        let began = began.checked_sub(CREATION).unwrap();
        let mut revivals = at(RevivalStage::Creating(ticket, began));
        assert_eq!(
            revivals.due(),
            Some(Duration::ZERO),
            "the service wakes up for it"
        );
        assert_eq!(revivals.ready(&mut runner).unwrap(), [STUB]);
        assert!(!revivals.is_creating(STUB));
        assert!(revivals.expect_answers(), "it may end yet");
        // It is called once, also after it has been looked at.
        revivals.stubs.get_mut(&STUB).unwrap().called = false;
        assert_eq!(revivals.due(), None);
        assert_eq!(revivals.ready(&mut runner).unwrap(), [0; 0]);
        assert!(!at(RevivalStage::Running).is_creating(STUB + 1));
    }

    #[test]
    fn a_guest_that_waits_for_another_stub_is_recorded_until_it_has_its_devices() {
        let daemon = Xenstored::new();
        let (launcher, _) = Launcher::to_a_thread();
        let mut host = Host {
            store: dom0(&daemon),
            xen: Xen::default(),
            sysfs: Tree::new().sysfs(),
            runner: Runner::Launcher(launcher),
        };
        let attachment = attachment();
        let mut revivals = Revivals::new();
        revivals.replug(&mut host, &attachment, StubOrigin::default());
        let nothing = Failed::all(&mut host.store).unwrap();
        assert!(
            nothing.is_empty() && !revivals.expect_answers(),
            "a guest that has ended"
        );

        introduce(&daemon, 3, "web");
        revivals.replug(&mut host, &attachment, StubOrigin::default());
        let failed = Failed::of(&mut host.store, 3).unwrap().unwrap();
        assert_eq!(failed.devices, attachment.bdfs().collect::<Vec<_>>());
        assert!(revivals.expect_answers());
        // There is no Xen here: the order fails.
        while revivals.expect_answers() {
            revivals.ready(&mut host.runner).unwrap();
            std::thread::yield_now();
        }
        assert_eq!(Failed::of(&mut host.store, 3).unwrap(), Some(failed));
    }

    #[test]
    fn a_creation_that_ends_late_is_taken_in_all_the_same() {
        let (mut launcher, _) = Launcher::to_a_thread();
        let ticket = launcher.order(Order::DestroyDomain { domid: 32_751 }).unwrap();
        let mut runner = Runner::Launcher(launcher);
        let mut revivals = at(RevivalStage::Overdue(ticket));
        while revivals.ready(&mut runner).unwrap().is_empty() {
            std::thread::yield_now();
        }
        assert!(matches!(
            revivals.stubs[&STUB].stage,
            RevivalStage::Created(Err(_))
        ));
    }
}
