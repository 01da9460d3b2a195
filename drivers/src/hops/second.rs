//! The second hop: a PCI frontend towards dom0's service.
//!
//! The stub publishes a page and a port as pcifront does, and posts the requests that it may not carry out itself. The
//! device type is `bulkhead`, because dom0's kernel claims every device of type `pci`.
//!
//! # Late answers
//! pciif has no request numbers, so a late answer could be taken for that of the next request. A request whose time is up
//! is therefore **not** withdrawn: it stays in the page. For [`TIMEOUT`] from then on, further requests wait for its answer,
//! so that one slow answer costs one request; later ones fail at once with [`RequestError::ServiceBusy`], so that a driver
//! which asks a hundred times is not kept for minutes. The late answer is dropped, and what it did to the device stays. After
//! a lost answer about MSI or MSI-X, the next request about them starts by turning them off (`MsiState`). The first request
//! after an export does so too, because the lost one may be of an earlier connection or run.

use crate::error::{Blame, MessageKind, RequestError, SetupError};
use crate::log;
use crate::platform::{DomId, GrantRef, Platform, Port};
use crate::policy::config::Access;
use crate::policy::config::bar::Bars;
use crate::policy::dom0::Dom0;
use crate::policy::engine::MAX_FUNCTIONS;
use crate::policy::resources::Resources;
use crate::store::{self, Nodes};
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;
use pci::bdf::Bdf;
use xenbus::client::{Client, Transport};
use xenbus::counters::Counters;
use xenbus::device::{self, SlotMode};
use xenbus::handover_block::{self, HandoverBlock};
use xenbus::path::{Device, Numbered, key};
use xenbus::pciif::frontend::{self, Posted};
use xenbus::pciif::{self, Command, MsixEntry, Request};
use xenbus::state::XenbusState;

/// How long one request of the guest may wait for dom0. Linux's pcifront gives up after 2 s: until then it can still be
/// told an error.
pub const TIMEOUT: Duration = Duration::from_millis(1500);

/// The least that dom0 has for a request that has waited before it could be posted.
pub const ANSWER_TIME: Duration = Duration::from_millis(400);

/// A node that the service writes for each device, and what it says about the device's [`Resources`].
struct Field {
    key: Numbered,
    /// The flags that only some devices need may be missing (docs/protocol.md).
    required: bool,
    expected: &'static str,
    /// Puts a value into the resources; false if it is not what is expected.
    read: fn(&mut Resources, &str) -> bool,
}

/// What a node that is on or off must say.
const FLAG: &str = "1 or 0";

/// All of them. In a table, because code for each costs the image ten times as much.
static FIELDS: [Field; 9] = [
    Field {
        key: Numbered::Bars,
        required: true,
        expected: "seven START,SIZE,FLAGS in hex, each a power of two and aligned, separated by ;",
        read: |resources, text| {
            let bars = text.parse::<device::Bars>().ok();
            put(&mut resources.bars, bars.and_then(|bars| Bars::new(&bars)))
        },
    },
    Field {
        key: Numbered::Virtual,
        required: false,
        expected: FLAG,
        read: |resources, text| put(&mut resources.virtual_function, flag(text)),
    },
    Field {
        key: Numbered::Ids,
        required: true,
        expected: "VVVV:DDDD",
        read: |resources, text| put(&mut resources.ids, text.parse().ok()),
    },
    Field {
        key: Numbered::Ecam,
        required: true,
        expected: "a frame number in hex",
        read: |resources, text| put(&mut resources.ecam, store::hex(text)),
    },
    Field {
        key: Numbered::Irq,
        required: true,
        expected: "a decimal number",
        read: |resources, text| put(&mut resources.irq, store::decimal(text)),
    },
    Field {
        key: Numbered::Intx,
        required: true,
        expected: FLAG,
        read: |resources, text| put(&mut resources.intx, flag(text)),
    },
    Field {
        key: Numbered::Permissive,
        required: false,
        expected: FLAG,
        read: |resources, text| put(&mut resources.permissive, flag(text)),
    },
    Field {
        key: Numbered::Quirks,
        required: false,
        expected: "REG:SIZE:MASK in hex, at most 32, apart from each other, separated by ;",
        read: |resources, text| put(&mut resources.quirks, text.parse().ok()),
    },
    Field {
        key: Numbered::Msi,
        required: false,
        expected: FLAG,
        read: |resources, text| put(&mut resources.msi, flag(text)),
    },
];

