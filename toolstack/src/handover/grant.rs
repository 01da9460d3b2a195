//! Giving devices to a guest, with a stub as their backend.

use crate::config_space::resources::{Resource, resources};
use crate::handover::idle_intx::{self, IdleIntxError};
use crate::handover::intx_lines::dom0_sharers;
use crate::handover::shared_intx::{self, AckError};
use crate::host::Host;
use crate::host::store::StoreError;
use crate::nodes::hops::HopNodes;
use crate::records::claims::{Claims, ClaimsError};
use crate::records::failed;
use crate::records::{Attachment, Device, RecordError, forget_mapped};
use pci::bdf::Bdf;
use rustix::io::Errno;
use std::io;
use thiserror::Error;
use xen::xenctrl::{DomId, Hypervisor};

/// Why devices could not be given.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Xen refused.
    #[error("Xen refused {what} of {bdf} to domain {domain}{hint}", hint = hint(source))]
    Xen {
        /// What was to be granted.
        what: &'static str,
        /// The device.
        bdf: Bdf,
        /// The domain that was to get it.
        domain: DomId,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// xenstore refused.
    #[error("cannot write the {hop} hop's nodes in xenstore")]
    Nodes {
        /// `first` or `second`.
        hop: &'static str,
        /// The cause.
        #[source]
        source: StoreError,
    },
    /// The record could not be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Dom0 cannot be made to answer for a shared line.
    #[error("dom0 cannot be made to answer for a shared line, so it would lose it: leave share-intx=1 out")]
    Ack(#[from] AckError),
    /// INTx of a function without a driver could not be disabled.
    #[error("cannot keep an interrupt line free of functions that nobody drives")]
    Idle(#[from] IdleIntxError),
    /// The claims on devices could not be read.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    /// sysfs cannot be read.
    #[error("cannot see in sysfs who shares an interrupt line")]
    Lines(#[source] io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS) => ": its policy (XSM FLASK) forbids that; `xl dmesg` shows what it refused",
        Some(Errno::OPNOTSUPP) => ": was the guest created with passthrough=\"enabled\"?",
        Some(Errno::BUSY) => {
            ": another domain has it, or it is masked by an earlier user; `xl pci-assignable-list`"
        }
        _ => "",
    }
}

/// Gives the devices of the attachment to its guest and makes both hops known. A guest that had one of them before, and
/// may still have it mapped, is this one, or is dead or trusted.
///
/// The record is written first, so whatever fails afterwards, [`crate::handover::reclaim`] takes it all back;
/// the caller has that done. [`crate::handover::idle_intx`] relies on that order too: who enables INTx of a function reads the
/// records afterwards.
pub fn attach<X: Hypervisor>(host: &mut Host<X>, attachment: &Attachment) -> Result<(), AttachError> {
    attachment.write(&mut host.store)?;
    // The guest has devices again, so `bulkhead status` must not call it failed any more.
    failed::forget(&mut host.store, attachment.guest.domid).map_err(RecordError::from)?;
    for device in &attachment.devices {
        // Admission has refused the device for any other guest that may still have it mapped.
        forget_mapped(&mut host.store, device.bdf)?;
        grant(&host.xen, attachment.guest.domid, attachment.stub.domid, device)?;
    }
    prepare_lines(host, &attachment.devices)?;
    // The second hop comes first: the stub needs it before it can answer the guest.
    let nodes = |hop| move |source| AttachError::Nodes { hop, source };
    HopNodes::second(attachment)
        .write(&mut host.store)
        .map_err(nodes("second"))?;
    HopNodes::first(attachment)
        .write(&mut host.store)
        .map_err(nodes("first"))?;
    Ok(())
}

/// Gives `new` devices to a guest that is connected already; returns the attachment with them. The lists in xenstore are
/// left alone.
///
/// As with [`attach()`], the record is written first.
pub fn extend<X: Hypervisor>(
    host: &mut Host<X>,
    attachment: &Attachment,
    new: &[Device],
) -> Result<Attachment, AttachError> {
    let grown = attachment.add(&mut host.store, new)?;
    for device in new {
        forget_mapped(&mut host.store, device.bdf)?;
        grant(&host.xen, attachment.guest.domid, attachment.stub.domid, device)?;
    }
    prepare_lines(host, new)?;
    Ok(grown)
}

/// Makes the lines of `devices` fit for two owners: dom0 answers where it hears them too, and functions that nobody
/// drives do not hold them down.
fn prepare_lines<X>(host: &mut Host<X>, devices: &[Device]) -> Result<(), AttachError> {
    let claims = Claims::read(&mut host.store)?;
    for device in devices {
        let Some(gsi) = device.gsi.filter(|_| device.line_offered) else {
            continue;
        };
        // Idle functions come first: one that asserts INTx would hold the line down as soon as the guest uses it.
        for bdf in idle_intx::asserting(Some(gsi), &[device.bdf], &claims, &host.sysfs)
            .map_err(AttachError::Lines)?
        {
            idle_intx::disable(&mut host.store, bdf, &host.sysfs)?;
        }
        let sharers = dom0_sharers(gsi, &[device.bdf], &host.sysfs).map_err(AttachError::Lines)?;
        // Else dom0's kernel would count the guest's interrupts as unwanted, and turn the line off.
        if sharers.include_dom0() {
            shared_intx::start(host, device.bdf)?;
        }
    }
    Ok(())
}

/// The device's memory, ports, line and DMA to the guest; its configuration page to the stub.
fn grant(xen: &impl Hypervisor, guest: DomId, stub: DomId, device: &Device) -> Result<(), AttachError> {
    let bdf = device.bdf;
    let refused = |what, domain| {
        move |source| AttachError::Xen {
            what,
            bdf,
            domain,
            source,
        }
    };
    for resource in resources(&device.bars) {
        permit(xen, guest, &resource, true).map_err(refused("the address ranges", guest))?;
    }
    if let Some(gsi) = device.gsi.filter(|_| device.line_offered) {
        xen.map_gsi(guest, gsi)
            .map_err(refused("the interrupt line", guest))?;
        xen.allow_pirq(guest, gsi, true)
            .map_err(refused("the interrupt line", guest))?;
    }
    xen.assign(guest, bdf).map_err(refused("the assignment", guest))?;
    xen.allow_frames(stub, device.ecam, 1, true)
        .map_err(refused("the configuration page", stub))
}

/// Gives a domain access to a range, or takes it away: all of it, however high it lies (XSA-476).
pub fn permit(xen: &impl Hypervisor, domain: DomId, resource: &Resource, allow: bool) -> io::Result<()> {
    match resource {
        Resource::Frames(frames) => xen.allow_frames(domain, frames.start, frames.end - frames.start, allow),
        Resource::Ports(ports) => {
            let port = |address: u64| {
                u32::try_from(address).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
            };
            xen.allow_ports(domain, port(ports.start)?, port(ports.end - ports.start)?, allow)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Runner;
    use crate::host::store::tests::{dom0, introduce};
    use crate::host::sysfs::tests::Tree;
    use crate::records;
    use crate::records::tests::{attachment, device, domain};
    use xen::model::Xen;
    use xenbus::model::Xenstored;

    #[test]
    fn the_guest_gets_all_but_the_configuration_page_and_the_stub_only_that() {
        let xen = Xen::default();
        grant(&xen, 3, 4, &device("00:05.0")).unwrap();
        assert_eq!(
            xen.calls(),
            [
                "frames 3 febc0+20 true",
                "frames 3 febe0+20 true",
                "ports 3 c000+20 true",
                "frames 3 febd4+4 true",
                "frames 3 feb80+40 true",
                "gsi 3 20",
                "pirq 3 20 true",
                "assign 3 0000:00:05.0",
                "frames 4 b0028+1 true",
            ]
        );
    }

    #[test]
    fn what_a_guest_had_mapped_is_forgotten_when_the_device_is_given_anew() {
        let (daemon, tree) = (Xenstored::new(), Tree::new());
        introduce(&daemon, 3, "web");
        introduce(&daemon, 4, "web-bulkhead");
        for extended in [false, true] {
            let mut host = Host {
                store: dom0(&daemon),
                xen: Xen::default(),
                sysfs: tree.sysfs(),
                runner: Runner::Model(Vec::new()),
            };
            let attachment = attachment();
            for bdf in attachment.bdfs() {
                records::record_mapped(&mut host.store, bdf, &domain(3, "web")).unwrap();
            }
            if extended {
                extend(&mut host, &attachment, &attachment.devices).unwrap();
            } else {
                attach(&mut host, &attachment).unwrap();
            }
            assert_eq!(records::mapped(&mut host.store).unwrap(), [], "{extended}");
            let assigned = host
                .xen
                .calls()
                .into_iter()
                .filter(|call| call.starts_with("assign"));
            assert_eq!(assigned.count(), attachment.devices.len());
        }
    }

    #[test]
    fn a_line_that_is_withheld_is_not_given() {
        let xen = Xen::default();
        let device = Device {
            line_offered: false,
            ..device("00:05.0")
        };
        grant(&xen, 3, 4, &device).unwrap();
        assert!(
            !xen.calls()
                .iter()
                .any(|call| call.starts_with("gsi") || call.starts_with("pirq"))
        );
    }

    #[test]
    fn a_range_above_4_gib_is_given_and_taken_whole() {
        let xen = Xen::default();
        permit(&xen, 3, &Resource::Frames(0x3_8000_0000..0x3_8000_0004), false).unwrap();
        assert_eq!(xen.calls(), ["frames 3 380000000+4 false"]);
    }

    #[test]
    fn a_refusal_names_the_device_the_domain_and_what_to_look_at() {
        let source = io::Error::from_raw_os_error(Errno::OPNOTSUPP.raw_os_error());
        let bdf = "00:05.0".parse().unwrap();
        let error = AttachError::Xen {
            what: "the assignment",
            bdf,
            domain: 3,
            source,
        };
        let text = "Xen refused the assignment of 0000:00:05.0 to domain 3: \
                    was the guest created with passthrough=\"enabled\"?";
        assert_eq!(error.to_string(), text);
    }
}
