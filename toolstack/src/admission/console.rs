//! Functions that the host itself needs: its chipset, its display, its keyboard.

use super::mounts::Use;
use crate::host::sysfs::Sysfs;
use pci::bdf::Bdf;
use pci::registers::register;

/// Class and subclass (PCI Code and ID Assignment Specification, section 1).
const ISA_BRIDGE: u16 = 0x0601;
/// Parts of a mainboard wherever they stand.
const PARTS: [(u16, &str); 8] = [
    (0x0600, "the host bridge, by which processors reach PCI"),
    (ISA_BRIDGE, "the bridge to its built-in devices (ISA, LPC)"),
    (0x0800, "its interrupt controller"),
    (0x0801, "its DMA controller"),
    (0x0802, "its timer"),
    (0x0803, "its clock"),
    (0x0806, "its IOMMU"),
    (
        0x0c05,
        "the bus of its memory modules, sensors and voltage regulators",
    ),
];
/// Those of a chipset that stand beside its bridge to ISA: memory controllers (power management, hidden registers) and
/// the bus of the firmware's flash memory.
const BESIDE: [(u16, u16, &str); 2] = [
    (0xff00, 0x0500, "registers of its chipset"),
    (0xffff, 0x0c80, "the bus of its firmware's flash memory"),
];

/// The part of the mainboard that a function is; `None` if it is none.
pub fn part_of_mainboard(bdf: Bdf, sysfs: &Sysfs) -> Option<&'static str> {
    let class = class_of(bdf, sysfs);
    if let Some(&(_, what)) = PARTS.iter().find(|&&(part, _)| part == class) {
        return Some(what);
    }
    let found = BESIDE
        .into_iter()
        .find(|&(mask, wanted, _)| class & mask == wanted);
    let (_, _, what) = found?;
    // Memory controllers and such buses exist on cards too. Those beside the ISA bridge are the chipset's.
    let beside_isa = sysfs
        .slot_of(bdf)
        .into_iter()
        .any(|other| class_of(other, sysfs) == ISA_BRIDGE);
    beside_isa.then_some(what)
}

fn class_of(bdf: Bdf, sysfs: &Sysfs) -> u16 {
    let config = sysfs.config_bytes(bdf).unwrap_or_default();
    let byte = |at: u16| config.get(usize::from(at)).copied().unwrap_or(0xff);
    u16::from_be_bytes([byte(register::BASE_CLASS), byte(register::BASE_CLASS - 1)])
}

/// The use of a display that shows dom0's console.
pub fn shown_console(bdf: Bdf, sysfs: &Sysfs) -> Option<Use> {
    let frame_buffer = sysfs.frame_buffers(bdf).into_iter().find(|name| name == "fb0")?;
    let console = sysfs.frame_buffer_console()?;
    Some(Use {
        what: format!("its frame buffer {frame_buffer} shows dom0's console"),
        next: format!("`echo 0 >/sys/class/vtconsole/{console}/bind` frees it"),
    })
}

