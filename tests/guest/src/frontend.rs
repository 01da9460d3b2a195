//! The frontend's side of a connection to a PCI backend in any domain.

use crate::answer::{Answer, Shared};
use crate::op::Op;
use crate::shape::Shape;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;
use drivers::platform::{DomId, Errno, GrantRef, Platform, Port};
use xenbus::client::{Client, Error, Store, Transport};
use xenbus::path::key;
use xenbus::pciif::layout::{FLAGS, OP, OP_SIZE, TOTAL_SIZE};
use xenbus::pciif::{ACTIVE, MAGIC, SharedPage};
use xenbus::state::XenbusState;

/// Our end of the device, below our home.
pub const DIRECTORY: &str = "device/pci/0";

/// Number of slots on a bus.
const SLOTS: u8 = 32;
/// How long a backend may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// How long a backend may take for an answer. It is longer than pcifront's two seconds: a host can keep an emulated
/// machine from running for longer, and that is no difference between backends.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Interval between reads of a node that another domain will change.
const LOOK: Duration = Duration::from_millis(20);

/// Why the run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// xenstored refused a request.
    Store(String),
    /// A node has a wrong value.
    Node(String),
    /// Xen refused us a page or a port.
    Xen(Errno),
    /// The timeout ended before the expected event.
    Silent(&'static str),
    /// The backend broke a rule.
    Unsound(&'static str),
    /// The backend has gone to this state instead of connecting.
    Refused(XenbusState),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => f.write_str(error),
            Self::Node(path) => write!(f, "{path} has no value of use"),
            Self::Xen(Errno(errno)) => write!(f, "Xen refuses a page or a port (errno {errno})"),
            Self::Silent(what) => write!(f, "waited in vain for {what}"),
            Self::Unsound(what) => write!(f, "the backend is not sound: {what}"),
            Self::Refused(state) => write!(
                f,
                "the backend does not connect: it is in state {}",
                state.as_str()
            ),
        }
    }
}

impl<E: fmt::Display> From<Error<E>> for Failure {
    fn from(error: Error<E>) -> Self {
        Self::Store(error.to_string())
    }
}

/// Page and event channel that we share with the backend.
#[derive(Debug)]
pub struct Frontend<P: Platform> {
    /// The page.
    pub page: P::Page,
    /// Its grant.
    pub grant: GrantRef,
    /// Our end of the event channel.
    pub port: Port,
}

/// The path of a node of ours.
pub fn node(key: &str) -> String {
    [DIRECTORY, "/", key].concat()
}

/// Calls `done` every 20 ms until it returns a value, for at most `limit`.
///
/// # Errors
/// Those of `done`, and [`Failure::Silent`] with `what`.
pub fn wait_for<P: Platform, R>(
    platform: &mut P,
    limit: Duration,
    what: &'static str,
    mut done: impl FnMut() -> Result<Option<R>, Failure>,
) -> Result<R, Failure> {
    let end = platform.now().saturating_add(limit);
    loop {
        if let Some(result) = done()? {
            return Ok(result);
        }
        let now = platform.now();
        if now >= end {
            return Err(Failure::Silent(what));
        }
        platform.wait(&[], Some(now.saturating_add(LOOK)));
    }
}

impl<P: Platform> Frontend<P> {
    /// Shares a page and a port with the backend that our nodes name, and connects as pcifront does.
    ///
    /// # Errors
    /// What [`Failure`] names.
    pub fn connect<T: Transport>(platform: &mut P, client: &mut Client<T>) -> Result<Self, Failure> {
        let backend = client.read(&node(key::BACKEND))?;
        let id = node(key::BACKEND_ID);
        let domain: DomId = client.read(&id)?.parse().map_err(|_| Failure::Node(id))?;
        let (page, grant) = platform.share_page(domain).map_err(Failure::Xen)?;
        let port = platform.alloc_unbound(domain).map_err(Failure::Xen)?;
        // As pcifront does: these nodes in one transaction, and then the state.
        client.transaction(|store| {
            store.write(&node(key::PCI_OP_REF), &grant.to_string())?;
            store.write(&node(key::EVENT_CHANNEL), &port.to_string())?;
            store.write(&node(key::MAGIC), MAGIC)
        })?;
        client.write(&node(key::STATE), XenbusState::Initialised.as_str())?;
        let state = [&backend, "/", key::STATE].concat();
        wait_for(
            platform,
            CONNECT_LIMIT,
            "the backend to connect",
            || match client.read_state(&state)? {
                XenbusState::Connected => Ok(Some(())),
                state @ (XenbusState::Closing | XenbusState::Closed) => Err(Failure::Refused(state)),
                _ => Ok(None),
            },
        )?;
        client.write(&node(key::STATE), XenbusState::Connected.as_str())?;
        Ok(Self { page, grant, port })
    }

    /// Ends grant and event channel.
    pub fn disconnect(self, platform: &mut P) {
        platform.close(self.port);
        platform.unshare_page(self.page, self.grant);
    }

    /// Sends any bytes as a request, and does not wait.
    pub fn send(&mut self, platform: &mut P, request: &[u8; OP_SIZE]) {
        self.page.copy_in(OP, request);
        self.page.set_bits(FLAGS, ACTIVE);
        platform.notify(self.port);
    }

    /// True while a request waits for its answer.
    pub fn is_active(&self) -> bool {
        self.page.load(FLAGS) & ACTIVE != 0
    }

    /// The shapes of all functions 0 of the bus.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn functions(&mut self, platform: &mut P) -> Result<Vec<Shape>, Failure> {
        let mut shapes = Vec::new();
        for devfn in (0..SLOTS).map(|slot| slot << 3) {
            let mut read = |offset: u16, width: u8| -> Result<Answer, Failure> {
                self.ask(platform, &Op::read(devfn.into(), offset.into(), width.into()))
            };
            let ids = read(0, 4)?;
            if ids.err == 0 && ids.value() != u32::MAX {
                shapes.push(Shape::take(devfn, |offset, width| {
                    read(offset, width).map(|answer| answer.value())
                })?);
            }
        }
        Ok(shapes)
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// [`Failure::Silent`].
    pub fn ask(&mut self, platform: &mut P, op: &Op) -> Result<Answer, Failure> {
        self.time(platform, op).map(|(_, answer)| answer)
    }

    /// As [`Self::ask`], and measures the time between the write of the request and the end of the wait.
    ///
    /// # Errors
    /// [`Failure::Silent`].
    pub fn time(&mut self, platform: &mut P, op: &Op) -> Result<(Duration, Answer), Failure> {
        let mut before = self.shared();
        let request = op.encode();
        before[OP..OP + OP_SIZE].copy_from_slice(&request);
        let began = platform.now();
        self.send(platform, &request);
        self.finish(platform)?;
        let time = platform.now().saturating_sub(began);
        Ok((time, Answer::read(op, &before, &self.shared())))
    }

    /// Waits for the answer to the request that was sent.
    ///
    /// # Errors
    /// [`Failure::Silent`].
    pub fn finish(&mut self, platform: &mut P) -> Result<(), Failure> {
        let end = platform.now().saturating_add(ANSWER_LIMIT);
        loop {
            // Clear the event before the page is checked, so that an event after the check ends the wait.
            platform.take_pending(self.port);
            if !self.is_active() {
                return Ok(());
            }
            if platform.now() >= end {
                return Err(Failure::Silent("an answer"));
            }
            platform.wait(&[self.port], Some(end));
        }
    }

    fn shared(&self) -> Shared {
        let mut bytes = [0; TOTAL_SIZE];
        self.page.copy_out(0, &mut bytes);
        bytes
    }
}
