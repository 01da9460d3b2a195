//! The turn of one stub: its link, its return or its end, and the copy of what it publishes.

use super::Service;
use crate::handover::carry::{carry_over, follow_kept, origin_of};
use crate::host::domains::{Domain, present};
use crate::host::store::StoreError;
use crate::nodes::hops::first_hop;
use crate::nodes::suspension;
use crate::records::Attachment;
use crate::serve::agenda::{self, Concern, StubTurn};
use crate::serve::error::ServeError;
use crate::serve::revive::{Afterwards, StubAction};
use crate::service_log;
use log::Level;
use std::io;
use std::time::Instant;
use xen::xenctrl::{DomId, DomainState};

impl Service {
    /// Reads which stubs there are, and marks those that are new, whose record has changed, or that are not served. After a burst
    /// of events nothing else tells which they are.
    pub fn list(&mut self) -> Result<(), ServeError> {
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
    pub fn find_deaths(&mut self) {
        for &stub in &self.watched {
            // A stub whose record is to be read has its turn anyway.
            if let Some(attachment) = self.known.get(stub)
                && !is_sound(attachment, |domid| self.host.xen.identity(domid))
            {
                self.agenda.mark(Concern::Stub(stub), Instant::now());
            }
        }
    }

    pub fn take_turn(&mut self, stub: DomId, turn: StubTurn) -> Result<(), ServeError> {
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

    /// Has the guest start its connection again if it gave its frontend up before the connection stood.
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
