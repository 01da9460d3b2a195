//! Where functions stand on the guest's virtual bus.
//!
//! The bus is 0000:00. Functions of one device keep together and keep their function numbers; each device
//! takes the first free slot and keeps it until its last function has gone, as with xen-pciback.

use xenbus::bdf::Bdf;

/// Number of slots on a bus.
const SLOTS: usize = 32;
/// Number of functions in a slot.
const FUNCTIONS: usize = 8;

/// Which function, by index, stands where.
#[derive(Clone, Debug)]
pub struct Slots {
    /// The device in each slot, as the address of its function 0.
    devices: [Option<Bdf>; SLOTS],
    /// The function at each `slot << 3 | function`.
    functions: [Option<u8>; SLOTS * FUNCTIONS],
}

/// Why a function finds no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// All slots are taken.
    Full,
    /// The function has its place already.
    Taken,
    /// It cannot stand where it is to stand: not on this bus, under another function number, or among another
    /// device's functions.
    Misplaced,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            devices: [None; SLOTS],
            functions: [None; SLOTS * FUNCTIONS],
        }
    }
}

impl Slots {
    /// Places the function `real`, which the caller knows as `index`; returns its virtual address.
    ///
    /// # Errors
    /// [`NoPlace`]; nothing has changed then.
    pub fn add(&mut self, real: Bdf, index: u8) -> Result<Bdf, NoPlace> {
        let slot = self
            .slot_of(device(real))
            .or_else(|| self.devices.iter().position(Option::is_none))
            .ok_or(NoPlace::Full)?;
        // Below 256: 32 slots of 8 functions.
        let place = Bdf::from_devfn(0, 0, (slot << 3) as u8 | real.function());
        self.put(real, place, index)?;
        Ok(place)
    }

    /// Places the function `real` where it stood before.
    ///
    /// # Errors
    /// [`NoPlace`]; nothing has changed then.
    pub fn restore(&mut self, real: Bdf, place: Bdf, index: u8) -> Result<(), NoPlace> {
        let slot = usize::from(place.device());
        let free = self.devices[slot].is_none_or(|occupant| occupant == device(real));
        let moved = self.slot_of(device(real)).is_some_and(|stands| stands != slot);
        let on_the_bus = (place.segment(), place.bus()) == (0, 0);
        if !on_the_bus || place.function() != real.function() || !free || moved {
            return Err(NoPlace::Misplaced);
        }
        self.put(real, place, index)
    }

    fn put(&mut self, real: Bdf, place: Bdf, index: u8) -> Result<(), NoPlace> {
        let function = &mut self.functions[usize::from(place.devfn())];
        if function.is_some() {
            return Err(NoPlace::Taken);
        }
        *function = Some(index);
        self.devices[usize::from(place.device())] = Some(device(real));
        Ok(())
    }

    /// Frees the place of a function, and its slot with the last function of the device.
    pub fn remove(&mut self, place: Bdf) {
        self.functions[usize::from(place.devfn())] = None;
        let slot = usize::from(place.device());
        let siblings = &self.functions[slot * FUNCTIONS..][..FUNCTIONS];
        if siblings.iter().all(Option::is_none) {
            self.devices[slot] = None;
        }
    }

    fn slot_of(&self, device: Bdf) -> Option<usize> {
        self.devices.iter().position(|&occupant| occupant == Some(device))
    }

    /// The index of the function at the virtual address of a request.
    pub fn find(&self, domain: u32, bus: u32, devfn: u32) -> Option<usize> {
        if domain != 0 || bus != 0 {
            return None;
        }
        let place = self.functions.get(usize::try_from(devfn).ok()?)?;
        place.map(usize::from)
    }
}

