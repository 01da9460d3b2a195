//! Finds the guest and the devices that the words of a command line mean.

use crate::host::Host;
use crate::host::device_names::{self, NameError};
use crate::host::domains::{self, DomainError};
use crate::host::store::Store;
use crate::host::sysfs::Sysfs;
use crate::records::Attachment;
use crate::say::notice;
use anyhow::Result;
use bulkhead_config::name::Name;
use pci::bdf::Bdf;
use thiserror::Error;

/// Why the words mean no guest or device of an attachment.
#[derive(Debug, Error)]
pub enum SelectError {
    /// No word at all.
    #[error("name a guest or a device")]
    Nothing,
    /// A domain without devices of ours.
    #[error("guest {who} has no devices through Bulkhead: `bulkhead status` shows which do")]
    Guest {
        /// As it was named.
        who: String,
    },
    /// The domain that serves a guest.
    #[error("{who} is the stub of guest {guest}: name the guest, or one of its devices")]
    Stub {
        /// As it was named.
        who: String,
        /// The guest's name.
        guest: String,
    },
    /// A device that nobody has.
    #[error("no guest has {name} through Bulkhead: `bulkhead status` shows what is passed through")]
    Device {
        /// As it was named.
        name: String,
    },
    /// Several such devices.
    #[error("guests have more than one {name}: {which}; name it by its address", which = list(bdfs))]
    Many {
        /// As it was named.
        name: String,
        /// The devices.
        bdfs: Vec<Bdf>,
    },
    /// More than one guest.
    #[error("guest {guest} has no {bdf}: name devices of one guest (`bulkhead status` shows them)")]
    OtherGuest {
        /// The guest that has those that were named before.
        guest: String,
        /// The device.
        bdf: Bdf,
    },
    /// A guest beside others.
    #[error("{who} is a guest, and all of its devices are meant: name it alone, or devices only")]
    Mixed {
        /// As it was named.
        who: String,
    },
    /// More than one recorded guest that has ended.
    #[error("more than one guest that has ended was called {who}: name one of its devices")]
    Ended {
        /// As it was named.
        who: String,
    },
    /// No domain.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// No device.
    #[error(transparent)]
    Name(#[from] NameError),
}

fn list(bdfs: &[Bdf]) -> String {
    let texts: Vec<_> = bdfs.iter().map(Bdf::to_string).collect();
    texts.join(", ")
}

/// A guest, and those of its devices that are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected<'a> {
    /// The guest's attachment.
    pub attachment: &'a Attachment,
    /// The devices: all of them if the guest was named.
    pub bdfs: Vec<Bdf>,
}

impl Selected<'_> {
    /// True if no device stays.
    pub fn is_all(&self) -> bool {
        self.attachment.bdfs().all(|bdf| self.bdfs.contains(&bdf))
    }
}

/// The guest or the devices that words mean: one guest, or devices of one guest, each by any of its names.
pub fn select<'a>(
    store: &mut Store,
    sysfs: &Sysfs,
    attachments: &'a [Attachment],
    words: &[String],
) -> Result<Selected<'a>, SelectError> {
    let first = words.first().ok_or(SelectError::Nothing)?;
    let Ok(name) = first.parse::<Name>() else {
        let attachment = of_guest(store, attachments, first)?;
        if words.len() > 1 {
            return Err(SelectError::Mixed { who: first.clone() });
        }
        let bdfs = attachment.bdfs().collect();
        return Ok(Selected { attachment, bdfs });
    };
    let (attachment, bdf) = of_device(sysfs, attachments, &name)?;
    let mut selected = Selected {
        attachment,
        bdfs: vec![bdf],
    };
    for word in &words[1..] {
        let name = word
            .parse::<Name>()
            .map_err(|_| SelectError::Mixed { who: word.clone() })?;
        let (other, bdf) = of_device(sysfs, attachments, &name)?;
        if other.stub != attachment.stub {
            let guest = attachment.guest.name.clone();
            return Err(SelectError::OtherGuest { guest, bdf });
        }
        if !selected.bdfs.contains(&bdf) {
            selected.bdfs.push(bdf);
        }
    }
    Ok(selected)
}

