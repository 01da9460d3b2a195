//! The loop of the worker that serves. [`super`] describes its work.
//!
//! One turn does one piece of each kind of work, so that nothing waits for more than one piece of any other kind. What may
//! take long runs elsewhere: requests in the threads of links, resets and the return of devices in [`Jobs`], programs in the
//! launcher.

use super::abandoned::Abandoned;
use super::agenda::{self, Agenda, Concern, Errand, StubTurn, TurnEnd, Work};
use super::clients::{Client, ClientRequest, Clients};
use super::connections::{open_host, open_store};
use super::crew::LOOK;
use super::errands::{Notes, tidy};
use super::errors::{self, Errors};
use super::jobs::{Jobs, Outcome};
use super::known::KnownRecords;
use super::link::Link;
use super::links::Links;
use super::memory::LockedMemory;
use super::reclaim::{self, reclaim_all, reclaim_some};
use super::report::{Linked, report};
use super::revive::{Afterwards, Revivals, StubAction};
use super::wake::{Wake, signal};
use crate::control::{Listener, Reply, Request};
use crate::handover::carry::{carry_over, follow_kept, origin_of};
use crate::handover::reclaim::Released;
use crate::host::domains::{Domain, present};
use crate::host::guest_config::StubOrigin;
use crate::host::launcher::{LaunchError, Launcher, Order, SharedFile};
use crate::host::store::StoreError;
use crate::host::uevent::Uevents;
use crate::host::{Host, Runner, suspends};
use crate::nodes::hops::first_hop;
use crate::nodes::suspension;
use crate::paths;
use crate::records::Attachment;
use crate::records::stub_backup::Copies;
use crate::serve::error::ServeError;
use crate::serve::log_limit::{LogLimit, log_limited};
use crate::serve::starts::Starts;
use crate::service_log;
use log::Level;
use pci::bdf::Bdf;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::thread::set_name;
use signal_hook::consts::SIGTERM;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use xen::xenctrl::{DomId, DomainState, Xenctrl};

/// Names of a worker in a list of processes: while it stands by, and while it serves.
const SPARE: &CStr = c"bulkhead-spare";
const SERVING: &CStr = c"bulkhead-worker";

/// Shortest time between two readings of xenstore's events. A stub may cause events as often as it likes.
const PAUSE: Duration = Duration::from_millis(5);
/// Most events taken in at one reading.
const MOST_EVENTS: usize = 1024;
/// Xen is asked so often which domains have ended, also if no event tells of one: what xenstored has missed is found all the
/// same.
const DEATHS: Duration = Duration::from_secs(10);

/// A worker whose turn has not come after this time stands by, and locks its memory.
const STANDS_BY: Duration = Duration::from_secs(1);

/// All that the serving worker works with.
pub struct Service {
    host: Host,
    /// A handle of the jobs' own: calls of one handle wait for one another.
    job_xen: Xenctrl,
    jobs: Jobs,
    clients: Clients,
    wake: Wake,
    /// Ready when the service is to end.
    end: UnixStream,
    links: Links,
    /// The stubs whose state is watched.
    watched: BTreeSet<DomId>,
    /// The clients that wait until devices of a stub are taken back.
    reclaims: reclaim::Waiters,
    /// The attachments that get a new stub after that, each with the image of the old one.
    replugs: BTreeMap<DomId, (Attachment, StubOrigin)>,
    errors: Errors,
    revivals: Revivals,
    starts: Starts,
    abandoned: Abandoned,
    agenda: Agenda,
    known: KnownRecords,
    copies: Copies,
    notes: Notes,
    /// The stubs that cannot be saved, nor can their guests.
    unsaveable: BTreeSet<DomId>,
    /// For failures that come again at each attempt.
    complaints: LogLimit,
}