/// The device that a function belongs to, as the address of its function 0.
const fn device(function: Bdf) -> Bdf {
    Bdf::from_devfn(function.segment(), function.bus(), function.device() << 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    #[test]
    fn devices_take_slots_in_order_and_functions_stay_together() {
        let mut slots = Slots::default();
        for (index, (real, place)) in [
            ("0000:03:00.1", "0000:00:00.1"),
            ("0000:04:00.0", "0000:00:01.0"),
            ("0000:03:00.0", "0000:00:00.0"),
            ("0001:03:00.0", "0000:00:02.0"),
            ("0000:03:01.7", "0000:00:03.7"),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(slots.add(bdf(real), index as u8), Ok(bdf(place)), "{real}");
            assert_eq!(slots.find(0, 0, bdf(place).devfn().into()), Some(index));
        }
    }

    #[test]
    fn what_is_not_on_the_bus_is_not_found() {
        let mut slots = Slots::default();
        slots.add(bdf("0000:03:00.0"), 0).unwrap();
        for (domain, bus, devfn) in [
            (0, 0, 1),
            (0, 0, 8),
            (0, 1, 0),
            (1, 0, 0),
            (0, 0, 256),
            (0, 0, u32::MAX),
        ] {
            assert_eq!(slots.find(domain, bus, devfn), None);
        }
    }

    #[test]
    fn the_thirty_third_device_and_a_second_copy_find_no_place() {
        let mut slots = Slots::default();
        for device in 0..32 {
            slots.add(Bdf::new(0, 3, device, 0).unwrap(), device).unwrap();
        }
        assert_eq!(slots.add(bdf("0000:04:00.0"), 32), Err(NoPlace::Full));
        assert_eq!(slots.add(bdf("0000:03:05.0"), 32), Err(NoPlace::Taken));
        assert!(slots.add(bdf("0000:03:05.1"), 32).is_ok());
    }

    #[test]
    fn a_freed_slot_is_the_next_ones_and_a_device_keeps_its_slot_until_its_last_function_has_gone() {
        let mut slots = Slots::default();
        for (index, real) in ["0000:03:00.0", "0000:04:00.0", "0000:04:00.1", "0000:05:00.0"]
            .into_iter()
            .enumerate()
        {
            slots.add(bdf(real), index as u8).unwrap();
        }
        slots.remove(bdf("0000:00:01.0"));
        assert_eq!(slots.find(0, 0, 8), None);
        assert_eq!(slots.add(bdf("0000:06:00.0"), 1), Ok(bdf("0000:00:03.0")));
        assert_eq!(slots.add(bdf("0000:04:00.0"), 4), Ok(bdf("0000:00:01.0")));
        slots.remove(bdf("0000:00:01.0"));
        slots.remove(bdf("0000:00:01.1"));
        assert_eq!(slots.add(bdf("0000:07:00.0"), 1), Ok(bdf("0000:00:01.0")));
        slots.remove(bdf("0000:00:00.0"));
        assert_eq!(slots.add(bdf("0000:04:00.0"), 0), Ok(bdf("0000:00:00.0")));
    }

    #[test]
    fn a_function_is_restored_where_it_stood_and_nowhere_that_it_cannot_have_stood() {
        let mut slots = Slots::default();
        let mut restore = |real, place| slots.restore(bdf(real), bdf(place), 7);
        assert_eq!(restore("0000:04:00.1", "0000:00:02.1"), Ok(()));
        assert_eq!(restore("0000:04:00.0", "0000:00:02.0"), Ok(()));
        for (real, place) in [
            ("0000:05:00.0", "0001:00:03.0"),
            ("0000:05:00.0", "0000:01:03.0"),
            ("0000:05:00.0", "0000:00:03.1"),
            ("0000:05:00.2", "0000:00:02.2"),
            ("0000:04:00.2", "0000:00:03.2"),
        ] {
            assert_eq!(restore(real, place), Err(NoPlace::Misplaced), "{real} at {place}");
        }
        assert_eq!(restore("0000:04:00.0", "0000:00:02.0"), Err(NoPlace::Taken));
        assert_eq!(slots.add(bdf("0000:05:00.0"), 1), Ok(bdf("0000:00:00.0")));
        assert_eq!(slots.find(0, 0, 0x11), Some(7));
    }
}
