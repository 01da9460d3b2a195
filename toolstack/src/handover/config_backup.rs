//! Backup of the registers that a guest may write beyond the usual. They are restored when the device leaves.
//!
//! A reset does not do that: Linux saves the registers that it knows before the reset, as the guest left them, and
//! restores them after it. The backup is one file for each device. Like the records it goes away with a reboot.

use crate::config_space::access::ConfigAccess;
use crate::config_space::bytes::register_at;
use crate::config_space::capabilities::Capabilities;
use crate::function::guard::Guard;
use crate::function::rule::Rule;
use crate::host::sysfs::Sysfs;
use crate::paths::run;
use crate::records::Device;
use crate::terms::Terms;
use pci::bdf::Bdf;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One write that puts a register back: offset, width, value.
type RegisterWrite = (u16, u8, u32);

fn file(directory: &Path, bdf: Bdf) -> PathBuf {
    directory.join(format!("{bdf}.config"))
}

/// Keeps the configuration space of a device whose guest may write more than the usual.
pub fn keep(bdf: Bdf, terms: &Terms, sysfs: &Sysfs) -> io::Result<()> {
    keep_in(&run(), bdf, terms, sysfs)
}

/// Restores what has changed since in the registers that the guest could write.
pub fn restore(device: &Device, sysfs: &Sysfs) -> io::Result<()> {
    restore_from(&run(), device, sysfs)
}