/// True if no keyboard is left to dom0's console without this function, and one is behind it.
pub fn has_only_keyboard(bdf: Bdf, sysfs: &Sysfs) -> bool {
    let keyboards = sysfs.keyboards();
    !keyboards.is_empty() && keyboards.iter().all(|above| above.contains(&bdf))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::sysfs::tests::Tree;

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    fn with_class(class: u16) -> Vec<u8> {
        let mut config = vec![0; 64];
        config[0x0a..0x0c].copy_from_slice(&class.to_le_bytes());
        config
    }

    #[test]
    fn parts_of_the_mainboard_are_told_by_class_and_by_the_bridge_beside_them() {
        let tree = Tree::new();
        for (name, class) in [
            ("0000:00:1f.0", ISA_BRIDGE),
            ("0000:00:1f.2", 0x0580),
            ("0000:00:1f.3", 0x0403),
            ("0000:00:1f.4", 0x0c05),
            ("0000:00:00.0", 0x0600),
            ("0000:00:00.2", 0x0806),
            ("0000:00:05.4", 0x0800),
            ("0000:05:00.0", 0x0805),
            ("0000:00:1f.5", 0x0c80),
            ("0000:00:1f.6", 0x0200),
            ("0000:03:00.0", 0x0580),
            ("0000:04:00.0", 0x0c05),
        ] {
            tree.add(name, &[("config", &with_class(class))]);
        }
        let part = |name| part_of_mainboard(bdf(name), &tree.sysfs()).is_some();
        for name in [
            "00:00.0", "00:00.2", "00:05.4", "00:1f.0", "00:1f.2", "00:1f.4", "00:1f.5", "04:00.0",
        ] {
            assert!(part(name), "{name}");
        }
        // Sound and network of the chipset; a memory controller and a reader of SD cards on a card.
        for name in ["00:1f.3", "00:1f.6", "03:00.0", "05:00.0", "00:09.0"] {
            assert!(!part(name), "{name}");
        }
    }

    #[test]
    fn the_display_that_shows_dom0s_console_is_in_use_until_the_console_lets_go() {
        let tree = Tree::new();
        tree.add("0000:00:02.0", &[]);
        tree.add("0000:01:00.0", &[]);
        tree.add_class("0000:00:02.0", "graphics", "fb0", &[]);
        tree.add_class("0000:01:00.0", "graphics", "fb1", &[]);
        let console = tree.directory.path().join("class/vtconsole");
        for (name, text, bound) in [
            ("vtcon0", "(S) VGA+\n", "0\n"),
            ("vtcon1", "(M) frame buffer device\n", "1\n"),
        ] {
            std::fs::create_dir_all(console.join(name)).unwrap();
            std::fs::write(console.join(name).join("name"), text).unwrap();
            std::fs::write(console.join(name).join("bind"), bound).unwrap();
        }
        let used = shown_console(bdf("00:02.0"), &tree.sysfs()).unwrap();
        assert_eq!(used.what, "its frame buffer fb0 shows dom0's console");
        assert!(
            used.next.contains("/sys/class/vtconsole/vtcon1/bind"),
            "{}",
            used.next
        );
        assert_eq!(shown_console(bdf("01:00.0"), &tree.sysfs()), None);
        std::fs::write(console.join("vtcon1/bind"), "0\n").unwrap();
        assert_eq!(shown_console(bdf("00:02.0"), &tree.sysfs()), None);
    }

    #[test]
    fn the_only_keyboard_is_told_from_one_of_several_and_from_buttons() {
        let tree = Tree::new();
        for name in ["0000:00:14.0", "0000:00:1d.0"] {
            tree.add(name, &[]);
        }
        // A power button and a mouse have keys too.
        let input = |at: &str, name: &str, keys: &str| {
            let home = tree.directory.path().join(at).join(name);
            std::fs::create_dir_all(home.join("capabilities")).unwrap();
            std::fs::write(home.join("capabilities/key"), keys).unwrap();
            let class = tree.directory.path().join("class/input");
            std::fs::create_dir_all(&class).unwrap();
            std::os::unix::fs::symlink(home, class.join(name)).unwrap();
        };
        let only = |name| has_only_keyboard(bdf(name), &tree.sysfs());
        const KEYBOARD: &str = "1000000000007 ff9f207ac14057ff febeffdfffefffff fffffffffffffffe\n";
        input("devices/button", "input0", "10000000000000 0\n");
        assert!(!only("00:14.0"));
        input("bus/pci/devices/0000:00:14.0/usb1/1-1", "input1", KEYBOARD);
        input(
            "bus/pci/devices/0000:00:14.0/usb1/1-2",
            "input2",
            "1f0000 0 0 0 0\n",
        );
        assert!(only("00:14.0") && !only("00:1d.0"));
        input("bus/pci/devices/0000:00:1d.0/usb2/2-1", "input3", KEYBOARD);
        assert!(!only("00:14.0") && !only("00:1d.0"));
    }
}
