//! A backend: it follows the frontend's state as Linux's xen-netback does, and moves frames. Tests write anything else into
//! the rings by [`Rings`].

use super::machine::{Machine, Page};
use drivers::platform::{DomId, GrantRef, Port};
use std::collections::VecDeque;
use xenbus::client::{Client, Store};
use xenbus::model::{Connection, Xenstored};
use xenbus::pciif::SharedPage;
use xenbus::state::XenbusState;

/// Offsets in a ring's page (`xen/include/public/io/ring.h`), written here once more: the frontend's own may be wrong.
pub const REQ_PROD: usize = 0;
pub const REQ_EVENT: usize = 4;
pub const RSP_PROD: usize = 8;
pub const RSP_EVENT: usize = 12;

pub fn rx_slot(index: u32) -> usize {
    64 + (index as usize & 255) * 8
}

pub fn tx_slot(index: u32) -> usize {
    64 + (index as usize & 255) * 12
}

/// A request of the transmit ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    pub grant: GrantRef,
    pub offset: u16,
    pub flags: u16,
    pub id: u16,
    pub size: u16,
}

/// The mapped rings.
#[derive(Debug)]
pub struct Rings {
    machine: Machine,
    domid: DomId,
    pub rx: Page,
    pub tx: Page,
    grants: [GrantRef; 2],
    pub port: Port,
    /// Requests taken and not answered: id and grant.
    rx_taken: VecDeque<(u16, GrantRef)>,
    rx_requests: u32,
    rx_responses: u32,
    tx_requests: u32,
    tx_responses: u32,
}

fn bytes<const N: usize>(page: &Page, offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    page.memory().copy_out(offset, &mut bytes);
    bytes
}

impl Rings {
    fn map(machine: &Machine, domid: DomId, tx: GrantRef, rx: GrantRef, port: Port) -> Option<Self> {
        let tx_page = machine.map(domid, tx)?;
        let Some(rx_page) = machine.map(domid, rx) else {
            machine.unmap(tx);
            return None;
        };
        if !machine.bind(domid, port) {
            machine.unmap(tx);
            machine.unmap(rx);
            return None;
        }
        // What the responses say is where a backend begins that takes up rings which were in use.
        let (rx_at, tx_at) = (rx_page.load(RSP_PROD), tx_page.load(RSP_PROD));
        Some(Self {
            machine: machine.clone(),
            domid,
            rx: rx_page,
            tx: tx_page,
            grants: [tx, rx],
            port,
            rx_taken: VecDeque::new(),
            rx_requests: rx_at,
            rx_responses: rx_at,
            tx_requests: tx_at,
            tx_responses: tx_at,
        })
    }

    pub fn unmap(self) {
        self.machine.unbind(self.port);
        for grant in self.grants {
            self.machine.unmap(grant);
        }
    }

    /// Requests for frames that are there and were not taken.
    pub fn wanted(&self) -> u32 {
        self.rx.load(REQ_PROD).wrapping_sub(self.rx_requests) + self.rx_taken.len() as u32
    }

    /// Takes the next request for a frame: its id and its grant.
    pub fn take_wanted(&mut self) -> Option<(u16, GrantRef)> {
        if self.rx_requests != self.rx.load(REQ_PROD) {
            let [a, b, _, _, grant @ ..] = bytes::<8>(&self.rx, rx_slot(self.rx_requests));
            self.rx_requests = self.rx_requests.wrapping_add(1);
            self.rx_taken
                .push_back((u16::from_le_bytes([a, b]), u32::from_le_bytes(grant)));
        }
        self.rx_taken.pop_front()
    }

    /// Writes a response with any contents, and shows it.
    pub fn respond_rx(&mut self, id: u16, offset: u16, flags: u16, status: i16) {
        let mut slot = Vec::new();
        for field in [id, offset, flags, status as u16] {
            slot.extend(field.to_le_bytes());
        }
        self.rx.copy_in(rx_slot(self.rx_responses), &slot);
        let event = self.rx.load(RSP_EVENT);
        self.rx_responses = self.rx_responses.wrapping_add(1);
        self.rx.store(RSP_PROD, self.rx_responses);
        if event == self.rx_responses {
            self.machine.notify_frontend(self.port);
        }
    }

    /// Sends a frame as it should be sent. False if no page waits for it.
    pub fn deliver(&mut self, frame: &[u8]) -> bool {
        let Some((id, grant)) = self.take_wanted() else {
            return false;
        };
        let page = self.machine.map(self.domid, grant).expect("a granted page");
        page.memory().copy_in(0, frame);
        self.machine.unmap(grant);
        self.respond_rx(id, 0, 0, frame.len() as i16);
        true
    }