impl Service {
    /// Opens all that the service works with, as a worker of the launcher at the other end of `socket`.
    pub fn new(socket: OwnedFd) -> Result<Self, ServeError> {
        let mut launcher = Launcher::over(socket);
        let wake = Wake::new().map_err(ServeError::Wake)?;
        let end = signal(SIGTERM).map_err(ServeError::Signal)?;
        let listener = Listener::over(
            launcher.share(SharedFile::Socket)?,
            launcher.share(SharedFile::Lock)?,
        );
        let uevents = Uevents::over(launcher.share(SharedFile::Uevents)?);
        Ok(Self {
            host: Host::open_with(Runner::Launcher(launcher))?,
            links: Links::new(Xenctrl::open()?, wake.clone()),
            job_xen: Xenctrl::open()?,
            jobs: Jobs::new(wake.clone()),
            clients: Clients::new(listener, wake.clone()),
            wake,
            end,
            watched: BTreeSet::new(),
            reclaims: reclaim::Waiters::default(),
            replugs: BTreeMap::new(),
            errors: Errors::new(uevents),
            revivals: Revivals::new(),
            starts: Starts::new(),
            abandoned: Abandoned::default(),
            agenda: Agenda::default(),
            known: KnownRecords::default(),
            copies: Copies::default(),
            notes: Notes::All,
            unsaveable: BTreeSet::new(),
            complaints: LogLimit::new(Instant::now()),
        })
    }

    /// Waits until no other worker serves. Returns false if this one is told to end before.
    pub fn wait_for_turn(&mut self) -> Result<bool, ServeError> {
        let Runner::Launcher(launcher) = &mut self.host.runner else {
            return Ok(true);
        };
        // The launcher answers when this worker's turn has come.
        let ticket = launcher.order(Order::Serve)?;
        let _ = set_name(SPARE);
        let mut memory = None;
        loop {
            if let Some(turn) = launcher.poll(ticket)? {
                turn?;
                let _ = set_name(SERVING);
                // The flag belongs to the open file, which all workers share. An earlier worker may have cleared it.
                ioctl_fionbio(&self.clients, true).map_err(|error| ServeError::Wait(error.into()))?;
                ioctl_fionbio(&self.errors, true).map_err(|error| ServeError::Wait(error.into()))?;
                launcher.order(Order::Begun)?;
                return Ok(true);
            }
            let mut fds = [
                PollFd::new(&self.end, PollFlags::IN),
                PollFd::new(&*launcher, PollFlags::IN),
            ];
            // The first worker's turn comes at once.
            let waits = match &memory {
                None => Timespec::try_from(STANDS_BY).ok(),
                Some(_) => None,
            };
            match poll(&mut fds, waits.as_ref()) {
                Ok(0) => memory = Some(LockedMemory::lock()),
                Ok(_) if fds[0].revents().contains(PollFlags::IN) => return Ok(false),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(ServeError::Wait(error.into())),
            }
        }
    }

    /// Serves until the service is told to end.
    pub fn serve(&mut self) -> Result<(), ServeError> {
        // Before anything is read: what changes later brings an event.
        self.host.store.watch_all(&agenda::host_watches())?;
        log::info!("bulkhead {} serves", env!("CARGO_PKG_VERSION"));
        // Before there are links: a device that has lost its MSI while nobody served would count as one whose MSI was being
        // turned off.
        self.restore_after_suspend()?;
        // An earlier worker may have served stubs, whose guests wait. xenstored sends an event for each new watch, so that
        // everything else is looked at too.
        self.agenda.take_over(Instant::now());
        let mut listen = Instant::now();
        let mut tell = Instant::now();
        let mut deaths = Instant::now() + DEATHS;
        loop {
            if Instant::now() >= listen {
                self.take_events()?;
                listen = Instant::now() + PAUSE;
            }
            self.turn()?;
            if Instant::now() >= tell {
                self.tell_alive()?;
                self.restore_after_suspend()?;
                tell = Instant::now() + LOOK;
                if tell > deaths {
                    self.agenda.mark_errand(Errand::Deaths, Instant::now());
                    deaths = Instant::now() + DEATHS;
                }
            }
            if self.wait(listen, tell)? {
                return Ok(());
            }
        }
    }

    /// Tells the launcher that this loop goes on.
    fn tell_alive(&mut self) -> Result<(), ServeError> {
        if let Runner::Launcher(launcher) = &mut self.host.runner {
            launcher.tell_alive()?;
        }
        Ok(())
    }

