//! Resets of functions: the methods that Linux offers, the one that works, and what prevents it.

use crate::config_space::access::{ConfigAccess, SPACE, WAKE_UP, quieten};
use crate::config_space::bytes::u32_at;
use crate::config_space::capabilities::Capabilities;
use crate::config_space::interrupts::turn_off;
use crate::config_space::restore;
use crate::host::sysfs::{Sysfs, SysfsError};
use pci::bdf::Bdf;
use pci::registers::{power, register};
use std::fmt;
use std::io;
use std::thread;
use thiserror::Error;
use xenbus::device::Ids;

/// A reset method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A method that Linux has for this very device.
    DeviceSpecific,
    /// The firmware's method.
    Acpi,
    /// Function level reset.
    Flr,
    /// Function level reset of conventional PCI ("advanced features").
    AfFlr,
    /// Change to D3hot and back.
    Pm,
    /// Reset of the bus, on which the function must be alone.
    Bus,
    /// Reset of the CXL bus.
    CxlBus,
    /// A method that is not named: Linux before 5.15 has no list.
    Unnamed,
}

/// Each method: its name in sysfs, and the name in messages.
const METHODS: [(&str, &str, Method); 7] = [
    ("device_specific", "a method of its own", Method::DeviceSpecific),
    ("acpi", "ACPI", Method::Acpi),
    ("flr", "FLR", Method::Flr),
    ("af_flr", "AF-FLR", Method::AfFlr),
    ("pm", "PM", Method::Pm),
    ("bus", "bus", Method::Bus),
    ("cxl_bus", "CXL bus", Method::CxlBus),
];

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = METHODS.iter().find(|(_, _, method)| method == self);
        f.write_str(named.map_or("a method that Linux does not name", |(_, name, _)| name))
    }
}

/// What a reset of a function would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The methods that Linux lists, in the order in which it tries them.
    pub methods: Vec<Method>,
    /// The other functions on its bus, without which the bus could be reset; empty on a root bus, which cannot be.
    pub neighbours: Vec<Bdf>,
}

impl Plan {
    /// Finds out from sysfs.
    pub fn of(bdf: Bdf, sysfs: &Sysfs) -> Self {
        let methods = sysfs.reset_methods(bdf).map(|names| {
            let method = |name| METHODS.iter().find(|(listed, _, _)| *listed == name);
            let known: Vec<_> = names
                .split_whitespace()
                .filter_map(|name| method(name).map(|&(_, _, method)| method))
                .collect();
            // Linux before 5.15 lists no methods, and a later one may list methods that are unknown here. Both can
            // reset.
            if known.is_empty() {
                vec![Method::Unnamed]
            } else {
                known
            }
        });
        Self {
            methods: methods.unwrap_or_default(),
            neighbours: neighbours(bdf, sysfs),
        }
    }

    /// The first listed method that works. Linux lists a bus reset for the function of a bus that it found first, and
    /// refuses it once there is a second one.
    pub fn used(&self) -> Option<Method> {
        // Linux lists a bus reset that it would refuse (decision 32).
        let works = |method: &Method| *method != Method::Bus || self.neighbours.is_empty();
        self.methods.iter().copied().find(works)
    }

    /// The functions that prevent a bus reset, if there is no other method.
    pub fn blocked_by(&self) -> &[Bdf] {
        if self.used().is_none() {
            &self.neighbours
        } else {
            &[]
        }
    }
}

/// The method in words, or why there is none.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.used(), self.blocked_by()) {
            (Some(method), _) => write!(f, "{method}"),
            (None, []) => f.write_str("none"),
            (None, neighbours) => {
                let names: Vec<_> = neighbours.iter().map(Bdf::to_string).collect();
                write!(f, "none: a bus reset would hit {} too", names.join(", "))
            }
        }
    }
}

fn neighbours(bdf: Bdf, sysfs: &Sysfs) -> Vec<Bdf> {
    // Linux resets a bus through the bridge above it. A root bus has none.
    let bridge = sysfs
        .bridges_above(bdf)
        .ok()
        .and_then(|above| above.first().copied());
    let mut others = bridge
        .and_then(|bridge| sysfs.below(bridge).ok())
        .unwrap_or_default();
    others.retain(|&other| other != bdf);
    others
}

