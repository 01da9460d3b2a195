//! How long requests take: each kind many times, one request after the other.
//!
//! A request is timed as Linux's pcifront makes it: from the write of the page to the look at the answer. Each kind is a
//! line of the log: `measured NAME MIN P50 P90 MAX`, in nanoseconds.

use crate::answer::Answer;
use crate::ask::ask_dom0;
use crate::frontend::{Failure, Frontend};
use crate::op::Op;
use crate::spread::Spread;
use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;
use drivers::platform::Platform;
use pci::registers::{command, register};
use xenbus::client::{Client, Transport};
use xenbus::pciif::Command;

/// Requests that are sent in turn, each with the name of its figure.
type Turn = &'static [(&'static str, fn() -> Op)];

/// Vectors of MSI-X: those of an Intel 82574 (e1000e).
const VECTORS: u16 = 5;

fn cache_line_size(value: u32) -> Op {
    Op::write(0, register::CACHE_LINE.into(), 1, value)
}

/// All that is measured, in order.
const TURNS: &[Turn] = &[
    &[("read", || Op::read(0, 0, 4))],
    &[("write-unchanged", || cache_line_size(8))],
    &[
        ("write", || cache_line_size(16)),
        ("write", || cache_line_size(8)),
    ],
    &[
        ("enable-msix", || Op::msix(0, 0..VECTORS)),
        ("disable-msix", || Op::new(Command::DisableMsix, 0)),
    ],
    &[
        ("enable-msi", || Op::new(Command::EnableMsi, 0)),
        ("disable-msi", || Op::new(Command::DisableMsi, 0)),
    ],
];

/// Carries out `count` requests of each kind on the first function, and this as often as `rounds` says. Asks dom0
/// before each round but the first (`round N`).
///
/// # Errors
/// A request is refused, or what [`Failure`] names besides.
pub fn run<P: Platform, T: Transport>(
    platform: &mut P,
    client: &mut Client<T>,
    frontend: &mut Frontend<P>,
    count: usize,
    rounds: usize,
) -> Result<(), Failure> {
    // A driver has done this before it asks for vectors.
    let decode = u32::from(command::MEMORY | command::MASTER);
    granted(frontend.ask(platform, &Op::write(0, register::COMMAND.into(), 2, decode))?)?;
    granted(frontend.ask(platform, &cache_line_size(8))?)?;
    for round in 1..=rounds {
        if round > 1 {
            ask_dom0(platform, client, &format!("round {round}"))?;
        }
        for turn in TURNS {
            measure(platform, frontend, count, turn)?;
        }
    }
    Ok(())
}

/// Carries out `count` of each kind of request in `turn`.
fn measure<P: Platform>(
    platform: &mut P,
    frontend: &mut Frontend<P>,
    count: usize,
    turn: Turn,
) -> Result<(), Failure> {
    let mut kinds: Vec<(&str, Vec<Duration>)> = Vec::new();
    for (name, _) in turn {
        if kinds.iter().all(|(known, _)| known != name) {
            kinds.push((name, Vec::with_capacity(count)));
        }
    }
    for (name, op) in turn.iter().cycle().take(count * kinds.len()) {
        let (time, answer) = frontend.time(platform, &op())?;
        granted(answer)?;
        if let Some((_, times)) = kinds.iter_mut().find(|(known, _)| known == name) {
            times.push(time);
        }
    }
    for (name, times) in kinds {
        if let Some(spread) = Spread::of(times) {
            log::info!("measured {name} {spread}");
        }
    }
    Ok(())
}

fn granted(answer: Answer) -> Result<(), Failure> {
    match answer.err {
        0 => Ok(()),
        _ => Err(Failure::Unsound("it refuses what is to be measured")),
    }
}
