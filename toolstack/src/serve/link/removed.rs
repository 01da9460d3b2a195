//! Devices that dom0 has removed while their guest had them. They are left out of a link, so that the others are served.

use super::error::LinkError;
use crate::config_space::access::ConfigFile;
use crate::function::Functions;
use crate::host::sysfs::Sysfs;
use crate::records::{Attachment, Device};
use pci::bdf::Bdf;

/// Takes the devices of an attachment into service that dom0 has not removed. Returns those that it has.
pub fn follow(
    functions: &mut Functions<ConfigFile>,
    attachment: &Attachment,
    sysfs: &Sysfs,
) -> Result<Vec<Bdf>, LinkError> {
    let open = |bdf| sysfs.open_config(bdf).map_err(LinkError::from);
    let removed = find(attachment, sysfs);
    let Err(error) = functions.follow(&attachment.without(&removed), open) else {
        return Ok(removed);
    };
    // One may have been removed since it was looked for.
    let now = find(attachment, sysfs);
    if now == removed {
        return Err(error);
    }
    functions.follow(&attachment.without(&now), open)?;
    Ok(now)
}

fn find(attachment: &Attachment, sysfs: &Sysfs) -> Vec<Bdf> {
    let is_removed = |device: &&Device| {
        // One that Linux has found again is dom0's, whatever has its address. A virtual function goes with its physical one.
        !sysfs.is_same(device.bdf, device.inode)
            || device.physical.is_some_and(|physical| !sysfs.exists(physical))
    };
    let removed = attachment.devices.iter().filter(is_removed);
    removed.map(|device| device.bdf).collect()
}

/// What the log says of such a device.
pub fn message(attachment: &Attachment, bdf: Bdf) -> String {
    format!(
        "{bdf}: dom0 has removed it while guest {} has it, so it is left out: `bulkhead detach {bdf}` takes it off the \
         guest's list",
        attachment.guest.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::function::fixture::config;
    use crate::host::sysfs::tests::Tree;
    use crate::records::tests::attachment;
    use std::fs;

    fn two_devices() -> (Tree, Attachment) {
        let tree = Tree::new();
        for bdf in ["0000:00:05.0", "0000:00:06.0"] {
            tree.add(bdf, &[("config", &config().bytes.borrow())]);
        }
        (tree, attachment())
    }

    /// The devices that are served and those that are left out.
    fn served(tree: &Tree, attachment: &Attachment) -> Result<[Vec<String>; 2], LinkError> {
        let mut functions = Functions::none(attachment.guest.domid);
        let removed = follow(&mut functions, attachment, &tree.sysfs())?;
        let in_service = functions.iter().map(|function| function.bdf().to_string());
        let left_out = removed.iter().map(ToString::to_string);
        Ok([in_service.collect(), left_out.collect()])
    }

    #[test]
    fn a_device_that_dom0_has_removed_is_left_out_and_the_others_are_served() {
        let (tree, attachment) = two_devices();
        let expected = [vec!["0000:00:05.0".to_owned(), "0000:00:06.0".to_owned()], vec![]];
        assert_eq!(served(&tree, &attachment).unwrap(), expected);
        fs::remove_dir_all(tree.device("0000:00:05.0")).unwrap();
        let expected = [vec!["0000:00:06.0".to_owned()], vec!["0000:00:05.0".to_owned()]];
        assert_eq!(served(&tree, &attachment).unwrap(), expected);
        let message = message(&attachment, attachment.devices[0].bdf);
        assert!(message.contains("`bulkhead detach 0000:00:05.0`"), "{message}");
    }

    #[test]
    fn a_device_that_dom0_has_found_again_is_not_the_guests() {
        let (tree, mut attachment) = two_devices();
        let inode = tree.sysfs().inode(attachment.devices[1].bdf).unwrap();
        attachment.devices[1].inode = Some(inode);
        assert_eq!(served(&tree, &attachment).unwrap()[0].len(), 2);
        attachment.devices[1].inode = Some(inode + 1);
        let expected = [vec!["0000:00:05.0".to_owned()], vec!["0000:00:06.0".to_owned()]];
        assert_eq!(served(&tree, &attachment).unwrap(), expected);
    }

    #[test]
    fn a_virtual_function_goes_with_its_physical_one() {
        let (tree, mut attachment) = two_devices();
        attachment.devices[0].physical = Some("01:00.0".parse().unwrap());
        assert_eq!(served(&tree, &attachment).unwrap()[1], ["0000:00:05.0"]);
    }

    #[test]
    fn a_device_that_is_there_and_cannot_be_opened_is_an_error() {
        let (tree, attachment) = two_devices();
        fs::remove_file(tree.device("0000:00:06.0").join("config")).unwrap();
        assert!(matches!(served(&tree, &attachment), Err(LinkError::Device(_))));
    }

    #[test]
    fn a_device_that_is_removed_while_it_is_served_is_served_no_more() {
        let (tree, attachment) = two_devices();
        let mut functions = Functions::none(attachment.guest.domid);
        follow(&mut functions, &attachment, &tree.sysfs()).unwrap();
        fs::remove_dir_all(tree.device("0000:00:06.0")).unwrap();
        follow(&mut functions, &attachment, &tree.sysfs()).unwrap();
        assert!(functions.get(attachment.devices[1].bdf).is_none());
    }
}
