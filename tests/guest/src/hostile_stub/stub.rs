//! The stub that was taken over: what it has, how it waits, and how it ends.

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

/// How often dom0 is listened to.
pub(super) const LISTEN: Duration = Duration::from_millis(20);
/// How long a flood lasts.
pub(super) const FLOOD: Duration = Duration::from_secs(4);
/// A life that ends sooner than this after its beginning counts as one of a crash loop
/// (`toolstack/src/serve/revive/backoff.rs`).
const LONG_LIFE: Duration = Duration::from_secs(4);

/// One of our devices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    pub(super) bdf: Bdf,
    /// The machine frame of its ECAM page.
    pub(super) ecam: u64,
}

/// A stub at war.
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
    /// What ports of ours were connected to before we closed them.
    pub(super) other_ends: Vec<(DomId, Port)>,
    pub(super) random: Rng,
    pub(super) tally: Tally,
}

/// A thing to do: its name, and how it is done.
pub(super) type Deed<A> = (&'static str, fn(&mut A) -> Result<(), Failure>);

impl<P: Misuse, T> HostileStub<'_, P, T> {
    pub(super) fn pause(&mut self, length: Duration) {
        let until = self.platform.now().saturating_add(length);
        while self.platform.now() < until {
            self.platform.wait(&[], Some(until));
        }
    }

    /// Waits until this life counts as a long one.
    pub(super) fn grow_old(&mut self) {
        let now = self.platform.now();
        self.pause(LONG_LIFE.saturating_sub(now));
    }

    /// Ends the domain, so that dom0 makes a new one.
    pub(super) fn die(&mut self, why: &str) -> ! {
        self.grow_old();
        log::warn!("dies: {why}: {}", self.tally);
        self.pause(LISTEN);
        self.platform.shut_down(CRASH)
    }
}
