//! Guests that are to have devices whenever they start ([`declared`]): each is paused before its first instruction, and the
//! launcher is told to give it its devices and let it run.
//!
//! libxl makes the nodes of a domain, below `/vm` too, before it loads the kernel into it. Xen counts pauses, so the
//! toolstack's own unpause comes and goes without effect.

use crate::admission::declared::{DeclaredError, declared, has_file};
use crate::handover::carry::follow_kept;
use crate::host::domains::{self, Domain, present};
use crate::host::launcher::{Order, Ticket};
use crate::host::store::{Store, StoreError};
use crate::host::{Host, Runner};
use crate::records::unfinished;
use crate::records::{Attachment, Carried, GuestStart, RecordError, Stage, forget_start};
use crate::serve::error::ServeError;
use crate::serve::known::KnownRecords;
use crate::service_log;
use bulkhead_config::declaration::DIRECTORY;
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xen::xenctrl::{DomId, Hypervisor};
use xenbus::client::Store as _;

/// The domains that were looked at, and the starts that are under way.
pub struct Starts {
    /// Directory of the declarations.
    directory: PathBuf,
    /// The UUID of each domain that was looked at.
    known: BTreeMap<DomId, String>,
    /// The UUIDs among these whose directory in `/vm` was removed, or changed itself. A guest that starts again keeps its UUID,
    /// and its last domain may still be known then.
    ending: BTreeSet<String>,
    /// What events have told of since.
    news: NewDomains,
    orders: Vec<(Domain, Ticket)>,
}

/// Domains that events have told of.
#[derive(Debug, PartialEq, Eq)]
enum NewDomains {
    /// Any of them may be another one by now.
    All,
    /// Those with these UUIDs, and those that have come.
    Some(BTreeSet<String>),
}

/// What a domain is to this service.
#[derive(Debug, PartialEq, Eq)]
enum Newcomer {
    /// Not to be given anything, or dealt with already.
    Other,
    /// To be given its devices. The service has begun with that.
    Begun(Stage),
    /// To be given its devices.
    New,
}

impl Starts {
    /// No domain is known yet.
    pub fn new() -> Self {
        Self::of(Path::new(DIRECTORY))
    }

