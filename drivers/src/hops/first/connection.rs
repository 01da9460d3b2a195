//! The connection to the guest, which follows the xenbus states of both ends.

use super::anew::{Rest, Trial, starts_anew};
use super::channel::{self, GuestChannel, RingParams};
use super::context::Context;
use super::exports::Exports;
use super::guests::Guests;
use super::hold::Hold;
use super::nodes::{self, set_state};
use super::phase::GuestPhase;
use super::requests::{self, Served};
use crate::crash_log::{Advice, CrashLog};
use crate::error::SetupError;
use crate::hops::aer::Relay;
use crate::hops::second::SecondHop;
use crate::inject::{self, Point};
use crate::log;
use crate::platform::{DomId, Platform, Port};
use crate::policy::engine::Engine;
use crate::snapshot::Connection;
use crate::store;
use alloc::boxed::Box;
use alloc::string::String;
use core::time::Duration;
use xenbus::client::{Client, Transport};
use xenbus::device::SlotMode;
use xenbus::path::{Device, key};
use xenbus::pciif::backend;
use xenbus::state::XenbusState;

/// Token of the watch on the guest's state.
pub const FRONTEND_TOKEN: &str = "frontend";

/// The connection to the guest.
#[derive(Debug)]
pub struct FirstHop<P: Platform> {
    /// The number of the stub's domain; 0 until it is known.
    pub stub: DomId,
    /// The guest that this stub serves, once something is exported to it.
    guest: Option<DomId>,
    phase: GuestPhase<P::Page>,
    exports: Exports<P::Ecam>,
    errors: Relay,
    /// The node watched under [`FRONTEND_TOKEN`].
    watched: Option<String>,
    /// The log line that a guest waits for dom0's service has been written.
    said_waiting: bool,
    /// The frontend's state at the last reconciliation that went through.
    last: XenbusState,
    trial: Option<Trial>,
    rest: Rest,
    /// When to reconcile again, if nothing happens before.
    due: Option<Duration>,
    hold: Hold,
    /// xenstore has been followed once since the connection came into service.
    followed: bool,
}

impl<P: Platform> Default for FirstHop<P> {
    /// Nothing is exported yet.
    fn default() -> Self {
        Self {
            stub: 0,
            guest: None,
            phase: GuestPhase::Idle,
            exports: Exports::new(),
            errors: Relay::default(),
            watched: None,
            said_waiting: false,
            last: XenbusState::Unknown,
            trial: None,
            rest: Rest::NONE,
            due: None,
            hold: Hold::default(),
            followed: false,
        }
    }
}

impl<P: Platform> FirstHop<P> {
    /// Puts the connection in service that the last run has left in the [snapshot](crate::snapshot). xenstore has not been
    /// asked. So this run knows what the last one knew, and follows xenstore from there as that one would have done, had it
    /// been slow. False if there is no such connection, or if it may be what brought the last run down.
    pub fn restore(&mut self, platform: &mut P) -> bool {
        let restored = self.try_restore(platform);
        if restored.is_none() {
            self.exports.withhold_all(platform);
        }
        restored.is_some()
    }

    fn try_restore(&mut self, platform: &mut P) -> Option<()> {
        let now = platform.now();
        let crash_log = platform.crash_log();
        // A request that two runs in a row have failed over: perhaps for what both have kept.
        if crash_log
            .over()
            .is_some_and(|op| crash_log.advise(op, now) == Advice::Refuse)
        {
            return None;
        }
        let Connection {
            stub,
            guest,
            grant,
            port,
            passthrough,
            ..
        } = platform.snapshot().take()?;
        let mode = match passthrough {
            true => SlotMode::Passthrough,
            false => SlotMode::Vpci,
        };
        self.exports.restore(platform, mode)?;
        let channel = GuestChannel::open(platform, guest, RingParams { grant, port }).ok()?;
        (self.stub, self.guest) = (stub, Some(guest));
        self.begin_service(platform, guest, channel);
        self.hold.start();
        Some(())
    }

