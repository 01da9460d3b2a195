//! The connection to xenstored: one page with two byte rings, and an event channel.

use crate::event;
use crate::page::RawPage;
use core::fmt;
use drivers::platform::Port;
use xenbus::client::Transport;
use xenbus::ring::{ByteRing, Corrupt, STORE_REPLIES, STORE_REQUESTS};

/// The xenstore page and its event channel, from start info.
#[derive(Debug)]
pub struct StoreRing {
    page: RawPage,
    port: Port,
}

impl StoreRing {
    /// Wraps the page and the port that start info names.
    pub const fn new(page: RawPage, port: Port) -> Self {
        Self { page, port }
    }

    /// The port on which xenstored tells of replies and watch events.
    pub const fn port(&self) -> Port {
        self.port
    }

    /// Moves bytes until `total` are done: `advance` tries from an offset on and says how far it got.
    fn run(
        &mut self,
        total: usize,
        mut advance: impl FnMut(&RawPage, usize) -> Result<usize, Corrupt>,
    ) -> Result<(), StoreError> {
        let mut done = 0;
        while done < total {
            // Taken before the look, so that what comes after the look ends the wait.
            event::take_pending(self.port);
            match advance(&self.page, done)? {
                0 => event::wait(&[self.port], None),
                count => {
                    done += count;
                    event::send(self.port).map_err(|_| StoreError::Port(self.port))?;
                }
            }
        }
        Ok(())
    }
}

/// The connection to xenstored is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// xenstored wrote nonsense.
    Ring(Corrupt),
    /// The event channel is not ours.
    Port(Port),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(corrupt) => write!(f, "xenstore connection: {corrupt}"),
            Self::Port(port) => write!(f, "xenstore connection: Xen refuses event channel port {port}"),
        }
    }
}

impl From<Corrupt> for StoreError {
    fn from(corrupt: Corrupt) -> Self {
        Self::Ring(corrupt)
    }
}

impl Transport for StoreRing {
    type Error = StoreError;

    fn send(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        const RING: ByteRing = STORE_REQUESTS;
        self.run(bytes.len(), |page, done| RING.push(page, &bytes[done..]))
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<(), StoreError> {
        const RING: ByteRing = STORE_REPLIES;
        self.run(into.len(), |page, done| RING.pop(page, &mut into[done..]))
    }

    fn ready(&mut self) -> Result<bool, StoreError> {
        Ok(STORE_REPLIES.held(&self.page)? > 0)
    }
}
