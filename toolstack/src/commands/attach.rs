//! `bulkhead attach`: gives devices to a guest that exists.

use super::dry_run::DryRun;
use super::give::{GuestDoes, Named, NamedStub, give_first, plan_first};
use super::hotplug;
use super::select::attachments;
use super::turn::Turn;
use super::waiting::Interrupt;
use crate::host::Host;
use crate::host::domains::{self, Domain};
use crate::records::Attachment;
use crate::say::say;
use anyhow::{Result, bail, ensure};
use std::time::Duration;

/// Arguments of `attach`.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The guest, by name or number.
    pub guest: String,
    /// The stub, by name or number.
    pub stub: Option<String>,
    /// The devices that the guest gets. Without `slots` it addresses them as those that it has.
    pub named: Named,
    /// Time limit for a running guest to take them.
    pub wait: Duration,
}

/// Gives devices to a guest that exists. A guest without devices gets a stub first.
pub fn attach(request: &Attach) -> Result<()> {
    let mut host = Host::open()?;
    let (mut turn, guest) = Turn::take_for(|| {
        let guest = domains::find(&mut host.store, &request.guest)?;
        Ok((Some(guest.clone()), guest))
    })?;
    let interrupt = Interrupt::catch()?;
    check_is_guest(&guest)?;
    let attachments = attachments(&mut host)?;
    match attachments
        .iter()
        .find(|attachment| attachment.guest.domid == guest.domid)
    {
        // A guest has one backend, so further devices come through the stub that it has.
        Some(attachment) => {
            check_more(request, attachment)?;
            hotplug::grow(
                &mut host,
                &mut turn,
                attachment,
                &request.named.devices,
                &request.named.choices,
                request.wait,
                &interrupt,
            )
        }
        None => {
            check_first(request)?;
            let wanted = request.named.wanted(&mut host.store, &guest)?;
            let given = give_first(
                &mut host,
                &mut turn,
                guest,
                &wanted,
                named_stub(request),
                request.wait,
                &interrupt,
            )?;
            let (guest, stub) = (&given.attachment.guest.name, &given.attachment.stub.name);
            match given.guest {
                GuestDoes::Uses => {
                    say!("guest {guest} has its devices through stub {stub}: `bulkhead status` shows them");
                }
                GuestDoes::Starts => say!("guest {guest} starts, with its devices through stub {stub}"),
                GuestDoes::Waits => {
                    say!(
                        "stub {stub} offers the devices to guest {guest}, which is paused: `xl unpause {guest}`"
                    );
                }
            }
            Ok(())
        }
    }
}

/// What [`attach`] would do. Nothing is changed.
pub fn plan(request: &Attach) -> Result<DryRun> {
    let mut host = Host::open()?;
    let guest = domains::find(&mut host.store, &request.guest)?;
    check_is_guest(&guest)?;
    let attachments = attachments(&mut host)?;
    let attachment = attachments
        .iter()
        .find(|attachment| attachment.guest.domid == guest.domid);
    match attachment {
        Some(attachment) => {
            check_more(request, attachment)?;
            let Named { devices, choices, .. } = &request.named;
            hotplug::plan_growth(&mut host, attachment, devices, choices)
        }
        None => {
            check_first(request)?;
            let wanted = request.named.wanted(&mut host.store, &guest)?;
            plan_first(&mut host, &guest, &wanted, named_stub(request))
        }
    }
}

fn named_stub(request: &Attach) -> NamedStub<'_> {
    NamedStub {
        stub: request.stub.as_deref(),
        telemetry: request.named.telemetry.is_some(),
    }
}

fn check_is_guest(domain: &Domain) -> Result<()> {
    ensure!(
        domain.domid != 0,
        "{} is dom0, which has the devices: name a guest",
        domain.name
    );
    Ok(())
}

/// Checks that a guest without devices can be given some in this way.
fn check_first(request: &Attach) -> Result<()> {
    if let (Some(stub), Some(_)) = (&request.stub, &request.named.telemetry) {
        bail!(
            "stub {stub} exists, and a stub's network is set when it is created: leave --telemetry out, or leave --stub \
             out for a stub that is created now"
        );
    }
    Ok(())
}

/// Checks that a guest that has devices can be given more in this way.
fn check_more(request: &Attach, attachment: &Attachment) -> Result<()> {
    let stub = &attachment.stub;
    let named = request.stub.as_deref();
    ensure!(
        named.is_none_or(|name| name == stub.name || name == stub.domid.to_string()),
        "guest {} has devices already, through stub {}: it can have one stub only, so leave --stub out",
        attachment.guest.name,
        stub.name
    );
    ensure!(
        request.named.slots.is_none_or(|slots| slots == attachment.slots),
        "guest {} addresses its devices by --slots {}, all of them: leave --slots out",
        attachment.guest.name,
        attachment.slots
    );
    ensure!(
        request.named.telemetry.is_none(),
        "stub {} exists, and a stub's network is set when it is created: leave --telemetry out. The guest's next stub has \
         it, if the guest is declared with it",
        stub.name
    );
    ensure!(
        !request.named.devices.is_empty(),
        "guest {} has devices already: name others with --device",
        attachment.guest.name
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::policy::Choices;
    use crate::records::tests::attachment;

    fn request(stub: Option<&str>, telemetry: Option<&str>) -> Attach {
        Attach {
            guest: "web".into(),
            stub: stub.map(str::to_owned),
            named: Named {
                devices: vec!["00:07.0".parse().unwrap()],
                choices: Choices::default(),
                slots: None,
                kernel: None,
                telemetry: telemetry.map(|text| text.parse().unwrap()),
            },
            wait: Duration::ZERO,
        }
    }

    #[test]
    fn a_stub_that_exists_gets_no_network() {
        for telemetry in ["bridge=xenbr0", "off"] {
            let named = check_first(&request(Some("web-stub"), Some(telemetry))).unwrap_err();
            let named = named.to_string();
            assert!(
                named.starts_with(
                    "stub web-stub exists, and a stub's network is set when it is created: leave --telemetry"
                ),
                "{named}"
            );
            let more = check_more(&request(None, Some(telemetry)), &attachment()).unwrap_err();
            let more = more.to_string();
            assert!(
                more.starts_with("stub web-bulkhead exists, and a stub's network is set when it is created"),
                "{more}"
            );
        }
        check_first(&request(None, Some("bridge=xenbr0"))).unwrap();
        check_first(&request(Some("web-stub"), None)).unwrap();
        check_more(&request(None, None), &attachment()).unwrap();
    }
}
