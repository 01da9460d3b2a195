//! The service: dom0's end of every stub's second hop. Its [workers], of which one serves at a time, do the work that is
//! here.
//!
//! One thread watches xenstore, and starts a `link` with a thread of its own for each stub that is ready. It also hears
//! of [`errors`] of devices from the kernel, and brings dead stubs back ([`mod@revive`]). What it knows it reads from the
//! records and the xenbus states, so a service that is started again takes up where the last one ended.
//!
//! What a stub or a guest writes can make a look at it fail, and can bring looks about without end. Each turn of the loop
//! looks at one stub only ([`agenda`]), and a look that fails comes again later: it costs nobody else. Only the loss of
//! xenstored or of the launcher ends the service.

mod abandoned;
mod agenda;
pub mod backoff;
mod clients;
pub mod confine;
mod crew;
mod errors;
mod jobs;
mod link;
pub mod log_limit;
mod revive;
mod stub_domain;
pub mod throttle;
mod unplug;
mod wake;
pub mod workers;

use crate::control::{Listener, Reply, Request};
use crate::handover::reclaim::{Released, reclaim_all, reclaim_devices};
use crate::host::domains::is_alive;
use crate::host::launcher::{LaunchError, Launcher, Order, SharedFile};
use crate::host::store::{self, Store, StoreError};
use crate::host::sysfs::Sysfs;
use crate::host::uevent::Uevents;
use crate::host::{Host, HostError, Runner};
use crate::nodes::hops::{error_node, first_hop};
use crate::paths;
use crate::records::assignable;
use crate::records::failed::{self, Failed};
use crate::records::stub_backup;
use crate::records::{self, ATTACHMENTS, Attachment, RecordError};
use crate::serve::confine::{ConfineError, confine};
use crate::serve::log_limit::LogLimit;
use crate::status::process::ProcessStats;
use crate::status::{self, Seen, Served, Status, StubStatus};
use abandoned::Abandoned;
use agenda::{Agenda, Concern, Errand, Work};
use clients::{Asked, Client, Clients};
use errors::Errors;
use jobs::{Jobs, Outcome};
use landlock::RulesetStatus;
use link::{Limits, Link};
use pci::bdf::Bdf;
use revive::{Afterwards, Revivals, Verdict};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal};
use rustix::thread::set_name;
use signal_hook::consts::SIGTERM;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use thiserror::Error;
use wake::{Wake, signal};
use xen::xenctrl::{DomId, Xenctrl, XenctrlError};
use xenbus::client::Store as _;
use xenbus::path::{Device as Hop, DeviceType, key};
use xenbus::state::XenbusState;

/// What a list of processes calls a worker that is being set up, one that stands by, and the one that serves.
const STARTING: &CStr = c"bulkhead-start";
const SPARE: &CStr = c"bulkhead-spare";
const SERVING: &CStr = c"bulkhead-worker";

