//! Failures on demand, for tests: feature `on-demand`, which nothing that ships has.
//!
//! A test writes lines `POINT:KIND[:COUNT]` into `ORDERS`. The next COUNT times (default: 1) that a process of Bulkhead's
//! comes by POINT, it fails in the way of KIND. There are points before and after each change of something outside of the
//! process: a failure anywhere in between has the same effect as one of these.
#![forbid(unsafe_code)]

/// Where a process can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A stub's page is mapped, and what an earlier worker left is not resolved yet.
    TakeUp,
    /// A request has been taken out of the page.
    Taken,
    /// The answer is in the page, and its event is not sent yet.
    Answered,
    /// An interrupt mode, or a change of one, is about to be recorded.
    Note,
    /// It is recorded.
    Noted,
    /// A message is about to be mapped.
    Map,
    /// It is mapped.
    Mapped,
    /// A pirq is about to be unmapped.
    Unmap,
    /// It is unmapped.
    Unmapped,
    /// Configuration space is about to be written.
    Write,
    /// It is written.
    Written,
    /// The record of an attachment is written.
    Recorded,
    /// A device is about to be assigned to a guest.
    Assign,
    /// A device is about to be deassigned from its guest.
    Deassign,
    /// The list of a guest's devices in xenstore has changed.
    Listed,
    /// A domain was created.
    Created,
    /// A domain is about to be destroyed.
    Destroy,
    /// A device is about to be reset.
    Reset,
    /// All devices are reclaimed, and still recorded.
    Released,
}

/// Fails if that is ordered here.
#[cfg(not(feature = "on-demand"))]
pub fn point(_: Point) {}

/// Fails if that is ordered here; a failed call is one of the ways.
///
/// # Errors
/// Only on order.
#[cfg(not(feature = "on-demand"))]
pub fn call(_: Point) -> std::io::Result<()> {
    Ok(())
}

#[cfg(feature = "on-demand")]
pub use on_demand::{ORDERS, call, point};

#[cfg(feature = "on-demand")]
#[allow(clippy::print_stderr, reason = "for tests, which read it")]
mod on_demand {
    use super::Point;
    use std::fmt;
    use std::str::FromStr;
    use std::time::Duration;
    use std::{fs, io, process, thread};

    /// The file with the orders.
    pub const ORDERS: &str = "/run/bulkhead/inject";

    const POINTS: [(&str, Point); 19] = [
        ("take-up", Point::TakeUp),
        ("taken", Point::Taken),
        ("answered", Point::Answered),
        ("note", Point::Note),
        ("noted", Point::Noted),
        ("map", Point::Map),
        ("mapped", Point::Mapped),
        ("unmap", Point::Unmap),
        ("unmapped", Point::Unmapped),
        ("write", Point::Write),
        ("written", Point::Written),
        ("recorded", Point::Recorded),
        ("assign", Point::Assign),
        ("deassign", Point::Deassign),
        ("listed", Point::Listed),
        ("created", Point::Created),
        ("destroy", Point::Destroy),
        ("reset", Point::Reset),
        ("released", Point::Released),
    ];

    /// How to fail.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Kind {
        /// The process ends at once.
        Kill,
        /// The thread does nothing any more.
        Hang,
        /// The call is refused.
        Fail,
        /// The thread does nothing for a while.
        Delay,
        /// The process tries what it must not be able to do: run a program, open a file of root's, make a socket.
        Exec,
        /// The thread does nothing for longer than anything waits for it.
        Slow,
    }

    const KINDS: [(&str, Kind); 6] = [
        ("kill", Kind::Kill),
        ("hang", Kind::Hang),
        ("fail", Kind::Fail),
        ("delay", Kind::Delay),
        ("exec", Kind::Exec),
        ("slow", Kind::Slow),
    ];

    const DELAY: Duration = Duration::from_millis(300);
    const SLOW: Duration = Duration::from_secs(30);

    /// An order: point and kind by their index, and how often it is still to be done.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Order {
        point: usize,
        kind: usize,
        left: u32,
    }

    impl FromStr for Order {
        type Err = ();

        fn from_str(text: &str) -> Result<Self, ()> {
            let mut words = text.trim().split(':');
            let mut index = |names: &[&str]| {
                let word = words.next().ok_or(())?;
                names.iter().position(|name| *name == word).ok_or(())
            };
            let point = index(&POINTS.map(|(name, _)| name))?;
            let kind = index(&KINDS.map(|(name, _)| name))?;
            let left = words.next().map_or(Ok(1), |word| word.parse().map_err(drop))?;
            Ok(Self { point, kind, left })
        }
    }

    /// Fails if that is ordered here.
    pub fn point(here: Point) {
        // A point without a call to fail has other ways.
        let _ = call(here);
    }

    /// Fails if that is ordered here; a failed call is one of the ways.
    ///
    /// # Errors
    /// Only on order.
    pub fn call(here: Point) -> io::Result<()> {
        let Some((name, kind)) = take(here) else {
            return Ok(());
        };
        eprintln!("failure on demand: {kind:?} at {name}");
        match kind {
            Kind::Kill => process::abort(),
            Kind::Hang => loop {
                thread::sleep(Duration::MAX);
            },
            Kind::Fail => Err(io::Error::other("as ordered")),
            Kind::Delay => {
                thread::sleep(DELAY);
                Ok(())
            }
            Kind::Slow => {
                thread::sleep(SLOW);
                Ok(())
            }
            Kind::Exec => {
                let run = process::Command::new("/bin/true").status();
                eprintln!("running a program: {run:?}");
                let file = fs::File::options()
                    .write(true)
                    .open("/proc/sys/kernel/core_pattern");
                eprintln!("opening a file of root's: {file:?}");
                let socket = std::os::unix::net::UnixDatagram::unbound();
                eprintln!("making a socket: {socket:?}");
                Ok(())
            }
        }
    }

    impl fmt::Display for Order {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            writeln!(f, "{}:{}:{}", POINTS[self.point].0, KINDS[self.kind].0, self.left)
        }
    }

    /// The first order for this point; it counts down.
    fn take(here: Point) -> Option<(&'static str, Kind)> {
        let text = fs::read_to_string(ORDERS).ok()?;
        let mut orders: Vec<Order> = text.lines().filter_map(|line| line.parse().ok()).collect();
        let order = orders.iter_mut().find(|order| POINTS[order.point].1 == here)?;
        order.left = order.left.checked_sub(1)?;
        let ((name, _), (_, kind)) = (POINTS[order.point], KINDS[order.kind]);
        let left: String = orders
            .iter()
            .filter(|order| order.left > 0)
            .map(Order::to_string)
            .collect();
        // Counted before the failure: the process may not live to do it.
        let counted = if left.is_empty() {
            fs::remove_file(ORDERS)
        } else {
            fs::write(ORDERS, left)
        };
        counted.ok().map(|()| (name, kind))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn an_order_names_a_point_a_kind_and_a_count() {
            for (point, (name, _)) in POINTS.iter().enumerate() {
                let order = format!("{name}:kill\n").parse();
                let expected = Order {
                    point,
                    kind: 0,
                    left: 1,
                };
                assert_eq!(order, Ok(expected));
                assert_eq!(expected.to_string(), format!("{name}:kill:1\n"));
            }
            assert_eq!("map:fail:7".parse::<Order>().map(|order| order.left), Ok(7));
            for bad in ["", "map", "map:", "map:burn", "nowhere:kill", "map:fail:x"] {
                assert!(bad.parse::<Order>().is_err(), "{bad}");
            }
        }
    }
}
