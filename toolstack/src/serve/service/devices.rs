//! Jobs that take devices back.

use super::Service;
use crate::handover::reclaim::Released;
use crate::records::Attachment;
use crate::serve::clients::Client;
use crate::serve::connections::open_host;
use crate::serve::error::ServeError;
use crate::serve::link::Link;
use crate::serve::reclaim::{reclaim_all, reclaim_some};
use pci::bdf::Bdf;
use xen::xenctrl::DomId;

impl Service {
    /// True while the devices of a stub cannot be taken back, because something else is being done for it.
    pub fn is_held_up(&self, stub: DomId) -> bool {
        self.jobs.is_busy(stub) || self.revivals.is_creating(stub)
    }

    /// Starts a job that takes the devices of an attachment back. Its stub is not served any more from now on.
    pub fn reclaim_attachment(
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
    pub fn reclaim_devices(
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
}
