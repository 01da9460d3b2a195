//! What a command has done so far, to be undone if it fails.
//!
//! Only what the command itself did is undone. It may have let others do their work meanwhile (`run` does while its guest
//! boots), so each step is looked at before: a device that another command has taken since, or a number that another
//! domain has by now, is left alone.

use crate::domains;
use crate::domains::Domain;
use crate::host::Host;
use crate::hotplug;
use crate::launch::{release_once, stays_held};
use crate::nodes::first_hop;
use crate::records::{self, Attachment};
use crate::release::Released;
use crate::say::{self, note};
use crate::seize::{Back, give_back};
use crate::serve;
use crate::store::Store;
use crate::unfinished;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::io;
use xenbus::bdf::Bdf;
use xenbus::client::Store as _;
use xenbus::path::{Device as Hop, DeviceType};

/// One thing that was done.
#[derive(Clone, Debug)]
pub enum Step {
    /// A device was taken from dom0.
    Seized(Bdf),
    /// A domain was created.
    Created(Domain),
    /// A guest got its first devices.
    Attached(Attachment),
    /// A guest got more devices: it has those of the attachment now.
    Added(Attachment, Vec<Bdf>),
}

/// What was done so far, to be undone in the reverse order.
#[derive(Debug)]
pub struct Undo {
    /// Tells this command from all others.
    command: String,
    steps: Vec<Step>,
}

/// A text that nobody else has.
pub fn unique() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid")?
        .trim()
        .to_owned())
}

impl Undo {
    /// Nothing is done yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            command: unique()?,
            steps: Vec::new(),
        })
    }

    /// What tells this command from others.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Notes a step before it is taken, or right after: undoing what was not done does no harm.
    pub fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// True if the command has created the domain.
    fn has_created(&self, domain: &Domain) -> bool {
        let created = |step: &Step| matches!(step, Step::Created(created) if created.uuid == domain.uuid);
        self.steps.iter().any(created)
    }

    /// Undoes everything; what cannot be undone is told. No other command may change anything meanwhile.
    pub fn undo(self, host: &mut Host) {
        if !self.steps.is_empty() {
            say::progress("undoing what was done");
        }
        for step in self.steps.iter().rev() {
            if let Err(error) = self.undo_step(host, step) {
                note!("while undoing: {error:#}");
            }
        }
    }

    fn undo_step(&self, host: &mut Host, step: &Step) -> Result<()> {
        match step {
            Step::Seized(bdf) => {
                if is_to_go_back(&mut host.store, *bdf, &self.command)?
                    && let Back::MappedBy(guest) = give_back(host, *bdf)?
                {
                    note!("{}", stays_held(*bdf, &guest));
                }
                Ok(())
            }
            Step::Created(domain) => {
                domains::destroy(host, domain)?;
                Ok(unfinished::forget(&mut host.store, &domain.uuid)?)
            }
            Step::Attached(attachment) => {
                if !is_recorded(&mut host.store, attachment)? {
                    return Ok(());
                }
                let released = if self.has_created(&attachment.stub) {
                    release_once(host, attachment)?
                } else {
                    leave_stub(host, attachment)?
                };
                ensure!(released.problems.is_empty(), "{}", released.problems.join("; "));
                Ok(())
            }
            Step::Added(attachment, bdfs) => hotplug::undo(host, attachment, bdfs),
        }
    }
}

/// Takes all devices of an attachment back, and leaves the stub running, which was there before.
fn leave_stub(host: &mut Host, attachment: &Attachment) -> Result<Released> {
    let bdfs: Vec<Bdf> = attachment.bdfs().collect();
    let released = hotplug::take_back_once(host, attachment, &bdfs)?;
    remove_nodes(&mut host.store, attachment)?;
    note!(
        "stub {0} was there before, and is left running: `xl destroy {0}` ends it",
        attachment.stub.name
    );
    Ok(released)
}

