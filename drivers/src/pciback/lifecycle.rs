//! The first hop: the backend's xenbus life, from the guest's nodes to its shared page.
//!
//! What the other ends write is looked at as a whole after every change, and each step follows from the
//! states found: no step relies on having seen the one before. A guest's garbage ends its own connection,
//! with the reason in the xenbus error node.
//!
//! # Hotplug
//! The toolstack changes the [`list`] of devices and sets our state to Reconfiguring. The guest lets go of the
//! devices that are to leave and goes to Reconfiguring too; only then do we change what we export, and go to
//! Reconfigured. The guest looks at its bus again and goes to Connected, and so do we. A device that cannot be
//! exported is refused alone.

use super::aer::Relay;
use super::engine::{Engine, Reply};
use super::list::{self, Change, Entry};
use crate::error::{Blame, Excerpt, SetupError};
use crate::inject::{self, Point};
use crate::journal::{Advice, Journal};
use crate::log;
use crate::pcifront::{Listed, PATIENCE, SecondHop};
use crate::platform::{DomId, Platform, Port};
use crate::store;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use xenbus::bdf::Bdf;
use xenbus::client::{Client, Store, Transport};
use xenbus::counters::Counter;
use xenbus::path::{Device, DeviceType, key};
use xenbus::pciif;
use xenbus::pciif::Command;
use xenbus::pciif::backend::{self, Delivery, Success};
use xenbus::state::XenbusState;

/// Token of the watch on the guest's state.
pub const FRONTEND_TOKEN: &str = "frontend";

/// What the first hop works with, for one call.
pub struct Context<'a, P: Platform, T> {
    /// The machine.
    pub platform: &'a mut P,
    /// xenstore.
    pub client: &'a mut Client<T>,
    /// The way to dom0.
    pub second: &'a mut SecondHop<P::Page>,
}

/// What is shared with the guest.
#[derive(Debug)]
struct Channel<Page> {
    page: Page,
    port: Port,
}

/// How far the connection is.
#[derive(Debug)]
enum Phase<Page> {
    /// Nothing is exported.
    Idle,
    /// The devices are exported; the guest has not connected yet.
    Exported {
        /// The guest's nodes have been there, so that their absence means that it has gone.
        seen: bool,
    },
    /// In service.
    Connected(Channel<Page>),
    /// It has ended. A new one begins when the toolstack sets our state to Initialising.
    Ended {
        /// Our state could not be written, so that Initialising is still there from the last time.
        stale: bool,
    },
}

impl<Page> Phase<Page> {
    const ENDED: Self = Self::Ended { stale: false };
}

/// The connection to the guest.
#[derive(Debug)]
pub struct FirstHop<P: Platform> {
    stub: DomId,
    /// The guest that this stub serves, once something is exported to it.
    guest: Option<DomId>,
    phase: Phase<P::Page>,
    engine: Engine<P::Ecam>,
    errors: Relay,
    /// The node watched under [`FRONTEND_TOKEN`].
    watched: Option<String>,
    /// Said already that a guest waits for dom0's service.
    said_waiting: bool,
}

impl<P: Platform> FirstHop<P> {
    /// The hop of the stub with domain number `stub`; nothing is exported yet.
    pub fn new(stub: DomId) -> Self {
        Self {
            stub,
            guest: None,
            phase: Phase::Idle,
            engine: Engine::default(),
            errors: Relay::default(),
            watched: None,
            said_waiting: false,
        }
    }

    /// The engine, for its counters and its log.
    pub fn engine(&mut self) -> &mut Engine<P::Ecam> {
        &mut self.engine
    }

    /// The port over which the guest asks, while it is connected.
    pub fn port(&self) -> Option<Port> {
        match &self.phase {
            Phase::Connected(channel) => Some(channel.port),
            _ => None,
        }
    }