    /// Restores all devices if the host was suspended since that was last done.
    fn restore_after_suspend(&mut self) -> Result<(), ServeError> {
        // The kernel counts a suspend when it is over.
        let count = match suspends::count() {
            Ok(count) => count,
            Err(error) => {
                log_limited!(
                    self.complaints,
                    log::Level::Error,
                    "cannot read how often the host was suspended: {error}"
                );
                return Ok(());
            }
        };
        let (errors, mut context) = self.errors();
        match errors.restore_after_suspends(&mut context, count) {
            Ok(()) => Ok(()),
            // The next look tries again.
            Err(error) => self.excuse(error.into(), None),
        }
    }

    /// Marks what xenstore's events are about.
    fn take_events(&mut self) -> Result<(), StoreError> {
        let now = Instant::now();
        // Bounded, or a stub that writes without a pause would keep the loop here.
        for _ in 0..MOST_EVENTS {
            let Some(event) = self.host.store.next_event()? else {
                break;
            };
            let concern = agenda::concern(&event);
            match concern {
                Concern::Record(stub) => self.known.forget(stub),
                Concern::Domains if !self.starts.hear(&event.path) => continue,
                Concern::Libxl => self.notes.hear(&event.path),
                _ => {}
            }
            self.agenda.mark(concern, now);
        }
        Ok(())
    }

    /// Does one piece of each kind of work.
    fn turn(&mut self) -> Result<(), ServeError> {
        let now = Instant::now();
        // Answers of the launcher first: a dead stub's guest waits two seconds in all.
        for stub in self.revivals.ready(&mut self.host.runner)? {
            self.agenda.mark(Concern::Stub(stub), now);
        }
        if let Err(error) = self.starts.finish(&mut self.host) {
            self.excuse(error, None)?;
        }
        match self.agenda.next(now) {
            Some(Work::Errand(errand)) => self.run_errand(errand)?,
            Some(Work::Stub(stub, turn)) => {
                let end = match self.take_turn(stub, turn) {
                    // Whatever has a record is watched.
                    Ok(()) if self.watched.contains(&stub) => TurnEnd::Good,
                    Ok(()) => TurnEnd::Gone,
                    Err(error) => {
                        self.excuse(error, Some(stub))?;
                        TurnEnd::Failed
                    }
                };
                self.agenda.ended(stub, turn, end, now.elapsed(), Instant::now());
            }
            None => {}
        }
        self.mend()?;
        let (errors, context) = self.errors();
        errors.step(context);
        while let Some((stub, outcome)) = self.jobs.ended() {
            self.finish(stub, outcome);
        }
        self.answer_waiting()?;
        while let Some(ClientRequest { request, client }) = self.clients.next() {
            self.answer(request, client)?;
        }
        Ok(())
    }

    /// Does work that is of no stub in particular.
    fn run_errand(&mut self, errand: Errand) -> Result<(), ServeError> {
        let done = match errand {
            Errand::Domains => self.starts.look(&mut self.host, &mut self.known),
            Errand::List => self.list(),
            Errand::Deaths => {
                self.find_deaths();
                Ok(())
            }
            Errand::Tidy => tidy(&mut self.host.store, &mut self.known).map_err(ServeError::from),
            Errand::Libxl => {
                let store = &mut self.host.store;
                let renewed = self.notes.renew(store, &mut self.known, &mut self.complaints);
                renewed.map_err(ServeError::from)
            }
        };
        if let Err(error) = done {
            self.excuse(error, None)?;
            // Its events are read, so nothing else would bring it again.
            self.agenda.errand_later(errand, Instant::now());
        }
        Ok(())
    }

    fn errors(&mut self) -> (&mut Errors, errors::Context<'_>) {
        let context = errors::Context {
            host: &mut self.host,
            links: &self.links,
            jobs: &mut self.jobs,
        };
        (&mut self.errors, context)
    }

    /// Drops the links whose threads have failed. Each is made again, until that has happened too often.
    fn mend(&mut self) -> Result<(), ServeError> {
        for stub in self.links.failed() {
            if let Some(why) = self.links.drop_failed(stub) {
                let given_up = self.links.give_up(&mut self.host.store, stub, &why);
                if let Err(error) = given_up {
                    self.excuse(error.into(), Some(stub))?;
                }
            }
            self.agenda.mark(Concern::Stub(stub), Instant::now());
        }
        Ok(())
    }

