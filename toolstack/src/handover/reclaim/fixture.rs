//! A host with an attachment that is to be undone, for the tests of all steps.

use super::outcome::Released;
use super::{reclaim_all, reclaim_devices};
use crate::config_space::capabilities::tests::space;
use crate::host::store::tests::{dom0, introduce};
use crate::host::sysfs::PCIBACK;
use crate::host::sysfs::tests::Tree;
use crate::host::{Host, Runner};
use crate::nodes::hops::{error_directory, first_hop};
use crate::records::interrupt_mode::Mode;
use crate::records::tests::{device, domain};
use crate::records::{self, Attachment, Device};
use pci::bdf::Bdf;
use xen::model::Xen;
use xenbus::client::Store as _;
use xenbus::device::SlotMode;
use xenbus::model::Xenstored;

pub const BDF: &str = "0000:00:05.0";
pub const PMCSR: usize = 0x54;
pub const MSI: usize = 0x60;

/// A host whose guest 3 has the device 00:05.0, and whose stub is 4.
pub struct Fixture {
    pub daemon: Xenstored,
    pub tree: Tree,
    pub host: Host<Xen>,
    pub attachment: Attachment,
}

impl Fixture {
    /// The guest has changed all that it can: the device sleeps, does DMA, sends messages, and forgot its address.
    pub fn new() -> Self {
        let mut original = space(&[(0x50, 0x01), (0x60, 0x05)]);
        original[..4].copy_from_slice(&[0x86, 0x80, 0xd3, 0x10]);
        original[4] = 0x02;
        original[0x10..0x14].copy_from_slice(&0xfebc_0000_u32.to_le_bytes());
        original[0x3c] = 11;
        let mut left = original.clone();
        left[4] = 0x06;
        left[0x10..0x14].copy_from_slice(&[0; 4]);
        left[0x3c] = 99;
        left[PMCSR] = 3;
        left[MSI + 2] = 1;

        let tree = Tree::new();
        tree.add(
            BDF,
            &[
                ("config", &left),
                ("vendor", b"0x8086\n"),
                ("device", b"0x10d3\n"),
                ("reset", b""),
                ("reset_method", b"flr\n"),
            ],
        );
        tree.bind(BDF, PCIBACK);
        let daemon = Xenstored::new();
        introduce(&daemon, 3, "web");
        introduce(&daemon, 4, "web-bulkhead");
        let mut host = Host {
            store: dom0(&daemon),
            xen: Xen::default(),
            sysfs: tree.sysfs(),
            runner: Runner::Model(Vec::new()),
        };
        let attachment = Attachment {
            guest: domain(3, "web"),
            stub: domain(4, "web-bulkhead"),
            slots: SlotMode::Vpci,
            devices: vec![Device {
                header: original[..64].to_vec(),
                ..device(BDF)
            }],
            modes: vec![Mode::Msix(vec![(0, 55), (1, 54)]).into()],
        };
        attachment.write(&mut host.store).unwrap();
        let hop = first_hop(&attachment);
        for node in [
            format!("{}/state", hop.frontend_dir()),
            format!("{}/x", error_directory(4)),
            "/local/domain/0/backend/bulkhead/4/0/state".to_owned(),
        ] {
            host.store.write(&node, "1").unwrap();
        }
        Self {
            daemon,
            tree,
            host,
            attachment,
        }
    }

    pub fn bdf(&self) -> Bdf {
        self.attachment.devices[0].bdf
    }

    pub fn reclaim_all(&mut self) -> Released {
        reclaim_all(&mut self.host, &self.attachment)
    }

    pub fn reclaim_devices(&mut self) -> Released {
        let bdfs = [self.bdf()];
        reclaim_devices(&mut self.host, &self.attachment, &bdfs)
    }

    pub fn config(&self) -> Vec<u8> {
        self.host.sysfs.config_bytes(self.bdf()).unwrap()
    }

    pub fn reset_written(&self) -> String {
        std::fs::read_to_string(self.tree.device(BDF).join("reset")).unwrap()
    }

    pub fn rebind(&self, driver: Option<&str>) {
        std::fs::remove_file(self.tree.device(BDF).join("driver")).unwrap();
        if let Some(driver) = driver {
            self.tree.bind(BDF, driver);
        }
    }

    pub fn quarantine(&mut self) -> Option<String> {
        let bdf = self.bdf();
        records::quarantine_reason(&mut self.host.store, bdf).unwrap()
    }

    pub fn exists(&mut self, path: &str) -> bool {
        self.host.store.directory(path).is_ok()
    }
}

/// All that Xen is asked when a guest that lives loses the device with its line.
pub const TAKEN: [&str; 11] = [
    "unmap 3 55",
    "unmap 3 54",
    "pirq 3 20 false",
    "unmap 3 20",
    "frames 3 febc0+20 false",
    "frames 3 febe0+20 false",
    "ports 3 c000+20 false",
    "frames 3 febd4+4 false",
    "frames 3 feb80+40 false",
    "frames 4 b0028+1 false",
    "deassign 3 0000:00:05.0",
];
