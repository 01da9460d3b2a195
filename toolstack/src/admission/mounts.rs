//! What dom0 does with a device by its own drivers: an interface that is up, a disk that is in use.
//!
//! Whether a disk is in use the kernel says: every file system, swap area, RAID, volume group and pool claims its disks,
//! and `open` with `O_EXCL` fails then. The tables of mounts and the like only tell what the use is.

use crate::host::store::{Store, StoreError};
use crate::host::sysfs::Sysfs;
use crate::host::sysfs::classes::BlockDevice;
use pci::bdf::Bdf;
use rustix::io::Errno;
use std::{fs, io};

mod kernel;
mod lent;
mod table;

use kernel::Kernel;
use lent::{Lent, lent};
use table::Mount;

/// Directories that dom0 lives on, with all that is below them, and what it does by them. `/run/live` and
/// `/run/initramfs` are those of systems that run from a medium.
const ESSENTIAL: [(&str, &str); 7] = [
    ("/boot", "boots"),
    ("/usr", "runs"),
    ("/var", "runs"),
    ("/etc", "runs"),
    ("/nix", "runs"),
    ("/run/live", "runs"),
    ("/run/initramfs", "runs"),
];

/// What dom0 does by a directory, if it needs it.
fn essential(directory: &str) -> Option<&'static str> {
    let below = |&&(essential, _): &&(&str, &str)| {
        let rest = directory.strip_prefix(essential);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match directory {
        "/" => Some("runs"),
        _ => ESSENTIAL.iter().find(below).map(|&(_, does)| does),
    }
}
/// Limit of block devices that lie one on top of another.
const DEPTH: u32 = 16;

/// What dom0 mounts, swaps to, and lends to guests.
#[derive(Clone, Debug, Default)]
pub struct Mounts {
    mounts: Vec<Mount>,
    /// Names such as `sda2`.
    swaps: Vec<String>,
    lent: Vec<Lent>,
    /// The interfaces that default routes lead over.
    default_routes: Vec<String>,
    kernel: Kernel,
}

/// A use that dom0 makes of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Such as `/dev/sda1 is mounted on /mnt`.
    pub what: String,
    /// Such as `` `umount /mnt` frees it``.
    pub next: String,
}