    /// Takes in how a job has ended, and answers the clients that have waited for it.
    fn finish(&mut self, stub: DomId, outcome: Outcome) {
        // The job may have changed it.
        self.known.forget(stub);
        match outcome {
            Outcome::Reclaimed(released) => {
                // The record of the guest's start stays as long as that of its devices.
                self.agenda.mark_errand(Errand::Tidy, Instant::now());
                self.forget_errors_of_gone(stub);
                for client in self.reclaims.end(stub) {
                    client.reply(released.clone().into());
                }
                // Only now: the devices are given by a command, which would find them still taken.
                if let Some((attachment, origin)) = self.replugs.remove(&stub) {
                    self.revivals.replug(&mut self.host, &attachment, origin);
                }
            }
            Outcome::Reset(bdf, reset) => {
                let (errors, context) = self.errors();
                errors.reset(context, stub, bdf, reset);
            }
        }
        // While devices were taken back, changes of the stub's nodes were not followed.
        for concern in [Concern::Stub(stub), Concern::Published(stub)] {
            self.agenda.mark(concern, Instant::now());
        }
    }

    /// Forgets the errors of devices that a stub has no more. A reset that still waits would hit a device that may be dom0's
    /// by now.
    fn forget_errors_of_gone(&mut self, stub: DomId) {
        match Attachment::read(&mut self.host.store, stub) {
            Ok(Some(attachment)) => self.errors.keep(&attachment),
            _ => self.errors.forget(stub),
        }
    }

    /// Logs an error that concerns one stub or one errand alone, and goes on. Without xenstored or the launcher nothing can go
    /// on: then the error is returned.
    fn excuse(&mut self, error: ServeError, stub: Option<DomId>) -> Result<(), ServeError> {
        if !self.host.store.is_usable() || matches!(error, ServeError::Launch(LaunchError::Gone(_))) {
            return Err(error);
        }
        let error = anyhow::Error::from(error);
        let again = "tried again later";
        match stub {
            Some(stub) => log_limited!(self.complaints, Level::Warn, "stub {stub}: {error:#}; {again}"),
            None => log_limited!(self.complaints, Level::Warn, "{error:#}; {again}"),
        }
        Ok(())
    }

    /// Waits for something to do. Returns true if the service is told to end. Events of xenstore do not end the wait before
    /// `listen`. It does not last longer than until `tell`.
    fn wait(&mut self, listen: Instant, tell: Instant) -> Result<bool, ServeError> {
        let now = Instant::now();
        let mut fds = vec![
            PollFd::new(&self.clients, PollFlags::IN),
            PollFd::new(&self.wake, PollFlags::IN),
            PollFd::new(&self.errors, PollFlags::IN),
            PollFd::new(&self.end, PollFlags::IN),
        ];
        let mut unseen = self.host.store.has_events();
        if let Runner::Launcher(launcher) = &mut self.host.runner {
            unseen |= launcher.take_unseen();
            // The end of the launcher ends the service, and POLLHUP comes unasked. Answers are waited for only if a revival or a
            // start needs one: `Errors` polls for its own, and jobs have connections of their own.
            let answers = if self.revivals.expect_answers() || self.starts.expect_answers() {
                PollFlags::IN
            } else {
                PollFlags::empty()
            };
            fds.push(PollFd::new(&*launcher, answers));
        }
        let launcher = 4..fds.len();
        let deaf = listen.saturating_duration_since(now);
        let store = self.host.store.transport();
        if deaf.is_zero() {
            fds.push(PollFd::new(store, PollFlags::IN));
        }
        let mut longest = [self.errors.due(), self.revivals.due(), self.agenda.idle(now)]
            .into_iter()
            .flatten()
            .fold(tell.saturating_duration_since(now), Duration::min);
        // Messages that were read together with another answer lie in this process: their descriptors do not become ready.
        if !deaf.is_zero() || unseen {
            longest = longest.min(deaf);
        }
        let longest = Timespec::try_from(longest).ok();
        match poll(&mut fds, longest.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(ServeError::Wait(error.into())),
        }
        let is = |index: usize, flags| fds[index].revents().intersects(flags);
        if launcher.clone().any(|index| is(index, PollFlags::HUP)) {
            return Err(LaunchError::Gone(io::ErrorKind::BrokenPipe.into()).into());
        }
        if is(1, PollFlags::IN) {
            self.wake.clear();
        }
        if is(0, PollFlags::IN)
            && let Err(error) = self.clients.accept()
        {
            // As when there are no descriptors left. The socket stays ready, so without a pause the loop would spin.
            let what = "cannot accept a client of the control socket";
            log_limited!(self.complaints, Level::Warn, "{what}: {error}");
            std::thread::sleep(PAUSE);
        }
        Ok(is(3, PollFlags::IN))
    }

