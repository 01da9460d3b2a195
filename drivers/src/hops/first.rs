//! The first hop: the backend's xenbus life, from the guest's nodes to its shared page.
//!
//! What the other ends write is looked at as a whole after every change, and each step follows from the
//! states found: no step relies on having seen the one before. A guest's garbage ends its own connection,
//! with the reason in the xenbus error node.
//!
//! # Hotplug
//! The toolstack changes the [list of devices](super::device_list) and sets our state to Reconfiguring. The guest lets go of the
//! devices that are to leave and goes to Reconfiguring too; only then do we change what we export, and go to
//! Reconfigured. The guest looks at its bus again and goes to Connected, and so do we. A device that cannot be
//! exported is refused alone.
//!
//! # A frontend that starts anew
//! Linux 7.0 and later probe a device again whose frontend state reads Initialising; so does a driver that is bound
//! again. The state may be seen on its way there or not at all: then the grant or the port is another one. While the
//! frontend is at Initialising it may still take its drivers down by the old page, so that is served until there is a
//! new one. Then the devices are exported as to a new guest, with their interrupts off, and the list's changes that
//! were under way are done with. A connection that is closed begins again in the same way.
//!
//! # When xenstore refuses
//! A refused request says nothing about the guest: the phase stays, and all is looked at again after a while.

use super::aer::Relay;
use super::device_list::{self, Change, Entry};
use crate::error::{Blame, Excerpt, SetupError};
use crate::hops::second::{PATIENCE, SecondHop};
use crate::inject::{self, Point};
use crate::journal::{Advice, Journal};
use crate::log;
use crate::platform::{DomId, EcamError, Errno, GrantRef, Platform, Port};
use crate::policy::engine::{Engine, Reply};
use crate::policy::resources::Resources;
use crate::store::{self, Nodes};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;
use xenbus::bdf::Bdf;
use xenbus::client::{Client, Transport};
use xenbus::counters::Counter;
use xenbus::path::{Device, DeviceType, key};
use xenbus::pciif;
use xenbus::pciif::Command;
use xenbus::pciif::backend::{self, Delivery, Success};
use xenbus::state::XenbusState;

/// No window is left to map a page at.
const NO_MEMORY: Errno = Errno(12);

/// Token of the watch on the guest's state.
pub const FRONTEND_TOKEN: &str = "frontend";

/// How long a frontend whose page or port cannot be had may take to publish others: it may be about to start anew.
const TRIAL: Duration = Duration::from_secs(5);
/// The first pause between two looks at it; each next one is twice as long.
const TRIAL_PAUSE: Duration = Duration::from_millis(10);
/// A frontend is not taken up anew more often than this. Each time costs xenstore some sixty requests, and the log a line
/// for each device.
const ANEW_PAUSE: Duration = Duration::from_millis(250);
/// The pause of one that starts anew without end: it doubles up to this.
const ANEW_PAUSE_MAX: Duration = Duration::from_secs(4);
/// When a refusal of another guest is tried again that could not be written.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);
/// How often a list is read again that has been renumbered before its changes were published.
const LIST_TRIES: usize = 8;

/// No address on a guest's bus: what is remembered there tells the connection in service from another one.
const CHANNEL: Bdf = Bdf::from_devfn(u16::MAX, u8::MAX, u8::MAX);

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
    particulars: Particulars,
    /// The frontend has gone back to Initialising since.
    anew: bool,
}

/// The page and the port that a frontend has published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Particulars {
    grant: GrantRef,
    port: Port,
}

impl Particulars {
    /// A word that other particulars hardly have.
    const fn word(self) -> u32 {
        self.grant ^ self.port.rotate_left(16)
    }
}

/// A frontend whose page or port cannot be had.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// When it fails.
    end: Duration,
    /// When it is looked at again.
    next: Duration,
    pause: Duration,
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
    /// It has ended. A new one begins when the toolstack sets our state to Initialising, or the frontend its own.
    Ended {
        /// Why, if that is still to be told.
        failure: Option<Box<SetupError>>,
    },
}

