//! Failures on demand, for tests: feature `inject`, which no image that ships has.
//!
//! dom0 writes `POINT:KIND:COUNT:SERIAL` into `control/bulkhead-inject` of the stub's home. The next COUNT times that the
//! stub comes by POINT, it fails in the way of KIND. SERIAL tells a new order from one that has been taken. What is left of
//! an order outlives the failures.

use xenbus::pciif::Command;

/// Where the stub can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A request was taken.
    Taken(Command),
    /// It was carried out, and is not answered yet.
    Done(Command),
    /// The guest's page and port are about to be mapped and bound.
    Connect,
    /// The list of devices has changed.
    Hotplug,
    /// xenstore is about to be followed.
    Reconcile,
    /// The stub's own network is about to be served.
    Network,
}

/// Fails if dom0 asked for it here.
#[cfg(not(feature = "inject"))]
pub fn point(_: &mut impl crate::platform::Platform, _: Point) {}

#[cfg(feature = "inject")]
pub use on_demand::{NODE, point, take};

#[cfg(feature = "inject")]
mod on_demand {
    use super::Point;
    use crate::failure::{FailureKind, Order};
    use crate::platform::Platform;
    use crate::store;
    use alloc::vec::Vec;
    use core::hint::black_box;
    use core::time::Duration;
    use xenbus::client::Store;
    use xenbus::pciif::Command;

    /// Where dom0 writes its order, relative to the stub's home.
    pub const NODE: &str = "control/bulkhead-inject";

    /// How long [`FailureKind::Delay`] takes: more than work may.
    const DELAY: Duration = Duration::from_millis(900);

    const POINTS: [(&str, Point); 12] = [
        ("conf_read", Point::Taken(Command::ConfRead)),
        ("conf_write", Point::Taken(Command::ConfWrite)),
        ("enable_msix", Point::Taken(Command::EnableMsix)),
        ("disable_msix", Point::Taken(Command::DisableMsix)),
        ("disable_msi", Point::Taken(Command::DisableMsi)),
        ("conf_write-done", Point::Done(Command::ConfWrite)),
        ("enable_msix-done", Point::Done(Command::EnableMsix)),
        ("disable_msi-done", Point::Done(Command::DisableMsi)),
        ("connect", Point::Connect),
        ("hotplug", Point::Hotplug),
        ("reconcile", Point::Reconcile),
        ("network", Point::Network),
    ];

    const KINDS: [(&str, FailureKind); 11] = [
        ("panic", FailureKind::Panic),
        ("allocation", FailureKind::Allocation),
        ("stack", FailureKind::Stack),
        ("hang", FailureKind::Hang),
        ("deaf", FailureKind::Deaf),
        ("delay", FailureKind::Delay),
        ("page-fault", FailureKind::PageFault),
        ("protection-fault", FailureKind::ProtectionFault),
        ("invalid-opcode", FailureKind::InvalidOpcode),
        ("hypercall", FailureKind::Hypercall),
        ("handle", FailureKind::Handle),
    ];

    /// Reads an order as dom0 writes it.
    fn parse(text: &str) -> Option<Order> {
        let mut words = text.split(':');
        let (point, kind) = (words.next()?, words.next()?);
        Some(Order {
            point: POINTS.iter().position(|(name, _)| *name == point)? as u32,
            kind: KINDS.iter().position(|(name, _)| *name == kind)? as u32,
            left: store::decimal(words.next()?)?,
            serial: store::decimal(words.next()?)?,
        })
    }

    /// Takes a new order, if there is one.
    pub fn take(platform: &mut impl Platform, client: &mut impl Store) {
        let text = store::read(client, NODE).ok().flatten();
        if let Some(order) = text.as_deref().and_then(parse)
            // The node stays after the order is taken, and is read again at every change of xenstore.
            && order.serial != platform.crash_log().order.serial
        {
            platform.update_crash_log(|crash_log| crash_log.order = order);
        }
    }

    /// Fails if dom0 asked for it here.
    pub fn point(platform: &mut impl Platform, here: Point) {
        let order = platform.crash_log().order;
        let named = POINTS.get(order.point as usize);
        if order.left == 0 || named.is_none_or(|(_, point)| *point != here) {
            return;
        }
        // Before the failure: nothing runs after it, and the next run must not fail once more.
        platform.update_crash_log(|crash_log| crash_log.order.left -= 1);
        match KINDS.get(order.kind as usize).map(|(_, kind)| *kind) {
            Some(FailureKind::Panic) => panic!("as ordered"),
            Some(FailureKind::Allocation) => drop(black_box(Vec::<u8>::with_capacity(1 << 30))),
            Some(FailureKind::Stack) => _ = black_box(deeper(&[0; 64])),
            Some(FailureKind::Hang) => loop {
                core::hint::spin_loop();
            },
            Some(FailureKind::Delay) => {
                let end = platform.now() + DELAY;
                while platform.now() < end {
                    platform.wait(&[], Some(end));
                }
            }
            Some(kind) => platform.fault(kind),
            None => {}
        }
    }

    #[allow(unconditional_recursion, reason = "that is the point")]
    fn deeper(above: &[u64; 64]) -> u64 {
        let here = black_box(above.map(|word| word + 1));
        deeper(&here) + here[0]
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use alloc::format;

        #[test]
        fn an_order_names_a_point_a_kind_a_count_and_a_serial_number() {
            for (name, _) in POINTS {
                let text = format!("{name}:invalid-opcode:3:17");
                let order = parse(&text).unwrap();
                assert_eq!(POINTS[order.point as usize].0, name);
                assert_eq!((order.kind, order.left, order.serial), (8, 3, 17));
            }
            for bad in [
                "",
                "conf_read",
                "conf_read:panic",
                "conf_read:panic:1",
                "x:panic:1:1",
                "conf_read:x:1:1",
            ] {
                assert_eq!(parse(bad), None, "{bad}");
            }
        }
    }
}
