//! `bulkhead irq`: switches dom0's acknowledgement of a shared INTx line.

use super::select::{attachments, of_device};
use super::turn::Turn;
use crate::handover::shared_intx;
use crate::host::Host;
use crate::say::say;
use anyhow::{Result, ensure};
use bulkhead_config::name::Name;

/// Switches whether dom0 answers for a guest's device on an INTx line that dom0's drivers use too.
pub fn answer_for_line(device: &Name, answer: bool) -> Result<()> {
    let mut host = Host::open()?;
    let (_turn, (attachment, bdf)) = Turn::take_for(|| {
        let attachments = attachments(&mut host)?;
        let (attachment, bdf) = of_device(&host.sysfs, &attachments, device)?;
        Ok((Some(attachment.guest.clone()), (attachment.clone(), bdf)))
    })?;
    let offered = attachment
        .devices
        .iter()
        .any(|device| device.bdf == bdf && device.line_offered);
    ensure!(
        offered,
        "guest {} has {bdf} without its interrupt line, so there is nothing to answer for",
        attachment.guest.name
    );
    if answer {
        shared_intx::start(&mut host, bdf)?;
        say!("dom0 answers for the line of {bdf}");
    } else {
        shared_intx::switch(&mut host.store, &host.sysfs, bdf, false)?;
        say!(
            "dom0 does not answer for the line of {bdf}: after 100,000 interrupts its kernel may disable the line"
        );
    }
    Ok(())
}
