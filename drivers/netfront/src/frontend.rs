//! The life of the device, as xenstore tells it, and the way in for the user.
//!
//! # Beginning anew
//! Each run of the stub writes state 1 (Initialising) first. A backend that is connected to an earlier run ends that connection
//! and waits again (InitWait); only then does this end share pages. A backend that comes back after it was away finds
//! state 1 for the same reason: xen-netback closes a device whose frontend it finds closed.
//!
//! A backend in InitWait while the device is connected is left alone: when xen-netback is bound anew, it finds the frontend
//! connected and takes up the same rings.

use crate::channel::Channel;
use crate::fault::Fault;
use crate::layout::FRAME_MAX;
use crate::peer::{Mac, Peer};
use crate::statistics::Statistics;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt::Arguments;
use core::time::Duration;
use drivers::error::SetupError;
use drivers::limiter::{Limit, Limiter};
use drivers::log::{self, Level};
use drivers::platform::{DomId, Platform, Port};
use drivers::store::{self, Nodes};
use xenbus::client::{Client, Transport};
use xenbus::path;
use xenbus::state::XenbusState;

/// How often a connection is tried in a row while the backend closes it before it comes about.
const TRIES: u8 = 3;

/// Log lines that a backend may cause in a while: it can begin anew as often as it wants. The counters tell the rest.
const LINES: Limit = Limit {
    lines: 16,
    interval: Duration::from_secs(60),
};

/// The options that a backend may want to know. xen-netback reads these (`drivers/net/xen-netback/xenbus.c`).
const OPTIONS: [(&str, &str); 6] = [
    // Frames are copied into this end's pages. There is no other way any more.
    ("request-rx-copy", "1"),
    // This end sends an event for requests of the receive ring where the backend's index asks for it.
    ("feature-rx-notify", "1"),
    // Checksums are to be complete.
    ("feature-no-csum-offload", "1"),
    // One slot for each frame.
    ("feature-sg", "0"),
    ("feature-gso-tcpv4", "0"),
    ("feature-gso-tcpv6", "0"),
];

/// How far the connection is.
#[derive(Debug)]
enum Phase<Page> {
    /// This run, or this backend, has not begun yet.
    Fresh,
    /// State 1 is written; the backend is to wait for pages and a port.
    Waiting,
    /// Published; the backend has not connected yet.
    Offered(Channel<Page>),
    /// In service.
    Up(Channel<Page>),
    /// The backend has ended the connection. It may begin a new one.
    Closed,
    /// This end has ended the connection.
    GivenUp {
        /// The backend was in InitWait then, so its being there is no new beginning.
        waiting: bool,
    },
}

/// The frontend of the domain's network device with number 0.
#[derive(Debug)]
pub struct Netfront<P: Platform> {
    domid: DomId,
    /// Token of the watches.
    token: &'static str,
    watches_device: bool,
    /// The path that is watched in the backend's directory.
    watched: Option<String>,
    peer: Option<Peer>,
    phase: Phase<P::Page>,
    /// Connections in a row that did not come about.
    tries: u8,
    /// What has ended the connection, until it stands in xenstore.
    unreported: Option<Fault>,
    /// What is wrong with the device's nodes, so that it is said once.
    refused: Option<String>,
    statistics: Statistics,
    limiter: Limiter<1>,
}

impl<P: Platform> Netfront<P> {
    /// The frontend of domain `domid`; nothing is shared yet. Its watches will have this `token`.
    pub fn new(domid: DomId, token: &'static str) -> Self {
        Self {
            domid,
            token,
            watches_device: false,
            watched: None,
            peer: None,
            phase: Phase::Fresh,
            tries: 0,
            unreported: None,
            refused: None,
            statistics: Statistics::default(),
            limiter: Limiter::new(LINES),
        }
    }

