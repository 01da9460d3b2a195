//! The devices that a guest is to have whenever it starts: those of its declaration, or else those that it had when it ended.

use crate::admission::policy::Choices;
use crate::host::domains::Domain;
use crate::host::store::{Store, StoreError};
use crate::records::{Carried, CarriedDevice};
use bulkhead_config::declaration::{Declaration, DeclarationError, Declarations, Unfit};
use bulkhead_config::name::{Name, Place};
use bulkhead_config::options::Wanted;
use bulkhead_config::telemetry::TelemetryChoice;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;
use xenbus::device::SlotMode;

/// The devices of a guest, and how it has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// The devices.
    pub devices: Vec<Wanted>,
    /// Choices for all of them: recorded terms, if the guest had them before.
    pub choices: Choices,
    /// How the guest addresses them.
    pub slots: SlotMode,
    /// The stub's image, if it is not the installed one.
    pub kernel: Option<PathBuf>,
    /// Whether the stub has a network; `None` if the policy file decides.
    pub telemetry: Option<TelemetryChoice>,
    /// What happens to the guest if it cannot have them.
    pub unfit: Unfit,
}

/// Why it is not known which devices a guest is to have.
#[derive(Debug, Error)]
pub enum DeclaredError {
    /// A file.
    #[error(transparent)]
    File(#[from] DeclarationError),
    /// The directory.
    #[error("cannot read the directory of declarations {}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The record of what the guest had.
    #[error("cannot see in xenstore which devices the guest had")]
    Store(#[from] StoreError),
}

/// The devices that a guest is to have; `None` if there are none. `directory` is that of the declarations.
///
/// # Errors
/// A declaration that is broken counts: its guest must not start without its devices.
pub fn declared(
    store: &mut Store,
    directory: &Path,
    guest: &Domain,
) -> Result<Option<Declared>, DeclaredError> {
    let files = Declarations::read(directory).map_err(|source| DeclaredError::Directory {
        path: directory.to_owned(),
        source,
    })?;
    if let Some(declaration) = files.of(&guest.name, &guest.uuid)? {
        return Ok(Some(declaration.clone().into()));
    }
    Ok(Carried::of(store, &guest.uuid)?.map(Into::into))
}

/// True if a file declares the guest, be it broken. `directory` is that of the declarations.
pub fn has_file(directory: &Path, guest: &Domain) -> bool {
    let files = Declarations::read(directory);
    files.is_ok_and(|files| !files.files_of(&guest.name, &guest.uuid).is_empty())
}

impl Declared {
    /// These devices, and nothing else that differs from the defaults.
    pub fn named(devices: Vec<Wanted>) -> Self {
        Self {
            devices,
            choices: Choices::default(),
            slots: SlotMode::default(),
            kernel: None,
            telemetry: None,
            unfit: Unfit::Hold,
        }
    }
}

impl From<Declaration> for Declared {
    fn from(declaration: Declaration) -> Self {
        Self {
            slots: declaration.slots,
            telemetry: declaration.telemetry,
            unfit: declaration.unfit,
            ..Self::named(declaration.devices)
        }
    }
}

impl From<Carried> for Declared {
    fn from(carried: Carried) -> Self {
        let name = |device: &CarriedDevice| Name::At {
            ids: Some(device.ids),
            place: Place {
                root: device.bdf,
                steps: Vec::new(),
            },
        };
        let devices = carried.devices.iter();
        Self {
            choices: Choices {
                recorded: devices.clone().map(|device| device.terms.clone()).collect(),
                ..Choices::default()
            },
            slots: carried.slots,
            kernel: carried.origin.named_kernel().map(Into::into),
            telemetry: carried.origin.telemetry,
            ..Self::named(devices.map(|device| name(device).into()).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::dom0;
    use crate::records::tests::{attachment, domain, origin};
    use std::fs;
    use xenbus::model::Xenstored;

    #[test]
    fn a_declaration_counts_before_what_the_guest_had() {
        let mut store = dom0(&Xenstored::new());
        let directory = tempfile::tempdir().unwrap();
        let web = domain(7, "web");
        let mut declared = |guest: &Domain| declared(&mut store, directory.path(), guest);
        assert_eq!(declared(&web).unwrap(), None);

        let mut store = dom0(&Xenstored::new());
        let had = Carried::new(&attachment(), origin());
        had.write(&mut store).unwrap();
        let again = Domain {
            domid: 7,
            ..had.guest.clone()
        };
        let mut declared = |guest: &Domain| super::declared(&mut store, directory.path(), guest);
        assert_eq!(declared(&web).unwrap(), None, "another guest of that name");
        let found = declared(&again).unwrap().unwrap();
        let words: Vec<_> = found.devices.iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            had.devices
                .iter()
                .map(|device| format!("{}@{}", device.ids, device.bdf))
                .collect::<Vec<_>>()
        );
        assert_eq!(found.choices.recorded.len(), 2);
        assert_eq!(found.kernel, Some("/stub".into()));
        assert_eq!(
            (found.telemetry, found.unfit),
            (Some(TelemetryChoice::Off), Unfit::Hold)
        );

        let file = directory.path().join("web.toml");
        fs::write(
            &file,
            "guest = \"web\"\ndevices = [\"00:09.0\"]\nunfit = \"start\"\ntelemetry = \"bridge=b\"",
        )
        .unwrap();
        for guest in [&web, &again] {
            let found = declared(guest).unwrap().unwrap();
            assert_eq!(found.devices, ["00:09.0".parse().unwrap()]);
            assert_eq!((found.choices, found.unfit), (Choices::default(), Unfit::Start));
            assert_eq!((found.kernel, found.telemetry), (None, "bridge=b".parse().ok()));
        }
        fs::write(&file, "guest = 5").unwrap();
        assert!(matches!(declared(&again), Err(DeclaredError::File(_))));
        assert_eq!(declared(&domain(8, "mail")).unwrap(), None);
        assert!(has_file(directory.path(), &again) && !has_file(directory.path(), &domain(8, "mail")));
        assert!(!has_file(&file, &again), "a directory that cannot be read");
    }
}
