//! The guest's image: connects to its PCI backend, or waits for a network frontend, does what the command line says, prints
//! the result, and idles.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::time::Duration;
use drivers::platform::Platform;
use test_guest::attack::Attacker;
use test_guest::differential;
use test_guest::flood;
use test_guest::frontend::{Failure, Frontend};
use test_guest::hostile_netback::backend::HostileNetback;
use test_guest::measure;
use test_guest::options::{Mode, Options};
use test_guest::ping_pong;
use unikernel::boot::Machine;
use xenbus::client::Client;

unikernel::main!(main);

/// Idles at the end of a run, so that the nodes stay for dom0 to read.
const IDLE: Duration = Duration::from_secs(3600);

fn main(machine: Machine) -> ! {
    let mut xen = machine.xen;
    let mut client = Client::new(machine.store);
    match Options::parse(machine.command_line) {
        Ok(options) => match run(&mut xen, &mut client, options) {
            Ok(()) => log::info!("done"),
            Err(failure) => log::error!("failed: {failure}"),
        },
        Err(error) => log::error!("failed: {error}"),
    }
    loop {
        let until = xen.now().saturating_add(IDLE);
        xen.wait(&[], Some(until));
    }
}

fn run(
    xen: &mut unikernel::platform::Xen,
    client: &mut Client<unikernel::store::StoreRing>,
    options: Options,
) -> Result<(), Failure> {
    match options.mode {
        Mode::Netback => {
            let failed = HostileNetback::find(xen, client, options.seed)?.run(options.seed, options.count);
            return match failed {
                0 => Ok(()),
                _ => Err(Failure::Unsound("rounds have failed")),
            };
        }
        Mode::Ping => return ping_pong::ping(xen, client, options.peer, options.count),
        Mode::Pong => return ping_pong::pong(xen, client),
        Mode::Burn => loop {
            core::hint::spin_loop();
        },
        _ => {}
    }
    let mut frontend = Frontend::connect(xen, client)?;
    log::info!("connected");
    match options.mode {
        Mode::Ops => {
            let began = xen.now();
            let summary = differential::run(xen, client, &mut frontend, options.seed, options.count)?;
            log::info!(
                "{} requests in {} ms, the slowest in {} ms",
                summary.requests,
                xen.now().saturating_sub(began).as_millis(),
                summary.slowest.as_millis()
            );
        }
        Mode::Hostile | Mode::Race => {
            let mut attacker = Attacker {
                shapes: frontend.functions(xen)?,
                platform: xen,
                client,
                frontend,
                random: fastrand::Rng::with_seed(options.seed),
                count: options.count,
            };
            if options.mode == Mode::Hostile {
                attacker.attack()?;
            } else {
                let races = attacker.race()?;
                log::info!(
                    "raced: {} {} {} {}",
                    races.reads_as_sent,
                    races.reads_as_changed,
                    races.vectors_granted,
                    races.vectors_refused
                );
            }
        }
        Mode::Measure => measure::run(xen, client, &mut frontend, options.count, options.rounds)?,
        Mode::Flood => flood::run(xen, client, &mut frontend)?,
        Mode::Idle | Mode::Netback | Mode::Ping | Mode::Pong | Mode::Burn => {}
    }
    Ok(())
}
