//! The addresses of functions in a guest.
//!
//! [`SlotMode::Vpci`]: all functions are on one bus, 0000:00. The functions of one device share a slot and keep their
//! function numbers. A device takes the first free slot and keeps it until its last function has gone, as with
//! xen-pciback. A virtual function with function number 0 has a slot of its own: Linux looks for further functions of a
//! slot only if the header of its function 0 says "multifunction".
//!
//! [`SlotMode::Passthrough`]: each function has the address that it has in the host.

use alloc::vec::Vec;
use pci::bdf::Bdf;
use xenbus::device::SlotMode;

/// Number of slots on a bus.
const SLOTS: u8 = 32;

/// A function and its address in the guest.
#[derive(Clone, Copy, Debug)]
struct SlotEntry {
    real: Bdf,
    guest_bdf: Bdf,
    /// No other function may share its slot.
    alone: bool,
    /// The caller's number for it.
    index: u8,
}

/// The guest addresses that are in use, each with the index of its function.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    mode: SlotMode,
    entries: Vec<SlotEntry>,
}

/// Why a function cannot have an address in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotError {
    /// All slots are taken.
    Full,
    /// The function has an address already, or another function has this one.
    Taken,
    /// The address is not possible for this function: not on this bus, with another function number, or in the slot of
    /// another device.
    Misplaced,
}

impl Slots {
    /// No function yet.
    pub const fn new(mode: SlotMode) -> Self {
        Self {
            mode,
            entries: Vec::new(),
        }
    }

    /// How functions are addressed.
    pub const fn mode(&self) -> SlotMode {
        self.mode
    }

    /// Gives the function `real`, which the caller knows as `index`, the first free address; returns that address.
    ///
    /// # Errors
    /// [`SlotError`]; nothing has changed then.
    pub fn add(&mut self, real: Bdf, virtual_function: bool, index: u8) -> Result<Bdf, SlotError> {
        let alone = has_own_slot(real, virtual_function);
        let guest_bdf = match self.mode {
            SlotMode::Passthrough => real,
            SlotMode::Vpci => {
                // The function number stays, as with xen-pciback.
                let slot = self.slot_of(real, alone).or_else(|| self.free_slot());
                Bdf::from_devfn(0, 0, slot.ok_or(SlotError::Full)? << 3 | real.function())
            }
        };
        self.put(SlotEntry {
            real,
            guest_bdf,
            alone,
            index,
        })
    }

    /// Gives the function `real` the address that it had before. The address is read from a node, so it is checked.
    ///
    /// # Errors
    /// [`SlotError`]; nothing has changed then.
    pub fn restore(
        &mut self,
        real: Bdf,
        virtual_function: bool,
        guest_bdf: Bdf,
        index: u8,
    ) -> Result<Bdf, SlotError> {
        let alone = has_own_slot(real, virtual_function);
        let possible = match self.mode {
            SlotMode::Passthrough => guest_bdf == real,
            SlotMode::Vpci => {
                let slot = match self.slot_of(real, alone) {
                    Some(slot) => slot == guest_bdf.device(),
                    None => self.is_free(guest_bdf.device()),
                };
                slot && bus_of(guest_bdf) == (0, 0) && guest_bdf.function() == real.function()
            }
        };
        // A function that is listed twice is reported as that, not as misplaced.
        if !possible && !self.has(real) {
            return Err(SlotError::Misplaced);
        }
        self.put(SlotEntry {
            real,
            guest_bdf,
            alone,
            index,
        })
    }

    fn put(&mut self, entry: SlotEntry) -> Result<Bdf, SlotError> {
        if self.has(entry.real) || self.find(Some(entry.guest_bdf)).is_some() {
            return Err(SlotError::Taken);
        }
        self.entries.push(entry);
        Ok(entry.guest_bdf)
    }

    /// Frees an address.
    pub fn remove(&mut self, guest_bdf: Bdf) {
        self.entries.retain(|entry| entry.guest_bdf != guest_bdf);
    }

    /// The index of the function at this guest address. `None` for an address that no function has, or that is none.
    pub fn find(&self, guest_bdf: Option<Bdf>) -> Option<usize> {
        let entry = self
            .entries
            .iter()
            .find(|entry| Some(entry.guest_bdf) == guest_bdf)?;
        Some(entry.index.into())
    }

