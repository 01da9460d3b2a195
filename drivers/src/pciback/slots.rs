//! Where functions stand on the guest's virtual bus.
//!
//! The bus is 0000:00. Functions of one device keep together and keep their function numbers; each device
//! takes the first free slot, so the same devices in the same order always stand in the same places.

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
        let device = Bdf::from_devfn(real.segment(), real.bus(), real.device() << 3);
        let slot = self
            .devices
            .iter()
            .position(|&occupant| occupant == Some(device))
            .or_else(|| self.devices.iter().position(Option::is_none))
            .ok_or(NoPlace::Full)?;
        // Below 256: 32 slots of 8 functions.
        let devfn = (slot << 3) as u8 | real.function();
        let place = &mut self.functions[usize::from(devfn)];
        if place.is_some() {
            return Err(NoPlace::Taken);
        }
        *place = Some(index);
        self.devices[slot] = Some(device);
        Ok(Bdf::from_devfn(0, 0, devfn))
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
}