impl Mounts {
    /// This machine's.
    pub fn read(store: &mut Store) -> Result<Self, MountsError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(MountsError::Proc)?;
        // A kernel without swapping has no such file.
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        // Without one of these protocols there is no such file.
        let routes = ["/proc/net/route", "/proc/net/ipv6_route"].map(fs::read_to_string);
        let [v4, v6] = routes.map(Result::unwrap_or_default);
        Ok(Self {
            lent: lent(store)?,
            default_routes: table::default_routes(&v4, &v6),
            ..Self::parse(&mounts, &swaps)
        })
    }

    /// From the texts of `/proc/self/mountinfo` and `/proc/swaps` (device, …).
    pub fn parse(mounts: &str, swaps: &str) -> Self {
        let swaps = swaps
            .lines()
            .filter_map(|line| line.split_whitespace().next()?.strip_prefix("/dev/"));
        Self {
            mounts: mounts.lines().filter_map(Mount::parse).collect(),
            swaps: swaps.map(str::to_owned).collect(),
            ..Self::default()
        }
    }

    /// The first use that dom0 makes of a function, or of one behind it, that taking it away would break.
    pub fn of(&self, bdf: Bdf, sysfs: &Sysfs) -> Option<Use> {
        let up = sysfs.interfaces(bdf).into_iter().find(|(_, up)| *up);
        if let Some((interface, _)) = up {
            return Some(self.interface_up(&interface, sysfs));
        }
        if let Some(mount) = self.shared_directory(bdf, sysfs) {
            return Some(mounted(
                &format!("the directory {} of its host", mount.source),
                &[mount],
            ));
        }
        let disks = sysfs.disks(bdf);
        disks
            .iter()
            .find_map(|disk| self.known_use(disk, sysfs, DEPTH))
            // The tables come first: they say how the use can be ended. The kernel knows of uses that no table has.
            .or_else(|| disks.iter().find_map(|disk| self.unknown_use(disk, bdf)))
    }

    /// An interface that is up, with what goes over it: dom0's default route, or the traffic of a bridge or bond.
    fn interface_up(&self, interface: &str, sysfs: &Sysfs) -> Use {
        let down = format!("`ip link set {interface} down` frees it");
        let above = sysfs.interfaces_above(interface);
        let leads = |name: &String| self.default_routes.contains(name);
        let by = above.first().map(|above| format!(" as a port of {above}"));
        let by = by.unwrap_or_default();
        if leads(&interface.to_owned()) || above.iter().any(leads) {
            return Use {
                what: format!("its interface {interface} is up{by}, and dom0's default route leads over it"),
                next: format!("{down}, and cuts dom0 off from its network: give dom0 another way first"),
            };
        }
        Use {
            what: format!("its interface {interface} is up{by}"),
            next: match above.first() {
                Some(above) => format!("{down}; what is connected to {above} loses that way out"),
                None => down,
            },
        }
    }

    /// What the tables say of a block device, and of those that are made of it.
    fn known_use(&self, disk: &BlockDevice, sysfs: &Sysfs, depth: u32) -> Option<Use> {
        let name = &disk.name;
        let path = format!("/dev/{name}");
        let mounts: Vec<&Mount> = self
            .mounts
            .iter()
            .filter(|mount| mount.source == path || mount.device.is_some() && mount.device == disk.number)
            .collect();
        if !mounts.is_empty() {
            return Some(mounted(&path, &mounts));
        }
        if self.swaps.contains(name) {
            return Some(Use {
                what: format!("{path} is swapped to"),
                next: format!("`swapoff {path}` frees it"),
            });
        }
        if let Some(lent) = self.lent.iter().find(|lent| Some(lent.device) == disk.number) {
            let guest = &lent.guest;
            return Some(Use {
                what: format!("{path} is a disk of domain {guest}"),
                next: format!("`xl block-detach {guest} DISK` frees it (`xl block-list {guest}` shows DISK)"),
            });
        }
        let members = sysfs.btrfs_members(name);
        let is_member = |mount: &&Mount| {
            let source = mount.source.strip_prefix("/dev/");
            mount.kind == "btrfs" && source.is_some_and(|source| members.iter().any(|name| name == source))
        };
        let mounts: Vec<&Mount> = self.mounts.iter().filter(is_member).collect();
        if !mounts.is_empty() {
            return Some(mounted(
                &format!("{path}, a member of a btrfs file system,"),
                &mounts,
            ));
        }
        // What is made of the disk may be in use without a trace at the disk itself.
        let holder = disk.holders.first()?;
        let part = format!("{path} is part of {holder}");
        let above = sysfs.block(&holder.name).filter(|_| depth > 0);
        Some(
            match above.and_then(|above| self.known_use(&above, sysfs, depth - 1)) {
                Some(above) => Use {
                    what: format!("{part}: {}", above.what),
                    ..above
                },
                None => Use {
                    what: part,
                    next: format!(
                        "end the use of {holder} and take it apart (`lsblk {path}` shows all of it)"
                    ),
                },
            },
        )
    }

    /// What the kernel says of a block device of which the tables know nothing.
    fn unknown_use(&self, disk: &BlockDevice, bdf: Bdf) -> Option<Use> {
        let name = &disk.name;
        match self.kernel.claim(disk) {
            Ok(()) => None,
            Err(Errno::BUSY) => Some(Use {
                what: format!("its kernel has /dev/{name} in use, and no table says what for"),
                next: format!(
                    "`lsblk /dev/{name}`, `fuser -v /dev/{name}`, `zpool status -L` and the mounts of containers may tell"
                ),
            }),
            Err(error) => Some(Use {
                what: format!("whether /dev/{name} is in use its kernel does not say ({error})"),
                next: format!("`echo {bdf} >/sys/bus/pci/devices/{bdf}/driver/unbind` ends every use of it"),
            }),
        }
    }

    /// A directory of the host below, mounted through a virtio function.
    fn shared_directory(&self, bdf: Bdf, sysfs: &Sysfs) -> Option<&Mount> {
        let (kind, tag) = sysfs.shared_directory(bdf)?;
        let mut mounts = self.mounts.iter();
        mounts.find(|mount| mount.kind == kind && tag.as_ref().is_none_or(|tag| *tag == mount.source))
    }
}

