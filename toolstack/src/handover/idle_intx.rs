//! INTx of functions without a driver.
//!
//! Firmware can leave a function with its interrupt asserted. Nobody minds as long as nobody listens to its line. But a
//! guest that gets another device on that line hears an interrupt that never ends, and its kernel, or dom0's, turns
//! the line off (`kernel/irq/spurious.c`: "nobody cared"). So INTx of such a function is disabled in its command
//! register while a guest has a line that may be its own. A driver of dom0's that binds later enables INTx again
//! (`do_pci_enable_device` in `drivers/pci/pci.c`).

use crate::config_space::access::ConfigAccess as _;
use crate::config_space::bytes::u16_at;
use crate::handover::intx_lines;
use crate::host::store::Store;
use crate::host::sysfs::{PCIBACK, Sysfs, SysfsError};
use crate::records::claims::Claims;
use crate::records::{self, Attachment, RecordError};
use pci::bdf::Bdf;
use pci::registers::{command, register, status};
use std::io;
use thiserror::Error;

/// Why INTx of a function could not be disabled or enabled again.
#[derive(Debug, Error)]
pub enum IdleIntxError {
    /// The functions cannot be listed.
    #[error("cannot list the PCI functions of this host")]
    List(#[source] io::Error),
    /// The file cannot be opened.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// The command register cannot be read or written.
    #[error("cannot change the command register of {bdf}, which has no driver")]
    Command {
        /// The function.
        bdf: Bdf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// xenstore failed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The functions without a driver that assert INTx, and whose line is `gsi` or unknown; on any line for `None`. Those of
/// guests, and those in `except`, do not count.
pub fn asserting(gsi: Option<u32>, except: &[Bdf], claims: &Claims, sysfs: &Sysfs) -> io::Result<Vec<Bdf>> {
    let mut functions = sysfs.functions()?;
    functions.retain(|&bdf| {
        !except.contains(&bdf)
            && claims.taken.iter().all(|claim| claim.bdf != bdf)
            && is_idle(bdf, sysfs)
            && gsi.is_none_or(|gsi| may_be_on(bdf, gsi, sysfs))
            && asserts(bdf, sysfs)
    });
    Ok(functions)
}

/// True if no driver handles the function's interrupts: xen-pciback only holds it.
fn is_idle(bdf: Bdf, sysfs: &Sysfs) -> bool {
    sysfs.driver(bdf).is_none_or(|driver| driver == PCIBACK)
}

fn may_be_on(bdf: Bdf, gsi: u32, sysfs: &Sysfs) -> bool {
    match intx_lines::line(bdf, sysfs) {
        // The line of a function that dom0 has not enabled is the firmware's guess, so it may be any.
        Some(line) => line == gsi || !intx_lines::line_is_known(bdf, sysfs),
        None => false,
    }
}

fn asserts(bdf: Bdf, sysfs: &Sysfs) -> bool {
    let Ok(config) = sysfs.config_bytes(bdf) else {
        return false;
    };
    let word = |offset: u16| u16_at(&config, offset.into());
    let (Some(command), Some(status)) = (word(register::COMMAND), word(register::STATUS)) else {
        return false;
    };
    // All-ones means that no device answers.
    // The status bit is set also while INTx is disabled (PCI Local Bus 3.0, section 6.2.3), so both bits count.
    status != u16::MAX && status & status::INTERRUPT != 0 && command & command::INTX_DISABLE == 0
}

/// Disables INTx of a function, and records that for [`restore`].
pub fn disable(store: &mut Store, bdf: Bdf, sysfs: &Sysfs) -> Result<(), IdleIntxError> {
    // Recorded first: a process that dies in between leaves a record too many, which does no harm.
    records::record_intx_disabled(store, bdf)?;
    change(bdf, sysfs, |command| command | command::INTX_DISABLE)
}

/// Enables INTx again of the functions for which [`disable`] disabled it, once no guest has a line that may be theirs.
/// Returns those functions. What fails for one function is not left undone for the others; the first error is returned.
pub fn restore(store: &mut Store, sysfs: &Sysfs) -> Result<Vec<Bdf>, IdleIntxError> {
    restore_while(store, sysfs, |_| {})
}

/// `meanwhile` is what happens after INTx was enabled: commands do not wait for the service, which may be the one that
/// restores.
fn restore_while(
    store: &mut Store,
    sysfs: &Sysfs,
    meanwhile: impl FnOnce(&mut Store),
) -> Result<Vec<Bdf>, IdleIntxError> {
    let recorded = records::intx_disabled(store)?;
    if recorded.is_empty() {
        return Ok(recorded);
    }
    let recorded = without_guest(recorded, &GuestLines::read(store)?, sysfs);
    let enabled = for_each(&recorded, |bdf| {
        // A driver that has bound since has set INTx itself.
        if is_undriven(bdf, sysfs) {
            change(bdf, sysfs, |command| command & !command::INTX_DISABLE)?;
        }
        Ok(records::forget_intx_disabled(store, bdf)?)
    });
    meanwhile(store);
    // A command that has given a line away since may have seen the function before it was enabled.
    let stay = without_guest(recorded.clone(), &GuestLines::read(store)?, sysfs);
    let again: Vec<Bdf> = recorded.into_iter().filter(|bdf| !stay.contains(bdf)).collect();
    let disabled = for_each(&again, |bdf| {
        if is_undriven(bdf, sysfs) {
            disable(store, bdf, sysfs)?;
        }
        Ok(())
    });
    enabled.and(disabled).map(|()| stay)
}

/// Calls `work` for all functions, whether it fails for one or not. Returns the first error.
fn for_each(
    functions: &[Bdf],
    mut work: impl FnMut(Bdf) -> Result<(), IdleIntxError>,
) -> Result<(), IdleIntxError> {
    let mut first = Ok(());
    for &bdf in functions {
        first = first.and(work(bdf));
    }
    first
}

fn is_undriven(bdf: Bdf, sysfs: &Sysfs) -> bool {
    sysfs.exists(bdf) && sysfs.driver(bdf).is_none()
}

/// The functions whose line no guest can have.
fn without_guest(mut functions: Vec<Bdf>, guests: &GuestLines, sysfs: &Sysfs) -> Vec<Bdf> {
    functions.retain(|&bdf| match guests {
        GuestLines::Any => false,
        GuestLines::These(lines) => !lines.iter().any(|&gsi| may_be_on(bdf, gsi, sysfs)),
    });
    functions
}

/// The lines that guests have.
enum GuestLines {
    /// A record is damaged: its guest may have any.
    Any,
    These(Vec<u32>),
}

impl GuestLines {
    fn read(store: &mut Store) -> Result<Self, RecordError> {
        let (attachments, damaged) = Attachment::all(store)?;
        // In doubt INTx stays disabled: a function without a driver needs none.
        if !damaged.is_empty() {
            return Ok(Self::Any);
        }
        let devices = attachments.iter().flat_map(|attachment| &attachment.devices);
        let offered = devices.filter(|device| device.line_offered);
        Ok(Self::These(offered.filter_map(|device| device.gsi).collect()))
    }
}

fn change(bdf: Bdf, sysfs: &Sysfs, new: impl Fn(u16) -> u16) -> Result<(), IdleIntxError> {
    let config = sysfs.open_config(bdf)?;
    config
        .read16(register::COMMAND)
        .and_then(|now| config.write16(register::COMMAND, new(now)))
        .map_err(|source| IdleIntxError::Command { bdf, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::dom0;
    use crate::host::sysfs::tests::Tree;
    use crate::records::claims::Claim;
    use crate::records::tests::{attachment, device};
    use xenbus::client::Store as _;
    use xenbus::model::Xenstored;

    const IDLE: &str = "0000:00:0a.0";

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    fn config(command: u16, status: u16, pin: u8) -> Vec<u8> {
        let mut config = vec![0; 256];
        config[4..6].copy_from_slice(&command.to_le_bytes());
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[0x3d] = pin;
        config
    }

    fn host(command: u16, status: u16, pin: u8) -> Tree {
        let tree = Tree::new();
        let config = config(command, status, pin);
        tree.add(IDLE, &[("config", &config), ("irq", b"11\n"), ("enable", b"0\n")]);
        tree
    }

    fn found(tree: &Tree, gsi: u32) -> Vec<Bdf> {
        asserting(Some(gsi), &[], &Claims::default(), &tree.sysfs()).unwrap()
    }

    fn command_of(tree: &Tree) -> u16 {
        let config = tree.sysfs().config_bytes(bdf(IDLE)).unwrap();
        u16::from_le_bytes([config[4], config[5]])
    }

    #[test]
    fn an_idle_function_that_asserts_intx_may_be_on_any_line_until_its_line_is_known() {
        let tree = host(7, 0x0008, 1);
        assert_eq!(found(&tree, 22), [bdf(IDLE)]);
        tree.add(IDLE, &[("enable", b"1\n")]);
        assert_eq!(found(&tree, 22), []);
        assert_eq!(found(&tree, 11), [bdf(IDLE)]);
        let anywhere = asserting(None, &[], &Claims::default(), &tree.sysfs()).unwrap();
        assert_eq!(anywhere, [bdf(IDLE)]);
    }

    #[test]
    fn what_does_not_assert_or_has_somebody_is_left_alone() {
        for (command, status, pin, what) in [
            (7, 0x0010, 1, "no interrupt status"),
            (0x407, 0x0008, 1, "disabled already"),
            (7, 0x0008, 0, "no pin"),
            (0xffff, 0xffff, 0xff, "all-ones"),
        ] {
            assert_eq!(found(&host(command, status, pin), 22), [], "{what}");
        }
        let tree = host(7, 0x0008, 1);
        let sysfs = tree.sysfs();
        let nobody = Claims::default();
        assert_eq!(asserting(Some(22), &[bdf(IDLE)], &nobody, &sysfs).unwrap(), []);
        let claims = Claims {
            taken: vec![Claim {
                bdf: bdf(IDLE),
                domain: Some(3),
                by: String::new(),
                next: String::new(),
                uses_line: false,
            }],
            ..Claims::default()
        };
        assert_eq!(asserting(Some(22), &[], &claims, &sysfs).unwrap(), []);
        tree.bind(IDLE, "am53c974");
        assert_eq!(found(&tree, 11), [], "its driver handles it");
    }

    #[test]
    fn one_that_xen_pciback_holds_for_nobody_counts() {
        let tree = host(7, 0x0008, 1);
        tree.bind(IDLE, "pciback");
        assert_eq!((found(&tree, 11), found(&tree, 22)), (vec![bdf(IDLE)], vec![]));
    }

    #[test]
    fn intx_comes_back_when_no_guest_has_a_line_any_more() {
        let tree = host(7, 0x0008, 1);
        let (mut store, sysfs) = (dom0(&Xenstored::new()), tree.sysfs());
        attachment().write(&mut store).unwrap();
        disable(&mut store, bdf(IDLE), &sysfs).unwrap();
        assert_eq!(command_of(&tree), 0x407);
        assert_eq!(restore(&mut store, &sysfs).unwrap(), []);
        assert_eq!(command_of(&tree), 0x407, "a guest has a line");
        attachment().remove(&mut store).unwrap();
        assert_eq!(restore(&mut store, &sysfs).unwrap(), [bdf(IDLE)]);
        assert_eq!(command_of(&tree), 7);
        assert_eq!(restore(&mut store, &sysfs).unwrap(), [], "once");
        let directory = format!("{}/intx-disabled", records::ROOT);
        assert_eq!(store.read_optional(&directory).unwrap(), None, "nothing is left");
    }

    #[test]
    fn intx_is_disabled_again_if_a_guest_got_the_line_while_it_was_enabled() {
        for record_is_damaged in [false, true] {
            let tree = host(7, 0x0008, 1);
            let (mut store, sysfs) = (dom0(&Xenstored::new()), tree.sysfs());
            disable(&mut store, bdf(IDLE), &sysfs).unwrap();
            let restored = restore_while(&mut store, &sysfs, |store| {
                assert_eq!(command_of(&tree), 7);
                if record_is_damaged {
                    // Its guest may have any line.
                    let record = format!("{}/9", records::ATTACHMENTS);
                    store.write(&record, "{").unwrap();
                } else {
                    attachment().write(store).unwrap();
                }
            });
            assert_eq!(restored.unwrap(), []);
            assert_eq!(command_of(&tree), 0x407);
            let recorded = records::intx_disabled(&mut store).unwrap();
            assert_eq!(recorded, [bdf(IDLE)], "for the next time");
            assert_eq!(restore(&mut store, &sysfs).unwrap(), []);
        }
    }

    #[test]
    fn one_function_that_fails_does_not_keep_another_from_being_looked_at_again() {
        const BROKEN: &str = "0000:00:09.0";
        let tree = host(7, 0x0008, 1);
        let (mut store, sysfs) = (dom0(&Xenstored::new()), tree.sysfs());
        // Of this one there is no configuration space, and it comes first.
        tree.add(BROKEN, &[("irq", b"11\n"), ("enable", b"0\n")]);
        records::record_intx_disabled(&mut store, bdf(BROKEN)).unwrap();
        disable(&mut store, bdf(IDLE), &sysfs).unwrap();
        let restored = restore_while(&mut store, &sysfs, |store| attachment().write(store).unwrap());
        assert!(restored.unwrap_err().to_string().contains(BROKEN));
        assert_eq!(command_of(&tree), 0x407);
        let recorded = records::intx_disabled(&mut store).unwrap();
        assert_eq!(recorded, [bdf(BROKEN), bdf(IDLE)]);
    }

    #[test]
    fn a_function_that_got_a_driver_meanwhile_is_its_drivers() {
        let tree = host(7, 0x0008, 1);
        tree.add(IDLE, &[("irq", b"20\n")]);
        let (mut store, sysfs) = (dom0(&Xenstored::new()), tree.sysfs());
        disable(&mut store, bdf(IDLE), &sysfs).unwrap();
        let restored = restore_while(&mut store, &sysfs, |store| {
            tree.bind(IDLE, "am53c974");
            attachment().write(store).unwrap();
        });
        assert_eq!(device(IDLE).gsi, Some(20), "the guest's line");
        assert_eq!(restored.unwrap(), []);
        assert_eq!(command_of(&tree), 7);
    }

    #[test]
    fn a_guest_with_another_line_does_not_keep_it_disabled() {
        let tree = host(7, 0x0008, 1);
        tree.add(IDLE, &[("enable", b"1\n")]);
        let (mut store, sysfs) = (dom0(&Xenstored::new()), tree.sysfs());
        assert_ne!(device(IDLE).gsi, Some(11), "the guest's line");
        attachment().write(&mut store).unwrap();
        disable(&mut store, bdf(IDLE), &sysfs).unwrap();
        assert_eq!(restore(&mut store, &sysfs).unwrap(), [bdf(IDLE)]);
    }

    #[test]
    fn a_driver_that_came_meanwhile_keeps_its_command_register() {
        let tree = host(7, 0x0008, 1);
        let (mut store, sysfs) = (dom0(&Xenstored::new()), tree.sysfs());
        disable(&mut store, bdf(IDLE), &sysfs).unwrap();
        tree.bind(IDLE, "am53c974");
        assert_eq!(restore(&mut store, &sysfs).unwrap(), [bdf(IDLE)]);
        assert_eq!(command_of(&tree), 0x407);
    }
}
