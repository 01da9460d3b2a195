//! What a command has done so far, to be undone if it fails.

use crate::domains;
use crate::host::Host;
use crate::hotplug;
use crate::launch::release_once;
use crate::record::{Attachment, Domain};
use crate::seize::give_back;
use anyhow::{Result, ensure};
use xenbus::bdf::Bdf;

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
#[derive(Debug, Default)]
pub struct Undo(Vec<Step>);

impl Undo {
    /// Notes a step before it is taken, or right after: undoing what was not done does no harm.
    pub fn push(&mut self, step: Step) {
        self.0.push(step);
    }

    /// Undoes everything; what cannot be undone is told.
    pub fn undo(self, host: &mut Host) {
        if !self.0.is_empty() {
            eprintln!("undoing what was done");
        }
        for step in self.0.into_iter().rev() {
            if let Err(error) = step.undo(host) {
                eprintln!("note: while undoing: {error:#}");
            }
        }
    }
}

impl Step {
    fn undo(self, host: &mut Host) -> Result<()> {
        match self {
            Self::Seized(bdf) => {
                // Where an earlier step could not be undone.
                let (attachments, _) = Attachment::all(&mut host.store)?;
                for attachment in &attachments {
                    ensure!(
                        attachment.bdfs().all(|other| other != bdf),
                        "{bdf} stays with guest {}: `bulkhead detach {bdf}` tries again to take it back",
                        attachment.guest.name
                    );
                }
                give_back(host, bdf).map(drop).map_err(Into::into)
            }
            Self::Created(domain) => Ok(domains::destroy(host, &domain)?),
            Self::Attached(attachment) => {
                let released = release_once(host, &attachment)?;
                ensure!(released.problems.is_empty(), "{}", released.problems.join("; "));
                Ok(())
            }
            Self::Added(attachment, bdfs) => hotplug::undo(host, &attachment, &bdfs),
        }
    }
}