    /// Reads which stubs there are, and marks those that are new, whose record has changed, or that are not served. After a burst
    /// of events nothing else tells which they are.
    fn list(&mut self) -> Result<(), ServeError> {
        let [stubs, mut due] = self.known.read_again(&mut self.host.store)?;
        let is_settled = |stub: &DomId| self.watched.contains(stub) && self.links.get(*stub).is_some();
        due.extend(stubs.iter().copied().filter(|stub| !is_settled(stub)));
        let gone: Vec<DomId> = self.watched.difference(&stubs).copied().collect();
        for stub in gone {
            self.forget(stub)?;
        }
        self.agenda.keep(&stubs, &due, Instant::now());
        self.revivals.keep(&stubs);
        Ok(())
    }

    /// Marks the stubs that have ended, or whose guests have. Xen tells at once what xenstored would have to be asked for each
    /// domain.
    fn find_deaths(&mut self) {
        for &stub in &self.watched {
            // A stub whose record is to be read has its turn anyway.
            if let Some(attachment) = self.known.get(stub)
                && !is_sound(attachment, |domid| self.host.xen.identity(domid))
            {
                self.agenda.mark(Concern::Stub(stub), Instant::now());
            }
        }
    }

    fn take_turn(&mut self, stub: DomId, turn: StubTurn) -> Result<(), ServeError> {
        if turn.look {
            // The guest waits for the connection; the copy is for the time after the stub's death.
            self.reconcile(stub)?;
        }
        if turn.backup {
            self.back_up(stub)?;
        }
        Ok(())
    }

    /// Updates the copy of what a stub publishes, while it lives: after its death others write there.
    fn back_up(&mut self, stub: DomId) -> Result<(), ServeError> {
        if self.jobs.is_closed(stub) || !self.revivals.is_running(stub) {
            return Ok(());
        }
        if let Some(attachment) = self.known.read(&mut self.host.store, stub)? {
            self.copies.keep(&mut self.host.store, first_hop(&attachment))?;
        }
        Ok(())
    }