/// Why the uses of disks could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MountsError {
    /// The table of mounts cannot be read.
    #[error("cannot read what is mounted: is /proc there?")]
    Proc(#[source] io::Error),
    /// xenstore cannot be read.
    #[error("cannot see in xenstore which disks guests have")]
    Store(#[from] StoreError),
}

fn mounted(what: &str, mounts: &[&Mount]) -> Use {
    let directories: Vec<&str> = mounts.iter().map(|mount| mount.directory.as_str()).collect();
    let needed = directories
        .iter()
        .find_map(|&directory| Some((directory, essential(directory)?)));
    let shown = needed
        .map(|(directory, _)| directory)
        .or(directories.first().copied());
    let shown = shown.unwrap_or_default();
    // `umount` would be bad advice for what dom0 lives on.
    let next = match needed {
        Some((_, does)) => format!("dom0 {does} from it, and has to keep it"),
        None => {
            let words: Vec<String> = directories.iter().map(|directory| quoted(directory)).collect();
            format!("`umount {}` frees it", words.join(" "))
        }
    };
    Use {
        what: format!("{what} is mounted on {}", shown.escape_debug()),
        next,
    }
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@".contains(&byte);
    if word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
impl Mounts {
    /// The same where the kernel answers for these block devices with an error.
    pub fn with_answers(mut self, answers: &[(&str, Errno)]) -> Self {
        let answers = answers.iter().map(|&(name, error)| (name.to_owned(), error));
        self.kernel = Kernel::Pretended(answers.collect());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::sysfs::tests::Tree;
    use std::os::unix::fs::symlink;

    const MOUNTS: &str = "\
22 28 0:20 / /proc rw - proc proc rw
28 1 8:1 / / rw,noatime shared:1 - ext4 /dev/sda1 rw
29 28 8:1 / /copy rw - ext4 /dev/sda1 rw
30 28 8:49 / /mnt/two\\040words rw - ext4 /dev/sdd1 rw
31 28 8:49 / /srv rw - ext4 /dev/sdd1 rw
32 28 254:0 / / rw - ext4 /dev/mapper/vg-root rw
33 28 0:40 / /data rw - btrfs /dev/sde rw
34 28 0:41 / /host rw - 9p files rw
35 28 0:42 / /other rw - virtiofs other rw
";
    const SWAPS: &str = "Filename Type Size Used Priority\n/dev/sdb2 partition 1 0 -2\n";

    fn mounts(answers: &[(&str, Errno)]) -> Mounts {
        let mut mounts = Mounts::parse(MOUNTS, SWAPS).with_answers(answers);
        mounts.lent = vec![Lent {
            device: (8, 96),
            guest: "7".into(),
        }];
        mounts
    }

    fn used_with(tree: &Tree, bdf: &str, answers: &[(&str, Errno)]) -> Option<String> {
        mounts(answers)
            .of(bdf.parse().unwrap(), &tree.sysfs())
            .map(|found| format!("{}; {}", found.what, found.next))
    }

    fn used(tree: &Tree, bdf: &str) -> Option<String> {
        used_with(tree, bdf, &[])
    }

    const BDF: &str = "0000:00:06.0";

    /// A host whose function 00:06.0 has one disk.
    fn disk(name: &str, number: &str) -> Tree {
        let tree = Tree::new();
        tree.add(BDF, &[]);
        tree.add_class(BDF, "block", name, &[("dev", number)]);
        tree
    }

    #[test]
    fn an_interface_that_is_up_is_a_use_and_one_that_is_down_is_none() {
        let tree = Tree::new();
        tree.add("0000:00:05.0", &[]);
        tree.add_class("0000:00:05.0", "net", "eth0", &[("flags", "0x1002\n")]);
        assert_eq!(used(&tree, "00:05.0"), None);
        tree.add_class("0000:00:05.0", "net", "eth1", &[("flags", "0x1003\n")]);
        assert_eq!(
            used(&tree, "00:05.0").as_deref(),
            Some("its interface eth1 is up; `ip link set eth1 down` frees it")
        );
    }

    #[test]
    fn what_goes_over_an_interface_is_told_before_somebody_cuts_it_off() {
        let tree = Tree::new();
        tree.add("0000:00:05.0", &[]);
        let home = tree.add_class("0000:00:05.0", "net", "eth0", &[("flags", "0x1003\n")]);
        let told = |routes: &[&str]| {
            let mut mounts = mounts(&[]);
            mounts.default_routes = routes.iter().map(|&route| route.to_owned()).collect();
            let used = mounts.of("00:05.0".parse().unwrap(), &tree.sysfs()).unwrap();
            format!("{}; {}", used.what, used.next)
        };
        assert_eq!(
            told(&["eth0"]),
            "its interface eth0 is up, and dom0's default route leads over it; `ip link set eth0 down` frees it, and \
             cuts dom0 off from its network: give dom0 another way first"
        );
        let bridge = tree.directory.path().join("class/net/xenbr0");
        std::fs::create_dir_all(&bridge).unwrap();
        symlink(&bridge, home.join("master")).unwrap();
        assert!(told(&["xenbr0"]).starts_with(
            "its interface eth0 is up as a port of xenbr0, and dom0's default route leads over it; "
        ));
        assert_eq!(
            told(&[]),
            "its interface eth0 is up as a port of xenbr0; `ip link set eth0 down` frees it; what is connected to xenbr0 \
             loses that way out"
        );
    }

    #[test]
    fn umount_is_never_advised_for_what_dom0_lives_on() {
        for (directory, advised) in [
            ("/", false),
            ("/boot", false),
            ("/boot/efi", false),
            ("/var/lib/xen", false),
            ("/usr", false),
            ("/run/live/medium", false),
            ("/home", true),
            ("/variety", true),
            ("/run/media/somebody/stick", true),
        ] {
            let mount = Mount::parse(&format!("40 28 8:1 / {directory} rw - ext4 /dev/sda1 rw")).unwrap();
            let used = mounted("/dev/sda1", &[&mount]);
            assert_eq!(
                used.next.contains("umount"),
                advised,
                "{directory}: {}",
                used.next
            );
        }
    }

    #[test]
    fn a_disk_that_is_mounted_or_swapped_to_or_lent_to_a_guest_is_a_use_in_words() {
        for (name, number, expected) in [
            (
                "sda1",
                "8:1",
                Some("/dev/sda1 is mounted on /; dom0 runs from it, and has to keep it"),
            ),
            // As an initial file system calls the root's disk, or a rule of udev's.
            (
                "vda1",
                "8:1",
                Some("/dev/vda1 is mounted on /; dom0 runs from it, and has to keep it"),
            ),
            (
                "sdd1",
                "8:49",
                Some("/dev/sdd1 is mounted on /mnt/two words; `umount '/mnt/two words' /srv` frees it"),
            ),
            (
                "sdb2",
                "8:18",
                Some("/dev/sdb2 is swapped to; `swapoff /dev/sdb2` frees it"),
            ),
            (
                "sdg",
                "8:96",
                Some(
                    "/dev/sdg is a disk of domain 7; `xl block-detach 7 DISK` frees it (`xl block-list 7` shows DISK)",
                ),
            ),
            ("sdc", "8:32", None),
        ] {
            assert_eq!(used(&disk(name, number), BDF).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_disk_that_is_part_of_another_block_device_is_used_as_that_is() {
        let tree = disk("sdf", "8:80");
        let root = tree.directory.path();
        std::fs::create_dir_all(tree.device(BDF).join("block/sdf/holders/md0")).unwrap();
        let told = used(&tree, BDF).unwrap();
        assert!(
            told.starts_with("/dev/sdf is part of /dev/md0; end the use of /dev/md0 and take it apart"),
            "{told}"
        );
        // A volume group on the RAID, with dom0's root on it.
        for (name, number, holder) in [("md0", "9:0\n", Some("dm-0")), ("dm-0", "254:0\n", None)] {
            let home = root.join("devices/virtual/block").join(name);
            std::fs::create_dir_all(home.join("holders").join(holder.unwrap_or_default())).unwrap();
            std::fs::write(home.join("dev"), number).unwrap();
            symlink(&home, root.join("class/block").join(name)).unwrap();
        }
        let dm = root.join("devices/virtual/block/dm-0/dm");
        std::fs::create_dir_all(&dm).unwrap();
        std::fs::write(dm.join("name"), "vg-root\n").unwrap();
        assert_eq!(
            used(&tree, BDF).unwrap(),
            "/dev/sdf is part of /dev/md0: /dev/md0 is part of /dev/dm-0 (vg-root): /dev/dm-0 is mounted on /; dom0 runs \
             from it, and has to keep it"
        );
    }

    #[test]
    fn a_further_member_of_a_btrfs_file_system_is_used_as_the_first_is() {
        let tree = disk("sdh", "8:112");
        let members = tree.directory.path().join("fs/btrfs/1234/devices");
        std::fs::create_dir_all(members.join("sde")).unwrap();
        std::fs::create_dir_all(members.join("sdh")).unwrap();
        assert_eq!(
            used(&tree, BDF).unwrap(),
            "/dev/sdh, a member of a btrfs file system, is mounted on /data; `umount /data` frees it"
        );
    }

    #[test]
    fn what_no_table_knows_the_kernel_says_and_a_doubt_counts_as_a_use() {
        let tree = disk("sdc", "8:32");
        let told = used_with(&tree, BDF, &[("sdc", Errno::BUSY)]).unwrap();
        assert!(
            told.starts_with("its kernel has /dev/sdc in use, and no table says what for; `lsblk /dev/sdc`"),
            "{told}"
        );
        for (error, text) in [
            (Errno::NOENT, "No such file or directory"),
            (Errno::IO, "Input/output error"),
            (Errno::ACCESS, "Permission denied"),
            (Errno::PERM, "Operation not permitted"),
        ] {
            let told = used_with(&tree, BDF, &[("sdc", error)]).unwrap();
            assert!(told.contains(&format!("does not say ({text}")), "{told}");
            assert!(told.contains("devices/0000:00:06.0/driver/unbind"), "{told}");
        }
        assert_eq!(used_with(&tree, BDF, &[("sdx", Errno::BUSY)]), None);
    }

    #[test]
    fn a_namespace_of_an_nvme_subsystem_is_its_controllers_though_it_lies_elsewhere() {
        let tree = Tree::new();
        let root = tree.directory.path();
        tree.add(BDF, &[]);
        tree.add("0000:00:07.0", &[]);
        for (bdf, controller) in [(BDF, "nvme0"), ("0000:00:07.0", "nvme1")] {
            let home = tree.add_class(bdf, "nvme", controller, &[]);
            // The path to the namespace by this controller has no node.
            let path = format!("nvme0c{}n1", &controller[4..]);
            tree.add_class(bdf, "block", &path, &[("hidden", "1\n")]);
            let subsystem = root.join("devices/virtual/nvme-subsystem").join(if bdf == BDF {
                "nvme-subsys0"
            } else {
                "nvme-subsys1"
            });
            std::fs::create_dir_all(&subsystem).unwrap();
            symlink(&home, subsystem.join(controller)).unwrap();
            std::fs::create_dir_all(root.join("class/nvme-subsystem")).unwrap();
            symlink(
                &subsystem,
                root.join("class/nvme-subsystem")
                    .join(subsystem.file_name().unwrap()),
            )
            .unwrap();
        }
        let head = root.join("devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1");
        std::fs::create_dir_all(&head).unwrap();
        std::fs::write(head.join("dev"), "259:0\n").unwrap();
        symlink(&head, root.join("class/block/nvme0n1")).unwrap();
        let busy = [
            ("nvme0n1", Errno::BUSY),
            // These cannot be opened at all.
            ("nvme0c0n1", Errno::NOENT),
            ("nvme0c1n1", Errno::NOENT),
        ];
        let told = used_with(&tree, BDF, &busy).unwrap();
        assert!(told.contains("/dev/nvme0n1 in use"), "{told}");
        assert_eq!(used_with(&tree, "0000:00:07.0", &busy), None);
        assert_eq!(used_with(&tree, BDF, &busy[1..]), None);
    }

    #[test]
    fn a_virtio_function_behind_which_files_of_dom0s_lie_is_in_use() {
        for (driver, tag, expected) in [
            (
                "9pnet_virtio",
                Some("files"),
                Some("the directory files of its host is mounted on /host; `umount /host` frees it"),
            ),
            ("9pnet_virtio", Some("elsewhere"), None),
            (
                "virtiofs",
                None,
                Some("the directory other of its host is mounted on /other; `umount /other` frees it"),
            ),
            ("virtio_rng", None, None),
        ] {
            let tree = Tree::new();
            tree.add(BDF, &[]);
            let home = tree.device(BDF).join("virtio0");
            let drivers = tree.directory.path().join("bus/virtio/drivers").join(driver);
            std::fs::create_dir_all(&home).unwrap();
            std::fs::create_dir_all(&drivers).unwrap();
            symlink(drivers, home.join("driver")).unwrap();
            if let Some(tag) = tag {
                std::fs::write(home.join("mount_tag"), tag).unwrap();
            }
            assert_eq!(used(&tree, BDF).as_deref(), expected, "{driver} {tag:?}");
        }
    }
}
