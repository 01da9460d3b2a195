//! The backend: its device in xenstore, its connections, and what it waits for.

use super::rings::NetRings;
use crate::frontend::{Failure, wait_for};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::str::FromStr;
use core::time::Duration;
use drivers::platform::{DomId, GrantRef, Platform};
use fastrand::Rng;
use xenbus::client::{Client, Store, Transport};
use xenbus::pciif::SharedPage;
use xenbus::state::XenbusState;

/// How long it may take until there is a device: the other domain has to be created.
const DEVICE_LIMIT: Duration = Duration::from_secs(600);
/// How long the frontend may take for a change of its state. It may have been restarted meanwhile.
const STATE_LIMIT: Duration = Duration::from_secs(60);
/// For so long a frontend that stays connected is watched.
const WATCHED: Duration = Duration::from_millis(500);
/// For so long the frontend may be without a request while requests are needed.
const QUIET_LIMIT: Duration = Duration::from_secs(60);
/// After so long without a request an event is sent, which may have been withheld before.
const NUDGE: Duration = Duration::from_millis(10);

/// After so much work there is a pause: a domain that works for 400 ms on end is taken for hung by its own watchdog
/// (`unikernel/src/deadline.rs`).
const WORK: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(1);

/// What must become of the frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It gives the network up.
    GivesUp,
    /// It stays connected.
    Stays,
    /// It lives, and may do either.
    Either,
}

/// The backend, and what it has mapped.
pub struct HostileNetback<'a, P: Platform, T> {
    pub(super) platform: &'a mut P,
    client: &'a mut Client<T>,
    /// The own directory.
    backend: String,
    /// The frontend's directory.
    frontend: String,
    /// The frontend's domain.
    pub(super) domain: DomId,
    pub(super) rings: Option<NetRings<P>>,
    /// Pages of connections that have ended, which are still mapped.
    pub(super) kept: Vec<P::Page>,
    pub(super) random: Rng,
    /// When the last pause was.
    rested: Duration,
}

impl<'a, P: Platform, T: Transport> HostileNetback<'a, P, T> {
    /// Waits for a device, and takes it.
    ///
    /// # Errors
    /// There is none in ten minutes, or its nodes make no sense.
    pub fn find(platform: &'a mut P, client: &'a mut Client<T>, seed: u64) -> Result<Self, Failure> {
        log::info!("netback: waits for a frontend");
        let found = wait_for(platform, DEVICE_LIMIT, "a device to be the backend of", || {
            // As long as there is no device there need not be a directory, and it need not be readable.
            for domain in client.directory("backend/vif").unwrap_or_default() {
                let device = format!("backend/vif/{domain}/0");
                if let Some((frontend, domain)) = whole_device(client, &device) {
                    return Ok(Some((device, frontend, domain)));
                }
            }
            Ok(None)
        })?;
        let (backend, frontend, domain) = found;
        log::info!("netback: has domain {domain} for its frontend");
        Ok(Self {
            platform,
            client,
            backend,
            frontend,
            domain,
            rings: None,
            kept: Vec::new(),
            random: Rng::with_seed(seed),
            rested: Duration::ZERO,
        })
    }

    /// Waits until the frontend has published its rings, and maps them.
    pub(super) fn connect(&mut self) -> Result<(), Failure> {
        self.set_state(XenbusState::InitWait)?;
        self.wait_for_frontend("the frontend to publish its rings", |state| {
            state == XenbusState::Connected
        })?;
        let tx: GrantRef = self.published("tx-ring-ref")?;
        let rx: GrantRef = self.published("rx-ring-ref")?;
        let port = self.published("event-channel")?;
        let tx = self.platform.map_grant(self.domain, tx).map_err(Failure::Xen)?;
        let rx = match self.platform.map_grant(self.domain, rx) {
            Ok(rx) => rx,
            Err(errno) => {
                self.platform.unmap_grant(tx);
                return Err(Failure::Xen(errno));
            }
        };
        match self.platform.bind_interdomain(self.domain, port) {
            Ok(port) => self.rings = Some(NetRings::new(rx, tx, port)),
            Err(errno) => {
                self.platform.unmap_grant(tx);
                self.platform.unmap_grant(rx);
                return Err(Failure::Xen(errno));
            }
        }
        self.set_state(XenbusState::Connected)
    }

    /// Checks what has become of the frontend.
    pub(super) fn see(&mut self, fate: Fate) -> Result<(), Failure> {
        match fate {
            Fate::GivesUp => self.wait_for_frontend("the frontend to give up", |state| {
                matches!(state, XenbusState::Closing | XenbusState::Closed)
            }),
            Fate::Stays => {
                let end = self.platform.now().saturating_add(WATCHED);
                self.pause_until(end);
                match self.frontend_state()? {
                    XenbusState::Connected => Ok(()),
                    _ => Err(Failure::Unsound("the frontend has given up without a reason")),
                }
            }
            Fate::Either => Ok(()),
        }
    }

