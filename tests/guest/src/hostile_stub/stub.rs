//! The stub that was taken over: its state, its waits, and its end.

use super::misuse::{CRASH, Misuse};
use super::tally::Tally;
use crate::frontend::{Failure, Frontend};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;
use drivers::platform::{DomId, Port};
use fastrand::Rng;
use pci::bdf::Bdf;
use xenbus::client::Client;
use xenbus::path::Device;

/// Interval between reads of dom0's order.
pub(super) const LISTEN: Duration = Duration::from_millis(20);
/// Duration of a flood.
pub(super) const FLOOD: Duration = Duration::from_secs(4);
/// A stub that ends sooner than this counts as part of a crash loop (`toolstack/src/serve/revive/backoff.rs`).
const LONG_LIFE: Duration = Duration::from_secs(4);

/// One of our devices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    pub(super) bdf: Bdf,
    /// The machine frame of its ECAM page.
    pub(super) ecam: u64,
}

/// The hostile stub.
pub struct HostileStub<'a, P: Misuse, T> {
    pub(super) platform: &'a mut P,
    pub(super) client: &'a mut Client<T>,
    /// Our end of the second hop.
    pub(super) hop: Frontend<P>,
    pub(super) first: Device,
    pub(super) second: Device,
    pub(super) guest: DomId,
    pub(super) devices: Vec<Function>,
    /// The nodes that we had when we were taken over, with their values.
    pub(super) nodes: Vec<(String, String)>,
    /// The other ends of our ports before we closed these.
    pub(super) other_ends: Vec<(DomId, Port)>,
    pub(super) random: Rng,
    pub(super) tally: Tally,
}

/// An action: its name and its function.
pub(super) type Deed<A> = (&'static str, fn(&mut A) -> Result<(), Failure>);

impl<P: Misuse, T> HostileStub<'_, P, T> {
    pub(super) fn pause(&mut self, length: Duration) {
        let until = self.platform.now().saturating_add(length);
        while self.platform.now() < until {
            self.platform.wait(&[], Some(until));
        }
    }

    /// Waits until the end of this stub does not count as part of a crash loop.
    pub(super) fn grow_old(&mut self) {
        let now = self.platform.now();
        self.pause(LONG_LIFE.saturating_sub(now));
    }

    /// Ends the domain, so that dom0 creates a new one.
    pub(super) fn die(&mut self, why: &str) -> ! {
        self.grow_old();
        log::warn!("dies: {why}: {}", self.tally);
        self.pause(LISTEN);
        self.platform.shut_down(CRASH)
    }
}