/// Why a function must not go to anyone after its reset.
#[derive(Debug, Error)]
pub enum ResetError {
    /// Linux failed.
    #[error("its reset by {method} failed ({source})")]
    Failed {
        /// The method tried.
        method: Method,
        /// The cause.
        source: SysfsError,
    },
    /// The ids are not those of the device.
    #[error("after its reset it answers as {:04x}:{:04x}, not as {expected}", found & 0xffff, found >> 16)]
    Mute {
        /// The recorded ids.
        expected: Ids,
        /// The ids read: vendor in the low half.
        found: u32,
    },
    /// Class and revision of a virtual function are not the recorded ones.
    #[error("after its reset its class and revision read {found:08x}, not {expected:08x}")]
    Gone {
        /// The recorded value.
        expected: u32,
        /// The value read.
        found: u32,
    },
    /// The function is not in D0.
    #[error("after its reset it stays in power state D{state}, not in D0")]
    Asleep {
        /// The power state, 1 to 3.
        state: u16,
    },
    /// The configuration space cannot be read or written.
    #[error("its configuration could not be restored after its reset ({0})")]
    Restore(#[from] io::Error),
}

/// Wakes the function up, stops its DMA and its interrupts.
pub fn quiesce(config: &impl ConfigAccess) -> io::Result<()> {
    let capabilities = capabilities(config)?;
    if let Some(power) = capabilities.power {
        let state = config.read16(power + power::CONTROL)?;
        // The function is woken first: the way from D3hot to D0 may reset it, and undo what is written below.
        if state & power::STATE != 0 {
            config.write16(power + power::CONTROL, state & !power::STATE)?;
            thread::sleep(WAKE_UP);
        }
    }
    quieten(config)?;
    turn_off(config, &capabilities)
}

/// Resets a quiesced function, restores its header, and checks that it answers in D0. Returns the method used; `None`
/// if there is none.
pub fn reset(sysfs: &Sysfs, bdf: Bdf, ids: Ids, header: &[u8]) -> Result<Option<Method>, ResetError> {
    let method = Plan::of(bdf, sysfs).used();
    if let Some(method) = method {
        sysfs
            .reset(bdf)
            .map_err(|source| ResetError::Failed { method, source })?;
    }
    let config = sysfs.open_config(bdf).map_err(io::Error::other)?;
    recover(&config, ids, header)?;
    Ok(method)
}

/// Restores the header of a function, and checks that it answers in D0.
fn recover(config: &impl ConfigAccess, ids: Ids, header: &[u8]) -> Result<(), ResetError> {
    // This comes first: nothing is written to another device, or to one that answers all-ones.
    ensure_present(config, ids, header)?;
    if let Some(power) = capabilities(config)?.power {
        let state = config.read16(power + power::CONTROL)? & power::STATE;
        // The function is not woken here: one that its reset does not bring to D0 is unfit for any guest.
        if state != 0 {
            return Err(ResetError::Asleep { state });
        }
    }
    Ok(restore::header(config, header)?)
}

/// Checks that the function whose `header` was recorded is there.
fn ensure_present(config: &impl ConfigAccess, ids: Ids, header: &[u8]) -> Result<(), ResetError> {
    let recorded = |at: u16| u32_at(header, at.into());
    let found = config.read(register::VENDOR, 4)?;
    if recorded(register::VENDOR) == Some(u32::MAX) {
        // The ids of a virtual function read all ones (SR-IOV 1.1, section 3.4.1): its class tells that it is there.
        let expected = recorded(register::REVISION).unwrap_or(u32::MAX);
        let found = config.read(register::REVISION, 4)?;
        if found == u32::MAX || found != expected {
            return Err(ResetError::Gone { expected, found });
        }
    } else if found != u32::from(ids.vendor) | u32::from(ids.device) << 16 {
        return Err(ResetError::Mute { expected: ids, found });
    }
    Ok(())
}

fn capabilities(config: &impl ConfigAccess) -> io::Result<Capabilities> {
    Ok(Capabilities::find(&config.read_space(SPACE)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_space::access::tests::Model;
    use crate::config_space::capabilities::tests::space;
    use crate::host::sysfs::tests::Tree;

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    fn plan(tree: &Tree, name: &str) -> Plan {
        Plan::of(bdf(name), &tree.sysfs())
    }

    #[test]
    fn the_first_way_that_linux_lists_is_the_one() {
        let tree = Tree::new();
        for (name, listed, shown) in [
            ("0000:00:01.0", "flr pm\n", "FLR"),
            ("0000:00:02.0", "pm\n", "PM"),
            ("0000:00:03.0", "af_flr\n", "AF-FLR"),
            ("0000:00:04.0", "\n", "a method that Linux does not name"),
        ] {
            tree.add(name, &[("reset", b""), ("reset_method", listed.as_bytes())]);
            assert_eq!(plan(&tree, name).to_string(), shown);
        }
        tree.add("0000:00:05.0", &[]);
        assert_eq!(plan(&tree, "00:05.0").to_string(), "none");
    }

    #[test]
    fn a_bus_is_reset_only_for_the_one_function_on_it() {
        let tree = Tree::new();
        let bus: [(&str, &[u8]); 2] = [("reset", b""), ("reset_method", b"bus\n")];
        tree.add("0000:00:0d.0", &[]);
        tree.add_below("0000:00:0d.0", "0000:02:01.0", &bus);
        assert_eq!(plan(&tree, "02:01.0").used(), Some(Method::Bus));
        tree.add_below("0000:00:0d.0", "0000:02:02.0", &[]);
        for (one, other) in [("02:01.0", "02:02.0"), ("02:02.0", "02:01.0")] {
            let plan = plan(&tree, one);
            assert_eq!((plan.used(), plan.blocked_by()), (None, &[bdf(other)][..]));
            assert_eq!(
                plan.to_string(),
                format!("none: a bus reset would hit 0000:{other} too")
            );
        }
        // Others are no matter where the function can be reset alone.
        tree.add("0000:02:01.0", &[("reset_method", b"pm bus\n")]);
        assert_eq!(plan(&tree, "02:01.0").to_string(), "PM");
        assert_eq!(plan(&tree, "02:01.0").blocked_by(), []);
    }

    #[test]
    fn a_bridge_loses_mwi_and_messages_and_stays_bus_master_for_what_is_behind_it() {
        let mut bytes = space(&[(0x50, 5)]);
        bytes[0x04] = 0x17;
        bytes[0x0e] = 1;
        bytes[0x52] = 0x01;
        let config = Model::new(bytes);
        quiesce(&config).unwrap();
        assert_eq!(*config.writes.borrow(), [(0x04, 2, 0x0007), (0x52, 2, 0)]);
    }

    #[test]
    fn a_function_is_woken_then_its_dma_and_line_stop_then_its_messages() {
        let mut bytes = space(&[(0x40, 1), (0x50, 5), (0x70, 0x11)]);
        bytes[0x04] = 0x07;
        bytes[0x44] = 0x03;
        bytes[0x52] = 0x01;
        bytes[0x73] = 0x80;
        let config = Model::new(bytes);
        quiesce(&config).unwrap();
        let expected = [(0x44, 2, 0), (0x04, 2, 0x0403), (0x52, 2, 0), (0x72, 2, 0)];
        assert_eq!(*config.writes.borrow(), expected);
    }

    fn awake() -> (Vec<u8>, Ids) {
        let mut bytes = space(&[(0x40, 1)]);
        bytes[..4].copy_from_slice(&[0x86, 0x80, 0xd3, 0x10]);
        (bytes, "8086:10d3".parse().unwrap())
    }

    #[test]
    fn a_function_that_answers_in_d0_gets_its_header_back() {
        let (bytes, ids) = awake();
        let mut header = bytes[..64].to_vec();
        header[0x13] = 0xfe;
        let config = Model::new(bytes);
        recover(&config, ids, &header).unwrap();
        assert_eq!(config.bytes.borrow()[0x13], 0xfe);
    }

    #[test]
    fn one_that_is_mute_or_asleep_is_left_alone_and_says_why() {
        let (mut bytes, ids) = awake();
        bytes[0x44] = 3;
        for (bytes, reason) in [
            (bytes, "after its reset it stays in power state D3, not in D0"),
            (
                vec![0xff; 256],
                "after its reset it answers as ffff:ffff, not as 8086:10d3",
            ),
        ] {
            let config = Model::new(bytes);
            let error = recover(&config, ids, &[0; 64]).unwrap_err();
            assert_eq!(error.to_string(), reason);
            assert!(config.writes.borrow().is_empty());
        }
    }

    #[test]
    fn a_virtual_function_tells_by_its_class_that_it_is_there() {
        let (mut bytes, ids) = awake();
        bytes[..4].fill(0xff);
        bytes[8..12].copy_from_slice(&[1, 0, 0, 2]);
        let header = bytes[..64].to_vec();
        recover(&Model::new(bytes), ids, &header).unwrap();
        let gone = Model::new(vec![0xff; 256]);
        let error = recover(&gone, ids, &header).unwrap_err();
        assert_eq!(
            error.to_string(),
            "after its reset its class and revision read ffffffff, not 02000001"
        );
        assert!(gone.writes.borrow().is_empty());
    }

    #[test]
    fn a_reset_that_fails_is_told_with_the_way_that_was_tried() {
        let tree = Tree::new();
        let (bytes, ids) = awake();
        tree.add("0000:00:01.0", &[("config", &bytes), ("reset_method", b"flr\n")]);
        // A directory: it is there, and cannot be written.
        std::fs::create_dir(tree.device("0000:00:01.0").join("reset")).unwrap();
        let error = reset(&tree.sysfs(), bdf("00:01.0"), ids, &bytes[..64]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("its reset by FLR failed (cannot reset"),
            "{error}"
        );
    }
}