    fn of(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            known: BTreeMap::new(),
            ending: BTreeSet::new(),
            news: NewDomains::All,
            orders: Vec::new(),
        }
    }

    /// True if an answer of the launcher is outstanding.
    pub const fn expect_answers(&self) -> bool {
        !self.orders.is_empty()
    }

    /// Takes in that this node has changed: one of `/vm`, where libxl has a directory for each domain, by its UUID; or that a
    /// domain was introduced. Returns false if that is no news, for the domain was looked at.
    pub fn hear(&mut self, node: &str) -> bool {
        let Some(below) = node.strip_prefix("/vm") else {
            // A toolstack that has nothing in `/vm` has introduced one.
            return true;
        };
        let mut names = below.split('/').skip(1);
        let Some(uuid) = names.next() else {
            // Events were folded.
            self.news = NewDomains::All;
            return true;
        };
        let is_directory = names.next().is_none();
        if is_directory && self.known.values().any(|known| known == uuid) {
            // Removed, unless the next look finds it.
            self.ending.insert(uuid.to_owned());
        }
        let is_known = self.is_known(uuid);
        match &mut self.news {
            NewDomains::All => true,
            NewDomains::Some(news) => {
                if !is_known {
                    news.insert(uuid.to_owned());
                }
                !is_known
            }
        }
    }

    /// True if the domain with this UUID was looked at, and does not end.
    fn is_known(&self, uuid: &str) -> bool {
        self.known.values().any(|known| known == uuid) && !self.ending.contains(uuid)
    }

    /// Looks for domains that are new, and begins to give devices to those that are to have some.
    pub fn look<X: Hypervisor>(
        &mut self,
        host: &mut Host<X>,
        records: &mut KnownRecords,
    ) -> Result<(), ServeError> {
        let domids = domains::numbers(&mut host.store)?;
        self.known.retain(|domid, _| domids.contains(domid));
        let mut looked = Ok(());
        if let NewDomains::Some(mut news) = mem::replace(&mut self.news, NewDomains::All) {
            // Those that have come first: most often the news is of them.
            let come = domids
                .iter()
                .copied()
                .filter(|domid| !self.known.contains_key(domid));
            let come: Vec<DomId> = come.collect();
            looked = self.look_at(host, records, &come);
            news.retain(|uuid| !self.is_known(uuid));
            self.news = NewDomains::Some(news);
        }
        // A domain that has another UUID by now, or a later one with the number of an earlier one.
        if self.news != NewDomains::Some(BTreeSet::new()) {
            looked = looked.and(self.look_at(host, records, &domids));
        }
        looked?;
        self.forget_ends(&mut host.store)?;
        self.news = NewDomains::Some(BTreeSet::new());
        Ok(())
    }

    /// Forgets the ends of domains that are over, and those that were none: the directory in `/vm` is there, and libxl makes it
    /// anew together with the next domain, which has been looked at by now.
    fn forget_ends(&mut self, store: &mut Store) -> Result<(), StoreError> {
        let ending: Vec<String> = mem::take(&mut self.ending).into_iter().collect();
        let directories: Vec<String> = ending.iter().map(|uuid| format!("/vm/{uuid}")).collect();
        let found = store.read_many(&directories)?;
        let goes_on = |(uuid, found): (String, Option<String>)| {
            let is_known = self.known.values().any(|known| *known == uuid);
            (found.is_none() && is_known).then_some(uuid)
        };
        self.ending = ending.into_iter().zip(found).filter_map(goes_on).collect();
        Ok(())
    }

    /// Looks at these domains, but for those that were looked at. What is known of them is read in few round trips, for a worker
    /// that starts knows none.
    fn look_at<X: Hypervisor>(
        &mut self,
        host: &mut Host<X>,
        records: &mut KnownRecords,
        domids: &[DomId],
    ) -> Result<(), ServeError> {
        let mut new = Vec::new();
        for (&domid, found) in domids.iter().zip(domains::read_all(&mut host.store, domids)?) {
            // One without a UUID is being made, or of a toolstack that no declaration can be sure of.
            let found = found.filter(|guest| domid != 0 && !guest.uuid.is_empty());
            if self.known.get(&domid) != found.as_ref().map(|guest| &guest.uuid) {
                // Known only when the look has succeeded: otherwise it is looked at again.
                self.known.remove(&domid);
                new.extend(found);
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        let starts = GuestStart::of_each(&mut host.store, &new)?;
        let mut attachments = records.all(&mut host.store)?;
        let mut looked = Ok(());
        for (guest, start) in new.into_iter().zip(starts) {
            let begun = self.begin(host, records, &mut attachments, &guest, start);
            if begun.is_ok() {
                self.ending.remove(&guest.uuid);
                self.known.insert(guest.domid, guest.uuid);
            }
            looked = looked.and(begun);
        }
        looked
    }

    fn begin<X: Hypervisor>(
        &mut self,
        host: &mut Host<X>,
        records: &mut KnownRecords,
        attachments: &mut Vec<Attachment>,
        guest: &Domain,
        start: Option<GuestStart>,
    ) -> Result<(), ServeError> {
        let _about = service_log::about_guest(&guest.name);
        if is_kept(host, records, attachments, guest)? {
            *attachments = records.all(&mut host.store)?;
            return Ok(());
        }
        match self.newcomer(&mut host.store, records, attachments, guest, start)? {
            Newcomer::Other => return Ok(()),
            // Whether the last worker came to pause it is not known. One that is not paused was not.
            Newcomer::Begun(Stage::Pausing) if is_paused(host, guest)? => {}
            Newcomer::New | Newcomer::Begun(Stage::Pausing) => {
                if pause(host, guest)?.is_none() {
                    return Ok(());
                }
            }
            Newcomer::Begun(_) => {}
        }
        let Runner::Launcher(launcher) = &mut host.runner else {
            return Ok(());
        };
        match launcher.order(Order::Start { guest: guest.domid }) {
            Ok(ticket) => {
                self.orders.push((guest.clone(), ticket));
                Ok(())
            }
            // Without its launcher this service ends. The next one goes on by the record.
            Err(error) => Err(error.into()),
        }
    }

    fn newcomer(
        &self,
        store: &mut Store,
        records: &mut KnownRecords,
        attachments: &[Attachment],
        guest: &Domain,
        start: Option<GuestStart>,
    ) -> Result<Newcomer, ServeError> {
        match start.map(|start| start.stage) {
            None => {}
            Some(Stage::Given { .. } | Stage::Failed { .. }) => return Ok(Newcomer::Other),
            Some(stage) => return Ok(Newcomer::Begun(stage)),
        }
        let is_declared = match declared(store, &self.directory, guest) {
            Ok(declared) => declared.is_some(),
            Err(DeclaredError::Store(error)) => return Err(error.into()),
            // A guest whose own file is broken waits. If no file can be read, that is no reason to stop every guest.
            Err(DeclaredError::File(_)) => true,
            Err(error @ DeclaredError::Directory { .. }) => {
                log::error!(
                    "{:#}; guest {} starts without what it may declare",
                    anyhow::Error::from(error),
                    guest.name
                );
                Carried::of(store, &guest.uuid)?.is_some()
            }
        };
        if !is_declared && !had_devices(attachments, guest) {
            return Ok(Newcomer::Other);
        }
        // `bulkhead run` and `attach` give devices to the domains that they create.
        if unfinished::is_recorded(store, &guest.uuid)? {
            return Ok(Newcomer::Other);
        }
        // As they are now: a command may just have given it devices.
        let attachments = records.all(store)?;
        if attachments.iter().any(|attachment| attachment.guest == *guest) {
            let stage = Stage::Given {
                declared: has_file(&self.directory, guest),
            };
            GuestStart {
                guest: guest.clone(),
                stage,
            }
            .write(store)?;
            return Ok(Newcomer::Other);
        }
        Ok(Newcomer::New)
    }

    /// Takes in the launcher's answers.
    pub fn finish<X>(&mut self, host: &mut Host<X>) -> Result<(), ServeError> {
        let Runner::Launcher(launcher) = &mut host.runner else {
            return Ok(());
        };
        let mut under_way = Vec::new();
        let mut failures = Vec::new();
        for (guest, ticket) in self.orders.drain(..) {
            match launcher.poll(ticket)? {
                None => under_way.push((guest, ticket)),
                Some(Ok(())) => {}
                Some(Err(error)) => failures.push((guest, error)),
            }
        }
        self.orders = under_way;
        for (guest, error) in failures {
            let _about = service_log::about_guest(&guest.name);
            // The command records by itself what it cannot give. This is for one that has come to an end by force.
            let start = GuestStart::of(&mut host.store, &guest)?;
            if let Some(GuestStart { stage, .. }) = start {
                fail(&mut host.store, &guest, &stage, &error.to_string())?;
            }
        }
        Ok(())
    }
}

/// True if a guest with this UUID has, or had, devices under another number: it reboots, and its last domain is not taken
/// apart yet.
fn had_devices(attachments: &[Attachment], guest: &Domain) -> bool {
    let is_last = |last: &Domain| last.uuid == guest.uuid && last.domid != guest.domid;
    attachments.iter().any(|attachment| is_last(&attachment.guest))
}

/// True if libxl keeps this domain, whose guest has ended, under another name. The record of its devices follows it: no other
/// event tells of the name.
fn is_kept<X: Hypervisor>(
    host: &mut Host<X>,
    records: &mut KnownRecords,
    attachments: &[Attachment],
    domain: &Domain,
) -> Result<bool, ServeError> {
    let had = |guest: &Domain| guest.domid == domain.domid && guest.uuid != domain.uuid;
    let Some(attachment) = attachments.iter().find(|attachment| had(&attachment.guest)) else {
        return Ok(false);
    };
    // `None`: another domain has the number by now.
    let kept = present(host, &attachment.guest)?;
    let kept = kept.filter(|kept| *kept != attachment.guest);
    let is_kept = kept.is_some();
    if let Some(kept) = kept {
        records.forget(attachment.stub.domid);
        follow_kept(&mut host.store, attachment, kept)?;
    }
    Ok(is_kept)
}

fn is_paused<X: Hypervisor>(host: &Host<X>, guest: &Domain) -> Result<bool, ServeError> {
    let state = host.xen.run_state(guest.domid).map_err(ServeError::Pause)?;
    Ok(state.is_some_and(|state| state.paused))
}

/// Pauses a guest that has not run yet. Returns how far its start has come; `None` if the guest has ended.
fn pause<X: Hypervisor>(host: &mut Host<X>, guest: &Domain) -> Result<Option<Stage>, ServeError> {
    let (domid, name) = (guest.domid, &guest.name);
    let run_state = |host: &Host<X>| host.xen.run_state(domid).map_err(ServeError::Pause);
    let Some(before) = run_state(host)? else {
        return Ok(None);
    };
    let mut start = GuestStart {
        guest: guest.clone(),
        stage: Stage::Running,
    };
    if before.cpu_time.is_zero() {
        // Recorded before it is done: a worker that dies in between leaves no guest that is paused for an unknown reason.
        start.stage = Stage::Pausing;
        start.write(&mut host.store)?;
        if let Err(error) = host.xen.pause(domid) {
            forget_start(&mut host.store, domid)?;
            return match run_state(host)? {
                None => Ok(None),
                Some(_) => Err(ServeError::Pause(error)),
            };
        }
        start.stage = Stage::Paused;
    }
    start.write(&mut host.store)?;
    let ran = run_state(host)?.map_or(Duration::ZERO, |now| now.cpu_time);
    match start.stage {
        Stage::Paused if ran.is_zero() => {
            log::info!(
                "guest {name} (domain {domid}) is to have devices: paused before its first instruction"
            );
        }
        Stage::Paused => log::warn!(
            "guest {name} (domain {domid}) is to have devices: paused after it had run for {} ms",
            ran.as_millis()
        ),
        _ => log::warn!(
            "guest {name} (domain {domid}) is to have devices, and runs already: it gets them while it runs"
        ),
    }
    Ok(Some(start.stage))
}

/// Records that a guest cannot have its devices, if it is still waiting for them.
fn fail(store: &mut Store, guest: &Domain, stage: &Stage, reason: &str) -> Result<(), RecordError> {
    let held = match stage {
        Stage::Pausing | Stage::Paused => true,
        Stage::Running => false,
        Stage::Given { .. } | Stage::Failed { .. } => return Ok(()),
    };
    let start = GuestStart {
        guest: guest.clone(),
        stage: Stage::Failed {
            reason: reason.to_owned(),
            held,
        },
    };
    log::error!("{start}");
    start.write(store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::domains::tests::preserve;
    use crate::host::store::tests::{dom0, introduce};
    use crate::host::sysfs::tests::Tree;
    use crate::records::tests::{attachment, domain, origin};
    use crate::records::unfinished;
    use crate::records::unfinished::Unfinished;
    use rustix::io::Errno;
    use std::fs;
    use xen::model::{ModelDomain, Xen};
    use xenbus::model::Xenstored;

    const BUILT: ModelDomain = ModelDomain {
        pauses: 1,
        cpu_time: Duration::ZERO,
    };

    /// A host on which guest web (3) is declared and being built, and mail (7) runs undeclared.
    struct Scene {
        daemon: Xenstored,
        host: Host<Xen>,
        starts: Starts,
        directory: tempfile::TempDir,
        _tree: Tree,
    }

    impl Scene {
        fn new() -> Self {
            let (daemon, tree) = (Xenstored::new(), Tree::new());
            introduce(&daemon, 3, "web");
            introduce(&daemon, 7, "mail");
            let directory = tempfile::tempdir().unwrap();
            fs::write(
                directory.path().join("web.toml"),
                "guest = \"web\"\ndevices = [\"00:05.0\"]",
            )
            .unwrap();
            let xen = Xen::default();
            [3, 7].into_iter().for_each(|domid| xen.set_domain(domid, BUILT));
            Self {
                host: Host {
                    store: dom0(&daemon),
                    xen,
                    sysfs: tree.sysfs(),
                    runner: Runner::Launcher(crate::host::launcher::Launcher::to_a_thread().0),
                },
                starts: Starts::of(directory.path()),
                daemon,
                directory,
                _tree: tree,
            }
        }

        /// Looks at all domains, as after an event that may be of any of them.
        fn look(&mut self) {
            self.starts.hear("/vm");
            self.look_for_news();
        }

        /// Looks at what events have told of.
        fn look_for_news(&mut self) {
            self.starts
                .look(&mut self.host, &mut KnownRecords::default())
                .unwrap();
        }

        fn pauses(&self, domid: DomId) -> u32 {
            self.host.xen.domain(domid).unwrap().pauses
        }

        fn stage(&mut self, domid: DomId, name: &str) -> Option<Stage> {
            let start = GuestStart::of(&mut self.host.store, &domain(domid, name)).unwrap();
            start.map(|start| start.stage)
        }

        fn record(&mut self, stage: Stage) {
            let guest = domain(3, "web");
            GuestStart { guest, stage }.write(&mut self.host.store).unwrap();
        }

        /// Looks until the launcher has answered: no order can be carried out here.
        fn finish(&mut self) {
            while self.starts.expect_answers() {
                self.starts.finish(&mut self.host).unwrap();
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn a_declared_guest_is_paused_once_before_its_first_instruction_and_no_other() {
        let mut scene = Scene::new();
        for _ in 0..3 {
            scene.look();
        }
        assert_eq!((scene.pauses(3), scene.pauses(7)), (2, 1));
        assert_eq!(scene.stage(3, "web"), Some(Stage::Paused));
        assert_eq!(scene.stage(7, "mail"), None);
        assert_eq!(scene.starts.orders.len(), 1);
        // The toolstack lets it run, and it does not.
        scene.host.xen.unpause(3).unwrap();
        assert!(scene.host.xen.run_state(3).unwrap().unwrap().paused);
    }

    #[test]
    fn a_worker_that_starts_reads_domains_and_their_starts_together() {
        let round_trips = |domids: std::ops::Range<DomId>| {
            let mut scene = Scene::new();
            for domid in domids {
                introduce(&scene.daemon, domid, &format!("guest-{domid}"));
                let guest = domain(domid, &format!("guest-{domid}"));
                let stage = Stage::Given { declared: true };
                GuestStart { guest, stage }.write(&mut scene.host.store).unwrap();
            }
            let before = scene.daemon.round_trips();
            scene.look();
            scene.daemon.round_trips() - before
        };
        assert_eq!(round_trips(20..21), round_trips(20..40));
    }

    #[test]
    fn a_guest_that_runs_already_is_given_its_devices_without_a_pause() {
        let mut scene = Scene::new();
        let running = ModelDomain {
            pauses: 0,
            cpu_time: Duration::from_millis(1),
        };
        scene.host.xen.set_domain(3, running);
        scene.look();
        assert_eq!(scene.pauses(3), 0);
        assert_eq!(scene.stage(3, "web"), Some(Stage::Running));
        assert!(scene.starts.expect_answers());
    }

    #[test]
    fn a_guest_that_reboots_is_paused_while_its_last_domain_still_has_the_devices_and_after() {
        for is_carried in [false, true] {
            let mut scene = Scene::new();
            fs::remove_file(scene.directory.path().join("web.toml")).unwrap();
            // The last domain of mail.
            let last = Attachment {
                guest: Domain {
                    domid: 5,
                    ..domain(7, "mail")
                },
                ..attachment()
            };
            if is_carried {
                Carried::new(&last, origin())
                    .write(&mut scene.host.store)
                    .unwrap();
            } else {
                last.write(&mut scene.host.store).unwrap();
            }
            scene.look();
            assert_eq!((scene.pauses(3), scene.pauses(7)), (1, 2), "{is_carried}");
        }
    }

    #[test]
    fn a_domain_that_libxl_keeps_after_a_crash_is_followed_and_its_guest_is_paused_when_it_starts_again() {
        let mut scene = Scene::new();
        let (mail, xen) = (domain(7, "mail"), &scene.host.xen);
        xen.set_uuid(7, &mail.uuid);
        xen.set_domain(9, BUILT);
        let had = Attachment {
            guest: mail.clone(),
            ..attachment()
        };
        had.write(&mut scene.host.store).unwrap();
        scene.look();
        let kept = preserve(&scene.daemon, 7, "mail-20261130T0733Z");
        scene.look();
        let (attachments, _) = Attachment::all(&mut scene.host.store).unwrap();
        assert_eq!(attachments[0].guest, kept);
        introduce(&scene.daemon, 9, "mail");
        let vm = format!("/vm/{}", mail.uuid);
        scene.host.store.write("/local/domain/9/vm", &vm).unwrap();
        scene.look();
        assert_eq!((scene.pauses(7), scene.pauses(9)), (1, 2));
    }

    #[test]
    fn what_a_command_of_ours_makes_or_a_guest_that_has_devices_is_left_alone() {
        let mut scene = Scene::new();
        let Domain { uuid, name, .. } = domain(3, "web");
        let made = Unfinished {
            guest: uuid.clone(),
            guest_name: name.clone(),
            uuid,
            name,
        };
        unfinished::record(&mut scene.host.store, &made).unwrap();
        scene.look();
        assert_eq!((scene.pauses(3), scene.stage(3, "web")), (1, None));

        let mut scene = Scene::new();
        attachment().write(&mut scene.host.store).unwrap();
        scene.look();
        assert_eq!(
            (scene.pauses(3), scene.stage(3, "web")),
            (1, Some(Stage::Given { declared: true }))
        );
        assert!(!scene.starts.expect_answers());
    }

    #[test]
    fn a_worker_that_takes_over_goes_on_with_what_was_begun_and_pauses_nobody_twice() {
        for (stage, goes_on) in [
            (Stage::Pausing, true),
            (Stage::Paused, true),
            (Stage::Running, true),
            (Stage::Given { declared: true }, false),
            (
                Stage::Failed {
                    reason: String::new(),
                    held: true,
                },
                false,
            ),
        ] {
            let mut scene = Scene::new();
            scene.record(stage.clone());
            scene.look();
            assert_eq!(scene.pauses(3), 1, "{stage:?}");
            assert_eq!(scene.starts.expect_answers(), goes_on, "{stage:?}");
        }
    }

    #[test]
    fn a_guest_that_the_last_worker_did_not_come_to_pause_is_paused() {
        let mut scene = Scene::new();
        scene.record(Stage::Pausing);
        scene.host.xen.unpause(3).unwrap();
        scene.look();
        assert_eq!((scene.pauses(3), scene.stage(3, "web")), (1, Some(Stage::Paused)));
    }

    #[test]
    fn a_guest_that_cannot_be_paused_does_not_keep_the_others_from_it() {
        let mut scene = Scene::new();
        fs::write(
            scene.directory.path().join("mail.toml"),
            "guest = \"mail\"\ndevices = [\"00:06.0\"]",
        )
        .unwrap();
        scene.host.xen.refuse("pause 3", Errno::BUSY);
        assert!(
            scene
                .starts
                .look(&mut scene.host, &mut KnownRecords::default())
                .is_err()
        );
        assert_eq!((scene.pauses(3), scene.pauses(7)), (1, 2));
        assert!(!scene.starts.known.contains_key(&3), "it is looked at again");
    }

    #[test]
    fn a_command_that_ends_by_force_leaves_the_guest_held_with_a_reason() {
        for (stage, held) in [(Stage::Paused, true), (Stage::Running, false)] {
            let mut scene = Scene::new();
            scene.record(stage);
            scene.look();
            scene.finish();
            let Some(Stage::Failed { reason, held: found }) = scene.stage(3, "web") else {
                panic!("{:?}", scene.stage(3, "web"));
            };
            assert!(reason.starts_with("`bulkhead start 3` failed"), "{reason}");
            assert_eq!(found, held);
        }
        // One that has recorded by itself what was the matter is believed.
        let mut scene = Scene::new();
        scene.look();
        let failed = Stage::Failed {
            reason: "it is mute".into(),
            held: false,
        };
        scene.record(failed.clone());
        scene.finish();
        assert_eq!(scene.stage(3, "web"), Some(failed));
    }

    #[test]
    fn a_broken_declaration_holds_its_guest_and_an_unreadable_directory_nobody() {
        let mut scene = Scene::new();
        fs::write(scene.directory.path().join("mail.toml"), "guest =").unwrap();
        scene.look();
        assert_eq!((scene.pauses(3), scene.pauses(7)), (2, 2));

        let mut scene = Scene::new();
        // A file is no directory.
        scene.starts = Starts::of(&scene.directory.path().join("web.toml"));
        scene.look();
        assert_eq!((scene.pauses(3), scene.pauses(7)), (1, 1));
    }

    #[test]
    fn a_guest_that_ends_meanwhile_is_no_error_and_leaves_no_record() {
        let mut scene = Scene::new();
        scene.host.xen = Xen::default();
        scene.look();
        assert_eq!(scene.stage(3, "web"), None);

        let mut scene = Scene::new();
        scene.host.xen.refuse("pause 3", Errno::BUSY);
        assert!(matches!(
            scene.starts.look(&mut scene.host, &mut KnownRecords::default()),
            Err(ServeError::Pause(_))
        ));
        assert_eq!(scene.stage(3, "web"), None);
    }

    #[test]
    fn a_later_domain_with_the_number_is_looked_at_anew() {
        // Whether or not there was a look in between.
        for looks in [0, 1] {
            let mut scene = Scene::new();
            scene.look();
            scene.daemon.release(3);
            scene.host.store.remove("/local/domain/3").unwrap();
            (0..looks).for_each(|_| scene.look_for_news());
            introduce(&scene.daemon, 3, "web");
            let vm = "/vm/00000000-0000-0000-0000-000000000099";
            scene.host.store.write("/local/domain/3/vm", vm).unwrap();
            scene.host.xen.set_domain(3, BUILT);
            assert!(scene.starts.hear(&format!("{vm}/start_time")));
            scene.look_for_news();
            assert_eq!(scene.pauses(3), 2);
            assert_eq!(scene.starts.orders.len(), 2);
        }
    }

    /// Makes the next domain of guest web, as libxl does: its nodes first, and long before it is introduced.
    fn build_again(scene: &mut Scene, domid: DomId) {
        let vm = format!("/vm/{}", domain(3, "web").uuid);
        for (node, value) in [
            (vm.clone(), ""),
            (format!("/local/domain/{domid}/vm"), &*vm),
            (format!("/local/domain/{domid}/name"), "web"),
        ] {
            scene.host.store.write(&node, value).unwrap();
        }
        scene.host.xen.set_domain(domid, BUILT);
    }

    #[test]
    fn a_guest_that_starts_again_with_its_uuid_is_paused_before_its_domain_is_introduced() {
        let vm = format!("/vm/{}", domain(3, "web").uuid);
        let written = format!("{vm}/name");
        // On a busy host there may be no look between the removal and the next domain.
        for looks in [0, 1, 2] {
            let mut scene = Scene::new();
            scene.host.store.write(&vm, "").unwrap();
            scene.look();
            assert!(!scene.starts.hear(&written), "it was looked at");
            // libxl removes the directory first, and the home of the domain later.
            scene.host.store.remove(&vm).unwrap();
            assert!(scene.starts.hear(&vm), "{looks}");
            (0..looks).for_each(|_| scene.look_for_news());
            build_again(&mut scene, 9);
            assert!(scene.starts.hear(&written), "{looks}");
            scene.look_for_news();
            assert_eq!((scene.pauses(9), scene.pauses(3)), (2, 2), "{looks}");
            let start = GuestStart::numbered(&mut scene.host.store, 9).unwrap().unwrap();
            assert_eq!(
                (start.guest.uuid, start.stage),
                (domain(3, "web").uuid, Stage::Paused)
            );
            assert!(!scene.starts.hear(&written), "it was looked at too");
        }
    }

    #[test]
    fn a_directory_that_only_changed_is_looked_for_once() {
        let mut scene = Scene::new();
        let vm = format!("/vm/{}", domain(3, "web").uuid);
        scene.host.store.write(&vm, "").unwrap();
        scene.look();
        // As when libxl sets its permissions.
        assert!(scene.starts.hear(&vm));
        scene.look_for_news();
        assert!(!scene.starts.hear(&format!("{vm}/name")));
        assert_eq!((scene.pauses(3), scene.starts.orders.len()), (2, 1));
        // The end of a domain whose home goes too leaves nothing.
        scene.host.store.remove(&vm).unwrap();
        assert!(scene.starts.hear(&vm));
        scene.look_for_news();
        assert_eq!(scene.starts.ending.len(), 1);
        scene.host.store.remove("/local/domain/3").unwrap();
        scene.look_for_news();
        assert!(scene.starts.ending.is_empty());
    }

    #[test]
    fn a_domain_that_comes_is_looked_at_and_no_other_one_again() {
        let mut scene = Scene::new();
        scene.look();
        let web = domain(3, "web");
        assert!(!scene.starts.hear(&format!("/vm/{}/image/ostype", web.uuid)));
        // Nobody tells of it: only a look at each domain would find it.
        scene
            .host
            .store
            .write("/local/domain/7/vm", "/vm/another")
            .unwrap();
        introduce(&scene.daemon, 9, "post");
        for node in [
            "/vm/00000000-0000-0000-0000-000000000009/name",
            "@introduceDomain",
        ] {
            assert!(scene.starts.hear(node), "{node}");
        }
        scene.look_for_news();
        assert_eq!(scene.starts.known[&9], domain(9, "post").uuid);
        assert_eq!(scene.starts.known[&7], domain(7, "mail").uuid);
        assert!(scene.starts.hear("/vm/another/name"));
        scene.look_for_news();
        assert_eq!(scene.starts.known[&7], "another");
    }
}
