//! Requests of clients.

use super::Service;
use crate::control::{Reply, Request};
use crate::host::Runner;
use crate::paths;
use crate::records::Attachment;
use crate::serve::clients::Client;
use crate::serve::connections::open_store;
use crate::serve::error::ServeError;
use crate::serve::report::{Linked, report};
use std::collections::BTreeMap;
use xen::xenctrl::DomId;

impl Service {
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
    pub fn answer(&mut self, request: Request, client: Client) -> Result<(), ServeError> {
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
    pub fn answer_waiting(&mut self) -> Result<(), ServeError> {
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
