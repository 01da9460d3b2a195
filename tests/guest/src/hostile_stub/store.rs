//! Attacks by requests to xenstored, made without the client's care: any bytes as a value, transactions that do not end.

use super::{HostileStub, machine::Misuse, tally::Kind as Action};
use crate::frontend::Failure;
use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use xenbus::client::{Client, Store, Transport};
use xenbus::path::key;
use xenbus::wire::{Header, Kind};

/// Numbers of our requests, apart from those of the client on the same connection.
const REQUEST: u32 = 0x5afe_0000;
/// Longest payload that goes into the ring with its header in one piece.
pub const LONGEST: usize = 1024 - Header::SIZE;
/// More than xenstored lets a guest have.
const MANY_TRANSACTIONS: usize = 40;
const MANY_WATCHES: usize = 200;
const MANY_NODES: usize = 1500;

/// Sends a request and returns the payload of its reply; `None` if xenstored refuses. Watch events that come first are
/// dropped.
pub fn request<T: Transport>(
    client: &mut Client<T>,
    kind: Kind,
    transaction: u32,
    payload: &[u8],
) -> Result<Option<Vec<u8>>, Failure> {
    let broken = |error: T::Error| Failure::Store(error.to_string());
    // Events that the client has seen are of no use to anybody here.
    while client.next_event()?.is_some() {}
    let header = Header {
        kind: kind as u32,
        request: REQUEST,
        transaction,
        length: payload.len() as u32,
    };
    let transport = client.transport_mut();
    transport
        .send(&[&header.encode()[..], payload].concat())
        .map_err(broken)?;
    loop {
        let mut header = [0; Header::SIZE];
        transport.receive(&mut header).map_err(broken)?;
        let header = Header::decode(&header);
        let mut payload = vec![0; header.length.min(xenbus::wire::PAYLOAD_MAX as u32) as usize];
        transport.receive(&mut payload).map_err(broken)?;
        match Kind::from_raw(header.kind) {
            Some(Kind::WatchEvent) => {}
            Some(Kind::Error) => return Ok(None),
            _ => return Ok(Some(payload)),
        }
    }
}

/// Ends all watches and transactions.
pub fn forget_watches<T: Transport>(client: &mut Client<T>) -> Result<(), Failure> {
    request(client, Kind::ResetWatches, 0, b"\0").map(drop)
}

/// Writes any bytes.
pub fn write<T: Transport>(client: &mut Client<T>, path: &str, value: &[u8]) -> Result<(), Failure> {
    let room = LONGEST.saturating_sub(path.len() + 1);
    let value = &value[..value.len().min(room)];
    let payload = [path.as_bytes(), b"\0", value].concat();
    request(client, Kind::Write, 0, &payload).map(drop)
}

impl<P: Misuse, T: Transport> HostileStub<'_, P, T> {
    /// Begins a transaction, looks at or writes what dom0 reads, and leaves it open; false if there can be no more.
    pub(super) fn open_transaction(&mut self) -> Result<bool, Failure> {
        self.tally.count(Action::Transaction);
        let Some(number) = request(self.client, Kind::TransactionStart, 0, b"\0")? else {
            return Ok(false);
        };
        let number = core::str::from_utf8(&number).unwrap_or_default();
        let number = number.trim_end_matches('\0').parse().unwrap_or(0);
        let path = self.second.frontend_node(key::PCI_OP_REF);
        let read = format!("{path}\0");
        request(self.client, Kind::Read, number, read.as_bytes())?;
        let write = format!("{path}\07");
        request(self.client, Kind::Write, number, write.as_bytes())?;
        Ok(true)
    }

    pub(super) fn transactions(&mut self) -> Result<(), Failure> {
        let mut open = 0;
        for _ in 0..MANY_TRANSACTIONS {
            open += usize::from(self.open_transaction()?);
            // What is written besides makes each of them a conflict for whoever reads.
            self.write_state(b"4")?;
        }
        log::info!("{open} transactions were to be had");
        self.flood_state()?;
        forget_watches(self.client)
    }

    /// Nodes, watches and values up to the quota, and what is told by watches is not listened to.
    pub(super) fn quotas(&mut self) -> Result<(), Failure> {
        let directory = self.second.frontend_dir();
        let mut nodes = 0;
        for number in 0..MANY_NODES {
            self.tally.count(Action::Value);
            let path = format!("{directory}/flood/{number}");
            if self.client.write(&path, "x").is_err() {
                break;
            }
            nodes += 1;
        }
        let mut watches = 0;
        for number in 0..MANY_WATCHES {
            watches += usize::from(self.watch(&directory, number)?);
        }
        log::info!("{nodes} nodes and {watches} watches more were to be had");
        self.flood_state()?;
        let _ = self.client.remove(&format!("{directory}/flood"));
        forget_watches(self.client)
    }

    /// False if there can be no more.
    pub(super) fn watch(&mut self, path: &str, token: usize) -> Result<bool, Failure> {
        self.tally.count(Action::Watch);
        let payload = format!("{path}\0{token}\0");
        Ok(request(self.client, Kind::Watch, 0, payload.as_bytes())?.is_some())
    }
}
