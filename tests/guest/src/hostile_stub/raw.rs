//! Requests to xenstored without the client's checks: any bytes as a value, transactions that do not end.

use crate::frontend::Failure;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use xenbus::client::{Client, Transport};
use xenbus::wire::{Header, Kind};

/// Request ids of ours. The client on the same connection uses others.
const REQUEST: u32 = 0x5afe_0000;
/// Longest payload that goes into the ring with its header in one piece.
const LONGEST: usize = 1024 - Header::SIZE;

/// Sends a request and returns the payload of its reply; `None` if xenstored refuses. Watch events that come first are
/// dropped.
pub fn request<T: Transport>(
    client: &mut Client<T>,
    kind: Kind,
    transaction: u32,
    payload: &[u8],
) -> Result<Option<Vec<u8>>, Failure> {
    let broken = |error: T::Error| Failure::Store(error.to_string());
    // Nothing here uses the client's events, so they are dropped.
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