    /// The local port, while there is one.
    pub const fn port(&self) -> Option<Port> {
        match &self.phase {
            Phase::Offered(channel) | Phase::Up(channel) => Some(channel.port()),
            _ => None,
        }
    }

    /// The own address, once the toolstack has told it.
    pub fn mac(&self) -> Option<Mac> {
        self.peer.as_ref().map(|peer| peer.mac)
    }

    /// True while frames can be sent and received.
    pub const fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Up(_))
    }

    /// True if [`Self::reconcile`] has something to do although nothing has changed in xenstore: the backend has to be told
    /// that the connection has ended.
    pub const fn wants_reconcile(&self) -> bool {
        self.unreported.is_some()
    }

    /// What has been counted.
    pub const fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Takes the next frame; its length, or `None` if there is none.
    pub fn receive(&mut self, platform: &mut P, into: &mut [u8; FRAME_MAX]) -> Option<usize> {
        self.with_channel(platform, |channel, statistics| channel.receive(into, statistics))?
    }

    /// True if a frame can be sent now.
    pub fn can_transmit(&mut self, platform: &mut P) -> bool {
        self.with_channel(platform, Channel::can_transmit) == Some(true)
    }

    /// True while the backend has not taken all frames.
    pub fn is_transmitting(&mut self, platform: &mut P) -> bool {
        self.with_channel(platform, Channel::is_transmitting) == Some(true)
    }

    /// Writes a request to send `frame`; false if it is dropped: no connection, no free page, or not of
    /// [`FRAME_MIN`](crate::FRAME_MIN) to [`FRAME_MAX`] bytes.
    pub fn transmit(&mut self, platform: &mut P, frame: &[u8]) -> bool {
        let sent = self.with_channel(platform, |channel, statistics| {
            channel.transmit(frame, statistics)
        });
        sent == Some(true)
    }

    /// Gives the backend what [`Self::transmit`] has written and the pages that [`Self::receive`] has emptied, with one event
    /// if it wants one.
    pub fn flush(&mut self, platform: &mut P) {
        if let Phase::Up(channel) = &mut self.phase
            && channel.publish()
        {
            platform.notify(channel.port());
        }
    }

    /// Asks for an event at the next frame, or at the next free page if there is none; true if it is there already, and
    /// nothing but another look will find it.
    pub fn arm(&mut self) -> bool {
        match &mut self.phase {
            Phase::Up(channel) => channel.arm(),
            _ => false,
        }
    }

    /// Works on the rings. A fault ends the connection.
    fn with_channel<R>(
        &mut self,
        platform: &mut P,
        work: impl FnOnce(&mut Channel<P::Page>, &mut Statistics) -> Result<R, Fault>,
    ) -> Option<R> {
        let Phase::Up(channel) = &mut self.phase else {
            return None;
        };
        let result = work(channel, &mut self.statistics);
        result.map_err(|fault| self.give_up(platform, fault)).ok()
    }

    #[cold]
    fn give_up(&mut self, platform: &mut P, fault: Fault) {
        self.tell(platform, Level::Error, format_args!("network given up: {fault}"));
        self.statistics.faults += 1;
        self.end(platform, Phase::GivenUp { waiting: false });
        self.unreported = Some(fault);
    }

    /// Follows xenstore by one step. Without a network device it does nothing.
    ///
    /// # Errors
    /// xenstore's. Every other failure is told in the error node.
    pub fn reconcile<T: Transport>(
        &mut self,
        platform: &mut P,
        client: &mut Client<T>,
    ) -> Result<(), Box<SetupError>> {
        use XenbusState::*;
        if !self.watches_device {
            client.watch(&self.directory(), self.token)?;
            self.watches_device = true;
        }
        // Every write below the device's directory causes an event that leads here again: each arm must lead to one where
        // nothing is left to do.
        let own = store::state(client, &self.state_node())?;
        if own == Unknown {
            self.refused = None;
            return self.forget(platform, client);
        }
        match Peer::read(client, &self.directory()) {
            Ok(peer) => self.follow(platform, client, peer)?,
            Err(error) if error.is_of_store() => return Err(error),
            Err(error) => {
                self.refuse(client, &error);
                return self.forget(platform, client);
            }
        }
        let Some(peer) = &self.peer else {
            return Ok(());
        };
        let backend = store::state(client, &state_of(&peer.directory))?;

        // This end has left that state: the toolstack has made the device anew.
        if own == Initialising && !matches!(self.phase, Phase::Fresh | Phase::Waiting) {
            self.end(platform, Phase::Waiting);
            self.tries = 0;
        }
        if let Some(fault) = self.unreported {
            self.report(client, &format!("-{} {fault}", Fault::ERRNO));
            self.set_state(client, Closing)?;
            self.unreported = None;
            return Ok(());
        }
        match (&self.phase, backend) {
            (Phase::Fresh, _) if own != Initialising => self.begin(client),
            (Phase::Fresh | Phase::Waiting, InitWait) => self.try_offer(platform, client),
            (Phase::Offered(_), Connected) => {
                self.connected(platform);
                Ok(())
            }
            // It may have found the state of the connection before.
            (Phase::Offered(_), Closing | Closed) if self.tries < TRIES && self.is_wanted(client)? => {
                self.tries += 1;
                self.end(platform, Phase::Closed);
                self.begin(client)
            }
            (Phase::Offered(_) | Phase::Up(_), Closing | Closed | Unknown) => {
                self.tell(
                    platform,
                    Level::Warn,
                    format_args!("network: the backend has gone"),
                );
                self.end(platform, Phase::Closed);
                self.set_state(client, Closed)
            }
            // It closes the connection of an earlier run. If the device is to go, the toolstack waits for this end too.
            (Phase::Waiting, Closing | Closed) if !self.is_wanted(client)? => {
                self.set_state(client, Closed)?;
                self.phase = Phase::Closed;
                Ok(())
            }
            (Phase::Closed | Phase::GivenUp { waiting: false }, Initialising | InitWait) => {
                self.tries = 0;
                self.begin(client)
            }
            (Phase::Closed | Phase::GivenUp { .. }, Closing | Closed | Unknown) => {
                self.phase = Phase::Closed;
                if own == Closed {
                    return Ok(());
                }
                self.set_state(client, Closed)
            }
            _ => Ok(()),
        }
    }

    /// Logs a line, if there were not too many lately.
    fn tell(&mut self, platform: &P, level: Level, line: Arguments<'_>) {
        let now = platform.now();
        self.limiter.flush(now, |_, count| {
            log::warn!("network: {count} lines like those were left out");
        });
        if self.limiter.admit(0, now) {
            log::write(level, line);
        }
    }

    fn directory(&self) -> String {
        format!("{}/device/vif/0", path::home(self.domid))
    }

    fn state_node(&self) -> String {
        state_of(&self.directory())
    }

    fn set_state(&self, store: &mut dyn Nodes, state: XenbusState) -> Result<(), Box<SetupError>> {
        store.set(&self.state_node(), state.as_str())
    }

    /// Begins a connection: the backend is to wait for it.
    fn begin(&mut self, store: &mut dyn Nodes) -> Result<(), Box<SetupError>> {
        self.set_state(store, XenbusState::Initialising)?;
        self.phase = Phase::Waiting;
        Ok(())
    }

    /// True if the toolstack wants the device.
    fn is_wanted(&self, store: &mut dyn Nodes) -> Result<bool, Box<SetupError>> {
        let Some(peer) = &self.peer else {
            return Ok(false);
        };
        let online = store::read(store, &format!("{}/online", peer.directory))?;
        Ok(online.as_deref() == Some("1"))
    }

    /// Takes this backend for the device's, and watches its state.
    fn follow<T: Transport>(
        &mut self,
        platform: &mut P,
        client: &mut Client<T>,
        peer: Peer,
    ) -> Result<(), Box<SetupError>> {
        self.refused = None;
        if self.peer.as_ref() == Some(&peer) {
            return Ok(());
        }
        self.forget(platform, client)?;
        let path = state_of(&peer.directory);
        client.watch(&path, self.token)?;
        self.watched = Some(path);
        self.peer = Some(peer);
        Ok(())
    }

    /// Ends everything with the backend of before.
    fn forget<T: Transport>(
        &mut self,
        platform: &mut P,
        client: &mut Client<T>,
    ) -> Result<(), Box<SetupError>> {
        self.end(platform, Phase::Fresh);
        self.peer = None;
        self.tries = 0;
        if let Some(path) = &self.watched {
            client.unwatch(path, self.token)?;
            self.watched = None;
        }
        Ok(())
    }

    /// Tells what is wrong with the device's nodes, once.
    fn refuse(&mut self, store: &mut dyn Nodes, error: &SetupError) {
        let text = store::error_text(error);
        if self.refused.as_ref() != Some(&text) {
            log::error!("network: {error}");
            self.report(store, &text);
            self.refused = Some(text);
        }
    }

    /// Shares pages and a port, and publishes them.
    fn try_offer<T: Transport>(
        &mut self,
        platform: &mut P,
        client: &mut Client<T>,
    ) -> Result<(), Box<SetupError>> {
        let Some(peer) = &self.peer else {
            return Ok(());
        };
        let channel = match Channel::share(platform, peer.backend) {
            Ok(channel) => channel,
            Err(errno) => {
                let error = SetupError::Share(errno);
                self.tell(platform, Level::Error, format_args!("network: {error}"));
                self.report(client, &store::error_text(&error));
                self.phase = Phase::GivenUp { waiting: true };
                return self.set_state(client, XenbusState::Closing);
            }
        };
        let published = self.publish(client, &channel);
        // Kept from here on, so that `end` finds it whatever happens. After an error the state still says that this end
        // begins, so the next step begins anew.
        self.phase = Phase::Offered(channel);
        published?;
        self.set_state(client, XenbusState::Connected)
    }

    /// Writes the nodes that a backend reads when the state becomes Connected.
    fn publish<T: Transport>(
        &self,
        client: &mut Client<T>,
        channel: &Channel<P::Page>,
    ) -> Result<(), Box<SetupError>> {
        let directory = self.directory();
        let numbers = [
            ("tx-ring-ref", channel.tx_grant()),
            ("rx-ring-ref", channel.rx_grant()),
            ("event-channel", channel.port()),
        ];
        // In one transaction, so that the backend never finds the ring of one run with the port of another.
        store::transaction(client, &mut |store| {
            let mut set = |key: &str, value: &str| store.set(&format!("{directory}/{key}"), value);
            for (key, number) in numbers {
                set(key, &number.to_string())?;
            }
            for (key, value) in OPTIONS {
                set(key, value)?;
            }
            Ok(())
        })
    }

    fn connected(&mut self, platform: &P) {
        if let Phase::Offered(channel) = core::mem::replace(&mut self.phase, Phase::Closed) {
            self.phase = Phase::Up(channel);
            self.statistics.connections += 1;
            self.tell(platform, Level::Info, format_args!("network connected"));
        }
    }

    /// Ends the connection, if there is one. Nothing is shared any more.
    fn end(&mut self, platform: &mut P, next: Phase<P::Page>) {
        self.unreported = None;
        if let Phase::Offered(channel) | Phase::Up(channel) = core::mem::replace(&mut self.phase, next) {
            channel.unshare(platform);
        }
    }

    /// Writes the error node of the device.
    fn report(&self, store: &mut dyn Nodes, text: &str) {
        store::report(store, self.domid, &self.directory(), text);
    }
}

/// The state node of an end of the device.
fn state_of(directory: &str) -> String {
    format!("{directory}/state")
}
