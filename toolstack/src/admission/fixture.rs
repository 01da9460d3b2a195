//! A host made of files, for the tests of all checks.

use super::group::Groups;
use super::mounts::Mounts;
use super::surroundings::Surroundings;
use crate::config_space::capabilities::tests::space;
use crate::host::mcfg::Mcfg;
use crate::host::sysfs::tests::Tree;
use crate::records::claims::Claims;
use pci::bdf::Bdf;

pub const A: &str = "0000:00:05.0";
pub const B: &str = "0000:00:06.0";
pub const BRIDGE: &str = "0000:00:1c.0";

pub fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

pub fn mcfg() -> Mcfg {
    let mut table = b"MCFG\x3c\0\0\0".to_vec();
    table.resize(44, 0);
    table.extend([0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 0, 0, 0, 0]);
    Mcfg::parse(&table).unwrap()
}

pub fn config(header_type: u8, pin: u8, msix_entries: u8) -> Vec<u8> {
    let mut config = space(&[(0x70, 0x11)]);
    config[..4].copy_from_slice(&[0x86, 0x80, 0xd3, 0x10]);
    config[0x0e] = header_type;
    config[0x3d] = pin;
    config[0x72] = msix_entries - 1;
    config
}

/// A function with MSI-X and a reset that Linux does not name.
pub fn add_function(tree: &Tree, name: &str, pin: u8, resource: &str) {
    let files: [(&str, &[u8]); 7] = [
        ("vendor", b"0x8086\n"),
        ("device", b"0x10d3\n"),
        ("config", &config(0, pin, 5)),
        ("resource", resource.as_bytes()),
        ("irq", b"20\n"),
        ("enable", b"0\n"),
        ("reset", b""),
    ];
    tree.add(name, &files);
}

/// Two devices whose BARs lie in neighbouring pages, and a bridge whose window holds both.
pub fn host() -> Tree {
    let tree = Tree::new();
    add_function(&tree, A, 1, "0xfe000000 0xfe0000ff 0x200\n");
    add_function(&tree, B, 1, "0xfe001000 0xfe0010ff 0x200\n");
    let window = "0x0 0x0 0x0\n".repeat(7) + "0xfe000000 0xfe0fffff 0x200\n";
    tree.add(
        BRIDGE,
        &[("config", &config(1, 0, 1)), ("resource", window.as_bytes())],
    );
    tree
}

/// What is around the devices of `tree`: nothing but who has them.
pub fn around(tree: &Tree, claims: &Claims) -> Surroundings {
    Surroundings {
        sysfs: tree.sysfs(),
        mcfg: mcfg(),
        claims: claims.clone(),
        mounts: Mounts::default().with_answers(&[]),
        groups: Groups::default(),
        spare_pirqs: 32,
    }
}