    fn has(&self, real: Bdf) -> bool {
        self.entries.iter().any(|entry| entry.real == real)
    }

    /// The slot that other functions of the same device have.
    fn slot_of(&self, real: Bdf, alone: bool) -> Option<u8> {
        // By the real address, for the guest address of the first one was a free slot.
        let sibling = |entry: &&SlotEntry| {
            let device = |bdf: Bdf| (bus_of(bdf), bdf.device());
            !alone && !entry.alone && device(entry.real) == device(real)
        };
        let entry = self.entries.iter().find(sibling)?;
        Some(entry.guest_bdf.device())
    }

    fn free_slot(&self) -> Option<u8> {
        // The lowest one, as with xen-pciback.
        (0..SLOTS).find(|&slot| self.is_free(slot))
    }

    fn is_free(&self, slot: u8) -> bool {
        self.entries.iter().all(|entry| entry.guest_bdf.device() != slot)
    }
}

/// Segment and bus of an address.
pub const fn bus_of(function: Bdf) -> (u16, u8) {
    (function.segment(), function.bus())
}

const fn has_own_slot(real: Bdf, virtual_function: bool) -> bool {
    virtual_function && real.function() == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    #[test]
    fn devices_take_slots_in_order_and_functions_stay_together() {
        let mut slots = Slots::new(SlotMode::Vpci);
        for (index, (real, guest_bdf)) in [
            ("0000:03:00.1", "0000:00:00.1"),
            ("0000:04:00.0", "0000:00:01.0"),
            ("0000:03:00.0", "0000:00:00.0"),
            ("0001:03:00.0", "0000:00:02.0"),
            ("0000:03:01.7", "0000:00:03.7"),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(
                slots.add(bdf(real), false, index as u8),
                Ok(bdf(guest_bdf)),
                "{real}"
            );
            assert_eq!(slots.find(Some(bdf(guest_bdf))), Some(index));
        }
    }

    #[test]
    fn what_is_not_on_the_bus_is_not_found() {
        let mut slots = Slots::new(SlotMode::Vpci);
        slots.add(bdf("0000:03:00.0"), false, 0).unwrap();
        for guest_bdf in [
            "0000:00:00.1",
            "0000:00:01.0",
            "0000:01:00.0",
            "0001:00:00.0",
            "0000:03:00.0",
        ] {
            assert_eq!(slots.find(Some(bdf(guest_bdf))), None, "{guest_bdf}");
        }
        assert_eq!(slots.find(None), None, "no address at all");
    }

    #[test]
    fn the_thirty_third_device_and_a_second_copy_find_no_place() {
        let mut slots = Slots::new(SlotMode::Vpci);
        for device in 0..32 {
            slots
                .add(Bdf::new(0, 3, device, 0).unwrap(), false, device)
                .unwrap();
        }
        assert_eq!(slots.add(bdf("0000:04:00.0"), false, 32), Err(SlotError::Full));
        assert_eq!(slots.add(bdf("0000:03:05.0"), false, 32), Err(SlotError::Taken));
        assert!(slots.add(bdf("0000:03:05.1"), false, 32).is_ok());
    }

    #[test]
    fn a_freed_slot_is_the_next_ones_and_a_device_keeps_its_slot_until_its_last_function_has_gone() {
        let mut slots = Slots::new(SlotMode::Vpci);
        for (index, real) in ["0000:03:00.0", "0000:04:00.0", "0000:04:00.1", "0000:05:00.0"]
            .into_iter()
            .enumerate()
        {
            slots.add(bdf(real), false, index as u8).unwrap();
        }
        slots.remove(bdf("0000:00:01.0"));
        assert_eq!(slots.find(Some(bdf("0000:00:01.0"))), None);
        assert_eq!(slots.add(bdf("0000:06:00.0"), false, 1), Ok(bdf("0000:00:03.0")));
        assert_eq!(slots.add(bdf("0000:04:00.0"), false, 4), Ok(bdf("0000:00:01.0")));
        slots.remove(bdf("0000:00:01.0"));
        slots.remove(bdf("0000:00:01.1"));
        assert_eq!(slots.add(bdf("0000:07:00.0"), false, 1), Ok(bdf("0000:00:01.0")));
        slots.remove(bdf("0000:00:00.0"));
        assert_eq!(slots.add(bdf("0000:04:00.0"), false, 0), Ok(bdf("0000:00:00.0")));
    }

    #[test]
    fn a_function_is_restored_where_it_stood_and_nowhere_that_it_cannot_have_stood() {
        let mut slots = Slots::new(SlotMode::Vpci);
        let mut restore = |real, guest_bdf| slots.restore(bdf(real), false, bdf(guest_bdf), 7);
        assert_eq!(restore("0000:04:00.1", "0000:00:02.1"), Ok(bdf("0000:00:02.1")));
        assert!(restore("0000:04:00.0", "0000:00:02.0").is_ok());
        for (real, guest_bdf) in [
            ("0000:05:00.0", "0001:00:03.0"),
            ("0000:05:00.0", "0000:01:03.0"),
            ("0000:05:00.0", "0000:00:03.1"),
            ("0000:05:00.2", "0000:00:02.2"),
            ("0000:04:00.2", "0000:00:03.2"),
        ] {
            assert_eq!(
                restore(real, guest_bdf),
                Err(SlotError::Misplaced),
                "{real} at {guest_bdf}"
            );
        }
        assert_eq!(restore("0000:04:00.0", "0000:00:02.0"), Err(SlotError::Taken));
        assert_eq!(slots.add(bdf("0000:05:00.0"), false, 1), Ok(bdf("0000:00:00.0")));
        assert_eq!(slots.find(Some(bdf("0000:00:02.1"))), Some(7));
    }

    #[test]
    fn a_virtual_function_0_stands_alone_and_the_others_join_their_device() {
        let mut slots = Slots::new(SlotMode::Vpci);
        for (real, guest_bdf) in [
            ("0000:03:10.0", "0000:00:00.0"),
            ("0000:03:10.2", "0000:00:01.2"),
            ("0000:03:10.4", "0000:00:01.4"),
            ("0000:03:11.4", "0000:00:02.4"),
            ("0000:03:11.0", "0000:00:03.0"),
        ] {
            assert_eq!(slots.add(bdf(real), true, 0), Ok(bdf(guest_bdf)), "{real}");
        }
        assert_eq!(slots.add(bdf("0000:03:10.0"), true, 0), Err(SlotError::Taken));
        let mut again = Slots::new(SlotMode::Vpci);
        let mut restore = |real, guest_bdf| again.restore(bdf(real), true, bdf(guest_bdf), 0);
        assert!(restore("0000:03:10.0", "0000:00:00.0").is_ok());
        assert_eq!(restore("0000:03:10.2", "0000:00:00.2"), Err(SlotError::Misplaced));
        assert!(restore("0000:03:10.2", "0000:00:01.2").is_ok());
        assert_eq!(restore("0000:03:11.0", "0000:00:01.0"), Err(SlotError::Misplaced));
    }

    #[test]
    fn in_passthrough_mode_each_function_stands_where_it_is_in_the_host() {
        let mut slots = Slots::new(SlotMode::Passthrough);
        let reals = ["0000:03:00.1", "0000:04:00.1", "0001:03:00.1", "0000:ff:1f.7"];
        for (index, real) in reals.into_iter().enumerate() {
            assert_eq!(slots.add(bdf(real), index == 0, index as u8), Ok(bdf(real)));
        }
        for (index, real) in reals.into_iter().enumerate() {
            assert_eq!(slots.find(Some(bdf(real))), Some(index), "{real}");
        }
        assert_eq!(slots.find(Some(bdf("0000:00:00.1"))), None);
        assert_eq!(slots.add(bdf("0000:03:00.1"), false, 9), Err(SlotError::Taken));
        slots.remove(bdf("0000:04:00.1"));
        assert_eq!(slots.find(Some(bdf("0000:04:00.1"))), None);

        let mut restore = |real, guest_bdf| slots.restore(bdf(real), false, bdf(guest_bdf), 9);
        assert_eq!(restore("0000:04:00.1", "0000:00:00.1"), Err(SlotError::Misplaced));
        assert_eq!(restore("0000:04:00.1", "0000:04:00.1"), Ok(bdf("0000:04:00.1")));
    }
}
