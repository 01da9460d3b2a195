//! The loop of the worker that serves. [`super`] describes its work.
//!
//! One turn does one piece of each kind of work, so that nothing waits for more than one piece of any other kind. What may
//! take long runs elsewhere: requests in the threads of links, resets and the return of devices in [`Jobs`], programs in the
//! launcher.

mod answers;
mod devices;
mod stubs;

use super::abandoned::Abandoned;
use super::agenda::{self, Agenda, Concern, Errand, TurnEnd, Work};
use super::clients::{ClientRequest, Clients};
use super::crew::LOOK;
use super::errands::{Notes, tidy};
use super::errors::{self, Errors};
use super::jobs::{Jobs, Outcome};
use super::known::KnownRecords;
use super::links::Links;
use super::memory::LockedMemory;
use super::reclaim;
use super::revive::Revivals;
use super::wake::{Wake, signal};
use crate::control::Listener;
use crate::host::guest_config::StubOrigin;
use crate::host::launcher::{LaunchError, Launcher, Order, SharedFile};
use crate::host::store::StoreError;
use crate::host::uevent::Uevents;
use crate::host::{Host, Runner, suspends};
use crate::records::Attachment;
use crate::records::stub_backup::Copies;
use crate::serve::error::ServeError;
use crate::serve::log_limit::{LogLimit, log_limited};
use crate::serve::starts::Starts;
use log::Level;
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
use xen::xenctrl::{DomId, Xenctrl};

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
}