    /// Brings the link of a stub in line with its record and with xenstore, or takes the next step of its return or its end.
    fn reconcile(&mut self, stub: DomId) -> Result<(), ServeError> {
        // What follows a death is done for the record as it is now: the event of a change may still be on its way.
        if let Some(attachment) = self.known.get(stub)
            && !is_sound(attachment, |domid| self.host.xen.identity(domid))
        {
            self.known.forget(stub);
        }
        let attachment = match self.known.read(&mut self.host.store, stub) {
            Ok(Some(attachment)) => attachment,
            Ok(None) => return Ok(self.forget(stub)?),
            Err(error) => {
                // A damaged record stays damaged. Its stub is served no more, and its limits and watches go.
                if error.stub().is_some() {
                    self.forget(stub)?;
                }
                return Err(error.into());
            }
        };
        let _about = service_log::about(&attachment.guest.name, &attachment.stub.name);
        // Before the states are read: a change after the reading then brings another turn.
        if !self.watched.contains(&stub) {
            let store = &mut self.host.store;
            store.watch_all(&agenda::watches(stub))?;
            self.abandoned
                .watch(store, &attachment, &agenda::state_token(stub))?;
            self.watched.insert(stub);
        }
        self.errors.keep(&attachment);
        if self.jobs.is_closed(stub) {
            // The job's end marks the stub again.
            return Ok(());
        }
        let Some(guest) = present(&mut self.host, &attachment.guest)? else {
            // The end of what holds it up marks the stub again.
            if !self.is_held_up(stub) {
                log::info!("guest {} is dead", attachment.guest.name);
                carry_over(&mut self.host.store, &attachment)?;
                self.reclaim_attachment(attachment, None)?;
            }
            return Ok(());
        };
        if guest != attachment.guest {
            // The new record marks the stub again.
            self.known.forget(stub);
            return Ok(follow_kept(&mut self.host.store, &attachment, guest)?);
        }
        // A reset after an error. A job that takes devices back has returned above.
        let is_busy = self.jobs.is_busy(stub);
        let on_death = || {
            // What the dead stub has left is copied by the revival.
            self.copies.forget(stub);
            self.links.on_death(stub)
        };
        let verdict = self
            .revivals
            .advance(&mut self.host, &attachment, is_busy, on_death)?;
        match verdict {
            StubAction::Leave => Ok(()),
            StubAction::Reclaim(afterwards) => self.reclaim_unplugged(attachment, afterwards),
            StubAction::Serve => {
                // A device without its MSI would look to a new link as if its MSI was being turned off.
                self.restore_after_suspend()?;
                let linked = self
                    .links
                    .reconcile(&mut self.host, &mut self.agenda, &attachment);
                // What follows is done also for a stub that cannot be served. Nobody waits for it as the guest does for its link.
                self.refuse_saves(stub, guest.domid)?;
                self.revivals.connect_network(&mut self.host, &attachment)?;
                linked?;
                Ok(self.restart_abandoned(&attachment)?)
            }
        }
    }

    /// Has a stub and its guest refused to be saved. The version that gave the devices may not have done so.
    fn refuse_saves(&mut self, stub: DomId, guest: DomId) -> Result<(), StoreError> {
        if !self.unsaveable.contains(&stub) {
            for domid in [guest, stub] {
                suspension::refuse(&mut self.host.store, domid)?;
            }
            self.unsaveable.insert(stub);
        }
        Ok(())
    }

    /// Takes back the devices that a guest has let go of because its stub is dead. Notes that they are to be given to it
    /// again, if they can have another stub.
    fn reclaim_unplugged(
        &mut self,
        attachment: Attachment,
        afterwards: Afterwards,
    ) -> Result<(), ServeError> {
        let stub = attachment.stub.domid;
        if afterwards == Afterwards::Replug {
            // Read before the record goes, and the backup with it.
            let origin = origin_of(&mut self.host.store, &attachment)?;
            self.replugs.insert(stub, (attachment.clone(), origin));
        }
        self.reclaim_attachment(attachment, None)
    }