/// Removes the backup without restoring: the device is in other hands.
pub fn forget(bdf: Bdf) -> io::Result<()> {
    match fs::remove_file(file(&run(), bdf)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn keep_in(directory: &Path, bdf: Bdf, terms: &Terms, sysfs: &Sysfs) -> io::Result<()> {
    if !terms.reach_unlisted() {
        return Ok(());
    }
    // The whole space is kept: registers without a rule lie anywhere.
    let config = sysfs.config_bytes(bdf).map_err(io::Error::other)?;
    fs::create_dir_all(directory)?;
    fs::write(file(directory, bdf), config)
}

fn restore_from(directory: &Path, device: &Device, sysfs: &Sysfs) -> io::Result<()> {
    if !device.terms.reach_unlisted() {
        return Ok(());
    }
    let path = file(directory, device.bdf);
    let original = match fs::read(&path) {
        // They are restored already.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        original => original?,
    };
    let current = sysfs.config_bytes(device.bdf).map_err(io::Error::other)?;
    let guard = Guard::new(&device.header, &Capabilities::find(&original), &device.terms);
    let config = sysfs.open_config(device.bdf).map_err(io::Error::other)?;
    for (offset, width, value) in differences(&guard, &device.terms, &original, &current) {
        config.write(offset, width, value)?;
    }
    // The file goes last: a process that dies before this leaves it for the next one.
    fs::remove_file(path)
}

/// The writes that make `current` what it was, of what the guard lets the guest write beyond the usual.
fn differences(guard: &Guard, terms: &Terms, original: &[u8], current: &[u8]) -> Vec<RegisterWrite> {
    let values = |offset, width| {
        Some((
            register_at(original, offset, width)?,
            register_at(current, offset, width)?,
        ))
    };
    let mut writes = Vec::new();
    for quirk in terms.quirks.as_slice() {
        let (offset, width) = (quirk.offset(), quirk.width());
        if let (Ok(Rule::Bits(mask)), Some((was, is))) = (guard.rule(offset, width), values(offset, width))
            && (was ^ is) & mask != 0
        {
            // The bits outside the mask are dom0's, and stay as they are now.
            writes.push((offset, width, is & !mask | was & mask));
        }
    }
    for &(offset, bits) in guard.partly_free() {
        if let Some((was, is)) = values(offset, 2)
            && (was ^ is) & bits != 0
        {
            writes.push((offset, 2, is & !bits | was & bits));
        }
    }
    let free = |offset: &u16, width| terms.permissive && guard.rule(*offset, width) == Ok(Rule::Any);
    let changed = |offset, width| {
        let (was, is) = values(offset, width)?;
        (was != is).then_some((offset, width, was))
    };
    let length = u16::try_from(original.len()).unwrap_or(u16::MAX);
    for offset in (0..length).step_by(4) {
        // Four bytes are written at once if all are free, else single ones: a neighbour with a rule of its own is not
        // written.
        if free(&offset, 4) {
            writes.extend(changed(offset, 4));
        } else {
            let bytes = (offset..offset + 4).filter(|byte| free(byte, 1));
            writes.extend(bytes.filter_map(|byte| changed(byte, 1)));
        }
    }
    writes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config_space::capabilities::tests::space;
    use crate::host::sysfs::tests::Tree;
    use crate::records::tests::device;

    const BDF: &str = "0000:00:05.0";

    /// What is written back after a guest with these terms has changed all that it could, and more.
    fn restore(permissive: bool, quirks: &str, changes: &[(usize, u8)]) -> (Vec<usize>, Tree) {
        let original = space(&[(0x40, 1), (0x90, 0x10), (0x70, 0x11)]);
        let tree = Tree::new();
        tree.add(BDF, &[("config", &original)]);
        let mut device = device(BDF);
        device.header = original[..64].to_vec();
        device.terms = Terms {
            permissive,
            quirks: quirks.parse().unwrap(),
            ..Terms::default()
        };
        let kept = tree.directory.path().join("kept");
        keep_in(&kept, device.bdf, &device.terms, &tree.sysfs()).unwrap();
        let mut changed = original.clone();
        changes.iter().for_each(|&(at, value)| changed[at] ^= value);
        tree.add(BDF, &[("config", &changed)]);
        restore_from(&kept, &device, &tree.sysfs()).unwrap();
        let after = tree.sysfs().config_bytes(device.bdf).unwrap();
        let left = (0..256).filter(|&at| after[at] != original[at]).collect();
        assert!(!kept.join(format!("{BDF}.config")).exists());
        restore_from(&kept, &device, &tree.sysfs()).expect("once more does no harm");
        (left, tree)
    }

    const EVERYWHERE: [(usize, u8); 7] = [
        (0x06, 1),
        (0x10, 1),
        (0x44, 1),
        (0x72, 1),
        (0x80, 0xff),
        // Device Control: one bit of the guest's, one of dom0's.
        (0x98, 0x11),
        (0xff, 1),
    ];

    #[test]
    fn all_that_a_guest_with_a_permissive_device_could_write_is_put_back_and_nothing_else() {
        // BAR 0, the power state and MSI-X have rules of their own.
        let (left, tree) = restore(true, "", &EVERYWHERE);
        assert_eq!(left, [0x10, 0x44, 0x72, 0x98]);
        let config = tree.sysfs().config_bytes(BDF.parse().unwrap()).unwrap();
        assert_eq!(config[0x98], 0x01);
    }

    #[test]
    fn of_a_register_with_a_quirk_the_bits_of_the_mask_are_put_back() {
        let (left, tree) = restore(false, "80:2:f", &EVERYWHERE);
        assert_eq!(left, [0x06, 0x10, 0x44, 0x72, 0x80, 0x98, 0xff]);
        assert_eq!(
            tree.sysfs().config_bytes(BDF.parse().unwrap()).unwrap()[0x80],
            0xf0
        );
    }

    #[test]
    fn of_a_device_on_usual_terms_nothing_is_kept_and_nothing_is_looked_for() {
        let tree = Tree::new();
        let nowhere = tree.directory.path().join("kept");
        keep_in(&nowhere, BDF.parse().unwrap(), &Terms::default(), &tree.sysfs()).unwrap();
        restore_from(&nowhere, &device(BDF), &tree.sysfs()).unwrap();
        assert!(!nowhere.exists());
    }
}