fn flag(text: &str) -> Option<bool> {
    match text {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

/// Puts a value where it belongs, if there is one.
fn put<R>(place: &mut R, value: Option<R>) -> bool {
    match value {
        Some(value) => {
            *place = value;
            true
        }
        None => false,
    }
}

/// The page and the port that are shared with the service.
#[derive(Debug)]
struct ServiceChannel<Page> {
    page: Page,
    grant: GrantRef,
    port: Port,
    /// A request whose time was up, and which is still in the page.
    overdue: Option<Overdue>,
}

/// A request that the service has not answered in time.
#[derive(Debug)]
struct Overdue {
    posted: Posted,
    /// Until when further requests wait for its answer.
    until: Duration,
}

impl<Page: pciif::SharedPage> ServiceChannel<Page> {
    /// Waits for the answer to a request that was posted. Returns the request if there is none at the deadline. The answer is
    /// looked for without going to sleep until `spin`.
    fn wait_for_answer<P: Platform<Page = Page>>(
        &self,
        platform: &mut P,
        mut posted: Posted,
        spin: Duration,
        deadline: Duration,
    ) -> Result<frontend::Answer, Posted> {
        loop {
            // Taken before the page is read: an answer that comes after that marks the port again, and ends the wait.
            platform.take_pending(self.port);
            match posted.poll(&self.page) {
                Ok(answer) => return Ok(answer),
                Err(still) => posted = still,
            }
            // After the page: an answer that is there counts, however late it is.
            let now = platform.now();
            if now >= deadline {
                return Err(posted);
            }
            if now < spin {
                platform.relax();
            } else {
                platform.wait(&[self.port], Some(deadline));
            }
        }
    }
}

/// How far the connection is.
#[derive(Debug)]
enum ServicePhase<Page> {
    /// Nothing is shared.
    Down,
    /// Published; the service has not connected yet.
    Offered(ServiceChannel<Page>),
    /// In service.
    Up(ServiceChannel<Page>),
    /// It could not be set up. It is tried again after the service has been away.
    Failed,
}

/// The connection to dom0's service.
#[derive(Debug)]
pub struct SecondHop<Page> {
    device: Device,
    phase: ServicePhase<Page>,
}

impl<Page: pciif::SharedPage> SecondHop<Page> {
    /// The hop of the stub with domain number `stub`; nothing is shared yet.
    pub const fn new(stub: DomId) -> Self {
        Self {
            device: Device::second_hop(stub),
            phase: ServicePhase::Down,
        }
    }

    /// The device that the two ends meet at.
    pub const fn device(&self) -> Device {
        self.device
    }

    /// True while the service takes requests.
    pub const fn is_up(&self) -> bool {
        matches!(self.phase, ServicePhase::Up(_))
    }

    /// What is shared with the service, and the port to it, while it takes requests.
    pub const fn channel(&self) -> Option<(&Page, Port)> {
        match &self.phase {
            ServicePhase::Up(channel) => Some((&channel.page, channel.port)),
            _ => None,
        }
    }

    /// Follows the states of both ends.
    ///
    /// # Errors
    /// xenstore's. Every other failure is told in the error node, and ends this attempt.
    pub fn reconcile<P, T>(&mut self, platform: &mut P, client: &mut Client<T>) -> Result<(), Box<SetupError>>
    where
        P: Platform<Page = Page>,
        T: Transport,
    {
        use XenbusState::*;
        // Every write of the own state causes an event that leads here again: each arm must lead to one where nothing is left
        // to do.
        let own = store::state(client, &self.device.frontend_node(key::STATE))?;
        let service = if own == Unknown {
            // Without our own nodes there is no device, whatever is left of the other end.
            Unknown
        } else {
            store::state(client, &self.device.backend_node(key::STATE))?
        };
        match (&self.phase, service) {
            // Connected: the service serves the page of an earlier run. It drops that page when it sees another one.
            (ServicePhase::Down, Initialising | InitWait | Initialised | Connected) => {
                self.try_offer(platform, client)
            }
            // A service in these states waits for a page and a port: it has let go of the old ones.
            (ServicePhase::Up(_), Initialising | InitWait) => {
                log::warn!("second hop: dom0's service starts anew");
                self.drop_channel(platform);
                self.try_offer(platform, client)
            }
            // The stub never goes back to this state itself: the toolstack has made the nodes anew, without page and port.
            (ServicePhase::Offered(_), Initialising | InitWait) if own == Initialising => {
                self.drop_channel(platform);
                self.try_offer(platform, client)
            }
            // A service that served an earlier run is Connected before it has mapped this page. It serves a request that is
            // in the page by then.
            (ServicePhase::Offered(_), Connected) => {
                self.set_state(client, Connected)?;
                if let ServicePhase::Offered(channel) =
                    core::mem::replace(&mut self.phase, ServicePhase::Down)
                {
                    self.phase = ServicePhase::Up(channel);
                }
                log::info!("second hop connected");
                Ok(())
            }
            (ServicePhase::Offered(_) | ServicePhase::Up(_), Closing | Closed | Unknown) => {
                log::warn!("second hop: dom0's service has gone; reads go on, writes fail until it is back");
                self.drop_channel(platform);
                if own == Unknown {
                    Ok(())
                } else {
                    self.set_state(client, Closed)
                }
            }
            (ServicePhase::Failed, Closed | Unknown) => {
                self.phase = ServicePhase::Down;
                Ok(())
            }
            (ServicePhase::Failed, _) if own != Closing => self.set_state(client, Closing),
            // A state that an earlier run has written, or that could not be written when it was due.
            (ServicePhase::Down, Closing | Closed | Unknown)
                if !matches!(own, Unknown | Initialising | Closing | Closed) =>
            {
                self.set_state(client, Closed)
            }
            _ => Ok(()),
        }
    }

    /// The guest that the toolstack has this stub serve.
    ///
    /// # Errors
    /// A missing or bad node, blamed on the toolstack, or [`SetupError::Store`].
    pub fn guest(&self, store: &mut dyn Nodes) -> Result<DomId, Box<SetupError>> {
        store::domid(store, &self.device.backend_node(key::GUEST), "a domain number")
    }

    /// The service's list of devices for this stub.
    ///
    /// # Errors
    /// As [`Self::guest`]. A bad address is an error of that device alone, which [`Self::resources`] tells.
    pub(crate) fn list(&self, store: &mut dyn Nodes) -> Result<ServiceList, Box<SetupError>> {
        let count = store::number(
            store,
            &self.device.backend_node(key::NUM_DEVS),
            Blame::Toolstack,
            "a number from 0 to 256",
            MAX_FUNCTIONS as u32,
        )?;
        let mut addresses = Vec::new();
        for number in 0..count as usize {
            // A bad address spoils its own device only: the others are served.
            match self.address(store, number) {
                Err(error) if error.is_of_store() => return Err(error),
                address => addresses.push(address.ok()),
            }
        }
        Ok(ServiceList(addresses))
    }

    /// The address of the device with this number in the service's list.
    fn address(&self, store: &mut dyn Nodes, index: usize) -> Result<Bdf, Box<SetupError>> {
        let path = self.device.numbered_node(Numbered::Device, index);
        store::address(store, &path, store::BDF)
    }

    /// What the service says about device `bdf`. `list` is of the same transaction.
    ///
    /// # Errors
    /// As [`Self::guest`], and if the device is not in the list. If it may be hidden behind a bad address there, that
    /// address is the error.
    pub(crate) fn resources(
        &self,
        store: &mut dyn Nodes,
        list: &ServiceList,
        bdf: Bdf,
    ) -> Result<Resources, Box<SetupError>> {
        let Some(index) = list.0.iter().position(|address| *address == Some(bdf)) else {
            // The device may be the one behind the bad node, which says more than "not listed".
            if let Some(bad) = list.0.iter().position(Option::is_none) {
                self.address(store, bad)?;
            }
            return Err(SetupError::NotServed(bdf).into());
        };
        let mut resources = Resources::of(bdf);
        for field in &FIELDS {
            let path = self.device.numbered_node(field.key, index);
            let mut read = |text: &str| (field.read)(&mut resources, text);
            let found = store::check(store, &path, Blame::Toolstack, field.expected, &mut read)?;
            if field.required && !found {
                return Err(store::missing_node(&path, Blame::Toolstack));
            }
        }
        if resources.virtual_function {
            resources.bars = resources.bars.of_virtual_function();
        }
        Ok(resources)
    }

    /// How the guest's devices are addressed.
    ///
    /// # Errors
    /// As [`Self::guest`].
    pub fn slots(&self, store: &mut dyn Nodes) -> Result<SlotMode, Box<SetupError>> {
        let mode = store::optional(
            store,
            &self.device.backend_node(key::SLOTS),
            Blame::Toolstack,
            "vpci or passthrough",
            |text| text.parse().ok(),
        )?;
        Ok(mode.unwrap_or_default())
    }

    /// The handover block of the stub domain before this one, if the toolstack has written it. One that cannot be read
    /// counts as none: nothing in it is needed to serve.
    ///
    /// # Errors
    /// [`SetupError::Store`] or [`SetupError::StoreLost`].
    pub fn read_handover(&self, store: &mut dyn Nodes) -> Result<Option<HandoverBlock>, Box<SetupError>> {
        let text = store::read(store, &self.device.backend_node(key::HANDOVER_BLOCK))?;
        let left = text.as_deref().map(HandoverBlock::from_hex);
        if left == Some(None) {
            log::warn!("what the stub before this one has left is not readable");
        }
        Ok(left.flatten())
    }

    /// Publishes in the second hop's page what the next stub domain must know. Does nothing
    /// while the service is not connected: there is no page.
    pub fn publish_handover(
        &self,
        functions: impl Iterator<Item = (Bdf, u32)>,
        refused: &[handover_block::Op],
    ) {
        if let ServicePhase::Up(channel) = &self.phase {
            handover_block::publish(&channel.page, functions, refused);
        }
    }

    /// Publishes that this request is under way from here on, and how many runs of a stub it has brought down in a row.
    pub fn begin_request(&self, op: &handover_block::Op, strikes: u32) {
        if let ServicePhase::Up(channel) = &self.phase {
            handover_block::begin(&channel.page, op, strikes);
        }
    }

    /// Publishes that no request is under way.
    pub fn end_request(&self) {
        if let ServicePhase::Up(channel) = &self.phase {
            handover_block::end(&channel.page);
        }
    }

    /// Publishes the counters for `bulkhead status`: all of them in a page that may be new, or those that have changed.
    pub fn publish_counters(&self, counters: &mut Counters, all: bool) {
        if let ServicePhase::Up(channel) = &self.phase {
            match all {
                true => counters.publish(&channel.page),
                false => counters.publish_changes(&channel.page),
            }
        }
    }

    /// The way to dom0 for one request of the guest, which must be answered by `deadline`.
    pub fn link<'a, P: Platform<Page = Page>>(
        &'a mut self,
        platform: &'a mut P,
        deadline: Duration,
    ) -> Link<'a, P> {
        Link {
            hop: self,
            platform,
            deadline,
        }
    }

    fn try_offer<P, T>(&mut self, platform: &mut P, client: &mut Client<T>) -> Result<(), Box<SetupError>>
    where
        P: Platform<Page = Page>,
        T: Transport,
    {
        // What was set up is taken back in either case. A failure of xenstore's is tried again, by the caller; any other one
        // ends this attempt.
        let Err(error) = self.offer(platform, client) else {
            return Ok(());
        };
        self.drop_channel(platform);
        if error.is_of_store() {
            return Err(error);
        }
        log::error!("second hop: {error}");
        self.phase = ServicePhase::Failed;
        store::report(
            client,
            self.device.frontend(),
            &self.device.frontend_dir(),
            &store::error_text(&error),
        );
        self.set_state(client, XenbusState::Closing)
    }

    /// Shares a page and a port, and publishes them as pcifront does.
    fn offer<P, T>(&mut self, platform: &mut P, client: &mut Client<T>) -> Result<(), Box<SetupError>>
    where
        P: Platform<Page = Page>,
        T: Transport,
    {
        let dom0 = self.device.backend();
        let (page, grant) = platform.share_page(dom0).map_err(SetupError::Share)?;
        let port = match platform.alloc_unbound(dom0) {
            Ok(port) => port,
            Err(errno) => {
                platform.unshare_page(page, grant);
                return Err(SetupError::Share(errno).into());
            }
        };
        // Kept from here on, so that `drop_channel` finds it whatever happens.
        self.phase = ServicePhase::Offered(ServiceChannel {
            page,
            grant,
            port,
            overdue: None,
        });
        let device = self.device;
        // In one transaction, so that the service never finds the page of one run with the port of another.
        store::transaction(client, &mut |store| {
            store.set(&device.frontend_node(key::PCI_OP_REF), &format!("{grant}"))?;
            store.set(&device.frontend_node(key::EVENT_CHANNEL), &format!("{port}"))?;
            store.set(&device.frontend_node(key::MAGIC), pciif::MAGIC)
        })?;
        self.set_state(client, XenbusState::Initialised)?;
        log::info!("second hop: page and port published, waiting for dom0's service");
        Ok(())
    }

    fn drop_channel<P: Platform<Page = Page>>(&mut self, platform: &mut P) {
        // An overdue request goes with the page: its answer can reach nobody any more.
        if let ServicePhase::Offered(channel) | ServicePhase::Up(channel) =
            core::mem::replace(&mut self.phase, ServicePhase::Down)
        {
            platform.close(channel.port);
            platform.unshare_page(channel.page, channel.grant);
        }
    }

    fn set_state(&self, store: &mut dyn Nodes, state: XenbusState) -> Result<(), Box<SetupError>> {
        store.set(&self.device.frontend_node(key::STATE), state.as_str())
    }
}