    /// Drops all that belongs to a stub without a record. When its next turn comes the agenda decides by how this one ends.
    fn forget(&mut self, stub: DomId) -> Result<(), StoreError> {
        self.known.forget(stub);
        self.copies.forget(stub);
        self.links.forget(stub);
        self.revivals.drop_stub(stub);
        self.errors.forget(stub);
        self.abandoned
            .forget(&mut self.host.store, stub, &agenda::state_token(stub))?;
        self.unsaveable.remove(&stub);
        if self.watched.remove(&stub) {
            for (path, token) in agenda::watches(stub) {
                match self.host.store.unwatch(&path, &token) {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Has the guest start its connection again if it gave its frontend up before the connection stood ([`Abandoned`]).
    fn restart_abandoned(&mut self, attachment: &Attachment) -> Result<(), StoreError> {
        let xen = self.host.xen.clone();
        let is_port_for = |guest, port, stub| xen.is_port_for(guest, port, stub);
        if self
            .abandoned
            .check(&mut self.host.store, attachment, is_port_for)?
        {
            let guest = &attachment.guest.name;
            self.links.log(
                attachment.stub.domid,
                Level::Info,
                format_args!(
                    "guest {guest} gave its frontend up before the connection stood: told to begin anew"
                ),
            );
        }
        Ok(())
    }

    /// True while the devices of a stub cannot be taken back, because something else is being done for it.
    fn is_held_up(&self, stub: DomId) -> bool {
        self.jobs.is_busy(stub) || self.revivals.is_creating(stub)
    }

    /// Starts a job that takes the devices of an attachment back. Its stub is not served any more from now on.
    fn reclaim_attachment(
        &mut self,
        attachment: Attachment,
        client: Option<Client>,
    ) -> Result<(), ServeError> {
        let stub = attachment.stub.domid;
        // Connections first: if they cannot be had, the stub stays served.
        let host = open_host(&mut self.host, &self.job_xen)?;
        let link = self.links.remove(stub);
        // The stub does not come back from now on: the job destroys it.
        self.revivals.drop_stub(stub);
        let job = move || reclaim_all(&mut host(), link, &attachment);
        self.start_reclaim(stub, true, job, client)
    }

    /// Starts a job that takes some devices of an attachment back.
    fn reclaim_devices(
        &mut self,
        attachment: Attachment,
        bdfs: Vec<Bdf>,
        client: Option<Client>,
    ) -> Result<(), ServeError> {
        let stub = attachment.stub.domid;
        let host = open_host(&mut self.host, &self.job_xen)?;
        let link = self.links.get(stub).map(Link::handle);
        let job = move || reclaim_some(&mut host(), link, &attachment, &bdfs);
        self.start_reclaim(stub, false, job, client)
    }

    fn start_reclaim(
        &mut self,
        stub: DomId,
        all: bool,
        job: impl FnOnce() -> Released + Send + 'static,
        client: Option<Client>,
    ) -> Result<(), ServeError> {
        self.jobs.reclaim(stub, job).map_err(ServeError::Thread)?;
        self.reclaims.begin(stub, all, client);
        Ok(())
    }

    /// Serves the devices that the record of a stub names now.
    fn follow_record(&mut self, stub: DomId, attachment: &Attachment) -> Reply {
        let Some(link) = self.links.get(stub) else {
            return Reply::Error {
                message: format!(
                    "stub {} is not served: see the log {}",
                    attachment.stub.name,
                    paths::LOG
                ),
            };
        };
        match link.follow(attachment, &self.host.sysfs) {
            Ok(()) => Reply::Followed,
            Err(error) => Reply::error(error),
        }
    }

    /// Answers a request, or has it wait for the end of what is under way for its stub.
    fn answer(&mut self, request: Request, client: Client) -> Result<(), ServeError> {
        let stub = match request {
            Request::Status => return self.answer_status(client),
            Request::Release { stub } | Request::TakeBack { stub, .. } | Request::Follow { stub } => stub,
        };
        if let Request::Release { .. } = request
            && let Some(clients) = self.reclaims.for_all(stub)
        {
            // The guest's death may have begun it already: this client hears how that ends.
            clients.push(client);
            return Ok(());
        }
        if self.is_held_up(stub) {
            // The client's thread waits, this one goes on.
            self.jobs.wait(stub, request, client);
            return Ok(());
        }
        let attachment = match Attachment::read(&mut self.host.store, stub) {
            Ok(Some(attachment)) => attachment,
            Ok(None) => {
                let message = format!("domain {stub} is no stub of a guest");
                client.reply(Reply::Error { message });
                return Ok(());
            }
            Err(error) => {
                client.reply(Reply::error(error));
                return Ok(());
            }
        };
        // The client is moved to those who wait for the job. If no job begins, this copy answers.
        let waiting = client.clone();
        let begun = match request {
            Request::Release { .. } => self.reclaim_attachment(attachment, Some(client)),
            Request::TakeBack { devices, .. } => self.reclaim_devices(attachment, devices, Some(client)),
            Request::Follow { .. } | Request::Status => {
                client.reply(self.follow_record(stub, &attachment));
                Ok(())
            }
        };
        if let Err(error) = begun {
            let reply = Reply::Error {
                message: error.to_string(),
            };
            self.excuse(error, Some(stub))?;
            waiting.reply(reply);
        }
        Ok(())
    }

    /// Answers requests that have waited for the end of a job or of a creation.
    fn answer_waiting(&mut self) -> Result<(), ServeError> {
        for stub in self.jobs.waited_for() {
            if !self.is_held_up(stub) {
                for (request, client) in self.jobs.waited(stub) {
                    self.answer(request, client)?;
                }
            }
        }
        Ok(())
    }

    /// Has the client's thread find out the status.
    fn answer_status(&mut self, client: Client) -> Result<(), ServeError> {
        let store = match open_store(&mut self.host) {
            Ok(store) => store,
            Err(error) => {
                let reply = Reply::Error {
                    message: error.to_string(),
                };
                self.excuse(error, None)?;
                client.reply(reply);
                return Ok(());
            }
        };
        let linked = self.links.iter().map(|(stub, link)| Linked {
            stub,
            link: link.handle(),
            errors: self.errors.status(stub),
            revivals: self.revivals.count(stub),
        });
        let linked: Vec<Linked> = linked.collect();
        let mut remarks = BTreeMap::new();
        for &stub in &self.watched {
            let given_up = self.links.why_given_up(stub).map(|why| {
                format!(
                    "not served any more: {why}; `xl destroy` of this stub brings a new one, which is served"
                )
            });
            if let Some(remark) = self.jobs.status(stub).or(given_up) {
                remarks.insert(stub, remark);
            }
        }
        let history = match &self.host.runner {
            Runner::Launcher(launcher) => launcher.history().cloned(),
            _ => None,
        };
        let xen = self.job_xen.clone();
        client.finish(move || report(store, &xen, history, linked, remarks));
        Ok(())
    }
}

/// True if guest and stub of an attachment run, as far as Xen knows: a look at the stub would find neither of them dead.
fn is_sound(
    attachment: &Attachment,
    identity: impl Fn(DomId) -> io::Result<Option<(DomainState, String)>>,
) -> bool {
    let found = |domain: &Domain| {
        // In doubt there is a look, which asks xenstored too.
        let (state, uuid) = identity(domain.domid).ok().flatten()?;
        // A domain that was created without a UUID has one in Xen all the same.
        (domain.uuid.is_empty() || domain.uuid == uuid).then_some(state)
    };
    // A guest that has shut itself down is its toolstack's, until that destroys it.
    let guest = found(&attachment.guest).is_some_and(|state| state != DomainState::Dying);
    guest && found(&attachment.stub) == Some(DomainState::Alive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::tests::attachment;
    use rustix::io::Errno;

    #[test]
    fn a_stub_is_looked_at_if_it_or_its_guest_has_ended_or_is_another_domain() {
        let sound = attachment();
        let looked = |domid: DomId, found: io::Result<Option<(DomainState, &str)>>| {
            let found = found.map(|found| found.map(|(state, uuid)| (state, uuid.to_owned())));
            let found = std::cell::Cell::new(Some(found));
            !is_sound(&sound, |asked| {
                let [guest, stub] = [&sound.guest, &sound.stub];
                let other = if asked == guest.domid { guest } else { stub };
                match asked == domid {
                    true => found.take().unwrap(),
                    false => Ok(Some((DomainState::Alive, other.uuid.clone()))),
                }
            })
        };
        for domain in [&sound.guest, &sound.stub] {
            let (domid, uuid) = (domain.domid, domain.uuid.as_str());
            assert!(!looked(domid, Ok(Some((DomainState::Alive, uuid)))), "{domid}");
            assert!(looked(domid, Ok(Some((DomainState::Dying, uuid)))), "{domid}");
            assert!(
                looked(domid, Ok(Some((DomainState::Alive, "another")))),
                "{domid}"
            );
            assert!(looked(domid, Ok(None)), "{domid}");
            assert!(looked(domid, Err(Errno::PERM.into())), "{domid}");
        }
        let crashed =
            |domain: &Domain| looked(domain.domid, Ok(Some((DomainState::ShutDown(3), &domain.uuid))));
        assert!(crashed(&sound.stub));
        assert!(
            !crashed(&sound.guest),
            "its toolstack may keep it, or start it again"
        );
        let nameless = Attachment {
            guest: Domain {
                uuid: String::new(),
                ..sound.guest.clone()
            },
            ..sound.clone()
        };
        assert!(is_sound(&nameless, |domid| {
            let uuid = if domid == sound.stub.domid {
                &sound.stub.uuid
            } else {
                "any"
            };
            Ok(Some((DomainState::Alive, uuid.to_owned())))
        }));
    }
}