impl<Page> Phase<Page> {
    const ENDED: Self = Self::Ended { failure: None };
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
    /// The frontend's state when all was last in line with it.
    last: XenbusState,
    trial: Option<Trial>,
    /// When the next new start of the frontend may be followed.
    rested: Duration,
    /// The pause before that.
    pause: Duration,
    /// When to look again, if nothing happens before.
    due: Option<Duration>,
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
            last: XenbusState::Unknown,
            trial: None,
            rested: Duration::ZERO,
            pause: ANEW_PAUSE,
            due: None,
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

    /// When [`Self::reconcile`] is to be called again, if nothing happens before.
    pub fn due(&self) -> Option<Duration> {
        self.due
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
        let advice = journal.advise(&op, now);
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
            platform.note(|journal| journal.answered(&op, now));
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

    /// True if the frontend's nodes call for more than a look at them. A guest can have us look as often as it likes.
    ///
    /// # Errors
    /// If xenstore fails us.
    pub fn is_changed<T: Transport>(&mut self, client: &mut Client<T>) -> Result<bool, Box<SetupError>> {
        let (Phase::Connected(channel), Some(guest)) = (&self.phase, self.guest) else {
            return Ok(true);
        };
        let device = Device::first_hop(self.stub, guest);
        let frontend = store::state(client, &device.frontend_node(key::STATE))?;
        Ok(frontend != self.last || other_particulars(client, device, frontend, channel)?)
    }

    /// Follows the states of both ends.
    ///
    /// # Errors
    /// If xenstore fails us: nothing is given up then, and a later call goes on. Every other failure ends the
    /// connection, and is told in the error node.
    pub fn reconcile<T: Transport>(&mut self, mut cx: Context<'_, P, T>) -> Result<(), Box<SetupError>> {
        let cx = &mut cx;
        self.due = None;
        let Some(guest) = self.find_guest(cx)? else {
            return self.forget(cx);
        };
        let device = Device::first_hop(self.stub, guest);
        let mut own = store::state(cx.client, &device.backend_node(key::STATE))?;
        if own == XenbusState::Unknown {
            return self.forget(cx);
        }
        // What is left to be told is no concern of a connection that the toolstack has started anew meanwhile.
        if own != XenbusState::Initialising && self.tell_failure(cx, device)? {
            own = XenbusState::Closing;
        }
        let frontend = store::state(cx.client, &device.frontend_node(key::STATE))?;

        if own == XenbusState::Initialising && !matches!(self.phase, Phase::Idle) {
            log::info!("guest {guest}: the toolstack starts the connection anew");
            self.release(cx);
            self.phase = Phase::Idle;
        } else if self.starts_anew(cx, device, own, frontend)? {
            if cx.platform.now() < self.rested {
                self.due = Some(self.rested);
                return Ok(());
            }
            self.rest(cx.platform.now());
            log::info!("guest {guest}: its frontend starts anew");
            own = XenbusState::InitWait;
            // First of all, for the frontend takes the state of before for the answer.
            set_state(cx.client, device, own)?;
            self.guest = Some(guest);
            self.release(cx);
            self.phase = Phase::Idle;
        }
        match self.advance(cx, device, own, frontend) {
            Err(error) if error.is_of_store() => return Err(error),
            Err(error) => self.fail(cx, device, error)?,
            Ok(()) => {}
        }
        self.follow_down(cx, device, own, frontend)?;
        self.last = frontend;
        Ok(())
    }

    /// Begins the pause after a new start of the frontend.
    fn rest(&mut self, now: Duration) {
        let calm = now.saturating_sub(self.rested) > ANEW_PAUSE_MAX;
        self.pause = match calm {
            true => ANEW_PAUSE,
            false => (self.pause * 2).min(ANEW_PAUSE_MAX),
        };
        self.rested = now.saturating_add(self.pause);
    }

    /// True if the frontend is not the one of the connection that is, or was, in service.
    fn starts_anew<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
        own: XenbusState,
        frontend: XenbusState,
    ) -> Result<bool, Box<SetupError>> {
        use XenbusState::*;
        Ok(match &mut self.phase {
            Phase::Ended { .. } => match frontend {
                Initialising => self.last != Initialising,
                Initialised => self.last != Initialised && own != Closing,
                _ => false,
            },
            Phase::Connected(channel) if frontend == Initialising => {
                if !channel.anew {
                    set_state(cx.client, device, InitWait)?;
                    channel.anew = true;
                }
                false
            }
            Phase::Connected(channel) => other_particulars(cx.client, device, frontend, channel)?,
            Phase::Idle | Phase::Exported { .. } => match (own, frontend) {
                // What an earlier life had in service.
                (Connected | Reconfiguring | Reconfigured, Initialising) => true,
                // It was at Reconfiguring then.
                (Reconfigured, Initialised) => true,
                (Connected | Reconfiguring, Initialised) => {
                    match (cx.platform.recall(CHANNEL), read_particulars(cx.client, device)) {
                        (_, Err(error)) if error.is_of_store() => return Err(error),
                        (Some(known), Ok(particulars)) => particulars.word() != known,
                        _ => false,
                    }
                }
                // It has closed, or could not be served: one more try.
                (Closing | Closed, Initialising) | (Closed, Initialised) => {
                    matches!(self.phase, Phase::Idle)
                }
                _ => false,
            },
        })
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
            self.guest = Some(device.frontend());
            self.watch_frontend(cx, device)?;
            match own {
                Initialising | InitWait => self.export(cx, device, own)?,
                // The connection of an earlier life of this stub.
                Initialised | Connected | Reconfiguring | Reconfigured => self.take_up(cx, device)?,
                _ => self.phase = Phase::ENDED,
            }
        }
        if let Phase::Exported { seen } = &mut self.phase {
            *seen |= frontend != Unknown;
            if !matches!(frontend, Initialised | Connected | Reconfiguring) {
                self.trial = None;
            } else if let Err(error) = self.connect(cx, device, own) {
                self.bear(cx.platform.now(), error)?;
            }
        }
        if let Phase::Connected(channel) = &self.phase {
            match (own, frontend) {
                (InitWait | Initialised, Initialised | Connected | Reconfiguring) if !channel.anew => {
                    set_state(cx.client, device, Connected)?;
                }
                // Also when the toolstack has thought better of it: the guest waits for an answer.
                (Connected | Reconfiguring, Reconfiguring) => self.reconfigure(cx, device)?,
                (Reconfigured, Connected) => set_state(cx.client, device, Connected)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits for a while if `error` may come from a frontend that is about to start anew.
    fn bear(&mut self, now: Duration, error: Box<SetupError>) -> Result<(), Box<SetupError>> {
        let passes = matches!(
            *error,
            SetupError::MissingNode { .. } | SetupError::MapGrant { .. } | SetupError::BindPort { .. }
        );
        if !passes {
            return Err(error);
        }
        let trial = self.trial.get_or_insert_with(|| {
            log::debug!("{error}; waiting for the frontend");
            Trial {
                end: now.saturating_add(TRIAL),
                next: now,
                pause: TRIAL_PAUSE,
            }
        });
        if now >= trial.end {
            return Err(error);
        }
        if now >= trial.next {
            trial.next = now.saturating_add(trial.pause).min(trial.end);
            trial.pause *= 2;
        }
        self.due = Some(trial.next);
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
            Closing if self.is_exported() || !matches!(own, Closing | Closed) => Closing,
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
        let names = cx.client.children(&directory)?;
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
            for number in cx.client.children(&format!("{directory}/{name}"))? {
                let refusal = match guest {
                    Some(guest) if guest == served && number == "0" => {
                        found = Some(guest);
                        continue;
                    }
                    Some(guest) if guest != served => SetupError::OtherGuest { guest, served },
                    _ => SetupError::OtherConnection(Excerpt::of(&number).to_string()),
                };
                let directory = format!("{directory}/{name}/{number}");
                match refuse(cx.client, self.stub, &directory, &refusal) {
                    // The guest that we serve does not wait for that.
                    Err(error) if matches!(*error, SetupError::Store(_)) => {
                        self.due = Some(cx.platform.now().saturating_add(REFUSAL_PAUSE));
                    }
                    result => result?,
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
        self.last = XenbusState::Unknown;
        self.unwatch_frontend(cx)
    }

    /// Takes stock of the devices, and tells the guest where they stand. A new guest gets all of them or none; of a
    /// frontend that starts anew only those are withheld that cannot be exported any more.
    fn export<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
        own: XenbusState,
    ) -> Result<(), Box<SetupError>> {
        if own == XenbusState::Initialising {
            cx.platform.note(Journal::forget_requests);
            set_state(cx.client, device, XenbusState::InitWait)?;
        } else if !cx.platform.journal().has_inherited() {
            let left = cx.second.left_behind(cx.client)?;
            let now = cx.platform.now();
            cx.platform.note(|journal| journal.inherit(left.as_ref(), now));
        }
        cx.platform.remember(CHANNEL, None);
        log::info!("guest {}: backend in InitWait: ready", device.frontend());
        let mut tries = 0..LIST_TRIES;
        loop {
            self.withhold_all(cx);
            let (mode, listed) = device_list::read(cx.client, device, cx.second, |_| true)?;
            self.engine.begin(mode);
            let first = listed
                .iter()
                .all(|listed| matches!(listed.state, XenbusState::Unknown | XenbusState::Initialising));
            let mut entries = Vec::new();
            for listed in listed {
                let (number, bdf) = (listed.number, listed.bdf.clone().ok());
                let change = match listed.state {
                    XenbusState::Closed => continue,
                    XenbusState::Closing => Change::Removed,
                    _ => match self.add(cx, listed.resources, None) {
                        Ok(place) => Change::Exported { place, root: true },
                        Err(error) if first => return Err(error),
                        Err(error) => Change::Refused(error),
                    },
                };
                entries.push(Entry { number, bdf, change });
            }
            for entry in &mut entries {
                if let Change::Exported { place, root } = &mut entry.change {
                    // A bus that its own scan finds behind a bridge is no root: it would be one bus twice.
                    *root = !self.engine.is_behind_bridge(*place);
                }
            }
            if self.publish(cx, device, &entries, &[], &mut tries)? {
                break;
            }
        }
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
        let left = if cx.platform.journal().has_inherited() {
            None
        } else {
            cx.second.left_behind(cx.client)?
        };
        let mut tries = 0..LIST_TRIES;
        loop {
            self.withhold_all(cx);
            let (mode, listed) = device_list::read(cx.client, device, cx.second, is_exported)?;
            self.engine.begin(mode);
            let mut entries = Vec::new();
            let mut exported = Vec::new();
            for listed in listed {
                if let (Some(left), Ok(place)) = (&left, &listed.place) {
                    cx.platform.remember(*place, left.shadow(*place));
                }
                let bdf = listed.bdf.clone().ok();
                let place = listed
                    .place
                    .and_then(|place| self.add(cx, listed.resources, Some(place)));
                match (bdf, place) {
                    (Some(bdf), Ok(place)) => exported.push((listed.number, bdf, place)),
                    (bdf, Err(error)) => entries.push(Entry {
                        number: listed.number,
                        bdf,
                        change: Change::Refused(error),
                    }),
                    (None, Ok(_)) => {}
                }
            }
            if self.publish(cx, device, &entries, &exported, &mut tries)? {
                break;
            }
        }
        if !cx.platform.journal().has_inherited() {
            let now = cx.platform.now();
            cx.platform.note(|journal| journal.inherit(left.as_ref(), now));
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
        let mut tries = 0..LIST_TRIES;
        loop {
            let entries = match self.changes(cx, device) {
                Ok(entries) => entries,
                Err(error) if error.is_of_store() => return Err(error),
                Err(error) => {
                    log::error!(
                        "guest {}: its devices stay as they are: {error}",
                        device.frontend()
                    );
                    break;
                }
            };
            if entries.is_empty() {
                break;
            }
            let published = self.publish(cx, device, &entries, &[], &mut tries);
            if !matches!(published, Ok(true)) {
                // Nobody has been told of them.
                for entry in &entries {
                    if let (Some(bdf), Change::Exported { .. }) = (entry.bdf, &entry.change) {
                        self.remove(cx, bdf);
                    }
                }
            }
            if published? {
                break;
            }
        }
        set_state(cx.client, device, XenbusState::Reconfigured)
    }

    fn changes<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
    ) -> Result<Vec<Entry>, Box<SetupError>> {
        let (_, listed) = device_list::read(cx.client, device, cx.second, |state| {
            matches!(state, XenbusState::Initialising | XenbusState::Closing)
        })?;
        let mut entries = Vec::new();
        for listed in listed {
            let bdf = listed.bdf.ok();
            let change = match (listed.state, bdf) {
                (XenbusState::Closing, Some(bdf)) => {
                    self.remove(cx, bdf);
                    Change::Removed
                }
                _ => match self.add(cx, listed.resources, None) {
                    // Also behind a bridge: a guest that runs looks for new devices on its roots only.
                    Ok(place) => Change::Exported { place, root: true },
                    Err(error) => Change::Refused(error),
                },
            };
            entries.push(Entry {
                number: listed.number,
                bdf,
                change,
            });
        }
        Ok(entries)
    }

    /// Publishes what has become of devices of the list. False if that has been renumbered meanwhile: it must be read
    /// again.
    fn publish<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
        entries: &[Entry],
        exported: &[(usize, Bdf, Bdf)],
        tries: &mut impl Iterator,
    ) -> Result<bool, Box<SetupError>> {
        if !device_list::publish(cx.client, device, entries, exported)? {
            return match tries.next() {
                Some(_) => Ok(false),
                None => Err(SetupError::Store("the list of devices changes all the time".into()).into()),
            };
        }
        for entry in entries {
            if let Change::Refused(error) = &entry.change {
                log::error!("guest {}: device {}: {error}", device.frontend(), entry.number);
            }
        }
        Ok(true)
    }

    /// Exports a device: where it stood, or, as a new one, at the first free place and with its interrupts off,
    /// whatever an earlier guest left behind.
    fn add<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        resources: Result<Resources, Box<SetupError>>,
        stood: Option<Bdf>,
    ) -> Result<Bdf, Box<SetupError>> {
        let resources = resources?;
        let (bdf, ids, frame) = (resources.bdf, resources.ids, resources.ecam);
        let ecam = cx.platform.map_ecam(frame).map_err(|error| match error {
            EcamError::Refused(NO_MEMORY) => SetupError::NoRoom(bdf),
            EcamError::Refused(errno) => SetupError::MapEcam { bdf, frame, errno },
            EcamError::Writable => SetupError::EcamWritable { bdf, frame },
        })?;
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
        let particulars = read_particulars(cx.client, device)?;
        store::value(
            cx.client,
            &device.frontend_node(key::MAGIC),
            Blame::Guest,
            "7, the version of pciif",
            |text| (text == pciif::MAGIC).then_some(()),
        )?;

        let Particulars { grant, port: remote } = particulars;
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
        cx.platform.remember(CHANNEL, Some(particulars.word()));
        self.trial = None;
        self.phase = Phase::Connected(Channel {
            page,
            port,
            particulars,
            anew: false,
        });
        // What an earlier life was at goes on from where it is.
        if !matches!(
            own,
            XenbusState::Connected | XenbusState::Reconfiguring | XenbusState::Reconfigured
        ) {
            set_state(cx.client, device, XenbusState::Connected)?;
        }
        // An earlier life may have answered a request and not told of it any more.
        cx.platform.notify(port);
        log::info!("guest {guest} connected");
        Ok(())
    }

    /// Ends the connection because of `error`, and says why.
    fn fail<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
        error: Box<SetupError>,
    ) -> Result<(), Box<SetupError>> {
        log::error!("guest {}: {error}", device.frontend());
        self.release(cx);
        self.phase = Phase::Ended { failure: Some(error) };
        self.tell_failure(cx, device)?;
        Ok(())
    }

