//! Attacks by hypercalls: dom0's hypercalls, and memory, ports and grants of other domains.

use super::misuse::Misuse;
use super::stub::{HostileStub, LISTEN};
use super::tally::Kind;
use crate::frontend::Failure;
use alloc::string::ToString;
use alloc::vec::Vec;
use drivers::platform::{ConfigSpace, DomId, GrantRef, Port};
use xenbus::client::{Store, Transport};
use xenbus::device::Bars;
use xenbus::path::Numbered;

/// Domids to try: dom0, and the domains of a test.
const DOMAINS: core::ops::Range<DomId> = 0..16;
/// Grants and ports of other domains to try.
const GRANTS: core::ops::Range<GrantRef> = 0..24;
const PORTS: core::ops::Range<Port> = 1..48;
/// More ports than a domain may have.
const MANY_PORTS: usize = 5000;
/// Frames of every PC: memory of the firmware, interrupt controllers, the IOMMU.
const FRAMES: [u64; 7] = [0, 1, 0xa0, 0xf0, 0xfec00, 0xfed90, 0xfee00];
/// Frames of ECAM pages, one for each function.
const FUNCTIONS: u64 = 0x100;

impl<P: Misuse, T: Transport> HostileStub<'_, P, T> {
    /// Closes ports that the service has bound to. Then allocates ports until there are no more.
    pub(super) fn ports(&mut self) -> Result<(), Failure> {
        let dom0 = self.second.backend();
        let mut ports = Vec::new();
        while let Ok(port) = self.platform.alloc_unbound(dom0) {
            self.tally.count(Kind::Port);
            ports.push(port);
            if ports.len() >= MANY_PORTS {
                break;
            }
        }
        log::info!("{} ports were to be had", ports.len());
        // A port that nobody has bound to, and a port that the service has bound to already.
        for port in [ports.first().copied(), Some(self.hop.port)]
            .into_iter()
            .flatten()
        {
            let grant = self.hop.grant.to_string();
            self.publish_particulars(&grant, &port.to_string())?;
            self.write_state(b"3")?;
            self.pause(LISTEN * 10);
        }
        for port in ports {
            self.close(port);
        }
        // The port that the service listens to.
        self.close(self.hop.port);
        self.pause(LISTEN * 10);
        for domain in DOMAINS {
            for remote in PORTS {
                self.bind(domain, remote);
            }
        }
        self.hop.port = self.platform.alloc_unbound(dom0).map_err(Failure::Xen)?;
        Ok(())
    }

    /// Closes a port. The port at the other end is unbound and reserved for us again, until the other domain closes it
    /// (`evtchn_close` in `xen/common/event_channel.c`).
    fn close(&mut self, port: Port) {
        self.other_ends.extend(self.platform.other_end(port));
        self.platform.close(port);
    }

    /// Tries a port that another domain has allocated for somebody else. Those of our guest are for us.
    pub(super) fn bind(&mut self, domain: DomId, remote: Port) {
        self.tally.count(Kind::Port);
        if let Ok(port) = self.platform.bind_interdomain(domain, remote) {
            self.platform.close(port);
            let is_ours = domain == self.guest || self.other_ends.contains(&(domain, remote));
            if !is_ours && domain != self.first.backend() {
                log::error!("UNSOUND: port {remote} of domain {domain} could be bound");
            }
        }
    }

    /// Grants that end, grants of memory that is not ours, grants for other domains, and grants of other domains.
    pub(super) fn grants(&mut self) -> Result<(), Failure> {
        let port = self.hop.port.to_string();
        self.platform.withdraw(self.hop.grant);
        self.pause(LISTEN * 5);
        let dom0 = self.second.backend();
        let not_ours = self.platform.grant_what_is_not_ours(dom0);
        let (for_guest, for_others) = self.platform.share_page(self.guest).map_err(Failure::Xen)?;
        for grant in [not_ours, for_others, self.hop.grant] {
            self.tally.count(Kind::Grant);
            self.publish_particulars(&grant.to_string(), &port)?;
            self.write_state(b"3")?;
            self.pause(LISTEN * 10);
        }
        self.platform.unshare_page(for_guest, for_others);
        for domain in DOMAINS {
            for grant in GRANTS {
                self.map(domain, grant);
            }
        }
        Ok(())
    }

    /// Tries a page that another domain has granted to somebody else.
    pub(super) fn map(&mut self, domain: DomId, grant: GrantRef) {
        self.tally.count(Kind::Grant);
        if let Ok(page) = self.platform.map_grant(domain, grant) {
            self.platform.unmap_grant(page);
            if domain != self.guest && domain != self.first.backend() {
                log::error!("UNSOUND: grant {grant} of domain {domain} could be mapped");
            }
        }
    }

    pub(super) fn machine(&mut self) -> Result<(), Failure> {
        let own = self.first.backend();
        for victim in DOMAINS.filter(|&domain| domain != own) {
            self.hypercalls(victim);
        }
        let mut frames = Vec::from(FRAMES);
        for (index, device) in self.devices.clone().into_iter().enumerate() {
            // The ECAM pages of all other functions of that bus.
            let first = device.ecam & !(FUNCTIONS - 1);
            frames.extend(
                (first..first + FUNCTIONS)
                    .filter(|frame| self.devices.iter().all(|device| device.ecam != *frame)),
            );
            // The BARs' registers belong to the guest, not to the stub.
            let bars = self
                .client
                .read(&self.second.backend_node(&Numbered::Bars.at(index)))?;
            frames.extend(bar_frames(&bars));
        }
        for frame in frames {
            self.frame(frame);
        }
        self.read_ecam();
        Ok(())
    }

    /// Makes every hypercall that only dom0 may make, once.
    pub(super) fn hypercalls(&mut self, victim: DomId) {
        let tally = &mut self.tally;
        self.platform.forbidden(victim, |name, refused| {
            tally.count(Kind::Hypercall);
            if !refused {
                log::error!("UNSOUND: {name} was not refused, against domain {victim}");
            }
        });
    }

    /// Tries to map a frame that is not ours.
    pub(super) fn frame(&mut self, frame: u64) {
        self.tally.count(Kind::Frame);
        if self.platform.map_frame(frame) {
            log::error!("UNSOUND: frame {frame:#x} could be mapped");
        }
    }

    /// Reads the configuration pages of our devices. A stub may do this.
    pub(super) fn read_ecam(&mut self) {
        for device in self.devices.clone() {
            if let Ok(page) = self.platform.map_ecam(device.ecam) {
                for offset in (0..4096u16).step_by(4) {
                    let _ = page.read(offset, 4);
                }
                self.tally.count(Kind::Ecam);
                self.platform.unmap_ecam(page);
            }
        }
    }
}

/// The first frame of each memory BAR.
fn bar_frames(bars: &str) -> Vec<u64> {
    let Ok(bars) = bars.parse::<Bars>() else {
        return Vec::new();
    };
    let memory = bars.0.iter().filter(|bar| bar.size >= 4096 && bar.flags & 1 == 0);
    memory.map(|bar| bar.start >> 12).collect()
}
