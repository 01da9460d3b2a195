//! A stub's side of the second hop, for the tests of all answers.

use super::answers::{Done, Function};
use super::functions::Functions;
use crate::config_space::access::tests::Model;
use crate::config_space::capabilities::tests::space;
use crate::records::ModeFile;
use crate::records::interrupt_mode::{Mode, ModeChange, ModeRecord};
use crate::records::tests::attachment;
use crate::terms::Terms;
use pci::bdf::Bdf;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use xen::model::Xen;
use xenbus::model::Page;
use xenbus::pciif::backend::take;
use xenbus::pciif::frontend::post;
use xenbus::pciif::{MsixEntry, OpError, Request};

pub const POWER: u16 = 0x40;
pub const MSIX: u16 = 0x70;

/// An e1000e at 00:05.0 with five MSI-X entries behind BAR 3, decoding memory and ports.
pub fn config() -> Model {
    let mut bytes = space(&[(POWER as u8, 1), (MSIX as u8, 0x11)]);
    bytes[0x04] = 0x03;
    bytes[0x10..0x14].copy_from_slice(&0xfebc_0000_u32.to_le_bytes());
    bytes[usize::from(MSIX) + 2] = 4;
    bytes[usize::from(MSIX) + 4] = 3;
    Model::new(bytes)
}

/// A stub that asks, and dom0's answers.
pub struct StubSide {
    pub functions: Functions<Model>,
    pub xen: Xen,
    pub recorded: Vec<String>,
}

impl StubSide {
    pub fn new() -> Self {
        Self::with(Terms::default())
    }

    pub fn with(terms: Terms) -> Self {
        let mut attachment = attachment();
        attachment.devices.truncate(1);
        attachment.devices[0].terms = terms;
        attachment.devices[0].header = config().bytes.borrow()[..64].to_vec();
        attachment.modes = vec![Mode::Intx.into()];
        Self {
            functions: Functions::new(&attachment, |_| Ok::<_, io::Error>(config())).unwrap(),
            xen: Xen::default(),
            recorded: Vec::new(),
        }
    }

    pub fn ask(&mut self, request: &Request, entries: &[u16]) -> Result<Done, OpError> {
        let page = Page::new();
        let entry = |&entry| MsixEntry { vector: 0, entry };
        let entries: Vec<_> = entries.iter().map(entry).collect();
        assert!(post(&page, request, &entries).is_ok());
        let taken = take(&page).unwrap();
        let recorded = &mut self.recorded;
        let record = |bdf: Bdf, _: &mut Option<ModeFile>, mode: ModeRecord<'_>| {
            recorded.push(format!("{bdf}: {mode}"));
        };
        self.functions
            .answer(&taken, &self.xen, record)
            .map_err(|failure| failure.error)
    }

    /// The same device, served by another process, which reads this mode in the record.
    pub fn taken_up_again(self, mode: Mode) -> Self {
        let bytes = self.config().bytes.borrow().clone();
        let mut attachment = attachment();
        attachment.devices.truncate(1);
        attachment.devices[0].header = config().bytes.borrow()[..64].to_vec();
        attachment.modes = vec![mode.into()];
        let open = |_| Ok::<_, io::Error>(Model::new(bytes.clone()));
        Self {
            functions: Functions::new(&attachment, open).unwrap(),
            ..Self::new()
        }
    }

    pub fn resolve_unknown(&mut self, changes: &BTreeMap<Bdf, ModeChange>) -> Vec<String> {
        let resolved = self
            .functions
            .resolve_unknown(&self.xen, changes, &BTreeSet::new(), |_, _, _| {});
        resolved.into_iter().map(|(_, found)| found.unwrap()).collect()
    }

    pub fn function(&self) -> &Function<Model> {
        self.functions.iter().next().unwrap()
    }

    pub fn config(&self) -> &Model {
        &self.function().config
    }

    pub fn writes(&self) -> Vec<(u16, u8, u32)> {
        self.config().writes.borrow().clone()
    }
}

pub fn bdf() -> Bdf {
    "00:05.0".parse().unwrap()
}
