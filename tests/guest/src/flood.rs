//! As much work for the backend as a guest can make, for some seconds of each kind: dom0 measures what it costs whom.

use crate::ask::ask_dom0;
use crate::frontend::{Failure, Frontend};
use crate::op::Op;
use alloc::format;
use core::time::Duration;
use drivers::platform::Platform;
use xenbus::client::{Client, Transport};

/// One flood.
struct Flood<P: Platform> {
    /// Its name, for dom0.
    name: &'static str,
    /// How long it lasts.
    length: Duration,
    /// What is done again and again, with the number of the time.
    once: fn(&mut P, &mut Frontend<P>, u64) -> Result<(), Failure>,
}

/// How long nothing is done.
const QUIET: Duration = Duration::from_secs(2);

impl<P: Platform> Flood<P> {
    /// All floods, and first nothing at all, to compare with.
    const ALL: [Self; 5] = [
        Self {
            name: "nothing",
            length: QUIET,
            once: nothing,
        },
        Self {
            name: "events",
            length: Duration::from_secs(10),
            once: event,
        },
        Self {
            name: "reads",
            length: Duration::from_secs(10),
            once: read,
        },
        Self {
            name: "writes",
            length: Duration::from_secs(5),
            once: write,
        },
        Self {
            name: "refused",
            length: Duration::from_secs(2),
            once: refused,
        },
    ];
}

fn nothing<P: Platform>(platform: &mut P, _: &mut Frontend<P>, _: u64) -> Result<(), Failure> {
    let until = platform.now().saturating_add(QUIET);
    platform.wait(&[], Some(until));
    Ok(())
}

fn event<P: Platform>(platform: &mut P, frontend: &mut Frontend<P>, _: u64) -> Result<(), Failure> {
    platform.notify(frontend.port);
    // Events that find one pending cost nobody anything: the backend gets the time to take it.
    platform.relax();
    Ok(())
}

fn read<P: Platform>(platform: &mut P, frontend: &mut Frontend<P>, _: u64) -> Result<(), Failure> {
    frontend.ask(platform, &Op::read(0, 0, 4)).map(drop)
}

/// A write that changes the device each time, so that no backend can answer it by itself: the cache line size.
fn write<P: Platform>(platform: &mut P, frontend: &mut Frontend<P>, time: u64) -> Result<(), Failure> {
    const CACHE_LINE_SIZE: i32 = 0x0c;
    let value = if time.is_multiple_of(2) { 8 } else { 16 };
    frontend
        .ask(platform, &Op::write(0, CACHE_LINE_SIZE, 1, value))
        .map(drop)
}

/// A request for more vectors than there can be.
fn refused<P: Platform>(platform: &mut P, frontend: &mut Frontend<P>, _: u64) -> Result<(), Failure> {
    frontend.ask(platform, &Op::msix(0, 0..129)).map(drop)
}

/// Makes one flood after the other. Dom0 is asked to look at the clock before (`begin NAME`) and after
/// (`end NAME COUNT`).
///
/// # Errors
/// What [`Failure`] names.
pub fn run<P: Platform, T: Transport>(
    platform: &mut P,
    client: &mut Client<T>,
    frontend: &mut Frontend<P>,
) -> Result<(), Failure> {
    for flood in Flood::<P>::ALL {
        ask_dom0(platform, client, &format!("begin {}", flood.name))?;
        let end = platform.now().saturating_add(flood.length);
        let mut count = 0;
        while platform.now() < end {
            (flood.once)(platform, frontend, count)?;
            count += 1;
        }
        ask_dom0(platform, client, &format!("end {} {count}", flood.name))?;
    }
    Ok(())
}
