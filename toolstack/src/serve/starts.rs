//! Guests that are to have devices whenever they start ([`declared`]): each is paused before its first instruction, and the
//! launcher is told to give it its devices and let it run.
//!
//! libxl makes the nodes of a domain, below `/vm` too, before it loads the kernel into it. Xen counts pauses, so the
//! toolstack's own unpause comes and goes without effect.

use crate::admission::declared::{DeclaredError, declared};
use crate::host::domains::{self, Domain};
use crate::host::launcher::{Order, Ticket};
use crate::host::store::Store;
use crate::host::{Host, Runner};
use crate::records::unfinished;
use crate::records::{Attachment, GuestStart, RecordError, Stage, forget_start};
use crate::serve::error::ServeError;
use bulkhead_config::declaration::DIRECTORY;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xen::xenctrl::{DomId, Hypervisor};

/// The domains that were looked at, and the starts that are under way.
pub struct Starts {
    /// Directory of the declarations.
    directory: PathBuf,
    /// The UUID of each domain that was looked at.
    known: BTreeMap<DomId, String>,
    orders: Vec<(Domain, Ticket)>,
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
            orders: Vec::new(),
        }
    }

    /// True if an answer of the launcher is outstanding.
    pub const fn expect_answers(&self) -> bool {
        !self.orders.is_empty()
    }

    /// Looks for domains that are new, and begins to give devices to those that are to have some.
    pub fn look<X: Hypervisor>(&mut self, host: &mut Host<X>) -> Result<(), ServeError> {
        let domains = domains::all(&mut host.store)?;
        self.known.retain(|domid, uuid| {
            domains
                .iter()
                .any(|domain| (domain.domid, &domain.uuid) == (*domid, &*uuid))
        });
        for guest in domains {
            // One without a UUID is being made, or of a toolstack that no declaration can be sure of.
            if guest.domid == 0 || guest.uuid.is_empty() || self.known.contains_key(&guest.domid) {
                continue;
            }
            self.begin(host, &guest)?;
            self.known.insert(guest.domid, guest.uuid);
        }
        Ok(())
    }

    fn begin<X: Hypervisor>(&mut self, host: &mut Host<X>, guest: &Domain) -> Result<(), ServeError> {
        let stage = match self.newcomer(&mut host.store, guest)? {
            Newcomer::Other => return Ok(()),
            Newcomer::Begun(stage) => stage,
            Newcomer::New => match pause(host, guest)? {
                Some(stage) => stage,
                None => return Ok(()),
            },
        };
        let Runner::Launcher(launcher) = &mut host.runner else {
            return Ok(());
        };
        match launcher.order(Order::Start { guest: guest.domid }) {
            Ok(ticket) => self.orders.push((guest.clone(), ticket)),
            Err(error) => {
                fail(&mut host.store, guest, &stage, &error.to_string())?;
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn newcomer(&self, store: &mut Store, guest: &Domain) -> Result<Newcomer, ServeError> {
        match GuestStart::of(store, guest)?.map(|start| start.stage) {
            None => {}
            Some(Stage::Given | Stage::Failed { .. }) => return Ok(Newcomer::Other),
            Some(stage) => return Ok(Newcomer::Begun(stage)),
        }
        let is_declared = match declared(store, &self.directory, guest) {
            Ok(declared) => declared.is_some(),
            Err(DeclaredError::Store(error)) => return Err(error.into()),
            // A guest whose own file is broken waits. If no file can be read, that is no reason to stop every guest.
            Err(DeclaredError::File(_)) => true,
            Err(error @ DeclaredError::Directory { .. }) => {
                log::error!(
                    "{:#}; guest {} starts as it is",
                    anyhow::Error::from(error),
                    guest.name
                );
                false
            }
        };
        if !is_declared && !had_devices(store, guest)? {
            return Ok(Newcomer::Other);
        }
        // `bulkhead run` and `attach` give devices to the domains that they create.
        if unfinished::is_recorded(store, &guest.uuid)? {
            return Ok(Newcomer::Other);
        }
        let (attachments, _) = Attachment::all(store)?;
        if attachments.iter().any(|attachment| attachment.guest == *guest) {
            let stage = Stage::Given;
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
fn had_devices(store: &mut Store, guest: &Domain) -> Result<bool, RecordError> {
    let (attachments, _) = Attachment::all(store)?;
    let is_last = |last: &Domain| last.uuid == guest.uuid && last.domid != guest.domid;
    Ok(attachments.iter().any(|attachment| is_last(&attachment.guest)))
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
        Stage::Given | Stage::Failed { .. } => return Ok(()),
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