    /// True if nothing is exported, and never was.
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle) && !self.said_waiting
    }

    /// Answers the guest's request, if there is one. Nothing else: no xenstore, no allocation for config
    /// accesses, and log lines only within a limit. True if there was one.
    pub fn serve(&mut self, platform: &mut P, second: &mut SecondHop<P::Page>) -> bool {
        let Phase::Connected(channel) = &self.phase else {
            return false;
        };
        if !platform.take_pending(channel.port) {
            return false;
        }
        let Some(taken) = backend::take(&channel.page) else {
            if !self.errors.is_answered(&channel.page) {
                self.engine.count(Counter::SpuriousEvents);
            }
            return false;
        };
        let now = platform.now();
        let (op, request) = (*taken.head(), *taken.request());
        platform.set_under_way(Some(&op));
        let journal = platform.journal();
        let advice = journal.advise(&op);
        second.begin(&op, journal.strikes(&op));
        if advice != Advice::Refuse {
            inject::point(platform, Point::Taken(request.command));
        }
        if advice == Advice::ServeAgain {
            self.engine.unsettle(&request);
        }
        let reply = if advice == Advice::Refuse {
            self.engine.refuse(&request, now)
        } else {
            let mut dom0 = second.link(platform, now.saturating_add(PATIENCE));
            self.engine.serve(&request, taken.entries(), &mut dom0, now)
        };
        if request.command == Command::ConfWrite
            && let Some((place, shadow)) = self.engine.shadow(&request)
            && platform.recall(place) != Some(shadow)
        {
            // Before the guest is told: what it has been told holds in every later life.
            platform.remember(place, Some(shadow));
            second.leave(self.engine.shadows(), journal.poisoned());
        }
        inject::point(platform, Point::Done(request.command));
        let answer = match &reply {
            Ok(Reply::Value(value)) => Ok(Success::Value(*value)),
            Ok(Reply::Vectors(vectors)) => Ok(Success::Vectors(vectors)),
            Err(error) => Err(error.answer()),
        };
        match taken.answer(&channel.page, answer) {
            Delivery::Delivered => platform.notify(channel.port),
            Delivery::Late => self.engine.count(Counter::LateAnswers),
        }
        platform.set_under_way(None);
        second.end();
        if platform.journal().is_waiting() {
            platform.note(|journal| journal.answered(&op));
        }
        second.publish(self.engine.counters());
        true
    }

    /// Passes errors of devices on to the guest, and its verdicts back. The events of both hops must have been taken
    /// before: what is here to be passed on is seen in the pages alone.
    pub fn relay_errors(&mut self, platform: &mut P, second: &SecondHop<P::Page>) {
        let guest = match &self.phase {
            Phase::Connected(channel) => Some(channel),
            _ => None,
        };
        let engine = &self.engine;
        let news = self.errors.pass(
            second.channel().map(|(page, _)| page),
            guest.map(|channel| &channel.page),
            |bdf| engine.place(bdf),
        );
        if let (Some((notice, function)), Some(channel)) = (news.guest, guest) {
            log::info!("{function}: the guest is told of an error (notice {notice})");
            platform.notify(channel.port);
        }
        if let (true, Some((_, port))) = (news.service, second.channel()) {
            platform.notify(port);
        }
    }

    /// Follows the states of both ends.
    ///
    /// # Errors
    /// If xenstore fails us. Every other failure ends the connection, and is
    /// told in the error node.
    pub fn reconcile<T: Transport>(&mut self, mut cx: Context<'_, P, T>) -> Result<(), Box<SetupError>> {
        let cx = &mut cx;
        let Some(guest) = self.find_guest(cx)? else {
            return self.forget(cx);
        };
        let device = Device::first_hop(self.stub, guest);
        let own = store::state(cx.client, &device.backend_node(key::STATE))?;
        if own == XenbusState::Unknown {
            return self.forget(cx);
        }
        let frontend = store::state(cx.client, &device.frontend_node(key::STATE))?;

        if let Phase::Ended { stale: stale @ true } = &mut self.phase {
            if own == XenbusState::Initialising {
                return Ok(());
            }
            *stale = false;
        }
        if own == XenbusState::Initialising && !matches!(self.phase, Phase::Idle) {
            log::info!("guest {guest}: the toolstack starts the connection anew");
            self.release(cx);
            self.phase = Phase::Idle;
        }
        if let Err(error) = self.advance(cx, device, own, frontend) {
            self.fail(cx, device, &error);
        }
        self.follow_down(cx, device, own, frontend)
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
        if matches!(self.phase, Phase::Idle) {
            match own {
                Initialising | InitWait => self.export(cx, device)?,
                // The connection of an earlier life of this stub.
                Initialised | Connected | Reconfiguring | Reconfigured => self.take_up(cx, device)?,
                _ => self.phase = Phase::ENDED,
            }
        }
        if let Phase::Exported { seen } = &mut self.phase {
            *seen |= frontend != Unknown;
            if matches!(frontend, Initialised | Connected | Reconfiguring) {
                self.connect(cx, device, own)?;
            }
        }
        if matches!(self.phase, Phase::Connected(_)) {
            match (own, frontend) {
                // Also when the toolstack has thought better of it: the guest waits for an answer.
                (Connected | Reconfiguring, Reconfiguring) => self.reconfigure(cx, device)?,
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
        let gone = match self.phase {
            Phase::Exported { seen } => seen && frontend == Unknown,
            Phase::Connected(_) => frontend == Unknown,
            Phase::Ended { .. } => matches!(frontend, Unknown | Closed) && own != Closed,
            Phase::Idle => false,
        };
        let next = match frontend {
            _ if gone => Closed,
            Closing if self.is_exported() => Closing,
            Closed if self.is_exported() => Closed,
            _ => return Ok(()),
        };
        if self.is_exported() {
            let how = if gone { "has gone" } else { "disconnects" };
            log::info!("guest {} {how}", device.frontend());
            self.release(cx);
            self.phase = Phase::ENDED;
        }
        set_state(cx.client, device, next)
    }

    fn is_exported(&self) -> bool {
        matches!(self.phase, Phase::Exported { .. } | Phase::Connected(_))
    }

    /// The one guest of this stub, if its nodes are there. Every other one is refused.
    fn find_guest<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
    ) -> Result<Option<DomId>, Box<SetupError>> {
        let directory = DeviceType::Pci.backends(self.stub);
        let names = children(cx.client, &directory)?;
        if names.is_empty() {
            return Ok(None);
        }
        if let Some(guest) = self.guest
            && !names.iter().any(|name| parse_domid(name) == Some(guest))
        {
            // Gone, and another one is here: its removal and the next attach came as one change.
            self.forget(cx)?;
        }
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
        let mut found = None;
        for name in names {
            let guest = parse_domid(&name);
            for number in children(cx.client, &format!("{directory}/{name}"))? {
                match guest {
                    Some(guest) if guest == served && number == "0" => found = Some(guest),
                    Some(guest) if guest != served => {
                        let refusal = SetupError::OtherGuest { guest, served };
                        refuse(
                            cx.client,
                            self.stub,
                            &format!("{directory}/{name}/{number}"),
                            &refusal,
                        )?;
                    }
                    _ => {
                        let refusal = SetupError::OtherConnection(Excerpt::of(&number).to_string());
                        refuse(
                            cx.client,
                            self.stub,
                            &format!("{directory}/{name}/{number}"),
                            &refusal,
                        )?;
                    }
                }
            }
        }
        Ok(found)
    }

    /// Our nodes are not there, or not any more.
    fn forget<T: Transport>(&mut self, cx: &mut Context<'_, P, T>) -> Result<(), Box<SetupError>> {
        if let Some(guest) = self.guest.take() {
            log::info!("guest {guest}: its connection was removed");
        }
        self.release(cx);
        self.phase = Phase::Idle;
        if let Some(path) = self.watched.take() {
            cx.client.unwatch(&path, FRONTEND_TOKEN).map_err(store::failed)?;
        }
        Ok(())
    }

    /// Takes stock of a new guest's devices, and tells it where they stand. It gets all of them or none.
    fn export<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
    ) -> Result<(), Box<SetupError>> {
        self.guest = Some(device.frontend());
        cx.platform.note(Journal::forget_requests);
        self.watch_frontend(cx, device)?;
        set_state(cx.client, device, XenbusState::InitWait)?;
        log::info!("guest {}: backend in InitWait: ready", device.frontend());

        let served = cx.second.list(cx.client)?;
        self.engine.begin(cx.second.slots(cx.client)?);
        let mut entries = Vec::new();
        for number in 0..list::count(cx.client, device)? {
            let bdf = list::address(cx.client, device, number)?;
            let place = self.add(cx, &served, bdf, None)?;
            entries.push(Entry {
                number,
                bdf: Some(bdf),
                change: Change::Exported { place, root: true },
            });
        }
        for entry in &mut entries {
            if let Change::Exported { place, root } = &mut entry.change {
                // A bus that its own scan finds behind a bridge is no root: it would be one bus twice.
                *root = !self.engine.is_behind_bridge(*place);
            }
        }
        self.publish(cx, device, &entries)?;
        set_state(cx.client, device, XenbusState::Initialised)?;
        self.phase = Phase::Exported { seen: false };
        Ok(())
    }

    /// Exports again what an earlier life of this stub exported, each device where it stood: the guest may be
    /// using them. One that cannot be exported is refused alone.
    fn take_up<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
    ) -> Result<(), Box<SetupError>> {
        self.guest = Some(device.frontend());
        self.watch_frontend(cx, device)?;
        let served = cx.second.list(cx.client)?;
        self.engine.begin(cx.second.slots(cx.client)?);
        let left = if cx.platform.journal().has_inherited() {
            None
        } else {
            cx.second.left_behind(cx.client)?
        };
        let mut entries = Vec::new();
        for number in 0..list::count(cx.client, device)? {
            let state = list::state(cx.client, device, number)?;
            if !matches!(state, XenbusState::Initialised | XenbusState::Closing) {
                continue;
            }
            let bdf = list::address(cx.client, device, number);
            let stood = list::place(cx.client, device, number);
            if let (Some(left), Ok(place)) = (&left, &stood) {
                cx.platform.remember(*place, left.shadow(*place));
            }
            let place = bdf
                .clone()
                .and_then(|bdf| self.add(cx, &served, bdf, Some(stood?)));
            if place.is_err() {
                entries.push(entry(number, bdf.ok(), place)?);
            }
        }
        self.publish(cx, device, &entries)?;
        if !cx.platform.journal().has_inherited() {
            cx.platform.note(|journal| journal.inherit(left.as_ref()));
        }
        self.phase = Phase::Exported { seen: false };
        Ok(())
    }

    /// Follows the list: takes away what the guest has let go of, and adds what is new.
    fn reconfigure<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
    ) -> Result<(), Box<SetupError>> {
        inject::point(cx.platform, Point::Hotplug);
        let entries = match self.changes(cx, device) {
            Ok(entries) => entries,
            Err(error) if error.is_of_store() => return Err(error),
            Err(error) => {
                log::error!(
                    "guest {}: its devices stay as they are: {error}",
                    device.frontend()
                );
                Vec::new()
            }
        };
        if !entries.is_empty() {
            self.publish(cx, device, &entries)?;
        }
        set_state(cx.client, device, XenbusState::Reconfigured)
    }

    fn changes<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
    ) -> Result<Vec<Entry>, Box<SetupError>> {
        let served = cx.second.list(cx.client)?;
        let mut entries = Vec::new();
        for number in 0..list::count(cx.client, device)? {
            let state = list::state(cx.client, device, number)?;
            if !matches!(state, XenbusState::Initialising | XenbusState::Closing) {
                continue;
            }
            let bdf = list::address(cx.client, device, number);
            entries.push(match (state, &bdf) {
                (XenbusState::Closing, Ok(bdf)) => {
                    self.remove(cx, *bdf);
                    Entry {
                        number,
                        bdf: Some(*bdf),
                        change: Change::Removed,
                    }
                }
                _ => {
                    let place = bdf.clone().and_then(|bdf| self.add(cx, &served, bdf, None));
                    entry(number, bdf.ok(), place)?
                }
            });
        }
        Ok(entries)
    }

    /// Publishes what has become of devices of the list.
    fn publish<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
        entries: &[Entry],
    ) -> Result<(), Box<SetupError>> {
        for entry in entries {
            if let Change::Refused(error) = &entry.change {
                log::error!("guest {}: device {}: {error}", device.frontend(), entry.number);
            }
        }
        for bdf in list::publish(cx.client, device, entries)? {
            self.remove(cx, bdf);
        }
        Ok(())
    }

    /// Exports the device at `bdf`: where it stood, or, as a new one, at the first free place and with its
    /// interrupts off, whatever an earlier guest left behind.
    fn add<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        served: &Listed,
        bdf: Bdf,
        stood: Option<Bdf>,
    ) -> Result<Bdf, Box<SetupError>> {
        let number = served.number_of(bdf)?;
        let resources = cx.second.resources(cx.client, bdf, number)?;
        let (ids, frame) = (resources.ids, resources.ecam);
        let ecam = cx
            .platform
            .map_ecam(frame)
            .map_err(|errno| SetupError::MapEcam { bdf, frame, errno })?;
        let place = match self.engine.add(resources, ecam, stood) {
            Ok(place) => place,
            Err((error, ecam)) => {
                cx.platform.unmap_ecam(ecam);
                return Err(error);
            }
        };
        log::info!("exporting {bdf} ({ids}) as {place}");
        let known = cx.platform.recall(place);
        if stood.is_none() {
            cx.platform.remember(place, None);
            let deadline = cx.platform.now().saturating_add(PATIENCE);
            self.engine
                .quiesce_function(bdf, &mut cx.second.link(cx.platform, deadline));
        } else if let Some(shadow) = known {
            self.engine.set_shadow(place, shadow);
        }
        Ok(place)
    }

    /// Takes the device at `bdf` away from the guest, if it has it.
    fn remove<T: Transport>(&mut self, cx: &mut Context<'_, P, T>, bdf: Bdf) {
        let deadline = cx.platform.now().saturating_add(PATIENCE);
        let removed = self
            .engine
            .remove(bdf, &mut cx.second.link(cx.platform, deadline));
        if let Some(ecam) = removed {
            cx.platform.unmap_ecam(ecam);
            log::info!("{bdf} is exported no more");
        }
    }

    /// Takes up the guest's page and port.
    fn connect<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
        own: XenbusState,
    ) -> Result<(), Box<SetupError>> {
        inject::point(cx.platform, Point::Connect);
        let guest = device.frontend();
        let mut node = |key, expected| {
            let path = device.frontend_node(key);
            store::value(cx.client, &path, Blame::Guest, expected, store::decimal)
        };
        let grant = node(key::PCI_OP_REF, "a grant reference in decimal")?;
        let remote = node(key::EVENT_CHANNEL, "an event channel port in decimal")?;
        let path = device.frontend_node(key::MAGIC);
        store::value(
            cx.client,
            &path,
            Blame::Guest,
            "7, the version of pciif",
            |text| (text == pciif::MAGIC).then_some(()),
        )?;

        let page = cx
            .platform
            .map_grant(guest, grant)
            .map_err(|errno| SetupError::MapGrant { grant, errno })?;
        let port = match cx.platform.bind_interdomain(guest, remote) {
            Ok(port) => port,
            Err(errno) => {
                cx.platform.unmap_grant(page);
                return Err(SetupError::BindPort { port: remote, errno }.into());
            }
        };
        self.phase = Phase::Connected(Channel { page, port });
        // What an earlier life was at goes on from where it is.
        if !matches!(
            own,
            XenbusState::Connected | XenbusState::Reconfiguring | XenbusState::Reconfigured
        ) {
            set_state(cx.client, device, XenbusState::Connected)?;
        }
        log::info!("guest {guest} connected");
        Ok(())
    }

    /// Ends the connection because of `error`, and says why.
    fn fail<T: Transport>(&mut self, cx: &mut Context<'_, P, T>, device: Device, error: &SetupError) {
        log::error!("guest {}: {error}", device.frontend());
        self.release(cx);
        let told = tell_failure(cx.client, self.stub, &device.backend_dir(), error);
        self.phase = Phase::Ended { stale: told.is_err() };
        if let Err(unwritten) = told {
            log::error!("guest {}: {unwritten}", device.frontend());
        }
    }

    /// Gives back everything that belongs to the guest: interrupts first, then page and port, then the devices.
    fn release<T: Transport>(&mut self, cx: &mut Context<'_, P, T>) {
        self.quiesce(cx);
        if let Phase::Connected(channel) = core::mem::replace(&mut self.phase, Phase::ENDED) {
            cx.platform.close(channel.port);
            cx.platform.unmap_grant(channel.page);
        }
        for ecam in self.engine.clear() {
            cx.platform.unmap_ecam(ecam);
        }
    }

    fn quiesce<T: Transport>(&mut self, cx: &mut Context<'_, P, T>) {
        let deadline = cx.platform.now().saturating_add(PATIENCE);
        self.engine.quiesce(&mut cx.second.link(cx.platform, deadline));
    }

    fn watch_frontend<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
    ) -> Result<(), Box<SetupError>> {
        if self.watched.is_none() {
            let path = device.frontend_node(key::STATE);
            cx.client.watch(&path, FRONTEND_TOKEN).map_err(store::failed)?;
            self.watched = Some(path);
        }
        Ok(())
    }
}