/// The attachment of a guest, by its present name or number. For a guest that has ended, the recorded ones count.
fn of_guest<'a>(
    store: &mut Store,
    attachments: &'a [Attachment],
    who: &str,
) -> Result<&'a Attachment, SelectError> {
    let found = match domains::find(store, who) {
        Ok(domain) => Some(domain),
        Err(DomainError::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let who = || who.to_owned();
    // A domain that lives counts before recorded names: its number and name are its own now.
    if let Some(domain) = found {
        // The UUID too, for a number is given again.
        let same =
            |other: &crate::host::domains::Domain| other.domid == domain.domid && other.uuid == domain.uuid;
        if let Some(attachment) = attachments.iter().find(|attachment| same(&attachment.stub)) {
            let guest = attachment.guest.name.clone();
            return Err(SelectError::Stub { who: who(), guest });
        }
        let attachment = attachments.iter().find(|attachment| same(&attachment.guest));
        return attachment.ok_or_else(|| SelectError::Guest { who: who() });
    }
    let mut recorded = attachments.iter().filter(|attachment| {
        let guest = &attachment.guest;
        guest.name == who() || guest.domid.to_string() == who()
    });
    match (recorded.next(), recorded.next()) {
        (Some(attachment), None) => Ok(attachment),
        (Some(_), Some(_)) => Err(SelectError::Ended { who: who() }),
        (None, _) => Err(SelectError::Guest { who: who() }),
    }
}

/// The device that a name means among those that guests have, with its guest's attachment.
pub fn of_device<'a>(
    sysfs: &Sysfs,
    attachments: &'a [Attachment],
    name: &Name,
) -> Result<(&'a Attachment, Bdf), SelectError> {
    let mut meant: Vec<_> = attachments
        .iter()
        .flat_map(|attachment| attachment.devices.iter().map(move |device| (attachment, device)))
        .collect();
    match name {
        Name::Ids(ids) => meant.retain(|(_, device)| device.ids == *ids),
        Name::At { ids, place } => {
            // One that dom0 has removed has its address in the record only.
            let bdf = if place.steps.is_empty() {
                place.root
            } else {
                device_names::resolve(name, sysfs)?
            };
            meant.retain(|(_, device)| device.bdf == bdf);
            if let Some((expected, (_, device))) = ids.zip(meant.first())
                && device.ids != expected
            {
                let found = device.ids;
                return Err(NameError::Other { bdf, found, expected }.into());
            }
        }
    }
    match meant[..] {
        [(attachment, device)] => Ok((attachment, device.bdf)),
        [] => Err(SelectError::Device {
            name: name.to_string(),
        }),
        _ => Err(SelectError::Many {
            name: name.to_string(),
            bdfs: meant.iter().map(|(_, device)| device.bdf).collect(),
        }),
    }
}