    /// Ends the connection, and waits until the frontend has done so, or waits for a new one.
    pub(super) fn end(&mut self) -> Result<(), Failure> {
        self.unmap();
        self.set_state(XenbusState::Closing)?;
        self.wait_for_frontend("the frontend to close", |state| {
            matches!(state, XenbusState::Closed | XenbusState::Initialising)
        })?;
        self.set_state(XenbusState::Closed)
    }

    pub(super) fn unmap(&mut self) {
        if let Some(NetRings { rx, tx, port, .. }) = self.rings.take() {
            self.platform.close(port);
            self.platform.unmap_grant(rx);
            self.platform.unmap_grant(tx);
        }
    }

    pub(super) fn set_state(&mut self, state: XenbusState) -> Result<(), Failure> {
        Ok(self
            .client
            .write(&format!("{}/state", self.backend), state.as_str())?)
    }

    fn frontend_state(&mut self) -> Result<XenbusState, Failure> {
        Ok(self.client.read_state(&format!("{}/state", self.frontend))?)
    }

    fn wait_for_frontend(
        &mut self,
        what: &'static str,
        is_there: impl Fn(XenbusState) -> bool,
    ) -> Result<(), Failure> {
        let path = format!("{}/state", self.frontend);
        let client = &mut *self.client;
        wait_for(self.platform, STATE_LIMIT, what, || {
            Ok(is_there(client.read_state(&path)?).then_some(()))
        })
    }

    fn published<N: FromStr>(&mut self, key: &str) -> Result<N, Failure> {
        number(self.client, &format!("{}/{key}", self.frontend))
    }

    fn pause_until(&mut self, end: Duration) {
        while self.platform.now() < end {
            self.platform.wait(&[], Some(end));
        }
    }

    /// A short pause, if it is time for one. The time.
    pub(super) fn rest(&mut self) -> Duration {
        let now = self.platform.now();
        if now >= self.rested.saturating_add(WORK) {
            self.pause_until(now.saturating_add(PAUSE));
            self.rested = now;
        }
        now
    }

    /// The mapped rings.
    pub(super) fn mapped(&mut self) -> Result<&mut NetRings<P>, Failure> {
        self.rings
            .as_mut()
            .ok_or(Failure::Unsound("a round without a connection"))
    }

    /// Sends an event to the frontend.
    pub(super) fn notify(&mut self) {
        if let Some(rings) = &self.rings {
            self.platform.notify(rings.port);
        }
    }

    /// Waits until `has` finds a request in the rings.
    pub(super) fn wait_for_request(
        &mut self,
        what: &'static str,
        has: impl Fn(&NetRings<P>) -> bool,
    ) -> Result<(), Failure> {
        let end = self.platform.now().saturating_add(QUIET_LIMIT);
        loop {
            let rings = self.mapped()?;
            let port = rings.port;
            rings.ask_for_events();
            if has(rings) {
                return Ok(());
            }
            let now = self.platform.now();
            if now >= end {
                return Err(Failure::Silent(what));
            }
            self.platform.notify(port);
            self.platform
                .wait(&[port], Some(now.saturating_add(NUDGE).min(end)));
            self.platform.take_pending(port);
        }
    }

    /// Writes bytes at the beginning of a granted page. A page that cannot be mapped is left alone.
    pub(super) fn write_page(&mut self, grant: GrantRef, bytes: &[u8]) {
        if let Ok(page) = self.platform.map_grant(self.domain, grant) {
            page.copy_in(0, bytes);
            self.platform.unmap_grant(page);
        }
    }
}

/// The frontend's directory and domain, once all nodes are there that a backend needs: dom0 may make them one by one.
fn whole_device<T: Transport>(client: &mut Client<T>, backend: &str) -> Option<(String, DomId)> {
    let frontend = client.read(&format!("{backend}/frontend")).ok()?;
    let domain = number(client, &format!("{backend}/frontend-id")).ok()?;
    let state = client.read_state(&format!("{frontend}/state")).ok()?;
    let initialising = XenbusState::Initialising.as_str();
    let is_ours = client.write(&format!("{backend}/state"), initialising).is_ok();
    (state != XenbusState::Unknown && is_ours).then_some((frontend, domain))
}

/// Reads a node that holds a number.
fn number<T: Transport, N: FromStr>(client: &mut Client<T>, path: &str) -> Result<N, Failure> {
    let text = client.read(path)?;
    text.parse().map_err(|_| Failure::Node(path.to_string()))
}