    /// Says why the connection has ended, if that is still to be told; true if it was.
    fn tell_failure<T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
    ) -> Result<bool, Box<SetupError>> {
        if let Phase::Ended { failure } = &mut self.phase
            && let Some(error) = failure
        {
            tell_failure(cx.client, self.stub, &device.backend_dir(), error)?;
            *failure = None;
            return Ok(true);
        }
        Ok(false)
    }

    /// Gives back everything that belongs to the guest: interrupts first, then page and port, then the devices.
    fn release<T: Transport>(&mut self, cx: &mut Context<'_, P, T>) {
        self.quiesce(cx);
        // The next page knows nothing of what was asked in this one.
        self.errors = Relay::default();
        self.trial = None;
        if let Phase::Connected(channel) = core::mem::replace(&mut self.phase, Phase::ENDED) {
            cx.platform.close(channel.port);
            cx.platform.unmap_grant(channel.page);
        }
        self.withhold_all(cx);
    }

    /// Takes all devices from the guest's bus, and leaves them as they are.
    fn withhold_all<T: Transport>(&mut self, cx: &mut Context<'_, P, T>) {
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
        let path = device.frontend_node(key::STATE);
        if self.watched.as_ref() != Some(&path) {
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

/// True if a device of the list in this state is one that the guest may be using.
fn is_exported(state: XenbusState) -> bool {
    matches!(state, XenbusState::Initialised | XenbusState::Closing)
}

/// What the frontend has published.
fn read_particulars(store: &mut dyn Nodes, device: Device) -> Result<Particulars, Box<SetupError>> {
    let mut node = |key, expected| {
        let path = device.frontend_node(key);
        store::value(store, &path, Blame::Guest, expected, store::decimal)
    };
    Ok(Particulars {
        grant: node(key::PCI_OP_REF, "a grant reference in decimal")?,
        port: node(key::EVENT_CHANNEL, "an event channel port in decimal")?,
    })
}

/// True if the frontend has published another page or port than those in service, or has been at Initialising since.
/// What cannot be read is none: whoever is about to write it changes the state afterwards.
fn other_particulars<Page>(
    store: &mut dyn Nodes,
    device: Device,
    frontend: XenbusState,
    channel: &Channel<Page>,
) -> Result<bool, Box<SetupError>> {
    use XenbusState::*;
    if !matches!(frontend, Initialised | Connected | Reconfiguring) {
        return Ok(false);
    }
    match read_particulars(store, device) {
        Ok(particulars) => Ok(channel.anew || particulars != channel.particulars),
        Err(error) if error.is_of_store() => Err(error),
        Err(_) => Ok(false),
    }
}

fn parse_domid(text: &str) -> Option<DomId> {
    store::decimal(text)?.try_into().ok()
}

fn set_state(store: &mut dyn Nodes, device: Device, state: XenbusState) -> Result<(), Box<SetupError>> {
    let path = device.backend_node(key::STATE);
    store.set(&path, state.as_str())
}

/// Turns away a connection that is not ours to serve, once: unless it is on its way down already.
fn refuse(
    store: &mut dyn Nodes,
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
    store: &mut dyn Nodes,
    stub: DomId,
    directory: &str,
    error: &SetupError,
) -> Result<(), Box<SetupError>> {
    store::report(store, stub, directory, error);
    let closing = XenbusState::Closing.as_str();
    store.set(&format!("{directory}/error"), &store::error_text(error))?;
    store.set(&format!("{directory}/{}", key::STATE), closing)
}
