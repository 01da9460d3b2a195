//! A hypervisor for tests.

use crate::xenctrl::{DomId, Hypervisor, RunState};
use pci::bdf::Bdf;
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

/// A hypervisor that records the calls to it, and gives pirqs from 55 downwards.
pub struct Xen {
    calls: RefCell<Vec<String>>,
    /// How many more MSI messages may be mapped.
    mappings: Cell<u16>,
    /// The devices of the one IOMMU group: owner and address.
    group: RefCell<Vec<(DomId, Bdf)>>,
    /// The calls that are refused, by their first characters, each with its error.
    refused: RefCell<Vec<(String, Errno)>>,
    /// The domains that are alive.
    domains: RefCell<BTreeMap<DomId, ModelDomain>>,
    /// The UUIDs with which domains were created.
    uuids: RefCell<BTreeMap<DomId, String>>,
    /// What is done after each call.
    after_each: RefCell<Option<Box<dyn Fn()>>>,
    /// The pirqs that are mapped, if they are tracked. Then the highest free one is given, as Xen does.
    pirqs: Option<RefCell<BTreeSet<u16>>>,
}

/// A domain of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelDomain {
    /// How often it is paused.
    pub pauses: u32,
    /// Time for which it has run.
    pub cpu_time: Duration,
}

impl Default for Xen {
    fn default() -> Self {
        Self::refusing_after(32)
    }
}

impl Xen {
    /// A hypervisor that maps so many messages and refuses more.
    pub fn refusing_after(mappings: u16) -> Self {
        Self {
            calls: RefCell::default(),
            mappings: Cell::new(mappings),
            group: RefCell::default(),
            refused: RefCell::default(),
            domains: RefCell::default(),
            uuids: RefCell::default(),
            after_each: RefCell::default(),
            pirqs: None,
        }
    }

    /// A hypervisor that tracks its pirqs, of which these are mapped.
    pub fn with_pirqs(pirqs: &[u16]) -> Self {
        Self {
            pirqs: Some(RefCell::new(pirqs.iter().copied().collect())),
            ..Self::default()
        }
    }

    /// The pirqs that are mapped, if they are tracked.
    pub fn pirqs(&self) -> Vec<u16> {
        let pirqs = self.pirqs.iter().flat_map(|pirqs| pirqs.borrow().clone());
        pirqs.collect()
    }

    /// Puts a device of this owner into the group.
    pub fn put_in_group(&self, owner: DomId, bdf: Bdf) {
        self.group.borrow_mut().push((owner, bdf));
    }

    /// Adds a domain, or changes one.
    pub fn set_domain(&self, domid: DomId, domain: ModelDomain) {
        self.domains.borrow_mut().insert(domid, domain);
    }

    /// A domain as it is now.
    pub fn domain(&self, domid: DomId) -> Option<ModelDomain> {
        self.domains.borrow().get(&domid).copied()
    }

    /// Sets the UUID with which a domain was created.
    pub fn set_uuid(&self, domid: DomId, uuid: &str) {
        self.uuids.borrow_mut().insert(domid, uuid.to_owned());
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<String> {
        self.calls.borrow().clone()
    }

    /// Refuses calls that begin with these characters from now on.
    pub fn refuse(&self, beginning: &str, error: Errno) {
        self.refused.borrow_mut().push((beginning.to_owned(), error));
    }

    /// Has something done after each call.
    pub fn after_each(&self, what: impl Fn() + 'static) {
        *self.after_each.borrow_mut() = Some(Box::new(what));
    }

    fn record_call(&self, call: String) -> io::Result<()> {
        let answer = self.check(&call);
        self.calls.borrow_mut().push(call);
        if let Some(what) = self.after_each.borrow().as_ref() {
            what();
        }
        answer
    }

    fn check(&self, call: &str) -> io::Result<()> {
        let refused = self.refused.borrow();
        let refusal = refused.iter().find(|(beginning, _)| call.starts_with(beginning));
        refusal.map_or(Ok(()), |&(_, error)| Err(error.into()))
    }
}

impl Hypervisor for Xen {
    fn pause(&self, domain: DomId) -> io::Result<()> {
        self.record_call(format!("pause {domain}"))?;
        let mut domains = self.domains.borrow_mut();
        let domain = domains.get_mut(&domain).ok_or(Errno::SRCH)?;
        domain.pauses += 1;
        Ok(())
    }