/// Removes what both hops have in xenstore, and the record.
fn remove_nodes(store: &mut Store, attachment: &Attachment) -> Result<()> {
    let (first, stub) = (first_hop(attachment), attachment.stub.domid);
    let second = Hop::second_hop(stub);
    for path in [
        first.frontend_dir(),
        DeviceType::Pci.frontends(attachment.guest.domid),
        first.backend_dir(),
        second.frontend_dir(),
        second.backend_dir(),
        serve::error_directory(stub),
    ] {
        match store.remove(&path) {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(attachment.remove(store)?)
}

/// True if a device that `command` has taken is still its own and no guest's. Where an earlier step could not be undone, a
/// guest has it yet, and that is an error.
fn is_to_go_back(store: &mut Store, bdf: Bdf, command: &str) -> Result<bool> {
    if !records::is_taken_by(store, bdf, command)? {
        return Ok(false);
    }
    let (attachments, damaged) = Attachment::all(store)?;
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

/// True if the record of the stub is of this attachment, and not of a later one by a stub with the same number.
fn is_recorded(store: &mut Store, attachment: &Attachment) -> Result<bool> {
    let recorded = Attachment::read(store, attachment.stub.domid)?;
    Ok(recorded.is_some_and(|recorded| {
        (&recorded.guest.uuid, &recorded.stub.uuid) == (&attachment.guest.uuid, &attachment.stub.uuid)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes;
    use crate::records::tests::{attachment, domain};
    use crate::records::{Taken, children};
    use crate::store::tests::{dom0, introduce};
    use xenbus::model::Xenstored;

    #[test]
    fn a_device_goes_back_if_this_command_took_it_and_nobody_else_has_since() {
        let mut store = dom0(&Xenstored::new());
        let bdf: Bdf = "00:05.0".parse().unwrap();
        let goes_back = |store: &mut Store| is_to_go_back(store, bdf, "this").unwrap();
        assert!(!goes_back(&mut store), "it was not taken");
        records::note_taken(&mut store, Taken::ForGuest, bdf, "e1000e", "this").unwrap();
        assert!(goes_back(&mut store));
        records::note_taken(&mut store, Taken::ForGuest, bdf, "e1000e", "another").unwrap();
        assert!(!goes_back(&mut store));
        records::note_taken(&mut store, Taken::ForGuest, bdf, "e1000e", "this").unwrap();
        attachment().write(&mut store).unwrap();
        let error = is_to_go_back(&mut store, bdf, "this").unwrap_err().to_string();
        assert!(
            error.starts_with("0000:00:05.0 stays with guest web: `bulkhead detach"),
            "{error}"
        );
        let other: Bdf = "00:09.0".parse().unwrap();
        records::note_taken(&mut store, Taken::ForGuest, other, "", "this").unwrap();
        assert!(is_to_go_back(&mut store, other, "this").unwrap());

        // Whom a damaged record gives it to is not known.
        store.write("/local/domain/0/bulkhead/attachment/9", "{").unwrap();
        let error = is_to_go_back(&mut store, other, "this").unwrap_err().to_string();
        assert_eq!(error, "0000:00:09.0 stays held: a guest may have it");
    }

    #[test]
    fn an_attachment_is_undone_if_it_is_this_commands_and_no_later_one_of_the_same_number() {
        let mut store = dom0(&Xenstored::new());
        let ours = attachment();
        assert!(!is_recorded(&mut store, &ours).unwrap());
        ours.write(&mut store).unwrap();
        assert!(is_recorded(&mut store, &ours).unwrap());
        for later in [
            Attachment {
                stub: Domain {
                    uuid: "later".into(),
                    ..ours.stub.clone()
                },
                ..ours.clone()
            },
            Attachment {
                guest: domain(9, "mail"),
                ..ours.clone()
            },
        ] {
            later.write(&mut store).unwrap();
            assert!(!is_recorded(&mut store, &ours).unwrap());
        }
    }

    #[test]
    fn a_domain_is_this_commands_if_it_has_created_it() {
        let mut undo = Undo::new().unwrap();
        assert_ne!(undo.command(), Undo::new().unwrap().command());
        undo.push(Step::Created(domain(4, "web-bulkhead")));
        assert!(undo.has_created(&domain(4, "renamed")));
        assert!(!undo.has_created(&domain(5, "web-bulkhead")));
    }

    #[test]
    fn of_an_attachment_that_is_undone_nothing_is_left_and_its_stub_can_have_another() {
        let daemon = Xenstored::new();
        let mut store = dom0(&daemon);
        for (domid, name) in [(3, "web"), (4, "hand")] {
            introduce(&daemon, domid, name);
        }
        let attachment = attachment();
        let nodes = |store: &mut Store| {
            let paths = [
                "/local/domain/3/device",
                "/local/domain/4/backend/pci/3",
                "/local/domain/4/device/bulkhead/0",
                "/local/domain/0/backend/bulkhead/4",
                "/local/domain/0/bulkhead/attachment/4",
                "/libxl/pci/0000-00-05-0",
            ];
            let there = paths.map(|path| usize::from(!children(store, path).unwrap().is_empty()));
            there.into_iter().sum::<usize>()
        };
        for _ in 0..2 {
            attachment.write(&mut store).unwrap();
            nodes::Hop::second(&attachment).write(&mut store).unwrap();
            nodes::Hop::first(&attachment).write(&mut store).unwrap();
            assert_eq!(nodes(&mut store), 6);
            remove_nodes(&mut store, &attachment).unwrap();
            assert_eq!(nodes(&mut store), 0);
        }
        remove_nodes(&mut store, &attachment).expect("once more does no harm");
    }
}
