//! Block devices that guests have by backends in dom0.

use crate::host::store::{Store, StoreError};
use crate::host::sysfs::classes::DeviceNumber;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use xenbus::client::Store as _;

/// Directory of the backends that dom0 has for its guests.
const BACKENDS: &str = "/local/domain/0/backend";
/// Kinds of backends by which a guest has a disk of dom0's: in dom0's kernel, and in programs.
const DISK_BACKENDS: [&str; 3] = ["vbd", "vbd3", "qdisk"];

/// A block device that a guest has by a backend in dom0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lent {
    pub device: DeviceNumber,
    pub guest: String,
}

/// The block devices that guests have by backends in dom0.
pub(super) fn lent(store: &mut Store) -> Result<Vec<Lent>, StoreError> {
    let mut found = Vec::new();
    for kind in DISK_BACKENDS {
        let kind = format!("{BACKENDS}/{kind}");
        for guest in crate::records::children(store, &kind)? {
            for disk in crate::records::children(store, &format!("{kind}/{guest}"))? {
                let disk = format!("{kind}/{guest}/{disk}");
                let number = store.read_optional(&format!("{disk}/physical-device"))?;
                // A backend in QEMU writes no number of the device, but the file that it has open.
                let mut device = number.as_deref().and_then(physical_device);
                if device.is_none() {
                    let file = store.read_optional(&format!("{disk}/params"))?;
                    device = file.as_deref().and_then(file_of).and_then(number_of);
                }
                found.extend(device.map(|device| Lent {
                    device,
                    guest: guest.clone(),
                }));
            }
        }
    }
    Ok(found)
}

/// Such as `103:1`, in hexadecimal digits.
fn physical_device(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.split_once(':')?;
    let number = |digits| u32::from_str_radix(digits, 16).ok();
    Some((number(major)?, number(minor)?))
}

/// The file that a backend of QEMU's has, such as `raw:/dev/sda3`.
fn file_of(params: &str) -> Option<&Path> {
    params.find('/').map(|at| Path::new(&params[at..]))
}

fn number_of(path: &Path) -> Option<DeviceNumber> {
    let file = fs::metadata(path).ok()?;
    let number = file.rdev();
    let block = file.file_type().is_block_device();
    block.then(|| (rustix::fs::major(number), rustix::fs::minor(number)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::dom0;
    use xenbus::model::Xenstored;

    #[test]
    fn the_disks_of_guests_are_those_of_every_backend_in_dom0() {
        let mut store = dom0(&Xenstored::new());
        assert_eq!(lent(&mut store).unwrap(), []);
        for (node, value) in [
            ("vbd/7/51712/physical-device", "103:1f"),
            ("vbd/8/51712/params", "/dev/null"),
            ("qdisk/9/51712/params", "raw:/nonexistent"),
            ("vif/7/0/physical-device", "8:0"),
        ] {
            store.write(&format!("{BACKENDS}/{node}"), value).unwrap();
        }
        let found = lent(&mut store).unwrap();
        assert_eq!(
            found,
            [Lent {
                device: (0x103, 0x1f),
                guest: "7".into()
            }]
        );
        assert_eq!(file_of("aio:/dev/sda3"), Some(Path::new("/dev/sda3")));
        assert_eq!(file_of("nothing"), None);
        assert_eq!(number_of(Path::new("/dev/null")), None, "no block device");
    }
}