    fn unpause(&self, domain: DomId) -> io::Result<()> {
        self.record_call(format!("unpause {domain}"))?;
        let mut domains = self.domains.borrow_mut();
        let domain = domains.get_mut(&domain).ok_or(Errno::SRCH)?;
        domain.pauses = domain.pauses.checked_sub(1).ok_or(Errno::INVAL)?;
        Ok(())
    }

    fn run_state(&self, domain: DomId) -> io::Result<Option<RunState>> {
        self.check(&format!("state {domain}"))?;
        Ok(self.domain(domain).map(|domain| RunState {
            paused: domain.pauses > 0,
            cpu_time: domain.cpu_time,
        }))
    }

    fn uuid(&self, domain: DomId) -> io::Result<Option<String>> {
        Ok(self.uuids.borrow().get(&domain).cloned())
    }

    fn allow_frames(&self, domain: DomId, first: u64, count: u64, allow: bool) -> io::Result<()> {
        self.record_call(format!("frames {domain} {first:x}+{count:x} {allow}"))
    }

    fn allow_ports(&self, domain: DomId, first: u32, count: u32, allow: bool) -> io::Result<()> {
        self.record_call(format!("ports {domain} {first:x}+{count:x} {allow}"))
    }

    fn allow_pirq(&self, domain: DomId, pirq: u32, allow: bool) -> io::Result<()> {
        self.record_call(format!("pirq {domain} {pirq} {allow}"))
    }

    fn map_gsi(&self, domain: DomId, gsi: u32) -> io::Result<()> {
        self.record_call(format!("gsi {domain} {gsi}"))
    }

    fn map_msi(&self, domain: DomId, bdf: Bdf, msix: Option<(u16, u64)>) -> io::Result<u16> {
        let left = self.mappings.get();
        self.mappings
            .set(left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?);
        let mapped = self.calls().iter().filter(|call| call.starts_with("map")).count() as u16;
        let mut pirq = 55 - mapped;
        if let Some(pirqs) = &self.pirqs {
            pirq = (0..=55)
                .rev()
                .find(|pirq| !pirqs.borrow().contains(pirq))
                .unwrap();
            pirqs.borrow_mut().insert(pirq);
        }
        let what = msix
            .map(|(entry, table)| format!(" entry {entry} of {table:x}"))
            .unwrap_or_default();
        self.record_call(format!("map {domain} {bdf}{what}: {pirq}"))?;
        Ok(pirq)
    }

    fn unmap_pirq(&self, domain: DomId, pirq: u32) -> io::Result<()> {
        if let Some(pirqs) = &self.pirqs
            && !u16::try_from(pirq).is_ok_and(|pirq| pirqs.borrow_mut().remove(&pirq))
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.record_call(format!("unmap {domain} {pirq}"))
    }

    fn restore_msi(&self, bdf: Bdf) -> io::Result<()> {
        self.record_call(format!("restore messages {bdf}"))
    }

    fn assign(&self, domain: DomId, bdf: Bdf) -> io::Result<()> {
        self.record_call(format!("assign {domain} {bdf}"))
    }

    fn deassign(&self, domain: DomId, bdf: Bdf) -> io::Result<()> {
        self.record_call(format!("deassign {domain} {bdf}"))
    }

    fn group(&self, domain: DomId, bdf: Bdf) -> io::Result<Vec<Bdf>> {
        let group = self.group.borrow();
        let others = group
            .iter()
            .filter(|(owner, other)| *owner == domain && *other != bdf);
        Ok(others.map(|&(_, other)| other).collect())
    }
}