    /// The next request to send.
    pub fn take_sent(&mut self) -> Option<Sent> {
        if self.tx_requests == self.tx.load(REQ_PROD) {
            return None;
        }
        let slot: [u8; 12] = bytes(&self.tx, tx_slot(self.tx_requests));
        self.tx_requests = self.tx_requests.wrapping_add(1);
        let half = |at: usize| u16::from_le_bytes([slot[at], slot[at + 1]]);
        Some(Sent {
            grant: u32::from(half(0)) | u32::from(half(2)) << 16,
            offset: half(4),
            flags: half(6),
            id: half(8),
            size: half(10),
        })
    }

    pub fn respond_tx(&mut self, id: u16, status: i16) {
        let mut slot = id.to_le_bytes().to_vec();
        slot.extend(status.to_le_bytes());
        self.tx.copy_in(tx_slot(self.tx_responses), &slot);
        let event = self.tx.load(RSP_EVENT);
        self.tx_responses = self.tx_responses.wrapping_add(1);
        self.tx.store(RSP_PROD, self.tx_responses);
        if event == self.tx_responses {
            self.machine.notify_frontend(self.port);
        }
    }

    /// All frames that were sent, each answered.
    pub fn collect(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some(sent) = self.take_sent() {
            let page = self.machine.map(self.domid, sent.grant).expect("a granted page");
            let mut frame = vec![0; sent.size.into()];
            page.memory().copy_out(sent.offset.into(), &mut frame);
            self.machine.unmap(sent.grant);
            frames.push(frame);
            self.respond_tx(sent.id, 0);
        }
        frames
    }
}

/// The backend of one device.
pub struct Netback {
    pub domid: DomId,
    pub store: Client<Connection>,
    pub rings: Option<Rings>,
    machine: Machine,
    frontend: String,
    backend: String,
    state: XenbusState,
}

impl Netback {
    /// A backend that has not begun.
    pub fn new(machine: &Machine, xenstored: &Xenstored, domid: DomId, frontend: DomId) -> Self {
        Self {
            domid,
            store: Client::new(xenstored.connect(domid)),
            rings: None,
            machine: machine.clone(),
            frontend: format!("/local/domain/{frontend}/device/vif/0"),
            backend: format!("/local/domain/{domid}/backend/vif/{frontend}/0"),
            state: XenbusState::Initialising,
        }
    }

    pub fn set_state(&mut self, state: XenbusState) {
        self.state = state;
        self.store
            .write(&format!("{}/state", self.backend), state.as_str())
            .unwrap();
    }

    pub fn state(&self) -> XenbusState {
        self.state
    }

    pub fn rings(&mut self) -> &mut Rings {
        self.rings.as_mut().expect("a connected backend")
    }

    /// A value that the frontend has published.
    pub fn published(&mut self, key: &str) -> Option<String> {
        self.store
            .read_optional(&format!("{}/{key}", self.frontend))
            .unwrap()
    }

    /// Ends what it has mapped.
    pub fn disconnect(&mut self) {
        if let Some(rings) = self.rings.take() {
            rings.unmap();
        }
    }

    /// Is bound anew by its kernel: what it knew is gone, and it waits.
    pub fn begin(&mut self) {
        self.disconnect();
        self.set_state(XenbusState::InitWait);
    }

    /// Follows the frontend's state; true if that changed its own.
    pub fn step(&mut self) -> bool {
        use XenbusState::*;
        let frontend = self
            .store
            .read_state(&format!("{}/state", self.frontend))
            .unwrap_or(Unknown);
        let path: &[XenbusState] = match (frontend, self.state) {
            (Initialising, Connected) => &[Closing, Closed, InitWait],
            (Initialising, Closing) => &[Closed, InitWait],
            (Initialising, Initialising | Closed) => &[InitWait],
            (Connected, Initialising | Closed) => &[InitWait, Connected],
            (Connected, InitWait) => &[Connected],
            (Closing, Connected | InitWait) => &[Closing],
            (Closed, Connected | InitWait) => &[Closing, Closed],
            (Closed, Closing) => &[Closed],
            _ => &[],
        };
        for &next in path {
            match next {
                Closing => self.disconnect(),
                Connected => {
                    let mut number = |key| -> u32 { self.published(key).unwrap().parse().unwrap() };
                    let (tx, rx, port) = (
                        number("tx-ring-ref"),
                        number("rx-ring-ref"),
                        number("event-channel"),
                    );
                    self.rings = Rings::map(&self.machine, self.domid, tx, rx, port);
                    if self.rings.is_none() {
                        // What xen-netback does with rings that it cannot map.
                        self.set_state(Closing);
                        return true;
                    }
                }
                _ => {}
            }
            self.set_state(next);
        }
        !path.is_empty()
    }
}
