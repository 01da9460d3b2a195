//! Ways to end the domain, each at a bad moment. After each of them dom0 creates a new domain with the same domid.

use super::misuse::{CRASH, Misuse};
use super::stub::{Deed, HostileStub, LISTEN};
use super::{raw, tally::Kind};
use crate::frontend::Failure;
use crate::op::Op;
use core::time::Duration;
use xenbus::client::{Store, Transport};
use xenbus::path::key;
use xenbus::pciif::SharedPage;

/// `SHUTDOWN_poweroff`; see `xen/include/public/sched.h` for all of them.
const POWEROFF: u32 = 0;
const REBOOT: u32 = 1;
const SUSPEND: u32 = 2;
const WATCHDOG: u32 = 4;
const SOFT_RESET: u32 = 5;
/// A reason without a meaning.
const NO_REASON: u32 = 77;
/// Duration of a hang that ends by itself.
const HANG: Duration = Duration::from_secs(5);
/// Register for a write to the ECAM page: the interrupt line. Only software uses it, so a write would do no harm.
const INTERRUPT_LINE: u16 = 0x3c;
const WRITTEN: u8 = 0xa5;

impl<P: Misuse, T: Transport> HostileStub<'_, P, T> {
    /// All deaths.
    pub const DEATHS: [Deed<Self>; 15] = [
        ("crash while a request is carried out", Self::die_with_request),
        (
            "crash while a request changes all the time",
            Self::die_while_changing,
        ),
        ("crash within transactions", Self::die_within_transactions),
        ("crash in a flood of states", Self::die_flooding),
        ("crash with garbage in the handover block", Self::die_with_garbage),
        (
            "crash with hundreds of nodes that are no text",
            Self::die_publishing,
        ),
        ("crash without a node", Self::die_without_nodes),
        ("crash in state 5", Self::die_closing),
        ("suspend", Self::suspend),
        ("watchdog", Self::watchdog),
        ("soft reset", Self::soft_reset),
        ("a reason that is none", Self::no_reason),
        ("a write to the configuration page", Self::write_page),
        // After these two the stub stays off until it is destroyed.
        ("poweroff", Self::poweroff),
        ("reboot", Self::reboot),
    ];

    fn die_with_request(&mut self) -> Result<(), Failure> {
        let op = self.own_msix();
        self.tally.count(Kind::Request);
        self.hop.send(self.platform, &op.encode());
        self.platform.relax();
        self.platform.shut_down(CRASH)
    }

    fn die_while_changing(&mut self) -> Result<(), Failure> {
        for _ in 0..20_000 {
            if !self.hop.is_active() {
                let op = self.random_request();
                self.tally.count(Kind::Request);
                self.hop.send(self.platform, &op.encode());
            }
            self.change_request();
        }
        self.platform.shut_down(CRASH)
    }

    fn die_within_transactions(&mut self) -> Result<(), Failure> {
        while self.open_transaction()? {}
        self.platform.shut_down(CRASH)
    }

    fn die_flooding(&mut self) -> Result<(), Failure> {
        self.flood_state()?;
        self.platform.shut_down(CRASH)
    }

    /// The next stub gets this handover block from dom0.
    fn die_with_garbage(&mut self) -> Result<(), Failure> {
        self.garble_handover(true);
        self.garble_counters(true);
        self.hop
            .page
            .copy_in(xenbus::handover_block::OFFSET + 8, &[0, 1, 4, 1]);
        self.platform.shut_down(CRASH)
    }

    fn die_publishing(&mut self) -> Result<(), Failure> {
        for number in 0..250 {
            for stem in ["vdev", "state", "root"] {
                self.tally.count(Kind::Published);
                let path = self.first.backend_node(&alloc::format!("{stem}-{number}"));
                raw::write(self.client, &path, b"\xff\xff")?;
            }
        }
        self.pause(LISTEN * 20);
        self.platform.shut_down(CRASH)
    }

    fn die_without_nodes(&mut self) -> Result<(), Failure> {
        for directory in [self.first.backend_dir(), self.second.frontend_dir()] {
            self.tally.count(Kind::Removal);
            let _ = self.client.remove(&directory);
        }
        self.platform.shut_down(CRASH)
    }

    fn die_closing(&mut self) -> Result<(), Failure> {
        self.write_state(b"5")?;
        self.tally.count(Kind::State);
        self.client.write(&self.first.backend_node(key::STATE), "5")?;
        self.platform.shut_down(CRASH)
    }

    fn poweroff(&mut self) -> Result<(), Failure> {
        self.platform.shut_down(POWEROFF)
    }

    fn reboot(&mut self) -> Result<(), Failure> {
        self.platform.shut_down(REBOOT)
    }

    fn suspend(&mut self) -> Result<(), Failure> {
        self.platform.shut_down(SUSPEND)
    }

    /// Hangs with a request in the page, and then ends.
    fn watchdog(&mut self) -> Result<(), Failure> {
        let op = self.own_msix();
        self.hop.send(self.platform, &op.encode());
        let end = self.platform.now().saturating_add(HANG);
        while self.platform.now() < end {
            core::hint::spin_loop();
        }
        self.platform.shut_down(WATCHDOG)
    }

    fn soft_reset(&mut self) -> Result<(), Failure> {
        self.platform.shut_down(SOFT_RESET)
    }

    fn no_reason(&mut self) -> Result<(), Failure> {
        self.platform.shut_down(NO_REASON)
    }

    /// Causes a page fault, after which the stub restarts in its domain.
    fn write_page(&mut self) -> Result<(), Failure> {
        if let Some(device) = self.devices.first().copied() {
            self.platform.write_ecam(device.ecam, INTERRUPT_LINE, WRITTEN);
            log::error!("UNSOUND: the configuration page could be written");
        }
        self.platform.shut_down(CRASH)
    }

    fn own_msix(&self) -> Op {
        let devfn = self.devices.first().map_or(0, |device| device.bdf.devfn());
        Op::msix(devfn.into(), [0])
    }
}