/// Why a worker ended.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Not on this host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// No second handle to the hypervisor.
    #[error(transparent)]
    Xenctrl(#[from] XenctrlError),
    /// The launcher is gone.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It would outlive the launcher, or be open to other processes.
    #[error("cannot tie the worker to its launcher (prctl)")]
    Tie(#[source] io::Error),
    /// It would have privileges that it does not need.
    #[error("the service cannot give up what it does not need")]
    Confine(#[from] ConfineError),
    /// xenstore is gone.
    #[error("xenstore failed (if xenstored has ended: restart the service when it runs again)")]
    Store(#[from] StoreError),
    /// The records cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No way for threads to call each other.
    #[error("cannot make an event descriptor (eventfd)")]
    Wake(#[source] io::Error),
    /// No thread for what takes long.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// No way to be told to end.
    #[error("cannot catch SIGTERM")]
    Signal(#[source] io::Error),
    /// The kernel will not wait.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
}

/// Between two times that events are taken in, at least: a stub may write as often as it likes.
const PAUSE: Duration = Duration::from_millis(5);
/// The most events taken in at once.
const MOST_EVENTS: usize = 1024;
/// How often in a row the thread of a link may fail.
const MOST_BREAKS: u32 = 3;
/// One that has lived so long was sound.
const SOUND: Duration = Duration::from_secs(60);

/// Serves all stubs of this host as a worker of the launcher at the other end of `socket`: sets all up, and waits until no
/// other worker serves. Returns on errors, and when it is told to end (SIGTERM).
pub fn work(socket: OwnedFd) -> Result<(), ServeError> {
    // It never outlives the launcher, whatever it waits for: the lock would be held for ever.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| ServeError::Tie(error.into()))?;
    // No other process of this user's reads or writes its memory.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| ServeError::Tie(error.into()))?;
    let _ = set_name(STARTING);
    let mut launcher = Launcher::over(socket);
    let wake = Wake::new().map_err(ServeError::Wake)?;
    let end = signal(SIGTERM).map_err(ServeError::Signal)?;
    let listener = Listener::over(
        launcher.share(SharedFile::Socket)?,
        launcher.share(SharedFile::Lock)?,
    );
    let uevents = Uevents::over(launcher.share(SharedFile::Uevents)?);
    let mut service = Service {
        host: Host::open_with(Runner::Launcher(launcher))?,
        link_xen: Xenctrl::open()?,
        job_xen: Xenctrl::open()?,
        jobs: Jobs::new(wake.clone()),
        clients: Clients::new(listener, wake.clone()),
        wake,
        end,
        links: BTreeMap::new(),
        known: BTreeSet::new(),
        broken: BTreeMap::new(),
        breaks: BTreeMap::new(),
        released: BTreeMap::new(),
        replugs: BTreeMap::new(),
        between: BTreeSet::new(),
        limits: BTreeMap::new(),
        errors: Errors::new(uevents),
        revivals: Revivals::new(),
        abandoned: Abandoned::default(),
        agenda: Agenda::default(),
        complaints: LogLimit::new(Instant::now()),
    };
    // From here on guests have a say in what it does.
    match confine()? {
        RulesetStatus::FullyEnforced => {}
        RulesetStatus::PartiallyEnforced => {
            log::info!(
                "this kernel's landlock knows less than is asked of it: files are out of reach, signals may not be"
            );
        }
        RulesetStatus::NotEnforced => {
            log::warn!(
                "this kernel has no landlock: only the unit's bounds keep this process from files of root"
            );
        }
    }
    if !service.wait_for_turn()? {
        return Ok(());
    }
    for path in [
        DeviceType::Bulkhead.backends(0).as_str(),
        ATTACHMENTS,
        "@releaseDomain",
    ] {
        service.host.store.watch(path, "")?;
    }
    service
        .host
        .store
        .watch(assignable::DEVICES, agenda::LIBXL_TOKEN)?;
    log::info!("bulkhead {} serves", env!("CARGO_PKG_VERSION"));
    let mut listen = Instant::now();
    loop {
        if Instant::now() >= listen {
            service.take_events()?;
            listen = Instant::now() + PAUSE;
        }
        service.turn()?;
        if service.wait(listen)? {
            return Ok(());
        }
    }
}

struct Service {
    host: Host,
    /// For the links; theirs to wait for while this thread is busy with its own.
    link_xen: Xenctrl,
    /// The same for jobs.
    job_xen: Xenctrl,
    jobs: Jobs,
    clients: Clients,
    wake: Wake,
    /// Ready when the service is to end.
    end: UnixStream,
    links: BTreeMap<DomId, Link>,
    /// The stubs whose state is watched.
    known: BTreeSet<DomId>,
    /// The stubs that could not be linked, each with the reason: said once, then left alone.
    broken: BTreeMap<DomId, String>,
    /// How often the thread of a stub's link has failed, in a row.
    breaks: BTreeMap<DomId, u32>,
    /// Who waits until devices of a stub are taken back.
    released: BTreeMap<DomId, Taking>,
    /// What comes after that.
    replugs: BTreeMap<DomId, (Attachment, Option<String>)>,
    /// The stubs that have begun anew, and whose new page or port could not be had: most likely they have begun anew
    /// once more, so that they are tried again at their next step. Said once.
    between: BTreeSet<DomId>,
    /// What is left to each stub of what it may have logged and done.
    limits: BTreeMap<DomId, Arc<Mutex<Limits>>>,
    errors: Errors,
    revivals: Revivals,
    abandoned: Abandoned,
    agenda: Agenda,
    /// Of what every look finds again.
    complaints: LogLimit,
}

/// Devices that are being taken back.
struct Taking {
    /// All of the attachment's.
    all: bool,
    clients: Vec<Client>,
}

impl Service {
    /// Waits until no other worker serves; false if this one is to end before that.
    fn wait_for_turn(&mut self) -> Result<bool, ServeError> {
        let Runner::Launcher(launcher) = &mut self.host.runner else {
            return Ok(true);
        };
        let ticket = launcher.order(Order::Serve)?;
        let _ = set_name(SPARE);
        loop {
            if let Some(turn) = launcher.poll(ticket)? {
                turn?;
                let _ = set_name(SERVING);
                // A worker before this one may have had them wait.
                ioctl_fionbio(&self.clients, true).map_err(|error| ServeError::Wait(error.into()))?;
                ioctl_fionbio(&self.errors, true).map_err(|error| ServeError::Wait(error.into()))?;
                launcher.order(Order::Begun)?;
                return Ok(true);
            }
            let mut fds = [
                PollFd::new(&self.end, PollFlags::IN),
                PollFd::new(&*launcher, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) if fds[0].revents().contains(PollFlags::IN) => return Ok(false),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(ServeError::Wait(error.into())),
            }
        }
    }

    /// Takes in what has happened in xenstore.
    fn take_events(&mut self) -> Result<(), StoreError> {
        let now = Instant::now();
        for _ in 0..MOST_EVENTS {
            let Some(event) = self.host.store.next_event()? else {
                break;
            };
            self.agenda.mark(agenda::concern(&event), now);
        }
        Ok(())
    }

    /// Does one piece of each kind of work.
    fn turn(&mut self) -> Result<(), ServeError> {
        let now = Instant::now();
        let Host { runner, store, .. } = &mut self.host;
        for stub in self.revivals.ready(runner, store)? {
            self.agenda.mark(Concern::Stub(stub), now);
        }
        match self.agenda.next(now) {
            Some(Work::Errand(errand)) => self.run_errand(errand)?,
            Some(Work::Look { stub, published }) => {
                let looked = self.look(stub, published);
                let is_good = looked.is_ok();
                if let Err(error) = looked {
                    self.excuse(error, Some(stub))?;
                    self.agenda.later(stub, published, Instant::now());
                }
                self.agenda.looked(stub, is_good, now.elapsed(), Instant::now());
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
        while let Some(Asked { request, client }) = self.clients.next() {
            self.answer(request, client)?;
        }
        Ok(())
    }

    /// Does work that is of no stub in particular.
    fn run_errand(&mut self, errand: Errand) -> Result<(), ServeError> {
        let done = match errand {
            Errand::List => self.list(),
            Errand::Tidy => self.tidy(),
            Errand::Libxl => self.tell_libxl(),
        };
        if let Err(error) = done {
            self.excuse(error, None)?;
            self.agenda.errand_later(errand, Instant::now());
        }
        Ok(())
    }

    fn errors(&mut self) -> (&mut Errors, errors::Context<'_>) {
        let context = errors::Context {
            host: &mut self.host,
            links: &self.links,
            xen: &self.link_xen,
            jobs: &mut self.jobs,
        };
        (&mut self.errors, context)
    }

    /// Drops the links whose threads have failed. Each is made again, until that has happened too often.
    fn mend(&mut self) -> Result<(), ServeError> {
        let failed = self.links.iter().filter(|(_, link)| link.has_ended());
        let failed: Vec<DomId> = failed.map(|(&stub, _)| stub).collect();
        for stub in failed {
            let Some(link) = self.links.remove(&stub) else {
                continue;
            };
            let breaks = self.breaks.entry(stub).or_default();
            if link.age() > SOUND {
                *breaks = 0;
            }
            *breaks += 1;
            log::error!("stub {stub}: the thread that serves it has failed, {breaks} times in a row");
            drop(link);
            if *breaks >= MOST_BREAKS {
                let text = format!("the thread that serves it has failed {breaks} times in a row");
                let hop = Hop::second_hop(stub);
                let given_up = self.give_up(stub, hop, &text);
                if let Err(error) = given_up {
                    self.excuse(error.into(), Some(stub))?;
                }
            }
            self.agenda.mark(Concern::Stub(stub), Instant::now());
        }
        Ok(())
    }

    /// Serves a stub no more, and says why.
    fn give_up(&mut self, stub: DomId, hop: Hop, text: &str) -> Result<(), StoreError> {
        self.broken.insert(stub, text.to_owned());
        self.host.store.write(&error_node(stub), text)?;
        self.set_state(hop, XenbusState::Closing)
    }

    /// Takes in how a job has ended, and turns to what has waited for that.
    fn finish(&mut self, stub: DomId, outcome: Outcome) {
        match outcome {
            Outcome::Released(released) => {
                self.forget_errors_of_gone(stub);
                for client in self
                    .released
                    .remove(&stub)
                    .into_iter()
                    .flat_map(|taking| taking.clients)
                {
                    client.reply(released.clone().into());
                }
                if let Some((attachment, kernel)) = self.replugs.remove(&stub) {
                    self.revivals.replug(&mut self.host, &attachment, kernel);
                }
            }
            Outcome::Reset(bdf, reset) => {
                let (errors, context) = self.errors();
                errors.reset(context, stub, bdf, reset);
            }
        }
        // What it published meanwhile was not looked at.
        self.agenda.mark(Concern::Published(stub), Instant::now());
    }

    /// Forgets the errors of devices that a stub has no more. A reset that waited would hit them, and from now on they
    /// may be dom0's.
    fn forget_errors_of_gone(&mut self, stub: DomId) {
        match Attachment::read(&mut self.host.store, stub) {
            Ok(Some(attachment)) => self.errors.keep(&attachment),
            _ => self.errors.forget(stub),
        }
    }

    /// Passes over what only one stub has brought about, or is to blame for.
    fn excuse(&mut self, error: ServeError, stub: Option<DomId>) -> Result<(), ServeError> {
        if !self.host.store.is_usable() || matches!(error, ServeError::Launch(LaunchError::Gone(_))) {
            return Err(error);
        }
        if let Some(missed) = self.complaints.allow(Instant::now()) {
            let error = anyhow::Error::from(error);
            let more = link::more(missed);
            match stub {
                Some(stub) => log::warn!("stub {stub}: {error:#}; it is looked at again later{more}"),
                None => log::warn!("{error:#}; tried again{more}"),
            }
        }
        Ok(())
    }

    /// Waits for something to do; true if that is to end. To xenstore it does not listen before `listen`.
    fn wait(&mut self, listen: Instant) -> Result<bool, ServeError> {
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
            // Its end is this service's end; of its answers others than ours are looked for by those who asked.
            let answers = if self.revivals.expect_answers() {
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
            .min();
        // What has come in with the answer to something else is not seen at its descriptor.
        if !deaf.is_zero() || unseen {
            longest = Some(longest.map_or(deaf, |longest| longest.min(deaf)));
        }
        let longest = longest.and_then(|longest| Timespec::try_from(longest).ok());
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
            // As when there are no descriptors left: it would be ready again at once.
            if self.complaints.allow(now).is_some() {
                log::warn!("cannot let a client of the control socket in: {error}");
            }
            std::thread::sleep(PAUSE);
        }
        Ok(is(3, PollFlags::IN))
    }

    /// Reads which stubs there are, all of which are to be looked at.
    fn list(&mut self) -> Result<(), ServeError> {
        let names = records::children(&mut self.host.store, ATTACHMENTS)?;
        let stubs: BTreeSet<DomId> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let gone: Vec<DomId> = self.known.difference(&stubs).copied().collect();
        for stub in gone {
            self.forget(stub)?;
        }
        self.agenda.keep(&stubs, Instant::now());
        self.revivals.keep(&stubs);
        Ok(())
    }

    /// Removes what is left of guests that have ended.
    fn tidy(&mut self) -> Result<(), ServeError> {
        self.forget_failures()?;
        Ok(records::forget_dead_mappings(&mut self.host.store)?)
    }

    /// Brings the link of a stub in line with what its record and xenstore say.
    fn look(&mut self, stub: DomId, published: bool) -> Result<(), ServeError> {
        let attachment = match Attachment::read(&mut self.host.store, stub) {
            Ok(Some(attachment)) => attachment,
            Ok(None) => return Ok(self.forget(stub)?),
            Err(error) => {
                if error.stub().is_some() {
                    self.forget(stub)?;
                }
                return Err(error.into());
            }
        };
        if !self.known.contains(&stub) {
            let store = &mut self.host.store;
            for (path, token) in watches(stub) {
                store.watch(&path, &token)?;
            }
            self.abandoned
                .watch(store, &attachment, &agenda::state_token(stub))?;
            self.known.insert(stub);
        }
        self.errors.keep(&attachment);
        if self.jobs.is_closed(stub) {
            // Its end comes back to here.
            return Ok(());
        }
        if !is_alive(&mut self.host.store, &attachment.guest)? {
            if !self.is_held_up(stub) {
                log::info!("guest {} is dead", attachment.guest.name);
                self.release(attachment, None)?;
            }
            return Ok(());
        }
        // A reset after an error; what takes devices back has ended, as seen above.
        let is_busy = self.jobs.is_busy(stub);
        let verdict = self.revivals.look(&mut self.host, &attachment, is_busy, || {
            self.broken.remove(&stub);
            self.breaks.remove(&stub);
            self.links.remove(&stub).and_then(|link| link.handover_block())
        })?;
        match verdict {
            Verdict::Leave => Ok(()),
            Verdict::Release(afterwards) => self.end(attachment, afterwards),
            Verdict::Serve => {
                // Its connection comes first: the copy is for the time after its death.
                self.follow(&attachment)?;
                self.look_after(&attachment)?;
                if published {
                    stub_backup::keep_published(&mut self.host.store, first_hop(&attachment))?;
                }
                Ok(())
            }
        }
    }

    /// Makes libxl's notes of devices right again.
    fn tell_libxl(&mut self) -> Result<(), ServeError> {
        let (attachments, _) = Attachment::all(&mut self.host.store)?;
        for bdf in records::renew(&mut self.host.store, &attachments)? {
            if self.complaints.allow(Instant::now()).is_some() {
                log::warn!(
                    "libxl had lost the note that {bdf} is in use, as it does when it refuses the device to another \
                     guest: written again"
                );
            }
        }
        Ok(())
    }

    /// Takes back the devices that a guest has let go of because its stub is dead, and gives them to it anew if they can
    /// have another stub.
    fn end(&mut self, attachment: Attachment, afterwards: Afterwards) -> Result<(), ServeError> {
        let stub = attachment.stub.domid;
        if afterwards == Afterwards::Replug {
            let config = stub_backup::config(&mut self.host.store, stub)?;
            let kernel =
                config.and_then(|config| Some(config.pointer("/b_info/kernel")?.as_str()?.to_owned()));
            self.replugs.insert(stub, (attachment.clone(), kernel));
        }
        self.release(attachment, None)
    }

    /// Forgets the failures of guests that have ended.
    fn forget_failures(&mut self) -> Result<(), StoreError> {
        for failed in Failed::all(&mut self.host.store)? {
            if !is_alive(&mut self.host.store, &failed.guest)? {
                failed::forget(&mut self.host.store, failed.guest.domid)?;
            }
        }
        Ok(())
    }

    /// Drops all that belongs to a stub without a record.
    fn forget(&mut self, stub: DomId) -> Result<(), StoreError> {
        self.agenda.forget(stub);
        self.broken.remove(&stub);
        self.between.remove(&stub);
        self.breaks.remove(&stub);
        self.limits.remove(&stub);
        self.links.remove(&stub);
        self.revivals.drop_stub(stub);
        self.errors.forget(stub);
        self.abandoned
            .forget(&mut self.host.store, stub, &agenda::state_token(stub))?;
        if self.known.remove(&stub) {
            for (path, token) in watches(stub) {
                match self.host.store.unwatch(&path, &token) {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The backend's part of the xenbus states.
    fn follow(&mut self, attachment: &Attachment) -> Result<(), ServeError> {
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};
        let stub = attachment.stub.domid;
        let hop = Hop::second_hop(stub);
        let own = self.host.store.read_state(&hop.backend_node(key::STATE))?;
        let theirs = self.host.store.read_state(&hop.frontend_node(key::STATE))?;
        match (own, theirs) {
            (Initialising, Initialising) => Ok(self.set_state(hop, InitWait)?),
            // State 4 without a link: an earlier service served this stub.
            (Initialising | InitWait | Initialised | Connected, Initialised | Connected) => {
                if self.is_outdated(stub, hop)? {
                    if self.may_tell(stub) {
                        log::info!("stub {} has begun anew", attachment.stub.name);
                    }
                    // The last request of before is done when this returns.
                    self.links.remove(&stub);
                    // Interrupt modes that the link has noted are in the record of now.
                    let attachment = current(&mut self.host.store, attachment);
                    return self.connect(&attachment, hop, own);
                }
                if !self.links.contains_key(&stub) && !self.broken.contains_key(&stub) {
                    return self.connect(attachment, hop, own);
                }
                Ok(())
            }
            (Initialising | InitWait | Initialised | Connected | Closing, Closing | Closed) => {
                self.links.remove(&stub);
                log::info!("stub {} has closed its connection", attachment.stub.name);
                Ok(self.set_state(hop, Closed)?)
            }
            _ => Ok(()),
        }
    }

    /// Has the guest begin anew if it gave its frontend up before the connection stood.
    fn look_after(&mut self, attachment: &Attachment) -> Result<(), StoreError> {
        let xen = self.host.xen.clone();
        let is_port_for = |guest, port, stub| xen.is_port_for(guest, port, stub);
        if self
            .abandoned
            .look(&mut self.host.store, attachment, is_port_for)?
            && self.may_tell(attachment.stub.domid)
        {
            log::info!(
                "guest {} gave its frontend up before the connection stood: told to begin anew",
                attachment.guest.name
            );
        }
        Ok(())
    }

    /// True if a stub offers another page and port than those that its link uses: it has restarted in place.
    fn is_outdated(&mut self, stub: DomId, hop: Hop) -> Result<bool, StoreError> {
        let Some(link) = self.links.get(&stub) else {
            return Ok(false);
        };
        let used = link.particulars();
        let offered = link::particulars(&mut self.host.store, hop)?;
        Ok(offered.is_some_and(|offered| offered.is_ok_and(|offered| offered != used)))
    }

    fn connect(&mut self, attachment: &Attachment, hop: Hop, own: XenbusState) -> Result<(), ServeError> {
        let stub = attachment.stub.domid;
        let Some(particulars) = link::particulars(&mut self.host.store, hop)? else {
            // It is still at it.
            self.agenda.later(stub, false, Instant::now());
            return Ok(());
        };
        let store = self.open_store()?;
        let linked = particulars.and_then(|particulars| {
            let (xen, wake, limits) = (self.link_xen.clone(), self.wake.clone(), self.limits(stub));
            Link::start(
                attachment,
                particulars,
                &self.host.sysfs,
                xen,
                store,
                wake,
                limits,
            )
        });
        match linked {
            Ok(link) => {
                self.between.remove(&stub);
                self.links.insert(stub, link);
                if self.may_tell(stub) {
                    let (stub, guest) = (&attachment.stub.name, &attachment.guest.name);
                    log::info!("serving stub {stub} of guest {guest}");
                }
                Ok(self.set_state(hop, XenbusState::Connected)?)
            }
            Err(error) if own == XenbusState::Connected && error.is_of_offer() => {
                if self.between.insert(stub) && self.may_tell(stub) {
                    let text = format!("{:#}", anyhow::Error::from(error));
                    log::warn!(
                        "stub {}: {text}; waiting for its next offer",
                        attachment.stub.name
                    );
                }
                Ok(())
            }
            Err(error) => {
                let text = format!("{:#}", anyhow::Error::from(error));
                log::error!("cannot serve stub {}: {text}", attachment.stub.name);
                Ok(self.give_up(stub, hop, &text)?)
            }
        }
    }

    /// A connection to xenstore for another thread.
    fn open_store(&mut self) -> Result<OwnedFd, ServeError> {
        match &mut self.host.runner {
            Runner::Launcher(launcher) => Ok(launcher.open_store()?),
            Runner::Itself => Ok(store::connect().map_err(HostError::from)?),
            #[cfg(test)]
            Runner::Model(_) => Ok(store::connect().map_err(HostError::from)?),
        }
    }

    /// What a job works with, made in its thread.
    fn open_host(&mut self) -> Result<impl FnOnce() -> Host + Send + use<>, ServeError> {
        let store = self.open_store()?;
        let runner = match &mut self.host.runner {
            Runner::Launcher(launcher) => Runner::Launcher(launcher.connect()?),
            Runner::Itself => Runner::Itself,
            #[cfg(test)]
            Runner::Model(_) => Runner::Model(Vec::new()),
        };
        let xen = self.job_xen.clone();
        Ok(|| Host {
            store: store::over(store),
            xen,
            sysfs: Sysfs::host(),
            runner,
        })
    }

    /// True while the devices of a stub cannot be taken back, for something else is done for it.
    fn is_held_up(&self, stub: DomId) -> bool {
        self.jobs.is_busy(stub) || self.revivals.is_creating(stub)
    }

    fn limits(&mut self, stub: DomId) -> Arc<Mutex<Limits>> {
        let limits = self.limits.entry(stub);
        let limits = limits.or_insert_with(|| Arc::new(Mutex::new(Limits::new(Instant::now()))));
        Arc::clone(limits)
    }

    /// Whether something may be logged that this stub brings about as often as it likes.
    fn may_tell(&mut self, stub: DomId) -> bool {
        link::may_tell(&self.limits(stub))
    }

    fn set_state(&mut self, hop: Hop, state: XenbusState) -> Result<(), StoreError> {
        self.host
            .store
            .write(&hop.backend_node(key::STATE), state.as_str())
    }

    /// Takes the devices of an attachment back. Its stub is not served any more from the first moment.
    fn release(&mut self, attachment: Attachment, client: Option<Client>) -> Result<(), ServeError> {
        let stub = attachment.stub.domid;
        let host = self.open_host()?;
        let link = self.links.remove(&stub);
        self.revivals.drop_stub(stub);
        let job = move || {
            let mut host = host();
            // The last request is done when this returns, and nothing changes the record any more.
            drop(link);
            let current = current(&mut host.store, &attachment);
            logged(reclaim_all(&mut host, &current))
        };
        self.begin(stub, true, job, client)
    }

    /// Takes some devices of an attachment back. Nothing is done for them any more from the first moment.
    fn take_back(
        &mut self,
        attachment: Attachment,
        bdfs: Vec<Bdf>,
        client: Option<Client>,
    ) -> Result<(), ServeError> {
        let stub = attachment.stub.domid;
        let host = self.open_host()?;
        let link = self.links.get(&stub).map(Link::handle);
        let job = move || {
            let mut host = host();
            if let Some(link) = link {
                link.drop_devices(&bdfs);
            }
            let current = current(&mut host.store, &attachment);
            logged(reclaim_devices(&mut host, &current, &bdfs))
        };
        self.begin(stub, false, job, client)
    }

    fn begin(
        &mut self,
        stub: DomId,
        all: bool,
        job: impl FnOnce() -> Released + Send + 'static,
        client: Option<Client>,
    ) -> Result<(), ServeError> {
        self.jobs.release(stub, job).map_err(ServeError::Thread)?;
        let clients = client.into_iter().collect();
        self.released.insert(stub, Taking { all, clients });
        Ok(())
    }

    /// Serves what the record of a stub says now.
    fn follow_record(&mut self, stub: DomId, attachment: &Attachment) -> Reply {
        let Some(link) = self.links.get(&stub) else {
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
            Err(error) => failed(error),
        }
    }

    fn answer(&mut self, request: Request, client: Client) -> Result<(), ServeError> {
        let stub = match request {
            Request::Status => return self.answer_status(client),
            Request::Release { stub } | Request::TakeBack { stub, .. } | Request::Follow { stub } => stub,
        };
        if let Request::Release { .. } = request
            && let Some(taking) = self.released.get_mut(&stub).filter(|taking| taking.all)
        {
            taking.clients.push(client);
            return Ok(());
        }
        if self.is_held_up(stub) {
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
                client.reply(failed(error));
                return Ok(());
            }
        };
        let waiting = client.clone();
        let begun = match request {
            Request::Release { .. } => self.release(attachment, Some(client)),
            Request::TakeBack { devices, .. } => self.take_back(attachment, devices, Some(client)),
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

    /// Answers requests that had to wait, if nothing holds them up any more.
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

    /// What takes time is found out in the client's thread: a link may be busy, and there may be many stubs.
    fn answer_status(&mut self, client: Client) -> Result<(), ServeError> {
        let store = match self.open_store() {
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
        let mut links = Vec::new();
        for (&stub, link) in &self.links {
            links.push((
                stub,
                link.handle(),
                self.errors.tell(stub),
                self.revivals.count(stub),
            ));
        }
        let mut seen: BTreeMap<DomId, Seen> = BTreeMap::new();
        for &stub in &self.known {
            let given_up = self.broken.get(&stub).map(|why| {
                format!("not served any more: {why}; `xl destroy` of this stub has a new one come, which is served")
            });
            if let Some(remark) = self.jobs.tell(stub).or(given_up) {
                seen.entry(stub).or_default().remark = Some(remark);
            }
        }
        client.finish(move || {
            let mut store = store::over(store);
            for (stub, link, errors, revivals) in links {
                seen.entry(stub).or_default().served = Some(Served {
                    errors,
                    revivals,
                    ..link.served()
                });
            }
            match status::collect(&mut store, &Sysfs::host(), true, seen) {
                Ok(mut status) => {
                    status.service.holds = process_stats(&status);
                    Reply::Status(status)
                }
                Err(error) => failed(error),
            }
        });
        Ok(())
    }
}

/// The attachment as it is recorded now, when nothing changes it any more: its link may have noted other modes since.
fn current(store: &mut Store, attachment: &Attachment) -> Attachment {
    let current = Attachment::read(store, attachment.stub.domid);
    current.ok().flatten().unwrap_or_else(|| attachment.clone())
}

/// What is watched of a stub, each with its token.
fn watches(stub: DomId) -> [(String, String); 2] {
    [
        (
            Hop::second_hop(stub).frontend_node(key::STATE),
            agenda::state_token(stub),
        ),
        (DeviceType::Pci.backends(stub), agenda::published_token(stub)),
    ]
}

/// What this process holds.
fn process_stats(status: &Status) -> Option<ProcessStats> {
    match ProcessStats::read(Path::new("/proc/self")) {
        Ok(stats) => Some(ProcessStats {
            pirqs: status.stubs.iter().map(StubStatus::messages).sum(),
            ..stats
        }),
        Err(error) => {
            log::error!("cannot see in /proc what this process holds: {error}");
            None
        }
    }
}

fn logged(released: Released) -> Released {
    for line in &released.devices {
        log::info!("{line}");
    }
    for problem in &released.problems {
        log::error!("{problem}");
    }
    released
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Reply {
    Reply::Error {
        message: format!("{:#}", anyhow::Error::from(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::confine::tests::confined;
    use std::thread;

    /// What the service does besides its work on devices, with no more than it may do once it serves.
    #[test]
    fn all_that_the_service_waits_for_works_when_it_is_confined() {
        let wake = Wake::new().unwrap();
        let end = signal(SIGTERM).unwrap();
        let (mut launcher, launchers) = Launcher::to_a_thread();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        io::Write::write_all(&mut ours, b"{\"request\":\"follow\",\"stub\":4}\n").unwrap();
        let done = confined(move || {
            let mut jobs = Jobs::new(wake.clone());
            jobs.release(4, Released::default)
                .map_err(|error| format!("job: {error}"))?;
            let requests = clients::tests::attend_in_thread(theirs, &wake);
            let asked = requests.recv().map_err(|error| format!("request: {error}"))?;
            asked.client.finish(|| Reply::Followed);
            let mut fds = [
                PollFd::new(&wake, PollFlags::IN),
                PollFd::new(&end, PollFlags::IN),
            ];
            let waited = poll(&mut fds, None).map_err(|error| format!("poll: {error}"))?;
            wake.clear();
            let mut other = launcher.connect().map_err(|error| format!("launcher: {error}"))?;
            let refused = other.run(Order::DestroyDomain { domid: 32_751 });
            drop((launcher, other));
            while jobs.ended().is_none() {
                thread::yield_now();
            }
            ProcessStats::read(Path::new("/proc/self")).map_err(|error| format!("holdings: {error}"))?;
            Ok::<_, String>((waited, refused.is_err()))
        });
        assert_eq!(done, Ok((1, true)));
        launchers.join().unwrap();
        let mut answer = String::new();
        io::Read::read_to_string(&mut ours, &mut answer).unwrap();
        assert_eq!(answer, "{\"reply\":\"followed\"}\n");
    }
}