/// The service's list of devices: the address under each number; `None` where the node with that is bad.
#[derive(Clone, Debug)]
pub(crate) struct ServiceList(Vec<Option<Bdf>>);

/// How long an answer of the service is looked for in the page without going to sleep. A write takes less, as a rule,
/// and its answer is there before the event that tells of it.
const SPIN_TIME: Duration = Duration::from_micros(300);

/// The way to dom0 for one request of the guest.
pub struct Link<'a, P: Platform> {
    hop: &'a mut SecondHop<P::Page>,
    platform: &'a mut P,
    /// When to give up.
    deadline: Duration,
}

impl<P: Platform> Link<'_, P> {
    /// Posts a request and waits for its answer.
    fn exchange(
        &mut self,
        request: &Request,
        entries: &[MsixEntry],
    ) -> Result<frontend::Received, RequestError> {
        // At once, not at the deadline: the guest's vCPU is blocked while it waits.
        let ServicePhase::Up(channel) = &mut self.hop.phase else {
            return Err(RequestError::ServiceAbsent);
        };
        let mut started = self.platform.now();
        // The page holds one request. With the old one still in it, its late answer would be taken for this one's.
        if let Some(Overdue { posted, until }) = channel.overdue.take() {
            let patience = until.min(self.deadline.saturating_sub(ANSWER_TIME));
            if let Err(posted) = channel.wait_for_answer(self.platform, posted, started, patience) {
                channel.overdue = Some(Overdue { posted, until });
                return Err(RequestError::ServiceBusy);
            }
            log::warn!("second hop: an answer came too late and was dropped");
            started = self.platform.now();
        }
        let posted =
            frontend::post(&channel.page, request, entries).map_err(|_| RequestError::ServiceBusy)?;
        self.platform.notify(channel.port);
        let spin = started.saturating_add(SPIN_TIME);
        match channel.wait_for_answer(self.platform, posted, spin, self.deadline) {
            Ok(answer) => answer.map_err(RequestError::ServiceRefused),
            Err(posted) => {
                // Not withdrawn: see "Late answers" above.
                let now = self.platform.now();
                channel.overdue = Some(Overdue {
                    posted,
                    until: now.saturating_add(TIMEOUT),
                });
                Err(RequestError::ServiceSilent(now.saturating_sub(started)))
            }
        }
    }
}

impl<P: Platform> Dom0 for Link<'_, P> {
    fn conf_write(&mut self, function: Bdf, access: Access, value: u32) -> Result<(), RequestError> {
        let request = Request::conf_write(function, access.offset(), access.width(), value);
        self.exchange(&request, &[]).map(drop)
    }

    fn enable_msi(&mut self, function: Bdf) -> Result<u32, RequestError> {
        let request = Request::new(Command::EnableMsi, function);
        self.exchange(&request, &[]).map(|success| success.value)
    }

    fn enable_msix(&mut self, function: Bdf, entries: &[MsixEntry]) -> Result<Vec<u16>, RequestError> {
        let request = Request::new(Command::EnableMsix, function);
        self.exchange(&request, entries).map(|success| success.vectors)
    }

    fn disable(&mut self, function: Bdf, kind: MessageKind) -> Result<(), RequestError> {
        let command = match kind {
            MessageKind::Msi => Command::DisableMsi,
            MessageKind::Msix => Command::DisableMsix,
        };
        self.exchange(&Request::new(command, function), &[]).map(drop)
    }
}
