//! Floods: as much work for the backend as a guest can cause, for some seconds of each kind. dom0 measures the cost.

use crate::ask::ask_dom0;
use crate::frontend::{Failure, Frontend};
use crate::op::Op;
use alloc::format;
use core::time::Duration;
use drivers::platform::Platform;
use xenbus::client::{Client, Transport};

/// One flood.
struct Flood<P: Platform> {
    /// Name for dom0.
    name: &'static str,
    /// How long it lasts.
    length: Duration,
    /// The repeated action. It gets the number of the repetition.
    once: fn(&mut P, &mut Frontend<P>, u64) -> Result<(), Failure>,
}

/// Duration of the idle phase.
const QUIET: Duration = Duration::from_secs(2);

impl<P: Platform> Flood<P> {
    /// All floods. The first one does nothing, for comparison.
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
    // An event costs nothing if another one is pending. So the backend gets time to take each event.
    platform.relax();
    Ok(())
}

fn read<P: Platform>(platform: &mut P, frontend: &mut Frontend<P>, _: u64) -> Result<(), Failure> {
    frontend.ask(platform, &Op::read(0, 0, 4)).map(drop)
}

/// A write of the cache line size that changes the device each time, so that no backend can answer it by itself.
fn write<P: Platform>(platform: &mut P, frontend: &mut Frontend<P>, time: u64) -> Result<(), Failure> {
    const CACHE_LINE_SIZE: i32 = 0x0c;
    let value = if time.is_multiple_of(2) { 8 } else { 16 };
    frontend
        .ask(platform, &Op::write(0, CACHE_LINE_SIZE, 1, value))
        .map(drop)
}

/// A request for more vectors than MSI-X allows.
fn refused<P: Platform>(platform: &mut P, frontend: &mut Frontend<P>, _: u64) -> Result<(), Failure> {
    frontend.ask(platform, &Op::msix(0, 0..129)).map(drop)
}

/// Runs one flood after the other. Asks dom0 to read the clock before each flood (`begin NAME`) and after it
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
