//! Interrupt lines, and who shares them.

use super::{Refusal, Surroundings};
use crate::config::register;
use crate::interrupts::sends_messages;
use crate::sysfs::Sysfs;
use xenbus::bdf::Bdf;

/// The devices outside of `together` that use the same interrupt line: those that dom0 has turned on,
/// and those of other guests.
pub fn line_sharers(bdf: Bdf, together: &[Bdf], around: &Surroundings) -> Result<Vec<Bdf>, Refusal> {
    let (sysfs, claims) = (&around.sysfs, &around.claims);
    let Some(gsi) = line(bdf, sysfs) else {
        return Ok(Vec::new());
    };
    // A device that nobody uses cannot raise its line, and its number in sysfs may be the firmware's
    // guess. Neither does one that sends messages; a guest may have its driver do otherwise at any time, dom0 does not.
    let messages = |other| {
        sysfs
            .config_bytes(other)
            .is_ok_and(|config| sends_messages(&config))
    };
    let in_use = |other| {
        sysfs.is_enabled(other) && !messages(other) || claims.taken.iter().any(|claim| claim.bdf == other)
    };
    let mut others = sysfs.functions().map_err(Refusal::NoSysfs)?;
    others.retain(|&other| !together.contains(&other) && in_use(other) && line(other, sysfs) == Some(gsi));
    Ok(others)
}

/// The interrupt line of a device, if it has a pin.
pub fn line(bdf: Bdf, sysfs: &Sysfs) -> Option<u32> {
    let config = sysfs.config_bytes(bdf).ok()?;
    let pin = config.get(usize::from(register::INTERRUPT_PIN)).copied()?;
    if pin == 0 { None } else { sysfs.irq(bdf) }
}

/// False as long as dom0 has not turned the device on: what sysfs says until then is the firmware's guess.
pub fn line_is_known(bdf: Bdf, sysfs: &Sysfs) -> bool {
    sysfs.is_enabled(bdf) || sysfs.driver(bdf).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::Claims;
    use crate::checks::claims::xl_claim;
    use crate::checks::fixture::{A, B, around, bdf, config, host};

    #[test]
    fn a_line_is_shared_with_devices_elsewhere_that_dom0_or_a_guest_uses() {
        let tree = host();
        let nobody = Claims::default();
        let guest = Claims {
            taken: vec![xl_claim(bdf(B), "7")],
            ..Claims::default()
        };
        let sharers =
            |together: &[Bdf], claims| line_sharers(bdf(A), together, &around(&tree, claims)).unwrap();
        assert_eq!(sharers(&[bdf(A)], &nobody), []);
        assert_eq!(sharers(&[bdf(A)], &guest), [bdf(B)]);
        tree.add(B, &[("enable", b"1\n")]);
        assert_eq!(sharers(&[bdf(A)], &nobody), [bdf(B)]);
        assert_eq!(sharers(&[bdf(A), bdf(B)], &nobody), []);
        let mut messages = config(0, 1, 5);
        messages[0x73] |= 0x80;
        tree.add(B, &[("config", &messages)]);
        assert_eq!(sharers(&[bdf(A)], &nobody), [], "as a port of dom0's does");
        assert_eq!(sharers(&[bdf(A)], &guest), [bdf(B)]);
        tree.add(B, &[("irq", b"21\n")]);
        assert_eq!(sharers(&[bdf(A)], &guest), []);
    }

    #[test]
    fn a_line_is_known_once_dom0_has_turned_the_device_on() {
        let tree = host();
        assert!(!line_is_known(bdf(A), &tree.sysfs()));
        tree.bind(A, "pciback");
        assert!(line_is_known(bdf(A), &tree.sysfs()));
        tree.add(B, &[("enable", b"1\n")]);
        assert!(line_is_known(bdf(B), &tree.sysfs()));
    }
}
