//! An event to another guest and back: the least that a backend in another domain can cost.

use crate::ask::ask_dom0;
use crate::frontend::{Failure, wait_for};
use crate::spread::Spread;
use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;
use drivers::platform::{DomId, Platform, Port};
use xenbus::client::{Client, Store, Transport};

/// The node by which dom0 tells the second guest whom to answer: `DOMID PORT`.
const PEER: &str = "data/peer";
/// How long one guest waits for the other one.
const LIMIT: Duration = Duration::from_secs(30);

/// Measures `count` events to the guest `peer` and back, and logs the line `measured ping-pong MIN P50 P90 MAX`.
///
/// dom0 is asked to tell `peer` our port (`peer PORT`).
///
/// # Errors
/// What [`Failure`] names.
pub fn ping<P: Platform, T: Transport>(
    platform: &mut P,
    client: &mut Client<T>,
    peer: DomId,
    count: usize,
) -> Result<(), Failure> {
    let port = platform.alloc_unbound(peer).map_err(Failure::Xen)?;
    ask_dom0(platform, client, &format!("peer {port}"))?;
    // The other one has bound its end.
    take(platform, port)?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = platform.now();
        platform.notify(port);
        take(platform, port)?;
        times.push(platform.now().saturating_sub(began));
    }
    if let Some(spread) = Spread::of(times) {
        log::info!("measured ping-pong {spread}");
    }
    Ok(())
}

/// Sends an event, and then one for each that comes, until none has come for 30 s.
///
/// # Errors
/// What [`Failure`] names.
pub fn pong<P: Platform, T: Transport>(platform: &mut P, client: &mut Client<T>) -> Result<(), Failure> {
    let peer = wait_for(platform, LIMIT, "the other guest", || {
        Ok(client.read(PEER).ok().filter(|peer| !peer.is_empty()))
    })?;
    let mut words = peer.split(' ');
    let domain: Option<DomId> = words.next().and_then(|word| word.parse().ok());
    let remote: Option<Port> = words.next().and_then(|word| word.parse().ok());
    let (Some(domain), Some(remote)) = (domain, remote) else {
        return Err(Failure::Node(PEER.into()));
    };
    let port = platform.bind_interdomain(domain, remote).map_err(Failure::Xen)?;
    loop {
        platform.notify(port);
        take(platform, port)?;
    }
}

/// Waits for an event.
fn take<P: Platform>(platform: &mut P, port: Port) -> Result<(), Failure> {
    let end = platform.now().saturating_add(LIMIT);
    while !platform.take_pending(port) {
        if platform.now() >= end {
            return Err(Failure::Silent("an event"));
        }
        platform.wait(&[port], Some(end));
    }
    Ok(())
}