    /// Serves the guest by this channel from here on.
    fn begin_service(&mut self, platform: &mut P, guest: DomId, channel: GuestChannel<P::Page>) {
        // An earlier run may have answered a request and failed before it sent the event. One too many does no harm.
        platform.notify(channel.port);
        self.hold = Hold::begin(&platform.crash_log(), backend::is_pending(&channel.page));
        self.phase = GuestPhase::Connected(channel);
        self.followed = false;
        log::info!("guest {guest} connected");
    }

    /// The engine, for its counters and its log.
    pub fn engine(&mut self) -> &mut Engine<P::Ecam> {
        &mut self.exports.engine
    }

    /// The guest, once something is exported to it.
    pub fn guest(&self) -> Option<DomId> {
        self.guest
    }

    /// The port on which the guest sends requests, while it is connected.
    pub fn port(&self) -> Option<Port> {
        self.phase.channel().map(|channel| channel.port)
    }

    /// True if a guest is connected, and has what xenstore says.
    pub fn is_followed(&self) -> bool {
        self.followed && self.port().is_some()
    }

    /// True if nothing is exported, and never was.
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, GuestPhase::Idle) && !self.said_waiting
    }

    /// When [`Self::reconcile`] is to be called again, if nothing happens before.
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Answers the guest's request, if there is one; true if there was. See [`requests::serve`].
    pub fn serve(&mut self, platform: &mut P, second: &mut SecondHop<P::Page>) -> bool {
        let Some(channel) = self.phase.channel() else {
            return false;
        };
        // The mark of a request that was held is taken. The clock is read for such a one alone.
        if !platform.take_pending(channel.port)
            && (!self.hold.waited || self.hold.until(platform.now()).is_some())
        {
            return false;
        }
        let engine = &mut self.exports.engine;
        let served = requests::serve(channel, engine, &self.errors, platform, second, &self.hold);
        self.hold.waited = served == Served::Held;
        served == Served::Answered
    }

    /// When [`Self::serve`] is to be called for a request that it has held; `None` if there is none.
    pub fn held_until(&self) -> Option<Duration> {
        self.hold.due()
    }

    /// Passes errors of devices on to the guest, and its verdicts back. Must be called after the events of both hops were
    /// taken: what is written later then brings an event of its own.
    pub fn relay_errors(&mut self, platform: &mut P, second: &SecondHop<P::Page>) {
        let guest = self.phase.channel();
        let engine = &self.exports.engine;
        let news = self.errors.pass(
            second.channel().map(|(page, _)| page),
            guest.map(|channel| &channel.page),
            |bdf| engine.guest_bdf(bdf),
        );
        if let (Some((notice, function)), Some(channel)) = (news.guest, guest) {
            log::info!("{function}: the guest is told of an error (notice {notice})");
            platform.notify(channel.port);
        }
        if let (true, Some((_, port))) = (news.service, second.channel()) {
            platform.notify(port);
        }
    }

    /// True if the frontend's nodes have changed so that [`Self::reconcile`] must run. A guest can cause events without
    /// end, so this makes three reads at most.
    ///
    /// # Errors
    /// If xenstore fails us.
    pub fn is_changed<T: Transport>(&mut self, client: &mut Client<T>) -> Result<bool, Box<SetupError>> {
        let (GuestPhase::Connected(channel), Some(guest)) = (&self.phase, self.guest) else {
            return Ok(true);
        };
        let device = Device::first_hop(self.stub, guest);
        let frontend = store::state(client, &device.frontend_node(key::STATE))?;
        Ok(frontend != self.last || channel.is_replaced(client, device, frontend)?)
    }

    /// Follows the states of both ends.
    ///
    /// # Errors
    /// xenstore's: nothing is given up then, and a later call goes on. Every other failure ends the connection, and is
    /// told in the error node.
    pub fn reconcile<T: Transport>(&mut self, mut cx: Context<'_, P, T>) -> Result<(), Box<SetupError>> {
        let cx = &mut cx;
        self.due = None;
        if !cx.second.is_up()
            && let Some(until) = self.hold.until(cx.platform.now())
        {
            // What there may be to do, such as to turn interrupts off, needs dom0.
            self.due = Some(until);
            return Ok(());
        }
        let Some(guest) = self.find_guest(cx)? else {
            return self.forget(cx);
        };
        let device = Device::first_hop(self.stub, guest);
        let mut own = store::state(cx.client, &device.backend_node(key::STATE))?;
        if own == XenbusState::Unknown {
            return self.forget(cx);
        }
        self.watch_frontend(cx, device)?;
        // A failure that could not be told yet. A connection that the toolstack has started anew meanwhile has none.
        if own != XenbusState::Initialising && self.report_failure(cx, device)? {
            own = XenbusState::Closing;
        }
        let frontend = store::state(cx.client, &device.frontend_node(key::STATE))?;

        if own == XenbusState::Initialising && !matches!(self.phase, GuestPhase::Idle) {
            log::info!("guest {guest}: the toolstack starts the connection anew");
            self.release(cx);
            self.phase = GuestPhase::Idle;
        } else if starts_anew(&mut self.phase, self.last, cx, device, own, frontend)? {
            if cx.platform.now() < self.rest.end {
                self.due = Some(self.rest.end);
                return Ok(());
            }
            self.rest.begin(cx.platform.now());
            log::info!("guest {guest}: its frontend starts anew");
            own = XenbusState::InitWait;
            // The next run would find a state of ours that belongs to no connection in service.
            cx.platform.snapshot().unseal();
            // First of all: at Connected the frontend would take the old state for the answer to its new start.
            set_state(cx.client, device, own)?;
            self.guest = Some(guest);
            self.release(cx);
            self.phase = GuestPhase::Idle;
        }
        // A failure of xenstore's says nothing about the guest, so it must not end the connection.
        match self.advance(cx, device, own, frontend) {
            Err(error) if error.is_of_store() => return Err(error),
            Err(error) => self.fail(cx, device, error)?,
            Ok(()) => {}
        }
        self.follow_down(cx, device, own, frontend)?;
        self.last = frontend;
        self.confirm(cx, guest);
        Ok(())
    }

    /// xenstore is followed, and what the guest has is what it says: the next run may go by it.
    fn confirm<T: Transport>(&mut self, cx: &mut Context<'_, P, T>, guest: DomId) {
        self.hold.end();
        self.followed = true;
        if let GuestPhase::Connected(channel) = &self.phase
            && !channel.anew
        {
            let engine = &self.exports.engine;
            let RingParams { grant, port } = channel.params;
            cx.platform.snapshot().confirm(Connection {
                stub: self.stub,
                guest,
                grant,
                port,
                passthrough: engine.slot_mode() == SlotMode::Passthrough,
                functions: engine.devices().count(),
            });
        }
    }

    /// The steps up: export, then connect, then follow changes of the list.
    fn advance<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
        own: XenbusState,
        frontend: XenbusState,
    ) -> Result<(), Box<SetupError>> {
        use XenbusState::*;
        if matches!(self.phase, GuestPhase::Idle) {
            self.guest = Some(device.frontend());
            match own {
                Initialising | InitWait => self.export(cx, device, own)?,
                // The connection of an earlier run. No state is written on the way but what is missing: 5, 6 or 7 would have
                // pcifront take the devices away.
                Initialised | Connected | Reconfiguring | Reconfigured => self.resume(cx, device)?,
                _ => self.phase = GuestPhase::ENDED,
            }
        }
        if let GuestPhase::Exported { seen } = &mut self.phase {
            *seen |= frontend != Unknown;
            // The frontend publishes page and port before it goes to Initialised. The later states are those of a connection
            // that an earlier run served.
            if !matches!(frontend, Initialised | Connected | Reconfiguring) {
                self.trial = None;
            } else if let Err(error) = self.connect(cx, device, own) {
                self.due = Some(Trial::extend(&mut self.trial, cx.platform.now(), error)?);
            }
        }
        if let GuestPhase::Connected(channel) = &self.phase {
            match (own, frontend) {
                (InitWait | Initialised, Initialised | Connected | Reconfiguring) if !channel.anew => {
                    set_state(cx.client, device, Connected)?;
                }
                // Also where the toolstack has withdrawn the change (own is Connected): the guest waits for an answer.
                (Connected | Reconfiguring, Reconfiguring) => {
                    self.exports.reconfigure(cx, device)?;
                    set_state(cx.client, device, Reconfigured)?;
                }
                (Reconfigured, Connected) => set_state(cx.client, device, Connected)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The steps down: the guest closes, or has gone.
    fn follow_down<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
        own: XenbusState,
        frontend: XenbusState,
    ) -> Result<(), Box<SetupError>> {
        use XenbusState::*;
        // A missing state means that the guest has gone, but only if it was there: the toolstack writes it last, by itself.
        let gone = match self.phase {
            GuestPhase::Exported { seen } => seen && frontend == Unknown,
            GuestPhase::Connected(_) => frontend == Unknown,
            GuestPhase::Ended { .. } => matches!(frontend, Unknown | Closed) && own != Closed,
            GuestPhase::Idle => false,
        };
        let exported = self.phase.is_exported();
        // The backend goes down after its frontend: to Closing with it, and to Closed with it.
        let next = match frontend {
            _ if gone => Closed,
            Closing if exported || !matches!(own, Closing | Closed) => Closing,
            Closed if exported => Closed,
            _ => return Ok(()),
        };
        if exported {
            let how = if gone { "has gone" } else { "disconnects" };
            log::info!("guest {} {how}", device.frontend());
            self.release(cx);
            self.phase = GuestPhase::ENDED;
        }
        set_state(cx.client, device, next)
    }

    /// The one guest of this stub, if its nodes are there. Every other one is refused.
    fn find_guest<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
    ) -> Result<Option<DomId>, Box<SetupError>> {
        let guests = Guests::read(cx.client, self.stub)?;
        if guests.is_empty() {
            return Ok(None);
        }
        if let Some(guest) = self.guest
            && !guests.has(guest)
        {
            // The guest has gone and another one is here: both changes came in one event.
            self.forget(cx)?;
        }
        // The service names the guest, in a node of dom0's: no guest can name itself.
        let served = match self.guest {
            Some(guest) => guest,
            None if cx.second.is_up() => match cx.second.guest(cx.client) {
                Ok(guest) => guest,
                Err(error) if error.is_of_store() => return Err(error),
                Err(error) => {
                    log::error!("{error}");
                    return Ok(None);
                }
            },
            None => {
                if !self.said_waiting {
                    log::info!("a guest is assigned; waiting for dom0's service");
                    self.said_waiting = true;
                }
                return Ok(None);
            }
        };
        guests.refuse_others(cx, self.stub, served, &mut self.due)
    }

    /// Gives up the guest: the backend's nodes are not there, or not any more.
    fn forget<T: Transport>(&mut self, cx: &mut Context<'_, P, T>) -> Result<(), Box<SetupError>> {
        if let Some(guest) = self.guest.take() {
            log::info!("guest {guest}: its connection was removed");
        }
        self.release(cx);
        self.phase = GuestPhase::Idle;
        self.last = XenbusState::Unknown;
        self.unwatch_frontend(cx)
    }

    /// Exports the devices to a new guest, or to a frontend that starts anew.
    fn export<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
        own: XenbusState,
    ) -> Result<(), Box<SetupError>> {
        if own == XenbusState::Initialising {
            // A new guest: what brought the stub down before was another one's.
            cx.platform.update_crash_log(CrashLog::forget_requests);
            set_state(cx.client, device, XenbusState::InitWait)?;
        } else if !cx.platform.crash_log().has_inherited() {
            // The same guest, which may send the same requests again.
            let left = cx.second.read_handover(cx.client)?;
            let now = cx.platform.now();
            cx.platform
                .update_crash_log(|crash_log| crash_log.inherit(left.as_ref(), now));
        }
        channel::forget(cx.platform);
        log::info!("guest {}: backend in InitWait: ready", device.frontend());
        self.exports.export(cx, device)?;
        set_state(cx.client, device, XenbusState::Initialised)?;
        self.phase = GuestPhase::Exported { seen: false };
        Ok(())
    }

    /// Goes on with the connection of an earlier run of this stub, or of the stub domain before it.
    fn resume<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
    ) -> Result<(), Box<SetupError>> {
        let left = if cx.platform.crash_log().has_inherited() {
            None
        } else {
            cx.second.read_handover(cx.client)?
        };
        self.exports.resume(cx, device, left.as_ref())?;
        // Last: a run that fails before this reads the block again, and its shadows with it.
        if !cx.platform.crash_log().has_inherited() {
            let now = cx.platform.now();
            cx.platform
                .update_crash_log(|crash_log| crash_log.inherit(left.as_ref(), now));
        }
        self.phase = GuestPhase::Exported { seen: false };
        Ok(())
    }

    /// Maps the guest's page, binds its port, and goes to Connected.
    fn connect<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
        own: XenbusState,
    ) -> Result<(), Box<SetupError>> {
        inject::point(cx.platform, Point::Connect);
        let guest = device.frontend();
        let params = RingParams::read(cx.client, device)?;
        channel::check_version(cx.client, device)?;
        let channel = GuestChannel::open(cx.platform, guest, params)?;
        self.trial = None;
        self.begin_service(cx.platform, guest, channel);
        // An earlier run may have been in the middle of a hotplug, which goes on from its state.
        if !matches!(
            own,
            XenbusState::Connected | XenbusState::Reconfiguring | XenbusState::Reconfigured
        ) {
            set_state(cx.client, device, XenbusState::Connected)?;
        }
        Ok(())
    }

    /// Ends the connection because of `error`, which is told in the error node.
    fn fail<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
        error: Box<SetupError>,
    ) -> Result<(), Box<SetupError>> {
        log::error!("guest {}: {error}", device.frontend());
        self.release(cx);
        self.phase = GuestPhase::Ended { failure: Some(error) };
        self.report_failure(cx, device)?;
        Ok(())
    }

    /// Writes the error node and goes to Closing, if that is still to be done; true if it was.
    fn report_failure<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
    ) -> Result<bool, Box<SetupError>> {
        if let GuestPhase::Ended { failure } = &mut self.phase
            && let Some(error) = failure
        {
            // Forgotten only when it is written: xenstore may refuse now, and the next call tries again.
            nodes::report_failure(cx.client, self.stub, &device.backend_dir(), error)?;
            *failure = None;
            return Ok(true);
        }
        Ok(false)
    }

    /// Lets go of everything that belongs to the guest: interrupts first, while the devices are still exported, then page
    /// and port, then the devices.
    fn release<T: Transport>(&mut self, cx: &mut Context<'_, P, T>) {
        self.exports.engine.quiesce(&mut cx.dom0());
        // An error that the guest was told of in this page has no verdict in the next one.
        self.errors = Relay::default();
        self.trial = None;
        self.hold = Hold::default();
        if let GuestPhase::Connected(channel) = core::mem::replace(&mut self.phase, GuestPhase::ENDED) {
            channel.close(cx.platform);
        }
        self.exports.withhold_all(cx.platform);
    }

    fn watch_frontend<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
    ) -> Result<(), Box<SetupError>> {
        let path = device.frontend_node(key::STATE);
        if self.watched.as_ref() != Some(&path) {
            // The first event of a watch comes at once, so that a change before this is seen too.
            self.unwatch_frontend(cx)?;
            cx.client.watch(&path, FRONTEND_TOKEN).map_err(store::failed)?;
            self.watched = Some(path);
        }
        Ok(())
    }

    fn unwatch_frontend<T: Transport>(&mut self, cx: &mut Context<'_, P, T>) -> Result<(), Box<SetupError>> {
        if let Some(path) = &self.watched {
            cx.client.unwatch(path, FRONTEND_TOKEN).map_err(store::failed)?;
            self.watched = None;
        }
        Ok(())
    }
}
