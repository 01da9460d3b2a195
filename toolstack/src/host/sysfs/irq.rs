//! Interrupt lines: which one a function has, and what Linux and xen-pciback do on it.

use super::{Sysfs, write};
use pci::bdf::Bdf;
use std::fs;
use std::io;

/// The beginning of the names of xen-pciback's handlers. The device's address follows.
const PCIBACK_HANDLER: &str = "xen-pciback[";

impl Sysfs {
    /// The number of the interrupt line, which for a line of an I/O APIC is the GSI; `None` if the
    /// function has none (0 and 255 both mean that).
    pub fn irq(&self, bdf: Bdf) -> Option<u32> {
        let text = fs::read_to_string(self.path(bdf, "irq")).ok()?;
        text.trim().parse().ok().filter(|irq| !matches!(irq, 0 | 255))
    }

    /// The drivers of dom0's that have a handler on an interrupt line; those of xen-pciback are none.
    pub fn line_users(&self, irq: u32) -> Vec<String> {
        let path = self.root.join("kernel/irq").join(irq.to_string()).join("actions");
        let text = fs::read_to_string(path).unwrap_or_default();
        let names = text
            .trim()
            .split(',')
            .filter(|name| !name.is_empty() && !name.starts_with(PCIBACK_HANDLER));
        names.map(str::to_owned).collect()
    }

    /// Number of a line's interrupts since Linux began to count, and of those that no handler in dom0 wanted. At
    /// 100,000 Linux counts anew; if more than 99,900 were unwanted, it turns the line off. `None` if dom0 does not
    /// use the line.
    pub fn unwanted_interrupts(&self, irq: u32) -> Option<(u32, u32)> {
        let text = fs::read_to_string(self.proc.join("irq").join(irq.to_string()).join("spurious")).ok()?;
        let number = |key| {
            let value = text.lines().find_map(|line| line.strip_prefix(key));
            value.and_then(|value| value.trim().parse().ok())
        };
        Some((number("count ")?, number("unhandled ")?))
    }

    /// xen-pciback's handlers: one line each.
    pub fn irq_handlers(&self) -> io::Result<String> {
        fs::read_to_string(self.pciback().join("irq_handlers"))
    }

    /// Switches xen-pciback's handler for a function on or off.
    pub fn toggle_irq_handler(&self, bdf: Bdf) -> io::Result<()> {
        write(&self.pciback().join("irq_handler_state"), &bdf.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Tree, bdf};
    use std::fs;

    #[test]
    fn an_interrupt_line_of_0_or_255_is_none() {
        let tree = Tree::new();
        for (name, irq, expected) in [
            ("0000:00:01.0", "16\n", Some(16)),
            ("0000:00:02.0", "0\n", None),
            ("0000:00:03.0", "255\n", None),
            ("0000:00:04.0", "?", None),
        ] {
            tree.add(name, &[("irq", irq.as_bytes())]);
            assert_eq!(tree.sysfs().irq(bdf(name)), expected, "{irq}");
        }
    }

    #[test]
    fn the_users_of_a_line_are_dom0s_drivers_and_not_xen_pciback() {
        let tree = Tree::new();
        let line = tree.directory.path().join("kernel/irq/22");
        fs::create_dir_all(&line).unwrap();
        fs::write(line.join("actions"), "eth0,xen-pciback[0000:00:05.0],ahci\n").unwrap();
        assert_eq!(tree.sysfs().line_users(22), ["eth0", "ahci"]);
        assert_eq!(tree.sysfs().line_users(23), [""; 0]);
    }

    #[test]
    fn the_interrupts_that_nobody_wanted_are_counted_by_line() {
        let tree = Tree::new();
        let line = tree.directory.path().join("proc/irq/22");
        fs::create_dir_all(&line).unwrap();
        fs::write(
            line.join("spurious"),
            "count 1200\nunhandled 1100\nlast_unhandled 4 ms\n",
        )
        .unwrap();
        assert_eq!(tree.sysfs().unwanted_interrupts(22), Some((1200, 1100)));
        assert_eq!(tree.sysfs().unwanted_interrupts(23), None);
    }
}
