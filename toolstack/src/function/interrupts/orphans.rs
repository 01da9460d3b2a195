//! Pirqs and modes that a process has left behind by dying in a change of the interrupt mode.

use super::Interrupts;
use crate::config_space::access::ConfigAccess;
use crate::config_space::interrupts::{enable_intx, turn_off};
use crate::function::msix_table::msix_bar;
use crate::records::interrupt_mode::{ModeChange, ModeRecord};
use std::collections::BTreeSet;
use std::io;
use xen::xenctrl::{DomId, Hypervisor};

/// Limit of numbers in a row that are no pirqs of the guest, between those that are. Xen does not give the number of
/// an unmapped pirq away as long as the guest has it bound.
const LONGEST_GAP: usize = 256;

impl Interrupts {
    /// Finishes what a process that died has begun. `change` is the change that it had recorded, `known` are the
    /// pirqs that the guest has for all of its functions, by the record. A mode that is recorded and not on in the
    /// device was being turned on or off. The guest has no answer yet, and asks again.
    ///
    /// Returns how many pirqs were found and unmapped.
    pub fn resolve_unknown(
        &mut self,
        config: &impl ConfigAccess,
        xen: &impl Hypervisor,
        guest: DomId,
        change: Option<ModeChange>,
        known: &BTreeSet<u32>,
        mut record: impl FnMut(ModeRecord<'_>),
    ) -> io::Result<usize> {
        let mut unmapped = 0;
        if let Some(change) = change {
            // A change that was cut short has turned nothing on, but the record of what came after it may be lost.
            turn_off(config, &self.capabilities)?;
            unmapped = self.reclaim(config, xen, guest, change, known)?;
        }
        let off = change == Some(ModeChange::Unknown) || self.is_lost(config)?;
        if off {
            for pirq in std::mem::take(&mut self.mode).pirqs() {
                // An error says that it is not mapped any more.
                unmapped += usize::from(xen.unmap_pirq(guest, pirq.into()).is_ok());
            }
            // MSI silenced the line. The guest has it again until it asks for MSI again.
            if self.line_offered {
                enable_intx(config)?;
            }
        }
        if off || change.is_some() {
            record(ModeRecord::Mode(&self.mode));
        }
        Ok(unmapped)
    }

    /// Unmaps the pirqs of a change whose end was not recorded. Xen cannot be asked which pirqs a domain has, but it
    /// gives the highest number that is free (`get_free_pirq` in `xen/arch/x86/irq.c`). So they lie above the next
    /// number that it gives, and all numbers above that are in use.
    fn reclaim(
        &self,
        config: &impl ConfigAccess,
        xen: &impl Hypervisor,
        guest: DomId,
        change: ModeChange,
        known: &BTreeSet<u32>,
    ) -> io::Result<usize> {
        let probe = match change {
            ModeChange::Unknown if self.capabilities.msi.is_none() && self.capabilities.msix.is_none() => {
                return Ok(0);
            }
            ModeChange::Unknown if self.capabilities.msix.is_none() => None,
            ModeChange::Msi => None,
            ModeChange::Msix(_) | ModeChange::Unknown => {
                Some((0, msix_bar(config, self.capabilities.msix, &self.bars)?))
            }
        };
        // Mapped only to learn the number; nothing is turned on in the device. From the lowest number up, what is left lies
        // above the next free one at any time: a process that dies here leaves it to the next one.
        let free = u32::from(xen.map_msi(guest, self.bdf, probe)?);
        xen.unmap_pirq(guest, free)?;
        let (mut found, mut missed) = (0, 0);
        for pirq in (free + 1..=u16::MAX.into()).filter(|pirq| !known.contains(pirq)) {
            // No more than the change can have mapped, and a process that died right after it had mapped one here: what else
            // there is, belongs to other functions.
            if found == change.pirqs() + 1 || missed == LONGEST_GAP {
                break;
            }
            match xen.unmap_pirq(guest, pirq) {
                Ok(()) => (found, missed) = (found + 1, 0),
                Err(_) => missed += 1,
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{COMMAND, GUEST, MSI, MSIX, function, text};
    use super::*;
    use crate::config_space::access::tests::Model;
    use crate::config_space::interrupts::disable_intx;
    use crate::records::interrupt_mode::Mode;
    use pci::registers::command;
    use xen::model::Xen;

    /// Resolves what a process has left that died with these pirqs mapped. Returns the pirqs that are left, and what was
    /// recorded.
    fn resolve_unknown(
        interrupts: &mut Interrupts,
        config: &Model,
        change: Option<ModeChange>,
        mapped: &[u16],
        known: &[u32],
    ) -> (Vec<u16>, Vec<String>) {
        let xen = Xen::with_pirqs(mapped);
        let mut written = Vec::new();
        let known = known.iter().copied().collect();
        let resolved = interrupts.resolve_unknown(config, &xen, GUEST, change, &known, |mode| {
            written.push(text(mode))
        });
        resolved.unwrap();
        (xen.pirqs(), written)
    }

    #[test]
    fn pirqs_that_were_mapped_and_never_recorded_are_unmapped_wherever_the_process_died() {
        // 55 and 52 are another function's; 20 is a line.
        for orphans in [&[][..], &[54], &[54, 53], &[54, 53, 51]] {
            let (config, mut interrupts) = function();
            let mapped = [&[55, 52, 20][..], orphans].concat();
            let change = Some(ModeChange::Msix(3));
            let (left, written) = resolve_unknown(&mut interrupts, &config, change, &mapped, &[55, 52, 20]);
            assert_eq!(
                (left, written),
                (vec![20, 52, 55], vec!["intx".to_owned()]),
                "{orphans:?}"
            );
            assert!(config.writes.borrow().is_empty());
        }
    }

    #[test]
    fn no_more_pirqs_are_taken_than_the_change_can_have_mapped() {
        let (config, mut interrupts) = function();
        // One by the change, and one by a process that died while it looked for that one.
        let mapped = [55, 54, 53];
        let (left, _) = resolve_unknown(&mut interrupts, &config, Some(ModeChange::Msi), &mapped, &[]);
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn a_mode_that_is_recorded_and_not_on_is_undone() {
        let recorded = Mode::Msix(vec![(0, 55), (1, 54)]);
        // It was about to be turned on, or off with one pirq gone already.
        for mapped in [&[55, 54][..], &[54]] {
            let (config, mut interrupts) = function();
            interrupts.mode = recorded.clone();
            disable_intx(&config).unwrap();
            let (left, written) = resolve_unknown(&mut interrupts, &config, None, mapped, &[55, 54]);
            assert_eq!((left, written), (vec![], vec!["intx".to_owned()]));
            assert_eq!(*interrupts.mode(), Mode::Intx);
            assert_eq!(config.read16(COMMAND).unwrap() & command::INTX_DISABLE, 0);
        }
        // One that is on stays.
        let (config, mut interrupts) = function();
        interrupts.mode = recorded.clone();
        config.set16(MSIX + 2, 0x8004);
        let (left, written) = resolve_unknown(&mut interrupts, &config, None, &[55, 54], &[55, 54]);
        assert_eq!((left, written), (vec![54, 55], vec![]));
        assert_eq!(*interrupts.mode(), recorded);
    }

    #[test]
    fn a_function_whose_record_is_lost_is_turned_off_and_has_no_pirq() {
        // MSI-X on, MSI on, and both off.
        for (control, mapped) in [(MSIX, &[54, 53][..]), (MSI, &[54]), (COMMAND, &[])] {
            let (config, mut interrupts) = function();
            let on = if control == MSIX { 0x8004 } else { 0x0001 };
            if control != COMMAND {
                config.set16(control + 2, on);
            }
            disable_intx(&config).unwrap();
            let mapped = [&[55, 20][..], mapped].concat();
            let change = Some(ModeChange::Unknown);
            let (left, written) = resolve_unknown(&mut interrupts, &config, change, &mapped, &[55, 20]);
            assert_eq!((left, written), (vec![20, 55], vec!["intx".to_owned()]));
            assert_eq!(config.read16(MSIX + 2).unwrap() & 0x8000, 0);
            assert_eq!(config.read16(MSI + 2).unwrap() & 1, 0);
            assert_eq!(config.read16(COMMAND).unwrap() & command::INTX_DISABLE, 0);
        }
    }

    #[test]
    fn a_lost_record_of_a_function_that_has_the_line_alone_costs_nothing() {
        let xen = Xen::with_pirqs(&[20]);
        let config = Model::new(vec![0; 256]);
        let bars = xenbus::device::Bars::default();
        let capabilities = crate::config_space::capabilities::Capabilities::default();
        let bdf = "00:05.0".parse().unwrap();
        let mut interrupts = Interrupts::new(bdf, capabilities, bars, true, Mode::Intx);
        let change = Some(ModeChange::Unknown);
        let unmapped = interrupts.resolve_unknown(&config, &xen, GUEST, change, &[20].into(), |_| {});
        assert_eq!((unmapped.unwrap(), xen.pirqs()), (0, vec![20]));
    }

    #[test]
    fn orphans_are_looked_for_past_a_gap_and_not_without_end() {
        for (gap, left) in [(255, 0), (256, 1)] {
            let (config, mut interrupts) = function();
            // Above 55, which Xen gives next.
            let xen = Xen::with_pirqs(&[56 + gap]);
            interrupts
                .resolve_unknown(
                    &config,
                    &xen,
                    GUEST,
                    Some(ModeChange::Msix(1)),
                    &BTreeSet::new(),
                    |_| {},
                )
                .unwrap();
            assert_eq!(xen.pirqs().len(), left, "a gap of {gap}");
        }
        // What was found begins the count anew.
        let (config, mut interrupts) = function();
        let xen = Xen::with_pirqs(&[256, 456]);
        let change = Some(ModeChange::Msix(2));
        interrupts
            .resolve_unknown(&config, &xen, GUEST, change, &BTreeSet::new(), |_| {})
            .unwrap();
        assert!(xen.pirqs().is_empty());
    }
}