/// All attachments; of those that cannot be read it is said why.
pub fn attachments(host: &mut Host) -> Result<Vec<Attachment>> {
    let (attachments, damaged) = Attachment::all(&mut host.store)?;
    damaged.iter().for_each(|error| notice!("{error}"));
    Ok(attachments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::device_names::tests::host;
    use crate::host::store::tests::{dom0, introduce};
    use crate::records::Device;
    use crate::records::tests::{attachment, device, domain};
    use xenbus::client::Store as _;
    use xenbus::model::Xenstored;

    /// Guest web (3) has 00:05.0 and 00:06.0 through stub 4, guest mail (7) has 02:00.0 and 03:1f.7 through stub 8.
    fn attachments() -> [Attachment; 2] {
        let ids = |bdf: &str, ids: &str| Device {
            ids: ids.parse().unwrap(),
            ..device(bdf)
        };
        let mut web = attachment();
        web.devices[1].ids = "1af4:1041".parse().unwrap();
        let mail = Attachment {
            guest: domain(7, "mail"),
            stub: domain(8, "mail-bulkhead"),
            devices: vec![ids("02:00.0", "8086:10d3"), ids("03:1f.7", "1b36:0010")],
            ..web.clone()
        };
        [web, mail]
    }

    fn running() -> (Xenstored, Store) {
        let daemon = Xenstored::new();
        for (domid, name) in [
            (3, "web"),
            (4, "web-bulkhead"),
            (7, "mail"),
            (8, "mail-bulkhead"),
            (9, "bare"),
        ] {
            introduce(&daemon, domid, name);
        }
        let store = dom0(&daemon);
        (daemon, store)
    }

    /// The guest that is meant and its devices, or why there is none.
    fn selected(store: &mut Store, words: &[&str]) -> String {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        match select(store, &host().sysfs(), &attachments(), &words) {
            Ok(selected) => format!("{}: {}", selected.attachment.guest.name, list(&selected.bdfs)),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_guest_means_all_its_devices() {
        let (_, mut store) = running();
        for who in ["web", "3"] {
            assert_eq!(selected(&mut store, &[who]), "web: 0000:00:05.0, 0000:00:06.0");
        }
        let words = ["mail".to_owned()];
        assert!(
            select(&mut store, &host().sysfs(), &attachments(), &words)
                .unwrap()
                .is_all()
        );
    }

    #[test]
    fn a_device_is_meant_by_every_kind_of_name() {
        let (_, mut store) = running();
        for (name, meant) in [
            ("00:05.0", "web: 0000:00:05.0"),
            ("8086:10d3@0000:00:05.0", "web: 0000:00:05.0"),
            ("0000:00:1c.0/00.0", "mail: 0000:02:00.0"),
            ("8086:10d3@0000:00:1c.0/00.0", "mail: 0000:02:00.0"),
            ("1b36:0010", "mail: 0000:03:1f.7"),
            // Dom0 does not have it any more.
            ("00:06.0", "web: 0000:00:06.0"),
            ("1af4:1041", "web: 0000:00:06.0"),
        ] {
            assert_eq!(selected(&mut store, &[name]), meant, "{name}");
        }
        assert_eq!(
            selected(&mut store, &["1b36:0010", "0000:00:1c.0/00.0", "03:1f.7"]),
            "mail: 0000:03:1f.7, 0000:02:00.0"
        );
    }

    #[test]
    fn all_devices_of_a_guest_are_all_in_any_order() {
        let (_, mut store) = running();
        let attachments = attachments();
        let mut all = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            select(&mut store, &host().sysfs(), &attachments, &words)
                .unwrap()
                .is_all()
        };
        assert!(all(&["00:06.0", "00:05.0"]));
        assert!(!all(&["00:05.0"]) && !all(&["00:05.0", "00:05.0"]));
    }

    #[test]
    fn what_is_not_meant_is_said_with_what_to_name() {
        let (_, mut store) = running();
        for (words, expected) in [
            (&["bare"][..], "guest bare has no devices through Bulkhead"),
            (&["nobody"], "guest nobody has no devices through Bulkhead"),
            (&["web-bulkhead"], "web-bulkhead is the stub of guest web"),
            (&["4"], "4 is the stub of guest web"),
            (&["00:09.0"], "no guest has 0000:00:09.0 through Bulkhead"),
            (&["8086:ffff"], "no guest has 8086:ffff"),
            (
                &["8086:10d3"],
                "guests have more than one 8086:10d3: 0000:00:05.0, 0000:02:00.0",
            ),
            (
                &["8086:10d4@00:05.0"],
                "0000:00:05.0 is 8086:10d3 and not 8086:10d4",
            ),
            (&["00:1c.0/05.0"], "there is no device 05.0 on the bus below"),
            (&["00:05.0", "02:00.0"], "guest web has no 0000:02:00.0"),
            (&["00:05.0", "mail"], "mail is a guest, and all"),
            (&["web", "00:05.0"], "web is a guest, and all"),
            (&[], "name a guest"),
        ] {
            let text = selected(&mut store, words);
            assert!(text.starts_with(expected), "{words:?}: {text}");
        }
    }

    #[test]
    fn a_renamed_guest_has_its_name_of_now() {
        let (daemon, mut store) = running();
        store.write("/local/domain/3/name", "www").unwrap();
        assert_eq!(selected(&mut store, &["www"]), "web: 0000:00:05.0, 0000:00:06.0");
        // Nobody else has the old one.
        assert_eq!(selected(&mut store, &["web"]), "web: 0000:00:05.0, 0000:00:06.0");
        introduce(&daemon, 12, "web");
        assert_eq!(
            selected(&mut store, &["web"]),
            "guest web has no devices through Bulkhead: `bulkhead status` shows which do"
        );
    }

    #[test]
    fn a_guest_that_has_ended_is_found_by_what_was_recorded() {
        let (daemon, mut store) = running();
        daemon.release(3);
        store.remove("/local/domain/3").unwrap();
        for who in ["web", "3"] {
            assert_eq!(selected(&mut store, &[who]), "web: 0000:00:05.0, 0000:00:06.0");
        }
        // The number is another domain's by now.
        introduce(&daemon, 3, "new");
        store
            .write("/local/domain/3/vm", "/vm/00000000-0000-0000-0000-000000000099")
            .unwrap();
        assert!(selected(&mut store, &["3"]).starts_with("guest 3 has no devices"));
    }

    #[test]
    fn a_number_that_is_a_name_too_is_refused() {
        let (_, mut store) = running();
        store.write("/local/domain/9/name", "3").unwrap();
        assert!(selected(&mut store, &["3"]).starts_with("3 is the name of domain 9, and the number of"));
    }
}