/// What to publish about a device that was to be exported.
///
/// # Errors
/// A failure of xenstore, which says nothing about the device.
fn entry(
    number: usize,
    bdf: Option<Bdf>,
    place: Result<Bdf, Box<SetupError>>,
) -> Result<Entry, Box<SetupError>> {
    let change = match place {
        // Also behind a bridge: a guest that runs looks for new devices on its roots only.
        Ok(place) => Change::Exported { place, root: true },
        Err(error) if error.is_of_store() => return Err(error),
        Err(error) => Change::Refused(error),
    };
    Ok(Entry { number, bdf, change })
}

fn parse_domid(text: &str) -> Option<DomId> {
    store::decimal(text)?.try_into().ok()
}

/// The names of a node's children; none if there is no such node.
fn children(store: &mut impl Store, path: &str) -> Result<Vec<String>, Box<SetupError>> {
    match store.directory(path) {
        Ok(names) => Ok(names),
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(store::failed(error)),
    }
}

fn set_state(store: &mut impl Store, device: Device, state: XenbusState) -> Result<(), Box<SetupError>> {
    let path = device.backend_node(key::STATE);
    store.write(&path, state.as_str()).map_err(store::failed)
}

/// Turns away a connection that is not ours to serve, once: unless it is on its way down already.
fn refuse(
    store: &mut impl Store,
    stub: DomId,
    directory: &str,
    refusal: &SetupError,
) -> Result<(), Box<SetupError>> {
    let state = store::state(store, &format!("{directory}/{}", key::STATE))?;
    if matches!(
        state,
        XenbusState::Initialising | XenbusState::InitWait | XenbusState::Initialised
    ) {
        log::error!("{refusal}");
        tell_failure(store, stub, directory, refusal)?;
    }
    Ok(())
}

/// Writes the reason where xenbus and our own toolstack look for it, then goes to Closing.
fn tell_failure(
    store: &mut impl Store,
    stub: DomId,
    directory: &str,
    error: &SetupError,
) -> Result<(), Box<SetupError>> {
    store::report(store, stub, directory, error);
    let closing = XenbusState::Closing.as_str();
    store
        .write(&format!("{directory}/error"), &store::error_text(error))
        .and_then(|()| store.write(&format!("{directory}/{}", key::STATE), closing))
        .map_err(store::failed)
}
